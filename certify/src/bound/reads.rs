//! How much one token is read by all others, where positions alone decide: the largest column sum of
//! the probabilities P⁰ that attention has with contents of zero.
//!
//! Contents that are at most κ in absolute value multiply each exponential by a number in
//! `e^{±κ}`, and so each probability by one in `e^{±2κ}`. A column of the probabilities P then sums up
//! to at most `e^{2κ}` times that of P⁰, and to at most the number of tokens. With rows that sum up to
//! 1, `‖P‖₂² ≤ ‖P‖₁ ‖P‖_∞` is no more than that.

use std::fmt;

use lipschitz_nn::graph::{Attention, PositionBias, join};

use crate::spectral::Matrix;
use crate::upper::{Upper, count};

/// Exceeds the relative error of a computed exponential of a difference of logits, and of sums of at most
/// [`TOKENS`] of them.
const EXPONENTIAL: f64 = 1e-9;

/// With more tokens nothing is computed.
const TOKENS: usize = 2048;

/// A sum of a learned bias and a slope is rounded by less than 1e-10 if both are below this.
const LARGE: f64 = 1e5;

/// What positions say to one head about a sequence of known length.
#[derive(Clone, Debug, PartialEq)]
pub struct Reads {
    /// The path of the attention.
    pub path: String,
    /// The name of the weight of the position bias, if there is one, and which distances share a number.
    pub learned: Option<(String, PositionBias)>,
    /// What each step of the distance takes from a logit.
    pub slope: f64,
    /// Whether a token sees only itself and earlier tokens.
    pub causal: bool,
    /// A token sees only those less than this many positions away.
    pub window: Option<usize>,
    /// The head, and how many there are.
    pub head: [usize; 2],
    /// The number of tokens.
    pub tokens: usize,
}

// A slope is never NaN: the graph has been checked.
impl Eq for Reads {}

impl fmt::Display for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([head, heads], tokens) = (self.head, self.tokens);
        write!(f, "most read of {tokens} tokens by {} head {}/{heads}", self.path, head + 1)
    }
}

impl Reads {
    /// What it is for head `head` of attention at `path`, over so many tokens.
    pub(super) fn new(a: &Attention, path: &str, head: usize, tokens: usize) -> Self {
        let weight = |bias| (join(path, "position_bias.weight"), bias);
        let slope = a.alibi.as_ref().and_then(|alibi| alibi.slopes.get(head));
        Self {
            path: path.to_string(),
            learned: a.position_bias.map(weight),
            // Without slopes distances take nothing.
            slope: slope.copied().unwrap_or(0.0),
            causal: a.causal,
            window: a.window,
            head: [head, a.heads],
            tokens,
        }
    }

    /// The largest column sum, given the table `[buckets, heads]` if there is one.
    pub(super) fn most(&self, table: Option<&Matrix>) -> Upper {
        if self.tokens > TOKENS {
            return count(self.tokens);
        }
        let ([head, heads], last) = (self.head, self.tokens as i64 - 1);
        let large = |x: f64| self.slope != 0.0 && x.abs() > LARGE;
        if large(self.slope * last as f64) {
            return count(self.tokens);
        }
        let mut logits: Vec<f64> =
            (-last..=last).map(|distance| -self.slope * distance.abs() as f64).collect();
        if let Some((_, bias)) = &self.learned {
            let fits = |t: &&Matrix| t.columns == heads && t.rows == bias.buckets;
            let Some(table) = table.filter(fits) else { return count(self.tokens) };
            if large(table.largest()) {
                return count(self.tokens);
            }
            for (logit, distance) in logits.iter_mut().zip(-last..) {
                *logit += table.data[bias.bucket(self.causal, distance) * heads + head];
            }
        }
        most(self.tokens, self.window, self.causal, &logits)
    }
}

/// The largest column sum, given the logit of each distance, key − query, from the least.
fn most(tokens: usize, window: Option<usize>, causal: bool, logits: &[f64]) -> Upper {
    // Of what is not finite nothing is known.
    if logits.iter().any(|logit| !logit.is_finite()) {
        return count(tokens);
    }
    let mut columns = vec![0.0; tokens];
    for query in 0..tokens {
        let reach = window.unwrap_or(tokens).max(1);
        let first = (query + 1).saturating_sub(reach);
        let end = if causal { query + 1 } else { query.saturating_add(reach).min(tokens) };
        let own = &logits[first + tokens - 1 - query..end + tokens - 1 - query];
        let top = own.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // What underflows is no zero.
        let raised = own.iter().map(|b| (b - top).exp() + f64::MIN_POSITIVE);
        let sum: f64 = own.iter().map(|b| (b - top).exp()).sum();
        columns[first..end].iter_mut().zip(raised).for_each(|(column, e)| *column += e / sum);
    }
    let most = columns.into_iter().fold(0.0, f64::max);
    Upper::from_f64(most * (1.0 + EXPONENTIAL)).min(count(tokens))
}

