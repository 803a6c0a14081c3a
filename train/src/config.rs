//! A run as a TOML file. Unknown keys are refused, with the nearest known one named.

use std::path::Path;

use lipschitz_data::augment::Augmentation;
use lipschitz_data::{DataConfig, DataSet};
use lipschitz_nn::graph::Input;
use lipschitz_nn::linalg::Precision;
use lipschitz_nn::presets::ModelConfig;
use lipschitz_nn::{Graph, text};
use lipschitz_opt::constraint::ConstraintConfig;
use lipschitz_opt::modular::RatesConfig;
use lipschitz_opt::schedule::ScheduleConfig;
use lipschitz_opt::{Group, OptimizerConfig, Recipe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::averaging::AveragingConfig;
use crate::error::Within;
use crate::loss::LossConfig;
use crate::teacher::TeacherConfig;
use crate::{Error, keys, ranges, seed};

/// Everything about a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Certified Lipschitz constant (RMS → RMS) to end below: the cap of every matrix is solved
    /// from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lipschitz_target: Option<f64>,
    /// The constant of `lipschitz_target`, and what meets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lipschitz: Option<Goal>,
    /// The most that a logit of attention may be for any input, in front of a soft cap and a position
    /// bias: every 25 steps and at the end it is proven, and queries and keys are brought under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_logit: Option<f64>,
    /// The network.
    pub model: ModelConfig,
    /// The data.
    pub data: DataConfig,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// Weights with an optimizer or a learning rate of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// How the learning rate is split over the weights.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rates: RatesConfig,
    /// What bounds their norms.
    pub constraint: ConstraintConfig,
    /// What a step lowers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub loss: LossConfig,
    /// Trained networks to learn from: knowledge distillation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherConfig>,
    /// How training images are changed at random.
    #[serde(default, skip_serializing_if = "is_default")]
    pub augment: Augmentation,
    /// The weights that a run gives at its end are a mean over steps; the last ones without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub averaging: Option<AveragingConfig>,
    /// Steps, batch, learning rate, intervals.
    pub train: TrainConfig,
}

/// A constant to end below, and what meets it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Goal {
    /// The certified constant, RMS → RMS.
    pub target: f64,
    /// What meets it.
    #[serde(default)]
    pub by: By,
    /// Steps of the search for a second proof, by ellipsoids, each time that the certificate is to
    /// meet the target: the smaller constant counts. 0 leaves it to the end of the run.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("default" = usize::default()))]
    pub effort: usize,
}

/// The smallest constant that a network of f32 can be brought under.
const LEAST_TARGET: f64 = 1e-30;

/// The most steps of such a search, as of `certify bound --effort`.
pub(crate) const MAX_EFFORT: usize = 100_000;

/// What meets a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The cap of every matrix, solved from the target before the first step.
    #[default]
    Caps,
    /// The cap of the head: what the proven constant of the rest of the network leaves of the
    /// target, proven again every few steps.
    Certificate,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Steps, batch, learning rate, intervals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Updates of the weights.
    pub steps: u64,
    /// Sequences or images per update.
    pub batch_size: usize,
    /// Gradient accumulation: parts that a batch is split into, one after the other, with their
    /// gradients added. Only one part's activations are in memory at a time.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(extend("default" = one()))]
    pub accumulate: usize,
    /// Activation checkpointing: recomputes a block's activations for the gradient instead of
    /// keeping them. A third more work, and memory for the blocks' outputs alone.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("default" = bool::default()))]
    pub recompute: bool,
    /// The type that forward and backward pass multiply matrices in: `f32` or `bf16`. Weights and
    /// optimizer state stay in f32.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("default" = Precision::default()))]
    pub precision: Precision,
    /// The share of the elements behind each activation that a training step leaves out; the others
    /// are larger by as much. The trained network leaves none out.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("default" = f64::default()))]
    pub dropout: f64,
    /// Seeds initialisation and data order: any 64-bit number, as a string above 2⁶³ − 1.
    #[serde(default, with = "seed")]
    #[schemars(with = "u64")]
    pub seed: u64,
    /// Peak learning rate; under Muon the RMS→RMS norm of an update.
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
    /// Steps between further checkpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
    /// A checkpoint is saved before the next step when the last is this many minutes old.
    #[serde(default = "checkpoint_minutes", skip_serializing_if = "is_default_minutes")]
    #[schemars(extend("default" = checkpoint_minutes()))]
    pub checkpoint_minutes: f64,
    /// `cpu` or `cuda:N`.
    #[serde(default = "cpu")]
    pub device: String,
}

