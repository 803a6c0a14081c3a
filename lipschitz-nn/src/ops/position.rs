//! Position biases: numbers for the distance between query and key, learned or constant slopes.

use candle_core::{Device, Result, Tensor, bail};

use crate::graph::{Alibi, PositionBias};

/// What is added to logits, by key − query: `[heads, 2·tokens − 1]` from a `[buckets, heads]`
/// table, in column d + tokens − 1 for the distance d.
///
/// # Errors
/// Buckets that a position bias cannot have, a table of another size, and candle's own.
pub fn position_bias(
    table: &Tensor,
    bias: PositionBias,
    causal: bool,
    tokens: usize,
) -> Result<Tensor> {
    if !bias.fits(causal) || table.dims().first() != Some(&bias.buckets) || tokens == 0 {
        bail!(
            "position bias: {bias:?} with a table of shape {:?} and {tokens} tokens",
            table.dims()
        )
    }
    let last = tokens as i64 - 1;
    let buckets: Vec<u32> =
        (-last..=last).map(|distance| bias.bucket(causal, distance) as u32).collect();
    table.index_select(&Tensor::new(buckets, table.device())?, 0)?.t()?.contiguous()
}

/// `−slope·|d|` for each head and the distance d = key − query, `[heads, 2·tokens − 1]` in column
/// d + tokens − 1, of the type and on the device of `like`.
///
/// # Errors
/// No tokens, and candle's own.
pub fn alibi(alibi: &Alibi, tokens: usize, like: &Tensor) -> Result<Tensor> {
    if tokens == 0 {
        bail!("slopes over the distance: no tokens")
    }
    let last = tokens as i64 - 1;
    let of_head = |slope: &f64| {
        let slope = *slope;
        (-last..=last).map(move |distance| -slope * distance.unsigned_abs() as f64)
    };
    let all: Vec<f64> = alibi.slopes.iter().flat_map(of_head).collect();
    Tensor::from_vec(all, (alibi.slopes.len(), 2 * tokens - 1), &Device::Cpu)?
        .to_dtype(like.dtype())?
        .to_device(like.device())
}

/// The same for each query and key, `[heads, tokens, tokens]`.
///
/// Rows of width 2T, one after the other, are read again as rows of width 2T − 1: each begins one
/// number later than the one before.
///
/// # Errors
/// A bias of another shape, and candle's own.
pub(super) fn by_pair(by_distance: &Tensor, heads: usize, tokens: usize) -> Result<Tensor> {
    let width = 2 * tokens - 1;
    if by_distance.dims() != [heads, width] {
        bail!("position bias: a shape of {:?}, not [{heads}, {width}]", by_distance.dims())
    }
    let rows = by_distance.pad_with_zeros(1, 0, 1)?.unsqueeze(1)?.broadcast_as((
        heads,
        tokens,
        width + 1,
    ))?;
    let skewed =
        rows.contiguous()?.reshape((heads, tokens * (width + 1)))?.narrow(1, 0, tokens * width)?;
    skewed
        .contiguous()?
        .reshape((heads, tokens, width))?
        .narrow(2, tokens - 1, tokens)?
        .contiguous()
}
