//! Convolutions of images.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use super::kernel::{Array, Kernel, apply};
use crate::graph::Convolution;
use crate::linalg::{Precision, Real, Strided, fused, matmul};

/// The convolution of `x`, `[batch, channels, height, width]`, with a kernel as a matrix, `[outputs,
/// channels/groups·kernel²]`, and a bias `[outputs]`; see [`Convolution`].
///
/// # Errors
/// Shapes that do not fit, and candle's own.
pub fn convolution(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    convolution: &Convolution,
    precision: Precision,
) -> Result<Tensor> {
    if precision != Precision::F32 || !fused(&[x, weight]) {
        return composed(x, weight, bias, convolution, precision);
    }
    let kernel = ConvolutionKernel(*convolution);
    match bias {
        Some(bias) => apply(kernel, &[x, weight, bias], true),
        None => apply(kernel, &[x, weight], true),
    }
}

/// The same out of candle's operations.
///
/// # Errors
/// Shapes that do not fit, and candle's own.
pub fn composed(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    c: &Convolution,
    precision: Precision,
) -> Result<Tensor> {
    sizes(c, x.dims(), weight.dims())?;
    let kernel = weight.reshape((c.outputs, c.inputs / c.groups, c.kernel, c.kernel))?;
    let (x, padding) = if c.circular {
        (around(&around(x, 2, c.padding)?, 3, c.padding)?, 0)
    } else {
        (x.clone(), c.padding)
    };
    let x = x.contiguous()?;
    let y = match precision {
        Precision::F32 => x.conv2d(&kernel, padding, c.stride, 1, c.groups)?,
        Precision::Bf16 => {
            let round = |x: &Tensor| x.to_dtype(DType::BF16)?.contiguous();
            let y = round(&x)?.conv2d(&round(&kernel)?, padding, c.stride, 1, c.groups)?;
            y.to_dtype(x.dtype())?
        }
    };
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, c.outputs, 1, 1))?),
        None => Ok(y),
    }
}

/// An image with this many pixels of its other end at both ends of a side.
fn around(x: &Tensor, side: usize, by: usize) -> Result<Tensor> {
    if by == 0 {
        return Ok(x.clone());
    }
    let n = x.dim(side)?;
    let (last, first) = (x.narrow(side, n - by, by)?, x.narrow(side, 0, by)?);
    Tensor::cat(&[last, x.clone(), first], side)
}

/// Batch, height and width of the input, height and width of the output.
fn sizes(c: &Convolution, x: &[usize], weight: &[usize]) -> Result<[usize; 5]> {
    if let &[batch, channels, height, width] = x
        && channels == c.inputs
        && weight == c.weight()
        && (!c.circular || c.padding <= height.min(width))
        && let (Some(rows), Some(columns)) = (c.side(height), c.side(width))
    {
        return Ok([batch, height, width, rows, columns]);
    }
    bail!("convolution {c:?}: input {x:?}, weight {weight:?}")
}

struct ConvolutionKernel(Convolution);

/// Where the places of a kernel are on an image: for each of its rows (or columns), runs of outputs
/// that read as many pixels one after the other: the first output, the first pixel, how many.
struct Runs(Vec<Vec<[usize; 3]>>);

impl Runs {
    fn new(c: &Convolution, side: usize, outputs: usize) -> Self {
        let place = |u: usize| {
            let mut runs: Vec<[usize; 3]> = Vec::new();
            for i in 0..outputs {
                let at = (i * c.stride + u) as isize - c.padding as isize;
                let at = match usize::try_from(at) {
                    Ok(at) if at < side => at,
                    _ if !c.circular => continue,
                    _ => at.rem_euclid(side as isize) as usize,
                };
                match runs.last_mut() {
                    Some([from, pixel, n]) if *from + *n == i && *pixel + *n == at => *n += 1,
                    _ => runs.push([i, at, 1]),
                }
            }
            runs
        };
        Self((0..c.kernel).map(place).collect())
    }
}

