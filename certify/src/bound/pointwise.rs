//! Elementwise functions: slopes and magnitudes.

use lipschitz_nn::graph::Function;

use crate::upper::{Upper, abs, count};

/// `sup |φ'|` on inputs of absolute value up to r, rounded up. The proofs are in
/// `docs/mathematics.md`.
pub(crate) fn slope(function: Function, r: Upper) -> Upper {
    Upper::from_f64(match function {
        Function::Identity
        | Function::Relu
        | Function::Abs
        | Function::Tanh
        | Function::Softplus => 1.0,
        Function::GeluErf => 1.128_904_146,
        Function::GeluTanh => 1.128_993_069,
        // With φ the SiLU, quick GELU is φ(1.702 x)/1.702.
        Function::Silu | Function::QuickGelu => 1.099_839_321,
        Function::Sigmoid => 0.25,
        Function::Mish => MISH.1,
        // x/3 + ½ at 3.
        Function::HardSwish => 1.5,
        Function::HardSigmoid => SIXTH,
        Function::Relu2 => return r + r,
        Function::LeakyRelu { slope } => return abs(slope).max(Upper::ONE),
        // eˣ is at most 1 where it counts.
        Function::Elu { alpha } => return abs(alpha).max(Upper::ONE),
    })
}

/// The slopes of Mish lie between these.
const MISH: (f64, f64) = (-0.112_526_124, 1.088_498_163);

/// Not below 1/6.
const SIXTH: f64 = 0.166_666_666_666_666_7;

/// c and h such that every slope of φ on inputs up to r is in c ± h. ReLU and tanh have slopes in
/// [0, 1], sigmoid in [0, 1/4]; |x| has the slopes −1 and 1; the slopes of GELU and SiLU at x and
/// −x add up to 1.
pub(crate) fn slopes(function: Function, r: Upper) -> (f64, Upper) {
    let centred =
        |centre: f64| (centre, Upper::from_f64((slope(function, r).to_f64() - centre).next_up()));
    match function {
        Function::Abs => centred(0.0),
        Function::Sigmoid => centred(0.125),
        Function::Relu
        | Function::GeluErf
        | Function::GeluTanh
        | Function::Silu
        | Function::QuickGelu
        | Function::Softplus
        | Function::Tanh => centred(0.5),
        Function::Identity => (1.0, Upper::ZERO),
        Function::Mish => between(MISH.0, MISH.1),
        // x/3 + ½ between −3 and 3.
        Function::HardSwish => between(-0.5, 1.5),
        Function::HardSigmoid => between(0.0, SIXTH),
        Function::LeakyRelu { slope } => between(slope.min(1.0), slope.max(1.0)),
        Function::Elu { alpha } => between(alpha.min(0.0), alpha.max(1.0)),
        Function::Relu2 => match r.to_f64() {
            r if r.is_finite() => (r, Upper::from_f64(r)),
            _ => (0.0, slope(function, r)),
        },
    }
}

/// c and h such that `φ(u) − φ(0)` is u times a number in c ± h; and φ(0). Where φ is not 0 at 0, or
/// no more is known, these are slopes: by the mean value theorem the quotient is one.
pub(crate) fn secants(function: Function) -> ((f64, Upper), f64) {
    let half = (0.5, Upper::from_f64(0.5));
    match function {
        // u times a number in [0, 1].
        Function::GeluErf
        | Function::GeluTanh
        | Function::Silu
        | Function::QuickGelu
        | Function::Mish
        | Function::HardSwish => (half, 0.0),
        Function::Softplus => (half, std::f64::consts::LN_2),
        Function::Sigmoid | Function::HardSigmoid => (slopes(function, Upper::INFINITY), 0.5),
        _ => (slopes(function, Upper::INFINITY), 0.0),
    }
}

/// A centre of two finite numbers, and a distance that both are within.
fn between(low: f64, high: f64) -> (f64, Upper) {
    let centre = low / 2.0 + high / 2.0;
    let far = (high - centre).next_up().max((centre - low).next_up());
    (centre, Upper::from_f64(far))
}

