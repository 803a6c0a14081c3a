//! Whether a config's constants belong to its constraint, are in range, and name matrices.

use std::collections::BTreeSet;

use lipschitz_nn::graph::{Geometry, Parameter};

use super::config::{Constant, ConstraintConfig};
use super::rule::Apply;
use crate::Error;
use crate::blocks::matrix_name;

fn refuse(text: String) -> Result<(), Error> {
    Err(Error::Config(format!("constraint.{text}")))
}

impl ConstraintConfig {
    /// Whether no cap is left to be solved for.
    ///
    /// # Errors
    /// [`Error::MissingCap`] if the kind needs a cap and has none.
    pub fn check_complete(&self) -> Result<(), Error> {
        if self.method.capped() && self.sigma_max.is_none() {
            return Err(Error::MissingCap(self.method.key()));
        }
        Ok(())
    }

    /// Whether every constant belongs to the kind and is in range.
    ///
    /// # Errors
    /// [`Error::Config`] names the first that is not.
    pub fn check(&self) -> Result<(), Error> {
        self.check_kind()?;
        if let Some(decay) = self.decay
            && !(decay.is_finite() && decay >= 0.0)
        {
            return refuse(format!("decay is {decay}; it must be 0 or above"));
        }
        (self.method.rule().check)(self)?;
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
        // Each is another cap of the same matrix.
        let per_head: BTreeSet<String> = self.per_head.names().map(String::from).collect();
        let kinds = [
            ("row_caps", &self.row_caps),
            ("column_caps", &self.column_caps),
            ("clip", &self.clip),
            ("per_head", &per_head),
        ];
        for (i, (second, names)) in kinds.iter().enumerate() {
            for (first, others) in &kinds[..i.min(2)] {
                if let Some(name) = others.intersection(names).next() {
                    return refuse(format!(
                        "{second} has `{name}`, and so has {first}; choose one"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether every constant belongs to the kind.
    fn check_kind(&self) -> Result<(), Error> {
        let rule = self.method.rule();
        let takes = |constant| rule.constants.contains(&constant);
        let acts = !matches!(rule.apply, Apply::Nothing);
        let stray = [
            ("sigma_max", self.sigma_max.is_some() && !rule.capped),
            ("decay", self.decay.is_some() && !takes(Constant::Decay)),
            ("norm", self.norm.is_some() && !takes(Constant::Norm)),
            ("form", self.form.is_some() && !takes(Constant::Form)),
            ("clip", !self.clip.is_empty() && !takes(Constant::Clip)),
            ("per_head", !self.per_head.is_default() && !acts),
            ("row_caps", !self.row_caps.is_empty() && !rule.capped),
            ("column_caps", !self.column_caps.is_empty() && !rule.capped),
            ("factors", !self.factors.is_empty() && !rule.capped),
        ];
        match stray.into_iter().find(|(_, stray)| *stray) {
            Some((key, _)) => refuse(format!(
                "{key} is no constant of `{}`; take it out or choose another method",
                rule.key
            )),
            None => Ok(()),
        }
    }

    /// Whether every name belongs to a matrix, and every name in `per_head` to one with heads.
    ///
    /// # Errors
    /// [`Error::Config`] names the first that does not, and the names there are.
    pub fn check_names(&self, parameters: &[Parameter]) -> Result<(), Error> {
        let keys = self.factors.keys();
        check_matrices("constraint.factors", keys.map(String::as_str), parameters)?;
        for (key, names) in [
            ("constraint.clip", &self.clip),
            ("constraint.row_caps", &self.row_caps),
            ("constraint.column_caps", &self.column_caps),
        ] {
            check_matrices(key, names.iter().map(String::as_str), parameters)?;
        }
        check_heads("constraint.per_head", self.per_head.names(), parameters)
    }
}

fn check_matrices<'a>(
    key: &str,
    names: impl Iterator<Item = &'a str>,
    parameters: &[Parameter],
) -> Result<(), Error> {
    check_known(key, names, parameters.iter().filter(|p| p.geometry == Geometry::Matrix))
}

/// Whether every name belongs to a matrix with heads.
///
/// # Errors
/// [`Error::Config`] names the key, the first that does not, and the names there are.
pub(crate) fn check_heads<'a>(
    key: &str,
    names: impl Iterator<Item = &'a str>,
    parameters: &[Parameter],
) -> Result<(), Error> {
    let divided = |p: &&Parameter| p.geometry == Geometry::Matrix && p.heads.is_some();
    check_known(key, names, parameters.iter().filter(divided))
}

fn check_known<'a, 'b>(
    key: &str,
    mut names: impl Iterator<Item = &'a str>,
    parameters: impl Iterator<Item = &'b Parameter>,
) -> Result<(), Error> {
    let known: BTreeSet<&str> = parameters.map(|p| matrix_name(&p.name)).collect();
    let Some(name) = names.find(|name| !known.contains(name)) else { return Ok(()) };
    let known = known.into_iter().collect::<Vec<_>>().join(", ");
    let known = if known.is_empty() { "none" } else { &known };
    Err(Error::Config(format!("{key}: no such matrix is named `{name}`; there are {known}")))
}
