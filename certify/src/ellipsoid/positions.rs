//! Which token a head reads, where its position bias alone decides it.
//!
//! A logit is the bias of a distance plus a term of the contents that is at most κ in absolute
//! value. Let S be the sum of `exp(b_k − b_o)` over all distances k in sight but the favoured one,
//! o. Contents change each ratio of two probabilities by at most `e^{2κ}`, so that the probability ε
//! of all tokens but the one at distance o has `ε/(1−ε) ≤ S e^{2κ}`. The mean that the head takes is
//! then `(1−ε) x_o + ε x̄`, with x̄ a mean as well; and a number within ±σ that has one value with
//! probability 1−ε > ½ has a variance of at most `4ε(1−ε) σ²`.
//!
//! Which distance is favoured depends on how many tokens are in sight: a first token reads itself.
//! So there are classes of tokens, one for each choice of all heads, and a bound must hold for
//! every one.

use lipschitz_nn::graph::Attention;

use super::approx::Approx;
use crate::bound::plain;
use crate::upper::Upper;

/// A head is taken to read one place if others get less than this by the bias alone.
const LEFT: f64 = 0.05;

/// More classes than this are not told apart.
const CLASSES: usize = 12;

/// Exceeds the relative error of a computed exponential, and of a sum of [`SIGHT`] of them.
pub(super) const EXPONENTIAL: f64 = 1e-9;

/// The longest sequence that is looked at.
const SIGHT: usize = 1 << 20;

/// What the heads read for some of the tokens.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Class {
    /// For each head: the distance that it favours, and S, which is 0 exactly where no other token is
    /// in sight. None: any tokens.
    pub(super) heads: Vec<Option<(usize, Upper)>>,
}

/// The classes of tokens in sequences of up to `context`, if there is a longest, of which the first
/// `zeros` are a prefix that is zero; one class that says nothing if nothing is known.
///
/// Behind a prefix no token has fewer in sight than those and itself. What it reads of the prefix is
/// zero, which every ellipsoid contains; and no class is needed of the prefix, which stays as it is.
pub(super) fn classes(
    a: &Attention,
    table: Option<&Approx>,
    context: Option<usize>,
    zeros: usize,
) -> Vec<Class> {
    let free = vec![Class { heads: vec![None; a.heads] }];
    let (Some(table), Some(bias), Some(context)) = (table, a.position_bias, context) else {
        return free;
    };
    let sight = a.window.map_or(context, |window| window.min(context));
    // Contents must enter as plain products: then κ is known.
    let known = a.causal && plain(a) && a.alibi.is_none() && table.columns == a.heads;
    if !known || sight > SIGHT {
        return free;
    }
    // For each head the best distance so far, its bias, and the sum of exp(b − best) over others.
    let mut heads = vec![(0, f64::NEG_INFINITY, 0.0_f64); a.heads];
    let scale = 2f64.powi(table.exponent.clamp(-1000, 1000) as i32);
    let mut classes: Vec<Class> = Vec::new();
    for distance in 0..sight {
        let bucket = bias.bucket(true, -(distance as i64));
        let Some(row) = table.data.chunks(table.columns).nth(bucket) else { return free };
        for ((best, top, others), b) in heads.iter_mut().zip(row) {
            let b = b * scale;
            // An exponential that underflows is no zero: each is at least the least normal number.
            let least = f64::MIN_POSITIVE;
            if distance == 0 {
                (*best, *top) = (distance, b);
            } else if b > *top {
                *others = (*others + 1.0) * (*top - b).exp() + least;
                (*best, *top) = (distance, b);
            } else {
                *others += (b - *top).exp() + least;
            }
        }
        let of = |(best, _, others): &(usize, f64, f64)| {
            (*others < LEFT).then(|| (*best, Upper::from_f64(others * (1.0 + EXPONENTIAL))))
        };
        // A token of its own, not one of the prefix, has at least this many others in sight.
        if distance < zeros.min(sight - 1) {
            continue;
        }
        let now: Vec<Option<(usize, Upper)>> = heads.iter().map(of).collect();
        let same = |class: &&mut Class| {
            let pairs = class.heads.iter().zip(&now);
            pairs.into_iter().all(|(a, b)| a.map(|a| a.0) == b.map(|b| b.0))
        };
        match classes.iter_mut().find(same) {
            Some(class) => class.heads.iter_mut().zip(now).for_each(|(a, b)| {
                if let (Some(a), Some(b)) = (a, b) {
                    a.1 = a.1.max(b.1);
                }
            }),
            None => classes.push(Class { heads: now }),
        }
        if classes.len() > CLASSES {
            return free;
        }
    }
    // What is said of any tokens covers all.
    if classes.is_empty() || classes.iter().any(|c| c.heads.iter().all(Option::is_none)) {
        return free;
    }
    // Most tokens are in the last.
    classes.reverse();
    classes
}
