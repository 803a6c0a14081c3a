//! The soft cap: `x − αx³`, then `x + αx³` on the singular values, with α coupled to the learning
//! rate (Newhouse et al., *Training Transformers with Enforced Lipschitz Constants*, 2025).
//!
//! `σ ≤ σ_max` under any optimizer. The coupling needs updates of bounded norm, as Muon's are, and
//! a learning rate of at most about 0.3 σ_max. Where updates have no bound, a normalisation
//! follows; where the learning rate is too large for any α, it takes the soft cap's place.

use candle_core::{D, Result, Tensor};
use lipschitz_nn::linalg::{MatrixMap, Real, each_matrix};

use super::super::config::{Constant, ConstraintConfig};
use super::super::norms::{MARGIN, TopVectors, gram_work, normalize};
use super::super::rule::{Apply, Blocks, Rule, aim_at_cap, each, promise_cap};
use crate::Error;
use crate::polynomial::{Short, add_diagonal, product};

pub(super) static RULE: Rule = Rule {
    key: "spectral_soft_cap",
    name: "spectral soft cap",
    capped: true,
    constants: &[Constant::Decay],
    check: |_| Ok(()),
    aim: aim_at_cap,
    promise: promise_cap,
    apply: Apply::Matrices(apply),
    // Two cubics.
    work: |_, sides, bounded| Some(sides.cubics(2) + if bounded { 0.0 } else { gram_work(sides) }),
};

/// What a stack needs. Stacks that need the same are batched.
#[derive(Clone, Copy, PartialEq)]
enum Need {
    /// Shrinks by `keep`, caps with strength α; normalises after it unless updates are bounded.
    SoftCap { keep: f64, alpha: f64, cap: f64, bounded: bool },
    /// Normalises, where no α is strong enough.
    Normalize { cap: f64 },
}

impl Need {
    fn of(config: &ConstraintConfig, m: &Blocks<'_>) -> Self {
        let cap = m.cap;
        let keep = (1.0 - config.decay() * m.rate).max(0.0);
        // Without a bound α is chosen as for an update of norm η, and not relied on.
        let k = keep * m.grown().unwrap_or(cap + m.learning_rate);
        match soft_cap_strength(k, cap * (1.0 - MARGIN)) {
            Some(alpha) => Self::SoftCap { keep, alpha, cap, bounded: m.update.is_some() },
            None => Self::Normalize { cap },
        }
    }

    fn meet(self, x: Tensor) -> std::result::Result<Tensor, Error> {
        match self {
            Self::SoftCap { keep, alpha, cap, bounded } => {
                let x = if keep == 1.0 { x } else { (x * keep)? };
                if bounded {
                    return Ok(soft_cap(&x, alpha)?);
                }
                // From where x − αx³ falls again, a norm may be anything, and its ninth power overflow.
                let x = if alpha > 0.0 { normalize(&x, (3.0 * alpha).sqrt().recip())? } else { x };
                normalize(&soft_cap(&x, alpha)?, cap)
            }
            Self::Normalize { cap } => normalize(&x, cap),
        }
    }
}

fn apply(
    config: &ConstraintConfig,
    matrices: &[Blocks<'_>],
    _: &mut TopVectors,
) -> std::result::Result<Vec<Tensor>, Error> {
    // The usual case: soft caps that need nothing after them, where their kernel runs.
    let alone = |m: &Blocks<'_>| match Need::of(config, m) {
        Need::SoftCap { keep, alpha, bounded: true, .. } => {
            Some((SoftCap { keep, alpha }, m.x.clone()))
        }
        _ => None,
    };
    if let Some(stacks) = matrices.iter().map(alone).collect::<Option<Vec<_>>>()
        && let Some(done) = each_matrix(&stacks)?
    {
        return Ok(done);
    }
    each(matrices, |m| Need::of(config, m), Need::meet)
}

/// The soft cap `y = x − αx³`, then `y + αy³`, on the singular values of `[…, rows, columns]`.
///
/// # Errors
/// Candle's own.
pub fn soft_cap(x: &Tensor, alpha: f64) -> Result<Tensor> {
    match each_matrix(&[(SoftCap { keep: 1.0, alpha }, x.clone())])? {
        Some(mut all) => Ok(all.remove(0)),
        None => soft_cap_composed(x, alpha),
    }
}

/// [`soft_cap`] composed of tensor operations, for other devices and float types.
///
/// # Errors
/// Candle's own.
pub fn soft_cap_composed(x: &Tensor, alpha: f64) -> Result<Tensor> {
    add_cube(&add_cube(x, -alpha)?, alpha)
}

