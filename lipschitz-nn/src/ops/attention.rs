//! Softmax attention, a block of queries at a time, with the probabilities recomputed for the
//! gradient.

use std::ops::Range;

use candle_core::{D, DType, Result, Tensor, bail};
use rayon::prelude::*;

use super::documents::Documents;
use super::kernel::{Array, Kernel, apply};
use crate::gpu::{self, Argument, Launch, OnGpu, Work, arguments};
use crate::graph::Stage;
use crate::linalg::simd::{max, simd, sum};
use crate::linalg::{Precision, Real, Strided, fused, matmul};

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
    /// What is added to logits `[…, tokens, tokens]`: −∞ where a key is hidden, made on their
    /// device; nothing if none is.
    fn added(self, tokens: usize, logits: &Tensor) -> Result<Option<Tensor>> {
        let (device, tokens) = (logits.device(), tokens as u32);
        let at = Tensor::arange(0, tokens, device)?.to_dtype(DType::F32)?;
        let ahead = at.unsqueeze(0)?.broadcast_sub(&at.unsqueeze(1)?)?;
        let hidden = match self {
            Self::None => return Ok(None),
            Self::Causal => ahead.gt(0f32)?,
            Self::Near { window, causal: false } => ahead.abs()?.ge(window as f32)?,
            Self::Near { window, causal: true } => {
                ahead.gt(0f32)?.maximum(&ahead.le(-(window as f32))?)?
            }
        };
        let infinite = Tensor::full(f32::NEG_INFINITY, hidden.dims(), device)?;
        Ok(Some(hidden.where_cond(&infinite, &infinite.zeros_like()?)?.to_dtype(logits.dtype())?))
    }
}

/// What happens to `q kᵀ` before the softmax, and which keys a query sees.
#[derive(Clone, Copy, Debug)]
pub struct Scores<'a> {
    /// Factor on `q kᵀ`.
    pub scale: f64,
    /// Cap of [`super::soft_cap`], applied to the scaled logits.
    pub cap: Option<f64>,
    /// Added to the capped logits, as [`super::position_bias`] makes it.
    pub bias: Option<&'a Tensor>,
    /// Which keys a query sees.
    pub mask: Mask,
    /// Where documents begin: a query sees only keys of its own.
    pub documents: Option<&'a Documents>,
    /// The precision of the products.
    pub precision: Precision,
}

impl Scores<'_> {
    /// Scaled and masked logits, nothing else.
    pub fn new(scale: f64, mask: Mask) -> Self {
        Self { scale, cap: None, bias: None, mask, documents: None, precision: Precision::F32 }
    }
}

/// `softmax(cap(scale · q kᵀ) + bias + mask) v`, head by head; see [`Scores`].
///
/// `q` is `[batch, tokens, heads, head_dim]`, `k` and `v` are `[batch, tokens, key_value_heads,
/// head_dim]` and each serves `heads / key_value_heads` neighbouring query heads; the result has
/// the shape of `q`.
///
/// # Errors
/// Shapes that do not fit, and candle's own.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores) -> Result<Tensor> {
    let Scores { scale, cap, bias, mask, documents, precision } = *scores;
    let plain = cap.is_none() && bias.is_none() && precision == Precision::F32;
    let covered = match mask {
        Mask::Causal => true,
        Mask::None => documents.is_none(),
        Mask::Near { .. } => false,
    };
    if fused(&[q, k, v]) && plain && covered {
        apply(AttentionKernel { scale, mask, documents: documents.cloned() }, &[q, k, v], true)
    } else if let Some(tiles) = Tiles::covering(q, k, v, scores)? {
        let kv = Tensor::stack(&[k, v], 0)?;
        let inputs: Vec<&Tensor> = [q, &kv].into_iter().chain(bias).collect();
        gpu::apply(tiles, &inputs)
    } else {
        composed(q, k, v, scores)
    }
}

