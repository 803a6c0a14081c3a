//! The estimate: Lanczos with full reorthogonalisation. What it finds need not be right, only good.

use lipschitz_nn::ops::{Strided, gemm};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const STEPS: usize = 72;
const RESTARTS: usize = 6;

/// An approximate unit eigenvector of the largest eigenvalue of a symmetric positive semidefinite matrix.
pub(super) fn top_eigenvector(g: &[f64], n: usize) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
    let mut v: Vec<f64> = (0..n).map(|_| f64::from(rng.next_u32()) / f64::from(u32::MAX) - 0.5).collect();
    let mut best = 0.0;
    for _ in 0..RESTARTS {
        let (next, value) = restart(g, n, &v);
        let settled = value <= best * (1.0 + 1e-13);
        if value > best {
            (v, best) = (next, value);
        }
        if settled || n <= STEPS {
            break;
        }
    }
    v
}

fn times(g: &[f64], v: &[f64]) -> Vec<f64> {
    g.chunks(v.len()).map(|row| dot(row, v)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Four sums at a time, so that the loop vectorises.
    let (mut sums, whole) = ([0.0; 4], a.len() / 4 * 4);
    for (a, b) in a[..whole].chunks(4).zip(b[..whole].chunks(4)) {
        for i in 0..4 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + a[whole..].iter().zip(&b[whole..]).map(|(a, b)| a * b).sum::<f64>()
}

fn normalise(v: &mut [f64]) -> f64 {
    let norm = dot(v, v).sqrt();
    if norm > 0.0 {
        v.iter_mut().for_each(|x| *x /= norm);
    }
    norm
}

/// One Krylov space from `start`: the Ritz vector of its largest Ritz value, and that value.
fn restart(g: &[f64], n: usize, start: &[f64]) -> (Vec<f64>, f64) {
    let mut v = start.to_vec();
    normalise(&mut v);
    let mut basis: Vec<Vec<f64>> = vec![v];
    let mut t: Vec<(f64, f64)> = Vec::new();
    // The largest G v so far: what is far smaller is rounding, and would not be orthogonal to the rest.
    let mut scale: f64 = 0.0;
    loop {
        let last = &basis[basis.len() - 1];
        let mut w = times(g, last);
        scale = scale.max(dot(&w, &w).sqrt());
        let alpha = dot(&w, last);
        for _ in 0..2 {
            for b in &basis {
                let d = dot(&w, b);
                w.iter_mut().zip(b).for_each(|(w, b)| *w -= d * b);
            }
        }
        let beta = normalise(&mut w);
        t.push((alpha, beta));
        if basis.len() == STEPS.min(n) || beta <= 1e-12 * scale {
            break;
        }
        basis.push(w);
    }
    let weights = tridiagonal_top(&t);
    let mut ritz = vec![0.0; n];
    for (s, b) in weights.iter().zip(&basis) {
        ritz.iter_mut().zip(b).for_each(|(r, b)| *r += s * b);
    }
    normalise(&mut ritz);
    let value = dot(&times(g, &ritz), &ritz);
    (ritz, value)
}

/// The top eigenvector of a small tridiagonal matrix, by squaring it 30 times: the 2³⁰th power keeps nothing else.
fn tridiagonal_top(t: &[(f64, f64)]) -> Vec<f64> {
    let k = t.len();
    let mut a = vec![0.0; k * k];
    for (i, (alpha, beta)) in t.iter().enumerate() {
        a[i * k + i] = *alpha;
        if i + 1 < k {
            a[i * k + i + 1] = *beta;
            a[(i + 1) * k + i] = *beta;
        }
    }
    for _ in 0..30 {
        let norm = dot(&a, &a).sqrt();
        if norm == 0.0 {
            break;
        }
        // What is flushed could only grow denormal, which processors are slow at.
        a.iter_mut().for_each(|x| *x = if x.abs() < 1e-140 * norm { 0.0 } else { *x / norm });
        let mut square = vec![0.0; k * k];
        let view = Strided::rows(&a, k, k, k);
        gemm(&mut square, k, view, view, 0.0, 1.0, false);
        a = square;
    }
    let column = |j: usize| (0..k).map(|i| a[i * k + j]).collect::<Vec<_>>();
    (0..k).map(column).max_by(|a, b| dot(a, a).total_cmp(&dot(b, b))).unwrap_or_default()
}
