//! One step: forward, backward, update, constraint, and the time each takes.

use std::time::Instant;

use anyhow::{Result, bail};
use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Tensor};
use lipschitz_nn::{Model, ops};
use lipschitz_opt::constraint::Constraint;
use lipschitz_opt::{Optimizer, Rate, Variables};
use serde::{Deserialize, Serialize};

/// What trains: a model on variables, what moves them and what keeps them small.
pub struct Training {
    /// The network, on the variables.
    pub model: Model,
    /// Its weights.
    pub variables: Variables,
    /// Moves them.
    pub optimizer: Box<dyn Optimizer>,
    /// Keeps them small.
    pub constraint: Constraint,
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
}

impl Times {
    /// Of all parts.
    pub fn total(&self) -> f64 {
        self.forward + self.backward + self.update + self.constraint
    }
}

impl Training {
    /// One step on a batch, taken in `parts` one after the other; adds to `times`. A loss that is not finite moves nothing.
    ///
    /// # Errors
    /// Candle's own.
    pub fn step(&mut self, x: &Tensor, y: &Tensor, parts: usize, rate: Rate, times: &mut Times) -> Result<Outcome> {
        let device = self.model.device();
        let mut clock = Clock::new(&device);
        let size = x.dim(0)?;
        let rows = size.div_ceil(parts.clamp(1, size.max(1)));
        let (mut value, mut total) = (0.0, None);
        for from in (0..size).step_by(rows) {
            let count = rows.min(size - from);
            let share = count as f64 / size as f64;
            let targets = y.narrow(0, from, count)?.flatten_all()?;
            let (_, gradients) = self.model.gradient(&x.narrow(0, from, count)?, |logits| -> Result<Tensor> {
                let flat = logits.reshape(((), logits.dim(D::Minus1)?))?;
                let loss = (ops::cross_entropy(&flat, &targets)?.get(0)? * share)?;
                value += loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                times.forward += clock.lap()?;
                Ok(loss)
            })?;
            match &mut total {
                None => total = Some(gradients),
                Some(total) => self.add(total, &gradients)?,
            }
            times.backward += clock.lap()?;
        }
        let Some(gradients) = total else { bail!("an empty batch") };
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
            self.constraint.apply(&self.variables, rate)?;
            times.constraint += clock.lap()?;
        }
        Ok(Outcome { loss: value, grad_norm: squares.sqrt() })
    }

    fn add(&self, total: &mut GradStore, more: &GradStore) -> Result<()> {
        for v in &self.variables {
            let w = v.var.as_tensor();
            if let Some(more) = more.get(w) {
                let sum = match total.get(w) {
                    Some(sum) => {
                        let mut sum = sum.clone();
                        ops::mix(&mut sum, 1.0, more, 1.0)?;
                        sum
                    }
                    None => more.clone(),
                };
                total.insert(w, sum);
            }
        }
        Ok(())
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
