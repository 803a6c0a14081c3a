//! One training step: forward, backward, update, constraint, and the time that each takes.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Tensor};
use lipschitz_nn::graph::{Geometry, Parameter};
use lipschitz_nn::ops::Dropout;
use lipschitz_nn::{Model, linalg};
use lipschitz_opt::constraint::Constraint;
use lipschitz_opt::{Optimizer, Rate, Recipe, Variable, Variables};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::averaging::Average;
use crate::loss::Loss;
use crate::ranks::{Ranks, owners};
use crate::teacher::Teacher;

/// What trains: a model on variables, their optimizer and their constraint.
pub struct Training {
    /// The network, on the variables.
    pub model: Model,
    /// Its weights.
    pub variables: Variables,
    /// Updates those that are this process's own.
    pub optimizer: Box<dyn Optimizer>,
    /// Bounds their norms.
    pub constraint: Constraint,
    /// What a step lowers: cross-entropy, unless another is set.
    pub loss: Loss,
    /// What the network learns from beside its targets: nothing, unless another is set.
    pub teacher: Option<Teacher>,
    /// The mean of the weights: none, unless another is set.
    pub average: Average,
    /// What the next step leaves out: nothing, unless another is set.
    pub dropout: Option<Dropout>,
    own: Variables,
    /// The rank that owns each variable.
    owners: Vec<usize>,
    ranks: Rc<Ranks>,
}

/// Relative cost of updating a weight: matmuls for a matrix, one pass over anything else.
pub(crate) fn work(parameter: &Parameter) -> u64 {
    match parameter.shape[..] {
        [rows, columns] if parameter.geometry == Geometry::Matrix => {
            // Never at its end, except of sizes that no machine holds.
            let work = (rows as u128) * (columns as u128) * (rows.min(columns) as u128);
            u64::try_from(work).unwrap_or(u64::MAX)
        }
        _ => parameter.shape.iter().product::<usize>() as u64,
    }
}

/// Examples of a batch that each process takes.
///
/// # Errors
/// [`Error::UnevenBatch`].
pub(crate) fn share(batch_size: usize, processes: usize) -> Result<usize, Error> {
    if processes == 0 || !batch_size.is_multiple_of(processes) {
        return Err(Error::UnevenBatch { batch_size, processes });
    }
    Ok(batch_size / processes)
}

/// Examples of each part of a process's share, all alike but the last: of so many parts, as far as there
/// are as many examples.
pub(crate) fn part(share: usize, parts: usize) -> usize {
    share.div_ceil(parts.clamp(1, share.max(1)))
}

/// What a step measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepMetrics {
    /// Mean loss of the batch, before the step.
    pub loss: f64,
    /// ℓ2 norm of the gradient.
    pub grad_norm: f64,
}

/// Seconds spent in each part of the steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Computing the loss of a batch.
    pub forward: f64,
    /// Computing its gradient.
    pub backward: f64,
    /// The optimizer.
    pub update: f64,
    /// The constraint.
    pub constraint: f64,
    /// Communication with the other processes of the run, and waiting for them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub exchange: f64,
}

fn is_zero(seconds: &f64) -> bool {
    *seconds == 0.0
}

impl Times {
    /// Seconds of all parts.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.forward + self.backward + self.update + self.constraint + self.exchange
    }
}

impl Training {
    /// A model made by [`Model::trainable`] with its variables, each of which one of the processes
    /// owns.
    ///
    /// # Errors
    /// A constant of the recipe out of range; candle's own.
    pub fn new(
        model: Model,
        variables: Variables,
        recipe: &Recipe,
        ranks: Rc<Ranks>,
    ) -> Result<Self, Error> {
        let work: Vec<u64> = variables.iter().map(|v| work(&v.parameter)).collect();
        let owners = owners(&work, ranks.count());
        let mine = variables.iter().zip(&owners).filter(|(_, owner)| **owner == ranks.rank());
        let own: Variables = mine.map(|(v, _)| v.clone()).collect();
        let optimizer = recipe.build(&own)?;
        Ok(Self {
            model,
            variables,
            optimizer,
            constraint: Constraint::new(recipe)?,
            loss: Loss::default(),
            teacher: None,
            average: Average::default(),
            dropout: None,
            own,
            owners,
            ranks,
        })
    }

    /// Brings fresh weights under their caps.
    ///
    /// # Errors
    /// Candle's own.
    pub fn project(&mut self) -> Result<(), Error> {
        self.constraint.project(&self.own)?;
        self.share()
    }

    /// The network of the mean weights, under the same constraint and then as `fit` leaves them; none
    /// without averaging. The weights and the constraint stay what they are.
    ///
    /// # Errors
    /// Candle's own, and what `fit` gives.
    pub fn averaged(
        &mut self,
        fit: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<Option<Model>, Error> {
        let Some(mean) = self.average.mean() else { return Ok(None) };
        let state = self.constraint.state()?;
        let mut last = Vec::new();
        for v in &self.variables {
            last.push(v.var.as_tensor().detach().copy()?);
            if let Some(mean) = mean.get(&v.parameter.name) {
                v.var.set(mean)?;
            }
        }
        self.project()?;
        // What a cap does not say, such as orthogonal rows, by a step of no length.
        // A method that promises nothing would change the mean for no set to be in.
        let promised = |v: &&Variable| self.constraint.promise(&v.parameter).is_some();
        let promised: Vec<Variable> = self.own.iter().filter(promised).cloned().collect();
        self.constraint.apply(&promised, Rate { peak: 0.0, factor: 0.0 })?;
        self.share()?;
        fit(self)?;
        let model = self.model.detached();
        let weights = model.weights().iter().map(|(name, w)| Ok((name.clone(), w.copy()?)));
        let weights = weights.collect::<Result<_, Error>>();
        for (v, last) in self.variables.iter().zip(&last) {
            v.var.set(last)?;
        }
        self.constraint.load_state(&state, &self.own)?;
        Ok(Some(Model::new(model.graph().clone(), weights?)?))
    }

    /// Everything a resumed run needs beside the weights, at the first process; a part of it
    /// elsewhere.
    ///
    /// # Errors
    /// Candle's own.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>, Error> {
        let mut state = self.optimizer.state()?;
        state.extend(self.constraint.state()?);
        state.extend(self.loss.state());
        state.extend(self.average.state());
        if self.ranks.count() == 1 {
            return Ok(state);
        }
        let bytes = safetensors::serialize(state.iter(), None)?;
        for bytes in self.ranks.gather(bytes) {
            state.extend(candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?);
        }
        Ok(state)
    }

