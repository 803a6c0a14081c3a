//! The rule of each kind of node: from what is known of its input to bounds on what it makes.

use lipschitz_nn::graph::{
    Convolution, Function, Graph, Input, Node, NodeId, Op, Pooling, Site, Stage, join,
};

use super::attention;
use super::hull::Hull;
use super::linear::Image;
use super::set::{Set, largest, norm};
use crate::Error;
use crate::bound::{Block, Kernel, Layout, Norm, Norms, at_offsets, pointwise, pooling};
use crate::ellipsoid::Elements;
use crate::source::Source;
use crate::spectral::{Matrix, max_row_norm, vector_norm};
use crate::upper::{Upper, abs, count, root_down};

/// Bounds on the elements of each tensor, by its place; those of logits are one a head.
pub(super) type Bounds = Elements;

/// The inputs that bounds hold for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Inputs {
    /// ℓ2 radius of each token's embedding vector, or of the whole image or vector; without one, the
    /// inputs of a language model are its token ids, and others are not bounded by it.
    pub radius: Option<f64>,
    /// The largest absolute value of an element of an image or a vector.
    pub limit: Option<f64>,
}

/// Where a node is.
pub(super) struct Place {
    pub(super) path: String,
    pub(super) id: NodeId,
}

impl Place {
    /// The name of one of its weights.
    pub(super) fn weight(&self, name: &str) -> String {
        join(&self.path, name)
    }
}

pub(super) struct Walker<'a> {
    source: &'a dyn Source,
    pub(super) norms: &'a dyn Norms,
    /// What is known of tensors from elsewhere.
    known: &'a Bounds,
    pub(super) bounds: Bounds,
    /// What the elements of a tensor are.
    layout: Layout,
    /// Tokens of a longest sequence.
    pub(super) tokens: usize,
}

/// Bounds on every tensor of a forward pass on these inputs.
pub(super) fn walk(
    source: &dyn Source,
    norms: &dyn Norms,
    inputs: Inputs,
    known: &Bounds,
) -> Result<(Bounds, Upper), Error> {
    let graph: &Graph = source.graph();
    let (layout, pixels, tokens) = match graph.input() {
        Input::Tokens { context, zero_prefix, .. } => {
            (Layout::Tokens(None), 0, context.saturating_add(zero_prefix))
        }
        Input::Pixels { channels, height, width } => {
            let layout = Layout::Image([channels, height, width]);
            (layout, channels * height * width, height * width)
        }
        Input::Vector { .. } => (Layout::Vector, 0, 1),
    };
    let bounds = Bounds::new();
    let mut walker = Walker { source, norms, known, bounds, layout, tokens };
    let root = NodeId::default();
    let (start, first) = match (graph.input(), graph.nodes().first()) {
        (Input::Tokens { .. }, Some(Node { name, op: Op::Embedding { dim, .. } })) => {
            (walker.embedding(name, *dim, inputs)?, 1)
        }
        (Input::Tokens { .. }, _) => {
            return Err(Error::Unknown("the input: tokens without an embedding".into()));
        }
        (Input::Pixels { .. } | Input::Vector { .. }, _) => {
            let n = match graph.input() {
                Input::Vector { dim } => dim,
                _ => pixels,
            };
            let element = inputs.limit.map_or(Upper::INFINITY, abs);
            let radius = inputs.radius.map_or(Upper::INFINITY, abs);
            (Set::ball(radius, vec![element; n]), 0)
        }
    };
    let domain = start.size();
    let stage = if first == 0 { Stage::Input } else { Stage::Output };
    let id = if first == 0 { root.clone() } else { root.child(0) };
    let mut x = walker.seen(&id, stage, start);
    for (i, node) in graph.nodes().iter().enumerate().skip(first) {
        let place = Place { path: node.path(""), id: root.child(i) };
        x = walker.node(node, &place, x)?;
    }
    Ok((walker.bounds, domain))
}

