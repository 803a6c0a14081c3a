//! What is asked of an import.

use std::path::PathBuf;

use lipschitz_nn::checkpoint::Dialect;

/// How to import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Whose function it is to be, where candle computes another one than the library that the
    /// model comes from.
    pub dialect: Dialect,
    /// Whether tensors that nothing is known about may be left out; they are named in the origin.
    pub allow_unused: bool,
    /// Options of the config that nothing is known about and that the caller answers for; they are
    /// named in the origin.
    pub ignore: Vec<String>,
    /// For a file of `torch.save` that holds several sets of tensors: which one, by its key, or by
    /// its keys with dots between, such as `ema.module`.
    pub entry: Option<String>,
    /// For a file of matrices alone: the elementwise function between them, by its name in PyTorch,
    /// such as `relu`, or `identity`. One for all, or one for each gap; one more goes behind the last
    /// matrix.
    pub activation: Vec<String>,
    /// For a file of matrices alone: their names in the order of the layers, with or without
    /// `.weight`.
    pub order: Option<Vec<String>>,
    /// A JSON file with the graph of a model that has no config: a [`lipschitz_nn::Graph`] whose
    /// weights have the names of the file, or `{"graph": …, "weights": {OURS: THEIRS, …}}`.
    pub graph: Option<PathBuf>,
    /// For a file of a vision transformer alone: the number of heads, which no tensor says.
    pub heads: Option<usize>,
    /// For a directory of transformers: the class that loads it, such as `BertModel`, where the config
    /// names none, or another one than is wanted. It is named in the origin.
    pub class: Option<String>,
    /// For a model of texts and images: which of the two is read, `text` or `vision`.
    pub part: Option<String>,
}
