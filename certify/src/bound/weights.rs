//! The norms of a checkpoint's weights, each worked out once.

use std::cell::RefCell;

use lipschitz_nn::Model;

use super::{Norms, Part};
use crate::Error;
use crate::certificate::MatrixRow;
use crate::spectral::{Interval, Matrix, Method, max_row_norm, product_norm, spectral_norm, vector_norm};
use crate::upper::Upper;

/// Norms of a model's weights by one method; remembers each spectral norm, in the order asked for.
pub struct WeightNorms<'a> {
    model: &'a Model,
    method: Method,
    rows: RefCell<Vec<MatrixRow>>,
}

impl<'a> WeightNorms<'a> {
    /// For a model whose weights are finite.
    ///
    /// # Errors
    /// [`Error::Network`] names the first weight that holds NaN or infinity.
    pub fn new(model: &'a Model, method: Method) -> Result<Self, Error> {
        model.check_finite()?;
        Ok(Self { model, method, rows: RefCell::default() })
    }

    /// Every spectral norm asked for.
    pub fn into_rows(self) -> Vec<MatrixRow> {
        self.rows.into_inner()
    }

    fn load(&self, name: &str) -> Result<Matrix, Error> {
        let weight = self.model.weights().get(name).ok_or_else(|| Error::Unknown(format!("the weight `{name}`")))?;
        Matrix::from_tensor(name, weight)
    }

    fn once(&self, name: String, norm: impl FnOnce() -> Result<Interval, Error>) -> Result<Upper, Error> {
        if let Some(row) = self.rows.borrow().iter().find(|row| row.name == name) {
            return Ok(row.upper);
        }
        let Interval { lower, upper, method } = norm()?;
        self.rows.borrow_mut().push(MatrixRow { name, lower, upper, method });
        Ok(upper)
    }
}

/// A name for a block: the whole has none.
fn label(name: &str, side: &str, part: Part) -> String {
    if part.count == 1 { name.to_string() } else { format!("{name} {side} {}/{}", part.index + 1, part.count) }
}

impl Norms for WeightNorms<'_> {
    fn matrix(&self, name: &str, rows: Part) -> Result<Upper, Error> {
        let norm = || Ok(spectral_norm(&self.load(name)?.row_block(rows.index, rows.count), self.method));
        self.once(label(name, "rows", rows), norm)
    }

    fn columns(&self, name: &str, columns: Part) -> Result<Upper, Error> {
        let norm = || Ok(spectral_norm(&self.load(name)?.column_block(columns.index, columns.count), self.method));
        self.once(label(name, "columns", columns), norm)
    }

    fn output_value(&self, output: &str, value: &str, columns: Part, rows: Part) -> Result<Upper, Error> {
        let name = format!("{} · {}", label(output, "columns", columns), label(value, "rows", rows));
        self.once(name, || {
            let output = self.load(output)?.column_block(columns.index, columns.count);
            let value = self.load(value)?.row_block(rows.index, rows.count);
            Ok(product_norm(&output, &value, self.method))
        })
    }

    fn query_key(&self, query: &str, key: &str, queries: Part, keys: Part) -> Result<Upper, Error> {
        let name = format!("{}ᵀ · {}", label(query, "rows", queries), label(key, "rows", keys));
        self.once(name, || {
            let query = self.load(query)?.row_block(queries.index, queries.count).t();
            let key = self.load(key)?.row_block(keys.index, keys.count);
            Ok(product_norm(&query, &key, self.method))
        })
    }

    fn row(&self, name: &str) -> Result<Upper, Error> {
        Ok(max_row_norm(&self.load(name)?))
    }

    fn vector(&self, name: &str, part: Part) -> Result<Upper, Error> {
        let m = self.load(name)?;
        let size = m.data.len() / part.count;
        Ok(vector_norm(&m.data[part.index * size..(part.index + 1) * size]))
    }

    fn largest(&self, name: &str) -> Result<Upper, Error> {
        Ok(Upper::from_f64(self.load(name)?.largest()))
    }
}
