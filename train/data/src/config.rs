//! Which data is loaded: by a config, or for a trained model.

use std::path::Path;

use lipschitz_nn::checkpoint::Meta;
use lipschitz_nn::graph::{Input, Op};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cifar10::{Cifar10, Cifar10Config, Limits};
use crate::play::PlayConfig;
use crate::shards::{self, ShardsConfig};
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
}

impl DataConfig {
    /// The kind of data that is asked for.
    pub fn kind(&self) -> &dyn DataKind {
        match self {
            Self::Text(config) => config,
            Self::Play(config) => config,
            Self::Shards(config) => config,
            Self::Cifar10(config) => config,
        }
    }
}

/// What a model was trained on; none if its checkpoint does not say.
pub fn of_run(meta: &Meta) -> Option<DataConfig> {
    serde_json::from_value(meta.config.get("data")?.clone()).ok()
}

/// Data for a trained model, chosen by what the model reads and with its own tokenizer: a text file
/// or a directory of token shards, or the directory of CIFAR-10. Of a text the same part is held
/// out as in the run that trained the model.
///
/// # Errors
/// One line that names the file and what is wrong with it.
pub fn for_model(path: &Path, meta: &Meta) -> Result<Box<dyn DataSet>, Error> {
    Ok(match meta.graph.input() {
        Input::Tokens { .. } if path.is_dir() => {
            let vocabulary = match meta.graph.nodes().first().map(|node| &node.op) {
                Some(Op::Embedding { vocabulary, .. }) => Some(*vocabulary),
                _ => None,
            };
            Box::new(shards::load(path, vocabulary, None)?)
        }
        Input::Tokens { .. } => {
            let tokenizer = meta.tokenizer.clone().ok_or(Error::NoTokenizer)?;
            let trained = match of_run(meta) {
                Some(DataConfig::Text(config)) => config,
                _ => TextConfig::new(path),
            };
            Box::new(trained.held_out(path, tokenizer)?)
        }
        Input::Pixels { .. } => {
            Box::new(Cifar10::load(path, Limits { train: Some(1), test: None })?)
        }
        Input::Vector { .. } => return Err(Error::ReadsVectors),
    })
}
