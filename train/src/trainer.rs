//! One run: steps, log lines, evaluations, bounds, checkpoints.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use candle_core::{DType, Device, Tensor};
use lipschitz_certify::certificate::{Formula, certify, digest};
use lipschitz_certify::plan;
use lipschitz_certify::probe;
use lipschitz_certify::robust;
use lipschitz_certify::spectral::Method;
use lipschitz_certify::upper::Upper;
use lipschitz_data::task::{Order, Protocol, Task};
use lipschitz_nn::checkpoint::{self, Meta, Provenance};
use lipschitz_nn::init::{self, Blocks};
use lipschitz_nn::norm::rms_to_rms;
use lipschitz_nn::ops::Precision;
use lipschitz_nn::{Graph, Model};
use lipschitz_opt::{PerHead, Rate, Recipe};

use crate::config::Config;
use crate::dynamics::{check_caps, largest_activation, matrices};
use crate::events::EventWriter;
use crate::progress::Progress;
use crate::ranks::{Ranks, local_rank};
use crate::run_dir::{self, Metrics, RunDir, Saved, Summary};
use crate::step::{self, Times, Training};

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// All steps are made; what they came to, at the first of the processes.
    Done(Option<Box<Summary>>),
    /// Stopped by a signal, after this many steps; a checkpoint is saved.
    Stopped(u64),
}

/// Where a run is to be made, and how it is shown.
pub struct Options<'a> {
    /// The directory.
    pub out: &'a Path,
    /// Continue the run that is there.
    pub resume: bool,
    /// Raised to stop at the next step.
    pub stop: Arc<AtomicBool>,
    /// Show nothing.
    pub quiet: bool,
    /// Whether the caller holds the directory's [`run_dir::Lock`].
    pub locked: bool,
    /// Name in tables and pictures.
    pub label: String,
    /// The processes that train together.
    pub ranks: Rc<Ranks>,
}

/// `cpu` or `cuda:N`, the GPU of the first process of a machine; those that follow belong to the
/// others.
///
/// # Errors
/// If there is no such device.
pub fn device(name: &str) -> Result<Device> {
    match name.split_once(':') {
        None if name == "cpu" => Ok(Device::Cpu),
        Some(("cuda", ordinal)) => {
            let ordinal: usize = ordinal
                .parse()
                .map_err(|_| anyhow!("device `{name}`: write it as cpu or cuda:N"))?;
            if !candle_core::utils::cuda_is_available() {
                bail!(
                    "device `{name}`: this program is built for CPUs alone; install NVIDIA's driver and the CUDA toolkit, and build it \
                     with --features cuda"
                )
            }
            let ordinal = ordinal + local_rank();
            Device::new_cuda(ordinal).map_err(|e| {
                let e = lipschitz_nn::Error::from(e);
                anyhow!(
                    "device `{name}`: GPU {ordinal} cannot be used: {e}; nvidia-smi lists the \
                         GPUs, or says that the driver is missing"
                )
            })
        }
        _ => bail!("device `{name}`: write it as cpu or cuda:N"),
    }
}

/// What a config means for its data.
pub struct Checked {
    /// The network.
    pub graph: Graph,
    /// What moves and what keeps its weights, the cap solved from the target if there is one.
    pub recipe: Recipe,
}

/// Finds what is wrong with a config, without writing anything.
///
/// # Errors
/// One line: sizes that do not fit, a target that no cap reaches, a constant out of range.
pub fn check(config: &Config, task: &Task) -> Result<Checked> {
    let graph = config.graph(task.outputs())?;
    if let Some(context) = graph.context() {
        task.check_context(context)?;
    }
    let mut recipe = config.recipe();
    recipe.check_for(&graph)?;
    recipe.rates.shares(&graph)?;
    if let Some(target) = config.lipschitz_target {
        recipe = plan::solve(&graph, &recipe, target)?;
    }
    recipe.constraint.check_complete()?;
    Ok(Checked { graph, recipe })
}

