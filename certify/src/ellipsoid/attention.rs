//! Multi-head attention for ellipsoids.
//!
//! With probabilities p of one head over tokens j, a change of its output is
//!
//! ```text
//! δo = M_h Σ_j p_j δx_j + M_h Cov_p(δλ, x),    M_h = c O_h V_h.
//! ```
//!
//! A mean of points of an ellipsoid lies in it, so the first term is `M_h F_P z` for some ‖z‖ ≤ 1.
//! For the second, with any vector v and any centre m,
//!
//! ```text
//! (v·Cov_p(δλ, x))² ≤ Var_p(δλ) Var_p(v·x) ≤ σ² Σ_j p_j (v·(x_j − m))² ≤ σ² vᵀ X v
//! ```
//!
//! if every |δλ_j| is at most σ and `x_j − m` in E(X): it is `σ F_X z`. The logits are
//! `λ_ij = s q_i·k_j`, so that `|δλ_j| ≤ s (‖F_Pᵀ Q_hᵀ K_h F_X‖ + ‖F_Xᵀ Q_hᵀ K_h F_P‖)`, with biases in
//! the factors of q and k. What is the same for all j, as a key bias is for plain logits, moves no
//! p. Where queries or keys are turned or normalised on their way, it is
//! `s (‖δq‖‖k‖ + ‖q‖‖δk‖)`. Masks, windows and position biases only choose the p.

use std::collections::BTreeMap;
use std::rc::Rc;

use lipschitz_nn::graph::{Attention, Site, Span as NormSpan, Stage, join};

use super::approx::Approx;
use super::block::Block;
use super::positions::{self, Class};
use super::span::{Register, Span, blend, dense, size, times};
use super::state::{OrStop, Place, Stop};
use super::tape::{Scalar, Tape, Var};
use super::walk::Walker;
use crate::bound::{Block as Weight, Part, plain};
use crate::upper::{Upper, abs, count, root_down};

/// Queries, keys and values of all heads as images of the unknowns of their token.
struct Maps {
    query: Var,
    key: Var,
    value: Var,
}

