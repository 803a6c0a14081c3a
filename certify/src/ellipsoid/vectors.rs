//! Products of vectors, and of matrices with them, in plain f64: none is a bound.

use lipschitz_nn::linalg::{Strided, matmul};

pub(super) fn symmetric(x: &mut [f64], n: usize) {
    for i in 0..n {
        for j in 0..i {
            let mean = 0.5 * (x[i * n + j] + x[j * n + i]);
            (x[i * n + j], x[j * n + i]) = (mean, mean);
        }
    }
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn length(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

/// `m v`
pub(super) fn along(m: Strided<'_, f64>, v: &[f64]) -> Vec<f64> {
    let mut out = vec![0.0; m.rows];
    matmul(&mut out, 1, m, Strided::dense(v, 1), false, 1.0, false);
    out
}

/// `to += g u vᵀ`
pub(super) fn outer(g: f64, u: &[f64], v: &[f64], to: &mut [f64]) {
    for (row, u) in to.chunks_mut(v.len()).zip(u) {
        row.iter_mut().zip(v).for_each(|(to, v)| *to += g * u * v);
    }
}
