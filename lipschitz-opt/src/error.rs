//! What can be wrong with a recipe, a saved state or a step.

/// An error of this crate. It says what is wrong; a program adds what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The loss does not depend on a parameter.
    #[error("`{0}` has no gradient: the loss does not depend on it; take it out of the graph")]
    NoGradient(String),
    /// A saved state that does not fit the variables.
    #[error("optimizer state: {0}; the checkpoint belongs to another config")]
    State(String),
    /// A constant out of range, or one that does not belong.
    #[error("{0}")]
    Config(String),
    /// A constraint without the cap that it needs.
    #[error("constraint.sigma_max is missing; `{0}` needs it")]
    MissingCap(&'static str),
    /// A singular value decomposition that did not converge.
    #[error("a singular value decomposition failed ({0}): training diverged")]
    Svd(String),
    /// An error from candle: a device that ran out of memory, for example.
    #[error("{0}")]
    Candle(#[from] candle_core::Error),
}
