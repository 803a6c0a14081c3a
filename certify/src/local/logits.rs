//! How far the logits of attention can move, by their own derivative.
//!
//! A softmax does not see what all logits of a query have in common. With p its probabilities at the
//! reference, the rows of `C = I − 1 pᵀ` are functionals of the logits of a query, those of what they are
//! apart; with J their derivative by the input, `|C_j Δℓ| ≤ ‖C_j J δ‖ + ‖ρ‖` for what they leave out, ρ, and
//! `√Σ p_j (C_j Δℓ)² ≤ ‖diag(√p) C J δ‖ + √max p ‖ρ‖`. What products of changes of queries and of keys add
//! is left to attention. Where that is too much work for a long input, J is the derivative by what attention
//! reads, and δ the deviations of that.

use rayon::prelude::*;

use super::attention::Heads;
use super::remainder::{Deviations, Remainders};
use super::tokenwise::derivative;
use super::trace::Trace;
use super::{Change, Slopes, slopes, stretch};
use crate::Error;
use crate::upper::Upper;

/// The most logits of a node whose derivative by the input is computed, and the most of them times the square of
/// the width: the work grows with both.
const MAX_LOGITS: usize = 2048;
const MAX_LOGIT_WORK: usize = 1 << 25;

/// The most norms that are kept of those of a node.
const KEPT: usize = 1 << 23;

/// The logits of a node.
pub(super) struct Logits {
    pub(super) slot: usize,
    /// Whether derivatives are those by the input, or by what attention reads.
    by_input: bool,
    /// `[heads, tokens]`
    queries: Vec<Query>,
}

/// Those of a head and a query.
struct Query {
    each: Vec<Slopes>,
    spread: Slopes,
    /// √max p
    likeliest: Upper,
    remainders: Remainders,
}

impl Logits {
    /// Of each attention without a cap on them, where that is not too much work.
    ///
    /// # Errors
    /// Those of products.
    pub(super) fn all(trace: &Trace) -> Result<Vec<Self>, Error> {
        let few = |heads: &Heads| {
            let width = heads.width();
            let work = heads.logits().saturating_mul(width.saturating_mul(width));
            heads.logits() <= MAX_LOGITS && work <= MAX_LOGIT_WORK
        };
        let plain = trace.attentions().into_iter().filter(|heads| heads.plain());
        let near = |heads: &Heads| {
            let kept = heads.logits().saturating_mul(heads.tokens());
            kept <= KEPT && heads.work_of_logits() <= stretch::MAX_WORK
        };
        plain
            .filter(|heads| few(heads) || near(heads))
            .map(|heads| {
                let by_input = few(heads);
                let query = |(h, t): (usize, usize)| {
                    let p = heads.probabilities(h, t);
                    let n = p.len();
                    let row = |j: usize| (0..n).map(move |i| f64::from(i == j) - p[i]);
                    let seen: Vec<usize> = (0..n).filter(|j| heads.sees(t, *j)).collect();
                    let rows: Vec<f64> = seen.iter().flat_map(|j| row(*j)).collect();
                    let mut out = Remainders::of_vector(seen.len());
                    let lambda = heads.back_logits(h, t, (&rows, seen.len()), &mut out)?;
                    let (lambda, remainders) = match by_input {
                        true => trace.back_from(heads.slot, lambda, out)?,
                        false => (lambda, out),
                    };
                    let each = slopes(&lambda);
                    let mut weighted = lambda;
                    for (k, j) in seen.iter().enumerate() {
                        for at in 0..weighted.tokens.len() {
                            weighted.row_mut(k, at).iter_mut().for_each(|x| *x *= p[*j].sqrt());
                        }
                    }
                    let likeliest = heads.likeliest(h, t).sqrt();
                    Ok(Query { each, spread: derivative(&weighted), likeliest, remainders })
                };
                let all: Vec<_> = heads.queries().collect();
                let queries = all.into_par_iter().map(query).collect::<Result<_, Error>>()?;
                Ok(Self { slot: heads.slot, by_input, queries })
            })
            .collect()
    }

    /// Of each head and query, from the deviations in front of them: the largest of what logits are apart,
    /// and the root of its mean square.
    pub(super) fn at(&self, change: Change<'_>, deviations: &Deviations) -> Vec<[Upper; 2]> {
        let read = deviations.spreads[self.slot].as_ref();
        let along = |x: &Slopes| match self.by_input {
            true => x.along(change),
            false => read.map_or(Upper::INFINITY, |read| x.over(read)),
        };
        let of = |query: &Query| {
            let rest = query.remainders.of_whole(deviations);
            let most = query.each.iter().fold(Upper::ZERO, |m, x| m.max(along(x)));
            [most + rest, along(&query.spread) + query.likeliest * rest]
        };
        self.queries.par_iter().map(of).collect()
    }
}
