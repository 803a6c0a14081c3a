//! A network at one input: its nodes with the values that they were computed from.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use lipschitz_nn::graph::{Convolution, Input, Node, NodeId, Op, Shape, Site, Stage, join};
use lipschitz_nn::{Model, Seen};

use super::attention::Heads;
use super::functional::Functionals;
use super::gated::Gated;
use super::image::OnImage;
use super::maps::{Maps, tiny};
use super::mean::Mean;
use super::moved::Moved;
use super::norm::{Normed, Unit};
use super::offsets::Offsets;
use super::piece::{Known, Piece, Unknown, back, back_from, grow};
use super::pointwise::{Pointwise, Product, Sorted};
use super::remainder::{Deviations, Remainders};
use super::spread::Spread;
use super::stretch::{Step, Stretch};
use super::tokenwise::Reads;
use crate::Error;
use crate::bound::Part;
use crate::ellipsoid::Changes;
use crate::spectral::{Matrix, gamma, vector_norm};
use crate::upper::{Upper, abs};

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
                Piece::Mean(Mean::new(&input, first, self.slot()))
            }
            Op::Flatten => Piece::Moved(Moved::Flat { tokens: input.rows, width: input.columns }),
            Op::Patches { size } => {
                let [channels, height, width] = image;
                Piece::Moved(Moved::squares([channels, height, width], *size))
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
