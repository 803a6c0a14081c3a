//! How far the logits of attention can move, by their own derivative.
//!
//! A softmax does not see what all logits of a query have in common. With p its probabilities at the
//! reference, the rows of `C = I − 1 pᵀ` are functionals of the logits of a query, those of what they are
//! apart; with J their derivative by the input, `|C_j Δℓ| ≤ ‖C_j J δ‖ + ‖ρ‖` for what they leave out, ρ, and
//! `√Σ p_j (C_j Δℓ)² ≤ ‖diag(√p) C J δ‖ + √max p ‖ρ‖`. What products of changes of queries and of keys add
//! is left to attention.

use rayon::prelude::*;

use super::remainder::{Deviations, Remainders};
use super::tokenwise::derivative;
use super::trace::Trace;
use super::{Change, Slopes, slopes};
use crate::Error;
use crate::upper::Upper;

/// The most logits of a node: the work grows with them.
const MOST: usize = 2048;

/// The logits of a node.
pub(super) struct Logits {
    pub(super) slot: usize,
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
    /// Of each attention that has no more of them, and no cap on them.
    ///
    /// # Errors
    /// Those of products.
    pub(super) fn all(trace: &Trace) -> Result<Vec<Self>, Error> {
        let few = trace.attentions().into_iter().filter(|heads| heads.logits() <= MOST);
        few.filter(|heads| heads.plain())
            .map(|heads| {
                let query = |(h, t): (usize, usize)| {
                    let p = heads.probabilities(h, t);
                    let n = p.len();
                    let row = |j: usize| (0..n).map(move |i| f64::from(i == j) - p[i]);
                    let seen: Vec<usize> = (0..n).filter(|j| heads.sees(t, *j)).collect();
                    let rows: Vec<f64> = seen.iter().flat_map(|j| row(*j)).collect();
                    let mut out = Remainders::of_vector(seen.len());
                    let lambda = heads.back_logits(h, t, (&rows, seen.len()), &mut out)?;
                    let (lambda, remainders) = trace.back_from(heads.slot, lambda, out)?;
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
                let queries = heads.queries().map(query).collect::<Result<_, Error>>()?;
                Ok(Self { slot: heads.slot, queries })
            })
            .collect()
    }

    /// Of each head and query, from the deviations in front of them: the largest of what logits are apart,
    /// and the root of its mean square.
    pub(super) fn at(&self, change: Change<'_>, deviations: &Deviations) -> Vec<[Upper; 2]> {
        let of = |query: &Query| {
            let rest = query.remainders.of_whole(deviations);
            let most = query.each.iter().fold(Upper::ZERO, |m, x| m.max(x.along(change)));
            [most + rest, query.spread.along(change) + query.likeliest * rest]
        };
        self.queries.par_iter().map(of).collect()
    }
}
