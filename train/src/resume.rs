//! Whether a checkpoint is one of the run that is asked for.
//!
//! A resumed run ends as one that was never stopped. So whatever decides the steps that were made
//! has to be what it was: the config, the network, the data. What does not may change.

use lipschitz_data::DataSet;
use lipschitz_nn::Graph;
use lipschitz_opt::schedule::ScheduleConfig;
use toml::Value;

use crate::Error;
use crate::averaging::AveragingConfig;
use crate::config::Config;
use crate::saved::{Position, SavedRun, StepChange};
use crate::target::Due;

/// Keys that say nothing about the steps that were made, or whose meaning is checked: the step
/// count by [`step_change`], the paths by what was read from them.
const FREE: [&str; 11] = [
    "train.steps",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.device",
    "model.path",
    "data.path",
    "data.val_path",
    "data.tokenizer",
    "teacher.models",
];

/// What there is to say about a run that may be resumed.
#[derive(Debug, Default)]
pub(crate) struct Resumed {
    /// A change of the step count that changes learning rates.
    pub(crate) change: Option<StepChange>,
    /// What cannot be checked, and what changes, in words.
    pub(crate) notes: Vec<String>,
}

/// What decides the steps of a run.
pub(crate) struct MadeOf<'a> {
    /// Its config.
    pub(crate) config: &'a Config,
    /// What it is trained on.
    pub(crate) data: &'a dyn DataSet,
    /// The network.
    pub(crate) graph: &'a Graph,
    /// SHA-256 of each of its teachers.
    pub(crate) teachers: &'a [String],
}

/// Compares a checkpoint with what a run is made of.
///
/// # Errors
/// What differs.
pub(crate) fn check(saved: &SavedRun, made_of: &MadeOf) -> Result<Resumed, Error> {
    let MadeOf { config, data, graph, teachers } = *made_of;
    let SavedRun { directory, model, meta, position, checked, .. } = saved;
    let there = || directory.clone();
    let mut resumed = Resumed::default();
    let mut unknown = |what: &str| resumed.notes.push(format!("{}: {what}", directory.display()));
    if !checked {
        unknown(
            "an earlier version saved it, without digests: whether its files are whole and \
                 belong together cannot be checked",
        );
    }
    let digest = meta.provenance.data_digest.as_deref();
    if digest.is_none() {
        unknown(
            "does not say which data it was trained on, so whether this is the same cannot \
                 be checked",
        );
    }
    if digest.is_some_and(|digest| digest != data.digest())
        || meta.tokenizer.as_ref() != data.tokenizer()
    {
        return Err(Error::OtherData { path: there(), name: data.name().to_string() });
    }
    if meta.provenance.teachers != teachers {
        let what = "teacher.models have other weights there, or are others".into();
        return Err(Error::OtherConfig { path: there(), what });
    }
    if model.graph() != graph {
        return Err(Error::OtherArchitecture(there()));
    }
    if position.step > config.train.steps {
        let (made, steps) = (position.step, config.train.steps);
        return Err(Error::FewerSteps { path: there(), made, steps });
    }
    match serde_json::from_value::<Config>(meta.config.clone()) {
        Err(_) => unknown(
            "this version cannot read the config that it was made with, so whether \
                           this is the same cannot be checked",
        ),
        Ok(made) => {
            same(&made, config).map_err(|what| Error::OtherConfig { path: there(), what })?;
            tail(&made, config).map_err(|what| Error::OtherConfig { path: there(), what })?;
            resumed.change = step_change(position, &made, config);
        }
    }
    if let Some(StepChange { step, from, to }) = resumed.change {
        resumed.notes.push(format!(
            "train.steps was {from} for the steps up to {step} and is {to} from here on: their \
             learning rates, or what the last of them was fitted to, were those of {from} steps, so this \
             is no run of {to} steps"
        ));
    }
    Ok(resumed)
}

/// Whether two configs say the same about the steps that were made; the first difference in words.
pub(crate) fn same(there: &Config, here: &Config) -> Result<(), String> {
    let table = |config: &Config| Value::try_from(config).map_err(|e| e.to_string());
    match difference("", Some(&table(there)?), Some(&table(here)?)) {
        None => Ok(()),
        Some(what) => Err(what),
    }
}

fn difference(path: &str, there: Option<&Value>, here: Option<&Value>) -> Option<String> {
    if FREE.contains(&path) || there == here {
        return None;
    }
    if let (Some(Value::Table(a)), Some(Value::Table(b))) = (there, here) {
        let inside =
            |key: &String| if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let missing = b.keys().filter(|key| !a.contains_key(*key));
        let mut keys = a.keys().chain(missing);
        return keys.find_map(|key| difference(&inside(key), a.get(key), b.get(key)));
    }
    let shown = |value: Option<&Value>| value.map_or("not set".into(), ToString::to_string);
    Some(format!("{path} is {} there and {} here", shown(there), shown(here)))
}

/// A mean over the last part of a run is none of a longer or shorter one.
fn tail(there: &Config, here: &Config) -> Result<(), String> {
    let (a, b) = (there.train.steps, here.train.steps);
    match here.averaging {
        Some(AveragingConfig::Tail { .. }) if a != b => Err(format!(
            "train.steps is {a} there and {b} here, and averaging.share is a share of them"
        )),
        _ => Ok(()),
    }
}

