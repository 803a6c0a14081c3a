//! Norms of stacks of matrices: from above by Gram iteration, from below by power iteration.

use std::collections::BTreeMap;

use candle_core::{D, Tensor};
use lipschitz_nn::linalg::{MatrixMap, Real, each_matrix, sum_of_squares};
use lipschitz_nn::random;

use crate::Error;
use crate::polynomial::Short;
use crate::work::Sides;

/// Relative distance at which caps are met from below. It exceeds what rounding in `f32` adds.
pub(crate) const MARGIN: f64 = 2e-4;

/// Squarings of the Gram matrix. For n equal singular values the bound is `n^(2^-(SQUARINGS+2))`
/// times the norm: 0.3 % above it for n = 768.
const SQUARINGS: i32 = 9;

/// What rounding adds to a bound at most, relatively; see [`gram`].
const ROUNDING: f64 = 1e-4;

/// Steps of power iteration from a pseudo-random vector.
const FRESH: usize = 16;

/// Steps of power iteration from the vector of the step before.
const AGAIN: usize = 2;

fn tiny() -> f64 {
    f64::from(f32::MIN_POSITIVE)
}

/// An upper bound on σ_max of each matrix of `[count, rows, columns]`, as `[count, 1, 1]`:
/// `σ_max² ≤ ‖G^(2^K)‖_F^(1/2^K)` (Delattre et al., *Efficient bound of Lipschitz constant for
/// convolutional layers by Gram iteration*, 2023).
fn gram(x: &Tensor) -> Result<Tensor, Error> {
    // By the largest element first: squares of what is far from 1 would overflow or underflow.
    let largest = x.abs()?.max_keepdim(D::Minus1)?.max_keepdim(D::Minus2)?;
    let largest = (largest + tiny())?;
    let x = &x.broadcast_div(&largest)?;
    let t = x.transpose(D::Minus2, D::Minus1)?;
    let mut g = if x.dim(D::Minus2)? <= x.dim(D::Minus1)? { x.matmul(&t)? } else { t.matmul(x)? };
    // log of the bound on λ_max(G): Σ log(norm_k)/2^k over the squarings.
    let mut log = Tensor::zeros((x.dim(0)?, 1, 1), x.dtype(), x.device())?;
    for k in 0..=SQUARINGS {
        let norm = (g.sqr()?.sum_keepdim(D::Minus1)?.sum_keepdim(D::Minus2)?.sqrt()? + tiny())?;
        log = (log + (norm.log()? * 0.5f64.powi(k))?)?;
        if k < SQUARINGS {
            let unit = g.broadcast_div(&norm)?;
            g = unit.matmul(&unit)?;
        }
    }
    // Sums of n terms in f32 and the squarings err by far less than 1e-4, relatively: the rounding
    // of squaring k counts 2^-k.
    Ok((((log * 0.5)?.exp()? * largest)? * (1.0 + ROUNDING))?)
}

/// Floating-point operations of [`normalize`].
pub(crate) fn gram_work(sides: Sides) -> f64 {
    sides.long_product() + f64::from(SQUARINGS) * sides.short_product()
}

/// Each matrix of `[…, rows, columns]` over the larger of 1 and a bound on its norm over the cap. No
/// norm ends above the cap.
pub(crate) fn normalize(x: &Tensor, cap: f64) -> Result<Tensor, Error> {
    Ok(normalize_all(&[(cap, x.clone())])?.remove(0))
}

/// [`normalize`] of stacks with caps of their own, all at once.
pub(crate) fn normalize_all(stacks: &[(f64, Tensor)]) -> Result<Vec<Tensor>, Error> {
    let jobs: Vec<_> = stacks.iter().map(|(cap, x)| (Normalize { cap: *cap }, x.clone())).collect();
    match each_matrix(&jobs)? {
        Some(done) => Ok(done),
        None => stacks.iter().map(|(cap, x)| normalize_composed(x, *cap)).collect(),
    }
}