impl Walker<'_> {
    /// The rows of the table, or all vectors of the radius that was given.
    fn embedding(&self, name: &str, dim: usize, inputs: Inputs) -> Result<Set, Error> {
        if let Some(radius) = inputs.radius {
            return Ok(Set::ball(abs(radius), vec![abs(radius); dim]));
        }
        let weight = join(name, "weight");
        let table = self.matrix(&weight)?;
        let radius = self.norms.norm(&Norm::Row(Block::whole(weight)))?;
        let ball = Set::ball(radius, columns(&table));
        let hull = Hull::points(table);
        // The prefix is of zeros.
        let prefix = matches!(self.source.graph().input(), Input::Tokens { zero_prefix: 1.., .. });
        Ok(ball.with_hull(if prefix { hull.and_then(|h| h.or_zero()) } else { hull }))
    }

    /// A weight; a vector is one row.
    pub(super) fn matrix(&self, name: &str) -> Result<Matrix, Error> {
        Matrix::from_tensor(name, &self.source.tensor(name)?)
    }

    pub(super) fn vector(&self, name: &str) -> Result<Vec<f64>, Error> {
        Ok(self.matrix(name)?.data)
    }

    /// A vector, if there is one.
    pub(super) fn bias(&self, is: bool, name: &str) -> Result<Option<Vec<f64>>, Error> {
        is.then(|| self.vector(name)).transpose()
    }

    /// Keeps the bounds on a tensor, with what is known of it from elsewhere.
    pub(super) fn keep(
        &mut self,
        id: &NodeId,
        stage: Stage,
        mut elements: Vec<Upper>,
    ) -> Vec<Upper> {
        let site = Site { id: id.clone(), stage };
        if let Some(known) = self.known.get(&site).filter(|k| k.len() == elements.len()) {
            elements.iter_mut().zip(known).for_each(|(x, y)| *x = x.min(*y));
        }
        self.bounds.insert(site, elements.clone());
        elements
    }

    /// The same for a set, which is then within them.
    fn seen(&mut self, id: &NodeId, stage: Stage, mut x: Set) -> Set {
        let elements = self.keep(id, stage, x.elements.clone());
        x.within(&elements);
        x
    }

    /// `W x + b`.
    fn linear(&self, path: &str, bias: bool, x: &Set) -> Result<Set, Error> {
        let weight = join(path, "weight");
        let w = self.matrix(&weight)?;
        let b = self.bias(bias, &join(path, "bias"))?;
        let gain = x.gain.as_ref().map(|(name, _)| name.clone());
        let map = self.norms.norm(&Norm::Matrix(Block::whole(weight).gain(gain)))?;
        Ok(Image::new(&w, b.as_deref(), x).set(map, x.radius))
    }

    fn nodes(&mut self, nodes: &[Node], at: &Place, x: Set) -> Result<Set, Error> {
        nodes.iter().enumerate().try_fold(x, |x, (i, node)| {
            self.node(node, &Place { path: node.path(&at.path), id: at.id.child(i) }, x)
        })
    }

    fn node(&mut self, node: &Node, at: &Place, x: Set) -> Result<Set, Error> {
        if matches!(
            node.op,
            Op::Linear { .. }
                | Op::Conv(_)
                | Op::Attention(_)
                | Op::OffsetAttention { .. }
                | Op::GatedMlp { .. }
        ) {
            self.keep(&at.id, Stage::Operand, x.elements.clone());
        }
        let out = match &node.op {
            Op::Sequential { body } => return self.nodes(body, at, x),
            Op::Residual { skip, branch, body } => {
                let y = self.nodes(body, at, x.clone())?;
                x.plus(*skip, y, *branch)
            }
            Op::Parallel { branches } => return self.parallel(branches, at, x),
            Op::Linear { bias, .. } => self.linear(&at.path, *bias, &x)?,
            Op::Embedding { .. } => {
                let what = format!("`{}`: an embedding that is not the first node", at.path);
                return Err(Error::Unknown(what));
            }
            // Another vector for each token.
            Op::Positions { .. } => {
                let table = self.matrix(&at.weight("weight"))?;
                let added = Set::ball(max_row_norm(&table), columns(&table));
                let added = added.with_hull(Hull::points(table));
                x.plus(1.0, added, 1.0)
            }
            Op::Activation { function, scale } => activation(*function, *scale, &x),
            Op::Scale { factor } => x.scaled(*factor),
            Op::SoftCap { cap } => capped(abs(*cap), &x),
            Op::Clip { limit } => capped(abs(*limit), &x),
            Op::Attention(a) => attention::step(self, a, at, &x)?,
            Op::OffsetAttention { offsets, .. } => self.at_offsets(at, offsets.len(), &x)?,
            Op::Conv(c) => self.convolution(c, at, &x)?,
            // Pixels of other places.
            Op::Shift { .. } | Op::SpaceToDepth { .. } => {
                Set::ball(x.size(), vec![largest(&x.elements); x.width()])
            }
            Op::Pool(pool) => {
                let [c, h, w] = self.image(at, self.layout.after(&node.op))?;
                let (all, side) = (self.channels(at, &x)?, pool.window);
                pooled(pool.pooling, &all, c * h * w, side * side, x.size(), pooling(pool).0)
            }
            Op::GlobalPool { pooling } => {
                let [c, h, w] = self.image(at, self.layout)?;
                let all = self.channels(at, &x)?;
                pooled(*pooling, &all, c, h * w, x.size(), Upper::ONE)
            }
            Op::MaxMin => max_min(&x),
            Op::RmsNorm { eps, gain, .. } => self.norm(at, *eps, *gain, false, false, x)?,
            Op::LayerNorm { eps, gain, bias, .. } => self.norm(at, *eps, *gain, *bias, true, x)?,
            // x over a number of at least ε and ‖x‖.
            Op::Normalise { eps } => {
                let slope = Upper::ONE.div_up(*eps);
                let element = |u: &Upper| Upper::ONE.min(slope * *u);
                let elements = x.elements.iter().map(element).collect();
                Set::ball(Upper::ONE.min(slope * x.size()), elements)
            }
            Op::GatedMlp { function, bias, .. } => self.gated(*function, *bias, at, &x)?,
            // The same elements in another order.
            Op::Flatten => x,
            // A token is a part of the image.
            Op::Patches { size } => {
                let n = self.image(at, self.layout)?[0] * size * size;
                self.tokens = x.width() / n.max(1);
                Set::ball(x.size(), vec![largest(&x.elements); n])
            }
            // A mean of tokens lies in what contains all of them.
            Op::MeanPool | Op::FirstToken | Op::LastToken => x,
            Op::ClassToken { .. } => {
                self.tokens += 1;
                let token = self.vector(&at.weight("weight"))?;
                let elements = x.elements.iter().zip(&token).map(|(u, t)| u.max(abs(*t))).collect();
                Set::ball(x.size().max(vector_norm(&token)), elements)
            }
            Op::FirstAndMean => {
                let elements = [&x.elements[..], &x.elements[..]].concat();
                Set::ball(count(2).sqrt() * x.size(), elements)
            }
        };
        if node.op.body().is_none() {
            self.layout = self.layout.after(&node.op);
        }
        Ok(self.seen(&at.id, Stage::Output, out))
    }

    /// The channels and sides of an image.
    fn image(&self, at: &Place, layout: Layout) -> Result<[usize; 3], Error> {
        match layout {
            Layout::Image(image) => Ok(image),
            _ => Err(Error::Unknown(format!("`{}`: the sides of an image", at.path))),
        }
    }

    /// The largest element of each channel.
    fn channels(&self, at: &Place, x: &Set) -> Result<Vec<Upper>, Error> {
        let [_, h, w] = self.image(at, self.layout)?;
        Ok(x.elements.chunks((h * w).max(1)).map(largest).collect())
    }

    /// Every output is a row of the kernel times some pixels: at most its norm times theirs, and the
    /// sum of its absolute values times the largest.
    fn convolution(&mut self, c: &Convolution, at: &Place, x: &Set) -> Result<Set, Error> {
        let [_, height, width] = self.image(at, self.layout)?;
        let weight = at.weight("weight");
        let w = self.matrix(&weight)?;
        let b = self.bias(c.bias, &at.weight("bias"))?;
        let sides = [height, width];
        let kernel = Kernel { weight, convolution: *c, sides };
        let norm = self.norms.norm(&Norm::Convolution(kernel))?;
        let made = self.image(at, self.layout.after(&Op::Conv(*c)))?;
        let (places, square) = (made[1] * made[2], c.kernel * c.kernel);
        let (all, inputs) = (self.channels(at, x)?, c.inputs / c.groups);
        let size = x.size();
        let elements = w.data.chunks(w.columns.max(1)).enumerate().flat_map(|(o, row)| {
            let own = &all[o / (c.outputs / c.groups) * inputs..];
            let sums = row.chunks(square).zip(own).fold(Upper::ZERO, |sum, (row, largest)| {
                sum + *largest * row.iter().fold(Upper::ZERO, |sum, w| sum + abs(*w))
            });
            let added = b.as_ref().map_or(Upper::ZERO, |b| abs(b[o]));
            let one = sums.min(vector_norm(row) * size) + added;
            std::iter::repeat_n(one, places)
        });
        let elements = elements.collect();
        let added = b.as_ref().map_or(Upper::ZERO, |b| vector_norm(b) * count(places).sqrt());
        Ok(Set::ball(norm * size + added, elements))
    }

    /// Each head's values, of another token each, times its share; zeros before the first token.
    fn at_offsets(&mut self, at: &Place, heads: usize, x: &Set) -> Result<Set, Error> {
        let values = self.linear(&at.weight("value"), false, x)?;
        let values = self.seen(&at.id, Stage::Value, values);
        let shares = self.vector(&at.weight("shares.weight"))?;
        let head_dim = (values.width() / heads.max(1)).max(1);
        let heads_elements = values.elements.chunks(head_dim).zip(&shares);
        let elements = heads_elements.flat_map(|(u, w)| u.iter().map(|u| *u * abs(*w))).collect();
        let map = at_offsets(&at.path, heads, self.norms)?;
        Ok(Set::ball(map * x.size(), elements))
    }

    /// The sums so far are bounded by the sum of all bounds, which is theirs.
    fn parallel(&mut self, branches: &[Node], at: &Place, x: Set) -> Result<Set, Error> {
        let mut sum: Option<Set> = None;
        let mut elements = vec![Upper::ZERO; 0];
        let layout = self.layout;
        for (i, branch) in branches.iter().enumerate() {
            let place = Place { path: branch.path(&at.path), id: at.id.child(i) };
            self.layout = layout;
            let y = self.node(branch, &place, x.clone())?;
            elements.resize(y.width(), Upper::ZERO);
            elements.iter_mut().zip(&y.elements).for_each(|(sum, u)| *sum = *sum + *u);
            sum = Some(match sum {
                Some(sum) => sum.plus(1.0, y, 1.0),
                None => y.flat(),
            });
        }
        self.bounds.insert(Site { id: at.id.clone(), stage: Stage::Output }, elements);
        sum.ok_or_else(|| Error::Unknown(format!("`{}`: a sum of no branches", at.path)))
    }

    /// `γ ∘ n(x) + β`: `‖n(x)‖` is at most √d and `‖x‖/√ε`, and an element of n at most √d, or
    /// √(d − 1) where elements add up to 0, and its own over √ε.
    fn norm(
        &self,
        at: &Place,
        eps: f64,
        gain: bool,
        bias: bool,
        centre: bool,
        x: Set,
    ) -> Result<Set, Error> {
        let (d, slope) = (x.width(), Upper::ONE.div_up(root_down(eps)));
        let gain = gain.then(|| at.weight("weight"));
        let gain = gain.map(|name| Ok::<_, Error>((self.vector(&name)?, name))).transpose()?;
        let gain = gain.map(|(values, name)| (name, values));
        let shift = self.bias(bias, &at.weight("bias"))?;
        let plain = normed(&x.elements, d, slope, centre);
        let elements = (0..d).map(|i| {
            let gamma = gain.as_ref().map_or(Upper::ONE, |(_, gain)| abs(gain[i]));
            gamma * plain[i] + shift.as_ref().map_or(Upper::ZERO, |b| abs(b[i]))
        });
        let elements = elements.collect();
        let radius = count(d).sqrt().min(slope * x.size()).min(norm(&plain));
        let mut out = Set { centre: shift, gain, centred: centre, radius, elements, hull: None };
        out.tidy();
        Ok(out)
    }

    /// `W_down (φ(g) ∘ u)`.
    fn gated(&mut self, function: Function, bias: bool, at: &Place, x: &Set) -> Result<Set, Error> {
        let gate = self.linear(&at.weight("gate"), bias, x)?;
        let gate = self.seen(&at.id, Stage::Gate, gate);
        let up = self.linear(&at.weight("up"), bias, x)?;
        let up = self.seen(&at.id, Stage::Up, up);
        let open = activation(function, 1.0, &gate);
        let open = self.seen(&at.id, Stage::OpenGate, open);
        let products = open.elements.iter().zip(&up.elements).map(|(g, u)| *g * *u).collect();
        let size = (largest(&open.elements) * up.size()).min(open.size() * largest(&up.elements));
        let hidden = self.seen(&at.id, Stage::Hidden, Set::ball(size, products));
        self.linear(&at.weight("down"), bias, &hidden)
    }
}

