//! Bound propagation: one pass over the graph that carries a radius forward and multiplies
//! Lipschitz constants.
//!
//! The norm of a value is the largest ℓ2 norm of a token (of the whole, for vectors and images).
//! For inputs of norm at most R, each node gives a bound on the norm of its outputs, and its
//! Lipschitz constant on that ball. Balls are convex, so constants multiply along a path and add
//! over a sum. The proofs are in `docs/mathematics.md`.
//!
//! [`walk`] propagates, and asks [`Norms`] for the norms of weights. A checkpoint answers with
//! proven norms ([`WeightNorms`]), a plan with caps.

mod attention;
mod norms;
pub mod paper;
pub(crate) mod pointwise;
mod reads;
mod rounding;
mod rows;
pub mod savings;
mod state;
mod walk;
mod weights;

pub(crate) use attention::{at_offsets, plain};
pub use norms::{Block, Kernel, Norm, Norms, Part, kernel_of};
pub use reads::Reads;
pub(crate) use rounding::absolute;
pub use rounding::{BF16, F16, F32, F64, Format, Rounding, rounding, roundings};
pub use rows::{NodeBound, WeightRow};
pub(crate) use state::Layout;
pub(crate) use walk::pooling;
pub use walk::{FinalLinear, Walk, walk};
pub(crate) use weights::PAIRS;
pub use weights::{SLACK, Watch, WeightNorms};
