//! The method's architectures as graphs.

mod config;
mod gpt;
mod mlp;
mod vit;

pub use config::{LogitScale, ModelConfig};
pub use gpt::{Activation, Block, GELU_SCALE, Gpt, Positions};
pub use mlp::Mlp;
pub use vit::Vit;
