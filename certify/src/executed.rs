//! The program that runs, beside the function that a certificate is about: a bound on what floating point
//! takes, and the largest that a search finds.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::graph::{Node, Op};
use lipschitz_nn::{Model, random};

use crate::Error;
use crate::bound::{Format, Norms, WeightNorms, rounding, roundings};
use crate::pinned::Pinned;
use crate::probe::{Network, noise, row_norms, unit};
use crate::range::{self, Inputs};
use crate::source::Source;
use crate::spectral::Method;
use crate::upper::Upper;

/// What is proven of the program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Proof {
    /// Nothing bounds its error: of the inputs, or of a part.
    Unbounded,
    /// Values and weights can reach these sizes, which may overflow, or the squares of values may.
    Overflow {
        /// The largest absolute value of any tensor of the pass.
        values: Upper,
        /// The largest absolute value of a weight.
        weights: Upper,
    },
    /// It does not overflow.
    Within {
        /// The ℓ2 distance of a token of its output from the function's.
        outputs: Upper,
        /// The largest absolute value of any tensor of the pass.
        values: Upper,
    },
}

/// Bounds the program in this format, in any order of its sums, for all inputs whose tokens, or which as a
/// whole image or vector, have ℓ2 norm at most `radius` and are numbers of the format or are rounded to it.
///
/// # Errors
/// [`Error::Data`] for weights that are no numbers of f32 and a format of no more bits; others name the
/// weight or node about which nothing is known.
pub fn prove(source: &dyn Source, radius: Upper, format: Format) -> Result<Proof, Error> {
    if format.dtype != DType::F64 {
        of_f32(source)?;
    }
    let source = &Pinned::new(source)?;
    let norms = WeightNorms::new(source, Method::Proven, &|_| {});
    let off = roundings(source.graph(), &norms, radius, format)?;
    let held = source.graph().constants().into_iter().all(|(_, c)| format.holds(c));
    if !off.outputs.is_finite() || !held {
        return Ok(Proof::Unbounded);
    }
    let inputs = Inputs { radius: Some(radius.to_f64()), limit: None };
    let ranges = range::given(source, &norms, inputs, 0, &|_| {})?;
    let (values, weights) = (ranges.largest() + off.anywhere, ranges.largest_weight());
    // Queries may be scaled before their product with keys.
    let values = values * Upper::from_f64(scale(source.graph().nodes()).max(1.0));
    // A weight is rounded by less than its half.
    let overflows =
        format.overflows(values) || weights + weights >= Upper::from_f64(format.largest);
    Ok(match overflows {
        true => Proof::Overflow { values, weights },
        false => Proof::Within { outputs: off.outputs, values },
    })
}

/// The largest factor on logits.
fn scale(nodes: &[Node]) -> f64 {
    let of = |node: &Node| match &node.op {
        Op::Attention(a) => a.logit_scale.abs(),
        op => op.body().map_or(0.0, scale),
    };
    nodes.iter().map(of).fold(0.0, f64::max)
}

/// Weights in f64 can be more than f32 holds, and a program of fewer bits is then one of other weights.
fn of_f32(source: &dyn Source) -> Result<(), Error> {
    for name in source.names() {
        let weight = source.tensor(&name)?;
        if weight.dtype() == DType::F64 {
            let held = |x: &f64| f64::from(*x as f32) == *x || x.is_nan();
            if !weight.flatten_all()?.to_vec1::<f64>()?.iter().all(held) {
                return Err(Error::Data(format!(
                    "the weight `{name}` is of f64, which f32 rounds: the program is of other weights; convert \
                     them to f32 first"
                )));
            }
        }
    }
    Ok(())
}

/// The largest error found.
#[derive(Clone, Debug)]
pub struct Executed {
    /// The ℓ2 norm of a token of `f̂(x) − f(x)`, with what f64 may have rounded taken off.
    pub found: f64,
    /// It is never above this, in any order of sums, where nothing overflows.
    pub proven: Upper,
    /// Passes that were compared.
    pub passes: usize,
    /// The input, in f32 or a type of fewer bits.
    pub input: Tensor,
}

