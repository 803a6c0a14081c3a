//! What keeps weights small: applied after every step.

mod config;
mod norms;
mod svd;

pub use config::{ConstraintConfig, ConstraintKind, HardCap, NormEstimator};
pub(crate) use norms::SQUARINGS;

use std::collections::BTreeMap;

use candle_core::{D, Tensor};
use lipschitz_nn::graph::{Geometry, HeadBlocks, Parameter};

use crate::blocks::{batched, matrix_name, merge, scale, split};
use crate::optimizer::{Rate, UpdateBound, Variable, saved};
use crate::polynomial::{
    hard_cap_quintic, hard_cap_sign, polar, soft_cap, soft_cap_each, soft_cap_strength,
};
use crate::{Error, Recipe};
use norms::{Top, gram, power, start};

/// Caps are met with this much to spare, which exceeds what rounding in `f32` adds.
const MARGIN: f64 = 2e-4;

/// Steps of power iteration, from nothing and from the vector of the step before.
pub(crate) const ITERATIONS: (usize, usize) = (16, 2);

/// What a constraint promises about one weight, after every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Promise {
    /// The norm is at most this: RMS→RMS of a matrix, RMS of each row of a table.
    pub sigma_max: f64,
    /// Whether it is the norm of each head's block (see [`crate::scale`]); else of the whole.
    pub heads: Option<HeadBlocks>,
    /// The ℓ2 norm of each row is at most this, where rows are capped.
    pub row: Option<f64>,
}

/// The side whose vectors are capped in place of singular values.
#[derive(Clone, Copy, PartialEq)]
enum Vectors {
    Rows,
    Columns,
}

impl ConstraintConfig {
    /// Whether it caps rows or columns of a weight in place of its norm.
    pub(crate) fn caps_vectors(&self, parameter: &Parameter) -> bool {
        vectors(self, parameter).is_some()
    }
}

fn vectors(config: &ConstraintConfig, parameter: &Parameter) -> Option<Vectors> {
    let name = matrix_name(&parameter.name);
    if config.row_caps.contains(name) {
        Some(Vectors::Rows)
    } else if config.column_caps.contains(name) {
        Some(Vectors::Columns)
    } else {
        None
    }
}

/// What a constraint promises about a weight whose updates are of this size.
pub(crate) fn promise(
    config: &ConstraintConfig,
    parameter: &Parameter,
    update: Option<UpdateBound>,
) -> Option<Promise> {
    let plain = |sigma_max| Some(Promise { sigma_max, heads: None, row: None });
    let heads = config.per_head.of(parameter);
    match (config.method, parameter.geometry) {
        (_, Geometry::Vector)
        | (
            ConstraintKind::None
            | ConstraintKind::SpectralWeightDecay
            | ConstraintKind::SpectralHammer,
            Geometry::Matrix,
        )
        | (ConstraintKind::None, Geometry::Table) => None,
        // The fixed point of `x ← (1−λη)(x + ηu)` lies below u/λ, whatever the learning rates.
        (ConstraintKind::WeightDecay, _) => {
            let UpdateBound { whole, block } = update?;
            let update = if heads.is_some() { block } else { whole };
            let sigma_max = update / config.decay() / (1.0 - MARGIN);
            Some(Promise { sigma_max, heads, row: None }).filter(|p| p.sigma_max.is_finite())
        }
        (_, Geometry::Table) => plain(1.0),
        (ConstraintKind::SpectralNormalize, _) if config.norm == Some(NormEstimator::Power) => None,
        (
            ConstraintKind::SpectralNormalize
            | ConstraintKind::Stiefel
            | ConstraintKind::SpectralSoftCap
            | ConstraintKind::SpectralHardCap
            | ConstraintKind::SvdClip,
            Geometry::Matrix,
        ) => {
            let sigma_max = config.sigma_max()? * config.factor(parameter);
            let inputs = parameter.shape[1] as f64;
            match vectors(config, parameter) {
                None => Some(Promise { sigma_max, heads, row: None }),
                Some(Vectors::Rows) => {
                    Some(Promise { sigma_max, heads: None, row: Some(sigma_max / inputs.sqrt()) })
                }
                Some(Vectors::Columns) => plain(inputs * sigma_max),
            }
        }
    }
}

