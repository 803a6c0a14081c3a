//! The larger and the smaller element of each pair.

use candle_core::{D, Result, Tensor, bail};
use rayon::prelude::*;

use super::ROWS;
use super::kernel::{Array, Kernel, apply};
use crate::linalg::simd::simd;
use crate::linalg::{Real, fused};

/// `max(u, v)` and then `min(u, v)` for the halves u and v of the last dimension, which is even.
/// Where u and v are equal, the gradient passes as it is.
///
/// # Errors
/// A last dimension that is odd, and candle's own.
pub fn max_min(x: &Tensor) -> Result<Tensor> {
    if fused(&[x]) { apply(MaxMin, &[x], true) } else { composed(x) }
}

/// [`max_min`] out of candle's operations.
///
/// # Errors
/// A last dimension that is odd, and candle's own.
pub fn composed(x: &Tensor) -> Result<Tensor> {
    let half = half(x.dims())?;
    let u = x.narrow(D::Minus1, 0, half)?.contiguous()?;
    let v = x.narrow(D::Minus1, half, half)?.contiguous()?;
    let first = u.ge(&v)?;
    Tensor::cat(&[first.where_cond(&u, &v)?, first.where_cond(&v, &u)?], D::Minus1)
}

fn half(dims: &[usize]) -> Result<usize> {
    match dims.last() {
        Some(width) if *width > 0 && width.is_multiple_of(2) => Ok(width / 2),
        _ => bail!("max and min of the halves of {dims:?}: the last dimension must be even"),
    }
}

/// Orders the pairs of the halves of `x`: the larger is first. `order`, of half the length or empty, is
/// whether it was so before.
pub(super) fn sort<T: Real>(x: &mut [T], order: &mut [bool]) {
    let (first, second) = x.split_at_mut(x.len() / 2);
    simd(
        #[inline(always)]
        || {
            for (order, (u, v)) in order.iter_mut().zip(first.iter().zip(second.iter())) {
                *order = *u >= *v;
            }
            for (u, v) in first.iter_mut().zip(second.iter_mut()) {
                // NaN stays: where u is none of both, each of them stays somewhere.
                (*u, *v) = if *u >= *v { (*u, *v) } else { (*v, *u) };
            }
        },
    );
}

/// The pairs of the halves of `x` where they were before they were ordered.
pub(super) fn unsort<T: Real>(x: &mut [T], order: &[bool]) {
    let (first, second) = x.split_at_mut(x.len() / 2);
    simd(
        #[inline(always)]
        || {
            for (order, (u, v)) in order.iter().zip(first.iter_mut().zip(second.iter_mut())) {
                (*u, *v) = if *order { (*u, *v) } else { (*v, *u) };
            }
        },
    );
}

struct MaxMin;

/// `f` on the halves of each row of `x` and `y`, and of `out`, which it fills.
fn halves<T: Real>(
    out: &mut [T],
    x: &[T],
    y: &[T],
    width: usize,
    f: impl Fn(T, T, T, T) -> (T, T) + Send + Sync,
) {
    let rows = ROWS * width;
    let chunks = out.par_chunks_mut(rows).zip(x.par_chunks(rows)).zip(y.par_chunks(rows));
    chunks.for_each(|((out, x), y)| {
        let rows = out.chunks_mut(width).zip(x.chunks(width)).zip(y.chunks(width));
        for ((out, x), y) in rows {
            let half = width / 2;
            let ((a, b), (u, v), (g, h)) =
                (out.split_at_mut(half), x.split_at(half), y.split_at(half));
            simd(
                #[inline(always)]
                || {
                    for i in 0..half {
                        (a[i], b[i]) = f(u[i], v[i], g[i], h[i]);
                    }
                },
            );
        }
    });
}

impl Kernel for MaxMin {
    const NAME: &'static str = "max and min";
    type Saved<T: Real> = ();

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        half(inputs[0])?;
        Ok(inputs[0].to_vec())
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, ()) {
        let x = inputs[0].data;
        let mut out = vec![T::of(0.0); x.len()];
        // NaN stays: where u is none of both, each of them stays somewhere.
        halves(
            &mut out,
            x,
            x,
            inputs[0].width(),
            #[inline(always)]
            |u, v, _, _| if u >= v { (u, v) } else { (v, u) },
        );
        (out, ())
    }

    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        (): (),
        grad: &[T],
        _: &[bool],
    ) -> Vec<Vec<T>> {
        let x = inputs[0].data;
        let mut out = vec![T::of(0.0); x.len()];
        halves(
            &mut out,
            x,
            grad,
            inputs[0].width(),
            #[inline(always)]
            |u, v, g, h| if u >= v { (g, h) } else { (h, g) },
        );
        vec![out]
    }
}
