//! Norms of stacks of matrices: from above by Gram iteration, from below by power iteration.

use candle_core::{D, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Error;

/// Squarings of the Gram matrix: for n equal singular values the bound is `n^(2^-(SQUARINGS+2))`
/// times the norm, 0.3 % above it for 768.
pub(crate) const SQUARINGS: i32 = 9;

fn tiny() -> f64 {
    f64::from(f32::MIN_POSITIVE)
}

/// Not below σ_max of each matrix of `[count, rows, columns]`, as `[count, 1, 1]`: `σ_max² ≤
/// ‖G^(2^K)‖_F^(1/2^K)` (Delattre et al., *Efficient bound of Lipschitz constant for convolutional
/// layers by Gram iteration*, 2023).
pub(super) fn gram(x: &Tensor) -> Result<Tensor, Error> {
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
    // f32 sums of n terms and the squarings are off by far less than 1e-4, relatively: what a
    // squaring rounds counts 2^-k.
    Ok(((log * 0.5)?.exp()? * (1.0 + 1e-4))?)
}

/// The largest singular value of each matrix, from below, with its vectors.
pub(super) struct Top {
    /// `[count, 1, 1]`
    pub sigma: Tensor,
    /// Left vectors, `[count, rows, 1]`.
    pub left: Tensor,
    /// Right vectors, `[count, columns, 1]`.
    pub right: Tensor,
}

impl Top {
    /// `u vᵀ`, `[count, rows, columns]`.
    pub(super) fn outer(&self) -> Result<Tensor, Error> {
        Ok(self.left.broadcast_mul(&self.right.transpose(1, 2)?)?)
    }
}

/// Power iteration on `[count, rows, columns]` from right vectors `[count, columns, 1]`.
pub(super) fn power(x: &Tensor, start: &Tensor, iterations: usize) -> Result<Top, Error> {
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

/// Where power iteration starts: the same pseudo-random vectors for the same shape, `[count,
/// columns, 1]`.
pub(super) fn start(x: &Tensor) -> Result<Tensor, Error> {
    let (count, _, columns) = x.dims3()?;
    let mut rng = ChaCha8Rng::seed_from_u64(columns as u64);
    let one = |_| f64::from(rng.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0;
    let values: Vec<f64> = (0..count * columns).map(one).collect();
    Ok(Tensor::from_vec(values, (count, columns, 1), x.device())?.to_dtype(x.dtype())?)
}
