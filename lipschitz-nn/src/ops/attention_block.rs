//! A residual attention layer as one operation: each head is projected, attended and projected back
//! while it is in cache.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::ROWS;
use super::attention::{AttentionKernel, Mask, Scores, Scratch, Target};
use super::documents::Documents;
use super::kernel::{Array, Kernel, apply};
use super::residual::scaled;
use super::rotary::{Turns, fits};
use crate::graph::Rotary;
use crate::linalg::simd::simd;
use crate::linalg::{Buffer, Precision, Real, Strided, fused, matmul, without_kernels};

/// The constants of [`attention_block`].
#[derive(Clone, Debug)]
pub struct AttentionBlock {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / key_value_heads` neighbouring query heads.
    pub key_value_heads: usize,
    /// Factor on the logits.
    pub logit_scale: f64,
    /// Whether later tokens are hidden.
    pub causal: bool,
    /// Rotary positions of queries and keys.
    pub rotary: Option<Rotary>,
    /// Factor on the input.
    pub skip: f64,
    /// Factor on the attention.
    pub branch: f64,
    /// A token sees only its own document; under `causal` only.
    pub documents: Option<Documents>,
}

/// `skip·x + branch·attention(x Wqᵀ, x Wkᵀ, x Wvᵀ) Woᵀ` for `x` of shape `[batch, tokens, dim]`;
/// `projections` holds the rows of Wq, Wk and Wv one after the other, `[(heads +
/// 2·key_value_heads)·head_dim, dim]`, and `output` is Wo, `[dim, heads·head_dim]`.
///
/// Queries, keys, values and mixed values are kept for the gradient if `keep`, and recomputed
/// otherwise; probabilities are always recomputed.
///
/// # Errors
/// Shapes that do not fit, and candle's own.
pub fn attention_block(
    block: &AttentionBlock,
    x: &Tensor,
    projections: &Tensor,
    output: &Tensor,
    keep: bool,
) -> Result<Tensor> {
    if fused(&[x, projections, output]) && (block.causal || block.documents.is_none()) {
        apply(block.clone(), &[x, projections, output], keep)
    } else {
        apart(block, x, projections, output, None)
    }
}

/// The same out of candle's operations; `bias` is added to the logits, as [`super::position_bias`]
/// makes it.
///
/// # Errors
/// Candle's own.
pub fn composed(
    block: &AttentionBlock,
    x: &Tensor,
    projections: &Tensor,
    output: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    without_kernels(|| apart(block, x, projections, output, bias))
}

/// The same, an operation at a time.
pub(super) fn apart(
    block: &AttentionBlock,
    x: &Tensor,
    projections: &Tensor,
    output: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    use super::{attention, linear, residual, rotary};
    let precision = Precision::F32;
    let (batch, tokens, _) = x.dims3()?;
    let (heads, shared) = (block.heads, block.key_value_heads);
    let dim = output.dim(1)? / heads;
    let part = |from: usize, count: usize, turned: bool| -> Result<Tensor> {
        let weight = projections.narrow(0, from * dim, count * dim)?;
        let y = linear(x, &weight, None, precision)?.reshape((batch, tokens, count, dim))?;
        match &block.rotary {
            Some(r) if turned => rotary(&y, r),
            _ => Ok(y),
        }
    };
    let (q, k, v) =
        (part(0, heads, true)?, part(heads, shared, true)?, part(heads + shared, shared, false)?);
    let mask = if block.causal { Mask::Causal } else { Mask::None };
    let scores = Scores {
        bias,
        documents: block.documents.as_ref(),
        ..Scores::new(block.logit_scale, mask)
    };
    let mixed = attention(&q, &k, &v, &scores)?.reshape((batch, tokens, heads * dim))?;
    residual(x, &linear(&mixed, output, None, precision)?, block.skip, block.branch)
}

/// Sizes of one call.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    dim: usize,
    head: usize,
    /// Query heads per key head.
    group: usize,
    groups: usize,
}

impl Sizes {
    /// Elements of one head of one sequence.
    fn one(self) -> usize {
        self.tokens * self.head
    }

    /// Elements of the queries, keys and values of one group; and of its mixed values.
    fn of_group(self) -> (usize, usize) {
        ((self.group + 2) * self.one(), self.group * self.one())
    }

    /// Where the rows of the j-th member of group g, its queries first, then its key and its value,
    /// lie in `projections`.
    fn rows(self, g: usize, j: usize) -> usize {
        let heads = self.group * self.groups;
        self.head
            * if j < self.group {
                g * self.group + j
            } else {
                heads + g + (j - self.group) * self.groups
            }
    }

    /// The head that the h-th row block of `projections` is: its group and its place there.
    fn member(self, h: usize) -> (usize, usize) {
        let heads = self.group * self.groups;
        match h.checked_sub(heads) {
            None => (h / self.group, h % self.group),
            Some(rest) => (rest % self.groups, self.group + rest / self.groups),
        }
    }
}

/// Queries, keys and values group by group, `[batch, groups, group + 2, tokens, head]`, rotated;
/// and mixed values, `[batch, groups, group, tokens, head]`.
pub(super) struct Kept<T: Real> {
    projected: Buffer<T>,
    mixed: Buffer<T>,
}

impl AttentionBlock {
    fn sizes<T>(&self, inputs: &[Array<T>]) -> Sizes {
        let (tokens, dim) = (inputs[0].dims[1], inputs[0].dims[2]);
        let head = inputs[2].dims[1] / self.heads;
        Sizes {
            tokens,
            dim,
            head,
            group: self.heads / self.key_value_heads,
            groups: self.key_value_heads,
        }
    }

    /// What is added to the logits of one head, by distance; nothing without a fourth input.
    fn bias<'a, T>(inputs: &[Array<'a, T>], head: usize) -> &'a [T] {
        inputs.get(3).filter(|bias| !bias.data.is_empty()).map_or(&[], |bias| {
            let width = bias.width();
            &bias.data[head * width..][..width]
        })
    }

    fn attention(&self) -> AttentionKernel {
        let mask = if self.causal { Mask::Causal } else { Mask::None };
        AttentionKernel { scale: self.logit_scale, mask, documents: self.documents.clone() }
    }

    /// Rotates the queries and keys of one group, or their gradients backwards.
    fn turn<T: Real>(turns: Option<&Turns<T>>, projected: &mut [T], s: Sizes, sign: f64) {
        let Some(turns) = turns else { return };
        simd(
            #[inline(always)]
            || {
                for head in projected.chunks_mut(s.one()).take(s.group + 1) {
                    for (token, x) in head.chunks_mut(s.head).enumerate() {
                        turns.apply(x, token, sign);
                    }
                }
            },
        );
    }

    pub(super) fn run<T: Real>(&self, inputs: &[Array<T>]) -> (Buffer<T>, Kept<T>) {
        let s = self.sizes(inputs);
        let (x, w, output) = (inputs[0].data, inputs[1].data, inputs[2].data);
        let (per_group, per_mix) = s.of_group();
        let tasks = inputs[0].dims[0] * s.groups;
        let mut kept = Kept {
            projected: Buffer::take(tasks * per_group),
            mixed: Buffer::take(tasks * per_mix),
        };
        let turns = self.rotary.as_ref().map(|r| Turns::new(r, s.tokens, s.head));
        let attention = self.attention();
        let groups =
            kept.projected.par_chunks_mut(per_group).zip(kept.mixed.par_chunks_mut(per_mix));
        groups.enumerate().for_each_init(
            || Scratch::new(s.tokens),
            |scratch, (task, (projected, mixed))| {
                let (sequence, g) = (task / s.groups, task % s.groups);
                let x =
                    Strided::dense(&x[sequence * s.tokens * s.dim..][..s.tokens * s.dim], s.dim);
                for (j, head) in projected.chunks_mut(s.one()).enumerate() {
                    let w = Strided::dense(&w[s.rows(g, j) * s.dim..][..s.head * s.dim], s.dim);
                    matmul(head, s.head, x, w.t(), false, 1.0, false);
                }
                Self::turn(turns.as_ref(), projected, s, 1.0);
                let head = |j: usize| Strided::dense(&projected[j * s.one()..][..s.one()], s.head);
                for (j, out) in mixed.chunks_mut(s.one()).enumerate() {
                    let out = Target { data: out, row: s.head };
                    let mixing =
                        attention.of_sequence(sequence, Self::bias(inputs, g * s.group + j));
                    mixing.mix(out, head(j), head(s.group), head(s.group + 1), scratch);
                }
            },
        );
        let mut out = scaled(x, self.skip);
        each_rows(&mut out, s, |sequence, from, rows, out| {
            for h in 0..s.group * s.groups {
                let mixed = Strided::dense(
                    &kept.mixed[(sequence * self.heads + h) * s.one()..][..s.one()],
                    s.head,
                );
                let w = Strided::rows(&output[h * s.head..], s.dim, s.head, self.heads * s.head);
                matmul(out, s.dim, mixed.part(from, from + rows), w.t(), true, self.branch, false);
            }
        });
        (out, kept)
    }

    /// Of the two matrices and the bias, which has no elements where there is none.
    pub(super) fn gradient<T: Real>(
        &self,
        inputs: &[Array<T>],
        kept: &Kept<T>,
        grad: &[T],
        wanted: bool,
        weights: Option<[&mut [T]; 3]>,
    ) -> Option<Buffer<T>> {
        let s = self.sizes(inputs);
        let (x, w, output) = (inputs[0].data, inputs[1].data, inputs[2].data);
        let (per_group, per_mix) = s.of_group();
        let (batch, width) = (inputs[0].dims[0], self.heads * s.head);
        let turns = self.rotary.as_ref().map(|r| Turns::new(r, s.tokens, s.head));
        let attention = self.attention();
        let sequence_of = |data: &'_ [T], i: usize| -> std::ops::Range<usize> {
            let n = data.len() / batch.max(1);
            i * n..(i + 1) * n
        };
        let rows_of = |i: usize| Strided::dense(&grad[sequence_of(grad, i)], s.dim);
        // The gradients of queries, keys and values, as they were before the rotation.
        let mut dp = Buffer::take(kept.projected.len());
        // The gradient of the bias, sequence by sequence.
        let biases = inputs.get(3).map_or(0, |bias| bias.data.len());
        let mut dbiases = vec![T::of(0.0); batch * biases];
        let per_bias = biases / s.groups;
        let mut rest = &mut dbiases[..];
        let dbias: Vec<&mut [T]> = (0..batch * s.groups)
            .map(|_| rest.split_off_mut(..per_bias).unwrap_or_default())
            .collect();
        let groups =
            dp.par_chunks_mut(per_group).zip(kept.projected.par_chunks(per_group)).zip(dbias);
        groups.enumerate().for_each_init(
            || (Scratch::new(s.tokens), vec![T::of(0.0); s.one()]),
            |(scratch, dmixed), (task, ((dp, projected), dbias))| {
                let (sequence, g) = (task / s.groups, task % s.groups);
                let head = |j: usize| Strided::dense(&projected[j * s.one()..][..s.one()], s.head);
                let (dq, dkv) = dp.split_at_mut(per_mix);
                dkv.fill(T::of(0.0));
                let (dk, dv) = dkv.split_at_mut(s.one());
                for (j, dq) in dq.chunks_mut(s.one()).enumerate() {
                    let column = (g * s.group + j) * s.head;
                    let w = Strided::rows(&output[column..], s.dim, s.head, width);
                    matmul(dmixed, s.head, rows_of(sequence), w, false, self.branch, false);
                    let target = |data| Target { data, row: s.head };
                    attention.of_sequence(sequence, Self::bias(inputs, g * s.group + j)).gradient(
                        [target(dq), target(&mut *dk), target(&mut *dv)],
                        &mut dbias[j * per_bias / s.group..][..per_bias / s.group],
                        [head(j), head(s.group), head(s.group + 1)],
                        Strided::dense(dmixed, s.head),
                        scratch,
                    );
                }
                Self::turn(turns.as_ref(), dp, s, -1.0);
            },
        );
        let mut dx = wanted.then(|| scaled(grad, self.skip));
        let empty = &mut [][..];
        each_rows(dx.as_deref_mut().unwrap_or(empty), s, |sequence, from, rows, dx| {
            for g in 0..s.groups {
                let group = &dp[(sequence * s.groups + g) * per_group..][..per_group];
                for (j, head) in group.chunks(s.one()).enumerate() {
                    let w = Strided::dense(&w[s.rows(g, j) * s.dim..][..s.head * s.dim], s.dim);
                    matmul(
                        dx,
                        s.dim,
                        Strided::dense(head, s.head).part(from, from + rows),
                        w,
                        true,
                        1.0,
                        false,
                    );
                }
            }
        });
        if let Some([dw, doutput, dbias]) = weights {
            for of_sequence in dbiases.chunks(biases.max(1)) {
                dbias.iter_mut().zip(of_sequence).for_each(|(sum, x)| *sum += *x);
            }
            // Sequence by sequence, in order, so that sums do not depend on the number of threads.
            dw.par_chunks_mut(s.head * s.dim).enumerate().for_each(|(h, dw)| {
                let (g, j) = s.member(h);
                for i in 0..batch {
                    let head = Strided::dense(
                        &dp[(i * s.groups + g) * per_group + j * s.one()..][..s.one()],
                        s.head,
                    );
                    let x = Strided::dense(&x[sequence_of(x, i)], s.dim);
                    matmul(dw, s.dim, head.t(), x, i > 0, 1.0, false);
                }
            });
            let mut transposed = Buffer::take(output.len());
            transposed.par_chunks_mut(s.head * s.dim).enumerate().for_each(|(h, dw)| {
                for i in 0..batch {
                    let mixed = Strided::dense(
                        &kept.mixed[(i * self.heads + h) * s.one()..][..s.one()],
                        s.head,
                    );
                    matmul(dw, s.dim, mixed.t(), rows_of(i), i > 0, self.branch, false);
                }
            });
            for (i, row) in transposed.chunks(s.dim).enumerate() {
                for (j, x) in row.iter().enumerate() {
                    doutput[j * width + i] = *x;
                }
            }
        }
        dx
    }
}

