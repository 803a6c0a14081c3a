//! Differentiable operations that candle lacks, gets wrong or runs slowly.
//!
//! On CPU, in `f32` and `f64`, each is one fused kernel with its own gradient; elsewhere it is
//! composed of candle's differentiable operations. The composed form is also the oracle of the
//! tests. A kernel's result does not depend on the number of threads, bit for bit: work is cut up
//! by size alone, and sums are added in order.

mod activation;
mod attention;
mod attention_block;
mod chain;
mod convolution;
mod cross_entropy;
mod documents;
mod dropout;
mod embedding;
mod gathered;
mod image_chain;
mod kernel;
mod linear;
mod look_back;
mod max_min;
mod mlp_block;
mod normalise;
pub(crate) mod operation;
#[cfg(test)]
mod parity;
mod pool;
mod position;
mod residual;
mod rotary;
mod shift;

pub use activation::{activation, clip, soft_cap};
pub use attention::{Mask, Scores, TILE_PARTS, TILE_WIDTH, attention, staged};
pub use attention_block::{AttentionBlock, attention_block};
pub use chain::{FusedBlock, chain};
pub use convolution::convolution;
pub use cross_entropy::cross_entropy;
pub use documents::Documents;
pub use dropout::{Dropout, dropout};
pub use embedding::embedding;
pub use gathered::Gradients;
pub use image_chain::{ImageLayer, image_chain};
pub use linear::linear;
pub use look_back::look_back;
pub use max_min::max_min;
pub use mlp_block::{MlpBlock, mlp_block};
pub use normalise::{layer_norm, normalise, rms_norm};
pub use pool::{global_pool, pool};
pub use position::{alibi, position_bias};
pub use residual::residual;
pub use rotary::rotary;
pub use shift::{shift, space_to_depth};

use rayon::iter::{IndexedParallelIterator, MinLen};

/// The forms composed of candle's operations, for comparison.
pub mod composed {
    pub use super::activation::{
        clip_composed as clip, composed as activation, soft_cap_composed as soft_cap,
    };
    pub use super::attention::composed as attention;
    pub use super::attention_block::composed as attention_block;
    pub use super::chain::composed as chain;
    pub use super::convolution::composed as convolution;
    pub use super::cross_entropy::composed as cross_entropy;
    pub use super::dropout::composed as dropout;
    pub use super::embedding::composed as embedding;
    pub use super::image_chain::composed as image_chain;
    pub use super::linear::composed as linear;
    pub use super::look_back::composed as look_back;
    pub use super::max_min::composed as max_min;
    pub use super::mlp_block::composed as mlp_block;
    pub use super::normalise::{layer_norm_composed as layer_norm, rms_norm_composed as rms_norm};
    pub use super::pool::composed as pool;
    pub use super::residual::composed as residual;
    pub use super::rotary::composed as rotary;
    pub use super::shift::composed as shift;
}

/// Rows per task: few enough that its output stays in cache, and the same on every machine, so that
/// results do not depend on the number of threads.
const ROWS: usize = 128;

/// How the rows that two matrices read are split. A product packs its matrices each time, so that blocks
/// of [`ROWS`] rows side by side are best while packing is little beside the product. Wide matrices have
/// more rows in a block and all cores at each of its products, one block after the other. Both depend on
/// sizes alone.
#[derive(Clone, Copy)]
struct Split {
    rows: usize,
    /// Whether all cores work at one block.
    together: bool,
}

impl Split {
    /// For matrices of so many elements.
    fn of(elements: usize) -> Self {
        match elements <= 1 << 20 {
            true => Self { rows: ROWS, together: false },
            false => Self { rows: 8 * ROWS, together: true },
        }
    }

    /// The blocks at once, or one after the other.
    fn blocks<I: IndexedParallelIterator>(self, chunks: I) -> MinLen<I> {
        chunks.with_min_len(if self.together { usize::MAX } else { 1 })
    }
}
