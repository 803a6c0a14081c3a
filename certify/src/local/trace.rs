//! A network at one input: every node with the values that it was computed from, in a form that
//! carries deviations forward and linear functionals backward.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use lipschitz_nn::graph::{Convolution, Input, Node, NodeId, Op, Shape, Site, Stage, join};
use lipschitz_nn::{Model, Seen};

use super::attention::Heads;
use super::functional::Functionals;
use super::image::OnImage;
use super::maps::{Map, Maps, rounded, tiny};
use super::norm::{Normed, Unit};
use super::pointwise::{Pointwise, Product, Sorted};
use super::remainder::{Deviations, Remainders, mean};
use super::spread::Spread;
use super::stretch::{Step, Stretch};
use super::tokenwise::{Apart, Reads};
use crate::Error;
use crate::bound::Part;
use crate::ellipsoid::Changes;
use crate::spectral::{Matrix, gamma, vector_norm};
use crate::upper::{Upper, abs};

/// A node at one input.
pub(super) enum Piece {
    /// A node of whose changes something is known in general.
    Known {
        piece: Box<Piece>,
        reach: Upper,
        end: usize,
    },
    /// Nodes in turn.
    Sequence(Vec<Piece>),
    Stretch(Stretch),
    /// The sum of branches.
    Sum {
        branches: Vec<Piece>,
        slot: usize,
        outs: Vec<usize>,
        errors: Vec<Upper>,
    },
    /// `skip · x + branch · body(x)`
    Residual {
        skip: f64,
        branch: f64,
        body: Vec<Piece>,
        slot: usize,
        out: usize,
        errors: Vec<Upper>,
    },
    /// x and a constant.
    Shifted {
        errors: Vec<Upper>,
    },
    Scale {
        factor: f64,
        slot: usize,
        errors: Vec<Upper>,
    },
    Linear {
        map: Arc<Map>,
        slot: usize,
        errors: Vec<Upper>,
    },
    Pointwise(Pointwise),
    Sorted(Sorted),
    Normed(Normed),
    Unit(Unit),
    Gated(Box<Gated>),
    Attention(Box<Heads>),
    Image(Box<OnImage>),
    Offsets(Offsets),
    /// Elements that go elsewhere: of each output element, the token and the place that it is of.
    Moved(Moved),
    /// Means over tokens, behind so many that stay on their own.
    Mean {
        slot: usize,
        tokens: usize,
        first: bool,
        errors: Vec<Upper>,
    },
}

pub(super) struct Gated {
    gate: Arc<Map>,
    up: Arc<Map>,
    down: Arc<Map>,
    product: Product,
    slot: usize,
    hidden: usize,
    errors: [Vec<Upper>; 3],
}

/// Heads at fixed offsets.
pub(super) struct Offsets {
    value: Arc<Map>,
    /// The norm of each head's block.
    blocks: Vec<Upper>,
    shares: Vec<f64>,
    offsets: Vec<usize>,
    head_dim: usize,
    slot: usize,
    value_slot: usize,
    /// Of the values, and of the output.
    errors: [Vec<Upper>; 2],
    tokens: usize,
}

/// A selection or permutation of elements.
pub(super) enum Moved {
    /// Tokens that are dropped or added around: output token i is input token `from[i]`, or new.
    Tokens { from: Vec<Option<usize>>, inputs: usize },
    /// All tokens as one.
    Flat { tokens: usize, width: usize },
    /// One image as squares: output element i of token t is element `from[t·width + i]`.
    Squares { from: Vec<usize>, tokens: usize, width: usize },
}

/// Builds pieces from the tensors of a forward pass.
pub(super) struct Tracer<'a> {
    pub(super) maps: &'a Maps<'a>,
    changes: &'a Changes,
    taps: BTreeMap<Site, Tensor>,
    /// The path of the node that each slot is of.
    names: Vec<String>,
    path: String,
    /// Channels and sides of the current image.
    image: [usize; 3],
}

/// The square of nothing above it overflows, nor does a sum of as many of them as a token or an image has
/// elements.
const LARGEST: f64 = 1e145;

/// A network at one input.
pub(super) struct Trace {
    pieces: Vec<Piece>,
    /// What rounding alone makes of every value.
    still: Arc<Deviations>,
    /// The path of the node that each place is of.
    pub(super) names: Vec<String>,
    /// Zero vectors in front of the input.
    prefix: usize,
    /// Tokens and width of the input, the prefix aside.
    pub(super) tokens: usize,
    pub(super) width: usize,
    /// The input itself.
    pub(super) input: Vec<f64>,
    /// The largest norm of a token of the input.
    pub(super) largest: Upper,
    /// The output as it was computed.
    pub(super) output: Matrix,
}

