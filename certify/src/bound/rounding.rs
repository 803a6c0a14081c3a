//! Rounding: how far the outputs of a forward pass in floating point may be from those of the
//! function in real arithmetic, which is what a certificate is about.
//!
//! *Notation.* u is half the distance from 1 to the next number, γ_k = ku/(1 − ku), and ‖·‖ the
//! largest ℓ2 norm of a token. A value x is known as x̂, with ‖x‖ and ‖x̂‖ at most R and
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

use lipschitz_nn::graph::{
    Attention, Convolution, Function, Graph, Input, Node, NormKind, Op, Pool, Pooling, Span, join,
};

use super::norms::{Block, Norms};
use super::pointwise;
use super::state::{Layout, State, Step};
use super::walk::alone;
use crate::Error;
use crate::upper::{Upper, abs, count};

/// Rounding to nearest in f64.
pub const F64: f64 = f64::EPSILON / 2.0;

/// Elementwise functions are computed to within this many units of the size of what they are made
/// of: libm's are within one or two, and each is a handful of operations.
const POINTWISE: f64 = 64.0;

/// Probabilities below this are taken for 0.
const NEGLIGIBLE: f64 = 1e-26;

/// A bound on the distance, per token of the output, of what a forward pass with the unit roundoff
/// `unit` gives to what the network is in real arithmetic, for inputs whose tokens have ℓ2 norm at
/// most `radius`; infinite where nothing is known. A `unit` above that of f64 is taken for f32's.
///
/// # Errors
/// [`Error`] names the node or weight that nothing is known about.
pub fn rounding(
    graph: &Graph,
    norms: &dyn Norms,
    radius: Upper,
    unit: f64,
) -> Result<Upper, Error> {
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
    // One more for a class token.
    let tiny = if unit > F64 { f64::from(f32::MIN_POSITIVE) } else { f64::MIN_POSITIVE };
    let pass = Pass { norms, tokens: tokens + 1, unit, tiny: Upper::from_f64(tiny) };
    let start = Computed { radius, error: Upper::ZERO, width, layout };
    Ok(pass.sequence(nodes, "", start)?.error)
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
    /// The longest sequence.
    tokens: usize,
    /// u
    unit: f64,
    /// The smallest normal number: more than what all products of a sum lose that underflow.
    tiny: Upper,
}

