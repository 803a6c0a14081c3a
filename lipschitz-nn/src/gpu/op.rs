//! What runs on a GPU as an operation of candle, with its gradient.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail,
};

use super::{OnGpu, cuda};
use crate::ops::kernel::exactly;

/// Applies it to tensors on a GPU.
pub(super) fn apply(op: impl OnGpu + Send + Sync + 'static, inputs: &[&Tensor]) -> Result<Tensor> {
    let inputs = inputs.iter().map(|x| x.contiguous()).collect::<Result<Vec<_>>>()?;
    let wanted = inputs.iter().map(Tensor::track_op).collect();
    let op = Op { op, wanted, saved: Mutex::default() };
    match &inputs[..] {
        [a] => a.apply_op1(op),
        [a, b] => a.apply_op2(b, op),
        [a, b, c] => a.apply_op3(b, c, op),
        _ => bail!("an operation of a GPU has {} inputs", inputs.len()),
    }
}

struct Op<O> {
    op: O,
    wanted: Vec<bool>,
    /// What the forward pass keeps for the gradient.
    saved: Mutex<Vec<Tensor>>,
}

impl<O: OnGpu> Op<O> {
    fn fwd(&self, inputs: &[(&CudaStorage, &Layout)]) -> Result<(CudaStorage, Shape)> {
        let dims: Vec<&[usize]> = inputs.iter().map(|(_, layout)| layout.dims()).collect();
        let made = cuda::run(&self.op.forward(&dims), inputs, &self.op.constants())?;
        let mut made = made.into_iter();
        let Some((result, dims)) = made.next() else { bail!("an operation without a result") };
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) =
            made.map(cuda::tensor).collect();
        Ok((result, Shape::from(dims)))
    }

    fn bwd(
        &self,
        inputs: &[&Tensor],
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let dims: Vec<&[usize]> = inputs.iter().map(|x| x.dims()).collect();
        let mut arrays: Vec<Tensor> = inputs.iter().map(|x| (*x).clone()).collect();
        arrays.extend(self.op.constants());
        arrays.push(result.clone());
        arrays.extend(self.saved.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        arrays.push(grad.contiguous()?);
        let made = cuda::run(&self.op.backward(&dims, &self.wanted), &[], &arrays)?;
        let of = |(made, wanted): (_, &bool)| wanted.then(|| cuda::tensor(made));
        Ok(made.into_iter().zip(&self.wanted).map(of).collect())
    }
}

const NOT_HERE: &str = "an operation of a GPU on a processor";

impl<O: OnGpu + Send + Sync> CustomOp1 for Op<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("{NOT_HERE}")
    }

    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        self.fwd(&[(s, l)])
    }

    fn bwd(&self, x: &Tensor, result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [a] = exactly(Op::bwd(self, &[x], result, grad)?)?;
        Ok(a)
    }
}

impl<O: OnGpu + Send + Sync> CustomOp2 for Op<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("{NOT_HERE}")
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.fwd(&[(s1, l1), (s2, l2)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = exactly(Op::bwd(self, &[x, y], result, grad)?)?;
        Ok((a, b))
    }
}

impl<O: OnGpu + Send + Sync> CustomOp3 for Op<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("{NOT_HERE}")
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.fwd(&[(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = exactly(Op::bwd(self, &[x, y, z], result, grad)?)?;
        Ok((a, b, c))
    }
}
