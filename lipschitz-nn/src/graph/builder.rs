//! A graph in a few lines: each node takes its width from the one before.

use super::{Attention, Convolution, Function, Graph, Input, Node, Op, Pool, Pooling};
use crate::Error;

/// Collects nodes; [`Builder::build`] checks what was collected. Names are those of the weights: a
/// node `fc1` has the weights `fc1.weight` and `fc1.bias`, and inside a node `block` they are
/// `block.fc1.weight` and so on.
#[derive(Clone, Debug)]
#[must_use = "nodes are collected by value, and `build` makes the graph"]
pub struct Builder {
    input: Input,
    nodes: Vec<Node>,
    /// Numbers per token, or in all.
    width: usize,
    /// Channels and sides, where it is an image.
    image: Option<[usize; 3]>,
}

impl Graph {
    /// Starts a graph.
    pub fn builder(input: Input) -> Builder {
        let width = match input {
            Input::Tokens { .. } => 0,
            Input::Pixels { channels, height, width } => {
                channels.saturating_mul(height).saturating_mul(width)
            }
            Input::Vector { dim } => dim,
        };
        let image = match input {
            Input::Pixels { channels, height, width } => Some([channels, height, width]),
            _ => None,
        };
        Builder { input, nodes: Vec::new(), width, image }
    }
}

impl Builder {
    fn push(mut self, name: &str, op: Op) -> Self {
        if let Some([c, h, w]) = self.image.and_then(|image| Op::image(image, &op)) {
            self.width = c.saturating_mul(h).saturating_mul(w);
            self.image = Some([c, h, w]);
        }
        self.nodes.push(Node::new(name, op));
        self
    }

    /// Token ids to vectors of length `dim`.
    pub fn embedding(mut self, name: &str, vocabulary: usize, dim: usize) -> Self {
        self.width = dim;
        self.push(name, Op::Embedding { vocabulary, dim })
    }

    /// Learned positions.
    pub fn positions(self, name: &str, length: usize) -> Self {
        let dim = self.width;
        self.push(name, Op::Positions { length, dim })
    }

    /// `W x + b`.
    pub fn linear(self, name: &str, outputs: usize) -> Self {
        self.affine(name, outputs, true)
    }

    /// `W x`.
    pub fn linear_no_bias(self, name: &str, outputs: usize) -> Self {
        self.affine(name, outputs, false)
    }

    fn affine(mut self, name: &str, outputs: usize, bias: bool) -> Self {
        let inputs = std::mem::replace(&mut self.width, outputs);
        self.push(name, Op::Linear { inputs, outputs, bias })
    }

    /// An elementwise function.
    pub fn activation(self, function: Function) -> Self {
        self.push("", Op::Activation { function, scale: 1.0 })
    }

    /// `factor·x`.
    pub fn scale(self, factor: f64) -> Self {
        self.push("", Op::Scale { factor })
    }

    /// An RMS norm with gain.
    pub fn rms_norm(self, name: &str, eps: f64) -> Self {
        let dim = self.width;
        self.push(name, Op::RmsNorm { dim, eps, gain: true })
    }

    /// A layer norm with gain and shift.
    pub fn layer_norm(self, name: &str, eps: f64) -> Self {
        let dim = self.width;
        self.push(name, Op::LayerNorm { dim, eps, bias: true, gain: true })
    }

    /// Multi-head attention.
    pub fn attention(self, name: &str, attention: Attention) -> Self {
        self.push(name, Op::Attention(attention))
    }

    /// Heads at fixed offsets, side by side.
    pub fn offset_attention(mut self, name: &str, head_dim: usize, offsets: Vec<usize>) -> Self {
        let width = head_dim.saturating_mul(offsets.len());
        let inputs = std::mem::replace(&mut self.width, width);
        self.push(name, Op::OffsetAttention { inputs, head_dim, offsets })
    }

    /// The maximum and the minimum of both halves.
    pub fn max_min(self) -> Self {
        self.push("", Op::MaxMin)
    }

    /// `W_down (φ(W_gate x) ∘ W_up x)`.
    pub fn gated_mlp(self, name: &str, hidden: usize, function: Function) -> Self {
        let dim = self.width;
        self.push(name, Op::GatedMlp { dim, hidden, function, bias: false })
    }

