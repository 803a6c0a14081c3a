//! Multi-head attention as data: heads, positions, norms and masks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which coordinates a rotary position embedding pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pairing {
    /// Coordinate i with i + d/2.
    Half,
    /// Coordinate 2i with 2i + 1.
    Interleaved,
}

/// Rotary positions: each pair of coordinates of queries and keys is rotated by an angle
/// proportional to the position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rotary {
    /// Base of the frequencies, 10000 in the literature.
    pub base: f64,
    /// Which coordinates are paired.
    pub pairing: Pairing,
    /// Angle per token of each pair, where it is not `base^(−2i/head_dim)`: scaled frequencies.
    /// Fewer than head_dim/2 of them rotate the first coordinates and leave the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequencies: Option<Vec<f64>>,
}

impl Rotary {
    /// The usual frequencies.
    pub fn new(base: f64, pairing: Pairing) -> Self {
        Self { base, pairing, frequencies: None }
    }

    /// The angle per token of each pair of `head_dim` coordinates that is turned: `base^(−2i/head_dim)`,
    /// unless others are given.
    #[must_use]
    pub fn per_token(&self, head_dim: usize) -> Vec<f64> {
        let half = head_dim / 2;
        match &self.frequencies {
            Some(frequencies) => frequencies.clone(),
            None => (0..half).map(|i| self.base.powf(-(i as f64) / half as f64)).collect(),
        }
    }

    /// The largest angle per token.
    #[must_use]
    pub fn fastest(&self) -> f64 {
        match &self.frequencies {
            Some(all) => all.iter().fold(0.0, |most, f| f.abs().max(most)),
            // Powers of the base from 0 to above −1.
            None => self.base.recip().max(1.0),
        }
    }
}

/// What a norm of queries and keys takes the mean over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Span {
    /// Each head, with one gain of the width of a head for all.
    #[default]
    Head,
    /// Each head, with a gain of the whole width: each head has its own.
    EachHead,
    /// All heads together, with a gain of their whole width.
    Heads,
}

/// Which norm queries and keys pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// An RMS norm.
    #[default]
    Rms,
    /// A layer norm: the mean is subtracted.
    Layer,
}

/// A constant for each head times the distance between query and key, subtracted from each logit
/// (Press et al., *Train Short, Test Long*, 2022). It depends on no input, so it costs nothing in a
/// Lipschitz constant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Alibi {
    /// One for each head: `−slope·|j − i|` is added to the logit of query i and key j.
    pub slopes: Vec<f64>,
}

impl Alibi {
    /// The published slopes, `2^(−max·h/heads)` for head h = 1, 2, … with max = 8. For a number of
    /// heads that is no power of two they are those of the power below it, then every second one of
    /// the power above.
    pub fn new(heads: usize, max: f64) -> Self {
        let slope = |power: usize, h: usize| 2f64.powf(-max * h as f64 / power as f64);
        let below = (heads / 2 + 1).next_power_of_two();
        let first = (1..=below).map(|h| slope(below, h));
        let odd = (0..).map(|i| slope(2 * below, 2 * i + 1));
        Self { slopes: first.chain(odd).take(heads).collect() }
    }
}

/// A number added to each logit, learned for buckets of the distance between query and key; near
/// distances have buckets of their own, far ones share (Raffel et al., *Exploring the Limits of
/// Transfer Learning*, section 2.1). It depends on no input, so it costs nothing in a Lipschitz
/// constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PositionBias {
    /// How many; where attention is not causal, half of them for keys after the query.
    pub buckets: usize,
    /// Distances from here on share one.
    pub max_distance: usize,
}

impl PositionBias {
    /// The buckets of one side, and how many of them are for one distance each.
    pub(super) fn sides(self, causal: bool) -> (usize, usize) {
        let side = if causal { self.buckets } else { self.buckets / 2 };
        (side, side / 2)
    }

    /// Whether there are near distances, and far ones.
    pub(crate) fn fits(self, causal: bool) -> bool {
        let (_, near) = self.sides(causal);
        near > 0 && self.max_distance > near
    }

    /// The smallest distance of each bucket, or of the next where none falls into it;
    /// `max_distance` behind the last.
    pub(crate) fn distances(self, causal: bool) -> Vec<usize> {
        let (side, _) = self.sides(causal);
        let least = |within: usize| {
            let (mut low, mut high) = (0, self.max_distance);
            while low < high {
                let middle = low + (high - low) / 2;
                if self.bucket(causal, -(middle as i64)) >= within {
                    high = middle
                } else {
                    low = middle + 1
                }
            }
            low
        };
        (0..self.buckets).map(|bucket| least(bucket % side)).collect()
    }

    /// The bucket of key − query: half of a side's buckets for near distances, one each, and half
    /// for far ones, on a logarithmic scale up to `max_distance`. Under a causal mask there is one
    /// side; keys after the query are not seen, and have the first.
    pub fn bucket(self, causal: bool, offset: i64) -> usize {
        let (side, near) = self.sides(causal);
        let distance =
            if causal { offset.min(0).unsigned_abs() } else { offset.unsigned_abs() } as usize;
        let within = if distance < near {
            distance
        } else {
            // In f32, as in the code published with the paper: at exact powers the rounding decides
            // the bucket.
            let share = (distance as f32 / near as f32).ln()
                / (self.max_distance as f64 / near as f64).ln() as f32;
            (near + (share * (side - near) as f32) as usize).min(side - 1)
        };
        if offset > 0 && !causal { side + within } else { within }
    }
}

