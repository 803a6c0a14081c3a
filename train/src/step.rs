//! One step: forward, backward, update, constraint, and the time each takes.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Result, bail};
use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Tensor};
use lipschitz_nn::graph::{Geometry, Parameter};
use lipschitz_nn::{Model, ops};
use lipschitz_opt::constraint::Constraint;
use lipschitz_opt::{Optimizer, Rate, Recipe, Variables};
use serde::{Deserialize, Serialize};

use crate::ranks::{Ranks, owners};

/// What trains: a model on variables, what moves them and what keeps them small.
pub struct Training {
    /// The network, on the variables.
    pub model: Model,
    /// Its weights.
    pub variables: Variables,
    /// Moves those that are this process's own.
    pub optimizer: Box<dyn Optimizer>,
    /// Keeps them small.
    pub constraint: Constraint,
    own: Variables,
    /// Whose each variable is.
    owners: Vec<usize>,
    ranks: Rc<Ranks>,
}

/// How an update of a weight compares with that of another: of a matrix it costs products, of
/// anything else a pass.
pub(crate) fn work(parameter: &Parameter) -> u64 {
    match parameter.shape[..] {
        [rows, columns] if parameter.geometry == Geometry::Matrix => {
            (rows * columns * rows.min(columns)) as u64
        }
        _ => parameter.shape.iter().product::<usize>() as u64,
    }
}

/// A process's part of a batch.
///
/// # Errors
/// If it is not a whole number.
pub(crate) fn share(batch_size: usize, processes: usize) -> Result<usize> {
    if processes == 0 || !batch_size.is_multiple_of(processes) {
        bail!(
            "train.batch_size is {batch_size}, which {processes} processes cannot share evenly; \
             choose a multiple of {processes}"
        )
    }
    Ok(batch_size / processes)
}

/// What a step came to.
pub struct Outcome {
    /// Mean cross-entropy of the batch, before the step.
    pub loss: f64,
    /// ℓ2 norm of the gradient.
    pub grad_norm: f64,
}

/// Seconds spent in the parts of steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// The loss of a batch.
    pub forward: f64,
    /// Its gradient.
    pub backward: f64,
    /// The optimizer.
    pub update: f64,
    /// The constraint.
    pub constraint: f64,
    /// Talk with the other processes of the run, and waiting for them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub exchange: f64,
}

fn is_zero(seconds: &f64) -> bool {
    *seconds == 0.0
}

impl Times {
    /// Of all parts.
    pub fn total(&self) -> f64 {
        self.forward + self.backward + self.update + self.constraint + self.exchange
    }
}

impl Training {
    /// A model made by [`Model::trainable`] with its variables, which the processes share out among
    /// them.
    ///
    /// # Errors
    /// A constant of the recipe out of range; candle's own.
    pub fn new(
        model: Model,
        variables: Variables,
        recipe: &Recipe,
        ranks: Rc<Ranks>,
    ) -> Result<Self> {
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
            own,
            owners,
            ranks,
        })
    }

    /// Brings fresh weights under their caps.
    ///
    /// # Errors
    /// Candle's own.
    pub fn project(&mut self) -> Result<()> {
        self.constraint.project(&self.own)?;
        if self.ranks.count() > 1 { self.share() } else { Ok(()) }
    }

    /// Everything a resumed run needs beside the weights, at the first process; a part of it
    /// elsewhere.
    ///
    /// # Errors
    /// Candle's own.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = self.optimizer.state()?;
        state.extend(self.constraint.state());
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
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.optimizer.load_state(state)?;
        Ok(self.constraint.load_state(state, &self.own)?)
    }

    /// Gives everybody the weights as their owners have them.
    fn share(&self) -> Result<()> {
        for (v, owner) in self.variables.iter().zip(&self.owners) {
            v.var.set(&self.ranks.of(*owner, &v.var.as_tensor().detach())?)?;
        }
        Ok(())
    }

    /// One step on this process's part of a batch, taken in `parts` one after the other; adds to
    /// `times`. All processes' parts are of one size. A loss that is not finite moves nothing.
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
    ) -> Result<Outcome> {
        let device = self.model.device();
        let mut clock = Clock::new(&device);
        let size = x.dim(0)?;
        let rows = size.div_ceil(parts.clamp(1, size.max(1)));
        let (mut value, mut gradients) = (0.0, GradStore::default());
        for from in (0..size).step_by(rows) {
            let count = rows.min(size - from);
            let share = count as f64 / size as f64;
            let targets = y.narrow(0, from, count)?.flatten_all()?;
            self.model.gradient(
                &x.narrow(0, from, count)?,
                &mut gradients,
                |logits| -> Result<Tensor> {
                    let flat = logits.reshape(((), logits.dim(D::Minus1)?))?;
                    let loss = (ops::cross_entropy(&flat, &targets)?.get(0)? * share)?;
                    value += loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                    times.forward += clock.lap()?;
                    Ok(loss)
                },
            )?;
            times.backward += clock.lap()?;
        }
        let count = self.ranks.count() as f64;
        if count > 1.0 {
            [value] = self.ranks.add([value / count]);
            for v in &self.variables {
                if let Some(g) = gradients.remove(v.var.as_tensor()) {
                    gradients.insert(v.var.as_tensor(), (self.ranks.sum(&g.detach())? / count)?);
                }
            }
            times.exchange += clock.lap()?;
        }
        let mut squares = 0.0;
        for v in &self.variables {
            if let Some(g) = gradients.get(v.var.as_tensor()) {
                squares += ops::norm(g)?.powi(2);
            }
        }
        times.backward += clock.lap()?;
        if value.is_finite() {
            self.optimizer.step(&gradients, rate)?;
            times.update += clock.lap()?;
            self.constraint.apply(&self.own, rate)?;
            times.constraint += clock.lap()?;
            if count > 1.0 {
                self.share()?;
                times.exchange += clock.lap()?;
            }
        }
        Ok(Outcome { loss: value, grad_norm: squares.sqrt() })
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

    fn lap(&mut self) -> Result<f64> {
        self.device.synchronize()?;
        let spent = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        Ok(spent)
    }
}
