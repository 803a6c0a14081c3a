//! One file that is a network: safetensors whose metadata key `lipschitz` holds graph, config,
//! tokenizer and provenance.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::Metadata;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::fits;
use crate::{At, Error, Graph, Model, Weights, strict};

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
    /// For an imported model: which one it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// Whose function an imported model computes, where candle and the library it comes from differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// That of the library it comes from.
    #[default]
    Original,
    /// That of candle's model of the family.
    Candle,
}

/// Where an imported model comes from, and what is to be known about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The family, as its config spells it.
    pub family: String,
    /// Whose function it is.
    pub dialect: Dialect,
    /// What the function leaves out or takes for granted, in words.
    pub notes: Vec<String>,
    /// Tensors that nothing is known about, which were left out because it was asked for.
    pub unused: Vec<String>,
}

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

/// Writes a file by way of a new one beside it, so that a crash or a full disk leaves the old one
/// whole. A link is followed, and what is no file, such as a pipe, is written into.
///
/// # Errors
/// [`Error::File`] names the path and what the system said.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    // These stand for a file that others write to as well, which must not be replaced.
    match path.to_str() {
        Some("/dev/stdout") => return std::io::stdout().write_all(bytes).at(path),
        Some("/dev/stderr") => return std::io::stderr().write_all(bytes).at(path),
        _ => {}
    }
    // A link may point to what is not there yet.
    let pointed = |to: PathBuf| path.parent().map(|directory| directory.join(&to)).unwrap_or(to);
    let target = path.canonicalize().or_else(|_| std::fs::read_link(path).map(pointed));
    let target = target.unwrap_or_else(|_| path.to_path_buf());
    let path = target.as_path();
    if path.metadata().is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        return File::options()
            .write(true)
            .open(path)
            .and_then(|mut pipe| pipe.write_all(bytes))
            .at(path);
    }
    let name = path.file_name().ok_or_else(|| Error::file(path, "is not the name of a file"))?;
    let fresh = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
    let written = File::create(&fresh)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    if let Err(error) = written.and_then(|()| std::fs::rename(&fresh, path)) {
        let _ = std::fs::remove_file(&fresh);
        return Err(Error::Io { path: path.to_path_buf(), error });
    }
    Ok(())
}

/// Reads a checkpoint of this project onto a device; the weights are checked to be finite.
///
/// # Errors
/// [`Error::File`] if the file is missing, truncated, or not a checkpoint of this project;
/// [`Error::Weight`] and [`Error::Graph`] as in [`Model::new`] and [`Model::check_finite`].
pub fn load(path: &Path, device: &Device) -> Result<(Model, Meta), Error> {
    let (tensors, metadata) = load_tensors(path, device)?;
    let meta = meta(path, &metadata)?;
    let named = |e: Error| Error::file(path, e);
    let model = Model::new(meta.graph.clone(), tensors).map_err(named)?;
    model.check_finite().map_err(named)?;
    Ok((model, meta))
}

/// What the metadata of a safetensors file says.
fn meta(path: &Path, metadata: &HashMap<String, String>) -> Result<Meta, Error> {
    let json = metadata.get(KEY).ok_or_else(|| {
        Error::file(
            path,
            format!(
                "has no `{KEY}` metadata, so it is not a checkpoint of this project; import \
                     it first"
            ),
        )
    })?;
    let unreadable = |e| Error::file(path, format!("its metadata cannot be read: {e}"));
    let meta: Meta = serde_json::from_str(json).map_err(unreadable)?;
    if meta.format != FORMAT {
        let found = meta.format;
        return Err(Error::file(
            path,
            format!("has format {found}, this version reads {FORMAT}; update the tool"),
        ));
    }
    // A key of the graph that is passed over could be another function.
    let raw: serde_json::Value = serde_json::from_str(json).map_err(unreadable)?;
    strict::known(raw.get("graph").unwrap_or(&raw), &meta.graph).map_err(unreadable)?;
    Ok(meta)
}

fn damaged(path: &Path, what: &dyn std::fmt::Display) -> Error {
    Error::file(
        path,
        format!(
            "is not a whole safetensors file ({what}); it may be truncated, fetch or write it again"
        ),
    )
}

