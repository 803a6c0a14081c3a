//! What the linear functionals leave out: sums over nodes, each bounded by how far the node's input
//! may be from its reference.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::functional::Functionals;
use super::maps::tiny;
use super::softmax::{Reach, Rest};
use super::spread::{Spread, root_of_squares};
use crate::spectral::{Matrix, gamma, quick_norm, vector_norm};
use crate::upper::{Upper, count};

/// A weight for a token.
pub(super) type Weighted = Vec<(usize, Upper)>;

/// What a remainder does with a claim: what it may take from it, or what it may add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Taken,
    Added,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Taken, Self::Added];
}

/// Weights of the elements of tokens, for what they may take and for what they may add.
pub(super) type Units = Vec<(usize, [Vec<f64>; 2])>;

/// A summand of the remainder of one functional. D_t is the deviation of token t at `slot`.
pub(super) enum Term {
    /// Whatever the deviations are.
    Constant(Upper),
    /// `Σ w_t D_t`
    Linear { slot: usize, weights: Weighted },
    /// `Σ w_t D_t²`
    Square { slot: usize, weights: Weighted },
    /// `Σ a_i Δ_i²` over the elements of all tokens.
    Curved { slot: usize, units: Units, bends: Arc<Bends> },
    /// `Σ w_t D_t E_t`, with E that of `other`.
    Product { slot: usize, other: usize, weights: Weighted },
    /// `Σ w_t D_t² E_t`
    Cube { slot: usize, other: usize, weights: Weighted },
    /// Jumps of slopes.
    Kinks(Kinks),
    /// Curvature and jumps, of all functionals together.
    Bent(Bent),
    /// Curvature of `x ↦ x/√(‖x‖² + c)`.
    Sphere(Sphere),
    /// The same for `x/max(‖x‖, ε)`, of tokens whose ‖x‖ is above ε: token, weight, ‖x‖.
    Projection { slot: usize, eps: f64, rows: Vec<(usize, Upper, f64)> },
    /// Attention.
    Attention { slot: usize, rests: Vec<Rest> },
}

/// `Σ a_i (|Δ_i| − d_i)₊` over the elements of all tokens, where the Δ of a token is at most `factor`
/// times its deviation.
pub(super) struct Kinks {
    pub(super) slot: usize,
    pub(super) factor: Upper,
    /// a of each element, by token.
    pub(super) units: Units,
    pub(super) bends: Arc<Bends>,
}

/// `‖Σ_i g_i ρ_i‖` over the elements of each token, with `|ρ_i| ≤ β Δ_i² + κ (|Δ_i| − d_i)₊` and the Δ of a
/// token at most `factor` times its deviation; g_i is what all functionals make of element i.
pub(super) struct Bent {
    pub(super) slot: usize,
    pub(super) factor: Upper,
    pub(super) beta: Upper,
    pub(super) jump: Upper,
    pub(super) rows: Vec<BentRow>,
    pub(super) bends: Arc<Bends>,
}

/// Of one token.
pub(super) struct BentRow {
    pub(super) token: usize,
    /// The norm of the matrix of all g_i.
    pub(super) norm: Upper,
    /// ‖g_i‖, rounded up.
    pub(super) each: Vec<f64>,
}

impl BentRow {
    /// Of the matrix of all functionals of a token.
    pub(super) fn new(token: usize, m: &Matrix) -> Self {
        let column = |i: usize| {
            let all: Vec<f64> = (0..m.rows).map(|k| m.data[k * m.columns + i]).collect();
            vector_norm(&all).to_f64()
        };
        Self { token, norm: quick_norm(m), each: (0..m.columns).map(column).collect() }
    }
}