impl Pass<'_> {
    /// Not below γ_k for k u up to 1/100; more is not known.
    fn gamma(&self, k: usize) -> Upper {
        let share = k as f64 * self.unit;
        if share > 0.01 { Upper::INFINITY } else { Upper::from_f64(1.02 * share) }
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
                let error = sum.error + self.gamma(branches.len()) * sum.radius;
                Ok(Computed { radius: sum.radius + error, error, ..sum })
            }
            Op::Residual { skip, branch, body } => {
                let y = self.sequence(body, path, x)?;
                let (a, b) = (abs(*skip), abs(*branch));
                let radius = a * x.radius + b * y.radius;
                let error = a * x.error + b * y.error + self.gamma(4) * radius;
                Ok(Computed { radius: radius + error, error, ..x })
            }
            _ => {
                let state = State::new(x.radius, x.width).laid_out(x.layout);
                let step = alone(node, path, self.norms, &state)?;
                let fresh = self.fresh(node, path, x, &step)? + self.tiny;
                let error = step.lipschitz * x.error + fresh;
                let radius = step.out.radius + error;
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
                self.product(step.lipschitz, *inputs, *outputs, r) + self.gamma(2) * bias
            }
            Op::Conv(c) => {
                let pixels = match step.out.layout {
                    Layout::Image([_, h, w]) => h * w,
                    _ => 1,
                };
                let bias = self.bias(path, c.bias)? * count(pixels).sqrt();
                self.convolution(step.lipschitz, c, r) + self.gamma(2) * bias
            }
            // What is only compared is exact, and each mean or norm is off by a share of itself.
            Op::Pool(Pool { pooling: Pooling::Max, .. })
            | Op::GlobalPool { pooling: Pooling::Max } => Upper::ZERO,
            Op::Pool(pool) => self.gamma(pool.window * pool.window + 8) * out,
            Op::GlobalPool { .. } => self.gamma(x.width + 8) * out,
            Op::Positions { .. } => self.gamma(2) * out,
            Op::Activation { function, scale } => {
                abs(*scale) * self.pointwise(*function, r, x.width) + self.gamma(2) * out
            }
            Op::Scale { .. } => self.gamma(2) * out,
            Op::SoftCap { cap } => self.units() * (r + abs(*cap) * root),
            // What is only moved, cut or compared is exact.
            Op::Clip { .. }
            | Op::Shift { .. }
            | Op::SpaceToDepth { .. }
            | Op::MaxMin
            | Op::Flatten
            | Op::Patches { .. }
            | Op::ClassToken { .. }
            | Op::FirstToken
            | Op::LastToken => Upper::ZERO,
            Op::RmsNorm { .. } | Op::Normalise { .. } => self.gamma(x.width + 16) * out,
            Op::LayerNorm { .. } => {
                self.gamma(x.width + 16) * out + step.lipschitz * self.centring(r, x.width)
            }
            Op::MeanPool | Op::FirstAndMean => self.gamma(self.tokens + 4) * out,
            Op::GatedMlp { dim, hidden, function, bias } => {
                self.gated(path, r, *dim, *hidden, *function, *bias)?
            }
            Op::Attention(a) => self.attention(a, path, r, out)?,
            // Each head's product, whose error its share scales like the product itself.
            Op::OffsetAttention { inputs, head_dim, .. } => {
                self.product(step.lipschitz, *inputs, *head_dim, r) + self.gamma(4) * out
            }
            // An embedding is not computed with, and the others are made of nodes.
            Op::Embedding { .. }
            | Op::Sequential { .. }
            | Op::Parallel { .. }
            | Op::Residual { .. } => Upper::INFINITY,
        })
    }

    fn units(&self) -> Upper {
        Upper::from_f64(POINTWISE * self.unit)
    }

    fn bias(&self, path: &str, bias: bool) -> Result<Upper, Error> {
        if bias { self.norms.vector(&join(path, "bias")) } else { Ok(Upper::ZERO) }
    }

    /// Wx of `inputs` to `outputs` elements, in any order of its sums, and what is added to it: each
    /// element is off by at most `γ_n (|W| |x|)_i`, and `‖|W|‖ ≤ ‖W‖_F ≤ √min ‖W‖`.
    fn product(&self, norm: Upper, inputs: usize, outputs: usize, r: Upper) -> Upper {
        self.gamma(inputs + 4) * (count(inputs.min(outputs)).sqrt() * norm * r) + self.tiny
    }

    /// As [`Pass::product`], for a convolution of norm at most `norm`: each element is off by at most
    /// `γ_n` times that of the absolute values, and for N frequencies of the torus
    /// `‖|K|‖ ≤ Σ_t ‖W_t‖_F ≤ k ‖W‖_F`, with `‖W‖_F² = Σ_ω ‖A(ω)‖_F²/N ≤ min ‖K‖²`.
    fn convolution(&self, norm: Upper, c: &Convolution, r: Upper) -> Upper {
        let terms = c.inputs / c.groups * c.kernel * c.kernel;
        self.gamma(terms + 4) * (absolute(norm, c) * r) + self.tiny
    }

    /// φ of elements whose norm is at most r.
    fn pointwise(&self, function: Function, r: Upper, width: usize) -> Upper {
        let slope = pointwise::slope(function, r).max(Upper::ONE);
        self.units() * slope * (r + count(width).sqrt()) + self.tiny
    }

    /// x − mean x: the mean is off by at most `γ_d` times that of |x|.
    fn centring(&self, r: Upper, width: usize) -> Upper {
        self.gamma(width + 8) * (r + r) + self.tiny
    }

    fn gated(
        &self,
        path: &str,
        r: Upper,
        dim: usize,
        hidden: usize,
        function: Function,
        bias: bool,
    ) -> Result<Upper, Error> {
        let map = |name: &str| -> Result<(Upper, Upper), Error> {
            let path = join(path, name);
            let norm = self.norms.matrix(&Block::whole(join(&path, "weight")))?;
            Ok((norm, self.bias(&path, bias)?))
        };
        // The size and the rounding of each projection.
        let project = |(norm, bias): (Upper, Upper)| {
            let off = self.product(norm, dim, hidden, r) + self.gamma(2) * bias;
            (norm * r + bias + off, off)
        };
        let (gate, gate_off) = project(map("gate")?);
        let (up, up_off) = project(map("up")?);
        let passed = pointwise::norm(function, gate, gate, hidden);
        let passed_off = pointwise::slope(function, gate) * gate_off
            + self.pointwise(function, gate, hidden)
            + self.gamma(2) * passed;
        let (product, product_off) = (
            (passed + passed_off) * up,
            passed_off * up + passed * up_off + self.gamma(2) * passed * up,
        );
        let (down, bias) = map("down")?;
        Ok(down * product_off + self.product(down, hidden, dim, product) + self.gamma(2) * bias)
    }

    /// A head's logits are off by Δ/2, so its probabilities by a factor of at most e^(2Δ).
    fn attention(&self, a: &Attention, path: &str, r: Upper, out: Upper) -> Result<Upper, Error> {
        let (query, query_off) = self.projection(a, path, "query", a.heads, r)?;
        let (key, key_off) = self.projection(a, path, "key", a.key_value_heads, r)?;
        let (value, value_off) = self.projection(a, path, "value", a.key_value_heads, r)?;
        let scale = abs(a.logit_scale);
        let mut logit = scale * query * key;
        let mut logit_off = scale * (query_off * key + query * key_off)
            + self.gamma(a.head_dim + 4) * scale * query * key;
        if let Some(cap) = a.logit_cap {
            logit_off = logit_off + self.units() * (logit + abs(cap));
            logit = logit.min(abs(cap));
        }
        if a.position_bias.is_some() {
            // No element is above the norm.
            logit = logit + self.norms.matrix(&Block::whole(join(path, "position_bias.weight")))?;
        }
        if let Some(alibi) = &a.alibi {
            let steepest = alibi.slopes.iter().fold(Upper::ZERO, |max, s| max.max(abs(*s)));
            logit = logit + steepest * count(self.tokens);
        }
        let two = count(2);
        let delta = two * logit_off + self.gamma(8) * logit;
        if delta > Upper::from_f64(0.25) {
            return Ok(Upper::INFINITY);
        }
        // e^(2Δ) − 1 ≤ 4Δ for Δ ≤ 1/4; the rest is the exponential, the sum, the quotient and the
        // mean of the values.
        let share = count(4) * delta
            + count(8) * self.gamma(self.tokens + 16)
            + count(self.tokens) * Upper::from_f64(NEGLIGIBLE);
        // The values of a group are those of each of its heads.
        let repeats = count(a.heads / a.key_value_heads.max(1)).sqrt();
        let mixed_off = repeats * (value_off + share * value);
        let width = a.heads * a.head_dim;
        let norm = self.norms.matrix(&Block::whole(join(path, "output.weight")))?;
        let bias = self.bias(&join(path, "output"), a.output_bias)?;
        let off = norm * mixed_off
            + self.product(norm, width, a.dim, repeats * value + mixed_off)
            + self.gamma(2) * bias;
        Ok(abs(a.output_scale) * off + self.gamma(4) * out)
    }

    /// Size and rounding of the queries, keys or values of all heads, of exact inputs up to r.
    fn projection(
        &self,
        a: &Attention,
        path: &str,
        name: &str,
        heads: usize,
        r: Upper,
    ) -> Result<(Upper, Upper), Error> {
        let width = heads * a.head_dim;
        let norm = self.norms.matrix(&Block::whole(join(path, &format!("{name}.weight"))))?;
        let bias = self.bias(&join(path, name), a.bias)?;
        let mut off = self.product(norm, a.dim, width, r) + self.gamma(2) * bias;
        let mut size = norm * r + bias + off;
        if name == "value" {
            return Ok((size, off));
        }
        if let Some(eps) = a.query_key_norm {
            let weight = |what: &str| join(path, &format!("{name}_norm.{what}"));
            let gain = self.norms.largest(&weight("weight"))?;
            let slope = gain * Upper::ONE.div_up(crate::upper::root_down(eps));
            let shift = match a.query_key_shift {
                true => self.norms.vector(&weight("bias"))? * count(heads).sqrt(),
                false => Upper::ZERO,
            };
            let over = if a.query_key_span == Span::Heads { width } else { a.head_dim };
            off = slope * off;
            if a.query_key_kind == NormKind::Layer {
                off = off + slope * self.centring(size, over);
            }
            size = (gain * count(width).sqrt()).min(slope * size) + shift;
            off = off + self.gamma(over + 16) * size;
            size = size + off;
        }
        if a.rotary.is_some() {
            // The angles are off by a few units of the position times the logarithm of the base.
            off = off + self.units() * count(self.tokens) * size;
            size = size + off;
        }
        Ok((size, off))
    }
}

/// `‖|K|‖` of a convolution of norm at most `norm`.
pub(crate) fn absolute(norm: Upper, c: &Convolution) -> Upper {
    let inputs = c.inputs / c.groups.max(1);
    // The channels of the squares of a stride, at all of them.
    let most = (c.outputs / c.groups.max(1)).min(inputs.saturating_mul(c.stride * c.stride));
    // Of all groups together, whose norms are at most that of the whole.
    count(c.kernel) * count(most.saturating_mul(c.groups)).sqrt() * norm
}
