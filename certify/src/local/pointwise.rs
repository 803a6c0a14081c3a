//! Elementwise functions, and the sorting of pairs.

use std::sync::Arc;

use lipschitz_nn::graph::{Function, Op};

use super::curvature::{Curvature, derivative};
use super::functional::Functionals;
use super::maps::tiny;
use super::remainder::{Bends, Bent, BentRow, Kinks, Remainders, Term, Units, root};
use super::spread::Spread;
use crate::bound::pointwise;
use crate::spectral::{Matrix, gamma, vector_norm};
use crate::upper::{Upper, abs};

/// Elementwise functions are computed to within this many units of the size of what they are made of,
/// as in `bound/rounding.rs`.
const UNITS: f64 = 64.0 * (f64::EPSILON / 2.0);

/// `scale · φ(u)`, around the computed u.
pub(super) struct Pointwise {
    kind: Kind,
    scale: f64,
    u: Matrix,
    /// `scale · φ'(u)`
    slopes: Vec<f64>,
    bends: Arc<Bends>,
    pub(super) slot: usize,
    pub(super) errors: Vec<Upper>,
}

#[derive(Clone, Copy)]
enum Kind {
    Function(Function),
    SoftCap(f64),
    Clip(f64),
}

impl Kind {
    fn curvature(self) -> Curvature {
        match self {
            Self::Function(function) => Curvature::of(function),
            Self::SoftCap(cap) => Curvature::soft_cap(cap),
            Self::Clip(limit) => Curvature::clip(limit),
        }
    }

    fn derivative(self, u: f64) -> f64 {
        match self {
            Self::Function(function) => derivative(function, u),
            Self::SoftCap(cap) => {
                let t = (u / cap).tanh();
                1.0 - t * t
            }
            Self::Clip(limit) => f64::from(u.abs() < limit),
        }
    }

    fn slope(self, r: Upper) -> Upper {
        match self {
            Self::Function(function) => pointwise::slope(function, r),
            Self::SoftCap(_) | Self::Clip(_) => Upper::ONE,
        }
    }

    /// Whether slopes are known exactly.
    fn exact(self) -> bool {
        matches!(
            self,
            Self::Clip(_)
                | Self::Function(
                    Function::Identity
                        | Function::Relu
                        | Function::Abs
                        | Function::LeakyRelu { .. }
                        | Function::Relu2
                )
        )
    }
}

impl Pointwise {
    /// Of an elementwise node with input u; None of another.
    pub(super) fn new(op: &Op, u: &Matrix, slot: usize, reach: Vec<f64>) -> Option<Self> {
        let (kind, scale) = match op {
            Op::Activation { function, scale } => (Kind::Function(*function), *scale),
            Op::SoftCap { cap } => (Kind::SoftCap(*cap), 1.0),
            Op::Clip { limit } => (Kind::Clip(*limit), 1.0),
            _ => return None,
        };
        let slopes = u.data.iter().map(|u| scale * kind.derivative(*u)).collect();
        let error = |row: &[f64]| {
            if matches!(kind, Kind::Clip(_)) {
                return Upper::ZERO;
            }
            let size = vector_norm(row);
            let most = kind.slope(size).max(Upper::ONE);
            let cap = if let Kind::SoftCap(cap) = kind { abs(cap) } else { Upper::ONE };
            let size = size + cap.max(Upper::ONE) * root(row.len());
            abs(scale) * Upper::from_f64(UNITS) * most * size + tiny()
        };
        let errors = u.data.chunks(u.columns.max(1)).map(error).collect();
        let curvature = kind.curvature();
        let distances = match curvature.jumps() {
            true => u.data.iter().map(|u| curvature.distance(*u)).collect(),
            false => Vec::new(),
        };
        let bends = Arc::new(Bends { distances, reach });
        Some(Self { kind, scale, u: u.clone(), slopes, bends, slot, errors })
    }

    /// Whether its slope jumps.
    pub(super) fn jumps(&self) -> bool {
        self.kind.curvature().jumps()
    }

