//! A matrix that is known up to a distance: every rounding error of a computed matrix is kept
//! beside it.
//!
//! [`Approx`] is a set of matrices, all within `error` of `data` in the Frobenius norm, times a
//! power of two, so that nothing overflows in deep networks. The result of each operation contains
//! what the exact operation gives for any members of its arguments. With u = 2⁻⁵³ and
//! γ_k = ku/(1−ku), a computed product is off by at most `γ_k |A||B|` elementwise, so by
//! `γ_k ‖A‖_F ‖B‖_F` (Higham, *Accuracy and Stability of Numerical Algorithms*, section 3.5).

use std::borrow::Cow;

use lipschitz_nn::linalg::{Strided, matmul, syrk};

use crate::spectral::{
    Matrix, Method, UNDERFLOW, all_scaled, cholesky, exponent, gamma, largest, product_norm,
    scaled, shift, spectral_norm, vector_norm, vector_norm_of,
};
use crate::upper::{Upper, abs};

/// Matrices whose largest element is within 2^±SAFE are left as they are.
const SAFE: i32 = 20;

/// `2^exponent (data + Δ)` for every Δ with `‖Δ‖_F ≤ error`.
#[derive(Clone, Debug)]
pub(super) struct Approx {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Row-major.
    pub(super) data: Vec<f64>,
    pub(super) exponent: i64,
    /// `‖data‖_F`, rounded up.
    pub(super) size: Upper,
    /// What `‖Δ‖_F` is at most.
    pub(super) error: Upper,
}

impl Approx {
    /// A matrix that is known exactly.
    pub(super) fn exact(rows: usize, columns: usize, data: Vec<f64>) -> Self {
        Self::new(rows, columns, data, 0, Upper::ZERO)
    }

    pub(super) fn new(
        rows: usize,
        columns: usize,
        mut data: Vec<f64>,
        mut exponent_: i64,
        mut error: Upper,
    ) -> Self {
        let mut most = largest(&data);
        if most > 0.0 && most.is_finite() {
            let e = exponent(most);
            if e.abs() > SAFE {
                (data, most) = (all_scaled(&data, -e), scaled(most, -e));
                // Elements far smaller than the largest may underflow.
                error = shift(error, -e) + Upper::from_f64(UNDERFLOW);
                exponent_ += i64::from(e);
            }
        }
        let size = vector_norm_of(&data, most);
        Self { rows, columns, data, exponent: exponent_, size, error }
    }

