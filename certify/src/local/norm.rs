//! RMS norms, layer norms and normalisation, around a computed input.

use super::functional::Functionals;
use super::maps::tiny;
use super::remainder::{Remainders, Sphere, Term, half_curvature, least, root};
use super::spread::Spread;
use crate::spectral::{Matrix, gamma, largest, quick_norm, vector_norm};
use crate::upper::{Upper, abs, count};

/// `γ ∘ √n x/√(‖x‖² + n ε) + β` for each of `groups` equal parts of a token, x centred first or not.
pub(super) struct Normed {
    pub(super) groups: usize,
    pub(super) eps: f64,
    pub(super) centred: bool,
    /// γ of a whole token; none is 1.
    pub(super) gain: Option<Vec<f64>>,
    /// The input, centred where it is.
    x: Matrix,
    /// ‖x‖ of each part, rounded down; `[tokens, groups]`.
    sizes: Vec<f64>,
    /// What the parts of x may be off by.
    off: Vec<Upper>,
    /// Where the deviations of the parts of the input are kept.
    pub(super) slots: Vec<usize>,
    /// The rounding of each part of the output; `[tokens, groups]`.
    errors: Vec<Upper>,
}

impl Normed {
    pub(super) fn new(
        x: &Matrix,
        y: &Matrix,
        (groups, eps, centred): (usize, f64, bool),
        (gain, shift): (Option<Vec<f64>>, Option<Vec<f64>>),
        slots: Vec<usize>,
    ) -> Self {
        let n = x.columns / groups.max(1);
        let mut x = x.clone();
        let (mut sizes, mut off, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        let most = gain.as_ref().map_or(Upper::ONE, |g| Upper::from_f64(largest(g)));
        let shift = shift.map_or(Upper::ZERO, |b| vector_norm(&b));
        for (row, y) in x.data.chunks_mut(n.max(1)).zip(y.data.chunks(n.max(1))) {
            let whole = vector_norm(row);
            let error = if centred {
                let mean = row.iter().sum::<f64>() / n as f64;
                row.iter_mut().for_each(|x| *x -= mean);
                gamma(n + 8) * (whole + whole) + tiny()
            } else {
                Upper::ZERO
            };
            // The rounded-up norm is at most this much too large.
            let slack = 1.0 - 4.0 * gamma(n + 8).to_f64();
            let size = (vector_norm(row).to_f64() * slack - error.to_f64()).next_down().max(0.0);
            let s = least(size, Upper::ZERO, floor(n, eps));
            let constant = most * root(n).div_up(s);
            let rounded = gamma(n + 16) + lost(n, s);
            errors.push(rounded * (vector_norm(y) + shift + shift) + constant * error + tiny());
            sizes.push(if size.is_finite() { size } else { 0.0 });
            off.push(error);
        }
        Self { groups, eps, centred, gain, x, sizes, off, slots, errors }
    }

    /// Tokens, and elements of each.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.x.rows, self.x.columns)
    }

    /// What it reads.
    pub(super) fn input(&self) -> &Matrix {
        &self.x
    }

    fn part(&self) -> usize {
        self.x.columns / self.groups.max(1)
    }

    fn gain_of(&self, group: usize) -> Option<&[f64]> {
        let n = self.part();
        self.gain.as_ref().map(|g| &g[group * n..(group + 1) * n])
    }

    /// The deviation of one part behind the norm. `‖n'‖ ≤ 1/s`, and no two values are more than 2 apart.
    pub(super) fn grow(&self, group: usize, x: &Spread) -> Spread {
        let n = self.part();
        let most = self.gain_of(group).map_or(Upper::ONE, |g| Upper::from_f64(largest(g)));
        let most = most * root(n);
        let mut slowest = f64::INFINITY;
        let each = (0..x.each.len())
            .map(|t| {
                let i = t * self.groups + group;
                let s = least(self.sizes[i], x.each[t] + self.off[i], floor(n, self.eps));
                slowest = slowest.min(s);
                let apart = Upper::from_f64(2.0).min(x.each[t].div_up(s));
                most * apart + self.errors[i]
            })
            .collect();
        let errors: Vec<Upper> =
            (0..x.each.len()).map(|t| self.errors[t * self.groups + group]).collect();
        let total = (most * x.total).div_up(slowest) + super::spread::root_of_squares(&errors);
        Spread::new(each, total)
    }