/// `x + factor·x³` on the singular values of `[…, rows, columns]`.
fn add_cube(x: &Tensor, factor: f64) -> Result<Tensor> {
    let t = x.transpose(D::Minus2, D::Minus1)?;
    let cube = if x.dim(D::Minus2)? <= x.dim(D::Minus1)? {
        product(&product(x, &t)?, x)?
    } else {
        product(x, &product(&t, x)?)?
    };
    x + (cube * factor)?
}

/// The strength α of the soft cap that takes k to `sigma`: the least non-negative root of
/// `−k⁹α⁴ + 3k⁷α³ − 3k⁵α² + k − σ = 0` (Newhouse et al., 2025, appendix).
///
/// On [0, k] the soft cap is then at most σ, since `x − αx³` rises as long as `3αk² ≤ 1`. None if
/// no root satisfies that.
fn soft_cap_strength(k: f64, sigma: f64) -> Option<f64> {
    if k <= sigma {
        return Some(0.0);
    }
    let end = 1.0 / (3.0 * k * k);
    let after = |alpha: f64| {
        let y = k - alpha * k.powi(3);
        y + alpha * y.powi(3)
    };
    if after(end) > sigma {
        return None;
    }
    // `after` falls from k to below σ; the upper end of the bisection stays on the safe side.
    let (mut low, mut high) = (0.0, end);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if after(middle) > sigma { low = middle } else { high = middle }
    }
    Some(high)
}

/// The kernel of [`soft_cap`], from `keep` times the matrix. With `A = αG` that is
/// `(I − A) + (A − A²)(I − 2A + A²)` times x.
struct SoftCap {
    keep: f64,
    alpha: f64,
}

impl MatrixMap for SoftCap {
    fn run<T: Real>(&self, x: &[T], out: &mut [T], rows: usize, columns: usize, parallel: bool) {
        let short = Short::new(x, rows, columns, parallel);
        let [mut a, mut square, mut left, mut right] = std::array::from_fn(|_| short.square());
        short.gram(&mut a, self.alpha * self.keep * self.keep);
        short.commuting(&mut square, &a, &a, false, 1.0);
        for (((left, right), a), square) in left.iter_mut().zip(&mut right).zip(&a).zip(&square) {
            *left = *a - *square;
            *right = *square - (*a + *a);
        }
        add_diagonal(&mut right, short.n, 1.0);
        let q = &mut a;
        for q in q.iter_mut() {
            *q = -*q;
        }
        add_diagonal(q, short.n, 1.0);
        short.commuting(q, &left, &right, true, 1.0);
        short.times(q, out, false, self.keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever an optimizer without a bound makes of a matrix, its norm ends at the cap.
    #[test]
    fn without_a_bound_any_norm_is_brought_under_the_cap() {
        let cap = 1.0;
        let alpha = soft_cap_strength(1.1, cap * (1.0 - MARGIN)).unwrap();
        let need = Need::SoftCap { keep: 1.0, alpha, cap, bounded: false };
        // Of norm 1: the two columns of each row are alike.
        let x = Tensor::from_vec(vec![0.5f32; 4], (1, 2, 2), &candle_core::Device::Cpu).unwrap();
        for size in [0.5, 1.05, 3.0, 350.0, 1e4, 1e15, 1e25, 1e36] {
            let y = need.meet((&x * size).unwrap()).unwrap().flatten_all().unwrap();
            let y = y.to_vec1::<f32>().unwrap();
            let norm = 2.0 * f64::from(y[0]);
            assert!(y.iter().all(|x| (x - y[0]).abs() < 1e-6), "{size:e}: {y:?}");
            assert!(norm <= cap && norm > 0.49, "{size:e}: {norm}");
        }
    }

    #[test]
    fn soft_cap_meets_its_equation_and_caps_everything_below() {
        for sigma in [0.1, 1.0, 6.0] {
            for ratio in [1e-6, 1e-3, 0.05, 0.2] {
                let k = sigma * (1.0 + ratio);
                let alpha = soft_cap_strength(k, sigma).unwrap();
                let value = -k.powi(9) * alpha.powi(4) + 3.0 * k.powi(7) * alpha.powi(3)
                    - 3.0 * k.powi(5) * alpha * alpha
                    + k
                    - sigma;
                assert!(value.abs() < 1e-9 * sigma, "{sigma} {ratio}: {value}");
                for i in 0..=1000 {
                    let x = k * f64::from(i) / 1000.0;
                    let y = x - alpha * x.powi(3);
                    assert!(y + alpha * y.powi(3) <= sigma * (1.0 + 1e-12));
                }
            }
            assert_eq!(soft_cap_strength(sigma * 2.0, sigma), None);
        }
    }
}