    pub(super) fn view(&self) -> Strided<'_, f64> {
        Strided::rows(&self.data, self.rows, self.columns, self.columns)
    }

    /// Whether it is known to be zero.
    pub(super) fn is_zero(&self) -> bool {
        self.size == Upper::ZERO && self.error == Upper::ZERO
    }

    /// What the Frobenius norm of a member is at most, over `2^exponent`.
    fn reach(&self) -> Upper {
        self.size + self.error
    }

    /// A number near log2 of the Frobenius norm.
    pub(super) fn log_size(&self) -> f64 {
        self.size.to_f64().max(f64::MIN_POSITIVE).log2() + self.exponent as f64
    }

    /// `self · x`
    pub(super) fn times(&self, x: &Self) -> Self {
        let mut data = vec![0.0; self.rows * x.columns];
        matmul(&mut data, x.columns, self.view(), x.view(), false, 1.0, true);
        let error = self.product_error(x, self.columns);
        Self::new(self.rows, x.columns, data, self.exponent + x.exponent, error)
    }

    /// How far a computed product of sums over `inner` terms is off.
    fn product_error(&self, x: &Self, inner: usize) -> Upper {
        gamma(inner + 2) * self.size * x.size
            + self.error * x.reach()
            + self.size * x.error
            + Upper::from_f64(UNDERFLOW)
    }

    /// `self · diag(d)`, d a row.
    pub(super) fn times_diagonal(&self, d: &Self) -> Self {
        let mut data = self.data.clone();
        for row in data.chunks_mut(self.columns.max(1)) {
            row.iter_mut().zip(&d.data).for_each(|(x, d)| *x *= d);
        }
        let error = self.product_error(d, 1);
        Self::new(self.rows, self.columns, data, self.exponent + d.exponent, error)
    }

    /// `diag(d) · self`, d a row.
    pub(super) fn diagonal_times(&self, d: &Self) -> Self {
        let mut data = self.data.clone();
        for (row, d) in data.chunks_mut(self.columns.max(1)).zip(&d.data) {
            row.iter_mut().for_each(|x| *x *= d);
        }
        let error = self.product_error(d, 1);
        Self::new(self.rows, self.columns, data, self.exponent + d.exponent, error)
    }

    /// `factor · self`
    pub(super) fn scale(&self, factor: Upper) -> Self {
        let (mantissa, e) = factor.parts();
        let data = self.data.iter().map(|x| x * mantissa).collect();
        let m = Upper::from_f64(mantissa);
        let error = self.error * m + gamma(1) * self.size * m + Upper::from_f64(UNDERFLOW);
        Self::new(self.rows, self.columns, data, self.exponent.saturating_add(e), error)
    }

    /// `a · self + b · other`; without `other`, `a · self`.
    pub(super) fn blend(&self, a: f64, other: Option<(f64, &Self)>) -> Self {
        let top = other.map_or(self.exponent, |(_, y)| common(&[self, y]));
        let x = self.at(top);
        let error = |factor: f64, of: &Self| abs(factor) * (of.error + gamma(3) * of.size);
        let (data, error) = match other {
            None => (x.data.iter().map(|x| a * x).collect(), error(a, &x)),
            Some((b, y)) => {
                let y = y.at(top);
                let data = x.data.iter().zip(&y.data).map(|(x, y)| a * x + b * y).collect();
                (data, error(a, &x) + error(b, &y))
            }
        };
        Self::new(self.rows, self.columns, data, top, error + Upper::from_f64(UNDERFLOW))
    }

    /// The same over `2^exponent`; what is far smaller goes into the error.
    pub(super) fn at(&self, exponent: i64) -> Cow<'_, Self> {
        let by = self.exponent.saturating_sub(exponent);
        if by == 0 {
            return Cow::Borrowed(self);
        }
        if self.is_zero() {
            return Cow::Owned(Self { exponent, ..self.clone() });
        }
        let by = by.clamp(-2000, 2000) as i32;
        let data = all_scaled(&self.data, by);
        let error = shift(self.error, by) + Upper::from_f64(UNDERFLOW);
        // Not normalised: the caller wants this exponent.
        let size = vector_norm(&data);
        Cow::Owned(Self { data, exponent, size, error, ..*self })
    }

    /// Columns of several matrices side by side.
    pub(super) fn beside(parts: &[&Self]) -> Self {
        let (rows, top) = (parts.first().map_or(0, |p| p.rows), common(parts));
        let parts: Vec<Cow<'_, Self>> = parts.iter().map(|p| p.at(top)).collect();
        let columns = parts.iter().map(|p| p.columns).sum();
        let mut data = Vec::with_capacity(rows * columns);
        for i in 0..rows {
            for p in &parts {
                data.extend_from_slice(&p.data[i * p.columns..(i + 1) * p.columns]);
            }
        }
        let error = parts.iter().fold(Upper::ZERO, |sum, p| sum + p.error * p.error).sqrt();
        Self::new(rows, columns, data, top, error)
    }

    /// Without the mean of each column: `(I − 11ᵀ/n) self`.
    pub(super) fn centred(&self) -> Self {
        let mut mean = vec![0.0; self.columns];
        for row in self.data.chunks(self.columns.max(1)) {
            mean.iter_mut().zip(row).for_each(|(m, x)| *m += x);
        }
        mean.iter_mut().for_each(|m| *m /= self.rows as f64);
        let mut data = self.data.clone();
        for row in data.chunks_mut(self.columns.max(1)) {
            row.iter_mut().zip(&mean).for_each(|(x, m)| *x -= m);
        }
        // The mean of a column is off by γ_{n+1} times the mean of the absolute values, which is
        // at most its norm over √n; so the column of means by γ_{n+1} times that norm. A projection
        // moves nothing apart.
        let off = gamma(self.rows + 4) * self.size * Upper::from_f64(3.0);
        let error = self.error + off + Upper::from_f64(UNDERFLOW);
        Self::new(self.rows, self.columns, data, self.exponent, error)
    }

    /// The square matrix of this row as diagonal.
    pub(super) fn spread(&self) -> Self {
        let n = self.columns;
        let mut data = vec![0.0; n * n];
        (0..n).for_each(|i| data[i * n + i] = self.data[i]);
        Self { rows: n, columns: n, data, ..*self }
    }

    pub(super) fn t(&self) -> Self {
        let Matrix { rows, columns, data } = self.matrix().t();
        Self { rows, columns, data, ..*self }
    }

    pub(super) fn matrix(&self) -> Matrix {
        Matrix { rows: self.rows, columns: self.columns, data: self.data.clone() }
    }

    /// What a number over `2^exponent` is.
    fn lift(&self, x: Upper) -> Upper {
        x.times_power(self.exponent)
    }

    /// An upper bound on the largest singular value of every member.
    pub(super) fn norm(&self) -> Upper {
        self.lift(spectral_norm(&self.matrix(), Method::Proven).upper + self.error)
    }

    /// An upper bound on `‖selfᵀ other‖` of all members, `[k, m]` and `[k, n]`.
    pub(super) fn inner_norm(&self, other: &Self) -> Upper {
        let found = product_norm(&self.matrix().t(), &other.matrix(), Method::Proven).upper;
        let off = self.error * other.reach() + self.size * other.error;
        (found + off).times_power(self.exponent.saturating_add(other.exponent))
    }

    /// Upper bounds on the norm of each row.
    pub(super) fn row_norms(&self) -> Vec<Upper> {
        self.data
            .chunks(self.columns.max(1))
            .map(|row| self.lift(vector_norm(row) + self.error))
            .collect()
    }

    /// Upper bounds on the distances of rows i > j, at `i(i−1)/2 + j`.
    pub(super) fn row_differences(&self) -> Vec<Upper> {
        // Each of the two rows is off by at most the error, both together by √2 times it.
        let off = self.error * Upper::from_f64(2.0).sqrt();
        crate::spectral::row_differences(&self.matrix()).map(|d| self.lift(d + off)).collect()
    }

    /// A lower triangular L, exact, with `Σ B_k B_kᵀ ⪯ LLᵀ` for all members of the blocks: the
    /// smallest ellipsoid that contains `Σ B_k z_k` for all `Σ‖z_k‖² ≤ 1`, up to rounding. None if
    /// rounding leaves nothing, as it does where a number is not finite.
    ///
    /// With `G = fl(Σ B_kB_kᵀ)` off by e, the Cholesky factor of `G + τI` is off by at most its own
    /// bound c (see [`cholesky`]), and `LLᵀ ⪰ G + (τ − c)I ⪰ Σ B_kB_kᵀ` if `τ ≥ e + c`.
    pub(super) fn enclose(rows: usize, blocks: &[Enclosed<'_>]) -> Option<Self> {
        let all: Vec<&Self> = blocks.iter().map(Enclosed::matrix).collect();
        let top = common(&all);
        let mut g = vec![0.0; rows * rows];
        let (mut squares, mut off) = (Upper::ZERO, Upper::ZERO);
        let inner = all.iter().map(|b| b.columns).sum::<usize>();
        for block in blocks {
            let b = block.matrix().at(top);
            match block {
                Enclosed::Dense(_) => syrk(&mut g, b.view(), b.view().t(), true, 1.0, true),
                Enclosed::Diagonal(from, _) => {
                    b.data.iter().enumerate().for_each(|(i, x)| {
                        g[(from + i) * rows + from + i] += x * x;
                    });
                }
            }
            squares = squares + b.size * b.size;
            off = off + b.error * (b.size + b.size + b.error);
        }
        let e = off + gamma(inner + 4) * squares + Upper::from_f64(UNDERFLOW);
        // What the factorisation loses is about γ of the trace, and the trace is at most this.
        let about = gamma(rows + 6) * (squares + e) + Upper::from_f64(UNDERFLOW);
        let mut tau = (e + about).to_f64() * 2.0;
        for _ in 0..4 {
            if !tau.is_finite() {
                return None;
            }
            let mut l = g.clone();
            let (mut trace, mut largest) = (Upper::ZERO, 0.0_f64);
            for i in 0..rows {
                let d = g[i * rows + i] + tau;
                l[i * rows + i] = d;
                largest = largest.max(d);
                trace = trace + Upper::from_f64(d);
            }
            // Adding τ to the diagonal is rounded too.
            let diagonal = Upper::from_f64(largest * f64::EPSILON);
            let lost = cholesky(&mut l, rows, trace).map(|lost| lost + e + diagonal);
            if lost.is_some_and(|lost| lost.to_f64() <= tau) {
                (0..rows).for_each(|i| l[i * rows + i + 1..(i + 1) * rows].fill(0.0));
                return Some(Self::new(rows, rows, l, top, Upper::ZERO));
            }
            tau *= 8.0;
        }
        None
    }
}

