//! AdamW.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::adam::Adam;
use crate::optimizer::{
    Optimizer, Rate, Variables, gradient, saved, share, steps_of, steps_tensor,
};

/// AdamW's constants: `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`, `W ← (1−d)W − η m/(√v + ε)`
/// (Loshchilov and Hutter, 2019).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// β₁, the share of the old mean.
    pub beta1: f64,
    /// β₂, the share of the old mean square.
    pub beta2: f64,
    /// ε, added to the root of the mean square.
    pub eps: f64,
    /// Whether the means are corrected for their start at zero.
    pub bias_correction: bool,
    /// λ of the weight decay d.
    pub weight_decay: f64,
    /// Whether `d = λ·(schedule's factor)`, independent of the learning rate, as in the original
    /// paper; else `d = ηλ`, as in PyTorch and Newhouse et al. (2025).
    pub decoupled: bool,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            bias_correction: false,
            weight_decay: 0.0,
            decoupled: false,
        }
    }
}

impl AdamWConfig {
    pub(crate) fn check(&self) -> Result<(), Error> {
        share("beta1", self.beta1)?;
        share("beta2", self.beta2)?;
        share("weight_decay", self.weight_decay)?;
        // A smaller one is zero in f32, and a weight without a gradient then 0/0.
        if !(1e-30..=1e30).contains(&self.eps) {
            return Err(Error::Config(format!(
                "optimizer.eps is {}; it must be from 1e-30 to 1e30",
                self.eps
            )));
        }
        Ok(())
    }
}

/// AdamW with its running means.
pub struct AdamW {
    variables: Variables,
    mean: Vec<Tensor>,
    square: Vec<Tensor>,
    config: AdamWConfig,
    steps: u32,
}

const STEPS: &str = "adamw.steps";

impl AdamW {
    /// AdamW for these variables.
    ///
    /// # Errors
    /// [`Error::Config`] names a constant out of range; candle's own.
    pub fn new(variables: Variables, config: AdamWConfig) -> Result<Self, Error> {
        config.check()?;
        let zeros = || variables.iter().map(|v| v.var.zeros_like()).collect::<Result<Vec<_>, _>>();
        let (mean, square) = (zeros()?, zeros()?);
        Ok(Self { variables, mean, square, config, steps: 0 })
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, gradients: &GradStore, rate: Rate) -> Result<(), Error> {
        self.steps += 1;
        let AdamWConfig { beta1, beta2, eps, bias_correction, weight_decay, decoupled } =
            self.config;
        let correct =
            |beta: f64| if bias_correction { 1.0 - beta.powf(f64::from(self.steps)) } else { 1.0 };
        let corrections = (correct(beta1), correct(beta2));
        for ((variable, m), v) in self.variables.iter().zip(&mut self.mean).zip(&mut self.square) {
            let g = gradient(gradients, variable)?;
            let learning_rate = rate.now() * variable.rate;
            let decay = weight_decay * if decoupled { rate.factor } else { learning_rate };
            let step = Adam {
                betas: (beta1, beta2),
                corrections,
                eps,
                keep: 1.0 - decay,
                rate: learning_rate,
            };
            step.step(&variable.var, m, v, &g)?;
        }
        Ok(())
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>, Error> {
        let mut out =
            BTreeMap::from([(STEPS.to_string(), steps_tensor(self.steps, &Device::Cpu)?)]);
        for (i, v) in self.variables.iter().enumerate() {
            out.insert(format!("adamw.mean.{}", v.parameter.name), self.mean[i].copy()?);
            out.insert(format!("adamw.square.{}", v.parameter.name), self.square[i].copy()?);
        }
        Ok(out)
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        let steps = steps_of(state, STEPS)?;
        let load = |kind: &str| -> Result<Vec<Tensor>, Error> {
            self.variables
                .iter()
                .map(|v| saved(state, &format!("adamw.{kind}.{}", v.parameter.name), &v.var))
                .collect()
        };
        (self.mean, self.square) = (load("mean")?, load("square")?);
        self.steps = steps;
        Ok(())
    }
}
