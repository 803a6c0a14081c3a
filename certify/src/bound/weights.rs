//! The norms of a checkpoint's weights. Each is computed once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::norms::{Block, Norm, Norms, Part};
use super::rows::WeightRow;
use crate::Error;
use crate::source::Source;
use crate::spectral::{
    Interval, Matrix, Method, affine_norm, convolution_norm, max_row_difference, max_row_norm,
    product_norm, row_differences, spectral_norm, vector_norm,
};
use crate::upper::Upper;

/// A published norm is looser than the proven one by this relative amount, so that another machine,
/// whose rounding differs, can prove it again.
pub const SLACK: f64 = 1.0 / (1u64 << 30) as f64;

/// The computation of a norm, with the matrices that it is of.
type Job = Box<dyn FnOnce() -> Interval + Send>;

/// Norms that are computed side by side, so that their matrices have room.
const BESIDE: usize = 16;

/// Called with the name of each norm before it is computed.
pub type Watch<'a> = &'a dyn Fn(&str);

/// Norms of a network's weights by one method. Each is kept, in the order of first use.
pub struct WeightNorms<'a> {
    source: &'a dyn Source,
    method: Method,
    watch: Watch<'a>,
    rows: RefCell<Vec<WeightRow>>,
    known: RefCell<HashMap<String, Upper>>,
    /// The matrices read last, for their other blocks.
    last: RefCell<Vec<(String, Arc<Matrix>)>>,
}

/// The largest number of rows for which all pairs are compared. With more, two rows differ by at
/// most twice the largest norm of a row.
pub(crate) const PAIRS: usize = 1024;

/// Matrices kept at a time: query, key, value and output of one attention node. One with more than
/// this number of elements is kept alone.
const KEPT: (usize, usize) = (4, 1 << 25);

impl<'a> WeightNorms<'a> {
    /// Norms of the weights of `source`. A weight is read when a norm of it is needed.
    pub fn new(source: &'a dyn Source, method: Method, watch: Watch<'a>) -> Self {
        let (rows, known, last) = (RefCell::default(), RefCell::default(), RefCell::default());
        Self { source, method, watch, rows, known, last }
    }

    /// All norms that were used.
    pub fn into_rows(self) -> Vec<WeightRow> {
        self.rows.into_inner()
    }

    fn load(&self, name: &str) -> Result<Arc<Matrix>, Error> {
        if let Some((_, m)) = self.last.borrow().iter().find(|(there, _)| there == name) {
            return Ok(m.clone());
        }
        let tensor = self.source.tensor(name)?;
        let (count, size) = KEPT;
        let mut last = self.last.borrow_mut();
        // Vectors are used between the blocks of a large matrix, and are cheap to read again.
        let small = tensor.rank() < 2;
        let large = tensor.elem_count() > size || last.iter().any(|(_, m)| m.data.len() > size);
        if !small && (large || last.len() >= count) {
            last.clear();
        }
        let m = Arc::new(Matrix::from_tensor(name, &tensor)?);
        if !small {
            last.push((name.to_string(), m.clone()));
        }
        Ok(m)
    }

    /// The block without its gain.
    fn plain(&self, block: &Block) -> Result<Arc<Matrix>, Error> {
        let mut m = self.load(&block.weight)?;
        if block.rows != Part::ALL {
            m = Arc::new(m.row_block(block.rows.index, block.rows.count));
        }
        if block.columns != Part::ALL {
            m = Arc::new(m.column_block(block.columns.index, block.columns.count));
        }
        Ok(m)
    }

    /// The block with its gain. Where a gain is folded in, each element is rounded once.
    fn block(&self, block: &Block) -> Result<Arc<Matrix>, Error> {
        let mut m = self.plain(block)?;
        if let Some(gain) = &block.gain {
            Arc::make_mut(&mut m).scale_columns(&self.load(gain)?.data);
        }
        Ok(m)
    }

    /// Keeps a norm, a little wider.
    fn enter(&self, name: String, found: Interval) {
        let Interval { lower, upper, method } = found;
        let (lower, upper) = (lower * (1.0 - SLACK), upper * Upper::from_f64(1.0 + SLACK));
        self.known.borrow_mut().insert(name.clone(), upper);
        self.rows.borrow_mut().push(WeightRow { name, lower, upper, method });
    }

    /// The block `rows` of a vector.
    fn vector(&self, name: &str, rows: Part) -> Result<Vec<f64>, Error> {
        let v = &self.load(name)?.data;
        let size = v.len() / rows.count;
        Ok(v[rows.index * size..(rows.index + 1) * size].to_vec())
    }

    /// Upper bounds on the distances between the rows of a block: that of rows i > j is at
    /// `i(i−1)/2 + j`.
    pub(crate) fn row_differences(&self, block: &Block) -> Result<Vec<Upper>, Error> {
        let (m, gain) = (self.block(block)?, block.gain.is_some());
        let published = |upper| {
            let found = Interval { lower: 0.0, upper, method: Method::Direct };
            folded(found, &m, gain).upper * Upper::from_f64(1.0 + SLACK)
        };
        Ok(row_differences(&m).map(published).collect())
    }

