//! Proves a Lipschitz bound of a trained checkpoint, and verifies it again.

pub mod bound;
pub mod certificate;
mod error;
#[cfg(feature = "import")]
mod open;
pub mod plan;
#[cfg(feature = "cli")]
pub mod plots;
pub mod probe;
#[cfg(feature = "cli")]
pub mod report;
pub mod robust;
pub mod source;
pub mod spectral;
#[cfg(feature = "cli")]
pub mod terminal;
pub mod upper;
pub mod verify;

pub use error::Error;
#[cfg(feature = "import")]
pub use open::{Opened, checkpoint_path, load, open};
