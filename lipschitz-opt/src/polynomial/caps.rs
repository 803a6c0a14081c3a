//! Polynomials that keep singular values below a cap.

use candle_core::{D, Result, Tensor};

use lipschitz_nn::ops::each_matrix;

use super::kernel::SoftCap;
use super::newton_schulz::{Steps, at, maximum};
use super::orthogonal::{apply, polar, product, sign, wide};

/// `y = x − αx³`, then `y + αy³`, on the singular values of `[…, rows, columns]`.
///
/// # Errors
/// Candle's own.
pub fn soft_cap(x: &Tensor, alpha: f64) -> Result<Tensor> {
    match soft_cap_each(&[(1.0, alpha, x.clone())])? {
        Some(mut all) => Ok(all.remove(0)),
        None => soft_cap_composed(x, alpha),
    }
}

/// [`soft_cap`] of each of these, times a factor before, with an α of its own, at once; none where
/// its kernel does not run.
pub(crate) fn soft_cap_each(stacks: &[(f64, f64, Tensor)]) -> Result<Option<Vec<Tensor>>> {
    let job =
        |(keep, alpha, x): &(f64, f64, Tensor)| (SoftCap { keep: *keep, alpha: *alpha }, x.clone());
    each_matrix(&stacks.iter().map(job).collect::<Vec<_>>())
}

/// The same out of tensors, for other devices and float types.
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

/// The strength α of the soft cap `x − αx³`, then `x + αx³`, that takes k to `sigma`: the least
/// non-negative root of `−k⁹α⁴ + 3k⁷α³ − 3k⁵α² + k − σ = 0` (*Training Transformers with Enforced
/// Lipschitz Constants*, appendix). On [0, k] the cap is then at most σ, since `x − αx³` rises as
/// long as `3αk² ≤ 1`; without such a root there is no cap, and none is returned.
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

/// The published hard cap: four quintics near `min(x, 1)` on [0, 3.5] (*Training Transformers with
/// Enforced Lipschitz Constants*, appendix). They pass 1 by up to 1.1 %, and take a small x to
/// 0.951 x.
pub fn hard_cap_steps() -> Steps {
    vec![
        [0.805032, 0.206361, -0.019763],
        [0.649867, 0.162935, -0.011150],
        [1.810259, -0.200265, 0.008251],
        [1.004384, -0.183490, 0.014413],
    ]
}

/// Where the domain of [`hard_cap_steps`] ends.
pub const HARD_CAP_END: f64 = 3.5;

/// The largest value of [`hard_cap_steps`] on its domain.
pub fn hard_cap_maximum() -> f64 {
    maximum(&hard_cap_steps(), HARD_CAP_END)
}

/// [`hard_cap_steps`] on the singular values of `[…, rows, columns]`, scaled so that none in `[0,
/// 3.4·cap]` ends above `cap`.
///
/// # Errors
/// Candle's own.
pub fn hard_cap_quintic(x: &Tensor, cap: f64) -> Result<Tensor> {
    let cap = cap / hard_cap_maximum();
    apply(&(x / cap)?, &hard_cap_steps())? * cap
}

/// `min(σ, cap)` on the singular values of `[…, rows, columns]`, none above `2·cap`, through two
/// matrix signs: with `O = UVᵀ` and `S = x Oᵀ = UΣUᵀ` it is `½ (cap·O + x − sign(S − cap) (x −
/// cap·O))`, since `min(σ, c) = ½ (c + σ − |σ − c|)`.
///
/// Where the sign is not yet ±1, next to the cap, it is off by less than 10⁻⁴ of the cap, and where
/// O is not yet orthogonal, at small σ, the terms in O cancel.
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
pub fn hard_cap_quintic_at(x: f64, cap: f64) -> f64 {
    let cap = cap / hard_cap_maximum();
    cap * at(&hard_cap_steps(), x / cap)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// How far the published hard cap is from `min(x, 1)`, which its documentation states.
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