/// The change of `train.steps`, if it would have changed the learning rate of a step that was made
/// since the last change, or whether weights were fitted to a target behind the last one.
fn step_change(position: &Position, there: &Config, here: &Config) -> Option<StepChange> {
    let (to, step) = (here.train.steps, position.step);
    // What was changed at this very step was no change for a step that was made.
    let here_too = position.step_changes.iter().find(|change| change.step == step);
    let from = here_too.map_or(there.train.steps, |change| change.from);
    let before = position.step_changes.iter().rfind(|change| change.step != step);
    let since = before.map_or(0, |change| change.step);
    let mut made = there.clone();
    made.train.steps = from;
    let fitted = Due::after(&made, step) != Due::after(here, step);
    let changes = from != to && (fitted || differs(here.train.schedule, since..step, from, to));
    changes.then_some(StepChange { step, from, to })
}

fn differs(schedule: ScheduleConfig, mut made: std::ops::Range<u64>, from: u64, to: u64) -> bool {
    made.any(|step| schedule.factor(step, from) != schedule.factor(step, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo(settings: &[&str]) -> Config {
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        Config::parse(crate::preset::text("gpt-play").unwrap(), &settings).unwrap()
    }

    #[test]
    fn keys_that_decide_nothing_about_the_past_are_free_and_no_other_is() {
        let free = [
            "train.steps=900",
            "train.log_every=3",
            "train.eval_every=7",
            "train.checkpoint_every=2",
            "train.checkpoint_minutes=0.5",
            "train.device=cuda:3",
        ];
        assert_eq!(same(&demo(&[]), &demo(&free)), Ok(()));
        for (setting, key) in [
            ("train.seed=1", "train.seed is 0 there and 1 here"),
            ("train.learning_rate=0.2", "train.learning_rate is 0.1 there and 0.2 here"),
            ("train.batch_size=17", "train.batch_size"),
            ("train.accumulate=2", "train.accumulate is not set there and 2 here"),
            ("train.precision=bf16", "train.precision"),
            ("train.schedule.kind=constant", "train.schedule.kind"),
            ("data.characters=2000", "data.characters is 1200000 there and 2000 here"),
            ("model.dim=32", "model.dim"),
            ("constraint.sigma_max=3", "constraint.sigma_max"),
            ("optimizer.nesterov=true", "optimizer.nesterov"),
            ("lipschitz_target=99", "lipschitz_target"),
        ] {
            let said = same(&demo(&[]), &demo(&[setting])).unwrap_err();
            assert!(said.starts_with(key), "{setting}: {said}");
            assert!(same(&demo(&[setting]), &demo(&[])).is_err(), "{setting}");
        }
    }

    #[test]
    fn a_step_count_matters_where_a_learning_rate_would_have_been_another() {
        let stable = ScheduleConfig::StableThenDecay { decay: 0.25 };
        assert!(!differs(ScheduleConfig::Constant {}, 0..10, 10, 20));
        assert!(!differs(ScheduleConfig::Linear {}, 0..0, 10, 20));
        assert!(differs(ScheduleConfig::Linear {}, 0..10, 10, 20));
        assert!(differs(ScheduleConfig::Cosine {}, 0..2, 10, 20));
        // The part before the decay is the same however long the run is.
        assert!(!differs(stable, 0..8, 10, 20));
        assert!(differs(stable, 0..10, 10, 20));
        // The last step alone fits the head, or logits, whatever its number.
        let change = |step: u64, target: &str| {
            let of = |steps: &str| demo(&[steps, target, "train.schedule.kind=\"constant\""]);
            let position = Position { step, ..Position::default() };
            step_change(&position, &of("train.steps=30"), &of("train.steps=40"))
        };
        let goal = "lipschitz={ target = 2.0, by = \"certificate\" }";
        assert_eq!(change(30, goal), Some(StepChange { step: 30, from: 30, to: 40 }));
        assert_eq!([change(25, goal), change(26, goal), change(30, "train.seed=0")], [None; 3]);
        // Also at a step after which any run fits it.
        let of = |steps: &str| demo(&[steps, goal, "train.schedule.kind=\"constant\""]);
        let lengthened = |step: u64, from: &str, to: &str| {
            step_change(&Position { step, ..Position::default() }, &of(from), &of(to))
        };
        let (few, many) = ("train.steps=25", "train.steps=50");
        assert_eq!(lengthened(25, few, many), Some(StepChange { step: 25, from: 25, to: 50 }));
        assert_eq!(lengthened(25, many, few), Some(StepChange { step: 25, from: 50, to: 25 }));
        assert_eq!(lengthened(24, few, many), None);
        assert!(change(30, "max_logit=3.0").is_some());
    }

    /// Between two changes at one step no step was made under the first.
    #[test]
    fn the_last_of_several_changes_at_a_step_counts() {
        let change = StepChange { step: 6, from: 400, to: 800 };
        let position = Position { step: 6, step_changes: vec![change], ..Position::default() };
        let of = |steps: u64| demo(&[&format!("train.steps={steps}")]);
        let to = |steps| step_change(&position, &of(800), &of(steps));
        assert_eq!(to(700), Some(StepChange { to: 700, ..change }));
        assert_eq!(to(800), Some(change));
        assert_eq!(to(400), None);
    }
}
