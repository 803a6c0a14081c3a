//! The method's architectures as graphs.

mod gpt;
mod mlp;

pub use gpt::Gpt;
pub use mlp::Mlp;
