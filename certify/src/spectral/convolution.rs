//! Norms of convolutions: frequency by frequency, each proven by a Cholesky factorisation.
//!
//! On a torus the Fourier transform takes a convolution apart: at the frequency ω it is the matrix
//! `A(ω) = Σ_t W_t e^{iω·t}`, with W_t the kernel at the place t, and its norm is the largest of
//! theirs (Sedghi, Gupta and Long, *The Singular Values of Convolutional Layers*, 2019). The squares
//! `A(ω)ᴴA(ω) = Σ_τ C_τ e^{iω·τ}`, `C_τ = Σ_t W_tᵀW_{t+τ}`, have few coefficients for any number of
//! frequencies. With zeros around the image a convolution is a part of that of a torus large enough
//! for nothing to come round. A stride s is a convolution of stride 1 on the squares of s × s pixels
//! as channels. The proofs are in `docs/mathematics.md`.

use std::f64::consts::{FRAC_PI_4, PI};

use candle_core::{Device, Tensor};
use lipschitz_nn::graph::Convolution;
use lipschitz_nn::linalg::{Precision, Strided, matmul};
use lipschitz_nn::ops;
use rayon::prelude::*;

use super::hermitian::cholesky;
use super::lanczos::top_eigenvector;
use super::matrix::vector_norm;
use super::proof::{UNDERFLOW, within_range};
use super::{Interval, Matrix, Method, gamma, spectral_norm};
use crate::upper::{Upper, count};

/// Exceeds the error of [`turn`].
const TURN: f64 = 1.0 / (1u64 << 47) as f64;

/// Kernels of more places are not taken apart: the pairs of them are what the work grows with.
const PLACES: usize = 1 << 12;

/// Numbers of the matrices of the frequencies, or of their turns, that are looked at together.
const TOGETHER: usize = 1 << 21;

/// Images of more elements are not taken apart, so that no small file asks for large memory.
const MAX_ELEMENTS: usize = 1 << 24;

/// The norm of a convolution, ℓ2 of the whole image, whose kernel as a matrix is `w`, on images of
/// these sides. With zeros around the image the upper end is that of the torus, and the lower end
/// that of the convolution itself.
///
/// If no proof succeeds, [`Method::Proven`] falls back to [`Method::Frobenius`], and the interval
/// says so.
///
/// # Panics
/// If `w` is not of the shape of [`Convolution::weight`].
pub fn convolution_norm(
    w: &Matrix,
    convolution: &Convolution,
    sides: [usize; 2],
    method: Method,
) -> Interval {
    assert_eq!([w.rows, w.columns], convolution.weight(), "convolution_norm: shape");
    within_range(w, method, |w| unit_norm(w, convolution, sides, method))
}

fn unit_norm(w: &Matrix, c: &Convolution, sides: [usize; 2], method: Method) -> Interval {
    let elements = c.inputs.saturating_mul(sides[0]).saturating_mul(sides[1]);
    let small = elements <= MAX_ELEMENTS;
    let mut method = if method == Method::Direct { Method::Proven } else { method };
    let mut upper = Upper::ZERO;
    let mut largest: Option<(Upper, usize, Taps, Wave)> = None;
    // Each group is a convolution of its own channels.
    for index in 0..c.groups {
        let part = w.row_block(index, c.groups);
        let taps = Taps::new(&part, c, sides);
        let frobenius = taps.frobenius();
        let proof = match method {
            Method::Proven | Method::Direct | Method::Power if small => taps.largest(),
            _ => None,
        };
        let estimate = proof.as_ref().map_or(frobenius, |(square, _)| square.sqrt().min(frobenius));
        let own = match (method, &proof) {
            (Method::Gram, _) => {
                let matrix = spectral_norm(&part, Method::Gram).upper;
                frobenius.min(count(c.overlap(sides[0]) * c.overlap(sides[1])).sqrt() * matrix)
            }
            (Method::Proven | Method::Direct, None) => {
                method = Method::Frobenius;
                frobenius
            }
            _ => estimate,
        };
        upper = upper.max(own);
        if largest.as_ref().is_none_or(|(before, ..)| estimate > *before) {
            let wave = proof.map_or_else(|| taps.first_wave(), |(_, wave)| wave);
            largest = Some((estimate, index, taps, wave));
        }
    }
    let lower = match &largest {
        Some((_, index, taps, wave)) if small => stretch(w, c, sides, taps, *index, wave),
        _ => 0.0,
    };
    let upper = if method == Method::Power { Upper::from_f64(lower) } else { upper };
    Interval { lower, upper, method }
}

