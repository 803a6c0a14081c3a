//! Layers of images as one operation: a few images at a time go through all of them while they are in
//! cache. They lie side by side, `[channels, images, pixels]`, so that a convolution is one product of
//! matrices for all of them.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::activation::{gradients, values};
use super::convolution::{self, Plan};
use super::kernel::{Array, Kernel, apply};
use super::{max_min, shift};
use crate::graph::{Convolution, Function};
use crate::linalg::{Buffer, Precision, Real, fused, without_kernels};

/// Elements of a layer's input that a task works on at once: half of a usual second cache.
const BLOCK: usize = 1 << 17;

/// Images that go through the layers side by side, at most.
const SIDE_BY_SIDE: usize = 32;

/// Tasks of a gradient, each of which has a gradient of the weights of its own: no more than this, and
/// no more than have room for so many numbers.
const TASKS: usize = 16;
const ROOM: usize = 1 << 26;

/// A layer that makes an image of an image.
#[derive(Clone, Debug)]
pub enum ImageLayer {
    /// See [`super::convolution`].
    Convolution(Convolution, Tensor, Option<Tensor>),
    /// See [`super::shift`].
    Shift {
        /// Of each group, down and to the right.
        offsets: Vec<[i32; 2]>,
        /// Whether what leaves at one side comes in at the other.
        circular: bool,
    },
    /// The larger and the smaller element of each pair of channels half of them apart.
    MaxMin,
    /// See [`super::activation`].
    Activation {
        /// φ
        function: Function,
        /// Factor on φ.
        scale: f64,
    },
}

/// The layers in turn on `x`, `[batch, channels, height, width]`; with `keep`, what they need for the
/// gradient is kept, otherwise only `x`.
///
/// # Errors
/// Shapes that do not fit, and candle's own.
pub fn image_chain(
    x: &Tensor,
    layers: &[ImageLayer],
    precision: Precision,
    keep: bool,
) -> Result<Tensor> {
    if precision != Precision::F32 || !layers.iter().all(|layer| layer.fused(x)) {
        return apart(x, layers, precision);
    }
    let weights: Vec<&Tensor> = layers.iter().flat_map(ImageLayer::weights).collect();
    let trained = weights.iter().any(|w| w.track_op());
    let needed = trained || x.track_op();
    let chain = ImageChain::new(x.dims(), layers, needed, trained)?;
    if weights.is_empty() {
        return apply(chain, &[x], keep);
    }
    let flat = weights.iter().map(|w| w.flatten_all()).collect::<Result<Vec<_>>>()?;
    apply(chain, &[x, &Tensor::cat(&flat, 0)?], keep)
}

/// The same out of candle's operations.
///
/// # Errors
/// Shapes that do not fit, and candle's own.
pub fn composed(x: &Tensor, layers: &[ImageLayer], precision: Precision) -> Result<Tensor> {
    without_kernels(|| apart(x, layers, precision))
}

/// The same, an operation at a time. Convolutions and shifts are chains of one layer where they have kernels.
fn apart(x: &Tensor, layers: &[ImageLayer], precision: Precision) -> Result<Tensor> {
    layers.iter().try_fold(x.clone(), |x, layer| match layer {
        ImageLayer::Convolution(c, weight, bias) => {
            convolution::composed(&x, weight, bias.as_ref(), c, precision)
        }
        ImageLayer::Shift { offsets, circular } => shift::composed(&x, offsets, *circular),
        // The halves of the channels are those of the whole image.
        ImageLayer::MaxMin => {
            even(x.dims())?;
            super::max_min(&x.flatten_from(1)?)?.reshape(x.shape())
        }
        ImageLayer::Activation { function, scale } => super::activation(&x, *function, *scale),
    })
}

fn even(dims: &[usize]) -> Result<()> {
    match dims {
        [_, channels, ..] if channels.is_multiple_of(2) => Ok(()),
        _ => bail!("max and min of pairs of the channels of {dims:?}: they must be even"),
    }
}

