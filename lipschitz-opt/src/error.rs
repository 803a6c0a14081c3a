//! What can go wrong in a step.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The loss does not depend on a parameter.
    #[error("`{0}` has no gradient: the loss does not depend on it; take it out of the graph")]
    NoGradient(String),
    /// A saved state that does not fit the variables.
    #[error("optimizer state: {0}; the checkpoint belongs to another config")]
    State(String),
    /// A constant out of range.
    #[error("{0}")]
    Config(String),
    /// A singular value decomposition that did not converge.
    #[error(
        "a singular value decomposition failed ({0}): training diverged; lower train.learning_rate"
    )]
    Svd(String),
    /// An error from candle.
    #[error("{0}")]
    Candle(#[from] candle_core::Error),
}