/// A convolution of stride 1 on a torus: the matrices of its kernel.
struct Taps {
    outputs: usize,
    inputs: usize,
    /// Places of the kernel along both sides.
    places: [usize; 2],
    /// Sides of the torus; 1 where the kernel has one place and all frequencies are alike.
    torus: [usize; 2],
    /// `[outputs, inputs]` for each place, row by row.
    matrices: Vec<Vec<f64>>,
    /// The side of the squares of pixels that are channels.
    square: usize,
    /// The first place.
    first: i64,
    /// Σ ‖W_t‖_F over the places of the kernel as it was given.
    size: Upper,
}

/// A plane wave: its frequency in steps of the torus, and its direction in the channels.
#[derive(Clone)]
struct Wave {
    frequency: [usize; 2],
    re: Vec<f64>,
    im: Vec<f64>,
}

impl Taps {
    /// One group of a convolution. `w` is its rows.
    fn new(w: &Matrix, c: &Convolution, sides: [usize; 2]) -> Self {
        let k = c.kernel;
        // Places of the kernel on squares of this side, and the channels that these are.
        let on = |square: usize| {
            let (first, end) = (c.place(0, square).0, c.place(k - 1, square).0);
            let inputs = square.saturating_mul(square).saturating_mul(c.inputs / c.groups);
            (first, (end - first + 1) as usize, inputs)
        };
        // Where a torus is no multiple of the stride, its outputs are among those of stride 1. They are in
        // any case, which bounds a stride so large that its squares would not fit into memory.
        let fits = |square: usize| {
            let (_, n, inputs) = on(square);
            let numbers = n.saturating_mul(n).saturating_mul(w.rows).saturating_mul(inputs);
            numbers <= MAX_ELEMENTS.max(w.data.len().saturating_mul(4))
        };
        let split = !c.circular || sides.iter().all(|side| side % c.stride == 0);
        let square = if split && fits(c.stride) { c.stride } else { 1 };
        let torus = sides.map(|side| {
            if c.circular {
                return side / square;
            }
            // Places from −p to side + p − 1: beyond the image they meet zeros, and no output comes
            // twice.
            let last = c.side(side).map_or(0, |out| (out - 1) * c.stride + 1);
            (side + c.padding).max(k).max(last).div_ceil(square)
        });
        let (first, n, inputs) = on(square);
        let channels = c.inputs / c.groups;
        let mut matrices = vec![vec![0.0; w.rows * inputs]; n * n];
        let mut parts = vec![Vec::with_capacity(w.rows * channels); k * k];
        for (o, row) in w.data.chunks(w.columns.max(1)).enumerate() {
            for (i, x) in row.iter().enumerate() {
                let (channel, u, v) = (i / (k * k), i / k % k, i % k);
                let [(y, inner), (z, within)] = [u, v].map(|u| c.place(u, square));
                let t = (y - first) as usize * n + (z - first) as usize;
                let column = (channel * square + inner) * square + within;
                matrices[t][o * inputs + column] = *x;
                parts[u * k + v].push(*x);
            }
        }
        let size = parts.iter().fold(Upper::ZERO, |sum, part| sum + vector_norm(part));
        let torus = if n == 1 { [1, 1] } else { torus };
        Self { outputs: w.rows, inputs, places: [n; 2], torus, matrices, square, first, size }
    }