impl Trace {
    /// Runs a network in f64 at one input: embedding vectors `[tokens, dim]`, or a vector or an image
    /// as it reads them, without a batch.
    ///
    /// # Errors
    /// Those of the forward pass; [`Error`] names a weight about which nothing is known.
    pub(super) fn new(
        model: &Model,
        maps: &Maps<'_>,
        changes: &Changes,
        x: &Tensor,
    ) -> Result<Self, Error> {
        let (graph, mut taps) = (model.graph(), BTreeMap::new());
        let mut tap = |seen: Seen<'_>, x: Tensor| {
            taps.insert(Site { id: seen.id.clone(), stage: seen.stage }, x.detach());
            Ok(x)
        };
        let x = x.to_dtype(DType::F64)?.unsqueeze(0)?;
        let embedded = matches!(graph.input(), Input::Tokens { .. });
        let y = match embedded {
            true => model.forward_embeddings_tapped(&x, &mut tap)?,
            false => model.forward_tapped(&x, &mut tap)?,
        };
        // What overflows in between may leave outputs that look like others.
        let overflows = taps
            .values()
            .chain([&x])
            .try_fold(false, |over, x| Ok::<_, Error>(over || largest(x)? > LARGEST))?;
        let input = if embedded { rows(&x)? } else { rows(&x.flatten_from(1)?)? };
        let (tokens, width) = (input.rows, input.columns);
        let largest =
            input.data.chunks(width.max(1)).map(vector_norm).fold(Upper::ZERO, Upper::max);
        let prefix = match graph.input() {
            Input::Tokens { zero_prefix, .. } => zero_prefix,
            _ => 0,
        };
        let mut start = vec![0.0; prefix * width];
        start.extend(&input.data);
        let start = Matrix { rows: prefix + tokens, columns: width, data: start };
        let image = match graph.input() {
            Input::Pixels { channels, height, width } => [channels, height, width],
            _ => [0; 3],
        };
        let mut tracer =
            Tracer { maps, changes, taps, names: Vec::new(), path: String::new(), image };
        let first = usize::from(embedded);
        let mut steps = Vec::new();
        let mut x = start;
        for (i, node) in graph.nodes().iter().enumerate().skip(first) {
            let id = NodeId::default().child(i);
            tracer.steps(node, "", &id, &mut x, &mut steps)?;
        }
        // Maps and rectifiers alone leave out little.
        let mut pieces = match steps.iter().any(|step| step.piece.has_norm_or_attention()) {
            true => Stretch::all(steps, &mut || tracer.slot())?,
            false => steps.into_iter().map(|step| step.piece).collect(),
        };
        if prefix > 0 && matches!(graph.output(), Shape::Tokens(_)) {
            let from = (prefix..x.rows).map(Some).collect();
            pieces.push(Piece::Moved(Moved::Tokens { from, inputs: x.rows }));
        }
        let mut output = rows(&y)?;
        if overflows {
            output.data.fill(f64::NAN);
        }
        let names = tracer.names;
        let still = Arc::new(Deviations::new(names.len(), Upper::ZERO, None));
        let input = input.data;
        let mut trace =
            Self { pieces, still, names, prefix, tokens, width, input, largest, output };
        let none = Spread::of(vec![Upper::ZERO; tokens]);
        trace.still = Arc::new(trace.deviations(none, Upper::ZERO, None, &Unknown));
        Ok(trace)
    }

    /// Deviations at every place for those of the input, which are at most `radius` per token; `known`
    /// says what is known of some of them, from what was found in front of them.
    pub(super) fn grow(&self, input: Spread, radius: Upper, known: &dyn Known) -> Deviations {
        self.deviations(input, radius, Some(self.still.clone()), known)
    }

    fn deviations(
        &self,
        input: Spread,
        radius: Upper,
        still: Option<Arc<Deviations>>,
        known: &dyn Known,
    ) -> Deviations {
        let mut deviations = Deviations::new(self.names.len(), radius, still);
        let mut each = vec![Upper::ZERO; self.prefix];
        each.extend(input.each);
        let out = grow(&self.pieces, Spread::new(each, input.total), &mut deviations, known);
        deviations.last = out.each.last().copied().unwrap_or(Upper::INFINITY);
        deviations
    }

    /// Elementwise nodes with jumps of slopes, in the order of the forward pass: place and elements, and
    /// whether those are differences of pairs.
    pub(super) fn bent(&self) -> Vec<(usize, usize, bool)> {
        let mut out = Vec::new();
        self.pieces.iter().for_each(|piece| piece.bent(&mut out));
        out
    }

    /// What the norm or elementwise node of this place reads; a layer norm's without its mean.
    pub(super) fn read(&self, slot: usize) -> Option<&Matrix> {
        self.pieces.iter().find_map(|piece| piece.read(slot))
    }

    /// Attention in the order of the forward pass.
    pub(super) fn attentions(&self) -> Vec<&Heads> {
        let mut out = Vec::new();
        self.pieces.iter().for_each(|piece| piece.attentions(&mut out));
        out
    }

    /// Norms and elementwise nodes in the order of the forward pass: place, how they read, tokens, elements
    /// of each.
    pub(super) fn curved(&self) -> Vec<(usize, Reads, usize, usize)> {
        let mut out = Vec::new();
        self.pieces.iter().for_each(|piece| piece.curved(&mut out));
        out
    }

    /// The elementwise nodes of which the outputs of the last token read a single token, and that token.
    ///
    /// # Errors
    /// Those of products.
    pub(super) fn read_by_one(&self, outputs: usize) -> Result<BTreeMap<usize, usize>, Error> {
        let data = (0..outputs).map(|i| 1.0 + i as f64 / outputs as f64).collect();
        let tokens = vec![self.output.rows.saturating_sub(1)];
        let lambda = Functionals { count: 1, tokens, width: outputs, data };
        Ok(self.back(lambda)?.1.kinks_of_one_token())
    }

    /// As [`Self::back`], for functionals of what the elementwise node, the norm or the attention of this place reads,
    /// with `out` for what they leave out.
    ///
    /// # Errors
    /// Those of products.
    pub(super) fn back_from(
        &self,
        slot: usize,
        lambda: Functionals,
        mut out: Remainders,
    ) -> Result<(Functionals, Remainders), Error> {
        let lambda = back_from(&self.pieces, slot, lambda, &mut out)?;
        Ok((self.without_prefix(lambda), out))
    }

    /// The functionals of the input that functionals of the output are to first order, and what they
    /// leave out.
    ///
    /// # Errors
    /// Those of products.
    pub(super) fn back(&self, lambda: Functionals) -> Result<(Functionals, Remainders), Error> {
        let mut out = Remainders::new(lambda.count);
        let lambda = back(&self.pieces, lambda, &mut out)?;
        Ok((self.without_prefix(lambda), out))
    }

    /// The prefix does not move.
    fn without_prefix(&self, lambda: Functionals) -> Functionals {
        let kept: Vec<usize> =
            (0..lambda.tokens.len()).filter(|at| lambda.tokens[*at] >= self.prefix).collect();
        let tokens = kept.iter().map(|at| lambda.tokens[*at] - self.prefix).collect();
        let mut own = Functionals::zeros(lambda.count, tokens, lambda.width);
        for k in 0..lambda.count {
            for (to, at) in kept.iter().enumerate() {
                own.row_mut(k, to).copy_from_slice(lambda.row(k, *at));
            }
        }
        own
    }
}