    /// With `g = γ ∘ λ`: `√n/s (g − x (x·g)/s²)`, centred where x is; the rest by curvature.
    pub(super) fn back(&self, mut lambda: Functionals, out: &mut Remainders) -> Functionals {
        let (n, groups, count) = (self.part(), self.groups, lambda.count);
        let mut spheres: Vec<Vec<Vec<(usize, Upper, f64)>>> = vec![vec![Vec::new(); groups]; count];
        let mut rounding: Vec<Vec<Vec<(usize, Upper)>>> = vec![vec![Vec::new(); groups]; count];
        let mut constants = vec![Upper::ZERO; count];
        self.together(&lambda, out);
        let tokens = lambda.tokens.clone();
        let active = tokens.len().max(1);
        for (at, row) in lambda.data.chunks_mut(lambda.width.max(1)).enumerate() {
            let (k, t) = (at / active, tokens[at % active]);
            for group in 0..groups {
                let i = t * groups + group;
                let g = &mut row[group * n..(group + 1) * n];
                if g.iter().all(|x| *x == 0.0) {
                    continue;
                }
                constants[k] = constants[k] + vector_norm(g) * self.errors[i];
                if let Some(gain) = self.gain_of(group) {
                    g.iter_mut().zip(gain).for_each(|(l, g)| *l *= g);
                }
                let x = &self.x.data[i * n..(i + 1) * n];
                let size = vector_norm(g);
                let weight = size * root(n);
                let square = x.iter().map(|x| x * x).sum::<f64>() + n as f64 * self.eps;
                let inner: f64 = x.iter().zip(&*g).map(|(x, g)| x * g).sum();
                let (first, second) = ((n as f64 / square).sqrt(), inner / square);
                g.iter_mut().zip(x).for_each(|(g, x)| *g = first * (*g - x * second));
                if self.centred {
                    let mean = g.iter().sum::<f64>() / n as f64;
                    g.iter_mut().for_each(|g| *g -= mean);
                }
                rounding[k][group].push((t, self.slope_error(i) * weight + tiny()));
                let low = (self.sizes[i] - self.off[i].to_f64()).next_down().max(0.0);
                spheres[k][group].push((t, weight * (Upper::ONE + gamma(8)), low));
            }
        }
        if out.together().is_some() {
            return lambda;
        }
        for k in 0..count {
            out.push(k, Term::Constant(constants[k]));
            for group in 0..groups {
                let slot = self.slots[group];
                let weights = std::mem::take(&mut rounding[k][group]);
                out.push(k, Term::Linear { slot, weights });
                let rows = std::mem::take(&mut spheres[k][group]);
                out.push(k, Term::Sphere(Sphere { slot, floor: floor(n, self.eps), rows }));
            }
        }
        lambda
    }
}

impl Normed {
    /// What all functionals together leave out, where they are the elements of a vector: the norm of
    /// `γ ∘ λ` as a matrix takes the place of each one's, and for rounding the Frobenius norm does.
    fn together(&self, lambda: &Functionals, out: &mut Remainders) {
        let Some(together) = out.together() else { return };
        let n = self.part();
        for group in 0..self.groups {
            let (slot, floor) = (self.slots[group], floor(n, self.eps));
            let (mut rows, mut rounding) = (Vec::new(), Vec::new());
            for (at, t) in lambda.tokens.iter().enumerate() {
                let i = t * self.groups + group;
                let part = |k: usize| &lambda.row(k, at)[group * n..(group + 1) * n];
                let mut g: Vec<f64> = (0..lambda.count).flat_map(|k| part(k).to_vec()).collect();
                together.push(Term::Constant(vector_norm(&g) * self.errors[i]));
                if let Some(gain) = self.gain_of(group) {
                    let each = g.chunks_mut(n.max(1));
                    each.for_each(|g| g.iter_mut().zip(gain).for_each(|(l, g)| *l *= g));
                }
                let frobenius = vector_norm(&g) * root(n);
                let joint = quick_norm(&Matrix { rows: lambda.count, columns: n, data: g });
                let weight = joint * root(n) + gamma(8) * frobenius;
                rounding.push((*t, self.slope_error(i) * frobenius + count(lambda.count) * tiny()));
                let low = (self.sizes[i] - self.off[i].to_f64()).next_down().max(0.0);
                rows.push((*t, weight, low));
            }
            together.push(Term::Linear { slot, weights: rounding });
            together.push(Term::Sphere(Sphere { slot, floor, rows }));
        }
    }

    /// What rounding does to the slope of a part, as a share of `√n ‖γ ∘ λ‖`; and x may be off, which its
    /// curvature turns into an error of slopes.
    fn slope_error(&self, i: usize) -> Upper {
        let n = self.part();
        let s = least(self.sizes[i], Upper::ZERO, floor(n, self.eps));
        let bent = (half_curvature() + half_curvature()) * self.off[i].div_up(s);
        (gamma(16 * n + 256) + bent).div_up(s)
    }
}

