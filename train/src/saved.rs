//! What a run is resumed from: the directory `checkpoint/`.
//!
//! It holds `model.safetensors`, `optimizer.safetensors` (the state of optimizer and constraint),
//! and, written last, `state.json`: where the run is, the digests of the other two, and one of
//! itself. So neither a damaged file nor one of another run is taken for the run's own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use lipschitz_nn::checkpoint::{self, Meta};
use lipschitz_nn::{At, Model, kind};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;
use crate::error::Within;

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
/// Where runs had their position before there was a `state.json`.
const OLD_POSITION: &str = "position";

/// Where a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Updates so far.
    pub step: u64,
    /// Seconds spent.
    pub seconds: f64,
    /// Lines of `metrics.jsonl` so far, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<u64>,
    /// The weights with the lowest validation loss so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// Changes of `train.steps` that changed the learning rates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub step_changes: Vec<StepChange>,
}

/// The weights with the lowest validation loss so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// After this many updates.
    pub step: u64,
    /// Mean cross-entropy on the whole held-out split, nats.
    pub val_loss: f64,
    /// SHA-256 of `best.safetensors`, in hexadecimal.
    pub digest: String,
}

/// Another `train.steps` from here on, under a schedule that depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepChange {
    /// After this many updates.
    pub step: u64,
    /// What `train.steps` was.
    pub from: u64,
    /// What it is since.
    pub to: u64,
}

/// `state.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    state: State,
    /// SHA-256 of `state` as compact JSON.
    digest: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    position: Position,
    /// SHA-256 of the file with the weights.
    model: String,
    /// SHA-256 of the file with the state of optimizer and constraint.
    optimizer: String,
}

#[derive(Deserialize)]
struct OldPosition {
    step: u64,
    seconds: f64,
}

/// What a run is resumed from.
pub struct SavedRun {
    /// Its directory.
    pub directory: PathBuf,
    /// The weights.
    pub model: Model,
    /// What is saved with them: config, tokenizer, data.
    pub meta: Meta,
    /// State of optimizer and constraint.
    pub state: BTreeMap<String, Tensor>,
    /// Where the run is.
    pub position: Position,
    /// Whether digests have shown that the files are whole and belong together; there are none in
    /// checkpoints of earlier versions.
    pub checked: bool,
}

/// Replaces `checkpoint/` of the run in `path`; the old one is there until the new one is whole, on
/// disk. The best weights get their digest, if these are they.
///
/// # Errors
/// If the disk is full, for example; the old checkpoint is untouched then.
pub(crate) fn save(
    path: &Path,
    model: &Model,
    state: &BTreeMap<String, Tensor>,
    meta: &Meta,
    position: &mut Position,
) -> Result<(), Error> {
    let [current, fresh, old] =
        ["checkpoint", "checkpoint.new", "checkpoint.old"].map(|n| path.join(n));
    remove(&fresh)?;
    fs::create_dir(&fresh).at(&fresh)?;
    if let Err(error) = fill(&fresh, model, state, meta, position) {
        // Half a checkpoint is of no use, and takes room where there may be none.
        let _ = fs::remove_dir_all(&fresh);
        return Err(error);
    }
    // After a crash between the two renames below, the old one is all there is.
    if current.exists() {
        remove(&old)?;
        fs::rename(&current, &old).at(&current)?;
    }
    fs::rename(&fresh, &current).at(&fresh)?;
    // The names are on disk before what they replace is gone.
    checkpoint::sync(path).at(path)?;
    remove(&old)
}

/// After a crash between the two renames of [`save`], gives the old checkpoint its name back.
pub(crate) fn finish_replacement(path: &Path) -> Result<(), Error> {
    let [current, old] = ["checkpoint", "checkpoint.old"].map(|n| path.join(n));
    match !current.exists() && old.exists() {
        true => Ok(fs::rename(&old, &current).at(&old)?),
        false => Ok(()),
    }
}