/// The largest absolute value; infinite where one is no number.
fn largest(x: &Tensor) -> Result<f64, Error> {
    let each = x.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    Ok(each.iter().fold(0.0, |m: f64, x| if x.is_nan() { f64::INFINITY } else { m.max(x.abs()) }))
}

/// A tensor of one input as tokens: a vector or an image is one.
fn rows(x: &Tensor) -> Result<Matrix, Error> {
    let dims = x.dims();
    let (rows, columns) = match *dims {
        [1, tokens, dim] => (tokens, dim),
        // Heads side by side.
        [1, tokens, heads, dim] => (tokens, heads * dim),
        _ => (1, x.elem_count()),
    };
    let data = x.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    Ok(Matrix { rows, columns, data })
}

/// The rounding of `a + b` and products with factors, of this size.
fn sums(parts: &[(Upper, &Matrix)]) -> Vec<Upper> {
    let tokens = parts.first().map_or(0, |(_, m)| m.rows);
    let size = |t: usize| {
        parts.iter().fold(Upper::ZERO, |sum, (factor, m)| {
            sum + *factor * vector_norm(&m.data[t * m.columns..(t + 1) * m.columns])
        })
    };
    (0..tokens).map(|t| gamma(2 * parts.len() + 2) * size(t) + tiny()).collect()
}