impl Bent {
    /// `‖Δ∘Δ‖ ≤ max |Δ_i| ‖Δ‖`, and the largest ‖g_i‖ times ‖Δ‖²; `(x − d)₊ ≤ x (1 − d/ρ)₊` for x ≤ ρ, and
    /// as [`Kinks`] with weights ‖g_i‖.
    fn at(&self, deviations: &Deviations, spread: &Spread) -> Upper {
        sum(self.rows.iter().map(|BentRow { token: t, norm, each }| {
            let ball = self.factor * spread.each[*t];
            let ends = deviations.ends(self.slot, *t, &self.bends.reach, self.factor, ball);
            let mut lost = Upper::ZERO;
            if self.beta > Upper::ZERO {
                let farthest = Upper::from_f64(crate::spectral::largest(&ends));
                let most = Upper::from_f64(crate::spectral::largest(each));
                lost = lost + self.beta * ball * (*norm * farthest).min(most * ball);
            }
            if self.jump > Upper::ZERO {
                let n = each.len();
                let distances = &self.bends.distances[*t * n..(*t + 1) * n];
                let own: Vec<Boxed> = (0..n)
                    .filter(|i| each[*i] != 0.0 && ends[*i] > distances[*i])
                    .map(|i| Boxed { weight: each[i], distance: distances[i], reach: ends[i] })
                    .collect();
                let behind = |u: &Boxed| Upper::from_f64((u.reach - u.distance).next_up());
                let share = own.iter().fold(Upper::ZERO, |m, u| m.max(behind(u).div_up(u.reach)));
                let boxes: Vec<Upper> = own.iter().map(behind).collect();
                let whole = *norm * (share * ball).min(root_of_squares(&boxes));
                lost = lost + self.jump * whole.min(best(&own, ball, true));
            }
            lost
        }))
    }
}

/// What is known of the elements of an elementwise node.
pub(super) struct Bends {
    /// d of each element of each token, rounded down; nothing without jumps.
    pub(super) distances: Vec<f64>,
    /// |Δ| of each for a change of the input of 1; infinite if nothing is known.
    pub(super) reach: Vec<f64>,
}

/// Tokens that pass a norm: `w_t · sup |n(x + Δ) − n(x) − n'(x) Δ|` for `n(x) = x/√(‖x‖² + c)`.
pub(super) struct Sphere {
    pub(super) slot: usize,
    /// c, rounded down.
    pub(super) floor: f64,
    /// Token, weight, and ‖x‖ rounded down.
    pub(super) rows: Vec<(usize, Upper, f64)>,
}

/// The remainders of several functionals.
pub(super) struct Remainders {
    terms: Vec<Vec<Term>>,
    /// Where the functionals are the elements of one vector: terms that bound the ℓ2 norm of what is left
    /// out of all of it. A map of what a node leaves out is far smaller in that norm than element by element.
    together: Option<Vec<Term>>,
    /// Whether bounds are to be quick rather than small: of many functionals, none of which counts much.
    pub(super) quick: bool,
}

/// What the deviations are, by slot, and what is known inside of attention.
pub(super) struct Deviations {
    /// The size of the change of the input, as the largest norm of a token.
    pub(super) radius: Upper,
    /// Those of no change: rounding alone.
    pub(super) still: Option<Arc<Deviations>>,
    /// Of the output of each node.
    pub(super) ends: Vec<Option<Spread>>,
    pub(super) spreads: Vec<Option<Spread>>,
    /// |Δ| of each element of a token that an elementwise node reads, or of each difference of a pair, where
    /// it was bounded on its own; by place and token.
    boxes: BTreeMap<(usize, usize), Vec<f64>>,
    pub(super) reaches: Vec<Option<Reach>>,
    /// That of the outputs of the last token.
    pub(super) last: Upper,
}

impl Deviations {
    pub(super) fn new(slots: usize, radius: Upper, still: Option<Arc<Deviations>>) -> Self {
        let none = || std::iter::repeat_with(|| None).take(slots).collect();
        Self {
            radius,
            still,
            ends: none(),
            spreads: none(),
            boxes: BTreeMap::new(),
            reaches: std::iter::repeat_with(|| None).take(slots).collect(),
            last: Upper::INFINITY,
        }
    }

    fn at(&self, slot: usize) -> Option<&Spread> {
        self.spreads.get(slot)?.as_ref()
    }

    /// What is known of |Δ| of the elements of a token on their own.
    pub(super) fn boxes(&self, slot: usize, t: usize) -> Option<&[f64]> {
        self.boxes.get(&(slot, t)).map(Vec::as_slice)
    }

