//! AdamW.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};

use crate::{Error, Optimizer, Variables, gradient, saved};

/// `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`, `W ← (1−ηλ)W − η m/(√v + ε)` (Loshchilov and Hutter, 2019).
pub struct AdamW {
    variables: Variables,
    mean: Vec<Tensor>,
    square: Vec<Tensor>,
    betas: (f64, f64),
    eps: f64,
    bias_correction: bool,
    weight_decay: f64,
    steps: u32,
}

const STEPS: &str = "adamw.steps";

impl AdamW {
    /// For these variables.
    ///
    /// # Errors
    /// Candle's own.
    pub fn new(
        variables: Variables,
        betas: (f64, f64),
        eps: f64,
        bias_correction: bool,
        weight_decay: f64,
    ) -> Result<Self, Error> {
        let zeros = || variables.iter().map(|(_, v)| v.zeros_like()).collect::<Result<Vec<_>, _>>();
        let (mean, square) = (zeros()?, zeros()?);
        Ok(Self { variables, mean, square, betas, eps, bias_correction, weight_decay, steps: 0 })
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, gradients: &GradStore, learning_rate: f64) -> Result<(), Error> {
        self.steps += 1;
        let (beta1, beta2) = self.betas;
        let correct = |beta: f64| if self.bias_correction { 1.0 - beta.powf(f64::from(self.steps)) } else { 1.0 };
        let (first, second) = (correct(beta1), correct(beta2));
        for (i, (parameter, variable)) in self.variables.iter().enumerate() {
            let g = gradient(gradients, parameter, variable)?;
            let m = ((&self.mean[i] * beta1)? + (&g * (1.0 - beta1))?)?;
            let v = ((&self.square[i] * beta2)? + (g.sqr()? * (1.0 - beta2))?)?;
            let direction = ((&m / first)? / ((&v / second)?.sqrt()? + self.eps)?)?;
            let kept = (variable.as_tensor().detach() * (1.0 - learning_rate * self.weight_decay))?;
            variable.set(&(kept - (direction * learning_rate)?)?)?;
            self.mean[i] = m;
            self.square[i] = v;
        }
        Ok(())
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>, Error> {
        let mut out = BTreeMap::from([(STEPS.to_string(), Tensor::new(&[self.steps], &Device::Cpu)?)]);
        for (i, (p, _)) in self.variables.iter().enumerate() {
            out.insert(format!("adamw.mean.{}", p.name), self.mean[i].clone());
            out.insert(format!("adamw.square.{}", p.name), self.square[i].clone());
        }
        Ok(out)
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        let steps = state.get(STEPS).ok_or_else(|| Error::State(format!("`{STEPS}` is missing")))?;
        let load = |kind: &str| -> Result<Vec<Tensor>, Error> {
            self.variables.iter().map(|(p, v)| saved(state, &format!("adamw.{kind}.{}", p.name), v)).collect()
        };
        let (mean, square) = (load("mean")?, load("square")?);
        let counts = steps.flatten_all()?.to_vec1::<u32>()?;
        self.steps = *counts.first().ok_or_else(|| Error::State(format!("`{STEPS}` is empty")))?;
        (self.mean, self.square) = (mean, square);
        Ok(())
    }
}
