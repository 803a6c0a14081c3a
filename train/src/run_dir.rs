//! The directory of a run: metrics that grow, checkpoints that are replaced in one step.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use lipschitz_certify::upper::Upper;
use lipschitz_nn::checkpoint::{self, Meta};
use lipschitz_nn::{At, Model};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::config::Config;
use crate::dynamics::MatrixMetrics;
use crate::error::Within;
use crate::step::Times;

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Updates so far.
    pub step: u64,
    /// Tokens or images seen.
    pub tokens: u64,
    /// Seconds since the start, over all parts of a resumed run.
    pub seconds: f64,
    /// Mean cross-entropy of the step's batch, nats.
    pub train_loss: Option<f64>,
    /// Mean cross-entropy on the whole held-out split, nats.
    pub val_loss: Option<f64>,
    /// Share of held-out predictions whose largest logit is right.
    pub val_accuracy: Option<f64>,
    /// log10 of the certified constant, RMS → RMS; null if none is finite.
    #[serde(default)]
    pub lipschitz_log10: Option<f64>,
    /// The same number under its former name, which in `summary.json` is that of the constant
    /// itself.
    pub lipschitz: Option<f64>,
    /// ℓ2 norm of the gradient.
    pub grad_norm: Option<f64>,
    /// Largest absolute value of any node's output on up to eight of the step's inputs, after the
    /// step.
    pub activation_max: Option<f64>,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// Seconds in each part of the steps since the last line.
    #[serde(default)]
    pub times: Option<Times>,
    /// Each matrix by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub matrices: BTreeMap<String, MatrixMetrics>,
}

/// The results of a run: `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Name in tables and plots.
    pub label: String,
    /// Optimizer and constraint.
    pub method: String,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: String,
    /// The constraint.
    #[serde(default)]
    pub constraint: String,
    /// Seeded initialisation and data order.
    #[serde(default)]
    pub seed: u64,
    /// Peak learning rate.
    #[serde(default)]
    pub learning_rate: f64,
    /// The Lipschitz constant asked for, RMS → RMS.
    pub target: Option<f64>,
    /// The cap on every matrix.
    pub sigma_max: Option<f64>,
    /// Updates so far.
    pub steps: u64,
    /// Seconds spent.
    pub seconds: f64,
    /// Number of parameters.
    pub parameters: usize,
    /// Mean cross-entropy on the whole held-out split, nats.
    pub val_loss: f64,
    /// Share of held-out predictions that are right.
    pub val_accuracy: f64,
    /// The certified constant, RMS → RMS.
    pub lipschitz: Upper,
    /// Its log10, for plots; null if it is not finite.
    pub lipschitz_log10: Option<f64>,
    /// log10 of the largest sensitivity found, RMS → RMS.
    pub found_log10: Option<f64>,
    /// Median over held-out predictions of the largest logit less the next.
    #[serde(default)]
    pub median_margin: Option<f64>,
    /// log10 of the certified constant of margins, from ℓ2, over the median margin: one over the ℓ2
    /// distance within which the median prediction is proven to stay. Scaling the logits does not
    /// change it; null if it is not finite.
    #[serde(default)]
    pub margin_normalized_log10: Option<f64>,
    /// For images: the share that is right and proven to stay so within an ℓ2 distance of 36/255,
    /// pixels in \[0, 1\].
    #[serde(default)]
    pub certified_accuracy: Option<f64>,
    /// Mean cross-entropy by the published protocol, nats; `train eval --record` puts it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paper_loss: Option<f64>,
    /// Share of predictions that are right by the published protocol, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paper_accuracy: Option<f64>,
}

/// The directory of one run.
pub struct RunDir {
    path: PathBuf,
    metrics: File,
    /// None if the caller holds it.
    _lock: Option<Lock>,
}

/// The right to write to the directory of a run, which one process has at a time. The system takes
/// it back when the process ends, however it ends, so nothing has to be cleaned up after a crash.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the right to write to a directory; none if another process has it.
    ///
    /// # Errors
    /// If the directory cannot be written to.
    pub fn take(directory: &Path) -> Result<Option<Self>, Error> {
        let path = directory.join(".lock");
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).at(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(lipschitz_nn::Error::Io { path, error }.into()),
        }
    }

    /// As [`Lock::take`], where the caller does not hold it.
    fn unless_held(directory: &Path, held: bool) -> Result<Option<Self>, Error> {
        match held {
            true => Ok(None),
            false => match Self::take(directory) {
                // A file system without locks cannot tell; what else is wrong with it shows when
                // the run is written.
                Err(_) => Ok(None),
                Ok(None) => Err(Error::RunLocked(directory.to_path_buf())),
                Ok(lock) => Ok(lock),
            },
        }
    }
}

/// What a run is resumed from.
pub struct SavedRun {
    /// The weights.
    pub model: Model,
    /// State of optimizer and constraint.
    pub state: BTreeMap<String, Tensor>,
    /// Updates so far.
    pub step: u64,
    /// Seconds spent.
    pub seconds: f64,
}

#[derive(Serialize, Deserialize)]
struct Position {
    step: u64,
    seconds: f64,
}

const POSITION: &str = "position";

