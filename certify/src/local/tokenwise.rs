//! How far each token in front of a norm can be from its reference, by its own derivative.
//!
//! Products of constants from layer to layer say that tokens move far more than they do, and what a norm
//! leaves out grows with the square of it. The elements of a token are functionals of the input: with J
//! its derivative at the reference, `‖Δ‖ ≤ ‖J δ‖` and the ℓ2 norm of what all elements leave out: a node
//! that leaves out a vector ρ, of which later ones make `A ρ`, adds at most `‖A‖ ‖ρ‖` to it.

use rayon::prelude::*;

use super::functional::Functionals;
use super::remainder::{Deviations, Remainders};
use super::spread::root_of_squares;
use super::trace::Trace;
use super::{Change, Slopes};
use crate::Error;
use crate::spectral::{Matrix, Method, gamma, spectral_norm, vector_norm};
use crate::upper::Upper;

/// The most elements of all tokens that a norm reads: the work grows with them.
const MAX_ELEMENTS: usize = 2048;

/// How a node reads a token.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Reads {
    Whole,
    /// Each element on its own.
    Elements,
    /// The difference of each element of one half and that of the other.
    Pairs,
}

/// What is known of a token.
pub(super) struct Apart {
    /// A bound on ‖Δ‖.
    pub(super) whole: Upper,
    /// Of each |Δ_i|, where elements are read or their differences.
    pub(super) each: Vec<f64>,
}

/// The tokens that a norm or an elementwise node reads.
pub(super) struct Tokenwise {
    pub(super) slot: usize,
    tokens: Vec<One>,
}

struct One {
    /// Norms of the derivative.
    slopes: Slopes,
    /// Of that of each element or difference.
    each: Vec<Slopes>,
    /// What these leave out, as a share of what all leave out.
    share: Upper,
    remainders: Remainders,
}

impl Tokenwise {
    /// Of each norm that does not read too much, and of each such elementwise node with a norm or attention
    /// in front of it: maps and rectifiers alone leave out little.
    ///
    /// # Errors
    /// Those of products.
    pub(super) fn all(trace: &Trace) -> Result<Vec<Self>, Error> {
        let nodes = trace.curved();
        let norms = nodes.iter().filter(|(_, reads, ..)| *reads == Reads::Whole).map(|node| node.0);
        let first = norms.chain(trace.attentions().iter().map(|heads| heads.slot)).min();
        let few = nodes.into_iter().filter(|(slot, _, tokens, width)| {
            tokens.saturating_mul(*width) <= MAX_ELEMENTS
                && first.is_some_and(|first| first <= *slot)
        });
        few.map(|(slot, reads, tokens, width)| {
            let one = |token: usize| {
                let lambda = Functionals::elements(token, width);
                let (lambda, remainders) =
                    trace.back_from(slot, lambda, Remainders::of_vector(width))?;
                let (each, share) = match reads {
                    Reads::Whole => (Vec::new(), Upper::ONE),
                    Reads::Elements => (super::slopes(&lambda), Upper::ONE),
                    // The difference of two elements of a vector is at most √2 times its norm.
                    Reads::Pairs => {
                        (super::slopes(&differences(&lambda)), super::remainder::root(2))
                    }
                };
                Ok(One { slopes: derivative(&lambda), each, share, remainders })
            };
            let tokens = (0..tokens).into_par_iter().map(one).collect::<Result<_, Error>>()?;
            Ok(Self { slot, tokens })
        })
        .collect()
    }

    /// Bounds on the deviations of the tokens, from those in front of them.
    pub(super) fn at(&self, change: Change<'_>, deviations: &Deviations) -> Vec<Apart> {
        let of = |one: &One| {
            let rest = one.remainders.of_whole(deviations);
            let own = |x: &Slopes| {
                (x.along(change) * (Upper::ONE + gamma(4)) + one.share * rest).to_f64()
            };
            Apart {
                whole: one.slopes.along(change) + rest,
                each: one.each.iter().map(own).collect(),
            }
        };
        self.tokens.par_iter().map(of).collect()
    }
}

/// Of each functional of the first half and that of the other: what both are apart.
fn differences(lambda: &Functionals) -> Functionals {
    let half = lambda.count / 2;
    let mut out = Functionals::zeros(half, lambda.tokens.clone(), lambda.width);
    for k in 0..half {
        for at in 0..lambda.tokens.len() {
            let other = lambda.row(half + k, at);
            let own = lambda.row(k, at).iter().zip(other);
            out.row_mut(k, at).iter_mut().zip(own).for_each(|(to, (a, b))| *to = a - b);
        }
    }
    out
}

/// The norms of a derivative, the rows of which are functionals.
pub(super) fn derivative(lambda: &Functionals) -> Slopes {
    let (n, width) = (lambda.tokens.len(), lambda.width);
    let norm = |m: Matrix| {
        let frobenius = vector_norm(&m.data);
        frobenius.min(spectral_norm(&m, Method::Proven).upper)
    };
    let block = |at: usize| {
        let data = (0..lambda.count).flat_map(|k| lambda.row(k, at).iter().copied()).collect();
        norm(Matrix { rows: lambda.count, columns: width, data })
    };
    let each: Vec<(usize, Upper)> =
        lambda.tokens.iter().enumerate().map(|(at, t)| (*t, block(at))).collect();
    let whole = norm(Matrix { rows: lambda.count, columns: n * width, data: lambda.data.clone() });
    let sums: Vec<Upper> = lambda
        .data
        .chunks((n * width).max(1))
        .map(|row| {
            let sum = row.iter().map(|x| x.abs()).sum::<f64>();
            Upper::from_f64(sum) * (Upper::ONE + gamma(row.len() + 4))
        })
        .collect();
    Slopes {
        token: each.iter().fold(Upper::ZERO, |sum, (_, x)| sum + *x),
        l2: whole,
        linf: root_of_squares(&sums),
        each,
    }
}
