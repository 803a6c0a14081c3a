//! Softmax attention, a block of queries at a time, with the probabilities recomputed for the gradient.

use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::gemm::{Strided, gemm};
use super::real::Real;
use super::{fused, slice, with_slices};

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    None,
    /// Its own position and earlier ones.
    Causal,
    /// Those less than `window` positions away, on both sides or behind it.
    Near {
        /// Distances below this are seen.
        window: usize,
        /// Whether later positions are hidden.
        causal: bool,
    },
}

impl Mask {
    fn hides(self, query: usize, key: usize) -> bool {
        match self {
            Self::None => false,
            Self::Causal => key > query,
            Self::Near { window, causal } => query.abs_diff(key) >= window || causal && key > query,
        }
    }
}

/// `softmax(cap(scale · q kᵀ) + bias + mask) v`, head by head, where `cap` is [`super::soft_cap`] or nothing, and `bias` is
/// `[heads, tokens, tokens]`.
///
/// `q` is `[batch, tokens, heads, head_dim]`, `k` and `v` are `[batch, tokens, key_value_heads, head_dim]` and each
/// serves `heads / key_value_heads` neighbouring query heads; the result has the shape of `q`.
///
/// # Errors
/// Shapes that do not fit, and candle's own.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    cap: Option<f64>,
    mask: Mask,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    if fused(q) && cap.is_none() && bias.is_none() && !matches!(mask, Mask::Near { .. }) {
        q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, Attention { scale, mask })
    } else {
        composed(q, k, v, scale, cap, mask, bias)
    }
}

/// The same out of candle's operations.
///
/// # Errors
/// Candle's own.
pub fn composed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    cap: Option<f64>,
    mask: Mask,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let dims = Dims::of(q.shape(), k.shape(), v.shape())?;
    let heads_first = |x: &Tensor| x.transpose(1, 2)?.contiguous();
    let repeat = |x: &Tensor| -> Result<Tensor> {
        let x = heads_first(x)?;
        let (b, g, t, d) = x.dims4()?;
        let wide = x.unsqueeze(2)?.broadcast_as((b, g, dims.group(), t, d))?.contiguous()?;
        wide.reshape((b, dims.heads, t, d))
    };
    let (q, k, v) = (heads_first(q)?, repeat(k)?, repeat(v)?);
    let mut logits = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * scale)?;
    if let Some(cap) = cap {
        logits = super::soft_cap(&logits, cap)?;
    }
    if let Some(bias) = bias {
        logits = logits.broadcast_add(bias)?;
    }
    if mask != Mask::None {
        let t = dims.tokens;
        let hidden = |i| if mask.hides(i / t, i % t) { f32::NEG_INFINITY } else { 0.0 };
        let rows = (0..t * t).map(hidden).collect::<Vec<_>>();
        logits = logits.broadcast_add(&Tensor::from_vec(rows, (t, t), q.device())?.to_dtype(q.dtype())?)?;
    }
    candle_nn::ops::softmax(&logits, D::Minus1)?.matmul(&v)?.transpose(1, 2)?.contiguous()
}

#[derive(Clone, Copy)]
struct Dims {
    tokens: usize,
    heads: usize,
    key_value_heads: usize,
    dim: usize,
}

impl Dims {
    fn of(q: &Shape, k: &Shape, v: &Shape) -> Result<Self> {
        let (batch, tokens, heads, dim) = q.dims4()?;
        let (key_batch, key_tokens, key_value_heads, key_dim) = k.dims4()?;
        let fits = key_value_heads > 0 && heads % key_value_heads == 0;
        if k != v || (batch, tokens, dim) != (key_batch, key_tokens, key_dim) || !fits {
            bail!("attention: queries {q:?}, keys {k:?} and values {v:?} do not fit together")
        }
        Ok(Self { tokens, heads, key_value_heads, dim })
    }

    fn group(&self) -> usize {
        self.heads / self.key_value_heads
    }

    /// Elements of one sequence's queries, and of its keys.
    fn sizes(&self) -> (usize, usize) {
        (self.tokens * self.heads * self.dim, self.tokens * self.key_value_heads * self.dim)
    }
}

struct Attention {
    scale: f64,
    mask: Mask,
}

/// Queries at a time: keeps a block of probabilities in cache, and skips most of what a causal mask hides.
const BLOCK: usize = 64;

impl Attention {
    /// Calls `visit(query head, key head, first query, queries, keys)` for each block.
    fn blocks(&self, d: Dims, mut visit: impl FnMut(usize, usize, usize, usize, usize)) {
        for head in 0..d.heads {
            for first in (0..d.tokens).step_by(BLOCK) {
                let rows = BLOCK.min(d.tokens - first);
                let keys = if self.mask == Mask::Causal { first + rows } else { d.tokens };
                visit(head, head / d.group(), first, rows, keys);
            }
        }
    }

    /// The probabilities of one block, `[rows, keys]`.
    fn probabilities<T: Real>(&self, p: &mut [T], q: Strided<T>, k: Strided<T>, first: usize) {
        let (keys, negligible) = (k.rows, T::of(1e-26));
        gemm(p, keys, q, k.t(), 0.0, self.scale, false);
        for (i, row) in p.chunks_mut(keys).enumerate() {
            let seen = if self.mask == Mask::Causal { first + i + 1 } else { keys };
            let (row, hidden) = row.split_at_mut(seen);
            // NaN logits give NaN probabilities: `max` would drop a NaN, the sum keeps it.
            let max = row.iter().fold(row[0], |m, x| if *x > m { *x } else { m });
            let mut sum = T::of(0.0);
            for x in row.iter_mut() {
                let e = (*x - max).exp();
                // Far below the rounding of the sum; kept, its products would be denormal, which processors are slow at.
                *x = if e < negligible { T::of(0.0) } else { e };
            }
            for x in row.iter() {
                sum += *x;
            }
            let inverse = T::of(1.0) / sum;
            row.iter_mut().for_each(|x| *x *= inverse);
            hidden.fill(T::of(0.0));
        }
    }

