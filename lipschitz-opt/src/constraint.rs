//! What keeps weights small: applied after every step.
//!
//! Caps are on `‖W‖_RMS→RMS = √(in/out)·σ_max(W)`, of whole matrices or of each head of queries, keys and values; rows of
//! tables are capped at RMS norm 1 along with them. Vectors are left alone.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{D, Tensor, Var};
use lipschitz_nn::graph::{Axis, Geometry, Parameter};
use lipschitz_nn::norm::rms_to_rms;
use serde::{Deserialize, Serialize};

use crate::polynomial::{add_cube, soft_cap_strength};
use crate::{Error, OptimizerConfig};

/// Caps are met with this much to spare, which exceeds what rounding in `f32` adds.
const MARGIN: f64 = 2e-4;

/// Which constraint, and its constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum ConstraintConfig {
    /// None: no norm is promised.
    None,
    /// `W ← (1−λη)W`. Under Muon norms stay below 1/λ in the limit; no cap is promised.
    WeightDecay {
        /// λ
        decay: f64,
    },
    /// `W ← W / max(1, σ/σ_max)`: holds under any optimizer.
    SpectralNormalize {
        /// The cap.
        #[serde(default = "one")]
        sigma_max: f64,
        /// Caps each head of queries, keys and values.
        #[serde(default)]
        per_head: bool,
        /// Factors on the cap of the matrices of a name, such as `query` or `head`; 1 for names that are not here.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        factors: BTreeMap<String, f64>,
    },
    /// `x − αx³`, then `x + αx³` on the singular values, with α coupled to the learning rate. The coupling needs updates whose
    /// norm is bounded: with Muon's six-step set it holds by itself; elsewhere, and where the learning rate is too
    /// large for it, spectral normalize follows. So the cap always holds.
    SpectralSoftCap {
        /// The cap.
        #[serde(default = "one")]
        sigma_max: f64,
        /// Weight decay λ that goes with it.
        #[serde(default)]
        decay: f64,
        /// Caps each head of queries, keys and values.
        #[serde(default)]
        per_head: bool,
        /// Factors on the cap of the matrices of a name, such as `query` or `head`; 1 for names that are not here.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        factors: BTreeMap<String, f64>,
    },
}

fn one() -> f64 {
    1.0
}

/// What a constraint promises about one weight, after every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Promise {
    /// The norm is at most this.
    pub sigma_max: f64,
    /// Whether it is the norm of each head's block of rows.
    pub per_head: bool,
}

impl ConstraintConfig {
    /// Its name, in tables and pictures.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "no constraint",
            Self::WeightDecay { .. } => "weight decay",
            Self::SpectralNormalize { .. } => "spectral normalize",
            Self::SpectralSoftCap { .. } => "spectral soft cap",
        }
    }

    /// The cap, if it has one.
    pub fn sigma_max(&self) -> Option<f64> {
        match *self {
            Self::SpectralNormalize { sigma_max, .. } | Self::SpectralSoftCap { sigma_max, .. } => Some(sigma_max),
            _ => None,
        }
    }

    /// Whether heads are capped one by one.
    pub fn per_head(&self) -> bool {
        matches!(self, Self::SpectralNormalize { per_head: true, .. } | Self::SpectralSoftCap { per_head: true, .. })
    }

    /// The same with another cap, if it has one.
    pub fn with_sigma_max(&self, cap: f64) -> Option<Self> {
        let mut out = self.clone();
        match &mut out {
            Self::SpectralNormalize { sigma_max, .. } | Self::SpectralSoftCap { sigma_max, .. } => *sigma_max = cap,
            _ => return None,
        }
        Some(out)
    }

    /// The same with heads capped one by one or not, if it has a cap.
    pub fn with_per_head(&self, on: bool) -> Option<Self> {
        let mut out = self.clone();
        match &mut out {
            Self::SpectralNormalize { per_head, .. } | Self::SpectralSoftCap { per_head, .. } => *per_head = on,
            _ => return None,
        }
        Some(out)
    }

    /// Factors on the cap, by the name of a matrix.
    pub fn factors(&self) -> Option<&BTreeMap<String, f64>> {
        match self {
            Self::SpectralNormalize { factors, .. } | Self::SpectralSoftCap { factors, .. } => Some(factors),
            _ => None,
        }
    }

    /// The same with other factors, if it has a cap.
    pub fn with_factors(&self, new: BTreeMap<String, f64>) -> Option<Self> {
        let mut out = self.clone();
        match &mut out {
            Self::SpectralNormalize { factors, .. } | Self::SpectralSoftCap { factors, .. } => *factors = new,
            _ => return None,
        }
        Some(out)
    }

    /// Whether every factor belongs to a matrix.
    ///
    /// # Errors
    /// [`Error::Config`] names the first that does not, and the names there are.
    pub fn check_factors<'a>(&self, parameters: impl Iterator<Item = &'a Parameter>) -> Result<(), Error> {
        let matrices = parameters.filter(|p| p.geometry == Geometry::Matrix);
        let names: BTreeSet<&str> = matrices.map(|p| role(&p.name)).collect();
        match self.factors().into_iter().flatten().find(|(name, _)| !names.contains(name.as_str())) {
            None => Ok(()),
            Some((name, _)) => {
                let there = names.into_iter().collect::<Vec<_>>().join(", ");
                Err(Error::Config(format!("constraint.factors.{name}: no matrix has this name; there are {there}")))
            }
        }
    }

    /// What it promises about a weight.
    pub fn cap(&self, parameter: &Parameter) -> Option<Promise> {
        let sigma_max = self.sigma_max()?;
        let sigma_max = match self.factors()?.get(role(&parameter.name)) {
            Some(factor) => sigma_max * factor,
            None => sigma_max,
        };
        match parameter.geometry {
            Geometry::Matrix => Some(Promise { sigma_max, per_head: self.per_head() && blocks(parameter) > 1 }),
            Geometry::Table => Some(Promise { sigma_max: 1.0, per_head: false }),
            Geometry::Vector => None,
        }
    }
}

