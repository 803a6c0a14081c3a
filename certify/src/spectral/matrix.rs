//! Matrices in f64, and the norms that need no proof.

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::ops::Strided;

use super::gamma;
use crate::Error;
use crate::upper::Upper;

/// A row-major matrix of finite numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// `rows·columns` elements.
    pub data: Vec<f64>,
}

impl Matrix {
    /// A matrix, or a vector as one row; exact, as f16, bf16 and f32 are subsets of f64.
    ///
    /// # Errors
    /// [`Error::Network`] names the tensor if it is not a matrix or holds NaN or infinity.
    pub fn from_tensor(name: &str, tensor: &Tensor) -> Result<Self, Error> {
        let fail = |what: String| Error::from(lipschitz_nn::Error::Weight { name: name.into(), what });
        let (rows, columns) = match *tensor.dims() {
            [n] => (1, n),
            [rows, columns] => (rows, columns),
            ref dims => return Err(fail(format!("has shape {dims:?}, which is not a matrix"))),
        };
        let values = tensor.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        let data = values.flatten_all()?.to_vec1::<f64>()?;
        if let Some(x) = data.iter().find(|x| !x.is_finite()) {
            return Err(fail(format!("holds {x}; the checkpoint is damaged or training diverged")));
        }
        Ok(Self { rows, columns, data })
    }

    /// The transpose.
    pub fn t(&self) -> Self {
        let data =
            (0..self.columns).flat_map(|j| (0..self.rows).map(move |i| self.data[i * self.columns + j])).collect();
        Self { rows: self.columns, columns: self.rows, data }
    }

    /// Block number `index` of `count` equal blocks of rows.
    pub fn row_block(&self, index: usize, count: usize) -> Self {
        let rows = self.rows / count;
        let size = rows * self.columns;
        Self { rows, columns: self.columns, data: self.data[index * size..(index + 1) * size].to_vec() }
    }

    /// Block number `index` of `count` equal blocks of columns.
    pub fn column_block(&self, index: usize, count: usize) -> Self {
        let columns = self.columns / count;
        let data = self.data.chunks(self.columns).flat_map(|row| &row[index * columns..(index + 1) * columns]).copied();
        Self { rows: self.rows, columns, data: data.collect() }
    }

    pub(super) fn view(&self) -> Strided<'_, f64> {
        Strided::rows(&self.data, self.rows, self.columns, self.columns)
    }

    /// The largest absolute element.
    pub fn largest(&self) -> f64 {
        self.data.iter().fold(0.0, |m: f64, x| m.max(x.abs()))
    }
}

/// `x·2ⁿ`, in two steps so that the factor itself cannot overflow.
pub(super) fn scaled(x: f64, n: i32) -> f64 {
    let half = n / 2;
    x * 2f64.powi(half) * 2f64.powi(n - half)
}

/// The exponent of the power of two just above |x|.
pub(super) fn exponent(x: f64) -> i32 {
    let bits = (x.abs().to_bits() >> 52) as i32;
    if bits == 0 { -1021 - (f64::MIN_POSITIVE / x.abs()).log2().floor() as i32 } else { bits - 1022 }
}

/// Not below the ℓ2 norm.
pub fn vector_norm(x: &[f64]) -> Upper {
    let largest = x.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    if largest == 0.0 {
        return Upper::ZERO;
    }
    // Scaled to at most 1: no overflow, and what underflows is less than n·2⁻¹⁰⁷⁰ in the sum.
    let e = exponent(largest);
    let sum: f64 = x.iter().map(|x| scaled(*x, -e)).map(|x| x * x).sum();
    let n = x.len();
    let sum = Upper::from_f64(sum) * (Upper::ONE + gamma(n + 2)) + Upper::from_f64(n as f64 * 1e-300);
    shift(sum.sqrt(), e)
}

/// Exactly `x·2ⁿ`.
pub(super) fn shift(x: Upper, n: i32) -> Upper {
    let half = n / 2;
    x * Upper::from_f64(2f64.powi(half)) * Upper::from_f64(2f64.powi(n - half))
}

/// Not below the largest ℓ2 norm of a row.
pub fn max_row_norm(m: &Matrix) -> Upper {
    m.data.chunks(m.columns.max(1)).fold(Upper::ZERO, |max, row| max.max(vector_norm(row)))
}

/// Not below the largest ℓ2 distance of two rows.
pub fn max_row_difference(m: &Matrix) -> Upper {
    let rows: Vec<&[f64]> = m.data.chunks(m.columns.max(1)).collect();
    let mut max = Upper::ZERO;
    for (i, a) in rows.iter().enumerate() {
        for b in &rows[..i] {
            let difference: Vec<f64> = a.iter().zip(*b).map(|(a, b)| a - b).collect();
            // Each difference is rounded once, relatively (subtraction does not underflow).
            max = max.max(vector_norm(&difference) * (Upper::ONE + gamma(1)));
        }
    }
    max
}
