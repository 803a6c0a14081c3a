//! Elementwise activations with their gradient in one pass each way.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::real::Real;
use super::{fused, slice, with_slices};
use crate::graph::Function;

/// `scale·φ(x)` for a tensor of any shape.
///
/// # Errors
/// Candle's own, such as a device out of memory.
pub fn activation(x: &Tensor, function: Function, scale: f64) -> Result<Tensor> {
    if fused(x) { x.contiguous()?.apply_op1(Activation { function, scale }) } else { composed(x, function, scale) }
}

/// `cap·tanh(x/cap)`, elementwise.
///
/// # Errors
/// Candle's own.
pub fn soft_cap(x: &Tensor, cap: f64) -> Result<Tensor> {
    (x * cap.recip())?.tanh()? * cap
}

/// The same out of candle's operations.
///
/// # Errors
/// Candle's own, such as a device out of memory.
pub fn composed(x: &Tensor, function: Function, scale: f64) -> Result<Tensor> {
    let y = match function {
        Function::Relu => x.relu()?,
        Function::GeluErf => x.gelu_erf()?,
        Function::GeluTanh => x.gelu()?,
        Function::Silu => x.silu()?,
        Function::Tanh => x.tanh()?,
        Function::Sigmoid => ((x.neg()?.exp()? + 1.0)?).recip()?,
    };
    if scale == 1.0 { Ok(y) } else { y * scale }
}

struct Activation {
    function: Function,
    scale: f64,
}

const CHUNK: usize = 1 << 13;

/// √(2/π) and the cubic coefficient of GELU's tanh approximation.
const TANH_A: f64 = 0.797_884_560_802_865_4;
const TANH_B: f64 = 0.044_715;

/// The value and the derivative of φ at x.
#[inline(always)]
fn both<T: Real>(function: Function, x: T) -> (T, T) {
    let (zero, half, one) = (T::of(0.0), T::of(0.5), T::of(1.0));
    match function {
        Function::Relu => {
            if x > zero {
                (x, one)
            } else {
                // NaN must not become 0.
                (if x <= zero { zero } else { x }, zero)
            }
        }
        Function::GeluErf => {
            let (distribution, density) = x.normal();
            (x * distribution, distribution + x * density)
        }
        Function::GeluTanh => {
            let (a, b) = (T::of(TANH_A), T::of(TANH_B));
            let t = (a * x * (one + b * x * x)).tanh();
            let inner = a * (one + T::of(3.0) * b * x * x);
            (half * x * (one + t), half * (one + t) + half * x * (one - t * t) * inner)
        }
        Function::Silu => {
            let s = one / (one + (-x).exp());
            (x * s, s * (one + x * (one - s)))
        }
        Function::Tanh => {
            let t = x.tanh();
            (t, one - t * t)
        }
        Function::Sigmoid => {
            let s = one / (one + (-x).exp());
            (s, s * (one - s))
        }
    }
}

/// Calls `$body` with `$f` bound to a constant, so that each function gets its own vectorised loop.
macro_rules! specialised {
    ($function:expr, $f:ident => $body:expr) => {
        match $function {
            Function::Relu => {
                const $f: Function = Function::Relu;
                $body
            }
            Function::GeluErf => {
                const $f: Function = Function::GeluErf;
                $body
            }
            Function::GeluTanh => {
                const $f: Function = Function::GeluTanh;
                $body
            }
            Function::Silu => {
                const $f: Function = Function::Silu;
                $body
            }
            Function::Tanh => {
                const $f: Function = Function::Tanh;
                $body
            }
            Function::Sigmoid => {
                const $f: Function = Function::Sigmoid;
                $body
            }
        }
    };
}

impl Activation {
    fn forward<T: Real>(&self, x: &[T]) -> Vec<T> {
        let scale = T::of(self.scale);
        let mut y = vec![T::of(0.0); x.len()];
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
            specialised!(self.function, F => y.iter_mut().zip(x).for_each(|(y, x)| *y = scale * both(F, *x).0))
        });
        y
    }

    fn backward<T: Real>(&self, x: &[T], grad: &[T]) -> Vec<T> {
        let scale = T::of(self.scale);
        let mut out = vec![T::of(0.0); x.len()];
        let chunks = out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(grad.par_chunks(CHUNK));
        chunks.for_each(|((out, x), grad)| {
            specialised!(self.function, F => {
                for ((out, x), grad) in out.iter_mut().zip(x).zip(grad) {
                    *out = scale * *grad * both(F, *x).1;
                }
            })
        });
        out
    }
}

impl CustomOp1 for Activation {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = match storage {
            CpuStorage::F32(_) => CpuStorage::F32(self.forward(slice(storage, layout)?)),
            CpuStorage::F64(_) => CpuStorage::F64(self.forward(slice(storage, layout)?)),
            _ => bail!("the fused activation runs in f32 and f64"),
        };
        Ok((out, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (x, grad) = (x.contiguous()?, grad.contiguous()?);
        let out = match x.dtype() {
            DType::F32 => {
                let out = with_slices::<f32, _>(&[&x, &grad], |s| self.backward(s[0], s[1]))?;
                Tensor::from_vec(out, x.shape(), x.device())?
            }
            _ => {
                let out = with_slices::<f64, _>(&[&x, &grad], |s| self.backward(s[0], s[1]))?;
                Tensor::from_vec(out, x.shape(), x.device())?
            }
        };
        Ok(Some(out))
    }
}
