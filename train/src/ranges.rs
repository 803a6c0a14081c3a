//! Ranges of the numbers of a config. Beyond them nothing can be trained on any machine, and
//! what grows with a number would grow without end before that is noticed.

use lipschitz_data::augment;
use lipschitz_nn::presets::ModelConfig;

use crate::Error;
use crate::config::Config;

/// More steps than anybody makes.
const MAX_STEPS: u64 = 1_000_000_000_000;
/// Tokens or images of a batch, and its parts.
const MAX_BATCH: u64 = 1 << 28;
/// Numbers in a vector.
const MAX_WIDTH: u64 = 1 << 20;
/// Blocks. What is proven and planned of so many takes seconds.
const MAX_LAYERS: u64 = 1024;
/// Tokens of a sequence.
const MAX_CONTEXT: u64 = 1 << 24;

/// Whether every whole number is in its range.
///
/// # Errors
/// One line that names the key, its value and the range.
pub(crate) fn check(config: &Config) -> Result<(), Error> {
    let t = &config.train;
    let mut all = vec![
        ("train.steps", t.steps, MAX_STEPS),
        ("train.batch_size", t.batch_size as u64, MAX_BATCH),
        ("train.accumulate", t.accumulate as u64, MAX_BATCH),
        ("train.log_every", t.log_every, MAX_STEPS),
        ("train.eval_every", t.eval_every, MAX_STEPS),
    ];
    all.extend(t.checkpoint_every.map(|steps| ("train.checkpoint_every", steps, MAX_STEPS)));
    let mut add = |key, value: usize, most| all.push((key, value as u64, most));
    match &config.model {
        ModelConfig::Gpt { dim, layers, heads, context, .. } => {
            add("model.dim", *dim, MAX_WIDTH);
            add("model.layers", *layers, MAX_LAYERS);
            add("model.heads", *heads, MAX_WIDTH);
            add("model.context", *context, MAX_CONTEXT);
        }
        ModelConfig::Isometric { dim, context, stages, .. } => {
            add("model.dim", *dim, MAX_WIDTH);
            add("model.context", *context, MAX_CONTEXT);
            add("model.stages", stages.len(), MAX_LAYERS);
            for stage in stages {
                add("model.stages.heads", stage.heads, MAX_WIDTH);
                add("model.stages.head_dim", stage.head_dim, MAX_WIDTH);
                add("model.stages.layers", stage.layers, MAX_LAYERS);
            }
        }
        ModelConfig::Convnet { stages, attention, .. } => {
            attention.iter().for_each(|a| add("model.attention.heads", a.heads, MAX_WIDTH));
            add("model.stages", stages.len(), MAX_LAYERS);
            for stage in stages {
                add("model.stages.channels", stage.channels, MAX_WIDTH);
                add("model.stages.kernel", stage.kernel, 32);
                add("model.stages.patch", stage.patch, 32);
                add("model.stages.layers", stage.layers, MAX_LAYERS);
            }
        }
        ModelConfig::Vit { dim, layers, heads, patch, .. } => {
            add("model.dim", *dim, MAX_WIDTH);
            add("model.layers", *layers, MAX_LAYERS);
            add("model.heads", *heads, MAX_WIDTH);
            add("model.patch", *patch, 32);
        }
        ModelConfig::Mlp { hidden, .. } => {
            hidden.iter().for_each(|width| add("model.hidden", *width, MAX_WIDTH));
        }
        ModelConfig::Graph { .. } => {}
    }
    all.push(("loss.refresh_every", config.loss.refresh_every, MAX_STEPS));
    // Unlike the others, these may be 0.
    let moves = [("crop", config.augment.crop), ("cutout", config.augment.cutout)];
    if let Some((key, value)) = moves.into_iter().find(|(_, pixels)| *pixels > augment::MAX_SHIFT) {
        let most = augment::MAX_SHIFT;
        return Err(Error::Config(format!(
            "augment.{key} is {value}; it must be from 0 to {most}"
        )));
    }
    if !(0.0..1.0).contains(&t.dropout) {
        return Err(Error::Config(format!(
            "train.dropout is {}; it must be from 0 to below 1",
            t.dropout
        )));
    }
    // A stage may have no layers; all else there is at least one of.
    let least = |key: &str| u64::from(key != "model.stages.layers");
    match all.into_iter().find(|(key, value, most)| !(least(key)..=*most).contains(value)) {
        Some((key, value, most)) => {
            let least = least(key);
            Err(Error::Config(format!("{key} is {value}; it must be from {least} to {most}")))
        }
        None => Ok(config.data.kind().check()?),
    }
}