impl ImageLayer {
    fn weights(&self) -> impl Iterator<Item = &Tensor> {
        let (weight, bias) = match self {
            Self::Convolution(_, weight, bias) => (Some(weight), bias.as_ref()),
            _ => (None, None),
        };
        weight.into_iter().chain(bias)
    }

    fn fused(&self, x: &Tensor) -> bool {
        let all: Vec<&Tensor> = std::iter::once(x).chain(self.weights()).collect();
        fused(&all)
    }
}

enum Kind {
    Convolution { plan: Plan, weight: Range<usize>, bias: Range<usize> },
    Shift { offsets: Vec<[i32; 2]>, circular: bool },
    MaxMin,
    Activation { function: Function, scale: f64 },
}

/// A layer for images of one size.
struct Link {
    kind: Kind,
    /// The image that it reads.
    from: [usize; 3],
}

/// What a layer needs for its gradient.
enum Kept<T: Real> {
    Nothing,
    Input(Buffer<T>),
    /// Whether the first of each pair was the larger.
    Order(Vec<bool>),
}

struct ImageChain {
    links: Vec<Link>,
    /// The image that the last layer makes.
    to: [usize; 3],
    batch: usize,
    /// Images side by side.
    images: usize,
    /// Elements of all weights.
    weights: usize,
    /// Whether there will be a gradient, and one of the weights.
    needed: bool,
    trained: bool,
}

impl ImageChain {
    fn new(dims: &[usize], layers: &[ImageLayer], needed: bool, trained: bool) -> Result<Self> {
        let &[batch, channels, height, width] = dims else {
            bail!("layers of images: an input {dims:?}")
        };
        let (mut links, mut image, mut weights) = (Vec::new(), [channels, height, width], 0);
        // The largest input of a layer, and the fewest pixels.
        let (mut largest, mut pixels) = (channels * height * width, height * width);
        for layer in layers {
            let from = image;
            let kind = match layer {
                ImageLayer::Convolution(c, w, bias) => {
                    let wrong = || {
                        let bias = bias.as_ref().map(|b| b.dims());
                        let w = w.dims();
                        bail!("convolution {c:?}: input {from:?}, weight {w:?}, bias {bias:?}")
                    };
                    if *w.dims() != c.weight()
                        || bias.as_ref().is_some_and(|b| *b.dims() != [c.outputs])
                    {
                        return wrong();
                    }
                    let Some(to) = convolution::output(c, from) else { return wrong() };
                    image = to;
                    let plan = Plan::new(*c, from, to);
                    largest = largest.max(plan.unfolded());
                    let mut next = |count: usize| {
                        weights += count;
                        weights - count..weights
                    };
                    let weight = next(w.elem_count());
                    let bias = next(bias.as_ref().map_or(0, Tensor::elem_count));
                    Kind::Convolution { plan, weight, bias }
                }
                ImageLayer::Shift { offsets, circular } => {
                    shift::group(from, offsets.len())?;
                    Kind::Shift { offsets: offsets.clone(), circular: *circular }
                }
                ImageLayer::MaxMin => {
                    even(&[batch, from[0]])?;
                    Kind::MaxMin
                }
                ImageLayer::Activation { function, scale } => {
                    Kind::Activation { function: *function, scale: *scale }
                }
            };
            links.push(Link { kind, from });
            largest = largest.max(image.iter().product());
            pixels = pixels.min(image[1] * image[2]);
        }
        // As many as cache has room for, but columns enough for a product; and enough tasks.
        let room = (BLOCK / largest.max(1)).max(64_usize.div_ceil(pixels.max(1)));
        let images = room.min(SIDE_BY_SIDE).min(batch / TASKS).max(1);
        Ok(Self { links, to: image, batch, images, weights, needed, trained })
    }

    /// Elements of an image that goes in, and of one that comes out.
    fn sizes(&self) -> (usize, usize) {
        let first = self.links.first().map_or(self.to, |link| link.from);
        (first.iter().product(), self.to.iter().product())
    }

