//! A chain of residual blocks as one operation: what one block passes to the next never becomes a
//! tensor, whose gradient would be cleared, added to and allocated anew at every step. Where somebody gathers the
//! gradients of weights, they need not pass through candle's store either, which does the same with each.

use candle_core::{DType, Result, Tensor, Var, bail};

use super::attention_block::{AttentionBlock, Kept};
use super::documents::Documents;
use super::gathered::Gradients;
use super::kernel::{Array, Kernel, apply};
use super::mlp_block::MlpBlock;
use crate::graph::PositionBias;
use crate::linalg::storage::with_slices;
use crate::linalg::{Buffer, Real, fused, without_kernels};

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
/// otherwise only their inputs. Gradients of weights go to `gathered`, where it is given, and else to candle.
///
/// # Errors
/// Shapes that do not fit, and candle's own.
pub fn chain(
    x: &Tensor,
    blocks: &[FusedBlock],
    keep: bool,
    gathered: Option<&Gradients>,
) -> Result<Tensor> {
    if blocks.is_empty() || !blocks.iter().all(|block| block.given().all(|w| fused(&[x, w]))) {
        return apart(x, blocks);
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
    if let Some(into) = gathered.filter(|_| keep != Keep::Nothing) {
        let (inputs, own) = Own::new(blocks, &weights, x, into.clone())?;
        return apply(Gathering { chain: Chain { links, keep }, own }, &[x, &inputs], true);
    }
    let flat = weights.iter().flatten().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
    apply(Chain { links, keep }, &[x, &Tensor::cat(&flat, 0)?], true)
}

/// The same out of candle's operations.
///
/// # Errors
/// Candle's own.
pub fn composed(x: &Tensor, blocks: &[FusedBlock]) -> Result<Tensor> {
    without_kernels(|| apart(x, blocks))
}

/// The same, an operation at a time.
fn apart(x: &Tensor, blocks: &[FusedBlock]) -> Result<Tensor> {
    blocks.iter().try_fold(x.clone(), |x, block| match block {
        FusedBlock::Mlp(block, [up, down]) => super::mlp_block::apart(*block, &x, up, down),
        FusedBlock::Attention(block, [query, key, value, output], bias) => {
            let bias = by_distance(block, bias.as_ref(), &x)?;
            super::attention_block::apart(
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

    /// The two matrices and the bias, which lie one after the other.
    fn split<'a, T>(&self, flat: &'a [T]) -> [&'a [T]; 3] {
        let (first, rest) = flat.split_at(self.sizes()[0]);
        let (second, third) = rest.split_at(self.sizes()[1]);
        [first, second, third]
    }

    /// The input, the two matrices and the bias.
    fn arrays<'a, T>(&'a self, x: Array<'a, T>, weights: [&'a [T]; 3]) -> [Array<'a, T>; 4] {
        let [first, second, third] = weights;
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
    /// The weights of each link, which lie one after the other.
    fn split<'a, T>(&self, mut flat: &'a [T]) -> Vec<[&'a [T]; 3]> {
        let each = self.links.iter().map(|link| {
            let (own, rest) = flat.split_at(link.sizes().iter().sum());
            flat = rest;
            link.split(own)
        });
        each.collect()
    }

    fn run<T: Real>(&self, x: Array<T>, weights: &[[&[T]; 3]]) -> (Vec<T>, Vec<LinkTape<T>>) {
        let mut current: Option<Buffer<T>> = None;
        let mut steps = Vec::with_capacity(self.links.len());
        for (link, weights) in self.links.iter().zip(weights) {
            let input = Array { data: current.as_deref().unwrap_or(x.data), dims: x.dims };
            let (out, kept) = link.run(&link.arrays(input, *weights));
            let input = current.replace(out);
            if self.keep != Keep::Nothing {
                steps.push(LinkTape { input, kept: (self.keep == Keep::All).then_some(kept) });
            }
        }
        (current.map_or_else(|| x.data.to_vec(), Buffer::into_vec), steps)
    }

    /// The gradient of x, if it is `wanted`; those of weights are written to `targets`, if there are any.
    fn gradient<T: Real>(
        &self,
        x: Array<T>,
        weights: &[[&[T]; 3]],
        steps: Vec<LinkTape<T>>,
        grad: &[T],
        wanted: bool,
        targets: &mut [[Vec<T>; 3]],
    ) -> Vec<T> {
        let mut current: Option<Buffer<T>> = None;
        let links = self.links.iter().zip(weights).enumerate().zip(steps);
        for ((i, (link, weights)), step) in links.rev() {
            let input = Array { data: step.input.as_deref().unwrap_or(x.data), dims: x.dims };
            let arrays = link.arrays(input, *weights);
            let kept = step.kept.unwrap_or_else(|| link.run(&arrays).1);
            let grad = current.as_deref().unwrap_or(grad);
            let own = targets.get_mut(i).map(|own| own.each_mut().map(Vec::as_mut_slice));
            current = link.gradient(&arrays, kept, grad, i > 0 || wanted, own);
        }
        current.map_or_else(Vec::new, Buffer::into_vec)
    }

    /// A place for the gradient of each weight.
    fn targets<T: Real>(&self) -> Vec<[Vec<T>; 3]> {
        self.links.iter().map(|link| link.sizes().map(|n| vec![T::of(0.0); n])).collect()
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
        self.run(inputs[0], &self.split(inputs[1].data))
    }

    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        steps: Vec<LinkTape<T>>,
        grad: &[T],
        wanted: &[bool],
    ) -> Vec<Vec<T>> {
        let weights = self.split(inputs[1].data);
        let mut targets = if wanted[1] { self.targets() } else { Vec::new() };
        let dx = self.gradient(inputs[0], &weights, steps, grad, wanted[0], &mut targets);
        let mut flat = Vec::with_capacity(if wanted[1] { inputs[1].data.len() } else { 0 });
        targets.iter().flatten().for_each(|own| flat.extend_from_slice(own));
        vec![dx, flat]
    }
}

/// A chain whose weights candle does not know.
struct Gathering {
    chain: Chain,
    own: Own,
}

/// The weights of a chain, and where their gradients go.
struct Own {
    /// The two matrices of each link.
    matrices: Vec<[Tensor; 2]>,
    /// The weights that each matrix is made of, one below the other.
    parts: Vec<[Vec<Tensor>; 2]>,
    into: Gradients,
}

impl Own {
    /// With what candle knows beside x: a variable, so that it asks for a gradient, and all position biases.
    fn new(
        blocks: &[FusedBlock],
        weights: &[Vec<Tensor>],
        x: &Tensor,
        into: Gradients,
    ) -> Result<(Tensor, Self)> {
        let (mut matrices, mut parts) = (Vec::new(), Vec::new());
        let mut inputs = vec![Var::zeros(1, x.dtype(), x.device())?.as_tensor().clone()];
        for (block, weights) in blocks.iter().zip(weights) {
            let own = match (block, &weights[..]) {
                (FusedBlock::Attention(..), [query, key, value, output, bias @ ..]) => {
                    for bias in bias {
                        inputs.push(bias.flatten_all()?);
                    }
                    [vec![query.clone(), key.clone(), value.clone()], vec![output.clone()]]
                }
                (_, all) => [all[..1].to_vec(), all[1..].to_vec()],
            };
            let joined = |parts: &[Tensor]| -> Result<Tensor> {
                match parts {
                    [one] => one.detach().contiguous(),
                    _ => Tensor::cat(&parts.iter().map(Tensor::detach).collect::<Vec<_>>(), 0),
                }
            };
            matrices.push([joined(&own[0])?, joined(&own[1])?]);
            parts.push(own);
        }
        let all: Vec<&Tensor> = matrices.iter().flatten().collect();
        match x.dtype() {
            DType::F32 => with_slices::<f32, _>(&all, |_| ())?,
            _ => with_slices::<f64, _>(&all, |_| ())?,
        }
        Ok((Tensor::cat(&inputs, 0)?, Self { matrices, parts, into }))
    }

    /// Runs `f` on the weights of each link, with biases out of `inputs`.
    fn on<T: Real, R: Default>(
        &self,
        links: &[Link],
        inputs: &[T],
        f: impl FnOnce(&[[&[T]; 3]]) -> R,
    ) -> R {
        let all: Vec<&Tensor> = self.matrices.iter().flatten().collect();
        let mut rest = inputs.get(1..).unwrap_or_default();
        let run = |slices: &[&[T]]| {
            let each = slices.chunks(2).zip(links).map(|(pair, link)| {
                let (bias, more) = rest.split_at(link.sizes()[2]);
                rest = more;
                [pair[0], pair[1], bias]
            });
            f(&each.collect::<Vec<_>>())
        };
        // They are slices, as [`Self::new`] has seen.
        with_slices(&all, run).unwrap_or_default()
    }

    /// Puts the gradients of matrices where they belong.
    fn put<T: Real>(&self, targets: Vec<[Vec<T>; 3]>) {
        for (parts, [first, second, _]) in self.parts.iter().zip(targets) {
            for (parts, gradient) in parts.iter().zip([first, second]) {
                if let [one] = &parts[..] {
                    self.into.put(one, gradient);
                    continue;
                }
                let mut rest = &gradient[..];
                for part in parts {
                    let (own, more) = rest.split_at(part.elem_count());
                    self.into.put(part, own.to_vec());
                    rest = more;
                }
            }
        }
    }
}

impl Kernel for Gathering {
    const NAME: &'static str = Chain::NAME;
    type Saved<T: Real> = Vec<LinkTape<T>>;

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        self.chain.dims(inputs)
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, Vec<LinkTape<T>>) {
        let run = |weights: &[[&[T]; 3]]| self.chain.run(inputs[0], weights);
        self.own.on(&self.chain.links, inputs[1].data, run)
    }

    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        steps: Vec<LinkTape<T>>,
        grad: &[T],
        wanted: &[bool],
    ) -> Vec<Vec<T>> {
        let mut targets = self.chain.targets();
        let dx = self.own.on(&self.chain.links, inputs[1].data, |weights| {
            self.chain.gradient(inputs[0], weights, steps, grad, wanted[0], &mut targets)
        });
        let mut others = vec![T::of(0.0)];
        targets.iter().for_each(|[_, _, bias]| others.extend(bias));
        self.own.put(targets);
        vec![dx, others]
    }
}
