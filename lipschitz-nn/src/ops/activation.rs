//! Elementwise activations with their gradient in one pass each way.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::kernel::{Array, Kernel, apply};
use crate::gpu::{self, Launch, OnGpu, Source, Work, arguments};
use crate::graph::Function;
use crate::linalg::simd::simd;
use crate::linalg::{CHUNK, Real, fused};

/// `scale·φ(x)` for a tensor of any shape.
///
/// # Errors
/// Candle's own, such as a device out of memory.
pub fn activation(x: &Tensor, function: Function, scale: f64) -> Result<Tensor> {
    if fused(&[x]) {
        apply(Map::Activation(function, scale), &[x], true)
    } else if gpu::covers(&[x]) && !(function == Function::Identity && scale == 1.0) {
        gpu::apply(Map::Activation(function, scale), &[x])
    } else {
        composed(x, function, scale)
    }
}

/// `cap·tanh(x/cap)`, elementwise.
///
/// # Errors
/// Candle's own.
pub fn soft_cap(x: &Tensor, cap: f64) -> Result<Tensor> {
    if fused(&[x]) {
        apply(Map::SoftCap(cap), &[x], true)
    } else if gpu::covers(&[x]) {
        gpu::apply(Map::SoftCap(cap), &[x])
    } else {
        soft_cap_composed(x, cap)
    }
}

/// x between −limit and limit, elementwise; the gradient is 1 there and 0 beyond.
///
/// # Errors
/// Candle's own.
pub fn clip(x: &Tensor, limit: f64) -> Result<Tensor> {
    if fused(&[x]) {
        apply(Map::Clip(limit), &[x], true)
    } else if gpu::covers(&[x]) {
        gpu::apply(Map::Clip(limit), &[x])
    } else {
        clip_composed(x, limit)
    }
}

/// [`activation`] out of candle's operations.
///
/// # Errors
/// Candle's own, such as a device out of memory.
pub fn composed(x: &Tensor, function: Function, scale: f64) -> Result<Tensor> {
    let y = match function {
        Function::Relu => x.relu()?,
        Function::Abs => x.abs()?,
        Function::GeluErf => x.gelu_erf()?,
        Function::GeluTanh => x.gelu()?,
        Function::Silu => x.silu()?,
        Function::Tanh => x.tanh()?,
        Function::Sigmoid => ((x.neg()?.exp()? + 1.0)?).recip()?,
        Function::Identity => x.clone(),
        Function::Relu2 => x.relu()?.sqr()?,
        Function::LeakyRelu { slope } => (x.relu()? - (x.neg()?.relu()? * slope)?)?,
        // e to the power of min(x, 0), which cannot overflow.
        Function::Elu { alpha } => {
            (x.relu()? + ((x.neg()?.relu()?.neg()?.exp()? - 1.0)? * alpha)?)?
        }
        Function::Softplus => softplus(x)?,
        Function::Mish => (x * softplus(x)?.tanh()?)?,
        Function::QuickGelu => ((x * QUICK)?.silu()? * QUICK.recip())?,
        Function::HardSwish => (x * hard_sigmoid(x)?)?,
        Function::HardSigmoid => hard_sigmoid(x)?,
    };
    if scale == 1.0 { Ok(y) } else { y * scale }
}

/// ln(1+eˣ) as max(x, 0) + ln(1+e^(−|x|)), which cannot overflow.
fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

fn hard_sigmoid(x: &Tensor) -> Result<Tensor> {
    (x + 3.0)?.clamp(0.0, 6.0)? / 6.0
}

/// [`soft_cap`] out of candle's operations.
///
/// # Errors
/// Candle's own.
pub fn soft_cap_composed(x: &Tensor, cap: f64) -> Result<Tensor> {
    (x * cap.recip())?.tanh()? * cap
}

/// [`clip`] out of candle's operations.
///
/// # Errors
/// Candle's own.
pub fn clip_composed(x: &Tensor, limit: f64) -> Result<Tensor> {
    x.clamp(-limit, limit)
}

/// A function of each element.
pub(super) enum Map {
    Activation(Function, f64),
    SoftCap(f64),
    Clip(f64),
}

/// √(2/π) and the cubic coefficient of GELU's tanh approximation.
const TANH_A: f64 = 0.797_884_560_802_865_4;
const TANH_B: f64 = 0.044_715;