/// A block of columns.
pub(super) enum Enclosed<'a> {
    Dense(&'a Approx),
    /// A diagonal, as a row, that begins at a row; zeros elsewhere.
    Diagonal(usize, &'a Approx),
}

impl Enclosed<'_> {
    fn matrix(&self) -> &Approx {
        match self {
            Self::Dense(b) | Self::Diagonal(_, b) => b,
        }
    }
}

/// The exponent at which the largest is of size about 1; any will do where all are zero.
pub(super) fn common(parts: &[&Approx]) -> i64 {
    let of = |p: &&&Approx| !p.is_zero();
    parts.iter().filter(of).map(|p| p.log_size().ceil() as i64).max().unwrap_or(0)
}

/// What [`cut`] proves.
pub(super) struct Cut {
    /// Lower triangular, exact: `LLᵀ ⪯ I − Σ t_i u_i u_iᵀ` with u_i the rows.
    pub(super) l: Approx,
    /// Not above the smallest eigenvalue of `LLᵀ`.
    pub(super) floor: f64,
}

/// For `U` with rows `√t_i u_i` already scaled, a factor of `I − UᵀU` from below; none unless that
/// is positive definite for all members, rounding included.
pub(super) fn cut(u: &Approx) -> Option<Cut> {
    let r = u.columns;
    let u = u.at(0);
    let mut g = vec![0.0; r * r];
    syrk(&mut g, u.view().t(), u.view(), false, 1.0, true);
    let e = u.error * (u.size + u.size + u.error)
        + gamma(u.rows + 2) * u.size * u.size
        + Upper::from_f64(UNDERFLOW);
    // The trace of I − UᵀU is at most r.
    let about = gamma(r + 6) * Upper::from_f64(r as f64) + Upper::from_f64(8.0 * f64::EPSILON);
    let below = ((e + about).to_f64() * 2.0).max(f64::EPSILON);
    let factor = |by: f64| -> Option<(Vec<f64>, Upper)> {
        let mut h: Vec<f64> = g.iter().map(|x| -x).collect();
        for i in 0..r {
            h[i * r + i] = 1.0 - g[i * r + i] - by;
        }
        let trace = (0..r).fold(Upper::ZERO, |s, i| s + Upper::from_f64(h[i * r + i].max(0.0)));
        let lost = cholesky(&mut h, r, trace)?;
        (0..r).for_each(|i| h[i * r + i + 1..(i + 1) * r].fill(0.0));
        Some((h, lost))
    };
    let (l, lost) = factor(below)?;
    // LLᵀ ⪯ fl(I − G − below) + lost ⪯ I − UᵀU if this covers every error.
    if (lost + e + Upper::from_f64(4.0 * f64::EPSILON)).to_f64() > below {
        return None;
    }
    // I − G ⪰ (below + c) I up to the error of the factorisation, so LLᵀ ⪰ c − errors.
    let mut c = 0.5;
    while c > 1e-9 {
        if let Some((_, more)) = factor(below + c) {
            let off = (lost + more + Upper::from_f64(8.0 * f64::EPSILON)).to_f64();
            let floor = (c - off).next_down();
            if floor > 0.0 {
                let l = Approx::new(r, r, l, 0, Upper::ZERO);
                return Some(Cut { l, floor });
            }
        }
        c *= 0.5;
    }
    None
}

