#![doc = include_str!("../README.md")]

mod agreement;
pub mod checkpoint;
mod error;
mod gpu;
pub mod graph;
pub mod init;
pub mod kind;
pub mod linalg;
mod model;
pub mod norm;
pub mod ops;
pub mod presets;
pub mod random;
pub mod strict;
pub mod text;
mod weights;

pub use candle_core;
pub use candle_nn;

pub use agreement::{Agreement, compare};
pub use error::{At, Error, candle_in_words};
pub use graph::Graph;
pub use model::{Model, Seen};
pub use weights::{Weights, check_finite};