    /// The computation of a norm of one matrix or of a product.
    fn job(&self, norm: &Norm) -> Result<Option<Job>, Error> {
        let method = self.method;
        let job: Job = match norm {
            Norm::Matrix(block) => {
                let (m, gain) = (self.block(block)?, block.gain.is_some());
                Box::new(move || folded(spectral_norm(&m, method), &m, gain))
            }
            Norm::Product(a, b) | Norm::OutputValue(a, b) | Norm::QueryKey(a, b) => {
                let (left, right) = (self.block(a)?, self.block(b)?);
                let turned = matches!(norm, Norm::QueryKey(..));
                let rounded = a.gain.is_some() || b.gain.is_some();
                Box::new(move || {
                    let left = if turned { Arc::new(left.t()) } else { left };
                    product(&left, &right, rounded, method)
                })
            }
            _ => return Ok(None),
        };
        Ok(Some(job))
    }

    fn find(&self, norm: &Norm) -> Result<Interval, Error> {
        if let Some(job) = self.job(norm)? {
            return Ok(job());
        }
        Ok(match norm {
            // Those that have a job.
            Norm::Matrix(_) | Norm::Product(..) | Norm::OutputValue(..) | Norm::QueryKey(..) => {
                return Err(Error::Unknown(format!("the norm {norm}")));
            }
            Norm::Convolution(kernel) => {
                let m = self.load(&kernel.weight)?;
                convolution_norm(&m, &kernel.convolution, kernel.sides, self.method)
            }
            Norm::Row(block) => {
                let m = self.block(block)?;
                folded(Interval::direct(max_row_norm(&m), m.columns), &m, block.gain.is_some())
            }
            Norm::RowDifference(block) => {
                if self.plain(block)?.rows > PAIRS {
                    let row = self.norm(&Norm::Row(block.clone()))?;
                    return Ok(Interval { lower: 0.0, upper: row + row, method: Method::Direct });
                }
                let m = self.block(block)?;
                let found = Interval::direct(max_row_difference(&m), m.columns);
                // The upper end may be twice the largest row, so it implies no lower end.
                folded(Interval { lower: 0.0, ..found }, &m, block.gain.is_some())
            }
            Norm::Affine(block, beta, bias) => {
                let bias = bias.as_ref().map(|bias| self.vector(bias, block.rows)).transpose()?;
                let (w, beta) = (self.plain(block)?, self.load(beta)?);
                let upper = affine_norm(&w, &beta.data, bias.as_deref());
                Interval { lower: 0.0, upper, method: Method::Direct }
            }
            Norm::Vector(block) => {
                let v = self.vector(&block.weight, block.rows)?;
                Interval::direct(vector_norm(&v), v.len())
            }
            Norm::Largest(name) => {
                let largest = self.load(name)?.largest();
                Interval { lower: largest, upper: Upper::from_f64(largest), method: Method::Direct }
            }
            Norm::Reads(reads) => {
                let table = reads.learned.as_ref().map(|(name, _)| self.load(name)).transpose()?;
                let upper = reads.most(table.as_deref());
                Interval { lower: 0.0, upper, method: Method::Direct }
            }
        })
    }
}

impl Norms for WeightNorms<'_> {
    fn norm(&self, norm: &Norm) -> Result<Upper, Error> {
        let name = norm.to_string();
        if let Some(upper) = self.known.borrow().get(&name) {
            return Ok(*upper);
        }
        (self.watch)(&name);
        let found = self.find(norm)?;
        self.enter(name.clone(), found);
        Ok(self.known.borrow()[&name])
    }

    fn prepare(&self, norms: &[Norm]) -> Result<(), Error> {
        for norms in norms.chunks(BESIDE) {
            let mut jobs: Vec<(String, Job)> = Vec::new();
            for norm in norms {
                let name = norm.to_string();
                let known = self.known.borrow().contains_key(&name);
                if known || jobs.iter().any(|(other, _)| *other == name) {
                    continue;
                }
                if let Some(job) = self.job(norm)? {
                    (self.watch)(&name);
                    jobs.push((name, job));
                }
            }
            let found: Vec<_> = jobs.into_par_iter().map(|(name, job)| (name, job())).collect();
            for (name, found) in found {
                self.enter(name, found);
            }
        }
        Ok(())
    }
}

/// Widens an interval by what rounding W diag γ can change.
fn folded(found: Interval, m: &Matrix, gain: bool) -> Interval {
    if !gain {
        return found;
    }
    let off =
        vector_norm(&m.data) * Upper::from_f64(f64::EPSILON) + Upper::from_f64(f64::MIN_POSITIVE);
    Interval {
        lower: (found.lower - off.to_f64()).next_down().max(0.0),
        upper: found.upper + off,
        ..found
    }
}

/// ‖AB‖ of two blocks with their gains, by which elements may be rounded.
fn product(a: &Matrix, b: &Matrix, rounded: bool, method: Method) -> Interval {
    let found = product_norm(a, b, method);
    if !rounded {
        return found;
    }
    // (A + δA)(B + δB) with |δ| ≤ ε/2 of each element, or 2⁻¹⁰⁷⁵ where it underflows, so that
    // ‖δA‖_F ≤ ε/2 ‖A‖_F + t with a t far below the least normal number: at most ε(1 + ε)‖A‖_F
    // ‖B‖_F + (1 + ε)(‖A‖_F + ‖B‖_F) t + t² apart.
    let (norm_a, norm_b, t) =
        (vector_norm(&a.data), vector_norm(&b.data), Upper::from_f64(f64::MIN_POSITIVE));
    let off = norm_a * norm_b * Upper::from_f64(4.0 * f64::EPSILON) + (norm_a + norm_b + t) * t;
    Interval {
        lower: (found.lower - off.to_f64()).next_down().max(0.0),
        upper: found.upper + off,
        ..found
    }
}
