//! Means over tokens, around a computed input.

use super::functional::Functionals;
use super::maps::{rounded, tiny};
use super::piece::add_error;
use super::remainder::{Deviations, Remainders, mean};
use super::spread::Spread;
use crate::spectral::{Matrix, gamma, vector_norm};
use crate::upper::Upper;

/// The mean over tokens, behind the first, which stays on its own, or of all.
pub(super) struct Mean {
    pub(super) slot: usize,
    tokens: usize,
    first: bool,
    errors: Vec<Upper>,
}

impl Mean {
    pub(super) fn new(x: &Matrix, first: bool, slot: usize) -> Self {
        let most = (0..x.rows)
            .map(|t| vector_norm(&x.data[t * x.columns..(t + 1) * x.columns]))
            .fold(Upper::ZERO, Upper::max);
        let errors = vec![gamma(x.rows + 8) * most + tiny()];
        Self { slot, tokens: x.rows, first, errors }
    }

    /// The mean of n is at most √(Σ D²/n).
    pub(super) fn grow(&self, x: Spread, deviations: &mut Deviations) -> Spread {
        deviations.spreads[self.slot] = Some(x.clone());
        let alone = usize::from(self.first);
        let others = x.each.get(alone..).unwrap_or_default();
        let n = self.tokens.saturating_sub(alone);
        let joint = x.total.div_up((n as f64).sqrt().next_down());
        let mean = mean(others).min(joint);
        let own = if self.first { x.each.first().copied() } else { None };
        let own = own.unwrap_or(Upper::ZERO);
        let together = (own * own + mean * mean).sqrt();
        Spread::of(vec![together + self.errors[0]])
    }

    pub(super) fn back(&self, lambda: &Functionals, out: &mut Remainders) -> Functionals {
        rounded(lambda, &self.errors, out);
        let alone = usize::from(self.first);
        let n = self.tokens - alone;
        let width = lambda.width / (1 + alone);
        let all: Vec<usize> = (0..self.tokens).collect();
        let mut to = Functionals::zeros(lambda.count, all, width);
        for (k, _, row) in lambda.rows() {
            if self.first {
                to.row_mut(k, 0).copy_from_slice(&row[..width]);
            }
            for t in alone..self.tokens {
                let own = to.row_mut(k, t).iter_mut().zip(&row[alone * width..]);
                own.for_each(|(to, l)| *to = l / n as f64);
            }
        }
        add_error(&to, self.slot, out);
        to
    }
}
