//! Which optimizer, as a section of a config.

use lipschitz_nn::graph::Parameter;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::adamw::{AdamW, AdamWConfig};
use crate::muon::{Muon, MuonConfig};
use crate::optimizer::{Optimizer, UpdateBound, Variables};
use crate::sgd::{Sgd, SgdConfig};

/// Which optimizer, and its constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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

    /// Its name in tables and plots.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Muon(_) => "Muon",
            Self::Adamw(_) => "AdamW",
            Self::Sgd(_) => "SGD",
        }
    }

    /// How large one update of a weight can be, where that is known: under Muon it does not depend
    /// on the gradient.
    #[must_use]
    pub fn update_bound(&self, parameter: &Parameter) -> Option<UpdateBound> {
        match self {
            Self::Muon(config) => config.update_bound(parameter),
            Self::Adamw(_) | Self::Sgd(_) => None,
        }
    }

    /// The norm of an update of learning rate 1 in its own scale, where that is known.
    pub(crate) fn update_norm(&self) -> Option<f64> {
        match self {
            Self::Muon(config) => Some(config.newton_schulz.maximum()),
            Self::Adamw(_) | Self::Sgd(_) => None,
        }
    }

    /// λ of weight decay that is multiplied by the learning rate.
    pub(crate) fn coupled_decay(&self) -> f64 {
        match self {
            Self::Muon(config) => config.weight_decay,
            Self::Adamw(config) if config.decoupled => 0.0,
            Self::Adamw(config) => config.weight_decay,
            Self::Sgd(config) => config.weight_decay,
        }
    }

    /// Floating-point operations of the products in a step of this weight.
    pub(crate) fn update_work(&self, parameter: &Parameter) -> f64 {
        match self {
            Self::Muon(config) => config.update_work(parameter),
            Self::Adamw(_) | Self::Sgd(_) => 0.0,
        }
    }
}
