//! What each node of a graph takes, for one example.

use lipschitz_nn::Graph;
use lipschitz_nn::graph::{Attention, Function, Input, Node, NormKind, Op};
use lipschitz_nn::linalg::Precision;
use lipschitz_nn::ops::{TILE_PARTS, TILE_WIDTH};

/// Bytes of a number in f32, and in bf16.
pub(super) const F32: f64 = 4.0;
const BF16: f64 = 2.0;

/// Temporaries of the backward pass beside what is kept, in tensors of one size: a gradient, what
/// is added to it, the sum. Measured for the cross-entropy of logits, and for a softmax.
const AT_WORK: f64 = 3.0;
const LOGITS_AT_WORK: f64 = 5.0;
const SOFTMAX_AT_WORK: f64 = 12.0;

/// One node's share of a step for one example: bytes, and floating-point operations.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Segment {
    /// Its input.
    pub(super) input: f64,
    /// Activations kept for the gradient.
    pub(super) kept: f64,
    /// Those of them that the CPU's kernels keep, too.
    pub(super) least: f64,
    /// The logits, in the last segment.
    pub(super) logits: f64,
    /// Temporaries of the backward pass beside them.
    pub(super) at_work: f64,
    /// Weights rounded to bf16, whatever the number of examples.
    pub(super) rounded_weights: f64,
    /// Operations of matmuls in the forward pass.
    pub(super) products: f64,
    /// Operations of a GPU's attention in forward and backward pass, which are in f32, and in a forward pass.
    pub(super) tiles: [f64; 2],
    /// Operations for the gradient of the data, which nothing needs.
    pub(super) without_gradient: f64,
}

/// Follows the shape of one example through a graph and counts.
struct Counter {
    precision: Precision,
    /// Whether elements behind activations are left out.
    dropout: bool,
    /// Whether the kernels of a GPU run, and not candle's operations alone.
    kernels: bool,
    /// Whether attention stays within documents.
    separator: bool,
    /// Channels and sides of an image.
    image: [usize; 3],
    tokens: f64,
    width: f64,
    out: Segment,
}

/// The parts of a graph, for inputs of which there are as many positions as in `input`.
pub(super) fn segments(
    graph: &Graph,
    input: Input,
    precision: Precision,
    dropout: bool,
    kernels: bool,
) -> Vec<Segment> {
    let (width, image, separator) = match graph.input() {
        Input::Tokens { separator, .. } => (0.0, [0; 3], separator.is_some()),
        Input::Pixels { channels, height, width } => {
            ((channels * height * width) as f64, [channels, height, width], false)
        }
        Input::Vector { dim } => (dim as f64, [0; 3], false),
    };
    let zeros = if let Input::Tokens { zero_prefix, .. } = graph.input() { zero_prefix } else { 0 };
    let tokens = (input.positions() + zeros) as f64;
    let mut counter = Counter {
        precision,
        dropout,
        kernels,
        separator,
        image,
        tokens,
        width,
        out: Segment::default(),
    };
    let mut out = Vec::new();
    let mut first = true;
    counter.top(graph.nodes(), &mut |node, segment| {
        let mut segment = segment;
        if let (Op::Linear { .. } | Op::Conv(_), true) = (&node.op, first) {
            segment.without_gradient = segment.products;
        }
        first &= !matches!(node.op, Op::Linear { .. } | Op::Conv(_) | Op::Embedding { .. });
        out.push(segment);
    });
    // Cross-entropy: the logits less their maximum, exponentials, logarithms of shares; a kernel keeps none of
    // these, and writes the gradient alone.
    let logits = F32 * counter.tokens * counter.width;
    if let Some(last) = out.last_mut() {
        last.kept += if kernels { 0.0 } else { 3.0 * logits };
        // Their gradient.
        last.least += logits;
        last.logits = logits;
        last.at_work = last.at_work.max(if kernels { AT_WORK } else { LOGITS_AT_WORK } * logits);
    }
    out
}

/// Tensors that an elementwise function makes out of candle's operations.
fn tensors(function: Function) -> f64 {
    match function {
        Function::Identity => 0.0,
        Function::Relu
        | Function::Abs
        | Function::GeluErf
        | Function::GeluTanh
        | Function::Silu
        | Function::Tanh => 1.0,
        Function::Relu2 => 2.0,
        Function::QuickGelu | Function::HardSigmoid => 3.0,
        Function::Sigmoid | Function::HardSwish => 4.0,
        Function::LeakyRelu { .. } => 5.0,
        Function::Softplus => 7.0,
        Function::Elu { .. } => 8.0,
        Function::Mish => 9.0,
    }
}

impl Counter {
    /// Each node that is not a sequence.
    fn top(&mut self, nodes: &[Node], each: &mut dyn FnMut(&Node, Segment)) {
        for node in nodes {
            if let Op::Sequential { body } = &node.op {
                self.top(body, each);
                continue;
            }
            self.out = Segment { input: F32 * self.tokens * self.width, ..Segment::default() };
            self.node(node);
            each(node, self.out);
        }
    }

