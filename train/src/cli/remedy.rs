//! What to do about an error, in the words of this program: its flags.

use lipschitz_train::estimate::Mostly;
use lipschitz_train::{Error, shards};

/// What to do about an error of the library, which does not know who calls it.
pub(super) fn remedy(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    if let Some(shards::Error::Exists(_)) = error.downcast_ref() {
        return Some("choose another --out");
    }
    let error: &Error =
        error.downcast_ref().or_else(|| Some(&**error.downcast_ref::<Box<Error>>()?))?;
    match error {
        Error::RunExists(_) => Some("continue it with --resume or choose another --out"),
        Error::Diverged { .. } => Some("the run stays as it is: choose another --out"),
        Error::NoRun(_) => Some("leave --resume out to start one"),
        Error::RunLocked(_) => Some("wait for its end, or choose another --out"),
        Error::OtherConfig { .. } => {
            Some("resume with the values it was made with, or choose another --out")
        }
        Error::OtherData { .. } => {
            Some("resume with the data it was trained on, or choose another --out")
        }
        Error::FewerSteps { .. } => {
            Some("give train.steps at least as many, or choose another --out")
        }
        Error::NotAsSaved(_) => {
            Some("put the whole checkpoint back from a copy, or choose another --out")
        }
        Error::BuiltForCpu(_) => {
            Some("install NVIDIA's driver and the CUDA toolkit, and build it with --features cuda")
        }
        Error::Gpu { .. } => Some("nvidia-smi lists the GPUs, or says that the driver is missing"),
        Error::TooLarge { mostly: Mostly::Activations, .. } => Some(
            "lower train.batch_size or model.context, or raise train.accumulate (train estimate \
             says what a step takes)",
        ),
        Error::TooLarge { mostly: Mostly::Batch, .. } => Some("lower train.batch_size"),
        Error::TooLarge { mostly: Mostly::Weights, .. } => {
            Some("lower model.dim or model.layers (train estimate says what a step takes)")
        }
        Error::TooLarge { mostly: Mostly::Teachers, .. } => {
            Some("take smaller teachers, or fewer (train estimate says what a step takes)")
        }
        Error::TeacherInside(_) => Some("choose another --out"),
        Error::BuiltForOneProcess => Some("build it with --features mpi"),
        _ => None,
    }
}
