//! The method's architectures as graphs.

mod config;
mod gpt;
mod mlp;

pub use config::{LogitScale, ModelConfig};
pub use gpt::Gpt;
pub use mlp::Mlp;
