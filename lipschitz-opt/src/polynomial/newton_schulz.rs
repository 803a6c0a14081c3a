//! Sets of odd quintics that drive singular values in (0, 1] towards 1.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::polar_express;
use super::steps::{Steps, at, maximum};

/// Steps `x ← a x + b x³ + c x⁵` that drive singular values in (0, 1] towards 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NewtonSchulz {
    /// Six steps that never exceed 1, so that an update's norm is at most the learning rate
    /// (Cesista, You and Jordan, *Squeezing 1–2 % efficiency gains out of Muon*, 2025).
    #[default]
    SixStep,
    /// Five steps with the first Muon's coefficients, which end near 1 only on average: values
    /// reach 1.203 (Jordan et al., *Muon*, 2024).
    Jordan,
    /// Five steps, each the best quintic for the interval that the previous one leaves, for
    /// singular values from 10⁻³ (Amsel et al., *The Polar Express*, 2025). The last is scaled so
    /// that values stay at most 1.
    PolarExpress,
}

impl NewtonSchulz {
    /// Every set.
    pub const ALL: [Self; 3] = [Self::SixStep, Self::Jordan, Self::PolarExpress];

    /// The coefficients (a, b, c) of each step.
    #[must_use]
    pub fn steps(self) -> Steps {
        match self {
            Self::SixStep => [
                [3955.0, -8306.0, 5008.0],
                [3735.0, -6681.0, 3463.0],
                [3799.0, -6499.0, 3211.0],
                [4019.0, -6385.0, 2906.0],
                [2677.0, -3029.0, 1162.0],
                [2172.0, -1833.0, 682.0],
            ]
            .map(|step| step.map(|x| x / 1024.0))
            .to_vec(),
            Self::Jordan => vec![[3.4445, -4.7750, 2.0315]; 5],
            Self::PolarExpress => {
                let mut steps = polar_express::steps(1e-3, 5);
                let largest = maximum(&steps, 1.0);
                if let Some(last) = steps.last_mut() {
                    last.iter_mut().for_each(|x| *x /= largest);
                }
                steps
            }
        }
    }

    /// Where the steps take a singular value.
    #[must_use]
    pub fn at(self, x: f64) -> f64 {
        at(&self.steps(), x)
    }

    /// The largest value that a singular value in [0, 1] ends at, which is the largest norm of an
    /// update of learning rate 1.
    #[must_use]
    pub fn maximum(self) -> f64 {
        maximum(&self.steps(), 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The closed form against a grid fine enough that nothing hides between its points.
    #[test]
    fn maxima_are_those_of_a_grid() {
        for set in NewtonSchulz::ALL {
            let steps = set.steps();
            let grid = (0..=4_000_000).map(|i| at(&steps, f64::from(i) / 4e6)).fold(0.0, f64::max);
            let largest = set.maximum();
            let smallest = (1000..=1_000_000)
                .map(|i| at(&steps, f64::from(i) / 1e6))
                .fold(f64::INFINITY, f64::min);
            println!(
                "{set:?}: {} steps, largest {largest:.6}, from 10⁻³ at least {smallest:.4}",
                steps.len()
            );
            assert!(
                grid <= largest * (1.0 + 1e-12) && grid > largest - 1e-6,
                "{set:?}: {grid} {largest}"
            );
        }
        assert!(NewtonSchulz::SixStep.maximum() <= 1.0);
        assert!(NewtonSchulz::PolarExpress.maximum() <= 1.0 + 1e-12);
        assert!((1.19..1.21).contains(&NewtonSchulz::Jordan.maximum()));
    }
}
