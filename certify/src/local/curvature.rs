//! How far an elementwise function may be from its tangent.
//!
//! For every Δ,
//!
//! ```text
//! −½ β₋ Δ² − κ₋ (|Δ| − d(u))₊ ≤ φ(u + Δ) − φ(u) − φ'(u) Δ ≤ ½ β₊ Δ² + κ₊ (|Δ| − d(u))₊:
//! ```
//!
//! φ'' is from −β₋ to β₊ where there is one, sums of jumps of φ' that are next to each other are from
//! −κ₋ to κ₊, and d is the distance from u to the nearest of its jumps. A convex function is nowhere
//! below its tangent.

use lipschitz_nn::graph::Function;

/// β, κ and the places of the jumps of an elementwise function.
#[derive(Clone, Copy, Debug)]
pub(super) struct Curvature {
    /// β₋ and β₊.
    pub(super) beta: [f64; 2],
    /// κ₋ and κ₊.
    pub(super) jump: [f64; 2],
    /// Where they are.
    pub(super) places: [f64; 2],
}

impl Curvature {
    fn smooth(below: f64, above: f64) -> Self {
        Self { beta: [below, above], jump: [0.0; 2], places: [0.0; 2] }
    }

    /// A jump at 0, up or down.
    fn kink(jump: f64) -> Self {
        let jump = [(-jump).max(0.0).next_up(), jump.max(0.0).next_up()];
        let jump = jump.map(|x| if x < 1e-300 { 0.0 } else { x });
        Self { jump, ..Self::smooth(0.0, 0.0) }
    }

    /// Of this function. The proofs are in `docs/mathematics.md`.
    pub(super) fn of(function: Function) -> Self {
        match function {
            Function::Identity => Self::smooth(0.0, 0.0),
            Function::Relu => Self::kink(1.0),
            Function::Abs => Self::kink(2.0),
            Function::LeakyRelu { slope } => Self::kink(1.0 - slope),
            // αeˣ below 0, and φ' jumps from α to 1.
            Function::Elu { alpha } => {
                Self { beta: [(-alpha).max(0.0), alpha.max(0.0)], ..Self::kink(1.0 - alpha) }
            }
            Function::Relu2 => Self::smooth(0.0, 2.0),
            // φ(x)(2 − x²) for the density φ: √(2/π) at 0, and −2φ(2) at ±2.
            Function::GeluErf => Self::smooth(0.107_982, 0.797_884_561),
            Function::GeluTanh => Self::smooth(0.108, 0.799),
            Function::Silu => Self::smooth(0.036_92, 0.5),
            Function::QuickGelu => Self::smooth(0.062_84, 0.851),
            // 4/(3√3)
            Function::Tanh => Self::smooth(0.769_800_36, 0.769_800_36),
            // 1/(6√3)
            Function::Sigmoid => Self::smooth(0.096_225_045, 0.096_225_045),
            Function::Softplus => Self::smooth(0.0, 0.25),
            Function::Mish => Self::smooth(0.0591, 0.65),
            // x/3 + ½ between −3 and 3, where φ' falls by ½ each.
            Function::HardSwish => {
                Self { beta: [0.0, 0.333_333_333_333_333_4], jump: [1.0, 0.0], places: [-3.0, 3.0] }
            }
            Function::HardSigmoid => {
                Self { beta: [0.0; 2], jump: [0.166_666_666_666_666_7; 2], places: [-3.0, 3.0] }
            }
        }
    }

    /// Of `cap·tanh(x/cap)`.
    pub(super) fn soft_cap(cap: f64) -> Self {
        let beta = (0.769_800_36 / cap.abs()).next_up();
        Self::smooth(beta, beta)
    }

    /// Of clipping to ±limit.
    pub(super) fn clip(limit: f64) -> Self {
        Self { beta: [0.0; 2], jump: [1.0; 2], places: [-limit, limit] }
    }

    /// Whether slopes jump.
    pub(super) fn jumps(&self) -> bool {
        self.jump != [0.0; 2]
    }

    /// The larger of β₋ and β₊.
    pub(super) fn most(&self) -> f64 {
        self.beta[0].max(self.beta[1])
    }

    /// A distance from u within which φ' does not jump: not above the true one, where u is exact.
    pub(super) fn distance(&self, u: f64) -> f64 {
        let to = |at: f64| (u - at).abs().next_down();
        to(self.places[0]).min(to(self.places[1])).max(0.0)
    }
}

