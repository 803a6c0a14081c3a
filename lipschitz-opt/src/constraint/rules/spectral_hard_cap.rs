//! The hard cap: `min(x, σ_max)` on the singular values, by matrix products alone.
//!
//! `σ ≤ σ_max` under any optimizer. With `form = "quintic"` it uses the polynomials of Newhouse et
//! al. (2025), which shrink small singular values by up to 5 % per step. With `form = "sign"` it is
//! exact up to rounding, through the matrix sign.

use candle_core::{D, Result, Tensor};

use super::super::config::{Constant, ConstraintConfig, HardCap};
use super::super::norms::{MARGIN, TopVectors, gram_work, normalize};
use super::super::rule::{Apply, Blocks, Rule, aim_at_cap, each, promise_cap};
use crate::Error;
use crate::polynomial::{
    Steps, apply_steps, at, maximum, polar, polar_work, product, sign, sign_work, wide,
};
use crate::work::Sides;

pub(super) static RULE: Rule = Rule {
    key: "spectral_hard_cap",
    name: "spectral hard cap",
    capped: true,
    constants: &[Constant::Form],
    check: |_| Ok(()),
    aim: aim_at_cap,
    promise: promise_cap,
    apply: Apply::Matrices(apply),
    work: |config, sides, bounded| {
        let norm = if bounded { 0.0 } else { gram_work(sides) };
        Some(norm + work(config.form.unwrap_or_default(), sides))
    },
};

/// The multiple of the cap up to which both forms hold.
const DOMAIN: f64 = 2.0;

fn apply(
    config: &ConstraintConfig,
    matrices: &[Blocks<'_>],
    _: &mut TopVectors,
) -> std::result::Result<Vec<Tensor>, Error> {
    let form = config.form.unwrap_or_default();
    let need = |m: &Blocks<'_>| {
        let within = m.grown().is_some_and(|k| k <= DOMAIN * m.cap);
        (m.cap * (1.0 - MARGIN), within)
    };
    each(matrices, need, |(cap, within), x| {
        let x = if within { x } else { normalize(&x, DOMAIN * cap)? };
        Ok(match form {
            HardCap::Quintic => hard_cap_quintic(&x, cap)?,
            HardCap::Sign => hard_cap_sign(&x, cap)?,
        })
    })
}

fn work(form: HardCap, sides: Sides) -> f64 {
    match form {
        HardCap::Quintic => sides.quintics(hard_cap_steps().len()),
        // The direction, its product with X, a sign of that, and one more product.
        HardCap::Sign => {
            polar_work(sides)
                + 2.0 * sides.long_product()
                + sign_work(Sides { long: sides.short, ..sides })
        }
    }
}

/// The hard cap of Newhouse et al. (2025, appendix): four quintics near `min(x, 1)` on [0, 3.5].
/// They exceed 1 by up to 1.1 %, and take a small x to 0.951 x.
fn hard_cap_steps() -> Steps {
    vec![
        [0.805032, 0.206361, -0.019763],
        [0.649867, 0.162935, -0.011150],
        [1.810259, -0.200265, 0.008251],
        [1.004384, -0.183490, 0.014413],
    ]
}

/// Where the domain of [`hard_cap_steps`] ends.
const HARD_CAP_END: f64 = 3.5;

/// The largest value of [`hard_cap_steps`] on its domain.
fn hard_cap_maximum() -> f64 {
    maximum(&hard_cap_steps(), HARD_CAP_END)
}

/// The four quintics on the singular values of `[…, rows, columns]`, scaled so that none in `[0,
/// 3.4·cap]` ends above `cap`.
///
/// # Errors
/// Candle's own.
pub fn hard_cap_quintic(x: &Tensor, cap: f64) -> Result<Tensor> {
    let cap = cap / hard_cap_maximum();
    apply_steps(&(x / cap)?, &hard_cap_steps())? * cap
}

/// `min(σ, cap)` on the singular values of `[…, rows, columns]`, none above `2·cap`, through two
/// matrix signs: with `O = UVᵀ` and `S = x Oᵀ = UΣUᵀ` it is `½ (cap·O + x − sign(S − cap) (x −
/// cap·O))`, since `min(σ, c) = ½ (c + σ − |σ − c|)`.
///
/// Next to the cap, where the sign is not yet ±1, the result is off by less than 10⁻⁴ of the cap.
/// At small σ, where O is not yet orthogonal, the terms in O cancel.
///
/// # Errors
/// Candle's own.
pub fn hard_cap_sign(x: &Tensor, cap: f64) -> Result<Tensor> {
    wide(x, |x| {
        let direction = polar(&x)?;
        let size = product(&x, &direction.transpose(D::Minus2, D::Minus1)?)?;
        // Symmetric but for rounding, which the sign would amplify.
        let size = ((&size + size.transpose(D::Minus2, D::Minus1)?)? * (0.5 / cap))?;
        let one = Tensor::eye(x.dim(D::Minus2)?, x.dtype(), x.device())?;
        // Eigenvalues in [-1, 1], with room for rounding.
        let side = sign(&(size.broadcast_sub(&one)? * (1.0 - 1e-3))?)?;
        let capped = (direction * cap)?;
        let over = product(&side, &(&x - &capped)?)?;
        ((capped + x)? - over)? * 0.5
    })
}

/// The value that [`hard_cap_quintic`] takes a singular value to.
#[must_use]
pub fn hard_cap_quintic_at(x: f64, cap: f64) -> f64 {
    let cap = cap / hard_cap_maximum();
    cap * at(&hard_cap_steps(), x / cap)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distance of the four quintics from `min(x, 1)` is the documented one.
    #[test]
    fn the_hard_cap_is_what_it_says() {
        let steps = hard_cap_steps();
        let grid = |end: f64| (0..=350_000).map(move |i| end * f64::from(i) / 350_000.0);
        let largest = grid(HARD_CAP_END).map(|x| at(&steps, x)).fold(0.0, f64::max);
        assert!((largest - hard_cap_maximum()).abs() < 1e-9, "{largest}");
        assert!((1.005..1.012).contains(&largest), "{largest}");
        assert!((at(&steps, 1e-6) / 1e-6 - 0.951).abs() < 1e-3);
        let off =
            grid(HARD_CAP_END).map(|x| (at(&steps, x) - x.min(1.0)).abs()).fold(0.0, f64::max);
        println!("hard cap: largest value {largest:.5}, largest distance from min(x, 1) {off:.4}");
        assert!(grid(3.4).all(|x| hard_cap_quintic_at(6.0 * x, 6.0) <= 6.0 * (1.0 + 1e-12)));
        // Beyond its domain it fails, which is why the domain is checked.
        assert!(at(&steps, 5.0) > 1.5);
    }
}