impl RunDir {
    /// Starts a new run in `path`, which must not hold one.
    ///
    /// # Errors
    /// If it does, or cannot be written.
    pub fn create(path: &Path, config: &Config, locked: bool) -> Result<Self, Error> {
        if path.join("config.toml").exists() {
            return Err(Error::RunExists(path.to_path_buf()));
        }
        fs::create_dir_all(path).at(path)?;
        let lock = Lock::unless_held(path, locked)?;
        checkpoint::write(&path.join("config.toml"), config.to_toml()?.as_bytes())?;
        Self::open(path, lock)
    }

    /// Opens the run in `path` at its last checkpoint, if it has one; metrics after it are dropped.
    ///
    /// # Errors
    /// If there is no run, it was made with another config (steps, device and intervals may
    /// differ), or its checkpoint is damaged.
    pub fn resume(
        path: &Path,
        config: &Config,
        device: &Device,
        locked: bool,
    ) -> Result<(Self, Option<SavedRun>), Error> {
        let file = path.join("config.toml");
        if !file.exists() {
            return Err(Error::NoRun(path.to_path_buf()));
        }
        let lock = Lock::unless_held(path, locked)?;
        let mut began = Config::read(&file, &[])?;
        let (old, new) = (&mut began.train, &config.train);
        (old.steps, old.log_every, old.eval_every) = (new.steps, new.log_every, new.eval_every);
        old.device.clone_from(&new.device);
        if began != *config {
            return Err(Error::OtherConfig(file));
        }
        checkpoint::write(&file, config.to_toml()?.as_bytes())?;
        let saved = load(path, device)?;
        let step = saved.as_ref().map_or(0, |s| s.step);
        let file = path.join("metrics.jsonl");
        if file.exists() {
            let text = fs::read_to_string(&file).at(&file)?;
            // A line cut short by a crash is dropped with those that will be written again.
            let earlier =
                |line: &&str| serde_json::from_str::<Metrics>(line).is_ok_and(|m| m.step <= step);
            let kept: String =
                text.lines().filter(earlier).map(|line| format!("{line}\n")).collect();
            checkpoint::write(&file, kept.as_bytes())?;
        }
        Ok((Self::open(path, lock)?, saved))
    }

    fn open(path: &Path, lock: Option<Lock>) -> Result<Self, Error> {
        let file = path.join("metrics.jsonl");
        let metrics = File::options().create(true).append(true).open(&file).at(&file)?;
        Ok(Self { path: path.to_path_buf(), metrics, _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line to `metrics.jsonl`.
    ///
    /// # Errors
    /// If the disk is full, for example.
    pub fn log(&mut self, metrics: &Metrics) -> Result<(), Error> {
        let line = format!("{}\n", serde_json::to_string(metrics)?);
        let file = self.path.join("metrics.jsonl");
        Ok(self.metrics.write_all(line.as_bytes()).at(&file)?)
    }

    /// Replaces `checkpoint/`; the old one is there until the new one is whole.
    ///
    /// # Errors
    /// If the disk is full, for example; the old checkpoint is untouched then.
    pub fn save(
        &self,
        model: &Model,
        state: &BTreeMap<String, Tensor>,
        meta: &Meta,
        step: u64,
        seconds: f64,
    ) -> Result<(), Error> {
        let [current, fresh, old] =
            ["checkpoint", "checkpoint.new", "checkpoint.old"].map(|n| self.path.join(n));
        let remove = |dir: &Path| {
            if dir.exists() { fs::remove_dir_all(dir).at(dir) } else { Ok(()) }
        };
        remove(&fresh)?;
        fs::create_dir(&fresh).at(&fresh)?;
        checkpoint::save(&fresh.join("model.safetensors"), model, meta)?;
        let position = serde_json::to_string(&Position { step, seconds })?;
        let state = state.iter().map(|(name, t)| (name.as_str(), t.clone()));
        let metadata = [(POSITION.to_string(), position)].into();
        checkpoint::save_tensors(&fresh.join("optimizer.safetensors"), state, Some(metadata))?;
        // After a crash between the two renames below, the old one is all there is.
        if current.exists() {
            remove(&old)?;
            fs::rename(&current, &old).at(&current)?;
        }
        fs::rename(&fresh, &current).at(&fresh)?;
        Ok(remove(&old)?)
    }

    /// Writes a file of the run in one step.
    ///
    /// # Errors
    /// If the disk is full, for example.
    pub fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        Ok(checkpoint::write(&self.path.join(name), text.as_bytes())?)
    }
}

/// The last checkpoint of the run in a directory, if it has one.
///
/// # Errors
/// If it is damaged.
pub fn load(path: &Path, device: &Device) -> Result<Option<SavedRun>, Error> {
    // A crash between the two renames of `save` leaves the old one alone.
    let Some(dir) =
        ["checkpoint", "checkpoint.old"].map(|n| path.join(n)).into_iter().find(|d| d.exists())
    else {
        return Ok(None);
    };
    let (model, _) = checkpoint::load(&dir.join("model.safetensors"), device)?;
    let file = dir.join("optimizer.safetensors");
    let (state, metadata) = checkpoint::load_tensors(&file, device)?;
    let position = metadata
        .get(POSITION)
        .ok_or_else(|| lipschitz_nn::Error::file(&file, "holds no position"))?;
    let position: Position = serde_json::from_str(position).within(file.display())?;
    Ok(Some(SavedRun { model, state, step: position.step, seconds: position.seconds }))
}