/// A constraint beside an optimizer, with the vectors it keeps from step to step.
pub struct Constraint {
    recipe: Recipe,
    /// Right vectors of power iteration, by the weight's name.
    kept: BTreeMap<String, Tensor>,
}

/// What is to be done to a stack of blocks; blocks of one job are done at once.
#[derive(Clone, Copy, PartialEq)]
enum Job {
    /// `x` over the larger of 1 and a bound on its norm over the cap.
    Normalize {
        cap: f64,
    },
    Stiefel {
        cap: f64,
    },
    /// Shrinks by `keep`, caps with strength α; normalizes after if updates have no bound.
    Soft {
        keep: f64,
        alpha: f64,
        cap: f64,
        bounded: bool,
    },
    /// Normalizes before if updates have no bound that keeps within the polynomial's domain.
    Hard {
        form: HardCap,
        cap: f64,
        bounded: bool,
    },
    Svd {
        cap: f64,
    },
}

impl Job {
    fn run(self, x: Tensor) -> Result<Tensor, Error> {
        match self {
            Self::Normalize { cap } => normalize(&x, cap),
            Self::Stiefel { cap } => Ok((polar(&x)? * cap)?),
            Self::Soft { keep, alpha, cap, bounded } => {
                let x = if keep == 1.0 { x } else { (x * keep)? };
                let x = soft_cap(&x, alpha)?;
                if bounded { Ok(x) } else { normalize(&x, cap) }
            }
            Self::Hard { form, cap, bounded } => {
                let x = if bounded { x } else { normalize(&x, DOMAIN * cap)? };
                Ok(match form {
                    HardCap::Quintic => hard_cap_quintic(&x, cap)?,
                    HardCap::Sign => hard_cap_sign(&x, cap)?,
                })
            }
            Self::Svd { cap } => svd::clip(&x, cap),
        }
    }
}

/// The usual case: soft caps that need nothing after them, where their kernel runs.
fn all_at_once(stacks: &[(Job, Tensor)]) -> Result<Option<Vec<Tensor>>, Error> {
    let soft = |(job, x): &(Job, Tensor)| match *job {
        Job::Soft { keep, alpha, bounded: true, .. } => Some((keep, alpha, x.clone())),
        _ => None,
    };
    match stacks.iter().map(soft).collect::<Option<Vec<_>>>() {
        Some(soft) => Ok(soft_cap_each(&soft)?),
        None => Ok(None),
    }
}

/// What a norm may have grown to over its cap for both forms of the hard cap to hold.
const DOMAIN: f64 = 2.0;

impl Constraint {
    /// The constraint of a recipe.
    ///
    /// # Errors
    /// [`Error::Config`] names a constant out of range.
    pub fn new(recipe: &Recipe) -> Result<Self, Error> {
        recipe.check()?;
        recipe.constraint.check_complete()?;
        Ok(Self { recipe: recipe.clone(), kept: BTreeMap::new() })
    }

    /// What it promises about a weight.
    pub fn promise(&self, parameter: &Parameter) -> Option<Promise> {
        self.recipe.promise(parameter)
    }

    /// Brings weights under what is promised, before the first step.
    ///
    /// # Errors
    /// Candle's own.
    pub fn project(&self, variables: &[Variable]) -> Result<(), Error> {
        for v in variables {
            let Some(promise) = self.promise(&v.parameter) else { continue };
            let w = v.var.as_tensor().detach();
            v.var.set(
                &match (v.parameter.geometry, vectors(&self.recipe.constraint, &v.parameter)) {
                    (Geometry::Table, _) => cap_rows(&w, promise.sigma_max)?,
                    (_, Some(side)) => self.cap_vectors(&w, &v.parameter, side)?,
                    _ => {
                        let factor = scale(&v.parameter, promise.heads);
                        let x =
                            normalize(&(split(&w, promise.heads)? * factor)?, promise.sigma_max)?;
                        (merge(&x, promise.heads)? / factor)?
                    }
                },
            )?;
        }
        Ok(())
    }

