//! What a family reads.

use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::Dialect;

use crate::config::ConfigReader;
use crate::expression::TensorExpr;
use crate::formats::files::Files;

/// A model directory: its config and its tensors.
pub(crate) struct ModelDir<'a> {
    pub config: &'a ConfigReader,
    pub files: &'a Files,
    /// Whose function is wanted.
    pub dialect: Dialect,
    /// The config's `model_type`.
    pub family: &'a str,
}

/// Two tensors that a config may say are one.
pub(crate) struct Tie {
    pub first: TensorExpr,
    pub second: TensorExpr,
    /// The tensor that is set aside, being the other one bit for bit.
    pub same: Option<String>,
    /// What the reader of a certificate should know.
    pub note: Option<String>,
}

impl ModelDir<'_> {
    /// The two as the library reads them. Where they are `tied` it takes one for both, the one that
    /// is there; but where both are there and differ, each is what it is.
    ///
    /// # Errors
    /// [`Error`] if the tensors cannot be read.
    pub(crate) fn tie(
        &self,
        tied: bool,
        first: TensorExpr,
        second: TensorExpr,
    ) -> Result<Tie, Error> {
        let there = |e: &TensorExpr| self.files.get(&e.name).is_some();
        let mut tie = Tie { first, second, same: None, note: None };
        if !tied {
            return Ok(tie);
        }
        match (there(&tie.first), there(&tie.second)) {
            (true, true) if self.files.equal(&tie.first.name, &tie.second.name)? => {
                tie.same = Some(tie.second.name.clone());
                tie.second = tie.first.clone();
            }
            (true, true) => {
                tie.note = Some(format!(
                    "`{}` differs from `{}`, to which the config ties it; each is used as it is, as \
                     the library does",
                    tie.second.name, tie.first.name
                ));
            }
            (false, true) => tie.first = tie.second.clone(),
            (_, false) => tie.second = tie.first.clone(),
        }
        Ok(tie)
    }
}