/// A convolution of images of one size.
struct Plan {
    c: Convolution,
    rows: Runs,
    columns: Runs,
    /// Pixels of a channel of the input.
    pixels: usize,
    width: usize,
    /// Pixels of a channel of the output.
    places: usize,
    out_width: usize,
    /// Rows of [`Plan::unfold`].
    inner: usize,
    batch: usize,
}

impl Plan {
    fn new(c: Convolution, x: &[usize]) -> Self {
        let (batch, height, width) = (x[0], x[2], x[3]);
        let (h, w) = (c.side(height).unwrap_or(0), c.side(width).unwrap_or(0));
        Self {
            rows: Runs::new(&c, height, h),
            columns: Runs::new(&c, width, w),
            pixels: height * width,
            width,
            places: h * w,
            out_width: w,
            inner: c.inputs / c.groups * c.kernel * c.kernel,
            batch,
            c,
        }
    }

    /// Whether the image is what its kernel reads.
    fn plain(&self) -> bool {
        self.c.kernel == 1 && self.c.stride == 1
    }

    /// Elements of an image, and of what is made of it.
    fn sizes(&self) -> (usize, usize) {
        (self.c.inputs * self.pixels, self.c.outputs * self.places)
    }

    /// Images to a task: as many whatever the number of threads, and so few tasks that each can have
    /// a gradient of the kernel of its own.
    fn share(&self) -> usize {
        self.batch.div_ceil(16).max(1)
    }

    /// Calls `f` with each run of the pixels that the channels of one group are read at: the row of
    /// the unfolded image times `places`, the output, the pixel, how many.
    #[inline(always)]
    fn each(&self, mut f: impl FnMut(usize, usize, usize)) {
        let k = self.c.kernel;
        for channel in 0..self.c.inputs / self.c.groups {
            for (u, rows) in self.rows.0.iter().enumerate() {
                for (v, columns) in self.columns.0.iter().enumerate() {
                    let row = (channel * k + u) * k + v;
                    for [i, y, n] in rows {
                        for t in 0..*n {
                            let out = row * self.places + (i + t) * self.out_width;
                            let pixel = channel * self.pixels + (y + t) * self.width;
                            for [j, x, m] in columns {
                                f(out + j, pixel + x, *m);
                            }
                        }
                    }
                }
            }
        }
    }

    /// The channels of one group at each place of the kernel, `[inner, places]`, into zeros.
    fn unfold<T: Real>(&self, x: &[T], out: &mut [T]) {
        self.each(|to, from, n| out[to..to + n].copy_from_slice(&x[from..from + n]));
    }

    /// The transpose of [`Plan::unfold`], added.
    fn fold<T: Real>(&self, columns: &[T], x: &mut [T]) {
        self.each(|from, to, n| {
            for (x, c) in x[to..to + n].iter_mut().zip(&columns[from..from + n]) {
                *x += *c;
            }
        });
    }

    /// Calls `f` with each group of the image `x` unfolded, and its number.
    fn groups<T: Real>(&self, x: &[T], buffer: &mut [T], mut f: impl FnMut(usize, &[T])) {
        let size = self.c.inputs / self.c.groups * self.pixels;
        for (g, x) in x.chunks(size.max(1)).enumerate() {
            if self.plain() {
                f(g, x);
            } else {
                self.unfold(x, buffer);
                f(g, buffer);
            }
        }
    }

    /// What [`Plan::groups`] wants to write to.
    fn buffer<T: Real>(&self) -> Vec<T> {
        let size = if self.plain() { 0 } else { self.inner * self.places };
        vec![T::of(0.0); size]
    }
}