    /// Of a head and a query, as [`Reach::of`].
    pub(super) fn attention(&self, slot: usize, place: usize) -> Option<(f64, f64)> {
        Some(self.reaches.get(slot)?.as_ref()?.of(place))
    }

    /// Bounds on |Δ| of the elements of a token, beside those that there are.
    pub(super) fn bound(&mut self, slot: usize, t: usize, all: Vec<f64>) {
        match self.boxes.get_mut(&(slot, t)) {
            Some(own) => own.iter_mut().zip(all).for_each(|(own, x)| *own = own.min(x)),
            None => drop(self.boxes.insert((slot, t), all)),
        }
    }

    /// What rounding alone makes of the deviation of a token; nothing known without [`Self::still`].
    fn rounding(&self, slot: usize, t: usize) -> Upper {
        let still = self.still.as_ref().and_then(|still| still.at(slot));
        still.map_or(Upper::INFINITY, |spread| spread.each[t])
    }

    /// |Δ| of each element of a token, however it is known, for a norm of at most `ball`.
    fn ends(&self, slot: usize, t: usize, reach: &[f64], factor: Upper, ball: Upper) -> Vec<f64> {
        let (radius, ball) = (self.radius.to_f64(), ball.to_f64());
        let rounding = (self.rounding(slot, t) * factor).to_f64();
        let own = self.boxes.get(&(slot, t));
        let end = |(i, reach): (usize, &f64)| {
            // Two roundings up.
            let known = match reach.is_finite() {
                true => (reach * radius * (1.0 + 2.0 * f64::EPSILON) + rounding).next_up(),
                false => f64::INFINITY,
            };
            let own = own.and_then(|own| own.get(i)).copied().unwrap_or(f64::INFINITY);
            known.min(own).min(ball)
        };
        reach.iter().enumerate().map(end).collect()
    }

    /// No more than what is known of the change of a value: `reach` for a change of the input of 1,
    /// besides rounding.
    pub(super) fn limited(&self, spread: Spread, reach: Upper, still: Option<&Spread>) -> Spread {
        let Some(still) = still else { return spread };
        let most = reach * self.radius;
        let each = spread.each.iter().zip(&still.each).map(|(x, e)| x.min(most + *e)).collect();
        Spread::new(each, spread.total)
    }
}

impl Remainders {
    pub(super) fn new(count: usize) -> Self {
        let terms = std::iter::repeat_with(Vec::new).take(count).collect();
        Self { terms, together: None, quick: false }
    }

    /// Of the elements of one vector, quickly.
    pub(super) fn of_vector(count: usize) -> Self {
        Self { together: Some(Vec::new()), quick: true, ..Self::new(count) }
    }

    /// `Σ w_t D_t`, which bounds what is left out of all functionals together.
    pub(super) fn linear_of_all(&mut self, slot: usize, weights: &Weighted) {
        let term = || Term::Linear { slot, weights: weights.clone() };
        match &mut self.together {
            Some(together) => together.push(term()),
            None => self.terms.iter_mut().for_each(|own| own.push(term())),
        }
    }

    /// The terms of the whole vector, if they are asked for.
    pub(super) fn together(&mut self) -> Option<&mut Vec<Term>> {
        self.together.as_mut()
    }

    /// A bound on the ℓ2 norm of what is left out of the vector.
    pub(super) fn of_whole(&self, deviations: &Deviations) -> Upper {
        let each: Vec<Upper> = (0..self.terms.len()).map(|k| self.either(k, deviations)).collect();
        let at = |term: &Term| term.at(deviations, Side::Taken, true).unwrap_or(Upper::INFINITY);
        root_of_squares(&each) + sum(self.together.iter().flatten().map(at))
    }

    pub(super) fn push(&mut self, k: usize, term: Term) {
        match (self.terms[k].last_mut(), term) {
            (Some(Term::Constant(sum)), Term::Constant(more)) => *sum = *sum + more,
            (_, term) => self.terms[k].push(term),
        }
    }

