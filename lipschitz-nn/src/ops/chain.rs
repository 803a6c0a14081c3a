//! A chain of residual blocks as one operation: what one block passes to the next never becomes a
//! tensor, whose gradient would be cleared, added to and allocated anew at every step.

use candle_core::{Result, Tensor, bail};

use super::attention_block::{AttentionBlock, Kept};
use super::documents::Documents;
use super::kernel::{Array, Kernel, apply};
use super::mlp_block::MlpBlock;
use crate::graph::PositionBias;
use crate::linalg::{Buffer, Real, fused};

/// A residual block with its weights.
#[derive(Clone, Debug)]
pub enum FusedBlock {
    /// [`super::mlp_block`] with U and D.
    Mlp(MlpBlock, [Tensor; 2]),
    /// [`super::attention_block`] with Wq, Wk, Wv and Wo, and the table of a position bias, if
    /// there is one.
    Attention(AttentionBlock, [Tensor; 4], Option<(PositionBias, Tensor)>),
}

/// The blocks in turn on `x`, `[…, dim]`; with `keep`, what they need for the gradient is kept,
/// otherwise only their inputs.
///
/// # Errors
/// Shapes that do not fit, and candle's own.
pub fn chain(x: &Tensor, blocks: &[FusedBlock], keep: bool) -> Result<Tensor> {
    if blocks.is_empty() || !blocks.iter().all(|block| block.given().all(|w| fused(&[x, w]))) {
        return composed(x, blocks);
    }
    let weights = blocks.iter().map(|block| block.weights(x)).collect::<Result<Vec<_>>>()?;
    let needed = x.track_op() || weights.iter().flatten().any(|w| w.track_op());
    let keep = if !needed {
        Keep::Nothing
    } else if keep {
        Keep::All
    } else {
        Keep::Inputs
    };
    let links = blocks
        .iter()
        .zip(&weights)
        .map(|(block, weights)| Link::new(block, weights))
        .collect::<Result<_>>()?;
    let flat = weights.iter().flatten().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
    apply(Chain { links, keep }, &[x, &Tensor::cat(&flat, 0)?], true)
}

/// The same out of candle's operations.
///
/// # Errors
/// Candle's own.
pub fn composed(x: &Tensor, blocks: &[FusedBlock]) -> Result<Tensor> {
    blocks.iter().try_fold(x.clone(), |x, block| match block {
        FusedBlock::Mlp(block, [up, down]) => super::mlp_block::composed(*block, &x, up, down),
        FusedBlock::Attention(block, [query, key, value, output], bias) => {
            let bias = by_distance(block, bias.as_ref(), &x)?;
            super::attention_block::composed(
                block,
                &x,
                &Tensor::cat(&[query, key, value], 0)?,
                output,
                bias.as_ref(),
            )
        }
    })
}

/// A position bias for the tokens of `x`.
fn by_distance(
    block: &AttentionBlock,
    bias: Option<&(PositionBias, Tensor)>,
    x: &Tensor,
) -> Result<Option<Tensor>> {
    bias.map(|(bias, table)| super::position::position_bias(table, *bias, block.causal, x.dim(1)?))
        .transpose()
}

impl FusedBlock {
    /// The same block on these documents, if there is one: only causal attention keeps within them.
    pub(crate) fn within(&self, documents: Option<&Documents>) -> Option<Self> {
        let mut block = self.clone();
        if let Self::Attention(attention, ..) = &mut block {
            if !attention.causal && documents.is_some() {
                return None;
            }
            attention.documents = documents.cloned();
        }
        Some(block)
    }

    /// The weights as they are.
    fn given(&self) -> impl Iterator<Item = &Tensor> {
        let (weights, bias) = match self {
            Self::Mlp(_, weights) => (&weights[..], None),
            Self::Attention(_, weights, bias) => {
                (&weights[..], bias.as_ref().map(|(_, table)| table))
            }
        };
        weights.iter().chain(bias)
    }

    /// The weights in the order in which a link has them, and the bias by distance.
    fn weights(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        Ok(match self {
            Self::Mlp(_, weights) => weights.to_vec(),
            Self::Attention(block, weights, bias) => {
                weights.iter().cloned().chain(by_distance(block, bias.as_ref(), x)?).collect()
            }
        })
    }
}

/// What is kept for the gradient.
#[derive(Clone, Copy, PartialEq)]
enum Keep {
    Nothing,
    Inputs,
    All,
}

enum Kind {
    Mlp(MlpBlock),
    Attention(AttentionBlock),
}

/// A block, and the shapes of its two matrices and its position bias, which lie one after the
/// other; `[0, 0]` where there is no bias.
struct Link {
    kind: Kind,
    shapes: [[usize; 2]; 3],
}

/// What a block needs for its gradient.
enum LinkKept<T: Real> {
    Mlp(Buffer<T>),
    Attention(Kept<T>),
}

impl Link {
    fn new(block: &FusedBlock, weights: &[Tensor]) -> Result<Self> {
        let shape = |w: &Tensor| w.dims2().map(|(rows, columns)| [rows, columns]);
        Ok(match block {
            FusedBlock::Mlp(block, [up, down]) => {
                Self { kind: Kind::Mlp(*block), shapes: [shape(up)?, shape(down)?, [0, 0]] }
            }
            FusedBlock::Attention(block, [query, key, value, output], _) => {
                // Queries, keys and values are one matrix: their rows follow each other.
                let rows = query.dim(0)? + key.dim(0)? + value.dim(0)?;
                let projections = [rows, query.dim(1)?];
                Self {
                    kind: Kind::Attention(block.clone()),
                    shapes: [
                        projections,
                        shape(output)?,
                        weights.get(4).map_or(Ok([0, 0]), shape)?,
                    ],
                }
            }
        })
    }

