//! What the linear functionals leave out: sums over nodes, each bounded by how far the node's input
//! may be from its reference.

use super::attention::{Reach, Rest};
use super::functional::Functionals;
use super::spread::{Spread, root_of_squares};
use crate::spectral::gamma;
use crate::upper::{Upper, count};

/// A weight for a token.
pub(super) type Weighted = Vec<(usize, Upper)>;

/// A summand of the remainder of one functional. D_t is the deviation of token t at `slot`.
pub(super) enum Term {
    /// Whatever the deviations are.
    Constant(Upper),
    /// `Σ w_t D_t`
    Linear { slot: usize, weights: Weighted },
    /// `Σ w_t D_t²`
    Square { slot: usize, weights: Weighted },
    /// `Σ w_t D_t E_t`, with E that of `other`.
    Product { slot: usize, other: usize, weights: Weighted },
    /// `Σ w_t D_t² E_t`
    Cube { slot: usize, other: usize, weights: Weighted },
    /// Jumps of slopes.
    Kinks(Kinks),
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
    /// a and d of each element, by token.
    pub(super) units: Vec<(usize, Vec<(f64, f64)>)>,
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
}

/// What the deviations are, by slot, and what is known inside of attention.
#[derive(Default)]
pub(super) struct Deviations {
    pub(super) spreads: Vec<Option<Spread>>,
    pub(super) reaches: Vec<Option<Reach>>,
}

impl Deviations {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            spreads: std::iter::repeat_with(|| None).take(slots).collect(),
            reaches: std::iter::repeat_with(|| None).take(slots).collect(),
        }
    }

    fn at(&self, slot: usize) -> Option<&Spread> {
        self.spreads.get(slot)?.as_ref()
    }
}

impl Remainders {
    pub(super) fn new(count: usize) -> Self {
        Self { terms: std::iter::repeat_with(Vec::new).take(count).collect() }
    }

    pub(super) fn push(&mut self, k: usize, term: Term) {
        match (self.terms[k].last_mut(), term) {
            (Some(Term::Constant(sum)), Term::Constant(more)) => *sum = *sum + more,
            (_, term) => self.terms[k].push(term),
        }
    }

    /// `Σ_t f(‖λ_t‖) D_t` for each functional.
    pub(super) fn linear(
        &mut self,
        slot: usize,
        lambda: &Functionals,
        f: impl Fn(Upper) -> Upper,
    ) {
        for (k, weights) in by_token(lambda, f).into_iter().enumerate() {
            self.push(k, Term::Linear { slot, weights });
        }
    }

    /// A bound on what functional k leaves out; infinite where a deviation is not known.
    pub(super) fn at(&self, k: usize, deviations: &Deviations) -> Upper {
        let sum = |sum, term: &Term| sum + term.at(deviations).unwrap_or(Upper::INFINITY);
        self.terms[k].iter().fold(Upper::ZERO, sum)
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
    fn at(&self, deviations: &Deviations) -> Option<Upper> {
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
            Self::Kinks(kinks) => kinks.at(deviations.at(kinks.slot)?),
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
                    let curved = Upper::from_f64(0.7) * d * d;
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
    /// For any μ > 0, with ‖Δ‖ ≤ D (weak duality; each Δ_i on its own is best at a_i/2μ):
    ///
    /// ```text
    /// Σ a_i (|Δ_i| − d_i)₊ ≤ μD² + Σ sup_x (a_i (x − d_i)₊ − μx²) = μD² + Σ (a_i²/4μ − a_i d_i)₊.
    /// ```
    fn at(&self, spread: &Spread) -> Upper {
        let together = || -> Upper {
            let all: Vec<&[(f64, f64)]> = self.units.iter().map(|(_, u)| &u[..]).collect();
            best(&all, self.factor * spread.total)
        };
        let each = sum(
            self.units.iter().map(|(t, units)| best(&[units], self.factor * spread.each[*t])),
        );
        if self.units.len() > 1 { each.min(together()) } else { each }
    }
}

/// The least of these bounds over a few μ.
fn best(units: &[&[(f64, f64)]], radius: Upper) -> Upper {
    let d = radius.to_f64();
    if d == 0.0 {
        return Upper::ZERO;
    }
    let whole: f64 = units.iter().flat_map(|u| u.iter()).map(|(a, _)| a * a).sum();
    if whole == 0.0 {
        return Upper::ZERO;
    }
    // All d_i at 0: μ = ‖a‖/2D and the bound ‖a‖ D. What lies higher has fewer elements in it.
    let start = whole.sqrt() / (2.0 * d);
    if !(start.is_finite() && start > 0.0) {
        return Upper::INFINITY;
    }
    let value = |mu: f64| -> Upper {
        let (mut n, mut sum, mut size) = (0, 0.0, 0.0);
        for (a, d) in units.iter().flat_map(|u| u.iter()) {
            let high = a * a / (4.0 * mu);
            let x = high - a * d;
            if x > 0.0 {
                (n, sum, size) = (n + 1, sum + x, size + high);
            }
        }
        // Each summand is off by at most 4u of its first part; those left out are at most that.
        let all: usize = units.iter().map(|u| u.len()).sum();
        let off = gamma(8) * Upper::from_f64(whole / (4.0 * mu)) * (Upper::ONE + gamma(all + 8));
        let sum = Upper::from_f64(sum) + gamma(n + 8) * Upper::from_f64(size);
        Upper::from_f64(mu) * radius * radius + sum + off
    };
    // Convex in μ: upwards by factors while it helps, then between the last two steps.
    let (mut mu, mut least) = (start, value(start));
    let mut step = 4.0;
    while step > 1.05 {
        let up = value(mu * step);
        if up < least {
            (mu, least) = (mu * step, up);
            continue;
        }
        let down = value(mu / step);
        if down < least {
            (mu, least) = (mu / step, down);
            continue;
        }
        step = step.sqrt();
    }
    least
}

impl Sphere {
    /// `‖n''(x)(Δ, Δ)‖ ≤ 7/5 ‖Δ‖²/(‖x‖² + c)`, so a tangent is off by at most `7/10 D²/s²` with s² the
    /// least of `‖x‖² + c` on the way; and by at most `2D/s` in any case, as `‖n'‖ ≤ 1/s`.
    fn at(&self, spread: &Spread) -> Upper {
        sum(self.rows.iter().map(|(t, weight, size)| {
            let d = spread.each[*t];
            let s = least(*size, d, self.floor);
            let curved = Upper::from_f64(0.7) * d * d;
            let curved = curved.div_up((s * s).next_down());
            let straight = (d + d).div_up(s);
            *weight * curved.min(straight)
        }))
    }
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
