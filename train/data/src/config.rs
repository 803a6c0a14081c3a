//! Which data is loaded: by a config, or for a trained model.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use lipschitz_nn::checkpoint::Meta;
use lipschitz_nn::graph::Input;
use lipschitz_nn::{At, kind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cifar::{self, Cifar10Config, Cifar100Config, Labels, Limits};
use crate::idx::{self, IdxConfig};
use crate::images::{self, ImagesConfig};
use crate::play::PlayConfig;
use crate::shards::{self, ShardsConfig};
use crate::tensors::{self, TensorsConfig};
use crate::text::TextConfig;
use crate::{DataKind, DataSet, Error};

/// What a network learns, as the section `[data]` of a config: `kind = "..."` and its keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DataConfig {
    /// Any UTF-8 file.
    Text(TextConfig),
    /// Generated plays.
    Play(PlayConfig),
    /// Token shards.
    Shards(ShardsConfig),
    /// CIFAR-10.
    Cifar10(Cifar10Config),
    /// CIFAR-100.
    Cifar100(Cifar100Config),
    /// MNIST and its kin.
    Idx(IdxConfig),
    /// A folder of each class.
    Images(ImagesConfig),
    /// Tensors of a file.
    Tensors(TensorsConfig),
}

impl DataConfig {
    /// The kind of data that is asked for.
    pub fn kind(&self) -> &dyn DataKind {
        match self {
            Self::Text(config) => config,
            Self::Play(config) => config,
            Self::Shards(config) => config,
            Self::Cifar10(config) => config,
            Self::Cifar100(config) => config,
            Self::Idx(config) => config,
            Self::Images(config) => config,
            Self::Tensors(config) => config,
        }
    }
}

/// What a model was trained on; none if its checkpoint does not say.
pub fn of_run(meta: &Meta) -> Option<DataConfig> {
    serde_json::from_value(meta.config.get("data")?.clone()).ok()
}

/// Data for a trained model, chosen by what the model reads and what lies at the path, with the model's
/// own tokenizer and classes: a text file or a directory of token shards; or a folder of images, the
/// directory of MNIST or CIFAR, a file of tensors. Of what the model was trained on that part is held
/// out which its run held out.
///
/// # Errors
/// One line that names the file and what is wrong with it.
pub fn for_model(path: &Path, meta: &Meta) -> Result<Box<dyn DataSet>, Error> {
    Ok(match meta.graph.input() {
        Input::Tokens { .. } if path.is_dir() => {
            let limit = match of_run(meta) {
                Some(DataConfig::Shards(config)) if same(path, &config.path) => config.limit_val,
                _ => None,
            };
            let data = shards::load(path, meta.graph.vocabulary(), limit)?;
            let theirs = data.tokenizer().filter(|_| meta.tokenizer.is_some());
            if theirs.is_some_and(|theirs| Some(theirs) != meta.tokenizer.as_ref()) {
                return Err(Error::OtherTokenizer(path.to_path_buf()));
            }
            Box::new(data)
        }
        Input::Tokens { .. } => {
            let tokenizer = meta.tokenizer.clone().ok_or(Error::NoTokenizer)?;
            let trained = match of_run(meta) {
                Some(DataConfig::Text(config)) => config,
                // Nothing lies at this path: no text is what it was trained on.
                _ => TextConfig::new(""),
            };
            let digest = meta.provenance.data_digest.as_deref();
            Box::new(trained.held_out(path, tokenizer, digest)?)
        }
        Input::Pixels { .. } | Input::Vector { .. } => examples(path, meta)?,
    })
}

/// Whether two paths lead to the same place.
fn same(path: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    real(path).is_some_and(|path| real(other) == Some(path))
}

fn is_text(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(1 << 10).read_to_end(&mut start));
    read.is_ok() && !start.is_empty() && kind::is_text(&start)
}

/// The held-out part of images or vectors for a model.
fn examples(path: &Path, meta: &Meta) -> Result<Box<dyn DataSet>, Error> {
    std::fs::metadata(path).at(path)?;
    let (trained, outputs) = (of_run(meta), meta.graph.outputs());
    let digest = meta.provenance.data_digest.as_deref();
    let kept = Some(1);
    let held_out = match &trained {
        Some(DataConfig::Cifar10(config)) if same(path, &config.path) => config.limit_test,
        Some(DataConfig::Cifar100(config)) if same(path, &config.path) => config.limit_test,
        Some(DataConfig::Idx(config)) if same(path, &config.path) => config.limit_test,
        _ => None,
    };
    if tensors::is_here(path) {
        if is_text(path) {
            return Err(Error::UnknownKind(path.to_path_buf()));
        }
        let config = match trained {
            Some(DataConfig::Tensors(config)) => config,
            // Nothing lies at this path.
            _ => TensorsConfig::new(""),
        };
        return Ok(Box::new(config.held_out(path, outputs, digest)?));
    }
    if cifar::is_here(path) {
        let limits = Limits { train: kept, test: held_out };
        let labels = match trained {
            Some(DataConfig::Cifar100(config)) => Some(config.labels),
            Some(DataConfig::Cifar10(_)) => None,
            _ => [(100, Labels::Fine), (20, Labels::Coarse)]
                .into_iter()
                .find_map(|(classes, labels)| (classes == outputs).then_some(labels)),
        };
        return Ok(Box::new(match labels {
            Some(labels) => cifar::load100(path, labels, limits)?,
            None => cifar::load10(path, limits)?,
        }));
    }
    if idx::is_here(path) {
        return Ok(Box::new(idx::load(path, [kept, held_out])?));
    }
    if let Input::Pixels { channels, height, width } = meta.graph.input()
        && images::is_here(path)
    {
        let config = match trained {
            Some(DataConfig::Images(config)) => config,
            _ => ImagesConfig::new(""),
        };
        let shape = [channels, height, width];
        return Ok(Box::new(config.held_out(path, (&meta.classes, shape), digest)?));
    }
    Err(Error::UnknownKind(path.to_path_buf()))
}