/// Searches until `budget` is spent for an input whose tokens have ℓ2 norm up to `radius` and whose
/// outputs in this format are farthest from those of the function, which is run in f64: real ones, scaled to
/// the sphere, random ones, and those near the worst so far. A format that keeps values in fewer bits than
/// f32 is run in f32, with every tensor of the pass rounded.
///
/// # Errors
/// [`Error::Violated`] if one is above what is proven, or an output is not finite; [`Error::Data`] for
/// weights or a format of f64; those of the network.
pub fn search(
    model: &Model,
    norms: &dyn Norms,
    inputs: &Tensor,
    radius: f64,
    format: Format,
    budget: Duration,
) -> Result<Executed, Error> {
    const BATCH: usize = 8;
    let start = Instant::now();
    if format.dtype == DType::F64 {
        return Err(Error::Data(
            "there is nothing to compare f64 with: search f32, bf16 or f16".into(),
        ));
    }
    of_f32(model)?;
    let name = format.dtype.as_str();
    let exact = Network::new(model, inputs.dims(), radius)?;
    // By way of f32, which its weights are of: from f64 the library rounds to 16 bits by the upper half alone.
    let single = model.to(&Device::Cpu, DType::F32)?.to(&Device::Cpu, format.dtype)?;
    let single = single.to(&Device::Cpu, DType::F32)?;
    let proven = rounding(model.graph(), norms, Upper::from_f64(radius), format)?;
    let all = exact.rows(inputs)?;
    let count = all.dim(0)?;
    let mut rng = random::seeded(1);
    let (mut found, mut passes): (Option<(f64, Tensor)>, usize) = (None, 0);
    for round in 0.. {
        let picked: Vec<u32> =
            (0..BATCH.min(count)).map(|i| ((round / 3 * BATCH + i) % count) as u32).collect();
        let real = all.index_select(&Tensor::new(picked, &Device::Cpu)?, 0)?;
        let sphere = |x: &Tensor| -> Result<Tensor, Error> {
            if radius.is_finite() { Ok((unit(x)? * radius)?) } else { Ok(x.clone()) }
        };
        let drawn = noise(real.dims(), &mut rng)?;
        let x = match (round % 4, &found) {
            (1 | 3, Some((_, best))) => {
                let size = row_norms(best)?;
                let near = [1e-6, 1e-3, 0.05, 0.3][round / 4 % 4];
                let moved = unit(&drawn)?.broadcast_mul(&(size * near)?)?;
                best.broadcast_add(&moved)?
            }
            (2, _) => sphere(&drawn)?,
            _ if round % 8 == 4 => sphere(&real)?,
            _ => real,
        };
        // What both passes read is the same number, inside the ball.
        let x = (exact.project(&x)? * (1.0 - 1e-6))?;
        let x = x.to_dtype(DType::F32)?.to_dtype(DType::F64)?;
        let computed = match format.mixed() {
            true => exact
                .run_tapped(&single, &x, &|x| x.to_dtype(format.dtype)?.to_dtype(DType::F32))?,
            false => exact.run_in(&single, &x)?,
        };
        let outputs = (exact.run(&x)? - computed.to_dtype(DType::F64)?)?;
        let off = row_norms(&outputs)?.squeeze(2)?.max(1)?.to_vec1::<f64>()?;
        passes += off.len();
        let allowance = exact.allowance(radius)?;
        for (i, off) in off.into_iter().enumerate() {
            if !off.is_finite() {
                return Err(Error::Violated(format!(
                    "{name} overflows: an output is not finite at an input of the domain"
                )));
            }
            let off = (off - allowance).max(0.0);
            if Upper::from_f64(off) > proven {
                return Err(Error::Violated(format!(
                    "an output in {name} is {off} from the function's, but {proven} is proven: this is a \
                     defect, please report it"
                )));
            }
            if found.as_ref().is_none_or(|(most, _)| off > *most) {
                found = Some((off, x.narrow(0, i, 1)?));
            }
        }
        if start.elapsed() >= budget {
            break;
        }
    }
    let (found, input) = found.ok_or_else(|| {
        Error::Unknown(format!("the error of {name}: no input gave a finite number"))
    })?;
    Ok(Executed { found, proven, passes, input: exact.shaped(input)?.to_dtype(DType::F32)? })
}
