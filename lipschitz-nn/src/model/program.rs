//! A graph with its weights, lowered once: each node holds the tensors that it needs, and chains of
//! residual blocks, or of layers of images, that one operation can run are recognised.

use std::sync::Arc;

use candle_core::Tensor;

use crate::Weights;
use crate::graph::{
    Attention, Convolution, Function, Graph, Input, Node, NodeId, Op, Pool, Pooling, Shape, join,
};
use crate::ops::{AttentionBlock, FusedBlock, ImageLayer, MlpBlock};

/// Nodes, first to last.
pub(super) type Program = Arc<[Step]>;

/// A node with its weights.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// Path through the graph.
    pub path: String,
    /// The node.
    pub id: NodeId,
    pub operation: Operation,
    /// The same for one operation, if there is one.
    pub fused: Option<Fused>,
}

/// What one operation runs, with what else of its kind follows.
#[derive(Clone, Debug)]
pub(super) enum Fused {
    /// By [`crate::ops::chain`].
    Blocks(Vec<FusedBlock>),
    /// By [`crate::ops::image_chain`], where it reads images.
    Layers(Vec<ImageLayer>),
}

/// What a node computes: [`Op`] with the weights in place of their sizes.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Sequential(Program),
    Parallel(Program),
    Residual {
        skip: f64,
        branch: f64,
        body: Program,
    },
    Linear(Linear),
    Embedding(Tensor),
    Positions(Tensor),
    Activation {
        function: Function,
        scale: f64,
    },
    Scale(f64),
    SoftCap(f64),
    Clip(f64),
    Attention(Box<AttentionLayer>),
    OffsetAttention {
        value: Linear,
        shares: Tensor,
        offsets: Vec<usize>,
    },
    Conv(Convolution, Linear),
    Shift {
        offsets: Vec<[i32; 2]>,
        circular: bool,
    },
    SpaceToDepth(usize),
    Pool(Pool),
    GlobalPool(Pooling),
    MaxMin,
    RmsNorm(Norm),
    LayerNorm(Norm),
    Normalise(f64),
    GatedMlp {
        gate: Linear,
        up: Linear,
        down: Linear,
        function: Function,
    },
    ClassToken(Tensor),
    FirstToken,
    LastToken,
    FirstAndMean,
    Flatten,
    Patches(usize),
    MeanPool,
    /// This many zero vectors in front of every sequence.
    ZeroPrefix(usize),
    /// Without this many tokens in front.
    WithoutPrefix(usize),
}

/// `W x + b`
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

/// `γ ∘ n(x) + β`
#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub gain: Option<Tensor>,
    pub bias: Option<Tensor>,
    pub eps: f64,
}

/// Multi-head attention with its weights.
#[derive(Clone, Debug)]
pub(super) struct AttentionLayer {
    pub config: Attention,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    /// The norms of queries and keys.
    pub query_norm: Option<Norm>,
    pub key_norm: Option<Norm>,
    /// The table of a position bias.
    pub position_bias: Option<Tensor>,
}

/// Lowers a graph, whose parameters must all be among the weights.
pub(super) fn lower(graph: &Graph, weights: &Weights) -> Program {
    let mut steps: Vec<Step> =
        Lowering { weights }.nodes(graph.nodes(), "", &NodeId::default()).to_vec();
    let Input::Tokens { zero_prefix: zeros @ 1.., .. } = graph.input() else { return steps.into() };
    let step =
        |operation| Step { id: NodeId::default(), path: String::new(), operation, fused: None };
    // Behind the embedding.
    steps.insert(steps.len().min(1), step(Operation::ZeroPrefix(zeros)));
    if let Shape::Tokens(_) = graph.output() {
        steps.push(step(Operation::WithoutPrefix(zeros)));
    }
    steps.into()
}

struct Lowering<'a> {
    weights: &'a Weights,
}

