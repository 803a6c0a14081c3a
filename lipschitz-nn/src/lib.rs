//! Neural networks as data.
//!
//! A [`Graph`] describes a network; a [`Model`] is a graph with weights, and runs on any candle
//! device; a [`checkpoint`] is both in one file. The same graph is what an optimizer takes its
//! parameters from and what a certificate is proven from.

mod candle;
pub mod checkpoint;
mod error;
mod gradient;
pub mod graph;
pub mod init;
mod model;
pub mod norm;
pub mod ops;
pub mod presets;
pub mod strict;

pub use candle::{Agreement, compare, from_var_map};
pub use error::{At, Error};
pub use graph::Graph;
pub use model::{Model, Weights, check_finite};
