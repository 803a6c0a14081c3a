//! Pooling over windows of images.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::kernel::{Array, Kernel, apply};
use crate::graph::{Pool, Pooling};
use crate::linalg::{Real, fused};

/// Pooling over the windows of `[batch, channels, height, width]`.
///
/// # Errors
/// Windows that do not fit, and candle's own.
pub fn pool(x: &Tensor, pool: &Pool) -> Result<Tensor> {
    let &Pool { pooling, window, stride, padding } = pool;
    run(x, PoolKernel { pooling, window: [window; 2], stride, padding })
}

/// Pooling over all pixels of `[batch, channels, height, width]`: `[batch, channels]`.
///
/// # Errors
/// As [`pool`].
pub fn global_pool(x: &Tensor, pooling: Pooling) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let kernel = PoolKernel { pooling, window: [height, width], stride: 1, padding: 0 };
    run(x, kernel)?.reshape((batch, channels))
}

fn run(x: &Tensor, kernel: PoolKernel) -> Result<Tensor> {
    if fused(&[x]) { apply(kernel, &[x], true) } else { kernel.composed(x) }
}

/// [`pool`] out of candle's operations.
///
/// # Errors
/// As [`pool`].
pub fn composed(x: &Tensor, pool: &Pool) -> Result<Tensor> {
    let &Pool { pooling, window, stride, padding } = pool;
    PoolKernel { pooling, window: [window; 2], stride, padding }.composed(x)
}

struct PoolKernel {
    pooling: Pooling,
    window: [usize; 2],
    stride: usize,
    padding: usize,
}

impl PoolKernel {
    /// How many windows there are along a side.
    fn count(&self, side: usize, window: usize) -> Result<usize> {
        match (side + 2 * self.padding).checked_sub(window) {
            Some(rest) if self.stride > 0 && window > 0 => Ok(rest / self.stride + 1),
            _ => bail!("pooling over windows of {window} on {side} pixels"),
        }
    }

    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let [tall, wide] = self.window;
        let (rows, columns) = (self.count(height, tall)?, self.count(width, wide)?);
        let p = self.padding;
        // What is not in the image counts as zeros; for a maximum as the pixel of the window that is
        // nearest.
        let (x, cut) = match self.pooling {
            Pooling::Max => (x.clone(), p),
            _ => (x.pad_with_zeros(2, p, p)?.pad_with_zeros(3, p, p)?, 0),
        };
        let places = |n: usize, u: usize, side: usize| {
            let at = |i: usize| (i * self.stride + u).saturating_sub(cut).min(side - 1) as u32;
            Tensor::new((0..n).map(at).collect::<Vec<_>>(), x.device())
        };
        let (height, width) = (x.dim(2)?, x.dim(3)?);
        let mut all: Option<Tensor> = None;
        for u in 0..tall {
            let row = x.contiguous()?.index_select(&places(rows, u, height)?, 2)?;
            for v in 0..wide {
                let part = row.index_select(&places(columns, v, width)?, 3)?;
                let part = if self.pooling == Pooling::L2 { part.sqr()? } else { part };
                all = Some(match all {
                    None => part,
                    Some(all) if self.pooling == Pooling::Max => {
                        all.ge(&part)?.where_cond(&all, &part)?
                    }
                    Some(all) => (all + part)?,
                });
            }
        }
        let Some(all) = all else { bail!("pooling over no pixels") };
        match self.pooling {
            Pooling::Average => all * (1.0 / (tall * wide) as f64),
            Pooling::Max => Ok(all),
            // The root has no gradient at 0, where there is none to pass on.
            Pooling::L2 => {
                let positive = all.gt(&all.zeros_like()?)?;
                let safe = positive.where_cond(&all, &all.ones_like()?)?;
                positive.where_cond(&safe.sqrt()?, &all.zeros_like()?)
            }
        }
    }

    /// Calls `f` with each window: its number, and its pixels.
    fn each(&self, dims: &[usize], mut f: impl FnMut(usize, &[usize])) {
        let (height, width) = (dims[2], dims[3]);
        let [tall, wide] = self.window;
        let (Ok(rows), Ok(columns)) = (self.count(height, tall), self.count(width, wide)) else {
            return;
        };
        let inside = |i: usize, u: usize, side: usize| {
            (i * self.stride + u).checked_sub(self.padding).filter(|at| *at < side)
        };
        let mut pixels = Vec::with_capacity(tall * wide);
        for i in 0..rows {
            for j in 0..columns {
                pixels.clear();
                for y in (0..tall).filter_map(|u| inside(i, u, height)) {
                    pixels.extend(
                        (0..wide).filter_map(|v| inside(j, v, width)).map(|x| y * width + x),
                    );
                }
                f(i * columns + j, &pixels);
            }
        }
    }

    fn value<T: Real>(&self, x: &[T], pixels: &[usize]) -> T {
        let mut sum = T::of(0.0);
        match self.pooling {
            Pooling::Average => {
                pixels.iter().for_each(|p| sum += x[*p]);
                sum * T::of(1.0 / (self.window[0] * self.window[1]) as f64)
            }
            Pooling::Max => x[largest(x, pixels)],
            Pooling::L2 => {
                pixels.iter().for_each(|p| sum += x[*p] * x[*p]);
                sum.sqrt()
            }
        }
    }
}

