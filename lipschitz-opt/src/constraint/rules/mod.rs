//! The constraints, one file each, and the table that finds them.
//!
//! A new constraint is a file here with its [`Rule`], a line in [`ConstraintKind::rule`], and a
//! variant of [`ConstraintKind`]. A new constant is a field of [`ConstraintConfig`] and a line in
//! its check.

mod almost_orthogonal;
mod none;
mod spectral_hammer;
pub(super) mod spectral_hard_cap;
mod spectral_normalize;
pub(super) mod spectral_soft_cap;
mod spectral_weight_decay;
mod stiefel;
mod svd_clip;
mod weight_decay;

use lipschitz_nn::graph::{Geometry, Parameter};

use super::config::{ConstraintConfig, ConstraintKind};
use super::rule::{Apply, Promise, Rule};
use super::vectors::TABLE_ROWS;
use crate::optimizer::UpdateBound;

impl ConstraintKind {
    /// What it states about itself.
    pub(crate) fn rule(self) -> &'static Rule {
        match self {
            Self::None => &none::RULE,
            Self::WeightDecay => &weight_decay::RULE,
            Self::SpectralWeightDecay => &spectral_weight_decay::RULE,
            Self::SpectralNormalize => &spectral_normalize::RULE,
            Self::Stiefel => &stiefel::RULE,
            Self::SpectralHammer => &spectral_hammer::RULE,
            Self::SpectralSoftCap => &spectral_soft_cap::RULE,
            Self::SpectralHardCap => &spectral_hard_cap::RULE,
            Self::SvdClip => &svd_clip::RULE,
            Self::AlmostOrthogonal => &almost_orthogonal::RULE,
        }
    }

    /// The kind in a config.
    #[must_use]
    pub fn key(self) -> &'static str {
        self.rule().key
    }

    /// The kind in tables and plots.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.rule().name
    }

    /// Whether it aims at a cap.
    #[must_use]
    pub fn capped(self) -> bool {
        self.rule().capped
    }
}

impl ConstraintConfig {
    /// The kind's name in tables and plots.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.method.name()
    }

    /// The cap, if it has one.
    #[must_use]
    pub fn sigma_max(&self) -> Option<f64> {
        self.sigma_max.filter(|_| self.method.capped())
    }

    /// What is promised about a weight whose updates are of this size.
    pub(crate) fn promise(
        &self,
        parameter: &Parameter,
        update: Option<UpdateBound>,
    ) -> Option<Promise> {
        let rule = self.method.rule();
        match (parameter.geometry, &rule.apply) {
            (Geometry::Vector, _) | (_, Apply::Nothing) => None,
            (Geometry::Table, Apply::Matrices(_)) => {
                Some(Promise { sigma_max: TABLE_ROWS, heads: None, row: None, convolution: None })
            }
            _ => (rule.promise)(self, parameter, update),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};

    use super::*;

    fn parsed(key: &str) -> Result<ConstraintKind, Error> {
        let text: StrDeserializer<'_, Error> = key.into_deserializer();
        ConstraintKind::deserialize(text)
    }

    /// serde's names are the keys, and no variant is missing from the list of all.
    #[test]
    fn keys_are_what_a_config_reads() {
        for kind in ConstraintKind::ALL {
            assert_eq!(parsed(kind.key()), Ok(kind));
        }
        let known = parsed("unknown").unwrap_err().to_string();
        assert_eq!(known.matches('`').count(), 2 * (1 + ConstraintKind::ALL.len()), "{known}");
    }
}
