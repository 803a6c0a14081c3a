//! What the operators of a file compute, as nodes that read one another: before they are the
//! sequences, branches and blocks of a graph.

use super::Refused;
use lipschitz_nn::graph::{Convolution, Pool, Pooling};

use super::expr::Expr;
use super::view::{Base, View};
use crate::expression::TensorExpr;

/// The shape of what a node makes, without the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// So many token ids.
    Ids(usize),
    /// So many tokens of a width.
    Tokens(usize, usize),
    Vector(usize),
    Image(usize, usize, usize),
    /// Heads, queries, keys.
    Scores(usize, usize, usize),
}

/// A number, or one for each channel.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Coefficient {
    Number(f64),
    Vector(TensorExpr, usize),
}

/// What attention is besides its maps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Heads {
    pub heads: usize,
    pub key_value_heads: usize,
    pub head_dim: usize,
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mask {
    pub causal: bool,
    pub window: Option<usize>,
}

/// What a node computes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Op {
    Input,
    Map(Expr),
    /// `scale ∘ x + shift`, a channel or an element at a time.
    Affine {
        scale: Coefficient,
        shift: Coefficient,
    },
    Linear {
        weight: TensorExpr,
        bias: Option<TensorExpr>,
        inputs: usize,
        outputs: usize,
    },
    Conv {
        shape: Convolution,
        weight: TensorExpr,
        bias: Option<TensorExpr>,
    },
    Pool(Pool),
    GlobalPool(Pooling),
    Flatten,
    /// Pixels of a small image as tokens, row by row.
    Tokens,
    /// Squares of this side of an image as tokens, row by row.
    Patches(usize),
    Embedding {
        table: TensorExpr,
        vocabulary: usize,
        dim: usize,
    },
    /// Adds a table of rows, of which the first that is read is this.
    Positions {
        table: TensorExpr,
        rows: usize,
        from: usize,
        dim: usize,
    },
    ClassToken {
        weight: TensorExpr,
        dim: usize,
    },
    FirstToken,
    LastToken,
    MeanPool,
    /// The larger and the smaller of both halves.
    MaxMin,
    /// x less its mean.
    Centre,
    LayerNorm(f64),
    RmsNorm(f64),
    Normalise(f64),
    /// The sum of two.
    Add,
    /// The product of two, element by element.
    Product,
    /// Products of queries and keys.
    Scores(Heads),
    Masked(Mask),
    Softmax,
    /// Values in the shares that a softmax gives.
    Mixed(Heads),
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub form: Form,
    pub op: Op,
    /// What it reads, all of smaller numbers.
    pub reads: Vec<usize>,
    /// A name for its weights.
    pub name: String,
    /// The operator of the file that it is for, for messages.
    pub of: String,
}

/// Nodes, each after what it reads.
#[derive(Clone, Debug)]
pub(super) struct Net {
    pub nodes: Vec<Node>,
    /// How many examples at once.
    pub batch: usize,
}

/// The most nodes that a network may have.
const MAX_NODES: usize = 1 << 14;

/// The most elements of what a node makes.
const LARGEST: usize = 1 << 40;

impl Net {
    pub(super) fn form(&self, node: usize) -> Result<Form, Refused> {
        Ok(self.node(node)?.form)
    }

    pub(super) fn node(&self, node: usize) -> Result<&Node, Refused> {
        self.nodes.get(node).ok_or_else(|| format!("the value {node} is missing").into())
    }

    /// The sizes of what a node makes, with the batch.
    pub(super) fn shape(&self, form: Form) -> Vec<usize> {
        let b = self.batch;
        match form {
            Form::Ids(t) => vec![b, t],
            Form::Tokens(t, d) => vec![b, t, d],
            Form::Vector(d) => vec![b, d],
            Form::Image(c, h, w) => vec![b, c, h, w],
            Form::Scores(heads, q, k) => vec![b, heads, q, k],
        }
    }

    pub(super) fn whole(&self, node: usize) -> Result<View, Refused> {
        Ok(View::whole(Base::Node(node), &self.shape(self.form(node)?)))
    }

    /// Adds a node, or gives the one that computes the same of the same.
    pub(super) fn add(
        &mut self,
        form: Form,
        op: Op,
        reads: Vec<usize>,
        [name, of]: [&str; 2],
    ) -> Result<usize, Refused> {
        let shape = self.shape(form);
        if shape.contains(&0) || super::view::product(&shape) > LARGEST {
            return Err(format!("{of} makes a tensor of the shape {shape:?}").into());
        }
        let least = reads.iter().max().map_or(0, |n| n + 1);
        let found = self
            .nodes
            .iter()
            .enumerate()
            .skip(least)
            .find(|(_, node)| node.reads == reads && node.form == form && node.op == op);
        if let Some((number, _)) = found {
            return Ok(number);
        }
        if self.nodes.len() >= MAX_NODES {
            return Err(format!("has more than {MAX_NODES} operators").into());
        }
        let (name, of) = (name.to_string(), of.to_string());
        self.nodes.push(Node { form, op, reads, name, of });
        Ok(self.nodes.len() - 1)
    }
}
