//! Multi-head attention: queries, keys, logits and mixed values.
//!
//! *Rotary positions* turn pairs of elements, so that each is at most the norm of its pair, which
//! is at most `σ r` with σ the norm of the two rows. *Logits*: `|q·k|` is at most `‖q‖‖k‖`, at most
//! the sum of products of bounds on elements, and for plain products of `q = c_q + Q γ z` and
//! `k = c_k + K γ z'`
//!
//! ```text
//! |q·k| ≤ |c_q·c_k| + (‖c_qᵀ K γ‖ + ‖c_kᵀ Q γ‖) r + ‖γ Qᵀ K γ‖ r².
//! ```
//!
//! *Mixed values* are means of values, so the bounds on values hold for them; those of the heads
//! differ, so `|o_i m|` is at most `|o_i c| + Σ_h min(‖o_ih V_h γ‖ r, ‖o_ih‖ ‖V_h γ‖ r)`.

use lipschitz_nn::graph::{Attention, NormKind, Pairing, Span, Stage};

use super::hull::Hull;
use super::linear::{Image, along, pair, product_rows};
use super::set::{Set, norm, tiny};
use super::walk::{Place, Walker, columns, normed};
use crate::Error;
use crate::bound::{Block, Norm, Part};
use crate::spectral::{Matrix, gamma, vector_norm};
use crate::upper::{Upper, abs, count, root_down};

/// The widest layer whose products of values and outputs are formed: the work grows with its cube.
const WIDE: usize = 2048;

/// Queries, keys or values of all heads.
struct Heads {
    map: Matrix,
    /// The part that is the same for all tokens; none is 0.
    centre: Option<Vec<f64>>,
    /// What rounding took from it, in ℓ2.
    off: Upper,
    /// ‖W_h γ‖ of each head.
    maps: Vec<Upper>,
    /// Bounds on the elements.
    elements: Vec<Upper>,
    /// Bounds on the norm of each head.
    sizes: Vec<Upper>,
    /// The sum of means.
    hull: Option<Hull>,
}

impl Heads {
    fn centre(&self, h: usize, head_dim: usize) -> Option<&[f64]> {
        self.centre.as_ref().map(|c| &c[h * head_dim..(h + 1) * head_dim])
    }
}

pub(super) fn step(
    walker: &mut Walker<'_>,
    a: &Attention,
    at: &Place,
    x: &Set,
) -> Result<Set, Error> {
    walker.norms.prepare(&of_heads(a, at, x))?;
    let query = heads(walker, a, at, "query", x)?;
    let turned_query = positioned(walker, a, at, "query", &query, x)?;
    let key = heads(walker, a, at, "key", x)?;
    let turned_key = positioned(walker, a, at, "key", &key, x)?;
    let value = heads(walker, a, at, "value", x)?;
    let mut product = Vec::with_capacity(a.heads);
    for h in 0..a.heads {
        let g = a.group(h);
        let ((q, q_size), (k, k_size)) = (turned_query.of(h), turned_key.of(g));
        let by_element = q.iter().zip(k).fold(Upper::ZERO, |sum, (q, k)| sum + *q * *k);
        let mut best = by_element.min(q_size * k_size);
        if a.rotary.is_none() && a.query_key_norm.is_none() {
            best = best.min(plain(walker, a, at, (&query, h), (&key, g), x)?);
        }
        product.push(best);
    }
    logits(walker, a, at, product)?;
    mixed(walker, a, at, &value, x)
}

/// The norms that each head asks for.
fn of_heads(a: &Attention, at: &Place, x: &Set) -> Vec<Norm> {
    let gain = x.gain.as_ref().map(|(name, _)| name.clone());
    let of = |h: usize| {
        let (own, shared) = (
            Part { index: h, count: a.heads },
            Part { index: a.group(h), count: a.key_value_heads },
        );
        let block = |name: &str, rows| {
            Block::whole(at.weight(&format!("{name}.weight"))).rows(rows).gain(gain.clone())
        };
        let (query, key, value) =
            (block("query", own), block("key", shared), block("value", shared));
        let plain = a.rotary.is_none() && a.query_key_norm.is_none();
        let both = plain.then(|| Norm::QueryKey(query.clone(), key.clone()));
        let output = Block::whole(at.weight("output.weight")).columns(own);
        let through = Norm::OutputValue(output, value.clone());
        [query, key, value].map(Norm::Matrix).into_iter().chain(both).chain([through])
    };
    (0..a.heads).flat_map(of).collect()
}

