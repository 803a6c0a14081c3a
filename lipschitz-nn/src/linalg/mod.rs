//! Linear algebra on plain arrays, for the operations of this crate and for optimizers and proofs:
//! products of matrices, elementwise updates in place, norms. Nothing here records a gradient.
//!
//! The kernels run on CPU, in `f32` and `f64`. Their results do not depend on the number of
//! threads, bit for bit: work is cut up by size alone, and sums are added in order.

mod buffer;
mod fused;
mod matmul;
mod matrices;
mod pool;
mod precision;
mod real;
pub(crate) mod simd;
pub(crate) mod storage;
mod sums;
mod update;

pub(crate) use buffer::Buffer;
pub use fused::without_kernels;
pub(crate) use fused::{fused, without_any_kernels};
pub use matmul::{Strided, matmul, syrk, tril};
pub use matrices::{MatrixMap, each_matrix};
pub use precision::Precision;
pub use real::Real;
pub use sums::{norm, sum_of_squares};
pub use update::{AdamStep, MeanSquare, Update, axpby, axpby_var, update};
#[cfg(test)]
pub(crate) use update::{Axpby, work};

/// Elements that one task of an elementwise operation works on.
pub(crate) const CHUNK: usize = 1 << 14;