/// The factor inside of quick GELU.
const QUICK: f64 = 1.702;

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
        Function::Abs => {
            if x < zero {
                (-x, -one)
            } else {
                (x, one)
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
        Function::Identity => (x, one),
        Function::Relu2 => {
            if x > zero {
                (x * x, x + x)
            } else {
                (if x <= zero { zero } else { x }, zero)
            }
        }
        Function::LeakyRelu { slope } => {
            let slope = T::of(slope);
            if x > zero { (x, one) } else { (slope * x, slope) }
        }
        Function::Elu { alpha } => {
            let alpha = T::of(alpha);
            let e = Real::exp_m1(if x > zero { zero } else { x });
            if x > zero { (x, one) } else { (alpha * e, alpha * (e + one)) }
        }
        Function::Softplus => {
            let (e, positive) = tail(x);
            let value = (if x > zero { x } else { zero }) + Real::ln_1p(e);
            (value, positive)
        }
        Function::Mish => {
            // With e = exp(−|x|), tanh(ln(1 + eˣ)) without overflow.
            let (e, s) = tail(x);
            let two = T::of(2.0);
            let t = if x < zero {
                e * (e + two) / (e * (e + two) + two)
            } else {
                (one + two * e) / (one + two * e + two * e * e)
            };
            (x * t, t + x * (one - t * t) * s)
        }
        Function::QuickGelu => {
            let quick = T::of(QUICK);
            let s = one / (one + (-quick * x).exp());
            (x * s, s * (one + quick * x * (one - s)))
        }
        Function::HardSwish => {
            let (three, sixth) = (T::of(3.0), T::of(1.0 / 6.0));
            if x >= three {
                (x, one)
            } else if x <= -three {
                (zero, zero)
            } else {
                (x * (x + three) * sixth, (x + x + three) * sixth)
            }
        }
        Function::HardSigmoid => {
            let (three, sixth) = (T::of(3.0), T::of(1.0 / 6.0));
            if x >= three {
                (one, zero)
            } else if x <= -three {
                (zero, zero)
            } else {
                ((x + three) * sixth, sixth)
            }
        }
    }
}

/// exp(−|x|) and sigmoid(x).
#[inline(always)]
fn tail<T: Real>(x: T) -> (T, T) {
    let (zero, one) = (T::of(0.0), T::of(1.0));
    let e = (if x < zero { x } else { -x }).exp();
    (e, if x < zero { e / (one + e) } else { one / (one + e) })
}

/// Calls `$body` with `$f` bound to a variant that the compiler knows, so that each function gets its own vectorised loop.
macro_rules! specialised {
    ($function:expr, $f:ident => $body:expr) => {
        match $function {
            Function::Relu => {
                const $f: Function = Function::Relu;
                $body
            }
            Function::Abs => {
                const $f: Function = Function::Abs;
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
            Function::Identity => {
                const $f: Function = Function::Identity;
                $body
            }
            Function::Relu2 => {
                const $f: Function = Function::Relu2;
                $body
            }
            Function::LeakyRelu { slope } => {
                #[allow(non_snake_case)]
                let $f = Function::LeakyRelu { slope };
                $body
            }
            Function::Elu { alpha } => {
                #[allow(non_snake_case)]
                let $f = Function::Elu { alpha };
                $body
            }
            Function::Softplus => {
                const $f: Function = Function::Softplus;
                $body
            }
            Function::Mish => {
                const $f: Function = Function::Mish;
                $body
            }
            Function::QuickGelu => {
                const $f: Function = Function::QuickGelu;
                $body
            }
            Function::HardSwish => {
                const $f: Function = Function::HardSwish;
                $body
            }
            Function::HardSigmoid => {
                const $f: Function = Function::HardSigmoid;
                $body
            }
        }
    };
}

/// `y = scale·φ(x)`.
pub(super) fn values<T: Real>(function: Function, scale: f64, x: &[T], y: &mut [T]) {
    let scale = T::of(scale);
    simd(
        #[inline(always)]
        || {
            specialised!(function, F => {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = scale * both(F, *x).0;
                }
            });
        },
    );
}

/// `grad ← scale·φ'(x)·grad` and `x ← scale·φ(x)`: what the gradient of an MLP needs of its
/// hidden layer.
pub(super) fn gradients<T: Real>(function: Function, scale: f64, x: &mut [T], grad: &mut [T]) {
    let scale = T::of(scale);
    simd(
        #[inline(always)]
        || {
            specialised!(function, F => {
                for (x, grad) in x.iter_mut().zip(grad.iter_mut()) {
                    let (value, slope) = both(F, *x);
                    *grad = scale * slope * *grad;
                    *x = scale * value;
                }
            });
        },
    );
}

/// `out = f(x, grad)`, elementwise and vectorised.
#[inline(always)]
fn zip<T: Real>(out: &mut [T], x: &[T], grad: &[T], f: impl Fn(T, T) -> T) {
    simd(
        #[inline(always)]
        || {
            for ((out, x), grad) in out.iter_mut().zip(x).zip(grad) {
                *out = f(*x, *grad);
            }
        },
    );
}

