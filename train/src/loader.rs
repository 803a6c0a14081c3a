//! The training batches of one process.

use candle_core::{Device, Tensor};
use lipschitz_data::{Batch, TrainingBatches};

use crate::{Error, step};

/// This process's share of each training batch, put together on the CPU one step ahead.
pub(crate) struct Loader<'a> {
    batches: Box<dyn TrainingBatches + 'a>,
    /// Examples of a whole batch.
    batch_size: usize,
    /// The first of this process's examples, and how many it has.
    first: usize,
    rows: usize,
    device: Device,
    /// The batch that [`Loader::prepare`] has put together.
    next: Option<Result<Batch, Error>>,
}

impl<'a> Loader<'a> {
    /// The share `rank` of `count` processes, of equal size each.
    ///
    /// # Errors
    /// [`Error::UnevenBatch`] if the batch cannot be shared evenly.
    pub(crate) fn new(
        batches: Box<dyn TrainingBatches + 'a>,
        batch_size: usize,
        (rank, count): (usize, usize),
        device: &Device,
    ) -> Result<Self, Error> {
        let rows = step::share(batch_size, count)?;
        Ok(Self {
            batches,
            batch_size,
            first: rank * rows,
            rows,
            device: device.clone(),
            next: None,
        })
    }

    /// The place in the batch of this process's first example.
    pub(crate) fn first(&self) -> usize {
        self.first
    }

    /// The batch of `step`: the one prepared, if there is one.
    pub(crate) fn take(&mut self, step: u64) -> Result<Batch, Error> {
        let (x, y) = match self.next.take() {
            Some(batch) => batch?,
            None => self.load(step)?,
        };
        // By the thread that uses it, since a GPU keeps to the order of each thread alone.
        Ok((x.to_device(&self.device)?, y.to_device(&self.device)?))
    }

    /// Puts the batch of `step` together for the next [`Loader::take`].
    pub(crate) fn prepare(&mut self, step: u64) {
        self.next = Some(self.load(step));
    }

    fn load(&mut self, step: u64) -> Result<Batch, Error> {
        let (x, y) = self.batches.batch(step, self.batch_size, &Device::Cpu)?;
        let own = |t: Tensor| t.narrow(0, self.first, self.rows);
        Ok((own(x)?, own(y)?))
    }
}