/// Multi-head attention over `[batch, tokens, dim]`:
/// `output_scale · W_O · concat_h softmax(logit_scale · q_h k_hᵀ + mask) v_h`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// Width of the residual stream.
    pub dim: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads` (grouped queries).
    pub key_value_heads: usize,
    /// Width of each head.
    pub head_dim: usize,
    /// Factor on the logits: 1/head_dim in Newhouse et al. (2025), 1/√head_dim elsewhere.
    pub logit_scale: f64,
    /// Factor on the output.
    pub output_scale: f64,
    /// Whether a token sees only itself and earlier tokens.
    pub causal: bool,
    /// Rotary positions, if any.
    pub rotary: Option<Rotary>,
    /// Whether query, key and value have a bias.
    pub bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// ε of a norm with gain on each query and key head, if any.
    pub query_key_norm: Option<f64>,
    /// What that norm takes the mean over.
    #[serde(default)]
    pub query_key_span: Span,
    /// Which norm it is.
    #[serde(default)]
    pub query_key_kind: NormKind,
    /// Whether it has a shift.
    #[serde(default)]
    pub query_key_shift: bool,
    /// Soft cap c on the scaled logits, `c·tanh(logit/c)`, if any.
    #[serde(default)]
    pub logit_cap: Option<f64>,
    /// Size of the sliding window: a token sees only tokens fewer than this many positions away.
    #[serde(default)]
    pub window: Option<usize>,
    /// A position bias, if any.
    #[serde(default)]
    pub position_bias: Option<PositionBias>,
    /// Slopes over the distance, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alibi: Option<Alibi>,
}

impl Attention {
    /// Causal attention with logits over √head_dim, and nothing else.
    pub fn new(dim: usize, heads: usize, head_dim: usize) -> Self {
        Self {
            dim,
            heads,
            key_value_heads: heads,
            head_dim,
            logit_scale: (head_dim as f64).sqrt().recip(),
            output_scale: 1.0,
            causal: true,
            rotary: None,
            bias: false,
            output_bias: false,
            query_key_norm: None,
            query_key_span: Span::Head,
            query_key_kind: NormKind::Rms,
            query_key_shift: false,
            logit_cap: None,
            window: None,
            position_bias: None,
            alibi: None,
        }
    }

    /// Query heads that share a key-value head, whose number divides theirs.
    #[must_use]
    pub fn group_size(&self) -> usize {
        self.heads / self.key_value_heads
    }

    /// The key-value head that query head `h` reads.
    #[must_use]
    pub fn group(&self, h: usize) -> usize {
        h / self.group_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Graph, Input, Node, Op};

    #[test]
    fn buckets_that_cannot_be_are_refused() {
        let graph = |causal, buckets, max_distance| {
            let position_bias = Some(PositionBias { buckets, max_distance });
            let attention = Attention { causal, position_bias, ..Attention::new(4, 2, 2) };
            let nodes = vec![
                Node::new("embedding", Op::Embedding { vocabulary: 3, dim: 4 }),
                Node::new("attention", Op::Attention(attention)),
            ];
            Graph::new(Input::tokens(4), nodes).map_err(|e| e.to_string())
        };
        for (causal, buckets, max_distance) in
            [(true, 1, 8), (false, 3, 8), (true, 8, 4), (false, 8, 2)]
        {
            let said = graph(causal, buckets, max_distance).unwrap_err();
            assert!(
                said.contains("attention") && said.contains(&format!("{buckets} buckets")),
                "{said}"
            );
        }
        for (causal, buckets, max_distance) in [(true, 2, 2), (false, 4, 2), (true, 8, 1 << 28)] {
            graph(causal, buckets, max_distance).unwrap();
        }
    }

    /// The slopes of the two published programs, MPT's for every number of heads: two numbers of
    /// twice as many heads, the even ones first.
    #[test]
    fn slopes_of_any_number_of_heads() {
        assert_eq!(Alibi::new(1, 8.0).slopes, [2f64.powi(-8)]);
        assert_eq!(Alibi::new(8, 8.0).slopes, [1, 2, 3, 4, 5, 6, 7, 8].map(|h| 2f64.powi(-h)));
        assert_eq!(Alibi::new(3, 8.0).slopes, [-4, -8, -2].map(|h| 2f64.powi(h)));
        for heads in 1..70usize {
            let power = heads.next_power_of_two();
            let all: Vec<f64> =
                (1..=power).map(|h| 2f64.powf(-8.0 * h as f64 / power as f64)).collect();
            let mut wanted = all.clone();
            if power != heads {
                let (even, odd) = (all.iter().skip(1).step_by(2), all.iter().step_by(2));
                wanted = even.chain(odd).copied().take(heads).collect();
            }
            assert_eq!(Alibi::new(heads, 8.0).slopes, wanted, "{heads}");
        }
    }

    /// Worked out by hand: near distances have a bucket each, far ones share on a logarithmic
    /// scale, keys after the query have their own half or, under a causal mask, nothing.
    #[test]
    fn buckets_of_distances() {
        let bias = PositionBias { buckets: 8, max_distance: 16 };
        let of = |causal, offsets: &[i64]| {
            offsets.iter().map(|o| bias.bucket(causal, *o)).collect::<Vec<_>>()
        };
        assert_eq!(
            of(true, &[0, -1, -2, -3, -4, -5, -6, -9, -11, -12, -100, 3]),
            [0, 1, 2, 3, 4, 4, 5, 6, 6, 7, 7, 0]
        );
        assert_eq!(
            of(false, &[0, -1, -3, -5, -6, -100, 1, 3, 6, 100]),
            [0, 1, 2, 2, 3, 3, 5, 6, 7, 7]
        );
        for causal in [true, false] {
            let (side, _) = bias.sides(causal);
            for (bucket, distance) in bias.distances(causal).into_iter().enumerate() {
                assert_eq!(
                    bias.bucket(causal, -(distance as i64)),
                    bucket % side,
                    "{causal} {bucket}"
                );
            }
        }
    }
}
