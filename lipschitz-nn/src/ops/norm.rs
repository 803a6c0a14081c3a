//! Normalisations, composed: candle's fused ones have no gradient.

use candle_core::{D, Result, Tensor};

/// `γ ∘ x / √(mean x² + ε)` over the last dimension.
///
/// # Errors
/// Candle's own, such as shapes that do not fit.
pub fn rms_norm(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    x.broadcast_mul(&scale)?.broadcast_mul(gain)
}

/// `γ ∘ (x − mean x) / √(var x + ε) + β` over the last dimension.
///
/// # Errors
/// Candle's own, such as shapes that do not fit.
pub fn layer_norm(x: &Tensor, gain: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let y = rms_norm(&centred, gain, eps)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}
