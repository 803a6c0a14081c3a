//! Rounding: how far the outputs of a forward pass in floating point may be from those of the
//! function in real arithmetic, which is what a certificate is about.
//!
//! *Notation.* A [`Format`] says in what the program computes: it keeps values in a type of unit
//! roundoff u and adds up in one of v, γ_k = ku/(1 − ku), `σ(n, k)` is what n sums in v and k results in
//! u make of a number, and ‖·‖ is the largest ℓ2 norm of a token. A value x is known as x̂, with ‖x‖
//! and ‖x̂‖ at most R and
//! `‖x̂ − x‖ ≤ e`. A node f with Lipschitz constant L on the ball of radius R computes f̂, with
//! `‖f̂(x̂) − f(x̂)‖ ≤ δ`, so
//!
//! ```text
//! ‖f̂(x̂) − f(x)‖ ≤ L e + δ,
//! ```
//!
//! and both are at most the bound on f there, plus that. L and the bound on f are those of
//! [`walk`](super::walk()), with every gain where it stands. δ of each kind of node is in
//! [`Pass::fresh`], and its proof in `docs/mathematics.md`.

use std::cell::Cell;

use candle_core::DType;
use lipschitz_nn::graph::{
    Attention, Convolution, Function, Graph, Input, Node, NormKind, Op, Pool, Pooling, Span, join,
};

use super::norms::{Block, Norms, Part};
use super::pointwise;
use super::state::{Layout, State, Step};
use super::walk::alone;
use crate::Error;
use crate::upper::{Upper, abs, count};

/// What a program computes in. It rounds its weights and its input to a type; each operation (a product
/// of matrices, a sum, a norm, a function, a softmax) reads values of that type, computes in another that
/// is no less precise, and rounds what it writes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Format {
    /// The type of values that are kept.
    pub dtype: DType,
    /// u: what rounding to nearest takes of a value that is kept.
    unit: f64,
    /// v: the same within an operation.
    inner: f64,
    /// The smallest normal number: more than what all products of a sum lose that underflow.
    normal: f64,
    /// Half of the distance of two numbers next to 0, or more.
    step: f64,
    /// The largest finite number.
    pub largest: f64,
    /// The largest that an operation computes with.
    pub most: f64,
}

/// Rounding to nearest in f64.
pub const F64: Format = Format {
    dtype: DType::F64,
    unit: f64::EPSILON / 2.0,
    inner: f64::EPSILON / 2.0,
    normal: f64::MIN_POSITIVE,
    step: f64::MIN_POSITIVE * f64::EPSILON,
    largest: f64::MAX,
    most: f64::MAX,
};

/// Rounding to nearest in f32.
pub const F32: Format = Format {
    dtype: DType::F32,
    unit: f32::EPSILON as f64 / 2.0,
    inner: f32::EPSILON as f64 / 2.0,
    normal: f32::MIN_POSITIVE as f64,
    step: f32::MIN_POSITIVE as f64 * f32::EPSILON as f64,
    largest: f32::MAX as f64,
    most: f32::MAX as f64,
};

/// Values of 8 bits of precision and the range of f32, which the program computes in.
pub const BF16: Format =
    Format { dtype: DType::BF16, unit: 0.003_906_25, step: 5e-41, largest: 3.38e38, ..F32 };

/// Values of 11 bits of precision from 2⁻¹⁴, and below it in steps of 2⁻²⁴, computed in f32.
pub const F16: Format = Format {
    dtype: DType::F16,
    unit: 0.000_488_281_25,
    normal: 0.000_061_035_156_25,
    step: 2.980_232_238_769_531_3e-8,
    largest: 65504.0,
    ..F32
};

impl Format {
    /// Whether values are rounded to a type other than the one that is computed in.
    pub fn mixed(&self) -> bool {
        self.unit != self.inner
    }
}

/// Elementwise functions are computed to within this many units of the size of what they are made
/// of: libm's are within one or two, and each is a handful of operations.
const POINTWISE: f64 = 64.0;

/// Probabilities below this are taken for 0.
const NEGLIGIBLE: f64 = 1e-26;

