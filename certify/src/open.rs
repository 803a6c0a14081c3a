//! MODEL on the command line: a run directory or a checkpoint.

use std::path::{Path, PathBuf};

use candle_core::Device;
use lipschitz_nn::Model;
use lipschitz_nn::checkpoint::{self, Meta, Reader};

use crate::Error;

/// The checkpoint that `path` means: itself, or the `model.safetensors` of a run directory.
///
/// # Errors
/// [`Error::Network`] if there is none.
pub fn checkpoint_path(path: &Path) -> Result<PathBuf, Error> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let file = path.join("model.safetensors");
    if !file.exists() {
        let what = if path.join("config.json").exists() {
            "is a Hugging Face model; this version reads checkpoints of this project alone"
        } else {
            "holds no model.safetensors; give a run directory that trained to its end, or a checkpoint"
        };
        return Err(lipschitz_nn::Error::file(path, what).into());
    }
    Ok(file)
}

/// Reads the model that `path` means.
///
/// # Errors
/// As [`checkpoint::load`].
pub fn open(path: &Path, device: &Device) -> Result<(Model, Meta), Error> {
    Ok(checkpoint::load(&checkpoint_path(path)?, device)?)
}

/// Opens the checkpoint that `path` means, to read it a tensor at a time.
///
/// # Errors
/// As [`Reader::open`].
pub fn read(path: &Path) -> Result<Reader, Error> {
    Ok(Reader::open(&checkpoint_path(path)?)?)
}
