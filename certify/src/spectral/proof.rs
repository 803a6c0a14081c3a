//! The proof: a Cholesky factorisation that runs to its end shows that `aI − G` is positive
//! definite.
//!
//! Sources: Rump, *Verification of positive definiteness*, BIT 46 (2006); Higham, *Accuracy and
//! Stability of Numerical Algorithms*, theorem 10.3; Delattre et al., *Efficient Bound of Lipschitz
//! Constant for Convolutional Layers by Gram Iteration* (2023).

use lipschitz_nn::linalg::{Strided, matmul, syrk, tril};

use super::lanczos::top_eigenvector;
use super::matrix::{all_scaled, exponent, scaled, shift, vector_norm};
use super::{Interval, Matrix, Method, gamma};
use crate::upper::Upper;

/// Matrices whose largest element is within 2^±SAFE are taken as they are.
pub(super) const SAFE: i32 = 30;

/// Exceeds the error that underflow can cause in any sum or product here: the largest element is
/// within 2^±SAFE, and sizes are below 2⁴⁰, so at most 2⁴⁰ terms are each off by 2⁻¹⁰⁷⁴ and
/// multiplied by at most 2¹⁰⁰ afterwards.
pub(crate) const UNDERFLOW: f64 = 1e-280;

/// σ_max of a matrix.
///
/// If no proof succeeds, [`Method::Proven`] falls back to [`Method::Frobenius`], and the interval
/// says so.
pub fn spectral_norm(m: &Matrix, method: Method) -> Interval {
    within_range(m, method, |m| unit_norm(m, method))
}

/// A norm of a matrix, by a proof `norm` for those whose largest element is within 2^±SAFE: all others
/// are scaled by a power of two first.
pub(super) fn within_range(
    m: &Matrix,
    method: Method,
    norm: impl Fn(&Matrix) -> Interval,
) -> Interval {
    let largest = m.largest();
    if largest == 0.0 {
        return Interval { lower: 0.0, upper: Upper::ZERO, method };
    }
    if largest == f64::INFINITY {
        return Interval { lower: 0.0, upper: Upper::INFINITY, method };
    }
    let e = exponent(largest);
    // Far from both ends of the range nothing can overflow, and underflow is covered by UNDERFLOW.
    if e.abs() <= SAFE {
        return norm(m);
    }
    // Otherwise scale by a power of two, so that the largest element lies in [1/2, 1). This is
    // exact except for elements 2⁻¹⁰⁰⁰ times smaller.
    let unit = Matrix { data: all_scaled(&m.data, -e), ..*m };
    let found = norm(&unit);
    let lost = if e > 0 { Upper::from_f64(UNDERFLOW) } else { Upper::ZERO };
    let lower = (found.lower - if e > 0 { UNDERFLOW } else { 0.0 }).max(0.0);
    // Scaling back is exact unless it underflows, and then the lower end must not be rounded up.
    let back = scaled(lower, e);
    let lower = if back.is_finite() && back >= f64::MIN_POSITIVE { back } else { 0.0 };
    Interval { lower, upper: shift(found.upper + lost, e), method: found.method }
}

/// σ_max of a matrix whose largest element is within 2^±SAFE.
fn unit_norm(m: &Matrix, method: Method) -> Interval {
    let (short, long) = (m.rows.min(m.columns), m.rows.max(m.columns));
    let frobenius = vector_norm(&m.data);
    let g = gram(m);
    let v = top_eigenvector(&g, short);
    let lower = stretch(m, &v, frobenius);
    // ‖fl(WᵀW) − WᵀW‖₂ ≤ γ_{long+1}·‖W‖_F²: the error bound is elementwise, so it holds for any
    // order of summation.
    let squares = frobenius * frobenius;
    let rounding = gamma(long + 2) * squares + Upper::from_f64(UNDERFLOW);
    let root = |eigenvalue: Upper| (eigenvalue + rounding).sqrt().min(frobenius);
    match method {
        Method::Frobenius => Interval { lower, upper: frobenius, method },
        Method::Direct | Method::Proven => match largest_eigenvalue(&g, short, lower * lower) {
            Some(eigenvalue) => Interval { lower, upper: root(eigenvalue), method: Method::Proven },
            None => Interval { lower, upper: frobenius, method: Method::Frobenius },
        },
        Method::Power => Interval { lower, upper: Upper::from_f64(lower), method },
        Method::Gram => {
            Interval { lower, upper: root(gram_iteration(g, short, SQUARINGS)), method }
        }
    }
}

