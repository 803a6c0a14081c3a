//! The weights a graph has: their names, shapes, and the geometry an optimizer and a constraint
//! work in.

use super::{Attention, Convolution, Node, Op, PositionBias, Span, join};

/// The norm that a weight is measured, updated and constrained in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Geometry {
    /// A `[out, in]` matrix under `‖W‖_RMS→RMS = √(in/out)·σ_max(W)`.
    Matrix,
    /// A `[rows, dim]` table under the largest RMS norm of a row (ℓ1→RMS of its transpose).
    Table,
    /// A gain or bias under its RMS norm; the numbers of a position bias, all together.
    Vector,
}

/// Which side of a `[out, in]` matrix is divided into heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Rows: queries, keys, values.
    Rows,
    /// Columns: the output projection.
    Columns,
}

/// The head blocks of a matrix, all of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadBlocks {
    /// How many.
    pub count: usize,
    /// The side that is divided.
    pub axis: Axis,
}

/// How a weight starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Semi-orthogonal at norm 1 in its geometry; head by head where there are heads (see
    /// [`crate::init`]).
    Orthogonal,
    /// Rows of RMS norm 1, Gaussian directions.
    Rows,
    /// Zero: output projections and heads.
    Zero,
    /// One: gains, and the shares of heads.
    One,
    /// `−slope · distance` for each bucket of a position bias, with slope `2^(−8h/heads)` for head
    /// h = 1, 2, … (Press et al., *Train Short, Test Long*, 2022).
    Slopes {
        /// The buckets.
        bias: PositionBias,
        /// Whether there are none for keys after the query.
        causal: bool,
    },
}

/// One weight of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Path through the graph, such as `blocks.0.attention.query.weight`.
    pub name: String,
    /// `[out, in]`, `[rows, dim]`, `[dim]`, or `[buckets, heads]` for a position bias.
    pub shape: Vec<usize>,
    /// Its norm.
    pub geometry: Geometry,
    /// Its division into heads, if it has one.
    pub heads: Option<HeadBlocks>,
    /// How it starts.
    pub init: Init,
    /// The convolution that a matrix is the kernel of.
    pub convolution: Option<Convolution>,
}

pub(super) fn parameters(nodes: &[Node]) -> Vec<Parameter> {
    let mut out = Vec::new();
    let last = nodes.iter().rposition(|n| matches!(n.op, Op::Linear { .. }));
    for (i, node) in nodes.iter().enumerate() {
        let from = out.len();
        collect(node, "", &mut out);
        // The head starts at zero, so that training starts from uniform predictions.
        if Some(i) == last {
            out[from].init = Init::Zero;
        }
    }
    out
}

fn matrix(path: &str, name: &str, shape: [usize; 2], init: Init) -> Parameter {
    let name = join(path, &join(name, "weight"));
    let (shape, geometry) = (shape.to_vec(), Geometry::Matrix);
    Parameter { name, shape, geometry, heads: None, init, convolution: None }
}

fn vector(path: &str, name: &str, dim: usize, init: Init) -> Parameter {
    Parameter {
        name: join(path, name),
        shape: vec![dim],
        geometry: Geometry::Vector,
        heads: None,
        init,
        convolution: None,
    }
}

fn table(path: &str, name: &str, shape: [usize; 2], init: Init) -> Parameter {
    let name = join(path, &join(name, "weight"));
    let (shape, geometry) = (shape.to_vec(), Geometry::Table);
    Parameter { name, shape, geometry, heads: None, init, convolution: None }
}

