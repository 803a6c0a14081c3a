//! The directory of a run: metrics that grow, checkpoints that are replaced in one step.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use candle_core::Tensor;
use lipschitz_certify::upper::Upper;
use lipschitz_nn::checkpoint::{self, Meta};
use lipschitz_nn::{At, Model};
use serde::{Deserialize, Serialize};

pub use crate::lock::Lock;
pub use crate::saved::{Best, Position, SavedRun, StepChange, load};

use crate::append_file::{AppendFile, Harm, directory};
use crate::config::Config;
use crate::dynamics::MatrixMetrics;
use crate::step::Times;
use crate::{Error, saved};

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Updates so far.
    pub step: u64,
    /// Tokens or images seen.
    pub tokens: u64,
    /// Seconds since the start, over all parts of a resumed run.
    pub seconds: f64,
    /// Mean loss of the step's batch: cross-entropy in nats, unless the config says another.
    pub train_loss: Option<f64>,
    /// Mean cross-entropy on the whole held-out split, nats; or mean squared error of numbers.
    pub val_loss: Option<f64>,
    /// Share of held-out predictions whose largest logit is right.
    pub val_accuracy: Option<f64>,
    /// With an evaluation of images, the share that is right and proven by norms to stay so within an
    /// ℓ2 distance of 36/255, pixels in \[0, 1\].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certified_36: Option<f64>,
    /// Within 72/255.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certified_72: Option<f64>,
    /// Within 108/255.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certified_108: Option<f64>,
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
    /// With an evaluation, the largest logit of attention that any input can have, proven; null without
    /// attention, and where none is bounded.
    #[serde(default)]
    pub logit_bound: Option<f64>,
    /// With an evaluation, the largest element that any tensor of a forward pass can have for any
    /// input, proven; null where there is no bound.
    #[serde(default)]
    pub range_bound: Option<f64>,
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
    /// Mean cross-entropy on the whole held-out split, nats; or mean squared error of numbers.
    pub val_loss: f64,
    /// Share of held-out predictions that are right; none of numbers.
    pub val_accuracy: Option<f64>,
    /// The lowest such loss of a step's weights that meet the target and the cap on logits, where there are
    /// such; `best.safetensors` has them. A mean of weights may have a lower one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_val_loss: Option<f64>,
    /// After how many updates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_step: Option<u64>,
    /// Changes of `train.steps` in the middle of the run that changed its learning rates: with one
    /// it is no run of this many steps under its schedule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub step_changes: Vec<StepChange>,
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
    /// Within 72/255.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certified_72: Option<f64>,
    /// Within 108/255.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certified_108: Option<f64>,
    /// Mean cross-entropy by the published protocol, nats; `train eval --record` puts it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paper_loss: Option<f64>,
    /// Share of predictions that are right by the published protocol, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paper_accuracy: Option<f64>,
}

impl Summary {
    /// Certified accuracies at 36, 72 and 108 over 255, of a classifier of images.
    #[must_use]
    pub fn certified(&self) -> Option<[f64; 3]> {
        Some([self.certified_accuracy?, self.certified_72?, self.certified_108?])
    }

    /// Whether both are of the same weights, as far as their figures tell.
    pub(crate) fn has_network_of(&self, other: &Self) -> bool {
        let of = |s: &Self| (s.steps, s.parameters, s.lipschitz, s.val_loss.to_bits());
        of(self) == of(other)
    }
}

/// The summary of a finished run; none if there is no whole one.
pub(crate) fn summary(directory: &Path) -> Option<Summary> {
    serde_json::from_str(&std::fs::read_to_string(directory.join("summary.json")).ok()?).ok()
}

/// The directory of one run.
pub struct RunDir {
    path: PathBuf,
    metrics: AppendFile,
    /// Lines of the metrics.
    lines: u64,
    /// `config.toml`.
    config: String,
    /// None on a file system without locks.
    lock: Option<Rc<Lock>>,
    /// Whether there has been a checkpoint.
    saved: bool,
    /// Whether it has the best weights of the run so far.
    best: bool,
    step_changes: Vec<StepChange>,
}

const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
const BEST: &str = "best.safetensors";

/// Whether a directory holds a run, or what is left of one.
#[must_use]
pub fn holds_run(path: &Path) -> bool {
    [CONFIG, METRICS, "checkpoint", "checkpoint.old"].iter().any(|name| path.join(name).exists())
}