/// A bound on σ_max that is quick rather than tight: at most `n^(1/16)` above it for a short side n.
pub(crate) fn quick_norm(m: &Matrix) -> Upper {
    let frobenius = vector_norm(&m.data);
    let largest = m.largest();
    if largest == 0.0 || !largest.is_finite() || exponent(largest).abs() > SAFE {
        return frobenius;
    }
    let (short, long) = (m.rows.min(m.columns), m.rows.max(m.columns));
    let eigenvalue = gram_iteration(gram(m), short, 2);
    let rounding = gamma(long + 2) * frobenius * frobenius + Upper::from_f64(UNDERFLOW);
    (eigenvalue + rounding).sqrt().min(frobenius)
}

/// WWᵀ or WᵀW, whichever is smaller. The result is symmetric.
fn gram(m: &Matrix) -> Vec<f64> {
    let n = m.rows.min(m.columns);
    let mut g = vec![0.0; n * n];
    let wide = if m.rows <= m.columns { m.view() } else { m.view().t() };
    syrk(&mut g, wide, wide.t(), false, 1.0, true);
    g
}

/// An approximation of the unit vector that a matrix stretches most.
pub fn top_right_singular_vector(m: &Matrix) -> Vec<f64> {
    let v = top_eigenvector(&gram(m), m.rows.min(m.columns));
    if m.rows > m.columns {
        return v;
    }
    // Wᵀ of the left singular vector.
    let mut y = vec![0.0; m.columns];
    matmul(&mut y, 1, m.view().t(), Strided::dense(&v, 1), false, 1.0, false);
    let norm = y.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    y.into_iter().map(|x| x / norm).collect()
}

/// A lower bound on ‖Wv‖/‖v‖, or on ‖Wᵀv‖/‖v‖ where [`gram`] is WWᵀ.
fn stretch(m: &Matrix, v: &[f64], frobenius: Upper) -> f64 {
    let (view, n) = (m.view(), v.len());
    let map = if m.rows <= m.columns { view.t() } else { view };
    let mut y = vec![0.0; map.rows];
    matmul(&mut y, 1, map, Strided::dense(v, 1), false, 1.0, false);
    let size = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let above = vector_norm(v).to_f64();
    let error =
        (gamma(n + 2) * frobenius * Upper::from_f64(above) + Upper::from_f64(UNDERFLOW)).to_f64();
    let down = 1.0 - (2 * y.len() + 8) as f64 * f64::EPSILON;
    ((size(&y) * down - error) / above * (1.0 - 4.0 * f64::EPSILON)).max(0.0)
}

/// An upper bound on the largest eigenvalue of a symmetric matrix, near `guess`.
fn largest_eigenvalue(g: &[f64], n: usize, guess: f64) -> Option<Upper> {
    let mut delta = 1e-9_f64.max(8.0 * (n * n) as f64 * f64::EPSILON);
    while delta < 0.5 {
        let a = guess * (1.0 + delta) + 1e-270;
        let mut m: Vec<f64> = g.iter().map(|x| -x).collect();
        let mut trace = Upper::ZERO;
        let mut largest: f64 = 0.0;
        for i in 0..n {
            let d = a - g[i * n + i];
            m[i * n + i] = d;
            largest = largest.max(d.abs());
            trace = trace + Upper::from_f64(d.max(0.0));
        }
        if let Some(error) = cholesky(&mut m, n, trace) {
            // aI − G = M − (rounding of the diagonal) ⪰ −error − u·max M_ii.
            let diagonal = Upper::from_f64(largest) * Upper::from_f64(f64::EPSILON);
            return Some(Upper::from_f64(a) + error + diagonal);
        }
        delta *= 4.0;
    }
    None
}

