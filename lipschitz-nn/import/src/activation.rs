//! Elementwise functions by their names in configs.

use lipschitz_nn::Error;
use lipschitz_nn::graph::{Function, Node, Op};

use crate::config::ConfigReader;

/// An elementwise function by its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NamedActivation(Function);

impl NamedActivation {
    pub(crate) const fn plain(function: Function) -> Self {
        Self(function)
    }

    pub(crate) fn read(config: &ConfigReader, key: &str) -> Result<Self, Error> {
        let name = config.text(key)?;
        Self::named(name)
            .ok_or_else(|| config.wrong(key, format!("names an unknown activation `{name}`")))
    }

    /// By its name in configs.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(Self(match name {
            "linear" => Function::Identity,
            "relu" => Function::Relu,
            "relu2" => Function::Relu2,
            "leaky_relu" => Function::LeakyRelu { slope: 0.01 },
            "gelu" | "gelu_python" => Function::GeluErf,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_python_tanh"
            | "gelu_accurate" => Function::GeluTanh,
            "silu" | "swish" => Function::Silu,
            "tanh" => Function::Tanh,
            "sigmoid" => Function::Sigmoid,
            "mish" => Function::Mish,
            "quick_gelu" => Function::QuickGelu,
            "hardswish" => Function::HardSwish,
            _ => return None,
        }))
    }

    /// By its name in PyTorch, or in configs.
    pub(crate) fn in_pytorch(name: &str) -> Option<Self> {
        Some(Self(match name {
            "identity" => Function::Identity,
            "abs" => Function::Abs,
            "gelu_erf" => Function::GeluErf,
            "gelu_tanh" => Function::GeluTanh,
            "elu" => Function::Elu { alpha: 1.0 },
            "softplus" => Function::Softplus,
            "hardsigmoid" => Function::HardSigmoid,
            _ => return Self::named(name),
        }))
    }

    /// Candle computes GELU's tanh approximation in some of its models.
    pub(crate) fn approximate(self) -> Self {
        if self.0 == Function::GeluErf { Self(Function::GeluTanh) } else { self }
    }

    pub(crate) fn nodes(self) -> Vec<Node> {
        match self.0 {
            Function::Identity => Vec::new(),
            function => vec![Node::new("", Op::Activation { function, scale: 1.0 })],
        }
    }

    /// φ, for a gated unit.
    pub(crate) fn gate(self) -> Function {
        self.0
    }
}
