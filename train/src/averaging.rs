//! The mean of the weights over steps. It is what a run with averaging gives at its end, and what is
//! certified.
//!
//! A mean of matrices under a cap is under the cap, since norms are convex. A mean of matrices with
//! orthogonal rows has none, and one of weights in another set need not be in it either. So the mean is
//! put through the constraint's projection, and what comes out is proven like any other network: the
//! caps and the target hold of the weights that are given out, or the run fails.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use lipschitz_opt::Variables;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;

/// How weights are averaged.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum AveragingConfig {
    /// Each step counts `decay` times as much as the one after it.
    Exponential {
        /// The share of the mean that stays at a step; less in the first steps.
        decay: f64,
    },
    /// The steps of the last part of the run, all alike.
    Tail {
        /// How large a share of the run that part is.
        share: f64,
    },
}

impl AveragingConfig {
    /// Whether every number is in its range.
    ///
    /// # Errors
    /// One line that names the key and the range.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let (key, x, fits, range) = match *self {
            Self::Exponential { decay } => {
                ("decay", decay, (0.0..1.0).contains(&decay), "from 0 to below 1")
            }
            Self::Tail { share } => {
                ("share", share, share > 0.0 && share <= 1.0, "above 0 and at most 1")
            }
        };
        match fits {
            true => Ok(()),
            false => Err(Error::Config(format!("averaging.{key} is {x}; it must be {range}"))),
        }
    }

    /// What the weights after step `done` (from 1) of `steps` count in the new mean; none if they do
    /// not count.
    fn weight(&self, done: u64, steps: u64) -> Option<f64> {
        match *self {
            // So that the first weights, which are still far off, are soon forgotten.
            Self::Exponential { decay } => Some(1.0 - decay.min(done as f64 / (done as f64 + 9.0))),
            Self::Tail { share } => {
                let first = steps - ((share * steps as f64 - 1e-6).ceil() as u64).clamp(1, steps);
                (done > first).then(|| 1.0 / (done - first) as f64)
            }
        }
    }
}

/// The mean so far, by the name of the weight.
#[derive(Clone, Debug, Default)]
pub struct Average {
    config: Option<AveragingConfig>,
    mean: BTreeMap<String, Tensor>,
}

/// Before the names of weights in a checkpoint.
const PREFIX: &str = "average.";

impl Average {
    /// No weights yet.
    pub fn new(config: Option<AveragingConfig>) -> Self {
        Self { config, mean: BTreeMap::new() }
    }

    /// Counts the weights after step `done` of `steps`.
    ///
    /// # Errors
    /// Candle's own.
    pub(crate) fn add(
        &mut self,
        variables: &Variables,
        done: u64,
        steps: u64,
    ) -> Result<(), Error> {
        let Some(weight) = self.config.and_then(|config| config.weight(done, steps)) else {
            return Ok(());
        };
        for v in variables {
            let w = v.var.as_tensor().detach();
            let mean = match self.mean.get(&v.parameter.name) {
                Some(mean) => (mean + ((&w - mean)? * weight)?)?,
                None => w.copy()?,
            };
            self.mean.insert(v.parameter.name.clone(), mean);
        }
        Ok(())
    }

    /// The mean, if weights have been counted.
    pub(crate) fn mean(&self) -> Option<&BTreeMap<String, Tensor>> {
        Some(&self.mean).filter(|mean| !mean.is_empty())
    }

    /// What a resumed run needs.
    pub(crate) fn state(&self) -> impl Iterator<Item = (String, Tensor)> + '_ {
        self.mean.iter().map(|(name, mean)| (format!("{PREFIX}{name}"), mean.clone()))
    }

    /// Restores what [`Average::state`] gave.
    pub(crate) fn load_state(
        &mut self,
        state: &BTreeMap<String, Tensor>,
        variables: &Variables,
    ) -> Result<(), Error> {
        self.mean.clear();
        for v in variables {
            let name = &v.parameter.name;
            if let Some(mean) = state.get(&format!("{PREFIX}{name}")) {
                let like = v.var.as_tensor();
                let mean = mean.to_dtype(DType::F32)?.to_device(like.device())?;
                self.mean.insert(name.clone(), mean.reshape(like.shape())?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each of ten steps counts at the end.
    fn shares(config: AveragingConfig, steps: u64) -> Vec<f64> {
        let mut shares: Vec<f64> = Vec::new();
        for done in 1..=steps {
            let weight = config.weight(done, steps);
            let first = shares.iter().all(|share| *share == 0.0);
            let weight = weight.map_or(0.0, |weight| if first { 1.0 } else { weight });
            shares.iter_mut().for_each(|share| *share *= 1.0 - weight);
            shares.push(weight);
        }
        shares
    }

    #[test]
    fn the_last_part_counts_alike_and_what_is_before_it_does_not() {
        let found = shares(AveragingConfig::Tail { share: 0.35 }, 10);
        for (i, share) in found.iter().enumerate() {
            let wanted = if i < 6 { 0.0 } else { 0.25 };
            assert!((share - wanted).abs() < 1e-12, "{found:?}");
        }
        assert_eq!(shares(AveragingConfig::Tail { share: 1e-9 }, 3), [0.0, 0.0, 1.0]);
        assert!((shares(AveragingConfig::Tail { share: 1.0 }, 4)[0] - 0.25).abs() < 1e-12);
    }

    #[test]
    fn later_steps_count_more_by_the_decay() {
        let found = shares(AveragingConfig::Exponential { decay: 0.9 }, 400);
        assert!((found.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        for pair in found[300..].windows(2) {
            assert!((pair[0] / pair[1] - 0.9).abs() < 1e-9);
        }
    }
}
