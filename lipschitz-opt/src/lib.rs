//! Optimizers and constraints for networks with an enforced Lipschitz constant.
//!
//! A [`Recipe`] says which optimizer moves each weight and how fast, and which
//! [constraint] keeps it small. What the constraint guarantees about a weight after
//! every step is its [`Promise`](constraint::Promise).
//!
//! ```
//! use lipschitz_nn::graph::{Function, Graph, Input};
//! use lipschitz_nn::{Model, init};
//! use lipschitz_opt::candle_core::{DType, Device, Tensor};
//! use lipschitz_opt::constraint::{Constraint, ConstraintConfig, ConstraintKind};
//! use lipschitz_opt::{MuonConfig, OptimizerConfig, Rate, Recipe};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let graph = Graph::builder(Input::Vector { dim: 4 })
//!     .linear_no_bias("up", 8)
//!     .activation(Function::Relu)
//!     .linear_no_bias("down", 2)
//!     .build()?;
//! let weights = init::weights(&graph, 0, init::Blocks::Whole, &Device::Cpu, DType::F32)?;
//! let (model, vars) = Model::new(graph.clone(), weights)?.trainable()?;
//!
//! // Muon under the soft cap: no matrix exceeds RMS → RMS norm 1.
//! let recipe = Recipe::new(
//!     OptimizerConfig::Muon(MuonConfig::default()),
//!     ConstraintConfig::capped(ConstraintKind::SpectralSoftCap, 1.0),
//! );
//! let rate = Rate::constant(0.1);
//! let variables = recipe.variables(&graph, vars, rate.peak)?;
//! let mut optimizer = recipe.build(&variables)?;
//! let mut constraint = Constraint::new(&recipe)?;
//! constraint.project(&variables)?;
//!
//! let x = Tensor::rand(-1f32, 1f32, (16, 4), &Device::Cpu)?;
//! for _ in 0..20 {
//!     // The network is to give the largest outputs that its weights allow.
//!     let loss = model.forward(&x)?.sqr()?.mean_all()?.neg()?;
//!     optimizer.step(&loss.backward()?, rate)?;
//!     constraint.apply(&variables, rate)?;
//! }
//!
//! // So the outputs are at most as large as the inputs, in RMS norm.
//! for v in &variables {
//!     assert_eq!(constraint.promise(&v.parameter).map(|p| p.sigma_max), Some(1.0));
//! }
//! let rms = |t: &Tensor| t.sqr()?.mean(1)?.sqrt()?.to_vec1::<f32>();
//! let (inputs, outputs) = (rms(&x)?, rms(&model.forward(&x)?)?);
//! assert!(outputs.iter().zip(&inputs).all(|(y, x)| y <= x));
//! # Ok(())
//! # }
//! ```
//!
//! [`modular`] splits the learning rate over the weights, [`schedule`] changes it over a run, and
//! [`polynomial`] holds the matrix polynomials behind Muon and the caps.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod adam;
mod adamw;
mod blocks;
pub mod constraint;
mod error;
pub mod modular;
mod muon;
mod optimizer;
mod optimizer_config;
pub mod polynomial;
mod recipe;
pub mod schedule;
mod sgd;
mod work;

pub use adamw::{AdamW, AdamWConfig};
pub use blocks::{MAX_BATCHED_ELEMENTS, PerHead, matrix_name, scale};
/// The tensors of this crate's interface.
pub use candle_core;
pub use error::Error;
pub use lipschitz_nn::linalg::Precision;
pub use muon::{Muon, MuonConfig, UpdateScale, Warmup};
pub use optimizer::{Optimizer, Rate, UpdateBound, Variable, Variables};
pub use optimizer_config::OptimizerConfig;
pub use polynomial::NewtonSchulz;
pub use recipe::{Group, Recipe};
pub use sgd::{Sgd, SgdConfig};
