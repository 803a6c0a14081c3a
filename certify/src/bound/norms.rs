//! The norms of weights that bound propagation needs. A checkpoint gives proven norms, a plan gives
//! caps.

use std::fmt;

use lipschitz_nn::graph::{Convolution, Graph, Input, Node, Op, join};

use super::reads::Reads;
use crate::Error;
use crate::upper::Upper;

/// A block of rows (or columns) of a matrix: block `index` of `count` equal ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Part {
    /// Number of the block, from 0.
    pub index: usize,
    /// Number of blocks.
    pub count: usize,
}

impl Part {
    /// The whole matrix.
    pub const ALL: Part = Part { index: 0, count: 1 };
}

/// A block of a weight matrix as a linear map: `W[rows, columns]·diag(γ)`, with γ the gain of a
/// norm in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The weight's name.
    pub weight: String,
    /// Which rows.
    pub rows: Part,
    /// Which columns.
    pub columns: Part,
    /// The name of γ, if a norm's gain is folded in.
    pub gain: Option<String>,
}

impl Block {
    /// All of a weight.
    pub fn whole(weight: impl Into<String>) -> Self {
        Self { weight: weight.into(), rows: Part::ALL, columns: Part::ALL, gain: None }
    }

    /// The same with a block of rows.
    pub fn rows(self, rows: Part) -> Self {
        Self { rows, ..self }
    }

    /// The same with a block of columns.
    pub fn columns(self, columns: Part) -> Self {
        Self { columns, ..self }
    }

    /// The same with a gain folded in.
    pub fn gain(self, gain: Option<String>) -> Self {
        Self { gain, ..self }
    }
}

/// `w`, `w rows 1/4`, `w · diag g`: the name of a row in a certificate.
impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.weight)?;
        for (side, part) in [("rows", self.rows), ("columns", self.columns)] {
            if part.count > 1 {
                write!(f, " {side} {}/{}", part.index + 1, part.count)?;
            }
        }
        match &self.gain {
            Some(gain) => write!(f, " · diag {gain}"),
            None => Ok(()),
        }
    }
}

/// A convolution of images of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The weight's name.
    pub weight: String,
    /// What it does.
    pub convolution: Convolution,
    /// Height and width of the images.
    pub sides: [usize; 2],
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [height, width] = self.sides;
        write!(f, "{} on {height} × {width} pixels", self.weight)
    }
}

/// A norm of weights that bound propagation may need, all in ℓ2. Its text is its name in a
/// certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Norm {
    /// `σ_max` of a block.
    Matrix(Block),
    /// That of a convolution, ℓ2 of the whole image.
    Convolution(Kernel),
    /// `‖A B‖` of two linear maps with an activation between them.
    Product(Block, Block),
    /// `‖O_h V_h‖` of an attention head.
    OutputValue(Block, Block),
    /// `‖Q_hᵀ K_h‖` of an attention head.
    QueryKey(Block, Block),
    /// The largest norm of a row.
    Row(Block),
    /// The largest distance between two rows.
    RowDifference(Block),
    /// `‖W β‖`, or `‖W β + b‖`, of a block of rows, with the names of β and b.
    Affine(Block, String, Option<String>),
    /// The norm of a block of a vector.
    Vector(Block),
    /// The largest absolute value of an element of the vector of this name.
    Largest(String),
    /// The largest column sum of the probabilities that positions alone give a head.
    Reads(Reads),
}

impl Norm {
    /// The names of the weights that it is a norm of.
    pub fn weights(&self) -> Vec<&str> {
        fn of(block: &Block) -> impl Iterator<Item = &str> {
            std::iter::once(block.weight.as_str()).chain(block.gain.as_deref())
        }
        match self {
            Norm::Matrix(block)
            | Norm::Row(block)
            | Norm::RowDifference(block)
            | Norm::Vector(block) => of(block).collect(),
            Norm::Product(a, b) | Norm::OutputValue(a, b) | Norm::QueryKey(a, b) => {
                of(a).chain(of(b)).collect()
            }
            Norm::Affine(block, beta, bias) => {
                of(block).chain([beta.as_str()]).chain(bias.as_deref()).collect()
            }
            Norm::Largest(name) => vec![name],
            Norm::Convolution(kernel) => vec![&kernel.weight],
            Norm::Reads(reads) => reads.learned.iter().map(|(name, _)| name.as_str()).collect(),
        }
    }
}