impl RunDir {
    /// Starts a new run in `path`, which must not hold one. The caller may hold its lock already.
    ///
    /// # Errors
    /// If it does, or cannot be written.
    pub fn create(path: &Path, config: &Config, lock: Option<&Rc<Lock>>) -> Result<Self, Error> {
        if holds_run(path) {
            return Err(Error::RunExists(path.to_path_buf()));
        }
        make(path)?;
        let lock = Lock::or_take(path, lock)?;
        Self::begin(path, config, lock, Vec::new())
    }

    /// Goes on with the run in `path` from its last checkpoint, which has been compared with the
    /// config; metrics after it are dropped. Returns what is missing, in words.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub(crate) fn resume(
        path: &Path,
        config: &Config,
        lock: Option<Rc<Lock>>,
        position: Option<&mut Position>,
    ) -> Result<(Self, Vec<String>), Error> {
        remove_temporaries(path)?;
        saved::finish_replacement(path)?;
        let mut missing = Vec::new();
        let mut none = Position { lines: Some(0), ..Position::default() };
        let saved = position.is_some();
        let position = position.unwrap_or(&mut none);
        let kept = keep_metrics(&path.join(METRICS), position.step)?;
        if let Some(lines) = position.lines.filter(|lines| *lines != kept) {
            missing.push(format!(
                "{}: holds {kept} of the {lines} lines that the run had written up to step {}",
                path.join(METRICS).display(),
                position.step
            ));
        }
        if let Some(best) = &position.best {
            let file = path.join(BEST);
            // It is put here after its checkpoint, so a crash may have come between.
            if saved::digest(&file).ok().as_ref() != Some(&best.digest) {
                if best.step == position.step {
                    link_best(path)?;
                } else {
                    missing.push(format!(
                        "{}: is not, or no longer, the best of step {}; the best from here on is \
                         kept there",
                        file.display(),
                        best.step
                    ));
                    position.best = None;
                }
            }
        }
        let mut dir = Self::begin(path, config, lock, position.step_changes.clone())?;
        (dir.lines, dir.saved, dir.best) = (kept, saved, position.best.is_some());
        Ok((dir, missing))
    }

    fn begin(
        path: &Path,
        config: &Config,
        lock: Option<Rc<Lock>>,
        step_changes: Vec<StepChange>,
    ) -> Result<Self, Error> {
        let config = as_run(config, &step_changes)?;
        checkpoint::write(&path.join(CONFIG), config.as_bytes())?;
        let metrics = AppendFile::open(&path.join(METRICS))?;
        let path = path.to_path_buf();
        let (lines, saved, best) = (0, false, false);
        Ok(Self { path, metrics, lines, config, lock, saved, best, step_changes })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Changes of the step count so far that changed learning rates.
    pub fn step_changes(&self) -> &[StepChange] {
        &self.step_changes
    }

    /// Appends a line to `metrics.jsonl`.
    ///
    /// # Errors
    /// If the disk is full, for example.
    pub fn log(&mut self, metrics: &Metrics) -> Result<(), Error> {
        self.metrics.append(format!("{}\n", serde_json::to_string(metrics)?).as_bytes())?;
        self.lines += 1;
        Ok(())
    }

    /// Replaces `checkpoint/`; the old one is there until the new one is whole, on disk, and with
    /// it the metrics up to its step. If the best weights are these, they are in
    /// `best.safetensors` after it, and the position has their digest.
    ///
    /// # Errors
    /// If the disk is full, for example; the old checkpoint is untouched then.
    pub fn save(
        &mut self,
        model: &Model,
        state: &BTreeMap<String, Tensor>,
        meta: &Meta,
        position: &mut Position,
    ) -> Result<(), Error> {
        self.metrics.sync()?;
        position.lines = Some(self.lines);
        position.step_changes.clone_from(&self.step_changes);
        saved::save(&self.path, model, state, meta, position)?;
        self.saved = true;
        match &position.best {
            Some(best) if best.step == position.step => {
                self.best = true;
                link_best(&self.path)
            }
            _ => Ok(()),
        }
    }

    /// Whether the directory has the best weights of the run so far.
    pub(crate) fn has_best(&self) -> bool {
        self.best
    }

    /// Writes a file of the run in one step.
    ///
    /// # Errors
    /// If the disk is full, for example.
    pub fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        Ok(checkpoint::write(&self.path.join(name), text.as_bytes())?)
    }

    /// Puts back what others removed from the directory, or the directory itself, and returns what
    /// it was, in words. The checkpoint is put back by the next [`RunDir::save`].
    ///
    /// # Errors
    /// [`Error::RunLocked`] if another process has begun to train this run in the meantime; if the
    /// directory cannot be written.
    pub(crate) fn restore(&mut self) -> Result<Vec<String>, Error> {
        let mut harmed = Vec::new();
        let named = |name: &str, what: &str| format!("{} {what}", self.path.join(name).display());
        let removed = "was removed during the run";
        if !self.path.exists() {
            make(&self.path)?;
            harmed.push(format!("{} {removed}; it is made again", self.path.display()));
        }
        if let Some(lock) = &self.lock
            && lock.retake()?
        {
            harmed.push(named(".lock", &format!("{removed}; it is taken again")));
        }
        let config = self.path.join(CONFIG);
        if !config.exists() {
            checkpoint::write(&config, self.config.as_bytes())?;
            harmed.push(named(CONFIG, &format!("{removed}; it is written again")));
        }
        match self.metrics.restore()? {
            None => {}
            Some(Harm::Removed) => {
                harmed.push(named(METRICS, &format!("{removed}; it is written again")));
            }
            Some(Harm::Changed) => {
                let what = "was replaced or cut during the run; what follows is added to it";
                harmed.push(named(METRICS, what));
            }
        }
        if self.saved && !self.path.join("checkpoint").exists() {
            self.saved = false;
            harmed.push(named("checkpoint", &format!("{removed}; it is saved again")));
        }
        if self.best && !self.path.join(BEST).exists() {
            self.best = false;
            harmed.push(named(BEST, &format!("{removed}; the best from here on is kept there")));
        }
        Ok(harmed)
    }
}

