//! The weighted residual.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::kernel::{Array, Kernel, apply};
use crate::gpu::{self, Launch, OnGpu, Source, Work, arguments};
use crate::linalg::simd::simd;
use crate::linalg::{Buffer, CHUNK, Real, fused};

/// `skip·x + branch·y` for tensors of one shape.
///
/// # Errors
/// Shapes that differ, and candle's own.
pub fn residual(x: &Tensor, y: &Tensor, skip: f64, branch: f64) -> Result<Tensor> {
    if fused(&[x, y]) {
        apply(Residual { skip, branch }, &[x, y], true)
    } else if gpu::covers(&[x, y]) && x.dims() == y.dims() {
        gpu::apply(Residual { skip, branch }, &[x, y])
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

pub(super) struct Residual {
    pub(super) skip: f64,
    pub(super) branch: f64,
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

const SOURCE: Source = ("residual", include_str!("residual.cu"));

impl OnGpu for Residual {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn forward(&self, dims: &[&[usize]]) -> Work {
        let n = dims[0].iter().product();
        let sum = Launch::each("residual", n, arguments![[0], [1], [2]; n, self.skip, self.branch]);
        Work::new(SOURCE, vec![sum], vec![dims[0].to_vec()])
    }

    fn backward(&self, dims: &[&[usize]], wanted: &[bool]) -> Work {
        let n = dims[0].iter().product();
        let times = |(i, factor)| Launch::each("scaled", n, arguments![[3], [4 + i]; n, factor]);
        let factors = [self.skip, self.branch].into_iter().enumerate();
        let launches = factors.filter(|(i, _)| wanted[*i]).map(times).collect();
        let output = |wanted: &bool| if *wanted { dims[0].to_vec() } else { vec![0] };
        Work::new(SOURCE, launches, wanted.iter().map(output).collect())
    }
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