/// Adds the parameters of a node, and gives the numbers of the matrices that it ends in: that of
/// its last, or of the last of each branch.
fn collect(node: &Node, prefix: &str, out: &mut Vec<Parameter>) -> Vec<usize> {
    let path = node.path(prefix);
    let from = out.len();
    let sequence = |nodes: &[Node], out: &mut Vec<Parameter>| {
        let ends = |node| Some(collect(node, &path, out)).filter(|ends| !ends.is_empty());
        nodes.iter().filter_map(ends).last().unwrap_or_default()
    };
    match &node.op {
        Op::Sequential { body } => return sequence(body, out),
        Op::Parallel { branches } => {
            return branches.iter().flat_map(|branch| collect(branch, &path, out)).collect();
        }
        Op::Residual { skip, body, .. } => {
            let ends = sequence(body, out);
            // A branch starts at zero: its last matrix does, unless nothing would be left.
            if *skip != 0.0 {
                ends.iter().for_each(|end| out[*end].init = Init::Zero);
            }
            return ends;
        }
        Op::Linear { inputs, outputs, bias } => {
            out.push(matrix(&path, "", [*outputs, *inputs], Init::Orthogonal));
            if *bias {
                out.push(vector(&path, "bias", *outputs, Init::Zero));
            }
        }
        Op::Conv(c) => {
            let kernel = matrix(&path, "", c.weight(), Init::Orthogonal);
            out.push(Parameter { convolution: Some(*c), ..kernel });
            if c.bias {
                out.push(vector(&path, "bias", c.outputs, Init::Zero));
            }
        }
        Op::Embedding { vocabulary, dim } => {
            out.push(table(&path, "", [*vocabulary, *dim], Init::Rows))
        }
        Op::Positions { length, dim } => out.push(table(&path, "", [*length, *dim], Init::Zero)),
        Op::Attention(a) => attention(&path, a, out),
        Op::OffsetAttention { inputs, head_dim, offsets } => {
            let heads = offsets.len();
            let mut value = matrix(&path, "value", [heads * head_dim, *inputs], Init::Orthogonal);
            value.heads = Some(HeadBlocks { count: heads, axis: Axis::Rows });
            out.push(value);
            // One row, whose RMS norm is kept at 1 like that of the rows of every table: a cap on
            // all heads together.
            out.push(table(&path, "shares", [1, heads], Init::One));
        }
        Op::RmsNorm { gain: false, .. } => {}
        Op::RmsNorm { dim, .. } => out.push(vector(&path, "weight", *dim, Init::One)),
        Op::LayerNorm { dim, bias, gain, .. } => {
            if *gain {
                out.push(vector(&path, "weight", *dim, Init::One));
            }
            if *bias {
                out.push(vector(&path, "bias", *dim, Init::Zero));
            }
        }
        Op::GatedMlp { dim, hidden, bias, .. } => {
            for (name, outputs, inputs) in
                [("gate", *hidden, *dim), ("up", *hidden, *dim), ("down", *dim, *hidden)]
            {
                out.push(matrix(&path, name, [outputs, inputs], Init::Orthogonal));
                if *bias {
                    out.push(vector(&path, &join(name, "bias"), outputs, Init::Zero));
                }
            }
        }
        Op::ClassToken { dim } => out.push(vector(&path, "weight", *dim, Init::Zero)),
        Op::Activation { .. }
        | Op::Shift { .. }
        | Op::SpaceToDepth { .. }
        | Op::Pool(_)
        | Op::GlobalPool { .. }
        | Op::MaxMin
        | Op::Scale { .. }
        | Op::SoftCap { .. }
        | Op::Clip { .. }
        | Op::Flatten
        | Op::Patches { .. }
        | Op::MeanPool
        | Op::Normalise { .. }
        | Op::FirstToken
        | Op::LastToken
        | Op::FirstAndMean => {}
    }
    (from..out.len()).rfind(|i| out[*i].geometry == Geometry::Matrix).into_iter().collect()
}

fn attention(path: &str, a: &Attention, out: &mut Vec<Parameter>) {
    for (name, heads) in
        [("query", a.heads), ("key", a.key_value_heads), ("value", a.key_value_heads)]
    {
        let width = heads * a.head_dim;
        let mut weight = matrix(path, name, [width, a.dim], Init::Orthogonal);
        weight.heads = Some(HeadBlocks { count: heads, axis: Axis::Rows });
        out.push(weight);
        if a.bias {
            out.push(vector(path, &join(name, "bias"), width, Init::Zero));
        }
        if a.query_key_norm.is_some() && name != "value" {
            let span = if a.query_key_span == Span::Head { a.head_dim } else { width };
            out.push(vector(path, &format!("{name}_norm.weight"), span, Init::One));
            if a.query_key_shift {
                out.push(vector(path, &format!("{name}_norm.bias"), span, Init::Zero));
            }
        }
    }
    let mut output = matrix(path, "output", [a.dim, a.heads * a.head_dim], Init::Orthogonal);
    output.heads = Some(HeadBlocks { count: a.heads, axis: Axis::Columns });
    out.push(output);
    if a.output_bias {
        out.push(vector(path, "output.bias", a.dim, Init::Zero));
    }
    if let Some(bias) = a.position_bias {
        let (name, shape) = (join(path, "position_bias.weight"), vec![bias.buckets, a.heads]);
        let init = Init::Slopes { bias, causal: a.causal };
        let geometry = Geometry::Vector;
        out.push(Parameter { name, shape, geometry, heads: None, init, convolution: None });
    }
}