    fn forward<T: Real>(&self, d: Dims, q: &[T], k: &[T], v: &[T]) -> Vec<T> {
        let (queries, keys) = d.sizes();
        let mut out = vec![T::of(0.0); q.len()];
        out.par_chunks_mut(queries)
            .zip(q.par_chunks(queries))
            .zip(k.par_chunks(keys).zip(v.par_chunks(keys)))
            .for_each(|((out, q), (k, v))| {
                let mut p = vec![T::of(0.0); BLOCK * d.tokens];
                let (row, key_row) = (d.heads * d.dim, d.key_value_heads * d.dim);
                self.blocks(d, |head, group, first, rows, keys| {
                    let p = &mut p[..rows * keys];
                    let at = first * row + head * d.dim;
                    let k = Strided::rows(&k[group * d.dim..], keys, d.dim, key_row);
                    let v = Strided::rows(&v[group * d.dim..], keys, d.dim, key_row);
                    self.probabilities(p, Strided::rows(&q[at..], rows, d.dim, row), k, first);
                    gemm(&mut out[at..], row, Strided::rows(p, rows, keys, keys), v, 0.0, 1.0, false);
                });
            });
        out
    }

    /// With P the probabilities: `dv = Pᵀ do`, `dS = P ∘ (do vᵀ − rowsum(P ∘ do vᵀ))`, `dq = scale·dS k`, `dk = scale·dSᵀ q`.
    fn backward<T: Real>(&self, d: Dims, q: &[T], k: &[T], v: &[T], grad: &[T]) -> [Vec<T>; 3] {
        let (queries, keys) = d.sizes();
        let mut dq = vec![T::of(0.0); q.len()];
        let mut dk = vec![T::of(0.0); k.len()];
        let mut dv = vec![T::of(0.0); v.len()];
        let out = dq.par_chunks_mut(queries).zip(dk.par_chunks_mut(keys)).zip(dv.par_chunks_mut(keys));
        let input = q.par_chunks(queries).zip(k.par_chunks(keys)).zip(v.par_chunks(keys)).zip(grad.par_chunks(queries));
        out.zip(input).for_each(|(((dq, dk), dv), (((q, k), v), grad))| {
            let mut p = vec![T::of(0.0); BLOCK * d.tokens];
            let mut ds = p.clone();
            let (row, key_row) = (d.heads * d.dim, d.key_value_heads * d.dim);
            self.blocks(d, |head, group, first, rows, keys| {
                let (p, ds) = (&mut p[..rows * keys], &mut ds[..rows * keys]);
                let (at, key_at) = (first * row + head * d.dim, group * d.dim);
                let k = Strided::rows(&k[key_at..], keys, d.dim, key_row);
                let v = Strided::rows(&v[key_at..], keys, d.dim, key_row);
                let q = Strided::rows(&q[at..], rows, d.dim, row);
                let grad = Strided::rows(&grad[at..], rows, d.dim, row);
                self.probabilities(p, q, k, first);
                gemm(&mut dv[key_at..], key_row, Strided::rows(p, rows, keys, keys).t(), grad, 1.0, 1.0, false);
                gemm(ds, keys, grad, v.t(), 0.0, 1.0, false);
                for (p, ds) in p.chunks(keys).zip(ds.chunks_mut(keys)) {
                    let mut mean = T::of(0.0);
                    for (p, ds) in p.iter().zip(ds.iter()) {
                        mean += *p * *ds;
                    }
                    for (p, ds) in p.iter().zip(ds.iter_mut()) {
                        *ds = *p * (*ds - mean);
                    }
                }
                let ds = Strided::rows(&*ds, rows, keys, keys);
                gemm(&mut dq[at..], row, ds, k, 0.0, self.scale, false);
                gemm(&mut dk[key_at..], key_row, ds.t(), q, 1.0, self.scale, false);
            });
        });
        [dq, dk, dv]
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let d = Dims::of(ql.shape(), kl.shape(), vl.shape())?;
        let out = match q {
            CpuStorage::F32(_) => CpuStorage::F32(self.forward(d, slice(q, ql)?, slice(k, kl)?, slice(v, vl)?)),
            CpuStorage::F64(_) => CpuStorage::F64(self.forward(d, slice(q, ql)?, slice(k, kl)?, slice(v, vl)?)),
            _ => bail!("the fused attention runs in f32 and f64"),
        };
        Ok((out, ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let d = Dims::of(q.shape(), k.shape(), v.shape())?;
        let all = [&q.contiguous()?, &k.contiguous()?, &v.contiguous()?, &grad.contiguous()?];
        let [dq, dk, dv] = match q.dtype() {
            DType::F32 => tensors(with_slices::<f32, _>(&all, |s| self.backward(d, s[0], s[1], s[2], s[3]))?, q, k)?,
            _ => tensors(with_slices::<f64, _>(&all, |s| self.backward(d, s[0], s[1], s[2], s[3]))?, q, k)?,
        };
        Ok((Some(dq), Some(dk), Some(dv)))
    }
}

fn tensors<T: Real>([dq, dk, dv]: [Vec<T>; 3], q: &Tensor, k: &Tensor) -> Result<[Tensor; 3]> {
    let tensor = |data, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device());
    Ok([tensor(dq, q)?, tensor(dk, k)?, tensor(dv, k)?])
}
