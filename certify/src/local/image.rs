//! Nodes on images: linear ones, and pooling by the largest or by norms.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use lipschitz_nn::graph::{Convolution, Op, Pool, Pooling};
use lipschitz_nn::linalg::Precision;
use lipschitz_nn::ops;

use super::functional::Functionals;
use super::maps::{rounded, tiny};
use super::remainder::{Bends, Kinks, Remainders, Term, root};
use super::spread::Spread;
use crate::Error;
use crate::bound::{absolute, pooling};
use crate::spectral::{Matrix, gamma, vector_norm};
use crate::upper::{Upper, count, root_down};

/// A node of an image, which counts as one token.
pub(super) struct OnImage {
    what: What,
    /// Channels and sides of the input.
    shape: [usize; 3],
    /// Its Lipschitz constant.
    constant: Upper,
    pub(super) slot: usize,
    errors: Vec<Upper>,
}

/// What so many norms of so many elements lose next to 0, together: squares, in the norm of all.
fn lost(elements: usize, norms: usize) -> Upper {
    let square = count(elements) * count(norms) * Upper::from_f64(f64::MIN_POSITIVE);
    square.sqrt() + tiny()
}

/// What a linear node does to a batch of images.
type Operation = Box<dyn Fn(&Tensor) -> Result<Tensor, Error> + Send + Sync>;

enum What {
    /// What candle's gradient of the operation turns around exactly but for rounding: sums of so many
    /// terms, of a norm of absolute values of at most this.
    Linear { operation: Operation, terms: usize, absolute: Upper },
    /// The largest of each window: where it is, by how much it exceeds the others, and of how many
    /// windows along a side a pixel is a part.
    Largest { from: Vec<usize>, bends: Arc<Bends>, along: Upper },
    /// The norm of each window: its whole change is the remainder.
    Norms { inputs: usize },
}

impl OnImage {
    /// The node with input x; None of another kind of node.
    pub(super) fn new(
        op: &Op,
        x: &Matrix,
        shape: [usize; 3],
        slot: usize,
        kernel: impl FnOnce(&Convolution) -> Result<(Tensor, Upper, Upper), Error>,
    ) -> Result<Option<Self>, Error> {
        let [channels, height, width] = shape;
        let size = vector_norm(&x.data);
        let exact =
            |operation: Operation| What::Linear { operation, terms: 0, absolute: Upper::ZERO };
        let (what, constant, error) = match op {
            Op::Conv(c) => {
                // Kernel, norm, and the norm of the bias at all pixels.
                let (weight, norm, bias) = kernel(c)?;
                let terms = (c.inputs.max(c.outputs) / c.groups.max(1)) * c.kernel * c.kernel;
                let all = absolute(norm, c);
                let error = gamma(terms + 8) * (all * size + bias) + tiny();
                let c = *c;
                let operation = Box::new(move |x: &Tensor| -> Result<Tensor, Error> {
                    Ok(ops::convolution(x, &weight, None, &c, Precision::F32)?)
                });
                (What::Linear { operation, terms, absolute: all }, norm, error)
            }
            Op::Shift { offsets, circular } => {
                let (offsets, circular) = (offsets.clone(), *circular);
                let operation = Box::new(move |x: &Tensor| -> Result<Tensor, Error> {
                    Ok(ops::shift(x, &offsets, circular)?)
                });
                (exact(operation), Upper::ONE, Upper::ZERO)
            }
            Op::SpaceToDepth { size } => {
                let size = *size;
                let operation = Box::new(move |x: &Tensor| -> Result<Tensor, Error> {
                    Ok(ops::space_to_depth(x, size)?)
                });
                (exact(operation), Upper::ONE, Upper::ZERO)
            }
            Op::Pool(pool) if pool.pooling == Pooling::Average => {
                let (constant, _) = pooling(pool);
                let terms = pool.window * pool.window;
                let pool = *pool;
                let operation = Box::new(move |x: &Tensor| -> Result<Tensor, Error> {
                    Ok(ops::pool(x, &pool)?)
                });
                let error = gamma(terms + 8) * constant * size + tiny();
                (What::Linear { operation, terms, absolute: constant }, constant, error)
            }
            Op::GlobalPool { pooling: Pooling::Average } => {
                let pixels = height * width;
                let constant = Upper::ONE.div_up(root_down(pixels as f64));
                let operation = Box::new(move |x: &Tensor| -> Result<Tensor, Error> {
                    Ok(ops::global_pool(x, Pooling::Average)?)
                });
                let error = gamma(pixels + 8) * constant * size + tiny();
                (What::Linear { operation, terms: pixels, absolute: constant }, constant, error)
            }
            Op::Pool(pool) => {
                let (constant, _) = pooling(pool);
                let terms = pool.window * pool.window;
                let sides = [height, width].map(|side| pool.side(side).unwrap_or(usize::MAX));
                let windows = sides.into_iter().fold(channels, usize::saturating_mul);
                let error = gamma(terms + 16) * constant * size + lost(terms, windows);
                match pool.pooling {
                    Pooling::Max => {
                        let largest = largest(x, shape, pool);
                        (largest, constant, Upper::ZERO)
                    }
                    _ => (What::Norms { inputs: x.columns }, constant, error),
                }
            }
            Op::GlobalPool { pooling } => {
                let pixels = height * width;
                let error = gamma(pixels + 16) * size + lost(pixels, channels);
                match pooling {
                    Pooling::Max => {
                        let windows = (0..channels)
                            .map(|c| (c * height * width..(c + 1) * height * width).collect());
                        (of_windows(x, windows, Upper::ONE), Upper::ONE, Upper::ZERO)
                    }
                    _ => (What::Norms { inputs: x.columns }, Upper::ONE, error),
                }
            }
            _ => return Ok(None),
        };
        Ok(Some(Self { what, shape, constant, slot, errors: vec![error] }))
    }

