//! One run: steps, log lines, evaluations, bounds, checkpoints.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use lipschitz_certify::certificate::{Certificate, Formula, certify, digest};
use lipschitz_certify::ellipsoid::usual_steps;
use lipschitz_certify::plan;
use lipschitz_certify::probe;
use lipschitz_certify::range;
use lipschitz_certify::robust;
use lipschitz_certify::spectral::Method;
use lipschitz_certify::upper::Upper;
use lipschitz_data::augment::Augmented;
use lipschitz_data::{
    DataSet, Evaluation, Predicts, Protocol, check_outputs, evaluate, evaluation_size, starts,
};
use lipschitz_nn::checkpoint::{self, Meta, Provenance};
use lipschitz_nn::graph::{Input, Op};
use lipschitz_nn::init::{self, Blocks};
use lipschitz_nn::linalg::Precision;
use lipschitz_nn::norm::rms_to_rms;
use lipschitz_nn::ops::Dropout;
use lipschitz_nn::{Graph, Model};
use lipschitz_opt::{PerHead, Rate, Recipe};

use crate::Error;
use crate::averaging::Average;
use crate::config::{By, Config, Goal};
use crate::device;
use crate::dynamics::{check_caps, largest_activation, matrices};
use crate::estimate;
use crate::events::EventWriter;
use crate::loader::Loader;
use crate::loss::Loss;
use crate::progress::Progress;
use crate::ranks::Ranks;
use crate::resume::MadeOf;
use crate::run_dir::{Best, Lock, Metrics, Position, RunDir, SavedRun, StepChange, Summary};
use crate::step::{StepMetrics, Times, Training};
use crate::target::Due;
use crate::teacher::Teacher;
use crate::{logits, resume, run_dir, target, teacher};

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

/// What a config means for its data.
pub struct Checked {
    /// The network.
    pub graph: Graph,
    /// Optimizers and constraint, the cap solved from the target if there is one.
    pub recipe: Recipe,
}