    fn sizes(&self) -> [usize; 3] {
        self.shapes.map(|[rows, columns]| rows * columns)
    }

    fn dims(&self, x: &[usize]) -> Result<Vec<usize>> {
        let inputs = [x, &self.shapes[0], &self.shapes[1]];
        match &self.kind {
            Kind::Mlp(block) => block.dims(&inputs),
            Kind::Attention(block) => {
                let (bias, wanted) =
                    (self.shapes[2], [block.heads, 2 * x.get(1).unwrap_or(&0).max(&1) - 1]);
                if bias != [0, 0] && bias != wanted {
                    bail!("attention block: a position bias of shape {bias:?}, not {wanted:?}")
                }
                block.dims(&inputs)
            }
        }
    }

    /// The input, the two matrices and the bias.
    fn arrays<'a, T>(&'a self, x: Array<'a, T>, weights: &'a [T]) -> [Array<'a, T>; 4] {
        let (first, rest) = weights.split_at(self.sizes()[0]);
        let (second, third) = rest.split_at(self.sizes()[1]);
        let [first, second, third] = [(first, 0), (second, 1), (third, 2)]
            .map(|(data, i)| Array { data, dims: &self.shapes[i] });
        [x, first, second, third]
    }

    fn run<T: Real>(&self, inputs: &[Array<T>]) -> (Buffer<T>, LinkKept<T>) {
        match &self.kind {
            Kind::Mlp(block) => {
                let (out, kept) = block.run(inputs);
                (out, LinkKept::Mlp(kept))
            }
            Kind::Attention(block) => {
                let (out, kept) = block.run(inputs);
                (out, LinkKept::Attention(kept))
            }
        }
    }

    fn gradient<T: Real>(
        &self,
        inputs: &[Array<T>],
        kept: LinkKept<T>,
        grad: &[T],
        wanted: bool,
        weights: Option<[&mut [T]; 3]>,
    ) -> Option<Buffer<T>> {
        match (&self.kind, kept) {
            (Kind::Mlp(block), LinkKept::Mlp(h)) => {
                block.gradient(inputs, h, grad, wanted, weights.map(|[up, down, _]| [up, down]))
            }
            (Kind::Attention(block), LinkKept::Attention(kept)) => {
                block.gradient(inputs, &kept, grad, wanted, weights)
            }
            // A link is handed what it kept itself.
            _ => None,
        }
    }
}

struct Chain {
    links: Vec<Link>,
    keep: Keep,
}

/// The input of a link, unless it is that of the chain, and what the link kept.
struct LinkTape<T: Real> {
    input: Option<Buffer<T>>,
    kept: Option<LinkKept<T>>,
}

impl Chain {
    /// Each link with the place of its weights.
    fn places(&self) -> impl DoubleEndedIterator<Item = (&Link, std::ops::Range<usize>)> {
        let mut end = 0;
        let places: Vec<_> = self
            .links
            .iter()
            .map(|link| {
                let start = end;
                end += link.sizes().iter().sum::<usize>();
                (link, start..end)
            })
            .collect();
        places.into_iter()
    }
}

impl Kernel for Chain {
    const NAME: &'static str = "chain of blocks";
    type Saved<T: Real> = Vec<LinkTape<T>>;

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        for link in &self.links {
            link.dims(inputs[0])?;
        }
        Ok(inputs[0].to_vec())
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, Vec<LinkTape<T>>) {
        let (x, weights) = (inputs[0], inputs[1].data);
        let mut current: Option<Buffer<T>> = None;
        let mut steps = Vec::with_capacity(self.links.len());
        for (link, place) in self.places() {
            let input = Array { data: current.as_deref().unwrap_or(x.data), dims: x.dims };
            let (out, kept) = link.run(&link.arrays(input, &weights[place]));
            let input = current.replace(out);
            if self.keep != Keep::Nothing {
                steps.push(LinkTape { input, kept: (self.keep == Keep::All).then_some(kept) });
            }
        }
        (current.map_or_else(|| x.data.to_vec(), Buffer::into_vec), steps)
    }

    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        steps: Vec<LinkTape<T>>,
        grad: &[T],
        wanted: &[bool],
    ) -> Vec<Vec<T>> {
        let (x, weights) = (inputs[0], inputs[1].data);
        let mut dweights = vec![T::of(0.0); if wanted[1] { weights.len() } else { 0 }];
        let mut current: Option<Buffer<T>> = None;
        for ((i, (link, place)), step) in
            self.places().enumerate().collect::<Vec<_>>().into_iter().zip(steps).rev()
        {
            let input = Array { data: step.input.as_deref().unwrap_or(x.data), dims: x.dims };
            let arrays = link.arrays(input, &weights[place.clone()]);
            let kept = step.kept.unwrap_or_else(|| link.run(&arrays).1);
            let targets = wanted[1].then(|| {
                let (first, rest) = dweights[place].split_at_mut(link.sizes()[0]);
                let (second, third) = rest.split_at_mut(link.sizes()[1]);
                [first, second, third]
            });
            let dx = link.gradient(
                &arrays,
                kept,
                current.as_deref().unwrap_or(grad),
                i > 0 || wanted[0],
                targets,
            );
            current = dx;
        }
        vec![current.map_or_else(Vec::new, Buffer::into_vec), dweights]
    }
}
