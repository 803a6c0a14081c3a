//! The program that runs, beside the function that a certificate is about: the largest error of floating
//! point that a search finds. [`rounding`] bounds it.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::{Model, random};

use crate::Error;
use crate::bound::{Format, Norms, rounding};
use crate::probe::{Network, noise, row_norms, unit};
use crate::upper::Upper;

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
    if model.dtype() == DType::F64 {
        let what = "the weights are f64, which f32 rounds: the program in f32 is of other weights";
        return Err(Error::Data(what.into()));
    }
    if format.dtype == DType::F64 {
        return Err(Error::Data(
            "there is nothing to compare f64 with: search f32, bf16 or f16".into(),
        ));
    }
    let name = format.dtype.as_str();
    let exact = Network::new(model, inputs.dims(), radius)?;
    let single = model.to(&Device::Cpu, format.dtype)?.to(&Device::Cpu, DType::F32)?;
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
