//! What a constraint states about itself: one [`Rule`] per kind.

use candle_core::Tensor;
use lipschitz_nn::graph::{HeadBlocks, Parameter};

use super::config::{Constant, ConstraintConfig};
use super::norms::TopVectors;
use super::vectors::{Vectors, vectors};
use crate::Error;
use crate::blocks::batched;
use crate::optimizer::{UpdateBound, Variable};
use crate::work::Sides;

/// A constraint: its names, its constants, its guarantee, its formula and its cost.
pub(crate) struct Rule {
    /// The kind in a config.
    pub(crate) key: &'static str,
    /// The kind in tables and plots.
    pub(crate) name: &'static str,
    /// Whether it aims at a cap: takes `sigma_max`, `factors`, `row_caps` and `column_caps`.
    pub(crate) capped: bool,
    /// The constants that it takes and others may not.
    pub(crate) constants: &'static [Constant],
    /// Whether those constants are there and in range.
    pub(crate) check: fn(&ConstraintConfig) -> Result<(), Error>,
    /// The config that keeps norms below a cap, given the norm of an update of learning rate 1.
    pub(crate) aim: fn(&ConstraintConfig, f64, Option<f64>) -> Option<ConstraintConfig>,
    /// The guarantee for a weight that it acts on, given the size of the weight's updates.
    pub(crate) promise: fn(&ConstraintConfig, &Parameter, Option<UpdateBound>) -> Option<Promise>,
    /// What it does after a step.
    pub(crate) apply: Apply,
    /// Floating-point operations on one block, given whether updates are bounded; none if unknown.
    pub(crate) work: fn(&ConstraintConfig, Sides, bool) -> Option<f64>,
}

/// The new blocks of every matrix, each in the shape it came in.
type NewBlocks =
    fn(&ConstraintConfig, &[Blocks<'_>], &mut TopVectors) -> Result<Vec<Tensor>, Error>;

/// What a constraint does after a step. Vectors are always left alone.
pub(crate) enum Apply {
    /// Leaves every weight as it is.
    Nothing,
    /// Multiplies every matrix and table by this function of the learning rate.
    Factor(fn(&ConstraintConfig, f64) -> f64),
    /// Replaces the blocks of every matrix, and keeps the rows of tables at RMS norm 1.
    Matrices(NewBlocks),
}

/// What a constraint promises about one weight, after every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Promise {
    /// The norm is at most this: RMS→RMS of a matrix, RMS of each row of a table.
    pub sigma_max: f64,
    /// The heads whose blocks have this norm (see [`crate::scale`]); none if it is the whole's.
    pub heads: Option<HeadBlocks>,
    /// The ℓ2 norm of each row is at most this, where rows are capped.
    pub row: Option<f64>,
    /// The ℓ2 norm of the convolution that it is the kernel of is at most this, where that is
    /// promised.
    pub convolution: Option<f64>,
}

/// A matrix after the optimizer's step, as a stack of blocks: one, or one per head.
pub(crate) struct Blocks<'a> {
    /// The weight.
    pub(crate) variable: &'a Variable,
    /// The heads that are its blocks; none for one block.
    pub(crate) heads: Option<HeadBlocks>,
    /// `[count, rows, columns]`.
    pub(crate) x: Tensor,
    /// The cap on singular values: the cap over [`crate::scale`].
    pub(crate) cap: f64,
    /// The step's learning rate η, in which weight decay is counted.
    pub(crate) rate: f64,
    /// The step's learning rate for singular values: η over [`crate::scale`].
    pub(crate) learning_rate: f64,
    /// The norm of a block's update at learning rate 1, where it is bounded.
    pub(crate) update: Option<f64>,
}

impl Blocks<'_> {
    /// The weight's name.
    pub(crate) fn name(&self) -> &str {
        &self.variable.parameter.name
    }

    /// The largest value that a step can take a singular value at its cap to, where updates are
    /// bounded: `σ_max + ηu`. The optimizer's own weight decay would only lower it.
    pub(crate) fn grown(&self) -> Option<f64> {
        Some(self.cap + self.learning_rate * self.update?)
    }
}

/// `f` of every stack. Stacks of one key and block shape are batched.
pub(crate) fn each<K: PartialEq + Copy>(
    matrices: &[Blocks<'_>],
    key: impl Fn(&Blocks<'_>) -> K,
    f: impl Fn(K, Tensor) -> Result<Tensor, Error>,
) -> Result<Vec<Tensor>, Error> {
    let stacks: Vec<(K, Tensor)> = matrices.iter().map(|m| (key(m), m.x.clone())).collect();
    batched(&stacks, f)
}

/// The promise of a constraint that brings every matrix under its cap.
pub(crate) fn promise_cap(
    config: &ConstraintConfig,
    parameter: &Parameter,
    _: Option<UpdateBound>,
) -> Option<Promise> {
    let sigma_max = config.sigma_max? * config.factor(parameter);
    let inputs = parameter.shape[1] as f64;
    Some(match vectors(config, parameter) {
        None => Promise {
            sigma_max,
            heads: config.per_head.of(parameter),
            row: None,
            convolution: None,
        },
        Some(Vectors::Rows) => Promise {
            sigma_max,
            heads: None,
            row: Some(sigma_max / inputs.sqrt()),
            convolution: None,
        },
        Some(Vectors::Columns) => {
            Promise { sigma_max: inputs * sigma_max, heads: None, row: None, convolution: None }
        }
    })
}

/// A cap is aimed at by naming it.
pub(crate) fn aim_at_cap(
    config: &ConstraintConfig,
    cap: f64,
    _: Option<f64>,
) -> Option<ConstraintConfig> {
    Some(ConstraintConfig { sigma_max: Some(cap), ..config.clone() })
}

/// Whether λ is given.
pub(crate) fn needs_decay(config: &ConstraintConfig, key: &str) -> Result<(), Error> {
    match config.decay {
        Some(_) => Ok(()),
        None => Err(Error::Config(format!("constraint.decay is missing; `{key}` needs it"))),
    }
}
