//! How a run of a sweep ended.

use crate::run_dir::Summary;

/// How a run of a sweep ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is finished.
    Finished(Box<Summary>),
    /// It ended with this message, which `failed.txt` keeps.
    Failed(String),
    /// Something ended its process from outside; the next sweep goes on from its checkpoint.
    Killed(String),
    /// It is still to be made or to be finished.
    Stopped,
}
