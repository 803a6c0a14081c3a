//! A fused operation for candle: a forward pass and a gradient on plain arrays, in `f32` and
//! `f64`.

use std::any::Any;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, DType, Layout, Result, Shape, Tensor, bail};

use super::operation::{Operation, run};
use crate::linalg::Real;
use crate::linalg::storage::{slice, with_slices};

/// A dense array.
#[derive(Clone, Copy)]
pub(super) struct Array<'a, T> {
    pub data: &'a [T],
    pub dims: &'a [usize],
}

impl<T> Array<'_, T> {
    /// The size of the last dimension; a kernel that asks has seen in [`Kernel::dims`] that there
    /// is one.
    pub(super) fn width(&self) -> usize {
        self.dims[self.dims.len() - 1]
    }
}

/// A differentiable operation on up to three arrays.
pub(super) trait Kernel: Send + Sync + 'static {
    const NAME: &'static str;

    /// What the gradient needs from the forward pass, besides the inputs.
    type Saved<T: Real>: Send + 'static;

    /// The shape of the result.
    ///
    /// # Errors
    /// If the inputs do not fit.
    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>>;

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, Self::Saved<T>);

    /// The gradient of each wanted input; for the others, anything of any length.
    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        saved: Self::Saved<T>,
        grad: &[T],
        wanted: &[bool],
    ) -> Vec<Vec<T>>;
}

/// Applies a kernel to CPU tensors of one float type. With `keep`, what the gradient needs is kept
/// until then; otherwise the forward pass runs again.
pub(super) fn apply<K: Kernel>(kernel: K, inputs: &[&Tensor], keep: bool) -> Result<Tensor> {
    let inputs = inputs.iter().map(|x| x.contiguous()).collect::<Result<Vec<_>>>()?;
    // Constants get no gradient: for the first layer of a network that is a third of its work.
    let wanted: Vec<bool> = inputs.iter().map(Tensor::track_op).collect();
    let keep = keep && wanted.contains(&true);
    run(Fused { kernel, wanted, keep, saved: Mutex::new(None) }, &inputs)
}

struct Fused<K> {
    kernel: K,
    wanted: Vec<bool>,
    keep: bool,
    saved: Mutex<Option<Box<dyn Any + Send>>>,
}

impl<K: Kernel> Operation for Fused<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn on_cpu(&self, inputs: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let Some((first, _)) = inputs.first() else { bail!("{} has no inputs", K::NAME) };
        match first {
            CpuStorage::F32(_) => self.fwd_in::<f32>(inputs),
            CpuStorage::F64(_) => self.fwd_in::<f64>(inputs),
            _ => bail!("{} runs in f32 and f64", K::NAME),
        }
    }

    fn gradients(
        &self,
        inputs: &[&Tensor],
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        match grad.dtype() {
            DType::F32 => self.bwd_in::<f32>(inputs, grad),
            _ => self.bwd_in::<f64>(inputs, grad),
        }
    }
}

impl<K: Kernel> Fused<K> {
    fn fwd_in<T: Real>(&self, inputs: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let dims = inputs.iter().map(|(_, l)| l.dims()).collect::<Vec<_>>();
        let shape = self.kernel.dims(&dims)?;
        let mut arrays = Vec::with_capacity(inputs.len());
        for ((storage, layout), dims) in inputs.iter().zip(dims) {
            arrays.push(Array { data: slice::<T>(storage, layout)?, dims });
        }
        let (out, saved) = self.kernel.forward(&arrays);
        if self.keep {
            *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(saved));
        }
        Ok((T::to_cpu_storage_owned(out), Shape::from(shape)))
    }

    fn bwd_in<T: Real>(&self, inputs: &[&Tensor], grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let kept = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let kept = kept.and_then(|saved| saved.downcast::<K::Saved<T>>().ok());
        let grad = grad.contiguous()?;
        let mut tensors = inputs.to_vec();
        tensors.push(&grad);
        let gradients = with_slices::<T, _>(&tensors, |slices| {
            let (grad, data) = slices.split_last().map_or((&[][..], slices), |(g, d)| (*g, d));
            let arrays: Vec<_> =
                data.iter().zip(inputs).map(|(data, t)| Array { data, dims: t.dims() }).collect();
            let saved = kept.map_or_else(|| self.kernel.forward(&arrays).1, |saved| *saved);
            self.kernel.backward(&arrays, saved, grad, &self.wanted)
        })?;
        let wrap = |((g, x), wanted): ((Vec<T>, &&Tensor), &bool)| match wanted {
            true => Tensor::from_vec(g, x.shape(), x.device()).map(Some),
            false => Ok(None),
        };
        gradients.into_iter().zip(inputs).zip(&self.wanted).map(wrap).collect()
    }
}
