//! Normalisations over the last dimension. (candle's fused ones have no gradient.)

use candle_core::{D, Result, Tensor, bail};
use rayon::prelude::*;

use super::ROWS;
use super::kernel::{Array, Kernel, apply};
use crate::gpu::{self, Launch, OnGpu, Source, THREADS, Work, arguments};
use crate::linalg::simd::{simd, sum};
use crate::linalg::{Real, fused};

/// `γ ∘ x / √(mean x² + ε)` over the last dimension.
///
/// # Errors
/// Shapes that do not fit, and candle's own.
pub fn rms_norm(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    if fused(&[x, gain]) {
        apply(NormKernel { eps, centred: false }, &[x, gain], true)
    } else if on_gpu(x, gain) {
        gpu::apply(NormKernel { eps, centred: false }, &[x, gain])
    } else {
        rms_norm_composed(x, gain, eps)
    }
}

/// `γ ∘ (x − mean x) / √(var x + ε) + β` over the last dimension.
///
/// # Errors
/// Shapes that do not fit, and candle's own.
pub fn layer_norm(x: &Tensor, gain: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let norm = NormKernel { eps, centred: true };
    let inputs: Vec<&Tensor> = [x, gain].into_iter().chain(bias).collect();
    if fused(&[x, gain]) {
        apply(norm, &inputs, true)
    } else if on_gpu(x, gain) && bias.is_none_or(|bias| on_gpu(x, bias)) {
        gpu::apply(norm, &inputs)
    } else {
        layer_norm_composed(x, gain, bias, eps)
    }
}

/// Whether the kernels of a GPU cover these: a gain or shift for each element of a row.
fn on_gpu(x: &Tensor, gain: &Tensor) -> bool {
    gpu::covers(&[x, gain]) && x.dims().last().is_some_and(|width| gain.dims() == [*width])
}

/// `x / max(‖x‖₂, ε)` over the last dimension; ε² must be a normal number of x's type.
///
/// # Errors
/// Candle's own.
pub fn normalise(x: &Tensor, eps: f64) -> Result<Tensor> {
    // The maximum of squares, for the root has no gradient at 0.
    let square = x.sqr()?.sum_keepdim(D::Minus1)?.maximum(eps * eps)?;
    x.broadcast_div(&square.sqrt()?)
}

/// [`rms_norm`] out of candle's operations.
///
/// # Errors
/// Candle's own, such as shapes that do not fit.
pub fn rms_norm_composed(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    x.broadcast_mul(&scale)?.broadcast_mul(gain)
}

