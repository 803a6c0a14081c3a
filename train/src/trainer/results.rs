//! What a run leaves after its last step: the network, its certificate, its figures.

use std::sync::atomic::Ordering;

use candle_core::Device;
use lipschitz_certify::certificate::{Certificate, Formula, certify};
use lipschitz_certify::ellipsoid::usual_steps;
use lipschitz_certify::spectral::Method;
use lipschitz_certify::upper::Upper;
use lipschitz_certify::{probe, range, robust};
use lipschitz_data::{Evaluation, Predicts, Protocol, evaluate, evaluation_size, starts};
use lipschitz_nn::Model;
use lipschitz_nn::checkpoint;
use lipschitz_nn::graph::{Input, Op};
use lipschitz_nn::linalg::Precision;
use lipschitz_nn::norm::rms_to_rms;

use super::{End, Run, check_target, log10};
use crate::dynamics::check_caps;
use crate::run_dir::{self, StepChange, Summary};
use crate::target::Due;
use crate::{Error, logits, target};

impl Run<'_> {
    /// The last checkpoint, and the results.
    pub(super) fn finish(mut self) -> Result<End, Error> {
        self.progress.finish();
        let (steps, seconds) = (self.config.train.steps, self.seconds());
        self.save(steps, seconds)?;
        let [stop, _] = self.wanted();
        if stop {
            return Ok(End::Stopped(steps));
        }
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
        if self.stopped() {
            return Ok(End::Stopped(steps));
        }
        let before = self.files.as_ref().and_then(|(dir, _)| run_dir::summary(dir.path()));
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
        let Some(mut summary) = self.summary(&model, &certificate, seconds)? else {
            return Ok(End::Stopped(steps));
        };
        // What `train eval --record` wrote of the same network.
        if let Some(before) = before.filter(|before| before.has_network_of(&summary)) {
            (summary.paper_loss, summary.paper_accuracy) =
                (before.paper_loss, before.paper_accuracy);
        }
        self.restore_files()?;
        if self.due {
            // What was removed while the results were computed may be any of them. The other processes
            // have ended.
            self.write(steps, seconds)?;
            self.write_results(&model, &certificate)?;
        }
        if let Some((dir, _)) = &self.files {
            dir.write("summary.json", &serde_json::to_string_pretty(&summary)?)?;
        }
        Ok(End::Done(Some(Box::new(summary))))
    }

    /// Whether the first process, which makes the results, is to stop.
    fn stopped(&self) -> bool {
        self.options.stop.load(Ordering::Relaxed)
    }

    /// The network and its certificate.
    fn write_results(&self, model: &Model, certificate: &Certificate) -> Result<(), Error> {
        let Some((dir, _)) = &self.files else { return Ok(()) };
        let meta = self.meta(self.config.train.steps);
        checkpoint::save(&dir.path().join("model.safetensors"), model, &meta)?;
        dir.write("certificate.json", &serde_json::to_string_pretty(certificate)?)
    }

    /// Loss and accuracy on the whole held-out split.
    pub(super) fn evaluated(
        &self,
        model: &Model,
        device: &Device,
        done: u64,
    ) -> Result<Evaluation, Error> {
        let size = evaluation_size(&self.graph, self.config.train.batch_size);
        let result = evaluate(model, self.data, Protocol::Full, size, device)?;
        if !result.loss.is_finite() {
            let what = format!("the validation loss is {}", result.loss);
            return Err(Error::Diverged { what, step: done });
        }
        Ok(result)
    }

    /// The results of a certified model; none if they are not waited for.
    fn summary(
        &self,
        model: &Model,
        certificate: &Certificate,
        seconds: f64,
    ) -> Result<Option<Summary>, Error> {
        let (t, recipe) = (&self.config.train, &self.recipe);
        let result = self.evaluated(model, &model.device(), t.steps)?;
        if self.stopped() {
            return Ok(None);
        }
        let found = match certificate.l2 == Upper::ZERO {
            // Nothing moves its outputs, and no pair would say more.
            true => 0.0,
            false => self.search(model, certificate)?,
        };
        check_target(self.config, certificate.rms)?;
        if self.config.max_logit.is_some() {
            let ranges = range::prove(model, range::Inputs::default(), 0, &|_| {})?;
            logits::check(self.config, &ranges)?;
        }
        if self.stopped() {
            return Ok(None);
        }
        let [certified_accuracy, certified_72, certified_108] =
            self.certified(model, usual_steps(model.graph()))?;
        Ok(Some(Summary {
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
        }))
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
    pub(super) fn certified(
        &self,
        model: &Model,
        search: usize,
    ) -> Result<[Option<f64>; 3], Error> {
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