/// The kernel of [`normalize`]: the bound falls from squaring to squaring, and a matrix stays as it is
/// as soon as one is below the cap.
struct Normalize {
    cap: f64,
}

impl MatrixMap for Normalize {
    fn run<T: Real>(&self, x: &[T], out: &mut [T], rows: usize, columns: usize, parallel: bool) {
        // Squares of what is far from 1 would overflow or underflow.
        let top = x.iter().fold(0.0, |top: f64, x| top.max(x.to_f64().abs()));
        let usual = top == 0.0 || (1e-12..1e12).contains(&top) || !top.is_finite();
        let size = if usual { 1.0 } else { top };
        let unit: Vec<T> = match usual {
            true => Vec::new(),
            false => x.iter().map(|x| T::of(x.to_f64() / top)).collect(),
        };
        let short = Short::new(if usual { x } else { &unit }, rows, columns, parallel);
        let cap = self.cap / size;
        let [mut g, mut next] = std::array::from_fn(|_| short.square());
        short.gram(&mut g, 1.0);
        let (mut log, mut over) = (0.0, f64::INFINITY);
        for k in 0..=SQUARINGS {
            let norm = sum_of_squares(&g).sqrt() + tiny();
            log += norm.ln() * 0.5_f64.powi(k);
            over = (0.5 * log).exp() * (1.0 + ROUNDING) / (cap * (1.0 - MARGIN));
            if over <= 1.0 || k == SQUARINGS {
                break;
            }
            let unit = T::of(norm.recip());
            g.iter_mut().for_each(|x| *x *= unit);
            short.commuting(&mut next, &g, &g, false, 1.0);
            std::mem::swap(&mut g, &mut next);
        }
        // Not a number stays what it is.
        let factor = if over > 1.0 { T::of(over.recip()) } else { T::of(1.0) };
        out.iter_mut().zip(x).for_each(|(out, x)| *out = *x * factor);
    }
}

/// [`normalize`] composed of tensor operations, for other devices and float types.
pub(crate) fn normalize_composed(x: &Tensor, cap: f64) -> Result<Tensor, Error> {
    Ok(x.broadcast_div(&(gram(x)? / (cap * (1.0 - MARGIN)))?.maximum(1f64)?)?)
}

/// Lower estimates of the largest singular values, with their vectors.
pub(crate) struct Top {
    /// `[count, 1, 1]`.
    pub(crate) sigma: Tensor,
    /// Left vectors, `[count, rows, 1]`.
    left: Tensor,
    /// Right vectors, `[count, columns, 1]`.
    right: Tensor,
}

impl Top {
    /// `u vᵀ`, `[count, rows, columns]`.
    pub(crate) fn outer(&self) -> Result<Tensor, Error> {
        Ok(self.left.broadcast_mul(&self.right.transpose(1, 2)?)?)
    }
}

/// The right vectors of power iteration that are kept from step to step, by the weight's name.
#[derive(Default)]
pub(crate) struct TopVectors(pub(crate) BTreeMap<String, Tensor>);

impl TopVectors {
    /// The top singular values of the blocks `[count, rows, columns]` of this weight.
    pub(crate) fn of(&mut self, name: &str, x: &Tensor) -> Result<Top, Error> {
        let top = match self.0.get(name) {
            Some(kept) => power(x, kept, AGAIN)?,
            None => power(x, &start(x)?, FRESH)?,
        };
        self.0.insert(name.to_string(), top.right.clone());
        Ok(top)
    }
}

/// Power iteration on `[count, rows, columns]` from right vectors `[count, columns, 1]`.
fn power(x: &Tensor, start: &Tensor, iterations: usize) -> Result<Top, Error> {
    let unit = |v: Tensor| -> Result<(Tensor, Tensor), Error> {
        let norm = (v.sqr()?.sum_keepdim(1)?.sqrt()? + tiny())?;
        Ok((v.broadcast_div(&norm)?, norm))
    };
    let t = x.transpose(1, 2)?.contiguous()?;
    let mut right = start.clone();
    for _ in 0..iterations {
        right = unit(t.matmul(&x.matmul(&right)?)?)?.0;
    }
    let (left, sigma) = unit(x.matmul(&right)?)?;
    Ok(Top { sigma, left, right })
}

