//! Whether sizes that a file leaves open decide anything: a comparison with the number of examples, a
//! maximum, an index. A file is read at a few sizes; what it would compute at others has to be the same.
//!
//! Each operator that may decide is recorded with what it read. Between two readings a number either stays,
//! and decides alike, or moves with the sizes. Of one that moves, the difference to what it is compared with
//! has to be α + β·examples + γ·tokens at all readings, and on one side of zero for all sizes there are. Some
//! readings are of sizes drawn anew each time, so that no file is made for those it is read at. Of large
//! arrays numbers at places drawn likewise are looked at. What remains is arithmetic, without a choice, that
//! gives the same at all of these sizes and something else at others.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use super::array::Array;
use super::operators::Here;

/// The sizes that a file leaves open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Open {
    pub batch: usize,
    pub tokens: usize,
}

/// What has to be the same at all sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Test {
    /// The numbers.
    Same,
    /// Whether the difference is zero.
    Zero,
    /// Whether it is above zero.
    Above,
    /// Whether it is below zero.
    Below,
    /// On which side of zero it is; which side zero is on does not matter.
    Side,
}

/// What is drawn, and the same in all readings of one file.
#[derive(Clone, Debug, Default)]
pub(super) struct Draws(RandomState);

impl Draws {
    /// A number from `from` to below `to`.
    pub(super) fn size(&self, of: &str, from: usize, to: usize) -> usize {
        let many = to.saturating_sub(from).max(1) as u64;
        from + usize::try_from(self.0.hash_one(of) % many).unwrap_or(0)
    }
}

/// An operator that may decide, with some of the numbers that it reads.
#[derive(Clone, Debug)]
pub(super) struct Decision {
    of: String,
    test: Test,
    /// Whether it comes to the same however it decides.
    any: bool,
    shape: Vec<usize>,
    /// Places along each axis, and the difference there.
    differences: Vec<(Vec<usize>, f64)>,
}

/// About so many numbers of each operator are looked at.
const LOOKED_AT: u64 = 1 << 12;

impl Decision {
    pub(super) fn new(draws: &Draws, here: Here<'_>, test: Test, difference: &Array) -> Self {
        let shape = &difference.shape;
        let place = |at: usize| {
            let mut rest = at;
            let mut place = vec![0; shape.len()];
            for (p, size) in place.iter_mut().zip(shape).rev() {
                *p = rest % size.max(&1);
                rest /= size.max(&1);
            }
            place
        };
        // Those of a smaller array are among them.
        let share = u64::MAX / (difference.data.len() as u64).max(LOOKED_AT) * LOOKED_AT;
        let all = difference.data.iter().enumerate().map(|(at, x)| (place(at), *x));
        let seen = all
            .filter(|(place, _)| share >= u64::MAX - LOOKED_AT || draws.0.hash_one(place) <= share);
        let (of, shape) = (here.to_string(), shape.clone());
        Self { of, test, any: false, differences: seen.collect(), shape }
    }

    /// How many numbers it holds.
    pub(super) fn looked_at(&self) -> usize {
        self.differences.len()
    }

    /// Places that are taken of numbers, of `any` where these are all alike.
    pub(super) fn index(draws: &Draws, here: Here<'_>, index: &Array, any: bool) -> Self {
        Self { any, ..Self::new(draws, here, Test::Same, index) }
    }
}

/// The first operator that decides by sizes which these readings leave open, of up to `most` tokens; none if
/// none does.
pub(super) fn decides(readings: &[(Open, Vec<Decision>)], most: usize) -> Option<String> {
    let (_, first) = readings.first()?;
    for (_, other) in readings {
        let alike = |(a, b): (&Decision, &Decision)| a.of == b.of && a.test == b.test;
        if first.len() != other.len() || !first.iter().zip(other).all(alike) {
            return Some("the order of its operators".into());
        }
    }
    for (i, decision) in first.iter().enumerate() {
        let all: Vec<(Open, &Decision)> =
            readings.iter().filter_map(|(open, all)| Some((*open, all.get(i)?))).collect();
        if all.iter().all(|(_, d)| d.any) {
            continue;
        }
        // An axis that is as long as there are tokens, whichever these are.
        let tokens = |axis: usize| {
            all.iter().all(|(open, d)| d.shape.get(axis) == Some(&open.tokens))
                && all.iter().any(|(open, _)| all.iter().any(|(o, _)| o.tokens != open.tokens))
        };
        let axes: Vec<usize> = (0..decision.shape.len()).filter(|axis| tokens(*axis)).collect();
        let maps: Vec<BTreeMap<&[usize], f64>> = all
            .iter()
            .map(|(_, d)| d.differences.iter().map(|(place, x)| (&place[..], *x)).collect())
            .collect();
        for (place, _) in &decision.differences {
            let at = |((open, _), map): (&(Open, &Decision), &BTreeMap<&[usize], f64>)| {
                Some((*open, *map.get(&place[..])?))
            };
            let seen: Vec<(Open, f64)> = all.iter().zip(&maps).filter_map(at).collect();
            let least = axes.iter().filter_map(|axis| place.get(*axis)).max();
            let least = least.map_or(1, |place| place + 1).min(most);
            if !is_the_same(decision.test, &seen, least, most) {
                return Some(decision.of.clone());
            }
        }
    }
    None
}

