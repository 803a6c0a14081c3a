//! Projection onto the scaled Stiefel manifold: `W ← σ_max UVᵀ`.
//!
//! `σ ≤ σ_max` under any optimizer. All singular values equal the cap, except those that are tiny.

use candle_core::Tensor;

use super::super::config::ConstraintConfig;
use super::super::norms::{MARGIN, TopVectors};
use super::super::rule::{Apply, Blocks, Rule, aim_at_cap, each, promise_cap};
use crate::Error;
use crate::polynomial::{polar, polar_work};

pub(super) static RULE: Rule = Rule {
    key: "stiefel",
    name: "Stiefel",
    capped: true,
    constants: &[],
    check: |_| Ok(()),
    aim: aim_at_cap,
    promise: promise_cap,
    apply: Apply::Matrices(apply),
    work: |_, sides, _| Some(polar_work(sides)),
};

fn apply(
    _: &ConstraintConfig,
    matrices: &[Blocks<'_>],
    _: &mut TopVectors,
) -> Result<Vec<Tensor>, Error> {
    each(matrices, |m| m.cap * (1.0 - MARGIN), |cap, x| Ok((polar(&x)? * cap)?))
}
