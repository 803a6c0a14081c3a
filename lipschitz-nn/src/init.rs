//! Where weights start: semi-orthogonal at norm 1, from one seed.

use candle_core::{DType, Device, Tensor};

use crate::graph::{Axis, Graph, Init, Parameter};
use crate::random::{self, Stream};
use crate::{Error, Weights, norm};

/// How the queries, keys and values of attention start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// Semi-orthogonal as whole matrices.
    Whole,
    /// Each head's rows semi-orthogonal at RMS→RMS norm 1, so that every head starts under a
    /// cap per head.
    PerHead,
}

/// Fresh weights for a graph: matrices semi-orthogonal at RMS→RMS norm 1, tables with rows of RMS
/// norm 1, the last matrix of each branch and of the network zero (the initialisation of Newhouse
/// et al., 2025) except in branches without a skip connection, and position biases as slopes. Each
/// parameter has its own random stream.
///
/// # Errors
/// [`Error::Candle`], such as a device out of memory.
pub fn weights(
    graph: &Graph,
    seed: u64,
    blocks: Blocks,
    device: &Device,
    dtype: DType,
) -> Result<Weights, Error> {
    let mut out = Weights::new();
    for (i, parameter) in graph.parameters().into_iter().enumerate() {
        let values = values(&parameter, blocks, &mut random::numbered(seed, i as u64));
        let tensor = Tensor::from_vec(values, parameter.shape.as_slice(), &Device::Cpu)?;
        out.insert(parameter.name, tensor.to_dtype(dtype)?.to_device(device)?);
    }
    Ok(out)
}

fn values(p: &Parameter, blocks: Blocks, stream: &mut Stream) -> Vec<f64> {
    let count = p.shape.iter().product();
    match p.init {
        Init::Zero => vec![0.0; count],
        Init::One => vec![1.0; count],
        Init::Slopes { bias, causal } => {
            let heads = p.shape[1];
            let slope = |h: usize| 2f64.powf(-8.0 * (h + 1) as f64 / heads as f64);
            let row = |distance: usize| (0..heads).map(move |h| -slope(h) * distance as f64);
            bias.distances(causal).into_iter().flat_map(row).collect()
        }
        Init::Rows => {
            let dim = p.shape[1];
            let mut table = random::normals(stream, count);
            for row in table.chunks_mut(dim) {
                let norm = norm::rms(row).max(f64::MIN_POSITIVE);
                row.iter_mut().for_each(|x| *x /= norm);
            }
            table
        }
        Init::Orthogonal => {
            let (rows, columns) = (p.shape[0], p.shape[1]);
            match p.heads {
                Some(heads) if blocks == Blocks::PerHead && heads.axis == Axis::Rows => (0..heads
                    .count)
                    .flat_map(|_| orthogonal(rows / heads.count, columns, stream))
                    .collect(),
                _ => orthogonal(rows, columns, stream),
            }
        }
    }
}

/// A `[rows, columns]` matrix whose singular values all equal √(rows/columns), uniformly
/// distributed.
fn orthogonal(rows: usize, columns: usize, stream: &mut Stream) -> Vec<f64> {
    let (short, long) = (rows.min(columns), rows.max(columns));
    let mut q = random::normals(stream, short * long);
    for i in 0..short {
        let (done, rest) = q.split_at_mut(i * long);
        let row = &mut rest[..long];
        // Once more than Gram–Schmidt needs in exact arithmetic: twice is enough in floating point.
        for _ in 0..2 {
            for earlier in done.chunks(long) {
                let dot: f64 = earlier.iter().zip(row.iter()).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(earlier).for_each(|(x, e)| *x -= dot * e);
            }
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x /= norm);
        }
    }
    let scale = norm::rms_to_rms(rows, columns).recip();
    let at = |r: usize, c: usize| if rows <= columns { q[r * long + c] } else { q[c * long + r] };
    (0..rows)
        .flat_map(|r| (0..columns).map(move |c| (r, c)))
        .map(|(r, c)| scale * at(r, c))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::{BlockConfig, Gpt, Positions};

    /// Two heads fall off by 1/16 and 1/256 per token, from bucket to bucket.
    #[test]
    fn position_biases_start_as_slopes() {
        let block = BlockConfig { positions: Some(Positions::Bias), ..BlockConfig::new(8, 2) };
        let graph = Gpt::new(5, 4, 1, block).graph().unwrap();
        let weights = weights(&graph, 0, Blocks::Whole, &Device::Cpu, DType::F64).unwrap();
        let table = weights["blocks.0.attention.position_bias.weight"].to_vec2::<f64>().unwrap();
        assert_eq!(table.len(), 32);
        for (distance, row) in table.iter().take(16).enumerate() {
            let distance = distance as f64;
            assert_eq!(row[..], [-distance / 16.0, -distance / 256.0]);
        }
        assert!(table.is_sorted_by(|a, b| a[0] > b[0]));
    }
}
