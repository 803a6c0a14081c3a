//! Elementwise updates of a tensor in place, without a gradient.

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;

use super::CHUNK;
use super::fused::fused;
use super::real::Real;
use super::simd::simd;
use super::storage::{slice_mut, with_slices};
use crate::gpu;
#[cfg(any(feature = "cuda", test))]
use crate::gpu::{Argument, Launch, Work};

/// An elementwise update `x ← f(x, y₁, …, y_N)`.
pub trait Update<const N: usize>: Sync {
    /// The update of equally many elements of each; inlined into a loop that vectorises, so mark it
    /// `#[inline(always)]`.
    fn run<T: Real>(&self, x: &mut [T], y: [&[T]; N]);

    /// The same on a GPU: the name of its kernel in update.cu, and the numbers that this takes behind the
    /// arrays and their length. None where there is no such kernel.
    fn kernel(&self) -> Option<(&'static str, Vec<f64>)> {
        None
    }
}

/// Updates `x` in place by other tensors of its shape; false, and nothing done, where no kernels run: those of a
/// GPU are in f32.
///
/// # Errors
/// Shapes that differ, and candle's own.
pub fn update<const N: usize>(
    x: &Tensor,
    y: [&Tensor; N],
    update: &impl Update<N>,
) -> Result<bool> {
    let mut all = vec![x];
    all.extend(y);
    let on_gpu = gpu::covers(&all) && update.kernel().is_some();
    if !fused(&all) && !on_gpu {
        return Ok(false);
    }
    if let Some(y) = y.iter().find(|y| y.elem_count() != x.elem_count()) {
        bail!("{} elements cannot be updated by {}", x.elem_count(), y.elem_count())
    }
    let y = y.iter().map(|y| y.detach().contiguous()).collect::<Result<Vec<_>>>()?;
    x.inplace_op1(&InPlace { update, y })?;
    Ok(true)
}

struct InPlace<'a, U, const N: usize> {
    update: &'a U,
    y: Vec<Tensor>,
}

impl<U: Update<N>, const N: usize> InplaceOp1 for InPlace<'_, U, N> {
    fn name(&self) -> &'static str {
        "update"
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        let work = work(self.update, layout.shape().elem_count());
        gpu::cuda::run(&work, &[(storage, layout)], &self.y).map(drop)
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match self.y.first().map(Tensor::dtype) {
            Some(DType::F32) => self.run::<f32>(slice_mut(storage, layout)?),
            _ => self.run::<f64>(slice_mut(storage, layout)?),
        }
    }
}

impl<U: Update<N>, const N: usize> InPlace<'_, U, N> {
    fn run<T: Real>(&self, x: &mut [T]) -> Result<()> {
        with_slices::<T, _>(&self.y.iter().collect::<Vec<_>>(), |y| {
            x.par_chunks_mut(CHUNK).enumerate().for_each(|(i, x)| {
                let y: [&[T]; N] = std::array::from_fn(|k| &y[k][i * CHUNK..][..x.len()]);
                simd(
                    #[inline(always)]
                    || self.update.run(x, y),
                );
            });
        })
    }
}

/// What an update does on a GPU, with x as array 0.
#[cfg(any(feature = "cuda", test))]
pub(crate) fn work<const N: usize>(update: &impl Update<N>, n: usize) -> Work {
    let (kernel, numbers) = update.kernel().unwrap_or_default();
    let mut arguments: Vec<Argument> = (0..=N).map(Argument::Array).collect();
    arguments.push(n.into());
    arguments.extend(numbers.into_iter().map(Argument::from));
    let source = ("update", include_str!("update.cu"));
    Work::new(source, vec![Launch::each(kernel, n, arguments)], Vec::new())
}

/// `x ← a·x + b·y`.
pub(crate) struct Axpby {
    pub(crate) a: f64,
    pub(crate) b: f64,
}

impl Update<1> for Axpby {
    #[inline(always)]
    fn run<T: Real>(&self, x: &mut [T], [y]: [&[T]; 1]) {
        let (a, b) = (T::of(self.a), T::of(self.b));
        for (x, y) in x.iter_mut().zip(y) {
            *x = a * *x + b * *y;
        }
    }

    fn kernel(&self) -> Option<(&'static str, Vec<f64>)> {
        Some(("axpby", vec![self.a, self.b]))
    }
}

/// The mean of squares of Adam: `v ← β₂v + (1−β₂)g²`.
pub struct MeanSquare {
    /// β₂
    pub beta: f64,
}

impl Update<1> for MeanSquare {
    #[inline(always)]
    fn run<T: Real>(&self, v: &mut [T], [g]: [&[T]; 1]) {
        let (old, new) = (T::of(self.beta), T::of(1.0 - self.beta));
        for (v, g) in v.iter_mut().zip(g) {
            *v = old * *v + new * (*g * *g);
        }
    }

    fn kernel(&self) -> Option<(&'static str, Vec<f64>)> {
        Some(("mean_square", vec![self.beta, 1.0 - self.beta]))
    }
}

/// A step along the direction of Adam, by the means of gradients m and of their squares v:
/// `w ← keep·w − rate·(m/c₁) / (√(v/c₂) + ε)`.
pub struct AdamStep {
    /// Factor on the weight.
    pub keep: f64,
    /// Factor on the direction.
    pub rate: f64,
    /// ε
    pub eps: f64,
    /// c₁ and c₂, what the means fall short of by their start at zero.
    pub corrections: (f64, f64),
}

impl AdamStep {
    fn factors(&self) -> [f64; 2] {
        [self.corrections.0, self.corrections.1].map(f64::recip)
    }
}

impl Update<2> for AdamStep {
    #[inline(always)]
    fn run<T: Real>(&self, w: &mut [T], [m, v]: [&[T]; 2]) {
        let [keep, rate, eps] = [self.keep, self.rate, self.eps].map(T::of);
        let [first, second] = self.factors().map(T::of);
        for ((w, m), v) in w.iter_mut().zip(m).zip(v) {
            *w = keep * *w - rate * (*m * first) / (Real::sqrt(*v * second) + eps);
        }
    }

    fn kernel(&self) -> Option<(&'static str, Vec<f64>)> {
        let [first, second] = self.factors();
        Some(("adam", vec![self.keep, self.rate, self.eps, first, second]))
    }
}

/// `x ← a·x + b·y`, in place where the fused kernels run.
///
/// # Errors
/// Shapes that differ, and candle's own.
pub fn axpby(x: &mut Tensor, a: f64, y: &Tensor, b: f64) -> Result<()> {
    if !update(x, [y], &Axpby { a, b })? {
        *x = ((x.detach() * a)? + (y.detach() * b)?)?;
    }
    Ok(())
}

/// [`axpby`] for a variable.
///
/// # Errors
/// Shapes that differ, and candle's own.
pub fn axpby_var(x: &Var, a: f64, y: &Tensor, b: f64) -> Result<()> {
    if !update(x, [y], &Axpby { a, b })? {
        x.set(&((x.as_tensor().detach() * a)? + (y.detach() * b)?)?)?;
    }
    Ok(())
}
