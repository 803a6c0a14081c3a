//! One run: steps, log lines, evaluations, bounds, checkpoints.

mod check;
mod open;
mod results;

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::{Device, Tensor};
use lipschitz_certify::certificate::{Formula, certify, digest};
use lipschitz_certify::range;
use lipschitz_certify::spectral::Method;
use lipschitz_certify::upper::Upper;
use lipschitz_data::DataSet;
use lipschitz_data::augment::Augmented;
use lipschitz_nn::Graph;
use lipschitz_nn::checkpoint::{self, Meta, Provenance};
use lipschitz_nn::linalg::Precision;
use lipschitz_nn::ops::Dropout;
use lipschitz_opt::{Rate, Recipe};

use crate::config::Config;
use crate::dynamics::{check_caps, largest_activation, matrices};
use crate::events::EventWriter;
use crate::loader::Loader;
use crate::loss::Loss;
use crate::progress::Progress;
use crate::ranks::Ranks;
use crate::resume::MadeOf;
use crate::run_dir::{Best, Lock, Metrics, Position, RunDir, Summary};
use crate::step::{StepMetrics, Times, Training};
use crate::target::Due;
use crate::teacher::Teacher;
use crate::{Error, device, logits, target, teacher};
use open::{Opened, open, training};

pub use check::{Checked, check};

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// After all steps, with its summary at the first of the processes.
    Done(Option<Box<Summary>>),
    /// Stopped by a signal, after this many steps; a checkpoint is saved.
    Stopped(u64),
}

/// Where a run is to be made, and how it is shown.
pub struct RunOptions<'a> {
    /// The directory.
    pub out: &'a Path,
    /// Continue the run that is there.
    pub resume: bool,
    /// Raised to stop at the next step.
    pub stop: Arc<AtomicBool>,
    /// Show no progress. What is not to pass unseen is told on stderr all the same.
    pub quiet: bool,
    /// The directory's lock, if the caller has taken it.
    pub lock: Option<Rc<Lock>>,
    /// Name in tables and plots.
    pub label: String,
    /// The processes that train together.
    pub ranks: Rc<Ranks>,
}

impl<'a> RunOptions<'a> {
    /// A new run of a single process in this directory, which shows nothing.
    #[must_use]
    pub fn new(out: &'a Path) -> Self {
        Self {
            out,
            resume: false,
            stop: Arc::default(),
            quiet: true,
            lock: None,
            label: String::new(),
            ranks: Rc::default(),
        }
    }
}

/// Trains as `config` says.
///
/// # Errors
/// Bad input, a diverging loss, a cap or a target that does not hold, a full disk: one line each.
/// The last checkpoint stays as it is.
pub fn run(config: &Config, options: &RunOptions) -> Result<End, Error> {
    let device = device::open(&config.train.device)?;
    options.ranks.connect(&device)?;
    let data = config.data.kind().load()?;
    // What can be wrong with the config is found before anything is written.
    let checked = check(config, &*data)?;
    teacher::check_apart(config, options.out)?;
    Run::set_up(config, options, &*data, checked, device)?.train()
}

/// A run at work.
struct Run<'a> {
    config: &'a Config,
    options: &'a RunOptions<'a>,
    data: &'a dyn DataSet,
    graph: Graph,
    recipe: Recipe,
    device: Device,
    loader: Loader<'a>,
    training: Training,
    /// SHA-256 of the weights of each teacher.
    teachers: Vec<String>,
    /// The directory and its events, at the first process, which alone writes.
    files: Option<(RunDir, EventWriter)>,
    progress: Progress,
    /// Where the run was when it began or was resumed.
    before: Position,
    /// The lowest validation loss so far, at the first process.
    best: Option<Best>,
    clock: Instant,
    /// When the last checkpoint was saved.
    saved: Instant,
    /// Whether a checkpoint is wanted before its time.
    due: bool,
    /// Since the last line of the log.
    times: Times,
}

