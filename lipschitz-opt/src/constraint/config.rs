//! Which constraint, as a section of a config.

use std::collections::{BTreeMap, BTreeSet};

use lipschitz_nn::graph::{Geometry, Parameter};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::blocks::{PerHead, matrix_name};

/// What is done to every matrix W after a step of learning rate η, with σ its norm, `u`, `v` its
/// first singular vectors and σ_max the cap. *Training Transformers with Enforced Lipschitz
/// Constants* compares them (section 3 and appendix).
///
/// What each guarantees, with norms that are proven: `tests/oracle.rs` shows every guarantee, and
/// every limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConstraintKind {
    /// Nothing; no guarantee.
    #[default]
    None,
    /// `W ← (1−λη)W`. Under Muon `σ ≤ u/λ`, with u the norm of an update of learning rate 1;
    /// weights start below it. Under AdamW and SGD no guarantee.
    WeightDecay,
    /// `W ← W − λσuvᵀ`. No guarantee under any optimizer: one singular value shrinks a step, and
    /// Muon's updates let all grow.
    SpectralWeightDecay,
    /// `W ← W / max(1, σ/σ_max)`. With `norm = "proven"`, `σ ≤ σ_max` under any optimizer. With
    /// `norm = "power"` σ is estimated from below, so no guarantee.
    SpectralNormalize,
    /// `W ← σ_max UVᵀ`: `σ ≤ σ_max` under any optimizer, and all singular values equal it but those
    /// that are tiny.
    Stiefel,
    /// `W ← W + (σ_max − σ)uvᵀ`. No guarantee: a second singular value above the cap stays there.
    SpectralHammer,
    /// `x − αx³`, then `x + αx³` on the singular values, with α coupled to the learning rate: `σ ≤
    /// σ_max` under any optimizer. The coupling needs updates of bounded norm, as Muon's are, and a
    /// learning rate that is not too large (up to about 0.3 σ_max); elsewhere
    /// [`ConstraintKind::SpectralNormalize`] follows or takes its place.
    SpectralSoftCap,
    /// `min(x, σ_max)` on the singular values, by products alone: `σ ≤ σ_max` under any optimizer.
    /// With `form = "quintic"` the published polynomials, which shrink small singular values by up
    /// to 5 % a step; with `form = "sign"` exactly, through the matrix sign.
    SpectralHardCap,
    /// `min(x, σ_max)` on the singular values by an SVD in f64 on the CPU: `σ ≤ σ_max` under any
    /// optimizer.
    SvdClip,
}

impl ConstraintKind {
    /// Every method.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::WeightDecay,
        Self::SpectralWeightDecay,
        Self::SpectralNormalize,
        Self::Stiefel,
        Self::SpectralHammer,
        Self::SpectralSoftCap,
        Self::SpectralHardCap,
        Self::SvdClip,
    ];

    /// As in a config.
    pub fn key(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::WeightDecay => "weight_decay",
            Self::SpectralWeightDecay => "spectral_weight_decay",
            Self::SpectralNormalize => "spectral_normalize",
            Self::Stiefel => "stiefel",
            Self::SpectralHammer => "spectral_hammer",
            Self::SpectralSoftCap => "spectral_soft_cap",
            Self::SpectralHardCap => "spectral_hard_cap",
            Self::SvdClip => "svd_clip",
        }
    }

    /// In tables and pictures.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "no constraint",
            Self::WeightDecay => "weight decay",
            Self::SpectralWeightDecay => "spectral weight decay",
            Self::SpectralNormalize => "spectral normalize",
            Self::Stiefel => "Stiefel",
            Self::SpectralHammer => "spectral hammer",
            Self::SpectralSoftCap => "spectral soft cap",
            Self::SpectralHardCap => "spectral hard cap",
            Self::SvdClip => "SVD clip",
        }
    }

    /// Whether it aims at a cap.
    pub fn capped(self) -> bool {
        match self {
            Self::None | Self::WeightDecay | Self::SpectralWeightDecay => false,
            Self::SpectralNormalize
            | Self::Stiefel
            | Self::SpectralHammer
            | Self::SpectralSoftCap
            | Self::SpectralHardCap
            | Self::SvdClip => true,
        }
    }

    /// Whether λ is a constant of it, and whether it has to be given.
    fn decays(self) -> Option<bool> {
        match self {
            Self::WeightDecay | Self::SpectralWeightDecay => Some(true),
            Self::SpectralSoftCap => Some(false),
            _ => None,
        }
    }
}

/// How spectral normalize finds σ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormEstimator {
    /// From above, by Gram iteration.
    #[default]
    Proven,
    /// From below, by power iteration from the vector of the step before.
    Power,
}

/// How the hard cap is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HardCap {
    /// The published polynomials.
    #[default]
    Quintic,
    /// Through the matrix sign.
    Sign,
}

/// Which constraint, and its constants.
///
/// Caps are on `‖W‖_RMS→RMS = √(in/out)·σ_max(W)`; rows of tables are kept at RMS norm 1 along with
/// them. Vectors are left alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConstraintConfig {
    /// What is done to every matrix.
    pub method: ConstraintKind,
    /// The cap, for methods that have one. Left out where it is solved from a constant to end
    /// below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigma_max: Option<f64>,
    /// λ of weight decay, spectral weight decay, or beside the soft cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay: Option<f64>,
    /// Which matrices are taken head by head.
    #[serde(default, skip_serializing_if = "whole")]
    pub per_head: PerHead,
    /// How spectral normalize finds σ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm: Option<NormEstimator>,
    /// How the hard cap is computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<HardCap>,
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

