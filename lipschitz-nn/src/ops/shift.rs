//! Pixels that change their places: shifts of channels, and squares of pixels as channels.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::kernel::{Array, Kernel, apply};
use crate::linalg::{Real, fused};

/// Each of as many groups of the channels of `[batch, channels, height, width]` as there are offsets,
/// moved by its own, in pixels down and to the right; zeros come in, or what leaves at the other
/// side.
///
/// # Errors
/// Channels that the groups do not divide, and candle's own.
pub fn shift(x: &Tensor, offsets: &[[i32; 2]], circular: bool) -> Result<Tensor> {
    if fused(&[x]) {
        apply(Shift { offsets: offsets.to_vec(), circular }, &[x], true)
    } else {
        composed(x, offsets, circular)
    }
}

/// [`shift`] out of candle's operations.
///
/// # Errors
/// As [`shift`].
pub fn composed(x: &Tensor, offsets: &[[i32; 2]], circular: bool) -> Result<Tensor> {
    let group = group(x.dims(), offsets.len())?;
    let moved = |(i, [down, right]): (usize, &[i32; 2])| {
        let x = x.narrow(1, i * group, group)?;
        roll(&roll(&x, 2, *down, circular)?, 3, *right, circular)
    };
    let groups = offsets.iter().enumerate().map(moved).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&groups, 1)
}

/// One side of an image, moved forward.
fn roll(x: &Tensor, side: usize, by: i32, circular: bool) -> Result<Tensor> {
    let n = x.dim(side)?;
    let cut = if circular {
        by.rem_euclid(n as i32) as usize
    } else {
        (by.unsigned_abs() as usize).min(n)
    };
    if cut == 0 {
        return x.contiguous();
    }
    let part = |from: usize, n: usize| x.narrow(side, from, n)?.contiguous();
    if circular {
        return Tensor::cat(&[part(n - cut, cut)?, part(0, n - cut)?], side);
    }
    if cut == n {
        // Zeros that a gradient passes, as it passes those that come in.
        return x * x.zeros_like()?;
    }
    if by > 0 {
        part(0, n - cut)?.pad_with_zeros(side, cut, 0)
    } else {
        part(cut, n - cut)?.pad_with_zeros(side, 0, cut)
    }
}

/// Channels of a group.
fn group(dims: &[usize], groups: usize) -> Result<usize> {
    match dims {
        [_, channels, h, w]
            if groups > 0 && channels.is_multiple_of(groups) && *h > 0 && *w > 0 =>
        {
            Ok(channels / groups)
        }
        _ => bail!("a shift of {groups} groups of the channels of {dims:?}"),
    }
}

/// Squares of pixels as channels: `[batch, c, h, w]` to `[batch, c·size², h/size, w/size]`.
///
/// # Errors
/// Candle's own, such as sides that are no multiples.
pub fn space_to_depth(x: &Tensor, size: usize) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let (rows, columns) = (h / size.max(1), w / size.max(1));
    let squares = x.reshape((b, c, rows, size, columns, size))?.permute((0, 1, 3, 5, 2, 4))?;
    squares.contiguous()?.reshape((b, c * size * size, rows, columns))
}

struct Shift {
    offsets: Vec<[i32; 2]>,
    circular: bool,
}

/// The parts of a side that moves forward: from where, to where, how many.
fn parts(n: usize, by: i32, circular: bool) -> Vec<[usize; 3]> {
    if circular {
        let cut = by.rem_euclid(n as i32) as usize;
        return vec![[0, cut, n - cut], [n - cut, 0, cut]];
    }
    let cut = (by.unsigned_abs() as usize).min(n);
    vec![if by > 0 { [0, cut, n - cut] } else { [cut, 0, n - cut] }]
}

impl Shift {
    /// Moves all of an array by the offsets, or back.
    fn run<T: Real>(&self, x: &[T], dims: &[usize], back: bool) -> Vec<T> {
        let (channels, height, width) = (dims[1], dims[2], dims[3]);
        let group = channels / self.offsets.len();
        let mut out = vec![T::of(0.0); x.len()];
        let plane = (height * width).max(1);
        let planes = out.par_chunks_mut(plane).zip(x.par_chunks(plane)).with_min_len(8);
        planes.enumerate().for_each(|(i, (out, x))| {
            let [down, right] = self.offsets[i % channels / group];
            let sign = if back { -1 } else { 1 };
            let columns = parts(width, sign * right, self.circular);
            for [from, to, n] in parts(height, sign * down, self.circular) {
                for row in 0..n {
                    let (from, to) = ((from + row) * width, (to + row) * width);
                    for [at, there, n] in &columns {
                        let (from, to) = (from + at, to + there);
                        out[to..to + n].copy_from_slice(&x[from..from + n]);
                    }
                }
            }
        });
        out
    }
}

impl Kernel for Shift {
    const NAME: &'static str = "shift";
    type Saved<T: Real> = ();

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        group(inputs[0], self.offsets.len())?;
        Ok(inputs[0].to_vec())
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, ()) {
        (self.run(inputs[0].data, inputs[0].dims, false), ())
    }

    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        (): (),
        grad: &[T],
        _: &[bool],
    ) -> Vec<Vec<T>> {
        vec![self.run(grad, inputs[0].dims, true)]
    }
}