    /// Tensors that one operation makes: out of candle's, so many, and one by a kernel.
    fn made_by(&self, composed: f64) -> f64 {
        if self.kernels { composed.min(1.0) } else { composed }
    }

    /// Keeps tensors of this many numbers.
    fn keep(&mut self, tensors: f64, numbers: f64) {
        self.out.kept += tensors * F32 * numbers;
        self.out.at_work = self.out.at_work.max(AT_WORK * F32 * numbers);
    }

    /// What is left out of this many numbers, and the others.
    fn thin(&mut self, numbers: f64) {
        if self.dropout {
            self.keep(2.0, numbers);
        }
    }

    /// Numbers that the CPU's kernels keep.
    fn hold(&mut self, numbers: f64) {
        self.out.least += F32 * numbers;
    }

    /// `times` matmuls of `[rows, inner]` and `[inner, columns]`.
    fn matmul(&mut self, times: f64, [rows, inner, columns]: [f64; 3], weights: bool) {
        self.keep(1.0, times * rows * columns);
        self.out.products += 2.0 * times * rows * inner * columns;
        if self.precision == Precision::Bf16 {
            self.out.kept += BF16 * times * rows * (inner + columns);
            let other = BF16 * times * inner * columns;
            if weights {
                // Beside the weight in rows, its transpose.
                self.out.rounded_weights += 2.0 * other;
            } else {
                self.out.kept += other;
            }
        }
    }

    fn linear(&mut self, inputs: f64, outputs: f64, bias: bool) {
        let tokens = self.tokens;
        self.hold(tokens * outputs);
        self.matmul(1.0, [tokens, inputs, outputs], true);
        if bias {
            self.keep(1.0, tokens * outputs);
        }
    }

    fn node(&mut self, node: &Node) {
        let here = self.tokens * self.width;
        match &node.op {
            Op::Sequential { body } => body.iter().for_each(|node| self.node(node)),
            Op::Parallel { branches } => {
                let (tokens, width, image) = (self.tokens, self.width, self.image);
                for branch in branches {
                    (self.tokens, self.width, self.image) = (tokens, width, image);
                    self.node(branch);
                }
                // The sums.
                self.keep((branches.len() as f64 - 1.0).max(0.0), self.tokens * self.width);
            }
            Op::Residual { body, .. } => {
                body.iter().for_each(|node| self.node(node));
                self.keep(self.made_by(3.0), here);
            }
            Op::Linear { inputs, outputs, bias } => {
                self.linear(*inputs as f64, *outputs as f64, *bias);
                self.width = *outputs as f64;
            }
            Op::Embedding { dim, .. } => {
                self.width = *dim as f64;
                self.keep(1.0, self.tokens * self.width);
                self.hold(self.tokens * self.width);
            }
            Op::Activation { function, scale } => {
                let composed = tensors(*function) + if *scale == 1.0 { 0.0 } else { 1.0 };
                self.keep(self.made_by(composed), here);
                self.thin(here);
            }
            Op::Positions { .. } | Op::Scale { .. } | Op::Clip { .. } => self.keep(1.0, here),
            Op::SoftCap { .. } | Op::RmsNorm { .. } => self.keep(self.made_by(3.0), here),
            Op::Normalise { .. } => self.keep(2.0, here),
            Op::LayerNorm { bias, .. } => {
                self.keep(self.made_by(if *bias { 5.0 } else { 4.0 }), here);
            }
            Op::GatedMlp { dim, hidden, bias, function } => {
                let (dim, hidden) = (*dim as f64, *hidden as f64);
                self.linear(dim, hidden, *bias);
                self.linear(dim, hidden, *bias);
                self.keep(self.made_by(tensors(*function)) + 1.0, self.tokens * hidden);
                self.thin(self.tokens * hidden);
                self.linear(hidden, dim, *bias);
            }
            Op::Attention(attention) => self.attention(attention),
            // The values, those of earlier tokens, and their multiples.
            Op::OffsetAttention { inputs, head_dim, offsets } => {
                let width = (offsets.len() * head_dim) as f64;
                self.linear(*inputs as f64, width, false);
                self.width = width;
                self.keep(3.0, self.tokens * width);
                self.hold(self.tokens * width);
            }
            Op::Conv(c) => {
                let ([_, outer], [o, h, w]) = (c.weight(), self.made(&node.op));
                let (places, inner) = ((h * w) as f64, outer as f64);
                self.width = o as f64 * places;
                self.hold(self.width);
                self.matmul(1.0, [o as f64, inner, places], true);
            }
            Op::Shift { .. } => {
                self.keep(1.0, here);
                self.hold(here);
            }
            Op::SpaceToDepth { .. } => {
                self.made(&node.op);
                self.keep(1.0, here);
            }
            // The pixels at each place of a window, and what becomes of them.
            Op::Pool(pool) => {
                let [c, h, w] = self.made(&node.op);
                self.width = (c * h * w) as f64;
                self.hold(self.width);
                self.keep(3.0 * (pool.window * pool.window) as f64, self.width);
            }
            Op::GlobalPool { .. } => {
                self.width = self.image[0] as f64;
                self.hold(self.width);
                self.keep(3.0, here);
            }
            // Both halves, which is larger, and the larger and the smaller.
            Op::MaxMin => {
                self.keep(3.0, here);
                self.thin(here);
            }
            Op::ClassToken { .. } => {
                self.tokens += 1.0;
                self.keep(1.0, self.tokens * self.width);
            }
            Op::FirstToken | Op::LastToken | Op::MeanPool => {
                self.tokens = 1.0;
                self.keep(1.0, self.width);
            }
            Op::FirstAndMean => {
                self.tokens = 1.0;
                self.width *= 2.0;
                self.keep(2.0, self.width);
            }
            Op::Flatten => {
                self.width *= self.tokens;
                self.tokens = 1.0;
            }
            Op::Patches { size } => {
                let patch = (self.image[0] * size * size) as f64;
                (self.tokens, self.width) = (here / patch, patch);
                self.keep(1.0, here);
            }
        }
    }

