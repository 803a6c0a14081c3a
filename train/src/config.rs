//! A run as a TOML file. Unknown keys are refused, with the nearest known one named.

use lipschitz_nn::At;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use lipschitz_data::cifar10::{Cifar10, Limits};
use lipschitz_data::shards;
use lipschitz_data::task::Task;
use lipschitz_data::text::TextData;
use lipschitz_nn::Graph;
use lipschitz_nn::graph::Input;
use lipschitz_nn::ops::Precision;
use lipschitz_nn::presets::ModelConfig;
use lipschitz_opt::constraint::ConstraintConfig;
use lipschitz_opt::modular::RatesConfig;
use lipschitz_opt::schedule::ScheduleConfig;
use lipschitz_opt::{Group, OptimizerConfig, Recipe};
use serde::{Deserialize, Serialize};

/// Everything about a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Certified Lipschitz constant (RMS → RMS) to end below: the cap of every matrix is solved
    /// from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lipschitz_target: Option<f64>,
    /// The network.
    pub model: ModelConfig,
    /// What it learns.
    pub data: DataConfig,
    /// How its weights move.
    pub optimizer: OptimizerConfig,
    /// Weights that move in a way of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// How the learning rate is split over the weights.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rates: RatesConfig,
    /// What keeps them small.
    pub constraint: ConstraintConfig,
    /// How long, how fast, how often.
    pub train: TrainConfig,
}

/// What it learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum DataConfig {
    /// Any UTF-8 file: characters, or the tokens of a `tokenizer.json`.
    Text {
        /// The file.
        path: PathBuf,
        /// A `tokenizer.json`; characters without one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tokenizer: Option<PathBuf>,
    },
    /// Generated plays; nothing to download.
    Play {
        /// How much to write.
        #[serde(default = "play_characters")]
        characters: usize,
    },
    /// Token shards as modded-nanogpt writes them, and `train shards` too: `*_train_*.bin` and
    /// `*_val_*.bin`.
    Shards {
        /// The directory; its `tokenizer.json`, if it has one, goes into the checkpoint.
        path: PathBuf,
        /// Rows of the embedding, above every token; as many as the tokenizer has without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vocabulary: Option<usize>,
        /// Tokens to validate on; all without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit_val: Option<usize>,
    },
    /// CIFAR-10: a Hugging Face parquet directory or the binary batches.
    Cifar10 {
        /// The directory.
        path: PathBuf,
        /// Training images to use; all without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit_train: Option<usize>,
        /// Test images to use; all without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit_test: Option<usize>,
    },
}

impl DataConfig {
    /// Loads the data.
    ///
    /// # Errors
    /// One line that names the file and what is wrong with it.
    pub fn load(&self) -> Result<Task> {
        Ok(match self {
            Self::Text { path, tokenizer } => {
                Task::Text(TextData::load(path, tokenizer.as_deref())?)
            }
            Self::Play { characters } => Task::play(*characters)?,
            Self::Shards { path, vocabulary, limit_val } => {
                Task::Text(shards::load(path, *vocabulary, *limit_val)?)
            }
            Self::Cifar10 { limit_train: Some(0), .. } => {
                bail!("data.limit_train is 0; it must be at least 1")
            }
            Self::Cifar10 { limit_test: Some(0), .. } => {
                bail!("data.limit_test is 0; it must be at least 1")
            }
            Self::Cifar10 { path, limit_train, limit_test } => Task::Images(Box::new(
                Cifar10::load(path, Limits { train: *limit_train, test: *limit_test })?,
            )),
        })
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn play_characters() -> usize {
    1_200_000
}

/// How long, how fast, how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Updates.
    pub steps: u64,
    /// Sequences or images an update.
    pub batch_size: usize,
    /// Parts that a batch is taken in, one after the other, with their gradients added: a part's
    /// activations are in memory at a time.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub accumulate: usize,
    /// Works a block's activations out again for the gradient instead of keeping them: a third more
    /// work, and memory for the blocks' outputs alone.
    #[serde(default, skip_serializing_if = "is_default")]
    pub recompute: bool,
    /// What the products of forward and backward pass are worked out in: `f32` or `bf16`. Weights
    /// and what moves them stay in f32.
    #[serde(default, skip_serializing_if = "is_default")]
    pub precision: Precision,
    /// Drives initialisation and data order.
    #[serde(default)]
    pub seed: u64,
    /// Learning rate at its peak; under Muon the RMS→RMS norm of an update.
    pub learning_rate: f64,
    /// How it changes over the run.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// Steps between lines of the log.
    #[serde(default = "ten")]
    pub log_every: u64,
    /// Steps between evaluations, bounds and checkpoints.
    #[serde(default = "hundred")]
    pub eval_every: u64,
    /// `cpu` or `cuda:N`.
    #[serde(default = "cpu")]
    pub device: String,
}

fn one() -> usize {
    1
}

fn is_one(n: &usize) -> bool {
    *n == 1
}

fn ten() -> u64 {
    10
}

fn hundred() -> u64 {
    100
}

fn cpu() -> String {
    "cpu".into()
}

impl Config {
    /// Reads a config and applies `key.path=value` settings.
    ///
    /// # Errors
    /// One line that names the file and the key.
    pub fn read(path: &Path, settings: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).at(path)?;
        Self::parse(&text, settings).with_context(|| path.display().to_string())
    }

