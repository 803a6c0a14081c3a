//! Stochastic gradient descent with momentum.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use lipschitz_nn::linalg::{axpby, axpby_var};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::optimizer::{Optimizer, Rate, Variable, Variables, gradient, saved, share};

/// SGD's constants: `m ← μm + g`, `W ← (1−ηλ)W − ηm`, or `− η(g + μm)` with Nesterov's step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SgdConfig {
    /// μ, the share of the old momentum.
    pub momentum: f64,
    /// Whether to take Nesterov's step, which looks one step ahead.
    pub nesterov: bool,
    /// λ of the weight decay.
    pub weight_decay: f64,
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self { momentum: 0.9, nesterov: false, weight_decay: 0.0 }
    }
}

impl SgdConfig {
    pub(crate) fn check(&self) -> Result<(), Error> {
        share("momentum", self.momentum)?;
        share("weight_decay", self.weight_decay)
    }
}

/// SGD with its momentum.
pub struct Sgd {
    variables: Variables,
    momentum: Vec<Tensor>,
    config: SgdConfig,
}

impl Sgd {
    /// SGD for these variables.
    ///
    /// # Errors
    /// [`Error::Config`] names a constant out of range; candle's own.
    pub fn new(variables: Variables, config: SgdConfig) -> Result<Self, Error> {
        config.check()?;
        let momentum = variables.iter().map(|v| v.var.zeros_like()).collect::<Result<_, _>>()?;
        Ok(Self { variables, momentum, config })
    }
}

fn key(name: &str) -> String {
    format!("sgd.momentum.{name}")
}

impl Optimizer for Sgd {
    fn step(&mut self, gradients: &GradStore, rate: Rate) -> Result<(), Error> {
        let SgdConfig { momentum, nesterov, weight_decay } = self.config;
        for (v, m) in self.variables.iter().zip(&mut self.momentum) {
            let g = gradient(gradients, v)?;
            axpby(m, momentum, &g, 1.0)?;
            let learning_rate = rate.now() * v.rate;
            let keep = (1.0 - learning_rate * weight_decay).max(0.0);
            if nesterov {
                axpby_var(&v.var, keep, &g, -learning_rate)?;
                axpby_var(&v.var, 1.0, m, -learning_rate * momentum)?;
            } else {
                axpby_var(&v.var, keep, m, -learning_rate)?;
            }
        }
        Ok(())
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>, Error> {
        let copied = |(v, m): (&Variable, &Tensor)| Ok((key(&v.parameter.name), m.copy()?));
        self.variables.iter().zip(&self.momentum).map(copied).collect()
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        let load = |v: &Variable| saved(state, &key(&v.parameter.name), &v.var);
        self.momentum = self.variables.iter().map(load).collect::<Result<_, _>>()?;
        Ok(())
    }
}
