//! Norms of stacks of matrices: from above by Gram iteration, from below by power iteration.

use std::collections::BTreeMap;

use candle_core::{D, Tensor};
use lipschitz_nn::random;

use crate::Error;
use crate::work::Sides;

/// Relative distance at which caps are met from below. It exceeds what rounding in `f32` adds.
pub(crate) const MARGIN: f64 = 2e-4;

/// Squarings of the Gram matrix. For n equal singular values the bound is `n^(2^-(SQUARINGS+2))`
/// times the norm: 0.3 % above it for n = 768.
const SQUARINGS: i32 = 9;

/// Steps of power iteration from a pseudo-random vector.
const FRESH: usize = 16;

/// Steps of power iteration from the vector of the step before.
const AGAIN: usize = 2;

fn tiny() -> f64 {
    f64::from(f32::MIN_POSITIVE)
}

/// An upper bound on σ_max of each matrix of `[count, rows, columns]`, as `[count, 1, 1]`:
/// `σ_max² ≤ ‖G^(2^K)‖_F^(1/2^K)` (Delattre et al., *Efficient bound of Lipschitz constant for
/// convolutional layers by Gram iteration*, 2023).
fn gram(x: &Tensor) -> Result<Tensor, Error> {
    let t = x.transpose(D::Minus2, D::Minus1)?;
    let mut g = if x.dim(D::Minus2)? <= x.dim(D::Minus1)? { x.matmul(&t)? } else { t.matmul(x)? };
    // log of the bound on λ_max(G): Σ log(norm_k)/2^k over the squarings.
    let mut log = Tensor::zeros((x.dim(0)?, 1, 1), x.dtype(), x.device())?;
    for k in 0..=SQUARINGS {
        let norm = (g.sqr()?.sum_keepdim(D::Minus1)?.sum_keepdim(D::Minus2)?.sqrt()? + tiny())?;
        log = (log + (norm.log()? * 0.5f64.powi(k))?)?;
        if k < SQUARINGS {
            let unit = g.broadcast_div(&norm)?;
            g = unit.matmul(&unit)?;
        }
    }
    // Sums of n terms in f32 and the squarings err by far less than 1e-4, relatively: the rounding
    // of squaring k counts 2^-k.
    Ok(((log * 0.5)?.exp()? * (1.0 + 1e-4))?)
}

/// Floating-point operations of [`normalize`].
pub(crate) fn gram_work(sides: Sides) -> f64 {
    sides.long_product() + f64::from(SQUARINGS) * sides.short_product()
}

/// Each matrix of `[count, rows, columns]` over the larger of 1 and a bound on its norm over the
/// cap. No norm ends above the cap.
pub(crate) fn normalize(x: &Tensor, cap: f64) -> Result<Tensor, Error> {
    Ok(x.broadcast_div(&(gram(x)? / (cap * (1.0 - MARGIN)))?.maximum(1f64)?)?)
}

/// Lower estimates of the largest singular values, with their vectors.
pub(crate) struct Top {
    /// `[count, 1, 1]`.
    pub(crate) sigma: Tensor,
    /// Left vectors, `[count, rows, 1]`.
    left: Tensor,
    /// Right vectors, `[count, columns, 1]`.
    right: Tensor,
}

impl Top {
    /// `u vᵀ`, `[count, rows, columns]`.
    pub(crate) fn outer(&self) -> Result<Tensor, Error> {
        Ok(self.left.broadcast_mul(&self.right.transpose(1, 2)?)?)
    }
}

/// The right vectors of power iteration that are kept from step to step, by the weight's name.
#[derive(Default)]
pub(crate) struct TopVectors(pub(crate) BTreeMap<String, Tensor>);

impl TopVectors {
    /// The top singular values of the blocks `[count, rows, columns]` of this weight.
    pub(crate) fn of(&mut self, name: &str, x: &Tensor) -> Result<Top, Error> {
        let top = match self.0.get(name) {
            Some(kept) => power(x, kept, AGAIN)?,
            None => power(x, &start(x)?, FRESH)?,
        };
        self.0.insert(name.to_string(), top.right.clone());
        Ok(top)
    }
}

/// Power iteration on `[count, rows, columns]` from right vectors `[count, columns, 1]`.
fn power(x: &Tensor, start: &Tensor, iterations: usize) -> Result<Top, Error> {
    let unit = |v: Tensor| -> Result<(Tensor, Tensor), Error> {
        let norm = (v.sqr()?.sum_keepdim(1)?.sqrt()? + tiny())?;
        Ok((v.broadcast_div(&norm)?, norm))
    };
    let t = x.transpose(1, 2)?.contiguous()?;
    let mut right = start.clone();
    for _ in 0..iterations {
        right = unit(t.matmul(&x.matmul(&right)?)?)?.0;
    }
    let (left, sigma) = unit(x.matmul(&right)?)?;
    Ok(Top { sigma, left, right })
}

/// Floating-point operations of power iteration: a product with a vector and one with the
/// transpose per step.
pub(crate) fn power_work(sides: Sides) -> f64 {
    4.0 * sides.s() * sides.l() * AGAIN as f64
}

/// The right vectors that power iteration starts from, `[count, columns, 1]`: pseudo-random, and
/// the same for the same shape.
pub(crate) fn start(x: &Tensor) -> Result<Tensor, Error> {
    let (count, _, columns) = x.dims3()?;
    let mut rng = random::seeded(columns as u64);
    let one = |_| random::symmetric(&mut rng);
    let values: Vec<f64> = (0..count * columns).map(one).collect();
    Ok(Tensor::from_vec(values, (count, columns, 1), x.device())?.to_dtype(x.dtype())?)
}