/// Finds what is wrong with a config, without writing anything.
///
/// # Errors
/// One line: sizes that do not fit, a target that no cap reaches, a constant out of range.
pub fn check(config: &Config, data: &dyn DataSet) -> Result<Checked, Error> {
    let graph = config.graph_for(data)?;
    data.check(graph.input())?;
    check_outputs(&graph, data)?;
    Loss::new(config.loss, data.predicts()).check(&graph)?;
    let mut recipe = config.recipe();
    recipe.check_for(&graph)?;
    let teachers = teacher::check(config, &graph, Some(data))?;
    estimate::check(config, &graph, &teachers)?;
    recipe.rates.shares(&graph)?;
    match config.goal() {
        Some(Goal { target, by: By::Caps, .. }) => recipe = plan::solve(&graph, &recipe, target)?,
        Some(Goal { by: By::Certificate, .. }) if target::head(&graph).is_none() => {
            return Err(Error::Config(
                "lipschitz.by is \"certificate\", which needs a network that ends in a linear map; \
                 this one does not"
                    .into(),
            ));
        }
        _ => {}
    }
    if config.max_logit.is_some() && !logits::has_attention(&graph) {
        return Err(Error::Config("max_logit is set, and the model has no attention".into()));
    }
    recipe.constraint.check_complete()?;
    Ok(Checked { graph, recipe })
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
        let model = self.training.model.detached();
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
            if self.best.as_ref().is_none_or(|best| result.loss < best.val_loss) {
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

    /// The last checkpoint, and the results.
    fn finish(mut self) -> Result<End, Error> {
        self.progress.finish();
        let (steps, seconds) = (self.config.train.steps, self.seconds());
        self.save(steps, seconds)?;
        // All processes project their own weights of the mean.
        let averaged = self.training.averaged(|training| {
            if Due::after(self.config, steps).is_any() {
                target::fit(self.config, training, steps)?;
            }
            // The mean has caps of its own, which are gone behind this.
            let model = training.model.detached();
            let certificate = certify(&model, Method::Proven, Formula::Sound, None)?;
            check_caps(&certificate, &training.variables, &training.constraint)
        })?;
        if self.files.is_none() {
            return Ok(End::Done(None));
        }
        // The results are those of the checkpoint, or of the mean of its run, whatever precision the
        // training used.
        let is_last = averaged.is_none();
        let model = averaged.unwrap_or_else(|| self.training.model.detached());
        let model = model.with_precision(Precision::F32);
        let certificate = certify(&model, Method::Proven, Formula::Sound, None)?;
        if is_last {
            check_caps(&certificate, &self.training.variables, &self.training.constraint)?;
        }
        let search = target::last_search(self.config, model.graph());
        let certificate = certificate.tighten(&model, search, &mut |_, _| {})?;
        if let Some((dir, _)) = &self.files {
            // That of fewer steps is not that of these weights.
            let summary = dir.path().join("summary.json");
            match std::fs::remove_file(&summary) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(lipschitz_nn::Error::file(&summary, e).into());
                }
                _ => {}
            }
        }
        self.write_results(&model, &certificate)?;
        let summary = self.summary(&model, &certificate, seconds)?;
        self.restore_files()?;
        if self.due {
            // What was removed while the results were computed may be any of them.
            self.save(steps, seconds)?;
            self.write_results(&model, &certificate)?;
        }
        if let Some((dir, _)) = &self.files {
            dir.write("summary.json", &serde_json::to_string_pretty(&summary)?)?;
        }
        Ok(End::Done(Some(Box::new(summary))))
    }

    /// The network and its certificate.
    fn write_results(&self, model: &Model, certificate: &Certificate) -> Result<(), Error> {
        let Some((dir, _)) = &self.files else { return Ok(()) };
        let meta = self.meta(self.config.train.steps);
        checkpoint::save(&dir.path().join("model.safetensors"), model, &meta)?;
        dir.write("certificate.json", &serde_json::to_string_pretty(certificate)?)
    }

    /// Loss and accuracy on the whole held-out split.
    fn evaluated(&self, model: &Model, device: &Device, done: u64) -> Result<Evaluation, Error> {
        let size = evaluation_size(&self.graph, self.config.train.batch_size);
        let result = evaluate(model, self.data, Protocol::Full, size, device)?;
        if !result.loss.is_finite() {
            let what = format!("the validation loss is {}", result.loss);
            return Err(Error::Diverged { what, step: done });
        }
        Ok(result)
    }

    /// The results of a certified model.
    fn summary(
        &self,
        model: &Model,
        certificate: &Certificate,
        seconds: f64,
    ) -> Result<Summary, Error> {
        let (t, recipe) = (&self.config.train, &self.recipe);
        let result = self.evaluated(model, &model.device(), t.steps)?;
        let found = self.search(model, certificate)?;
        check_target(self.config, certificate.rms)?;
        if self.config.max_logit.is_some() {
            let ranges = range::prove(model, range::Inputs::default(), 0, &|_| {})?;
            logits::check(self.config, &ranges)?;
        }
        let [certified_accuracy, certified_72, certified_108] =
            self.certified(model, usual_steps(model.graph()))?;
        Ok(Summary {
            label: self.options.label.clone(),
            method: recipe.name(),
            optimizer: recipe.optimizer_name(),
            constraint: recipe.constraint_name().to_string(),
            seed: t.seed,
            learning_rate: t.learning_rate,
            target: self.config.goal().map(|goal| goal.target),
            sigma_max: recipe.constraint.sigma_max(),
            steps: t.steps,
            seconds,
            parameters: model.parameter_count(),
            val_loss: result.loss,
            val_accuracy: result.accuracy,
            best_val_loss: self.best.as_ref().map(|best| best.val_loss),
            best_step: self.best.as_ref().map(|best| best.step),
            step_changes: self.step_changes().to_vec(),
            lipschitz: certificate.rms,
            lipschitz_log10: log10(certificate.rms),
            found_log10: Some(found.log10()).filter(|x| x.is_finite()),
            median_margin: result.margin.filter(|x| x.is_finite()),
            margin_normalized_log10: result
                .margin
                .and_then(|margin| log10(certificate.margin.l2.div_up(margin))),
            certified_accuracy,
            certified_72,
            certified_108,
            paper_loss: None,
            paper_accuracy: None,
        })
    }

    /// Changes of the step count that changed learning rates; known to the first process.
    fn step_changes(&self) -> &[StepChange] {
        self.files.as_ref().map_or(&[], |(dir, _)| dir.step_changes())
    }

    /// The largest sensitivity found, RMS → RMS; none may exceed the certified constant.
    fn search(&self, model: &Model, certificate: &Certificate) -> Result<f64, Error> {
        let radius = certificate.domain.radius.to_f64();
        let found = probe::search(model, &starts(model, self.data)?, radius, 24)?;
        // A value found is measured in floating point; the certificate speaks of real arithmetic.
        if Upper::from_f64(found.at_least) > certificate.l2 {
            let (found, certified) = (found.at_least, certificate.l2);
            return Err(Error::Refuted { found, certified });
        }
        let inputs = match certificate.graph.nodes().first().map(|node| &node.op) {
            Some(Op::Embedding { dim, .. }) => *dim,
            _ => found.pair.0.elem_count(),
        };
        Ok(found.value(certificate.l2) * rms_to_rms(model.graph().outputs(), inputs))
    }

    /// Of a classifier of images, the shares that are right and proven to stay so within the radii of
    /// published tables, with a search of so many steps for a proof by ellipsoids.
    fn certified(&self, model: &Model, search: usize) -> Result<[Option<f64>; 3], Error> {
        let classes = self.data.predicts() == Predicts::Classes;
        match self.graph.input() {
            Input::Pixels { .. } if classes => {
                let data = self.data;
                let images = data.held_out(Protocol::Full, robust::BATCH, None, &Device::Cpu)?;
                let found = robust::certified_accuracy(model, images, &robust::PUBLISHED, search)?;
                Ok(std::array::from_fn(|i| found.get(i).copied()))
            }
            _ => Ok([None; 3]),
        }
    }
}

/// What a run begins with.
struct Opened {
    /// The directory, at the first process.
    dir: Option<RunDir>,
    /// The checkpoint that it is resumed from.
    saved: Option<SavedRun>,
    /// What there is to say about it.
    told: Vec<String>,
}

/// Opens the directory at the first process; the others read what it has put in order. Nothing is
/// written before all is known to fit.
fn open(made_of: &MadeOf, options: &RunOptions, device: &Device) -> Result<Opened, Error> {
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
fn training(
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
