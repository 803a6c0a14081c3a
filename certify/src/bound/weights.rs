//! The norms of a checkpoint's weights, each worked out once.

use std::cell::RefCell;

use lipschitz_nn::Model;

use super::{Block, Norms, Part};
use crate::Error;
use crate::certificate::WeightRow;
use crate::spectral::{
    Interval, Matrix, Method, affine_norm, max_row_difference, max_row_norm, product_norm, spectral_norm, vector_norm,
};
use crate::upper::Upper;

/// What is published is looser than what was proven by this share, so that another machine, whose rounding differs, can
/// prove it again.
pub const SLACK: f64 = 1.0 / (1u64 << 30) as f64;

/// Norms of a model's weights by one method; remembers each, in the order asked for.
pub struct WeightNorms<'a> {
    model: &'a Model,
    method: Method,
    rows: RefCell<Vec<WeightRow>>,
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

    /// Every norm asked for.
    pub fn into_rows(self) -> Vec<WeightRow> {
        self.rows.into_inner()
    }

    fn load(&self, name: &str) -> Result<Matrix, Error> {
        let weight = self.model.weights().get(name).ok_or_else(|| Error::Unknown(format!("the weight `{name}`")))?;
        Matrix::from_tensor(name, weight)
    }

    /// The block without its gain.
    fn plain(&self, block: &Block) -> Result<Matrix, Error> {
        let mut m = self.load(&block.weight)?;
        if block.rows != Part::ALL {
            m = m.row_block(block.rows.index, block.rows.count);
        }
        if block.columns != Part::ALL {
            m = m.column_block(block.columns.index, block.columns.count);
        }
        Ok(m)
    }

    /// The block, each element rounded once where a gain is folded in.
    fn block(&self, block: &Block) -> Result<Matrix, Error> {
        let mut m = self.plain(block)?;
        if let Some(gain) = &block.gain {
            m.scale_columns(&self.load(gain)?.data);
        }
        Ok(m)
    }

    fn once(&self, name: String, norm: impl FnOnce() -> Result<Interval, Error>) -> Result<Upper, Error> {
        if let Some(row) = self.rows.borrow().iter().find(|row| row.name == name) {
            return Ok(row.upper);
        }
        let Interval { lower, upper, method } = norm()?;
        let (lower, upper) = (lower * (1.0 - SLACK), upper * Upper::from_f64(1.0 + SLACK));
        self.rows.borrow_mut().push(WeightRow { name, lower, upper, method });
        Ok(upper)
    }
}

/// Takes in what rounding W diag γ can change.
fn folded(found: Interval, m: &Matrix, gain: bool) -> Interval {
    if !gain {
        return found;
    }
    let off = vector_norm(&m.data) * Upper::from_f64(f64::EPSILON) + Upper::from_f64(f64::MIN_POSITIVE);
    Interval { lower: (found.lower - off.to_f64()).next_down().max(0.0), upper: found.upper + off, ..found }
}

impl Norms for WeightNorms<'_> {
    fn matrix(&self, block: &Block) -> Result<Upper, Error> {
        self.once(block.to_string(), || {
            let m = self.block(block)?;
            Ok(folded(spectral_norm(&m, self.method), &m, block.gain.is_some()))
        })
    }

    fn product(&self, a: &Block, b: &Block) -> Result<Upper, Error> {
        self.once(format!("({a}) ({b})"), || product(&self.block(a)?, a, &self.block(b)?, b, self.method))
    }

    fn transposed_product(&self, a: &Block, b: &Block) -> Result<Upper, Error> {
        self.once(format!("({a})ᵀ ({b})"), || product(&self.block(a)?.t(), a, &self.block(b)?, b, self.method))
    }

    fn row(&self, block: &Block) -> Result<Upper, Error> {
        self.once(format!("largest row of {block}"), || {
            let m = self.block(block)?;
            Ok(folded(Interval::direct(max_row_norm(&m), m.columns), &m, block.gain.is_some()))
        })
    }

    fn row_difference(&self, block: &Block) -> Result<Upper, Error> {
        self.once(format!("largest difference of two rows of {block}"), || {
            let m = self.block(block)?;
            let found = max_row_difference(&m);
            // The upper end may come from the norm of the whole, so it says nothing about the lower one.
            Ok(folded(Interval { lower: 0.0, ..Interval::direct(found, m.columns) }, &m, block.gain.is_some()))
        })
    }

    fn offset(&self, block: &Block, beta: Option<&str>, bias: Option<&str>) -> Result<Upper, Error> {
        let part = |name: &str| -> Result<Vec<f64>, Error> {
            let v = self.load(name)?.data;
            let size = v.len() / block.rows.count;
            Ok(v[block.rows.index * size..(block.rows.index + 1) * size].to_vec())
        };
        match (beta, bias) {
            (None, None) => Ok(Upper::ZERO),
            (None, Some(bias)) => self.once(Block::whole(bias).rows(block.rows).to_string(), || {
                let v = part(bias)?;
                Ok(Interval::direct(vector_norm(&v), v.len()))
            }),
            (Some(beta), bias) => {
                let name = format!("{block} · {beta}{}", bias.map(|b| format!(" + {b}")).unwrap_or_default());
                self.once(name, || {
                    let bias = bias.map(part).transpose()?;
                    let upper = affine_norm(&self.plain(block)?, &self.load(beta)?.data, bias.as_deref());
                    Ok(Interval { lower: 0.0, upper, method: Method::Direct })
                })
            }
        }
    }

    fn vector(&self, name: &str) -> Result<Upper, Error> {
        self.offset(&Block::whole(name), None, Some(name))
    }

    fn largest(&self, name: &str) -> Result<Upper, Error> {
        self.once(format!("largest element of {name}"), || {
            let largest = self.load(name)?.largest();
            Ok(Interval { lower: largest, upper: Upper::from_f64(largest), method: Method::Direct })
        })
    }
}

/// ‖AB‖ of two blocks, gains and all.
fn product(a: &Matrix, from_a: &Block, b: &Matrix, from_b: &Block, method: Method) -> Result<Interval, Error> {
    let found = product_norm(a, b, method);
    let rounded = from_a.gain.is_some() || from_b.gain.is_some();
    if !rounded {
        return Ok(found);
    }
    // (A + δA)(B + δB) with |δ| ≤ ε/2 of each element: at most ε(1 + ε)‖A‖_F ‖B‖_F apart.
    let off = vector_norm(&a.data) * vector_norm(&b.data) * Upper::from_f64(4.0 * f64::EPSILON)
        + Upper::from_f64(f64::MIN_POSITIVE);
    Ok(Interval { lower: (found.lower - off.to_f64()).next_down().max(0.0), upper: found.upper + off, ..found })
}