    /// `‖A(ω)‖ ≤ Σ_t ‖W_t‖_F`, by the triangle inequality; of the kernel as it was given, whatever the
    /// squares are.
    fn frobenius(&self) -> Upper {
        self.size
    }

    /// The places apart from each other by τ in one of two opposite directions, and by nothing.
    fn distances(&self) -> Vec<[i64; 2]> {
        let [tall, wide] = self.places.map(|n| n as i64 - 1);
        let all = (0..=tall).flat_map(|y| (-wide..=wide).map(move |x| [y, x]));
        all.filter(|[y, x]| *y > 0 || *x >= 0).collect()
    }

    /// An upper bound on the largest eigenvalue of any `A(ω)ᴴA(ω)`, and a wave that is stretched
    /// about as much; none if no proof succeeds, or the kernel is too large.
    fn largest(&self) -> Option<(Upper, Wave)> {
        let turned = self.outputs < self.inputs;
        let n = self.outputs.min(self.inputs);
        if self.matrices.len() > PLACES {
            return None;
        }
        let distances = self.distances();
        let (even, odd) = self.coefficients(&distances, turned);
        let frequencies = self.frequencies();
        // What G is off by: its coefficients, sums of all products of elements that they are made
        // of, and their sums with turns that are off themselves.
        let squares = self.all() * self.all();
        let inner = self.outputs.max(self.inputs) * self.matrices.len();
        let off =
            gamma(inner + 4) + count(2) * gamma(distances.len() + 8) + Upper::from_f64(8.0 * TURN);
        let off = off * squares * Upper::from_f64(1.001) + Upper::from_f64(UNDERFLOW);
        let together = (TOGETHER / (n * n).max(distances.len())).clamp(1, frequencies.len());
        let mut search = Search { n, a: 0.0, error: Upper::ZERO, best: None };
        for some in frequencies.chunks(together) {
            let (mut re, mut im) = self.squares(some, &distances, &even, &odd, n);
            search.see(some, &mut re, &mut im)?;
        }
        let (frequency, v) = search.best?;
        let wave = self.input_wave(frequency, &v, turned);
        Some((Upper::from_f64(search.a) + search.error + off, wave))
    }

    /// Σ ‖W_t‖_F over the places on the torus.
    fn all(&self) -> Upper {
        self.matrices.iter().fold(Upper::ZERO, |sum, w| sum + vector_norm(w))
    }

    /// `C_0` and all `C_τ + C_τᵀ`, one below the other, and all `C_τ − C_τᵀ`; those of the kernel's
    /// transposes, if it is `turned`.
    fn coefficients(&self, distances: &[[i64; 2]], turned: bool) -> (Vec<f64>, Vec<f64>) {
        let n = self.outputs.min(self.inputs);
        let [tall, wide] = self.places.map(|n| n as i64);
        let view = |t: usize| {
            let w = Strided::rows(&self.matrices[t], self.outputs, self.inputs, self.inputs);
            if turned { w.t() } else { w }
        };
        let one = |[dy, dx]: &[i64; 2]| {
            let mut c = vec![0.0; n * n];
            for y in 0..tall {
                for x in 0..wide {
                    let (there, beside) = (y + dy, x + dx);
                    if there < tall && (0..wide).contains(&beside) {
                        let (from, to) =
                            ((y * wide + x) as usize, (there * wide + beside) as usize);
                        matmul(&mut c, n, view(from).t(), view(to), true, 1.0, true);
                    }
                }
            }
            c
        };
        let (mut even, mut odd) = (Vec::new(), Vec::new());
        for (i, distance) in distances.iter().enumerate() {
            let c = one(distance);
            if i == 0 {
                even.extend(c);
                continue;
            }
            for (factor, out) in [(1.0, &mut even), (-1.0, &mut odd)] {
                let transposed = |i: usize| (0..n).map(move |j| j * n + i);
                let sums = (0..n).flat_map(|i| {
                    c[i * n..(i + 1) * n].iter().zip(transposed(i).map(|at| factor * c[at]))
                });
                out.extend(sums.map(|(a, b)| a + b));
            }
        }
        (even, odd)
    }