/// The name of a matrix among its kind: `query` of `blocks.0.attention.query.weight`.
pub fn role(name: &str) -> &str {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    name.rsplit('.').next().unwrap_or(name)
}

/// Blocks of rows that belong to heads.
fn blocks(parameter: &Parameter) -> usize {
    parameter.heads.filter(|h| h.axis == Axis::Rows).map_or(1, |h| h.count)
}

/// A constraint beside an optimizer.
pub struct Constraint {
    config: ConstraintConfig,
    /// Whether an update's norm is at most the learning rate, head by head if `updates_heads`, whole otherwise.
    bounded_updates: bool,
    updates_heads: bool,
}

impl Constraint {
    /// # Errors
    /// [`Error::Config`] names a constant out of range.
    pub fn new(config: &ConstraintConfig, optimizer: &OptimizerConfig) -> Result<Self, Error> {
        let decay = match *config {
            ConstraintConfig::WeightDecay { decay } | ConstraintConfig::SpectralSoftCap { decay, .. } => decay,
            _ => 0.0,
        };
        if !(decay.is_finite() && decay >= 0.0) {
            return Err(Error::Config(format!("constraint.decay is {decay}; it must be 0 or above")));
        }
        if let Some(sigma) = config.sigma_max()
            && !(sigma.is_finite() && sigma > 0.0)
        {
            return Err(Error::Config(format!("constraint.sigma_max is {sigma}; it must be above 0")));
        }
        for (name, factor) in config.factors().into_iter().flatten() {
            if !(factor.is_finite() && *factor > 0.0) {
                return Err(Error::Config(format!("constraint.factors.{name} is {factor}; it must be above 0")));
            }
        }
        let (bounded_updates, updates_heads) = match optimizer {
            OptimizerConfig::Muon { newton_schulz, per_head, .. } => (newton_schulz.bounded_by_one(), *per_head),
            OptimizerConfig::Adamw { .. } => (false, false),
        };
        Ok(Self { config: config.clone(), bounded_updates, updates_heads })
    }

    /// What it promises about a weight.
    pub fn cap(&self, parameter: &Parameter) -> Option<Promise> {
        self.config.cap(parameter)
    }

    /// Brings weights under their caps before the first step.
    ///
    /// # Errors
    /// [`Error::Config`] names a factor that belongs to no matrix; candle's own.
    pub fn project(&self, variables: &[(Parameter, Var)]) -> Result<(), Error> {
        self.config.check_factors(variables.iter().map(|(parameter, _)| parameter))?;
        for (parameter, variable) in variables {
            if let Some(promise) = self.cap(parameter) {
                let w = variable.as_tensor().detach();
                variable.set(&match parameter.geometry {
                    Geometry::Table => cap_rows(&w)?,
                    _ => in_blocks(parameter, promise, &w, |x| normalize(&x, promise.sigma_max))?,
                })?;
            }
        }
        Ok(())
    }

