//! Named tensors in a safetensors file.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;

use super::atomic::write;
use super::reader::known;
use crate::kind;
use crate::{At, Error, Weights};

/// Writes named tensors with metadata, atomically.
///
/// # Errors
/// [`Error::File`] names the path and what the system said.
pub fn save_tensors<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, Tensor)>,
    metadata: Option<HashMap<String, String>>,
) -> Result<(), Error> {
    let tensors: Vec<(&str, Tensor)> =
        tensors.map(|(n, t)| Ok((n, t.detach().contiguous()?))).collect::<Result<_, Error>>()?;
    let bytes = safetensors::serialize(tensors, metadata).map_err(|e| Error::file(path, e))?;
    write(path, &bytes)
}

/// Reads the tensors and metadata of a safetensors file.
///
/// # Errors
/// [`Error::File`] if the file is missing or damaged, or a tensor is of a type that is not computed
/// with, such as floats of 8 bits.
pub fn load_tensors(
    path: &Path,
    device: &Device,
) -> Result<(Weights, HashMap<String, String>), Error> {
    kind::no_device(path)?;
    let bytes = std::fs::read(path).at(path)?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(path, &e))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    for (name, info) in header.tensors() {
        known(&name, info).map_err(|e| Error::file(path, e))?;
    }
    let tensors = candle_core::safetensors::load_buffer(&bytes, device)
        .map_err(|e| damaged(path, &e.to_string().lines().next().unwrap_or_default()))?;
    Ok((tensors.into_iter().collect(), metadata))
}

/// A file that is no safetensors file, or not a whole one. One of another kind is named for it.
pub(super) fn damaged(path: &Path, what: &dyn std::fmt::Display) -> Error {
    if let Some(known) = kind::at(path).filter(|known| **known != kind::SAFETENSORS) {
        return Error::file(path, known.instead_of("a safetensors file"));
    }
    Error::file(
        path,
        format!(
            "is not a whole safetensors file ({what}); it may be truncated, fetch or write it again"
        ),
    )
}
