//! Constraints on weights, applied after every step.
//!
//! [`ConstraintConfig`] names one of [`ConstraintKind`] and its constants, [`Constraint`] applies
//! it beside an optimizer, and [`Promise`] is the norm it guarantees. Each kind has a file of its
//! own, with its guarantee, its formula and its cost.

pub(crate) mod check;
mod config;
mod enforce;
mod norms;
pub(crate) mod rule;
mod rules;
pub(crate) mod vectors;

pub use config::{ConstraintConfig, ConstraintKind, HardCap, NormEstimator};
pub use enforce::Constraint;
pub use rule::Promise;
pub use rules::spectral_hard_cap::{hard_cap_quintic, hard_cap_quintic_at, hard_cap_sign};
pub use rules::spectral_soft_cap::{soft_cap, soft_cap_composed};
