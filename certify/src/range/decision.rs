//! What ranges mean for a format: what fits, how many bits are left, which static scale suits.

use std::collections::BTreeMap;

use lipschitz_nn::graph::Site;
use serde::Serialize;

use super::{Domain, Number, Ranges, TensorRange, WeightRange};
use crate::source::Rounding;
use crate::upper::Upper;

/// The format version of a [`Decision`] as JSON.
pub const FORMAT: u32 = 1;

/// Which tensors fit a format.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// Format version, [`FORMAT`].
    pub format: u32,
    /// Version of the program that wrote it.
    pub version: String,
    /// SHA-256 over names, shapes, types and values of the weights, as in a certificate.
    pub weights_sha256: String,
    /// The type to which the stored weights were rounded first, if they were.
    pub rounding: Option<Rounding>,
    /// The inputs that it holds for.
    pub domain: Domain,
    /// The format that tensors are to fit.
    pub number: Number,
    /// Its largest finite number.
    pub end: f64,
    /// Whether every tensor fits without a scale.
    pub fits: bool,
    /// The name of the first that does not.
    pub first: Option<String>,
    /// Every tensor of a forward pass, in its order.
    pub tensors: Vec<Tensor>,
    /// Every weight.
    pub weights: Vec<Weight>,
}

/// One tensor of a forward pass.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tensor {
    /// What is proven.
    #[serde(flatten)]
    pub range: TensorRange,
    /// The largest absolute value on given data.
    pub observed: Option<f64>,
    /// What that means.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// One weight.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Weight {
    /// Its largest element.
    #[serde(flatten)]
    pub range: WeightRange,
    /// What that means.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// What a bound means for a format.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Whether the tensor fits without a scale.
    pub fits: bool,
    /// log2 of the end over the bound, rounded down; null for a bound of 0 or infinity.
    pub headroom_bits: Option<f64>,
    /// The largest k such that the tensor fits when it is multiplied by `2^k`; null for a bound of 0
    /// or infinity.
    pub scale_log2: Option<i64>,
}

impl Verdict {
    fn new(number: Number, largest: Upper) -> Self {
        Self {
            fits: number.fits(largest),
            headroom_bits: number.headroom(largest),
            scale_log2: number.scale(largest),
        }
    }
}

impl Ranges {
    /// What fits a format, beside the largest values that were observed.
    #[must_use]
    pub fn decide(self, number: Number, observed: &BTreeMap<Site, f64>) -> Decision {
        let tensor = |range: TensorRange| Tensor {
            observed: observed.get(&range.site).copied(),
            verdict: Verdict::new(number, range.largest),
            range,
        };
        let weight = |range: WeightRange| {
            let verdict = Verdict::new(number, Upper::from_f64(range.largest));
            Weight { range, verdict }
        };
        let tensors: Vec<Tensor> = self.tensors.into_iter().map(tensor).collect();
        let weights: Vec<Weight> = self.weights.into_iter().map(weight).collect();
        let first = tensors.iter().map(|t| (t.verdict.fits, &t.range.name));
        let first = first.chain(weights.iter().map(|w| (w.verdict.fits, &w.range.name)));
        let first = first.into_iter().find(|(fits, _)| !fits).map(|(_, name)| name.clone());
        Decision {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_string(),
            weights_sha256: self.weights_sha256,
            rounding: self.rounding,
            domain: self.domain,
            number,
            end: number.end(),
            fits: first.is_none(),
            first,
            tensors,
            weights,
        }
    }
}

impl Decision {
    /// The first tensor whose observed value is above what is proven, by more than the rounding of a
    /// forward pass explains: a defect.
    pub fn refuted(&self) -> Option<&Tensor> {
        const ROUNDING: f64 = 1e-3;
        self.tensors.iter().find(|t| {
            let bound = t.range.largest * Upper::from_f64(1.0 + ROUNDING);
            t.observed.is_some_and(|found| Upper::from_f64(found) > bound)
        })
    }
}
