//! The constrained transformer: no layer norm, no biases, residuals that are convex combinations.

use crate::Error;
use crate::graph::{Attention, Function, Graph, Input, Node, Op, Pairing, Rotary};

/// GELU is divided by this in the method, which makes |φ(x)| ≤ |x| / 1.1289 (its slope stays a hair above 1).
pub const GELU_SCALE: f64 = 1.0 / 1.1289;

/// A decoder-only transformer (*Training Transformers with Enforced Lipschitz Constants*, section 4).
#[derive(Clone, Debug, PartialEq)]
pub struct Gpt {
    /// Token ids.
    pub vocabulary: usize,
    /// Longest sequence.
    pub context: usize,
    /// Width of the stream.
    pub dim: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads; divides `dim`.
    pub heads: usize,
    /// Factor on the attention logits `q·k`; 1/head_dim in the method.
    pub logit_scale: f64,
    /// Factor on the attention output; 1/3 in the method.
    pub output_scale: f64,
    /// Factor on the logits of the network.
    pub final_scale: f64,
    /// The token that begins a new document, if attention is to stay within one.
    pub separator: Option<u32>,
}

impl Gpt {
    /// The graph: `blocks` of `(1−α)x + α·block(x)`, α = 1/(2·layers), then the head.
    ///
    /// # Errors
    /// [`Error::Graph`] if a size is zero or `heads` does not divide `dim` into even parts.
    pub fn graph(&self) -> Result<Graph, Error> {
        let Self { vocabulary, context, dim, layers, heads, logit_scale, output_scale, separator, .. } = *self;
        let rotary = Some(Rotary::new(10000.0, Pairing::Half));
        let block = Block { dim, heads, logit_scale, output_scale, causal: true, rotary };
        let mut nodes = vec![
            Node::new("embedding", Op::Embedding { vocabulary, dim }),
            blocks(&block, layers)?,
            Node::new("head", Op::Linear { inputs: dim, outputs: vocabulary, bias: false }),
        ];
        if self.final_scale != 1.0 {
            nodes.push(Node::new("", Op::Scale { factor: self.final_scale }));
        }
        Graph::new(Input::Tokens { context, separator }, nodes)
    }
}

/// One block: attention, then a perceptron four times as wide.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Width of the stream.
    pub dim: usize,
    /// Attention heads; divides `dim`.
    pub heads: usize,
    /// Factor on the attention logits.
    pub logit_scale: f64,
    /// Factor on the attention output.
    pub output_scale: f64,
    /// Whether a token sees only itself and earlier tokens.
    pub causal: bool,
    /// Rotary positions, if any.
    pub rotary: Option<Rotary>,
}

/// The node `blocks`: `(1−α)x + α·attention(x)` and `(1−α)x + α·mlp(x)` in turn, α = 1/(2·layers).
///
/// # Errors
/// [`Error::Graph`] if there are no layers, or `heads` does not divide the width.
pub(super) fn blocks(block: &Block, layers: usize) -> Result<Node, Error> {
    let &Block { dim, heads, logit_scale, output_scale, causal, ref rotary } = block;
    if heads == 0 || dim % heads != 0 {
        return Err(Error::graph("", format!("has width {dim}, which {heads} heads do not divide")));
    }
    if layers == 0 {
        return Err(Error::graph("", "has no layers"));
    }
    let alpha = 1.0 / (2.0 * layers as f64);
    let residual = |name: &str, body| Node::new(name, Op::Residual { skip: 1.0 - alpha, branch: alpha, body });
    let linear = |name: &str, inputs, outputs| Node::new(name, Op::Linear { inputs, outputs, bias: false });
    let attention = Op::Attention(Attention {
        logit_scale,
        output_scale,
        causal,
        rotary: rotary.clone(),
        ..Attention::new(dim, heads, dim / heads)
    });
    let gelu = Op::Activation { function: Function::GeluErf, scale: GELU_SCALE };
    let one = |i: usize| {
        let mlp = vec![linear("up", dim, 4 * dim), Node::new("", gelu.clone()), linear("down", 4 * dim, dim)];
        let body = vec![residual("attention", vec![Node::new("", attention.clone())]), residual("mlp", mlp)];
        Node::new(i.to_string(), Op::Sequential { body })
    };
    Ok(Node::new("blocks", Op::Sequential { body: (0..layers).map(one).collect() }))
}
