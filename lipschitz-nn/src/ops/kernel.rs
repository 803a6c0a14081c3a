//! A fused operation for candle: a forward pass and a gradient on plain arrays, in `f32` and
//! `f64`.

use std::any::Any;
use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail,
};

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
    let op = Fused { kernel, wanted, keep, saved: Mutex::new(None) };
    match &inputs[..] {
        [a] => a.apply_op1(op),
        [a, b] => a.apply_op2(b, op),
        [a, b, c] => a.apply_op3(b, c, op),
        _ => bail!("{} has {} inputs", K::NAME, inputs.len()),
    }
}

struct Fused<K> {
    kernel: K,
    wanted: Vec<bool>,
    keep: bool,
    saved: Mutex<Option<Box<dyn Any + Send>>>,
}

impl<K: Kernel> Fused<K> {
    fn fwd(&self, inputs: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let Some((first, _)) = inputs.first() else { bail!("{} has no inputs", K::NAME) };
        match first {
            CpuStorage::F32(_) => self.fwd_in::<f32>(inputs),
            CpuStorage::F64(_) => self.fwd_in::<f64>(inputs),
            _ => bail!("{} runs in f32 and f64", K::NAME),
        }
    }

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

    fn bwd(&self, inputs: &[&Tensor], grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        match grad.dtype() {
            DType::F32 => self.bwd_in::<f32>(inputs, grad),
            _ => self.bwd_in::<f64>(inputs, grad),
        }
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

/// All N of a list of gradients.
pub(crate) fn exactly<const N: usize>(
    gradients: Vec<Option<Tensor>>,
) -> Result<[Option<Tensor>; N]> {
    gradients.try_into().map_err(|g: Vec<_>| {
        candle_core::Error::Msg(format!("{} gradients of {N} inputs", g.len()))
    })
}

impl<K: Kernel> CustomOp1 for Fused<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.fwd(&[(s, l)])
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [a] = exactly(Fused::bwd(self, &[x], grad)?)?;
        Ok(a)
    }
}

impl<K: Kernel> CustomOp2 for Fused<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.fwd(&[(s1, l1), (s2, l2)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = exactly(Fused::bwd(self, &[x, y], grad)?)?;
        Ok((a, b))
    }
}

impl<K: Kernel> CustomOp3 for Fused<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.fwd(&[(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = exactly(Fused::bwd(self, &[x, y, z], grad)?)?;
        Ok((a, b, c))
    }
}
