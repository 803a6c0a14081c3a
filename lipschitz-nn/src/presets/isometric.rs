//! A language model that keeps the norm of what passes through it: orthogonal layers with MaxMin
//! between heads that look back, so that all of its constant is in the head.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::graph::{Graph, Input, Node, Op};

/// The most stages, and layers of a stage.
const MAX_DEPTH: usize = 1024;

/// Heads side by side, and square layers on what they give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Head h reads the token h places back.
    pub heads: usize,
    /// Width of each head; that of the stage is `heads·head_dim`.
    pub head_dim: usize,
    /// Layers `MaxMin(W x)` with square W.
    pub layers: usize,
}

/// An embedding, stages, and a head with biases. Where layers are orthogonal and the shares of heads
/// have RMS norm 1, its constant from RMS to RMS norm is that of the head times `final_scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct Isometric {
    /// Token ids.
    pub vocabulary: usize,
    /// Longest sequence.
    pub context: usize,
    /// Width of the embedding.
    pub dim: usize,
    /// First to last.
    pub stages: Vec<Stage>,
    /// Factor on the logits.
    pub final_scale: f64,
}

impl Isometric {
    /// The graph.
    ///
    /// # Errors
    /// [`Error::Graph`] if a size is zero or too large, or the width of a stage is odd.
    pub fn graph(&self) -> Result<Graph, Error> {
        let &Self { vocabulary, context, dim, ref stages, final_scale } = self;
        if let Some(depth) =
            std::iter::once(stages.len()).chain(stages.iter().map(|s| s.layers)).max()
            && depth > MAX_DEPTH
        {
            let what = format!("has {depth} stages or layers, more than {MAX_DEPTH}");
            return Err(Error::graph("", what));
        }
        if let Some(heads) = stages.iter().map(|s| s.heads).find(|heads| *heads > context) {
            let what =
                format!("has {heads} heads, which read tokens beyond a context of {context}");
            return Err(Error::graph("", what));
        }
        let mut width = dim;
        let mut nodes = vec![Node::new("embedding", Op::Embedding { vocabulary, dim })];
        let body = stages.iter().enumerate().map(|(i, stage)| {
            let &Stage { heads, head_dim, layers } = stage;
            let inputs = std::mem::replace(&mut width, heads.saturating_mul(head_dim));
            let offsets = (0..heads).collect();
            let mut body =
                vec![Node::new("attention", Op::OffsetAttention { inputs, head_dim, offsets })];
            for layer in 0..layers {
                let square = Op::Linear { inputs: width, outputs: width, bias: false };
                body.push(Node::new(format!("layer{layer}"), square));
                body.push(Node::new("", Op::MaxMin));
            }
            Node::new(i.to_string(), Op::Sequential { body })
        });
        let body = body.collect();
        nodes.push(Node::new("stages", Op::Sequential { body }));
        nodes
            .push(Node::new("head", Op::Linear { inputs: width, outputs: vocabulary, bias: true }));
        if final_scale != 1.0 {
            nodes.push(Node::new("", Op::Scale { factor: final_scale }));
        }
        Graph::new(Input::tokens(context), nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(context: usize, stages: Vec<Stage>) -> Result<Graph, Error> {
        Isometric { vocabulary: 5, context, dim: 4, stages, final_scale: 2.0 }.graph()
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let stage = Stage { heads: 3, head_dim: 2, layers: 2 };
        assert_eq!(of(4, vec![stage.clone(); 2]).unwrap().outputs(), 5);
        assert!(of(4, Vec::new()).is_ok());
        for (context, odd, said) in [
            (2, stage.clone(), "beyond a context of 2"),
            (4, Stage { head_dim: 1, ..stage.clone() }, "even width"),
            (4, Stage { heads: 0, ..stage.clone() }, "heads = 0"),
            (4, Stage { layers: 1 << 40, ..stage.clone() }, "more than 1024"),
            (4, Stage { head_dim: usize::MAX, ..stage.clone() }, "head_dim"),
        ] {
            let error = of(context, vec![odd]).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert!(of(4, vec![stage; 1025]).is_err());
    }
}
