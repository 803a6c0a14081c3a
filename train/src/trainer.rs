//! One run: steps, log lines, evaluations, bounds, checkpoints.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use candle_core::{DType, Device, Var};
use certify::certificate::{Certificate, Formula, certify};
use certify::probe;
use certify::robust;
use certify::spectral::{Matrix, Method, spectral_norm};
use certify::upper::Upper;
use lipschitz_nn::checkpoint::{self, Meta, Provenance};
use lipschitz_nn::graph::{Geometry, Parameter};
use lipschitz_nn::init::{self, Blocks};
use lipschitz_nn::norm::rms_to_rms;
use lipschitz_nn::{Graph, Model};
use lipschitz_opt::Optimizer;
use lipschitz_opt::constraint::{Constraint, ConstraintConfig};

use crate::config::Config;
use crate::events::EventWriter;
use crate::progress::Progress;
use crate::run_dir::{Metrics, RunDir, Summary};
use certify::plan;
use certify::task::{Protocol, Task};

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// All steps are made.
    Done(Box<Summary>),
    /// Stopped by a signal, after this many steps; a checkpoint is saved.
    Stopped(u64),
}

/// Relative excess of a proven norm over its cap that rounding in `f32` explains; more is an error.
pub const CAP_TOLERANCE: f64 = 1e-3;

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
    /// Name in tables and pictures.
    pub label: String,
}

