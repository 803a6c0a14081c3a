//! Pixels that change their places: shifts of channels, and squares of pixels as channels.

use candle_core::{Result, Tensor, bail};

use super::image_chain::{ImageLayer, image_chain};
use crate::linalg::{Precision, Real};

/// Each of as many groups of the channels of `[batch, channels, height, width]` as there are offsets,
/// moved by its own, in pixels down and to the right; zeros come in, or what leaves at the other
/// side.
///
/// # Errors
/// Channels that the groups do not divide, and candle's own.
pub fn shift(x: &Tensor, offsets: &[[i32; 2]], circular: bool) -> Result<Tensor> {
    let layer = ImageLayer::Shift { offsets: offsets.to_vec(), circular };
    image_chain(x, &[layer], Precision::F32, true)
}

/// [`shift`] out of candle's operations.
///
/// # Errors
/// As [`shift`].
pub fn composed(x: &Tensor, offsets: &[[i32; 2]], circular: bool) -> Result<Tensor> {
    let (_, channels, height, width) = x.dims4()?;
    let group = group([channels, height, width], offsets.len())?;
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
pub(super) fn group(image: [usize; 3], groups: usize) -> Result<usize> {
    let [channels, height, width] = image;
    if groups == 0 || !channels.is_multiple_of(groups) || height == 0 || width == 0 {
        bail!("a shift of {groups} groups of the channels of {image:?}")
    }
    Ok(channels / groups)
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

/// The parts of a side that moves forward: from where, to where, how many.
fn parts(n: usize, by: i32, circular: bool) -> Vec<[usize; 3]> {
    if circular {
        let cut = by.rem_euclid(n as i32) as usize;
        return vec![[0, cut, n - cut], [n - cut, 0, cut]];
    }
    let cut = (by.unsigned_abs() as usize).min(n);
    vec![if by > 0 { [0, cut, n - cut] } else { [cut, 0, n - cut] }]
}

/// All of `[channels, images, pixels]` moved by the offsets, or back.
pub(super) fn moved<T: Real>(
    x: &[T],
    [height, width]: [usize; 2],
    (offsets, circular): (&[[i32; 2]], bool),
    back: bool,
    out: &mut [T],
) {
    if !circular {
        out.fill(T::of(0.0));
    }
    let plane = (height * width).max(1);
    // Planes of a group: those of all images.
    let group = (x.len() / plane / offsets.len().max(1)).max(1);
    for ((out, x), [down, right]) in
        out.chunks_mut(group * plane).zip(x.chunks(group * plane)).zip(offsets)
    {
        let sign = if back { -1 } else { 1 };
        if [*down, *right] == [0, 0] {
            out.copy_from_slice(x);
            continue;
        }
        let (rows, columns) =
            (parts(height, sign * down, circular), parts(width, sign * right, circular));
        for (out, x) in out.chunks_mut(plane).zip(x.chunks(plane)) {
            for [from, to, n] in &rows {
                let (out, x) = (&mut out[to * width..], &x[from * width..]);
                if *right == 0 {
                    // Rows follow each other.
                    out[..n * width].copy_from_slice(&x[..n * width]);
                    continue;
                }
                for (out, x) in out.chunks_mut(width).zip(x.chunks(width)).take(*n) {
                    for [from, to, n] in &columns {
                        match n {
                            1 => out[*to] = x[*from],
                            n => out[*to..to + n].copy_from_slice(&x[*from..from + n]),
                        }
                    }
                }
            }
        }
    }
}
