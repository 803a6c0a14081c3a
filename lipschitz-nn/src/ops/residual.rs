//! The weighted residual.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::kernel::{Array, Kernel, apply};
use crate::linalg::simd::simd;
use crate::linalg::{Buffer, CHUNK, Real, fused};

/// `skip·x + branch·y` for tensors of one shape.
///
/// # Errors
/// Shapes that differ, and candle's own.
pub fn residual(x: &Tensor, y: &Tensor, skip: f64, branch: f64) -> Result<Tensor> {
    if fused(&[x, y]) {
        apply(Residual { skip, branch }, &[x, y], true)
    } else {
        composed(x, y, skip, branch)
    }
}

/// The same out of candle's operations.
///
/// # Errors
/// Candle's own.
pub fn composed(x: &Tensor, y: &Tensor, skip: f64, branch: f64) -> Result<Tensor> {
    (x * skip)? + (y * branch)?
}

struct Residual {
    skip: f64,
    branch: f64,
}

/// `factor·x`
pub(super) fn scaled<T: Real>(x: &[T], factor: f64) -> Buffer<T> {
    let mut out = Buffer::take(x.len());
    let factor = T::of(factor);
    out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(out, x)| {
        simd(
            #[inline(always)]
            || {
                for (out, x) in out.iter_mut().zip(x) {
                    *out = *x * factor;
                }
            },
        );
    });
    out
}

impl Kernel for Residual {
    const NAME: &'static str = "residual";
    type Saved<T: Real> = ();

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        if inputs[0] != inputs[1] {
            bail!("residual: {:?} and {:?} differ", inputs[0], inputs[1])
        }
        Ok(inputs[0].to_vec())
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, ()) {
        let (x, y) = (inputs[0].data, inputs[1].data);
        let (skip, branch) = (T::of(self.skip), T::of(self.branch));
        let mut out = vec![T::of(0.0); x.len()];
        let chunks = out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(y.par_chunks(CHUNK));
        chunks.for_each(|((out, x), y)| {
            simd(
                #[inline(always)]
                || {
                    for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
                        *out = *x * skip + *y * branch;
                    }
                },
            );
        });
        (out, ())
    }

    fn backward<T: Real>(
        &self,
        _: &[Array<T>],
        (): (),
        grad: &[T],
        wanted: &[bool],
    ) -> Vec<Vec<T>> {
        let times = |factor: f64, wanted: bool| {
            if wanted { scaled(grad, factor).into_vec() } else { Vec::new() }
        };
        vec![times(self.skip, wanted[0]), times(self.branch, wanted[1])]
    }
}
