//! Many runs from one file: which there are ([`mod@file`]), and making them, several at once, so
//! that the whole can be killed at any moment and continued ([`pool`]).

pub mod file;
mod live;
mod name;
pub mod pool;
mod random;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lipschitz_data::task::Task;

use crate::config::{Config, DataConfig};
use crate::run_dir::Summary;
use crate::trainer;

/// One run of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Name of its directory: what varies, and a digest of the whole config.
    pub name: String,
    /// Name in tables and pictures: what varies.
    pub label: String,
    /// The run.
    pub config: Config,
}

/// Finds what is wrong with any of the configs; data is read once, and of pictures only the first.
///
/// # Errors
/// One line that names the first run that cannot be made, and why.
pub fn check(members: &[Member]) -> Result<()> {
    let mut tasks: Vec<(DataConfig, Task)> = Vec::new();
    for member in members {
        let what = || format!("run {}", member.name);
        let data = &member.config.data;
        if !tasks.iter().any(|(known, _)| known == data) {
            let few = match data {
                DataConfig::Cifar10 { path, .. } => DataConfig::Cifar10 {
                    path: path.clone(),
                    limit_train: Some(1),
                    limit_test: Some(1),
                },
                other => other.clone(),
            };
            tasks.push((data.clone(), few.load().with_context(what)?));
        }
        trainer::device(&member.config.train.device).with_context(what)?;
        if let Some((_, task)) = tasks.iter().find(|(known, _)| known == data) {
            trainer::check(&member.config, task).with_context(what)?;
        }
    }
    Ok(())
}

/// The config as it is compared: where a run is made does not change what it is.
fn content(config: &Config) -> Result<String> {
    let mut config = config.clone();
    config.train.device = "any".into();
    config.to_toml()
}

/// Where each member's run is or will be: a directory that holds its config already, however it is
/// named, or the one of its own name. So a sweep file that changes finds the runs that it still
/// has.
fn places(out: &Path, members: &[Member]) -> Result<Vec<PathBuf>> {
    let mut known: HashMap<String, PathBuf> = HashMap::new();
    for entry in out.read_dir().into_iter().flatten().flatten() {
        let directory = entry.path();
        // One that cannot be read is met again, and reported, if a member has its name.
        let Ok(config) = Config::read(&directory.join("config.toml"), &[]) else { continue };
        let content = content(&config)?;
        let better = known.get(&content).is_none_or(|there| summary(there).is_none());
        if better {
            known.insert(content, directory);
        }
    }
    let place = |m: &Member| {
        Ok(known.get(&content(&m.config)?).cloned().unwrap_or_else(|| out.join(&m.name)))
    };
    members.iter().map(place).collect()
}

/// The summary of a finished run; none if there is no whole one.
fn summary(directory: &Path) -> Option<Summary> {
    serde_json::from_str(&std::fs::read_to_string(directory.join("summary.json")).ok()?).ok()
}

/// The summary of a run that is finished and was made with this config.
pub fn finished(directory: &Path, config: &Config) -> Option<Summary> {
    let there = Config::read(&directory.join("config.toml"), &[]).ok()?;
    let same = content(&there).ok()? == content(config).ok()?;
    summary(directory).filter(|_| same)
}
