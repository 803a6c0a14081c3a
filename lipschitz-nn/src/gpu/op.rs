//! What runs on a GPU as an operation of candle, with its gradient.

use std::sync::{Mutex, PoisonError};

use candle_core::{CudaStorage, Layout, Result, Shape, Tensor, bail};

use super::{OnGpu, cuda};
use crate::ops::operation::{Operation, run};

/// Applies it to tensors on a GPU.
pub(super) fn apply(op: impl OnGpu + Send + Sync + 'static, inputs: &[&Tensor]) -> Result<Tensor> {
    let inputs = inputs.iter().map(|x| x.contiguous()).collect::<Result<Vec<_>>>()?;
    let wanted = inputs.iter().map(Tensor::track_op).collect();
    run(Op { op, wanted, saved: Mutex::default() }, &inputs)
}

struct Op<O> {
    op: O,
    wanted: Vec<bool>,
    /// What the forward pass keeps for the gradient.
    saved: Mutex<Vec<Tensor>>,
}

impl<O: OnGpu + Send + Sync + 'static> Operation for Op<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn on_cuda(&self, inputs: &[(&CudaStorage, &Layout)]) -> Result<(CudaStorage, Shape)> {
        let dims: Vec<&[usize]> = inputs.iter().map(|(_, layout)| layout.dims()).collect();
        let made = cuda::run(&self.op.forward(&dims), inputs, &self.op.constants())?;
        let mut made = made.into_iter();
        let Some((result, dims)) = made.next() else { bail!("an operation without a result") };
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) =
            made.map(cuda::tensor).collect();
        Ok((result, Shape::from(dims)))
    }

    fn gradients(
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
