//! What every optimizer is.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use lipschitz_nn::graph::Parameter;
use serde::{Deserialize, Serialize};

use crate::{AdamW, AdamWConfig, Error, Muon, MuonConfig, Sgd, SgdConfig};

/// A weight that moves.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Its name, shape and norm.
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
    /// A rate that does not change.
    pub fn constant(peak: f64) -> Self {
        Self { peak, factor: 1.0 }
    }

    /// η at this step.
    pub fn now(self) -> f64 {
        self.peak * self.factor
    }
}

/// How large one update of learning rate 1 can be, before weight decay.
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

    /// Everything a resumed run needs to go on as if it had never stopped.
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

/// Which optimizer, and its constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OptimizerConfig {
    /// Momentum, orthogonalised.
    Muon(MuonConfig),
    /// Adam with weight decay beside the gradient.
    Adamw(AdamWConfig),
    /// Gradient descent with momentum.
    Sgd(SgdConfig),
}

impl OptimizerConfig {
    /// Whether every constant is in range.
    ///
    /// # Errors
    /// [`Error::Config`] names the first that is not.
    pub fn check(&self) -> Result<(), Error> {
        match self {
            Self::Muon(config) => config.check(),
            Self::Adamw(config) => config.check(),
            Self::Sgd(config) => config.check(),
        }
    }

    /// The optimizer for these variables.
    ///
    /// # Errors
    /// [`Error::Config`] names a constant out of range.
    pub fn build(&self, variables: Variables) -> Result<Box<dyn Optimizer>, Error> {
        Ok(match self {
            Self::Muon(config) => Box::new(Muon::new(variables, config.clone())?),
            Self::Adamw(config) => Box::new(AdamW::new(variables, config.clone())?),
            Self::Sgd(config) => Box::new(Sgd::new(variables, config.clone())?),
        })
    }

    /// Its name, in tables and pictures.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Muon(_) => "Muon",
            Self::Adamw(_) => "AdamW",
            Self::Sgd(_) => "SGD",
        }
    }

    /// How large one update of a weight can be, where that is known: under Muon it does not depend
    /// on the gradient.
    pub fn update_bound(&self, parameter: &Parameter) -> Option<UpdateBound> {
        match self {
            Self::Muon(config) => config.update_bound(parameter),
            Self::Adamw(_) | Self::Sgd(_) => None,
        }
    }
}

/// Whether a constant that is a share is one.
pub(crate) fn share(key: &str, x: f64) -> Result<(), Error> {
    match x {
        0.0..1.0 => Ok(()),
        _ => Err(Error::Config(format!("optimizer.{key} is {x}; it must be in [0, 1)"))),
    }
}

/// The gradient of a variable, cut from its graph: one that is kept would keep the whole step
/// alive.
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
        // A copy: steps are made in place.
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