impl Tracer<'_> {
    pub(super) fn slot(&mut self) -> usize {
        self.names.push(self.path.clone());
        self.names.len() - 1
    }

    fn tap(&self, id: &NodeId, stage: Stage) -> Result<&Tensor, Error> {
        let site = Site { id: id.clone(), stage };
        self.taps.get(&site).ok_or_else(|| Error::Unknown(format!("the tensor {site}")))
    }

    /// A tensor of the pass as tokens.
    pub(super) fn rows(&self, id: &NodeId, stage: Stage) -> Result<Matrix, Error> {
        let x = self.tap(id, stage)?;
        match (x.dims(), stage) {
            // An image.
            ([1, _, _, _], Stage::Output | Stage::Input) => {
                let data = x.flatten_all()?.to_vec1::<f64>()?;
                Ok(Matrix { rows: 1, columns: data.len(), data })
            }
            _ => rows(x),
        }
    }

    /// All elements of a tensor of the pass.
    pub(super) fn flat(&self, id: &NodeId, stage: Stage) -> Result<Vec<f64>, Error> {
        Ok(self.tap(id, stage)?.flatten_all()?.to_vec1::<f64>()?)
    }

    fn nodes(
        &mut self,
        nodes: &[Node],
        path: &str,
        id: &NodeId,
        x: &mut Matrix,
    ) -> Result<Vec<Piece>, Error> {
        let numbered = nodes.iter().enumerate();
        numbered.map(|(i, node)| self.node(node, path, &id.child(i), x)).collect()
    }

    /// The pieces of a node with input x, which becomes its output; of nodes in turn, those of each.
    fn steps(
        &mut self,
        node: &Node,
        prefix: &str,
        id: &NodeId,
        x: &mut Matrix,
        out: &mut Vec<Step>,
    ) -> Result<(), Error> {
        if let Op::Sequential { body } = &node.op {
            let path = node.path(prefix);
            return body
                .iter()
                .enumerate()
                .try_for_each(|(i, node)| self.steps(node, &path, &id.child(i), x, out));
        }
        let piece = self.node(node, prefix, id, x)?;
        out.push(Step { piece, tokens: x.rows, width: x.columns });
        Ok(())
    }

    /// The piece of a node with input x, which becomes its output.
    fn node(
        &mut self,
        node: &Node,
        prefix: &str,
        id: &NodeId,
        x: &mut Matrix,
    ) -> Result<Piece, Error> {
        let path = node.path(prefix);
        let path = path.as_str();
        if let Op::Sequential { body } = &node.op {
            return Ok(Piece::Sequence(self.nodes(body, path, id, x)?));
        }
        let input = x.clone();
        let image = self.image;
        let outer = std::mem::replace(&mut self.path, named(path, &node.op));
        let piece = match &node.op {
            Op::Parallel { branches } => {
                let (slot, mut pieces, mut outs) = (self.slot(), Vec::new(), Vec::new());
                let mut values = Vec::new();
                for (i, branch) in branches.iter().enumerate() {
                    let mut own = input.clone();
                    self.image = image;
                    pieces.push(self.node(branch, path, &id.child(i), &mut own)?);
                    outs.push(self.slot());
                    values.push(own);
                }
                let parts: Vec<_> = values.iter().map(|m| (Upper::ONE, m)).collect();
                Piece::Sum { branches: pieces, slot, outs, errors: sums(&parts) }
            }
            Op::Residual { skip, branch, body } => {
                let (slot, out) = (self.slot(), self.slot());
                let mut y = input.clone();
                let body = self.nodes(body, path, id, &mut y)?;
                let errors = sums(&[(abs(*skip), &input), (abs(*branch), &y)]);
                Piece::Residual { skip: *skip, branch: *branch, body, slot, out, errors }
            }
            Op::Linear { bias, .. } => {
                let map = self.maps.get(path, *bias)?;
                let errors = map.errors(&input);
                Piece::Linear { map, slot: self.slot(), errors }
            }
            Op::Positions { .. } => {
                let y = self.rows(id, Stage::Output)?;
                Piece::Shifted { errors: sums(&[(Upper::ONE, &y)]) }
            }
            Op::Scale { factor } => {
                let errors = sums(&[(abs(*factor), &input)]);
                Piece::Scale { factor: *factor, slot: self.slot(), errors }
            }
            Op::Activation { .. } | Op::SoftCap { .. } | Op::Clip { .. } => {
                let slot = self.slot();
                let reach = self.reach(id, input.columns);
                let piece = Pointwise::new(&node.op, &input, slot, reach);
                Piece::Pointwise(piece.ok_or_else(|| unknown(path, &node.op))?)
            }
            Op::MaxMin => {
                let reach = self.reach(id, input.columns / 2);
                Piece::Sorted(Sorted::new(&input, self.slot(), reach))
            }
            Op::RmsNorm { eps, gain, .. } => {
                Piece::Normed(self.normed(id, path, (*eps, false), (*gain, false), &input)?)
            }
            Op::LayerNorm { eps, gain, bias, .. } => {
                Piece::Normed(self.normed(id, path, (*eps, true), (*gain, *bias), &input)?)
            }
            Op::Normalise { eps } => Piece::Unit(Unit::new(&input, *eps, self.slot())),
            Op::GatedMlp { function, bias, .. } => {
                let map = |name: &str| self.maps.get(&join(path, name), *bias);
                let (gate, up, down) = (map("gate")?, map("up")?, map("down")?);
                let [g, u, o, hidden] = [Stage::Gate, Stage::Up, Stage::OpenGate, Stage::Hidden]
                    .map(|s| self.rows(id, s));
                let hidden = hidden?;
                let errors = [gate.errors(&input), up.errors(&input), down.errors(&hidden)];
                let (slot, hidden) = (self.slot(), self.slot());
                let slots = [self.slot(), self.slot()];
                let product = Product::new(*function, g?, u?, o?, slots);
                Piece::Gated(Box::new(Gated { gate, up, down, product, slot, hidden, errors }))
            }
            Op::Attention(a) => Piece::Attention(Box::new(Heads::new(self, a, path, id, &input)?)),
            Op::OffsetAttention { head_dim, offsets, .. } => {
                let name = join(path, "value");
                let value = self.maps.get(&name, false)?;
                let count = offsets.len();
                let block = |index| self.maps.head(&name, Part { index, count });
                let blocks = (0..count).map(block).collect::<Result<_, _>>()?;
                let shares = self.maps.vector(&join(path, "shares.weight"))?;
                let y = self.rows(id, Stage::Output)?;
                let errors = [value.errors(&input), sums(&[(Upper::ONE, &y)])];
                let (slot, value_slot) = (self.slot(), self.slot());
                let (offsets, head_dim, tokens) = (offsets.clone(), *head_dim, input.rows);
                Piece::Offsets(Offsets {
                    value,
                    blocks,
                    shares,
                    offsets,
                    head_dim,
                    slot,
                    value_slot,
                    errors,
                    tokens,
                })
            }
            Op::ClassToken { .. } => {
                let from = std::iter::once(None).chain((0..input.rows).map(Some)).collect();
                Piece::Moved(Moved::Tokens { from, inputs: input.rows })
            }
            Op::FirstToken => {
                Piece::Moved(Moved::Tokens { from: vec![Some(0)], inputs: input.rows })
            }
            Op::LastToken => {
                let last = input.rows.checked_sub(1);
                Piece::Moved(Moved::Tokens { from: vec![last], inputs: input.rows })
            }
            Op::MeanPool | Op::FirstAndMean => {
                let first = matches!(node.op, Op::FirstAndMean);
                let most = (0..input.rows)
                    .map(|t| vector_norm(&input.data[t * input.columns..(t + 1) * input.columns]))
                    .fold(Upper::ZERO, Upper::max);
                let errors = vec![gamma(input.rows + 8) * most + tiny()];
                Piece::Mean { slot: self.slot(), tokens: input.rows, first, errors }
            }
            Op::Flatten => Piece::Moved(Moved::Flat { tokens: input.rows, width: input.columns }),
            Op::Patches { size } => {
                let [channels, height, width] = image;
                Piece::Moved(squares(channels, height, width, *size))
            }
            Op::Conv(_)
            | Op::Shift { .. }
            | Op::SpaceToDepth { .. }
            | Op::Pool(_)
            | Op::GlobalPool { .. } => {
                let (slot, maps) = (self.slot(), self.maps);
                let kernel = |c: &Convolution| maps.kernel(path, c, image);
                let piece = OnImage::new(&node.op, &input, image, slot, kernel)?;
                Piece::Image(Box::new(piece.ok_or_else(|| unknown(path, &node.op))?))
            }
            Op::Embedding { .. } | Op::Sequential { .. } => return Err(unknown(path, &node.op)),
        };
        *x = self.rows(id, Stage::Output)?;
        if let [1, c, h, w] = *self.tap(id, Stage::Output)?.dims() {
            self.image = [c, h, w];
        }
        self.path = outer;
        Ok(match self.changes.norms.get(id) {
            Some(reach) if reach.is_finite() => {
                Piece::Known { piece: Box::new(piece), reach: *reach, end: self.slot() }
            }
            _ => piece,
        })
    }

    /// How far each element that a node reads can change.
    fn reach(&self, id: &NodeId, width: usize) -> Vec<f64> {
        let site = Site { id: id.clone(), stage: Stage::Operand };
        match self.changes.elements.get(&site).filter(|all| all.len() == width) {
            Some(all) => all.iter().map(|x| x.to_f64()).collect(),
            None => vec![f64::INFINITY; width],
        }
    }

    /// How far the queries, keys or values of each head can change.
    pub(super) fn reach_of(&self, id: &NodeId, stage: Stage, heads: usize) -> Vec<Upper> {
        let site = Site { id: id.clone(), stage };
        let all = self.changes.elements.get(&site).filter(|all| all.len() == heads);
        all.cloned().unwrap_or_else(|| vec![Upper::INFINITY; heads])
    }

    fn normed(
        &mut self,
        id: &NodeId,
        path: &str,
        (eps, centred): (f64, bool),
        (gain, shift): (bool, bool),
        x: &Matrix,
    ) -> Result<Normed, Error> {
        let y = self.rows(id, Stage::Output)?;
        let vector =
            |name: &str, is: bool| is.then(|| self.maps.vector(&join(path, name))).transpose();
        let both = (vector("weight", gain)?, vector("bias", shift)?);
        let slot = self.slot();
        Ok(Normed::new(x, &y, (1, eps, centred), both, vec![slot]))
    }
}