    /// Parses a config and applies `key.path=value` settings.
    ///
    /// # Errors
    /// One line that names the key.
    pub fn parse(text: &str, settings: &[String]) -> Result<Self> {
        let mut table: toml::Table = toml::from_str(text).map_err(|e| one_line(&e))?;
        for setting in settings {
            set(&mut table, setting)?;
        }
        Self::from_table(table)
    }

    /// The config that a table holds.
    ///
    /// # Errors
    /// One line that names the key.
    pub fn from_table(table: toml::Table) -> Result<Self> {
        let config: Config = table.try_into().map_err(|e| one_line(&e))?;
        config.check()?;
        Ok(config)
    }

    /// The config as TOML.
    ///
    /// # Errors
    /// None for a config that was read.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string_pretty(self)?)
    }

    fn check(&self) -> Result<()> {
        let t = &self.train;
        let counts = [
            ("steps", t.steps),
            ("batch_size", t.batch_size as u64),
            ("accumulate", t.accumulate as u64),
            ("log_every", t.log_every),
            ("eval_every", t.eval_every),
        ];
        for (key, value) in counts {
            if value == 0 {
                bail!("train.{key} is 0; it must be at least 1")
            }
        }
        if !(t.learning_rate.is_finite() && t.learning_rate > 0.0) {
            bail!("train.learning_rate is {}; it must be above 0", t.learning_rate)
        }
        if let Some(target) = self.lipschitz_target
            && !(target.is_finite() && target > 0.0)
        {
            bail!("lipschitz_target is {target}; it must be a number above 0")
        }
        if let ScheduleConfig::StableThenDecay { decay } = t.schedule
            && !(decay > 0.0 && decay <= 1.0)
        {
            bail!(
                "train.schedule.decay is {decay}; it is the share of the run that decays, above 0 \
                 and at most 1"
            )
        }
        /// More tokens or images than any machine holds a batch of.
        const LARGEST: usize = 1 << 28;
        if t.batch_size > LARGEST {
            bail!(
                "train.batch_size is {}; no machine holds more than {LARGEST} at a time",
                t.batch_size
            )
        }
        Ok(())
    }

    /// What moves the weights and what keeps them small.
    pub fn recipe(&self) -> Recipe {
        Recipe {
            optimizer: self.optimizer.clone(),
            groups: self.groups.clone(),
            rates: self.rates.clone(),
            constraint: self.constraint.clone(),
        }
    }

    /// The network's graph for data of this vocabulary (or number of classes).
    ///
    /// # Errors
    /// A size that does not fit, or a graph file that cannot be read.
    pub fn graph(&self, vocabulary: usize) -> Result<Graph> {
        let graph = self.model.graph(vocabulary)?;
        let fits = match self.data {
            DataConfig::Cifar10 { .. } => {
                matches!(graph.input(), Input::Pixels { channels: 3, height: 32, width: 32 })
            }
            _ => matches!(graph.input(), Input::Tokens { .. }),
        };
        if !fits {
            let reads = match graph.input() {
                Input::Tokens { .. } => "tokens".to_string(),
                Input::Pixels { channels, height, width } => {
                    format!("images of {channels} x {height} x {width}")
                }
                Input::Vector { dim } => format!("vectors of {dim} numbers"),
            };
            bail!(
                "model and data do not fit: the model reads {reads}; choose another preset or \
                 data kind"
            )
        }
        Ok(graph)
    }
}

