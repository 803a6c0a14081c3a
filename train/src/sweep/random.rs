//! Random values for keys. Draw number i of a key depends on seed, key and i alone, so a sweep that
//! grows keeps its runs.

use lipschitz_nn::random;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use toml::{Table, Value};

use super::changes::{Changes, flatten};
use crate::error::Within;
use crate::{Error, keys};

/// More draws than anybody makes.
const MAX_COUNT: usize = 1_000_000;

/// The section `[random]`.
#[derive(Deserialize)]
pub(super) struct Random {
    count: usize,
    #[serde(default, with = "crate::seed")]
    seed: u64,
    #[serde(flatten)]
    keys: Table,
}

/// How a key is drawn.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Range {
    /// Uniform.
    Uniform([f64; 2]),
    /// Uniform in the logarithm.
    Log([f64; 2]),
    /// A whole number, both ends included.
    Integer([i64; 2]),
    /// One of these.
    Choice(Vec<Value>),
}

/// The draws, each a value for every key.
pub(super) fn draws(random: Random) -> Result<Vec<Changes>, Error> {
    if !(1..=MAX_COUNT).contains(&random.count) {
        let count = random.count;
        let what = format!("random: count is {count}; it must be from 1 to {MAX_COUNT}");
        return Err(Error::Sweep(what));
    }
    let kinds = ["uniform", "log", "integer", "choice"];
    let values = flatten(random.keys, &|table| kinds.iter().any(|kind| table.contains_key(*kind)));
    let mut ranges = Vec::new();
    for (key, value) in values {
        let range = range(value).within(format_args!("random: `{key}`"))?;
        ranges.push((key, range));
    }
    let draw = |i: u64| {
        ranges.iter().map(|(key, range)| (key.clone(), range.draw(random.seed, key, i))).collect()
    };
    Ok((0..random.count as u64).map(draw).collect())
}

/// The range that a value describes.
fn range(value: Value) -> Result<Range, Error> {
    let Value::Table(table) = value else {
        let what = "write it as { uniform = [a, b] }, log, integer or choice";
        return Err(Error::Sweep(what.into()));
    };
    let range: Range = keys::read(table)?;
    range.check().map_err(|what| Error::Sweep(what.into()))?;
    Ok(range)
}

impl Range {
    /// What is wrong with it, if something is.
    fn check(&self) -> Result<(), &'static str> {
        let ordered = match self {
            Self::Uniform([a, b]) | Self::Log([a, b]) => a.is_finite() && b.is_finite() && a <= b,
            Self::Integer([a, b]) => a <= b,
            Self::Choice(values) if values.is_empty() => {
                return Err("has no values to choose from");
            }
            Self::Choice(_) => true,
        };
        match self {
            _ if !ordered => Err("give its range as [low, high]"),
            Self::Log([a, _]) if *a <= 0.0 => Err("the range of a logarithm must be above 0"),
            _ => Ok(()),
        }
    }

    fn draw(&self, seed: u64, key: &str, i: u64) -> Value {
        let digest = hex::encode(&Sha256::digest(key)[..12]);
        let mut rng = random::keyed(seed, &digest, i);
        let steps = 1 << 53;
        let share = random::below(&mut rng, steps) as f64 / steps as f64;
        match self {
            // Each end by itself, so that no width or ratio is infinite.
            Self::Uniform([a, b]) => {
                Value::Float(short(a * (1.0 - share) + b * share).clamp(*a, *b))
            }
            Self::Log([a, b]) => {
                Value::Float(short(a.powf(1.0 - share) * b.powf(share)).clamp(*a, *b))
            }
            Self::Integer([a, b]) => {
                Value::Integer(a + random::below(&mut rng, a.abs_diff(*b) as usize + 1) as i64)
            }
            Self::Choice(values) => values[random::below(&mut rng, values.len())].clone(),
        }
    }
}

/// Four significant digits: what a name can say in full.
fn short(x: f64) -> f64 {
    format!("{x:.3e}").parse().unwrap_or(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over the whole range, also where its width or ratio is no number.
    #[test]
    fn the_widest_ranges_are_drawn_from_all_over() {
        for range in [Range::Log([1e-300, 1e300]), Range::Uniform([f64::MIN, f64::MAX])] {
            let drawn: Vec<f64> =
                (0..40).map(|i| range.draw(0, "x", i).as_float().unwrap()).collect();
            let middle = if matches!(range, Range::Log(_)) { 1.0 } else { 0.0 };
            let above = drawn.iter().filter(|x| **x > middle).count();
            assert!((8..=32).contains(&above) && drawn.iter().all(|x| x.is_finite()), "{drawn:?}");
        }
    }
}
