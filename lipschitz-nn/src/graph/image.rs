//! Nodes on images: convolutions, shifts, pooling; and what they make of an image's sizes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Op;

fn one() -> usize {
    1
}

/// A convolution with square kernels: output channel o at (i, j) is
///
/// ```text
/// b_o + Σ_{c, u, v} W[o, c, u, v] · x[c, i·stride + u − padding, j·stride + v − padding].
/// ```
///
/// Outside of the image x is zero, or goes round. Its `weight` is the kernel as a matrix, `[outputs,
/// inputs/groups·kernel²]`: PyTorch's `[outputs, inputs/groups, kernel, kernel]`, with the last three
/// as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Convolution {
    /// Channels in.
    pub inputs: usize,
    /// Channels out.
    pub outputs: usize,
    /// Side of a kernel, in pixels.
    pub kernel: usize,
    /// Pixels from one place of the kernel to the next.
    #[serde(default = "one")]
    pub stride: usize,
    /// Pixels around the image.
    #[serde(default)]
    pub padding: usize,
    /// Whether the image goes round in place of zeros around it.
    #[serde(default)]
    pub circular: bool,
    /// Groups of channels, each of which is read by its share of the outputs alone.
    #[serde(default = "one")]
    pub groups: usize,
    /// Whether there is a `b`.
    pub bias: bool,
}

impl Convolution {
    /// A kernel of odd side at every pixel, with zeros around the image, so that its sides stay as
    /// they are.
    pub fn same(inputs: usize, outputs: usize, kernel: usize) -> Self {
        let (stride, groups, padding) = (1, 1, kernel / 2);
        Self { inputs, outputs, kernel, stride, padding, circular: false, groups, bias: true }
    }

    /// The shape of its weight.
    pub fn weight(&self) -> [usize; 2] {
        [self.outputs, self.inputs / self.groups.max(1) * self.kernel * self.kernel]
    }

    /// Where row (or column) u of the kernel is in squares of `square` pixels: which square, counted
    /// from that of the output's own place, and which pixel of it.
    pub fn place(&self, u: usize, square: usize) -> (i64, usize) {
        let (at, square) = (u as i64 - self.padding as i64, square.max(1) as i64);
        (at.div_euclid(square), at.rem_euclid(square) as usize)
    }

    /// How many outputs read a pixel along a side of this length, at most. Where an image goes round
    /// and its side is no multiple of the stride, the first and the last are nearer to each other.
    pub fn overlap(&self, side: usize) -> usize {
        if self.circular && !side.is_multiple_of(self.stride.max(1)) {
            self.kernel
        } else {
            self.kernel.div_ceil(self.stride.max(1))
        }
    }

    /// One side of its output, if the kernel fits.
    pub fn side(&self, side: usize) -> Option<usize> {
        let padded = self.padding.checked_mul(2)?.checked_add(side)?;
        Some(padded.checked_sub(self.kernel)? / self.stride.max(1) + 1)
    }
}

/// What becomes of the pixels of a window, for each channel alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their mean; pixels around the image count as zeros.
    Average,
    /// The largest; pixels around the image do not count.
    Max,
    /// Their ℓ2 norm.
    L2,
}

impl Pooling {
    /// In a word.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Average => "average",
            Self::Max => "max",
            Self::L2 => "ℓ2",
        }
    }
}

/// Pooling over square windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pool {
    /// What becomes of a window.
    pub pooling: Pooling,
    /// Side of a window, in pixels.
    pub window: usize,
    /// Pixels from one window to the next.
    pub stride: usize,
    /// Pixels around the image, at most half of a window.
    #[serde(default)]
    pub padding: usize,
}

impl Pool {
    /// One side of its output, if a window fits.
    pub fn side(&self, side: usize) -> Option<usize> {
        let padded = self.padding.checked_mul(2)?.checked_add(side)?;
        Some(padded.checked_sub(self.window)? / self.stride.max(1) + 1)
    }
}

impl Op {
    /// The channels and sides of the image that a node makes out of one of these; none where it makes
    /// none, or is made of others.
    pub fn image([channels, height, width]: [usize; 3], op: &Self) -> Option<[usize; 3]> {
        match op {
            Op::Conv(c) => Some([c.outputs, c.side(height)?, c.side(width)?]),
            Op::Pool(pool) => Some([channels, pool.side(height)?, pool.side(width)?]),
            Op::SpaceToDepth { size } => {
                let fits = *size > 0 && height % size == 0 && width % size == 0;
                let channels = channels.checked_mul(size.checked_mul(*size)?)?;
                fits.then(|| [channels, height / size, width / size])
            }
            Op::Shift { .. }
            | Op::Activation { .. }
            | Op::Scale { .. }
            | Op::SoftCap { .. }
            | Op::Clip { .. }
            | Op::MaxMin => Some([channels, height, width]),
            _ => None,
        }
    }
}
