//! What a step needs before anything is run: memory of a process, floating-point operations, bytes
//! exchanged and time, from shapes alone.
//!
//! Counted are candle's composed operations, which is what runs on a GPU; on the CPU whole blocks
//! are one operation and keep less.

use anyhow::Result;
use lipschitz_nn::Graph;
use lipschitz_nn::graph::{Function, Geometry, Input, Node, Op, Parameter};
use lipschitz_nn::ops::Precision;
use lipschitz_opt::{MAX_BATCHED_ELEMENTS, OptimizerConfig};

use crate::config::Config;
use crate::ranks::owners;
use crate::step;

/// Bytes of a number in f32, and in bf16.
const F32: f64 = 4.0;
const BF16: f64 = 2.0;

/// Times that a number which is kept for the gradient passes through memory: written and read on
/// the way forward; on the way back its gradient is cleared, read and written, what is added to it
/// written and read, and the number and the next gradient read.
const PASSES: f64 = 9.0;

/// Tensors of one size that are at work on the way back beside those that are kept: a gradient,
/// what is added to it, the sum. Measured of what cross-entropy makes of logits, and of a softmax.
const AT_WORK: f64 = 3.0;
const LOGITS_AT_WORK: f64 = 5.0;
const SOFTMAX_AT_WORK: f64 = 12.0;

/// Tensors that an update of a stack of matrices works with at a time.
const STACK: f64 = 8.0;

/// Times that an update and a constraint pass over weights, gradients and momentum.
const UPDATE_PASSES: f64 = 12.0;

/// What a device sustains.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Floating-point operations a second of products in f32.
    pub f32: f64,
    /// Of products in bf16.
    pub bf16: f64,
    /// Bytes a second to and from its memory.
    pub memory: f64,
    /// Bytes a second that a process sends to the others.
    pub exchange: f64,
}

/// Floating-point operations of products, by what they are worked out in.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// In f32.
    pub f32: f64,
    /// In bf16.
    pub bf16: f64,
}

impl Work {
    fn of(precision: Precision, operations: f64) -> Self {
        match precision {
            Precision::F32 => Self { f32: operations, bf16: 0.0 },
            Precision::Bf16 => Self { f32: 0.0, bf16: operations },
        }
    }

    fn seconds(self, machine: &Machine) -> f64 {
        self.f32 / machine.f32 + self.bf16 / machine.bf16
    }
}

/// What a step needs of each process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Weights, of the whole network.
    pub weights: u64,
    /// Tokens, or images, a step: of all processes.
    pub tokens: u64,
    /// Bytes.
    pub memory: Memory,
    /// Of forward and backward pass.
    pub gradient: Work,
    /// Of the optimizer and the constraint, of the process that has most; none known for an SVD.
    pub update: Option<Work>,
    /// Bytes that forward and backward pass move to and from memory, and the update.
    pub moved: (f64, f64),
    /// Bytes that a process sends.
    pub sent: f64,
}

/// Bytes of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// The weights, in f32.
    pub weights: f64,
    /// Their gradients.
    pub gradients: f64,
    /// What the optimizer keeps for the weights that are this process's own.
    pub optimizer: f64,
    /// What forward and backward pass keep of one part of the batch.
    pub activations: f64,
    /// What an update works with, after the activations are gone.
    pub update: f64,
}

impl Memory {
    /// The most at a time.
    pub fn peak(&self) -> f64 {
        self.weights + self.gradients + self.optimizer + self.activations.max(self.update)
    }
}

impl Estimate {
    /// Seconds of the products of forward and backward pass, of what they move through memory, of
    /// update and constraint, and of exchange. None of them overlap.
    pub fn seconds(&self, machine: &Machine) -> Option<[f64; 4]> {
        let update = self.update?.seconds(machine) + self.moved.1 / machine.memory;
        let exchange = self.sent / machine.exchange;
        Some([self.gradient.seconds(machine), self.moved.0 / machine.memory, update, exchange])
    }
}

