//! Heads that read earlier tokens at fixed offsets.

use candle_core::{D, Result, Tensor, bail};
use rayon::prelude::*;

use super::kernel::{Array, Kernel, apply};
use crate::linalg::simd::{simd, sum};
use crate::linalg::{Real, fused};

/// `y_t = concat_h (w_h z_{t−o_h, h})` for values z, `[batch, tokens, heads·head_dim]`, shares w,
/// `[1, heads]`, and the offsets o; zeros before the first token.
///
/// # Errors
/// Shapes that do not fit, and candle's own.
pub fn look_back(values: &Tensor, shares: &Tensor, offsets: &[usize]) -> Result<Tensor> {
    if fused(&[values, shares]) {
        apply(LookBack { offsets: offsets.to_vec() }, &[values, shares], true)
    } else {
        composed(values, shares, offsets)
    }
}

/// [`look_back`] out of candle's operations.
///
/// # Errors
/// Shapes that do not fit, and candle's own.
pub fn composed(values: &Tensor, shares: &Tensor, offsets: &[usize]) -> Result<Tensor> {
    let (batch, tokens, head_dim) = sizes(values.dims(), shares.dims(), offsets)?;
    let head = |(h, offset): (usize, &usize)| {
        let offset = (*offset).min(tokens);
        let own = values.narrow(D::Minus1, h * head_dim, head_dim)?;
        let seen = own.narrow(1, 0, tokens - offset)?;
        let zeros = Tensor::zeros((batch, offset, head_dim), values.dtype(), values.device())?;
        let moved = match (offset, tokens - offset) {
            (0, _) => seen.contiguous()?,
            (_, 0) => zeros,
            _ => Tensor::cat(&[zeros, seen.contiguous()?], 1)?,
        };
        moved.broadcast_mul(&shares.narrow(1, h, 1)?)
    };
    let heads = offsets.iter().enumerate().map(head).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&heads, D::Minus1)
}

/// Batch, tokens, and the width of a head.
fn sizes(values: &[usize], shares: &[usize], offsets: &[usize]) -> Result<(usize, usize, usize)> {
    let heads = offsets.len();
    match values {
        &[batch, tokens, width]
            if heads > 0 && width > 0 && width.is_multiple_of(heads) && shares == [1, heads] =>
        {
            Ok((batch, tokens, width / heads))
        }
        _ => bail!("{heads} heads at offsets: values {values:?}, shares {shares:?}"),
    }
}

struct LookBack {
    offsets: Vec<usize>,
}

impl LookBack {
    /// Calls `f` with each head, and each token of a sequence with the one that it reads, as the
    /// places where that head's part of them begins.
    #[inline(always)]
    fn pairs(&self, tokens: usize, width: usize, mut f: impl FnMut(usize, usize, usize)) {
        let head_dim = width / self.offsets.len();
        for (h, offset) in self.offsets.iter().enumerate() {
            for t in *offset..tokens {
                f(h, t * width + h * head_dim, (t - offset) * width + h * head_dim);
            }
        }
    }
}

impl Kernel for LookBack {
    const NAME: &'static str = "heads at offsets";
    type Saved<T: Real> = ();

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        sizes(inputs[0], inputs[1], &self.offsets)?;
        Ok(inputs[0].to_vec())
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, ()) {
        let (x, shares) = (inputs[0].data, inputs[1].data);
        let (tokens, width) = (inputs[0].dims[1], inputs[0].width());
        let head_dim = width / self.offsets.len();
        let mut out = vec![T::of(0.0); x.len()];
        let size = (tokens * width).max(1);
        out.par_chunks_mut(size).zip(x.par_chunks(size)).for_each(|(out, x)| {
            simd(
                #[inline(always)]
                || {
                    self.pairs(tokens, width, |h, to, from| {
                        let share = shares[h];
                        let (out, x) = (&mut out[to..][..head_dim], &x[from..][..head_dim]);
                        for (out, x) in out.iter_mut().zip(x) {
                            *out = share * *x;
                        }
                    });
                },
            );
        });
        (out, ())
    }

    /// `dz_{t−o_h, h} = w_h dy_{t, h}` and `dw_h = Σ dy_{t, h} · z_{t−o_h, h}`.
    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        (): (),
        grad: &[T],
        _: &[bool],
    ) -> Vec<Vec<T>> {
        let (x, shares) = (inputs[0].data, inputs[1].data);
        let (tokens, width) = (inputs[0].dims[1], inputs[0].width());
        let head_dim = width / self.offsets.len();
        let mut out = vec![T::of(0.0); x.len()];
        let size = (tokens * width).max(1);
        let chunks = out.par_chunks_mut(size).zip(x.par_chunks(size)).zip(grad.par_chunks(size));
        let parts: Vec<Vec<T>> = chunks
            .map(|((out, x), grad)| {
                let mut by_share = vec![T::of(0.0); shares.len()];
                simd(
                    #[inline(always)]
                    || {
                        self.pairs(tokens, width, |h, at, from| {
                            let share = shares[h];
                            let (g, x) = (&grad[at..][..head_dim], &x[from..][..head_dim]);
                            for (out, g) in out[from..][..head_dim].iter_mut().zip(g) {
                                *out = share * *g;
                            }
                            by_share[h] += sum(head_dim, |i| g[i] * x[i]);
                        });
                    },
                );
                by_share
            })
            .collect();
        // In order, so that sums do not depend on the number of threads.
        let mut by_share = vec![T::of(0.0); shares.len()];
        for part in parts {
            by_share.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
        vec![out, by_share]
    }
}