/// A fresh network, or the saved one, with what trains it.
fn training(
    config: &Config,
    checked: &Checked,
    saved: Option<&Saved>,
    device: &Device,
    ranks: &Rc<Ranks>,
) -> Result<Training> {
    let (Checked { graph, recipe }, t) = (checked, &config.train);
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
    match saved {
        Some(saved) => training.load_state(&saved.state)?,
        None => training.project()?,
    }
    Ok(training)
}

/// Trains as `config` says.
///
/// # Errors
/// Bad input, a diverging loss, a cap or a target that does not hold, a full disk: one line each.
/// The last checkpoint stays as it is.
pub fn run(config: &Config, options: &Options) -> Result<End> {
    let ranks = &options.ranks;
    let device = device(&config.train.device)?;
    ranks.connect(&device)?;
    let task = config.data.load()?;
    // What can be wrong with the config is found before anything is written.
    let checked = check(config, &task)?;
    let part = step::share(config.train.batch_size, ranks.count())?;
    ranks.wait();
    // The first alone writes; the others read what it has put in order.
    let (mut dir, saved) = match (ranks.is_first(), options.resume) {
        (true, true) => RunDir::resume(options.out, config, &device, options.locked)
            .map(|(dir, saved)| (Some(dir), saved))?,
        (true, false) => (Some(RunDir::create(options.out, config, options.locked)?), None),
        (false, _) => (None, None),
    };
    ranks.wait();
    let saved = match dir {
        None if options.resume => run_dir::load(options.out, &device)?,
        _ => saved,
    };
    let fresh = saved.is_none();
    let (start, before) = saved.as_ref().map_or((0, 0.0), |s| (s.step, s.seconds));
    if saved.as_ref().is_some_and(|saved| *saved.model.graph() != checked.graph) {
        bail!("{}: its checkpoint has another architecture than its config", options.out.display())
    }
    let mut training = training(config, &checked, saved.as_ref(), &device, ranks)?;
    let Checked { graph, recipe } = checked;
    let meta = |step: u64| Meta {
        format: checkpoint::FORMAT,
        graph: graph.clone(),
        config: serde_json::to_value(config).unwrap_or_default(),
        tokenizer: task.tokenizer(),
        provenance: Provenance {
            version: env!("CARGO_PKG_VERSION").into(),
            seed: Some(config.train.seed),
            data_digest: Some(task.digest()),
            step: Some(step),
            origin: None,
        },
    };
    let t = &config.train;
    let mut events = match &dir {
        Some(dir) if fresh => Some(EventWriter::create(dir.path())?),
        Some(dir) => Some(EventWriter::resume(dir.path(), start)?),
        None => None,
    };
    let mut progress = Progress::new(t.steps, start, options.quiet || !ranks.is_first());
    let clock = Instant::now();
    let seconds = |clock: &Instant| before + clock.elapsed().as_secs_f64();
    let mut order = task.order(t.seed);
    let (context, first_row) = (graph.context(), ranks.rank() * part);
    let batch = |order: &mut Order, step: u64| -> Result<(Tensor, Tensor)> {
        let (x, y) = order.batch(&task, step, t.batch_size, context, &Device::Cpu)?;
        let own = |t: Tensor| t.narrow(0, first_row, part)?.to_device(&device);
        Ok((own(x)?, own(y)?))
    };
    let keep = |training: &Training, dir: Option<&RunDir>, step: u64, seconds: f64| -> Result<()> {
        if ranks.count() > 1 {
            ranks.agree("the weights", &digest(&training.model)?)?;
        }
        let state = training.state()?;
        dir.map_or(Ok(()), |dir| dir.save(&training.model, &state, &meta(step), step, seconds))
    };
    let mut next = None;
    let mut times = Times::default();
    for step in start..t.steps {
        let [stop] = ranks.add([f64::from(u8::from(options.stop.load(Ordering::Relaxed)))]);
        if stop > 0.0 {
            keep(&training, dir.as_ref(), step, seconds(&clock))?;
            progress.finish();
            return Ok(End::Stopped(step));
        }
        let rate = Rate { peak: t.learning_rate, factor: t.schedule.factor(step, t.steps) };
        let (x, y) = match next.take() {
            Some(batch) => batch?,
            None => batch(&mut order, step)?,
        };
        let done = step + 1;
        let evaluates = done % t.eval_every == 0 || done == t.steps;
        let logs = ranks.is_first() && (done % t.log_every == 0 || evaluates || done == 1);
        let saves = evaluates && done != t.steps;
        let old = if logs { copies(&training)? } else { Vec::new() };
        // The next batch is put together while this one is worked on.
        let outcome = std::thread::scope(|scope| {
            let following = (done < t.steps).then(|| scope.spawn(|| batch(&mut order, done)));
            let outcome = training.step(&x, &y, t.accumulate, rate, &mut times);
            next = following.map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            outcome
        })?;
        if !outcome.loss.is_finite() {
            bail!(
                "the loss is {} at step {done}: training diverged; lower train.learning_rate",
                outcome.loss
            )
        }
        let (Some(dir), Some(events), true) = (&mut dir, &mut events, logs) else {
            if saves {
                keep(&training, None, done, seconds(&clock))?;
            }
            continue;
        };
        let model = training.model.detached();
        if let Err(lipschitz_nn::Error::Weight { name, .. }) = model.check_finite() {
            bail!(
                "`{name}` is no longer finite at step {done}: training diverged; lower \
                 train.learning_rate"
            )
        }
        let certificate = certify(&model, Method::Proven, Formula::Sound, None)?;
        check_caps(&certificate, &training.variables, &training.constraint)?;
        check_target(config, certificate.rms)?;
        let mut line = Metrics {
            step: done,
            // Tokens, or images.
            tokens: done * t.batch_size as u64 * graph.input().positions() as u64,
            train_loss: Some(outcome.loss),
            grad_norm: Some(outcome.grad_norm),
            activation_max: Some(largest_activation(&model, &x)?),
            lipschitz: log10(certificate.rms),
            learning_rate: rate.now(),
            times: Some(std::mem::take(&mut times)),
            matrices: matrices(&certificate, &training.variables, &old)?,
            ..Metrics::default()
        };
        if evaluates {
            let result = task.evaluate(&model, Protocol::Full, t.batch_size, &device)?;
            line.val_loss = Some(result.loss);
            line.val_accuracy = Some(result.accuracy);
        }
        for (tag, value) in [
            ("loss/train", line.train_loss),
            ("loss/val", line.val_loss),
            ("accuracy/val", line.val_accuracy),
            ("lipschitz/log10", line.lipschitz),
            ("gradient/norm", line.grad_norm),
            ("activation/max", line.activation_max),
            ("learning_rate", Some(line.learning_rate)),
        ] {
            if let Some(value) = value {
                events.scalar(tag, done, value as f32)?;
            }
        }
        for (name, m) in &line.matrices {
            for (what, value) in
                [("norm", m.norm), ("stable_rank", m.stable_rank), ("update", m.update)]
            {
                events.scalar(&format!("{what}/{name}"), done, value as f32)?;
            }
        }
        events.flush()?;
        line.seconds = seconds(&clock);
        dir.log(&line)?;
        progress.show(&line, certificate.rms);
        if saves {
            keep(&training, Some(dir), done, seconds(&clock))?;
        }
    }
    progress.finish();
    let spent = seconds(&clock);
    keep(&training, dir.as_ref(), t.steps, spent)?;
    let Some(mut dir) = dir else { return Ok(End::Done(None)) };
    // What a run came to is what the checkpoint comes to, whatever products were worked out in on
    // the way.
    let model = training.model.detached().with_precision(Precision::F32);
    let summary = finish(config, options, &mut dir, &task, &model, &meta(t.steps), &recipe, spent)?;
    Ok(End::Done(Some(Box::new(summary))))
}