/// `cpu` or `cuda:N`.
///
/// # Errors
/// If there is no such device.
pub fn device(name: &str) -> Result<Device> {
    match name.split_once(':') {
        None if name == "cpu" => Ok(Device::Cpu),
        Some(("cuda", ordinal)) => {
            let ordinal = ordinal.parse().map_err(|_| anyhow!("device `{name}`: write it as cpu or cuda:N"))?;
            Device::new_cuda(ordinal).map_err(|e| {
                anyhow!(
                    "device `{name}`: {}; build with --features cuda on a machine that has one",
                    lipschitz_nn::Error::from(e)
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
    /// The constraint, its cap solved from the target if there is one.
    pub constraint: ConstraintConfig,
    /// The same, ready to be applied.
    pub enforced: Constraint,
}

/// Finds what is wrong with a config, without writing anything.
///
/// # Errors
/// One line: sizes that do not fit, a target that no cap reaches, a constant out of range.
pub fn check(config: &Config, task: &Task) -> Result<Checked> {
    let graph = config.graph(task.outputs()?)?;
    if let Some(context) = graph.context() {
        task.check_context(context)?;
    }
    let constraint = match config.lipschitz_target {
        Some(target) => plan::solve(&graph, &config.constraint, target)?,
        None => config.constraint.clone(),
    };
    let enforced = Constraint::new(&constraint, &config.optimizer)?;
    config.optimizer.build(Vec::new())?;
    Ok(Checked { graph, constraint, enforced })
}

/// Trains as `config` says.
///
/// # Errors
/// Bad input, a diverging loss, a cap or a target that does not hold, a full disk: one line each. The last checkpoint
/// stays as it is.
pub fn run(config: &Config, options: &Options) -> Result<End> {
    let device = device(&config.train.device)?;
    let task = config.data.load()?;
    // What can be wrong with the config is found before anything is written.
    let Checked { graph, constraint, enforced } = check(config, &task)?;
    let (mut dir, saved) = if options.resume {
        RunDir::resume(options.out, config, &device)?
    } else {
        (RunDir::create(options.out, config)?, None)
    };
    let seed = config.train.seed;
    let fresh = saved.is_none();
    let (start, before) = saved.as_ref().map_or((0, 0.0), |s| (s.step, s.seconds));
    let model = match &saved {
        Some(saved) if *saved.model.graph() == graph => saved.model.clone(),
        Some(_) => bail!("{}: its checkpoint has another architecture than its config", options.out.display()),
        None => {
            let blocks = if constraint.per_head() { Blocks::PerHead } else { Blocks::Whole };
            Model::new(graph.clone(), init::weights(&graph, seed, blocks, &device, DType::F32)?)?
        }
    };
    let (model, variables) = model.trainable()?;
    let mut optimizer = config.optimizer.build(variables.clone())?;
    if let Some(saved) = &saved {
        optimizer.load_state(&saved.optimizer)?;
    }
    if fresh {
        enforced.project(&variables)?;
    }
    let meta = |step: u64| Meta {
        format: checkpoint::FORMAT,
        graph: graph.clone(),
        config: serde_json::to_value(config).unwrap_or_default(),
        tokenizer: task.tokenizer(),
        provenance: Provenance {
            version: env!("CARGO_PKG_VERSION").into(),
            seed: Some(seed),
            data_digest: Some(task.digest()),
            step: Some(step),
        },
    };
    let t = &config.train;
    let mut events = if fresh { EventWriter::create(dir.path())? } else { EventWriter::resume(dir.path(), start)? };
    let mut progress = Progress::new(t.steps, start, options.quiet);
    let clock = Instant::now();
    let seconds = |clock: &Instant| before + clock.elapsed().as_secs_f64();
    let mut order = task.order(seed);
    for step in start..t.steps {
        if options.stop.load(Ordering::Relaxed) {
            dir.save(&model, &meta(step), &optimizer.state()?, step, seconds(&clock))?;
            progress.finish();
            return Ok(End::Stopped(step));
        }
        let learning_rate = t.learning_rate * t.schedule.factor(step, t.steps);
        let (x, y) = order.batch(&task, step, t.batch_size, graph.context(), &device)?;
        let outcome = update(&model, &variables, &mut *optimizer, &enforced, (&x, &y), learning_rate)?;
        let done = step + 1;
        if !outcome.loss.is_finite() {
            bail!("the loss is {} at step {done}: training diverged; lower train.learning_rate", outcome.loss)
        }
        let evaluates = done % t.eval_every == 0 || done == t.steps;
        if done % t.log_every != 0 && !evaluates && done != 1 {
            continue;
        }
        let certificate = certify(&model.detached(), Method::Proven, Formula::Sound, None)?;
        check_caps(&certificate, &variables, &enforced)?;
        let mut line = Metrics {
            step: done,
            // Tokens, or images.
            tokens: done * t.batch_size as u64 * graph.context().map_or(1, |context| context as u64),
            train_loss: Some(outcome.loss),
            grad_norm: Some(outcome.grad_norm),
            activation_max: Some(outcome.activation_max),
            lipschitz: log10(certificate.rms),
            learning_rate,
            ..Metrics::default()
        };
        if evaluates {
            let result = task.evaluate(&model.detached(), Protocol::Full, t.batch_size, &device)?;
            line.val_loss = Some(result.loss);
            line.val_accuracy = Some(result.accuracy);
        }
        for (tag, value) in [
            ("loss/train", line.train_loss),
            ("loss/val", line.val_loss),
            ("accuracy/val", line.val_accuracy),
            ("lipschitz/log10", line.lipschitz),
            ("gradient/norm", line.grad_norm),
            ("logit/max", line.activation_max),
            ("learning_rate", Some(learning_rate)),
        ] {
            if let Some(value) = value {
                events.scalar(tag, done, value as f32)?;
            }
        }
        events.flush()?;
        line.seconds = seconds(&clock);
        dir.log(&line)?;
        progress.show(&line, certificate.rms);
        if evaluates && done != t.steps {
            dir.save(&model, &meta(done), &optimizer.state()?, done, seconds(&clock))?;
        }
    }
    progress.finish();
    let spent = seconds(&clock);
    dir.save(&model, &meta(t.steps), &optimizer.state()?, t.steps, spent)?;
    let summary = finish(config, options, &mut dir, &task, &model.detached(), &meta(t.steps), &constraint, spent)?;
    Ok(End::Done(Box::new(summary)))
}

struct Outcome {
    loss: f64,
    grad_norm: f64,
    activation_max: f64,
}

fn update(
    model: &Model,
    variables: &[(Parameter, Var)],
    optimizer: &mut dyn Optimizer,
    constraint: &Constraint,
    (x, y): (&candle_core::Tensor, &candle_core::Tensor),
    learning_rate: f64,
) -> Result<Outcome> {
    let logits = model.forward(x)?;
    let flat = logits.reshape(((), logits.dim(candle_core::D::Minus1)?))?;
    let loss = candle_nn::loss::cross_entropy(&flat, &y.flatten_all()?)?;
    let gradients = loss.backward()?;
    let mut squares = 0.0;
    for (_, variable) in variables {
        if let Some(g) = gradients.get(variable.as_tensor()) {
            squares += f64::from(g.detach().sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
    }
    let outcome = Outcome {
        loss: f64::from(loss.to_scalar::<f32>()?),
        grad_norm: squares.sqrt(),
        activation_max: f64::from(flat.detach().abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?),
    };
    if outcome.loss.is_finite() {
        optimizer.step(&gradients, learning_rate)?;
        constraint.apply(variables, learning_rate)?;
    }
    Ok(outcome)
}

/// Every cap that the constraint promises, against norms that are proven.
fn check_caps(certificate: &Certificate, variables: &[(Parameter, Var)], constraint: &Constraint) -> Result<()> {
    for (parameter, variable) in variables {
        let Some(promise) = constraint.cap(parameter) else { continue };
        if parameter.geometry != Geometry::Matrix {
            continue;
        }
        let (rows, columns) = (parameter.shape[0], parameter.shape[1]);
        let count = parameter.heads.filter(|_| promise.per_head).map_or(1, |h| h.count);
        let cap = promise.sigma_max * (1.0 + CAP_TOLERANCE) / rms_to_rms(rows / count, columns);
        let whole = parameter.name.clone();
        let name = |i: usize| if count == 1 { whole.clone() } else { format!("{whole} rows {}/{count}", i + 1) };
        for i in 0..count {
            // The walk asks for other norms where a gain is folded in; then the cap's own is proven here.
            let upper = match certificate.weights.iter().find(|m| m.name == name(i)) {
                Some(row) => row.upper,
                None => {
                    let w = Matrix::from_tensor(&whole, variable.as_tensor())?;
                    spectral_norm(&w.row_block(i, count), Method::Proven).upper
                }
            };
            if upper > Upper::from_f64(cap) {
                bail!(certify::Error::Violated(format!(
                    "`{}` has norm {upper} above its cap {cap:.6}: the constraint does not hold",
                    name(i)
                )))
            }
        }
    }
    Ok(())
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
    constraint: &ConstraintConfig,
    seconds: f64,
) -> Result<Summary> {
    checkpoint::save(&dir.path().join("model.safetensors"), model, meta)?;
    let certificate = certify(model, Method::Proven, Formula::Sound, None)?;
    dir.write("certificate.json", &serde_json::to_string_pretty(&certificate)?)?;
    let result = task.evaluate(model, Protocol::Full, config.train.batch_size, &model.device())?;
    let found = probe::search(model, &task.starts(model)?, certificate.domain.radius.to_f64(), 24)?;
    // A value found is measured in floating point; the certificate speaks of real arithmetic.
    if Upper::from_f64(found.sensitivity * (1.0 - 1e-9)) > certificate.l2 {
        bail!(certify::Error::Violated(format!(
            "found a sensitivity of {} above the certified {}: this is a defect of the certificate, please report it",
            found.sensitivity, certificate.l2
        )))
    }
    if let Some(target) = config.lipschitz_target
        && certificate.rms > Upper::from_f64(target)
    {
        let l = certificate.rms;
        bail!(certify::Error::Violated(format!("the certified constant {l} is above lipschitz_target {target}")))
    }
    let first = certificate.graph.nodes.first();
    let inputs = match first.map(|n| &n.op) {
        Some(lipschitz_nn::graph::Op::Embedding { dim, .. }) => *dim,
        _ => found.pair.0.elem_count(),
    };
    let outputs = task.outputs()?;
    let summary = Summary {
        label: options.label.clone(),
        method: format!("{} + {}", config.optimizer.name(), constraint.name()),
        optimizer: config.optimizer.name().into(),
        constraint: constraint.name().into(),
        seed: config.train.seed,
        learning_rate: config.train.learning_rate,
        target: config.lipschitz_target,
        sigma_max: constraint.sigma_max(),
        steps: config.train.steps,
        seconds,
        parameters: model.parameter_count(),
        val_loss: result.loss,
        val_accuracy: result.accuracy,
        lipschitz: certificate.rms,
        lipschitz_log10: log10(certificate.rms),
        found_log10: Some((found.sensitivity * rms_to_rms(outputs, inputs)).log10()).filter(|x| x.is_finite()),
        median_margin: Some(result.margin).filter(|x| x.is_finite()),
        margin_normalized_log10: log10(certificate.margin.l2.over(result.margin)),
        certified_accuracy: match task {
            Task::Images(data) => Some(robust::certified_accuracy(model, &data.test, robust::USUAL)?),
            Task::Text(_) => None,
        },
    };
    dir.write("summary.json", &serde_json::to_string_pretty(&summary)?)?;
    Ok(summary)
}