    /// `Σ_t f(‖λ_t‖) D_t` for each functional.
    /// f is affine.
    pub(super) fn linear(&mut self, slot: usize, lambda: &Functionals, f: impl Fn(Upper) -> Upper) {
        if let Some(together) = &mut self.together {
            let constant = count(lambda.count) * f(Upper::ZERO);
            let weights = lambda.together().map(|(t, norm)| (t, f(norm) + constant)).collect();
            together.push(Term::Linear { slot, weights });
            return;
        }
        for (k, weights) in by_token(lambda, f).into_iter().enumerate() {
            self.push(k, Term::Linear { slot, weights });
        }
    }

    /// A bound on what is left out of functional k, to this side; infinite where a deviation is not
    /// known.
    pub(super) fn at(&self, k: usize, deviations: &Deviations, side: Side) -> Upper {
        let at = |term: &Term| term.at(deviations, side, self.quick).unwrap_or(Upper::INFINITY);
        let sum = |sum, term: &Term| sum + at(term);
        self.terms[k].iter().fold(Upper::ZERO, sum)
    }

    /// The same to both sides.
    pub(super) fn either(&self, k: usize, deviations: &Deviations) -> Upper {
        let [taken, added] = Side::BOTH.map(|side| self.at(k, deviations, side));
        taken.max(added)
    }
}

impl Remainders {
    /// The places of jumps of slopes in a single token, with that token.
    pub(super) fn kinks_of_one_token(&self) -> BTreeMap<usize, usize> {
        let one = |term: &Term| match term {
            Term::Kinks(Kinks { slot, units, .. }) => match units[..] {
                [(token, _)] => Some((*slot, token)),
                _ => None,
            },
            _ => None,
        };
        self.terms.iter().flatten().filter_map(one).collect()
    }

    /// What may be taken, by place.
    pub(super) fn by_slot(&self, k: usize, deviations: &Deviations) -> Vec<(Option<usize>, Upper)> {
        let at = |term: &Term| term.at(deviations, Side::Taken, self.quick);
        let of = |term: &Term| (term.slot(), at(term).unwrap_or(Upper::INFINITY));
        self.terms[k].iter().map(of).collect()
    }
}

/// `f(‖λ_t‖)` of each token, for each functional, where λ is not 0.
pub(super) fn by_token(lambda: &Functionals, f: impl Fn(Upper) -> Upper) -> Vec<Weighted> {
    let mut all: Vec<Weighted> = vec![Vec::new(); lambda.count];
    for ((k, t, _), norm) in lambda.rows().zip(lambda.norms()) {
        if norm != Upper::ZERO {
            all[k].push((t, f(norm)));
        }
    }
    all
}

impl Term {
    fn slot(&self) -> Option<usize> {
        match self {
            Self::Constant(_) => None,
            Self::Linear { slot, .. }
            | Self::Square { slot, .. }
            | Self::Curved { slot, .. }
            | Self::Product { slot, .. }
            | Self::Cube { slot, .. }
            | Self::Projection { slot, .. }
            | Self::Attention { slot, .. } => Some(*slot),
            Self::Kinks(kinks) => Some(kinks.slot),
            Self::Bent(bent) => Some(bent.slot),
            Self::Sphere(sphere) => Some(sphere.slot),
        }
    }

