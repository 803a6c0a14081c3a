//! What keeps a model from being imported until the caller decides something.

/// A decision that only the caller can take. It is the cause, [`lipschitz_nn::Error::File`]'s
/// `what`, of the error that names the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Undecided {
    /// Tensors that nothing is known about, which
    /// [`allow_unused`](crate::ImportOptions::allow_unused) leaves out.
    #[error("{0}")]
    UnknownTensors(String),
    /// Options that nothing is known about, which [`ignore`](crate::ImportOptions::ignore) passes
    /// over.
    #[error("{0}")]
    UnknownOptions(String),
    /// A vision transformer whose number of [`heads`](crate::ImportOptions::heads) no file says.
    #[error("{0}")]
    NoHeads(String),
    /// A config that names no family, whose [`class`](crate::ImportOptions::class) no file says.
    #[error("{0}")]
    NoClass(String),
    /// A model of two inputs, of which [`part`](crate::ImportOptions::part) says one.
    #[error("{0}")]
    TwoInputs(String),
    /// Matrices alone, whose [`activation`](crate::ImportOptions::activation) no file says.
    #[error("{0}")]
    NoActivation(String),
    /// Several sets of tensors in one file, such as a model and its moving average, of which
    /// [`entry`](crate::ImportOptions::entry) names one.
    #[error("{0}")]
    Entries(String),
    /// Matrices alone, whose [`order`](crate::ImportOptions::order) nothing says.
    #[error("{0}")]
    NoOrder(String),
    /// Matrices alone that do not follow each other in the order that was taken.
    #[error("{0}")]
    NoChain(String),
    /// Tensors of something that is no multilayer perceptron, whose
    /// [`graph`](crate::ImportOptions::graph) no file says.
    #[error("{0}")]
    NoGraph(String),
}
