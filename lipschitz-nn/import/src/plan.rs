//! What a family makes of a config: a graph, and for each of its weights the tensor to take and
//! what to do with it.

use candle_core::{DType, Tensor};

use lipschitz_nn::Error;
use lipschitz_nn::graph::{Attention, Graph, Input, Node, Op};

use crate::formats::files::Files;

/// A model as a family describes it; nothing is read or allocated yet.
pub(crate) struct Plan {
    /// The graph.
    pub graph: Graph,
    /// Where each weight of the graph comes from.
    pub takes: Vec<(String, Take)>,
    /// Tensors that the function does not need: how their names end, and why.
    pub aside: Vec<(String, &'static str)>,
    /// What a reader of the certificate should know about the function.
    pub notes: Vec<String>,
}

/// A tensor of a file, and how it becomes a weight.
#[derive(Clone, Debug)]
pub(crate) struct Take {
    /// Its name in the file.
    pub name: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Transpose,
    Reshape(Vec<usize>),
    Narrow {
        dim: usize,
        from: usize,
        count: usize,
    },
    Add(f64),
    Times(f64),
    /// Multiplies row i by element i.
    ScaleRows(Take),
    /// Adds a row to each row.
    AddRow(Take),
}

impl Take {
    pub(crate) fn new(name: impl Into<String>, shape: &[usize]) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), steps: Vec::new() }
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// `[a, b]` to `[b, a]`.
    pub(crate) fn transpose(self) -> Self {
        self.then(Step::Transpose)
    }

    pub(crate) fn reshape(self, shape: &[usize]) -> Self {
        self.then(Step::Reshape(shape.to_vec()))
    }

    /// `count` rows from row `from`.
    pub(crate) fn rows(self, from: usize, count: usize) -> Self {
        self.narrow(0, from, count)
    }

    pub(crate) fn narrow(self, dim: usize, from: usize, count: usize) -> Self {
        self.then(Step::Narrow { dim, from, count })
    }

    pub(crate) fn add(self, number: f64) -> Self {
        self.then(Step::Add(number))
    }

    pub(crate) fn times(self, number: f64) -> Self {
        self.then(Step::Times(number))
    }

    pub(crate) fn scale_rows(self, by: Take) -> Self {
        self.then(Step::ScaleRows(by))
    }

    pub(crate) fn add_row(self, row: Take) -> Self {
        self.then(Step::AddRow(row))
    }

    /// Every tensor that it reads, with its shape.
    pub(crate) fn sources(&self) -> Vec<(&str, &[usize])> {
        let mut out = vec![(self.name.as_str(), self.shape.as_slice())];
        for step in &self.steps {
            if let Step::ScaleRows(take) | Step::AddRow(take) = step {
                out.extend(take.sources());
            }
        }
        out
    }

    /// Whether numbers change, so that they are rounded.
    pub(crate) fn computes(&self) -> bool {
        let moves =
            |step: &Step| matches!(step, Step::Transpose | Step::Reshape(_) | Step::Narrow { .. });
        !self.steps.iter().all(moves)
    }

    /// The weight; steps are worked out in f64 and rounded once.
    pub(crate) fn read(&self, files: &Files, dtype: DType) -> Result<Tensor, Error> {
        let mut x = files.read(&self.name)?;
        if self.computes() {
            x = x.to_dtype(DType::F64)?;
        }
        for step in &self.steps {
            x = match step {
                Step::Transpose => x.t()?.contiguous()?,
                Step::Reshape(shape) => x.reshape(shape.as_slice())?,
                Step::Narrow { dim, from, count } => x.narrow(*dim, *from, *count)?.contiguous()?,
                Step::Add(number) => (x + *number)?,
                Step::Times(number) => (x * *number)?,
                Step::ScaleRows(by) => {
                    let by = by.read(files, DType::F64)?;
                    let mut shape = vec![1; x.rank()];
                    shape[0] = by.elem_count();
                    x.broadcast_mul(&by.reshape(shape)?)?
                }
                Step::AddRow(row) => {
                    x.broadcast_add(&row.read(files, DType::F64)?.flatten_all()?)?
                }
            };
        }
        // A copy, so that a weight does not keep the whole of a fused tensor alive.
        Ok(x.to_dtype(dtype)?.force_contiguous()?)
    }
}

/// Collects the weights of a graph, each under its path.
#[derive(Default)]
pub(crate) struct Takes(pub Vec<(String, Take)>);

impl Takes {
    pub(crate) fn put(&mut self, to: impl Into<String>, take: Take) {
        self.0.push((to.into(), take));
    }

    /// A `[outputs, inputs]` matrix, and its bias if it has one.
    pub(crate) fn linear(
        &mut self,
        to: &str,
        from: &str,
        outputs: usize,
        inputs: usize,
        bias: bool,
    ) {
        self.put(format!("{to}.weight"), Take::new(format!("{from}.weight"), &[outputs, inputs]));
        if bias {
            self.vector(&format!("{to}.bias"), &format!("{from}.bias"), outputs);
        }
    }

    /// The gain of a norm, and its shift if it has one.
    pub(crate) fn norm(&mut self, to: &str, from: &str, dim: usize, bias: bool) {
        self.vector(&format!("{to}.weight"), &format!("{from}.weight"), dim);
        if bias {
            self.vector(&format!("{to}.bias"), &format!("{from}.bias"), dim);
        }
    }

    pub(crate) fn vector(&mut self, to: &str, from: &str, dim: usize) {
        self.put(to, Take::new(from, &[dim]));
    }
}

pub(crate) fn linear(name: impl Into<String>, inputs: usize, outputs: usize, bias: bool) -> Node {
    Node::new(name, Op::Linear { inputs, outputs, bias })
}

pub(crate) fn rms_norm(name: &str, dim: usize, eps: f64) -> Node {
    Node::new(name, Op::RmsNorm { dim, eps })
}

pub(crate) fn layer_norm(name: &str, dim: usize, eps: f64, bias: bool) -> Node {
    Node::new(name, Op::LayerNorm { dim, eps, bias })
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

impl Plan {
    pub(crate) fn new(input: Input, nodes: Vec<Node>, takes: Takes) -> Result<Self, Error> {
        Ok(Self {
            graph: Graph::new(input, nodes)?,
            takes: takes.0,
            aside: Vec::new(),
            notes: Vec::new(),
        })
    }

    /// Sets aside the tensors whose names end so.
    pub(crate) fn aside(mut self, end: impl Into<String>, why: &'static str) -> Self {
        self.aside.push((end.into(), why));
        self
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}