/// What a step of a run on this many processes needs.
///
/// # Errors
/// If they cannot share the batch evenly.
pub fn estimate(config: &Config, graph: &Graph, processes: usize) -> Result<Estimate> {
    let train = &config.train;
    let recipe = config.recipe();
    let parameters = graph.parameters();
    let numbers = |p: &Parameter| p.shape.iter().product::<usize>() as f64;
    let weights = parameters.iter().map(numbers).sum::<f64>();
    let examples = step::share(train.batch_size, processes)? as f64;
    let part = (examples / train.accumulate as f64).ceil();

    let segments = segments(graph, train.precision);
    let forward: f64 = segments.iter().map(|s| s.products).sum();
    let unneeded: f64 = segments.iter().map(|s| s.without_gradient).sum();
    let kept: f64 = segments.iter().map(|s| s.kept).sum();
    let again =
        if train.recompute { segments.iter().rev().skip(1).map(|s| s.products).sum() } else { 0.0 };
    let held = if train.recompute {
        segments.iter().map(|s| s.input).sum::<f64>()
            + segments.iter().map(|s| s.kept).fold(0.0, f64::max)
    } else {
        kept
    };
    let rounded = |s: &Segment| s.rounded_weights;
    let rounded: f64 = if train.recompute {
        segments.iter().map(rounded).fold(0.0, f64::max)
    } else {
        segments.iter().map(rounded).sum()
    };
    let at_work = segments.iter().map(|s| s.at_work).fold(0.0, f64::max);

    let owners = owners(&parameters.iter().map(step::work).collect::<Vec<_>>(), processes);
    let of = |rank: usize| {
        parameters.iter().zip(&owners).filter(move |(_, owner)| **owner == rank).map(|(p, _)| p)
    };
    let most = |f: &dyn Fn(&Parameter) -> f64| {
        (0..processes).map(|rank| of(rank).map(f).sum()).fold(0.0, f64::max)
    };
    let own = most(&numbers);
    let state = most(&|p| {
        numbers(p)
            * match recipe.optimizer_of(p) {
                OptimizerConfig::Adamw(_) => 2.0,
                OptimizerConfig::Muon(_) | OptimizerConfig::Sgd(_) => 1.0,
            }
    });
    let counted = parameters.iter().all(|p| recipe.constraint_work(p).is_some());
    let in_bf16 = |p: &Parameter| match recipe.optimizer_of(p) {
        OptimizerConfig::Muon(muon) => muon.precision == Precision::Bf16,
        OptimizerConfig::Adamw(_) | OptimizerConfig::Sgd(_) => false,
    };
    let update = Work {
        // An SVD, which has no count, takes the whole of it away below.
        f32: most(&|p| {
            let update = if in_bf16(p) { 0.0 } else { recipe.update_work(p) };
            update + recipe.constraint_work(p).unwrap_or_default()
        }),
        bf16: most(&|p| if in_bf16(p) { recipe.update_work(p) } else { 0.0 }),
    };
    // All matrices of one shape go through an update together, as far as they fit.
    let stack = parameters.iter().filter(|p| p.geometry == Geometry::Matrix).map(|p| {
        let alike: f64 =
            parameters.iter().filter(|other| other.shape == p.shape).map(numbers).sum();
        alike.min(own).min((MAX_BATCHED_ELEMENTS as f64).max(numbers(p)))
    });
    let stack = stack.fold(0.0, f64::max);

    let others = (processes - 1) as f64 / processes as f64;
    Ok(Estimate {
        weights: weights as u64,
        tokens: graph.input().positions() as u64 * train.batch_size as u64,
        memory: Memory {
            weights: F32 * weights,
            // With several parts, the sum so far and the gradient of a part, which is added block
            // by block where blocks are run again.
            gradients: F32
                * weights
                * if train.accumulate > 1 && !train.recompute { 2.0 } else { 1.0 },
            optimizer: F32 * state,
            activations: (held + at_work) * part + rounded,
            update: F32 * (own + STACK * stack),
        },
        gradient: Work::of(train.precision, examples * (3.0 * forward + again - unneeded)),
        update: counted.then_some(update),
        // Working something out again writes and reads it once more.
        moved: (
            (PASSES + if train.recompute { 2.0 } else { 0.0 }) * kept * examples,
            UPDATE_PASSES * F32 * own,
        ),
        // A sum over a ring, then the weights from whoever moved them.
        sent: F32 * weights * others * 3.0,
    })
}

/// A node's part of a step, of one example: bytes, and floating-point operations.
#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    /// What goes in.
    input: f64,
    /// What is kept for the gradient.
    kept: f64,
    /// What is worked with beside it on the way back.
    at_work: f64,
    /// Weights rounded to bf16, whatever the number of examples.
    rounded_weights: f64,
    /// Of products, forward.
    products: f64,
    /// Of products for the gradient of the data, which nothing needs.
    without_gradient: f64,
}

