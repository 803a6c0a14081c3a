//! Elementwise functions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An elementwise function.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    /// x
    Identity,
    /// max(x, 0)
    Relu,
    /// |x|: its slope is ±1 everywhere, so it keeps the norm of a gradient (Anil, Lucas and Grosse,
    /// *Sorting out Lipschitz Function Approximation*, 2019).
    Abs,
    /// x·Φ(x)
    GeluErf,
    /// GELU's tanh approximation.
    GeluTanh,
    /// x·sigmoid(x)
    Silu,
    /// tanh(x)
    Tanh,
    /// 1/(1+e⁻ˣ)
    Sigmoid,
    /// max(x, 0)² (So et al., *Primer*, 2021). Its slope 2·max(x, 0) has no bound, so it has a
    /// Lipschitz constant only where its input is bounded.
    Relu2,
    /// x for x > 0, `slope`·x elsewhere.
    LeakyRelu {
        /// Slope on the left.
        slope: f64,
    },
    /// x for x > 0, `alpha`·(eˣ − 1) elsewhere (Clevert et al., 2016).
    Elu {
        /// Minus the limit on the left.
        alpha: f64,
    },
    /// ln(1+eˣ)
    Softplus,
    /// x·tanh(ln(1+eˣ)) (Misra, 2020).
    Mish,
    /// x·sigmoid(1.702·x), an approximation of GELU.
    QuickGelu,
    /// x·clip(x/6 + ½, 0, 1) (Howard et al., *Searching for MobileNetV3*, 2019).
    HardSwish,
    /// clip(x/6 + ½, 0, 1)
    HardSigmoid,
}

impl Function {
    /// Whether φ(0) = 0.
    pub fn keeps_zero(&self) -> bool {
        !matches!(self, Self::Sigmoid | Self::Softplus | Self::HardSigmoid)
    }

    /// All of them, those with a constant with one of its values.
    pub const ALL: [Self; 16] = [
        Self::Identity,
        Self::Relu,
        Self::Abs,
        Self::GeluErf,
        Self::GeluTanh,
        Self::Silu,
        Self::Tanh,
        Self::Sigmoid,
        Self::Relu2,
        Self::LeakyRelu { slope: -1.25 },
        Self::Elu { alpha: 1.5 },
        Self::Softplus,
        Self::Mish,
        Self::QuickGelu,
        Self::HardSwish,
        Self::HardSigmoid,
    ];

    /// Its constant and what that is called, if it has one.
    pub fn constant(self) -> Option<(&'static str, f64)> {
        match self {
            Self::LeakyRelu { slope } => Some(("slope", slope)),
            Self::Elu { alpha } => Some(("alpha", alpha)),
            _ => None,
        }
    }
}

/// In a word, and its constant.
impl std::fmt::Display for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::LeakyRelu { slope } => write!(f, "leakyrelu {slope}"),
            Self::Elu { alpha } => write!(f, "elu {alpha}"),
            other => f.write_str(&format!("{other:?}").to_lowercase()),
        }
    }
}
