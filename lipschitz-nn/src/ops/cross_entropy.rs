//! Cross-entropy and accuracy in one pass.

use candle_core::{D, DType, Result, Tensor, bail};
use rayon::prelude::*;

use super::ROWS;
use super::kernel::{Array, Kernel, apply};
use crate::gpu::{self, Launch, OnGpu, Source, Work, arguments};
use crate::linalg::simd::{max, simd, sum};
use crate::linalg::{Real, fused};

/// For logits `[n, classes]` and targets `[n]`: the mean of `−log softmax(logits)[target]` in nats,
/// and the share of rows whose largest logit is the target's, as a tensor `[2]`. The first is
/// differentiable.
///
/// # Errors
/// A target beyond the classes, shapes that do not fit, and candle's own.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    if gpu::covers(&[logits]) && logits.rank() == 2 && logits.dims()[0] == targets.elem_count() {
        let targets = targets.to_dtype(DType::U32)?.to_device(logits.device())?.contiguous()?;
        return gpu::apply(OfRows { targets }, &[logits]);
    }
    if !fused(&[logits]) {
        return composed(logits, targets);
    }
    let targets = targets.to_dtype(DType::U32)?.to_vec1::<u32>()?;
    apply(CrossEntropy { targets }, &[logits], true)
}

/// The same out of candle's operations.
///
/// # Errors
/// Candle's own.
pub fn composed(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let loss = candle_nn::loss::cross_entropy(logits, targets)?;
    let hits = logits.argmax(D::Minus1)?.eq(&targets.to_dtype(DType::U32)?)?;
    let accuracy = hits.to_dtype(logits.dtype())?.mean_all()?.detach();
    Tensor::stack(&[loss, accuracy], 0)
}

struct CrossEntropy {
    targets: Vec<u32>,
}

/// `log Σ e^x` of a row.
#[inline(always)]
fn log_sum_exp<T: Real>(row: &[T]) -> T {
    simd(
        #[inline(always)]
        || {
            let max = max(row);
            max + Real::ln(sum(row.len(), |i| Real::exp(row[i] - max)))
        },
    )
}

/// The same on a GPU, where a target beyond the classes makes the loss NaN.
pub(super) struct OfRows {
    pub(super) targets: Tensor,
}

const SOURCE: Source = ("cross-entropy", include_str!("cross_entropy.cu"));

impl OnGpu for OfRows {
    fn name(&self) -> &'static str {
        CrossEntropy::NAME
    }

    fn constants(&self) -> Vec<Tensor> {
        vec![self.targets.clone()]
    }

    fn forward(&self, dims: &[&[usize]]) -> Work {
        let (n, classes) = (dims[0][0], dims[0][1]);
        let of_rows = Launch {
            kernel: "cross_entropy",
            blocks: [n, 1],
            arguments: arguments![[0], [1], [3], [4], [5]; classes],
        };
        let means = Launch {
            kernel: "cross_entropy_means",
            blocks: [1, 1],
            arguments: arguments![[4], [5], [2]; n],
        };
        Work::new(SOURCE, vec![of_rows, means], vec![vec![2], vec![n], vec![n], vec![n]])
    }

    fn backward(&self, dims: &[&[usize]], _: &[bool]) -> Work {
        let (n, classes) = (dims[0][0], dims[0][1]);
        // Behind the result, 2, lie the sums, the losses and the hits; then the gradient.
        let arguments = arguments![[0], [1], [3], [6], [7]; classes];
        let kernel = "cross_entropy_gradient";
        Work::new(
            SOURCE,
            vec![Launch { kernel, blocks: [n, 1], arguments }],
            vec![dims[0].to_vec()],
        )
    }
}

impl Kernel for CrossEntropy {
    const NAME: &'static str = "cross-entropy";
    /// The logarithm of each row's sum of exponentials.
    type Saved<T: Real> = Vec<T>;

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        match *inputs[0] {
            [n, classes] if n == self.targets.len() && n > 0 && classes > 0 => {
                match self.targets.iter().find(|t| **t as usize >= classes) {
                    Some(target) => {
                        bail!("cross-entropy: target {target} is beyond the {classes} classes")
                    }
                    None => Ok(vec![2]),
                }
            }
            ref found => {
                bail!("cross-entropy: logits {found:?} for {} targets", self.targets.len())
            }
        }
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, Vec<T>) {
        let (x, classes, n) = (inputs[0].data, inputs[0].width(), self.targets.len());
        let mut sums = vec![T::of(0.0); n];
        let of_rows = |((sums, x), targets): ((&mut [T], &[T]), &[u32])| {
            let (mut loss, mut hits) = (0.0, 0u32);
            for ((sum, row), target) in sums.iter_mut().zip(x.chunks(classes)).zip(targets) {
                let target = *target as usize;
                *sum = log_sum_exp(row);
                loss += (*sum - row[target]).to_f64();
                // The first of equals, as `argmax` has it.
                let wins = row[..target].iter().all(|x| *x < row[target])
                    && row[target..].iter().all(|x| *x <= row[target]);
                hits += u32::from(wins);
            }
            (loss, hits)
        };
        let chunks = sums
            .par_chunks_mut(ROWS)
            .zip(x.par_chunks(ROWS * classes))
            .zip(self.targets.par_chunks(ROWS));
        // Summed in order, so that the loss does not depend on the number of threads.
        let parts: Vec<(f64, u32)> = chunks.map(of_rows).collect();
        let loss: f64 = parts.iter().map(|(loss, _)| loss).sum();
        let hits: u32 = parts.iter().map(|(_, hits)| hits).sum();
        (vec![T::of(loss / n as f64), T::of(f64::from(hits) / n as f64)], sums)
    }

    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        sums: Vec<T>,
        grad: &[T],
        _: &[bool],
    ) -> Vec<Vec<T>> {
        let (x, classes) = (inputs[0].data, inputs[0].width());
        let factor = grad[0] / T::of(self.targets.len() as f64);
        let mut out = vec![T::of(0.0); x.len()];
        let chunks = out.par_chunks_mut(ROWS * classes).zip(x.par_chunks(ROWS * classes));
        chunks.zip(sums.par_chunks(ROWS)).zip(self.targets.par_chunks(ROWS)).for_each(
            |(((out, x), sums), targets)| {
                for (((out, x), sum), target) in
                    out.chunks_mut(classes).zip(x.chunks(classes)).zip(sums).zip(targets)
                {
                    simd(
                        #[inline(always)]
                        || {
                            for (out, x) in out.iter_mut().zip(x) {
                                *out = factor * Real::exp(*x - *sum);
                            }
                        },
                    );
                    out[*target as usize] += -factor;
                }
            },
        );
        vec![out]
    }
}
