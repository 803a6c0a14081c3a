//! Weight decay: `W ← (1−λη)W`.
//!
//! Under Muon `‖W‖ ≤ u/λ`, with u the norm of an update of learning rate 1: the fixed point of `x ←
//! (1−λη)(x + ηu)` lies below u/λ, whatever the learning rates. Weights start below it. Updates of
//! AdamW and SGD have no bounded norm, so under them nothing is guaranteed.

use lipschitz_nn::graph::Parameter;

use super::super::config::{Constant, ConstraintConfig};
use super::super::norms::MARGIN;
use super::super::rule::{Apply, Promise, Rule, needs_decay};
use crate::optimizer::UpdateBound;

pub(super) static RULE: Rule = Rule {
    key: "weight_decay",
    name: "weight decay",
    capped: false,
    constants: &[Constant::Decay],
    check: |config| needs_decay(config, "weight_decay"),
    aim,
    promise,
    apply: Apply::Factor(|config, learning_rate| (1.0 - config.decay() * learning_rate).max(0.0)),
    work: |_, _, _| Some(0.0),
};

/// λ = u over the cap.
fn aim(config: &ConstraintConfig, cap: f64, update: Option<f64>) -> Option<ConstraintConfig> {
    Some(ConstraintConfig { decay: Some(update? / cap), ..config.clone() })
}

fn promise(
    config: &ConstraintConfig,
    parameter: &Parameter,
    update: Option<UpdateBound>,
) -> Option<Promise> {
    let UpdateBound { whole, block } = update?;
    let heads = config.per_head.of(parameter);
    let update = if heads.is_some() { block } else { whole };
    let sigma_max = update / config.decay() / (1.0 - MARGIN);
    Some(Promise { sigma_max, heads, row: None, convolution: None })
        .filter(|p| p.sigma_max.is_finite())
}
