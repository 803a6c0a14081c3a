//! Matrices in f64, and the norms that are sums with a rounding margin.

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use lipschitz_nn::linalg::Strided;

use super::gamma;
use crate::Error;
use crate::upper::Upper;

/// Elements of a tensor that are converted together.
const PART: usize = 1 << 14;

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
    /// A matrix, or a vector as one row. Exact, as f16 and bf16 are subsets of f32, and f32 is one
    /// of f64.
    ///
    /// # Errors
    /// [`Error::Network`] names the tensor if it is not a matrix or holds NaN or infinity.
    pub fn from_tensor(name: &str, tensor: &Tensor) -> Result<Self, Error> {
        let fail =
            |what: String| Error::from(lipschitz_nn::Error::Weight { name: name.into(), what });
        let (rows, columns) = match *tensor.dims() {
            [n] => (1, n),
            [rows, columns] => (rows, columns),
            ref dims => return Err(fail(format!("has shape {dims:?}, which is not a matrix"))),
        };
        let flat = tensor.detach().to_device(&Device::Cpu)?.flatten_all()?;
        // A part at a time, so that there is no copy besides the result.
        let mut data: Vec<f64> = Vec::with_capacity(flat.elem_count());
        for from in (0..flat.elem_count()).step_by(PART) {
            let part = flat.narrow(0, from, PART.min(flat.elem_count() - from))?;
            match flat.dtype() {
                DType::F64 => data.extend(part.to_vec1::<f64>()?),
                DType::F32 => data.extend(part.to_vec1::<f32>()?.into_iter().map(f64::from)),
                DType::F16 => data.extend(part.to_vec1::<f16>()?.into_iter().map(f64::from)),
                DType::BF16 => data.extend(part.to_vec1::<bf16>()?.into_iter().map(f64::from)),
                other => {
                    return Err(fail(format!("is {other:?}; weights are f64, f32, f16 or bf16")));
                }
            }
        }
        if let Some(x) = data.iter().find(|x| !x.is_finite()) {
            return Err(fail(format!("holds {x}; the checkpoint is damaged or training diverged")));
        }
        Ok(Self { rows, columns, data })
    }

    /// The transpose.
    pub fn t(&self) -> Self {
        let data = (0..self.columns)
            .flat_map(|j| (0..self.rows).map(move |i| self.data[i * self.columns + j]))
            .collect();
        Self { rows: self.columns, columns: self.rows, data }
    }

    /// Block `index` of `count` equal blocks of rows.
    pub fn row_block(&self, index: usize, count: usize) -> Self {
        let rows = self.rows / count;
        let size = rows * self.columns;
        Self {
            rows,
            columns: self.columns,
            data: self.data[index * size..(index + 1) * size].to_vec(),
        }
    }

    /// Block `index` of `count` equal blocks of columns.
    pub fn column_block(&self, index: usize, count: usize) -> Self {
        let columns = self.columns / count;
        let data = self
            .data
            .chunks(self.columns)
            .flat_map(|row| &row[index * columns..(index + 1) * columns])
            .copied();
        Self { rows: self.rows, columns, data: data.collect() }
    }

    /// Multiplies column j by `factors[j]`.
    pub fn scale_columns(&mut self, factors: &[f64]) {
        for row in self.data.chunks_mut(self.columns.max(1)) {
            row.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
        }
    }

    pub(super) fn view(&self) -> Strided<'_, f64> {
        Strided::rows(&self.data, self.rows, self.columns, self.columns)
    }

    /// The largest absolute value of an element; infinite if there is a NaN, so that nothing is
    /// proven about it.
    pub fn largest(&self) -> f64 {
        largest(&self.data)
    }
}

/// As [`Matrix::largest`]; eight at a time, so that the loop vectorises.
pub(crate) fn largest(x: &[f64]) -> f64 {
    let (mut most, mut nan) = ([0.0_f64; 8], [false; 8]);
    let chunks = x.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        for ((most, nan), x) in most.iter_mut().zip(&mut nan).zip(chunk) {
            let x = x.abs();
            *nan |= x.is_nan();
            *most = if x > *most { x } else { *most };
        }
    }
    if nan.contains(&true) || rest.iter().any(|x| x.is_nan()) {
        return f64::INFINITY;
    }
    most.into_iter().chain(rest.iter().map(|x| x.abs())).fold(0.0, f64::max)
}