/// At most `e^{2κ}` times this, and the number of tokens.
pub(super) fn with_contents(alone: Upper, largest: Upper, tokens: usize) -> Upper {
    (alone * (largest + largest).exp()).min(count(tokens))
}

#[cfg(test)]
mod tests {
    use lipschitz_nn::random::seeded;
    use rand::RngExt;

    use super::*;

    /// By the definition, one element after the other.
    fn slow(tokens: usize, window: Option<usize>, causal: bool, logit: &dyn Fn(i64) -> f64) -> f64 {
        let sees = |i: usize, j: usize| {
            let far = window.is_some_and(|window| i.abs_diff(j) >= window);
            !(far || (causal && j > i))
        };
        let e = |i: usize, j: usize| match sees(i, j) {
            true => logit(j as i64 - i as i64).exp(),
            false => 0.0,
        };
        let row = |i: usize| (0..tokens).map(|j| e(i, j)).sum::<f64>();
        let column = |j: usize| (0..tokens).map(|i| e(i, j) / row(i)).sum::<f64>();
        (0..tokens).map(column).fold(0.0, f64::max)
    }

    #[test]
    fn the_largest_column_is_that_of_the_definition() {
        let mut rng = seeded(4);
        for _ in 0..300 {
            let tokens = rng.random_range(1..14);
            let window = rng.random_bool(0.4).then(|| rng.random_range(1..16));
            let causal = rng.random_bool(0.5);
            let all: Vec<f64> = (0..27).map(|_| rng.random_range(-3.0..3.0)).collect();
            let logit = |distance: i64| all[(distance + 13) as usize];
            let found = most(tokens, window, causal, &all[14 - tokens..13 + tokens]);
            let truth = slow(tokens, window, causal, &logit);
            assert!(found.to_f64() >= truth, "{found} {truth}");
            assert!(found.to_f64() <= (truth * (1.0 + 1e-8)).min(tokens as f64 * 1.000_001));
        }
    }

    #[test]
    fn of_sizes_that_cannot_be_computed_with_all_tokens_are_said() {
        let of = |slope: f64, table: [f64; 4]| {
            let bias = PositionBias { buckets: 4, max_distance: 4 };
            let learned = Some(("b".to_string(), bias));
            let (path, tokens, head) = (String::new(), 5, [0, 1]);
            let reads = Reads { path, learned, slope, causal: false, window: None, head, tokens };
            reads.most(Some(&Matrix { rows: 4, columns: 1, data: table.to_vec() }))
        };
        assert!(of(0.0, [0.0; 4]) < Upper::from_f64(1.001));
        assert!(of(-1.0, [0.0; 4]) > Upper::from_f64(1.5));
        // Exact, however large: all read the one at the end.
        assert!(of(0.0, [0.0, 1e300, -1e300, -1e300]) < count(5));
        let wrong = [(1e300, [0.0; 4]), (-1e308, [0.0; 4]), (1.0, [1e16, 0.0, 0.0, 0.0])];
        for (slope, table) in wrong.into_iter().chain([(0.0, [f64::INFINITY, 0.0, 0.0, 0.0])]) {
            assert_eq!(of(slope, table), count(5), "{slope} {table:?}");
        }
    }

    #[test]
    fn contents_change_a_column_by_no_more_than_is_said() {
        let mut rng = seeded(5);
        for _ in 0..300 {
            let tokens: usize = rng.random_range(1..9);
            let logits: Vec<f64> = (0..17).map(|_| rng.random_range(-2.0..2.0)).collect();
            let kappa = rng.random_range(0.0..2.0);
            let contents: Vec<f64> =
                (0..tokens * tokens).map(|_| rng.random_range(-kappa..=kappa)).collect();
            let alone = most(tokens, None, false, &logits[9 - tokens..8 + tokens]);
            let bound = with_contents(alone, Upper::from_f64(kappa), tokens);
            let e = |i: usize, j: usize| (logits[j + 8 - i] + contents[i * tokens + j]).exp();
            let row = |i: usize| (0..tokens).map(|j| e(i, j)).sum::<f64>();
            for j in 0..tokens {
                let column: f64 = (0..tokens).map(|i| e(i, j) / row(i)).sum();
                assert!(column <= bound.to_f64(), "{column} {bound}");
            }
        }
        assert_eq!(with_contents(Upper::ONE, Upper::INFINITY, 7), count(7));
    }
}
