//! The largest sensitivity found: gradient search over pairs of inputs, each pair a lower bound on the true constant.

use candle_core::{D, DType, Device, Tensor, Var};
use lipschitz_nn::Model;
use lipschitz_nn::graph::Input;

use crate::Error;

/// The steepest pair of inputs found.
#[derive(Clone, Debug)]
pub struct Found {
    /// `‖f(a) − f(b)‖ / ‖a − b‖`, each norm the largest ℓ2 norm of a token.
    pub sensitivity: f64,
    /// The inputs: embedding vectors `[1, tokens, dim]`, images or vectors, in f64.
    pub pair: (Tensor, Tensor),
}

/// Searches from `starts` (embedding vectors `[batch, tokens, dim]`, images or vectors) for the steepest pair whose
/// tokens have ℓ2 norm at most `radius`; `iterations` steps of gradient ascent, on the CPU in f64.
///
/// # Errors
/// [`Error::Network`] if the starts do not fit the network; [`Error::Unknown`] if every pair gave no number.
pub fn search(model: &Model, starts: &Tensor, radius: f64, iterations: usize) -> Result<Found, Error> {
    let model = model.to(&Device::Cpu, DType::F64)?;
    let tokens = matches!(model.graph().input, Input::Tokens { .. });
    let natural = starts.dims().to_vec();
    let starts = starts.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.detach();
    let batch = starts.dim(0)?;
    let flat = if tokens { starts } else { starts.reshape((batch, 1, ()))? };
    let run = |x: &Tensor| -> Result<Tensor, Error> {
        if tokens {
            return Ok(model.forward_embeddings(x)?);
        }
        let y = model.forward(&x.reshape(natural.as_slice())?)?;
        let rows = y.dim(0)?;
        Ok(y.reshape((rows, 1, ()))?)
    };

    let mut a = project(&flat, radius)?;
    let mut direction = unit(&a)?;
    let mut best: Option<(f64, Tensor, Tensor)> = None;
    let size = row_norms(&a)?.flatten_all()?.max(0)?.to_scalar::<f64>()?.max(1e-3);
    for iteration in 0..iterations {
        // Far pairs find a way through flat places, near ones measure the Jacobian.
        let step = size * if iteration % 4 == 0 { 0.3 } else { 1e-4 };
        let progress = iteration as f64 / iterations as f64;
        let (x, y) = (Var::from_tensor(&a)?, Var::from_tensor(&project(&(&a + (&direction * step)?)?, radius)?)?);
        let change = (run(y.as_tensor())? - run(x.as_tensor())?)?;
        let outputs = row_norms(&change.detach())?.squeeze(2)?;
        let worst = outputs.max(1)?.to_vec1::<f64>()?;
        let apart = row_norms(&(y.as_tensor() - x.as_tensor())?.detach())?.squeeze(2)?.max(1)?.to_vec1::<f64>()?;
        for (i, (worst, apart)) in worst.iter().zip(&apart).enumerate() {
            // Below this, rounding of the forward pass would count as sensitivity.
            if *apart < 1e-7 * size {
                continue;
            }
            let ratio = worst / apart;
            if ratio.is_finite() && best.as_ref().is_none_or(|b| ratio > b.0) {
                best = Some((ratio, x.as_tensor().get(i)?.detach(), y.as_tensor().get(i)?.detach()));
            }
        }
        // Push along the output change of each element's worst token.
        let at = outputs.argmax(1)?.to_vec1::<u32>()?;
        let picked: Vec<Tensor> =
            at.iter().enumerate().map(|(i, t)| change.get(i)?.get(*t as usize)).collect::<Result<_, _>>()?;
        let picked = Tensor::stack(&picked, 0)?;
        let goal = (&picked * unit(&picked.detach())?)?.sum_all()?;
        let gradients = goal.backward()?;
        let gradient = |v: &Var| gradients.get(v.as_tensor()).map_or_else(|| v.zeros_like(), |g| Ok(g.detach()));
        let (toward, base) = (gradient(&y)?, gradient(&x)?);
        direction = unit(&toward)?;
        // Moving both ends by the same amount changes the output change by the sum of the two gradients.
        let climb = (unit(&(toward + base)?)? * (0.1 * size * (1.0 - progress)))?;
        a = project(&(a + climb)?, radius)?;
    }
    let (sensitivity, x, y) =
        best.ok_or_else(|| Error::Unknown("the network's sensitivity: every pair gave no finite number".into()))?;
    let shape = |x: Tensor| -> Result<Tensor, Error> {
        let mut dims = natural.clone();
        dims[0] = 1;
        Ok(x.reshape(dims)?)
    };
    Ok(Found { sensitivity, pair: (shape(x)?, shape(y)?) })
}

/// ℓ2 norms over the last dimension, which is kept.
fn row_norms(x: &Tensor) -> Result<Tensor, Error> {
    Ok(x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}

/// Each row over its norm; a zero row becomes the constant unit vector.
fn unit(x: &Tensor) -> Result<Tensor, Error> {
    let width = x.dim(D::Minus1)? as f64;
    let x = (x + 1e-300 * width.sqrt())?;
    Ok(x.broadcast_div(&(row_norms(&x)? + 1e-290)?)?)
}

/// Rows scaled back into the ball, a hair inside so that rounding does not leave it.
fn project(x: &Tensor, radius: f64) -> Result<Tensor, Error> {
    if !radius.is_finite() {
        return Ok(x.clone());
    }
    let factor = (row_norms(x)? + 1e-300)?.recip()?.affine(radius * (1.0 - 1e-12), 0.0)?;
    Ok(x.broadcast_mul(&factor.minimum(&factor.ones_like()?)?)?)
}