/// `scale · φ(x)`
fn activation(function: Function, scale: f64, x: &Set) -> Set {
    let value = |u: &Upper| abs(scale) * pointwise::value(function, *u);
    let elements = match function {
        // Each output is a function of its own input.
        Function::Identity
        | Function::Relu
        | Function::Abs
        | Function::GeluErf
        | Function::GeluTanh
        | Function::Silu
        | Function::Tanh
        | Function::Sigmoid
        | Function::Relu2
        | Function::LeakyRelu { .. }
        | Function::Elu { .. }
        | Function::Softplus
        | Function::Mish
        | Function::QuickGelu
        | Function::HardSwish
        | Function::HardSigmoid => x.elements.iter().map(value).collect(),
    };
    let size = pointwise::norm(function, x.size(), largest(&x.elements), x.width());
    let made = Set::ball(abs(scale) * size, elements);
    let hull = x.hull.as_ref().and_then(|hull| hull.behind(function, scale, made.radius));
    made.with_hull(hull)
}

/// Pooling over windows of n pixels, of the channels with these largest elements, to `width`
/// elements.
fn pooled(
    pooling: Pooling,
    channels: &[Upper],
    width: usize,
    n: usize,
    size: Upper,
    constant: Upper,
) -> Set {
    let each = width / channels.len().max(1);
    let one = |largest: &Upper| match pooling {
        Pooling::Average | Pooling::Max => *largest,
        Pooling::L2 => size.min(*largest * count(n).sqrt()),
    };
    let elements = channels.iter().flat_map(|c| std::iter::repeat_n(one(c), each)).collect();
    Set::ball(constant * size, elements)
}

