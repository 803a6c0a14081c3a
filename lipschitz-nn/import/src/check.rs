//! Whether an imported model computes what the program that it comes from computed.

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::{Error, Model};

/// How far outputs may be apart at most, as a share of the largest of them.
pub const TOLERANCE: f64 = 1e-4;

/// How many times the rounding of our own pass in f32 another program may be off.
const PASSES: f64 = 8.0;

/// What is explained at least: a function's own rounding.
const LEAST: f64 = 1e-6;

/// Why outputs do not show that two programs compute the same.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Disagreement {
    /// The model does not run on the inputs.
    #[error(transparent)]
    Network(#[from] Error),
    /// Outputs of a type that is too coarse to compare, or not of numbers.
    #[error("outputs are {0:?}; have them computed and saved in f32 or f64")]
    Type(DType),
    /// Outputs of another shape.
    #[error("outputs are {found:?}, the imported model gives {ours:?}")]
    Shape {
        /// What was given.
        found: Vec<usize>,
        /// What the model gives.
        ours: Vec<usize>,
    },
    /// NaN or infinity on either side.
    #[error("{0} hold NaN or infinity")]
    NotFinite(&'static str),
    /// All outputs are zero, or there are none.
    #[error("outputs are all zero, which shows nothing; give other inputs")]
    Zero,
    /// They are apart.
    #[error(
        "outputs are {difference:.1e} of the largest apart, and rounding explains {explained:.1e}; \
         the imported model is not the one that gave them"
    )]
    Apart {
        /// The largest difference over the largest output.
        difference: f64,
        /// How large it may be.
        explained: f64,
    },
}

/// Runs a model on inputs, and compares with the outputs that another program computed from them.
/// Gives the largest difference over the largest output.
///
/// It may be what rounding explains: eight times what f32 does to the model's own pass, and 10⁻⁶;
/// and at most [`TOLERANCE`]. A threshold of that size alone would take one GELU for the other.
/// Weights of half precision are computed with in f32, and compared up to [`TOLERANCE`]: in f64
/// they would need four times their memory.
///
/// # Errors
/// [`Disagreement`].
pub fn check(model: &Model, inputs: &Tensor, outputs: &Tensor) -> Result<f64, Disagreement> {
    if !matches!(outputs.dtype(), DType::F32 | DType::F64) {
        return Err(Disagreement::Type(outputs.dtype()));
    }
    let pass = |dtype| model.to(&Device::Cpu, dtype)?.forward(inputs);
    let single = pass(DType::F32)?;
    let half = matches!(model.dtype(), DType::BF16 | DType::F16);
    let ours = if half { single.clone() } else { pass(DType::F64)? };
    if ours.dims() != outputs.dims() {
        let (found, ours) = (outputs.dims().to_vec(), ours.dims().to_vec());
        return Err(Disagreement::Shape { found, ours });
    }
    let (single, ours, theirs) = (numbers(&single)?, numbers(&ours)?, numbers(outputs)?);
    let finite = |x: &[f64]| x.iter().all(|x| x.is_finite());
    if !finite(&theirs) {
        return Err(Disagreement::NotFinite("outputs"));
    }
    if !finite(&ours) || !finite(&single) {
        return Err(Disagreement::NotFinite("what the imported model gives"));
    }
    let largest = theirs.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    if largest == 0.0 {
        return Err(Disagreement::Zero);
    }
    let apart = |other: &[f64]| {
        ours.iter().zip(other).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs())) / largest
    };
    let rounded = PASSES * apart(&single) + LEAST;
    let explained = if half { TOLERANCE } else { rounded.min(TOLERANCE) };
    let difference = apart(&theirs);
    if difference <= explained {
        Ok(difference)
    } else {
        Err(Disagreement::Apart { difference, explained })
    }
}

fn numbers(x: &Tensor) -> Result<Vec<f64>, Error> {
    Ok(x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}
