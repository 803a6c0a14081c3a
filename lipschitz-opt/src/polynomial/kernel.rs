//! The polynomials on the CPU, one matrix at a time: symmetric products at half their work, sums
//! inside products, a whole matrix in cache where it fits. Each agrees with a form composed of
//! tensor operations.

use lipschitz_nn::linalg::{MatrixMap, Real, Strided, matmul, sum_of_squares, syrk};

use super::steps::Steps;

/// A matrix seen from its short side, rows or columns.
pub(crate) struct Short<'a, T> {
    x: Strided<'a, T>,
    wide: bool,
    pub(crate) n: usize,
    parallel: bool,
}

impl<'a, T: Real> Short<'a, T> {
    pub(crate) fn new(x: &'a [T], rows: usize, columns: usize, parallel: bool) -> Self {
        Self {
            x: Strided::rows(x, rows, columns, columns),
            wide: rows <= columns,
            n: rows.min(columns),
            parallel,
        }
    }

    pub(crate) fn square(&self) -> Vec<T> {
        vec![T::of(0.0); self.n * self.n]
    }

    /// `factor·xxᵀ` or `factor·xᵀx`, `[n, n]`.
    pub(crate) fn gram(&self, out: &mut [T], factor: f64) {
        let x = if self.wide { self.x } else { self.x.t() };
        syrk(out, x, x.t(), false, factor, self.parallel);
    }

    /// `out ← keep·out + factor·q x` or `x q` for a symmetric q, `[n, n]`.
    pub(crate) fn times(&self, q: &[T], out: &mut [T], keep: bool, factor: f64) {
        let q = Strided::dense(q, self.n);
        let (a, b) = if self.wide { (q, self.x) } else { (self.x, q) };
        matmul(out, self.x.columns, a, b, keep, factor, self.parallel);
    }

    /// `out ← keep·out + factor·a b` for symmetric factors that commute.
    pub(crate) fn commuting(&self, out: &mut [T], a: &[T], b: &[T], keep: bool, factor: f64) {
        syrk(
            out,
            Strided::dense(a, self.n),
            Strided::dense(b, self.n),
            keep,
            factor,
            self.parallel,
        );
    }
}

/// Adds a number to the diagonal.
pub(crate) fn add_diagonal<T: Real>(x: &mut [T], n: usize, a: f64) {
    for x in x.iter_mut().step_by(n + 1) {
        *x += T::of(a);
    }
}

/// `out ← factor·x`
fn scaled<T: Real>(out: &mut [T], x: &[T], factor: f64) {
    let factor = T::of(factor);
    for (out, x) in out.iter_mut().zip(x) {
        *out = factor * *x;
    }
}

/// Odd quintics in turn on singular values, which are divided by the Frobenius norm first if
/// `unit`. If `gram`, products of the short side alone; that needs at least one step.
pub(super) struct Quintics<'a> {
    pub steps: &'a Steps,
    pub unit: bool,
    pub gram: bool,
}

impl MatrixMap for Quintics<'_> {
    fn run<T: Real>(&self, x: &[T], out: &mut [T], rows: usize, columns: usize, parallel: bool) {
        let norm = if self.unit { sum_of_squares(x).sqrt() } else { 1.0 };
        if self.gram && NEAR_ONE.contains(&norm) {
            return self.gram_form(x, norm.recip(), out, rows, columns, parallel);
        }
        let mut x = x.to_vec();
        let factor = (norm + f64::from(f32::MIN_POSITIVE)).recip();
        x.iter_mut().for_each(|x| *x = T::of(x.to_f64() * factor));
        if self.gram {
            self.gram_form(&x, 1.0, out, rows, columns, parallel);
        } else {
            self.plain(x, out, rows, columns, parallel);
        }
    }
}

/// Norms at which squares can be formed first and scaled later, without underflow or overflow.
const NEAR_ONE: std::ops::Range<f64> = 1e-9..1e9;

impl Quintics<'_> {
    /// `x ← a x + (b G + c G²) x` with `G = xxᵀ`.
    fn plain<T: Real>(
        &self,
        mut x: Vec<T>,
        out: &mut [T],
        rows: usize,
        columns: usize,
        parallel: bool,
    ) {
        let n = rows.min(columns);
        let (mut gram, mut mix) = (vec![T::of(0.0); n * n], vec![T::of(0.0); n * n]);
        for &[a, b, c] in self.steps {
            let short = Short::new(&x, rows, columns, parallel);
            short.gram(&mut gram, 1.0);
            scaled(&mut mix, &gram, b);
            if c != 0.0 {
                short.commuting(&mut mix, &gram, &gram, true, c);
            }
            scaled(out, &x, a);
            short.times(&mix, out, true, 1.0);
            x.copy_from_slice(out);
        }
        out.copy_from_slice(&x);
    }

    /// From `unit·x`, with `p = a + b G + c G²`: `G ← p G p` and `q ← p q`. All are polynomials of
    /// one matrix, so every product is symmetric. Products with the long side come at the start and
    /// the end.
    fn gram_form<T: Real>(
        &self,
        x: &[T],
        unit: f64,
        out: &mut [T],
        rows: usize,
        columns: usize,
        parallel: bool,
    ) {
        let short = Short::new(x, rows, columns, parallel);
        let [mut gram, mut p, mut t, mut q] = std::array::from_fn(|_| short.square());
        short.gram(&mut gram, unit * unit);
        for (i, &[a, b, c]) in self.steps.iter().enumerate() {
            scaled(&mut p, &gram, b);
            short.commuting(&mut p, &gram, &gram, true, c);
            add_diagonal(&mut p, short.n, a);
            if i + 1 < self.steps.len() {
                short.commuting(&mut t, &p, &gram, false, 1.0);
                short.commuting(&mut gram, &t, &p, false, 1.0);
            }
            if i == 0 {
                q.copy_from_slice(&p);
            } else {
                short.commuting(&mut t, &p, &q, false, 1.0);
                std::mem::swap(&mut t, &mut q);
            }
        }
        short.times(&q, out, false, unit);
    }
}
