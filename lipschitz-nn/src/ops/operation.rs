//! An operation for candle on one to three tensors, with its gradient.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail,
};

/// What is computed where, and the gradient.
pub(crate) trait Operation: Send + Sync + 'static {
    /// In messages.
    fn name(&self) -> &'static str;

    /// The result on a processor.
    ///
    /// # Errors
    /// Inputs that do not fit, and where it runs elsewhere alone.
    fn on_cpu(&self, _: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        bail!("{}: no kernel for a processor", self.name())
    }

    /// The result on a GPU.
    ///
    /// # Errors
    /// As [`Operation::on_cpu`].
    fn on_cuda(&self, _: &[(&CudaStorage, &Layout)]) -> Result<(CudaStorage, Shape)> {
        bail!("{}: no kernel for a GPU", self.name())
    }

    /// The gradients of the inputs, by the result and its gradient; none where none is wanted.
    ///
    /// # Errors
    /// Candle's own.
    fn gradients(
        &self,
        inputs: &[&Tensor],
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>>;
}

/// Applies an operation to tensors, which it gets contiguous.
///
/// # Errors
/// More than three inputs, and what the operation gives.
pub(crate) fn run(op: impl Operation, inputs: &[Tensor]) -> Result<Tensor> {
    let name = op.name();
    match inputs {
        [a] => a.apply_op1(Custom(op)),
        [a, b] => a.apply_op2(b, Custom(op)),
        [a, b, c] => a.apply_op3(b, c, Custom(op)),
        _ => bail!("{name} has {} inputs", inputs.len()),
    }
}

struct Custom<O>(O);

/// All N of a list of gradients.
fn exactly<const N: usize>(gradients: Vec<Option<Tensor>>) -> Result<[Option<Tensor>; N]> {
    gradients.try_into().map_err(|g: Vec<_>| {
        candle_core::Error::Msg(format!("{} gradients of {N} inputs", g.len()))
    })
}

impl<O: Operation> CustomOp1 for Custom<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.on_cpu(&[(s, l)])
    }

    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        self.0.on_cuda(&[(s, l)])
    }

    fn bwd(&self, x: &Tensor, result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [a] = exactly(self.0.gradients(&[x], result, grad)?)?;
        Ok(a)
    }
}

impl<O: Operation> CustomOp2 for Custom<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.0.on_cpu(&[(s1, l1), (s2, l2)])
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.0.on_cuda(&[(s1, l1), (s2, l2)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = exactly(self.0.gradients(&[x, y], result, grad)?)?;
        Ok((a, b))
    }
}

impl<O: Operation> CustomOp3 for Custom<O> {
    fn name(&self) -> &'static str {
        self.0.name()
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
        self.0.on_cpu(&[(s1, l1), (s2, l2), (s3, l3)])
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
        self.0.on_cuda(&[(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = exactly(self.0.gradients(&[x, y, z], result, grad)?)?;
        Ok((a, b, c))
    }
}