fn remove(directory: &Path) -> Result<(), Error> {
    match directory.exists() {
        true => Ok(fs::remove_dir_all(directory).at(directory)?),
        false => Ok(()),
    }
}

/// Writes the files of a checkpoint.
fn fill(
    directory: &Path,
    model: &Model,
    state: &BTreeMap<String, Tensor>,
    meta: &Meta,
    position: &mut Position,
) -> Result<(), Error> {
    let [model_file, optimizer_file] = [MODEL, OPTIMIZER].map(|name| directory.join(name));
    checkpoint::save(&model_file, model, meta)?;
    let tensors = state.iter().map(|(name, t)| (name.as_str(), t.clone()));
    checkpoint::save_tensors(&optimizer_file, tensors, None)?;
    let (model, optimizer) = (digest(&model_file)?, digest(&optimizer_file)?);
    if let Some(best) = position.best.as_mut().filter(|best| best.step == position.step) {
        best.digest.clone_from(&model);
    }
    let state = State { position: position.clone(), model, optimizer };
    let sealed = Sealed { digest: seal(&state)?, state };
    Ok(checkpoint::write(&directory.join(STATE), serde_json::to_string(&sealed)?.as_bytes())?)
}

/// The last checkpoint of the run in a directory, if it has one.
///
/// # Errors
/// [`Error::NotAsSaved`] if a file of it is damaged or another run's.
pub fn load(path: &Path, device: &Device) -> Result<Option<SavedRun>, Error> {
    // A crash between the two renames of `save` leaves the old one alone.
    let Some(directory) =
        ["checkpoint", "checkpoint.old"].map(|n| path.join(n)).into_iter().find(|d| d.exists())
    else {
        return Ok(None);
    };
    let [model_file, optimizer_file, state_file] =
        [MODEL, OPTIMIZER, STATE].map(|name| directory.join(name));
    let sealed = state_file.exists().then(|| read(&state_file)).transpose()?;
    if let Some(sealed) = &sealed {
        for (file, wanted) in [(&model_file, &sealed.model), (&optimizer_file, &sealed.optimizer)] {
            if digest(file)? != *wanted {
                return Err(Error::NotAsSaved(file.clone()));
            }
        }
    }
    let (model, meta) = checkpoint::load(&model_file, device)?;
    let (state, metadata) = checkpoint::load_tensors(&optimizer_file, device)?;
    let checked = sealed.is_some();
    let position = match sealed {
        Some(sealed) => sealed.position,
        None => {
            let old = metadata.get(OLD_POSITION).ok_or(Error::NotAsSaved(state_file))?;
            let OldPosition { step, seconds } =
                serde_json::from_str(old).within(optimizer_file.display())?;
            Position { step, seconds, ..Position::default() }
        }
    };
    // The weights say of themselves how old they are.
    if meta.provenance.step != Some(position.step) {
        return Err(Error::NotAsSaved(directory));
    }
    Ok(Some(SavedRun { directory, model, meta, state, position, checked }))
}

/// The file with the weights of a checkpoint.
pub(crate) fn weights(directory: &Path) -> PathBuf {
    directory.join(MODEL)
}

/// `state.json`, if it is what was written.
fn read(path: &Path) -> Result<State, Error> {
    kind::no_device(path)?;
    let bytes = fs::read(path).at(path)?;
    let damaged = || Error::NotAsSaved(path.to_path_buf());
    let sealed: Sealed = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
    match seal(&sealed.state)? == sealed.digest {
        true => Ok(sealed.state),
        false => Err(damaged()),
    }
}

fn seal(state: &State) -> Result<String, Error> {
    Ok(hex::encode(Sha256::digest(serde_json::to_vec(state)?)))
}

/// SHA-256 of a file, in hexadecimal.
pub(crate) fn digest(path: &Path) -> Result<String, lipschitz_nn::Error> {
    let mut file = File::open(path).at(path)?;
    let (mut hash, mut part) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut part).at(path)? {
            0 => return Ok(hex::encode(hash.finalize())),
            read => hash.update(&part[..read]),
        }
    }
}
