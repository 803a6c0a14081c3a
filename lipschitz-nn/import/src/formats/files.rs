//! The tensors of third-party files: where each one lies. Every format ends in raw little-endian
//! numbers at an offset, so reading an index is all that a format needs.
//!
//! Files are not trusted: an index is no larger than its file, shapes are multiplied with checks,
//! and every tensor must lie inside the file before any memory is taken for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use candle_core::{DType, Device, Tensor};

use super::{archive, torch};
use lipschitz_nn::checkpoint::{Damage, Entry, Header};
use lipschitz_nn::{At, Error};

/// A tensor on disk.
#[derive(Clone, Debug)]
pub(crate) struct Info {
    pub shape: Vec<usize>,
    /// None for a type that no weight has, such as booleans.
    pub dtype: Option<DType>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    File {
        file: usize,
        offset: u64,
        bytes: u64,
    },
    /// Unpacked already.
    Memory(Tensor),
}

/// The tensors of one or several files, by name.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Each with the time of its last change: what is read later must be what was read before.
    paths: Vec<(PathBuf, Option<SystemTime>)>,
    tensors: BTreeMap<String, Info>,
}

impl Files {
    /// The weights of a Hugging Face directory: one file, or those that an index names.
    pub(crate) fn of_directory(directory: &Path) -> Result<Self, Error> {
        for (single, index) in [
            ("model.safetensors", "model.safetensors.index.json"),
            ("pytorch_model.bin", "pytorch_model.bin.index.json"),
        ] {
            let single = directory.join(single);
            if single.exists() {
                return Self::of_file(&single);
            }
            let index = directory.join(index);
            if index.exists() {
                return Self::of_shards(directory, &index);
            }
        }
        Err(Error::file(
            directory,
            "holds neither model.safetensors nor pytorch_model.bin, nor an index of shards",
        ))
    }

    /// The tensors of a `.safetensors` file, of a zip archive of PyTorch, or of a `.npz`.
    pub(crate) fn of_file(path: &Path) -> Result<Self, Error> {
        let mut files = Self::default();
        files.add(path)?;
        Ok(files)
    }

    /// Tensors that are in memory.
    pub(crate) fn of_tensors(tensors: Vec<(String, Tensor)>) -> Self {
        let info = |t: Tensor| Info {
            shape: t.dims().to_vec(),
            dtype: Some(t.dtype()),
            place: Place::Memory(t),
        };
        Self {
            paths: Vec::new(),
            tensors: tensors.into_iter().map(|(name, t)| (name, info(t))).collect(),
        }
    }

