//! Learning-rate schedules.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

// A kind without keys has braces: serde refuses unknown keys of those alone.
/// A learning-rate schedule: a factor on the peak, a function of the step alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ScheduleConfig {
    /// Always the peak.
    Constant {},
    /// Linearly to zero.
    Linear {},
    /// Half a cosine to zero.
    Cosine {},
    /// The peak, then linearly to zero over the last part.
    StableThenDecay {
        /// Share of the run that decays, in (0, 1].
        #[serde(default = "half")]
        decay: f64,
    },
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self::Linear {}
    }
}

fn half() -> f64 {
    0.5
}

impl ScheduleConfig {
    /// The factor at `step` (from 0) of `steps`.
    #[must_use]
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        let left = 1.0 - step as f64 / steps.max(1) as f64;
        match self {
            Self::Constant {} => 1.0,
            Self::Linear {} => left,
            Self::Cosine {} => 0.5 * (1.0 - (std::f64::consts::PI * left).cos()),
            Self::StableThenDecay { decay } => (left / decay).min(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_start_at_the_peak_and_fall() {
        for schedule in [
            ScheduleConfig::Linear {},
            ScheduleConfig::Cosine {},
            ScheduleConfig::StableThenDecay { decay: 0.25 },
        ] {
            let factors: Vec<f64> = (0..100).map(|step| schedule.factor(step, 100)).collect();
            assert!((factors[0] - 1.0).abs() < 1e-12 && factors[99] < 0.05, "{schedule:?}");
            assert!(factors.windows(2).all(|w| w[1] <= w[0] + 1e-12), "{schedule:?}");
        }
        assert_eq!(ScheduleConfig::Constant {}.factor(99, 100), 1.0);
        assert_eq!(ScheduleConfig::StableThenDecay { decay: 0.25 }.factor(70, 100), 1.0);
    }
}
