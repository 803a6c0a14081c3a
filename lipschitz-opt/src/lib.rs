//! How weights move and what keeps them small: Muon and AdamW over named parameters, constraints after every step,
//! learning-rate schedules.

mod adamw;
pub mod constraint;
mod error;
mod muon;
pub mod polynomial;
pub mod schedule;

pub use adamw::AdamW;
pub use error::Error;
pub use muon::Muon;
pub use polynomial::NewtonSchulz;

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use lipschitz_nn::graph::Parameter;
use serde::{Deserialize, Serialize};

/// Parameters with their variables, in the order of the graph.
pub type Variables = Vec<(Parameter, Var)>;

/// Moves variables along their gradients.
pub trait Optimizer {
    /// One step.
    ///
    /// # Errors
    /// [`Error::NoGradient`] names a parameter that the loss does not depend on; candle's own.
    fn step(&mut self, gradients: &GradStore, learning_rate: f64) -> Result<(), Error>;

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
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Momentum, orthogonalised: every matrix moves by the learning rate in RMS→RMS norm.
    Muon {
        /// Share of the old momentum.
        #[serde(default = "beta")]
        beta: f64,
        /// Looks one step ahead.
        #[serde(default)]
        nesterov: bool,
        /// Orthogonalises each head of queries, keys and values by itself.
        #[serde(default)]
        per_head: bool,
        /// The polynomials.
        #[serde(default)]
        newton_schulz: NewtonSchulz,
    },
    /// Adam with decoupled weight decay.
    Adamw {
        /// Share of the old mean.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Share of the old mean square.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root of the mean square.
        #[serde(default = "eps")]
        eps: f64,
        /// Whether the means are corrected for their start at zero.
        #[serde(default)]
        bias_correction: bool,
        /// Weights shrink by this times the learning rate a step.
        #[serde(default)]
        weight_decay: f64,
    },
}

fn beta() -> f64 {
    0.95
}

fn beta1() -> f64 {
    0.9
}

fn beta2() -> f64 {
    0.95
}

fn eps() -> f64 {
    1e-8
}

impl OptimizerConfig {
    /// The optimizer for these variables.
    ///
    /// # Errors
    /// [`Error::Config`] names a constant out of range.
    pub fn build(&self, variables: Variables) -> Result<Box<dyn Optimizer>, Error> {
        let share = |key: &str, x: f64| match x {
            0.0..1.0 => Ok(()),
            _ => Err(Error::Config(format!("optimizer.{key} is {x}; it must be in [0, 1)"))),
        };
        match *self {
            Self::Muon { beta, nesterov, per_head, newton_schulz } => {
                share("beta", beta)?;
                Ok(Box::new(Muon::new(variables, beta, nesterov, per_head, newton_schulz)?))
            }
            Self::Adamw { beta1, beta2, eps, bias_correction, weight_decay } => {
                share("beta1", beta1)?;
                share("beta2", beta2)?;
                share("weight_decay", weight_decay)?;
                if !(eps.is_finite() && eps > 0.0) {
                    return Err(Error::Config(format!("optimizer.eps is {eps}; it must be above 0")));
                }
                Ok(Box::new(AdamW::new(variables, (beta1, beta2), eps, bias_correction, weight_decay)?))
            }
        }
    }

    /// Its name, in tables and pictures.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Muon { .. } => "Muon",
            Self::Adamw { .. } => "AdamW",
        }
    }
}

/// The gradient of a variable, cut from its graph: one that is kept would keep the whole step alive.
fn gradient(gradients: &GradStore, parameter: &Parameter, variable: &Var) -> Result<Tensor, Error> {
    let gradient = gradients.get(variable.as_tensor()).ok_or_else(|| Error::NoGradient(parameter.name.clone()))?;
    Ok(gradient.detach())
}

/// A saved tensor for a variable.
fn saved(state: &BTreeMap<String, Tensor>, name: &str, variable: &Var) -> Result<Tensor, Error> {
    match state.get(name) {
        Some(t) if t.dims() == variable.dims() => Ok(t.to_device(variable.device())?.to_dtype(variable.dtype())?),
        Some(t) => Err(Error::State(format!("`{name}` has shape {:?}, wanted {:?}", t.dims(), variable.dims()))),
        None => Err(Error::State(format!("`{name}` is missing"))),
    }
}