impl Kernel for ConvolutionKernel {
    const NAME: &'static str = "convolution";
    type Saved<T: Real> = ();

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        let [batch, _, _, rows, columns] = sizes(&self.0, inputs[0], inputs[1])?;
        if let Some(bias) = inputs.get(2)
            && **bias != [self.0.outputs]
        {
            bail!("convolution: a bias {bias:?} of {} outputs", self.0.outputs)
        }
        Ok(vec![batch, self.0.outputs, rows, columns])
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, ()) {
        let plan = Plan::new(self.0, inputs[0].dims);
        let (x, w, bias) = (inputs[0].data, inputs[1].data, inputs.get(2).map(|b| b.data));
        let (image, made) = plan.sizes();
        let mut y = vec![T::of(0.0); plan.batch * made];
        let tasks = y.par_chunks_mut(made.max(1)).zip(x.par_chunks(image.max(1)));
        tasks.for_each_init(
            || plan.buffer(),
            |buffer, (y, x)| {
                if let Some(bias) = bias {
                    for (y, b) in y.chunks_mut(plan.places.max(1)).zip(bias) {
                        y.fill(*b);
                    }
                }
                let (outputs, places) = (plan.c.outputs / plan.c.groups, plan.places);
                plan.groups(x, buffer, |g, columns| {
                    let w = &w[g * outputs * plan.inner..(g + 1) * outputs * plan.inner];
                    let y = &mut y[g * outputs * places..(g + 1) * outputs * places];
                    let w = Strided::rows(w, outputs, plan.inner, plan.inner);
                    let columns = Strided::rows(columns, plan.inner, places, places);
                    matmul(y, places, w, columns, true, 1.0, false);
                });
            },
        );
        (y, ())
    }

    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        (): (),
        grad: &[T],
        wanted: &[bool],
    ) -> Vec<Vec<T>> {
        let plan = Plan::new(self.0, inputs[0].dims);
        let (x, w) = (inputs[0].data, inputs[1].data);
        let (image, made) = plan.sizes();
        let (outputs, places, inner) = (plan.c.outputs / plan.c.groups, plan.places, plan.inner);
        let zeros = |n: usize| vec![T::of(0.0); n];
        let mut dx = zeros(if wanted[0] { x.len() } else { 0 });
        let share = plan.share();
        // The gradient of the kernel and of the bias by each task, added in their order.
        let task = |(i, grads): (usize, &[T])| {
            let (mut dw, mut db) = (zeros(w.len()), zeros(plan.c.outputs));
            let mut buffer = plan.buffer();
            for (j, g) in grads.chunks(made.max(1)).enumerate() {
                let at = (i * share + j) * image;
                if wanted[1] {
                    plan.groups(&x[at..at + image], &mut buffer, |group, columns| {
                        let g = &g[group * outputs * places..(group + 1) * outputs * places];
                        let g = Strided::rows(g, outputs, places, places);
                        let columns = Strided::rows(columns, inner, places, places);
                        let dw = &mut dw[group * outputs * inner..(group + 1) * outputs * inner];
                        matmul(dw, inner, g, columns.t(), true, 1.0, false);
                    });
                }
                for (db, g) in db.iter_mut().zip(g.chunks(places.max(1))) {
                    g.iter().for_each(|g| *db += *g);
                }
            }
            (dw, db)
        };
        let parts: Vec<_> = grad
            .par_chunks((share * made).max(1))
            .enumerate()
            .map(|(i, grads)| task((i, grads)))
            .collect();
        let (mut dw, mut db) = (zeros(w.len()), zeros(plan.c.outputs));
        for (w, b) in parts {
            dw.iter_mut().zip(w).for_each(|(sum, w)| *sum += w);
            db.iter_mut().zip(b).for_each(|(sum, b)| *sum += b);
        }
        if wanted[0] {
            let size = plan.c.inputs / plan.c.groups * plan.pixels;
            let tasks = dx.par_chunks_mut(image.max(1)).zip(grad.par_chunks(made.max(1)));
            tasks.for_each_init(
                || plan.buffer(),
                |buffer, (dx, g)| {
                    for (group, dx) in dx.chunks_mut(size.max(1)).enumerate() {
                        let g = &g[group * outputs * places..(group + 1) * outputs * places];
                        let w = &w[group * outputs * inner..(group + 1) * outputs * inner];
                        let w = Strided::rows(w, outputs, inner, inner);
                        let g = Strided::rows(g, outputs, places, places);
                        if plan.plain() {
                            matmul(dx, places, w.t(), g, false, 1.0, false);
                        } else {
                            matmul(buffer, places, w.t(), g, false, 1.0, false);
                            plan.fold(buffer, dx);
                        }
                    }
                },
            );
        }
        vec![dx, dw, db].into_iter().take(inputs.len()).collect()
    }
}
