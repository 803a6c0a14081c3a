//! What the walk asks of weights. A checkpoint answers with proven norms, a plan with caps.

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

/// Upper bounds on norms of weights, all in ℓ2, by the weight's name.
pub trait Norms {
    /// `σ_max` of a block of rows of a matrix.
    ///
    /// # Errors
    /// As all methods here: [`Error`] names the weight that nothing is known about.
    fn matrix(&self, name: &str, rows: Part) -> Result<Upper, Error>;

    /// `σ_max` of a block of columns of a matrix.
    ///
    /// # Errors
    /// See [`Norms::matrix`].
    fn columns(&self, name: &str, columns: Part) -> Result<Upper, Error>;

    /// `‖O_h V_h‖`: columns of the output projection times rows of the value projection.
    ///
    /// # Errors
    /// See [`Norms::matrix`].
    fn output_value(&self, output: &str, value: &str, columns: Part, rows: Part) -> Result<Upper, Error>;

    /// `‖Q_hᵀ K_h‖`.
    ///
    /// # Errors
    /// See [`Norms::matrix`].
    fn query_key(&self, query: &str, key: &str, queries: Part, keys: Part) -> Result<Upper, Error>;

    /// The largest norm of a row of a matrix or table.
    ///
    /// # Errors
    /// See [`Norms::matrix`].
    fn row(&self, name: &str) -> Result<Upper, Error>;

    /// The norm of a block of a vector.
    ///
    /// # Errors
    /// See [`Norms::matrix`].
    fn vector(&self, name: &str, part: Part) -> Result<Upper, Error>;

    /// The largest absolute element of a vector.
    ///
    /// # Errors
    /// See [`Norms::matrix`].
    fn largest(&self, name: &str) -> Result<Upper, Error>;
}
