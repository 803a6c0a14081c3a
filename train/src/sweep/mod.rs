//! Many runs from one file: which there are ([`mod@file`]), and training them, several at once, so
//! that the whole can be killed at any moment and continued ([`pool`]).

mod changes;
pub mod file;
mod live;
mod name;
mod outcome;
pub mod pool;
mod random;

pub use outcome::Outcome;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use lipschitz_data::{DataConfig, DataSet};

use crate::config::{Config, TrainConfig};
use crate::error::Within;
use crate::run_dir::{Summary, summary};
use crate::{Error, device, trainer};

/// One run of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct SweepRun {
    /// Name of its directory: what varies, and a digest of the whole config.
    pub name: String,
    /// Name in tables and plots: what varies.
    pub label: String,
    /// Its config.
    pub config: Config,
}

/// Finds what is wrong with any of the configs. Each data set is read once, and as little of it as
/// shows whether a config fits.
///
/// # Errors
/// One line that names the first run that cannot be made, and why.
pub fn check(runs: &[SweepRun]) -> Result<(), Error> {
    let mut loaded: Vec<(&DataConfig, Box<dyn DataSet>)> = Vec::new();
    for run in runs {
        check_one(run, &mut loaded).within(format_args!("run {}", run.name))?;
    }
    Ok(())
}

fn check_one<'a>(
    run: &'a SweepRun,
    loaded: &mut Vec<(&'a DataConfig, Box<dyn DataSet>)>,
) -> Result<(), Error> {
    let wanted = &run.config.data;
    let at = match loaded.iter().position(|(config, _)| *config == wanted) {
        Some(at) => at,
        None => {
            loaded.push((wanted, wanted.kind().load_little()?));
            loaded.len() - 1
        }
    };
    device::open(&run.config.train.device)?;
    trainer::check(&run.config, &*loaded[at].1).map(|_| ())
}

/// The config as it is compared: where a run is made does not change what it is, nor does how often
/// it is saved.
fn content(config: &Config) -> Result<String, Error> {
    let mut config = config.clone();
    config.train.device = "any".into();
    config.train.checkpoint_every = None;
    config.train.checkpoint_minutes = TrainConfig::CHECKPOINT_MINUTES;
    config.to_toml()
}

/// Where each run is or will be: a directory that holds its config already, whatever its name, or
/// the one of its own name. So a sweep file that changes finds the runs that it still has.
fn places(out: &Path, runs: &[SweepRun]) -> Result<Vec<PathBuf>, Error> {
    let mut known: HashMap<String, PathBuf> = HashMap::new();
    for entry in out.read_dir().into_iter().flatten().flatten() {
        let directory = entry.path();
        // One that cannot be read is met again, and reported, if a run has its name.
        let Ok(config) = Config::read(&directory.join("config.toml"), &[]) else { continue };
        let content = content(&config)?;
        let better = known.get(&content).is_none_or(|there| summary(there).is_none());
        if better {
            known.insert(content, directory);
        }
    }
    let place = |run: &SweepRun| {
        let known = known.get(&content(&run.config)?).cloned();
        Ok(known.unwrap_or_else(|| out.join(&run.name)))
    };
    runs.iter().map(place).collect()
}

/// The summary of a run that is finished and was made with this config.
pub fn finished(directory: &Path, config: &Config) -> Option<Summary> {
    let there = Config::read(&directory.join("config.toml"), &[]).ok()?;
    let same = content(&there).ok()? == content(config).ok()?;
    // A run that went on with more steps has the summary of fewer until its end; and one whose
    // learning rates were another's is no run of this config.
    let whole = |s: &Summary| s.steps == config.train.steps && s.step_changes.is_empty();
    summary(directory).filter(|summary| same && whole(summary))
}
