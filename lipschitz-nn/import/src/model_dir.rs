//! What a family reads.

use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::Dialect;

use crate::config::ConfigReader;
use crate::expression::TensorExpr;
use crate::formats::files::Files;
use crate::heads::Head;
use crate::pixels::Normalisation;

/// A model directory: its config and its tensors.
pub(crate) struct ModelDir<'a> {
    pub config: &'a ConfigReader,
    pub files: &'a Files,
    /// Whose function is wanted.
    pub dialect: Dialect,
    /// The config's `model_type`.
    pub family: &'a str,
    /// Which of two inputs is wanted, where a model has two.
    pub part: Option<&'a str>,
    /// What is done to pixels before the model reads them, where a file beside it says so.
    pub pixels: Option<&'a Normalisation>,
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
    /// Fails where candle's function is wanted, of a family whose candle model was not compared with
    /// the library's.
    pub(crate) fn no_candle(&self) -> Result<(), Error> {
        match self.dialect {
            Dialect::Original => Ok(()),
            Dialect::Candle => {
                let what = format!(
                    "is `{}`, whose function in candle-transformers is not known to this importer; \
                     the library's is",
                    self.family
                );
                Err(self.config.wrong("model_type", what))
            }
        }
    }

    /// Whether candle's function is wanted.
    pub(crate) fn of_candle(&self) -> bool {
        self.dialect == Dialect::Candle
    }

    /// Fails where candle's function is wanted, of a head that candle's model of the family has not.
    pub(crate) fn candle_has(&self, head: Head, heads: &[Head]) -> Result<(), Error> {
        if self.of_candle() && head != Head::Hidden && !heads.contains(&head) {
            let what = "names a class that candle-transformers has not, or not with this function";
            return Err(self.config.wrong("architectures", what));
        }
        Ok(())
    }

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
            // Some of candle's models take the one, some the other.
            (true, true) if self.of_candle() => {
                let what = format!(
                    "is true, or taken to be by candle's model, and `{}` differs from `{}`; remove \
                     the one that is not meant",
                    tie.second.name, tie.first.name
                );
                return Err(self.config.wrong("tie_word_embeddings", what));
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
