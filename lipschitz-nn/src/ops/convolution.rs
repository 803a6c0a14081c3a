//! Convolutions of images.

use candle_core::{DType, Result, Tensor, bail};

use super::image_chain::{ImageLayer, image_chain};
use crate::graph::Convolution;
use crate::linalg::simd::{simd, sum};
use crate::linalg::{Buffer, Precision, Real, Strided, matmul};

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
    let layer = ImageLayer::Convolution(*convolution, weight.clone(), bias.cloned());
    image_chain(x, &[layer], precision, true)
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
    if let Some(bias) = bias
        && *bias.dims() != [c.outputs]
    {
        bail!("convolution: a bias {:?} of {} outputs", bias.dims(), c.outputs)
    }
    let (_, channels, height, width) = x.dims4()?;
    if *weight.dims() != c.weight() || output(c, [channels, height, width]).is_none() {
        bail!("convolution {c:?}: input {:?}, weight {:?}", x.dims(), weight.dims())
    }
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
            // Candle has no products of this type on a processor.
            let sums = if x.device().is_cpu() { x.dtype() } else { DType::BF16 };
            let round = |x: &Tensor| x.to_dtype(DType::BF16)?.to_dtype(sums)?.contiguous();
            let y = round(&x)?.conv2d(&round(&kernel)?, padding, c.stride, 1, c.groups)?;
            y.to_dtype(DType::BF16)?.to_dtype(x.dtype())?
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

/// Channels and sides of what is made of an image, if the image fits.
pub(super) fn output(c: &Convolution, [channels, height, width]: [usize; 3]) -> Option<[usize; 3]> {
    let fits = channels == c.inputs && (!c.circular || c.padding <= height.min(width));
    let (rows, columns) = (c.side(height)?, c.side(width)?);
    fits.then_some([c.outputs, rows, columns])
}

/// Where the places of a kernel are on an image: for each of its rows (or columns), runs of outputs
/// whose pixels are a stride apart: the first output, the first pixel, how many.
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
                    Some([from, pixel, n]) if *from + *n == i && *pixel + *n * c.stride == at => {
                        *n += 1
                    }
                    _ => runs.push([i, at, 1]),
                }
            }
            runs
        };
        Self((0..c.kernel).map(place).collect())
    }
}

/// A convolution of images of one size, of which several lie side by side: `[channels, images,
/// pixels]`.
pub(super) struct Plan {
    c: Convolution,
    rows: Runs,
    columns: Runs,
    /// Pixels of a channel of the input.
    pixels: usize,
    width: usize,
    /// Pixels of a channel of the output.
    places: usize,
    out_width: usize,
    /// Inputs of an output: rows of [`Plan::unfold`].
    inner: usize,
}

impl Plan {
    /// For images `[channels, height, width]`, from which these are made.
    pub(super) fn new(c: Convolution, from: [usize; 3], to: [usize; 3]) -> Self {
        let ([_, height, width], [_, rows, columns]) = (from, to);
        Self {
            rows: Runs::new(&c, height, rows),
            columns: Runs::new(&c, width, columns),
            pixels: height * width,
            width,
            places: rows * columns,
            out_width: columns,
            inner: c.inputs / c.groups * c.kernel * c.kernel,
            c,
        }
    }

    /// Whether the image is what its kernel reads.
    fn plain(&self) -> bool {
        self.c.kernel == 1 && self.c.stride == 1 && self.c.padding == 0
    }

    /// Elements of an image that is unfolded.
    pub(super) fn unfolded(&self) -> usize {
        if self.plain() { 0 } else { self.inner * self.places }
    }

