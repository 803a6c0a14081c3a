//! Almost orthogonal rescaling: `W ← W D`, with D diagonal and `D_jj = min(1, σ_max (Σ_i |WᵀW|_ij)^(−1/2))`
//! (Prach and Lampert, *Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz Networks*,
//! 2022); of rows in place of columns where they are fewer.
//!
//! `σ ≤ σ_max` under any optimizer: for any x, `‖WDx‖² = Σ_ij (WᵀW)_ij D_i x_i D_j x_j` is at most
//! `Σ_ij |WᵀW|_ij (D_i² x_i² + D_j² x_j²)/2 ≤ σ_max² ‖x‖²`. A kernel is rescaled so that its *convolution*
//! meets the cap, on images of any size: the sums are over all pixels, of which those that are near
//! enough to count are the same for each. With zeros around the image or a stride it is a part of the
//! convolution for which that holds.

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::graph::Convolution;
use lipschitz_nn::linalg::{Strided, matmul};

use super::super::config::ConstraintConfig;
use super::super::norms::{MARGIN, TopVectors};
use super::super::rule::{Apply, Blocks, Promise, Rule, aim_at_cap, promise_cap};
use crate::Error;
use crate::blocks::scale;

pub(super) static RULE: Rule = Rule {
    key: "almost_orthogonal",
    name: "almost orthogonal",
    capped: true,
    constants: &[],
    check: |_| Ok(()),
    aim: aim_at_cap,
    promise: |config, parameter, update| {
        let promise = promise_cap(config, parameter, update)?;
        let Some(c) = parameter.convolution.filter(|_| promise.row.is_none()) else {
            return Some(promise);
        };
        // A kernel as a matrix is what its convolution does to one patch.
        let overlap = overlap(&c);
        let convolution = overlap * promise.sigma_max / scale(parameter, None);
        let sigma_max = overlap * promise.sigma_max;
        Some(Promise { sigma_max, heads: None, convolution: Some(convolution), ..promise })
    },
    apply: Apply::Matrices(apply),
    // A Gram matrix; of a kernel, one for each distance of two of its places.
    work: |_, sides, _| Some(sides.long_product()),
};

/// The cap of a convolution is that of its kernel as a matrix, times how often a pixel is read along
/// a side: what a cap on the matrix alone would give.
fn overlap(c: &Convolution) -> f64 {
    c.kernel.div_ceil(c.stride.max(1)) as f64
}

fn apply(
    _: &ConstraintConfig,
    matrices: &[Blocks<'_>],
    _: &mut TopVectors,
) -> Result<Vec<Tensor>, Error> {
    matrices.iter().map(rescaled).collect()
}

fn rescaled(m: &Blocks<'_>) -> Result<Tensor, Error> {
    let (count, rows, columns) = m.x.dims3()?;
    let values = m.x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?;
    let mut w = values.to_vec1::<f64>()?;
    let convolution = m.variable.parameter.convolution;
    let cap = m.cap * convolution.map_or(1.0, |c| overlap(&c)) * (1.0 - MARGIN);
    let plain = Convolution {
        inputs: columns,
        outputs: rows,
        kernel: 1,
        stride: 1,
        padding: 0,
        circular: false,
        groups: 1,
        bias: false,
    };
    let (c, parts) = convolution.map_or((plain, count), |c| (c, c.groups));
    let size = w.len() / parts.max(1);
    for w in w.chunks_mut(size.max(1)) {
        rescale(w, &c, cap);
    }
    let w = Tensor::from_vec(w, (count, rows, columns), &Device::Cpu)?;
    Ok(w.to_dtype(m.x.dtype())?.to_device(m.x.device())?)
}

/// Rescales the rows or columns of one group of a kernel.
fn rescale(w: &mut [f64], c: &Convolution, cap: f64) {
    let (k, channels, outputs) = (c.kernel, c.inputs / c.groups, c.outputs / c.groups);
    // Where the image goes round, its sides need not be multiples of the stride; then the outputs are
    // among those of stride 1.
    let square = if c.circular { 1 } else { c.stride };
    let (first, last) = (c.place(0, square).0, c.place(k - 1, square).0);
    let n = (last - first + 1) as usize;
    let inputs = channels * square * square;
    // Where an element of the kernel is: its place, and its column there.
    let at = |i: usize| {
        let (channel, u, v) = (i / (k * k), i / k % k, i % k);
        let [(y, inner), (z, within)] = [u, v].map(|u| c.place(u, square));
        let place = (y - first) as usize * n + (z - first) as usize;
        (place, (channel * square + inner) * square + within)
    };
    let mut places = vec![vec![0.0; outputs * inputs]; n * n];
    let width = channels * k * k;
    for (o, row) in w.chunks(width).enumerate() {
        for (i, x) in row.iter().enumerate() {
            let (place, column) = at(i);
            places[place][o * inputs + column] = *x;
        }
    }
    let by_rows = outputs < inputs;
    let short = outputs.min(inputs);
    let view = |t: usize| {
        let w = Strided::rows(&places[t], outputs, inputs, inputs);
        if by_rows { w.t() } else { w }
    };
    let mut sums = vec![0.0; short];
    let side = n as i64;
    for dy in 0..side {
        for dx in (1 - side)..side {
            if dy == 0 && dx < 0 {
                continue;
            }
            let mut gram = vec![0.0; short * short];
            for y in 0..side - dy {
                for x in 0..side {
                    if (0..side).contains(&(x + dx)) {
                        let (from, to) = (y * side + x, (y + dy) * side + x + dx);
                        let (a, b) = (view(from as usize), view(to as usize));
                        matmul(&mut gram, short, a.t(), b, true, 1.0, true);
                    }
                }
            }
            // The same at the opposite distance, transposed.
            let twice = (dy, dx) != (0, 0);
            for (i, row) in gram.chunks(short).enumerate() {
                for (j, x) in row.iter().enumerate() {
                    sums[i] += x.abs();
                    if twice {
                        sums[j] += x.abs();
                    }
                }
            }
        }
    }
    let factor = |i: usize| if sums[i] > 0.0 { (cap / sums[i].sqrt()).min(1.0) } else { 1.0 };
    for (o, row) in w.chunks_mut(width).enumerate() {
        for (i, x) in row.iter_mut().enumerate() {
            *x *= factor(if by_rows { o } else { at(i).1 });
        }
    }
}
