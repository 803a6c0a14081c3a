//! Rotary positions: each pair of coordinates is turned by an angle proportional to the token's position.

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::real::Real;
use super::{fused, slice, with_slices};
use crate::graph::{Pairing, Rotary};

/// Turns `x` of shape `[batch, tokens, heads, head_dim]`: pair i of token t by the angle `t·base^(−2i/head_dim)`, or t times
/// frequency i where frequencies are given.
///
/// Source: Su et al., *RoFormer*, eq. 15. A rotation, so it changes no norm.
///
/// # Errors
/// Candle's own, such as an odd `head_dim`.
pub fn rotary(x: &Tensor, rotary: &Rotary) -> Result<Tensor> {
    if fused(x) { x.contiguous()?.apply_op1(Turn { rotary: rotary.clone(), sign: 1.0 }) } else { composed(x, rotary) }
}

/// The angle a token of each pair of `head_dim` coordinates.
fn frequencies(rotary: &Rotary, head_dim: usize) -> Vec<f64> {
    let half = head_dim / 2;
    match &rotary.frequencies {
        Some(frequencies) => frequencies.clone(),
        None => (0..half).map(|i| rotary.base.powf(-(i as f64) / half as f64)).collect(),
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
    let frequencies = frequencies(rotary, width);
    let half = frequencies.len();
    let dim = 2 * half;
    if dim < width {
        let turned = Rotary { frequencies: Some(frequencies), ..rotary.clone() };
        let turned = composed(&x.narrow(D::Minus1, 0, dim)?.contiguous()?, &turned)?;
        return Tensor::cat(&[turned, x.narrow(D::Minus1, dim, width - dim)?], D::Minus1);
    }
    let angles = angles(&frequencies, tokens);
    let table = |f: fn(f64) -> f64, shape: &[usize]| {
        Tensor::from_vec(angles.iter().map(|a| f(*a)).collect::<Vec<_>>(), shape, x.device())?.to_dtype(x.dtype())
    };
    match rotary.pairing {
        Pairing::Half => {
            let (cos, sin) = (table(f64::cos, &[tokens, 1, half])?, table(f64::sin, &[tokens, 1, half])?);
            let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
            let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let second = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
            Tensor::cat(&[first, second], D::Minus1)
        }
        Pairing::Interleaved => {
            let (cos, sin) = (table(f64::cos, &[tokens, 1, half, 1])?, table(f64::sin, &[tokens, 1, half, 1])?);
            let pairs = x.reshape((batch, tokens, heads, half, 2))?;
            let (a, b) = (pairs.narrow(4, 0, 1)?, pairs.narrow(4, 1, 1)?);
            let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let second = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
            Tensor::cat(&[first, second], 4)?.reshape((batch, tokens, heads, dim))
        }
    }
}

struct Turn {
    rotary: Rotary,
    /// −1 turns back, which is the gradient: a rotation's transpose is its inverse.
    sign: f64,
}

impl Turn {
    fn apply<T: Real>(&self, x: &[T], tokens: usize, heads: usize, dim: usize) -> Vec<T> {
        let frequencies = frequencies(&self.rotary, dim);
        let half = frequencies.len();
        let turns: Vec<(T, T)> =
            angles(&frequencies, tokens).into_iter().map(|a| (T::of(a.cos()), T::of(self.sign * a.sin()))).collect();
        // Coordinates that are not turned stay as they are.
        let mut out = x.to_vec();
        let row = heads * dim;
        out.par_chunks_mut(row).zip(x.par_chunks(row)).enumerate().for_each(|(i, (out, x))| {
            let turns = &turns[(i % tokens) * half..][..half];
            for (out, x) in out.chunks_mut(dim).zip(x.chunks(dim)) {
                for (p, (cos, sin)) in turns.iter().enumerate() {
                    let (i, j) = match self.rotary.pairing {
                        Pairing::Half => (p, p + half),
                        Pairing::Interleaved => (2 * p, 2 * p + 1),
                    };
                    out[i] = x[i] * *cos - x[j] * *sin;
                    out[j] = x[i] * *sin + x[j] * *cos;
                }
            }
        });
        out
    }
}

impl CustomOp1 for Turn {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, tokens, heads, dim) = layout.shape().dims4()?;
        if self.rotary.frequencies.as_ref().map_or(dim % 2 != 0, |f| 2 * f.len() > dim) {
            bail!("rotary positions do not fit a head_dim of {dim}")
        }
        let out = match storage {
            CpuStorage::F32(_) => CpuStorage::F32(self.apply(slice(storage, layout)?, tokens, heads, dim)),
            CpuStorage::F64(_) => CpuStorage::F64(self.apply(slice(storage, layout)?, tokens, heads, dim)),
            _ => bail!("the fused rotary positions run in f32 and f64"),
        };
        Ok((out, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, tokens, heads, dim) = x.dims4()?;
        let grad = grad.contiguous()?;
        let back = Turn { rotary: self.rotary.clone(), sign: -self.sign };
        let out = match x.dtype() {
            DType::F32 => {
                let out = with_slices::<f32, _>(&[&grad], |s| back.apply(s[0], tokens, heads, dim))?;
                Tensor::from_vec(out, x.shape(), x.device())?
            }
            _ => {
                let out = with_slices::<f64, _>(&[&grad], |s| back.apply(s[0], tokens, heads, dim))?;
                Tensor::from_vec(out, x.shape(), x.device())?
            }
        };
        Ok(Some(out))
    }
}