/// The same out of candle's operations.
///
/// # Errors
/// Candle's own.
pub fn composed(q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores) -> Result<Tensor> {
    let (dims, [q, k, v]) = heads_first(q, k, v)?;
    // The scale on queries: they are fewer numbers than logits.
    let logits =
        scores.precision.matmul(&(q * scores.scale)?, &k.transpose(2, 3)?.contiguous()?)?;
    mixed(logits, &v, dims, scores, &mut |_, x| Ok(x))
}

/// The same, one operation at a time: `hear` is given logits and probabilities, `[batch, heads,
/// tokens, tokens]`, and attention goes on with what it gives in their place.
///
/// # Errors
/// Candle's own, and what `hear` gives.
pub fn staged<E: From<candle_core::Error>>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scores: &Scores,
    hear: &mut dyn FnMut(Stage, Tensor) -> std::result::Result<Tensor, E>,
) -> std::result::Result<Tensor, E> {
    let (dims, [q, k, v]) = heads_first(q, k, v)?;
    let product = scores.precision.matmul(&q, &k.transpose(2, 3)?.contiguous()?)?;
    let product = hear(Stage::Product, product)?;
    let logits = hear(Stage::Logit, (product * scores.scale)?)?;
    mixed(logits, &v, dims, scores, hear)
}

/// Queries, keys and values `[batch, heads, tokens, head_dim]`, those of a group repeated.
fn heads_first(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Dims, [Tensor; 3])> {
    let dims = Dims::of(q.dims(), k.dims(), v.dims())?;
    let heads_first = |x: &Tensor| x.transpose(1, 2)?.contiguous();
    let repeat = |x: &Tensor| -> Result<Tensor> {
        let x = heads_first(x)?;
        let (b, g, t, d) = x.dims4()?;
        let wide = x.unsqueeze(2)?.broadcast_as((b, g, dims.group(), t, d))?.contiguous()?;
        wide.reshape((b, dims.heads, t, d))
    };
    Ok((dims, [heads_first(q)?, repeat(k)?, repeat(v)?]))
}

/// From scaled logits to mixed values.
fn mixed<E: From<candle_core::Error>>(
    mut logits: Tensor,
    v: &Tensor,
    dims: Dims,
    scores: &Scores,
    hear: &mut dyn FnMut(Stage, Tensor) -> std::result::Result<Tensor, E>,
) -> std::result::Result<Tensor, E> {
    let Scores { cap, bias, mask, documents, precision, .. } = *scores;
    if let Some(cap) = cap {
        logits = hear(Stage::CappedLogit, super::activation::soft_cap(&logits, cap)?)?;
    }
    if let Some(bias) = bias {
        let bias = super::position::by_pair(bias, dims.heads, dims.tokens)?;
        logits = hear(Stage::BiasedLogit, logits.broadcast_add(&bias)?)?;
    }
    let near = mask.added(dims.tokens, &logits)?;
    let within = documents.map(|documents| documents.mask(&logits)).transpose()?;
    // One addition to the logits, of which the gradient keeps all.
    logits = match (near, within) {
        (Some(near), Some(within)) => logits.broadcast_add(&within.broadcast_add(&near)?)?,
        (Some(mask), None) | (None, Some(mask)) => logits.broadcast_add(&mask)?,
        (None, None) => logits,
    };
    let p = hear(Stage::Probability, candle_nn::ops::softmax(&logits, D::Minus1)?)?;
    Ok(precision.matmul(&p, v)?.transpose(1, 2)?.contiguous()?)
}

#[derive(Clone, Copy)]
struct Dims {
    tokens: usize,
    heads: usize,
    key_value_heads: usize,
    dim: usize,
}