impl Map {
    fn values<T: Real>(&self, x: &[T], y: &mut [T]) {
        match *self {
            Self::Activation(function, scale) => values(function, scale, x, y),
            Self::SoftCap(cap) => {
                let (cap, inverse) = (T::of(cap), T::of(cap.recip()));
                zip(
                    y,
                    x,
                    x,
                    #[inline(always)]
                    |x, _| cap * Real::tanh(x * inverse),
                );
            }
            Self::Clip(limit) => {
                let limit = T::of(limit);
                // NaN stays NaN.
                zip(
                    y,
                    x,
                    x,
                    #[inline(always)]
                    |x, _| {
                        if x > limit {
                            limit
                        } else if x < -limit {
                            -limit
                        } else {
                            x
                        }
                    },
                );
            }
        }
    }

    fn gradients<T: Real>(&self, x: &[T], grad: &[T], out: &mut [T]) {
        let (zero, one) = (T::of(0.0), T::of(1.0));
        match *self {
            Self::Activation(function, scale) => {
                let scale = T::of(scale);
                specialised!(function, F => zip(
                    out,
                    x,
                    grad,
                    #[inline(always)]
                    |x, g| scale * g * both(F, x).1,
                ));
            }
            Self::SoftCap(cap) => {
                let inverse = T::of(cap.recip());
                zip(
                    out,
                    x,
                    grad,
                    #[inline(always)]
                    |x, g| {
                        let t = Real::tanh(x * inverse);
                        g * (one - t * t)
                    },
                );
            }
            Self::Clip(limit) => {
                let limit = T::of(limit);
                zip(
                    out,
                    x,
                    grad,
                    #[inline(always)]
                    |x, g| if x > limit || x < -limit { zero } else { g },
                );
            }
        }
    }
}

impl Map {
    /// The case of `function` in activation.cu, its constant, and the factor on it.
    fn case(&self) -> (usize, f64, f64) {
        match *self {
            Self::Activation(function, scale) => {
                let (case, constant) = match function {
                    Function::Relu => (0, 0.0),
                    Function::Abs => (1, 0.0),
                    Function::GeluErf => (2, 0.0),
                    Function::GeluTanh => (3, 0.0),
                    Function::Silu => (4, 0.0),
                    Function::Tanh => (5, 0.0),
                    Function::Sigmoid => (6, 0.0),
                    Function::Identity => (7, 0.0),
                    Function::Relu2 => (8, 0.0),
                    Function::LeakyRelu { slope } => (9, slope),
                    Function::Elu { alpha } => (10, alpha),
                    Function::Softplus => (11, 0.0),
                    Function::Mish => (12, 0.0),
                    Function::QuickGelu => (13, 0.0),
                    Function::HardSwish => (14, 0.0),
                    Function::HardSigmoid => (15, 0.0),
                };
                (case, constant, scale)
            }
            Self::SoftCap(cap) => (16, cap, 1.0),
            Self::Clip(limit) => (17, limit, 1.0),
        }
    }
}

const SOURCE: Source = ("activation", include_str!("activation.cu"));

impl OnGpu for Map {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn forward(&self, dims: &[&[usize]]) -> Work {
        let (n, (case, constant, scale)) = (dims[0].iter().product(), self.case());
        let arguments = arguments![[0], [1]; n, case, constant, scale];
        Work::new(SOURCE, vec![Launch::each("map", n, arguments)], vec![dims[0].to_vec()])
    }

    fn backward(&self, dims: &[&[usize]], _: &[bool]) -> Work {
        let (n, (case, constant, scale)) = (dims[0].iter().product(), self.case());
        let arguments = arguments![[0], [2], [3]; n, case, constant, scale];
        Work::new(SOURCE, vec![Launch::each("map_gradient", n, arguments)], vec![dims[0].to_vec()])
    }
}

impl Kernel for Map {
    const NAME: &'static str = "elementwise";
    type Saved<T: Real> = ();

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        Ok(inputs[0].to_vec())
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, ()) {
        let x = inputs[0].data;
        let mut y = vec![T::of(0.0); x.len()];
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| self.values(x, y));
        (y, ())
    }

    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        (): (),
        grad: &[T],
        _: &[bool],
    ) -> Vec<Vec<T>> {
        let x = inputs[0].data;
        let mut out = vec![T::of(0.0); x.len()];
        let chunks = out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(grad.par_chunks(CHUNK));
        chunks.for_each(|((out, x), grad)| self.gradients(x, grad, out));
        vec![out]
    }
}
