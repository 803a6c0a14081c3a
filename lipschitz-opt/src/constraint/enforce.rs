//! The constraint beside an optimizer.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::graph::{Geometry, Parameter};

use super::norms::{TopVectors, normalize_composed, start};
use super::rule::{Apply, Blocks, Promise};
use super::vectors::{TABLE_ROWS, cap_rows, cap_vectors, vectors};
use crate::blocks::{merge, scale, split};
use crate::optimizer::{Rate, Variable, saved};
use crate::{Error, Recipe};

/// A recipe's constraint, with the vectors that it keeps from step to step.
pub struct Constraint {
    recipe: Recipe,
    top: TopVectors,
    /// Shares of caps, by the weight's name.
    limits: BTreeMap<String, f64>,
}

impl Constraint {
    /// The constraint of a recipe.
    ///
    /// # Errors
    /// [`Error::Config`] names a constant out of range, [`Error::MissingCap`] a kind without the
    /// cap it needs.
    pub fn new(recipe: &Recipe) -> Result<Self, Error> {
        recipe.check()?;
        recipe.constraint.check_complete()?;
        let (recipe, top) = (recipe.clone(), TopVectors::default());
        Ok(Self { recipe, top, limits: BTreeMap::new() })
    }

    /// What it promises about a weight.
    #[must_use]
    pub fn promise(&self, parameter: &Parameter) -> Option<Promise> {
        let promise = self.recipe.promise(parameter)?;
        let share = self.share(parameter);
        let row = promise.row.map(|row| row * share);
        let convolution = promise.convolution.map(|norm| norm * share);
        Some(Promise { sigma_max: promise.sigma_max * share, row, convolution, ..promise })
    }

    /// From the next step on, the cap of this weight is `share` times the recipe's, where it has
    /// one.
    pub fn limit(&mut self, parameter: &Parameter, share: f64) {
        self.limits.insert(parameter.name.clone(), share);
    }

    /// The share of the recipe's cap that a weight has: all of it, unless a limit was set on it. The
    /// promise is that share of the recipe's too, and what is certified is the norm of the weight.
    fn share(&self, parameter: &Parameter) -> f64 {
        self.limits.get(&parameter.name).copied().unwrap_or(1.0)
    }

    /// Brings weights under what is promised, before the first step.
    ///
    /// # Errors
    /// Candle's own.
    pub fn project(&self, variables: &[Variable]) -> Result<(), Error> {
        for v in variables {
            let p = &v.parameter;
            let Some(promise) = self.promise(p) else { continue };
            let w = v.var.as_tensor().detach();
            let kept = match (p.geometry, vectors(&self.recipe.constraint, p)) {
                (Geometry::Table, _) => cap_rows(&w, promise.sigma_max)?,
                (_, Some(side)) => cap_vectors(&w, side, self.cap(p))?,
                _ => {
                    let factor = scale(p, promise.heads);
                    let x = (split(&w, promise.heads)? * factor)?;
                    // A kernel below its cap is one whose convolution is.
                    let cap = match promise.convolution {
                        Some(_) => self.cap(p),
                        None => promise.sigma_max,
                    };
                    // By tensor operations: a run begins with the bits that it always began with.
                    (merge(&normalize_composed(&x, cap)?, promise.heads)? / factor)?
                }
            };
            v.var.set(&kept)?;
        }
        Ok(())
    }

