//! What the whole-workspace tests share: seeded random networks.

pub mod foreign;

use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use lipschitz_nn::graph::{
    Alibi, Attention, Convolution, Function, Graph, Input, Node, NormKind, Op, Pairing, Pool,
    Pooling, PositionBias, Rotary, Span,
};
use lipschitz_nn::{Model, Weights};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A source of small decisions.
pub struct Dice(ChaCha8Rng);

impl Dice {
    /// The same seed throws the same dice.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform in [-1, 1].
    pub fn unit(&mut self) -> f64 {
        f64::from(self.0.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0
    }

    /// Uniform in 0…n−1.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.next_u32() as usize % n
    }

    /// One of a list.
    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// True or false.
    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    /// A tensor with elements in [-factor, factor].
    pub fn tensor(&mut self, shape: &[usize], factor: f64) -> Tensor {
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| factor * self.unit()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).expect("as many values as the shape has")
    }
}

/// Rotary positions: the usual frequencies, or given ones for all or the first coordinates.
fn rotary(head_dim: usize, dice: &mut Dice) -> Rotary {
    let given =
        dice.coin().then(|| (0..1 + dice.below(head_dim / 2)).map(|_| dice.unit()).collect());
    Rotary {
        frequencies: given,
        ..Rotary::new(20.0, dice.pick(&[Pairing::Half, Pairing::Interleaved]))
    }
}

fn attention(dim: usize, dice: &mut Dice) -> Op {
    let heads: usize = dice.pick(&[1, 2, 3, 4, 8]);
    let causal = dice.coin();
    let divisors: Vec<usize> = (1..=heads).filter(|k| heads.is_multiple_of(*k)).collect();
    let head_dim = dice.pick(&[2, 4]);
    let rotary = dice.coin().then(|| rotary(head_dim, dice));
    let query_key_norm = (dice.below(3) == 0).then(|| dice.pick(&[0.01, 0.5]));
    Op::Attention(Attention {
        dim,
        heads,
        key_value_heads: dice.pick(&divisors),
        head_dim,
        logit_scale: dice.pick(&[
            1.0 / head_dim as f64,
            1.0 / (head_dim as f64).sqrt(),
            1.0 / dim as f64,
            -1.0,
        ]),
        output_scale: dice.pick(&[1.0, 1.0 / 3.0, -0.7]),
        causal,
        rotary,
        bias: dice.below(3) == 0,
        output_bias: dice.below(3) == 0,
        query_key_norm,
        query_key_span: dice.pick(&[Span::Head, Span::EachHead, Span::Heads]),
        query_key_kind: dice.pick(&[NormKind::Rms, NormKind::Layer]),
        query_key_shift: query_key_norm.is_some() && dice.coin(),
        logit_cap: (dice.below(4) == 0).then(|| dice.pick(&[0.3, 5.0])),
        window: (dice.below(4) == 0).then(|| 1 + dice.below(3)),
        position_bias: dice.coin().then_some(PositionBias { buckets: 4, max_distance: 3 }),
        alibi: (dice.below(4) == 0).then(|| Alibi::new(heads, dice.pick(&[8.0, 1.0, -1.0]))),
    })
}