impl Lowering<'_> {
    fn nodes(&self, nodes: &[Node], prefix: &str, above: &NodeId) -> Program {
        let numbered = nodes.iter().enumerate();
        numbered.map(|(i, node)| self.step(node, prefix, above.child(i))).collect()
    }

    fn step(&self, node: &Node, prefix: &str, id: NodeId) -> Step {
        let path = node.path(prefix);
        let (mut blocks, mut layers) = (Vec::new(), Vec::new());
        let fused = if self.fuse(node, prefix, &mut blocks) {
            Some(Fused::Blocks(blocks))
        } else {
            self.layers(node, prefix, &mut layers).then_some(Fused::Layers(layers))
        };
        Step { operation: self.operation(&node.op, &path, &id), path, id, fused }
    }

    fn weight(&self, path: &str, name: &str) -> Tensor {
        // Every parameter of the graph is there: `Model::new` has checked it.
        self.weights[&join(path, name)].clone()
    }

    fn linear(&self, path: &str, bias: bool) -> Linear {
        let bias = bias.then(|| self.weight(path, "bias"));
        Linear { weight: self.weight(path, "weight"), bias }
    }

    fn norm(&self, path: &str, eps: f64, gain: bool, bias: bool) -> Norm {
        let [gain, bias] = [("weight", gain), ("bias", bias)]
            .map(|(name, is)| is.then(|| self.weight(path, name)));
        Norm { gain, bias, eps }
    }

    fn operation(&self, op: &Op, path: &str, id: &NodeId) -> Operation {
        match *op {
            Op::Sequential { ref body } => Operation::Sequential(self.nodes(body, path, id)),
            Op::Parallel { ref branches } => Operation::Parallel(self.nodes(branches, path, id)),
            Op::Residual { skip, branch, ref body } => {
                Operation::Residual { skip, branch, body: self.nodes(body, path, id) }
            }
            Op::Linear { bias, .. } => Operation::Linear(self.linear(path, bias)),
            Op::Embedding { .. } => Operation::Embedding(self.weight(path, "weight")),
            Op::Positions { .. } => Operation::Positions(self.weight(path, "weight")),
            Op::Activation { function, scale } => Operation::Activation { function, scale },
            Op::Scale { factor } => Operation::Scale(factor),
            Op::SoftCap { cap } => Operation::SoftCap(cap),
            Op::Clip { limit } => Operation::Clip(limit),
            Op::Attention(ref a) => Operation::Attention(Box::new(self.attention(a, path))),
            Op::OffsetAttention { ref offsets, .. } => Operation::OffsetAttention {
                value: self.linear(&join(path, "value"), false),
                shares: self.weight(path, "shares.weight"),
                offsets: offsets.clone(),
            },
            Op::Conv(c) => Operation::Conv(c, self.linear(path, c.bias)),
            Op::Shift { ref offsets, circular } => {
                Operation::Shift { offsets: offsets.clone(), circular }
            }
            Op::SpaceToDepth { size } => Operation::SpaceToDepth(size),
            Op::Pool(pool) => Operation::Pool(pool),
            Op::GlobalPool { pooling } => Operation::GlobalPool(pooling),
            Op::MaxMin => Operation::MaxMin,
            Op::RmsNorm { eps, gain, .. } => Operation::RmsNorm(self.norm(path, eps, gain, false)),
            Op::LayerNorm { eps, gain, bias, .. } => {
                Operation::LayerNorm(self.norm(path, eps, gain, bias))
            }
            Op::Normalise { eps } => Operation::Normalise(eps),
            Op::GatedMlp { function, bias, .. } => {
                let [gate, up, down] =
                    ["gate", "up", "down"].map(|name| self.linear(&join(path, name), bias));
                Operation::GatedMlp { gate, up, down, function }
            }
            Op::ClassToken { .. } => Operation::ClassToken(self.weight(path, "weight")),
            Op::FirstToken => Operation::FirstToken,
            Op::LastToken => Operation::LastToken,
            Op::FirstAndMean => Operation::FirstAndMean,
            Op::Flatten => Operation::Flatten,
            Op::Patches { size } => Operation::Patches(size),
            Op::MeanPool => Operation::MeanPool,
        }
    }

    fn attention(&self, a: &Attention, path: &str) -> AttentionLayer {
        let [query, key, value] =
            ["query", "key", "value"].map(|name| self.linear(&join(path, name), a.bias));
        let [query_norm, key_norm] = ["query_norm", "key_norm"].map(|name| {
            a.query_key_norm.map(|eps| self.norm(&join(path, name), eps, true, a.query_key_shift))
        });
        AttentionLayer {
            config: a.clone(),
            query,
            key,
            value,
            output: self.linear(&join(path, "output"), a.output_bias),
            query_norm,
            key_norm,
            position_bias: a.position_bias.map(|_| self.weight(path, "position_bias.weight")),
        }
    }

    /// Adds the blocks of a node, if it consists of blocks for which there is one operation.
    fn fuse(&self, node: &Node, prefix: &str, blocks: &mut Vec<FusedBlock>) -> bool {
        let path = node.path(prefix);
        let block = match &node.op {
            Op::Sequential { body } => {
                return body.iter().all(|node| self.fuse(node, &path, blocks));
            }
            Op::Attention(a) => self.attention_block(a, &path, 0.0, 1.0),
            Op::Residual { skip, branch, body } => match &body[..] {
                [Node { name, op: Op::Attention(a) }] => {
                    self.attention_block(a, &join(&path, name), *skip, *branch)
                }
                _ => self.mlp_block(body, &path, *skip, *branch),
            },
            _ => None,
        };
        let found = block.is_some();
        blocks.extend(block);
        found
    }

    /// Adds the layers of a node, if it consists of layers for which there is one operation.
    fn layers(&self, node: &Node, prefix: &str, layers: &mut Vec<ImageLayer>) -> bool {
        let path = node.path(prefix);
        layers.push(match &node.op {
            Op::Sequential { body } => {
                return body.iter().all(|node| self.layers(node, &path, layers));
            }
            Op::Conv(c) => {
                let Linear { weight, bias } = self.linear(&path, c.bias);
                ImageLayer::Convolution(*c, weight, bias)
            }
            Op::Shift { offsets, circular } => {
                ImageLayer::Shift { offsets: offsets.clone(), circular: *circular }
            }
            Op::MaxMin => ImageLayer::MaxMin,
            Op::Activation { function, scale } => {
                ImageLayer::Activation { function: *function, scale: *scale }
            }
            _ => return false,
        });
        true
    }

    /// `skip·x + branch·mlp(x)`, if `body` is an MLP of two layers without biases.
    fn mlp_block(&self, body: &[Node], path: &str, skip: f64, branch: f64) -> Option<FusedBlock> {
        let [
            Node { name: up, op: Op::Linear { bias: false, .. } },
            Node { op: Op::Activation { function, scale }, .. },
            Node { name: down, op: Op::Linear { bias: false, .. } },
        ] = body
        else {
            return None;
        };
        let block = MlpBlock { function: *function, scale: *scale, skip, branch };
        let weights = [up, down].map(|name| self.weight(&join(path, name), "weight"));
        Some(FusedBlock::Mlp(block, weights))
    }

    /// `skip·x + branch·attention(x)`, if there is one operation for it.
    fn attention_block(
        &self,
        a: &Attention,
        path: &str,
        skip: f64,
        branch: f64,
    ) -> Option<FusedBlock> {
        // One number of f32 in place of two: held as they are.
        let factor = branch * a.output_scale;
        let held = (factor as f32).is_normal() || branch == 0.0 || a.output_scale == 0.0;
        if !plain(a) || !held {
            return None;
        }
        let block = AttentionBlock {
            heads: a.heads,
            key_value_heads: a.key_value_heads,
            logit_scale: a.logit_scale,
            causal: a.causal,
            rotary: a.rotary.clone(),
            skip,
            branch: factor,
            documents: None,
        };
        let weights = ["query", "key", "value", "output"]
            .map(|name| self.weight(&join(path, name), "weight"));
        let table = |bias| (bias, self.weight(path, "position_bias.weight"));
        Some(FusedBlock::Attention(block, weights, a.position_bias.map(table)))
    }
}

/// Whether attention has none of what [`crate::ops::attention_block`] leaves out.
fn plain(a: &Attention) -> bool {
    !a.bias
        && !a.output_bias
        && a.query_key_norm.is_none()
        && a.logit_cap.is_none()
        && a.window.is_none()
        && a.alibi.is_none()
}
