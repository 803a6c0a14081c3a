//! Elementwise functions by their names in configs.

use lipschitz_nn::Error;
use lipschitz_nn::graph::{Function, Node, Op};

use crate::config::ConfigReader;

/// An elementwise function by its name in the library: φ, and the factor on its argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NamedActivation {
    function: Function,
    factor: f64,
}

impl NamedActivation {
    pub(crate) fn plain(function: Function) -> Self {
        Self { function, factor: 1.0 }
    }

    pub(crate) fn read(config: &ConfigReader, key: &str) -> Result<Self, Error> {
        let name = config.text(key)?;
        Self::named(name)
            .ok_or_else(|| config.wrong(key, format!("names an unknown activation `{name}`")))
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(Self::plain(match name {
            "relu" => Function::Relu,
            "gelu" | "gelu_python" | "gelu_erf" => Function::GeluErf,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_accurate" | "gelu_tanh" => Function::GeluTanh,
            "silu" | "swish" => Function::Silu,
            "tanh" => Function::Tanh,
            "sigmoid" => Function::Sigmoid,
            // x·sigmoid(1.702 x) is SiLU of 1.702 x, over 1.702.
            "quick_gelu" => return Some(Self { function: Function::Silu, factor: 1.702 }),
            _ => return None,
        }))
    }

    /// Candle weights GELU's tanh approximation in some of its models.
    pub(crate) fn approximate(self) -> Self {
        if self == Self::plain(Function::GeluErf) { Self::plain(Function::GeluTanh) } else { self }
    }

    pub(crate) fn nodes(self) -> Vec<Node> {
        let phi = |scale| Node::new("", Op::Activation { function: self.function, scale });
        if self.factor == 1.0 {
            return vec![phi(1.0)];
        }
        vec![Node::new("", Op::Scale { factor: self.factor }), phi(self.factor.recip())]
    }

    /// φ, for a gated unit.
    pub(crate) fn gate(self, config: &ConfigReader, key: &str) -> Result<Function, Error> {
        if self.factor == 1.0 {
            Ok(self.function)
        } else {
            Err(config.wrong(key, "is not supported in a gated unit"))
        }
    }
}
