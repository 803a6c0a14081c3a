//! Weights by name, and what is checked of them.

use std::collections::{BTreeMap, HashSet};

use candle_core::{DType, Tensor};

use crate::Error;
use crate::graph::{Graph, Parameter};

/// Weights by their path through the graph.
pub type Weights = BTreeMap<String, Tensor>;

/// Whether weights of these names, shapes and types are those of a graph.
///
/// # Errors
/// [`Error::Weight`] names the first that is missing, unknown to the graph, or of the wrong shape
/// or type.
pub(crate) fn fits(graph: &Graph, found: &BTreeMap<&str, (&[usize], DType)>) -> Result<(), Error> {
    let parameters = graph.parameters();
    let mut first = None;
    for Parameter { name, shape, .. } in &parameters {
        let (dims, dtype) =
            *found.get(name.as_str()).ok_or_else(|| Error::weight(name, "is missing"))?;
        if dims != shape {
            return Err(Error::weight(
                name,
                format!("has shape {dims:?}, the graph wants {shape:?}"),
            ));
        }
        let wanted = *first.get_or_insert(dtype);
        if !dtype.is_float() || dtype != wanted {
            return Err(Error::weight(name, format!("is {dtype:?}, the first weight {wanted:?}")));
        }
    }
    if found.len() != parameters.len() {
        let known: HashSet<_> = parameters.iter().map(|p| p.name.as_str()).collect();
        if let Some(name) = found.keys().find(|name| !known.contains(*name)) {
            return Err(Error::weight(name, "is not in the graph"));
        }
    }
    Ok(())
}

/// Whether all elements are finite numbers: a part at a time where that is in memory here.
fn all_finite(weight: &Tensor) -> Result<bool, Error> {
    const PART: usize = 1 << 14;
    if !weight.device().is_cpu() {
        // 0·x is 0 for finite x alone.
        let zero = (weight * 0.0)?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        return Ok(zero == 0.0);
    }
    let flat = weight.flatten_all()?;
    let count = flat.elem_count();
    for from in (0..count).step_by(PART) {
        let part = flat.narrow(0, from, PART.min(count - from))?;
        let finite = match part.dtype() {
            DType::F64 => part.to_vec1::<f64>()?.iter().all(|x| x.is_finite()),
            // All other types are part of f32.
            _ => part.to_dtype(DType::F32)?.to_vec1::<f32>()?.iter().all(|x| x.is_finite()),
        };
        if !finite {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Fails if a tensor holds NaN or infinity.
///
/// # Errors
/// [`Error::Weight`] names it.
pub fn check_finite(name: &str, weight: &Tensor) -> Result<(), Error> {
    let weight = weight.detach();
    if all_finite(&weight)? {
        return Ok(());
    }
    let largest = weight.to_dtype(DType::F64)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
    let what = if largest.is_infinite() { "infinity" } else { "NaN" };
    Err(Error::weight(
        name,
        format!("holds {what}; the checkpoint is damaged or training diverged"),
    ))
}