/// Makes a directory with those above it, on disk.
fn make(path: &Path) -> Result<(), Error> {
    let missing: Vec<&Path> = path.ancestors().take_while(|above| !above.exists()).collect();
    fs::create_dir_all(path).at(path)?;
    for made in missing.iter().filter(|made| !made.as_os_str().is_empty()) {
        let above = directory(made);
        checkpoint::sync(above).at(above)?;
    }
    Ok(())
}

/// `config.toml`: the config, with what it cannot say of the steps before a change.
fn as_run(config: &Config, step_changes: &[StepChange]) -> Result<String, Error> {
    let mut text = String::new();
    let mut since = 1;
    for StepChange { step, from, .. } in step_changes {
        text += &format!("# Steps {since} to {step} were made with train.steps = {from}.\n");
        since = step + 1;
    }
    Ok(text + &config.to_toml()?)
}

/// Removes the temporary files that a killed process left behind; the lock is held.
fn remove_temporaries(path: &Path) -> Result<(), Error> {
    for entry in path.read_dir().at(path)?.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if checkpoint::is_temporary(name) {
            let file = entry.path();
            fs::remove_file(&file).at(&file)?;
        }
    }
    Ok(())
}

/// Drops the lines of `metrics.jsonl` after a step, with one that a crash cut short; how many are
/// left.
fn keep_metrics(file: &Path, step: u64) -> Result<u64, Error> {
    if !file.exists() {
        return Ok(0);
    }
    let bytes = fs::read(file).at(file)?;
    let earlier =
        |line: &&[u8]| serde_json::from_slice::<Metrics>(line).is_ok_and(|m| m.step <= step);
    let kept: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').filter(earlier).collect();
    let text: Vec<u8> = kept.iter().flat_map(|line| [line, &b"\n"[..]].concat()).collect();
    checkpoint::write(file, &text)?;
    Ok(kept.len() as u64)
}

/// Gives the weights of the checkpoint the name of the best ones. They share the file, which is
/// never written to again; where the file system cannot, it is copied.
fn link_best(path: &Path) -> Result<(), Error> {
    let (weights, best) = (saved::weights(&path.join("checkpoint")), path.join(BEST));
    let fresh = path.join("best.new");
    let linked = fs::remove_file(&fresh)
        .or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
        .and_then(|()| fs::hard_link(&weights, &fresh))
        .and_then(|()| fs::rename(&fresh, &best));
    match linked {
        Ok(()) => Ok(checkpoint::sync(path).at(path)?),
        Err(_) => Ok(checkpoint::write(&best, &fs::read(&weights).at(&weights)?)?),
    }
}
