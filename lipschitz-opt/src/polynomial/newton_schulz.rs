//! Sets of odd quintics that drive singular values in (0, 1] towards 1.

use serde::{Deserialize, Serialize};

use super::polar_express;

/// Steps `x ← a x + b x³ + c x⁵` that drive singular values in (0, 1] towards 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewtonSchulz {
    /// Six steps that never pass 1, so that an update's norm is at most the learning rate (Cesista,
    /// You and Jordan, *Squeezing 1–2 % efficiency gains out of Muon*, 2025).
    #[default]
    SixStep,
    /// Five steps of the first Muon's coefficients, which stop near 1 only on average: values reach
    /// 1.203 (Jordan et al., *Muon*, 2024).
    Jordan,
    /// Five steps, each the best quintic for where the last one has brought the singular values
    /// (Amsel et al., *The Polar Express*, 2025), for singular values from 10⁻³; the last is scaled
    /// so that values stay at most 1.
    PolarExpress,
}

/// Odd quintics in turn.
pub type Steps = Vec<[f64; 3]>;

impl NewtonSchulz {
    /// Every set.
    pub const ALL: [Self; 3] = [Self::SixStep, Self::Jordan, Self::PolarExpress];

    /// The coefficients (a, b, c) of each step.
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
    pub fn at(self, x: f64) -> f64 {
        at(&self.steps(), x)
    }

    /// The largest value that a singular value in [0, 1] ends at: what an update's norm can be, for
    /// learning rate 1.
    pub fn maximum(self) -> f64 {
        maximum(&self.steps(), 1.0)
    }
}

/// Odd quintics in turn, of a number.
pub fn at(steps: &[[f64; 3]], x: f64) -> f64 {
    steps.iter().fold(x, |x, [a, b, c]| x * (a + x * x * (b + x * x * c)))
}

/// The largest absolute value of odd quintics in turn on [0, `end`], up to rounding.
///
/// A continuous function takes an interval to an interval, so the range of the whole is found a
/// step at a time: each step's extremes lie at the ends and where its slope `a + 3b x² + 5c x⁴` is
/// zero.
pub fn maximum(steps: &[[f64; 3]], end: f64) -> f64 {
    let (low, high) = steps.iter().fold((0.0, end), |(low, high), &[a, b, c]| {
        let f = |x: f64| x * (a + x * x * (b + x * x * c));
        let root = (9.0 * b * b - 20.0 * a * c).sqrt();
        let squares = if c == 0.0 {
            [-a / (3.0 * b), f64::NAN]
        } else {
            [root, -root].map(|r| (r - 3.0 * b) / (10.0 * c))
        };
        let turns = squares.into_iter().filter(|s| *s > 0.0).flat_map(|s| [s.sqrt(), -s.sqrt()]);
        let values = turns.filter(|x| (low..=high).contains(x)).chain([low, high]).map(f);
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), y| (l.min(y), h.max(y)))
    });
    high.max(-low)
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

    /// A step whose values turn negative, and one without a fifth power.
    #[test]
    fn maxima_of_odd_cases() {
        assert!((maximum(&[[-1.0, 0.0, 0.0]], 2.0) - 2.0).abs() < 1e-12);
        assert!((maximum(&[[1.5, -0.5, 0.0]], 3.0) - 9.0).abs() < 1e-12);
        assert!((maximum(&[[1.5, -0.5, 0.0]], 1.5) - 1.0).abs() < 1e-12);
        assert!((maximum(&[[-1.0, 0.0, 0.0], [1.5, -0.5, 0.0]], 2.0) - 1.0).abs() < 1e-12);
    }
}