impl Kernel for AttentionBlock {
    const NAME: &'static str = "attention block";
    type Saved<T: Real> = Kept<T>;

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        let (heads, shared) = (self.heads, self.key_value_heads);
        let (&[_, tokens, dim], &[rows, columns], &[out, mixed]) =
            (inputs[0], inputs[1], inputs[2])
        else {
            bail!("attention block: {inputs:?} are not [batch, tokens, dim] and two matrices")
        };
        let divides = heads > 0
            && shared > 0
            && heads % shared == 0
            && mixed % heads == 0
            && mixed > 0
            && tokens > 0;
        let head = mixed / heads.max(1);
        let turns = self.rotary.as_ref().is_none_or(|r| fits(r, head));
        if !divides
            || !turns
            || rows != (heads + 2 * shared) * head
            || columns != dim
            || out != dim
            || dim == 0
        {
            bail!("attention block: {heads} and {shared} heads do not fit {inputs:?}")
        }
        Ok(inputs[0].to_vec())
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, Kept<T>) {
        let (out, kept) = self.run(inputs);
        (out.into_vec(), kept)
    }

    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        kept: Kept<T>,
        grad: &[T],
        wanted: &[bool],
    ) -> Vec<Vec<T>> {
        let [mut dw, mut doutput] = [1, 2].map(|i| vec![T::of(0.0); inputs[i].data.len()]);
        let weights = (wanted[1] || wanted[2]).then_some([&mut dw[..], &mut doutput[..], &mut []]);
        let dx = self.gradient(inputs, &kept, grad, wanted[0], weights);
        vec![dx.map_or_else(Vec::new, Buffer::into_vec), dw, doutput]
    }
}

/// Runs `f(sequence, first token, tokens, their rows)` on blocks of rows of `out`, `[batch, tokens,
/// dim]`, none of which spans two sequences.
fn each_rows<T: Real>(out: &mut [T], s: Sizes, f: impl Fn(usize, usize, usize, &mut [T]) + Sync) {
    out.par_chunks_mut(s.tokens * s.dim).enumerate().for_each(|(sequence, out)| {
        out.par_chunks_mut(ROWS * s.dim).enumerate().for_each(|(block, out)| {
            f(sequence, block * ROWS, out.len() / s.dim, out);
        });
    });
}
