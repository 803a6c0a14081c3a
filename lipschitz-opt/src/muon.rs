//! Muon: momentum, made semi-orthogonal, so that every weight moves by the learning rate in its own norm.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{D, Tensor};
use lipschitz_nn::graph::{Axis, Geometry, Parameter};
use lipschitz_nn::norm::rms_to_rms;

use crate::polynomial::{NewtonSchulz, orthogonalise};
use crate::{Error, Optimizer, Variables, gradient, saved};

/// A row of an embedding whose gradient is this much smaller than the largest row's is not inflated further.
const INFLATION: f64 = 16.0;

/// `m ← βm + (1−β)g`, then `W ← W − η √(out/in) · orthogonalise(m)` (Jordan et al., *Muon*, 2024; scaled as in Bernstein,
/// *Deriving Muon*). Rows of tables and vectors move by η in RMS norm.
pub struct Muon {
    variables: Variables,
    momentum: Vec<Tensor>,
    beta: f64,
    nesterov: bool,
    per_head: bool,
    set: NewtonSchulz,
}

impl Muon {
    /// For these variables.
    ///
    /// # Errors
    /// Candle's own.
    pub fn new(
        variables: Variables,
        beta: f64,
        nesterov: bool,
        per_head: bool,
        set: NewtonSchulz,
    ) -> Result<Self, Error> {
        let momentum = variables.iter().map(|(_, v)| v.zeros_like()).collect::<Result<_, _>>()?;
        Ok(Self { variables, momentum, beta, nesterov, per_head, set })
    }

    /// The direction of a step: of norm at most 1 (by [`NewtonSchulz::bounded_by_one`]) in the parameter's norm.
    fn direction(&self, parameter: &Parameter, m: &Tensor) -> Result<Tensor, Error> {
        let tiny = f64::from(f32::MIN_POSITIVE);
        Ok(match parameter.geometry {
            Geometry::Matrix => {
                let (rows, columns) = m.dims2()?;
                let heads = parameter.heads.filter(|h| self.per_head && h.axis == Axis::Rows).map_or(1, |h| h.count);
                let blocks = m.reshape((heads, rows / heads, columns))?;
                let scale = rms_to_rms(rows / heads, columns).recip();
                (orthogonalise(&blocks, self.set)?.reshape((rows, columns))? * scale)?
            }
            Geometry::Table => {
                let norms = m.sqr()?.mean_keepdim(D::Minus1)?.sqrt()?;
                let floor = (norms.max_keepdim(0)? / INFLATION)?;
                m.broadcast_div(&(norms.broadcast_maximum(&floor)? + tiny)?)?
            }
            Geometry::Vector => m.broadcast_div(&(m.sqr()?.mean_all()?.sqrt()? + tiny)?)?,
        })
    }
}

fn key(parameter: &Parameter) -> String {
    format!("muon.momentum.{}", parameter.name)
}

impl Optimizer for Muon {
    fn step(&mut self, gradients: &GradStore, learning_rate: f64) -> Result<(), Error> {
        for i in 0..self.variables.len() {
            let (parameter, variable) = &self.variables[i];
            let g = gradient(gradients, parameter, variable)?;
            let mix = |m: &Tensor| (m * self.beta)? + (&g * (1.0 - self.beta))?;
            let m = mix(&self.momentum[i])?;
            let ahead = if self.nesterov { mix(&m)? } else { m.clone() };
            let update = (self.direction(parameter, &ahead)? * learning_rate)?;
            variable.set(&(variable.as_tensor().detach() - update)?)?;
            self.momentum[i] = m;
        }
        Ok(())
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>, Error> {
        Ok(self.variables.iter().zip(&self.momentum).map(|((p, _), m)| (key(p), m.clone())).collect())
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        self.momentum = self.variables.iter().map(|(p, v)| saved(state, &key(p), v)).collect::<Result<_, _>>()?;
        Ok(())
    }
}
