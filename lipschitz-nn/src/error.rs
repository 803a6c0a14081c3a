//! What can be wrong with a graph, a weight, an input or a file; every message names the thing and
//! the remedy.

use std::path::{Path, PathBuf};

/// An error of this crate.
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
    /// A file that cannot be read or written, or does not hold what it should.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// An error from candle: a device that ran out of memory, for example.
    #[error("{0}")]
    Candle(String),
}

impl Error {
    pub(crate) fn graph(path: &str, what: impl Into<String>) -> Self {
        Self::Graph { path: path.to_string(), what: what.into() }
    }

    pub(crate) fn weight(name: &str, what: impl Into<String>) -> Self {
        Self::Weight { name: name.to_string(), what: what.into() }
    }

    /// An error about a file.
    pub fn file(path: &Path, what: impl std::fmt::Display) -> Self {
        Self::File { path: path.to_path_buf(), what: what.to_string() }
    }

    /// An operating-system error about a file, with the remedy where there is an obvious one.
    pub fn io(path: &Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let what = match error.kind() {
            K::NotFound => "no such file or directory; check the path".to_string(),
            K::PermissionDenied => "permission denied; check who may read and write it".to_string(),
            K::StorageFull => "the disk is full; free some space and run again".to_string(),
            K::IsADirectory => "is a directory; name a file".to_string(),
            K::NotADirectory => {
                "is, or lies below, a file that is no directory; check the path".to_string()
            }
            K::AlreadyExists => "is a file already; choose another name".to_string(),
            _ => error.to_string(),
        };
        Self::file(path, what)
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        // Candle may append a backtrace; the first line says it all.
        Self::Candle(error.to_string().lines().next().unwrap_or_default().to_string())
    }
}
