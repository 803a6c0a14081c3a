//! Proves a Lipschitz bound of a trained checkpoint, and draws what it found.

pub mod bound;
pub mod certificate;
pub mod data;
mod error;
mod open;
pub mod plan;
pub mod plot;
pub mod probe;
pub mod report;
pub mod robust;
pub mod source;
pub mod spectral;
pub mod task;
pub mod terminal;
pub mod upper;
pub mod verify;

pub use error::Error;
pub use open::{Opened, checkpoint_path, open, read};
