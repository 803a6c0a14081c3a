//! The largest elements that are seen on data.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use lipschitz_nn::graph::Site;
use lipschitz_nn::{Model, Seen};

use crate::Error;

/// The largest absolute value of an element of each tensor, over batches of inputs.
///
/// # Errors
/// As [`Model::forward`], and those of the batches.
pub fn observe<E>(
    model: &Model,
    batches: impl IntoIterator<Item = Result<Tensor, E>>,
) -> Result<BTreeMap<Site, f64>, Error>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let model = model.detached();
    let mut found = BTreeMap::new();
    for batch in batches {
        let batch = batch.map_err(|error| Error::Batch(Box::new(error)))?;
        model.forward_tapped(&batch, &mut |seen: Seen<'_>, x: Tensor| {
            let largest = largest(&x)?;
            let site = Site { id: seen.id.clone(), stage: seen.stage };
            let best = found.entry(site).or_insert(0.0_f64);
            // A NaN stays.
            *best = if largest.is_nan() || best.is_nan() { f64::NAN } else { best.max(largest) };
            Ok(x)
        })?;
    }
    Ok(found)
}

fn largest(x: &Tensor) -> Result<f64, lipschitz_nn::Error> {
    if x.elem_count() == 0 {
        return Ok(0.0);
    }
    Ok(x.detach().abs()?.flatten_all()?.max(0)?.to_dtype(DType::F64)?.to_scalar::<f64>()?)
}