/// Walks through a graph with the shape of one example.
struct Walk {
    precision: Precision,
    /// Whether attention stays within documents.
    separator: bool,
    /// Of pictures.
    channels: f64,
    tokens: f64,
    width: f64,
    out: Segment,
}

fn segments(graph: &Graph, precision: Precision) -> Vec<Segment> {
    let (width, channels, separator) = match graph.input() {
        Input::Tokens { separator, .. } => (0.0, 0.0, separator.is_some()),
        Input::Pixels { channels, height, width } => {
            ((channels * height * width) as f64, channels as f64, false)
        }
        Input::Vector { dim } => (dim as f64, 0.0, false),
    };
    let tokens = graph.input().positions() as f64;
    let mut walk = Walk { precision, separator, channels, tokens, width, out: Segment::default() };
    let mut out = Vec::new();
    let mut first = true;
    walk.top(graph.nodes(), &mut |node, segment| {
        let mut segment = segment;
        if let (Op::Linear { .. }, true) = (&node.op, first) {
            segment.without_gradient = segment.products;
        }
        first &= !matches!(node.op, Op::Linear { .. } | Op::Embedding { .. });
        out.push(segment);
    });
    // Cross-entropy: the logits less their maximum, exponentials, logarithms of shares.
    let logits = F32 * walk.tokens * walk.width;
    if let Some(last) = out.last_mut() {
        last.kept += 3.0 * logits;
        last.at_work = last.at_work.max(LOGITS_AT_WORK * logits);
    }
    out
}

impl Walk {
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

    /// Keeps tensors of this many numbers.
    fn keep(&mut self, tensors: f64, numbers: f64) {
        self.out.kept += tensors * F32 * numbers;
        self.out.at_work = self.out.at_work.max(AT_WORK * F32 * numbers);
    }

    /// A product of `[rows, inner]` and `[inner, columns]`, as often.
    fn product(&mut self, times: f64, [rows, inner, columns]: [f64; 3], weights: bool) {
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
        self.product(1.0, [tokens, inputs, outputs], true);
        if bias {
            self.keep(1.0, tokens * outputs);
        }
    }