/// ln 2, rounded up: softplus at 0.
const LN_2: f64 = 0.693_147_180_559_946;

/// A bound on |φ(t)| for |t| ≤ r: ReLU, GELU, SiLU, Mish and hard swish are t times a number in
/// [0, 1], and |t| is t or −t; softplus is at most max(t, 0) + ln 2.
pub(crate) fn value(function: Function, r: Upper) -> Upper {
    match function {
        Function::Identity
        | Function::Relu
        | Function::Abs
        | Function::GeluErf
        | Function::GeluTanh
        | Function::Silu
        | Function::QuickGelu
        | Function::Mish
        | Function::HardSwish => r,
        Function::Tanh => r.min(Upper::ONE),
        Function::Sigmoid | Function::HardSigmoid => Upper::ONE,
        Function::Relu2 => r * r,
        // |eˣ − 1| is at most |x| and at most 1 for x ≤ 0.
        Function::LeakyRelu { .. } => r * slope(function, r),
        Function::Elu { alpha } => r.max(abs(alpha) * r.min(Upper::ONE)),
        Function::Softplus => r + Upper::from_f64(LN_2),
    }
}

/// A bound on ‖φ(x)‖₂ for ‖x‖₂ ≤ r, with x of `width` elements of absolute value up to `element`.
pub(crate) fn norm(function: Function, r: Upper, element: Upper, width: usize) -> Upper {
    let root = || count(width).sqrt();
    match function {
        Function::Identity
        | Function::Relu
        | Function::Abs
        | Function::GeluErf
        | Function::GeluTanh
        | Function::Silu
        | Function::QuickGelu
        | Function::Mish
        | Function::HardSwish => r,
        Function::Tanh => r.min(root()),
        Function::Sigmoid | Function::HardSigmoid => root(),
        Function::Relu2 => r * element,
        Function::LeakyRelu { .. } | Function::Elu { .. } => r * slope(function, element),
        Function::Softplus => r + root() * Upper::from_f64(LN_2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a function's argument is bounded by in these tests.
    const R: f64 = 10.0;

    fn tail(x: f64) -> (f64, f64) {
        let e = (-x.abs()).exp();
        (e, if x < 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) })
    }

    fn mish(x: f64) -> f64 {
        let (e, s) = tail(x);
        let t = if x < 0.0 {
            e * (e + 2.0) / (e * (e + 2.0) + 2.0)
        } else {
            (1.0 + 2.0 * e) / (1.0 + 2.0 * e + 2.0 * e * e)
        };
        t + x * (1.0 - t * t) * s
    }

    /// The derivative in closed form.
    fn derivative(function: Function, x: f64) -> f64 {
        let phi = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match function {
            Function::Identity => 1.0,
            Function::Relu => f64::from(x > 0.0),
            Function::Abs => x.signum(),
            Function::GeluErf => {
                candle_core::cpu::erf::erfc_f64(-x / 2f64.sqrt()) / 2.0 + x * phi(x)
            }
            Function::GeluTanh => {
                let (a, b) = ((2.0 / std::f64::consts::PI).sqrt(), 0.044715);
                let t = (a * (x + b * x * x * x)).tanh();
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * a * (1.0 + 3.0 * b * x * x)
            }
            Function::Silu => sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x))),
            Function::Tanh => 1.0 - x.tanh().powi(2),
            Function::Sigmoid => sigmoid(x) * (1.0 - sigmoid(x)),
            Function::Relu2 => 2.0 * x.max(0.0),
            Function::LeakyRelu { slope } => {
                if x > 0.0 {
                    1.0
                } else {
                    slope
                }
            }
            Function::Elu { alpha } => {
                if x > 0.0 {
                    1.0
                } else {
                    alpha * x.exp()
                }
            }
            Function::Softplus => sigmoid(x),
            Function::Mish => mish(x),
            Function::QuickGelu => {
                let s = sigmoid(1.702 * x);
                s * (1.0 + 1.702 * x * (1.0 - s))
            }
            Function::HardSwish if x.abs() < 3.0 => x / 3.0 + 0.5,
            Function::HardSigmoid if x.abs() < 3.0 => 1.0 / 6.0,
            Function::HardSwish => f64::from(x > 0.0),
            Function::HardSigmoid => 0.0,
        }
    }

    /// Every function, and those with a constant with others: small, large, negative and 0.
    fn all() -> impl Iterator<Item = Function> {
        let slopes = [0.01, 0.0, 1.0, 3.0, -1.0].map(|slope| Function::LeakyRelu { slope });
        let alphas = [1.0, 0.0, 0.3, -2.0].map(|alpha| Function::Elu { alpha });
        Function::ALL.into_iter().chain(slopes).chain(alphas)
    }

    /// The derivative on a fine grid, in closed form, never exceeds the slope and comes within 1e-4
    /// of it: within 1e-6 where it is smooth there.
    #[test]
    fn slopes_are_the_largest_derivatives() {
        let r = Upper::from_f64(R);
        for function in all() {
            let found = (-200_000..=200_000)
                .map(|i| derivative(function, i as f64 * 5e-5).abs())
                .fold(0.0, f64::max);
            let claimed = slope(function, r).to_f64();
            let near = if matches!(
                function,
                Function::HardSwish | Function::Elu { .. } | Function::Softplus
            ) {
                1e-4
            } else {
                1e-6
            };
            assert!(
                found <= claimed && claimed - found < near,
                "{function:?}: {found} against {claimed}"
            );
            let (centre, spread) = slopes(function, r);
            let inside = |x: f64| (derivative(function, x) - centre).abs() <= spread.to_f64();
            assert!((-200_000..=200_000).all(|i| inside(i as f64 * 5e-5)), "{function:?}");
            let product = centre.abs() + spread.to_f64();
            assert!(product <= claimed * (1.0 + 1e-12), "{function:?}: {product}");
        }
    }

    /// The integral of the derivative from φ(0) stays below the bounds on values, for small, middle
    /// and large inputs, and comes near to them at the end.
    #[test]
    fn values_are_bounded() {
        let at_zero = |function| match function {
            Function::Sigmoid | Function::HardSigmoid => 0.5,
            Function::Softplus => 2f64.ln(),
            _ => 0.0,
        };
        let step = 1e-4;
        for function in all() {
            let (mut up, mut down) = (at_zero(function), at_zero(function));
            for i in 0..100_000 {
                let x = (i as f64 + 0.5) * step;
                up += step * derivative(function, x);
                down -= step * derivative(function, -x);
                let r = Upper::from_f64((i + 1) as f64 * step);
                let found = up.abs().max(down.abs());
                let claimed = value(function, r).to_f64();
                assert!(found <= claimed + 1e-6, "{function:?}: {found} at {r}: {claimed}");
                let one = norm(function, r, r, 1).to_f64();
                assert!(found <= one + 1e-6, "{function:?}: {found} at {r}: {one}");
            }
            let r = Upper::from_f64(R);
            let (found, claimed) = (up.abs().max(down.abs()), value(function, r).to_f64());
            assert!(claimed - found < 0.7 + 1e-3, "{function:?}: {found} against {claimed}");
        }
    }

    /// The proof of Mish's constants in `docs/mathematics.md`: a grid of step 1e-5 on [−10, 10],
    /// between whose points the derivative exceeds its values by at most 83 · 1e-10/8.
    #[test]
    fn the_slopes_of_mish() {
        let between = 83.0 * 1e-10 / 8.0;
        let grid = || (-1_000_000..=1_000_000).map(|i| mish(f64::from(i) * 1e-5));
        let (low, high) = (grid().fold(1.0, f64::min), grid().fold(0.0, f64::max));
        assert!(low - between > MISH.0 && low - 3e-9 < MISH.0, "{low}");
        assert!(high + between < MISH.1 && high + 3e-9 > MISH.1, "{high}");
    }

    /// The square of a rectifier has no largest slope where nothing bounds its input.
    #[test]
    fn what_is_not_bounded_has_no_slope() {
        assert!(!slope(Function::Relu2, Upper::INFINITY).is_finite());
        let (_, spread) = slopes(Function::Relu2, Upper::INFINITY);
        assert!(!spread.is_finite());
    }
}
