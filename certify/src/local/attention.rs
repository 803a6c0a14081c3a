//! Softmax attention around a computed input.
//!
//! A head's output for one query is `Σ_j p_j v_j` with p the softmax of logits ℓ. Around the reference,
//! for a functional λ with `a_j = λ·v_j` and `ā = Σ p_j a_j`,
//!
//! ```text
//! λ·Δo = Σ p_j λ·Δv_j + Σ g_j Δℓ_j + rest,   g_j = p_j (a_j − ā),
//! ```
//!
//! where the rest is of second order. With every |Δℓ_j − c| ≤ w for some c, probabilities change by a
//! factor of at most e^(2w) on the way, so that with ε the probability off the favourite,
//! `ε' = ε e^(2w)/(1 − ε)` bounds it on the way, and there `√Var(Δℓ) ≤ 2w √min(ε', ¼)` and
//! `E|Δℓ − EΔℓ| ≤ 4w min(ε', ¼)`. The proofs are in `docs/mathematics.md`.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use lipschitz_nn::graph::{Attention, NodeId, NormKind, Rotary, Span, Stage, join};
use lipschitz_nn::ops;

use super::curvature::Curvature;
use super::functional::{Functionals, product};
use super::maps::{Map, Maps, rounded, tiny};
use super::norm::Normed;
use super::piece::{Known, add_error};
use super::remainder::{Deviations, Remainders, Term};
use super::spread::{Spread, root_of_squares};
use super::trace::Tracer;
use crate::Error;
use crate::bound::Part;
use crate::spectral::{Matrix, gamma, largest, quick_norm, vector_norm};
use crate::upper::{Upper, abs, count};

/// Exponentials, divisions and positions are computed to within this many units.
const UNITS: f64 = 64.0 * (f64::EPSILON / 2.0);

/// Probabilities are off by a relative error of this and γ of their number: the arguments of
/// exponentials are at most 750 in absolute value where they are not 0.
const SOFTMAX: f64 = 2048.0 * (f64::EPSILON / 2.0);

/// Probabilities that are computed as 0 are below this.
const NEGLIGIBLE: f64 = 1e-300;

/// Times the share of rounding, above [`NEGLIGIBLE`].
const SMALL: f64 = 1e-280;

/// One attention node.
pub(super) struct Heads {
    config: Attention,
    maps: [Arc<Map>; 4],
    /// Rounding of queries, keys, values and of the output map, by token.
    errors: [Vec<Upper>; 4],
    /// The norms of the blocks of heads: queries, keys, values, output, output times value.
    blocks: [Vec<Upper>; 5],
    norms: Option<[Normed; 2]>,
    /// `[tokens, heads, head_dim]`, behind norms and positions.
    query: Matrix,
    key: Matrix,
    value: Matrix,
    /// Slopes of the soft cap, where there is one; `[heads, tokens, tokens]`.
    slopes: Option<Vec<f64>>,
    probability: Vec<f64>,
    /// What logits may be off by, `[heads, tokens]`.
    logit_errors: Vec<Upper>,
    /// What means of values may be off by, `[heads, tokens]`.
    mixed_errors: Vec<Upper>,
    /// `√Σ p_j ‖v_j − v̄‖²`, and the same of keys, or about 0 where logits are capped; `[heads, tokens]`.
    spreads: [Vec<Upper>; 2],
    tokens: usize,
    /// Where deviations are kept.
    pub(super) slot: usize,
    mixed_slot: usize,
    /// Behind the output map, before the factor.
    projected_slot: usize,
    /// Of queries and keys of each head, before and behind the norm; of values.
    query_slots: [Vec<usize>; 2],
    key_slots: [Vec<usize>; 2],
    value_slots: Vec<usize>,
    projected: Vec<Upper>,
    /// How far queries, keys and values of each head change where the input changes by 1.
    reach: [Vec<Upper>; 3],
}

/// What is known inside of attention at given deviations; `[heads, tokens]` each.
pub(super) struct Reach {
    scale: Upper,
    beta: Upper,
    /// w
    off: Vec<Upper>,
    /// A bound on half of the third moment, over √Var(a); on ‖Δp‖₁.
    curved: Vec<Upper>,
    moved: Vec<Upper>,
    /// What the deviation of all keys together counts for a query where it meets √Var(a), and that of all
    /// values where it meets ‖λ‖.
    keys: Vec<Upper>,
    values: Vec<Upper>,
    /// The largest |Δℓ| before the cap.
    logit: Vec<Upper>,
    query: Vec<Upper>,
    /// The largest of the keys and of the values in sight.
    key: Vec<Upper>,
    value: Vec<Upper>,
}

/// The rest of one head, one query, one functional; or of all functionals together, where they are the
/// elements of a vector.
pub(super) struct Rest {
    at: usize,
    /// √Var(a)
    sigma: Upper,
    /// ‖λ‖
    norm: Upper,
    /// The largest |a_j − ā|.
    apart: Upper,
    /// Σ |g_j|, and what rounding adds to it; before and behind the slopes of a soft cap.
    capped: Upper,
    pull: Upper,
    off: Upper,
    /// Rounding of what the query is multiplied by.
    query: Upper,
}

impl Reach {
    /// What logits are apart from a number, at most, and how far probabilities move in ℓ1.
    pub(super) fn of(&self, place: usize) -> (f64, f64) {
        (self.off[place].to_f64(), self.moved[place].to_f64())
    }
}

impl Rest {
    pub(super) fn at(&self, reach: &Reach) -> Upper {
        let i = self.at;
        // Softmax: half the third moment, or both parts on their own.
        let straight = reach.moved[i] * self.apart + self.sigma * reach.off[i];
        let softmax = (self.sigma * reach.curved[i]).min(straight);
        // Probabilities and values move together; queries and keys; and the cap bends.
        let values = self.norm * (reach.value[i] * reach.moved[i]).min(reach.values[i]);
        let products = reach.scale
            * reach.query[i]
            * (self.pull * reach.key[i]).min(self.sigma * reach.keys[i]);
        let cap = self.capped * reach.beta * reach.logit[i] * reach.logit[i];
        let rounding = self.off * reach.logit[i] + self.query * reach.query[i];
        softmax + values + products + cap + rounding
    }