const BLOCK: usize = 48;

/// Factors a symmetric matrix M in place, `M + ΔM = LLᵀ`, and returns a bound on ‖ΔM‖₂; none if M
/// is not positive definite enough. Reads and writes only the lower triangle. `trace` is an upper
/// bound on the sum of the diagonal.
///
/// For any order in which the inner products are summed, `|ΔM| ≤ γ_{n+1} |L||Lᵀ|`, and
/// `‖|L||Lᵀ|‖₂ ≤ ‖L‖_F² ≤ tr(M)/(1 − γ_{n+1})`.
pub(crate) fn cholesky(m: &mut [f64], n: usize, trace: Upper) -> Option<Upper> {
    for from in (0..n).step_by(BLOCK) {
        let to = (from + BLOCK).min(n);
        // The columns of this block: its own rows, and all rows below.
        for j in from..to {
            let (above, below) = m.split_at_mut((j + 1) * n);
            let row = &mut above[j * n..];
            let pivot = row[j] - row[from..j].iter().map(|x| x * x).sum::<f64>();
            if pivot.is_nan() || pivot <= 0.0 {
                return None;
            }
            let root = pivot.sqrt();
            row[j] = root;
            let row = &row[from..j];
            for other in below.chunks_mut(n) {
                let dot: f64 = other[from..j].iter().zip(row).map(|(a, b)| a * b).sum();
                other[j] = (other[j] - dot) / root;
            }
        }
        // Subtract the contribution of these columns from the rest.
        let rest = n - to;
        if rest > 0 {
            let width = to - from;
            let panel: Vec<f64> =
                (to..n).flat_map(|i| m[i * n + from..i * n + to].iter().copied()).collect();
            let view = Strided::dense(&panel, width);
            tril(&mut m[to * n + to..], n, view, view.t(), true, -1.0, true);
        }
    }
    let g = gamma(n + 4);
    let shrink = (1.0 - g.to_f64()).next_down();
    Some((g * trace).div_up(shrink) + Upper::from_f64(UNDERFLOW))
}

/// Squarings of a Gram matrix by [`Method::Gram`].
const SQUARINGS: usize = 12;

/// An upper bound on the largest eigenvalue: `λ(H)² = λ(H²)`, and the Frobenius norm of a high
/// power is close to its largest eigenvalue. With `H' = fl(H²)`, `λ(H)² ≤ λ(H') + γ‖H‖_F²`.
fn gram_iteration(g: Vec<f64>, n: usize, squarings: usize) -> Upper {
    let mut h = g;
    let mut trail = Vec::with_capacity(squarings);
    for _ in 0..squarings {
        let e = exponent(h.iter().fold(f64::MIN_POSITIVE, |m, x| m.max(x.abs())));
        h = all_scaled(&h, -e);
        trail.push((e, vector_norm(&h)));
        let mut square = vec![0.0; n * n];
        let view = Strided::dense(&h, n);
        syrk(&mut square, view, view, false, 1.0, true);
        h = square;
    }
    let mut bound = vector_norm(&h);
    for (e, frobenius) in trail.into_iter().rev() {
        let error = gamma(n + 2) * frobenius * frobenius + Upper::from_f64(UNDERFLOW);
        bound = (bound + error).sqrt().min(frobenius) + Upper::from_f64(UNDERFLOW);
        bound = shift(bound, e);
    }
    bound
}