/// Queries, keys or values as they are projected.
fn heads(
    walker: &mut Walker<'_>,
    a: &Attention,
    at: &Place,
    name: &str,
    x: &Set,
) -> Result<Heads, Error> {
    let (stage, count) = match name {
        "query" => (Stage::Query, a.heads),
        "key" => (Stage::Key, a.key_value_heads),
        _ => (Stage::Value, a.key_value_heads),
    };
    let weight = at.weight(&format!("{name}.weight"));
    let map = walker.matrix(&weight)?;
    let bias = walker.bias(a.bias, &at.weight(&format!("{name}.bias")))?;
    let Image { centre, off, rows, elements, hull } = Image::new(&map, bias.as_deref(), x);
    let elements = walker.keep(&at.id, stage, elements);
    let gain = x.gain.as_ref().map(|(name, _)| name.clone());
    let whole = norm(&rows);
    let hull = hull.map(|(hull, rest)| hull.more(whole * rest));
    let mut out = Heads { map, centre, off, maps: Vec::new(), elements, sizes: Vec::new(), hull };
    for index in 0..count {
        let block = Block::whole(&weight).rows(Part { index, count }).gain(gain.clone());
        let own = index * a.head_dim..(index + 1) * a.head_dim;
        let map = walker.norms.norm(&Norm::Matrix(block))?.min(norm(&rows[own.clone()]));
        let centre = out.centre.as_ref().map_or(Upper::ZERO, |c| vector_norm(&c[own.clone()]));
        out.maps.push(map);
        out.sizes.push((centre + off + map * x.radius).min(norm(&out.elements[own])));
    }
    Ok(out)
}

/// Queries or keys as the logits take them: bounds on elements, and on the norm of each head.
struct Turned {
    elements: Vec<Upper>,
    sizes: Vec<Upper>,
}

impl Turned {
    fn of(&self, h: usize) -> (&[Upper], Upper) {
        let d = self.elements.len() / self.sizes.len().max(1);
        (&self.elements[h * d..(h + 1) * d], self.sizes[h])
    }

    /// With smaller bounds on elements.
    fn within(self, elements: Vec<Upper>) -> Self {
        let mut out = Self { elements, ..self };
        let d = out.elements.len() / out.sizes.len().max(1);
        for (own, size) in out.elements.chunks_mut(d.max(1)).zip(&mut out.sizes) {
            *size = size.min(norm(own));
            own.iter_mut().for_each(|x| *x = x.min(*size));
        }
        out
    }
}

/// Behind their norm and with their positions.
fn positioned(
    walker: &mut Walker<'_>,
    a: &Attention,
    at: &Place,
    name: &str,
    raw: &Heads,
    x: &Set,
) -> Result<Turned, Error> {
    let [to_norm, to_turn] = match name {
        "query" => [Stage::NormedQuery, Stage::TurnedQuery],
        _ => [Stage::NormedKey, Stage::TurnedKey],
    };
    let mut out = Turned { elements: raw.elements.clone(), sizes: raw.sizes.clone() };
    if let Some(eps) = a.query_key_norm {
        out = behind_norm(walker, a, at, name, eps, out)?;
        let elements = walker.keep(&at.id, to_norm, out.elements.clone());
        out = out.within(elements);
    }
    let Some(rotary) = &a.rotary else { return Ok(out) };
    let (d, gain) = (a.head_dim, x.gain.as_ref().map(|(_, gain)| gain.as_slice()));
    let pairs = rotary.frequencies.as_ref().map_or(d / 2, Vec::len);
    let row = |i: usize| &raw.map.data[i * raw.map.columns..(i + 1) * raw.map.columns];
    for h in 0..out.sizes.len() {
        for k in 0..pairs {
            let (i, j) = match rotary.pairing {
                Pairing::Half => (h * d + k, h * d + k + pairs),
                Pairing::Interleaved => (h * d + 2 * k, h * d + 2 * k + 1),
            };
            let mut both = norm(&[out.elements[i], out.elements[j]]).min(out.sizes[h]);
            if a.query_key_norm.is_none() {
                let centre =
                    raw.centre.as_ref().map_or(Upper::ZERO, |c| vector_norm(&[c[i], c[j]]));
                both = both.min(centre + raw.off + pair(row(i), row(j), gain) * x.radius);
            }
            (out.elements[i], out.elements[j]) = (both, both);
        }
    }
    let elements = walker.keep(&at.id, to_turn, out.elements.clone());
    Ok(out.within(elements))
}