impl TrainConfig {
    /// [`TrainConfig::checkpoint_minutes`] where a config does not say them.
    pub const CHECKPOINT_MINUTES: f64 = 15.0;
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

fn checkpoint_minutes() -> f64 {
    TrainConfig::CHECKPOINT_MINUTES
}

fn is_default_minutes(minutes: &f64) -> bool {
    *minutes == TrainConfig::CHECKPOINT_MINUTES
}

fn cpu() -> String {
    "cpu".into()
}

impl Config {
    /// Reads a config and applies `key.path=value` settings.
    ///
    /// # Errors
    /// One line that names the file and the key.
    pub fn read(path: &Path, settings: &[String]) -> Result<Self, Error> {
        let text = text::read(path, "a config")?;
        Self::parse(&text, settings).within(path.display())
    }

    /// Parses a config and applies `key.path=value` settings.
    ///
    /// # Errors
    /// One line that names the key.
    pub fn parse(text: &str, settings: &[String]) -> Result<Self, Error> {
        let file = keys::table(text)?;
        let mut table = file.clone();
        for setting in settings {
            set(&mut table, setting)?;
        }
        Self::from_table(table).map_err(|error| match error {
            // A mistake that the file makes without the settings has its place there.
            Error::Key(mistake) => Error::Key(match keys::read::<Self>(file.clone()) {
                Err(own) if own.to_string() == mistake.to_string() => mistake.at(text),
                // The file is right by itself.
                Ok(_) if mistake.is_in(file) => mistake.taken_out(),
                _ => mistake,
            }),
            error => error,
        })
    }

    /// The config that a table holds.
    ///
    /// # Errors
    /// One line that names the key.
    pub fn from_table(table: toml::Table) -> Result<Self, Error> {
        check_paths(&table)?;
        let config: Self = keys::read(table)?;
        config.check()?;
        Ok(config)
    }

    /// The config as TOML.
    ///
    /// # Errors
    /// None for a config that was read.
    pub fn to_toml(&self) -> Result<String, Error> {
        Ok(toml::to_string_pretty(self)?)
    }

    /// Whether every number that this crate reads is in range.
    fn check(&self) -> Result<(), Error> {
        let t = &self.train;
        ranges::check(self)?;
        self.loss.check()?;
        self.averaging.iter().try_for_each(AveragingConfig::check)?;
        if let Some(teacher) = &self.teacher {
            teacher.check()?;
            if teacher.share == 1.0 && self.loss != LossConfig::default() {
                return Err(Error::Config(
                    "the section [loss] is about the right classes, and teacher.share is 1, which leaves \
                     them no part in the loss; set teacher.share below 1, or leave [loss] out"
                        .into(),
                ));
            }
        }
        let no = |what: String| Err(Error::Config(what));
        if !(t.learning_rate.is_finite() && t.learning_rate > 0.0) {
            return no(format!("train.learning_rate is {}; it must be above 0", t.learning_rate));
        }
        if !(t.checkpoint_minutes.is_finite() && t.checkpoint_minutes > 0.0) {
            let minutes = t.checkpoint_minutes;
            return no(format!("train.checkpoint_minutes is {minutes}; it must be above 0"));
        }
        let targets = [
            ("lipschitz_target", self.lipschitz_target),
            ("lipschitz.target", self.lipschitz.map(|goal| goal.target)),
        ];
        for (key, target) in targets {
            if let Some(target) = target.filter(|x| !(x.is_finite() && *x > 0.0)) {
                return no(format!("{key} is {target}; it must be a number above 0"));
            }
            if let Some(target) = target.filter(|x| *x < LEAST_TARGET) {
                return no(format!("{key} is {target:e}; the smallest is {LEAST_TARGET:e}"));
            }
        }
        if let Some(Goal { by, effort, .. }) = self.lipschitz {
            if effort > MAX_EFFORT {
                return no(format!(
                    "lipschitz.effort is {effort}; it must be from 0 to {MAX_EFFORT}"
                ));
            }
            if effort > 0 && by == By::Caps {
                return no(format!(
                    "lipschitz.effort is {effort}, and caps are solved by norms alone; set \
                     lipschitz.by = \"certificate\""
                ));
            }
        }
        if let Some(most) = self.max_logit.filter(|x| !(x.is_finite() && *x > 0.0)) {
            return no(format!("max_logit is {most}; it must be a number above 0"));
        }
        if let [(_, Some(_)), (_, Some(_))] = targets {
            return no("lipschitz_target is set, and so is lipschitz.target; keep one".into());
        }
        if let ScheduleConfig::StableThenDecay { decay } = t.schedule
            && !(decay > 0.0 && decay <= 1.0)
        {
            return no(format!(
                "train.schedule.decay is {decay}; it is the share of the run that decays, above 0 \
                 and at most 1"
            ));
        }
        Ok(())
    }

