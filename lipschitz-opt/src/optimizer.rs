//! What every optimizer is, and what their implementations share.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use lipschitz_nn::graph::Parameter;

use crate::Error;

/// A weight that moves.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Its name, shape and geometry.
    pub parameter: Parameter,
    /// Its value.
    pub var: Var,
    /// Its factor on the learning rate.
    pub rate: f64,
}

/// Weights that move, in the order of the graph.
pub type Variables = Vec<Variable>;

/// The learning rate of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// The largest of the run.
    pub peak: f64,
    /// The schedule's factor at this step.
    pub factor: f64,
}

impl Rate {
    /// A rate without a schedule.
    #[must_use]
    pub fn constant(peak: f64) -> Self {
        Self { peak, factor: 1.0 }
    }

    /// η at this step.
    #[must_use]
    pub fn now(self) -> f64 {
        self.peak * self.factor
    }
}

/// The largest norm of one update of learning rate 1, before weight decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateBound {
    /// In the norm of the whole weight.
    pub whole: f64,
    /// In the norm of each head's block (see [`crate::scale`]).
    pub block: f64,
}

/// Moves variables along their gradients.
pub trait Optimizer {
    /// One step.
    ///
    /// # Errors
    /// [`Error::NoGradient`] names a parameter that the loss does not depend on; candle's own.
    fn step(&mut self, gradients: &GradStore, rate: Rate) -> Result<(), Error>;

    /// All that a resumed run needs to continue bit for bit.
    ///
    /// # Errors
    /// Candle's own.
    fn state(&self) -> Result<BTreeMap<String, Tensor>, Error>;

    /// Restores what [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// [`Error::State`] names a tensor that is missing or of the wrong shape.
    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), Error>;
}

/// Whether a constant lies in [0, 1).
pub(crate) fn share(key: &str, x: f64) -> Result<(), Error> {
    match x {
        0.0..1.0 => Ok(()),
        _ => Err(Error::Config(format!("optimizer.{key} is {x}; it must be in [0, 1)"))),
    }
}

/// The gradient of a variable, detached: a kept one would keep the whole step's graph alive.
pub(crate) fn gradient(gradients: &GradStore, variable: &Variable) -> Result<Tensor, Error> {
    let name = || Error::NoGradient(variable.parameter.name.clone());
    Ok(gradients.get(variable.var.as_tensor()).ok_or_else(name)?.detach())
}

/// A saved tensor for a variable.
pub(crate) fn saved(
    state: &BTreeMap<String, Tensor>,
    name: &str,
    like: &Tensor,
) -> Result<Tensor, Error> {
    match state.get(name) {
        // A copy, since steps work in place.
        Some(t) if t.dims() == like.dims() => {
            Ok(t.to_device(like.device())?.to_dtype(like.dtype())?.copy()?)
        }
        Some(t) => Err(Error::State(format!(
            "`{name}` has shape {:?}, wanted {:?}",
            t.dims(),
            like.dims()
        ))),
        None => Err(Error::State(format!("`{name}` is missing"))),
    }
}

/// A count of steps as a tensor.
pub(crate) fn steps_tensor(steps: u32, device: &Device) -> Result<Tensor, Error> {
    Ok(Tensor::new(&[steps], device)?)
}

/// A saved count of steps.
pub(crate) fn steps_of(state: &BTreeMap<String, Tensor>, name: &str) -> Result<u32, Error> {
    let steps = state.get(name).ok_or_else(|| Error::State(format!("`{name}` is missing")))?;
    let counts = steps.flatten_all()?.to_vec1::<u32>()?;
    counts.first().copied().ok_or_else(|| Error::State(format!("`{name}` is empty")))
}