/// A node's path, or what it is.
fn named(path: &str, op: &Op) -> String {
    if path.is_empty() { op.kind().into() } else { path.into() }
}

fn unknown(path: &str, op: &Op) -> Error {
    Error::Unknown(format!("`{path}` ({}) around an input", op.kind()))
}

/// Which element of an image is where, row by row of squares.
fn squares(channels: usize, height: usize, width: usize, size: usize) -> Moved {
    let (rows, columns) = (height / size, width / size);
    let mut from = Vec::with_capacity(channels * height * width);
    for r in 0..rows {
        for q in 0..columns {
            for c in 0..channels {
                for i in 0..size {
                    for j in 0..size {
                        from.push((c * height + r * size + i) * width + q * size + j);
                    }
                }
            }
        }
    }
    Moved::Squares { from, tokens: rows * columns, width: channels * size * size }
}

/// The rounding of a sum of functionals.
pub(super) fn add_error(lambda: &Functionals, slot: usize, out: &mut Remainders) {
    out.linear(slot, lambda, |norm| gamma(4) * norm + tiny());
}

/// What is known of the deviations at a place, from those in front of it.
pub(super) trait Known {
    /// Of the tokens that a norm or an elementwise node reads.
    fn tokens(&self, slot: usize, deviations: &Deviations) -> Option<Vec<Apart>>;

    /// Of the logits of attention, as [`super::logits`] has them.
    fn logits(&self, slot: usize, deviations: &Deviations) -> Option<Vec<[Upper; 2]>>;
}

/// Nothing.
struct Unknown;

impl Known for Unknown {
    fn tokens(&self, _: usize, _: &Deviations) -> Option<Vec<Apart>> {
        None
    }

    fn logits(&self, _: usize, _: &Deviations) -> Option<Vec<[Upper; 2]>> {
        None
    }
}

fn grow(pieces: &[Piece], x: Spread, deviations: &mut Deviations, known: &dyn Known) -> Spread {
    pieces.iter().fold(x, |x, piece| piece.grow(x, deviations, known))
}

/// The deviations of what the norm of this place reads, with what is known of them.
fn limited(slot: usize, x: Spread, deviations: &mut Deviations, known: &dyn Known) -> Spread {
    let Some(known) = known.tokens(slot, deviations) else { return x };
    let each = x.each.iter().zip(&known).map(|(x, known)| x.min(known.whole)).collect();
    for (t, known) in known.into_iter().enumerate().filter(|(_, known)| !known.each.is_empty()) {
        deviations.bound(slot, t, known.each);
    }
    Spread::new(each, x.total)
}

pub(super) fn back(
    pieces: &[Piece],
    lambda: Functionals,
    out: &mut Remainders,
) -> Result<Functionals, Error> {
    pieces.iter().rev().try_fold(lambda, |lambda, piece| piece.back(lambda, out))
}

/// Backward from what the elementwise node, the norm or the attention of this place reads.
fn back_from(
    pieces: &[Piece],
    slot: usize,
    lambda: Functionals,
    out: &mut Remainders,
) -> Result<Functionals, Error> {
    let Some(i) = pieces.iter().position(|piece| piece.holds(slot)) else { return Ok(lambda) };
    let lambda = match &pieces[i] {
        Piece::Known { piece, .. } => {
            back_from(std::slice::from_ref(piece.as_ref()), slot, lambda, out)?
        }
        Piece::Sequence(body)
        | Piece::Residual { body, .. }
        | Piece::Stretch(Stretch { body, .. }) => back_from(body, slot, lambda, out)?,
        Piece::Sum { branches, .. } => {
            let of = branches.iter().find(|branch| branch.holds(slot));
            back_from(of.map(std::slice::from_ref).unwrap_or_default(), slot, lambda, out)?
        }
        _ => lambda,
    };
    back(&pieces[..i], lambda, out)
}

impl Piece {
    /// The elementwise nodes in it that have jumps of slopes.
    fn bent(&self, out: &mut Vec<(usize, usize, bool)>) {
        match self {
            Self::Known { piece, .. } => piece.bent(out),
            Self::Sequence(body)
            | Self::Residual { body, .. }
            | Self::Stretch(Stretch { body, .. }) => {
                body.iter().for_each(|piece| piece.bent(out));
            }
            Self::Sum { branches, .. } => branches.iter().for_each(|piece| piece.bent(out)),
            Self::Pointwise(piece) if piece.jumps() => {
                out.push((piece.slot, piece.size().1, false))
            }
            Self::Sorted(piece) => out.push((piece.slot, piece.size().1, true)),
            _ => {}
        }
    }

    /// What its norm or elementwise node of this place reads.
    fn read(&self, slot: usize) -> Option<&Matrix> {
        match self {
            Self::Known { piece, .. } => piece.read(slot),
            Self::Sequence(body)
            | Self::Residual { body, .. }
            | Self::Stretch(Stretch { body, .. })
            | Self::Sum { branches: body, .. } => body.iter().find_map(|piece| piece.read(slot)),
            Self::Pointwise(piece) if piece.slot == slot => Some(piece.input()),
            Self::Sorted(piece) if piece.slot == slot => Some(piece.input()),
            Self::Normed(piece) if piece.slots[0] == slot => Some(piece.input()),
            _ => None,
        }
    }