    /// Restores what [`Training::state`] gave, whatever the number of processes was.
    ///
    /// # Errors
    /// If something is missing, or of another shape.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        self.optimizer.load_state(state)?;
        self.loss.load_state(state, &self.model.device())?;
        self.average.load_state(state, &self.variables)?;
        Ok(self.constraint.load_state(state, &self.own)?)
    }

    /// Broadcasts each weight from its owner, where there are several processes.
    pub(crate) fn share(&self) -> Result<(), Error> {
        if self.ranks.count() == 1 {
            return Ok(());
        }
        for (v, owner) in self.variables.iter().zip(&self.owners) {
            v.var.set(&self.ranks.broadcast(*owner, &v.var.as_tensor().detach())?)?;
        }
        Ok(())
    }

    /// One step on this process's share of a batch, in `parts` one after the other (gradient
    /// accumulation); adds to `times`. All processes' shares are of one size. A loss that is not
    /// finite updates nothing.
    ///
    /// # Errors
    /// Candle's own.
    pub fn step(
        &mut self,
        x: &Tensor,
        y: &Tensor,
        parts: usize,
        rate: Rate,
        times: &mut Times,
    ) -> Result<StepMetrics, Error> {
        let device = self.model.device();
        let mut clock = Clock::new(&device);
        let (mut loss, mut gradients) = self.gradients(x, y, parts, &mut clock, times)?;
        let several = self.ranks.count() > 1;
        if several {
            loss = self.average(loss, &mut gradients)?;
            times.exchange += clock.lap()?;
        }
        let mut squares = 0.0;
        for v in &self.variables {
            if let Some(g) = gradients.get(v.var.as_tensor()) {
                squares += linalg::norm(g)?.powi(2);
            }
        }
        times.backward += clock.lap()?;
        if loss.is_finite() {
            self.optimizer.step(&gradients, rate)?;
            times.update += clock.lap()?;
            self.constraint.apply(&self.own, rate)?;
            times.constraint += clock.lap()?;
            if several {
                self.share()?;
                times.exchange += clock.lap()?;
            }
        }
        Ok(StepMetrics { loss, grad_norm: squares.sqrt() })
    }

    /// The mean loss of this process's share of a batch, and its gradients.
    fn gradients(
        &self,
        x: &Tensor,
        y: &Tensor,
        parts: usize,
        clock: &mut Clock,
        times: &mut Times,
    ) -> Result<(f64, GradStore), Error> {
        let size = x.dim(0)?;
        let rows = part(size, parts);
        let (mut value, mut gradients) = (0.0, GradStore::default());
        for from in (0..size).step_by(rows) {
            let count = rows.min(size - from);
            let share = count as f64 / size as f64;
            let targets = y.narrow(0, from, count)?;
            let dropout = self.dropout.map(|d| Dropout { first: d.first + from as u64, ..d });
            // Numbers keep their width.
            let targets = if y.dtype().is_float() { targets } else { targets.flatten_all()? };
            let inputs = x.narrow(0, from, count)?;
            let taught = self.teacher.as_ref().map(|t| t.taught(&inputs)).transpose()?;
            self.model.gradient(
                &inputs,
                dropout,
                &mut gradients,
                |logits| -> Result<Tensor, Error> {
                    let flat = logits.reshape(((), logits.dim(D::Minus1)?))?;
                    let loss = (self.loss.of(&flat, &targets, taught.as_ref())? * share)?;
                    value += loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                    times.forward += clock.lap()?;
                    Ok(loss)
                },
            )?;
            times.backward += clock.lap()?;
        }
        Ok((value, gradients))
    }

    /// Averages loss and gradients over the processes.
    fn average(&self, loss: f64, gradients: &mut GradStore) -> Result<f64, Error> {
        let count = self.ranks.count() as f64;
        let [loss] = self.ranks.all_reduce_scalars([loss / count]);
        for v in &self.variables {
            if let Some(g) = gradients.remove(v.var.as_tensor()) {
                let mean = (self.ranks.all_reduce(&g.detach())? / count)?;
                gradients.insert(v.var.as_tensor(), mean);
            }
        }
        Ok(loss)
    }
}

/// Time since the last look, with the device's queue empty.
struct Clock<'a> {
    device: &'a Device,
    last: Instant,
}

impl<'a> Clock<'a> {
    fn new(device: &'a Device) -> Self {
        Self { device, last: Instant::now() }
    }

    fn lap(&mut self) -> Result<f64, Error> {
        self.device.synchronize()?;
        let spent = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        Ok(spent)
    }
}