    fn at(&self, deviations: &Deviations, side: Side, quick: bool) -> Option<Upper> {
        Some(match self {
            Self::Constant(x) => *x,
            Self::Linear { slot, weights } => {
                let d = deviations.at(*slot)?;
                let each = sum(weights.iter().map(|(t, w)| *w * d.each[*t]));
                // Cauchy and Schwarz
                let w: Vec<Upper> = weights.iter().map(|(_, w)| *w).collect();
                each.min(root_of_squares(&w) * d.total)
            }
            Self::Square { slot, weights } => squares(weights, deviations.at(*slot)?),
            Self::Curved { slot, units, bends } => {
                let d = deviations.at(*slot)?;
                let mut greatest = 0.0_f64;
                let by_token = sum(units.iter().map(|(t, weights)| {
                    let weights = &weights[side as usize];
                    let most = crate::spectral::largest(weights);
                    greatest = greatest.max(most);
                    let whole = Upper::from_f64(most) * d.each[*t] * d.each[*t];
                    let ends = deviations.ends(*slot, *t, &bends.reach, Upper::ONE, d.each[*t]);
                    let boxed: f64 = weights.iter().zip(&ends).map(|(w, x)| w * x * x).sum();
                    let boxed =
                        Upper::from_f64(boxed) * (Upper::ONE + gamma(ends.len() + 8)) + tiny();
                    whole.min(boxed)
                }));
                by_token.min(Upper::from_f64(greatest) * d.total * d.total)
            }
            Self::Product { slot, other, weights } => {
                let (d, e) = (deviations.at(*slot)?, deviations.at(*other)?);
                let each = sum(weights.iter().map(|(t, w)| *w * d.each[*t] * e.each[*t]));
                each.min(most(weights) * d.total * e.total)
            }
            Self::Cube { slot, other, weights } => {
                let (d, e) = (deviations.at(*slot)?, deviations.at(*other)?);
                let cube = |(t, w): &(usize, Upper)| *w * d.each[*t] * d.each[*t] * e.each[*t];
                sum(weights.iter().map(cube))
            }
            Self::Kinks(kinks) => kinks.at(deviations, deviations.at(kinks.slot)?, side, quick),
            Self::Bent(bent) => bent.at(deviations, deviations.at(bent.slot)?),
            Self::Sphere(sphere) => sphere.at(deviations.at(sphere.slot)?),
            Self::Projection { slot, eps, rows } => {
                let d = deviations.at(*slot)?;
                sum(rows.iter().map(|(t, weight, size)| {
                    let d = d.each[*t];
                    let near = (*size - d.to_f64()).next_down();
                    let straight = d.div_up(*eps) + d.div_up(*size);
                    if near <= *eps {
                        return *weight * straight;
                    }
                    let curved = half_curvature() * d * d;
                    *weight * curved.div_up((near * near).next_down()).min(straight)
                }))
            }
            Self::Attention { slot, rests } => {
                let reach = deviations.reaches.get(*slot)?.as_ref()?;
                sum(rests.iter().map(|rest| rest.at(reach)))
            }
        })
    }
}

fn sum(all: impl Iterator<Item = Upper>) -> Upper {
    all.fold(Upper::ZERO, |sum, x| sum + x)
}

fn most(weights: &Weighted) -> Upper {
    weights.iter().fold(Upper::ZERO, |m, (_, w)| m.max(*w))
}

/// `Σ w_t D_t²`
fn squares(weights: &Weighted, d: &Spread) -> Upper {
    let each = sum(weights.iter().map(|(t, w)| *w * d.each[*t] * d.each[*t]));
    each.min(most(weights) * d.total * d.total)
}

impl Kinks {
    /// For any μ ≥ 0, with ‖Δ‖ ≤ D and |Δ_i| ≤ ρ_i (weak duality):
    ///
    /// ```text
    /// Σ a_i (|Δ_i| − d_i)₊ ≤ μD² + Σ sup_{x ≤ ρ_i} (a_i (x − d_i)₊ − μx²),
    /// ```
    ///
    /// where the supremum is at x = min(a_i/2μ, ρ_i), or 0.
    fn at(&self, deviations: &Deviations, spread: &Spread, side: Side, quick: bool) -> Upper {
        let mut all: Vec<Boxed> = Vec::new();
        let mut each = Upper::ZERO;
        for (t, weights) in &self.units {
            let weights = &weights[side as usize];
            let n = weights.len();
            let ball = self.factor * spread.each[*t];
            let ends = deviations.ends(self.slot, *t, &self.bends.reach, self.factor, ball);
            let distances = &self.bends.distances[*t * n..(*t + 1) * n];
            let own: Vec<Boxed> = weights
                .iter()
                .zip(distances)
                .zip(&ends)
                .filter(|((weight, distance), reach)| **weight != 0.0 && reach > distance)
                .map(|((weight, distance), reach)| Boxed {
                    weight: *weight,
                    distance: *distance,
                    reach: *reach,
                })
                .collect();
            each = each + best(&own, ball, quick);
            if !quick {
                all.extend(own);
            }
        }
        if quick || self.units.len() < 2 {
            return each;
        }
        each.min(best(&all, self.factor * spread.total, false))
    }
}

