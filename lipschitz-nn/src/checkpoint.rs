//! One file that is a network: safetensors whose metadata key `lipschitz` holds graph, config, tokenizer and provenance.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Error, Graph, Model, Weights};

/// The format version of a checkpoint's metadata.
pub const FORMAT: u32 = 1;

/// The metadata key.
pub const KEY: &str = "lipschitz";

/// What a checkpoint holds beside the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Format version, [`FORMAT`].
    pub format: u32,
    /// The network.
    pub graph: Graph,
    /// The configuration of the run that trained it, or null.
    #[serde(default)]
    pub config: serde_json::Value,
    /// How text becomes token ids, for language models.
    #[serde(default)]
    pub tokenizer: Option<Tokenizer>,
    /// Where it comes from.
    #[serde(default)]
    pub provenance: Provenance,
}

/// How text becomes token ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Tokenizer {
    /// Token i is the i-th character.
    Characters {
        /// The characters in order.
        characters: String,
    },
    /// A `tokenizer.json` of the tokenizers library.
    Json {
        /// Its content.
        json: serde_json::Value,
    },
}

/// Where a checkpoint comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of the program that wrote it.
    pub version: String,
    /// Seed of the run.
    pub seed: Option<u64>,
    /// SHA-256 of the training data.
    pub data_digest: Option<String>,
    /// Steps trained.
    pub step: Option<u64>,
}

/// Writes a checkpoint; a file already at `path` is replaced in one step, when the new one is complete on disk.
///
/// # Errors
/// [`Error::File`] names the path and what the system said.
pub fn save(path: &Path, model: &Model, meta: &Meta) -> Result<(), Error> {
    let json = serde_json::to_string(meta).map_err(|e| Error::file(path, e))?;
    let weights = model.weights().iter().map(|(name, w)| (name.as_str(), w.clone()));
    save_tensors(path, weights, Some(HashMap::from([(KEY.to_string(), json)])))
}

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

/// Writes a file by way of a new one beside it, so that a crash or a full disk leaves the old one whole.
///
/// # Errors
/// [`Error::File`] names the path and what the system said.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let io = |e: std::io::Error| Error::io(path, &e);
    let name = path.file_name().ok_or_else(|| Error::file(path, "is not the name of a file"))?;
    let fresh = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
    let written =
        std::fs::File::create(&fresh).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    if let Err(error) = written.and_then(|()| std::fs::rename(&fresh, path)) {
        let _ = std::fs::remove_file(&fresh);
        return Err(io(error));
    }
    Ok(())
}

/// Reads a checkpoint of this project onto a device; the weights are checked to be finite.
///
/// # Errors
/// [`Error::File`] if the file is missing, truncated, or not a checkpoint of this project; [`Error::Weight`] and
/// [`Error::Graph`] as in [`Model::new`] and [`Model::check_finite`].
pub fn load(path: &Path, device: &Device) -> Result<(Model, Meta), Error> {
    let (tensors, metadata) = load_tensors(path, device)?;
    let json = metadata.get(KEY).ok_or_else(|| {
        Error::file(
            path,
            format!("has no `{KEY}` metadata, so it is not a checkpoint of this project; import it first"),
        )
    })?;
    let meta: Meta =
        serde_json::from_str(json).map_err(|e| Error::file(path, format!("its metadata cannot be read: {e}")))?;
    if meta.format != FORMAT {
        let found = meta.format;
        return Err(Error::file(path, format!("has format {found}, this version reads {FORMAT}; update the tool")));
    }
    let named = |e: Error| Error::file(path, e);
    let model = Model::new(meta.graph.clone(), tensors).map_err(named)?;
    model.check_finite().map_err(named)?;
    Ok((model, meta))
}

/// Reads the tensors and metadata of a safetensors file.
///
/// # Errors
/// [`Error::File`] if the file is missing or damaged.
pub fn load_tensors(path: &Path, device: &Device) -> Result<(Weights, HashMap<String, String>), Error> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, &e))?;
    let damaged = |e: &dyn std::fmt::Display| {
        Error::file(
            path,
            format!("is not a whole safetensors file ({e}); it may be truncated, fetch or write it again"),
        )
    };
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| damaged(&e))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let tensors = candle_core::safetensors::load_buffer(&bytes, device).map_err(|e| damaged(&Error::from(e)))?;
    Ok((tensors.into_iter().collect(), metadata))
}