/// The weights as they are, for comparison with what a step makes of them.
fn copies(training: &Training) -> Result<Vec<Tensor>> {
    Ok(training
        .variables
        .iter()
        .map(|v| v.var.as_tensor().detach().copy())
        .collect::<Result<_, _>>()?)
}

/// Whether the constant that was asked for holds.
fn check_target(config: &Config, l: Upper) -> Result<()> {
    match config.lipschitz_target {
        Some(target) if l > Upper::from_f64(target) => {
            bail!(lipschitz_certify::Error::Violated(format!(
                "the certified constant {l} is above lipschitz_target {target}"
            )))
        }
        _ => Ok(()),
    }
}

/// log10 of a finite bound.
fn log10(x: Upper) -> Option<f64> {
    Some(x.log10()).filter(|x| x.is_finite())
}

#[allow(clippy::too_many_arguments)]
fn finish(
    config: &Config,
    options: &Options,
    dir: &mut RunDir,
    task: &Task,
    model: &Model,
    meta: &Meta,
    recipe: &Recipe,
    seconds: f64,
) -> Result<Summary> {
    checkpoint::save(&dir.path().join("model.safetensors"), model, meta)?;
    let certificate = certify(model, Method::Proven, Formula::Sound, None)?;
    dir.write("certificate.json", &serde_json::to_string_pretty(&certificate)?)?;
    let result = task.evaluate(model, Protocol::Full, config.train.batch_size, &model.device())?;
    let found = probe::search(model, &task.starts(model)?, certificate.domain.radius.to_f64(), 24)?;
    // A value found is measured in floating point; the certificate speaks of real arithmetic.
    if Upper::from_f64(found.sensitivity * (1.0 - 1e-9)) > certificate.l2 {
        bail!(lipschitz_certify::Error::Violated(format!(
            "found a sensitivity of {} above the certified {}: this is a defect of the \
             certificate, please report it",
            found.sensitivity, certificate.l2
        )))
    }
    check_target(config, certificate.rms)?;
    let first = certificate.graph.nodes().first();
    let inputs = match first.map(|n| &n.op) {
        Some(lipschitz_nn::graph::Op::Embedding { dim, .. }) => *dim,
        _ => found.pair.0.elem_count(),
    };
    let outputs = task.outputs();
    let method = recipe.name();
    let (optimizer, constraint) = method.split_once(" + ").unwrap_or((&method, ""));
    let summary = Summary {
        label: options.label.clone(),
        optimizer: optimizer.into(),
        constraint: constraint.into(),
        method: method.clone(),
        seed: config.train.seed,
        learning_rate: config.train.learning_rate,
        target: config.lipschitz_target,
        sigma_max: recipe.constraint.sigma_max(),
        steps: config.train.steps,
        seconds,
        parameters: model.parameter_count(),
        val_loss: result.loss,
        val_accuracy: result.accuracy,
        lipschitz: certificate.rms,
        lipschitz_log10: log10(certificate.rms),
        found_log10: Some((found.sensitivity * rms_to_rms(outputs, inputs)).log10())
            .filter(|x| x.is_finite()),
        median_margin: Some(result.margin).filter(|x| x.is_finite()),
        margin_normalized_log10: log10(certificate.margin.l2.div_up(result.margin)),
        certified_accuracy: match task {
            Task::Images(data) => Some(robust::certified_accuracy(
                model,
                data.test.batches(robust::BATCH, &Device::Cpu),
                robust::EPS_36_255,
            )?),
            Task::Text(_) => None,
        },
        paper_loss: None,
        paper_accuracy: None,
    };
    dir.write("summary.json", &serde_json::to_string_pretty(&summary)?)?;
    Ok(summary)
}
