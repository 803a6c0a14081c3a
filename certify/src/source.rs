//! Where a proof reads its weights: a model in memory, or a checkpoint on disk, one tensor at a
//! time.

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::checkpoint::{Origin, Reader};
use lipschitz_nn::{Graph, Model};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::number::Number;
use crate::upper::Upper;

/// A type of few bits that weights are rounded to, to nearest, ties to even. For those of 8 bits each
/// weight has a factor, the largest power of two that keeps it within the ends of the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// 8 bits of precision.
    Bf16,
    /// 11 bits, up to 65504.
    F16,
    /// 4 bits of precision, up to 448.
    E4m3,
    /// 3 bits, up to 57344.
    E5m2,
    /// Whole numbers up to 127.
    Int8,
}

impl From<Number> for Rounding {
    fn from(number: Number) -> Self {
        match number {
            Number::E4m3 => Self::E4m3,
            Number::E5m2 => Self::E5m2,
            Number::Fp16 => Self::F16,
            Number::Bf16 => Self::Bf16,
            Number::Int8 => Self::Int8,
        }
    }
}

impl Rounding {
    /// Candle's type that rounded weights are held in: for 8 bits one that holds them exactly.
    pub fn dtype(self) -> DType {
        match self {
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
            Self::E4m3 | Self::E5m2 | Self::Int8 => DType::F64,
        }
    }

    /// The type's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::E4m3 => "e4m3",
            Self::E5m2 => "e5m2",
            Self::Int8 => "int8",
        }
    }

    /// In words, for an assumption: what each weight is rounded to.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Bf16 => "to bf16",
            Self::F16 => "to f16",
            Self::E4m3 => "to e4m3, times a power of two that fits its largest element,",
            Self::E5m2 => "to e5m2, times a power of two that fits its largest element,",
            Self::Int8 => "to int8, times a power of two that fits its largest element,",
        }
    }

    /// A weight of f64, rounded to nearest: conversions of the library look at the upper half alone.
    fn narrow(self, weight: &Tensor) -> Result<Tensor, Error> {
        let number = if self == Self::Bf16 { Number::Bf16 } else { Number::Fp16 };
        // What is beyond the end is named by whoever reads it.
        let round = |x: f64| if x.abs() > number.end() { f64::INFINITY } else { number.round(x) };
        let values = weight.detach().flatten_all()?.to_vec1::<f64>()?;
        let values: Vec<f64> = values.into_iter().map(round).collect();
        Ok(Tensor::from_vec(values, weight.dims(), &Device::Cpu)?.to_dtype(self.dtype())?)
    }

    /// The weight, rounded.
    fn round(self, weight: &Tensor) -> Result<Tensor, Error> {
        let number = match self {
            Self::Bf16 | Self::F16 if weight.dtype() == DType::F64 => return self.narrow(weight),
            Self::Bf16 | Self::F16 => return Ok(weight.to_dtype(self.dtype())?),
            Self::E4m3 => Number::E4m3,
            Self::E5m2 => Number::E5m2,
            Self::Int8 => Number::Int8,
        };
        let values = weight.detach().flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let largest = values.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
        if !largest.is_finite() {
            // To be named by whoever reads it.
            return Ok(weight.clone());
        }
        let k = number.scale(Upper::from_f64(largest)).unwrap_or(0);
        // Both products are exact: numbers of few digits, far from the ends of f64.
        let Some(k) = i32::try_from(k).ok().filter(|k| k.abs() <= 900) else {
            let (name, what) = (self.name(), "is too far from 1 to be scaled to");
            return Err(Error::Data(format!(
                "a weight whose largest element is {largest:e} {what} {name}"
            )));
        };
        let (up, down) = (2f64.powi(k), 2f64.powi(-k));
        let values: Vec<f64> = values.into_iter().map(|x| number.round(x * up) * down).collect();
        Ok(Tensor::from_vec(values, weight.dims(), &Device::Cpu)?)
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

/// The network that inference in a type of few bits runs: every weight is rounded.
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
        self.to.round(&self.source.tensor(name)?)
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
