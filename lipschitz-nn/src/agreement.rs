//! Whether two programs compute the same function.

use crate::{Error, Model};
use candle_core::{DType, Device, Tensor};

/// How far two forward passes are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// The largest difference of two outputs.
    pub largest: f64,
    /// What rounding explains: eight times what f32 does to the model's own forward pass, and 10⁻⁶
    /// of the largest output.
    pub explained: f64,
}

/// Compares a model with another program's forward pass of the same network, on some inputs.
///
/// The model runs in f64 and in f32; the other pass may round, in its own order.
///
/// # Errors
/// [`Error::Input`] if an output differs in shape, or by more than rounding explains;
/// [`Error::Candle`] if a pass fails.
pub fn compare(
    model: &Model,
    other: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>,
    inputs: &[Tensor],
) -> Result<Agreement, Error> {
    let (exact, single) =
        (model.to(&Device::Cpu, DType::F64)?, model.to(&Device::Cpu, DType::F32)?);
    let mut agreement = Agreement { largest: 0.0, explained: 0.0 };
    for (i, input) in inputs.iter().enumerate() {
        let input = input.to_device(&Device::Cpu)?;
        let (ours, theirs) =
            (exact.forward(&input)?, other(&input)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?);
        if ours.dims() != theirs.dims() {
            let (a, b) = (ours.dims(), theirs.dims());
            return Err(Error::Input(format!(
                "on input {i} the graph gives {a:?}, the other pass {b:?}"
            )));
        }
        let rounded = single.forward(&input)?.to_dtype(DType::F64)?;
        let explained = 8.0 * largest(&(&ours - rounded)?)? + 1e-6 * largest(&ours)?;
        let apart = largest(&(&ours - theirs)?)?;
        // NaN is no agreement.
        if apart.is_nan() || apart > explained {
            let what = format!(
                "on input {i} the two passes are {apart:e} apart, and rounding explains \
                 {explained:e}"
            );
            return Err(Error::Input(format!(
                "{what}; the graph is not that of the other network"
            )));
        }
        agreement.largest = agreement.largest.max(apart);
        agreement.explained = agreement.explained.max(explained);
    }
    Ok(agreement)
}

/// The largest absolute element; NaN if there is one.
fn largest(x: &Tensor) -> Result<f64, Error> {
    let x: Vec<f64> = x.flatten_all()?.to_vec1()?;
    Ok(x.iter()
        .fold(0.0, |m: f64, x| if m.is_nan() || x.abs() > m || x.is_nan() { x.abs() } else { m }))
}