/// ‖AB‖ for A of `[m, k]` and B of `[k, n]`. For k smaller than m and n, a factor
/// `AᵀA ⪯ LLᵀ + eI` gives `‖AB‖² ≤ ‖LᵀB‖² + e‖B‖_F²`. Otherwise the product is formed, with a
/// margin for its rounding.
///
/// # Panics
/// If the shapes do not fit.
pub fn product_norm(a: &Matrix, b: &Matrix, method: Method) -> Interval {
    assert_eq!(a.columns, b.rows, "product_norm: shapes");
    let (la, lb) = (a.largest(), b.largest());
    if la == 0.0 || lb == 0.0 {
        return Interval { lower: 0.0, upper: Upper::ZERO, method };
    }
    if la == f64::INFINITY || lb == f64::INFINITY {
        return Interval { lower: 0.0, upper: Upper::INFINITY, method };
    }
    let (ea, eb) = (exponent(la), exponent(lb));
    let unit = |m: &Matrix, e: i32| Matrix { data: all_scaled(&m.data, -e), ..*m };
    let (a, b) = (unit(a, ea), unit(b, eb));
    let apart = vector_norm(&a.data) * vector_norm(&b.data);
    let lost = Upper::from_f64(UNDERFLOW);
    let found = if a.columns < a.rows.min(b.columns) {
        factor(&a).map(|(l, e)| {
            let found = times(l.view().t(), b.view(), method);
            let frobenius = vector_norm(&b.data);
            // LLᵀ may exceed AᵀA, so this gives no lower end.
            let upper = (found.upper * found.upper + e * frobenius * frobenius).sqrt();
            Interval { lower: 0.0, upper, ..found }
        })
    } else {
        Some(times(a.view(), b.view(), method))
    };
    let found = found.filter(|found| found.upper < apart);
    let found = found.unwrap_or(Interval { lower: 0.0, upper: apart, method: Method::Frobenius });
    let back = scaled((found.lower - UNDERFLOW).max(0.0), ea + eb);
    let lower = if back.is_finite() && back >= f64::MIN_POSITIVE { back } else { 0.0 };
    Interval { lower, upper: shift(shift(found.upper + lost, ea), eb), method: found.method }
}

/// ‖AB‖ for elements of at most 1, from the computed product: `‖fl(AB) − AB‖ ≤ γ ‖A‖_F ‖B‖_F`.
fn times(a: Strided<'_, f64>, b: Strided<'_, f64>, method: Method) -> Interval {
    let mut ab = Matrix { rows: a.rows, columns: b.columns, data: vec![0.0; a.rows * b.columns] };
    matmul(&mut ab.data, b.columns, a, b, false, 1.0, true);
    let rounding = gamma(a.columns + 2) * vector_norm(a.data()) * vector_norm(b.data())
        + Upper::from_f64(UNDERFLOW);
    let found = spectral_norm(&ab, method);
    Interval {
        lower: (found.lower - rounding.to_f64()).next_down().max(0.0),
        upper: found.upper + rounding,
        ..found
    }
}

/// L (lower triangle, zeros above) and e with `AᵀA ⪯ LLᵀ + eI`.
fn factor(a: &Matrix) -> Option<(Matrix, Upper)> {
    let k = a.columns;
    let mut g = vec![0.0; k * k];
    syrk(&mut g, a.view().t(), a.view(), false, 1.0, false);
    let frobenius = vector_norm(&a.data);
    let squares = (frobenius * frobenius).to_f64();
    // A small multiple of the identity lets a singular G be factored. Adding it preserves the
    // inequality.
    let tau = 16.0 * (k + 4) as f64 * f64::EPSILON * squares;
    let mut largest: f64 = 0.0;
    let mut trace = Upper::ZERO;
    for i in 0..k {
        g[i * k + i] += tau;
        largest = largest.max(g[i * k + i]);
        trace = trace + Upper::from_f64(g[i * k + i]);
    }
    let error = cholesky(&mut g, k, trace)?;
    for i in 0..k {
        g[i * k + i + 1..(i + 1) * k].fill(0.0);
    }
    let rounding =
        gamma(a.rows + 2) * frobenius * frobenius + Upper::from_f64(largest * f64::EPSILON);
    let e = error + rounding + Upper::from_f64(UNDERFLOW);
    Some((Matrix { rows: k, columns: k, data: g }, e))
}
