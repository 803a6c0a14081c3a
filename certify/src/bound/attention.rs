//! Multi-head attention: the smallest of three bounds, each valid for any number of heads.
//!
//! For one head with probabilities p, logits λ and values v, `δo = Σ p_j δv_j + Cov_p(δλ, v)`, and
//! `‖Cov_p(δλ, v)‖ ≤ max |δλ| · max ‖v_j − c‖` for any c. So a value bias drops out of the second
//! term, and what is the same in all logits of a row (a key bias, where the logits are plain
//! products) changes nothing. A soft cap on the logits has slope at most 1.

use lipschitz_nn::graph::{Attention, Span, join};

use super::{Block, Norm, Norms, Part, State, Step, abs, count};
use crate::Error;
use crate::upper::Upper;

/// What the rules need to know of one query head.
struct Head {
    /// ‖V_h‖
    value: Upper,
    /// ‖O_h V_h‖
    output_value: Upper,
    /// Largest ‖q_h‖ and ‖k_h‖.
    query_size: Upper,
    key_size: Upper,
    /// Lipschitz constant of k_h in its token.
    key_slope: Upper,
    /// Lipschitz constant of the logits over `logit_scale`, the best of what holds.
    logit_slope: Upper,
}

pub(super) fn bound(
    a: &Attention,
    path: &str,
    norms: &dyn Norms,
    x: &State,
) -> Result<Step, Error> {
    let weight = |name: &str| join(path, &join(name, "weight"));
    let block = |name: &str, rows: Part| Block::whole(weight(name)).rows(rows).gain(x.gain.clone());
    let bias = |name: &str| a.bias.then(|| join(path, &join(name, "bias")));
    let offset = |name: &str, rows: Part| {
        norms.offset(
            &Block::whole(weight(name)).rows(rows),
            x.shift.as_deref(),
            bias(name).as_deref(),
        )
    };
    let part = |index, count| Part { index, count };
    let r = x.radius;

    let (query_gain, key_gain) = match a.query_key_norm {
        Some(_) => {
            (Some(norms.largest(&weight("query_norm"))?), Some(norms.largest(&weight("key_norm"))?))
        }
        None => (None, None),
    };
    // A norm over all heads makes each depend on the others, so its slope is that of the whole map.
    let span = |heads: usize| if a.query_key_span == Span::Heads { heads } else { 1 };
    let mixing = |name: &str, map: Upper| match (a.query_key_norm, a.query_key_span) {
        (Some(_), Span::Heads) => norms.matrix(&block(name, Part::ALL)),
        _ => Ok(map),
    };
    // Slope of a query or key, and its largest norm, from the norm of the map and of its offset;
    // `mixed` is the norm of the map that the norm is taken over, of `heads` heads.
    let through =
        |map: Upper, mixed: Upper, offset: Upper, gain: Option<Upper>, heads: usize| match (
            gain,
            a.query_key_norm,
        ) {
            (Some(gain), Some(eps)) => {
                let slope = gain.div_up(eps.sqrt().next_down());
                let root = count(span(heads) * a.head_dim).sqrt();
                (slope * mixed, (root * gain).min(slope * (map * r + offset)))
            }
            _ => (map, map * r + offset),
        };
    let plain = a.rotary.is_none() && a.query_key_norm.is_none() && a.logit_cap.is_none();

    let output_block = Block::whole(weight("output"));
    let mut heads = Vec::with_capacity(a.heads);
    for h in 0..a.heads {
        let g = h / (a.heads / a.key_value_heads);
        let (mine, shared) = (part(h, a.heads), part(g, a.key_value_heads));
        let query = norms.matrix(&block("query", mine))?;
        let key = norms.matrix(&block("key", shared))?;
        let value = norms.matrix(&block("value", shared))?;
        let query_offset = offset("query", mine)?;
        let key_offset = if plain { Upper::ZERO } else { offset("key", shared)? };
        let (query_slope, query_size) =
            through(query, mixing("query", query)?, query_offset, query_gain, a.heads);
        let (key_slope, key_size) =
            through(key, mixing("key", key)?, key_offset, key_gain, a.key_value_heads);
        let mut logit_slope = query_slope * key_size + query_size * key_slope;
        if plain {
            // λ_ij = x_iᵀ Q_hᵀ K_h x_j + b_qᵀ K_h x_j, up to what is the same in a row.
            let product =
                norms.norm(&Norm::QueryKey(block("query", mine), block("key", shared)))?;
            logit_slope = logit_slope.min(product * r + product * r + query_offset * key);
        }
        let columns = output_block.clone().columns(mine);
        let output_value = norms
            .norm(&Norm::OutputValue(columns.clone(), block("value", shared)))?
            .min(norms.matrix(&columns)? * value);
        heads.push(Head { value, output_value, query_size, key_size, key_slope, logit_slope });
    }

    let s = abs(a.logit_scale);
    let output = norms.matrix(&output_block)?;
    let sum = |f: &dyn Fn(&Head) -> Upper| heads.iter().fold(Upper::ZERO, |acc, h| acc + f(h));
    let max = |f: &dyn Fn(&Head) -> Upper| heads.iter().fold(Upper::ZERO, |acc, h| acc.max(f(h)));
    let root_of_squares = |f: &dyn Fn(&Head) -> Upper| sum(&|h| f(h) * f(h)).sqrt();
    let one_head = |value: Upper, h: &Head| value + value * r * s * h.logit_slope;

    // 1. Heads add up.
    let heads_add = sum(&|h| one_head(h.output_value, h));
    // 2. Heads are orthogonal blocks in front of W_O.
    let blocks = output * root_of_squares(&|h| one_head(h.value, h));
    // 3. As 2, and Σ_h ‖q_h‖² = ‖q‖², for the change of the query and for its size alike.
    let query = norms.matrix(&block("query", Part::ALL))?;
    let query_offset = offset("query", Part::ALL)?;
    let (query_slope, mut query_size) = match (query_gain, a.query_key_norm) {
        (Some(gain), Some(eps)) => {
            let slope = gain.div_up(eps.sqrt().next_down());
            (
                slope * query,
                (count(a.heads * a.head_dim).sqrt() * gain).min(slope * (query * r + query_offset)),
            )
        }
        _ => (query, query * r + query_offset),
    };
    query_size = query_size.min(root_of_squares(&|h| h.query_size));
    let queries =
        query_slope * max(&|h| h.key_size * h.value) + query_size * max(&|h| h.key_slope * h.value);
    let stacked = output * (root_of_squares(&|h| h.value) + s * r * queries);

    let rules =
        [(heads_add, "heads add up"), (blocks, "orthogonal heads"), (stacked, "stacked queries")];
    let (best, rule) =
        rules.into_iter().fold(rules[0], |best, next| if next.0 < best.0 { next } else { best });

    // The mean of values, and what is the same in all of them, which the probabilities leave as it
    // is.
    let repeats = count(a.heads / a.key_value_heads).sqrt();
    let mut radius = sum(&|h| h.output_value).min(output * root_of_squares(&|h| h.value)) * r;
    radius = radius + output * repeats * offset("value", Part::ALL)?;
    if a.output_bias {
        radius = radius + norms.vector(&join(path, "output.bias"))?;
    }
    let c = abs(a.output_scale);
    Ok(Step {
        lipschitz: c * best,
        out: State::new(c * radius, a.dim),
        rule: rule.into(),
        whole: None,
    })
}
