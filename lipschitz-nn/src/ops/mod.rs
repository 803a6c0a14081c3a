//! Differentiable operations that candle lacks, gets wrong or is slow at.
//!
//! On CPU, in `f32` and `f64`, each is one fused kernel with its own gradient; elsewhere it is
//! composed of candle's differentiable operations. The composed form is also the oracle of the
//! tests. A kernel's result does not depend on the number of threads, bit for bit: work is cut up
//! by size alone, and sums are added in order.

mod activation;
mod arrays;
mod attention;
mod attention_block;
mod buffer;
mod chain;
mod cross_entropy;
mod documents;
mod embedding;
mod kernel;
mod linear;
mod mlp_block;
mod normalise;
mod position;
mod precision;
mod product;
mod real;
mod residual;
mod rotary;

pub use activation::{activation, clip, soft_cap};
pub use arrays::{Adam, MatrixMap, advance, each_matrix, mix, norm, sum_of_squares};
pub use attention::{Mask, Scores, attention};
pub use attention_block::{AttentionBlock, attention_block};
pub use chain::{Block, chain};
pub use cross_entropy::cross_entropy;
pub use documents::Documents;
pub use embedding::embedding;
pub use linear::linear;
pub use mlp_block::{MlpBlock, mlp_block};
pub use normalise::{layer_norm, rms_norm};
pub use position::position_bias;
pub use precision::Precision;
pub use product::{Strided, lower, product, symmetric};
pub use real::Real;
pub use residual::residual;
pub use rotary::rotary;

/// The forms composed of candle's operations, for comparison.
pub mod composed {
    pub use super::activation::{
        clip_composed as clip, composed as activation, soft_cap_composed as soft_cap,
    };
    pub use super::attention::composed as attention;
    pub use super::attention_block::composed as attention_block;
    pub use super::chain::composed as chain;
    pub use super::cross_entropy::composed as cross_entropy;
    pub use super::embedding::composed as embedding;
    pub use super::linear::composed as linear;
    pub use super::mlp_block::composed as mlp_block;
    pub use super::normalise::{layer_norm_composed as layer_norm, rms_norm_composed as rms_norm};
    pub use super::residual::composed as residual;
    pub use super::rotary::composed as rotary;
}

use std::cell::Cell;

use candle_core::{DType, Device, Tensor};

thread_local! {
    static COMPOSED: Cell<bool> = const { Cell::new(false) };
}

/// For tests: what this thread does in `f` is composed of candle's operations, as on a device for
/// which there are no kernels.
#[doc(hidden)]
pub fn without_kernels<R>(f: impl FnOnce() -> R) -> R {
    let before = COMPOSED.replace(true);
    let result = f();
    COMPOSED.set(before);
    result
}

/// Whether the fused kernels cover these tensors.
pub(crate) fn fused(tensors: &[&Tensor]) -> bool {
    let dtype = tensors.first().map(|t| t.dtype());
    !COMPOSED.get()
        && matches!(dtype, Some(DType::F32 | DType::F64))
        && tensors.iter().all(|t| matches!(t.device(), Device::Cpu) && Some(t.dtype()) == dtype)
}

/// Rows that one task works on: few enough that what it makes stays in cache, and the same on every
/// machine, so that results do not depend on the number of threads.
const ROWS: usize = 128;

/// Elements that one task of an elementwise operation works on.
const CHUNK: usize = 1 << 14;