    /// After a step of this learning rate.
    ///
    /// # Errors
    /// [`Error::Svd`] if an SVD fails; candle's own.
    pub fn apply(&mut self, variables: &[Variable], rate: Rate) -> Result<(), Error> {
        let config = self.recipe.constraint.clone();
        let (mut members, mut stacks) = (Vec::new(), Vec::new());
        for v in variables {
            let p = &v.parameter;
            let w = v.var.as_tensor().detach();
            let learning_rate = rate.now() * v.rate;
            match (config.method, p.geometry) {
                (ConstraintKind::None, _) | (_, Geometry::Vector) => {}
                (ConstraintKind::WeightDecay, _) => {
                    v.var.set(&(w * (1.0 - config.decay() * learning_rate).max(0.0))?)?
                }
                (_, Geometry::Table) => v.var.set(&cap_rows(&w, 1.0)?)?,
                (method, Geometry::Matrix) => {
                    if let Some(side) = vectors(&config, p) {
                        v.var.set(&self.cap_vectors(&w, p, side)?)?;
                        continue;
                    }
                    let heads = config.per_head.of(p);
                    let x = split(&w, heads)?;
                    let scale = scale(p, heads);
                    // Of singular values, which is what the jobs work on.
                    let cap = self.cap(p) / scale;
                    let job = match method {
                        ConstraintKind::None | ConstraintKind::WeightDecay => continue,
                        ConstraintKind::SpectralWeightDecay | ConstraintKind::SpectralHammer => {
                            None
                        }
                        ConstraintKind::SpectralNormalize => match config.norm {
                            Some(NormEstimator::Power) => None,
                            Some(NormEstimator::Proven) | None => Some(Job::Normalize { cap }),
                        },
                        ConstraintKind::Stiefel => Some(Job::Stiefel { cap: cap * (1.0 - MARGIN) }),
                        ConstraintKind::SpectralSoftCap => {
                            Some(self.soft(p, cap, learning_rate / scale))
                        }
                        ConstraintKind::SpectralHardCap => {
                            let bounded = self
                                .grown(p, cap, learning_rate / scale)
                                .is_some_and(|k| k <= DOMAIN * cap);
                            let form = config.form.unwrap_or_default();
                            Some(Job::Hard { form, cap: cap * (1.0 - MARGIN), bounded })
                        }
                        ConstraintKind::SvdClip => Some(Job::Svd { cap: cap * (1.0 - MARGIN) }),
                    };
                    match job {
                        Some(job) => {
                            members.push((v, heads));
                            stacks.push((job, x));
                        }
                        None => {
                            let x = self.by_top_vector(&config, &p.name, &x, cap)?;
                            set(v, heads, &x)?;
                        }
                    }
                }
            }
        }
        let done = match all_at_once(&stacks)? {
            Some(done) => done,
            None => batched(&stacks, Job::run)?,
        };
        for ((v, heads), x) in members.into_iter().zip(done) {
            set(v, heads, &x)?;
        }
        Ok(())
    }