impl Dims {
    fn of(q: &[usize], k: &[usize], v: &[usize]) -> Result<Self> {
        let (&[batch, tokens, heads, dim], &[key_batch, key_tokens, key_value_heads, key_dim]) =
            (q, k)
        else {
            bail!("attention: queries {q:?} and keys {k:?} are [batch, tokens, heads, head_dim]")
        };
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

/// The logits' scale and the mask.
#[derive(Clone)]
pub(super) struct AttentionKernel {
    pub scale: f64,
    /// Not [`Mask::Near`].
    pub mask: Mask,
    /// Under a causal mask alone.
    pub documents: Option<Documents>,
}

/// One head of one sequence.
pub(super) struct Head<'a, T> {
    scale: f64,
    causal: bool,
    /// The first key that each query sees; 0 where there is none.
    starts: &'a [u32],
    /// Added to the logits by key − query, `[2·tokens − 1]`; empty where nothing is.
    bias: &'a [T],
}

/// Queries at a time: keeps a block of probabilities in cache, and skips most of what a causal mask
/// hides.
const BLOCK: usize = 64;

/// Room for a block of probabilities and its gradient.
pub(super) struct Scratch<T> {
    p: Vec<T>,
    ds: Vec<T>,
}

impl<T: Real> Scratch<T> {
    pub(super) fn new(tokens: usize) -> Self {
        Self { p: vec![T::of(0.0); BLOCK * tokens], ds: vec![T::of(0.0); BLOCK * tokens] }
    }
}

/// A row-major matrix to be written, its rows `row` elements apart.
pub(super) struct Target<'a, T> {
    pub data: &'a mut [T],
    pub row: usize,
}

impl AttentionKernel {
    /// One head of this sequence, with what is added to its logits.
    pub(super) fn of_sequence<'a, T>(&'a self, sequence: usize, bias: &'a [T]) -> Head<'a, T> {
        let starts =
            self.documents.as_ref().map_or(&[][..], |documents| documents.of_sequence(sequence));
        Head { scale: self.scale, causal: self.mask == Mask::Causal, starts, bias }
    }
}

/// The widest heads that a GPU's attention has kernels for.
pub const TILE_WIDTH: usize = 128;

/// In how many parts at most a GPU sums the gradient of a position bias, for each sequence and head.
pub const TILE_PARTS: usize = 8;

/// Attention on a GPU, tile by tile: logits and probabilities are never in its memory. Products are in f32
/// whatever their precision is to be.
pub(super) struct Tiles {
    scale: f64,
    /// 0 for none.
    cap: f64,
    mask: Mask,
    /// The first token that each query may see, `[batch, tokens]`, where there are documents.
    starts: Option<Tensor>,
}

impl Tiles {
    /// If a GPU's kernels cover this attention.
    fn covering(q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores) -> Result<Option<Self>> {
        let inputs: Vec<&Tensor> = [q, k, v].into_iter().chain(scores.bias).collect();
        if gpu::covers(&inputs) { Self::of(q, k, v, scores) } else { Ok(None) }
    }

    /// If its kernels do, wherever these are.
    pub(super) fn of(q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores) -> Result<Option<Self>> {
        let Scores { scale, cap, bias, mask, documents, precision: _ } = *scores;
        let dims = Dims::of(q.dims(), k.dims(), v.dims())?;
        let hides_later = matches!(mask, Mask::Causal | Mask::Near { causal: true, .. });
        let fits = bias.is_none_or(|b| b.dims() == [dims.heads, 2 * dims.tokens - 1]);
        // The second direction of a grid has 16 bits.
        let few = dims.tokens < 16 << 16;
        if dims.dim > TILE_WIDTH || !few || !fits || documents.is_some() && !hides_later {
            return Ok(None);
        }
        let starts = documents.map(|documents| documents.starts(q.device())).transpose()?;
        if let Some(starts) = starts.as_ref().filter(|starts| starts.dims() != &q.dims()[..2]) {
            bail!("attention: documents {:?} of queries {:?}", starts.dims(), q.dims())
        }
        Ok(Some(Self { scale, cap: cap.unwrap_or(0.0), mask, starts }))
    }

