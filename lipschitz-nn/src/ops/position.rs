//! Learned numbers for the distance between query and key.

use candle_core::{Result, Tensor};

use crate::graph::PositionBias;

/// The bucket of key − query: a quarter of the buckets for each side's near distances, one each, and a quarter for its far ones, on
/// a logarithmic scale up to `max_distance`.
///
/// Source: Raffel et al., *Exploring the Limits of Transfer Learning*, section 2.1, and the code published with it.
fn bucket(bias: PositionBias, offset: i64) -> u32 {
    let side = bias.buckets / 2;
    let near = side / 2;
    let distance = offset.unsigned_abs() as usize;
    let within = if distance < near {
        distance
    } else {
        // In f32, as in the original: at exact powers the rounding decides the bucket.
        let share = (distance as f32 / near as f32).ln() / (bias.max_distance as f64 / near as f64).ln() as f32;
        (near + (share * (side - near) as f32) as usize).min(side - 1)
    };
    (if offset > 0 { side + within } else { within }) as u32
}

/// `[heads, tokens, tokens]`: what is added to the logit of each query and key, from a `[buckets, heads]` table.
///
/// # Errors
/// Candle's own.
pub fn position_bias(table: &Tensor, bias: PositionBias, tokens: usize) -> Result<Tensor> {
    let offset = |i: usize| (i % tokens) as i64 - (i / tokens) as i64;
    let buckets: Vec<u32> = (0..tokens * tokens).map(|i| bucket(bias, offset(i))).collect();
    let rows = table.index_select(&Tensor::new(buckets, table.device())?, 0)?;
    rows.t()?.contiguous()?.reshape(((), tokens, tokens))
}
