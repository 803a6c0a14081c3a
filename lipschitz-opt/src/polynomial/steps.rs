//! Odd quintics in turn, on numbers.

/// Odd quintics `x ← a x + b x³ + c x⁵` in turn, each as `[a, b, c]`.
pub type Steps = Vec<[f64; 3]>;

/// Where the steps take a number.
#[must_use]
pub fn at(steps: &[[f64; 3]], x: f64) -> f64 {
    steps.iter().fold(x, |x, [a, b, c]| x * (a + x * x * (b + x * x * c)))
}

/// The largest absolute value of the steps on [0, `end`], up to rounding.
///
/// A continuous function takes an interval to an interval, so the range of the whole is found step
/// by step. Each step's extremes lie at the ends and where its slope `a + 3b x² + 5c x⁴` is zero.
pub(crate) fn maximum(steps: &[[f64; 3]], end: f64) -> f64 {
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

    /// A step whose values turn negative, and one without a fifth power.
    #[test]
    fn maxima_of_odd_cases() {
        assert!((maximum(&[[-1.0, 0.0, 0.0]], 2.0) - 2.0).abs() < 1e-12);
        assert!((maximum(&[[1.5, -0.5, 0.0]], 3.0) - 9.0).abs() < 1e-12);
        assert!((maximum(&[[1.5, -0.5, 0.0]], 1.5) - 1.0).abs() < 1e-12);
        assert!((maximum(&[[-1.0, 0.0, 0.0], [1.5, -0.5, 0.0]], 2.0) - 1.0).abs() < 1e-12);
    }
}
