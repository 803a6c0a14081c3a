//! The estimate: Lanczos with full reorthogonalisation. The proof does not rely on its accuracy.

use lipschitz_nn::random;
use rayon::prelude::*;

const STEPS: usize = 72;
const RESTARTS: usize = 6;

/// An approximate unit eigenvector of the largest eigenvalue of a symmetric positive semidefinite
/// matrix.
pub(super) fn top_eigenvector(g: &[f64], n: usize) -> Vec<f64> {
    let mut rng = random::seeded(n as u64);
    let mut v: Vec<f64> = (0..n).map(|_| 0.5 * random::symmetric(&mut rng)).collect();
    let mut best = 0.0;
    for _ in 0..RESTARTS {
        let (next, value) = restart(g, n, &v);
        let settled = value <= best * (1.0 + 1e-11);
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
    if v.len() < 256 {
        return g.chunks(v.len()).map(|row| dot(row, v)).collect();
    }
    g.par_chunks(v.len()).with_min_len(64).map(|row| dot(row, v)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Four sums in parallel, so that the loop vectorises.
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
    // The largest ‖G v‖ so far: a far smaller vector is rounding, and would not be orthogonal to
    // the basis.
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

/// The top eigenvector of a tridiagonal matrix of diagonal and off-diagonal `t` (the last
/// off-diagonal is unused): bisection by Sturm's sequence for the eigenvalue, then inverse
/// iteration from just above it, where no pivot can vanish.
fn tridiagonal_top(t: &[(f64, f64)]) -> Vec<f64> {
    let k = t.len();
    let off = |i: usize| if i == 0 { 0.0 } else { t[i - 1].1 };
    let radius = |i: usize| off(i).abs() + if i + 1 < k { t[i].1.abs() } else { 0.0 };
    let mut high = (0..k).map(|i| t[i].0 + radius(i)).fold(0.0, f64::max);
    let mut low = (0..k).map(|i| t[i].0).fold(0.0, f64::max);
    // The pivots of T − x are all negative exactly if x is above every eigenvalue.
    let above = |x: f64| {
        let mut pivot = -1.0;
        (0..k).all(|i| {
            pivot = t[i].0 - x - if i == 0 { 0.0 } else { off(i) * off(i) / pivot };
            pivot < 0.0
        })
    };
    high += high * 1e-12 + f64::MIN_POSITIVE;
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if above(middle) { high = middle } else { low = middle }
    }
    let shift = high + high.abs() * 4.0 * f64::EPSILON;
    let mut v = vec![1.0; k];
    for _ in 0..4 {
        // (shift − T) v' = v, by elimination downwards and substitution upwards.
        let mut pivots = vec![0.0; k];
        for i in 0..k {
            let factor = if i == 0 { 0.0 } else { off(i) / pivots[i - 1] };
            pivots[i] = (shift - t[i].0 - factor * off(i)).max(f64::MIN_POSITIVE);
            if i > 0 {
                v[i] += factor * v[i - 1];
            }
        }
        for i in (0..k).rev() {
            let next = if i + 1 < k { t[i].1 * v[i + 1] } else { 0.0 };
            v[i] = (v[i] + next) / pivots[i];
        }
        let largest = v.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        if !largest.is_finite() || largest == 0.0 {
            return (0..k).map(|i| if i == 0 { 1.0 } else { 0.0 }).collect();
        }
        // Elements this small would become denormal, which is slow.
        v.iter_mut().for_each(|x| *x = if x.abs() < 1e-140 * largest { 0.0 } else { *x / largest });
    }
    normalise(&mut v);
    v
}
