//! Proves a Lipschitz bound of a trained network, and verifies it again.
//!
//! ```
//! use candle_core::{DType, Device};
//! use lipschitz_certify::certificate::{Formula, certify};
//! use lipschitz_certify::spectral::Method;
//! use lipschitz_certify::verify::verify;
//! use lipschitz_nn::graph::{Function, Input};
//! use lipschitz_nn::init::{self, Blocks};
//! use lipschitz_nn::{Graph, Model};
//!
//! let graph = Graph::builder(Input::Vector { dim: 8 })
//!     .linear("up", 32)
//!     .activation(Function::Relu)
//!     .linear("down", 4)
//!     .build()?;
//! let weights = init::weights(&graph, 0, Blocks::Whole, &Device::Cpu, DType::F32)?;
//! let model = Model::new(graph, weights)?;
//!
//! let certificate = certify(&model, Method::Proven, Formula::Sound, None)?;
//! assert!(certificate.proven && certificate.l2.is_finite());
//! // Whoever holds the weights can prove every number of it again.
//! verify(&certificate, &model)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - [`spectral`] proves norms of matrices, rounding included; [`upper`] are numbers that only
//!   round up.
//! - [`bound`] propagates a radius and Lipschitz constants through a network's graph. The bound of
//!   multi-head attention is in `bound/attention.rs`, its proof in `docs/mathematics.md`.
//! - [`ellipsoid`] proves a second, often smaller constant by sets that keep track of directions.
//! - [`local`] proves what holds around one input, [`range`] how large every tensor can become,
//!   [`executed`] how far the program in f32, bf16 or f16 is from the function.
//! - [`source`] is what all read: a graph and its weights, one after the other.
//! - [`certificate`] states the result, [`mod@verify`] proves a stated one again, [`plan`] gives
//!   the bound before training.
//! - [`probe`] searches for the largest sensitivity, [`robust`] certifies and attacks predictions.
//!
//! # Features
//!
//! `cli`, on by default, builds the program `certify` and what it needs: data sets, plots, reports.
//! `import` opens checkpoints of other libraries. Without features the crate needs the graph, the
//! optimizer's promises and linear algebra, nothing else:
//!
//! ```toml
//! lipschitz-certify = { version = "0.1", default-features = false }
//! ```

// The program's own files call the library by its name, as other programs do.
#[cfg(feature = "cli")]
extern crate self as lipschitz_certify;

pub mod bound;
pub mod certificate;
#[cfg(feature = "cli")]
pub mod cli;
mod decimal;
pub mod ellipsoid;
mod error;
pub mod executed;
pub mod local;
mod number;
#[cfg(feature = "import")]
mod open;
mod pinned;
pub mod plan;
#[cfg(feature = "cli")]
pub mod plots;
pub mod probe;
pub mod range;
#[cfg(feature = "cli")]
pub mod report;
#[cfg(feature = "cli")]
mod results;
pub mod robust;
pub mod source;
pub mod spectral;
#[cfg(feature = "cli")]
pub mod terminal;
pub mod upper;
pub mod verify;
#[cfg(feature = "cli")]
pub mod watch;

pub use candle_core;
pub use error::Error;
#[cfg(feature = "import")]
pub use open::{Opened, checkpoint_path, load, open};