    /// The attention in it.
    fn attentions<'a>(&'a self, out: &mut Vec<&'a Heads>) {
        match self {
            Self::Known { piece, .. } => piece.attentions(out),
            Self::Sequence(body)
            | Self::Residual { body, .. }
            | Self::Stretch(Stretch { body, .. }) => {
                body.iter().for_each(|piece| piece.attentions(out));
            }
            Self::Sum { branches, .. } => branches.iter().for_each(|piece| piece.attentions(out)),
            Self::Attention(heads) => out.push(heads),
            _ => {}
        }
    }

    /// The norms and elementwise nodes in it.
    fn curved(&self, out: &mut Vec<(usize, Reads, usize, usize)>) {
        match self {
            Self::Known { piece, .. } => piece.curved(out),
            Self::Sequence(body)
            | Self::Residual { body, .. }
            | Self::Stretch(Stretch { body, .. }) => {
                body.iter().for_each(|piece| piece.curved(out));
            }
            Self::Sum { branches, .. } => branches.iter().for_each(|piece| piece.curved(out)),
            Self::Normed(piece) => {
                let (tokens, width) = piece.size();
                out.push((piece.slots[0], Reads::Whole, tokens, width));
            }
            Self::Pointwise(piece) => {
                let (tokens, width) = piece.size();
                out.push((piece.slot, Reads::Elements, tokens, width));
            }
            Self::Sorted(piece) => {
                let (tokens, width) = piece.size();
                out.push((piece.slot, Reads::Pairs, tokens, width));
            }
            _ => {}
        }
    }

    /// Whether each token behind it is of one token in front of it alone.
    pub(super) fn by_token(&self) -> bool {
        match self {
            Self::Known { piece, .. } => piece.by_token(),
            Self::Sequence(body)
            | Self::Residual { body, .. }
            | Self::Stretch(Stretch { body, .. })
            | Self::Sum { branches: body, .. } => body.iter().all(Self::by_token),
            Self::Shifted { .. }
            | Self::Scale { .. }
            | Self::Linear { .. }
            | Self::Pointwise(_)
            | Self::Sorted(_)
            | Self::Normed(_)
            | Self::Unit(_)
            | Self::Gated(_) => true,
            Self::Attention(_)
            | Self::Image(_)
            | Self::Offsets(_)
            | Self::Moved(_)
            | Self::Mean { .. } => false,
        }
    }

    /// Whether it is a norm.
    pub(super) fn is_norm(&self) -> bool {
        match self {
            Self::Known { piece, .. } => piece.is_norm(),
            Self::Normed(_) | Self::Unit(_) => true,
            _ => false,
        }
    }

    /// Whether the product of the constants of its parts is far above its own, or those of a piece behind it
    /// with it.
    pub(super) fn bends(&self) -> bool {
        match self {
            Self::Known { piece, .. } => piece.bends(),
            Self::Residual { .. } | Self::Sum { .. } | Self::Gated(_) | Self::Attention(_) => true,
            _ => self.is_norm(),
        }
    }

    fn has_norm_or_attention(&self) -> bool {
        let (mut curved, mut attentions) = (Vec::new(), Vec::new());
        self.curved(&mut curved);
        self.attentions(&mut attentions);
        !attentions.is_empty() || curved.iter().any(|(_, reads, ..)| *reads == Reads::Whole)
    }

    /// Whether it is attention, or has some in it, and no more than residuals around it.
    pub(super) fn attends(&self) -> bool {
        match self {
            Self::Known { piece, .. } => piece.attends(),
            Self::Sequence(body)
            | Self::Residual { body, .. }
            | Self::Stretch(Stretch { body, .. }) => {
                body.iter().any(Self::attends)
                    && body.iter().all(|piece| piece.attends() || piece.by_token())
            }
            Self::Attention(_) => true,
            _ => false,
        }
    }

    /// The multiplications of a functional of `read` tokens behind it that goes back through it, where there are so
    /// many `tokens`; `read` becomes how many it reads in front.
    pub(super) fn work(&self, tokens: usize, read: &mut usize) -> usize {
        let maps = |maps: &[&Arc<Map>]| maps.iter().map(|map| map.w.data.len()).sum::<usize>();
        match self {
            Self::Known { piece, .. } => piece.work(tokens, read),
            Self::Sequence(body)
            | Self::Residual { body, .. }
            | Self::Stretch(Stretch { body, .. }) => {
                let through = |sum: usize, piece: &Self| sum + piece.work(tokens, read);
                body.iter().rev().fold(0, through)
            }
            Self::Sum { branches, .. } => {
                let (mut all, before) = (0, *read);
                for branch in branches {
                    let mut own = before;
                    all += branch.work(tokens, &mut own);
                    *read = own.max(*read);
                }
                all
            }
            Self::Linear { map, .. } => *read * maps(&[map]),
            Self::Gated(piece) => *read * maps(&[&piece.gate, &piece.up, &piece.down]),
            Self::Attention(heads) => {
                let [q, k, v, o] = heads.maps();
                let own = *read * maps(&[q, o]);
                *read = tokens;
                own + tokens * maps(&[k, v])
            }
            _ => 0,
        }
    }

    /// The place of a norm that reads its input as it is.
    fn starts_with_norm(&self) -> Option<usize> {
        match self {
            Self::Known { piece, .. } => piece.starts_with_norm(),
            Self::Sequence(body) | Self::Stretch(Stretch { body, .. }) => {
                body.first()?.starts_with_norm()
            }
            Self::Normed(piece) => Some(piece.slots[0]),
            _ => None,
        }
    }

    /// Whether the elementwise node, the norm or the attention of this place is it or in it.
    fn holds(&self, slot: usize) -> bool {
        let (mut curved, mut attentions) = (Vec::new(), Vec::new());
        self.curved(&mut curved);
        self.attentions(&mut attentions);
        curved.iter().any(|(own, ..)| *own == slot)
            || attentions.iter().any(|heads| heads.slot == slot)
    }

    /// From the deviations of its input to those of its output.
    fn grow(&self, x: Spread, deviations: &mut Deviations, known: &dyn Known) -> Spread {
        match self {
            Self::Known { piece, reach, end } => {
                let y = piece.grow(x, deviations, known);
                let still = deviations.still.clone();
                let still = still.as_ref().and_then(|still| still.ends[*end].as_ref());
                let y = deviations.limited(y, *reach, still);
                deviations.ends[*end] = Some(y.clone());
                y
            }
            Self::Sequence(body) => grow(body, x, deviations, known),
            Self::Stretch(stretch) => stretch
                .grow(x, deviations, &mut |piece, x, deviations| piece.grow(x, deviations, known)),
            Self::Sum { branches, slot, outs, errors } => {
                deviations.spreads[*slot] = Some(x.clone());
                let mut sum: Option<Spread> = None;
                for (branch, out) in branches.iter().zip(outs) {
                    let y = branch.grow(x.clone(), deviations, known);
                    deviations.spreads[*out] = Some(y.clone());
                    let none = vec![Upper::ZERO; y.each.len()];
                    sum = Some(match sum {
                        Some(sum) => sum.blend(Upper::ONE, &y, Upper::ONE, &none),
                        None => y,
                    });
                }
                sum.unwrap_or(x).through(Upper::ONE, errors)
            }
            Self::Residual { skip, branch, body, slot, out, errors } => {
                // A norm in front of the body reads what is passed by as well.
                let x = match body.first().and_then(Self::starts_with_norm) {
                    Some(norm) => {
                        let x = limited(norm, x, deviations, known);
                        deviations.spreads[norm] = Some(x.clone());
                        x
                    }
                    None => x,
                };
                deviations.spreads[*slot] = Some(x.clone());
                let y = grow(body, x.clone(), deviations, known);
                deviations.spreads[*out] = Some(y.clone());
                x.blend(abs(*skip), &y, abs(*branch), errors)
            }
            Self::Shifted { errors } => x.through(Upper::ONE, errors),
            Self::Scale { factor, slot, errors } => {
                deviations.spreads[*slot] = Some(x.clone());
                x.through(abs(*factor), errors)
            }
            Self::Linear { map, slot, errors } => {
                deviations.spreads[*slot] = Some(x.clone());
                map.grow(&x, errors)
            }
            Self::Pointwise(piece) => {
                let x = limited(piece.slot, x, deviations, known);
                deviations.spreads[piece.slot] = Some(x.clone());
                piece.grow(&x)
            }
            Self::Sorted(piece) => {
                let x = limited(piece.slot, x, deviations, known);
                deviations.spreads[piece.slot] = Some(x.clone());
                x
            }
            Self::Normed(piece) => {
                let slot = piece.slots[0];
                let x = match deviations.spreads[slot] {
                    // It is what the residual around it reads.
                    Some(_) => x,
                    None => limited(slot, x, deviations, known),
                };
                deviations.spreads[slot] = Some(x.clone());
                piece.grow(0, &x)
            }
            Self::Unit(piece) => {
                deviations.spreads[piece.slot] = Some(x.clone());
                piece.grow(&x)
            }
            Self::Gated(piece) => {
                let gate = piece.gate.grow(&x, &piece.errors[0]);
                let up = piece.up.grow(&x, &piece.errors[1]);
                let hidden = piece.product.grow(&gate, &up);
                let out = piece.down.grow(&hidden, &piece.errors[2]);
                let [g, u] = piece.product.slots;
                for (slot, spread) in [(piece.slot, x), (g, gate), (u, up), (piece.hidden, hidden)]
                {
                    deviations.spreads[slot] = Some(spread);
                }
                out
            }
            Self::Attention(heads) => heads.grow(&x, deviations, known),
            Self::Image(piece) => {
                deviations.spreads[piece.slot] = Some(x.clone());
                piece.grow(&x)
            }
            Self::Offsets(piece) => piece.grow(x, deviations),
            Self::Moved(moved) => moved.grow(&x),
            Self::Mean { slot, tokens, first, errors } => {
                deviations.spreads[*slot] = Some(x.clone());
                let alone = usize::from(*first);
                let others = x.each.get(alone..).unwrap_or_default();
                // The mean of n is at most √(Σ D²/n).
                let n = tokens.saturating_sub(alone);
                let joint = x.total.div_up((n as f64).sqrt().next_down());
                let mean = mean(others).min(joint);
                let own = if *first { x.each.first().copied() } else { None };
                let own = own.unwrap_or(Upper::ZERO);
                let together = (own * own + mean * mean).sqrt();
                Spread::of(vec![together + errors[0]])
            }
        }
    }

    /// From functionals of its output to those of its input.
    fn back(&self, lambda: Functionals, out: &mut Remainders) -> Result<Functionals, Error> {
        Ok(match self {
            Self::Known { piece, .. } => piece.back(lambda, out)?,
            Self::Sequence(body) | Self::Stretch(Stretch { body, .. }) => back(body, lambda, out)?,
            Self::Sum { branches, slot, outs, errors } => {
                rounded(&lambda, errors, out);
                let mut sum: Option<Functionals> = None;
                for (branch, _) in branches.iter().zip(outs) {
                    let x = branch.back(lambda.clone(), out)?;
                    add_error(&x, *slot, out);
                    sum = Some(match sum {
                        Some(sum) => {
                            add_error(&sum, *slot, out);
                            sum.plus(&x)
                        }
                        None => x,
                    });
                }
                sum.unwrap_or(lambda)
            }
            Self::Residual { skip, branch, body, slot, out: end, errors } => {
                rounded(&lambda, errors, out);
                let share = gamma(2) * abs(*branch);
                out.linear(*end, &lambda, |norm| share * norm + tiny());
                let inner = back(body, lambda.clone().scaled(*branch), out)?;
                let outer = lambda.scaled(*skip);
                add_error(&inner, *slot, out);
                add_error(&outer, *slot, out);
                outer.plus(&inner)
            }
            Self::Shifted { errors } => {
                rounded(&lambda, errors, out);
                lambda
            }
            Self::Scale { factor, slot, errors } => {
                rounded(&lambda, errors, out);
                let share = gamma(2) * abs(*factor);
                out.linear(*slot, &lambda, |norm| share * norm + tiny());
                lambda.scaled(*factor)
            }
            Self::Linear { map, slot, errors } => {
                rounded(&lambda, errors, out);
                map.back(&lambda, *slot, out)?
            }
            Self::Pointwise(piece) => {
                rounded(&lambda, &piece.errors, out);
                piece.back(lambda, out)
            }
            Self::Sorted(piece) => piece.back(lambda, out),
            Self::Normed(piece) => piece.back(lambda, out),
            Self::Unit(piece) => piece.back(lambda, out),
            Self::Gated(piece) => {
                rounded(&lambda, &piece.errors[2], out);
                let hidden = piece.down.back(&lambda, piece.hidden, out)?;
                let (gate, up) = piece.product.back(&hidden, out);
                rounded(&gate, &piece.errors[0], out);
                rounded(&up, &piece.errors[1], out);
                let a = piece.gate.back(&gate, piece.slot, out)?;
                let b = piece.up.back(&up, piece.slot, out)?;
                add_error(&a, piece.slot, out);
                add_error(&b, piece.slot, out);
                a.plus(&b)
            }
            Self::Attention(heads) => heads.back(lambda, out)?,
            Self::Image(piece) => piece.back(&lambda, out)?,
            Self::Offsets(piece) => piece.back(&lambda, out)?,
            Self::Moved(moved) => moved.back(&lambda),
            Self::Mean { slot, tokens, first, errors } => {
                rounded(&lambda, errors, out);
                let (alone, n) = (usize::from(*first), tokens - usize::from(*first));
                let width = lambda.width / (1 + alone);
                let all: Vec<usize> = (0..*tokens).collect();
                let mut to = Functionals::zeros(lambda.count, all, width);
                for (k, _, row) in lambda.rows() {
                    if *first {
                        to.row_mut(k, 0).copy_from_slice(&row[..width]);
                    }
                    for t in alone..*tokens {
                        let own = to.row_mut(k, t).iter_mut().zip(&row[alone * width..]);
                        own.for_each(|(to, l)| *to = l / n as f64);
                    }
                }
                add_error(&to, *slot, out);
                to
            }
        })
    }
}