    /// One of each pair ω and −ω, at which the matrices are conjugate.
    fn frequencies(&self) -> Vec<[usize; 2]> {
        let [tall, wide] = self.torus;
        let all = (0..tall).flat_map(|y| (0..wide).map(move |x| [y, x]));
        all.filter(|[y, x]| [*y, *x] <= [(tall - y) % tall, (wide - x) % wide]).collect()
    }

    /// `e^{iω·τ}`
    fn turn(&self, [y, x]: [usize; 2], [dy, dx]: [i64; 2]) -> (f64, f64) {
        let [tall, wide] = self.torus.map(|n| n as i64);
        let steps =
            (y as i64 * dy).rem_euclid(tall) * wide + (x as i64 * dx).rem_euclid(wide) * tall;
        let n = (tall * wide) as u64;
        turn(steps.rem_euclid(tall * wide) as u64, n)
    }

    /// The real and the imaginary part of `A(ω)ᴴA(ω)` for some ω, one after the other.
    fn squares(
        &self,
        some: &[[usize; 2]],
        distances: &[[i64; 2]],
        even: &[f64],
        odd: &[f64],
        n: usize,
    ) -> (Vec<f64>, Vec<f64>) {
        let (mut cosines, mut sines) = (Vec::new(), Vec::new());
        for frequency in some {
            for distance in distances {
                let (cosine, sine) = self.turn(*frequency, *distance);
                cosines.push(cosine);
                if *distance != [0, 0] {
                    sines.push(sine);
                }
            }
        }
        let times = |turns: &[f64], all: &[f64]| {
            let mut out = vec![0.0; some.len() * n * n];
            let terms = turns.len() / some.len();
            if terms > 0 {
                let turns = Strided::dense(turns, terms);
                matmul(&mut out, n * n, turns, Strided::dense(all, n * n), false, 1.0, true);
            }
            out
        };
        (times(&cosines, even), times(&sines, odd))
    }

    /// The wave of the input that belongs to an eigenvector of [`Taps::squares`].
    fn input_wave(&self, frequency: [usize; 2], v: &[f64], turned: bool) -> Wave {
        let n = v.len() / 2;
        let (re, im) = v.split_at(n);
        if !turned {
            return Wave { frequency, re: re.to_vec(), im: im.to_vec() };
        }
        // v is a left singular vector at −ω, and Aᴴ v the right one.
        let [tall, wide] = self.torus;
        let [y, x] = frequency;
        let back = [(tall - y) % tall, (wide - x) % wide];
        let (mut xr, mut xi) = (vec![0.0; self.inputs], vec![0.0; self.inputs]);
        for (t, w) in self.matrices.iter().enumerate() {
            let place = [t / self.places[1], t % self.places[1]].map(|p| p as i64 + self.first);
            let (cosine, sine) = self.turn(back, place);
            for (o, row) in w.chunks(self.inputs).enumerate() {
                // v e^{−iω·t}
                let (a, b) = (re[o] * cosine + im[o] * sine, im[o] * cosine - re[o] * sine);
                for ((xr, xi), w) in xr.iter_mut().zip(&mut xi).zip(row) {
                    (*xr, *xi) = (*xr + w * a, *xi + w * b);
                }
            }
        }
        Wave { frequency: back, re: xr, im: xi }
    }

    /// Any wave, where there is no better one.
    fn first_wave(&self) -> Wave {
        Wave { frequency: [0, 0], re: vec![1.0; self.inputs], im: vec![0.0; self.inputs] }
    }
}

/// The search for a number that is above all eigenvalues at all frequencies.
struct Search {
    n: usize,
    /// The number.
    a: f64,
    /// What the proofs are off by.
    error: Upper,
    /// The frequency that made it, and the eigenvector there: real parts, then imaginary ones.
    best: Option<([usize; 2], Vec<f64>)>,
}

