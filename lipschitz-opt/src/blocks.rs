//! Matrices as stacks of blocks, per head, and batches of blocks of one shape.

use std::collections::BTreeSet;

use candle_core::{Result, Tensor};
use lipschitz_nn::graph::{Axis, HeadBlocks, Parameter};
use lipschitz_nn::norm::rms_to_rms;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which matrices are treated per head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PerHead {
    /// Queries, keys and values; or none.
    All(bool),
    /// The matrices of these names, out of `query`, `key`, `value` and `output`.
    Named(BTreeSet<String>),
}

impl Default for PerHead {
    fn default() -> Self {
        Self::All(false)
    }
}

impl PerHead {
    /// The blocks of a weight; none if it is treated as a whole, or is one block.
    #[must_use]
    pub fn of(&self, parameter: &Parameter) -> Option<HeadBlocks> {
        parameter.heads.filter(|heads| {
            heads.count > 1
                && match self {
                    Self::All(on) => *on && heads.axis == Axis::Rows,
                    Self::Named(names) => names.contains(matrix_name(&parameter.name)),
                }
        })
    }

    /// Whether it is what a config without the key has.
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The names that are given.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        match self {
            Self::All(_) => None,
            Self::Named(names) => Some(names),
        }
        .into_iter()
        .flatten()
        .map(String::as_str)
    }
}

/// The name of a matrix in a config, the last segment of its path: `query` for
/// `blocks.0.attention.query.weight`.
#[must_use]
pub fn matrix_name(name: &str) -> &str {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    name.rsplit('.').next().unwrap_or(name)
}

/// The factor from σ_max of a block to its norm: `√(in/out)` for a whole matrix, `√(count·in/out)`
/// for a head's block. For rows it gives the block's own RMS→RMS norm. Either way blocks of norm 1
/// make a whole of norm at most 1.
#[must_use]
pub fn scale(parameter: &Parameter, heads: Option<HeadBlocks>) -> f64 {
    let count = heads.map_or(1, |heads| heads.count);
    rms_to_rms(parameter.shape[0], parameter.shape[1]) * (count as f64).sqrt()
}

/// The number of blocks of a matrix, and the rows and columns of each.
pub(crate) fn block(parameter: &Parameter, heads: Option<HeadBlocks>) -> (usize, usize, usize) {
    let (rows, columns) = (parameter.shape[0], parameter.shape[1]);
    match heads {
        None => (1, rows, columns),
        Some(HeadBlocks { count, axis: Axis::Rows }) => (count, rows / count, columns),
        Some(HeadBlocks { count, axis: Axis::Columns }) => (count, rows, columns / count),
    }
}

/// The blocks of a matrix, `[count, rows, columns]`.
pub(crate) fn split(w: &Tensor, heads: Option<HeadBlocks>) -> Result<Tensor> {
    let (rows, columns) = w.dims2()?;
    match heads {
        None => w.unsqueeze(0),
        Some(HeadBlocks { count, axis: Axis::Rows }) => w.reshape((count, rows / count, columns)),
        Some(HeadBlocks { count, axis: Axis::Columns }) => {
            w.reshape((rows, count, columns / count))?.transpose(0, 1)?.contiguous()
        }
    }
}

/// The matrix of these blocks.
pub(crate) fn merge(blocks: &Tensor, heads: Option<HeadBlocks>) -> Result<Tensor> {
    let (count, rows, columns) = blocks.dims3()?;
    match heads {
        Some(HeadBlocks { axis: Axis::Columns, .. }) => {
            blocks.transpose(0, 1)?.contiguous()?.reshape((rows, count * columns))
        }
        _ => blocks.reshape((count * rows, columns)),
    }
}

/// Maximum elements per batched update: half a gigabyte in f32. An update works with a few tensors
/// of that size.
pub const MAX_BATCHED_ELEMENTS: usize = 1 << 27;

/// `f` of each stack `[count, rows, columns]`. Stacks of one block shape and one key are
/// concatenated first.
pub(crate) fn batched<K: PartialEq + Copy, E: From<candle_core::Error>>(
    stacks: &[(K, Tensor)],
    f: impl Fn(K, Tensor) -> std::result::Result<Tensor, E>,
) -> std::result::Result<Vec<Tensor>, E> {
    let mut out: Vec<Option<Tensor>> = vec![None; stacks.len()];
    for i in 0..stacks.len() {
        if out[i].is_some() {
            continue;
        }
        let (key, first) = &stacks[i];
        let alike = |(k, x): &(K, Tensor)| k == key && x.dims()[1..] == first.dims()[1..];
        let limit = (MAX_BATCHED_ELEMENTS / first.elem_count().max(1)).max(1);
        let members: Vec<usize> = (i..stacks.len())
            .filter(|&j| out[j].is_none() && alike(&stacks[j]))
            .take(limit)
            .collect();
        let batch = match members[..] {
            [_] => first.clone(),
            _ => Tensor::cat(&members.iter().map(|&j| &stacks[j].1).collect::<Vec<_>>(), 0)?,
        };
        let done = f(*key, batch)?;
        let mut from = 0;
        for j in members {
            let count = stacks[j].1.dim(0)?;
            out[j] = Some(done.narrow(0, from, count)?);
            from += count;
        }
    }
    Ok(out.into_iter().flatten().collect())
}