/// The format's own limit, in bytes.
const LARGEST_HEADER: u64 = 100_000_000;

/// A checkpoint on disk whose weights are read one at a time, for networks that do not fit into
/// memory. The file stays open, so a checkpoint that replaces it in the meantime changes nothing.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: Mutex<File>,
    /// Its length, and when it was last written to.
    state: (u64, Option<SystemTime>),
    meta: Meta,
    header: Metadata,
    /// Where the tensors' bytes begin.
    start: u64,
}

impl Reader {
    /// Opens a checkpoint: reads its metadata, and checks that its weights are those of its graph.
    ///
    /// # Errors
    /// [`Error::File`] if the file is missing, truncated, or not a checkpoint of this project, or
    /// its weights do not fit.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut file = File::open(path).at(path)?;
        let state = state(&file).at(path)?;
        let (length, _) = state;
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(|_| damaged(path, &"the file ends in its header"))?;
        let size = u64::from_le_bytes(size);
        if size > length.saturating_sub(8).min(LARGEST_HEADER) {
            return Err(damaged(path, &"the file ends in its header"));
        }
        let mut bytes = Vec::new();
        (&file).take(size).read_to_end(&mut bytes).at(path)?;
        let header: Metadata = serde_json::from_slice(&bytes).map_err(|e| damaged(path, &e))?;
        let (start, wanted) = (8 + size, header.data_len() as u64);
        if start + wanted != length {
            return Err(damaged(
                path,
                &format!("it has {length} bytes, its header wants {}", start + wanted),
            ));
        }
        let meta = meta(path, &header.metadata().clone().unwrap_or_default())?;
        let tensors = header.tensors();
        let mut found = BTreeMap::new();
        for (name, info) in &tensors {
            let dtype = DType::try_from(info.dtype).map_err(|e| Error::file(path, e))?;
            found.insert(name.as_str(), (info.shape.as_slice(), dtype));
        }
        fits(&meta.graph, &found).map_err(|e| Error::file(path, e))?;
        Ok(Self { path: path.to_path_buf(), file: Mutex::new(file), state, meta, header, start })
    }

    /// What the checkpoint holds beside the weights.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The names of all weights, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.header.tensors().into_keys().collect();
        names.sort();
        names
    }

    /// Reads one weight, onto the CPU.
    ///
    /// # Errors
    /// [`Error::Weight`] if there is none of this name, [`Error::File`] if the file cannot be read
    /// or was written to since it was opened.
    pub fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        let info = self.header.info(name).ok_or_else(|| Error::weight(name, "is missing"))?;
        let (from, to) = info.data_offsets;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = vec![0; to - from];
        let read = file
            .seek(SeekFrom::Start(self.start + from as u64))
            .and_then(|_| file.read_exact(&mut bytes));
        if state(&file).at(&self.path)? != self.state {
            let what = "has changed since it was opened; start again when nothing writes to it";
            return Err(Error::file(&self.path, what));
        }
        read.at(&self.path)?;
        let dtype = DType::try_from(info.dtype).map_err(|e| Error::file(&self.path, e))?;
        Ok(Tensor::from_raw_buffer(&bytes, dtype, &info.shape, &Device::Cpu)?)
    }
}

/// The length of a file, and when it was last written to, where the system says so.
fn state(file: &File) -> std::io::Result<(u64, Option<SystemTime>)> {
    let found = file.metadata()?;
    Ok((found.len(), found.modified().ok()))
}

/// Reads the tensors and metadata of a safetensors file.
///
/// # Errors
/// [`Error::File`] if the file is missing or damaged.
pub fn load_tensors(
    path: &Path,
    device: &Device,
) -> Result<(Weights, HashMap<String, String>), Error> {
    let bytes = std::fs::read(path).at(path)?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(path, &e))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let tensors = candle_core::safetensors::load_buffer(&bytes, device)
        .map_err(|e| damaged(path, &Error::from(e)))?;
    Ok((tensors.into_iter().collect(), metadata))
}