impl Search {
    /// Proves that the number is above the eigenvalues of some matrices, and raises it where it is
    /// not; none where no number near an estimate can be proven.
    fn see(&mut self, some: &[[usize; 2]], re: &mut [f64], im: &mut [f64]) -> Option<()> {
        let (n, square) = (self.n, self.n * self.n);
        if self.best.is_none() {
            self.raise(some[0], &re[..square], &im[..square], 0.0);
        }
        let a = self.a;
        let all = re.par_chunks(square).zip(im.par_chunks(square));
        let proofs: Vec<Option<Upper>> = all.map(|(re, im)| above(re, im, n, a)).collect();
        for (i, proof) in proofs.into_iter().enumerate() {
            let part = i * square..(i + 1) * square;
            let (re, im) = (&re[part.clone()], &im[part]);
            let mut proof = if self.a > a { above(re, im, n, self.a) } else { proof };
            let mut delta = 0.0;
            while proof.is_none() {
                if delta > 0.5 {
                    return None;
                }
                self.raise(some[i], re, im, delta);
                delta = if delta == 0.0 { 1e-9 } else { 4.0 * delta };
                proof = above(re, im, n, self.a);
            }
            self.error = self.error.max(proof?);
        }
        Some(())
    }

    /// To just above an estimate of the largest eigenvalue of a matrix, or above what was tried.
    fn raise(&mut self, frequency: [usize; 2], re: &[f64], im: &[f64], delta: f64) {
        let n = self.n;
        let slack = 1e-8_f64.max(32.0 * (n * n) as f64 * f64::EPSILON);
        if delta > 0.0 {
            self.a = self.a * (1.0 + delta) + 1e-270;
            return;
        }
        // As a real matrix of twice the size, which has every eigenvalue twice.
        let mut real = vec![0.0; 4 * n * n];
        for i in 0..n {
            for j in 0..n {
                // Of each pair of elements that should be equal, the lower one.
                let (low, sign) = if j <= i { (i * n + j, 1.0) } else { (j * n + i, -1.0) };
                let (x, y) = (re[low], sign * im[low]);
                real[2 * n * i + j] = x;
                real[2 * n * (n + i) + n + j] = x;
                real[2 * n * (n + i) + j] = y;
                real[2 * n * i + n + j] = -y;
            }
        }
        let v = top_eigenvector(&real, 2 * n);
        let product = real.chunks(2 * n).map(|row| row.iter().zip(&v).map(|(a, b)| a * b).sum());
        let product: Vec<f64> = product.collect();
        let value: f64 = product.iter().zip(&v).map(|(a, b)| a * b).sum();
        let raised = value * (1.0 + slack) + 1e-270;
        if raised > self.a {
            (self.a, self.best) = (raised, Some((frequency, v)));
        }
    }
}

/// Whether `aI − G` is positive definite, and by how much that is off.
fn above(re: &[f64], im: &[f64], n: usize, a: f64) -> Option<Upper> {
    let (mut real, mut imaginary): (Vec<f64>, Vec<f64>) =
        (re.iter().map(|x| -x).collect(), im.iter().map(|x| -x).collect());
    let (mut trace, mut largest) = (Upper::ZERO, 0.0_f64);
    for i in 0..n {
        let d = a - re[i * n + i];
        real[i * n + i] = d;
        imaginary[i * n + i] = 0.0;
        largest = largest.max(d.abs());
        trace = trace + Upper::from_f64(d.max(0.0));
    }
    let error = cholesky(&mut real, &mut imaginary, n, trace)?;
    // The diagonal was rounded.
    Some(error + Upper::from_f64(largest) * Upper::from_f64(f64::EPSILON))
}