impl Cut {
    /// `x L⁻ᵀ` for all members of x, given a computed `inverse` of Lᵀ.
    ///
    /// With Y the computed result and `R = x − YLᵀ`, the exact one is `Y + R L⁻ᵀ`, and
    /// `‖L⁻ᵀ‖ ≤ 1/√floor`.
    pub(super) fn solve(&self, x: &Approx, inverse: &Approx) -> Approx {
        let mut y = x.times(inverse);
        y.error = Upper::ZERO;
        let back = y.times(&self.l.t());
        let residual = x.blend(1.0, Some((-1.0, &back)));
        let far = (residual.size + residual.error)
            .times_power(residual.exponent.saturating_sub(y.exponent));
        y.error = far.div_up(self.floor.sqrt().next_down());
        y
    }
}

/// `L⁻ᵀ` of a lower triangular matrix, upper triangular, by substitution.
pub(super) fn inverse_transpose(l: &Approx) -> Approx {
    const BLOCK: usize = 48;
    let n = l.rows;
    // Rows of X with X Lᵀ = I, solved block of columns by block of columns.
    let mut x = vec![0.0; n * n];
    (0..n).for_each(|i| x[i * n + i] = 1.0);
    for from in (0..n).step_by(BLOCK) {
        let to = (from + BLOCK).min(n);
        if from > 0 {
            // Only the rows up to here are not zero.
            let done: Vec<f64> =
                (0..to).flat_map(|i| x[i * n..i * n + from].iter().copied()).collect();
            let rows: Vec<f64> =
                (from..to).flat_map(|j| l.data[j * n..j * n + from].iter().copied()).collect();
            let (a, b) = (Strided::dense(&done, from), Strided::dense(&rows, from).t());
            let mut out = vec![0.0; to * (to - from)];
            matmul(&mut out, to - from, a, b, false, -1.0, true);
            for i in 0..to {
                for j in from..to {
                    x[i * n + j] += out[i * (to - from) + j - from];
                }
            }
        }
        for i in 0..to {
            for j in from..to {
                let sum: f64 = (from..j).map(|k| x[i * n + k] * l.data[j * n + k]).sum();
                x[i * n + j] = (x[i * n + j] - sum) / l.data[j * n + j];
            }
        }
    }
    Approx::new(n, n, x, -l.exponent, Upper::ZERO)
}