/// Bounds on what a forward pass rounds away.
#[derive(Clone, Copy, Debug)]
pub struct Rounding {
    /// The ℓ2 distance, per token of the output, of what the program gives to what the network is in real
    /// arithmetic.
    pub outputs: Upper,
    /// The largest of such distances of all values on the way.
    pub anywhere: Upper,
    /// The largest ℓ2 norm of a token of them, as far as norms of weights tell.
    pub values: Upper,
}

/// No token and no image has more elements: a norm adds up the squares of all of one.
const ELEMENTS: f64 = 1e12;

impl Format {
    /// Whether so large a value, or the square of what is as large, may overflow.
    pub(crate) fn overflows(&self, value: Upper) -> bool {
        value >= Upper::from_f64(self.largest)
            || value * value * Upper::from_f64(ELEMENTS) >= Upper::from_f64(self.most)
    }

    /// Whether a constant of a node is 0 or a normal number as operations compute, so that it is off by a
    /// share of itself.
    pub(crate) fn holds(&self, constant: f64) -> bool {
        let least = if self.mixed() { F32.normal } else { self.normal };
        constant == 0.0 || (least..self.most).contains(&constant.abs())
    }

    /// The distance of two numbers next to 0, as an operation computes.
    fn finest(&self) -> f64 {
        if self.mixed() { F32.step } else { self.step }
    }
}

/// A bound on the distance, per token of the output, of what a forward pass in this format gives to what
/// the network is in real arithmetic, for inputs whose tokens have ℓ2 norm at most `radius`; infinite where
/// nothing is known. Weights of f32 and inputs are rounded first where the format is a smaller one. Nothing
/// may overflow, but in f64, where this is infinite unless norms show that nothing does.
///
/// # Errors
/// [`Error`] names the node or weight that nothing is known about.
pub fn rounding(
    graph: &Graph,
    norms: &dyn Norms,
    radius: Upper,
    format: Format,
) -> Result<Upper, Error> {
    let off = roundings(graph, norms, radius, format)?;
    let known = format.dtype != DType::F64 || !format.overflows(off.values);
    Ok(if known { off.outputs } else { Upper::INFINITY })
}

/// As [`rounding`], with what is known on the way.
///
/// # Errors
/// As [`rounding`].
pub fn roundings(
    graph: &Graph,
    norms: &dyn Norms,
    radius: Upper,
    format: Format,
) -> Result<Rounding, Error> {
    let (nodes, width, tokens, layout) = match (graph.input(), graph.nodes().split_first()) {
        (
            Input::Tokens { context, zero_prefix, .. },
            Some((Node { op: Op::Embedding { dim, .. }, .. }, rest)),
        ) => (rest, *dim, context.saturating_add(zero_prefix), Layout::Tokens(None)),
        (Input::Tokens { .. }, _) => {
            return Err(Error::Unknown("the input: tokens without an embedding".into()));
        }
        (Input::Pixels { channels, height, width }, _) => {
            let layout = Layout::Image([channels, height, width]);
            (graph.nodes(), channels * height * width, height * width, layout)
        }
        (Input::Vector { dim }, _) => (graph.nodes(), dim, 1, Layout::Vector),
    };
    let tokens = tokens.saturating_add(class_tokens(graph.nodes()));
    let (anywhere, values) = (Cell::new(Upper::ZERO), Cell::new(radius));
    let pass = Pass { norms, tokens, format, anywhere, values };
    let error = match format.mixed() {
        true => pass.noted(pass.kept(1) * radius + pass.tiny(width)),
        false => Upper::ZERO,
    };
    let start = Computed { radius: pass.seen(radius + error), error, width, layout };
    let outputs = pass.sequence(nodes, "", start)?.error;
    let anywhere = pass.anywhere.get().max(outputs);
    Ok(Rounding { outputs, anywhere, values: pass.values.get() })
}

/// How many tokens nodes add.
fn class_tokens(nodes: &[Node]) -> usize {
    let of = |node: &Node| match &node.op {
        Op::ClassToken { .. } => 1,
        Op::Sequential { body } | Op::Residual { body, .. } => class_tokens(body),
        Op::Parallel { branches } => class_tokens(branches),
        _ => 0,
    };
    nodes.iter().map(of).sum()
}