    /// Tokens, and elements of each.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.u.rows, self.u.columns)
    }

    /// What it reads.
    pub(super) fn input(&self) -> &Matrix {
        &self.u
    }

    pub(super) fn grow(&self, x: &Spread) -> Spread {
        let largest = Upper::from_f64(self.u.largest()) + x.largest();
        x.through(abs(self.scale) * self.kind.slope(largest), &self.errors)
    }

    /// `Σ λ_i (y_i(u + Δ) − y_i(u))` is `Σ (λ_i s φ'(u_i)) Δ_i` and what the tangents miss.
    pub(super) fn back(&self, mut lambda: Functionals, out: &mut Remainders) -> Functionals {
        let curvature = self.kind.curvature();
        let scale = abs(self.scale);
        // What slopes may be off by: they are made of a handful of elementwise functions of size
        // (1 + |u|) at most.
        let far = Upper::from_f64(self.u.largest()) + Upper::ONE;
        let off = if self.kind.exact() { Upper::ZERO } else { Upper::from_f64(4.0 * UNITS) * far };
        let most = Upper::from_f64(crate::spectral::largest(&self.slopes));
        let share = scale * off + gamma(4) * most;
        out.linear(self.slot, &lambda, |norm| share * norm + tiny());
        if let Some(together) = out.together() {
            together.push(Term::Bent(Bent {
                slot: self.slot,
                factor: Upper::ONE,
                beta: scale * Upper::from_f64(0.5 * curvature.most()),
                jump: scale * Upper::from_f64(curvature.jump[0].max(curvature.jump[1])),
                rows: bent_rows(&lambda),
                bends: self.bends.clone(),
            }));
        } else {
            self.bend(&curvature, &lambda, out);
        }
        for (t, row) in lambda.rows_mut() {
            let slopes = &self.slopes[t * self.u.columns..(t + 1) * self.u.columns];
            row.iter_mut().zip(slopes).for_each(|(l, s)| *l *= s);
        }
        lambda
    }

    /// What tangents miss, for each functional.
    fn bend(&self, curvature: &Curvature, lambda: &Functionals, out: &mut Remainders) {
        if curvature.most() > 0.0 {
            let half = curvature.beta.map(|beta| 0.5 * beta * self.scale);
            for (k, units) in weighted(lambda, half).into_iter().enumerate() {
                let bends = self.bends.clone();
                out.push(k, Term::Curved { slot: self.slot, units, bends });
            }
        }
        if curvature.jumps() {
            let jump = curvature.jump.map(|jump| jump * self.scale);
            for (k, units) in weighted(lambda, jump).into_iter().enumerate() {
                let bends = self.bends.clone();
                let kinks = Kinks { slot: self.slot, factor: Upper::ONE, units, bends };
                out.push(k, Term::Kinks(kinks));
            }
        }
    }
}

/// What all functionals together make of the elements of each token.
fn bent_rows(lambda: &Functionals) -> Vec<BentRow> {
    let row = |(at, t): (usize, &usize)| BentRow::new(*t, &lambda.of_token(at));
    lambda.tokens.iter().enumerate().map(row).collect()
}

/// What a function may be below and above its tangent times λ, rounded up, of each token where λ is not
/// 0: a positive λ takes what is below and adds what is above.
fn weighted(lambda: &Functionals, [below, above]: [f64; 2]) -> Vec<Units> {
    let mut out: Vec<Units> = vec![Vec::new(); lambda.count];
    for (k, t, row) in lambda.rows() {
        if row.iter().any(|l| *l != 0.0) {
            out[k].push((t, sides(row, below, above)));
        }
    }
    out
}

/// `(λ_i below)₊ + (−λ_i above)₊`, which is taken, and the same the other way round, which is added; both
/// rounded up. Signs of factors are alike.
fn sides(row: &[f64], below: f64, above: f64) -> [Vec<f64>; 2] {
    let up = |x: f64| if x == 0.0 { 0.0 } else { x.next_up().next_up() };
    let most = |l: &f64, plus: f64, minus: f64| up((l * plus).max(-(l * minus)).max(0.0));
    let taken = row.iter().map(|l| most(l, below, above));
    let added = row.iter().map(|l| most(l, above, below));
    [taken.collect(), added.collect()]
}

/// `max(u, v)` and `min(u, v)` of the halves of each token: `½ (u + v) ± ½ |u − v|`, exactly computed.
pub(super) struct Sorted {
    x: Matrix,
    bends: Arc<Bends>,
    pub(super) slot: usize,
}

