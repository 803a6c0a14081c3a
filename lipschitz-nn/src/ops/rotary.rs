//! Rotary positions: each pair of coordinates is rotated by an angle proportional to the token's
//! position.

use candle_core::{D, Result, Tensor, bail};
use rayon::prelude::*;

use super::kernel::{Array, Kernel, apply};
use crate::graph::{Pairing, Rotary};
use crate::linalg::simd::simd;
use crate::linalg::{Real, fused};

/// Rotates `x` of shape `[batch, tokens, heads, head_dim]`: pair i of token t by the angle
/// `t·base^(−2i/head_dim)`, or t times frequency i where frequencies are given.
///
/// Source: Su et al., *RoFormer*, eq. 15. A rotation, so it changes no norm.
///
/// # Errors
/// Candle's own, such as an odd `head_dim`.
pub fn rotary(x: &Tensor, rotary: &Rotary) -> Result<Tensor> {
    if fused(&[x]) {
        apply(Turn { rotary: rotary.clone() }, &[x], true)
    } else {
        composed(x, rotary)
    }
}

fn angles(frequencies: &[f64], tokens: usize) -> Vec<f64> {
    (0..tokens).flat_map(|t| frequencies.iter().map(move |f| t as f64 * f)).collect()
}

/// The same out of candle's operations.
///
/// # Errors
/// Candle's own, such as an odd `head_dim`.
pub fn composed(x: &Tensor, rotary: &Rotary) -> Result<Tensor> {
    let (batch, tokens, heads, width) = x.dims4()?;
    let frequencies = rotary.per_token(width);
    let half = frequencies.len();
    let dim = 2 * half;
    if dim < width {
        let turned = Rotary { frequencies: Some(frequencies), ..rotary.clone() };
        let turned = composed(&x.narrow(D::Minus1, 0, dim)?.contiguous()?, &turned)?;
        return Tensor::cat(&[turned, x.narrow(D::Minus1, dim, width - dim)?], D::Minus1);
    }
    let angles = angles(&frequencies, tokens);
    let table = |f: fn(f64) -> f64, shape: &[usize]| {
        Tensor::from_vec(angles.iter().map(|a| f(*a)).collect::<Vec<_>>(), shape, x.device())?
            .to_dtype(x.dtype())
    };
    match rotary.pairing {
        Pairing::Half => {
            let (cos, sin) =
                (table(f64::cos, &[tokens, 1, half])?, table(f64::sin, &[tokens, 1, half])?);
            let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
            let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let second = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
            Tensor::cat(&[first, second], D::Minus1)
        }
        Pairing::Interleaved => {
            let (cos, sin) =
                (table(f64::cos, &[tokens, 1, half, 1])?, table(f64::sin, &[tokens, 1, half, 1])?);
            let pairs = x.reshape((batch, tokens, heads, half, 2))?;
            let (a, b) = (pairs.narrow(4, 0, 1)?, pairs.narrow(4, 1, 1)?);
            let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let second = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
            Tensor::cat(&[first, second], 4)?.reshape((batch, tokens, heads, dim))
        }
    }
}

/// Cosines and sines for every token and pair.
pub(super) struct Turns<T> {
    pairing: Pairing,
    half: usize,
    cos: Vec<T>,
    sin: Vec<T>,
}

impl<T: Real> Turns<T> {
    pub(super) fn new(rotary: &Rotary, tokens: usize, head_dim: usize) -> Self {
        let frequencies = rotary.per_token(head_dim);
        let angles = angles(&frequencies, tokens);
        Self {
            pairing: rotary.pairing,
            half: frequencies.len(),
            cos: angles.iter().map(|a| T::of(a.cos())).collect(),
            sin: angles.iter().map(|a| T::of(a.sin())).collect(),
        }
    }

    /// Rotates one head of one token in place; backwards if `sign` is −1, which is the gradient:
    /// the transpose of a rotation is its inverse. Coordinates beyond the pairs stay as they are.
    #[inline(always)]
    pub(super) fn apply(&self, x: &mut [T], token: usize, sign: f64) {
        let (half, sign) = (self.half, T::of(sign));
        let cos = &self.cos[token * half..][..half];
        let sin = &self.sin[token * half..][..half];
        match self.pairing {
            Pairing::Half => {
                let (first, rest) = x.split_at_mut(half);
                for (((a, b), cos), sin) in
                    first.iter_mut().zip(&mut rest[..half]).zip(cos).zip(sin)
                {
                    let sin = *sin * sign;
                    (*a, *b) = (*a * *cos - *b * sin, *a * sin + *b * *cos);
                }
            }
            Pairing::Interleaved => {
                for ((pair, cos), sin) in x.chunks_exact_mut(2).zip(cos).zip(sin) {
                    let (a, b, sin) = (pair[0], pair[1], *sin * sign);
                    (pair[0], pair[1]) = (a * *cos - b * sin, a * sin + b * *cos);
                }
            }
        }
    }
}

struct Turn {
    rotary: Rotary,
}

impl Turn {
    fn run<T: Real>(&self, x: &[T], dims: &[usize], sign: f64) -> Vec<T> {
        let (tokens, heads, dim) = (dims[1], dims[2], dims[3]);
        let turns = Turns::new(&self.rotary, tokens, dim);
        let mut out = x.to_vec();
        out.par_chunks_mut(heads * dim).enumerate().for_each(|(i, out)| {
            simd(
                #[inline(always)]
                || {
                    for head in out.chunks_mut(dim) {
                        turns.apply(head, i % tokens, sign);
                    }
                },
            );
        });
        out
    }
}

/// Whether these frequencies fit a head of this width.
pub(super) fn fits(rotary: &Rotary, dim: usize) -> bool {
    rotary.frequencies.as_ref().map_or(dim.is_multiple_of(2), |f| 2 * f.len() <= dim)
}

impl Kernel for Turn {
    const NAME: &'static str = "rotary positions";
    type Saved<T: Real> = ();

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        match *inputs[0] {
            [_, _, _, dim] if fits(&self.rotary, dim) => Ok(inputs[0].to_vec()),
            ref found => bail!("rotary positions do not fit {found:?}"),
        }
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, ()) {
        (self.run(inputs[0].data, inputs[0].dims, 1.0), ())
    }

    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        (): (),
        grad: &[T],
        _: &[bool],
    ) -> Vec<Vec<T>> {
        vec![self.run(grad, inputs[0].dims, -1.0)]
    }
}
