//! Muon: orthogonalised momentum, so that every weight moves by the learning rate in its own norm.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Tensor};
use lipschitz_nn::graph::{Geometry, Parameter};
use lipschitz_nn::linalg::{Precision, axpby, axpby_var};
use lipschitz_nn::norm::rms_to_rms;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::blocks::{PerHead, batched, block, merge, split};
use crate::optimizer::{
    Optimizer, Rate, UpdateBound, Variable, Variables, gradient, saved, share, steps_of,
    steps_tensor,
};
use crate::polynomial::{
    NewtonSchulz, orthogonalise, orthogonalise_each, orthogonalise_work, rounding,
};
use crate::work::Sides;

/// How much more a table's row may be scaled up than its largest row. Rows with smaller gradients
/// move by less than the learning rate.
const INFLATION: f64 = 16.0;

/// Muon's constants: `m ← βm + (1−β)g`, then `W ← (1−ηλ)W − η·s·orthogonalise(m)` (Jordan et al.,
/// *Muon*, 2024; the scale s as in Bernstein, *Deriving Muon*). Rows of tables and vectors move by
/// η in RMS norm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MuonConfig {
    /// β, the share of the old momentum.
    pub beta: f64,
    /// Whether to take Nesterov's step, which looks one step ahead: orthogonalises `βm + (1−β)g`.
    pub nesterov: bool,
    /// A β that grows over the first steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Warmup>,
    /// λ of the weight decay.
    pub weight_decay: f64,
    /// s, the scale of an update.
    pub update_scale: UpdateScale,
    /// Which matrices are orthogonalised per head.
    pub per_head: PerHead,
    /// The polynomials that orthogonalise.
    pub newton_schulz: NewtonSchulz,
    /// The type that the polynomials are evaluated in. In bf16 the norm of an update is not known
    /// well enough to build a cap on.
    pub precision: Precision,
}

impl Default for MuonConfig {
    fn default() -> Self {
        Self {
            beta: 0.95,
            nesterov: false,
            warmup: None,
            weight_decay: 0.0,
            update_scale: UpdateScale::default(),
            per_head: PerHead::default(),
            newton_schulz: NewtonSchulz::default(),
            precision: Precision::default(),
        }
    }
}

/// A momentum that grows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Warmup {
    /// β at the first step.
    pub from: f64,
    /// Steps until β is full; it grows linearly.
    pub steps: u32,
}

/// What an orthogonalised `[out, in]` matrix is multiplied by, beside the learning rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpdateScale {
    /// √(out/in): the update has RMS→RMS norm 1.
    #[default]
    RmsToRms,
    /// 1: the update has spectral norm 1.
    Spectral,
    /// √max(1, out/in), as in the first Muon.
    Jordan,
    /// 0.2·√max(out, in): elements as large as AdamW's (Liu et al., *Muon is scalable for LLM
    /// training*, 2025).
    Adam,
}

impl UpdateScale {
    /// The factor for a matrix of this shape.
    #[must_use]
    pub fn factor(self, outputs: usize, inputs: usize) -> f64 {
        let ratio = rms_to_rms(outputs, inputs).recip();
        match self {
            Self::RmsToRms => ratio,
            Self::Spectral => 1.0,
            Self::Jordan => ratio.max(1.0),
            Self::Adam => 0.2 * (outputs.max(inputs) as f64).sqrt(),
        }
    }
}

impl MuonConfig {
    pub(crate) fn check(&self) -> Result<(), Error> {
        share("beta", self.beta)?;
        share("weight_decay", self.weight_decay)?;
        if let Some(warmup) = self.warmup {
            share("warmup.from", warmup.from)?;
        }
        Ok(())
    }

    /// How large an update of learning rate 1 can be, without weight decay; unknown in bf16.
    pub(crate) fn update_bound(&self, parameter: &Parameter) -> Option<UpdateBound> {
        if parameter.geometry != Geometry::Matrix {
            return Some(UpdateBound { whole: 1.0 + 1e-5, block: 1.0 + 1e-5 });
        }
        if self.precision == Precision::Bf16 {
            return None;
        }
        let (rows, columns) = (parameter.shape[0], parameter.shape[1]);
        let scale = self.update_scale.factor(rows, columns) * rms_to_rms(rows, columns);
        let (_, block_rows, block_columns) = block(parameter, self.per_head.of(parameter));
        let whole =
            self.newton_schulz.maximum() * scale * (1.0 + rounding(block_rows, block_columns));
        // An update of the whole can lie in one head's block alone, whose norm is √count times
        // larger.
        let spread = match (self.per_head.of(parameter), parameter.heads) {
            (None, Some(heads)) => (heads.count as f64).sqrt(),
            _ => 1.0,
        };
        Some(UpdateBound { whole, block: whole * spread })
    }

    /// Floating-point operations of the products in a step of this weight.
    pub(crate) fn update_work(&self, parameter: &Parameter) -> f64 {
        if parameter.geometry != Geometry::Matrix {
            return 0.0;
        }
        let (count, sides) = Sides::of(parameter, self.per_head.of(parameter));
        count * orthogonalise_work(sides, self.newton_schulz, self.precision)
    }

