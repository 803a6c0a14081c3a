//! How weights move and what keeps them small: optimizers over named parameters, constraints after
//! every step, the share of the learning rate that each weight has, learning-rate schedules.

mod adamw;
mod blocks;
pub mod constraint;
mod error;
pub mod modular;
mod muon;
mod optimizer;
pub mod polynomial;
mod recipe;
pub mod schedule;
mod sgd;
mod work;

pub use adamw::{AdamW, AdamWConfig};
pub use blocks::{MAX_BATCHED_ELEMENTS, PerHead, matrix_name, scale};
pub use error::Error;
pub use lipschitz_nn::ops::Precision;
pub use muon::{Muon, MuonConfig, UpdateScale, Warmup};
pub use optimizer::{Optimizer, OptimizerConfig, Rate, UpdateBound, Variable, Variables};
pub use polynomial::NewtonSchulz;
pub use recipe::{Group, Recipe};
pub use sgd::{Sgd, SgdConfig};

use optimizer::{gradient, saved, share, steps_of, steps_tensor};
