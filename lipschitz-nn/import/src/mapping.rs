//! What a family makes of a config: a graph, and an expression of tensors for each of its weights.

use std::collections::BTreeMap;

use lipschitz_nn::Error;
use lipschitz_nn::graph::{Graph, Input, Node};

use crate::expression::{TensorExpr, WeightMap};
use crate::model_dir::Tie;

/// A model as a family describes it; nothing is read or allocated yet.
pub(crate) struct Mapping {
    /// The graph.
    pub graph: Graph,
    /// Where each weight of the graph comes from.
    pub weights: Vec<(String, TensorExpr)>,
    /// Tensors that the function does not need: how their names end, and why.
    pub aside: Vec<(String, &'static str)>,
    /// The same by their whole names.
    pub exactly: BTreeMap<String, &'static str>,
    /// What a reader of the certificate should know about the function.
    pub notes: Vec<String>,
}

impl Mapping {
    pub(crate) fn new(input: Input, nodes: Vec<Node>, weights: WeightMap) -> Result<Self, Error> {
        Ok(Self {
            graph: Graph::new(input, nodes)?,
            weights: weights.0,
            aside: Vec::new(),
            exactly: BTreeMap::new(),
            notes: Vec::new(),
        })
    }

    /// Sets aside the tensors whose names end so.
    pub(crate) fn aside(mut self, end: impl Into<String>, why: &'static str) -> Self {
        self.aside.push((end.into(), why));
        self
    }

    /// Takes over what became of two tensors that may be one.
    pub(crate) fn tied(mut self, tie: Tie) -> Self {
        self.aside.extend(tie.same.map(|name| (name, "it equals what it is tied to, bit for bit")));
        self.notes.extend(tie.note);
        self
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}