    fn beta_at(&self, step: u32) -> f64 {
        match self.warmup {
            Some(Warmup { from, steps }) if step < steps => {
                from + (self.beta - from) * f64::from(step) / f64::from(steps)
            }
            _ => self.beta,
        }
    }
}

/// Muon with its momentum.
pub struct Muon {
    variables: Variables,
    momentum: Vec<Tensor>,
    config: MuonConfig,
    steps: u32,
}

const STEPS: &str = "muon.steps";

impl Muon {
    /// Muon for these variables.
    ///
    /// # Errors
    /// [`Error::Config`] names a constant out of range; candle's own.
    pub fn new(variables: Variables, config: MuonConfig) -> Result<Self, Error> {
        config.check()?;
        let momentum = variables.iter().map(|v| v.var.zeros_like()).collect::<Result<_, _>>()?;
        Ok(Self { variables, momentum, config, steps: 0 })
    }

    /// The directions of a step, each with its factor. In each parameter's norm they are at most 1,
    /// or at most the polynomials' maximum.
    fn directions(&self, momentum: &[Tensor]) -> Result<Vec<(Tensor, f64)>, Error> {
        let tiny = f64::from(f32::MIN_POSITIVE);
        let (mut matrices, mut stacks) = (Vec::new(), Vec::new());
        let mut out = Vec::with_capacity(momentum.len());
        for (i, (v, m)) in self.variables.iter().zip(momentum).enumerate() {
            let direction = match v.parameter.geometry {
                Geometry::Matrix => {
                    matrices.push(i);
                    stacks.push(split(m, self.config.per_head.of(&v.parameter))?);
                    m.clone()
                }
                Geometry::Table => {
                    let norms = m.sqr()?.mean_keepdim(D::Minus1)?.sqrt()?;
                    let floor = (norms.max_keepdim(0)? / INFLATION)?;
                    m.broadcast_div(&(norms.broadcast_maximum(&floor)? + tiny)?)?
                }
                Geometry::Vector => m.broadcast_div(&(m.sqr()?.mean_all()?.sqrt()? + tiny)?)?,
            };
            out.push((direction, 1.0));
        }
        let orthogonal = match self.config.precision {
            Precision::F32 => orthogonalise_each(&stacks, self.config.newton_schulz)?,
            Precision::Bf16 => None,
        };
        let orthogonal = match orthogonal {
            Some(all) => all,
            None => self.orthogonalise_batched(stacks)?,
        };
        for (i, blocks) in matrices.into_iter().zip(orthogonal) {
            let parameter = &self.variables[i].parameter;
            let heads = self.config.per_head.of(parameter);
            let count = heads.map_or(1.0, |heads| heads.count as f64);
            let factor = self.config.update_scale.factor(parameter.shape[0], parameter.shape[1])
                / count.sqrt();
            out[i] = (merge(&blocks, heads)?, factor);
        }
        Ok(out)
    }

    /// Orthogonalises stacks of one shape in one batch, which keeps a device busy.
    fn orthogonalise_batched(&self, stacks: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        let set = self.config.newton_schulz;
        let stacks: Vec<((), Tensor)> = stacks.into_iter().map(|m| ((), m)).collect();
        batched(&stacks, |(), m| {
            Ok(match self.config.precision {
                Precision::F32 => orthogonalise(&m, set)?,
                Precision::Bf16 => {
                    orthogonalise(&m.to_dtype(DType::BF16)?, set)?.to_dtype(m.dtype())?
                }
            })
        })
    }
}

fn key(parameter: &Parameter) -> String {
    format!("muon.momentum.{}", parameter.name)
}

impl Optimizer for Muon {
    fn step(&mut self, gradients: &GradStore, rate: Rate) -> Result<(), Error> {
        let beta = self.config.beta_at(self.steps);
        let mut ahead = Vec::with_capacity(self.variables.len());
        for (v, momentum) in self.variables.iter().zip(&mut self.momentum) {
            let g = gradient(gradients, v)?;
            axpby(momentum, beta, &g, 1.0 - beta)?;
            ahead.push(match self.config.nesterov {
                true => {
                    let mut m = momentum.copy()?;
                    axpby(&mut m, beta, &g, 1.0 - beta)?;
                    m
                }
                false => momentum.clone(),
            });
        }
        for (v, (direction, factor)) in self.variables.iter().zip(self.directions(&ahead)?) {
            let learning_rate = rate.now() * v.rate;
            axpby_var(
                &v.var,
                (1.0 - learning_rate * self.config.weight_decay).max(0.0),
                &direction,
                -learning_rate * factor,
            )?;
        }
        self.steps += 1;
        Ok(())
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>, Error> {
        let momentum = self.variables.iter().zip(&self.momentum);
        let copied = |(v, m): (&Variable, &Tensor)| Ok((key(&v.parameter), m.copy()?));
        let mut out = momentum.map(copied).collect::<Result<BTreeMap<_, _>, Error>>()?;
        out.insert(STEPS.into(), steps_tensor(self.steps, &Device::Cpu)?);
        Ok(out)
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        let steps = steps_of(state, STEPS)?;
        self.momentum = self
            .variables
            .iter()
            .map(|v| saved(state, &key(&v.parameter), &v.var))
            .collect::<Result<_, _>>()?;
        self.steps = steps;
        Ok(())
    }
}