    /// Of the vector of all these: the most that a functional of norm 1 of it has. `λ` are the functionals of
    /// the head's output, `[count, head_dim]`, and `gaps` their a_j − ā, `[count, keys]`, with the
    /// probabilities of the keys. The standard deviation of such a combination is at most the norm of
    /// `√p_j (a_j − ā)` as a matrix, and it bounds the mean of what is apart as well.
    fn together(each: &[&Self], at: usize, lambda: &Matrix, gaps: Matrix, p: &[f64]) -> Self {
        let of = |f: &dyn Fn(&Self) -> Upper| {
            root_of_squares(&each.iter().map(|rest| f(rest)).collect::<Vec<_>>())
        };
        let off = of(&|rest| rest.off);
        let column = |j: usize| -> Upper {
            let all: Vec<f64> =
                gaps.data.iter().skip(j).step_by(gaps.columns.max(1)).copied().collect();
            vector_norm(&all)
        };
        let apart = (0..gaps.columns).fold(Upper::ZERO, |m, j| m.max(column(j))) + off;
        let mut weighted = gaps;
        for row in weighted.data.chunks_mut(weighted.columns.max(1)) {
            row.iter_mut().zip(p).for_each(|(gap, p)| *gap *= p.sqrt());
        }
        let sigma = quick_norm(&weighted) + gamma(4) * vector_norm(&weighted.data);
        let all = gamma(p.len() + 64) + Upper::from_f64(4.0 * SOFTMAX);
        let tail = count(p.len()) * Upper::from_f64(NEGLIGIBLE) * apart * apart;
        let sigma = (sigma * sigma * (Upper::ONE + all) + tail).sqrt() + off;
        Self {
            at,
            sigma,
            norm: quick_norm(lambda),
            apart,
            capped: sigma,
            pull: sigma + off,
            off,
            query: of(&|rest| rest.query),
        }
    }
}

/// e^x, rounded up.
fn exp(x: Upper) -> Upper {
    let x = x.to_f64();
    if x > 700.0 { Upper::INFINITY } else { Upper::from_f64(x.exp() * (1.0 + 1e-13)) }
}