impl Offsets {
    /// `‖y_t‖² ≤ Σ_h (w_h ‖V_h‖ D_{t−o_h})²`
    fn grow(&self, x: Spread, deviations: &mut Deviations) -> Spread {
        let factors: Vec<Upper> =
            self.shares.iter().zip(&self.blocks).map(|(w, v)| abs(*w) * *v).collect();
        let each = (0..self.tokens)
            .map(|t| {
                let part = |(h, offset): (usize, &usize)| match t.checked_sub(*offset) {
                    Some(from) => {
                        factors[h] * x.each[from] + abs(self.shares[h]) * self.errors[0][from]
                    }
                    None => Upper::ZERO,
                };
                let parts: Vec<Upper> = self.offsets.iter().enumerate().map(part).collect();
                super::spread::root_of_squares(&parts) + self.errors[1][t]
            })
            .collect();
        let largest = self.shares.iter().fold(Upper::ZERO, |m, w| m + abs(*w));
        let total = super::spread::root_of_squares(&factors) * x.total
            + largest * super::spread::root_of_squares(&self.errors[0])
            + super::spread::root_of_squares(&self.errors[1]);
        let values = x.through(self.value.norm, &self.errors[0]);
        deviations.spreads[self.value_slot] = Some(values);
        deviations.spreads[self.slot] = Some(x);
        Spread::new(each, total)
    }