    /// Calls `f` with each run of the pixels that the channels of one group of `images` are read at:
    /// the place in the unfolded images, the pixel, how many, a stride apart.
    #[inline(always)]
    fn each(&self, images: usize, mut f: impl FnMut(usize, usize, usize)) {
        let k = self.c.kernel;
        for channel in 0..self.c.inputs / self.c.groups {
            for (u, rows) in self.rows.0.iter().enumerate() {
                for (v, columns) in self.columns.0.iter().enumerate() {
                    let row = (channel * k + u) * k + v;
                    for image in 0..images {
                        let out = (row * images + image) * self.places;
                        let pixel = (channel * images + image) * self.pixels;
                        for [i, y, n] in rows {
                            for t in 0..*n {
                                let out = out + (i + t) * self.out_width;
                                let pixel = pixel + (y + t * self.c.stride) * self.width;
                                for [j, x, m] in columns {
                                    f(out + j, pixel + x, *m);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// The channels of one group at each place of the kernel, `[inner, images, places]`.
    fn unfold<T: Real>(&self, images: usize, x: &[T], out: &mut [T]) {
        if self.c.padding > 0 && !self.c.circular {
            out.fill(T::of(0.0));
        }
        let step = self.c.stride;
        self.each(images, |to, from, n| {
            let out = &mut out[to..to + n];
            if step == 1 {
                out.copy_from_slice(&x[from..from + n]);
            } else {
                out.iter_mut().zip(x[from..].iter().step_by(step)).for_each(|(out, x)| *out = *x);
            }
        });
    }

    /// The transpose of [`Plan::unfold`].
    fn fold<T: Real>(&self, images: usize, columns: &[T], x: &mut [T]) {
        x.fill(T::of(0.0));
        let step = self.c.stride;
        self.each(images, |from, to, n| {
            let columns = &columns[from..from + n];
            if step == 1 {
                x[to..to + n].iter_mut().zip(columns).for_each(|(x, c)| *x += *c);
            } else {
                x[to..].iter_mut().step_by(step).zip(columns).for_each(|(x, c)| *x += *c);
            }
        });
    }

    /// Calls `f` with each group of `x` unfolded, and its number.
    fn groups<T: Real>(&self, images: usize, x: &[T], mut f: impl FnMut(usize, Strided<T>)) {
        let size = self.c.inputs / self.c.groups * images * self.pixels;
        let mut buffer = Buffer::take(self.unfolded() * images);
        for (g, x) in x.chunks(size.max(1)).enumerate() {
            let columns = if self.plain() {
                x
            } else {
                self.unfold(images, x, &mut buffer);
                &buffer
            };
            f(g, Strided::rows(columns, self.inner, images * self.places, images * self.places));
        }
    }

    /// Of a group: its part of the kernel, and of what is as large as the output.
    fn parts(&self, images: usize, g: usize) -> [std::ops::Range<usize>; 2] {
        let outputs = self.c.outputs / self.c.groups;
        [self.inner, images * self.places].map(|n| g * outputs * n..(g + 1) * outputs * n)
    }

    /// The convolution of `[inputs, images, pixels]`, `[outputs, images, places]`.
    pub(super) fn run<T: Real>(&self, x: &[T], w: &[T], bias: &[T], images: usize) -> Buffer<T> {
        let columns = images * self.places;
        let mut y = Buffer::take(self.c.outputs * columns);
        for (y, b) in y.chunks_mut(columns.max(1)).zip(bias) {
            y.fill(*b);
        }
        self.groups(images, x, |g, x| {
            let [kernel, made] = self.parts(images, g);
            let w = Strided::dense(&w[kernel], self.inner);
            matmul(&mut y[made], columns, w, x, !bias.is_empty(), 1.0, false);
        });
        y
    }

    /// Adds the gradient of the kernel, and of the bias where there is one.
    pub(super) fn gradient<T: Real>(
        &self,
        x: &[T],
        grad: &[T],
        images: usize,
        dw: &mut [T],
        db: &mut [T],
    ) {
        let columns = images * self.places;
        self.groups(images, x, |g, x| {
            let [kernel, made] = self.parts(images, g);
            let grad = Strided::dense(&grad[made], columns);
            matmul(&mut dw[kernel], self.inner, grad, x.t(), true, 1.0, false);
        });
        for (db, g) in db.iter_mut().zip(grad.chunks(columns.max(1))) {
            *db += simd(
                #[inline(always)]
                || sum(g.len(), |i| g[i]),
            );
        }
    }

    /// The gradient of the input.
    pub(super) fn back<T: Real>(&self, w: &[T], grad: &[T], images: usize) -> Buffer<T> {
        let columns = images * self.places;
        let size = self.c.inputs / self.c.groups * images * self.pixels;
        let mut dx = Buffer::take(self.c.inputs * images * self.pixels);
        let mut buffer = Buffer::take(self.unfolded() * images);
        for (g, dx) in dx.chunks_mut(size.max(1)).enumerate() {
            let [kernel, made] = self.parts(images, g);
            let w = Strided::dense(&w[kernel], self.inner);
            let grad = Strided::dense(&grad[made], columns);
            if self.plain() {
                matmul(dx, columns, w.t(), grad, false, 1.0, false);
            } else {
                matmul(&mut buffer, columns, w.t(), grad, false, 1.0, false);
                self.fold(images, &buffer, dx);
            }
        }
        dx
    }
}
