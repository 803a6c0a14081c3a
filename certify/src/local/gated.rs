//! Gated units, around a computed input.

use std::sync::Arc;

use super::functional::Functionals;
use super::maps::{Map, rounded};
use super::piece::add_error;
use super::pointwise::Product;
use super::remainder::{Deviations, Remainders};
use super::spread::Spread;
use crate::Error;
use crate::upper::Upper;

/// `W_down (φ(W_gate x + b_gate) ∘ (W_up x + b_up)) + b_down`
pub(super) struct Gated {
    pub(super) gate: Arc<Map>,
    pub(super) up: Arc<Map>,
    pub(super) down: Arc<Map>,
    pub(super) product: Product,
    pub(super) slot: usize,
    pub(super) hidden: usize,
    pub(super) errors: [Vec<Upper>; 3],
}

impl Gated {
    pub(super) fn grow(&self, x: Spread, deviations: &mut Deviations) -> Spread {
        let gate = self.gate.grow(&x, &self.errors[0]);
        let up = self.up.grow(&x, &self.errors[1]);
        let hidden = self.product.grow(&gate, &up);
        let out = self.down.grow(&hidden, &self.errors[2]);
        let [g, u] = self.product.slots;
        for (slot, spread) in [(self.slot, x), (g, gate), (u, up), (self.hidden, hidden)] {
            deviations.spreads[slot] = Some(spread);
        }
        out
    }

    pub(super) fn back(
        &self,
        lambda: &Functionals,
        out: &mut Remainders,
    ) -> Result<Functionals, Error> {
        rounded(lambda, &self.errors[2], out);
        let hidden = self.down.back(lambda, self.hidden, out)?;
        let (gate, up) = self.product.back(&hidden, out);
        rounded(&gate, &self.errors[0], out);
        rounded(&up, &self.errors[1], out);
        let a = self.gate.back(&gate, self.slot, out)?;
        let b = self.up.back(&up, self.slot, out)?;
        add_error(&a, self.slot, out);
        add_error(&b, self.slot, out);
        Ok(a.plus(&b))
    }
}
