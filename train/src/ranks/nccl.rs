//! Tensors between GPUs.

use candle_core::cuda_backend::cudarc::nccl::result::NcclError;
use candle_core::cuda_backend::cudarc::nccl::safe::{Comm, Id, ReduceOp};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, InplaceOp1, Layout, Tensor, bail};

use crate::Error;

/// The GPUs of all processes.
pub(crate) struct Gpus(Comm);

fn failed(error: NcclError) -> Error {
    Error::Nccl(format!("{:?}", error.0))
}

impl Gpus {
    /// What processes find each other by: made by the first, broadcast to the others.
    pub(crate) fn id(first: bool) -> Result<[i8; 128], Error> {
        if !first {
            return Ok([0; 128]);
        }
        let id = Id::new().map_err(failed)?;
        Ok(id.internal().map(|c| c as i8))
    }

    /// Joins the others.
    pub(crate) fn join(
        device: &CudaDevice,
        rank: usize,
        count: usize,
        id: [i8; 128],
    ) -> Result<Self, Error> {
        let id = Id::uninit(id.map(|c| c as std::ffi::c_char));
        Ok(Self(Comm::from_rank(device.cuda_stream(), rank, count, id).map_err(failed)?))
    }

    pub(crate) fn all_reduce(&self, x: &Tensor) -> Result<Tensor, Error> {
        let x = x.detach().contiguous()?.copy()?;
        x.inplace_op1(&Exchange { comm: &self.0, owner: None })?;
        Ok(x)
    }

    pub(crate) fn broadcast(&self, owner: usize, x: &Tensor) -> Result<Tensor, Error> {
        let x = x.detach().contiguous()?.copy()?;
        x.inplace_op1(&Exchange { comm: &self.0, owner: Some(owner as i32) })?;
        Ok(x)
    }
}

/// A sum, or what the owner has.
struct Exchange<'a> {
    comm: &'a Comm,
    owner: Option<i32>,
}

impl InplaceOp1 for Exchange<'_> {
    fn name(&self) -> &'static str {
        "exchange"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        bail!("NCCL exchanges tensors of GPUs only")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> candle_core::Result<()> {
        let data = storage.as_cuda_slice_mut::<f32>()?;
        let done = match self.owner {
            None => self.comm.all_reduce_in_place(data, &ReduceOp::Sum),
            Some(owner) => self.comm.broadcast_in_place(data, owner),
        };
        done.map(|_| ()).map_err(|e| candle_core::Error::Msg(failed(e).to_string()))
    }
}