impl Heads {
    pub(super) fn new(
        tracer: &mut Tracer<'_>,
        a: &Attention,
        path: &str,
        id: &NodeId,
        x: &Matrix,
    ) -> Result<Self, Error> {
        let maps: &Maps<'_> = tracer.maps;
        let names = ["query", "key", "value", "output"].map(|name| join(path, name));
        let [q, k, v, o] = &names;
        let [raw_query, raw_key, value] =
            [Stage::Query, Stage::Key, Stage::Value].map(|stage| tracer.rows(id, stage));
        let (raw_query, raw_key, value) = (raw_query?, raw_key?, value?);
        let mixed = tracer.rows(id, Stage::Mixed)?;
        let all = [maps.get(q, a.bias)?, maps.get(k, a.bias)?, maps.get(v, a.bias)?];
        let output = maps.get(o, a.output_bias)?;
        let (heads, shared, tokens) = (a.heads, a.key_value_heads.max(1), x.rows);
        let part = |index: usize, count: usize| Part { index, count };
        let each = |path: &str, count: usize| -> Result<Vec<Upper>, Error> {
            (0..count).map(|h| maps.head(path, part(h, count))).collect()
        };
        let outs = (0..heads).map(|h| maps.out_of(o, part(h, heads)));
        let pairs = (0..heads).map(|h| {
            let group = h / (heads / shared).max(1);
            maps.output_value(o, part(h, heads), v, part(group, shared))
        });
        let blocks = [
            each(q, heads)?,
            each(k, shared)?,
            each(v, shared)?,
            outs.collect::<Result<_, _>>()?,
            pairs.collect::<Result<_, _>>()?,
        ];
        let mut errors = [all[0].errors(x), all[1].errors(x), all[2].errors(x), Vec::new()];
        errors[3] = output.errors(&mixed);
        let slots = |tracer: &mut Tracer<'_>, n: usize| -> Vec<usize> {
            (0..n).map(|_| tracer.slot()).collect()
        };
        let (slot, mixed_slot, projected_slot) = (tracer.slot(), tracer.slot(), tracer.slot());
        let (query_raw, key_raw) = (slots(tracer, heads), slots(tracer, shared));
        let value_slots = slots(tracer, shared);
        let (mut query_slots, mut key_slots) =
            ([query_raw.clone(), query_raw], [key_raw.clone(), key_raw]);
        let (mut query, mut key) = (raw_query.clone(), raw_key.clone());
        let norms = match a.query_key_norm {
            None => None,
            Some(eps) => {
                let mut made = Vec::new();
                for (name, count, raw, stage, slots_of) in [
                    ("query", heads, &raw_query, Stage::NormedQuery, &mut query_slots),
                    ("key", shared, &raw_key, Stage::NormedKey, &mut key_slots),
                ] {
                    let wide = |w: Vec<f64>| match a.query_key_span {
                        Span::Head => w.repeat(count),
                        Span::EachHead | Span::Heads => w,
                    };
                    let base = join(path, &format!("{name}_norm"));
                    let gain = wide(tracer.maps.vector(&join(&base, "weight"))?);
                    let shift = match a.query_key_shift {
                        true => Some(wide(tracer.maps.vector(&join(&base, "bias"))?)),
                        false => None,
                    };
                    let normed = tracer.rows(id, stage)?;
                    // All heads together, or each on its own.
                    let groups = if a.query_key_span == Span::Heads { 1 } else { count };
                    let centred = a.query_key_kind == NormKind::Layer;
                    let raw_slots = match groups {
                        1 => vec![tracer.slot()],
                        _ => slots_of[0].clone(),
                    };
                    slots_of[1] = slots(tracer, count);
                    let kind = (groups, eps, centred);
                    made.push(Normed::new(raw, &normed, kind, (Some(gain), shift), raw_slots));
                    if name == "query" { query = normed } else { key = normed }
                }
                let mut made = made.into_iter();
                made.next().zip(made.next()).map(|(q, k)| [q, k])
            }
        };
        if a.rotary.is_some() {
            query = tracer.rows(id, Stage::TurnedQuery)?;
            key = tracer.rows(id, Stage::TurnedKey)?;
        }
        let probability = tracer.flat(id, Stage::Probability)?;
        let logits = tracer.flat(id, Stage::Logit)?;
        let biased = match a.position_bias.is_some() || a.alibi.is_some() {
            true => Some(tracer.flat(id, Stage::BiasedLogit)?),
            false => None,
        };
        let slopes = a.logit_cap.map(|cap| {
            let slope = |l: &f64| 1.0 - (l / cap).tanh().powi(2);
            logits.iter().map(slope).collect()
        });
        let (mut logit_errors, mut mixed_errors) = (Vec::new(), Vec::new());
        let d = a.head_dim;
        for h in 0..heads {
            let group = h / (heads / shared).max(1);
            let (keys, values) = (longest(&key, group, d), longest(&value, group, d));
            for t in 0..tokens {
                let row = (h * tokens + t) * tokens..(h * tokens + t + 1) * tokens;
                let q = vector_norm(part_of(&query, t, h, d));
                let product = abs(a.logit_scale) * q * keys;
                let most = Upper::from_f64(largest(&logits[row.clone()]))
                    + biased.as_ref().map_or(Upper::ZERO, |b| Upper::from_f64(largest(&b[row])));
                let cap = a.logit_cap.map_or(Upper::ZERO, abs);
                let size = product + most + cap;
                logit_errors
                    .push(gamma(d + 8) * product + Upper::from_f64(4.0 * UNITS) * size + tiny());
                let off = Upper::from_f64(SOFTMAX) + gamma(3 * tokens + 32);
                mixed_errors.push(off * values + tiny());
            }
        }
        let projected = match a.output_scale == 1.0 {
            true => vec![Upper::ZERO; tokens],
            false => {
                let y = tracer.rows(id, Stage::Output)?;
                y.data.chunks(y.columns.max(1)).map(|r| gamma(2) * vector_norm(r)).collect()
            }
        };
        let [q, k, v] = all;
        let reach = [(Stage::Query, heads), (Stage::Key, shared), (Stage::Value, shared)]
            .map(|(stage, count)| tracer.reach_of(id, stage, count));
        let mut own = Self {
            config: a.clone(),
            maps: [q, k, v, output],
            errors,
            blocks,
            norms,
            query,
            key,
            value,
            slopes,
            probability,
            logit_errors,
            mixed_errors,
            spreads: [Vec::new(), Vec::new()],
            tokens,
            slot,
            mixed_slot,
            projected_slot,
            query_slots,
            key_slots,
            value_slots,
            projected,
            reach,
        };
        own.spreads = [
            own.queries().map(|(h, t)| own.spread_of(&own.value, true, h, t)).collect(),
            own.queries().map(|(h, t)| own.spread_of(&own.key, own.plain(), h, t)).collect(),
        ];
        Ok(own)
    }

    fn group(&self, head: usize) -> usize {
        head / (self.config.heads / self.config.key_value_heads.max(1)).max(1)
    }

    /// How many logits it has.
    pub(super) fn logits(&self) -> usize {
        self.config.heads.saturating_mul(self.tokens).saturating_mul(self.tokens)
    }

    /// How many it reads.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Elements of a token that it reads.
    pub(super) fn width(&self) -> usize {
        self.maps[0].w.columns
    }

    /// The multiplications of all of them that go back to its input.
    pub(super) fn work_of_logits(&self) -> f64 {
        let all = self.maps[0].w.data.len() + self.maps[1].w.data.len() * self.tokens;
        self.logits() as f64 * all as f64
    }

    /// Those of queries, keys, values and the output.
    pub(super) fn maps(&self) -> [&Arc<Map>; 4] {
        self.maps.each_ref()
    }

    /// Whether logits have no cap.
    pub(super) fn plain(&self) -> bool {
        self.slopes.is_none()
    }

    /// Head and query.
    pub(super) fn queries(&self) -> impl Iterator<Item = (usize, usize)> {
        let tokens = self.tokens;
        (0..self.config.heads).flat_map(move |h| (0..tokens).map(move |t| (h, t)))
    }

    /// Where what is known of a head and a query is kept.
    pub(super) fn place(&self, h: usize, t: usize) -> usize {
        h * self.tokens + t
    }

    /// The product of a query and a key, scaled.
    pub(super) fn logit(&self, h: usize, t: usize, j: usize) -> f64 {
        let d = self.config.head_dim;
        let (q, k) = (part_of(&self.query, t, h, d), part_of(&self.key, j, self.group(h), d));
        self.config.logit_scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()
    }

    /// Whether a query sees a key.
    pub(super) fn sees(&self, t: usize, j: usize) -> bool {
        let a = &self.config;
        (!a.causal || j <= t) && a.window.is_none_or(|window| t.abs_diff(j) < window)
    }

    /// Queries, keys or values of each head before norms and positions.
    fn mapped(
        &self,
        which: usize,
        x: &Spread,
        slots: &[usize],
        deviations: &Deviations,
    ) -> Vec<Spread> {
        let parts = self.blocks[which].iter().zip(&self.reach[which]).zip(slots);
        let part = |((norm, reach), slot): ((&Upper, &Upper), &usize)| {
            let spread = x.through(*norm, &self.errors[which]);
            let still = deviations.still.as_ref().and_then(|still| still.spreads[*slot].as_ref());
            deviations.limited(spread, *reach, still)
        };
        parts.map(part).collect()
    }

    /// Queries or keys of each head, at given deviations of the node's input.
    fn projected(
        &self,
        which: usize,
        slots: &[Vec<usize>; 2],
        x: &Spread,
        deviations: &mut Deviations,
    ) -> Vec<Spread> {
        let raw = self.mapped(which, x, &slots[0], deviations);
        for (slot, spread) in slots[0].iter().zip(&raw) {
            deviations.spreads[*slot] = Some(spread.clone());
        }
        let mut all = raw;
        if let Some(norms) = &self.norms {
            let norm = &norms[which];
            if norm.groups == 1 {
                let whole = x.through(self.maps[which].norm, &self.errors[which]);
                deviations.spreads[norm.slots[0]] = Some(whole.clone());
                let normed = norm.grow(0, &whole);
                all = vec![normed; self.blocks[which].len()];
            } else {
                all = all.iter().enumerate().map(|(h, x)| norm.grow(h, x)).collect();
            }
            for (slot, spread) in slots[1].iter().zip(&all) {
                deviations.spreads[*slot] = Some(spread.clone());
            }
        }
        if self.config.rotary.is_some() {
            // Turning keeps norms; what it rounds is a few units of the position.
            let d = self.config.head_dim;
            let m = if which == 0 { &self.query } else { &self.key };
            for (h, spread) in all.iter_mut().enumerate() {
                let errors: Vec<Upper> = (0..self.tokens)
                    .map(|t| self.turning() * vector_norm(part_of(m, t, h, d)))
                    .collect();
                *spread = spread.through(Upper::ONE, &errors);
                deviations.spreads[slots[1][h]] = Some(spread.clone());
            }
        }
        all
    }

    pub(super) fn grow(
        &self,
        x: &Spread,
        deviations: &mut Deviations,
        known: &dyn Known,
    ) -> Spread {
        let (a, n) = (&self.config, self.tokens);
        let d = a.head_dim;
        deviations.spreads[self.slot] = Some(x.clone());
        let query = self.projected(0, &self.query_slots, x, deviations);
        let key = self.projected(1, &self.key_slots, x, deviations);
        let value = self.mapped(2, x, &self.value_slots, deviations);
        for (slot, spread) in self.value_slots.iter().zip(&value) {
            deviations.spreads[*slot] = Some(spread.clone());
        }
        let logits = known.logits(self.slot, deviations);
        let scale = abs(a.logit_scale);
        let beta = match a.logit_cap {
            Some(cap) => Upper::from_f64(0.5 * Curvature::soft_cap(cap).most()),
            None => Upper::ZERO,
        };
        let empty = || Vec::with_capacity(a.heads * n);
        let mut reach = Reach {
            scale,
            beta,
            off: empty(),
            curved: empty(),
            moved: empty(),
            keys: empty(),
            values: empty(),
            logit: empty(),
            query: empty(),
            key: empty(),
            value: empty(),
        };
        // What each head adds to the output: its mean of changes, and its change of means.
        let (mut mixed, mut direct) = (vec![Vec::new(); n], vec![Upper::ZERO; n]);
        let (mut mixed_total, mut direct_total) = (Upper::ZERO, Upper::ZERO);
        for (h, query) in query.iter().enumerate() {
            let g = self.group(h);
            let centre = if a.logit_cap.is_some() { vec![0.0; d] } else { middle(&self.key, g, d) };
            let apart: Vec<Upper> = (0..n)
                .map(|j| {
                    let row = part_of(&self.key, j, g, d);
                    let gap: Vec<f64> = row.iter().zip(&centre).map(|(k, c)| k - c).collect();
                    vector_norm(&gap) + gamma(4) * vector_norm(row)
                })
                .collect();
            let mut column = vec![Upper::ZERO; n];
            let mut covariances = Vec::new();
            for t in 0..n {
                let seen = || (0..n).filter(|j| self.sees(t, *j));
                let most =
                    |f: &dyn Fn(usize) -> Upper| seen().fold(Upper::ZERO, |m, j| m.max(f(j)));
                let q = vector_norm(part_of(&self.query, t, h, d));
                let (dq, dk, dv) =
                    (query.each[t], most(&|j| key[g].each[j]), most(&|j| value[g].each[j]));
                let error = self.logit_errors[h * n + t];
                let both = (q + dq) * dk;
                let mut w = scale * (dq * most(&|j| apart[j]) + both) + error;
                let far = most(&|j| vector_norm(part_of(&self.key, j, g, d)));
                let logit = scale * (dq * far + both) + error;
                // What logits are apart, to first order; products of changes and rounding come to it.
                let own = logits.as_ref().map(|all| all[h * n + t]);
                let beside = scale * dq * dk + error + gamma(4) * logit;
                if let Some([most, _]) = own {
                    w = w.min(most + beside + beside);
                }
                let p = self.probabilities(h, t);
                let (favourite, _) = p
                    .iter()
                    .enumerate()
                    .fold((0, 0.0), |m, (j, p)| if *p > m.1 { (j, *p) } else { m });
                let others = seen().filter(|j| *j != favourite);
                let rest: f64 = others.clone().map(|j| p[j]).sum();
                let rest = Upper::from_f64(rest)
                    * (Upper::ONE + gamma(n + 64) + Upper::from_f64(SOFTMAX))
                    + count(n) * Upper::from_f64(NEGLIGIBLE);
                let kept = (1.0 - rest.to_f64()).next_down();
                let quarter = Upper::from_f64(0.25);
                let squared = exp(w + w);
                let off = (rest * squared).div_up(kept).min(quarter);
                let two = Upper::from_f64(2.0);
                // The variance of logits by that of keys, and as all keys together move by no more than
                // so much: `Σ p_j ‖Δk_j‖² ≤ max p Σ ‖Δk_j‖²`.
                let root = self.likeliest(h, t).sqrt();
                let keys = dk.min(root * key[g].total);
                let mut varied =
                    scale * (dq * self.spreads[1][h * n + t] + (q + dq) * keys) + error;
                // What logits are apart from their mean on the way.
                let mut far = w + w;
                if let Some([most, own]) = own {
                    let computed =
                        own * (Upper::ONE + Upper::from_f64(2.0 * SOFTMAX) + gamma(2 * n + 32));
                    let tail = (count(n) * Upper::from_f64(NEGLIGIBLE)).sqrt() * most;
                    varied = varied.min(computed + tail + beside);
                    // The mean of the reference moves by the variance on the way.
                    let off = Upper::from_f64(4.0 * SOFTMAX) + gamma(n + 8);
                    let most = most + beside + beside + off * (most + logit);
                    far = far.min(most + squared * varied * varied);
                }
                // Of the way, ∫ e^(wτ), ∫ e^(2wτ) and 2 ∫ (1 − τ) e^(2wτ).
                let factor = exp(w);
                let half = Upper::from_f64(0.5);
                let once = Upper::ONE + half * w * factor;
                let twice = Upper::ONE + w * squared;
                let curve = Upper::ONE + (two * w * squared).div_up(3.0);
                let deviation = (two * w * off.sqrt()).min(w);
                let moved = (two * two * w * off).min(deviation).min(varied * once).min(two);
                let curved = half * far * (factor * deviation).min(varied * curve);
                // The variance of values under the probabilities, and all of it on the way.
                let sigma = self.spreads[0][h * n + t];
                let covariance = (sigma * (factor * deviation).min(varied * twice))
                    .min(moved * self.widest(g, t));
                let values = root * value[g].total * (varied * twice);
                let mean = seen().fold(Upper::ZERO, |sum, j| {
                    let off = Upper::from_f64(2.0 * SOFTMAX) + gamma(2 * n + 32);
                    let p =
                        Upper::from_f64(p[j]) * (Upper::ONE + off) + Upper::from_f64(NEGLIGIBLE);
                    column[j] = column[j] + p * squared;
                    sum + p * x.each[j]
                });
                let nearest = most(&|j| x.each[j]);
                let mean = (mean + half * moved * nearest).min(nearest);
                let moves = self.blocks[2][g] * mean + most(&|j| self.errors[2][j]);
                let rounding = self.mixed_errors[h * n + t];
                mixed[t].push(moves.min(dv) + covariance + rounding);
                let beside = covariance + rounding + most(&|j| self.errors[2][j]);
                direct[t] = direct[t] + self.blocks[4][h] * mean + self.blocks[3][h] * beside;
                covariances.push(beside);
                reach.off.push(w);
                reach.curved.push(curved);
                reach.moved.push(moved);
                reach.keys.push(keys);
                reach.values.push(values);
                reach.logit.push(logit);
                reach.query.push(dq);
                reach.key.push(dk);
                reach.value.push(dv);
            }
            // ‖P‖₂ ≤ √(largest row sum · largest column sum).
            let columns = column.iter().fold(Upper::ZERO, |m, c| m.max(*c)).sqrt();
            let beside = root_of_squares(&covariances);
            let own = self.blocks[2][g] * columns * x.total + beside;
            mixed_total = mixed_total + own * own;
            direct_total =
                direct_total + self.blocks[4][h] * columns * x.total + self.blocks[3][h] * beside;
        }
        deviations.reaches[self.slot] = Some(reach);
        let each: Vec<Upper> = mixed.iter().map(|heads| root_of_squares(heads)).collect();
        let mixed = Spread::new(each, mixed_total.sqrt());
        deviations.spreads[self.mixed_slot] = Some(mixed.clone());
        let norm = self.maps[3].norm;
        let joint = mixed.through(norm, &self.errors[3]);
        let each = joint.each.iter().zip(&direct).zip(&self.errors[3]);
        let each = each.map(|((j, d), e)| j.min(*d + *e)).collect();
        let total = joint.total.min(direct_total + root_of_squares(&self.errors[3]));
        let out = Spread::new(each, total);
        deviations.spreads[self.projected_slot] = Some(out.clone());
        out.through(abs(a.output_scale), &self.projected)
    }

    pub(super) fn probabilities(&self, h: usize, t: usize) -> &[f64] {
        let first = (h * self.tokens + t) * self.tokens;
        &self.probability[first..first + self.tokens]
    }

    /// The largest probability.
    pub(super) fn likeliest(&self, h: usize, t: usize) -> Upper {
        Upper::from_f64(largest(self.probabilities(h, t)))
            * (Upper::ONE + Upper::from_f64(2.0 * SOFTMAX) + gamma(2 * self.tokens + 32))
            + Upper::from_f64(NEGLIGIBLE)
    }

    /// `√Σ p_j ‖v_j − v̄‖²` of keys or values, or about 0.
    fn spread_of(&self, m: &Matrix, centred: bool, h: usize, t: usize) -> Upper {
        let (g, d, p) = (self.group(h), self.config.head_dim, self.probabilities(h, t));
        let mut mean = vec![0.0; d];
        for (j, p) in p.iter().enumerate().filter(|(_, p)| centred && **p > 0.0) {
            let v = part_of(m, j, g, d);
            mean.iter_mut().zip(v).for_each(|(m, v)| *m += p * v);
        }
        // The variance about any point is no less than that about the mean.
        let mut sum = 0.0;
        let mut most: f64 = 0.0;
        for j in (0..self.tokens).filter(|j| self.sees(t, *j)) {
            let v = part_of(m, j, g, d);
            let gap: f64 = v.iter().zip(&mean).map(|(v, m)| (v - m) * (v - m)).sum();
            sum += p[j] * gap;
            most = most.max(gap);
        }
        let off = gamma(self.tokens + d + 16) + Upper::from_f64(2.0 * SOFTMAX);
        let values = longest(m, g, d);
        let small = gamma(8) * values;
        let tail = count(self.tokens) * Upper::from_f64(NEGLIGIBLE) * Upper::from_f64(most);
        ((Upper::from_f64(sum) * (Upper::ONE + off)) + tail).sqrt() + small
    }

    /// The largest distance of a value in sight from the first.
    fn widest(&self, g: usize, t: usize) -> Upper {
        let d = self.config.head_dim;
        let first = part_of(&self.value, t, g, d);
        (0..self.tokens).filter(|j| self.sees(t, *j)).fold(Upper::ZERO, |m, j| {
            let v = part_of(&self.value, j, g, d);
            let gap: Vec<f64> = v.iter().zip(first).map(|(v, f)| v - f).collect();
            m.max(vector_norm(&gap) + gamma(4) * (vector_norm(v) + vector_norm(first)))
        })
    }

    pub(super) fn back(
        &self,
        lambda: Functionals,
        out: &mut Remainders,
    ) -> Result<Functionals, Error> {
        let (a, n, d) = (&self.config, self.tokens, self.config.head_dim);
        let total = lambda.count;
        rounded(&lambda, &self.projected, out);
        let share = gamma(2) * abs(a.output_scale);
        out.linear(self.projected_slot, &lambda, |norm| share * norm + tiny());
        let lambda = lambda.scaled(a.output_scale);
        rounded(&lambda, &self.errors[3], out);
        let mixed = self.maps[3].back(&lambda, self.mixed_slot, out)?;
        let active = mixed.tokens.clone();
        let seen: Vec<usize> =
            (0..n).filter(|j| active.iter().any(|t| self.sees(*t, *j))).collect();
        let shared = a.key_value_heads.max(1);
        let mut to_query = Functionals::zeros(total, active.clone(), a.heads * d);
        let mut to_key = Functionals::zeros(total, seen.clone(), shared * d);
        let mut to_value = Functionals::zeros(total, seen.clone(), shared * d);
        // Σ_t of what the functionals of keys and values are made of, for their rounding.
        let mut key_sizes = vec![vec![vec![0.0_f64; seen.len()]; shared]; total];
        let mut value_sizes = key_sizes.clone();
        let mut rests: Vec<Vec<Rest>> = (0..total).map(|_| Vec::new()).collect();
        let mut constants = vec![Upper::ZERO; total];
        let jointly = out.together().is_some();
        let mut joint: Vec<Rest> = Vec::new();
        for h in 0..a.heads {
            let g = self.group(h);
            let values: Vec<f64> =
                seen.iter().flat_map(|j| part_of(&self.value, *j, g, d).iter().copied()).collect();
            let keys: Vec<f64> =
                seen.iter().flat_map(|j| part_of(&self.key, *j, g, d).iter().copied()).collect();
            let longest_value = longest(&self.value, g, d);
            let own: Vec<f64> = mixed
                .data
                .chunks(mixed.width)
                .flat_map(|row| row[h * d..(h + 1) * d].iter().copied())
                .collect();
            let transposed = transpose(&values, seen.len(), d);
            // a_j = λ·v_j of every functional and query.
            let rows = total * active.len();
            let along = product(&own, rows, d, &transposed, seen.len());
            let mut pulls = vec![0.0; rows * seen.len()];
            let mut gaps = vec![0.0; if jointly { pulls.len() } else { 0 }];
            for i in 0..rows {
                let (k, t) = (i / active.len(), active[i % active.len()]);
                let l = &own[i * d..(i + 1) * d];
                let norm = vector_norm(l);
                if norm == Upper::ZERO {
                    continue;
                }
                let p = self.probabilities(h, t);
                let along = &along[i * seen.len()..(i + 1) * seen.len()];
                let mean: f64 = seen.iter().zip(along).map(|(j, a)| p[*j] * a).sum();
                let pull = &mut pulls[i * seen.len()..(i + 1) * seen.len()];
                let (mut variance, mut apart) = (0.0_f64, 0.0_f64);
                let (mut before, mut sum) = (0.0_f64, 0.0_f64);
                for (at, j) in seen.iter().enumerate() {
                    if !self.sees(t, *j) {
                        continue;
                    }
                    let gap = along[at] - mean;
                    if jointly {
                        gaps[i * seen.len() + at] = gap;
                    }
                    apart = apart.max(gap.abs());
                    variance += p[*j] * gap * gap;
                    pull[at] = p[*j] * gap;
                    before += pull[at].abs();
                    if let Some(slopes) = &self.slopes {
                        pull[at] *= slopes[(h * n + t) * n + *j];
                    }
                    sum += pull[at].abs();
                }
                let count_all = n + d + 64;
                let unit = norm * longest_value;
                let off = (gamma(2 * count_all) + Upper::from_f64(8.0 * SOFTMAX)) * (unit + unit);
                let wide = Upper::from_f64(apart) + off;
                let tail = count(n) * Upper::from_f64(NEGLIGIBLE) * wide * wide;
                let sigma = (Upper::from_f64(variance)
                    * (Upper::ONE + gamma(count_all) + Upper::from_f64(2.0 * SOFTMAX))
                    + tail)
                    .sqrt()
                    + off;
                let up = |x: f64| Upper::from_f64(x) * (Upper::ONE + gamma(count_all)) + tiny();
                let (sum_up, capped) = (up(sum), up(before) + off);
                let off = off + Upper::from_f64(4.0 * UNITS) * capped;
                let (q, far) =
                    (vector_norm(part_of(&self.query, t, h, d)), longest(&self.key, g, d));
                let scale = abs(a.logit_scale);
                rests[k].push(Rest {
                    at: h * n + t,
                    sigma,
                    norm,
                    apart: wide,
                    capped,
                    pull: sum_up + off,
                    off,
                    query: gamma(n + 16) * scale * sum_up * far + tiny(),
                });
                constants[k] = constants[k]
                    + norm * self.mixed_errors[h * n + t]
                    + capped * self.logit_errors[h * n + t];
                // What each key and value is given by this query.
                let (norm, q) = (norm.to_f64(), q.to_f64());
                for (at, j) in seen.iter().enumerate() {
                    value_sizes[k][g][at] += (p[*j] + SMALL) * norm;
                    key_sizes[k][g][at] += pull[at].abs() * q;
                }
                let at = i % active.len();
                let to = &mut to_query.row_mut(k, at)[h * d..(h + 1) * d];
                for (pull, key) in pull.iter().zip(keys.chunks(d)) {
                    if *pull != 0.0 {
                        let w = a.logit_scale * pull;
                        to.iter_mut().zip(key).for_each(|(to, k)| *to += w * k);
                    }
                }
                for (at, j) in seen.iter().enumerate() {
                    if p[*j] == 0.0 {
                        continue;
                    }
                    let to = &mut to_value.row_mut(k, at)[g * d..(g + 1) * d];
                    to.iter_mut().zip(l).for_each(|(to, l)| *to += p[*j] * l);
                    let w = a.logit_scale * pull[at];
                    if w != 0.0 {
                        let query = part_of(&self.query, t, h, d);
                        let to = &mut to_key.row_mut(k, at)[g * d..(g + 1) * d];
                        to.iter_mut().zip(query).for_each(|(to, q)| *to += w * q);
                    }
                }
            }
            for (at, t) in active.iter().enumerate().filter(|_| jointly) {
                let of = |x: &[f64], n: usize| Matrix {
                    rows: total,
                    columns: n,
                    data: (0..total)
                        .flat_map(|k| x[(k * active.len() + at) * n..][..n].to_vec())
                        .collect(),
                };
                let p: Vec<f64> = seen.iter().map(|j| self.probabilities(h, *t)[*j]).collect();
                let each = rests.iter().flatten().filter(|rest| rest.at == h * n + t);
                let each: Vec<&Rest> = each.collect();
                joint.push(Rest::together(&each, h * n + t, &of(&own, d), of(&gaps, p.len()), &p));
            }
        }
        let terms = active.len() * a.heads + n + 32;
        let (scale, least) = (abs(a.logit_scale), count(total) * tiny());
        let rounding = |g: usize, values: &[f64], keys: &[f64]| {
            let value = gamma(terms) + Upper::from_f64(4.0 * SOFTMAX);
            let both = [
                (self.value_slots[g], values, value),
                (self.key_slots[1][g], keys, gamma(terms) * scale),
            ];
            both.map(|(slot, sizes, share)| {
                let share = share * (Upper::ONE + gamma(terms));
                let weights = sizes.iter().map(|x| share * Upper::from_f64(*x) + least);
                Term::Linear { slot, weights: seen.iter().copied().zip(weights).collect() }
            })
        };
        if let Some(all) = out.together() {
            for rest in &joint {
                let (mixed, logit) = (self.mixed_errors[rest.at], self.logit_errors[rest.at]);
                all.push(Term::Constant(rest.norm * mixed + rest.capped * logit));
            }
            all.push(Term::Attention { slot: self.slot, rests: joint });
            for g in 0..shared {
                let [values, keys] = [&value_sizes, &key_sizes].map(|sizes| -> Vec<f64> {
                    let of = |at: usize| sizes.iter().map(|of| of[g][at]).collect::<Vec<f64>>();
                    (0..seen.len()).map(|at| vector_norm(&of(at)).to_f64()).collect()
                });
                all.extend(rounding(g, &values, &keys));
            }
        } else {
            for (k, rests) in rests.into_iter().enumerate() {
                out.push(k, Term::Constant(constants[k]));
                out.push(k, Term::Attention { slot: self.slot, rests });
                for g in 0..shared {
                    let both = rounding(g, &value_sizes[k][g], &key_sizes[k][g]);
                    both.into_iter().for_each(|term| out.push(k, term));
                }
            }
        }
        let sum = self.to_input(to_query, to_key, Some(to_value), out)?;
        Ok(pruned(sum, self.slot, out))
    }

    /// Functionals of the node's input, of such of queries, keys and values.
    fn to_input(
        &self,
        query: Functionals,
        key: Functionals,
        value: Option<Functionals>,
        out: &mut Remainders,
    ) -> Result<Functionals, Error> {
        let total = query.count;
        let query = self.unturned(0, query, out)?;
        let key = self.unturned(1, key, out)?;
        let mut sum: Option<Functionals> = None;
        for (which, lambda) in [query, key].into_iter().chain(value).enumerate() {
            rounded(&lambda, &self.errors[which], out);
            let x = self.maps[which].back(&lambda, self.slot, out)?;
            sum = Some(match sum {
                Some(sum) => {
                    add_error(&sum, self.slot, out);
                    add_error(&x, self.slot, out);
                    sum.plus(&x)
                }
                None => x,
            });
        }
        Ok(sum.unwrap_or_else(|| Functionals::zeros(total, Vec::new(), self.config.dim)))
    }

    /// The functionals of the node's input that such of the logits of a head and a query are to first order,
    /// `[count, tokens]`, the absolute values of each of which add up to at most 2: `Δℓ_j = s (Δq·k_j + q·Δk_j)`.
    ///
    /// # Errors
    /// Those of products.
    pub(super) fn back_logits(
        &self,
        h: usize,
        t: usize,
        (rows, total): (&[f64], usize),
        out: &mut Remainders,
    ) -> Result<Functionals, Error> {
        let (a, n, d, g) = (&self.config, self.tokens, self.config.head_dim, self.group(h));
        let seen: Vec<usize> = (0..n).filter(|j| self.sees(t, *j)).collect();
        let mut to_query = Functionals::zeros(total, vec![t], a.heads * d);
        let mut to_key = Functionals::zeros(total, seen.clone(), a.key_value_heads.max(1) * d);
        let query = part_of(&self.query, t, h, d);
        for (k, row) in rows.chunks(n.max(1)).enumerate() {
            for (at, j) in seen.iter().enumerate() {
                let w = a.logit_scale * row[*j];
                let to = &mut to_query.row_mut(k, 0)[h * d..(h + 1) * d];
                to.iter_mut().zip(part_of(&self.key, *j, g, d)).for_each(|(to, x)| *to += w * x);
                let to = &mut to_key.row_mut(k, at)[g * d..(g + 1) * d];
                to.iter_mut().zip(query).for_each(|(to, x)| *to += w * x);
            }
        }
        // Each element is off by γ of the absolute values that it is made of.
        let share = gamma(n + 16) * abs(a.logit_scale) * count(4 * total).sqrt();
        let (least, far) = (count(total) * tiny(), longest(&self.key, g, d));
        let keys = share * vector_norm(query) + least;
        out.linear_of_all(self.query_slots[1][h], &vec![(t, share * far + least)]);
        let weights = seen.into_iter().map(|j| (j, keys)).collect();
        out.linear_of_all(self.key_slots[1][g], &weights);
        self.to_input(to_query, to_key, None, out)
    }

    /// What rotary positions are off by, relatively: a few units of the largest angle, and of 1.
    fn turning(&self) -> Upper {
        let fastest = self.config.rotary.as_ref().map_or(1.0, |rotary| rotary.fastest().max(1.0));
        Upper::from_f64(UNITS) * (count(self.tokens) * Upper::from_f64(fastest) + count(4))
    }

    /// From queries or keys behind positions and norm to those of the maps.
    fn unturned(
        &self,
        which: usize,
        mut lambda: Functionals,
        out: &mut Remainders,
    ) -> Result<Functionals, Error> {
        let d = self.config.head_dim;
        let slots = if which == 0 { &self.query_slots } else { &self.key_slots };
        if let Some(rotary) = &self.config.rotary {
            let m = if which == 0 { &self.query } else { &self.key };
            let share = self.turning();
            let count = lambda.count;
            for (h, slot) in slots[1].iter().enumerate() {
                let mut weights: Vec<Vec<(usize, Upper)>> = vec![Vec::new(); count];
                for (k, t, row) in lambda.rows() {
                    let norm = vector_norm(&row[h * d..(h + 1) * d]);
                    if norm == Upper::ZERO {
                        continue;
                    }
                    weights[k].push((t, share * norm + tiny()));
                    let reference = vector_norm(part_of(m, t, h, d));
                    out.push(k, Term::Constant(norm * share * reference));
                }
                for (k, weights) in weights.into_iter().enumerate() {
                    out.push(k, Term::Linear { slot: *slot, weights });
                }
            }
            lambda = turned_back(&lambda, rotary, d, self.tokens)?;
        }
        match &self.norms {
            Some(norms) => Ok(norms[which].back(lambda, out)),
            None => Ok(lambda),
        }
    }
}