    /// Channels that go in.
    fn channels(&self) -> usize {
        self.links.first().map_or(self.to, |link| link.from)[0]
    }

    /// The layers on `x`, `[images, channels, pixels]`: `[channels, images, pixels]`, and what each of
    /// them keeps.
    fn run<T: Real>(&self, x: &[T], weights: &[T]) -> (Buffer<T>, Vec<Kept<T>>) {
        let images = x.len() / self.sizes().0.max(1);
        let mut current = Buffer::take(x.len());
        swap(x, [images, self.channels()], &mut current);
        let mut kept = Vec::with_capacity(self.links.len());
        for link in &self.links {
            let (next, keeps) = link.run(current, weights, images, self.needed, self.trained);
            current = next;
            kept.push(keeps);
        }
        (current, kept)
    }

    /// The gradient of `[images, channels, pixels]` as that of what goes in, if it is wanted, with the
    /// images side by side; that of the weights is added to `dw`.
    fn back<T: Real>(
        &self,
        grad: &[T],
        weights: &[T],
        kept: Vec<Kept<T>>,
        dw: &mut [T],
        wanted: bool,
    ) -> Option<Buffer<T>> {
        let images = grad.len() / self.sizes().1.max(1);
        let mut current = Buffer::take(grad.len());
        swap(grad, [images, self.to[0]], &mut current);
        for (i, (link, kept)) in self.links.iter().zip(kept).enumerate().rev() {
            let wanted = wanted || i > 0;
            current = link.back(current, weights, kept, images, dw, wanted)?;
        }
        Some(current)
    }
}

/// `[outer, inner, pixels]` as `[inner, outer, pixels]`.
fn swap<T: Real>(x: &[T], [outer, inner]: [usize; 2], out: &mut [T]) {
    let pixels = x.len() / (outer * inner).max(1);
    if pixels == 0 {
        return;
    }
    for (i, x) in x.chunks(inner * pixels).enumerate() {
        for (j, x) in x.chunks(pixels).enumerate() {
            let to = (j * outer + i) * pixels;
            out[to..to + pixels].copy_from_slice(x);
        }
    }
}

impl Link {
    fn run<T: Real>(
        &self,
        mut x: Buffer<T>,
        weights: &[T],
        images: usize,
        needed: bool,
        trained: bool,
    ) -> (Buffer<T>, Kept<T>) {
        match &self.kind {
            Kind::Convolution { plan, weight, bias } => {
                let y = plan.run(&x, &weights[weight.clone()], &weights[bias.clone()], images);
                (y, if trained { Kept::Input(x) } else { Kept::Nothing })
            }
            Kind::Shift { offsets, circular } => {
                let mut y = Buffer::take(x.len());
                let [_, height, width] = self.from;
                shift::moved(&x, [height, width], (offsets, *circular), false, &mut y);
                (y, Kept::Nothing)
            }
            Kind::MaxMin => {
                let mut order = vec![false; if needed { x.len() / 2 } else { 0 }];
                max_min::sort(&mut x, &mut order);
                (x, Kept::Order(order))
            }
            Kind::Activation { function, scale } => {
                let mut y = Buffer::take(x.len());
                values(*function, *scale, &x, &mut y);
                (y, if needed { Kept::Input(x) } else { Kept::Nothing })
            }
        }
    }

