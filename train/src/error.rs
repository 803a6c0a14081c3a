//! Why a run cannot be made.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;

use lipschitz_certify::upper::Upper;
use lipschitz_data::memory::{Memory, size};

use crate::estimate::Mostly;
use crate::keys::Mistake;
use crate::shards;

/// An error of this crate. Its text is complete, causes and all, in one line; it says what is
/// wrong, and the command line adds what to do where that is a matter of flags.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A graph, a weight or a file.
    #[error("{0}")]
    Network(#[from] lipschitz_nn::Error),
    /// An optimizer or a constraint.
    #[error("{0}")]
    Recipe(#[from] lipschitz_opt::Error),
    /// A certificate.
    #[error("{0}")]
    Certificate(#[from] lipschitz_certify::Error),
    /// The data.
    #[error("{0}")]
    Data(#[from] lipschitz_data::Error),
    /// Token shards that are not written.
    #[error("{0}")]
    Shards(#[from] shards::Error),
    /// Something wrong with one of several runs, files or keys.
    #[error("{name}: {error}")]
    In {
        /// The run, the file or the key.
        name: String,
        /// What is wrong with it.
        #[source]
        error: Box<Error>,
    },

    /// A file that is not TOML.
    #[error("{what}")]
    Syntax {
        /// Where and what, in one line.
        what: String,
        /// What the parser says.
        #[source]
        error: Box<toml::de::Error>,
    },
    /// A key that is not known, or a value that does not fit its key.
    #[error("{0}")]
    Key(#[from] Mistake),
    /// A value of a config out of its range.
    #[error("{0}")]
    Config(String),
    /// A setting that is not `path.to.key=value`, or does not fit the config.
    #[error("setting `{setting}`: {what}")]
    Setting {
        /// The setting.
        setting: String,
        /// What is wrong with it.
        what: String,
    },
    /// A config that cannot be written as TOML.
    #[error("{0}")]
    Toml(#[from] toml::ser::Error),
    /// A file of a run that is not the JSON it should be.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A preset that is not there.
    #[error("there is no preset `{name}`; there are {known}")]
    NoPreset {
        /// The name that was given.
        name: String,
        /// Those there are.
        known: String,
    },
    /// A sweep file that asks for something that cannot be made.
    #[error("{0}")]
    Sweep(String),

    /// A device whose name is not known.
    #[error("device `{0}`: write it as cpu or cuda:N")]
    UnknownDevice(String),
    /// A GPU, in a program built without CUDA.
    #[error("device `{0}`: this program is built for CPUs alone")]
    BuiltForCpu(String),
    /// A GPU that does not work.
    #[error("device `{name}`: GPU {ordinal} cannot be used: {error}")]
    Gpu {
        /// As it was named.
        name: String,
        /// Its number.
        ordinal: usize,
        /// What CUDA says.
        #[source]
        error: lipschitz_nn::Error,
    },
    /// More memory than there is.
    #[error(
        "a training step takes at least {} of memory, most of it for {}, and {} of {} are free",
        size(*least),
        match mostly {
            Mostly::Weights => "weights, gradients and the optimizer",
            Mostly::Activations => "activations",
            Mostly::Batch => "the inputs of the batch",
            Mostly::Teachers => "the weights of the teachers",
        },
        size(memory.free as f64),
        size(memory.total as f64)
    )]
    TooLarge {
        /// Bytes that a step takes at least.
        least: f64,
        /// What takes most of them.
        mostly: Mostly,
        /// What there is.
        memory: Memory,
    },
    /// A batch that cannot be split evenly over the processes.
    #[error(
        "train.batch_size is {batch_size}, which {processes} processes cannot share evenly; \
         choose a multiple of {processes}"
    )]
    UnevenBatch {
        /// Sequences or images per update.
        batch_size: usize,
        /// How many processes train together.
        processes: usize,
    },
    /// What a launcher says of its processes is no number.
    #[error(
        "{name} is `{value}`, which is no number of a launcher; unset it, or start with mpirun"
    )]
    Launcher {
        /// The environment variable.
        name: String,
        /// What it is.
        value: String,
    },
    /// Several processes, in a program built without MPI.
    #[error("mpirun has started several processes, and this program is built for one")]
    BuiltForOneProcess,
    /// MPI was there before.
    #[error("MPI has been started twice in this process")]
    MpiStartedTwice,
    /// An error of NCCL.
    #[error("NCCL: {0}; see what it says with NCCL_DEBUG=INFO")]
    Nccl(String),
    /// Processes that should have the same and have not.
    #[error("{what} of rank {rank} differ from those of rank 0: the processes do not run alike")]
    RanksDiffer {
        /// What should be the same.
        what: String,
        /// The first process where it differs.
        rank: usize,
    },
    /// What the operating system says of a process.
    #[error("{what}: {error}")]
    Process {
        /// What was asked of it.
        what: &'static str,
        /// What it says.
        #[source]
        error: io::Error,
    },

    /// A directory that already has a run, where a new one is to begin.
    #[error("{}: holds a run already", .0.display())]
    RunExists(PathBuf),
    /// A directory without a run to resume.
    #[error("{}: holds no run to resume", .0.display())]
    NoRun(PathBuf),
    /// A teacher in the directory of the run, which would replace it.
    #[error("teacher.models: {}: lies in the directory of this run", .0.display())]
    TeacherInside(PathBuf),
    /// A run that another process is writing.
    #[error("{}: another process is training this run", .0.display())]
    RunLocked(PathBuf),
    /// A run that was made with another config.
    #[error("{}: differs from the config given: {what}", path.display())]
    OtherConfig {
        /// Its config, or its checkpoint.
        path: PathBuf,
        /// The first difference.
        what: String,
    },
    /// A checkpoint that was trained on other data.
    #[error("{}: was trained on other data than {name}", path.display())]
    OtherData {
        /// The checkpoint.
        path: PathBuf,
        /// The data that is given.
        name: String,
    },
    /// A checkpoint beyond the end of the run that is asked for.
    #[error("{}: has made {made} steps, and train.steps is {steps}", path.display())]
    FewerSteps {
        /// The checkpoint.
        path: PathBuf,
        /// Its steps.
        made: u64,
        /// Those that are asked for.
        steps: u64,
    },
    /// A file of a checkpoint that is not what was saved.
    #[error("{}: is not what the run saved: it is damaged, or another run's", .0.display())]
    NotAsSaved(PathBuf),
    /// A checkpoint whose network is not the config's.
    #[error("{}: its checkpoint has another architecture than its config", .0.display())]
    OtherArchitecture(PathBuf),

    /// A loss or a weight that is no longer finite.
    #[error("{what} at step {step}: training diverged; lower train.learning_rate")]
    Diverged {
        /// What is no longer finite.
        what: String,
        /// When.
        step: u64,
    },
    /// A certified constant above the one asked for.
    #[error("the certified constant {constant} is above the target {target}")]
    AboveTarget {
        /// The certified constant, RMS → RMS.
        constant: Upper,
        /// The constant asked for.
        target: f64,
    },
    /// A logit of attention above the largest allowed.
    #[error("a logit of attention can be {logit}, above the {most} of max_logit")]
    AboveLogit {
        /// The most that it can be.
        logit: Upper,
        /// The most that it may be.
        most: f64,
    },
    /// A weight above the cap that the constraint promises.
    #[error("`{name}` has norm {norm} above its cap {cap:.6}: the constraint does not hold")]
    AboveCap {
        /// The norm.
        name: String,
        /// Its proven value.
        norm: Upper,
        /// Its cap.
        cap: f64,
    },
    /// A pair of inputs that refutes a certificate.
    #[error(
        "found a sensitivity of {found} above the certified {certified}: this is a defect of the \
         certificate, please report it"
    )]
    Refuted {
        /// The sensitivity found, ℓ2 → ℓ2.
        found: f64,
        /// The constant certified, ℓ2 → ℓ2.
        certified: Upper,
    },

    /// A temperature below 0.
    #[error("temperature {0}: must be a number, 0 or above")]
    Temperature(f64),
    /// A model that reads no tokens, asked for text.
    #[error("the model reads no tokens, so it writes no text")]
    WritesNoText,
    /// A prompt of no tokens.
    #[error("the prompt is empty; give at least one character")]
    EmptyPrompt,
    /// A network that has no output: rounding overflows, or training diverged.
    #[error("the network's outputs are not finite on this input")]
    NotFinite,
}

