//! Where a proof reads its weights: a model in memory, or a checkpoint on disk, one tensor at a
//! time.

use candle_core::{DType, Tensor};
use lipschitz_nn::checkpoint::{Origin, Reader};
use lipschitz_nn::{Graph, Model};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;

/// A floating-point type that weights are rounded to, to nearest, ties to even.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// 8 bits of precision.
    Bf16,
    /// 11 bits, up to 65504.
    F16,
}

impl Rounding {
    /// Candle's name of the type.
    pub fn dtype(self) -> DType {
        match self {
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

/// A network whose weights can be read one by one.
pub trait Source {
    /// The network.
    fn graph(&self) -> &Graph;

    /// The names of all weights, in order.
    fn names(&self) -> Vec<String>;

    /// The weight of this name, on the CPU.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is none; [`Error::Network`] if it cannot be read.
    fn tensor(&self, name: &str) -> Result<Tensor, Error>;

    /// The type to which the stored weights are rounded, if they are.
    fn rounding(&self) -> Option<Rounding> {
        None
    }

    /// The origin of an imported network; none is known for a model in memory.
    fn origin(&self) -> Option<&Origin> {
        None
    }
}

/// The network that inference in a smaller floating-point type runs: every weight is rounded.
pub struct Rounded<'a> {
    /// The network as it is stored.
    pub source: &'a dyn Source,
    /// The type to which its weights are rounded.
    pub to: Rounding,
}

impl Source for Rounded<'_> {
    fn graph(&self) -> &Graph {
        self.source.graph()
    }

    fn names(&self) -> Vec<String> {
        self.source.names()
    }

    fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        Ok(self.source.tensor(name)?.to_dtype(self.to.dtype())?)
    }

    fn rounding(&self) -> Option<Rounding> {
        Some(self.to)
    }

    fn origin(&self) -> Option<&Origin> {
        self.source.origin()
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
        let weight = self
            .weights()
            .get(name)
            .ok_or_else(|| Error::Unknown(format!("the weight `{name}`")))?;
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
