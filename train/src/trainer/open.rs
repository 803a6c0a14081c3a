//! What a run begins with: an empty directory, or its last checkpoint.

use std::rc::Rc;

use candle_core::{DType, Device};
use lipschitz_nn::init::{self, Blocks};
use lipschitz_nn::{Graph, Model};
use lipschitz_opt::{PerHead, Recipe};

use super::RunOptions;
use crate::averaging::Average;
use crate::config::Config;
use crate::loss::Loss;
use crate::ranks::Ranks;
use crate::resume::MadeOf;
use crate::run_dir::{Lock, RunDir, SavedRun};
use crate::step::Training;
use crate::{Error, resume, run_dir};

/// What a run begins with.
pub(super) struct Opened {
    /// The directory, at the first process.
    pub(super) dir: Option<RunDir>,
    /// The checkpoint that it is resumed from.
    pub(super) saved: Option<SavedRun>,
    /// What there is to say about it.
    pub(super) told: Vec<String>,
}

/// Opens the directory at the first process; the others read what it has put in order. Nothing is
/// written before all is known to fit.
pub(super) fn open(
    made_of: &MadeOf,
    options: &RunOptions,
    device: &Device,
) -> Result<Opened, Error> {
    let ranks = &options.ranks;
    ranks.barrier();
    let first = match (ranks.is_first(), options.resume) {
        (true, true) => Some(reopen(made_of, options, device)?),
        (true, false) => {
            let dir = RunDir::create(options.out, made_of.config, options.lock.as_ref())?;
            Some(Opened { dir: Some(dir), saved: None, told: Vec::new() })
        }
        (false, _) => None,
    };
    ranks.barrier();
    match first {
        Some(opened) => Ok(opened),
        None => {
            let saved = if options.resume { run_dir::load(options.out, device)? } else { None };
            Ok(Opened { dir: None, saved, told: Vec::new() })
        }
    }
}

/// Goes on with the run that is there, if it is this one: its checkpoint decides, and where there
/// is none, its config.
fn reopen(made_of: &MadeOf, options: &RunOptions, device: &Device) -> Result<Opened, Error> {
    let (out, config) = (options.out, made_of.config);
    if !run_dir::holds_run(out) {
        return Err(Error::NoRun(out.to_path_buf()));
    }
    let lock = Lock::or_take(out, options.lock.as_ref())?;
    let mut saved = run_dir::load(out, device)?;
    let file = out.join("config.toml");
    let mut told = Vec::new();
    if let Some(saved) = &mut saved {
        let resumed = resume::check(saved, made_of)?;
        // A change behind which no step was made is none.
        let step = saved.position.step;
        saved.position.step_changes.retain(|change| change.step != step);
        saved.position.step_changes.extend(resumed.change);
        told = resumed.notes;
    } else if file.exists() {
        let there = Config::read(&file, &[])?;
        resume::same(&there, config).map_err(|what| Error::OtherConfig { path: file, what })?;
    }
    let position = saved.as_mut().map(|saved| &mut saved.position);
    let (dir, missing) = RunDir::resume(out, config, lock, position)?;
    told.extend(missing);
    Ok(Opened { dir: Some(dir), saved, told })
}

/// A fresh network, or the saved one, with its optimizer and its constraint.
pub(super) fn training(
    config: &Config,
    graph: &Graph,
    recipe: &Recipe,
    loss: Loss,
    saved: Option<&SavedRun>,
    device: &Device,
    ranks: &Rc<Ranks>,
) -> Result<Training, Error> {
    let t = &config.train;
    let model = match saved {
        Some(saved) => saved.model.clone(),
        None => {
            let heads = recipe.constraint.per_head == PerHead::All(true);
            let blocks = if heads { Blocks::PerHead } else { Blocks::Whole };
            Model::new(graph.clone(), init::weights(graph, t.seed, blocks, device, DType::F32)?)?
        }
    };
    let (model, vars) = model.recomputing(t.recompute).with_precision(t.precision).trainable()?;
    let variables = recipe.variables(graph, vars, t.learning_rate)?;
    let mut training = Training::new(model, variables, recipe, ranks.clone())?;
    (training.loss, training.average) = (loss, Average::new(config.averaging));
    match saved {
        Some(saved) => training.load_state(&saved.state)?,
        None => training.project()?,
    }
    Ok(training)
}
