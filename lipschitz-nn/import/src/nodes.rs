//! Nodes that families build graphs of.

use lipschitz_nn::graph::{Attention, Node, Op};

pub(crate) fn linear(name: impl Into<String>, inputs: usize, outputs: usize, bias: bool) -> Node {
    Node::new(name, Op::Linear { inputs, outputs, bias })
}

pub(crate) fn rms_norm(name: &str, dim: usize, eps: f64) -> Node {
    Node::new(name, Op::RmsNorm { dim, eps, gain: true })
}

pub(crate) fn layer_norm(name: &str, dim: usize, eps: f64, bias: bool) -> Node {
    Node::new(name, Op::LayerNorm { dim, eps, bias, gain: true })
}

/// `x + body(x)`.
pub(crate) fn residual(name: &str, body: Vec<Node>) -> Node {
    Node::new(name, Op::Residual { skip: 1.0, branch: 1.0, body })
}

pub(crate) fn attention(a: Attention) -> Node {
    Node::new("", Op::Attention(a))
}

/// The node `blocks` of these bodies.
pub(crate) fn blocks(bodies: Vec<Vec<Node>>) -> Node {
    let block = |(i, body): (usize, Vec<Node>)| Node::new(i.to_string(), Op::Sequential { body });
    Node::new(
        "blocks",
        Op::Sequential { body: bodies.into_iter().enumerate().map(block).collect() },
    )
}
