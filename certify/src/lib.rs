//! Proves a Lipschitz bound of a trained checkpoint, and draws what it found.

pub mod plot;
pub mod spectral;
pub mod upper;