impl Error {
    /// Whether a file is not, or no longer, there.
    pub(crate) fn is_missing_file(&self) -> bool {
        match self {
            Self::Network(lipschitz_nn::Error::Io { error, .. }) => {
                error.kind() == io::ErrorKind::NotFound
            }
            _ => false,
        }
    }

    /// Whether a claim does not hold, rather than an input.
    pub fn is_violation(&self) -> bool {
        match self {
            Self::AboveTarget { .. }
            | Self::AboveLogit { .. }
            | Self::AboveCap { .. }
            | Self::Refuted { .. } => true,
            Self::Certificate(error) => matches!(error, lipschitz_certify::Error::Violated(_)),
            Self::In { error, .. } => error.is_violation(),
            _ => false,
        }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Network(error.into())
    }
}

impl From<safetensors::SafeTensorError> for Error {
    fn from(error: safetensors::SafeTensorError) -> Self {
        candle_core::Error::from(error).into()
    }
}

/// Names what an error is about.
pub(crate) trait Within<T> {
    /// The value, or [`Error::In`].
    fn within(self, name: impl Display) -> Result<T, Error>;
}

impl<T, E: Into<Error>> Within<T> for Result<T, E> {
    fn within(self, name: impl Display) -> Result<T, Error> {
        self.map_err(|error| Error::In { name: name.to_string(), error: Box::new(error.into()) })
    }
}