    /// The image that a node makes, which is the next one's.
    fn made(&mut self, op: &Op) -> [usize; 3] {
        // A graph fits together.
        self.image = Op::image(self.image, op).unwrap_or(self.image);
        self.image
    }

    fn attention(&mut self, a: &Attention) {
        let (tokens, heads, head) = (self.tokens, a.heads as f64, a.head_dim as f64);
        let queries = heads * head;
        let keys = (a.key_value_heads * a.head_dim) as f64;
        for (outputs, turned) in [(queries, true), (keys, true), (keys, false)] {
            self.linear(a.dim as f64, outputs, a.bias);
            let norm = match a.query_key_kind {
                _ if a.query_key_norm.is_none() || !turned => 0.0,
                NormKind::Rms => self.made_by(3.0),
                NormKind::Layer => self.made_by(5.0),
            };
            // Four products of halves with sines and cosines, two sums of them, both beside
            // each other; and gradients of the sines and cosines, which nothing asks for
            // and candle keeps to the end.
            let rotary = if a.rotary.is_some() && turned { 4.0 + 2.0 } else { 0.0 };
            self.keep(norm + rotary, tokens * outputs);
        }
        if self.kernels && a.head_dim <= TILE_WIDTH && (a.causal || !self.separator) {
            // Keys and values side by side, the mixed values, and two numbers for each row of logits.
            self.keep(2.0, tokens * keys);
            self.keep(1.0, tokens * (queries + 2.0 * heads));
            if a.position_bias.is_some() {
                // Sums of gradients for each distance.
                let parts = F32 * heads * TILE_PARTS as f64 * 2.0 * tokens;
                self.out.at_work = self.out.at_work.max(parts);
            }
            // Two products in the forward pass and seven in the backward pass; what a mask hides is left out.
            let seen = if a.causal { 0.5 } else { 1.0 };
            let one = 2.0 * seen * heads * tokens * tokens * head;
            self.out.tiles = [self.out.tiles[0] + 9.0 * one, self.out.tiles[1] + 2.0 * one];
        } else {
            self.composed_attention(a);
        }
        // The mixed values.
        self.hold(tokens * queries);
        self.linear(queries, a.dim as f64, a.output_bias);
        if a.output_scale != 1.0 {
            self.keep(1.0, self.tokens * self.width);
        }
    }

    /// Logits, probabilities and mixed values as tensors.
    fn composed_attention(&mut self, a: &Attention) {
        let (tokens, heads, head) = (self.tokens, a.heads as f64, a.head_dim as f64);
        let queries = heads * head;
        // Heads before tokens; keys and values as often as there are queries; keys
        // transposed; the scale.
        self.keep(1.0 + 4.0, tokens * queries);
        self.matmul(heads, [tokens, head, tokens], false);
        let cap = if a.logit_cap.is_some() { 3.0 } else { 0.0 };
        let bias = if a.position_bias.is_some() || a.alibi.is_some() { 1.0 } else { 0.0 };
        let mask = if a.causal || a.window.is_some() || self.separator { 2.0 } else { 0.0 };
        let scores = heads * tokens * tokens;
        // A mask has its own gradient; the softmax keeps differences from the maximum,
        // exponentials and shares.
        self.keep(cap + bias + mask + 3.0, scores);
        self.out.at_work = self.out.at_work.max(SOFTMAX_AT_WORK * F32 * scores);
        self.matmul(heads, [tokens, tokens, head], false);
        self.keep(1.0, tokens * queries);
    }
}