/// The first of the largest pixels; a NaN before all numbers.
fn largest<T: Real>(x: &[T], pixels: &[usize]) -> usize {
    let first = pixels.first().copied().unwrap_or(0);
    pixels.iter().fold(first, |best, p| {
        let (here, there) = (x[*p], x[best]);
        let is_nan = |x: T| x.partial_cmp(&x).is_none();
        if here > there || (is_nan(here) && !is_nan(there)) { *p } else { best }
    })
}

impl Kernel for PoolKernel {
    const NAME: &'static str = "pooling";
    type Saved<T: Real> = ();

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        let &[batch, channels, height, width] = inputs[0] else {
            bail!("pooling: input {:?}", inputs[0])
        };
        let [tall, wide] = self.window;
        Ok(vec![batch, channels, self.count(height, tall)?, self.count(width, wide)?])
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, ()) {
        let (x, dims) = (inputs[0].data, inputs[0].dims);
        let made = self.dims(&[dims]).map_or(0, |dims| dims[2] * dims[3]);
        let (plane, planes) = ((dims[2] * dims[3]).max(1), dims[0] * dims[1]);
        let mut out = vec![T::of(0.0); planes * made];
        let tasks = out.par_chunks_mut(made.max(1)).zip(x.par_chunks(plane)).with_min_len(8);
        tasks.for_each(|(out, x)| self.each(dims, |i, pixels| out[i] = self.value(x, pixels)));
        (out, ())
    }

    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        (): (),
        grad: &[T],
        _: &[bool],
    ) -> Vec<Vec<T>> {
        let (x, dims) = (inputs[0].data, inputs[0].dims);
        let made = self.dims(&[dims]).map_or(0, |dims| dims[2] * dims[3]);
        let plane = (dims[2] * dims[3]).max(1);
        let mut out = vec![T::of(0.0); x.len()];
        let tasks = out.par_chunks_mut(plane).zip(x.par_chunks(plane));
        let tasks = tasks.zip(grad.par_chunks(made.max(1))).with_min_len(8);
        tasks.for_each(|((out, x), grad)| {
            self.each(dims, |i, pixels| match self.pooling {
                Pooling::Average => {
                    let g = grad[i] * T::of(1.0 / (self.window[0] * self.window[1]) as f64);
                    pixels.iter().for_each(|p| out[*p] += g);
                }
                Pooling::Max => out[largest(x, pixels)] += grad[i],
                Pooling::L2 => {
                    let norm = self.value(x, pixels);
                    if norm > T::of(0.0) {
                        let g = grad[i] / norm;
                        pixels.iter().for_each(|p| out[*p] += g * x[*p]);
                    }
                }
            });
        });
        vec![out]
    }
}