/// Of each pair of the halves the larger, then the smaller.
fn max_min(x: &Set) -> Set {
    let (u, v) = x.elements.split_at(x.width() / 2);
    let pairs: Vec<Upper> = u.iter().zip(v).map(|(u, v)| u.max(*v)).collect();
    Set::ball(x.size(), [&pairs[..], &pairs[..]].concat())
}

/// An elementwise function of at most `limit` that is at most its argument.
fn capped(limit: Upper, x: &Set) -> Set {
    Set::ball(x.size(), x.elements.iter().map(|u| u.min(limit)).collect())
}

/// Bounds on the elements of n(x) over `over` elements: at most √over, or √(over − 1) where their
/// mean is taken away, and each its own over √ε.
pub(super) fn normed(x: &[Upper], over: usize, slope: Upper, centred: bool) -> Vec<Upper> {
    let most = count(if centred { over.saturating_sub(1) } else { over }).sqrt();
    let out = x.chunks(over.max(1)).flat_map(|x| {
        let mean = if centred {
            x.iter().fold(Upper::ZERO, |sum, u| sum + *u).div_up(x.len() as f64)
        } else {
            Upper::ZERO
        };
        x.iter().map(move |u| most.min(slope * (*u + mean)))
    });
    out.collect()
}

/// The largest absolute value of each column.
pub(super) fn columns(m: &Matrix) -> Vec<Upper> {
    let mut out = vec![0.0_f64; m.columns];
    for row in m.data.chunks(m.columns.max(1)) {
        out.iter_mut().zip(row).for_each(|(max, x)| *max = max.max(x.abs()));
    }
    out.into_iter().map(abs).collect()
}
