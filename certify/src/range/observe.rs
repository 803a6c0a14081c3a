//! The largest elements that are seen on data.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use lipschitz_nn::graph::{Input, Site};
use lipschitz_nn::{Model, Seen};

use super::Inputs;
use crate::Error;

/// The largest absolute value of an element of each tensor, over batches of these inputs.
///
/// # Errors
/// As [`Model::forward`], those of the batches, and [`Error::Data`] for an input that is not among
/// `inputs`.
pub fn observe<E>(
    model: &Model,
    inputs: Inputs,
    batches: impl IntoIterator<Item = Result<Tensor, E>>,
) -> Result<BTreeMap<Site, f64>, Error>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let model = model.detached();
    let mut found = BTreeMap::new();
    for batch in batches {
        let batch = batch.map_err(|error| Error::Batch(Box::new(error)))?;
        check(&model, inputs, &batch)?;
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

/// Whether all of a batch lies in the domain.
fn check(model: &Model, inputs: Inputs, batch: &Tensor) -> Result<(), Error> {
    if inputs.radius.is_none() && inputs.limit.is_none() {
        return Ok(());
    }
    // Vectors of tokens, or whole images and vectors.
    let rows = match model.graph().input() {
        Input::Tokens { .. } => model.embed(batch)?.flatten_to(1)?,
        _ => batch.flatten_from(1)?,
    };
    let rows = rows.to_dtype(DType::F64)?;
    let norms = rows.sqr()?.sum(1)?.sqrt()?;
    let outside = |what: &str, found: f64, end: Option<f64>| match end {
        // What is no number is outside, too.
        Some(end) if found > end || found.is_nan() => Err(Error::Data(format!(
            "{what} is {found}, outside of the domain, which ends at {end}"
        ))),
        _ => Ok(()),
    };
    outside("the largest element of an input", largest(&rows)?, inputs.limit)?;
    outside("the ℓ2 norm of an input", largest(&norms)?, inputs.radius)
}

fn largest(x: &Tensor) -> Result<f64, lipschitz_nn::Error> {
    if x.elem_count() == 0 {
        return Ok(0.0);
    }
    Ok(x.detach().abs()?.flatten_all()?.max(0)?.to_dtype(DType::F64)?.to_scalar::<f64>()?)
}