fn whole(heads: &PerHead) -> bool {
    *heads == PerHead::default()
}

impl ConstraintConfig {
    /// A method with its defaults.
    pub fn new(method: ConstraintKind) -> Self {
        Self { method, ..Self::default() }
    }

    /// A method with a cap.
    pub fn capped(method: ConstraintKind, sigma_max: f64) -> Self {
        Self { method, sigma_max: Some(sigma_max), ..Self::default() }
    }

    /// Its name, in tables and pictures.
    pub fn name(&self) -> &'static str {
        self.method.name()
    }

    /// The cap, if it has one.
    pub fn sigma_max(&self) -> Option<f64> {
        self.sigma_max.filter(|_| self.method.capped())
    }

    /// Whether nothing is left to be solved for.
    ///
    /// # Errors
    /// [`Error::Config`] if the method needs a cap and has none.
    pub fn check_complete(&self) -> Result<(), Error> {
        if self.method.capped() && self.sigma_max.is_none() {
            let key = self.method.key();
            return Err(Error::Config(format!(
                "constraint.sigma_max is missing; `{key}` needs it, or a lipschitz_target that it \
                 is solved from"
            )));
        }
        Ok(())
    }

    /// λ, or 0.
    pub fn decay(&self) -> f64 {
        self.decay.unwrap_or(0.0)
    }

    /// The factor on the cap of a weight.
    pub fn factor(&self, parameter: &Parameter) -> f64 {
        match self.factors.get(matrix_name(&parameter.name)) {
            Some(factor) => *factor,
            None => 1.0,
        }
    }

    /// Whether every constant belongs to the method and is in range.
    ///
    /// # Errors
    /// [`Error::Config`] names the first that is not.
    pub fn check(&self) -> Result<(), Error> {
        let method = self.method;
        let refuse = |text: String| Err(Error::Config(format!("constraint.{text}")));
        let stray = [
            ("sigma_max", self.sigma_max.is_some() && !method.capped()),
            ("decay", self.decay.is_some() && method.decays().is_none()),
            ("norm", self.norm.is_some() && method != ConstraintKind::SpectralNormalize),
            ("form", self.form.is_some() && method != ConstraintKind::SpectralHardCap),
            ("per_head", !whole(&self.per_head) && method == ConstraintKind::None),
            ("row_caps", !self.row_caps.is_empty() && !method.capped()),
            ("column_caps", !self.column_caps.is_empty() && !method.capped()),
            ("factors", !self.factors.is_empty() && !method.capped()),
        ];
        if let Some((key, _)) = stray.into_iter().find(|(_, stray)| *stray) {
            return refuse(format!(
                "{key} is no constant of `{}`; take it out or choose another method",
                method.key()
            ));
        }
        match self.decay {
            None if method.decays() == Some(true) => {
                return refuse(format!("decay is missing; `{}` needs it", method.key()));
            }
            Some(decay) if !(decay.is_finite() && decay >= 0.0) => {
                return refuse(format!("decay is {decay}; it must be 0 or above"));
            }
            Some(decay) if method == ConstraintKind::SpectralWeightDecay && decay > 1.0 => {
                return refuse(format!("decay is {decay}; a share of the norm is at most 1"));
            }
            _ => {}
        }
        if let Some(sigma) = self.sigma_max
            && !(sigma.is_finite() && sigma > 0.0)
        {
            return refuse(format!("sigma_max is {sigma}; it must be above 0"));
        }
        for (name, factor) in &self.factors {
            if !(factor.is_finite() && *factor > 0.0) {
                return refuse(format!("factors.{name} is {factor}; it must be above 0"));
            }
        }
        match self.row_caps.intersection(&self.column_caps).next() {
            Some(name) => {
                refuse(format!("column_caps has `{name}`, and so has row_caps; choose one"))
            }
            None => Ok(()),
        }
    }

    /// Whether every name belongs to a matrix, and to one with heads where heads are meant.
    ///
    /// # Errors
    /// [`Error::Config`] names the first that does not, and the names there are.
    pub fn check_names(&self, parameters: &[Parameter]) -> Result<(), Error> {
        let names = |heads: bool| -> BTreeSet<&str> {
            let fit =
                |p: &&Parameter| p.geometry == Geometry::Matrix && (!heads || p.heads.is_some());
            parameters.iter().filter(fit).map(|p| matrix_name(&p.name)).collect()
        };
        let (all, heads) = (names(false), names(true));
        let asked = [
            ("factors", self.factors.keys().map(String::as_str).collect::<Vec<_>>(), &all),
            ("row_caps", self.row_caps.iter().map(String::as_str).collect(), &all),
            ("column_caps", self.column_caps.iter().map(String::as_str).collect(), &all),
            ("per_head", self.per_head.names().collect(), &heads),
        ];
        for (key, names, there) in asked {
            if let Some(name) = names.into_iter().find(|name| !there.contains(name)) {
                let there = there.iter().copied().collect::<Vec<_>>().join(", ");
                let there = if there.is_empty() { "none".to_string() } else { there };
                return Err(Error::Config(format!(
                    "constraint.{key}: no such matrix is named `{name}`; there are {there}"
                )));
            }
        }
        Ok(())
    }
}