/// What is known about a computed value.
#[derive(Clone, Copy)]
struct Computed {
    /// Bound on the norm of the value and of what it stands for.
    radius: Upper,
    /// Bound on their distance.
    error: Upper,
    /// Elements per token.
    width: usize,
    layout: Layout,
}

struct Pass<'a> {
    norms: &'a dyn Norms,
    /// The longest sequence, where a layout does not say more.
    tokens: usize,
    format: Format,
    anywhere: Cell<Upper>,
    values: Cell<Upper>,
}

/// Not below γ_k = ku/(1 − ku) for k u up to ½; more is not known.
fn gamma(k: usize, unit: f64) -> Upper {
    let share = count(k) * Upper::from_f64(unit);
    let left = (1.0 - share.to_f64()).next_down();
    if left < 0.5 { Upper::INFINITY } else { share.div_up(left) }
}

impl Pass<'_> {
    /// More than what so many values lose next to 0: what underflows in sums of products, and what is lost
    /// when a number is kept, up to four times.
    fn tiny(&self, elements: usize) -> Upper {
        let kept = Upper::from_f64(4.0 * self.format.step) * count(elements).sqrt();
        Upper::from_f64(self.format.normal).max(kept)
    }

    /// Values on the way may have this error.
    fn note(&self, error: Upper) {
        self.anywhere.set(self.anywhere.get().max(error));
    }

    /// Values on the way may be as large as this.
    fn seen(&self, size: Upper) -> Upper {
        self.values.set(self.values.get().max(size));
        size
    }

    /// What squares lose next to 0, as a share of the root of a sum of `n` of them that is not below `least`:
    /// each loses at most a step, as it is squared and as it is divided.
    fn lost(&self, n: usize, least: f64) -> Upper {
        let step = Upper::from_f64(4.0 * self.format.finest()) * count(n);
        let share = step.div_up(least.next_down().max(0.0));
        if share < Upper::from_f64(0.25) { share } else { Upper::INFINITY }
    }

    /// What so many roots of sums of n squares lose next to 0, together.
    fn lost_roots(&self, n: usize, roots: usize) -> Upper {
        (count(n) * count(roots) * Upper::from_f64(4.0 * self.format.finest())).sqrt()
    }

    /// The same error, noted.
    fn noted(&self, error: Upper) -> Upper {
        self.note(error);
        error
    }

    /// How many tokens there may be.
    fn tokens(&self, layout: Layout) -> usize {
        match layout {
            Layout::Tokens(Some(tokens)) => tokens.max(self.tokens),
            _ => self.tokens,
        }
    }

    /// γ_k of values that are kept.
    fn kept(&self, k: usize) -> Upper {
        gamma(k, self.format.unit)
    }

    /// σ(n, k)
    fn sum(&self, n: usize, k: usize) -> Upper {
        let (inner, kept) = (gamma(n, self.format.inner), self.kept(k));
        inner + kept + inner * kept
    }

    fn sequence(&self, nodes: &[Node], path: &str, start: Computed) -> Result<Computed, Error> {
        nodes.iter().try_fold(start, |x, node| self.node(node, &node.path(path), x))
    }

    fn node(&self, node: &Node, path: &str, x: Computed) -> Result<Computed, Error> {
        match &node.op {
            Op::Sequential { body } => self.sequence(body, path, x),
            Op::Parallel { branches } => {
                let mut sum = Computed { radius: Upper::ZERO, error: Upper::ZERO, ..x };
                for branch in branches {
                    let y = self.node(branch, &branch.path(path), x)?;
                    sum = Computed {
                        radius: sum.radius + y.radius,
                        error: sum.error + y.error,
                        width: y.width,
                        layout: y.layout,
                    };
                }
                let kept = self.kept(branches.len()) * sum.radius + self.tiny(sum.width);
                let error = self.noted(sum.error + kept);
                Ok(Computed { radius: self.seen(sum.radius + error), error, ..sum })
            }
            Op::Residual { skip, branch, body } => {
                let y = self.sequence(body, path, x)?;
                let (a, b) = (abs(*skip), abs(*branch));
                let radius = a * x.radius + b * y.radius;
                let kept = self.kept(4) * radius + self.tiny(x.width);
                let error = self.noted(a * x.error + b * y.error + kept);
                Ok(Computed { radius: self.seen(radius + error), error, ..x })
            }
            _ => {
                let state = State::new(x.radius, x.width).laid_out(x.layout);
                let step = alone(node, path, self.norms, &state)?;
                let fresh = self.fresh(node, path, x, &step)? + self.tiny(step.out.width);
                let error = self.noted(step.lipschitz * x.error + fresh);
                let radius = self.seen(step.out.radius + error);
                let (width, layout) = (step.out.width, step.out.layout);
                Ok(Computed { radius, error, width, layout })
            }
        }
    }

    /// δ: the rounding of one node, of exact constant and radius `step`.
    fn fresh(&self, node: &Node, path: &str, x: Computed, step: &Step) -> Result<Upper, Error> {
        let (r, out) = (x.radius, step.out.radius);
        let root = count(x.width).sqrt();
        Ok(match &node.op {
            Op::Linear { inputs, outputs, bias } => {
                let bias = self.bias(path, *bias)?;
                self.product(step.lipschitz, *inputs, *outputs, r) + self.kept(2) * bias
            }
            Op::Conv(c) => {
                let pixels = match step.out.layout {
                    Layout::Image([_, h, w]) => h * w,
                    _ => 1,
                };
                let bias = self.bias(path, c.bias)? * count(pixels).sqrt();
                self.convolution(step.lipschitz, c, r) + self.kept(2) * bias
            }
            // What is only compared is exact, and each mean or norm is off by a share of what it is of.
            Op::Pool(Pool { pooling: Pooling::Max, .. })
            | Op::GlobalPool { pooling: Pooling::Max } => Upper::ZERO,
            Op::Pool(pool) => {
                let terms = pool.window * pool.window;
                self.sum(terms + 4, 4) * out + self.lost_roots(terms, step.out.width)
            }
            Op::GlobalPool { .. } => {
                self.sum(x.width + 4, 4) * out + self.lost_roots(x.width, step.out.width)
            }
            Op::Positions { .. } => self.kept(2) * out,
            Op::Activation { function, scale } => {
                abs(*scale) * self.pointwise(*function, r, x.width) + self.kept(2) * out
            }
            Op::Scale { .. } => self.kept(2) * out,
            Op::SoftCap { cap } => (self.units() + self.kept(2)) * (r + abs(*cap) * root),
            // The token is a weight.
            Op::ClassToken { .. } if self.format.mixed() => self.kept(1) * out,
            // Its limit is rounded, which those elements are that are cut.
            Op::Clip { .. } => self.kept(1) * out,
            // What is only moved or compared is exact.
            Op::Shift { .. }
            | Op::SpaceToDepth { .. }
            | Op::MaxMin
            | Op::Flatten
            | Op::Patches { .. }
            | Op::ClassToken { .. }
            | Op::FirstToken
            | Op::LastToken => Upper::ZERO,
            Op::RmsNorm { eps, .. } => (self.sum(x.width + 12, 4) + self.lost(1, *eps)) * out,
            Op::LayerNorm { eps, .. } => {
                (self.sum(x.width + 12, 4) + self.lost(1, *eps)) * out
                    + step.lipschitz * self.centring(r, x.width)
            }
            Op::Normalise { eps } => {
                (self.sum(x.width + 12, 4) + self.lost(x.width, eps * eps)) * out
            }
            Op::MeanPool | Op::FirstAndMean => self.sum(self.tokens(x.layout), 4) * out,
            Op::GatedMlp { .. } => inside(x, |error| self.gated(node, path, (r, error)))?,
            Op::Attention(a) => {
                let tokens = self.tokens(x.layout);
                inside(x, |error| self.attention(a, path, (r, error, tokens), out))?
            }
            // Each head's product, whose error its share scales like the product itself.
            Op::OffsetAttention { inputs, head_dim, offsets, .. } => {
                let off = self.product(step.lipschitz, *inputs, *head_dim, r) + self.kept(4) * out;
                let heads = offsets.len();
                let value = self.norms.matrix(&Block::whole(join(path, "value.weight")))?;
                self.note(value * x.error + self.product(value, *inputs, heads * *head_dim, r));
                if !self.format.mixed() {
                    return Ok(off);
                }
                let shares = self.norms.row(&Block::whole(join(path, "shares.weight")))?;
                let lost = shares * self.weights(*inputs, heads * *head_dim)
                    + self.weights(heads, 1) * value;
                off + lost * r
            }
            // An embedding is not computed with, and the others are made of nodes.
            Op::Embedding { .. }
            | Op::Sequential { .. }
            | Op::Parallel { .. }
            | Op::Residual { .. } => Upper::INFINITY,
        })
    }

    /// What a function is computed to.
    fn units(&self) -> Upper {
        Upper::from_f64(POINTWISE * self.format.inner)
    }

    fn bias(&self, path: &str, bias: bool) -> Result<Upper, Error> {
        if bias { self.norms.vector(&join(path, "bias")) } else { Ok(Upper::ZERO) }
    }

    /// Wx of `inputs` to `outputs` elements, in any order of its sums, and what is added to it: each
    /// element is off by at most `σ(n, 1) (|W| |x|)_i` before it is kept, of which the weights are the 1, and
    /// `‖|W|‖ ≤ ‖W‖_F ≤ √min ‖W‖`.
    fn product(&self, norm: Upper, inputs: usize, outputs: usize, r: Upper) -> Upper {
        let all = count(inputs.min(outputs)).sqrt() * norm;
        let off = self.sum(inputs, 1) * all + self.weights(inputs, outputs);
        self.written(norm, off, r) + self.tiny(outputs)
    }

    /// What is off in a map of this norm that is computed to within `off`, once it is kept and a bias is
    /// added to it.
    fn written(&self, norm: Upper, off: Upper, r: Upper) -> Upper {
        (off + self.kept(3) * (norm + off)) * r
    }

    /// What the weights of a map lose next to 0, in the Frobenius norm, where they are rounded to a type
    /// of another range: elsewhere it is a share of themselves.
    fn weights(&self, inputs: usize, outputs: usize) -> Upper {
        match self.format.mixed() {
            true => Upper::from_f64(self.format.step) * (count(inputs) * count(outputs)).sqrt(),
            false => Upper::ZERO,
        }
    }

    /// As [`Pass::product`], for a convolution of norm at most `norm`: each element is off by at most
    /// σ times that of the absolute values, and for N frequencies of the torus
    /// `‖|K|‖ ≤ Σ_t ‖W_t‖_F ≤ k ‖W‖_F`, with `‖W‖_F² = Σ_ω ‖A(ω)‖_F²/N ≤ min ‖K‖²`.
    fn convolution(&self, norm: Upper, c: &Convolution, r: Upper) -> Upper {
        let terms = c.inputs / c.groups * c.kernel * c.kernel;
        let lost = count(c.kernel * c.kernel) * self.weights(c.inputs, c.outputs);
        self.written(norm, self.sum(terms, 1) * absolute(norm, c) + lost, r)
    }

    /// φ of elements whose norm is at most r; what compares, or changes a sign, is exact.
    fn pointwise(&self, function: Function, r: Upper, width: usize) -> Upper {
        if matches!(function, Function::Identity | Function::Relu | Function::Abs) {
            return Upper::ZERO;
        }
        let slope = pointwise::slope(function, r).max(Upper::ONE);
        self.units() * slope * (r + count(width).sqrt()) + self.tiny(width)
    }

    /// x − mean x: the mean is off by at most `γ_d` times that of |x|.
    fn centring(&self, r: Upper, width: usize) -> Upper {
        gamma(width + 8, self.format.inner) * (r + r) + self.tiny(width)
    }

    /// Of an input up to r that is off by `error`.
    fn gated(&self, node: &Node, path: &str, (r, error): (Upper, Upper)) -> Result<Upper, Error> {
        let Op::GatedMlp { dim, hidden, function, bias } = node.op else {
            return Ok(Upper::INFINITY);
        };
        let map = |name: &str| -> Result<(Upper, Upper), Error> {
            let path = join(path, name);
            let norm = self.norms.matrix(&Block::whole(join(&path, "weight")))?;
            Ok((norm, self.bias(&path, bias)?))
        };
        // The size and the rounding of each projection.
        let project = |(norm, bias): (Upper, Upper)| {
            let off = norm * error + self.product(norm, dim, hidden, r) + self.kept(2) * bias;
            (norm * r + bias + off, off)
        };
        let (gate, gate_off) = project(map("gate")?);
        let (up, up_off) = project(map("up")?);
        let passed = pointwise::norm(function, gate, gate, hidden);
        let passed_off = pointwise::slope(function, gate) * gate_off
            + self.pointwise(function, gate, hidden)
            + self.kept(2) * passed
            + self.tiny(hidden);
        let (product, product_off) = (
            (passed + passed_off) * up,
            passed_off * up + passed * up_off + self.kept(2) * passed * up + self.tiny(hidden),
        );
        let product_off = [gate_off, up_off, passed_off, product_off].map(|x| self.noted(x))[3];
        let _ = self.seen(gate.max(up).max(passed).max(product));
        let (down, bias) = map("down")?;
        Ok(down * product_off + self.product(down, hidden, dim, product) + self.kept(2) * bias)
    }

    /// Head by head, since each reads tokens of its own: where the values of heads are off by e_h, those
    /// of all of them are by √Σ e_h², and their size is √Σ v_h². Of an input up to r that is off by `error`.
    fn attention(
        &self,
        a: &Attention,
        path: &str,
        (r, error, tokens): (Upper, Upper, usize),
        out: Upper,
    ) -> Result<Upper, Error> {
        let (shared, repeats) = (a.key_value_heads, a.group_size());
        let one = |name: &str, index: usize, heads: usize| {
            self.projection(a, path, name, Part { index, count: heads }, (r, error, tokens))
        };
        let (mut squares, mut off_squares) = (Upper::ZERO, Upper::ZERO);
        for group in 0..shared {
            let key = one("key", group, shared)?;
            let (value, value_off) = one("value", group, shared)?;
            for head in group * repeats..(group + 1) * repeats {
                let query = one("query", head, a.heads)?;
                let share = self.probabilities(a, path, (query, key), tokens)?;
                let off = value_off + share * value + self.tiny(a.head_dim);
                (squares, off_squares) = (squares + value * value, off_squares + off * off);
            }
        }
        let (mixed, mixed_off) = (squares.sqrt(), self.noted(off_squares.sqrt()));
        let width = a.heads * a.head_dim;
        let norm = self.norms.matrix(&Block::whole(join(path, "output.weight")))?;
        let bias = self.bias(&join(path, "output"), a.output_bias)?;
        let off = norm * mixed_off
            + self.product(norm, width, a.dim, mixed + mixed_off)
            + self.kept(2) * bias;
        Ok(abs(a.output_scale) * self.noted(off) + self.kept(4) * out)
    }

    /// How far the probabilities of a head are off, in ℓ1, and what else a mean by them is off by, as a
    /// share of the size of what it is of. Logits that are off by ε move a softmax by at most ε in ℓ1:
    /// its derivative along η is `p_i (η_i − Σ p η)`, and the mean of `|η_i − Σ p η|` is at most the largest
    /// `|η_j|`.
    fn probabilities(
        &self,
        a: &Attention,
        path: &str,
        ((query, query_off), (key, key_off)): ((Upper, Upper), (Upper, Upper)),
        tokens: usize,
    ) -> Result<Upper, Error> {
        let scale = abs(a.logit_scale);
        let mut logit = scale * query * key;
        // Queries may be scaled before their product with keys.
        let _ = self.seen(scale.max(Upper::ONE) * query.max(query * key).max(key));
        let product = query_off * key
            + query * key_off
            + self.sum(a.head_dim, 4) * query * key
            + self.tiny(1);
        let mut off = scale * self.noted(product) + self.tiny(1);
        if let Some(cap) = a.logit_cap {
            off = off + (self.units() + self.kept(2)) * (logit + abs(cap)) + self.tiny(1);
            logit = logit.min(abs(cap));
        }
        if a.position_bias.is_some() {
            logit = logit + self.norms.largest(&join(path, "position_bias.weight"))?;
        }
        if let Some(alibi) = &a.alibi {
            let steepest = alibi.slopes.iter().fold(Upper::ZERO, |max, s| max.max(abs(*s)));
            logit = logit + steepest * count(tokens);
        }
        // What is added to logits, and that the largest is taken off; then the exponential.
        let off = off + self.sum(8, 4) * (logit + off) + self.units() + self.tiny(1);
        // The sum of the exponentials, what a part of it is multiplied by when a larger logit is met, the
        // quotient, the mean; probabilities and means are kept.
        let mean = count(4) * self.sum(tokens + 16, 0);
        let mean = mean + self.kept(2) * (Upper::ONE + mean);
        let lost = count(tokens) * Upper::from_f64(self.format.step.max(NEGLIGIBLE));
        let moved = self.noted(off).min(count(2));
        Ok(moved + (Upper::ONE + moved) * mean + lost)
    }

    /// Size and rounding of the queries, keys or values of a head, of inputs up to r that are off by
    /// `error`. A norm over all heads together says of each what it says of all.
    fn projection(
        &self,
        a: &Attention,
        path: &str,
        name: &str,
        head: Part,
        (r, error, tokens): (Upper, Upper, usize),
    ) -> Result<(Upper, Upper), Error> {
        let values = name == "value";
        let normed = if values { None } else { a.query_key_norm };
        let together = normed.is_some() && a.query_key_span == Span::Heads;
        let (head, width) = match together {
            true => (Part::ALL, head.count * a.head_dim),
            false => (head, a.head_dim),
        };
        let norm =
            self.norms.matrix(&Block::whole(join(path, &format!("{name}.weight"))).rows(head))?;
        let bias = self.bias(&join(path, name), a.bias)?;
        let mut off =
            self.noted(norm * error + self.product(norm, a.dim, width, r) + self.kept(2) * bias);
        let mut size = self.seen(norm * r + bias + off);
        if let Some(eps) = normed {
            let weight = |what: &str| join(path, &format!("{name}_norm.{what}"));
            let gain = self.norms.largest(&weight("weight"))?;
            let slope = gain * Upper::ONE.div_up(crate::upper::root_down(eps));
            let shift = match a.query_key_shift {
                true => {
                    self.norms.vector(&weight("bias"))? * count(width / a.head_dim.max(1)).sqrt()
                }
                false => Upper::ZERO,
            };
            off = slope * off;
            if a.query_key_kind == NormKind::Layer {
                off = off + slope * self.centring(size, width);
            }
            size = (gain * count(width).sqrt()).min(slope * size) + shift;
            let rounded = self.sum(width + 12, 4) + self.lost(1, eps);
            off = self.noted(off) + rounded * size + self.tiny(width);
            size = size + off;
        }
        if let (Some(rotary), false) = (&a.rotary, values) {
            // The angles are off by a few units of the largest, the position times a frequency, and of 1.
            let largest = count(tokens) * Upper::from_f64(rotary.fastest().max(1.0));
            let turned = self.units() * largest + self.kept(4);
            off = off + turned * size + self.tiny(width);
            size = size + off;
        }
        Ok((size, self.noted(off)))
    }
}

/// δ of a node with tensors of its own, by the error of its input, which is 0 for δ. The tensors are noted as
/// they are, of an input that is off itself.
fn inside(x: Computed, off: impl Fn(Upper) -> Result<Upper, Error>) -> Result<Upper, Error> {
    off(x.error).and_then(|_| off(Upper::ZERO))
}

/// `‖|K|‖` of a convolution of norm at most `norm`.
pub(crate) fn absolute(norm: Upper, c: &Convolution) -> Upper {
    let inputs = c.inputs / c.groups.max(1);
    // The channels of the squares of a stride, at all of them.
    let most = (c.outputs / c.groups.max(1)).min(inputs.saturating_mul(c.stride * c.stride));
    // Of all groups together, whose norms are at most that of the whole.
    count(c.kernel) * count(most.saturating_mul(c.groups)).sqrt() * norm
}
