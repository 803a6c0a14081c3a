//! Why there is no certificate.

use lipschitz_opt::constraint::ConstraintKind;

/// An error of this crate. It says what is wrong; the command line adds what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error about the graph, a weight, an input or a file.
    #[error("{0}")]
    Network(#[from] lipschitz_nn::Error),
    /// An optimizer or constraint with invalid constants.
    #[error("{0}")]
    Recipe(#[from] lipschitz_opt::Error),
    /// Something about which nothing is proven.
    #[error("nothing is known about {0}; no bound is given")]
    Unknown(String),
    /// A target with a constraint that promises no norm.
    #[error("the constraint `{}` promises {}", .0.key(), promises(*.0))]
    NoPromise(ConstraintKind),
    /// A target that is exceeded even by the smallest caps.
    #[error("a Lipschitz constant of {target} cannot be met: caps of {cap:e} allow more")]
    Unreachable {
        /// The constant asked for, RMS → RMS.
        target: f64,
        /// The smallest cap tried.
        cap: f64,
    },
    /// Data that does not fit the network.
    #[error("{0}")]
    Data(String),
    /// A batch that could not be read.
    #[error(transparent)]
    Batch(Box<dyn std::error::Error + Send + Sync>),
    /// A chart that cannot be drawn.
    #[cfg(feature = "cli")]
    #[error(transparent)]
    Plot(#[from] lipschitz_plot::Error),
    /// A claim that does not hold: a found sensitivity above a certified one, or a number in a
    /// certificate that cannot be proven again.
    #[error("{0}")]
    Violated(String),
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Network(error.into())
    }
}

/// Weight decay alone depends on the optimizer: it keeps norms where updates are bounded.
fn promises(kind: ConstraintKind) -> &'static str {
    match kind {
        ConstraintKind::WeightDecay => "a norm under Muon alone",
        _ => "no norm",
    }
}