/// As [`cut`], without the proof: for a search.
pub(super) fn cut_near(u: &Approx) -> Option<Cut> {
    let r = u.columns;
    let u = u.at(0);
    let mut h = vec![0.0; r * r];
    syrk(&mut h, u.view().t(), u.view(), false, -1.0, true);
    (0..r).for_each(|i| h[i * r + i] += 1.0);
    // Only whether it succeeds matters here.
    let _ = cholesky(&mut h, r, Upper::ONE)?;
    (0..r).for_each(|i| h[i * r + i + 1..(i + 1) * r].fill(0.0));
    Some(Cut { l: Approx::new(r, r, h, 0, Upper::ZERO), floor: 0.0 })
}

/// `(BBᵀ − AAᵀ)₊`, computed.
pub(super) struct Above {
    /// Near `EEᵀ = (BBᵀ − AAᵀ)₊`.
    pub(super) factor: Approx,
    /// The eigenvalues of `BBᵀ − AAᵀ`.
    pub(super) values: Vec<f64>,
    /// Its eigenvectors, as columns.
    pub(super) vectors: Vec<f64>,
}

/// The positive part of `BBᵀ − AAᵀ`; none if there are no eigenvalues.
pub(super) fn above(a: &Approx, b: &Approx) -> Option<Above> {
    let n = a.rows;
    let mut d = vec![0.0; n * n];
    let (a, b) = (a.at(0), b.at(0));
    syrk(&mut d, b.view(), b.view().t(), false, 1.0, true);
    syrk(&mut d, a.view(), a.view().t(), true, -1.0, true);
    if d.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let m = faer::Mat::from_fn(n, n, |i, j| d[i * n + j]);
    let eigen = m.self_adjoint_eigen(faer::Side::Lower).ok()?;
    let values: Vec<f64> = eigen.S().column_vector().iter().copied().collect();
    let mut vectors = vec![0.0; n * n];
    let mut factor = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..n {
            vectors[i * n + j] = eigen.U()[(i, j)];
            factor[i * n + j] = vectors[i * n + j] * values[j].max(0.0).sqrt();
        }
    }
    Some(Above { factor: Approx::exact(n, n, factor), values, vectors })
}

impl Above {
    /// A row √τ with `AAᵀ + EEᵀ + τI ⪰ BBᵀ`, proven by a Cholesky factorisation.
    pub(super) fn lift(&self, a: &Approx, b: &Approx) -> Option<Approx> {
        let n = a.rows;
        let (a, b, e) = (a.at(0), b.at(0), self.factor.at(0));
        let mut d = vec![0.0; n * n];
        syrk(&mut d, a.view(), a.view().t(), false, 1.0, true);
        syrk(&mut d, e.view(), e.view().t(), true, 1.0, true);
        syrk(&mut d, b.view(), b.view().t(), true, -1.0, true);
        let square = |x: &Approx| x.size * x.size;
        let off = |x: &Approx| x.error * (x.size + x.size + x.error);
        let squares = square(&a) + square(&e) + square(&b);
        let lost = gamma(3 * n + 6) * squares + off(&a) + off(&b) + Upper::from_f64(UNDERFLOW);
        let mut tau = 4.0 * (lost + gamma(n + 8) * squares).to_f64();
        for _ in 0..12 {
            let mut m = d.clone();
            let (mut trace, mut largest) = (Upper::ZERO, 0.0_f64);
            for i in 0..n {
                m[i * n + i] = d[i * n + i] + tau;
                largest = largest.max(m[i * n + i].abs());
                trace = trace + Upper::from_f64(m[i * n + i].max(0.0));
            }
            let diagonal = Upper::from_f64((largest + tau) * f64::EPSILON);
            if let Some(error) = cholesky(&mut m, n, trace) {
                // AAᵀ + EEᵀ − BBᵀ + τI ⪰ −(error + lost + diagonal).
                let whole = Upper::from_f64(tau) + error + lost + diagonal;
                let root = whole.sqrt().to_f64();
                return root.is_finite().then(|| Approx::exact(1, n, vec![root; n]));
            }
            tau *= 8.0;
        }
        None
    }
}
