//! Learned numbers for the distance between query and key.

use candle_core::{Result, Tensor};

use crate::graph::PositionBias;

/// What is added to logits, by key − query: `[heads, 2·tokens − 1]` from a `[buckets, heads]` table, in column d + tokens − 1 for the
/// distance d.
///
/// # Errors
/// Candle's own.
pub fn position_bias(table: &Tensor, bias: PositionBias, causal: bool, tokens: usize) -> Result<Tensor> {
    let last = tokens as i64 - 1;
    let buckets: Vec<u32> = (-last..=last).map(|distance| bias.bucket(causal, distance) as u32).collect();
    table.index_select(&Tensor::new(buckets, table.device())?, 0)?.t()?.contiguous()
}

/// The same for each query and key, `[heads, tokens, tokens]`.
///
/// # Errors
/// Candle's own.
pub(super) fn by_pair(by_distance: &Tensor, tokens: usize) -> Result<Tensor> {
    let columns: Vec<u32> = (0..tokens * tokens).map(|i| (i % tokens + tokens - 1 - i / tokens) as u32).collect();
    by_distance.index_select(&Tensor::new(columns, by_distance.device())?, 1)?.reshape(((), tokens, tokens))
}