fn body(dim: usize, depth: usize, dice: &mut Dice) -> Vec<Node> {
    let mut nodes = Vec::new();
    for i in 0..1 + dice.below(3) {
        let name = format!("n{depth}{i}");
        let op = match dice.below(if depth < 2 { 10 } else { 7 }) {
            0 if dice.below(3) == 0 => heads_at_offsets(dim, dice),
            0 | 1 => attention(dim, dice),
            2 => Op::Linear { inputs: dim, outputs: dim, bias: dice.coin() },
            3 if dim.is_multiple_of(2) && dice.below(4) == 0 => Op::MaxMin,
            3 => Op::Activation {
                function: dice.pick(&Function::ALL),
                scale: dice.pick(&[1.0, 1.0 / 1.1289, -2.0]),
            },
            4 => Op::Scale { factor: 1.5 * dice.unit() },
            5 if dice.below(6) == 0 => Op::Normalise { eps: dice.pick(&[0.05, 1.0, 4.0]) },
            5 => norm(dim, dice),
            6 if dice.below(4) == 0 => Op::SoftCap { cap: dice.pick(&[0.2, 1.0, 30.0]) },
            6 if dice.below(4) == 0 => Op::Clip { limit: dice.pick(&[0.1, 1.0]) },
            6 => Op::GatedMlp {
                dim,
                hidden: 2 + dice.below(4),
                function: dice.pick(&Function::ALL),
                bias: dice.coin(),
            },
            7 => Op::Sequential { body: body(dim, depth + 1, dice) },
            8 => {
                let count = 1 + dice.below(3);
                let branch = |i| Node::new(format!("b{i}"), branch(dim, depth, dice));
                let branches = (0..count).map(branch).collect();
                let sum = Op::Parallel { branches };
                // A norm in front leaves its gain to the branches, where they can take it.
                if dice.coin() {
                    let norm = Node::new("norm", norm(dim, dice));
                    Op::Sequential { body: vec![norm, Node::new("sum", sum)] }
                } else {
                    sum
                }
            }
            _ => {
                let alpha = 0.5 + 0.5 * dice.unit();
                Op::Residual { skip: 1.0 - alpha, branch: alpha, body: body(dim, depth + 1, dice) }
            }
        };
        nodes.push(Node::new(name, op));
    }
    nodes
}

/// Heads that look at most four tokens back, two of them perhaps as far, together as wide as their
/// input.
fn heads_at_offsets(dim: usize, dice: &mut Dice) -> Op {
    let divisors: Vec<usize> = (1..=dim).filter(|k| dim.is_multiple_of(*k)).collect();
    let head_dim = dice.pick(&divisors);
    let offsets = (0..dim / head_dim).map(|_| dice.below(5)).collect();
    Op::OffsetAttention { inputs: dim, head_dim, offsets }
}

fn norm(dim: usize, dice: &mut Dice) -> Op {
    let (eps, gain) = (dice.pick(&[0.01, 0.3]), dice.below(4) > 0);
    if dice.coin() {
        Op::RmsNorm { dim, eps, gain }
    } else {
        Op::LayerNorm { dim, eps, bias: dice.coin(), gain }
    }
}

/// A branch beside others: attention, an MLP, or anything.
fn branch(dim: usize, depth: usize, dice: &mut Dice) -> Op {
    let linear = |name: &str| Node::new(name, Op::Linear { inputs: dim, outputs: dim, bias: true });
    match dice.below(3) {
        0 => attention(dim, dice),
        1 => {
            let function = dice.pick(&Function::ALL);
            let phi = Node::new("", Op::Activation { function, scale: 1.0 });
            Op::Sequential { body: vec![linear("up"), phi, linear("down")] }
        }
        _ => Op::Sequential { body: body(dim, depth + 1, dice) },
    }
}

/// A random small language model: embedding, sometimes positions, any nodes, a head.
pub fn random_graph(dice: &mut Dice) -> Graph {
    let (vocabulary, dim, context) = (5, dice.pick(&[3, 4, 6]), 4);
    let mut nodes = vec![Node::new("embedding", Op::Embedding { vocabulary, dim })];
    if dice.coin() {
        nodes.push(Node::new("positions", Op::Positions { length: context, dim }));
    }
    nodes.extend(body(dim, 0, dice));
    nodes.push(Node::new(
        "head",
        Op::Linear { inputs: dim, outputs: 1 + dice.below(4), bias: dice.coin() },
    ));
    Graph::new(Input::tokens(context), nodes).expect("random graphs fit together")
}

