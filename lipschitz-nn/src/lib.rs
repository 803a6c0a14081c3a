#![doc = include_str!("../README.md")]

mod agreement;
pub mod checkpoint;
mod error;
pub mod graph;
pub mod init;
pub mod linalg;
mod model;
pub mod norm;
pub mod ops;
pub mod presets;
pub mod random;
pub mod strict;
mod weights;

pub use candle_core;
pub use candle_nn;

pub use agreement::{Agreement, compare};
pub use error::{At, Error};
pub use graph::Graph;
pub use model::Model;
pub use weights::{Weights, check_finite};