    /// Constrains the weights after a step of this learning rate.
    ///
    /// # Errors
    /// [`Error::Svd`] if an SVD fails; candle's own.
    pub fn apply(&mut self, variables: &[Variable], rate: Rate) -> Result<(), Error> {
        match &self.recipe.constraint.method.rule().apply {
            Apply::Nothing => Ok(()),
            Apply::Factor(factor) => {
                for v in variables.iter().filter(|v| v.parameter.geometry != Geometry::Vector) {
                    let factor = factor(&self.recipe.constraint, rate.now() * v.rate);
                    v.var.set(&(v.var.as_tensor().detach() * factor)?)?;
                    // The factor keeps to the recipe's cap, and knows of no lower one.
                    if self.limits.contains_key(&v.parameter.name) {
                        self.project(std::slice::from_ref(v))?;
                    }
                }
                Ok(())
            }
            Apply::Matrices(new_blocks) => {
                let matrices = self.cap_vectors_and_split(variables, rate)?;
                let new = new_blocks(&self.recipe.constraint, &matrices, &mut self.top)?;
                for (m, x) in matrices.iter().zip(new) {
                    m.variable.var.set(&merge(&x, m.heads)?)?;
                }
                Ok(())
            }
        }
    }

    /// Caps the rows of tables, and the rows or columns of matrices that are capped by them.
    /// Returns the other matrices as blocks.
    fn cap_vectors_and_split<'a>(
        &self,
        variables: &'a [Variable],
        rate: Rate,
    ) -> Result<Vec<Blocks<'a>>, Error> {
        let mut matrices = Vec::new();
        for v in variables {
            let p = &v.parameter;
            let w = v.var.as_tensor().detach();
            match (p.geometry, vectors(&self.recipe.constraint, p)) {
                (Geometry::Vector, _) => {}
                (Geometry::Table, _) => v.var.set(&cap_rows(&w, TABLE_ROWS)?)?,
                (Geometry::Matrix, Some(side)) => {
                    v.var.set(&cap_vectors(&w, side, self.cap(p))?)?;
                }
                (Geometry::Matrix, None) => {
                    let heads = self.recipe.constraint.per_head.of(p);
                    let scale = scale(p, heads);
                    let bound = self.recipe.optimizer_of(p).update_bound(p);
                    matrices.push(Blocks {
                        variable: v,
                        heads,
                        x: split(&w, heads)?,
                        cap: self.cap(p) / scale,
                        rate: rate.now() * v.rate,
                        learning_rate: rate.now() * v.rate / scale,
                        update: bound.map(|b| if heads.is_some() { b.block } else { b.whole }),
                    });
                }
            }
        }
        Ok(matrices)
    }

    /// The vectors and limits that a resumed run needs to continue bit for bit.
    ///
    /// # Errors
    /// Candle's own.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>, Error> {
        let vectors = self.top.0.iter().map(|(name, v)| Ok((key(name), v.clone())));
        let limits = self
            .limits
            .iter()
            .map(|(name, share)| Ok((limit_key(name), Tensor::new(&[*share], &Device::Cpu)?)));
        vectors.chain(limits).collect()
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
        for name in state.keys() {
            let Some(name) = name.strip_prefix(LIMIT) else { continue };
            let like = Tensor::zeros(1, DType::F64, &Device::Cpu)?;
            let share = saved(state, &limit_key(name), &like)?.get(0)?.to_scalar::<f64>()?;
            self.limits.insert(name.to_string(), share);
        }
        for v in variables.iter().filter(|v| v.parameter.geometry == Geometry::Matrix) {
            let name = key(&v.parameter.name);
            if state.contains_key(&name) {
                let heads = self.recipe.constraint.per_head.of(&v.parameter);
                let like = start(&split(v.var.as_tensor(), heads)?)?;
                self.top.0.insert(v.parameter.name.clone(), saved(state, &name, &like)?);
            }
        }
        Ok(())
    }

    /// The cap on a weight's norm, promised or not.
    fn cap(&self, parameter: &Parameter) -> f64 {
        let config = &self.recipe.constraint;
        let share = self.share(parameter);
        config.sigma_max().map_or(f64::INFINITY, |sigma| sigma * config.factor(parameter) * share)
    }
}

/// What the names of limits begin with in a saved state.
const LIMIT: &str = "constraint.limit.";

fn limit_key(name: &str) -> String {
    format!("{LIMIT}{name}")
}

fn key(name: &str) -> String {
    format!("constraint.vector.{name}")
}
