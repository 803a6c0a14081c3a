//! The linear map.

use candle_core::{Result, Tensor};

/// `x Wᵀ + b` for `x` of shape `[…, in]`, `W` of shape `[out, in]`.
///
/// The input is made contiguous and flattened first: candle's own linear layer is silently wrong on a non-contiguous
/// 3-D input, and a product over the flat batch is one call instead of one a sequence.
///
/// # Errors
/// Candle's own, such as shapes that do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let Some(last) = dims.last_mut() else { candle_core::bail!("a linear map needs at least one dimension") };
    let inputs = std::mem::replace(last, weight.dim(0)?);
    let mut y = x.contiguous()?.reshape(((), inputs))?.matmul(&weight.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    y.reshape(dims)
}