/// Without the tokens that matter least, whose whole change goes to the remainder: with few tokens in
/// sight, what follows costs far less.
fn pruned(lambda: Functionals, slot: usize, out: &mut Remainders) -> Functionals {
    const LEAST: f64 = 3e-4;
    let norms = lambda.norms();
    let n = lambda.tokens.len();
    let largest =
        |at: usize| (0..lambda.count).fold(Upper::ZERO, |m, k| m.max(norms[k * n + at])).to_f64();
    let all: Vec<f64> = (0..n).map(largest).collect();
    let least = LEAST * all.iter().fold(0.0, |m: f64, x| m.max(*x));
    if all.iter().all(|x| *x > least) {
        return lambda;
    }
    let mut own = lambda.clone();
    for at in (0..n).filter(|at| all[*at] > least) {
        (0..own.count).for_each(|k| own.row_mut(k, at).fill(0.0));
    }
    out.linear(slot, &own, |norm| norm);
    let mut kept = lambda;
    for at in (0..n).filter(|at| all[*at] <= least) {
        (0..kept.count).for_each(|k| kept.row_mut(k, at).fill(0.0));
    }
    kept.trimmed()
}

/// The functionals, turned by the opposite angles.
fn turned_back(
    lambda: &Functionals,
    rotary: &Rotary,
    d: usize,
    tokens: usize,
) -> Result<Functionals, Error> {
    let half = d / 2;
    let frequencies = rotary.frequencies.clone().unwrap_or_else(|| {
        (0..half).map(|i| rotary.base.powf(-(i as f64) / half as f64)).collect()
    });
    let frequencies = Some(frequencies.into_iter().map(|f| -f).collect());
    let back = Rotary { frequencies, ..rotary.clone() };
    let mut all = vec![0.0; lambda.count * tokens * lambda.width];
    for (k, t, row) in lambda.rows() {
        let first = (k * tokens + t) * lambda.width;
        all[first..first + lambda.width].copy_from_slice(row);
    }
    let shape = (lambda.count, tokens, lambda.width / d, d);
    let x = Tensor::from_vec(all, shape, &Device::Cpu)?;
    let all: Vec<f64> = ops::rotary(&x, &back)?.flatten_all()?.to_vec1()?;
    let mut out = lambda.clone();
    for k in 0..out.count {
        for at in 0..out.tokens.len() {
            let first = (k * tokens + out.tokens[at]) * out.width;
            let row = all[first..first + out.width].to_vec();
            out.row_mut(k, at).copy_from_slice(&row);
        }
    }
    Ok(out)
}

/// The part of one head of one token.
fn part_of(m: &Matrix, t: usize, h: usize, d: usize) -> &[f64] {
    let first = t * m.columns + h * d;
    &m.data[first..first + d]
}

/// The largest norm of a head's part.
fn longest(m: &Matrix, h: usize, d: usize) -> Upper {
    (0..m.rows).fold(Upper::ZERO, |most, t| most.max(vector_norm(part_of(m, t, h, d))))
}

/// The mean over tokens; any point would do.
fn middle(m: &Matrix, h: usize, d: usize) -> Vec<f64> {
    let mut out = vec![0.0; d];
    for t in 0..m.rows {
        out.iter_mut().zip(part_of(m, t, h, d)).for_each(|(o, x)| *o += x / m.rows as f64);
    }
    out
}

fn transpose(x: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| x[r * columns + c])).collect()
}
