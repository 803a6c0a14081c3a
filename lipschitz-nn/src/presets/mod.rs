//! Constrained architectures as graphs, after Newhouse et al., *Training Transformers with Enforced
//! Lipschitz Constants* (2025).

mod config;
mod convnet;
mod gpt;
mod isometric;
mod mlp;
mod vit;

pub use config::{LogitScale, ModelConfig};
pub use convnet::{Convnet, ConvolutionStage, PixelAttention};
pub use gpt::{Activation, BlockConfig, GELU_SCALE, Gpt, Positions};
pub use isometric::{Isometric, Stage};
pub use mlp::Mlp;
pub use vit::Vit;
