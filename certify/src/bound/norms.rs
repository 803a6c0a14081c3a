//! What the walk asks of weights. A checkpoint answers with proven norms, a plan with caps.

use std::fmt;

use crate::Error;
use crate::upper::Upper;

/// A block of rows (or columns) of a matrix: number `index` of `count` equal ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Part {
    /// Which.
    pub index: usize,
    /// Of how many.
    pub count: usize,
}

impl Part {
    /// The whole.
    pub const ALL: Part = Part { index: 0, count: 1 };
}

/// A part of a weight matrix, as the walk meets it: `W[rows, columns]·diag(γ)`, with γ the gain of a norm in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The weight's name.
    pub weight: String,
    /// Which rows.
    pub rows: Part,
    /// Which columns.
    pub columns: Part,
    /// The name of γ, if a norm's gain is folded in.
    pub gain: Option<String>,
}

impl Block {
    /// All of a weight.
    pub fn whole(weight: impl Into<String>) -> Self {
        Self { weight: weight.into(), rows: Part::ALL, columns: Part::ALL, gain: None }
    }

    /// Its block of rows.
    pub fn rows(self, rows: Part) -> Self {
        Self { rows, ..self }
    }

    /// Its block of columns.
    pub fn columns(self, columns: Part) -> Self {
        Self { columns, ..self }
    }

    /// With a gain folded in.
    pub fn gain(self, gain: Option<String>) -> Self {
        Self { gain, ..self }
    }
}

/// `w`, `w rows 1/4`, `w · diag g`: the name of a row in a certificate.
impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.weight)?;
        for (side, part) in [("rows", self.rows), ("columns", self.columns)] {
            if part.count > 1 {
                write!(f, " {side} {}/{}", part.index + 1, part.count)?;
            }
        }
        match &self.gain {
            Some(gain) => write!(f, " · diag {gain}"),
            None => Ok(()),
        }
    }
}

/// Upper bounds on norms of weights, all in ℓ2.
pub trait Norms {
    /// `σ_max` of a block.
    ///
    /// # Errors
    /// As all methods here: [`Error`] names the weight that nothing is known about.
    fn matrix(&self, block: &Block) -> Result<Upper, Error>;

    /// `‖A B‖`, such as O_h V_h.
    ///
    /// # Errors
    /// See [`Norms::matrix`].
    fn product(&self, a: &Block, b: &Block) -> Result<Upper, Error>;

    /// `‖Aᵀ B‖`, such as Q_hᵀ K_h.
    ///
    /// # Errors
    /// See [`Norms::matrix`].
    fn transposed_product(&self, a: &Block, b: &Block) -> Result<Upper, Error>;

    /// The largest norm of a row.
    ///
    /// # Errors
    /// See [`Norms::matrix`].
    fn row(&self, block: &Block) -> Result<Upper, Error>;

    /// The largest distance of two rows.
    ///
    /// # Errors
    /// See [`Norms::matrix`].
    fn row_difference(&self, block: &Block) -> Result<Upper, Error>;

    /// The norm of `W β + b` for a block of rows, either of them absent as zero.
    ///
    /// # Errors
    /// See [`Norms::matrix`].
    fn offset(&self, block: &Block, beta: Option<&str>, bias: Option<&str>) -> Result<Upper, Error>;

    /// The norm of a vector.
    ///
    /// # Errors
    /// See [`Norms::matrix`].
    fn vector(&self, name: &str) -> Result<Upper, Error>;

    /// The largest absolute element of a vector.
    ///
    /// # Errors
    /// See [`Norms::matrix`].
    fn largest(&self, name: &str) -> Result<Upper, Error>;
}