/// Cosine and sine of `2π steps/n`, each to within [`TURN`]: the angle is θ ∈ [0, π/4] from a multiple
/// of π/2, exactly; θ itself is off by 3 roundings, the powers of θ beyond the 21st add up to less
/// than 1e-23, and Horner's rule is off by at most `γ_26 cosh θ`.
fn turn(steps: u64, n: u64) -> (f64, f64) {
    let (eighth, rest) = (8 * steps / n, 8 * steps % n);
    let rest = if eighth % 2 == 0 { rest } else { n - rest };
    let theta = FRAC_PI_4 * (rest as f64 / n as f64);
    let square = theta * theta;
    let series = |from: u32| {
        (0..10_u32).rev().fold(1.0, |sum, i| {
            let k = f64::from(2 * i + from);
            1.0 - sum * square / (k * (k + 1.0))
        })
    };
    let (c, s) = (series(1), theta * series(2));
    match eighth {
        0 => (c, s),
        1 => (s, c),
        2 => (-s, c),
        3 => (-c, s),
        4 => (-c, -s),
        5 => (-s, -c),
        6 => (s, -c),
        _ => (c, -s),
    }
}

/// A lower bound on the norm of a convolution: how much it stretches the real or the imaginary part
/// of a wave in the channels of a group; 0 if it cannot be run.
fn stretch(
    w: &Matrix,
    c: &Convolution,
    [height, width]: [usize; 2],
    taps: &Taps,
    group: usize,
    wave: &Wave,
) -> f64 {
    let size = c.inputs / c.groups;
    let pixels = height * width;
    let mut x = vec![0.0; 2 * c.inputs * pixels];
    let s = taps.square;
    // Zeros beside the image do not matter where every output reads pixels of its own.
    let flat = c.circular || taps.torus == [1, 1];
    let taper = |i: usize, n: usize| {
        if flat { 1.0 } else { (PI * (i as f64 + 1.0) / (n as f64 + 1.0)).sin() }
    };
    for y in 0..height {
        for z in 0..width {
            let (cosine, sine) = if taps.torus == [1, 1] {
                (1.0, 0.0)
            } else {
                taps.turn(wave.frequency, [(y / s) as i64, (z / s) as i64])
            };
            let taper = taper(y, height) * taper(z, width);
            for channel in 0..size {
                let i = (channel * s + y % s) * s + z % s;
                let (a, b) = (wave.re[i], wave.im[i]);
                let at = (group * size + channel) * pixels + y * width + z;
                x[at] = taper * (a * cosine - b * sine);
                x[c.inputs * pixels + at] = taper * (a * sine + b * cosine);
            }
        }
    }
    let run = |x: &[f64]| -> candle_core::Result<Vec<f64>> {
        let x = Tensor::from_slice(x, (1, c.inputs, height, width), &Device::Cpu)?;
        let w = Tensor::from_slice(&w.data, (w.rows, w.columns), &Device::Cpu)?;
        ops::convolution(&x, &w, None, c, Precision::F32)?.flatten_all()?.to_vec1()
    };
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    // Each output is off by at most γ times that of the absolute values, whose convolution has norm
    // at most Σ ‖W_t‖_F.
    let off = (gamma(w.columns + 2) * taps.frobenius()).to_f64();
    let lower = |x: &[f64]| {
        let Ok(y) = run(x) else { return 0.0 };
        let from = vector_norm(x).to_f64();
        let down = 1.0 - (2 * y.len() + 8) as f64 * f64::EPSILON;
        let found = (norm(&y) * down - UNDERFLOW) / from - off;
        let found = found * (1.0 - 8.0 * f64::EPSILON);
        if found.is_finite() { found.max(0.0) } else { 0.0 }
    };
    x.chunks(c.inputs * pixels).map(lower).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_cosines_and_sines() {
        for n in [1, 2, 3, 5, 8, 33, 1089, 999_983] {
            for steps in (0..n).step_by(1 + n as usize / 300) {
                let (c, s) = turn(steps, n);
                let angle = std::f64::consts::TAU * (steps as f64 / n as f64);
                assert!((c - angle.cos()).abs() < 2e-15 && (s - angle.sin()).abs() < 2e-15);
            }
        }
        assert_eq!([turn(1, 2), turn(1, 4), turn(3, 4)], [(-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)]);
    }
}