pub(super) fn step(walker: &mut Walker<'_>, a: &Attention, at: &Place<'_>) -> Result<(), Stop> {
    let (tape, weights) = (walker.tape, walker.weights);
    let weight = |name: &str| weights.get(&at.weight(&join(name, "weight")));
    let bias = |name: &str| weights.column(&at.weight(&join(name, "bias")));
    let (wq, wk, wv) = (weight("query")?, weight("key")?, weight("value")?);
    let table = match a.position_bias {
        Some(_) => Some(weight("position_bias")?),
        None => None,
    };
    let classes = positions::classes(a, table.as_deref(), walker.state.context, walker.state.zeros);
    // A token's own unknowns are one block, where heads are known to read the token itself.
    walker.state.change.flatten(tape);
    let value = walker.state.value.as_mut().or_stop()?;
    value.flatten(tape);
    if a.bias {
        let size = bias("value")?.log_size().max(bias("query")?.log_size());
        value.need_one(tape, &at.step("constant"), size).or_stop()?;
    }
    value.flatten(tape);
    let x = value.pop().or_stop()?;
    let one = value.one.clone();
    // W x + b
    let with = |w: &Rc<Approx>, b: Option<Approx>| -> Option<Register> {
        let y = times(tape, w, &x);
        Some(match (b, &one) {
            (Some(b), Some(one)) => blend(tape, 1.0, &y, 1.0, &times(tape, &Rc::new(b), one)),
            _ => y,
        })
    };
    let query_bias = a.bias.then(|| bias("query")).transpose()?;
    let key_bias = (a.bias && !plain(a)).then(|| bias("key")).transpose()?;
    let sizes = value.sizes.clone();
    let matrix = |r: &Register| dense(tape, r, &sizes).or_stop();
    let values = matrix(&times(tape, &wv, &x))?;
    // What is the same for all tokens leaves the mean as it is, and is no part of the variance.
    let (values, middle) = match &one {
        Some(one) => {
            let one = matrix(one)?;
            let middle = Rc::new(middle(&values.value, &one.value));
            let away = tape.times(&middle, &one);
            (tape.blend(1.0, &values, Some((-1.0, &away))), Some(middle))
        }
        None => (values, None),
    };
    let of_value = Maps {
        query: matrix(&with(&wq, query_bias).or_stop()?)?,
        key: matrix(&with(&wk, key_bias).or_stop()?)?,
        value: values,
    };
    let y = walker.state.change.pop().or_stop()?;
    let sizes = walker.state.change.sizes.clone();
    let of = |w: &Rc<Approx>| dense(tape, &times(tape, w, &y), &sizes).or_stop();
    let of_change = Maps { query: of(&wq)?, key: of(&wk)?, value: of(&wv)? };

    if let Some(changes) = &mut walker.changes {
        for (stage, x, count) in [
            (Stage::Query, &of_change.query, a.heads),
            (Stage::Key, &of_change.key, a.key_value_heads),
            (Stage::Value, &of_change.value, a.key_value_heads),
        ] {
            let norm = |h: usize| tape.rows(x, h * a.head_dim, (h + 1) * a.head_dim).value.norm();
            let site = Site { id: at.id.clone(), stage };
            changes.elements.insert(site, (0..count).map(norm).collect());
        }
    }
    // What is the same for all tokens is no part of what keys and values are here.
    walker.keep(at.id, Stage::Query, || of_value.query.value.row_norms());
    if !a.bias {
        walker.keep(at.id, Stage::Key, || of_value.key.value.row_norms());
    }
    if !a.bias && one.is_none() {
        walker.keep(at.id, Stage::Value, || of_value.value.value.row_norms());
    }
    let limits = Limits::new(walker, a, at)?;
    let out = tape.constant_scalar(abs(a.output_scale));
    // L_h with L_h L_hᵀ ⪰ (V_h F)(V_h F)ᵀ: small ones in place of large.
    let mut factors: Vec<(Var, Var)> = Vec::new();
    let own = |v: &Var, g: usize| tape.rows(v, g * a.head_dim, (g + 1) * a.head_dim);
    for g in 0..a.key_value_heads {
        let factor = |v: &Var| -> Result<Var, Stop> {
            let block = vec![Block::Dense(own(v, g))];
            Ok(tape.enclose(&[&block]).or_stop()?.remove(0))
        };
        factors.push((factor(&of_change.value)?, factor(&of_value.value)?));
    }
    let mut heads = Vec::new();
    for h in 0..a.heads {
        let group = a.group(h);
        let columns =
            Weight::whole(at.weight("output.weight")).columns(Part { index: h, count: a.heads });
        let o = weights.block(&columns)?;
        let (change, point) = &factors[group];
        let sigma = limits.sigma(tape, a, &of_change, &of_value, h, group);
        let part = |x: &Var| tape.scale(&tape.times(&o, x), out);
        let kappa = classes.iter().any(|class| class.heads[h].is_some()).then(|| {
            let (q, k) = (own(&of_value.query, h), own(&of_value.key, group));
            tape.multiply(limits.scale(tape, a), tape.inner_norm(&q, &k))
        });
        heads.push(Head {
            o: o.clone(),
            group,
            change: part(change),
            point: part(point),
            sigma,
            kappa,
        });
    }
    if !a.bias && a.rotary.is_none() && a.query_key_norm.is_none() {
        let product = |h: usize| {
            let group = a.group(h);
            tape.inner_norm(&own(&of_value.query, h), &own(&of_value.key, group)).value
        };
        walker.keep(at.id, Stage::Product, || (0..a.heads).map(product).collect());
    }
    let parts = Parts { heads, of_change, of_value, out };
    let value = walker.state.value.as_ref().or_stop()?;
    let mut spans = Vec::new();
    for (i, class) in classes.iter().enumerate() {
        let (mut change, mut value) = (walker.state.change.clone(), value.clone());
        let name = |what: &str| match i {
            0 => at.step(what),
            _ => at.step(&format!("{what}, tokens {i}")),
        };
        let terms = parts.terms(tape, a, class, true);
        gather(tape, &mut change, &name("change"), terms).or_stop()?;
        let terms = parts.terms(tape, a, class, false);
        gather(tape, &mut value, &name("value"), terms).or_stop()?;
        spans.push((change, value));
    }
    // c W_O (middle + b_v) + b_o
    if let Some(b) = constant(walker, a, at, middle.as_deref())? {
        for (_, value) in &mut spans {
            value.shift(tape, &at.step("constant"), &b).or_stop()?;
        }
    }
    let mut spans = spans.into_iter();
    let (change, value) = spans.next().or_stop()?;
    (walker.state.change, walker.state.value) = (change, Some(value));
    walker.state.others = spans.collect();
    Ok(())
}