/// `γ ∘ n(q) + β` of each head, or of all together.
fn behind_norm(
    walker: &Walker<'_>,
    a: &Attention,
    at: &Place,
    name: &str,
    eps: f64,
    raw: Turned,
) -> Result<Turned, Error> {
    let weight = |what: &str| at.weight(&format!("{name}_norm.{what}"));
    let gain = walker.vector(&weight("weight"))?;
    let shift = walker.bias(a.query_key_shift, &weight("bias"))?;
    let (width, d) = (raw.elements.len(), a.head_dim);
    let over = if a.query_key_span == Span::Heads { width } else { d };
    let slope = Upper::ONE.div_up(root_down(eps));
    let plain = normed(&raw.elements, over, slope, a.query_key_kind == NormKind::Layer);
    // One gain for all heads, or one for each element.
    let of = |v: &[f64], i: usize| abs(v[i % v.len().max(1)]);
    let added = |i: usize| shift.as_ref().map_or(Upper::ZERO, |b| of(b, i));
    let elements = (0..width).map(|i| of(&gain, i) * plain[i] + added(i)).collect::<Vec<_>>();
    let size = |h: usize| {
        let own = h * d..(h + 1) * d;
        let largest = own.clone().fold(Upper::ZERO, |m, i| m.max(of(&gain, i)));
        let shift = norm(&own.clone().map(added).collect::<Vec<_>>());
        let mut n = count(over).sqrt().min(norm(&plain[own]));
        // Without a mean, each element is divided by at least √ε.
        if a.query_key_kind == NormKind::Rms {
            n = n.min(slope * raw.sizes[h]);
        }
        largest * n + shift
    };
    let sizes = (0..raw.sizes.len()).map(size).collect();
    Ok(Turned { sizes, elements: Vec::new() }.within(elements))
}

/// `|q·k|` of plain products.
fn plain(
    walker: &Walker<'_>,
    a: &Attention,
    at: &Place,
    (query, h): (&Heads, usize),
    (key, g): (&Heads, usize),
    x: &Set,
) -> Result<Upper, Error> {
    let gain = x.gain.as_ref().map(|(name, _)| name.clone());
    let block = |name: &str, index: usize, count: usize| {
        Block::whole(at.weight(name)).rows(Part { index, count }).gain(gain.clone())
    };
    let both = Norm::QueryKey(
        block("query.weight", h, a.heads),
        block("key.weight", g, a.key_value_heads),
    );
    let r = x.radius;
    let of = |heads: &Heads, i, n| heads.hull.as_ref().and_then(|hull| hull.part(i, n));
    let means = of(query, h, a.heads)
        .zip(of(key, g, a.key_value_heads))
        .and_then(|(query, key)| query.product(&key))
        .unwrap_or(Upper::INFINITY);
    let mut sum = walker.norms.norm(&both)? * r * r;
    let gain = x.gain.as_ref().map(|(_, gain)| gain.as_slice());
    let own = |heads: &Heads, i: usize, n: usize| heads.map.row_block(i, n);
    let (q, k) = (query.centre(h, a.head_dim), key.centre(g, a.head_dim));
    if let Some(q) = q {
        let map = own(key, g, a.key_value_heads);
        sum = sum + along(q, query.off, &map, gain, key.maps[g]) * r;
    }
    if let Some(k) = k {
        let map = own(query, h, a.heads);
        sum = sum + along(k, key.off, &map, gain, query.maps[h]) * r;
    }
    if let (Some(q), Some(k)) = (q, k) {
        let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
        let size = vector_norm(q) * vector_norm(k);
        let lost = query.off * vector_norm(k) + key.off * vector_norm(q) + query.off * key.off;
        sum = sum + abs(dot) + gamma(a.head_dim + 2) * size + lost + tiny(a.head_dim);
    }
    Ok(sum.min(means))
}

/// Logits before and behind scale, cap and position bias, one a head.
fn logits(
    walker: &mut Walker<'_>,
    a: &Attention,
    at: &Place,
    product: Vec<Upper>,
) -> Result<(), Error> {
    let product = walker.keep(&at.id, Stage::Product, product);
    let scale = abs(a.logit_scale);
    let scaled = product.into_iter().map(|x| scale * x).collect();
    let mut logits = walker.keep(&at.id, Stage::Logit, scaled);
    if let Some(cap) = a.logit_cap {
        let capped = logits.into_iter().map(|x| x.min(abs(cap))).collect();
        logits = walker.keep(&at.id, Stage::CappedLogit, capped);
    }
    if a.position_bias.is_some() || a.alibi.is_some() {
        let mut added = vec![Upper::ZERO; a.heads];
        if a.position_bias.is_some() {
            added = columns(&walker.matrix(&at.weight("position_bias.weight"))?);
        }
        if let Some(alibi) = &a.alibi {
            let furthest = count(walker.tokens.saturating_sub(1));
            added.iter_mut().zip(&alibi.slopes).for_each(|(x, s)| *x = *x + abs(*s) * furthest);
        }
        let sum = logits.into_iter().zip(added).map(|(x, y)| x + y).collect();
        walker.keep(&at.id, Stage::BiasedLogit, sum);
    }
    walker.keep(&at.id, Stage::Probability, vec![Upper::ONE; a.heads]);
    Ok(())
}

