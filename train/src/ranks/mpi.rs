//! Processes that talk through MPI.

use candle_core::{Device, Tensor};
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Root, Source};

use crate::Error;

/// The longest message, in bytes: MPI counts with 32 bits.
const MAX_MESSAGE: usize = 1 << 30;

/// All processes that were started together.
pub struct World {
    all: SimpleCommunicator,
    #[cfg(feature = "nccl")]
    gpus: std::cell::OnceCell<super::nccl::Gpus>,
    /// Leaves MPI when it is dropped, so it comes last.
    _universe: Universe,
}

impl World {
    /// Joins them.
    pub fn join() -> Result<Self, Error> {
        // A single thread communicates.
        let (universe, _) =
            mpi::initialize_with_threading(Threading::Funneled).ok_or(Error::MpiStartedTwice)?;
        Ok(Self {
            all: universe.world(),
            #[cfg(feature = "nccl")]
            gpus: std::cell::OnceCell::new(),
            _universe: universe,
        })
    }

    pub fn rank(&self) -> usize {
        self.all.rank() as usize
    }

    pub fn count(&self) -> usize {
        self.all.size() as usize
    }

    pub fn connect(&self, device: &Device) -> Result<(), Error> {
        #[cfg(feature = "nccl")]
        if let Device::Cuda(device) = device {
            let mut id = super::nccl::Gpus::id(self.rank() == 0)?;
            self.all.process_at_rank(0).broadcast_into(&mut id[..]);
            let _ = self.gpus.set(super::nccl::Gpus::join(device, self.rank(), self.count(), id)?);
        }
        let _ = device;
        Ok(())
    }

    pub fn all_reduce(&self, x: &Tensor) -> Result<Tensor, Error> {
        #[cfg(feature = "nccl")]
        if let Some(gpus) = self.gpus.get() {
            return gpus.all_reduce(x);
        }
        let mine = x.flatten_all()?.to_vec1::<f32>()?;
        let mut sum = vec![0f32; mine.len()];
        self.all.all_reduce_into(&mine[..], &mut sum[..], SystemOperation::sum());
        Ok(Tensor::from_vec(sum, x.shape(), x.device())?)
    }

    pub fn broadcast(&self, owner: usize, x: &Tensor) -> Result<Tensor, Error> {
        #[cfg(feature = "nccl")]
        if let Some(gpus) = self.gpus.get() {
            return gpus.broadcast(owner, x);
        }
        let mut values = x.flatten_all()?.to_vec1::<f32>()?;
        self.all.process_at_rank(owner as i32).broadcast_into(&mut values[..]);
        Ok(Tensor::from_vec(values, x.shape(), x.device())?)
    }

    pub fn all_reduce_scalars<const N: usize>(&self, numbers: [f64; N]) -> [f64; N] {
        let mut sum = [0.0; N];
        self.all.all_reduce_into(&numbers[..], &mut sum[..], SystemOperation::sum());
        sum
    }

    pub fn gather(&self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        if self.rank() > 0 {
            let first = self.all.process_at_rank(0);
            first.send(&(bytes.len() as u64));
            bytes.chunks(MAX_MESSAGE).for_each(|part| first.send(part));
            return Vec::new();
        }
        let mut all = vec![bytes];
        for rank in 1..self.count() {
            let other = self.all.process_at_rank(rank as i32);
            let (length, _) = other.receive::<u64>();
            let mut bytes = vec![0u8; length as usize];
            bytes.chunks_mut(MAX_MESSAGE).for_each(|part| {
                other.receive_into(part);
            });
            all.push(bytes);
        }
        all
    }

    pub fn abort(&self, code: u8) -> ! {
        self.all.abort(i32::from(code))
    }
}
