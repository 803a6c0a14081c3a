//! Proves a Lipschitz bound of a trained checkpoint, and draws what it found.

mod error;
pub mod plot;
pub mod spectral;
pub mod upper;

pub use error::Error;
