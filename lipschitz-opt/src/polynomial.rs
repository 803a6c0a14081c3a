//! Odd polynomials on the singular values of a matrix.

use candle_core::{D, Result, Tensor};
use serde::{Deserialize, Serialize};

/// Steps `x ← a x + b x³ + c x⁵` that drive singular values in (0, 1] towards 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewtonSchulz {
    /// Six steps that never pass 1, so that an update's norm is at most the learning rate.
    #[default]
    SixStep,
    /// Five steps of Jordan's coefficients; values reach 1.20.
    Jordan,
}

impl NewtonSchulz {
    /// The coefficients (a, b, c) of each step.
    pub fn steps(self) -> Vec<[f64; 3]> {
        match self {
            Self::SixStep => [
                [3955.0, -8306.0, 5008.0],
                [3735.0, -6681.0, 3463.0],
                [3799.0, -6499.0, 3211.0],
                [4019.0, -6385.0, 2906.0],
                [2677.0, -3029.0, 1162.0],
                [2172.0, -1833.0, 682.0],
            ]
            .map(|step| step.map(|x| x / 1024.0))
            .to_vec(),
            Self::Jordan => vec![[3.4445, -4.7750, 2.0315]; 5],
        }
    }

    /// Where the steps take a singular value.
    pub fn at(self, x: f64) -> f64 {
        self.steps().iter().fold(x, |x, [a, b, c]| x * (a + x * x * (b + x * x * c)))
    }

    /// Whether no value in [0, 1] ends above 1 (up to 1e-3, see the tests).
    pub fn bounded_by_one(self) -> bool {
        self == Self::SixStep
    }
}

/// `UVᵀ` of `m = UΣVᵀ`, nearly; `m` is `[…, rows, columns]`, each matrix by itself. Zero stays zero.
///
/// # Errors
/// Candle's own.
pub fn orthogonalise(m: &Tensor, set: NewtonSchulz) -> Result<Tensor> {
    let tall = m.dim(D::Minus2)? > m.dim(D::Minus1)?;
    let mut x = if tall { m.transpose(D::Minus2, D::Minus1)?.contiguous()? } else { m.contiguous()? };
    // By the largest element first: squares of tiny gradients would underflow.
    let largest = x.abs()?.max_keepdim(D::Minus1)?.max_keepdim(D::Minus2)?;
    x = x.broadcast_div(&(largest + f64::from(f32::MIN_POSITIVE))?)?;
    let norm = x.sqr()?.sum_keepdim(D::Minus1)?.sum_keepdim(D::Minus2)?.sqrt()?;
    x = x.broadcast_div(&(norm + f64::from(f32::MIN_POSITIVE))?)?;
    for [a, b, c] in set.steps() {
        let gram = x.matmul(&x.transpose(D::Minus2, D::Minus1)?)?;
        let mix = ((&gram * b)? + (gram.matmul(&gram)? * c)?)?;
        x = ((&x * a)? + mix.matmul(&x)?)?;
    }
    if tall { x.transpose(D::Minus2, D::Minus1)?.contiguous() } else { Ok(x) }
}

/// `x + factor·x³` on the singular values of `[…, rows, columns]`.
///
/// # Errors
/// Candle's own.
pub fn add_cube(x: &Tensor, factor: f64) -> Result<Tensor> {
    let t = x.transpose(D::Minus2, D::Minus1)?;
    let cube = if x.dim(D::Minus2)? <= x.dim(D::Minus1)? { x.matmul(&t)?.matmul(x)? } else { x.matmul(&t.matmul(x)?)? };
    x + (cube * factor)?
}

/// The strength α of the soft cap `x − αx³`, then `x + αx³`, that takes k to `sigma`: the least non-negative root of
/// `−k⁹α⁴ + 3k⁷α³ − 3k⁵α² + k − σ = 0` (*Training Transformers with Enforced Lipschitz Constants*, appendix). On [0, k] the cap is then at most
/// σ, since `x − αx³` rises as long as `3αk² ≤ 1`; without such a root there is no cap, and none is returned.
pub fn soft_cap_strength(k: f64, sigma: f64) -> Option<f64> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A grid finer than the slope allows anything to hide in: between neighbours a value moves by less than 1e-2·step.
    #[test]
    fn largest_values_on_the_unit_interval() {
        let largest = |set: NewtonSchulz| (0..=4_000_000).map(|i| set.at(f64::from(i) / 4e6)).fold(0.0, f64::max);
        let (six, jordan) = (largest(NewtonSchulz::SixStep), largest(NewtonSchulz::Jordan));
        println!("largest value on [0, 1]: six steps {six}, Jordan {jordan}");
        assert!(six <= 1.0 + 1e-3, "{six}");
        assert!((1.1..1.25).contains(&jordan), "{jordan}");
    }

    #[test]
    fn soft_cap_meets_its_equation_and_caps_everything_below() {
        for sigma in [0.1, 1.0, 6.0] {
            for ratio in [1e-6, 1e-3, 0.05, 0.2] {
                let k = sigma * (1.0 + ratio);
                let alpha = soft_cap_strength(k, sigma).unwrap();
                let value =
                    -k.powi(9) * alpha.powi(4) + 3.0 * k.powi(7) * alpha.powi(3) - 3.0 * k.powi(5) * alpha * alpha + k
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