    /// The gradient of what goes in, if it is wanted.
    fn back<T: Real>(
        &self,
        mut grad: Buffer<T>,
        weights: &[T],
        kept: Kept<T>,
        images: usize,
        dw: &mut [T],
        wanted: bool,
    ) -> Option<Buffer<T>> {
        match (&self.kind, kept) {
            (Kind::Convolution { plan, weight, bias }, kept) => {
                if let Kept::Input(x) = kept {
                    // The bias follows its kernel.
                    let (dw, db) = dw[weight.start..bias.end].split_at_mut(weight.len());
                    plan.gradient(&x, &grad, images, dw, db);
                }
                wanted.then(|| plan.back(&weights[weight.clone()], &grad, images))
            }
            (Kind::Shift { offsets, circular }, _) => wanted.then(|| {
                let mut dx = Buffer::take(grad.len());
                let [_, height, width] = self.from;
                shift::moved(&grad, [height, width], (offsets, *circular), true, &mut dx);
                dx
            }),
            (Kind::MaxMin, Kept::Order(order)) => {
                max_min::unsort(&mut grad, &order);
                Some(grad)
            }
            (Kind::Activation { function, scale }, Kept::Input(mut x)) => {
                gradients(*function, *scale, &mut x, &mut grad);
                Some(grad)
            }
            // A layer is handed what it kept itself.
            (Kind::MaxMin | Kind::Activation { .. }, _) => None,
        }
    }
}

impl Kernel for ImageChain {
    const NAME: &'static str = "layers of images";
    /// Of each few images, what each layer keeps.
    type Saved<T: Real> = Vec<Vec<Kept<T>>>;

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        let weights = inputs.get(1).map_or(0, |w| w.iter().product());
        if self.weights != weights {
            bail!("layers of images: {weights} weights, not {}", self.weights)
        }
        let [channels, height, width] = self.to;
        Ok(vec![self.batch, channels, height, width])
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, Self::Saved<T>) {
        let weights = inputs.get(1).map_or(&[][..], |w| w.data);
        let (image, one) = self.sizes();
        let mut y = Buffer::take(self.batch * one);
        let few = (self.images * one).max(1);
        let x = inputs[0].data.par_chunks((self.images * image).max(1));
        let kept = y.par_chunks_mut(few).zip(x).map(|(y, x)| {
            let (made, kept) = self.run(x, weights);
            swap(&made, [self.to[0], y.len() / one.max(1)], y);
            kept
        });
        let kept = kept.collect();
        (y.into_vec(), kept)
    }

    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        kept: Self::Saved<T>,
        grad: &[T],
        wanted: &[bool],
    ) -> Vec<Vec<T>> {
        let weights = inputs.get(1).map_or(&[][..], |w| w.data);
        let (image, made) = self.sizes();
        let tasks = (ROOM / self.weights.max(1)).clamp(2, TASKS);
        // Few images to a call, and as many calls to a task whatever the number of threads.
        let calls = kept.len().div_ceil(tasks).max(1);
        let mut dx = Buffer::take(if wanted[0] { inputs[0].data.len() } else { kept.len() });
        let share = if wanted[0] { self.images * image } else { 1 };
        let mut kept: Vec<Option<Vec<Kept<T>>>> = kept.into_iter().map(Some).collect();
        let parts: Vec<Vec<T>> = dx
            .par_chunks_mut((calls * share).max(1))
            .zip(kept.par_chunks_mut(calls))
            .zip(grad.par_chunks((calls * self.images * made).max(1)))
            .map(|((dx, kept), grad)| {
                let mut dw = vec![T::of(0.0); if self.trained { self.weights } else { 0 }];
                let few = grad.chunks((self.images * made).max(1));
                for ((dx, kept), grad) in dx.chunks_mut(share.max(1)).zip(kept).zip(few) {
                    let kept = kept.take().unwrap_or_default();
                    let found = self.back(grad, weights, kept, &mut dw, wanted[0]);
                    if let (Some(found), true) = (found, wanted[0]) {
                        swap(&found, [self.channels(), dx.len() / image.max(1)], dx);
                    }
                }
                dw
            })
            .collect();
        let mut dw = vec![T::of(0.0); self.weights];
        for part in parts {
            dw.iter_mut().zip(part).for_each(|(sum, w)| *sum += w);
        }
        let dx = if wanted[0] { dx.into_vec() } else { Vec::new() };
        vec![dx, dw].into_iter().take(inputs.len()).collect()
    }
}