/// φ'(u): the derivative on one side where there are two.
pub(super) fn derivative(function: Function, u: f64) -> f64 {
    let sigmoid = |x: f64| {
        let e = (-x.abs()).exp();
        if x < 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) }
    };
    let silu = |x: f64| {
        let s = sigmoid(x);
        s * (1.0 + x * (1.0 - s))
    };
    let inside = |x: f64, within: f64| if x.abs() < 3.0 { within } else { f64::from(x > 0.0) };
    match function {
        Function::Identity => 1.0,
        Function::Relu => f64::from(u > 0.0),
        Function::Abs => {
            if u < 0.0 {
                -1.0
            } else {
                1.0
            }
        }
        Function::LeakyRelu { slope } => {
            if u > 0.0 {
                1.0
            } else {
                slope
            }
        }
        Function::Elu { alpha } => {
            if u > 0.0 {
                1.0
            } else {
                alpha * u.exp()
            }
        }
        Function::Relu2 => 2.0 * u.max(0.0),
        Function::GeluErf => {
            let density = (-0.5 * u * u).exp() / (2.0 * std::f64::consts::PI).sqrt();
            0.5 * candle_core::cpu::erf::erfc_f64(-u * std::f64::consts::FRAC_1_SQRT_2)
                + u * density
        }
        Function::GeluTanh => {
            let (a, b) = ((2.0 / std::f64::consts::PI).sqrt(), 0.044_715);
            let t = (a * (u + b * u * u * u)).tanh();
            let inner = (1.0 - t * t) * a * (1.0 + 3.0 * b * u * u);
            // Far out the first factor is 0 and the other not finite.
            0.5 * (1.0 + t) + if t.abs() == 1.0 { 0.0 } else { 0.5 * u * inner }
        }
        Function::Silu => silu(u),
        Function::QuickGelu => silu(1.702 * u),
        Function::Tanh => {
            let t = u.tanh();
            1.0 - t * t
        }
        Function::Sigmoid => {
            let s = sigmoid(u);
            s * (1.0 - s)
        }
        Function::Softplus => sigmoid(u),
        Function::Mish => {
            let e = (-u.abs()).exp();
            let t = if u < 0.0 {
                e * (e + 2.0) / (e * (e + 2.0) + 2.0)
            } else {
                (1.0 + 2.0 * e) / (1.0 + 2.0 * e + 2.0 * e * e)
            };
            t + u * (1.0 - t * t) * sigmoid(u)
        }
        Function::HardSwish => inside(u, u / 3.0 + 0.5),
        Function::HardSigmoid => {
            if u.abs() < 3.0 {
                1.0 / 6.0
            } else {
                0.0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// φ by the integral of its derivative from u: Simpson's rule on small steps.
    fn difference(function: Function, u: f64, delta: f64) -> f64 {
        let n = 400;
        let h = delta / f64::from(n);
        (0..n)
            .map(|i| {
                let a = u + f64::from(i) * h;
                let f = |x: f64| derivative(function, x);
                h / 6.0 * (f(a) + 4.0 * f(a + 0.5 * h) + f(a + h))
            })
            .sum()
    }

    /// The bound holds for many u and Δ, small and large, and is met by some of them.
    #[test]
    fn tangents_are_as_near_as_is_claimed() {
        let functions = Function::ALL.into_iter().chain([
            Function::LeakyRelu { slope: 0.01 },
            Function::Elu { alpha: 1.0 },
            Function::Elu { alpha: -0.5 },
        ]);
        for function in functions {
            let curvature = Curvature::of(function);
            let mut nearest = [0.0_f64; 2];
            for i in -120..=120 {
                let u = f64::from(i) * 0.0531;
                for delta in [0.01, 0.05, 0.2, 0.7, 1.5, 4.0, 9.0].iter().flat_map(|d| [*d, -*d]) {
                    let found = difference(function, u, delta) - derivative(function, u) * delta;
                    let side = usize::from(found > 0.0);
                    let behind = (delta.abs() - curvature.distance(u)).max(0.0);
                    let most =
                        0.5 * curvature.beta[side] * delta * delta + curvature.jump[side] * behind;
                    // The rule is off by a step at a jump.
                    let all = curvature.jump[0].max(curvature.jump[1]);
                    let off = 0.02 * all * delta.abs() + 1e-9;
                    assert!(found.abs() <= most + off, "{function:?} {u} {delta}: {found} {most}");
                    if most > 0.0 {
                        nearest[side] = nearest[side].max(found.abs() / most);
                    }
                }
            }
            for (side, nearest) in nearest.into_iter().enumerate() {
                let trivial = curvature.beta[side] == 0.0 && curvature.jump[side] == 0.0;
                assert!(trivial || nearest > 0.45, "{function:?}, {side}: {nearest}");
            }
        }
    }

    /// The largest second derivatives, by differences of the first on a fine grid, lie just below what
    /// stands here.
    #[test]
    fn the_largest_second_derivatives() {
        for function in Function::ALL {
            let curvature = Curvature::of(function);
            let h = 1e-4;
            let second = || {
                (-100_000..100_000)
                    .map(|i| f64::from(i) * h)
                    .filter(|x| curvature.distance(*x + 0.5 * h) > h || !curvature.jumps())
                    .map(|x| (derivative(function, x + h) - derivative(function, x)) / h)
            };
            for (found, beta) in [
                (second().map(|x| -x).fold(0.0, f64::max), curvature.beta[0]),
                (second().fold(0.0, f64::max), curvature.beta[1]),
            ] {
                assert!(found <= beta * (1.0 + 1e-6) + 1e-9, "{function:?}: {found} {beta}");
                assert!(found >= 0.9 * beta, "{function:?}: {found} {beta}");
            }
        }
    }

    #[test]
    fn capped_and_clipped() {
        for cap in [0.5, 3.0] {
            let curvature = Curvature::soft_cap(cap);
            for i in -60..=60 {
                let u = f64::from(i) * 0.1;
                for delta in [0.1, 1.0, -2.0] {
                    let f = |x: f64| cap * (x / cap).tanh();
                    let slope = 1.0 - (u / cap).tanh().powi(2);
                    let found = (f(u + delta) - f(u) - slope * delta).abs();
                    assert!(found <= 0.5 * curvature.most() * delta * delta + 1e-12);
                    let clip = |x: f64| x.clamp(-cap, cap);
                    let slope = f64::from(u.abs() < cap);
                    let found = (clip(u + delta) - clip(u) - slope * delta).abs();
                    let kinked = Curvature::clip(cap);
                    let most = kinked.jump[0] * (delta.abs() - kinked.distance(u)).max(0.0);
                    assert!(found <= most + 1e-12, "{u} {delta} {found} {most}");
                }
            }
        }
    }
}