/// A random small network on images of 2 × 4 × 4: flattened, or as patches through any nodes on
/// tokens.
pub fn random_image_graph(dice: &mut Dice) -> Graph {
    let pixels = Input::Pixels { channels: 2, height: 4, width: 4 };
    let linear = |name: &str, inputs, outputs, dice: &mut Dice| {
        Node::new(name, Op::Linear { inputs, outputs, bias: dice.coin() })
    };
    let mut nodes = Vec::new();
    let classes = 2 + dice.below(3);
    if dice.coin() {
        nodes.push(Node::new("", Op::Flatten));
        let mut width = 32;
        for i in 0..1 + dice.below(3) {
            let next = 3 + dice.below(8);
            nodes.push(linear(&format!("l{i}"), width, next, dice));
            let scale = dice.pick(&[1.0, 1.0 / 1.1289, -1.5]);
            nodes.push(Node::new(
                "",
                if next.is_multiple_of(2) && dice.below(3) == 0 {
                    Op::MaxMin
                } else {
                    Op::Activation { function: dice.pick(&Function::ALL), scale }
                },
            ));
            if dice.coin() {
                nodes.push(Node::new("", Op::Scale { factor: 2.0 * dice.unit() }));
            }
            width = next;
        }
        nodes.push(linear("head", width, classes, dice));
    } else {
        // What is clipped and scaled is known element by element, which patches make use of.
        if dice.coin() {
            nodes.push(Node::new("", Op::Clip { limit: dice.pick(&[0.2, 1.0]) }));
            nodes.push(Node::new("", Op::Scale { factor: dice.pick(&[0.5, -3.0]) }));
        }
        nodes.push(Node::new("", Op::Patches { size: 2 }));
        nodes.push(linear("embedding", 8, 6, dice));
        let class = dice.coin();
        if class {
            nodes.push(Node::new("class", Op::ClassToken { dim: 6 }));
        }
        nodes.push(Node::new("positions", Op::Positions { length: 5, dim: 6 }));
        nodes.extend(body(6, 0, dice));
        let pool = dice.below(if class { 4 } else { 3 });
        let pools = [Op::MeanPool, Op::FirstToken, Op::LastToken, Op::FirstAndMean];
        // Two of them beside each other, perhaps of other tokens, and with other signs.
        if pool < 3 && dice.below(3) == 0 {
            let factor = dice.pick(&[-1.0, 0.5]);
            let body = vec![Node::new("", pools[dice.below(3)].clone())];
            let scaled = [vec![Node::new("", Op::Scale { factor })], body].concat();
            let first = Node::new("", pools[pool].clone());
            let branches = vec![first, Node::new("", Op::Sequential { body: scaled })];
            nodes.push(Node::new("", Op::Parallel { branches }));
        } else {
            nodes.push(Node::new("", pools[pool].clone()));
        }
        nodes.push(linear("head", if pool == 3 { 12 } else { 6 }, classes, dice));
    }
    Graph::new(pixels, nodes).expect("random graphs fit together")
}

/// A random small network on images of 2 × 4 × 4: convolutions and other nodes on images, then a
/// vector or tokens.
pub fn random_convolution_graph(dice: &mut Dice) -> Graph {
    let pixels = Input::Pixels { channels: 2, height: 4, width: 4 };
    let mut nodes = Vec::new();
    let mut image = [2, 4, 4];
    for i in 0..1 + dice.below(5) {
        let name = format!("i{i}");
        let channels = image[0];
        let op = match dice.below(9) {
            0..=2 => Op::Conv(random_convolution(channels, 2 + 2 * dice.below(3), image, dice)),
            3 => Op::Pool(random_pool(image, dice)),
            4 => Op::Shift {
                offsets: (0..dice.pick(&[1, 2]))
                    .map(|_| [0, 1].map(|_| dice.below(5) as i32 - 2))
                    .collect(),
                circular: dice.coin(),
            },
            5 if image[1] % 2 == 0 && image[2] % 2 == 0 => Op::SpaceToDepth { size: 2 },
            6 => {
                let same = |dice: &mut Dice| {
                    let c = Convolution {
                        circular: dice.coin(),
                        ..Convolution::same(channels, channels, 1)
                    };
                    let phi = Op::Activation { function: dice.pick(&Function::ALL), scale: 1.0 };
                    vec![Node::new("c", Op::Conv(c)), Node::new("", phi)]
                };
                if dice.coin() {
                    let alpha = 0.5 + 0.5 * dice.unit();
                    Op::Residual { skip: 1.0 - alpha, branch: alpha, body: same(dice) }
                } else {
                    let branch = |i, dice: &mut Dice| {
                        Node::new(format!("b{i}"), Op::Sequential { body: same(dice) })
                    };
                    Op::Parallel { branches: (0..2).map(|i| branch(i, dice)).collect() }
                }
            }
            7 if channels.is_multiple_of(2) => Op::MaxMin,
            _ => Op::Activation {
                function: dice.pick(&Function::ALL),
                scale: dice.pick(&[1.0, -1.5]),
            },
        };
        image = Op::image(image, &op).unwrap_or(image);
        nodes.push(Node::new(name, op));
    }
    let [channels, height, width] = image;
    let classes = 2 + dice.below(3);
    let mut head = channels;
    match dice.below(3) {
        0 => {
            nodes.push(Node::new("", Op::Flatten));
            head *= height * width;
        }
        1 => nodes.push(Node::new("", Op::GlobalPool { pooling: random_pooling(dice) })),
        _ => {
            nodes.push(Node::new("", Op::Patches { size: 1 }));
            if dice.coin() {
                let map = Op::Linear { inputs: channels, outputs: channels, bias: dice.coin() };
                let body = vec![Node::new("map", map)];
                nodes.push(Node::new("mix", Op::Residual { skip: 1.0, branch: -0.5, body }));
            }
            if dice.below(3) == 0 {
                nodes.push(Node::new("class", Op::ClassToken { dim: channels }));
            }
            nodes.push(Node::new("", if dice.coin() { Op::MeanPool } else { Op::LastToken }));
        }
    }
    nodes.push(Node::new("head", Op::Linear { inputs: head, outputs: classes, bias: dice.coin() }));
    Graph::new(pixels, nodes).expect("random graphs fit together")
}