/// Means of values, and the output.
fn mixed(
    walker: &mut Walker<'_>,
    a: &Attention,
    at: &Place,
    value: &Heads,
    x: &Set,
) -> Result<Set, Error> {
    let (group, d, r) = (a.group_size(), a.head_dim, x.radius);
    let own = |h: usize| h / group * d..(h / group + 1) * d;
    let elements: Vec<Upper> = (0..a.heads).flat_map(|h| value.elements[own(h)].to_vec()).collect();
    let elements = walker.keep(&at.id, Stage::Mixed, elements);
    let repeat = |c: &Vec<f64>| (0..a.heads).flat_map(|h| c[own(h)].to_vec()).collect();
    let centre: Option<Vec<f64>> = value.centre.as_ref().map(repeat);
    let off = value.off * count(a.heads).sqrt();

    let weight = at.weight("output.weight");
    let o = walker.matrix(&weight)?;
    let bias = walker.bias(a.output_bias, &at.weight("output.bias"))?;
    // What the elements alone give, and the image of the centre.
    let radius = Upper::INFINITY;
    let middle = Set { centre, gain: None, centred: false, radius, elements, hull: None };
    let image = Image::new(&o, bias.as_deref(), &middle);

    let gain = x.gain.as_ref().map(|(_, gain)| gain.as_slice());
    let gain_name = x.gain.as_ref().map(|(name, _)| name.clone());
    let mut rows = vec![Upper::ZERO; a.dim];
    let mut sum = Upper::ZERO;
    for h in 0..a.heads {
        let (index, count) = (h / group, a.key_value_heads);
        let columns = Part { index: h, count: a.heads };
        let block = o.column_block(columns.index, columns.count);
        let mut bounds: Vec<Upper> =
            block.data.chunks(d.max(1)).map(|row| vector_norm(row) * value.maps[index]).collect();
        if a.dim <= WIDE {
            let products = product_rows(&block, &value.map.row_block(index, count), gain);
            bounds.iter_mut().zip(products).for_each(|(x, y)| *x = x.min(y));
        }
        rows.iter_mut().zip(bounds).for_each(|(sum, x)| *sum = *sum + x);
        let v = Block::whole(at.weight("value.weight"))
            .rows(Part { index, count })
            .gain(gain_name.clone());
        let o = Block::whole(&weight).columns(columns);
        sum = sum + walker.norms.norm(&Norm::OutputValue(o, v))?;
    }
    let whole = walker.norms.norm(&Norm::Matrix(Block::whole(&weight)))?;
    let maps: Vec<Upper> = (0..a.heads).map(|h| value.maps[h / group]).collect();
    let map = sum.min(whole * norm(&maps)).min(norm(&rows));
    let elements = image.elements.iter().enumerate().map(|(i, within)| {
        let centre = image.centre.as_ref().map_or(Upper::ZERO, |c| abs(c[i]));
        within.min(centre + image.off + rows[i] * r + image.rows[i] * off)
    });
    let mut out = Set {
        hull: value.hull.as_ref().and_then(|hull| means(a, hull, &o, bias.as_deref())),
        elements: elements.collect(),
        radius: map * r + whole * off + image.off,
        centre: image.centre,
        gain: None,
        centred: false,
    };
    if let Some(hull) = &out.hull {
        for (x, y) in out.elements.iter_mut().zip(hull.elements()) {
            *x = x.min(y + hull.rest);
        }
    }
    out.tidy();
    if a.output_scale == 1.0 {
        return Ok(out);
    }
    let elements = walker.keep(&at.id, Stage::Projected, out.elements.clone());
    out.within(&elements);
    Ok(out.scaled(a.output_scale))
}

/// The output of all heads as a sum of means: each of them makes its own of what values are sums of.
fn means(a: &Attention, value: &Hull, output: &Matrix, bias: Option<&[f64]>) -> Option<Hull> {
    let start = Hull::ball(bias.map_or_else(|| vec![0.0; a.dim], <[f64]>::to_vec), Upper::ZERO);
    let group = a.group_size();
    (0..a.heads).try_fold(start, |sum, h| {
        let own = output.column_block(h, a.heads);
        let value = value.part(h / group, a.key_value_heads)?;
        let map = vector_norm(&own.data);
        let head = value.image(&own, None)?.more(map * value.rest);
        sum.plus(1.0, &head, 1.0)
    })
}