/// Floating-point operations of power iteration: a product with a vector and one with the
/// transpose per step.
pub(crate) fn power_work(sides: Sides) -> f64 {
    4.0 * sides.s() * sides.l() * AGAIN as f64
}

/// The right vectors that power iteration starts from, `[count, columns, 1]`: pseudo-random, and
/// the same for the same shape.
pub(crate) fn start(x: &Tensor) -> Result<Tensor, Error> {
    let (count, _, columns) = x.dims3()?;
    let mut rng = random::seeded(columns as u64);
    let one = |_| random::symmetric(&mut rng);
    let values: Vec<f64> = (0..count * columns).map(one).collect();
    Ok(Tensor::from_vec(values, (count, columns, 1), x.device())?.to_dtype(x.dtype())?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    /// Squares of these overflow or underflow in f32.
    #[test]
    fn norms_far_from_one_are_met_too() {
        let mut rng = random::seeded(9);
        for size in [1e25, 1e-25] {
            let values = random::normals(&mut rng, 48);
            let values: Vec<f32> = values.into_iter().map(|x| (x * size) as f32).collect();
            let x = Tensor::from_vec(values, (1, 6, 8), &Device::Cpu).unwrap();
            let cap = size;
            for y in [normalize(&x, cap).unwrap(), normalize_composed(&x, cap).unwrap()] {
                let norm = sigma(&(y.get(0).unwrap().to_dtype(DType::F64).unwrap() / cap).unwrap());
                assert!(norm <= 1.0 && norm > 0.98, "{size:e}: {norm}");
            }
        }
    }

    /// By the kernel and without it, of wide, tall and square matrices, far above the cap, near it and
    /// below: no norm is above the cap, and one that is below stays, bit for bit.
    #[test]
    fn normalising_brings_norms_under_the_cap() {
        let mut rng = random::seeded(8);
        for (rows, columns) in [(1, 1), (7, 7), (30, 8), (8, 30), (64, 64)] {
            for dtype in [DType::F32, DType::F64] {
                let values = random::normals(&mut rng, 3 * rows * columns);
                let x = Tensor::from_vec(values, (3, rows, columns), &Device::Cpu).unwrap();
                let x = x.to_dtype(dtype).unwrap();
                let sizes: Vec<f64> = (0..3).map(|i| sigma(&x.get(i).unwrap())).collect();
                for share in [0.1, 0.9, 1.001, 3.0] {
                    let cap = share * sizes[0];
                    let fused = normalize(&x, cap).unwrap();
                    let composed = normalize_composed(&x, cap).unwrap();
                    for (i, size) in sizes.iter().enumerate() {
                        let of = |x: &Tensor| sigma(&x.get(i).unwrap());
                        let (a, b) = (of(&fused), of(&composed));
                        assert!(a <= cap && b <= cap && a >= 0.99 * cap.min(*size), "{a} {cap}");
                        assert!((a - b).abs() <= 1e-4 * b, "{rows} {columns}: {a} {b}");
                        let (before, after) = (x.get(i).unwrap(), fused.get(i).unwrap());
                        let same = (before - after).unwrap().abs().unwrap().max_all().unwrap();
                        let moved = same.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
                        assert!(*size > 0.9 * cap || moved == 0.0, "{size} {cap}: {moved}");
                    }
                }
            }
        }
    }

    /// By an SVD.
    fn sigma(x: &Tensor) -> f64 {
        let (rows, columns) = x.dims2().unwrap();
        let x = x.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
        let x = faer::Mat::from_fn(rows, columns, |i, j| x[i][j]);
        x.singular_values().unwrap().into_iter().fold(0.0, f64::max)
    }
}