impl Sorted {
    /// `reach`: how far each difference changes where the input changes by 1.
    pub(super) fn new(x: &Matrix, slot: usize, reach: Vec<f64>) -> Self {
        let half = x.columns / 2;
        let row = |row: &[f64]| -> Vec<f64> {
            let apart = |i: usize| (row[i] - row[half + i]).abs().next_down().max(0.0);
            (0..half).map(apart).collect()
        };
        let distances = x.data.chunks(x.columns.max(1)).flat_map(row).collect();
        Self { x: x.clone(), bends: Arc::new(Bends { distances, reach }), slot }
    }

    /// Tokens, and elements of each.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.x.rows, self.x.columns)
    }

    /// What it reads.
    pub(super) fn input(&self) -> &Matrix {
        &self.x
    }

    /// u and v go where the larger and the smaller go; `|u − v|` has a jump of slopes of 2 at 0, and
    /// `‖Δu − Δv‖ ≤ √2 ‖Δ‖`.
    pub(super) fn back(&self, mut lambda: Functionals, out: &mut Remainders) -> Functionals {
        let half = self.x.columns / 2;
        let apart = |row: &[f64]| (0..half).map(|i| row[i] - row[half + i]).collect::<Vec<f64>>();
        let (slot, factor, bends) = (self.slot, root(2), self.bends.clone());
        if let Some(together) = out.together() {
            let data = lambda.data.chunks(lambda.width.max(1)).flat_map(apart).collect();
            let tokens = lambda.tokens.clone();
            let apart = Functionals { count: lambda.count, tokens, width: half, data };
            // Differences are rounded.
            let jump = Upper::ONE + gamma(4);
            let rows = bent_rows(&apart);
            together.push(Term::Bent(Bent { slot, factor, beta: Upper::ZERO, jump, rows, bends }));
        } else {
            let mut units: Vec<Units> = vec![Vec::new(); lambda.count];
            for (k, t, row) in lambda.rows() {
                let apart = apart(row);
                if apart.iter().any(|w| *w != 0.0) {
                    units[k].push((t, sides(&apart, 0.0, 1.0)));
                }
            }
            for (k, units) in units.into_iter().enumerate() {
                out.push(k, Term::Kinks(Kinks { slot, factor, units, bends: bends.clone() }));
            }
        }
        let (x, width) = (&self.x, self.x.columns);
        for (t, row) in lambda.rows_mut() {
            for i in 0..half {
                if x.data[t * width + i] < x.data[t * width + half + i] {
                    row.swap(i, half + i);
                }
            }
        }
        lambda
    }
}

/// `W_d (φ(g) ∘ u)` between the maps: the product, around the computed g, u and φ(g).
pub(super) struct Product {
    function: Function,
    gate: Matrix,
    up: Matrix,
    open: Matrix,
    /// Where the deviations of g and of u are kept.
    pub(super) slots: [usize; 2],
    errors: Vec<Upper>,
}

impl Product {
    pub(super) fn new(
        function: Function,
        gate: Matrix,
        up: Matrix,
        open: Matrix,
        slots: [usize; 2],
    ) -> Self {
        // φ(g) is off by a few units of |g| + 1, and the product is rounded.
        let n = gate.columns.max(1);
        let rows = gate.data.chunks(n).zip(up.data.chunks(n)).zip(open.data.chunks(n));
        let errors = rows
            .map(|((g, u), o)| {
                let most = Upper::from_f64(crate::spectral::largest(u));
                let slope = pointwise::slope(function, vector_norm(g)).max(Upper::ONE);
                let off = Upper::from_f64(UNITS) * slope * (vector_norm(g) + root(n));
                off * most + gamma(2) * vector_norm(o) * most + tiny()
            })
            .collect();
        Self { function, gate, up, open, slots, errors }
    }

    /// `φ(g') u' − φ(g) u = φ(g') Δu + u (φ(g') − φ(g))`
    pub(super) fn grow(&self, gate: &Spread, up: &Spread) -> Spread {
        let n = self.gate.columns.max(1);
        let each = (0..self.errors.len())
            .map(|t| {
                let row = |m: &Matrix| {
                    Upper::from_f64(crate::spectral::largest(&m.data[t * n..(t + 1) * n]))
                };
                let slope = pointwise::slope(self.function, row(&self.gate) + gate.each[t]);
                let open = row(&self.open) + slope * gate.each[t];
                open * up.each[t] + row(&self.up) * slope * gate.each[t] + self.errors[t]
            })
            .collect();
        Spread::of(each)
    }