    /// The sizes that the source is compiled with: what is shared of a block fits into 48 KiB.
    fn sizes(dim: usize) -> [(&'static str, usize); 4] {
        let [rows, side, width] = match dim {
            0..=32 => [64, 32, 32],
            33..=64 => [64, 32, 64],
            _ => [32, 16, TILE_WIDTH],
        };
        [("ROWS", rows), ("KEYS", 32), ("SIDE", side), ("WIDTH", width)]
    }

    /// The parameters `SHAPE`, of queries `[batch, tokens, heads, dim]` and keys and values
    /// `[2, batch, tokens, groups, dim]`.
    fn shape(&self, dims: &[&[usize]]) -> Vec<Argument> {
        let [q, kv] = [dims[0], dims[1]];
        let tokens = q[1];
        let (causal, window) = match self.mask {
            Mask::None => (false, tokens),
            Mask::Causal => (true, tokens),
            Mask::Near { window, causal } => (causal, window.min(tokens)),
        };
        let (biased, within) = (dims.len() == 3, self.starts.is_some());
        arguments![; tokens, q[2], kv[3], q[3], causal, window, biased, within, self.scale, self.cap]
    }

    fn work(dims: &[&[usize]], launches: Vec<Launch>, outputs: Vec<Vec<usize>>) -> Work {
        let source = ("attention", include_str!("attention.cu"));
        let sizes = Self::sizes(dims[0][3]).to_vec();
        Work { source, sizes, launches, outputs }
    }
}

impl OnGpu for Tiles {
    fn name(&self) -> &'static str {
        AttentionKernel::NAME
    }

    fn constants(&self) -> Vec<Tensor> {
        self.starts.iter().cloned().collect()
    }

    fn forward(&self, dims: &[&[usize]]) -> Work {
        let q = dims[0];
        // Where there is no bias, or there are no starts, nothing is read of what stands in their place.
        let starts = dims.len();
        let out = starts + usize::from(self.starts.is_some());
        let [(_, rows), ..] = Self::sizes(q[3]);
        let mut arguments =
            arguments![[0], [1], [dims.len() - 1], [starts.min(out - 1)], [out], [out + 1];];
        arguments.extend(self.shape(dims));
        let blocks = [q[0] * q[2], q[1].div_ceil(rows)];
        let mixed = Launch { kernel: "attention", blocks, arguments };
        Self::work(dims, vec![mixed], vec![q.to_vec(), vec![q[0], q[2], q[1], 2]])
    }

    fn backward(&self, dims: &[&[usize]], wanted: &[bool]) -> Work {
        let ([batch, tokens, heads, dim], groups) = (four(dims[0]), dims[1][3]);
        let bias = dims.len() - 1;
        let out = dims.len() + usize::from(self.starts.is_some());
        let starts = dims.len().min(out - 1);
        let (rows, grad, dq) = (out + 1, out + 2, out + 3);
        let (dkv, dbias, means) = (dq + 1, dq + 2, dq + dims.len());
        let parts = means + 1;
        let [_, _, (_, side), _] = Self::sizes(dim);
        let (tiles, distances) = (tokens.div_ceil(side), 2 * tokens - 1);
        // Sums for a bias are made in so many parts for each sequence and head.
        let summed = wanted.get(2) == Some(&true);
        let each = if summed { tiles.min(TILE_PARTS) } else { tiles };
        let n = batch * heads * tokens;
        let with = |mut arguments: Vec<Argument>| {
            arguments.extend(self.shape(dims));
            arguments
        };
        let mut launches = vec![
            Launch::each(
                "attention_means",
                n,
                arguments![[out], [grad], [means]; n, tokens, heads, dim],
            ),
            Launch {
                kernel: "attention_queries",
                blocks: [batch * heads, each],
                arguments: with(
                    arguments![[0], [1], [bias], [starts], [rows], [means], [grad], [dq], [parts]; summed],
                ),
            },
            Launch {
                kernel: "attention_keys",
                blocks: [batch * groups, tiles],
                arguments: with(
                    arguments![[0], [1], [bias], [starts], [rows], [means], [grad], [dkv];],
                ),
            },
        ];
        if summed {
            launches.push(Launch::each(
                "attention_bias",
                heads * distances,
                arguments![[parts], [dbias]; batch, heads, each, distances],
            ));
        }
        let part = if summed { vec![batch, heads, each, distances] } else { vec![0] };
        let gradients = dims.iter().map(|dims| dims.to_vec());
        Self::work(dims, launches, gradients.chain([vec![batch, heads, tokens], part]).collect())
    }
}

fn four(dims: &[usize]) -> [usize; 4] {
    std::array::from_fn(|i| dims[i])
}