impl fmt::Display for Norm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Norm::Matrix(block) | Norm::Vector(block) => write!(f, "{block}"),
            Norm::Convolution(kernel) => write!(f, "{kernel}"),
            Norm::Product(a, b) | Norm::OutputValue(a, b) => write!(f, "({a}) ({b})"),
            Norm::QueryKey(a, b) => write!(f, "({a})ᵀ ({b})"),
            Norm::Row(block) => write!(f, "largest row of {block}"),
            Norm::RowDifference(block) => write!(f, "largest difference of two rows of {block}"),
            Norm::Affine(block, beta, None) => write!(f, "{block} · {beta}"),
            Norm::Affine(block, beta, Some(bias)) => write!(f, "{block} · {beta} + {bias}"),
            Norm::Largest(name) => write!(f, "largest element of {name}"),
            Norm::Reads(reads) => write!(f, "{reads}"),
        }
    }
}

/// A source of upper bounds on norms of weights.
///
/// # Errors
/// All methods: [`Error`] names the weight about which nothing is known.
pub trait Norms {
    /// An upper bound on the norm.
    #[allow(clippy::missing_errors_doc)]
    fn norm(&self, norm: &Norm) -> Result<Upper, Error>;

    /// Computes norms that are asked for next, on all cores; without it, each is computed when it is
    /// asked for.
    #[allow(clippy::missing_errors_doc)]
    fn prepare(&self, _: &[Norm]) -> Result<(), Error> {
        Ok(())
    }
}

/// Shorthands for bound propagation.
impl dyn Norms + '_ {
    pub(super) fn matrix(&self, block: &Block) -> Result<Upper, Error> {
        self.norm(&Norm::Matrix(block.clone()))
    }

    pub(super) fn row(&self, block: &Block) -> Result<Upper, Error> {
        self.norm(&Norm::Row(block.clone()))
    }

    pub(super) fn largest(&self, name: &str) -> Result<Upper, Error> {
        self.norm(&Norm::Largest(name.to_string()))
    }

    pub(super) fn vector(&self, name: &str) -> Result<Upper, Error> {
        self.norm(&Norm::Vector(Block::whole(name)))
    }

    /// The norm of `W β + b` for a block of rows; β or b may be absent, and then counts as zero.
    pub(super) fn offset(
        &self,
        block: &Block,
        beta: Option<&str>,
        bias: Option<&str>,
    ) -> Result<Upper, Error> {
        match (beta, bias) {
            (None, None) => Ok(Upper::ZERO),
            (None, Some(bias)) => self.norm(&Norm::Vector(Block::whole(bias).rows(block.rows))),
            (Some(beta), bias) => {
                self.norm(&Norm::Affine(block.clone(), beta.to_string(), bias.map(str::to_string)))
            }
        }
    }
}

/// The convolution of which this weight is the kernel, on the images that it sees in a graph.
pub fn kernel_of(graph: &Graph, weight: &str) -> Option<Kernel> {
    fn search(
        nodes: &[Node],
        prefix: &str,
        image: &mut Option<[usize; 3]>,
        weight: &str,
    ) -> Option<Kernel> {
        for node in nodes {
            let (path, before) = (node.path(prefix), *image);
            match (&node.op, before) {
                (Op::Conv(c), Some([_, height, width])) if join(&path, "weight") == weight => {
                    let (weight, sides) = (weight.to_string(), [height, width]);
                    return Some(Kernel { weight, convolution: *c, sides });
                }
                (Op::Parallel { branches }, _) => {
                    for branch in branches {
                        *image = before;
                        let one = std::slice::from_ref(branch);
                        if let Some(found) = search(one, &path, image, weight) {
                            return Some(found);
                        }
                    }
                }
                (op, _) => match op.body() {
                    Some(body) => {
                        if let Some(found) = search(body, &path, image, weight) {
                            return Some(found);
                        }
                    }
                    None => *image = before.and_then(|image| Op::image(image, op)),
                },
            }
        }
        None
    }
    let mut image = match graph.input() {
        Input::Pixels { channels, height, width } => Some([channels, height, width]),
        _ => None,
    };
    search(graph.nodes(), "", &mut image, weight)
}