/// One head: c O_h, and what its terms are.
struct Head {
    o: Rc<Approx>,
    group: usize,
    /// c O_h L_h for a mean of changes.
    change: Var,
    /// The same for a mean of tokens.
    point: Var,
    /// What the change of a logit is at most.
    sigma: Scalar,
    /// What the contents add to a logit is at most, where that matters.
    kappa: Option<Scalar>,
}

struct Parts {
    heads: Vec<Head>,
    of_change: Maps,
    of_value: Maps,
    out: Scalar,
}

impl Parts {
    /// What a class of tokens adds: an image of its own unknowns, and others.
    fn terms(&self, tape: &Tape, a: &Attention, class: &Class, change: bool) -> Terms {
        let (mut means, mut covariances) = (Vec::new(), Vec::new());
        // What is read at each distance.
        let mut read: BTreeMap<usize, Var> = BTreeMap::new();
        for (head, known) in self.heads.iter().zip(&class.heads) {
            let mean = if change { &head.change } else { &head.point };
            let noise = |by: Scalar| tape.scale(&head.point, by);
            let (Some((distance, odds)), Some(kappa)) = (known, head.kappa) else {
                means.push(mean.clone());
                covariances.push(noise(head.sigma));
                continue;
            };
            let mut share = self.out;
            // Where nothing else is in sight, nothing else is read.
            if *odds > Upper::ZERO {
                let [epsilon, keep, shrink] = tape.off(kappa, *odds);
                share = tape.multiply(keep, self.out);
                means.push(tape.scale(mean, epsilon));
                covariances.push(noise(tape.multiply(head.sigma, shrink)));
            }
            let all = if change { &self.of_change.value } else { &self.of_value.value };
            let g = head.group;
            let v = tape.rows(all, g * a.head_dim, (g + 1) * a.head_dim);
            // The size of a factor is all that matters where the unknowns are others; here they are the
            // token's own.
            let image = tape.times(&head.o, &tape.scale(&v, share));
            let image = if a.output_scale < 0.0 { tape.blend(-1.0, &image, None) } else { image };
            let sum = match read.get(distance) {
                Some(sum) => tape.blend(1.0, sum, Some((1.0, &image))),
                None => image,
            };
            read.insert(*distance, sum);
        }
        let own = read.remove(&0);
        let mut others: Vec<Var> = read.into_values().collect();
        others.extend(means);
        if change {
            others.extend(covariances);
        }
        Terms { own, others }
    }
}

/// A sum of `own ζ`, for the unknowns ζ of the token itself, and of others with unknowns of theirs.
struct Terms {
    own: Option<Var>,
    others: Vec<Var>,
}

/// The vector m that takes most of `values − m·one` away.
fn middle(values: &Approx, one: &Approx) -> Approx {
    let square: f64 = one.data.iter().map(|x| x * x).sum::<f64>().max(f64::MIN_POSITIVE);
    let along = super::vectors::along(values.view(), &one.data);
    let data = along.iter().map(|x| x / square).collect();
    Approx::new(values.rows, 1, data, values.exponent.saturating_sub(one.exponent), Upper::ZERO)
}

/// What the mean adds that is the same for all inputs.
fn constant(
    walker: &Walker<'_>,
    a: &Attention,
    at: &Place<'_>,
    middle: Option<&Approx>,
) -> Result<Option<Approx>, Stop> {
    let weights = walker.weights;
    let name = |name: &str| at.weight(name);
    let mut v = middle.cloned();
    if a.bias {
        let b = weights.column(&name("value.bias"))?;
        v = Some(v.map_or(b.clone(), |v| v.blend(1.0, Some((1.0, &b)))));
    }
    let mut sum = None;
    if let Some(v) = v {
        // Each group's values go to all its heads.
        let repeats = a.group_size();
        let rows = (0..a.heads).flat_map(|h| {
            let from = h / repeats * a.head_dim;
            v.data[from..from + a.head_dim].iter().copied()
        });
        let error = v.error * count(repeats).sqrt();
        let all = Approx::new(a.heads * a.head_dim, 1, rows.collect(), v.exponent, error);
        let o = weights.get(&name("output.weight"))?;
        sum = Some(o.times(&all).blend(a.output_scale, None));
    }
    if a.output_bias {
        let b = weights.column(&name("output.bias"))?.blend(a.output_scale, None);
        sum = Some(sum.map_or(b.clone(), |s: Approx| s.blend(1.0, Some((1.0, &b)))));
    }
    Ok(sum)
}