    /// After a step of this learning rate.
    ///
    /// # Errors
    /// Candle's own.
    pub fn apply(&self, variables: &[(Parameter, Var)], learning_rate: f64) -> Result<(), Error> {
        for (parameter, variable) in variables {
            let w = variable.as_tensor().detach();
            let capped = match (&self.config, parameter.geometry) {
                (ConstraintConfig::None, _) | (_, Geometry::Vector) => continue,
                (ConstraintConfig::WeightDecay { decay }, _) => (w * (1.0 - decay * learning_rate))?,
                (_, Geometry::Table) => cap_rows(&w)?,
                (config, Geometry::Matrix) => {
                    let Some(promise) = config.cap(parameter) else { continue };
                    let cap = promise.sigma_max;
                    let decay = if let ConstraintConfig::SpectralSoftCap { decay, .. } = config { *decay } else { 0.0 };
                    let alpha = match config {
                        ConstraintConfig::SpectralSoftCap { .. } => {
                            self.strength(parameter, promise, decay, learning_rate)
                        }
                        _ => None,
                    };
                    in_blocks(parameter, promise, &w, |x| match alpha {
                        Some(alpha) => {
                            let x = if decay == 0.0 { x } else { (x * (1.0 - decay * learning_rate))? };
                            let x = add_cube(&add_cube(&x, -alpha)?, alpha)?;
                            if self.bounded_updates { Ok(x) } else { normalize(&x, cap) }
                        }
                        None => normalize(&x, cap),
                    })?
                }
            };
            variable.set(&capped)?;
        }
        Ok(())
    }

    /// α for an update of this learning rate: a cap of σ grows to at most `k = σ(1−λη) + η`.
    fn strength(&self, parameter: &Parameter, promise: Promise, decay: f64, learning_rate: f64) -> Option<f64> {
        let heads = blocks(parameter) as f64;
        // A whole update of norm η can put all of it into one head's rows: √heads·η in the norm of the block. Heads
        // updated one by one add up to as much of the whole.
        let eta = match (promise.per_head, self.updates_heads) {
            (true, false) => learning_rate * heads.sqrt(),
            _ => learning_rate,
        };
        let sigma = promise.sigma_max * (1.0 - MARGIN);
        soft_cap_strength(promise.sigma_max * (1.0 - decay * learning_rate).max(0.0) + eta * (1.0 + 1e-3), sigma)
    }
}

/// Applies `f` to the blocks `[count, rows, columns]` that a promise speaks of, scaled so that σ_max is the RMS→RMS norm.
fn in_blocks(
    parameter: &Parameter,
    promise: Promise,
    w: &Tensor,
    f: impl Fn(Tensor) -> Result<Tensor, Error>,
) -> Result<Tensor, Error> {
    let (rows, columns) = w.dims2()?;
    let count = if promise.per_head { blocks(parameter) } else { 1 };
    let scale = rms_to_rms(rows / count, columns);
    let x = (w.reshape((count, rows / count, columns))? * scale)?;
    Ok((f(x)?.reshape((rows, columns))? / scale)?)
}

/// Each matrix of `[count, rows, columns]` over `max(1, bound/cap)`, with a bound on its σ_max by Gram iteration
/// (Delattre et al., 2023): `σ_max² ≤ ‖G^(2^K)‖_F^(1/2^K)`, at most 1.1 % above σ_max for 256 equal singular values.
fn normalize(x: &Tensor, cap: f64) -> Result<Tensor, Error> {
    const SQUARINGS: i32 = 6;
    let cap = cap * (1.0 - MARGIN);
    let t = x.transpose(D::Minus2, D::Minus1)?;
    let mut g = if x.dim(D::Minus2)? <= x.dim(D::Minus1)? { x.matmul(&t)? } else { t.matmul(x)? };
    let tiny = f64::from(f32::MIN_POSITIVE);
    let frobenius = |g: &Tensor| -> Result<Tensor, Error> {
        Ok((g.sqr()?.sum_keepdim(D::Minus1)?.sum_keepdim(D::Minus2)?.sqrt()? + tiny)?)
    };
    // log of the bound on λ_max(G): Σ log(norm_k)/2^k over the squarings.
    let mut log: Option<Tensor> = None;
    for k in 0..=SQUARINGS {
        let norm = frobenius(&g)?;
        let term = (norm.log()? * 0.5f64.powi(k))?;
        log = Some(match log {
            None => term,
            Some(sum) => (sum + term)?,
        });
        if k < SQUARINGS {
            let unit = g.broadcast_div(&norm)?;
            g = unit.matmul(&unit)?;
        }
    }
    let Some(log) = log else { return Ok(x.clone()) };
    // f32 sums of n terms and K squarings are off by far less than 1e-4, relatively.
    let sigma = ((log * 0.5)?.exp()? * (1.0 + 1e-4))?;
    Ok(x.broadcast_div(&(sigma / cap)?.maximum(1f64)?)?)
}

/// Each row over the larger of 1 and its RMS norm.
fn cap_rows(w: &Tensor) -> Result<Tensor, Error> {
    let norms = (w.sqr()?.mean_keepdim(D::Minus1)?.sqrt()? * (1.0 + 1e-5))?;
    Ok(w.broadcast_div(&norms.maximum(1f64)?)?)
}