/// Whether a test of what was seen at some sizes has one outcome at all of them, of `least` to `most` tokens.
fn is_the_same(test: Test, seen: &[(Open, f64)], least: usize, most: usize) -> bool {
    let Some((at, value)) = seen.first().copied() else { return true };
    if seen.iter().all(|(_, x)| *x == value) {
        return true;
    }
    if test == Test::Same {
        return false;
    }
    // How much the difference grows with one example, and with one token.
    let slope = |along: fn(Open) -> f64, other: fn(Open) -> f64| {
        let apart = seen.iter().find(|(o, _)| along(*o) != along(at) && other(*o) == other(at));
        apart.map_or(0.0, |(o, x)| (x - value) / (along(*o) - along(at)))
    };
    let (batch, tokens) = (|o: Open| o.batch as f64, |o: Open| o.tokens as f64);
    let (a, b) = (slope(batch, tokens), slope(tokens, batch));
    let of = |open: Open| value + a * (batch(open) - batch(at)) + b * (tokens(open) - tokens(at));
    if !seen.iter().all(|(open, x)| of(*open) == *x) {
        return false;
    }
    let corners = [least, most].map(|tokens| of(Open { batch: 1, tokens }));
    let mut low = corners.iter().copied().fold(f64::INFINITY, f64::min);
    let mut high = corners.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if a != 0.0 {
        (low, high) = if a > 0.0 { (low, f64::INFINITY) } else { (f64::NEG_INFINITY, high) };
    }
    match test {
        Test::Same => false,
        Test::Zero => low > 0.0 || high < 0.0,
        Test::Above => low > 0.0 || high <= 0.0,
        Test::Below => high < 0.0 || low >= 0.0,
        Test::Side => low >= 0.0 || high <= 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(f: impl Fn(f64, f64) -> f64) -> Vec<(Open, f64)> {
        [(2, 12), (3, 11), (1, 12), (7, 12), (2, 6), (5, 3)]
            .map(|(batch, tokens)| (Open { batch, tokens }, f(batch as f64, tokens as f64)))
            .to_vec()
    }

    #[test]
    fn a_difference_that_moves_stays_on_its_side_or_decides() {
        let holds = |test, f: &dyn Fn(f64, f64) -> f64| is_the_same(test, &seen(f), 1, 12);
        // A threshold beyond all readings, and one between them.
        for (test, f) in [
            (Test::Above, &(|b, _| b - 100.0) as &dyn Fn(f64, f64) -> f64),
            (Test::Below, &|b, _| b - 100.0),
            (Test::Zero, &|b, _| b - 100.0),
            (Test::Side, &|b, _| b - 100.0),
            (Test::Above, &|_, t| t - 5.0),
            (Test::Side, &|b, t| b * t - 1000.0),
            (Test::Side, &|b, _| (b - 50.0).max(0.0) + b - 60.0),
            (Test::Same, &|_, t| t),
            (Test::Below, &|b, t| 3.0 * b - t),
        ] {
            assert!(!holds(test, f), "{test:?}");
        }
        for (test, f) in [
            (Test::Same, &(|_, _| 3.0) as &dyn Fn(f64, f64) -> f64),
            (Test::Zero, &|b, _| b + 1.0),
            (Test::Above, &|b, _| b),
            (Test::Below, &|_, t| t - 13.0),
            (Test::Side, &|_, t| t - 12.0),
            (Test::Above, &|_, t| -t),
        ] {
            assert!(holds(test, f), "{test:?}");
        }
    }
}