    /// To first order `φ(g) Δu + u φ'(g) Δg`; the rest is at most `|u| ½β Δg² + sup|φ'| |Δg| |Δu|`.
    pub(super) fn back(
        &self,
        lambda: &Functionals,
        out: &mut Remainders,
    ) -> (Functionals, Functionals) {
        let n = self.gate.columns.max(1);
        let curvature = Curvature::of(self.function);
        let (mut to_gate, mut to_up) = (lambda.clone(), lambda.clone());
        let largest = Upper::from_f64(self.gate.largest());
        let off = Upper::from_f64(4.0 * UNITS) * (largest + Upper::ONE);
        let slope_of = |t: usize| derivative_row(self.function, &self.gate, t);
        let all: Vec<Vec<f64>> = (0..self.errors.len()).map(slope_of).collect();
        for (to, m) in [(&mut to_gate, &self.up), (&mut to_up, &self.open)] {
            for (t, row) in to.rows_mut() {
                row.iter_mut().zip(&m.data[t * n..(t + 1) * n]).for_each(|(l, x)| *l *= x);
            }
        }
        // What is left of |λ u| before the slopes go in.
        let passed = to_gate.clone();
        for (t, row) in to_gate.rows_mut() {
            row.iter_mut().zip(&all[t]).for_each(|(l, s)| *l *= s);
        }
        let [gate, up] = self.slots;
        let share = Upper::from_f64(UNITS) * (largest + Upper::ONE);
        // φ(g) itself is off, which Δu meets; and each product is rounded.
        out.linear(up, lambda, |norm| share * norm + tiny());
        out.linear(up, &to_up, |norm| gamma(4) * norm + tiny());
        out.linear(gate, &passed, |norm| off * norm + tiny());
        out.linear(gate, &to_gate, |norm| gamma(6) * norm + tiny());
        let mut squares: Vec<Vec<(usize, Upper)>> = vec![Vec::new(); lambda.count];
        let mut mixed = squares.clone();
        let mut units: Vec<Units> = vec![Vec::new(); lambda.count];
        for ((k, t, row), (_, _, open)) in lambda.rows().zip(passed.rows()) {
            let largest = Upper::from_f64(crate::spectral::largest(row));
            if largest == Upper::ZERO {
                continue;
            }
            mixed[k].push((t, largest));
            let most = Upper::from_f64(crate::spectral::largest(open).next_up());
            squares[k].push((t, Upper::from_f64(0.5 * curvature.most()) * most));
            if curvature.jumps() {
                let [below, above] = curvature.jump;
                units[k].push((t, sides(open, below, above)));
            }
        }
        let rounded = lambda.norms();
        for ((k, t, _), norm) in lambda.rows().zip(rounded) {
            out.push(k, Term::Constant(norm * self.errors[t]));
        }
        let distances = self.gate.data.iter().map(|g| curvature.distance(*g)).collect();
        let bends = Arc::new(Bends { distances, reach: vec![f64::INFINITY; n] });
        // sup |φ'| where inputs have no bound is that of all; squares of rectifiers have none.
        let slope = pointwise::slope(self.function, Upper::INFINITY);
        for k in 0..lambda.count {
            let weights = std::mem::take(&mut squares[k]);
            out.push(k, Term::Square { slot: gate, weights });
            let weights: Vec<(usize, Upper)> = std::mem::take(&mut mixed[k]);
            if slope.is_finite() {
                let weights = weights.into_iter().map(|(t, w)| (t, slope * w)).collect();
                out.push(k, Term::Product { slot: gate, other: up, weights });
            } else {
                // φ(u) = max(u, 0)²: a slope of at most 2(g + Δg).
                let two = Upper::from_f64(2.0);
                let first = weights.iter().map(|(t, w)| (*t, two * largest * *w)).collect();
                out.push(k, Term::Product { slot: gate, other: up, weights: first });
                let third = weights.iter().map(|(t, w)| (*t, two * *w)).collect();
                out.push(k, Term::Cube { slot: gate, other: up, weights: third });
            }
            let units = std::mem::take(&mut units[k]);
            if !units.is_empty() {
                let bends = bends.clone();
                out.push(k, Term::Kinks(Kinks { slot: gate, factor: Upper::ONE, units, bends }));
            }
        }
        (to_gate, to_up)
    }
}

fn derivative_row(function: Function, gate: &Matrix, t: usize) -> Vec<f64> {
    let n = gate.columns;
    gate.data[t * n..(t + 1) * n].iter().map(|g| derivative(function, *g)).collect()
}