fn random_pooling(dice: &mut Dice) -> Pooling {
    dice.pick(&[Pooling::Average, Pooling::Max, Pooling::L2])
}

fn random_pool([_, h, w]: [usize; 3], dice: &mut Dice) -> Pool {
    let window = 1 + dice.below(h.min(w).min(3));
    let padding = dice.below(window / 2 + 1);
    Pool { pooling: random_pooling(dice), window, stride: 1 + dice.below(2), padding }
}

/// A convolution that fits an image.
fn random_convolution(
    inputs: usize,
    outputs: usize,
    [_, h, w]: [usize; 3],
    dice: &mut Dice,
) -> Convolution {
    let kernel = 1 + dice.below(h.min(w).min(3));
    let circular = dice.coin();
    let most = if circular { (kernel - 1) / 2 } else { kernel - 1 };
    let groups = if inputs.is_multiple_of(2) { dice.pick(&[1, 1, 2]) } else { 1 };
    Convolution {
        inputs,
        outputs,
        kernel,
        stride: 1 + dice.below(2),
        padding: dice.below(most + 1),
        circular,
        groups,
        bias: dice.coin(),
    }
}

/// Random weights in f64, of a random size.
pub fn random_model(graph: Graph, dice: &mut Dice) -> Model {
    let factor = dice.pick(&[0.3, 1.0, 2.0]);
    // Biases that leave a head no choice, too.
    let is_bias = |name: &str| name.ends_with("position_bias.weight");
    let any = graph.parameters().iter().any(|p| is_bias(&p.name));
    let bias = factor * if any { dice.pick(&[1.0, 40.0]) } else { 1.0 };
    let of = |name: &str| if is_bias(name) { bias } else { factor };
    let weights: Weights = graph
        .parameters()
        .iter()
        .map(|p| (p.name.clone(), dice.tensor(&p.shape, of(&p.name))))
        .collect();
    Model::new(graph, weights).expect("weights come from the graph")
}

/// The guide's code, so that it compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guide.md")]
pub struct Guide;

/// The code for candle programs, likewise.
#[cfg(doctest)]
#[doc = include_str!("../../docs/import/candle.md")]
pub struct CandlePrograms;

/// A file of the data kept beside the repository, or `None`, said loudly, where there is none.
pub fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(name);
    if path.exists() {
        return Some(path);
    }
    skipped(format_args!("there is no {}", path.display()));
    None
}

/// Says what a test leaves out, past the capture of its output.
pub fn skipped(why: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
