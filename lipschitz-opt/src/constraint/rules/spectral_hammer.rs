//! Spectral hammer: `W ← W + (σ_max − σ)uvᵀ`, with σ, u and v the largest singular value and its
//! vectors by power iteration.
//!
//! Nothing is guaranteed: a second singular value above the cap stays there.

use candle_core::Tensor;

use super::super::config::ConstraintConfig;
use super::super::norms::{TopVectors, power_work};
use super::super::rule::{Apply, Blocks, Rule, aim_at_cap};
use crate::Error;

pub(super) static RULE: Rule = Rule {
    key: "spectral_hammer",
    name: "spectral hammer",
    capped: true,
    constants: &[],
    check: |_| Ok(()),
    aim: aim_at_cap,
    promise: |_, _, _| None,
    apply: Apply::Matrices(apply),
    work: |_, sides, _| Some(power_work(sides)),
};

fn apply(
    _: &ConstraintConfig,
    matrices: &[Blocks<'_>],
    top: &mut TopVectors,
) -> Result<Vec<Tensor>, Error> {
    let set = |m: &Blocks<'_>| {
        let top = top.of(m.name(), &m.x)?;
        Ok((&m.x + top.outer()?.broadcast_mul(&(top.sigma.neg()? + m.cap)?)?)?)
    };
    matrices.iter().map(set).collect()
}
