//! The linear map.

use candle_core::{Result, Tensor, bail};

use super::kernel::{Array, Kernel, apply};
use crate::linalg::{Precision, Real, Strided, fused, matmul};

/// `x Wᵀ + b` for `x` of shape `[…, in]`, `W` of shape `[out, in]`.
///
/// # Errors
/// Shapes that do not fit, and candle's own.
pub fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    precision: Precision,
) -> Result<Tensor> {
    if precision != Precision::F32 || !fused(&[x, weight]) {
        return composed(x, weight, bias, precision);
    }
    let y = apply(LinearKernel, &[x, weight], true)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// The same out of candle's operations.
///
/// The input is made contiguous and flattened first: candle's own linear layer is silently wrong on
/// a non-contiguous 3-D input, and a product over the flat batch is one call instead of one per
/// sequence.
///
/// # Errors
/// Candle's own, such as shapes that do not fit.
pub fn composed(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    precision: Precision,
) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let Some(last) = dims.last_mut() else { bail!("a linear map needs at least one dimension") };
    let inputs = std::mem::replace(last, weight.dim(0)?);
    let mut y = precision.matmul(&x.contiguous()?.reshape(((), inputs))?, &weight.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    y.reshape(dims)
}

struct LinearKernel;

impl Kernel for LinearKernel {
    const NAME: &'static str = "linear";
    type Saved<T: Real> = ();

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        let (Some((width, batch)), &[outputs, columns]) = (inputs[0].split_last(), inputs[1])
        else {
            bail!("linear: input {:?}, weight {:?}", inputs[0], inputs[1])
        };
        if *width != columns {
            bail!("linear: input {:?} does not fit the weight {:?}", inputs[0], inputs[1])
        }
        Ok(batch.iter().copied().chain([outputs]).collect())
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, ()) {
        let (rows, inputs, outputs, x, w) = views(inputs);
        let mut y = vec![T::of(0.0); rows * outputs];
        matmul(&mut y, outputs, Strided::rows(x, rows, inputs, inputs), w.t(), false, 1.0, true);
        (y, ())
    }

    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        (): (),
        grad: &[T],
        wanted: &[bool],
    ) -> Vec<Vec<T>> {
        let (rows, inputs, outputs, x, w) = views(inputs);
        let g = Strided::rows(grad, rows, outputs, outputs);
        let (mut dx, mut dw) = (Vec::new(), Vec::new());
        if wanted[0] {
            dx.resize(x.len(), T::of(0.0));
            matmul(&mut dx, inputs, g, w, false, 1.0, true);
        }
        if wanted[1] {
            dw.resize(outputs * inputs, T::of(0.0));
            matmul(
                &mut dw,
                inputs,
                g.t(),
                Strided::rows(x, rows, inputs, inputs),
                false,
                1.0,
                true,
            );
        }
        vec![dx, dw]
    }
}

/// Rows, inputs, outputs, and the two arrays.
fn views<'a, T: Real>(arrays: &[Array<'a, T>]) -> (usize, usize, usize, &'a [T], Strided<'a, T>) {
    let (x, w) = (arrays[0], arrays[1]);
    let (outputs, inputs) = (w.dims[0], w.dims[1]);
    (
        x.dims[..x.dims.len() - 1].iter().product(),
        inputs,
        outputs,
        x.data,
        Strided::rows(w.data, outputs, inputs, inputs),
    )
}
