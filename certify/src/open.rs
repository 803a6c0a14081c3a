//! MODEL on the command line: a run directory, a checkpoint, or a third-party model.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use lipschitz_import::{Foreign, ImportOptions, Imported, import, is_foreign};
use lipschitz_nn::checkpoint::{self, Meta, Origin, Reader};
use lipschitz_nn::{Graph, Model};

use crate::Error;
use crate::source::Source;

/// The checkpoint at `path`: the file itself, or the `model.safetensors` of a run directory.
///
/// # Errors
/// [`Error::Network`] if there is none.
pub fn checkpoint_path(path: &Path) -> Result<PathBuf, Error> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let file = path.join("model.safetensors");
    if !file.exists() {
        let unfinished = path.join("checkpoint");
        if unfinished.join("model.safetensors").exists() {
            let what = format!(
                "is a run that has not ended; `train run … --resume` goes on with it, and {} is its \
                 last checkpoint",
                unfinished.display()
            );
            return Err(lipschitz_nn::Error::file(path, what).into());
        }
        let what = "holds no model.safetensors; give the directory of a finished run, a \
                    checkpoint, or a directory with a config.json";
        return Err(lipschitz_nn::Error::file(path, what).into());
    }
    Ok(file)
}

/// Reads the model at `path`. A third-party model is imported with default options.
///
/// # Errors
/// As [`checkpoint::load`] and [`import`].
pub fn load(path: &Path, device: &Device) -> Result<(Model, Meta), Error> {
    if is_foreign(path) {
        let Imported { model, meta, .. } = import(path, &ImportOptions::default())?;
        let dtype = model.dtype();
        return Ok((model.to(device, dtype)?, meta));
    }
    Ok(checkpoint::load(&checkpoint_path(path)?, device)?)
}

/// A model whose weights are read one at a time.
#[derive(Debug)]
pub enum Opened {
    /// A checkpoint of this project, on disk.
    Checkpoint(Box<Reader>),
    /// A third-party model, on disk.
    Foreign(Box<Foreign>),
}

/// Opens the model at `path`, to read it one tensor at a time.
///
/// # Errors
/// As [`Reader::open`] and [`Foreign::open`].
pub fn open(path: &Path) -> Result<Opened, Error> {
    if is_foreign(path) {
        return Ok(Opened::Foreign(Box::new(Foreign::open(path, &ImportOptions::default())?)));
    }
    Ok(Opened::Checkpoint(Box::new(Reader::open(&checkpoint_path(path)?)?)))
}

impl Opened {
    /// Everything except the weights.
    pub fn meta(&self) -> &Meta {
        match self {
            Self::Checkpoint(reader) => reader.meta(),
            Self::Foreign(foreign) => foreign.meta(),
        }
    }
}

impl Source for Opened {
    fn graph(&self) -> &Graph {
        &self.meta().graph
    }

    fn names(&self) -> Vec<String> {
        match self {
            Self::Checkpoint(reader) => Source::names(&**reader),
            Self::Foreign(foreign) => foreign.names(),
        }
    }

    fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        match self {
            Self::Checkpoint(reader) => Source::tensor(&**reader, name),
            Self::Foreign(foreign) => Ok(foreign.tensor(name)?),
        }
    }

    fn origin(&self) -> Option<&Origin> {
        self.meta().provenance.origin.as_ref()
    }
}
