//! Nodes and their weights, put together in one go.

use lipschitz_nn::Error;
use lipschitz_nn::graph::{Input, Node, Op};

use crate::activation::NamedActivation;
use crate::expression::{TensorExpr, WeightMap};
use crate::mapping::Mapping;
use crate::nodes::{layer_norm, linear};

/// Nodes in a row, and the weights of all of them.
#[derive(Default)]
pub(crate) struct Net {
    pub nodes: Vec<Node>,
    pub weights: WeightMap,
}

impl Net {
    pub(crate) fn push(&mut self, node: Node) {
        self.nodes.push(node);
    }

    /// A node without weights.
    pub(crate) fn op(&mut self, op: Op) {
        self.push(Node::new("", op));
    }

    /// A table of tokens.
    pub(crate) fn embedding(&mut self, table: TensorExpr, vocabulary: usize, dim: usize) {
        self.weights.put("embedding.weight", table);
        self.push(Node::new("embedding", Op::Embedding { vocabulary, dim }));
    }

    /// A table of positions.
    pub(crate) fn positions(&mut self, table: TensorExpr, length: usize, dim: usize) {
        self.weights.put("positions.weight", table);
        self.push(Node::new("positions", Op::Positions { length, dim }));
    }

    /// `W x + b` from these tensors.
    pub(crate) fn linear(&mut self, to: &str, from: &str, [outputs, inputs]: [usize; 2]) {
        self.weights.linear(to, from, outputs, inputs, true);
        self.push(linear(to, inputs, outputs, true));
    }

    /// `W x` from this tensor.
    pub(crate) fn matrix(&mut self, to: &str, from: &str, [outputs, inputs]: [usize; 2]) {
        self.weights.linear(to, from, outputs, inputs, false);
        self.push(linear(to, inputs, outputs, false));
    }

    /// A layer norm with gain and shift.
    pub(crate) fn layer_norm(&mut self, to: &str, from: &str, dim: usize, eps: f64) {
        self.weights.norm(to, from, dim, true);
        self.push(layer_norm(to, dim, eps, true));
    }

    pub(crate) fn activation(&mut self, phi: NamedActivation) {
        self.nodes.extend(phi.nodes());
    }

    pub(crate) fn mapping(self, input: Input) -> Result<Mapping, Error> {
        Mapping::new(input, self.nodes, self.weights)
    }
}