impl<'a> Run<'a> {
    /// Opens the directory, at its last checkpoint if the run is resumed.
    fn set_up(
        config: &'a Config,
        options: &'a RunOptions,
        data: &'a dyn DataSet,
        Checked { graph, recipe }: Checked,
        device: Device,
    ) -> Result<Self, Error> {
        let (t, ranks) = (&config.train, &options.ranks);
        let mut batches = data.training(t.seed, graph.context())?;
        if !config.augment.is_none() {
            let (augmentation, seed) = (config.augment, t.seed);
            batches = Box::new(Augmented { batches, augmentation, seed });
        }
        let share = (ranks.rank(), ranks.count());
        let loader = Loader::new(batches, t.batch_size, share, &device)?;
        let teacher = Teacher::load(config, &device)?;
        let teachers = teacher.as_ref().map_or(&[][..], Teacher::digests).to_vec();
        ranks.agree("the teachers", &teachers.join(" "))?;
        let made_of = MadeOf { config, data, graph: &graph, teachers: &teachers };
        let Opened { dir, saved, told } = open(&made_of, options, &device)?;
        let loss = Loss::new(config.loss, data.predicts());
        let mut training = training(config, &graph, &recipe, loss, saved.as_ref(), &device, ranks)?;
        training.teacher = teacher;
        let before = saved.map(|saved| saved.position).unwrap_or_default();
        let events = |dir: &RunDir| match options.resume {
            // The steps that are kept are those up to the checkpoint's, none without one.
            true => EventWriter::resume(dir.path(), before.step + 1),
            false => EventWriter::create(dir.path()),
        };
        let files = match dir {
            Some(dir) => {
                let events = events(&dir)?;
                Some((dir, events))
            }
            None => None,
        };
        let progress = {
            let quiet = options.quiet || !ranks.is_first();
            Progress::new(t.steps, before.step, quiet, options.stop.clone())
        };
        told.iter().for_each(|what| progress.tell(what));
        let now = Instant::now();
        Ok(Self {
            config,
            options,
            data,
            graph,
            recipe,
            device,
            loader,
            training,
            teachers,
            files,
            progress,
            best: before.best.clone(),
            before,
            clock: now,
            saved: now,
            due: false,
            times: Times::default(),
        })
    }

    /// All steps that are left.
    fn train(mut self) -> Result<End, Error> {
        for step in self.before.step..self.config.train.steps {
            let [stop, due] = self.wanted();
            if stop || due {
                self.save(step, self.seconds())?;
            }
            if stop {
                self.progress.finish();
                return Ok(End::Stopped(step));
            }
            self.step(step)?;
        }
        self.finish()
    }

    /// Whether one of the processes is to stop, and whether it is time for a checkpoint; the same
    /// at all of them.
    fn wanted(&self) -> [bool; 2] {
        let stop = self.options.stop.load(Ordering::Relaxed);
        let age = self.saved.elapsed().as_secs_f64();
        let old = age >= 60.0 * self.config.train.checkpoint_minutes;
        let due = self.files.is_some() && (old || self.due);
        let said = [stop, due].map(|is| f64::from(u8::from(is)));
        self.options.ranks.all_reduce_scalars(said).map(|sum| sum > 0.0)
    }

    /// Seconds since the start, over all parts of a resumed run.
    fn seconds(&self) -> f64 {
        self.before.seconds + self.clock.elapsed().as_secs_f64()
    }

    /// Puts back what others removed from the directory since the last look, and tells of it.
    fn restore_files(&mut self) -> Result<(), Error> {
        let Some((dir, events)) = &mut self.files else { return Ok(()) };
        let harmed = dir.restore()?.into_iter().chain(events.restore()?);
        for what in harmed {
            self.progress.tell(&what);
            self.due = true;
        }
        if !dir.has_best() {
            // One that is not saved yet is not lost.
            self.best.take_if(|best| !best.digest.is_empty());
        }
        Ok(())
    }