    pub(super) fn grow(&self, x: &Spread) -> Spread {
        x.through(self.constant, &self.errors)
    }

    pub(super) fn back(
        &self,
        lambda: &Functionals,
        out: &mut Remainders,
    ) -> Result<Functionals, Error> {
        rounded(lambda, &self.errors, out);
        let [c, h, w] = self.shape;
        if lambda.tokens.is_empty() {
            return Ok(Functionals::zeros(lambda.count, Vec::new(), c * h * w));
        }
        match &self.what {
            What::Linear { operation, terms, absolute } => {
                if *terms > 0 {
                    let share = gamma(terms + 8) * *absolute;
                    out.linear(self.slot, lambda, |norm| share * norm + tiny());
                }
                let zeros: Vec<f64> = vec![0.0; lambda.count * c * h * w];
                let x = Var::from_tensor(&Tensor::from_vec(
                    zeros,
                    (lambda.count, c, h, w),
                    &Device::Cpu,
                )?)?;
                let y = operation(x.as_tensor())?;
                let l = Tensor::from_slice(&lambda.data, y.dims(), &Device::Cpu)?;
                let gradients = (y * l)?.sum_all()?.backward()?;
                let data = match gradients.get(x.as_tensor()) {
                    Some(g) => g.flatten_all()?.to_vec1::<f64>()?,
                    None => vec![0.0; lambda.count * c * h * w],
                };
                let tokens = lambda.tokens.clone();
                Ok(Functionals { count: lambda.count, tokens, width: c * h * w, data })
            }
            What::Largest { from, bends, along } => {
                let mut to = Functionals::zeros(lambda.count, vec![0], c * h * w);
                for (k, t, row) in lambda.rows() {
                    let own = to.row_mut(k, 0);
                    from.iter().zip(row).for_each(|(place, l)| own[*place] += l);
                    // A largest pixel is nowhere below what one of them is.
                    let side = |sign: f64| row.iter().map(|l| (sign * l).max(0.0)).collect();
                    let units = [side(-1.0), side(1.0)];
                    let (slot, factor) = (self.slot, root(2) * *along);
                    let units = vec![(t, units)];
                    let bends = bends.clone();
                    out.push(k, Term::Kinks(Kinks { slot, factor, units, bends }));
                }
                // A pixel may be the largest of several windows.
                let share = gamma(from.len()) * *along;
                out.linear(self.slot, lambda, |norm| share * norm + tiny());
                Ok(to)
            }
            What::Norms { inputs } => {
                let constant = self.constant;
                out.linear(self.slot, lambda, |norm| constant * norm);
                Ok(Functionals::zeros(lambda.count, Vec::new(), *inputs))
            }
        }
    }
}

/// The windows of a pool, each by its pixels.
fn largest(x: &Matrix, [channels, height, width]: [usize; 3], pool: &Pool) -> What {
    let sides = |side: usize| {
        (side + 2 * pool.padding).saturating_sub(pool.window) / pool.stride.max(1) + 1
    };
    let (rows, columns, pool) = (sides(height), sides(width), *pool);
    // The pixels of a window along one side.
    let within = move |at: usize, side: usize| {
        let first = at * pool.stride;
        (first..first + pool.window)
            .filter_map(move |i| i.checked_sub(pool.padding).filter(|i| *i < side))
    };
    let windows = (0..channels * rows * columns).map(|i| {
        let (c, r, q) = (i / (rows * columns), i / columns % rows, i % columns);
        let pixel = |(i, j): (usize, usize)| (c * height + i) * width + j;
        let pairs = within(r, height).flat_map(|i| within(q, width).map(move |j| (i, j)));
        pairs.map(pixel).collect::<Vec<usize>>()
    });
    let along = count(pool.window.div_ceil(pool.stride.max(1)));
    of_windows(x, windows, along)
}

/// With i the largest pixel of a window and g its lead, `max(x + Δ) − x_i − Δ_i ≤ (√2 ‖Δ‖ − g)₊`.
fn of_windows(x: &Matrix, windows: impl Iterator<Item = Vec<usize>>, along: Upper) -> What {
    let (mut from, mut distances) = (Vec::new(), Vec::new());
    for window in windows {
        let best = window.iter().copied().max_by(|a, b| x.data[*a].total_cmp(&x.data[*b]));
        let best = best.unwrap_or_default();
        let second = window
            .iter()
            .filter(|i| **i != best)
            .map(|i| x.data[*i])
            .fold(f64::NEG_INFINITY, f64::max);
        from.push(best);
        distances.push((x.data[best] - second).next_down().max(0.0));
    }
    let reach = vec![f64::INFINITY; distances.len()];
    What::Largest { from, bends: Arc::new(Bends { distances, reach }), along }
}
