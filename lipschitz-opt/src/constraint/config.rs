//! Which constraint, as a section of a config.

use std::collections::{BTreeMap, BTreeSet};

use lipschitz_nn::graph::Parameter;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::blocks::{PerHead, matrix_name};

/// What is done to every matrix W after a step of learning rate η, with σ its norm, `u`, `v` its
/// first singular vectors and σ_max the cap. Newhouse et al. (2025, section 3 and appendix) compare
/// them.
///
/// `tests/constraints.rs` shows every guarantee, and every limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConstraintKind {
    /// Nothing; no guarantee.
    #[default]
    None,
    /// `W ← (1−λη)W`. Under Muon `σ ≤ u/λ`, with u the norm of an update of learning rate 1. Under
    /// AdamW and SGD no guarantee.
    WeightDecay,
    /// `W ← W − λσuvᵀ`. No guarantee.
    SpectralWeightDecay,
    /// `W ← W / max(1, σ/σ_max)`. With `norm = "proven"`, `σ ≤ σ_max` under any optimizer; with
    /// `norm = "power"` no guarantee.
    SpectralNormalize,
    /// `W ← σ_max UVᵀ`: `σ ≤ σ_max` under any optimizer, and all singular values equal it to within
    /// 10⁻⁵. Matrices named in `clip` are treated as by [`ConstraintKind::SvdClip`].
    Stiefel,
    /// `W ← W + (σ_max − σ)uvᵀ`. No guarantee.
    SpectralHammer,
    /// `x − αx³`, then `x + αx³` on the singular values, with α coupled to the learning rate: `σ ≤
    /// σ_max` under any optimizer. Where the coupling does not hold,
    /// [`ConstraintKind::SpectralNormalize`] follows or takes its place.
    SpectralSoftCap,
    /// `min(x, σ_max)` on the singular values by matrix products alone: `σ ≤ σ_max` under any
    /// optimizer.
    SpectralHardCap,
    /// `min(x, σ_max)` on the singular values by an SVD: `σ ≤ σ_max` under any optimizer.
    SvdClip,
    /// Rows or columns rescaled by the sums of `|WWᵀ|` or `|WᵀW|`: `σ ≤ σ_max` under any optimizer. A
    /// kernel is rescaled so that its convolution meets the cap, on images of any size.
    AlmostOrthogonal,
}

impl ConstraintKind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::WeightDecay,
        Self::SpectralWeightDecay,
        Self::SpectralNormalize,
        Self::Stiefel,
        Self::SpectralHammer,
        Self::SpectralSoftCap,
        Self::SpectralHardCap,
        Self::SvdClip,
        Self::AlmostOrthogonal,
    ];
}

/// How spectral normalize finds σ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NormEstimator {
    /// From above, by Gram iteration.
    #[default]
    Proven,
    /// From below, by power iteration from the vector of the step before.
    Power,
}

/// How the hard cap is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HardCap {
    /// The polynomials of Newhouse et al. (2025).
    #[default]
    Quintic,
    /// The matrix sign.
    Sign,
}

/// A constant that only some constraints take.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Constant {
    Decay,
    Norm,
    Form,
    Clip,
}

/// Which constraint, and its constants.
///
/// Caps are on `‖W‖_RMS→RMS = √(in/out)·σ_max(W)`. Rows of tables are kept at RMS norm 1 along with
/// them; vectors are left alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConstraintConfig {
    /// What is done to every matrix.
    pub method: ConstraintKind,
    /// The cap, for kinds that have one. It may be left out where it is solved from a target
    /// constant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigma_max: Option<f64>,
    /// λ of weight decay, spectral weight decay, or beside the soft cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay: Option<f64>,
    /// Which matrices are constrained per head.
    #[serde(default, skip_serializing_if = "PerHead::is_default")]
    pub per_head: PerHead,
    /// How spectral normalize finds σ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm: Option<NormEstimator>,
    /// How the hard cap is computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<HardCap>,
    /// Matrices, such as `head`, whose singular values are clipped at the cap where those of the
    /// others are set to it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub clip: BTreeSet<String>,
    /// Matrices, such as `head`, whose rows are capped in place of singular values: `√in·‖row‖₂ ≤
    /// σ_max`, their RMS→∞ norm, which the RMS→RMS norm is never above.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub row_caps: BTreeSet<String>,
    /// Matrices whose columns are capped in place of singular values: `‖column‖_RMS ≤ σ_max`, their
    /// ℓ1→RMS norm. Their RMS→RMS norm is then at most `in·σ_max`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub column_caps: BTreeSet<String>,
    /// Factors on the cap of the matrices of a name, such as `query` or `head`; 1 for names that
    /// are not here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub factors: BTreeMap<String, f64>,
}

impl ConstraintConfig {
    /// A kind without constants.
    #[must_use]
    pub fn new(method: ConstraintKind) -> Self {
        Self { method, ..Self::default() }
    }

    /// A kind with a cap.
    #[must_use]
    pub fn capped(method: ConstraintKind, sigma_max: f64) -> Self {
        Self { method, sigma_max: Some(sigma_max), ..Self::default() }
    }

    /// λ, or 0.
    #[must_use]
    pub fn decay(&self) -> f64 {
        self.decay.unwrap_or(0.0)
    }

    /// λ of weight decay that is multiplied by the learning rate.
    pub(crate) fn coupled_decay(&self) -> f64 {
        match self.method {
            ConstraintKind::SpectralWeightDecay => 0.0,
            _ => self.decay(),
        }
    }

    /// The factor on the cap of a weight.
    #[must_use]
    pub fn factor(&self, parameter: &Parameter) -> f64 {
        match self.factors.get(matrix_name(&parameter.name)) {
            Some(factor) => *factor,
            None => 1.0,
        }
    }
}