impl<T: Real> Head<'_, T> {
    /// First query, queries and keys of each block.
    fn blocks(&self, tokens: usize) -> impl Iterator<Item = (usize, usize, usize)> + use<T> {
        let causal = self.causal;
        (0..tokens).step_by(BLOCK).map(move |first| {
            let rows = BLOCK.min(tokens - first);
            (first, rows, if causal { first + rows } else { tokens })
        })
    }

    /// The probabilities of one block, `[rows, keys]`.
    fn probabilities(&self, p: &mut [T], q: Strided<T>, k: Strided<T>, first: usize) {
        let (keys, negligible) = (k.rows, T::of(1e-26));
        matmul(p, keys, q, k.t(), false, self.scale, false);
        for (i, row) in p.chunks_mut(keys).enumerate() {
            let end = if self.causal { first + i + 1 } else { keys };
            let start = self.starts.get(first + i).map_or(0, |start| *start as usize);
            let (row, later) = row.split_at_mut(end);
            let (earlier, row) = row.split_at_mut(start);
            let bias = &self.bias[self.columns(first + i, start..end)];
            simd(
                #[inline(always)]
                || {
                    for (x, bias) in row.iter_mut().zip(bias) {
                        *x += *bias;
                    }
                    // NaN logits give NaN probabilities: `largest` passes over a NaN, the sum keeps
                    // it.
                    let max = max(row);
                    for x in row.iter_mut() {
                        let e = Real::exp(*x - max);
                        // Far below the rounding of the sum; kept, its products would be denormal,
                        // which processors are slow at.
                        *x = if e < negligible { T::of(0.0) } else { e };
                    }
                    let inverse = T::of(1.0) / sum(row.len(), |i| row[i]);
                    for x in row.iter_mut() {
                        *x *= inverse;
                    }
                },
            );
            earlier.fill(T::of(0.0));
            later.fill(T::of(0.0));
        }
    }

    /// The columns of a position bias for these keys of a query; none without one.
    fn columns(&self, query: usize, keys: Range<usize>) -> Range<usize> {
        if self.bias.is_empty() {
            return 0..0;
        }
        let zero = self.bias.len() / 2;
        zero + keys.start - query..zero + keys.end - query
    }

    /// One head: queries, keys and values are `[tokens, dim]`, and so is the result.
    pub(super) fn mix(
        &self,
        out: Target<T>,
        q: Strided<T>,
        k: Strided<T>,
        v: Strided<T>,
        scratch: &mut Scratch<T>,
    ) {
        for (first, rows, keys) in self.blocks(q.rows) {
            let p = &mut scratch.p[..rows * keys];
            self.probabilities(p, q.part(first, first + rows), k.part(0, keys), first);
            let out_rows = &mut out.data[first * out.row..];
            matmul(out_rows, out.row, Strided::dense(p, keys), v.part(0, keys), false, 1.0, false);
        }
    }

    /// Its gradient, where those of keys and values are added to what is there. With P the
    /// probabilities: `dv = Pᵀ do`, `dS = P ∘ (do vᵀ − rowsum(P ∘ do vᵀ))`, `dq = scale·dS k`, `dk
    /// = scale·dSᵀ q`; to that of the bias, if there is one, the sum of dS for each distance is
    /// added.
    pub(super) fn gradient(
        &self,
        [dq, dk, dv]: [Target<T>; 3],
        dbias: &mut [T],
        [q, k, v]: [Strided<T>; 3],
        grad: Strided<T>,
        scratch: &mut Scratch<T>,
    ) {
        for (first, rows, keys) in self.blocks(q.rows) {
            let (p, ds) = (&mut scratch.p[..rows * keys], &mut scratch.ds[..rows * keys]);
            let (q, grad) = (q.part(first, first + rows), grad.part(first, first + rows));
            let (k, v) = (k.part(0, keys), v.part(0, keys));
            self.probabilities(p, q, k, first);
            matmul(dv.data, dv.row, Strided::dense(p, keys).t(), grad, true, 1.0, false);
            matmul(ds, keys, grad, v.t(), false, 1.0, false);
            for (i, (p, ds)) in p.chunks(keys).zip(ds.chunks_mut(keys)).enumerate() {
                let dbias = &mut dbias[self.columns(first + i, 0..keys)];
                simd(
                    #[inline(always)]
                    || {
                        let mean = sum(keys, |i| p[i] * ds[i]);
                        for (p, ds) in p.iter().zip(ds.iter_mut()) {
                            *ds = *p * (*ds - mean);
                        }
                        for (sum, ds) in dbias.iter_mut().zip(ds.iter()) {
                            *sum += *ds;
                        }
                    },
                );
            }
            let ds = Strided::dense(&*ds, keys);
            matmul(&mut dq.data[first * dq.row..], dq.row, ds, k, false, self.scale, false);
            matmul(dk.data, dk.row, ds.t(), q, true, self.scale, false);
        }
    }
}