    /// `x + body(x)`.
    pub fn residual(self, name: &str, body: impl FnOnce(Self) -> Self) -> Self {
        let body = self.body(body);
        self.push(name, Op::Residual { skip: 1.0, branch: 1.0, body })
    }

    /// The sum of branches that read the same: each node that `branches` adds is one.
    pub fn parallel(mut self, name: &str, branches: impl FnOnce(Branches) -> Branches) -> Self {
        let start = self.start();
        let (width, image) = (self.width, self.image);
        let all = branches(Branches { width, image, start, nodes: Vec::new() });
        (self.width, self.image) = (all.width, all.image);
        self.push(name, Op::Parallel { branches: all.nodes })
    }

    /// Nodes under a common name.
    pub fn sequential(mut self, name: &str, body: impl FnOnce(Self) -> Self) -> Self {
        let inner = body(self.start());
        (self.width, self.image) = (inner.width, inner.image);
        self.push(name, Op::Sequential { body: inner.nodes })
    }

    fn body(&self, body: impl FnOnce(Self) -> Self) -> Vec<Node> {
        body(self.start()).nodes
    }

    /// What a body inside begins with.
    fn start(&self) -> Self {
        Self { nodes: Vec::new(), ..self.clone() }
    }

    /// A convolution of an image.
    pub fn convolution(self, name: &str, convolution: Convolution) -> Self {
        self.push(name, Op::Conv(convolution))
    }

    /// Groups of channels, each moved by its own offset, in pixels down and to the right.
    pub fn shift(self, offsets: Vec<[i32; 2]>, circular: bool) -> Self {
        self.push("", Op::Shift { offsets, circular })
    }

    /// Squares of `size` × `size` pixels as channels.
    pub fn space_to_depth(self, size: usize) -> Self {
        self.push("", Op::SpaceToDepth { size })
    }

    /// Pooling over windows.
    pub fn pool(self, pool: Pool) -> Self {
        self.push("", Op::Pool(pool))
    }

    /// Pooling over all pixels.
    pub fn global_pool(mut self, pooling: Pooling) -> Self {
        if let Some([channels, ..]) = self.image.take() {
            self.width = channels;
        }
        self.push("", Op::GlobalPool { pooling })
    }

    /// An image as one vector.
    pub fn flatten(mut self) -> Self {
        self.image = None;
        self.push("", Op::Flatten)
    }

    /// An image as tokens, one for each square of `size` × `size` pixels.
    pub fn patches(mut self, size: usize) -> Self {
        if let Some([channels, ..]) = self.image.take() {
            self.width = channels.saturating_mul(size).saturating_mul(size);
        }
        self.push("", Op::Patches { size })
    }

    /// A learned token prepended.
    pub fn class_token(self, name: &str) -> Self {
        let dim = self.width;
        self.push(name, Op::ClassToken { dim })
    }

    /// The first token alone.
    pub fn first_token(self) -> Self {
        self.push("", Op::FirstToken)
    }

    /// The last token alone.
    pub fn last_token(self) -> Self {
        self.push("", Op::LastToken)
    }

    /// `x / max(‖x‖₂, eps)`.
    pub fn normalise(self, eps: f64) -> Self {
        self.push("", Op::Normalise { eps })
    }

    /// The mean of all tokens.
    pub fn mean_pool(self) -> Self {
        self.push("", Op::MeanPool)
    }

    /// The graph.
    ///
    /// # Errors
    /// [`Error::Graph`] names the first node that does not fit.
    pub fn build(self) -> Result<Graph, Error> {
        Graph::new(self.input, self.nodes)
    }
}

/// Collects the branches of [`Builder::parallel`].
#[derive(Clone, Debug)]
#[must_use = "branches are collected by value"]
pub struct Branches {
    start: Builder,
    nodes: Vec<Node>,
    /// Numbers per token, or in all, of their sum.
    width: usize,
    image: Option<[usize; 3]>,
}

impl Branches {
    /// One more branch; its weights are below `name`.
    pub fn branch(mut self, name: &str, body: impl FnOnce(Builder) -> Builder) -> Self {
        let inner = body(self.start.clone());
        (self.width, self.image) = (inner.width, inner.image);
        self.nodes.push(Node::new(name, Op::Sequential { body: inner.nodes }));
        self
    }
}
