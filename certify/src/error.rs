//! What stops a proof.

/// An error of this crate; every message names the thing and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The graph, a weight, an input or a file.
    #[error(transparent)]
    Network(#[from] lipschitz_nn::Error),
    /// Something that nothing is proven about.
    #[error("nothing is known about {0}; no bound is given")]
    Unknown(String),
    /// A picture that the library which draws it gave up on.
    #[error("the picture cannot be drawn: {0}")]
    Picture(String),
    /// A claim that does not hold: a found sensitivity above a certified one, or a number of a
    /// certificate that cannot be proven again.
    #[error("{0}")]
    Violated(String),
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Network(error.into())
    }
}
