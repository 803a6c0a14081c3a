//! What a family reads.

use lipschitz_nn::checkpoint::Dialect;

use crate::config::ConfigReader;
use crate::formats::files::Files;

/// A model directory: its config and its tensors.
pub(crate) struct ModelDir<'a> {
    pub config: &'a ConfigReader,
    pub files: &'a Files,
    /// Whose function is wanted.
    pub dialect: Dialect,
    /// The config's `model_type`.
    pub family: &'a str,
}
