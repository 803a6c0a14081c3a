//! Heads at fixed offsets, around a computed input.

use std::sync::Arc;

use super::functional::Functionals;
use super::maps::{Map, rounded};
use super::piece::add_error;
use super::remainder::{Deviations, Remainders};
use super::spread::{Spread, root_of_squares};
use crate::Error;
use crate::upper::{Upper, abs};

/// Heads at fixed offsets.
pub(super) struct Offsets {
    pub(super) value: Arc<Map>,
    /// The norm of each head's block.
    pub(super) blocks: Vec<Upper>,
    pub(super) shares: Vec<f64>,
    pub(super) offsets: Vec<usize>,
    pub(super) head_dim: usize,
    pub(super) slot: usize,
    pub(super) value_slot: usize,
    /// Of the values, and of the output.
    pub(super) errors: [Vec<Upper>; 2],
    pub(super) tokens: usize,
}

impl Offsets {
    /// `‖y_t‖² ≤ Σ_h (w_h ‖V_h‖ D_{t−o_h})²`
    pub(super) fn grow(&self, x: Spread, deviations: &mut Deviations) -> Spread {
        let factors: Vec<Upper> =
            self.shares.iter().zip(&self.blocks).map(|(w, v)| abs(*w) * *v).collect();
        let each = (0..self.tokens)
            .map(|t| {
                let part = |(h, offset): (usize, &usize)| match t.checked_sub(*offset) {
                    Some(from) => {
                        factors[h] * x.each[from] + abs(self.shares[h]) * self.errors[0][from]
                    }
                    None => Upper::ZERO,
                };
                let parts: Vec<Upper> = self.offsets.iter().enumerate().map(part).collect();
                root_of_squares(&parts) + self.errors[1][t]
            })
            .collect();
        let largest = self.shares.iter().fold(Upper::ZERO, |m, w| m + abs(*w));
        let total = root_of_squares(&factors) * x.total
            + largest * root_of_squares(&self.errors[0])
            + root_of_squares(&self.errors[1]);
        let values = x.through(self.value.norm, &self.errors[0]);
        deviations.spreads[self.value_slot] = Some(values);
        deviations.spreads[self.slot] = Some(x);
        Spread::new(each, total)
    }

    pub(super) fn back(
        &self,
        lambda: &Functionals,
        out: &mut Remainders,
    ) -> Result<Functionals, Error> {
        rounded(lambda, &self.errors[1], out);
        let d = self.head_dim;
        let all: Vec<usize> = (0..self.tokens).collect();
        let mut to = Functionals::zeros(lambda.count, all, self.offsets.len() * d);
        for (k, t, row) in lambda.rows() {
            for (h, offset) in self.offsets.iter().enumerate() {
                let Some(from) = t.checked_sub(*offset) else { continue };
                let to = &mut to.row_mut(k, from)[h * d..(h + 1) * d];
                to.iter_mut().zip(&row[h * d..(h + 1) * d]).for_each(|(to, l)| {
                    *to += self.shares[h] * l;
                });
            }
        }
        let to = to.trimmed();
        add_error(&to, self.value_slot, out);
        rounded(&to, &self.errors[0], out);
        self.value.back(&to, self.slot, out)
    }
}