    /// The vectors that a resumed run needs to go on as if it had never stopped.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        self.kept.iter().map(|(name, v)| (key(name), v.clone())).collect()
    }

    /// Restores what [`Constraint::state`] gave.
    ///
    /// # Errors
    /// [`Error::State`] names a vector of the wrong shape.
    pub fn load_state(
        &mut self,
        state: &BTreeMap<String, Tensor>,
        variables: &[Variable],
    ) -> Result<(), Error> {
        for v in variables.iter().filter(|v| v.parameter.geometry == Geometry::Matrix) {
            let name = key(&v.parameter.name);
            if state.contains_key(&name) {
                let like = start(&split(
                    v.var.as_tensor(),
                    self.recipe.constraint.per_head.of(&v.parameter),
                )?)?;
                self.kept.insert(v.parameter.name.clone(), saved(state, &name, &like)?);
            }
        }
        Ok(())
    }

    /// σ_max of a weight, promised or not.
    fn cap(&self, parameter: &Parameter) -> f64 {
        let config = &self.recipe.constraint;
        config.sigma_max().map_or(f64::INFINITY, |sigma| sigma * config.factor(parameter))
    }

    /// What a singular value at its cap can have grown to by a step, where that is known: `(1−d)σ +
    /// ηu`, with d the optimizer's own decay, and η over the scale of the norm.
    fn grown(&self, parameter: &Parameter, cap: f64, learning_rate: f64) -> Option<f64> {
        let bound = self.recipe.optimizer_of(parameter).update_bound(parameter)?;
        let update = if self.recipe.constraint.per_head.of(parameter).is_some() {
            bound.block
        } else {
            bound.whole
        };
        // A decay of the optimizer only shrinks; without it the bound is larger.
        Some(cap + learning_rate * update)
    }

    fn soft(&self, parameter: &Parameter, cap: f64, learning_rate: f64) -> Job {
        let keep = (1.0 - self.recipe.constraint.decay() * learning_rate).max(0.0);
        let grown = self.grown(parameter, cap, learning_rate);
        // Without a bound the strength is chosen as for an update of learning-rate size, and not
        // relied on.
        let k = keep * grown.unwrap_or(cap + learning_rate);
        match soft_cap_strength(k, cap * (1.0 - MARGIN)) {
            Some(alpha) => Job::Soft { keep, alpha, cap, bounded: grown.is_some() },
            None => Job::Normalize { cap },
        }
    }

    /// The methods that change one singular value, or scale by its estimate, with the vector of the
    /// step before.
    fn by_top_vector(
        &mut self,
        config: &ConstraintConfig,
        name: &str,
        x: &Tensor,
        cap: f64,
    ) -> Result<Tensor, Error> {
        let (fresh, again) = ITERATIONS;
        let top = match self.kept.get(name) {
            Some(kept) => power(x, kept, again)?,
            None => power(x, &start(x)?, fresh)?,
        };
        self.kept.insert(name.to_string(), top.right.clone());
        let Top { sigma, .. } = &top;
        Ok(match config.method {
            ConstraintKind::SpectralWeightDecay => {
                (x - top.outer()?.broadcast_mul(&(sigma * config.decay())?)?)?
            }
            ConstraintKind::SpectralHammer => {
                (x + top.outer()?.broadcast_mul(&(sigma.neg()? + cap)?)?)?
            }
            _ => x.broadcast_div(&(sigma / cap)?.maximum(1f64)?)?,
        })
    }

    fn cap_vectors(
        &self,
        w: &Tensor,
        parameter: &Parameter,
        side: Vectors,
    ) -> Result<Tensor, Error> {
        let cap = self.cap(parameter);
        match side {
            // √in·‖row‖₂ is in times the row's RMS norm.
            Vectors::Rows => cap_rows(w, cap / parameter.shape[1] as f64),
            Vectors::Columns => Ok(cap_rows(&w.t()?.contiguous()?, cap)?.t()?.contiguous()?),
        }
    }
}

fn key(name: &str) -> String {
    format!("constraint.vector.{name}")
}

fn set(v: &Variable, heads: Option<HeadBlocks>, x: &Tensor) -> Result<(), Error> {
    Ok(v.var.set(&merge(x, heads)?)?)
}

/// Each matrix of `[count, rows, columns]` over the larger of 1 and its norm over the cap, with the
/// norm from above.
fn normalize(x: &Tensor, cap: f64) -> Result<Tensor, Error> {
    Ok(x.broadcast_div(&(gram(x)? / (cap * (1.0 - MARGIN)))?.maximum(1f64)?)?)
}

/// Each row over the larger of 1 and its RMS norm over the cap.
fn cap_rows(w: &Tensor, cap: f64) -> Result<Tensor, Error> {
    let norms = (w.sqr()?.mean_keepdim(D::Minus1)?.sqrt()? * ((1.0 + 1e-5) / cap))?;
    Ok(w.broadcast_div(&norms.maximum(1f64)?)?)
}
