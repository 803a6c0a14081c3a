//! The linear maps of a network, each read once, with the norms that are proven of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use lipschitz_nn::graph::{Convolution, join};

use super::functional::Functionals;
use super::remainder::{Remainders, Term};
use super::spread::Spread;
use crate::Error;
use crate::bound::{Block, Kernel, Norm, Norms, Part, WeightNorms};
use crate::source::Source;
use crate::spectral::{Matrix, gamma, vector_norm};
use crate::upper::{Upper, count};

/// More than what underflows in a sum.
pub(super) fn tiny() -> Upper {
    Upper::from_f64(1e-290)
}

/// `W x + b`
pub(super) struct Map {
    pub(super) w: Matrix,
    pub(super) norm: Upper,
    frobenius: Upper,
    /// ‖b‖
    bias: Upper,
}

impl Map {
    /// The rounding of `W x + b` for each of these tokens: `γ (‖W‖_F ‖x‖ + ‖b‖)`.
    pub(super) fn errors(&self, x: &Matrix) -> Vec<Upper> {
        let rows = x.data.chunks(x.columns.max(1));
        let error = |row| {
            gamma(self.w.columns + 4) * (self.frobenius * vector_norm(row) + self.bias) + tiny()
        };
        rows.map(error).collect()
    }

    pub(super) fn grow(&self, x: &Spread, errors: &[Upper]) -> Spread {
        x.through(self.norm, errors)
    }

    /// `λ (W Δ)` is `(λ W) Δ` but for rounding.
    pub(super) fn back(
        &self,
        lambda: &Functionals,
        slot: usize,
        out: &mut Remainders,
    ) -> Result<Functionals, Error> {
        let share = gamma(self.w.rows + 4) * self.frobenius;
        out.linear(slot, lambda, |norm| share * norm + tiny());
        Ok(lambda.times(&self.w))
    }
}

/// All of them.
pub(super) struct Maps<'a> {
    source: &'a dyn Source,
    norms: &'a WeightNorms<'a>,
    known: RefCell<BTreeMap<String, Arc<Map>>>,
}

impl<'a> Maps<'a> {
    pub(super) fn new(source: &'a dyn Source, norms: &'a WeightNorms<'a>) -> Self {
        Self { source, norms, known: RefCell::default() }
    }

    /// The map of the weights below this path.
    pub(super) fn get(&self, path: &str, bias: bool) -> Result<Arc<Map>, Error> {
        if let Some(map) = self.known.borrow().get(path) {
            return Ok(map.clone());
        }
        let name = join(path, "weight");
        let w = self.matrix(&name)?;
        let bias = match bias {
            true => vector_norm(&self.vector(&join(path, "bias"))?),
            false => Upper::ZERO,
        };
        let norm = self.norms.norm(&Norm::Matrix(Block::whole(name)))?;
        let frobenius = vector_norm(&w.data);
        let map = Arc::new(Map { w, norm, frobenius, bias });
        self.known.borrow_mut().insert(path.to_string(), map.clone());
        Ok(map)
    }

    pub(super) fn matrix(&self, name: &str) -> Result<Matrix, Error> {
        Matrix::from_tensor(name, &self.source.tensor(name)?)
    }

    pub(super) fn vector(&self, name: &str) -> Result<Vec<f64>, Error> {
        Ok(self.matrix(name)?.data)
    }

    /// A kernel as it is stored, its norm on images of these sides, and that of its bias at all pixels.
    pub(super) fn kernel(
        &self,
        path: &str,
        c: &Convolution,
        [_, height, width]: [usize; 3],
    ) -> Result<(Tensor, Upper, Upper), Error> {
        let weight = join(path, "weight");
        let tensor = self.source.tensor(&weight)?.detach();
        let (convolution, sides) = (*c, [height, width]);
        let norm = self.norms.norm(&Norm::Convolution(Kernel { weight, convolution, sides }))?;
        let bias = match c.bias {
            true => vector_norm(&self.vector(&join(path, "bias"))?),
            false => Upper::ZERO,
        };
        // No more pixels come out than go in with what is around them.
        let around = (height + 2 * c.padding) * (width + 2 * c.padding);
        Ok((tensor, norm, bias * count(around).sqrt()))
    }

    /// The norm of the rows of one head.
    pub(super) fn head(&self, path: &str, head: Part) -> Result<Upper, Error> {
        self.norms.norm(&Norm::Matrix(Block::whole(join(path, "weight")).rows(head)))
    }

    /// The norm of the columns of one head of an output map.
    pub(super) fn out_of(&self, path: &str, head: Part) -> Result<Upper, Error> {
        self.norms.norm(&Norm::Matrix(Block::whole(join(path, "weight")).columns(head)))
    }

    /// `‖O_h V_h‖`
    pub(super) fn output_value(
        &self,
        output: &str,
        head: Part,
        value: &str,
        shared: Part,
    ) -> Result<Upper, Error> {
        let o = Block::whole(join(output, "weight")).columns(head);
        let v = Block::whole(join(value, "weight")).rows(shared);
        self.norms.norm(&Norm::OutputValue(o, v))
    }
}

/// A constant for each functional: `Σ_t ‖λ_t‖ e_t`, what rounding the reference costs.
pub(super) fn rounded(lambda: &Functionals, errors: &[Upper], out: &mut Remainders) {
    if let Some(together) = out.together() {
        let sum = lambda.together().fold(Upper::ZERO, |sum, (t, norm)| sum + norm * errors[t]);
        together.push(Term::Constant(sum));
        return;
    }
    let norms = lambda.norms();
    for ((k, t, _), norm) in lambda.rows().zip(norms) {
        if norm != Upper::ZERO {
            out.push(k, Term::Constant(norm * errors[t]));
        }
    }
}