/// [`layer_norm`] out of candle's operations.
///
/// # Errors
/// Candle's own, such as shapes that do not fit.
pub fn layer_norm_composed(
    x: &Tensor,
    gain: &Tensor,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let y = rms_norm_composed(&centred, gain, eps)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// `γ ∘ n + β` with `n = (x − μ)·r`, μ the mean if `centred` and 0 otherwise, `r = 1/√(mean (x−μ)²
/// + ε)`.
pub(super) struct NormKernel {
    pub(super) eps: f64,
    pub(super) centred: bool,
}

impl NormKernel {
    /// μ and r of a row.
    #[inline(always)]
    fn statistics<T: Real>(&self, x: &[T]) -> (T, T) {
        let inverse = T::of(1.0 / x.len() as f64);
        let mean = if self.centred { sum(x.len(), |i| x[i]) * inverse } else { T::of(0.0) };
        let square = sum(x.len(), |i| (x[i] - mean) * (x[i] - mean)) * inverse;
        (mean, T::of(1.0) / Real::sqrt(square + T::of(self.eps)))
    }
}

const SOURCE: Source = ("norm", include_str!("normalise.cu"));

/// Rows, and their width: [`on_gpu`] has seen that there are some.
fn sizes(x: &[usize]) -> (usize, usize) {
    let dim = x[x.len() - 1];
    (x.iter().product::<usize>() / dim, dim)
}

impl OnGpu for NormKernel {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn forward(&self, dims: &[&[usize]]) -> Work {
        let ((rows, dim), inputs) = (sizes(dims[0]), dims.len());
        let shifted = inputs == 3;
        let arguments = arguments![[0], [1], [inputs - 1], [inputs], [inputs + 1];
            dim, self.centred, shifted, self.eps];
        let norm = Launch { kernel: "norm_rows", blocks: [rows, 1], arguments };
        Work::new(SOURCE, vec![norm], vec![dims[0].to_vec(), vec![rows, 2]])
    }

    fn backward(&self, dims: &[&[usize]], _: &[bool]) -> Work {
        let ((rows, dim), inputs) = (sizes(dims[0]), dims.len());
        // Sums over rows are made in so many parts.
        let parts = rows.min(64);
        let (statistics, grad, dx) = (inputs + 1, inputs + 2, inputs + 3);
        let [gains, biases] = [dx + inputs, dx + inputs + 1];
        let of_x = Launch {
            kernel: "norm_gradient",
            blocks: [rows, 1],
            arguments: arguments![[0], [1], [statistics], [grad], [dx]; dim, self.centred],
        };
        let of_parts = Launch {
            kernel: "norm_parts",
            blocks: [dim.div_ceil(THREADS), parts],
            arguments: arguments![[0], [statistics], [grad], [gains], [biases]; rows, dim],
        };
        let sum = |from: usize, to: usize| {
            Launch::each("norm_sum", dim, arguments![[from], [to]; parts, dim])
        };
        let mut launches = vec![of_x, of_parts, sum(gains, dx + 1)];
        if inputs == 3 {
            launches.push(sum(biases, dx + 2));
        }
        let gradients = dims.iter().map(|dims| dims.to_vec());
        Work::new(SOURCE, launches, gradients.chain([vec![parts, dim], vec![parts, dim]]).collect())
    }
}

impl Kernel for NormKernel {
    const NAME: &'static str = "norm";
    type Saved<T: Real> = ();

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        let width = inputs[0].last().copied().unwrap_or(0);
        if width == 0 || inputs[1..].iter().any(|gain| *gain != [width]) {
            bail!("norm: input {:?}, gain and bias {:?}", inputs[0], &inputs[1..])
        }
        Ok(inputs[0].to_vec())
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, ()) {
        let (x, gain, dim) = (inputs[0].data, inputs[1].data, inputs[0].width());
        let bias = inputs.get(2).map(|bias| bias.data);
        let mut out = vec![T::of(0.0); x.len()];
        out.par_chunks_mut(ROWS * dim).zip(x.par_chunks(ROWS * dim)).for_each(|(out, x)| {
            for (out, x) in out.chunks_mut(dim).zip(x.chunks(dim)) {
                simd(
                    #[inline(always)]
                    || {
                        let (mean, r) = self.statistics(x);
                        for ((out, x), gain) in out.iter_mut().zip(x).zip(gain) {
                            *out = (*x - mean) * r * *gain;
                        }
                        for (out, bias) in out.iter_mut().zip(bias.unwrap_or_default()) {
                            *out += *bias;
                        }
                    },
                );
            }
        });
        (out, ())
    }

    /// With `h = γ ∘ grad`: `dx = r·(h − mean(h)·[centred] − n·mean(h ∘ n))`, `dγ = Σ grad ∘ n`,
    /// `dβ = Σ grad`.
    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        (): (),
        grad: &[T],
        _: &[bool],
    ) -> Vec<Vec<T>> {
        let (x, gain, dim) = (inputs[0].data, inputs[1].data, inputs[0].width());
        let inverse = T::of(1.0 / dim as f64);
        let mut dx = vec![T::of(0.0); x.len()];
        let chunks = dx
            .par_chunks_mut(ROWS * dim)
            .zip(x.par_chunks(ROWS * dim))
            .zip(grad.par_chunks(ROWS * dim));
        let parts: Vec<(Vec<T>, Vec<T>)> = chunks
            .map(|((dx, x), grad)| {
                let (mut dgain, mut dbias) = (vec![T::of(0.0); dim], vec![T::of(0.0); dim]);
                for ((dx, x), grad) in dx.chunks_mut(dim).zip(x.chunks(dim)).zip(grad.chunks(dim)) {
                    simd(
                        #[inline(always)]
                        || {
                            let (mean, r) = self.statistics(x);
                            let (x, grad, gain) = (&x[..dim], &grad[..dim], &gain[..dim]);
                            let along =
                                sum(dim, |i| gain[i] * grad[i] * (x[i] - mean) * r) * inverse;
                            let constant = if self.centred {
                                sum(dim, |i| gain[i] * grad[i]) * inverse
                            } else {
                                T::of(0.0)
                            };
                            for i in 0..dim {
                                let n = (x[i] - mean) * r;
                                dx[i] = r * (gain[i] * grad[i] - constant - n * along);
                                dgain[i] += grad[i] * n;
                                dbias[i] += grad[i];
                            }
                        },
                    );
                }
                (dgain, dbias)
            })
            .collect();
        // In order, so that sums do not depend on the number of threads.
        let (mut dgain, mut dbias) = (vec![T::of(0.0); dim], vec![T::of(0.0); dim]);
        for (gain, bias) in parts {
            dgain.iter_mut().zip(gain).for_each(|(sum, x)| *sum += x);
            dbias.iter_mut().zip(bias).for_each(|(sum, x)| *sum += x);
        }
        let mut out = vec![dx, dgain, dbias];
        out.truncate(inputs.len());
        out
    }
}