    /// One update, with what is logged, evaluated and saved after it.
    fn step(&mut self, step: u64) -> Result<(), Error> {
        let t = &self.config.train;
        let rate = Rate { peak: t.learning_rate, factor: t.schedule.factor(step, t.steps) };
        let done = step + 1;
        let evaluates = done.is_multiple_of(t.eval_every) || done == t.steps;
        let logs =
            self.files.is_some() && (done.is_multiple_of(t.log_every) || evaluates || done == 1);
        let every = t.checkpoint_every.is_some_and(|every| done.is_multiple_of(every));
        // The last one is saved with the results.
        let saves = (evaluates || every) && done != t.steps;
        let old = if logs { copies(&self.training)? } else { Vec::new() };
        let (inputs, targets) = self.loader.take(step)?;
        let Training { loss, model, dropout, .. } = &mut self.training;
        loss.refresh(model, step)?;
        let first = self.loader.first() as u64;
        let left_out = Dropout { rate: t.dropout, seed: t.seed, step, first };
        *dropout = (t.dropout > 0.0).then_some(left_out);
        let metrics = self.update(&inputs, &targets, done, rate)?;
        if !metrics.loss.is_finite() {
            return Err(Error::Diverged {
                what: format!("the loss is {}", metrics.loss),
                step: done,
            });
        }
        if Due::after(self.config, done).is_any() {
            target::fit(self.config, &mut self.training, done)?;
        }
        let Training { average, variables, .. } = &mut self.training;
        average.add(variables, done, t.steps)?;
        if logs {
            self.log(done, rate, metrics, &inputs, &old, evaluates)?;
        }
        if saves {
            self.save(done, self.seconds())?;
        }
        Ok(())
    }

    /// The update itself, while the next batch is put together.
    fn update(
        &mut self,
        inputs: &Tensor,
        targets: &Tensor,
        done: u64,
        rate: Rate,
    ) -> Result<StepMetrics, Error> {
        let Self { config, loader, training, times, .. } = self;
        std::thread::scope(|scope| {
            let next = (done < config.train.steps).then(|| scope.spawn(|| loader.prepare(done)));
            let metrics = training.step(inputs, targets, config.train.accumulate, rate, times);
            if let Some(Err(panic)) = next.map(std::thread::ScopedJoinHandle::join) {
                std::panic::resume_unwind(panic)
            }
            metrics
        })
    }

    /// A line of the log, with the certified constant after the step. The caps and the target are
    /// checked at every line.
    fn log(
        &mut self,
        done: u64,
        rate: Rate,
        metrics: StepMetrics,
        inputs: &Tensor,
        old: &[Tensor],
        evaluates: bool,
    ) -> Result<(), Error> {
        self.restore_files()?;
        let t = &self.config.train;
        self.check_finite(done)?;
        // In full, whatever precision the steps have.
        let model = self.training.model.detached().with_precision(Precision::F32);
        let certificate = certify(&model, Method::Proven, Formula::Sound, None)?;
        check_caps(&certificate, &self.training.variables, &self.training.constraint)?;
        if target::holds(self.config, done) {
            check_target(self.config, certificate.rms)?;
        }
        let mut line = Metrics {
            step: done,
            // Tokens, or images.
            tokens: done * t.batch_size as u64 * self.graph.input().positions() as u64,
            train_loss: Some(metrics.loss),
            grad_norm: Some(metrics.grad_norm),
            activation_max: Some(largest_activation(&model, inputs)?),
            lipschitz_log10: log10(certificate.rms),
            lipschitz: log10(certificate.rms),
            learning_rate: rate.now(),
            times: Some(std::mem::take(&mut self.times)),
            matrices: matrices(&certificate, &self.training.variables, old)?,
            ..Metrics::default()
        };
        if evaluates {
            let result = self.evaluated(&model, &self.device, done)?;
            line.val_loss = Some(result.loss);
            line.val_accuracy = result.accuracy;
            // Without the search for ellipsoids, which takes longer than the steps between.
            [line.certified_36, line.certified_72, line.certified_108] =
                self.certified(&model, 0)?;
            let ranges = range::beside(&certificate, &model, range::Inputs::default())?;
            let finite = |x: Upper| Some(x.to_f64()).filter(|x| x.is_finite());
            if target::caps_logits(self.config, done) {
                logits::check(self.config, &ranges)?;
            }
            line.logit_bound = ranges.largest_logit().and_then(finite);
            line.range_bound = finite(ranges.largest());
            // Between two fits a network may be above its target, and have a lower loss.
            let fits = check_target(self.config, certificate.rms).is_ok()
                && logits::check(self.config, &ranges).is_ok();
            if fits && self.best.as_ref().is_none_or(|best| result.loss < best.val_loss) {
                // The checkpoint that follows has its digest.
                let (step, val_loss, digest) = (done, result.loss, String::new());
                self.best = Some(Best { step, val_loss, digest });
            }
        }
        line.seconds = self.seconds();
        if let Some((dir, events)) = &mut self.files {
            write_events(events, &line)?;
            dir.log(&line)?;
        }
        self.progress.show(&line, certificate.rms);
        Ok(())
    }