    fn node(&mut self, node: &Node) {
        let here = self.tokens * self.width;
        match &node.op {
            Op::Sequential { body } => body.iter().for_each(|node| self.node(node)),
            Op::Residual { body, .. } => {
                body.iter().for_each(|node| self.node(node));
                self.keep(3.0, here);
            }
            Op::Linear { inputs, outputs, bias } => {
                self.linear(*inputs as f64, *outputs as f64, *bias);
                self.width = *outputs as f64;
            }
            Op::Embedding { dim, .. } => {
                self.width = *dim as f64;
                self.keep(1.0, self.tokens * self.width);
            }
            Op::Activation { function, scale } => {
                let own = if *function == Function::Sigmoid { 4.0 } else { 1.0 };
                self.keep(own + if *scale == 1.0 { 0.0 } else { 1.0 }, here);
            }
            Op::Positions { .. } | Op::Scale { .. } | Op::Clip { .. } => self.keep(1.0, here),
            Op::SoftCap { .. } | Op::RmsNorm { .. } => self.keep(3.0, here),
            Op::LayerNorm { bias, .. } => self.keep(if *bias { 5.0 } else { 4.0 }, here),
            Op::GatedMlp { dim, hidden, bias, .. } => {
                let (dim, hidden) = (*dim as f64, *hidden as f64);
                self.linear(dim, hidden, *bias);
                self.linear(dim, hidden, *bias);
                self.keep(2.0, self.tokens * hidden);
                self.linear(hidden, dim, *bias);
            }
            Op::Attention(a) => {
                let (tokens, heads, head) = (self.tokens, a.heads as f64, a.head_dim as f64);
                let queries = heads * head;
                let keys = (a.key_value_heads * a.head_dim) as f64;
                for (outputs, turned) in [(queries, true), (keys, true), (keys, false)] {
                    self.linear(a.dim as f64, outputs, a.bias);
                    let norm = if a.query_key_norm.is_some() && turned { 3.0 } else { 0.0 };
                    // Four products of halves with sines and cosines, two sums of them, both beside
                    // each other; and gradients of the sines and cosines, which nothing asks for
                    // and candle keeps to the end.
                    let rotary = if a.rotary.is_some() && turned { 4.0 + 2.0 } else { 0.0 };
                    self.keep(norm + rotary, tokens * outputs);
                }
                // Heads before tokens; keys and values as often as there are queries; keys
                // transposed; the scale.
                self.keep(1.0 + 4.0, tokens * queries);
                self.product(heads, [tokens, head, tokens], false);
                let cap = if a.logit_cap.is_some() { 3.0 } else { 0.0 };
                let bias = if a.position_bias.is_some() { 1.0 } else { 0.0 };
                let mask = if a.causal || a.window.is_some() || self.separator { 2.0 } else { 0.0 };
                let scores = heads * tokens * tokens;
                // A mask has its own gradient; the softmax keeps differences from the maximum,
                // exponentials and shares.
                self.keep(cap + bias + mask + 3.0, scores);
                self.out.at_work = self.out.at_work.max(SOFTMAX_AT_WORK * F32 * scores);
                self.product(heads, [tokens, tokens, head], false);
                self.keep(1.0, tokens * queries);
                self.linear(queries, a.dim as f64, a.output_bias);
                if a.output_scale != 1.0 {
                    self.keep(1.0, here);
                }
            }
            Op::ClassToken { .. } => {
                self.tokens += 1.0;
                self.keep(1.0, self.tokens * self.width);
            }
            Op::FirstToken | Op::MeanPool => {
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
                let patch = self.channels * (size * size) as f64;
                (self.tokens, self.width) = (here / patch, patch);
                self.keep(1.0, here);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(preset: &str, settings: &[&str], outputs: usize) -> Estimate {
        let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
        let config = Config::parse(crate::preset::text(preset).unwrap(), &settings).unwrap();
        estimate(&config, &config.graph(outputs).unwrap(), 1).unwrap()
    }

    #[test]
    fn products_are_counted() {
        // The gradient with respect to pixels is not worked out.
        let mlp = of("mlp-cifar10", &["train.batch_size=7"], 10);
        let (first, others) = (3072 * 256, 256 * 256 + 256 * 10);
        assert_eq!(
            mlp.gradient,
            Work { f32: (7 * 2 * (2 * first + 3 * others)) as f64, bf16: 0.0 }
        );
        assert_eq!(mlp.tokens, 7);

        let settings = [
            "model.dim=64",
            "model.layers=2",
            "model.heads=2",
            "model.context=32",
            "train.batch_size=5",
        ];
        let gpt = of("gpt-shakespeare", &settings, 30);
        // Four square matrices and two of 4 × 64 a layer, the head; scores and mixed values.
        let forward = 2 * 32 * (2 * 12 * 64 * 64 + 64 * 30) + 2 * 2 * 2 * 32 * 32 * 64;
        assert_eq!(gpt.gradient.f32, (5 * 3 * forward) as f64);
        assert_eq!(gpt.tokens, 5 * 32);
        let again = of(
            "gpt-shakespeare",
            &[&settings[..], &["train.recompute=true", "train.precision=bf16"]].concat(),
            30,
        );
        assert_eq!(
            again.gradient,
            Work { f32: 0.0, bf16: (5 * (4 * forward - 2 * 32 * 64 * 30)) as f64 }
        );

        // Patches of 8 × 8 pixels: a token each.
        let vit = of("vit-cifar10", &["model.patch=8", "train.batch_size=1"], 10);
        assert!(vit.gradient.f32 > 0.0 && vit.tokens == 1);
    }

    #[test]
    fn updates_are_counted() {
        let one = |settings: &[&str]| {
            of(
                "mlp-cifar10",
                &[&["model.hidden=[512]", "constraint.sigma_max=4"], settings].concat(),
                512,
            )
            .update
        };
        let (s, l) = (512f64, 3072f64);
        // The square matrix by six quintics, the other by its Gram matrix.
        let muon = 6.0 * 6.0 * s.powi(3) + (4.0 * s * s * l + 21.0 * 2.0 * s.powi(3));
        let soft = 8.0 * s.powi(3) + 8.0 * s * s * l;
        assert_eq!(one(&[]), Some(Work { f32: muon + soft, bf16: 0.0 }));
        // In bf16 the Gram form is not used, and the cap is followed by a norm.
        let plain = 6.0 * 6.0 * s.powi(3) + 6.0 * (4.0 * s * s * l + 2.0 * s.powi(3));
        let norms = (2.0 + 18.0) * s.powi(3) + (2.0 * s * s * l + 18.0 * s.powi(3));
        assert_eq!(
            one(&["optimizer.precision=bf16"]),
            Some(Work { f32: soft + norms, bf16: plain })
        );
        assert_eq!(one(&["constraint.method=svd_clip"]), None);
    }
}