/// Makes a sum of terms the current value, beside what is saved.
fn gather(tape: &Tape, span: &mut Span, what: &str, terms: Terms) -> Option<()> {
    let Terms { own, others } = terms;
    let saved = span.registers.last().map(|x| size(x)).or(span.one.as_ref().map(|_| 0.0));
    let here = own.as_ref().map(|x| x.value.log_size());
    let saved = match (saved, here) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    };
    let mut sizes: Vec<f64> = saved.into_iter().collect();
    sizes.extend(others.iter().map(|t| t.value.log_size()));
    let mut scales = tape.shares(what, &sizes)?;
    let mut y = vec![Block::Zero; span.sizes.len()];
    if saved.is_some() {
        let first = scales.remove(0);
        span.scale(tape, first);
        if let Some(own) = own {
            // The unknowns of the token itself are one block.
            let [block] = &mut y[..] else { return None };
            *block = Block::Dense(tape.scale(&own, first));
        }
    } else {
        span.sizes.clear();
        y.clear();
    }
    let others: Vec<Var> = others.iter().zip(scales).map(|(t, s)| tape.scale(t, s)).collect();
    if !others.is_empty() {
        let all = tape.beside(&others);
        span.add(all.value.columns);
        y.push(Block::Dense(all));
    }
    span.registers.push(y);
    Some(())
}

/// What turns norms of queries and keys into a bound on changes of logits.
struct Limits {
    /// For a norm on queries and keys: its slope, its largest size and its shift, of each.
    normed: Option<[(Upper, Upper, Upper); 2]>,
}

impl Limits {
    fn new(walker: &Walker<'_>, a: &Attention, at: &Place<'_>) -> Result<Self, Stop> {
        let Some(eps) = a.query_key_norm else { return Ok(Self { normed: None }) };
        let weights = walker.weights;
        let of = |name: &str, heads: usize| -> Result<(Upper, Upper, Upper), Stop> {
            let gain = weights.get(&at.weight(&format!("{name}_norm.weight")))?;
            let gain = gain
                .data
                .iter()
                .fold(Upper::ZERO, |m, x| m.max(abs(*x)))
                .times_power(gain.exponent);
            let width = if a.query_key_span == NormSpan::Heads { heads } else { 1 } * a.head_dim;
            let shift = if a.query_key_shift {
                let b = weights.get(&at.weight(&format!("{name}_norm.bias")))?;
                b.row_norms().into_iter().fold(Upper::ZERO, Upper::max)
            } else {
                Upper::ZERO
            };
            Ok((gain.div_up(root_down(eps)), gain * count(width).sqrt(), shift))
        };
        Ok(Self { normed: Some([of("query", a.heads)?, of("key", a.key_value_heads)?]) })
    }

    /// The factor on logits.
    fn scale(&self, tape: &Tape, a: &Attention) -> Scalar {
        tape.constant_scalar(abs(a.logit_scale))
    }

    /// What the change of every logit of head `h` is at most.
    fn sigma(
        &self,
        tape: &Tape,
        a: &Attention,
        change: &Maps,
        value: &Maps,
        h: usize,
        group: usize,
    ) -> Scalar {
        let head = |x: &Var, i: usize| tape.rows(x, i * a.head_dim, (i + 1) * a.head_dim);
        let s = self.scale(tape, a);
        let (qc, qv) = (head(&change.query, h), head(&value.query, h));
        let (kc, kv) = (head(&change.key, group), head(&value.key, group));
        if plain(a) {
            let sum = tape.sum(tape.inner_norm(&qc, &kv), tape.inner_norm(&qv, &kc));
            return tape.multiply(s, sum);
        }
        // Lipschitz constant and largest norm, of the query and of the key.
        let size = |own: &Var, all: &Var| match a.query_key_span {
            NormSpan::Heads if self.normed.is_some() => tape.norm(all),
            _ => tape.norm(own),
        };
        let of = |(c, all_c): (&Var, &Var), (v, all_v): (&Var, &Var), i: usize| {
            let (slope, length) = (size(c, all_c), size(v, all_v));
            let Some(normed) = &self.normed else { return (slope, length) };
            let (factor, most, shift) = normed[i];
            let factor = tape.constant_scalar(factor);
            let length = tape.min(tape.multiply(length, factor), tape.constant_scalar(most));
            (tape.multiply(slope, factor), tape.sum(length, tape.constant_scalar(shift)))
        };
        let query = of((&qc, &change.query), (&qv, &value.query), 0);
        let key = of((&kc, &change.key), (&kv, &value.key), 1);
        let sum = tape.sum(tape.multiply(query.0, key.1), tape.multiply(query.1, key.0));
        tape.multiply(s, sum)
    }
}
