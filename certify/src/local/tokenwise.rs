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
const MOST: usize = 2048;

/// The tokens that a norm reads.
pub(super) struct Tokenwise {
    pub(super) slot: usize,
    tokens: Vec<One>,
}

struct One {
    /// Norms of the derivative.
    slopes: Slopes,
    remainders: Remainders,
}

impl Tokenwise {
    /// Of each norm that does not read too much.
    ///
    /// # Errors
    /// Those of products.
    pub(super) fn all(trace: &Trace) -> Result<Vec<Self>, Error> {
        let norms = trace.curved().into_iter();
        let few = norms.filter(|(_, tokens, width)| tokens.saturating_mul(*width) <= MOST);
        few.map(|(slot, tokens, width)| {
            let one = |token: usize| {
                let mut data = vec![0.0; width * width];
                (0..width).for_each(|i| data[i * width + i] = 1.0);
                let lambda = Functionals { count: width, tokens: vec![token], width, data };
                let (lambda, remainders) =
                    trace.back_from(slot, lambda, Remainders::of_vector(width))?;
                Ok(One { slopes: derivative(&lambda), remainders })
            };
            let tokens = (0..tokens).map(one).collect::<Result<_, Error>>()?;
            Ok(Self { slot, tokens })
        })
        .collect()
    }

    /// Bounds on the deviations of the tokens, from those in front of them.
    pub(super) fn at(&self, change: Change<'_>, deviations: &Deviations) -> Vec<Upper> {
        let of = |one: &One| one.slopes.along(change) + one.remainders.of_whole(deviations);
        self.tokens.par_iter().map(of).collect()
    }
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
