//! A multilayer perceptron without biases, ReLU between its layers.

use crate::Error;
use crate::graph::{Function, Graph, Input, Node, Op};

/// Widths of a multilayer perceptron: `input → hidden… → outputs`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mlp {
    /// What it reads; images are flattened.
    pub input: Input,
    /// Widths of the hidden layers.
    pub hidden: Vec<usize>,
    /// Width of the output.
    pub outputs: usize,
    /// Factor on the output.
    pub final_scale: f64,
}

impl Mlp {
    /// The graph.
    ///
    /// # Errors
    /// [`Error::Graph`] if a width is zero or the input is not a vector or an image.
    pub fn graph(&self) -> Result<Graph, Error> {
        let mut width = match self.input {
            Input::Vector { dim } => dim,
            Input::Pixels { channels, height, width } => {
                channels.saturating_mul(height).saturating_mul(width)
            }
            Input::Tokens { .. } => {
                return Err(Error::graph(
                    "input",
                    "is tokens; this network reads vectors or images",
                ));
            }
        };
        let mut nodes = Vec::new();
        if matches!(self.input, Input::Pixels { .. }) {
            nodes.push(Node::new("", Op::Flatten));
        }
        for (i, hidden) in self.hidden.iter().enumerate() {
            let linear = Op::Linear { inputs: width, outputs: *hidden, bias: false };
            nodes.push(Node::new(format!("layer{i}"), linear));
            nodes.push(Node::new("", Op::Activation { function: Function::Relu, scale: 1.0 }));
            width = *hidden;
        }
        nodes.push(Node::new(
            "head",
            Op::Linear { inputs: width, outputs: self.outputs, bias: false },
        ));
        if self.final_scale != 1.0 {
            nodes.push(Node::new("", Op::Scale { factor: self.final_scale }));
        }
        Graph::new(self.input, nodes)
    }
}
