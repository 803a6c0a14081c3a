//! The precision of matrix products.

use candle_core::{DType, Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The precision of matrix products; everything else is in the weights' own type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// The weights' own type.
    #[default]
    F32,
    /// Factors and results are rounded to bf16, sums are not: what tensor cores do. Gradients too.
    Bf16,
}

impl Precision {
    /// `a b`, for `a` of shape `[…, n, k]` and `b` of shape `[…, k, m]`.
    ///
    /// # Errors
    /// Shapes that do not fit, and candle's own.
    pub fn matmul(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        match self {
            Self::F32 => a.matmul(b),
            Self::Bf16 => {
                let round = |x: &Tensor| x.to_dtype(DType::BF16)?.contiguous();
                round(a)?.matmul(&round(b)?)?.to_dtype(a.dtype())
            }
        }
    }
}
