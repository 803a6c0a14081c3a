//! One file that is a network: safetensors whose metadata key `lipschitz` holds graph, config,
//! tokenizer and provenance.

mod atomic;
mod header;
mod meta;
mod reader;
mod tensors;

pub use atomic::{is_temporary, sync, writable, write};
pub use header::{Damage, Entry, Header, MAX_HEADER};
pub use meta::{Dialect, FORMAT, KEY, Meta, Origin, Provenance, Tokenizer, WeightOrigin};
pub use reader::Reader;
pub use tensors::{load_tensors, save_tensors};

use std::collections::HashMap;
use std::path::Path;

use candle_core::Device;

use crate::{Error, Model};

/// Writes a checkpoint; a file already at `path` is replaced in one step, when the new one is
/// complete on disk.
///
/// # Errors
/// [`Error::File`] names the path and what the system said.
pub fn save(path: &Path, model: &Model, meta: &Meta) -> Result<(), Error> {
    let json = serde_json::to_string(meta).map_err(|e| Error::file(path, e))?;
    let weights = model.weights().iter().map(|(name, w)| (name.as_str(), w.clone()));
    save_tensors(path, weights, Some(HashMap::from([(KEY.to_string(), json)])))
}

/// Reads a checkpoint of this project onto a device; the weights are checked to be finite.
///
/// # Errors
/// [`Error::File`] if the file is missing, truncated, or not a checkpoint of this project;
/// [`Error::Weight`] and [`Error::Graph`] as in [`Model::new`] and [`Model::check_finite`].
pub fn load(path: &Path, device: &Device) -> Result<(Model, Meta), Error> {
    let (tensors, metadata) = load_tensors(path, device)?;
    let meta = Meta::read(path, &metadata)?;
    let named = |e: Error| Error::file(path, e);
    let model = Model::new(meta.graph.clone(), tensors).map_err(named)?;
    model.check_finite().map_err(named)?;
    Ok((model, meta))
}