/// The share of a norm, not below s, that squares of n elements lose next to 0: a quarter of this of a sum
/// not below s², as long as that is small.
fn lost(n: usize, s: f64) -> Upper {
    let lost =
        (count(4 * n) * Upper::from_f64(f64::MIN_POSITIVE)).div_up((s * s).next_down().max(0.0));
    if lost < Upper::from_f64(0.25) { lost } else { Upper::INFINITY }
}

/// `n ε`, rounded down.
fn floor(n: usize, eps: f64) -> f64 {
    (n as f64 * eps).next_down().max(0.0)
}

/// `x / max(‖x‖, ε)`
pub(super) struct Unit {
    x: Matrix,
    eps: f64,
    pub(super) slot: usize,
    errors: Vec<Upper>,
}

impl Unit {
    pub(super) fn new(x: &Matrix, eps: f64, slot: usize) -> Self {
        let n = x.columns;
        let mut unit = Self { x: x.clone(), eps, slot, errors: Vec::new() };
        let rounded = |t: usize| gamma(n + 16) + lost(n, unit.size(t).max(eps));
        unit.errors = (0..x.rows).map(|t| rounded(t) * Upper::from_f64(2.0) + tiny()).collect();
        unit
    }

    /// Twice its slope, which is at most 1/max(‖x‖, ε) on the way.
    pub(super) fn grow(&self, x: &Spread) -> Spread {
        let each = (0..x.each.len())
            .map(|t| {
                let apart = x.each[t].div_up(self.slowest(t, x.each[t]));
                apart.min(Upper::from_f64(2.0)) + self.errors[t]
            })
            .collect();
        Spread::of(each)
    }

    /// Not above the least of `max(‖x + Δ‖, ε)`.
    fn slowest(&self, t: usize, d: Upper) -> f64 {
        (self.size(t) - d.to_f64()).next_down().max(self.eps)
    }

    /// ‖x‖, rounded down.
    fn size(&self, t: usize) -> f64 {
        let n = self.x.columns;
        let norm = vector_norm(&self.x.data[t * n..(t + 1) * n]).to_f64();
        (norm * (1.0 - 4.0 * gamma(n + 8).to_f64())).next_down().max(0.0)
    }

    /// Where ‖x‖ is below ε, or near to it, a constant slope of 0 and all of the change as remainder;
    /// elsewhere as a norm.
    pub(super) fn back(&self, mut lambda: Functionals, out: &mut Remainders) -> Functionals {
        let n = self.x.columns;
        let (count, tokens) = (lambda.count, lambda.tokens.clone());
        let active = tokens.len().max(1);
        let mut rows: Vec<Vec<(usize, Upper, f64)>> = vec![Vec::new(); count];
        let mut linear: Vec<Vec<(usize, Upper)>> = vec![Vec::new(); count];
        for (at, row) in lambda.data.chunks_mut(n.max(1)).enumerate() {
            let (k, t) = (at / active, tokens[at % active]);
            let weight = vector_norm(row);
            if weight == Upper::ZERO {
                continue;
            }
            out.push(k, Term::Constant(weight * self.errors[t]));
            let size = self.size(t);
            if size <= 2.0 * self.eps {
                // In all: at most 1/ε times the deviation.
                linear[k].push((t, weight * Upper::ONE.div_up(self.eps)));
                row.iter_mut().for_each(|x| *x = 0.0);
                continue;
            }
            let x = &self.x.data[t * n..(t + 1) * n];
            let square = x.iter().map(|x| x * x).sum::<f64>();
            let inner: f64 = x.iter().zip(&*row).map(|(x, g)| x * g).sum();
            let (first, second) = ((1.0 / square).sqrt(), inner / square);
            row.iter_mut().zip(x).for_each(|(g, x)| *g = first * (*g - x * second));
            let share = gamma(16 * n + 256).div_up(size);
            linear[k].push((t, share * weight + tiny()));
            rows[k].push((t, weight, size));
        }
        for k in 0..count {
            let (slot, floor) = (self.slot, abs(self.eps).to_f64());
            let weights = std::mem::take(&mut linear[k]);
            out.push(k, Term::Linear { slot, weights });
            let rows = std::mem::take(&mut rows[k]);
            out.push(k, Term::Projection { slot, eps: floor, rows });
        }
        lambda
    }
}
