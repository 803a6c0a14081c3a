//! What can be wrong with a graph, a weight, an input or a file.

use std::io;
use std::path::{Path, PathBuf};

/// An error of this crate. Its text is complete, causes and all, in one line; the fields and
/// [`source`](std::error::Error::source) hold the causes as values.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The graph does not fit together.
    #[error("graph: {}{what}", if path.is_empty() { String::new() } else { format!("`{path}` ") })]
    Graph {
        /// The node, or empty for the graph as a whole.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// A weight is missing, has the wrong shape or type, or holds NaN or infinity.
    #[error("weight `{name}` {what}")]
    Weight {
        /// The tensor's name.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// An input that the graph cannot read.
    #[error("input: {0}")]
    Input(String),
    /// What the operating system says of a file.
    #[error("{}: {}", path.display(), in_words(error))]
    Io {
        /// The file.
        path: PathBuf,
        /// Its kind decides what can be done about it.
        #[source]
        error: io::Error,
    },
    /// A file that does not hold what it should.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        what: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An error from candle: a device that ran out of memory, for example.
    #[error("{}", candle_in_words(.0))]
    Candle(#[source] Box<candle_core::Error>),
}

impl Error {
    /// An error about a node, or about the whole graph where `path` is empty.
    pub fn graph(path: &str, what: impl Into<String>) -> Self {
        Self::Graph { path: path.to_string(), what: what.into() }
    }

    /// An error about a weight.
    pub fn weight(name: &str, what: impl Into<String>) -> Self {
        Self::Weight { name: name.to_string(), what: what.into() }
    }

    /// An error about what a file holds.
    pub fn file(path: &Path, what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::File { path: path.to_path_buf(), what: what.into() }
    }
}

/// What an error of candle means to somebody who does not know candle: memory or a driver that fails,
/// or a defect, since inputs are checked before anything is computed.
pub fn candle_in_words(error: &candle_core::Error) -> String {
    use candle_core::Error as E;
    match error {
        E::WithBacktrace { inner, .. } | E::Context { inner, .. } | E::WithPath { inner, .. } => {
            return candle_in_words(inner);
        }
        E::Io(error) => return in_words(error),
        _ => {}
    }
    let text = error.to_string();
    let said = text.lines().next().unwrap_or_default();
    if said.to_ascii_lowercase().replace('_', " ").contains("out of memory") {
        return format!("the device has not enough memory ({said})");
    }
    match error {
        E::Cuda(_) | E::Metal(_) => format!("the GPU or its driver fails ({said})"),
        _ => format!(
            "an operation on tensors fails ({said}): a defect of this program, please report it \
             with the command"
        ),
    }
}

/// The usual errors of an operating system in words, without its number.
fn in_words(error: &io::Error) -> String {
    use io::ErrorKind as K;
    match error.kind() {
        K::NotFound => "no such file or directory".into(),
        K::PermissionDenied => "permission denied".into(),
        K::StorageFull => "the disk is full".into(),
        K::ReadOnlyFilesystem => "is on a file system that is only read".into(),
        K::IsADirectory => "is a directory".into(),
        K::NotADirectory => "is, or lies below, a file that is no directory".into(),
        K::AlreadyExists => "is a file already".into(),
        _ => error.to_string(),
    }
}

/// Names the file in an error of the operating system.
pub trait At<T> {
    /// The value, or [`Error::Io`] about `path`.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn at(self, path: &Path) -> Result<T, Error>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, Error> {
        self.map_err(|error| Error::Io { path: path.to_path_buf(), error })
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Candle(Box::new(error))
    }
}