    fn back(&self, lambda: &Functionals, out: &mut Remainders) -> Result<Functionals, Error> {
        rounded(lambda, &self.errors[1], out);
        let d = self.head_dim;
        let all: Vec<usize> = (0..self.tokens).collect();
        let mut to = Functionals::zeros(lambda.count, all, self.offsets.len() * d);
        for (k, t, row) in lambda.rows() {
            for (h, offset) in self.offsets.iter().enumerate() {
                let Some(from) = t.checked_sub(*offset) else { continue };
                let to = &mut to.row_mut(k, from)[h * d..(h + 1) * d];
                to.iter_mut().zip(&row[h * d..(h + 1) * d]).for_each(|(to, l)| {
                    *to += self.shares[h] * l;
                });
            }
        }
        let to = to.trimmed();
        add_error(&to, self.value_slot, out);
        rounded(&to, &self.errors[0], out);
        self.value.back(&to, self.slot, out)
    }
}

impl Moved {
    fn grow(&self, x: &Spread) -> Spread {
        match self {
            Self::Tokens { from, .. } => {
                let of = |t: &Option<usize>| t.map_or(Upper::ZERO, |t| x.each[t]);
                Spread::new(from.iter().map(of).collect(), x.total)
            }
            Self::Flat { .. } => Spread::new(vec![x.total], x.total),
            Self::Squares { tokens, .. } => Spread::new(vec![x.total; *tokens], x.total),
        }
    }

    fn back(&self, lambda: &Functionals) -> Functionals {
        match self {
            Self::Tokens { from, inputs } => {
                let mut to = Functionals::zeros(lambda.count, (0..*inputs).collect(), lambda.width);
                for (k, t, row) in lambda.rows() {
                    if let Some(from) = from[t] {
                        to.row_mut(k, from).copy_from_slice(row);
                    }
                }
                to.trimmed()
            }
            Self::Flat { width, .. } if lambda.tokens.is_empty() => {
                Functionals::zeros(lambda.count, Vec::new(), *width)
            }
            Self::Flat { tokens, width } => {
                let data = lambda.data.clone();
                let tokens = (0..*tokens).collect();
                Functionals { count: lambda.count, tokens, width: *width, data }
            }
            Self::Squares { from, width, .. } => {
                let mut to = Functionals::zeros(lambda.count, vec![0], from.len());
                for (k, t, row) in lambda.rows() {
                    let places = &from[t * width..(t + 1) * width];
                    let to = to.row_mut(k, 0);
                    places.iter().zip(row).for_each(|(place, l)| to[*place] = *l);
                }
                to
            }
        }
    }
}
