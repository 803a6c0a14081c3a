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

mod back;
mod grow;

use std::sync::Arc;

use lipschitz_nn::graph::{Attention, NodeId, NormKind, Span, Stage, join};

use super::maps::{Map, Maps, tiny};
use super::norm::Normed;
use super::softmax::{NEGLIGIBLE, SOFTMAX, UNITS};
use super::trace::Tracer;
use crate::Error;
use crate::bound::Part;
use crate::spectral::{Matrix, gamma, largest, vector_norm};
use crate::upper::{Upper, abs, count};

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
            let group = a.group(h);
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
            let group = a.group(h);
            let (keys, values) = (longest(&key, group, d), longest(&value, group, d));
            for t in 0..tokens {
                let row = (h * tokens + t) * tokens..(h * tokens + t + 1) * tokens;
                let q = vector_norm(part_of(&query, t, h, d));
                let product = abs(a.logit_scale) * q * keys;
                let most = Upper::from_f64(largest(&logits[row.clone()]))
                    + biased.as_ref().map_or(Upper::ZERO, |b| Upper::from_f64(largest(&b[row])));
                let cap = a.logit_cap.map_or(Upper::ZERO, abs);
                let size = product + most + cap;
                let lost = (Upper::ONE + abs(a.logit_scale)) * tiny();
                logit_errors
                    .push(gamma(d + 8) * product + Upper::from_f64(4.0 * UNITS) * size + lost);
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
        self.config.group(head)
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

    pub(super) fn probabilities(&self, h: usize, t: usize) -> &[f64] {
        let first = (h * self.tokens + t) * self.tokens;
        &self.probability[first..first + self.tokens]
    }

    /// What rotary positions are off by, relatively: a few units of the largest angle, and of 1.
    fn turning(&self) -> Upper {
        let fastest = self.config.rotary.as_ref().map_or(1.0, |rotary| rotary.fastest().max(1.0));
        Upper::from_f64(UNITS) * (count(self.tokens) * Upper::from_f64(fastest) + count(4))
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
        // The variance about any point is no less than that about the mean. As a norm, which is scaled: squares
        // of small numbers are 0.
        let (mut weighted, mut most) = (Vec::with_capacity(self.tokens * d), Upper::ZERO);
        for j in (0..self.tokens).filter(|j| self.sees(t, *j)) {
            let v = part_of(m, j, g, d);
            let gap: Vec<f64> = v.iter().zip(&mean).map(|(v, m)| v - m).collect();
            most = most.max(vector_norm(&gap));
            let root = p[j].sqrt();
            weighted.extend(gap.iter().map(|x| root * x));
        }
        let spread = vector_norm(&weighted);
        let off = gamma(self.tokens + d + 16) + Upper::from_f64(2.0 * SOFTMAX);
        let small = gamma(8) * longest(m, g, d) + tiny();
        let tail = count(self.tokens) * Upper::from_f64(NEGLIGIBLE) * most * most;
        (spread * spread * (Upper::ONE + off) + tail).sqrt() + small
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
