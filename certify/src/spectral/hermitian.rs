//! The Cholesky factorisation of a complex matrix, for proofs.

use lipschitz_nn::linalg::{Strided, tril};

use super::gamma;
use super::proof::UNDERFLOW;
use crate::upper::Upper;

const BLOCK: usize = 32;

/// Factors the Hermitian matrix `re + i·im` in place, `M + ΔM = LLᴴ`, and returns a bound on ‖ΔM‖₂;
/// none if M is not positive definite enough. Reads and writes only the lower triangles. `trace` is
/// an upper bound on the sum of the diagonal.
///
/// Real and imaginary part of an element of LLᴴ are sums of 2n products of real numbers, of which the
/// absolute values add up to at most `(|L||L|ᵀ)_ij`. So each part is off by at most `γ_{2n+2}` times
/// that, in any order of summation (Higham, *Accuracy and Stability*, theorem 10.3), and the element
/// by √2 times as much. On the diagonal all is real, so `‖|L||L|ᵀ‖₂ ≤ ‖L‖_F² ≤ tr(M)/(1 − γ_{2n+2})`.
pub(super) fn cholesky(re: &mut [f64], im: &mut [f64], n: usize, trace: Upper) -> Option<Upper> {
    for from in (0..n).step_by(BLOCK) {
        let to = (from + BLOCK).min(n);
        for j in from..to {
            let (above_re, below_re) = re.split_at_mut((j + 1) * n);
            let (above_im, below_im) = im.split_at_mut((j + 1) * n);
            let (row_re, row_im) = (&mut above_re[j * n..], &above_im[j * n..]);
            let squares = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
            let pivot = row_re[j] - squares(&row_re[from..j]) - squares(&row_im[from..j]);
            if pivot.is_nan() || pivot <= 0.0 {
                return None;
            }
            let root = pivot.sqrt();
            row_re[j] = root;
            let (br, bi) = (&row_re[from..j], &row_im[from..j]);
            for (x, y) in below_re.chunks_mut(n).zip(below_im.chunks_mut(n)) {
                let (ar, ai) = (&x[from..j], &y[from..j]);
                let (mut real, mut imaginary) = (0.0, 0.0);
                for (((ar, ai), br), bi) in ar.iter().zip(ai).zip(br).zip(bi) {
                    real += ar * br + ai * bi;
                    imaginary += ai * br - ar * bi;
                }
                (x[j], y[j]) = ((x[j] - real) / root, (y[j] - imaginary) / root);
            }
        }
        let rest = n - to;
        if rest == 0 {
            continue;
        }
        // With P = (L_r, L_i) and Q = (L_i, −L_r), the rest loses P Pᵀ and, in the imaginary part,
        // Q Pᵀ.
        let width = 2 * (to - from);
        let (mut p, mut q) = (Vec::with_capacity(rest * width), Vec::with_capacity(rest * width));
        for i in to..n {
            let (r, s) = (&re[i * n + from..i * n + to], &im[i * n + from..i * n + to]);
            p.extend(r.iter().chain(s));
            q.extend(s.iter().copied().chain(r.iter().map(|x| -x)));
        }
        let (p, q) = (Strided::dense(&p, width), Strided::dense(&q, width));
        tril(&mut re[to * n + to..], n, p, p.t(), true, -1.0, false);
        tril(&mut im[to * n + to..], n, q, p.t(), true, -1.0, false);
    }
    let g = gamma(2 * n + 8);
    let shrink = (1.0 - g.to_f64()).next_down();
    let root = Upper::from_f64(2.0).sqrt();
    Some((root * g * trace).div_up(shrink) + Upper::from_f64(UNDERFLOW))
}
