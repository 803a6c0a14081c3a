//! Spectral weight decay: `W ← W − λσuvᵀ`, with σ, u and v the largest singular value and its
//! vectors by power iteration.
//!
//! Nothing is guaranteed under any optimizer: one singular value shrinks per step, and Muon's
//! updates let all of them grow.

use candle_core::Tensor;

use super::super::config::{Constant, ConstraintConfig};
use super::super::norms::{TopVectors, power_work};
use super::super::rule::{Apply, Blocks, Rule, needs_decay};
use crate::Error;

pub(super) static RULE: Rule = Rule {
    key: "spectral_weight_decay",
    name: "spectral weight decay",
    capped: false,
    constants: &[Constant::Decay],
    check,
    aim: |_, _, _| None,
    promise: |_, _, _| None,
    apply: Apply::Matrices(apply),
    work: |_, sides, _| Some(power_work(sides)),
};

fn check(config: &ConstraintConfig) -> Result<(), Error> {
    needs_decay(config, RULE.key)?;
    match config.decay {
        Some(decay) if decay > 1.0 => Err(Error::Config(format!(
            "constraint.decay is {decay}; a share of the norm is at most 1"
        ))),
        _ => Ok(()),
    }
}

fn apply(
    config: &ConstraintConfig,
    matrices: &[Blocks<'_>],
    top: &mut TopVectors,
) -> Result<Vec<Tensor>, Error> {
    let decay = |m: &Blocks<'_>| {
        let top = top.of(m.name(), &m.x)?;
        Ok((&m.x - top.outer()?.broadcast_mul(&(&top.sigma * config.decay())?)?)?)
    };
    matrices.iter().map(decay).collect()
}
