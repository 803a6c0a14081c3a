//! A residual MLP as one operation: its hidden layer is computed and used while it is in cache.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::activation::{gradients, values};
use super::kernel::{Array, Kernel, apply};
use super::residual::scaled;
use super::{ROWS, Split};
use crate::graph::Function;
use crate::linalg::{Buffer, Precision, Real, Strided, fused, matmul, without_kernels};

/// The constants of [`mlp_block`].
#[derive(Clone, Copy, Debug)]
pub struct MlpBlock {
    /// φ
    pub function: Function,
    /// Factor on φ.
    pub scale: f64,
    /// Factor on the input.
    pub skip: f64,
    /// Factor on the MLP.
    pub branch: f64,
}

/// `skip·x + branch·(scale·φ(x Uᵀ)) Dᵀ` for `x` of shape `[…, dim]`, `U` of `[hidden, dim]` and `D`
/// of `[dim, hidden]`.
///
/// `x Uᵀ` is kept for the gradient if `keep`, and recomputed otherwise.
///
/// # Errors
/// Shapes that do not fit, and candle's own.
pub fn mlp_block(
    block: MlpBlock,
    x: &Tensor,
    up: &Tensor,
    down: &Tensor,
    keep: bool,
) -> Result<Tensor> {
    if fused(&[x, up, down]) {
        apply(block, &[x, up, down], keep)
    } else {
        apart(block, x, up, down)
    }
}

/// The same, an operation at a time.
pub(super) fn apart(block: MlpBlock, x: &Tensor, up: &Tensor, down: &Tensor) -> Result<Tensor> {
    let linear = |x: &Tensor, w: &Tensor| super::linear(x, w, None, Precision::F32);
    let hidden = super::activation(&linear(x, up)?, block.function, block.scale)?;
    super::residual(x, &linear(&hidden, down)?, block.skip, block.branch)
}

/// The same out of candle's operations.
///
/// # Errors
/// Candle's own.
pub fn composed(block: MlpBlock, x: &Tensor, up: &Tensor, down: &Tensor) -> Result<Tensor> {
    without_kernels(|| apart(block, x, up, down))
}

impl MlpBlock {
    /// The result, and `x Uᵀ`.
    pub(super) fn run<T: Real>(&self, inputs: &[Array<T>]) -> (Buffer<T>, Buffer<T>) {
        let (x, up, down) = (inputs[0].data, inputs[1].data, inputs[2].data);
        let (dim, hidden) = (inputs[0].width(), inputs[2].width());
        let (up, down) = (Strided::dense(up, dim), Strided::dense(down, hidden));
        let mut out = scaled(x, self.skip);
        let mut before = Buffer::take(x.len() / dim * hidden);
        let split @ Split { rows, together } = Split::of(dim * hidden);
        let chunks = out.par_chunks_mut(rows * dim).zip(before.par_chunks_mut(rows * hidden));
        split.blocks(chunks.zip(x.par_chunks(rows * dim))).for_each_init(
            || vec![T::of(0.0); rows.min(x.len() / dim) * hidden],
            |after, ((out, before), x)| {
                let after = &mut after[..before.len()];
                matmul(before, hidden, Strided::dense(x, dim), up.t(), false, 1.0, together);
                let some =
                    before.par_chunks(ROWS * hidden).zip(after.par_chunks_mut(ROWS * hidden));
                some.for_each(|(before, after)| values(self.function, self.scale, before, after));
                let after = Strided::dense(after, hidden);
                matmul(out, dim, after, down.t(), true, self.branch, together);
            },
        );
        (out, before)
    }

    /// With `h = x Uᵀ`, `a = scale·φ(h)`, `da = branch·grad D`, `dh = scale·φ'(h) ∘ da`: `dx =
    /// skip·grad + dh U`, `dU = dhᵀ x`, `dD = branch·gradᵀ a`.
    pub(super) fn gradient<T: Real>(
        &self,
        inputs: &[Array<T>],
        mut h: Buffer<T>,
        grad: &[T],
        wanted: bool,
        weights: Option<[&mut [T]; 2]>,
    ) -> Option<Buffer<T>> {
        let (x, up, down) = (inputs[0].data, inputs[1].data, inputs[2].data);
        let (dim, hidden) = (inputs[0].width(), inputs[2].width());
        let (up, down) = (Strided::dense(up, dim), Strided::dense(down, hidden));
        let mut dx = wanted.then(|| scaled(grad, self.skip));
        let mut dh = Buffer::take(h.len());
        let split @ Split { rows, together } = Split::of(dim * hidden);
        let chunks = dh.par_chunks_mut(rows * hidden).zip(h.par_chunks_mut(rows * hidden));
        split.blocks(chunks.zip(grad.par_chunks(rows * dim))).for_each(|((dh, h), grad)| {
            matmul(dh, hidden, Strided::dense(grad, dim), down, false, self.branch, together);
            // From here on, `h` holds a.
            let some = h.par_chunks_mut(ROWS * hidden).zip(dh.par_chunks_mut(ROWS * hidden));
            some.for_each(|(h, dh)| gradients(self.function, self.scale, h, dh));
        });
        if let Some(dx) = &mut dx {
            let chunks = dx.par_chunks_mut(rows * dim).zip(dh.par_chunks(rows * hidden));
            split.blocks(chunks).for_each(|(dx, dh)| {
                matmul(dx, dim, Strided::dense(dh, hidden), up, true, 1.0, together);
            });
        }
        if let Some([dup, ddown]) = weights {
            matmul(
                dup,
                dim,
                Strided::dense(&dh, hidden).t(),
                Strided::dense(x, dim),
                false,
                1.0,
                true,
            );
            matmul(
                ddown,
                hidden,
                Strided::dense(grad, dim).t(),
                Strided::dense(&h, hidden),
                false,
                self.branch,
                true,
            );
        }
        dx
    }
}

impl Kernel for MlpBlock {
    const NAME: &'static str = "MLP block";
    /// `x Uᵀ`
    type Saved<T: Real> = Buffer<T>;

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        match (inputs[0].last(), inputs[1], inputs[2]) {
            (Some(&d), &[h, d1], &[d2, h1]) if d == d1 && d == d2 && h == h1 && d > 0 && h > 0 => {
                Ok(inputs[0].to_vec())
            }
            _ => bail!(
                "MLP block: input {:?}, weights {:?} and {:?}",
                inputs[0],
                inputs[1],
                inputs[2]
            ),
        }
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, Buffer<T>) {
        let (out, before) = self.run(inputs);
        (out.into_vec(), before)
    }

    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        h: Buffer<T>,
        grad: &[T],
        wanted: &[bool],
    ) -> Vec<Vec<T>> {
        let [mut dup, mut ddown] = [1, 2].map(|i| vec![T::of(0.0); inputs[i].data.len()]);
        let weights = (wanted[1] || wanted[2]).then_some([&mut dup[..], &mut ddown[..]]);
        let dx = self.gradient(inputs, h, grad, wanted[0], weights);
        vec![dx.map_or_else(Vec::new, Buffer::into_vec), dup, ddown]
    }
}