/// Sets one key of a table from `path.to.key=value`; the value is TOML, or a string if it is none.
pub(crate) fn set(table: &mut toml::Table, setting: &str) -> Result<()> {
    let (path, value) = setting
        .split_once('=')
        .ok_or_else(|| anyhow!("--set {setting}: write it as path.to.key=value"))?;
    let value = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut t| t.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.to_string()));
    put(table, path.trim(), value).with_context(|| format!("--set {setting}"))
}

/// Sets the key at `path.to.key`, making the sections on the way.
pub(crate) fn put(table: &mut toml::Table, path: &str, value: toml::Value) -> Result<()> {
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().filter(|k| !k.is_empty()).ok_or_else(|| anyhow!("names no key"))?;
    let mut at = table;
    for key in keys {
        let next = at.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = next.as_table_mut().ok_or_else(|| anyhow!("`{key}` is not a section"))?;
    }
    at.insert(last.to_string(), value);
    Ok(())
}

/// serde's message on one line, with the nearest of the names it expected.
pub(crate) fn one_line(error: &toml::de::Error) -> anyhow::Error {
    let message = error.message().trim();
    let mut names = message.split('`').skip(1).step_by(2);
    let suggestion = match names.next() {
        Some(found) if message.starts_with("unknown") => {
            let near = names.max_by(|a, b| {
                strsim::jaro_winkler(a, found).total_cmp(&strsim::jaro_winkler(b, found))
            });
            near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default()
        }
        _ => String::new(),
    };
    // Of a value that does not fit, serde's own text says where it is in a line of its own.
    let text = error.to_string();
    let place = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("in `")?.strip_suffix('`'))
        .filter(|_| suggestion.is_empty());
    let place = place.map(|key| format!("{key}: ")).unwrap_or_default();
    anyhow!("{place}{}{suggestion}", message.replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_names_the_nearest() {
        let text = crate::preset::text("demo").unwrap();
        let message = |from: &str, to: &str| {
            Config::parse(&text.replace(from, to), &[]).unwrap_err().to_string()
        };
        assert!(message("batch_size", "batchsize").contains("did you mean `batch_size`?"));
        assert!(message("[optimizer]", "[optimiser]").contains("did you mean `optimizer`?"));
        assert!(message("layers =", "layer =").contains("did you mean `layers`?"));
        assert!(message("kind = \"play\"", "kind = \"plays\"").contains("did you mean `play`?"));
    }

    #[test]
    fn settings_change_keys() {
        let text = crate::preset::text("demo").unwrap();
        let settings =
            ["train.steps=7", "train.device=cuda:1", "lipschitz_target=2.5"].map(String::from);
        let config = Config::parse(text, &settings).unwrap();
        assert_eq!((config.train.steps, config.train.device.as_str()), (7, "cuda:1"));
        assert_eq!(config.lipschitz_target, Some(2.5));
        let error = Config::parse(text, &["train.stepz=7".to_string()]).unwrap_err().to_string();
        assert!(error.contains("did you mean `steps`?"), "{error}");
        let error = Config::parse(text, &["train.steps=abc".to_string()]).unwrap_err().to_string();
        assert!(error.contains("train.steps") && error.contains("abc"), "{error}");
    }

    #[test]
    fn every_preset_is_read_and_written_back() {
        for name in crate::preset::NAMES {
            let config = Config::parse(crate::preset::text(name).unwrap(), &[]).unwrap();
            assert_eq!(Config::parse(&config.to_toml().unwrap(), &[]).unwrap(), config, "{name}");
            config.graph(60_000).unwrap();
        }
    }
}