impl Kernel for AttentionKernel {
    const NAME: &'static str = "attention";
    type Saved<T: Real> = ();

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        Dims::of(inputs[0], inputs[1], inputs[2])?;
        Ok(inputs[0].to_vec())
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, ()) {
        let (d, [q, k, v]) = split(inputs);
        let (queries, keys) = d.sizes();
        let (row, key_row) = (d.heads * d.dim, d.key_value_heads * d.dim);
        let mut out = vec![T::of(0.0); q.len()];
        let sequences = q.par_chunks(queries).zip(k.par_chunks(keys)).zip(v.par_chunks(keys));
        out.par_chunks_mut(queries).zip(sequences).enumerate().for_each_init(
            || Scratch::new(d.tokens),
            |scratch, (sequence, (out, ((q, k), v)))| {
                for head in 0..d.heads {
                    let (at, key_at) = (head * d.dim, head / d.group() * d.dim);
                    let q = Strided::rows(&q[at..], d.tokens, d.dim, row);
                    let [k, v] =
                        [k, v].map(|x| Strided::rows(&x[key_at..], d.tokens, d.dim, key_row));
                    self.of_sequence(sequence, &[]).mix(
                        Target { data: &mut out[at..], row },
                        q,
                        k,
                        v,
                        scratch,
                    );
                }
            },
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
        let (d, [q, k, v]) = split(inputs);
        let (queries, keys) = d.sizes();
        let (row, key_row) = (d.heads * d.dim, d.key_value_heads * d.dim);
        let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| vec![T::of(0.0); x.len()]);
        let out =
            dq.par_chunks_mut(queries).zip(dk.par_chunks_mut(keys)).zip(dv.par_chunks_mut(keys));
        let sequences = q.par_chunks(queries).zip(k.par_chunks(keys)).zip(v.par_chunks(keys));
        out.zip(sequences.zip(grad.par_chunks(queries))).enumerate().for_each_init(
            || Scratch::new(d.tokens),
            |scratch, (sequence, (((dq, dk), dv), (((q, k), v), grad)))| {
                for head in 0..d.heads {
                    let (at, key_at) = (head * d.dim, head / d.group() * d.dim);
                    let [q, grad] =
                        [q, grad].map(|x| Strided::rows(&x[at..], d.tokens, d.dim, row));
                    let [k, v] =
                        [k, v].map(|x| Strided::rows(&x[key_at..], d.tokens, d.dim, key_row));
                    let dq = Target { data: &mut dq[at..], row };
                    let dk = Target { data: &mut dk[key_at..], row: key_row };
                    let dv = Target { data: &mut dv[key_at..], row: key_row };
                    self.of_sequence(sequence, &[]).gradient(
                        [dq, dk, dv],
                        &mut [],
                        [q, k, v],
                        grad,
                        scratch,
                    );
                }
            },
        );
        vec![dq, dk, dv]
    }
}

fn split<'a, T: Real>(inputs: &[Array<'a, T>]) -> (Dims, [&'a [T]; 3]) {
    let (q, k) = (inputs[0].dims, inputs[1].dims);
    let d = Dims { tokens: q[1], heads: q[2], key_value_heads: k[2], dim: q[3] };
    (d, [inputs[0].data, inputs[1].data, inputs[2].data])
}
