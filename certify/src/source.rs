//! Where a proof takes its weights from: a model in memory, or a checkpoint on disk, a tensor at a time.

use candle_core::Tensor;
use lipschitz_nn::checkpoint::{Origin, Reader};
use lipschitz_nn::{Graph, Model};

use crate::Error;

/// A network whose weights can be read one by one.
pub trait Source {
    /// The network.
    fn graph(&self) -> &Graph;

    /// The names of all weights, in order.
    fn names(&self) -> Vec<String>;

    /// A weight, on the CPU.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is none of this name; [`Error::Network`] if it cannot be read.
    fn tensor(&self, name: &str) -> Result<Tensor, Error>;

    /// Where an imported network comes from; none is known of a model in memory.
    fn origin(&self) -> Option<&Origin> {
        None
    }
}

impl Source for Model {
    fn graph(&self) -> &Graph {
        Model::graph(self)
    }

    fn names(&self) -> Vec<String> {
        self.weights().keys().cloned().collect()
    }

    fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        let weight = self.weights().get(name).ok_or_else(|| Error::Unknown(format!("the weight `{name}`")))?;
        Ok(weight.detach().to_device(&candle_core::Device::Cpu)?)
    }
}

impl Source for Reader {
    fn graph(&self) -> &Graph {
        &self.meta().graph
    }

    fn names(&self) -> Vec<String> {
        Reader::names(self)
    }

    fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        Ok(Reader::tensor(self, name)?)
    }

    fn origin(&self) -> Option<&Origin> {
        self.meta().provenance.origin.as_ref()
    }
}