    /// The constant to end below.
    pub fn goal(&self) -> Option<Goal> {
        let target = self.lipschitz_target.map(|target| Goal { target, by: By::Caps, effort: 0 });
        target.or(self.lipschitz)
    }

    /// Optimizers and constraint.
    pub fn recipe(&self) -> Recipe {
        Recipe {
            optimizer: self.optimizer.clone(),
            groups: self.groups.clone(),
            rates: self.rates.clone(),
            constraint: self.constraint.clone(),
        }
    }

    /// The network's graph for this vocabulary (or number of classes). Where the config does not say
    /// how large images are, they are taken to be of 3 × 32 × 32.
    ///
    /// # Errors
    /// A size that does not fit, or a graph file that cannot be read.
    pub fn graph(&self, outputs: usize) -> Result<Graph, Error> {
        self.graph_of(outputs, self.data.kind().input())
    }

    /// The network's graph for this data.
    ///
    /// # Errors
    /// As [`Config::graph`].
    pub fn graph_for(&self, data: &dyn DataSet) -> Result<Graph, Error> {
        self.graph_of(data.outputs(), data.input())
    }

    /// The network's graph for so many outputs and this input; [`Config::graph`]'s where it is not known.
    ///
    /// # Errors
    /// As [`Config::graph`].
    pub fn graph_of(&self, outputs: usize, input: Option<Input>) -> Result<Graph, Error> {
        let mut model = self.model.clone();
        // What a head of norm 1 has as its constant there, so that its cap is near 1.
        if let (
            ModelConfig::Isometric { final_scale, .. } | ModelConfig::Convnet { final_scale, .. },
            Some(goal),
        ) = (&mut model, self.goal())
            && goal.by == By::Certificate
        {
            *final_scale = final_scale.or(Some(goal.target));
        }
        let graph = match input {
            Some(input) => model.graph_of(outputs, input),
            None => model.graph(outputs),
        };
        let graph = graph.within("model")?;
        if !self.data.kind().reads(graph.input()) {
            return Err(lipschitz_data::Error::misfit(graph.input()).into());
        }
        if !self.augment.is_none() && !matches!(graph.input(), Input::Pixels { .. }) {
            let what = "the section [augment] changes images, and the model reads none";
            return Err(Error::Config(format!("{what}; leave it out")));
        }
        Ok(graph)
    }
}

/// Sets one key of a table from `path.to.key=value`; the value is TOML, or a string if it is none.
/// Without a value, `path.to.key=`, the key is taken out.
pub(crate) fn set(table: &mut toml::Table, setting: &str) -> Result<(), Error> {
    let no = |what: String| Error::Setting { setting: setting.to_string(), what };
    let (path, value) =
        setting.split_once('=').ok_or_else(|| no("write it as path.to.key=value".into()))?;
    if value.trim().is_empty() {
        return take_out(table, path.trim()).map_err(no);
    }
    let value = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut t| t.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.to_string()));
    put(table, path.trim(), value).map_err(no)
}

/// Sets the key at `path.to.key`, making the sections on the way; what is wrong with the path if it
/// cannot be set.
pub(crate) fn put(table: &mut toml::Table, path: &str, value: toml::Value) -> Result<(), String> {
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().filter(|key| !key.is_empty()).ok_or("names no key")?;
    let mut at = table;
    for key in keys {
        let next = at.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = next.as_table_mut().ok_or_else(|| format!("`{key}` is not a section"))?;
    }
    at.insert(last.to_string(), value);
    Ok(())
}

