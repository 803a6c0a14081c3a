//! A checkpoint that stays on disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::TensorInfo;

use super::header::{Damage, Header, dtype};
use super::meta::Meta;
use super::tensors::damaged;
use crate::weights::fits;
use crate::{At, Error};

/// A checkpoint on disk whose weights are read one at a time, for networks that do not fit into
/// memory. The file stays open, so a checkpoint that replaces it in the meantime changes nothing.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: Mutex<File>,
    /// Its length, and when it was last written to.
    state: (u64, Option<SystemTime>),
    meta: Meta,
    header: Header,
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
        let header = Header::read(&mut file).map_err(|damage| match damage {
            Damage::Io(error) => Error::Io { path: path.to_path_buf(), error },
            Damage::Size { .. } => damaged(path, &Damage::Truncated),
            other => damaged(path, &other),
        })?;
        let meta = Meta::read(path, &header.metadata())?;
        let tensors = header.metadata.tensors();
        let mut found = BTreeMap::new();
        for (name, info) in &tensors {
            let dtype = known(name, info).map_err(|e| Error::file(path, e))?;
            found.insert(name.as_str(), (info.shape.as_slice(), dtype));
        }
        fits(&meta.graph, &found).map_err(|e| Error::file(path, e))?;
        Ok(Self { path: path.to_path_buf(), file: Mutex::new(file), state, meta, header })
    }

    /// What the checkpoint holds besides the weights.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The names of all weights, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.header.metadata.tensors().into_keys().collect();
        names.sort();
        names
    }

    /// Reads one weight, onto the CPU.
    ///
    /// # Errors
    /// [`Error::Weight`] if there is none of this name, [`Error::File`] if the file cannot be read
    /// or was written to since it was opened.
    pub fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        let info =
            self.header.metadata.info(name).ok_or_else(|| Error::weight(name, "is missing"))?;
        let (from, to) = info.data_offsets;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = vec![0; to - from];
        let read = file
            .seek(SeekFrom::Start(self.header.start + from as u64))
            .and_then(|_| file.read_exact(&mut bytes));
        if state(&file).at(&self.path)? != self.state {
            let what = "has changed since it was opened; start again when nothing writes to it";
            return Err(Error::file(&self.path, what));
        }
        read.at(&self.path)?;
        let dtype = known(name, info).map_err(|e| Error::file(&self.path, e))?;
        Ok(Tensor::from_raw_buffer(&bytes, dtype, &info.shape, &Device::Cpu)?)
    }
}

/// The type of a tensor that is computed with.
///
/// # Errors
/// [`Error::Weight`] if it is of another, or of a shape whose sizes have no product.
pub(super) fn known(name: &str, info: &TensorInfo) -> Result<DType, Error> {
    if info.shape.iter().try_fold(1usize, |n, d| n.checked_mul((*d).max(1))).is_none() {
        return Err(Error::weight(name, format!("has the shape {:?}", info.shape)));
    }
    let what = || format!("is of the type {}, which is not computed with", info.dtype);
    dtype(info.dtype).ok_or_else(|| Error::weight(name, what()))
}

/// The length of a file, and when it was last written to, where the system says so.
fn state(file: &File) -> std::io::Result<(u64, Option<SystemTime>)> {
    let found = file.metadata()?;
    Ok((found.len(), found.modified().ok()))
}
