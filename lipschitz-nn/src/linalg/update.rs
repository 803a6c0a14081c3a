//! Elementwise updates of a tensor in place, without a gradient.

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;

use super::CHUNK;
use super::fused::fused;
use super::real::Real;
use super::simd::simd;
use super::storage::{slice_mut, with_slices};

/// An elementwise update `x ← f(x, y₁, …, y_N)`.
pub trait Update<const N: usize>: Sync {
    /// The update of equally many elements of each; inlined into a loop that vectorises, so mark it
    /// `#[inline(always)]`.
    fn run<T: Real>(&self, x: &mut [T], y: [&[T]; N]);
}

/// Updates `x` in place by other tensors of its shape; false, and nothing done, where the fused
/// kernels do not run: other devices and float types.
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
    if !fused(&all) {
        return Ok(false);
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
            if let Some(y) = y.iter().find(|y| y.len() != x.len()) {
                bail!("{} elements cannot be updated by {}", x.len(), y.len())
            }
            x.par_chunks_mut(CHUNK).enumerate().for_each(|(i, x)| {
                let y: [&[T]; N] = std::array::from_fn(|k| &y[k][i * CHUNK..][..x.len()]);
                simd(
                    #[inline(always)]
                    || self.update.run(x, y),
                );
            });
            Ok(())
        })?
    }
}

/// `x ← a·x + b·y`.
struct Axpby {
    a: f64,
    b: f64,
}

impl Update<1> for Axpby {
    #[inline(always)]
    fn run<T: Real>(&self, x: &mut [T], [y]: [&[T]; 1]) {
        let (a, b) = (T::of(self.a), T::of(self.b));
        for (x, y) in x.iter_mut().zip(y) {
            *x = a * *x + b * *y;
        }
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