/// An element that may meet a jump of slopes, at a given change.
struct Boxed {
    weight: f64,
    distance: f64,
    reach: f64,
}

/// The least of these bounds over a few μ.
fn best(units: &[Boxed], radius: Upper, quick: bool) -> Upper {
    let d = radius.to_f64();
    if d == 0.0 || units.is_empty() {
        return Upper::ZERO;
    }
    let n = units.len();
    // μ = 0: each element at its end.
    let boxes: f64 = units.iter().map(|u| u.weight * (u.reach - u.distance)).sum();
    let mut least = Upper::from_f64(boxes) * (Upper::ONE + gamma(n + 8)) + tiny();
    let most = units.iter().fold(0.0_f64, |most, u| most.max(u.weight.abs()));
    let squares: f64 = units.iter().map(|u| (u.weight / most).powi(2)).sum();
    // All d_i at 0 and no ends: μ = ‖a‖/2D and the bound ‖a‖ D. What lies higher has fewer elements.
    let mut mu = most * squares.sqrt() / (2.0 * d);
    if !(mu.is_finite() && mu > 0.0) {
        return least;
    }
    let value = |mu: f64| -> Upper {
        let (mut sum, mut size) = (0.0, 0.0);
        for u in units {
            let x = (0.5 * u.weight / mu).min(u.reach);
            let (gain, cost) = (u.weight * (x - u.distance), mu * x * x);
            // Not exactly where it is largest: x is off by u, which the value is by a square of that.
            size += u.weight * x + cost;
            if gain > cost {
                sum += gain - cost;
            }
        }
        let sum = Upper::from_f64(sum) * (Upper::ONE + gamma(n + 8)) + tiny();
        let off = gamma(16) * Upper::from_f64(size) * (Upper::ONE + gamma(n + 8));
        Upper::from_f64(mu) * radius * radius + sum + off
    };
    // Convex in μ: by factors while it helps, then by smaller ones.
    let mut own = value(mu);
    let mut step: f64 = if quick { 1.0 } else { 4.0 };
    while step > 1.1 {
        let (up, down) = (value(mu * step), value(mu / step));
        if up < own {
            (mu, own) = (mu * step, up);
        } else if down < own {
            (mu, own) = (mu / step, down);
        } else {
            step = step.sqrt();
        }
    }
    least = least.min(own);
    least
}

impl Sphere {
    /// `‖n''(x)(Δ, Δ)‖ ≤ 2/√3 ‖Δ‖²/(‖x‖² + c)`, so a tangent is off by at most `D²/(√3 s²)` with s² the
    /// least of `‖x‖² + c` on the way; and by at most `2D/s` in any case, as `‖n'‖ ≤ 1/s`.
    fn at(&self, spread: &Spread) -> Upper {
        sum(self.rows.iter().map(|(t, weight, size)| {
            let d = spread.each[*t];
            let s = least(*size, d, self.floor);
            let curved = half_curvature() * d * d;
            let curved = curved.div_up((s * s).next_down());
            let straight = (d + d).div_up(s);
            *weight * curved.min(straight)
        }))
    }
}

/// Half of the largest `‖n''(v, v)‖ s²` of n(x) = x/√(‖x‖² + c) for unit vectors v: 1/√3, rounded up.
pub(super) fn half_curvature() -> Upper {
    Upper::from_f64(0.577_350_3)
}

/// Not above the least of `√(‖x + Δ‖² + c)` for ‖Δ‖ ≤ d, where ‖x‖ is at least `size`.
pub(super) fn least(size: f64, d: Upper, floor: f64) -> f64 {
    let near = (size - d.to_f64()).next_down().max(0.0);
    (near * near * (1.0 - 4.0 * f64::EPSILON) + floor).next_down().max(0.0).sqrt().next_down()
}

/// A mean as an upper bound of a sum over a count.
pub(super) fn mean(all: &[Upper]) -> Upper {
    let total = all.iter().fold(Upper::ZERO, |sum, x| sum + *x);
    if all.is_empty() { Upper::ZERO } else { total * Upper::ONE.div_up(all.len() as f64) }
}

/// `√n`
pub(super) fn root(n: usize) -> Upper {
    count(n).sqrt()
}