/// `x·2ⁿ`, in two steps so that the factor itself cannot overflow.
pub(crate) fn scaled(x: f64, n: i32) -> f64 {
    let half = n / 2;
    x * 2f64.powi(half) * 2f64.powi(n - half)
}

/// As [`scaled`], for each.
pub(crate) fn all_scaled(x: &[f64], n: i32) -> Vec<f64> {
    let half = n / 2;
    let (first, second) = (2f64.powi(half), 2f64.powi(n - half));
    x.iter().map(|x| x * first * second).collect()
}

/// The exponent of the smallest power of two above |x|.
pub(crate) fn exponent(x: f64) -> i32 {
    let bits = (x.abs().to_bits() >> 52) as i32;
    if bits == 0 {
        -1021 - (f64::MIN_POSITIVE / x.abs()).log2().floor() as i32
    } else {
        bits - 1022
    }
}

/// An upper bound on the ℓ2 norm.
pub fn vector_norm(x: &[f64]) -> Upper {
    vector_norm_of(x, largest(x))
}

/// As [`vector_norm`], for a vector whose [`largest`] element is known.
pub(crate) fn vector_norm_of(x: &[f64], largest: f64) -> Upper {
    if largest == 0.0 {
        return Upper::ZERO;
    }
    if largest == f64::INFINITY {
        return Upper::INFINITY;
    }
    // Scaled to at most 1 where it could overflow or lose digits; underflow changes the sum by less
    // than n·1e-300.
    let e = exponent(largest);
    let (sum, e) = if e.abs() <= 100 {
        (sum_of_squares(x), 0)
    } else {
        (sum_of_squares(&all_scaled(x, -e)), e)
    };
    let n = x.len();
    let sum =
        Upper::from_f64(sum) * (Upper::ONE + gamma(n + 2)) + Upper::from_f64(n as f64 * 1e-300);
    shift(sum.sqrt(), e)
}

/// With eight sums in parallel, so that the loop vectorises.
fn sum_of_squares(x: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let chunks = x.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|x| x * x).sum();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x * x);
    }
    sums.iter().sum::<f64>() + rest
}

/// Exactly `x·2ⁿ`.
pub(crate) fn shift(x: Upper, n: i32) -> Upper {
    let half = n / 2;
    x * Upper::from_f64(2f64.powi(half)) * Upper::from_f64(2f64.powi(n - half))
}

/// An upper bound on the largest ℓ2 norm of a row.
pub fn max_row_norm(m: &Matrix) -> Upper {
    m.data.chunks(m.columns.max(1)).fold(Upper::ZERO, |max, row| max.max(vector_norm(row)))
}

/// An upper bound on ‖Wβ + b‖.
pub fn affine_norm(w: &Matrix, beta: &[f64], bias: Option<&[f64]>) -> Upper {
    let (mut y, mut size) = (Vec::with_capacity(w.rows), Vec::with_capacity(w.rows));
    for (i, row) in w.data.chunks(w.columns.max(1)).enumerate() {
        let b = bias.map_or(0.0, |bias| bias[i]);
        y.push(row.iter().zip(beta).map(|(w, x)| w * x).sum::<f64>() + b);
        size.push(row.iter().zip(beta).map(|(w, x)| (w * x).abs()).sum::<f64>() + b.abs());
    }
    // Each sum is off by at most γ times the sum of the absolute terms, which is itself computed
    // with that relative error.
    let g = gamma(2 * w.columns + 6);
    vector_norm(&y)
        + g * vector_norm(&size)
        + Upper::from_f64((w.columns + 1) as f64 * f64::MIN_POSITIVE)
}

/// Upper bounds on the ℓ2 distances between two rows, in the order (1, 0), (2, 0), (2, 1), ….
pub fn row_differences(m: &Matrix) -> impl Iterator<Item = Upper> {
    let row = |i: usize| &m.data[i * m.columns..(i + 1) * m.columns];
    let mut difference = vec![0.0; m.columns];
    let mut distance = move |i: usize, j: usize| {
        difference.iter_mut().zip(row(i).iter().zip(row(j))).for_each(|(d, (a, b))| *d = a - b);
        // Each difference has a relative rounding error (subtraction does not underflow).
        vector_norm(&difference) * (Upper::ONE + gamma(1))
    };
    (0..m.rows).flat_map(|i| (0..i).map(move |j| (i, j))).map(move |(i, j)| distance(i, j))
}

/// An upper bound on the largest ℓ2 distance between two rows.
pub fn max_row_difference(m: &Matrix) -> Upper {
    row_differences(m).fold(Upper::ZERO, Upper::max)
}
