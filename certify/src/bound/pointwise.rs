//! Elementwise functions: slopes and magnitudes.

use lipschitz_nn::graph::Function;

use crate::upper::{Upper, count};

/// `sup |φ'|`, rounded up.
pub(super) fn slope(function: Function) -> Upper {
    Upper::from_f64(match function {
        Function::Relu | Function::Abs | Function::Tanh => 1.0,
        Function::GeluErf => 1.128_904_146,
        Function::GeluTanh => 1.128_993_069,
        Function::Silu => 1.099_839_321,
        Function::Sigmoid => 0.25,
    })
}

/// c and h such that every slope of φ is in c ± h. ReLU and tanh have slopes in [0, 1], sigmoid in
/// [0, 1/4]; |x| has the slopes −1 and 1; the slopes of GELU and SiLU at x and −x add up to 1.
pub(super) fn slopes(function: Function) -> (f64, Upper) {
    let centre = match function {
        Function::Abs => 0.0,
        Function::Sigmoid => 0.125,
        Function::Relu
        | Function::GeluErf
        | Function::GeluTanh
        | Function::Silu
        | Function::Tanh => 0.5,
    };
    (centre, Upper::from_f64((slope(function).to_f64() - centre).next_up()))
}

/// A bound on |φ(t)| for |t| ≤ r: ReLU, GELU and SiLU are t times a number in [0, 1], and |t| is t
/// or −t.
pub(super) fn value(function: Function, r: Upper) -> Upper {
    match function {
        Function::Relu
        | Function::Abs
        | Function::GeluErf
        | Function::GeluTanh
        | Function::Silu => r,
        Function::Tanh => r.min(Upper::ONE),
        Function::Sigmoid => Upper::ONE,
    }
}

/// A bound on ‖φ(x)‖₂ for ‖x‖₂ ≤ r, with x of `width` elements.
pub(super) fn norm(function: Function, r: Upper, width: usize) -> Upper {
    match function {
        Function::Relu
        | Function::Abs
        | Function::GeluErf
        | Function::GeluTanh
        | Function::Silu => r,
        Function::Tanh => r.min(count(width).sqrt()),
        Function::Sigmoid => count(width).sqrt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The derivative on a fine grid, in closed form, never exceeds the slope and comes within 1e-6
    /// of it.
    #[test]
    fn slopes_are_the_largest_derivatives() {
        let phi = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let derivative = |function, x: f64| match function {
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
        };
        for function in Function::ALL {
            let found = (-200_000..=200_000)
                .map(|i| derivative(function, i as f64 * 5e-5).abs())
                .fold(0.0, f64::max);
            let claimed = slope(function).to_f64();
            assert!(
                found <= claimed && claimed - found < 1e-6,
                "{function:?}: {found} against {claimed}"
            );
            let (centre, spread) = slopes(function);
            let inside = |x: f64| (derivative(function, x) - centre).abs() <= spread.to_f64();
            assert!((-200_000..=200_000).all(|i| inside(i as f64 * 5e-5)), "{function:?}");
        }
    }
}