    fn of_shards(directory: &Path, index: &Path) -> Result<Self, Error> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = std::fs::read_to_string(index).at(index)?;
        let Index { weight_map } = serde_json::from_str(&text)
            .map_err(|e| Error::file(index, format!("is no index of shards: {e}")))?;
        let mut files = Self::default();
        for shard in weight_map.values().collect::<BTreeSet<_>>() {
            if Path::new(shard).file_name() != Some(std::ffi::OsStr::new(shard)) {
                return Err(Error::file(
                    index,
                    format!("names the shard `{shard}`, which is not a file beside it"),
                ));
            }
            files.add(&directory.join(shard))?;
        }
        if let Some(name) = weight_map.keys().find(|name| !files.tensors.contains_key(*name)) {
            return Err(Error::file(
                index,
                format!("names the tensor `{name}`, which no shard holds"),
            ));
        }
        Ok(files)
    }

    fn add(&mut self, path: &Path) -> Result<(), Error> {
        let mut start = [0; 4];
        let mut file = File::open(path).at(path)?;
        let length = file.metadata().at(path)?.len();
        file.read_exact(&mut start)
            .map_err(|_| Error::file(path, "is empty or truncated; fetch it again"))?;
        let npz = path.extension().is_some_and(|e| e == "npz");
        let entries = match (&start, npz) {
            (b"PK\x03\x04", true) => archive::arrays(path)?,
            (b"PK\x03\x04", false) => torch::tensors(path)?,
            (b"\x80\x02\x8a\x0a", _) => {
                let what = "was saved by a PyTorch before 1.6; load it there and save it again \
                            with torch.save";
                return Err(Error::file(path, what));
            }
            _ => {
                file.rewind().at(path)?;
                safetensors(path, &mut file)?
            }
        };
        self.insert(path, length, entries)
    }

    /// WeightMap the entries of one file, each checked to lie inside it.
    pub(crate) fn insert(
        &mut self,
        path: &Path,
        length: u64,
        entries: Vec<Entry>,
    ) -> Result<(), Error> {
        let mut total = 0u64;
        for Entry { name, shape, dtype, offset, bytes } in entries {
            let wanted = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
            let wanted = wanted.and_then(|n| n.checked_mul(dtype.map_or(1, |d| d.size_in_bytes())));
            let fits = offset.checked_add(bytes).is_some_and(|end| end <= length);
            match wanted {
                Some(wanted) if fits && (dtype.is_none() || wanted as u64 == bytes) => {}
                _ => {
                    let what = format!(
                        "has the tensor `{name}` of shape {shape:?} in {bytes} bytes at {offset}"
                    );
                    return Err(Error::file(
                        path,
                        format!("{what}, which its {length} bytes do not hold"),
                    ));
                }
            }
            total = total.saturating_add(bytes);
            let name = legacy(name);
            let info =
                Info { shape, dtype, place: Place::File { file: self.paths.len(), offset, bytes } };
            if self.tensors.insert(name.clone(), info).is_some() {
                return Err(Error::file(
                    path,
                    format!("has the tensor `{name}`, which there is already"),
                ));
            }
        }
        // Tied weights share their bytes; more sharing than that would take more memory than the
        // file has bytes.
        if total > length.saturating_mul(2) {
            return Err(Error::file(
                path,
                format!("has tensors of {total} bytes in a file of {length}"),
            ));
        }
        let changed = std::fs::metadata(path).and_then(|file| file.modified()).ok();
        self.paths.push((path.to_path_buf(), changed));
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.tensors.len()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Info> {
        self.tensors.get(name)
    }

    /// Whether the name of some tensor starts with this.
    pub(crate) fn below(&self, prefix: &str) -> bool {
        self.tensors
            .range(prefix.to_string()..)
            .next()
            .is_some_and(|(name, _)| name.starts_with(prefix))
    }

    /// `prefix` if tensors have it, nothing otherwise: a base model saves its tensors without one.
    pub(crate) fn prefix<'a>(&self, prefix: &'a str) -> &'a str {
        if self.below(prefix) { prefix } else { "" }
    }

    /// Whether two tensors hold the same numbers, bit for bit.
    pub(crate) fn equal(&self, a: &str, b: &str) -> Result<bool, Error> {
        let (Some(first), Some(second)) = (self.get(a), self.get(b)) else { return Ok(false) };
        if first.shape != second.shape || first.dtype != second.dtype {
            return Ok(false);
        }
        const PIECE: usize = 1 << 20;
        let (a, b) = (self.read(a)?.flatten_all()?, self.read(b)?.flatten_all()?);
        let count = a.elem_count();
        // Widening keeps every number, and no two numbers become one.
        let bits = |x: &Tensor, from: usize| -> Result<Vec<u64>, Error> {
            let piece = x.narrow(0, from, PIECE.min(count - from))?.to_dtype(DType::F64)?;
            Ok(piece.to_vec1::<f64>()?.into_iter().map(f64::to_bits).collect())
        };
        for from in (0..count).step_by(PIECE) {
            if bits(&a, from)? != bits(&b, from)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads a tensor onto the CPU.
    pub(crate) fn read(&self, name: &str) -> Result<Tensor, Error> {
        let info = self.get(name).ok_or_else(|| Error::weight(name, "is missing"))?;
        let (file, offset, bytes) = match &info.place {
            Place::Memory(tensor) => return Ok(tensor.clone()),
            Place::File { file, offset, bytes } => (*file, *offset, *bytes),
        };
        let (path, changed) = &self.paths[file];
        let dtype =
            info.dtype.ok_or_else(|| Error::weight(name, "has a type that no weight can have"))?;
        let mut file = File::open(path).at(path)?;
        if file.metadata().and_then(|file| file.modified()).ok() != *changed {
            return Err(Error::file(
                path,
                "has changed since it was opened; start again when nothing writes to it",
            ));
        }
        file.seek(SeekFrom::Start(offset)).at(path)?;
        let mut bytes = vec![0; bytes as usize];
        file.read_exact(&mut bytes).at(path)?;
        Ok(Tensor::from_raw_buffer(&bytes, dtype, &info.shape, &Device::Cpu)?)
    }
}

/// Old checkpoints of BERT call gain and shift of a norm gamma and beta.
fn legacy(name: String) -> String {
    match name.rsplit_once("LayerNorm.") {
        Some((start, "gamma")) => format!("{start}LayerNorm.weight"),
        Some((start, "beta")) => format!("{start}LayerNorm.bias"),
        _ => name,
    }
}

fn safetensors(path: &Path, file: &mut File) -> Result<Vec<Entry>, Error> {
    let header = Header::read(file).map_err(|damage| match damage {
        Damage::Io(error) => Error::Io { path: path.to_path_buf(), error },
        other => {
            Error::file(path, format!("is not a whole safetensors file ({other}); fetch it again"))
        }
    })?;
    Ok(header.entries())
}
