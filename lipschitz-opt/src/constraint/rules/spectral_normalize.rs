//! Spectral normalisation: `W ← W / max(1, σ/σ_max)`.
//!
//! With `norm = "proven"`, `σ ≤ σ_max` under any optimizer, since σ is bounded from above by Gram
//! iteration. With `norm = "power"` power iteration estimates σ from below, so nothing is
//! guaranteed.

use candle_core::Tensor;

use super::super::config::{Constant, ConstraintConfig, NormEstimator};
use super::super::norms::{TopVectors, gram_work, normalize_all, power_work};
use super::super::rule::{Apply, Blocks, Rule, aim_at_cap, promise_cap};
use crate::Error;

pub(super) static RULE: Rule = Rule {
    key: "spectral_normalize",
    name: "spectral normalize",
    capped: true,
    constants: &[Constant::Norm],
    check: |_| Ok(()),
    aim: aim_at_cap,
    promise: |config, parameter, update| match config.norm.unwrap_or_default() {
        NormEstimator::Proven => promise_cap(config, parameter, update),
        NormEstimator::Power => None,
    },
    apply: Apply::Matrices(apply),
    work: |config, sides, _| match config.norm.unwrap_or_default() {
        NormEstimator::Proven => Some(gram_work(sides)),
        NormEstimator::Power => Some(power_work(sides)),
    },
};

fn apply(
    config: &ConstraintConfig,
    matrices: &[Blocks<'_>],
    top: &mut TopVectors,
) -> Result<Vec<Tensor>, Error> {
    match config.norm.unwrap_or_default() {
        NormEstimator::Proven => {
            let stacks: Vec<_> = matrices.iter().map(|m| (m.cap, m.x.clone())).collect();
            normalize_all(&stacks)
        }
        NormEstimator::Power => {
            let scale = |m: &Blocks<'_>| {
                let top = top.of(m.name(), &m.x)?;
                Ok(m.x.broadcast_div(&(&top.sigma / m.cap)?.maximum(1f64)?)?)
            };
            matrices.iter().map(scale).collect()
        }
    }
}