    /// Whether every weight is finite.
    fn check_finite(&self, step: u64) -> Result<(), Error> {
        match self.training.model.detached().check_finite() {
            Err(lipschitz_nn::Error::Weight { name, .. }) => {
                Err(Error::Diverged { what: format!("`{name}` is no longer finite"), step })
            }
            _ => Ok(()),
        }
    }

    /// A checkpoint after this many steps.
    fn save(&mut self, step: u64, seconds: f64) -> Result<(), Error> {
        // The checkpoint before it stays where there is nothing to go on from.
        self.check_finite(step)?;
        self.restore_files()?;
        let ranks = &self.options.ranks;
        if ranks.count() > 1 {
            ranks.agree("the weights", &digest(&self.training.model)?)?;
        }
        self.write(step, seconds)
    }

    /// The checkpoint of this process alone.
    fn write(&mut self, step: u64, seconds: f64) -> Result<(), Error> {
        let (state, meta) = (self.training.state()?, self.meta(step));
        if let Some((dir, events)) = &mut self.files {
            events.sync()?;
            let best = self.best.take();
            let mut position = Position { step, seconds, best, ..Position::default() };
            let model = &self.training.model;
            if let Err(error) = dir.save(model, &state, &meta, &mut position) {
                // What was removed while it was being written is put back, too.
                if !error.is_missing_file() {
                    return Err(error);
                }
                self.restore_files()?;
                let Some((dir, _)) = &mut self.files else { return Err(error) };
                dir.save(&self.training.model, &state, &meta, &mut position)?;
            }
            self.best = position.best;
        }
        (self.saved, self.due) = (Instant::now(), false);
        Ok(())
    }

    /// What a checkpoint says beside the weights.
    fn meta(&self, step: u64) -> Meta {
        Meta {
            format: checkpoint::FORMAT,
            graph: self.graph.clone(),
            config: serde_json::to_value(self.config).unwrap_or_default(),
            tokenizer: self.data.tokenizer().cloned(),
            classes: self.data.classes().to_vec(),
            provenance: Provenance {
                version: env!("CARGO_PKG_VERSION").into(),
                seed: Some(self.config.train.seed),
                data_digest: Some(self.data.digest().to_string()),
                teachers: self.teachers.clone(),
                step: Some(step),
                origin: None,
            },
        }
    }
}

/// The weights as they are, to compare with those after a step; in the machine's own memory, since that of
/// a GPU may be short.
fn copies(training: &Training) -> Result<Vec<Tensor>, Error> {
    let copy = |v: &lipschitz_opt::Variable| {
        Ok(v.var.as_tensor().detach().copy()?.to_device(&Device::Cpu)?)
    };
    training.variables.iter().map(copy).collect()
}

/// Every number of a line as a TensorBoard scalar.
fn write_events(events: &mut EventWriter, line: &Metrics) -> Result<(), Error> {
    for (tag, value) in [
        ("loss/train", line.train_loss),
        ("loss/val", line.val_loss),
        ("accuracy/val", line.val_accuracy),
        ("certified/36_255", line.certified_36),
        ("certified/72_255", line.certified_72),
        ("certified/108_255", line.certified_108),
        ("lipschitz/log10", line.lipschitz),
        ("gradient/norm", line.grad_norm),
        ("activation/max", line.activation_max),
        ("range/largest_logit", line.logit_bound),
        ("range/largest_element", line.range_bound),
        ("learning_rate", Some(line.learning_rate)),
    ] {
        if let Some(value) = value {
            events.scalar(tag, line.step, value as f32);
        }
    }
    for (name, m) in &line.matrices {
        for (what, value) in
            [("norm", m.norm), ("stable_rank", m.stable_rank), ("update", m.update)]
        {
            events.scalar(&format!("{what}/{name}"), line.step, value as f32);
        }
    }
    Ok(events.flush()?)
}

/// Whether the constant that was asked for holds.
fn check_target(config: &Config, constant: Upper) -> Result<(), Error> {
    match config.goal().map(|goal| goal.target) {
        Some(target) if constant > Upper::from_f64(target) => {
            Err(Error::AboveTarget { constant, target })
        }
        _ => Ok(()),
    }
}

/// log10 of a finite bound.
fn log10(x: Upper) -> Option<f64> {
    Some(x.log10()).filter(|x| x.is_finite())
}