/// Takes out the key at `path.to.key`; what is wrong with the path if it is not there.
fn take_out(table: &mut toml::Table, path: &str) -> Result<(), String> {
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().filter(|key| !key.is_empty()).ok_or("names no key")?;
    let section = keys.into_iter().try_fold(table, |at, key| at.get_mut(key)?.as_table_mut());
    match section.and_then(|section| section.remove(last)) {
        Some(_) => Ok(()),
        None => Err("the key is not set, so it cannot be taken out".into()),
    }
}

/// Whether no path is empty, which would be an error that names nothing.
fn check_paths(table: &toml::Table) -> Result<(), Error> {
    let keys = [
        ["data", "path"],
        ["data", "val_path"],
        ["data", "tokenizer"],
        ["model", "path"],
        ["teacher", "models"],
    ];
    for [section, key] in keys {
        let value = table.get(section).and_then(|section| section.get(key));
        let empty = |value: &toml::Value| value.as_str() == Some("");
        if value.is_some_and(|v| empty(v) || v.as_array().is_some_and(|all| all.iter().any(empty)))
        {
            return Err(Error::Config(format!(
                "{section}.{key} is an empty path; name a file or directory"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_names_the_nearest() {
        let text = crate::preset::text("gpt-play").unwrap();
        let message = |from: &str, to: &str| {
            Config::parse(&text.replace(from, to), &[]).unwrap_err().to_string()
        };
        assert!(message("batch_size", "batchsize").contains("did you mean `batch_size`?"));
        assert!(message("[optimizer]", "[optimiser]").contains("did you mean `optimizer`?"));
        assert!(message("layers =", "layer =").contains("did you mean `layers`?"));
        assert!(message("kind = \"play\"", "kind = \"plays\"").contains("did you mean `play`?"));
    }

    #[test]
    fn a_key_that_a_setting_leaves_behind_is_told_with_the_way_out() {
        let text = crate::preset::text("gpt-play").unwrap();
        let said = |settings: &[&str]| {
            let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
            Config::parse(text, &settings).unwrap_err().to_string()
        };
        let left = said(&["data.kind=text"]);
        assert!(left.starts_with("data: unknown field `characters`"), "{left}");
        assert!(left.ends_with("`--set data.characters=` takes it out"), "{left}");
        // A key of a setting is the setting's own mistake.
        let own = said(&["data.charakters=5"]);
        assert!(own.ends_with("did you mean `characters`?"), "{own}");
    }

    #[test]
    fn settings_change_keys() {
        let text = crate::preset::text("gpt-play").unwrap();
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

    /// Also in a section that says which of several kinds it is, with keys of its own or without.
    #[test]
    fn what_is_wrong_is_said_of_its_key() {
        let text = crate::preset::text("gpt-play").unwrap();
        for (setting, wanted) in [
            ("model.dim=\"x\"", "model.dim: is the text \"x\", and wants a whole number"),
            (
                "data.characters=-3",
                "data.characters: is -3, and wants a whole number of 0 or above",
            ),
            ("optimizer.beta=[1]", "optimizer.beta: is a list, and wants a number"),
            ("constraint.sigma_max={}", "constraint.sigma_max: is a section, and wants a number"),
            ("constraint.per_head=3", "constraint.per_head: has none of its forms"),
            ("data={kind=\"text\",path=\"\"}", "data.path is an empty path"),
            ("teacher={models=[\"\"]}", "teacher.models is an empty path"),
            ("train.schedule={kind=\"linear\",decay=0.3}", "train.schedule: unknown field `decay`"),
            ("train.schedule={kind=\"constant\",rest=1}", "train.schedule: unknown field `rest`"),
            ("train.schedule={kind=\"cosine\",rest=1}", "train.schedule: unknown field `rest`"),
            ("rates={kind=\"equal\",masses={blocks=3.0}}", "rates: unknown field `masses`"),
        ] {
            let said = Config::parse(text, &[setting.to_string()]).unwrap_err().to_string();
            assert!(said.contains(wanted) && !said.contains("enum"), "{setting}: {said}");
        }
    }

    #[test]
    fn a_key_without_a_value_is_taken_out() {
        let text = crate::preset::text("gpt-play").unwrap();
        let of = |settings: &[&str]| {
            let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
            Config::parse(text, &settings)
        };
        let out = of(&["lipschitz_target=3", "lipschitz_target="]).unwrap();
        assert_eq!(out.lipschitz_target, None);
        assert_eq!(of(&["train.log_every= "]).unwrap().train.log_every, ten());
        let settings = ["lipschitz_target=2", "lipschitz_target=", "lipschitz_target=3"];
        assert_eq!(of(&settings).unwrap().lipschitz_target, Some(3.0));
        for setting in ["train.stepz=", "nothing.at.all=", "train.steps.more=", "=", "train.="] {
            let said = of(&[setting]).unwrap_err().to_string();
            assert!(said.contains(setting) && !said.contains('\n'), "{said}");
        }
        // An empty text is one in quotes.
        let said = of(&["train.device=\"\""]).unwrap();
        assert_eq!(said.train.device, "");
    }

    #[test]
    fn a_seed_is_any_64_bit_number_in_every_file() {
        let text = crate::preset::text("gpt-play").unwrap();
        for seed in [0, 1, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX] {
            for setting in [format!("train.seed={seed}"), format!("train.seed=\"{seed}\"")] {
                let config = Config::parse(text, &[setting]).unwrap();
                assert_eq!(config.train.seed, seed);
                assert_eq!(Config::parse(&config.to_toml().unwrap(), &[]).unwrap(), config);
                let json = serde_json::to_string(&config).unwrap();
                assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
            }
        }
        for wrong in ["-1", "18446744073709551616", "1.5", "many", "true", "[1]"] {
            let setting = format!("train.seed={wrong}");
            let said = Config::parse(text, &[setting]).unwrap_err().to_string();
            let range = "from 0 to 18446744073709551615, as a string above 9223372036854775807";
            assert!(said.starts_with("train.seed: ") && said.contains(range), "{said}");
        }
    }

    #[test]
    fn whole_numbers_out_of_their_range_are_told_with_it() {
        let said = |preset: &str, setting: &str| {
            let text = crate::preset::text(preset).unwrap();
            Config::parse(text, &[setting.to_string()]).unwrap_err().to_string()
        };
        let demo = [
            ("train.batch_size=0", "train.batch_size is 0; it must be from 1 to 268435456"),
            ("train.batch_size=268435457", "from 1 to 268435456"),
            ("train.steps=9223372036854775807", "from 1 to 1000000000000"),
            ("train.accumulate=0", "train.accumulate is 0; it must be from 1"),
            ("train.log_every=0", "train.log_every is 0"),
            ("train.eval_every=0", "train.eval_every is 0"),
            ("model.layers=10000000", "model.layers is 10000000; it must be from 1 to 1024"),
            ("model.dim=9223372036854775807", "from 1 to 1048576"),
            ("model.heads=0", "model.heads is 0"),
            ("model.context=0", "model.context is 0; it must be from 1 to 16777216"),
            ("data.characters=0", "data.characters is 0; it must be from 1 to 1000000000"),
            ("data.characters=9223372036854775807", "it must be from 1 to 1000000000"),
        ];
        for (setting, wanted) in demo {
            let said = said("gpt-play", setting);
            assert!(said.contains(wanted), "{setting}: {said}");
        }
        assert!(said("mlp-cifar10", "model.hidden=[256, 0]").contains("model.hidden is 0"));
        assert!(said("mlp-cifar10", "data.limit_train=0").contains("data.limit_train is 0"));
        let patch = "model={ preset = \"vit\", dim = 8, layers = 1, heads = 2, patch = 64 }";
        assert!(said("mlp-cifar10", patch).contains("from 1 to 32"));
        let patch = "model.stages=[{ channels = 8, patch = 33, layers = 1 }]";
        assert!(said("convnet-cifar10", patch).contains("from 1 to 32"));
        assert!(said("nanogpt-145m", "data.vocabulary=0").contains("data.vocabulary is 0"));
        assert!(said("nanogpt-145m", "data.limit_val=1").contains("data.limit_val is 1"));
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
