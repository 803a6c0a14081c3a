//! What is known between two nodes of a walk, and what a walk is to keep.

use std::collections::BTreeMap;

use lipschitz_nn::graph::{Function, Graph, Input, Node, NodeId, Op, Site, join};

use super::multipliers::Multipliers;
use super::span::Span;
use super::tape::{Tape, Var};
use crate::Error;
use crate::upper::Upper;

/// What stops a walk.
pub(super) enum Stop {
    /// A weight cannot be read.
    Failed(Error),
    /// There is no bound of this kind: the multipliers do not prove one, or the domain is not
    /// bounded where it must be.
    Nothing,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// As a [`Stop`], where there is nothing.
pub(super) trait OrStop<T> {
    fn or_stop(self) -> Result<T, Stop>;
}

impl<T> OrStop<T> for Option<T> {
    fn or_stop(self) -> Result<T, Stop> {
        self.ok_or(Stop::Nothing)
    }
}

/// Bounds on the elements of tensors, by their place; those of logits are one a head.
pub(crate) type Elements = BTreeMap<Site, Vec<Upper>>;

/// How far values change at most where the input changes by a norm of 1 per token.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    /// Of the norm of a token of each node's output.
    pub(crate) norms: BTreeMap<NodeId, Upper>,
    /// Of each element that an elementwise node reads, as its operand; of the difference of each pair
    /// that is sorted; of the norms of each head's queries and keys.
    pub(crate) elements: Elements,
}

/// What a walk is to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// The constants to the outermost nodes.
    Constants,
    /// Those, and [`Changes`].
    Changes,
    /// Bounds on values, not on changes.
    Values,
}

/// Where a node is.
pub(super) struct Place<'a> {
    /// Its path: a prefix of the names of its weights.
    pub(super) path: &'a str,
    pub(super) id: &'a NodeId,
}

impl Place<'_> {
    /// The name of a weight.
    pub(super) fn weight(&self, name: &str) -> String {
        join(self.path, name)
    }

    /// The name of a step, for its multipliers.
    pub(super) fn step(&self, what: &str) -> String {
        format!("{} {what}", self.id)
    }
}

/// What is known between two nodes.
#[derive(Clone)]
pub(super) struct State {
    /// Changes of a token for a change of the input of norm at most 1 a token.
    pub(super) change: Span,
    /// The tokens themselves, where the domain is bounded and a node wants to know.
    pub(super) value: Option<Span>,
    /// The same of other classes of tokens, until they are united.
    pub(super) others: Vec<(Span, Span)>,
    /// The longest sequence, where the input is one of tokens.
    pub(super) context: Option<usize>,
    /// How many zeros every token has in front of it.
    pub(super) zeros: usize,
    pub(super) channels: usize,
}

impl State {
    /// All matrices that it is made of, where no classes are apart.
    pub(super) fn vars(&self) -> Vec<Var> {
        std::iter::once(&self.change).chain(&self.value).flat_map(Span::vars).collect()
    }

    /// The same made of other matrices, in their order.
    pub(super) fn made_of(self, vars: &[Var]) -> Self {
        let mut vars = vars.iter().cloned();
        let change = self.change.made_of(&mut vars);
        let value = self.value.map(|value| value.made_of(&mut vars));
        Self { change, value, ..self }
    }
}

/// A change is a square matrix of this many rows at most: two GiB. Whoever asks for more, in a search or in a
/// certificate that is to be proven again, gets nothing.
const WIDEST: usize = 1 << 14;

/// What is known about the input of the ball of radius `domain` per token, and the number of the
/// first node behind it.
pub(super) fn start(graph: &Graph, domain: Upper, values: bool) -> Result<(State, usize), Stop> {
    // An ellipsoid of all pixels says nothing of convolutions; norms do.
    if mixes_pixels(graph.nodes()) {
        return Err(Stop::Nothing);
    }
    let (first, width, channels) = match (graph.input(), graph.nodes().first()) {
        (Input::Tokens { .. }, Some(Node { op: Op::Embedding { dim, .. }, .. })) => (1, *dim, 0),
        (Input::Tokens { .. }, _) => return Err(Stop::Nothing),
        (Input::Pixels { channels, height, width }, _) => (0, channels * height * width, channels),
        (Input::Vector { dim }, _) => (0, dim, 0),
    };
    if width > WIDEST {
        return Err(Stop::Nothing);
    }
    let wanted = domain.is_finite() && (values || any_wants_values(graph.nodes()));
    // Of a tape of their own: they depend on nothing.
    let tape = &Tape::new(Multipliers::given(Vec::new()), false);
    let change = Span::ball(tape, width, Upper::ONE);
    let value = wanted.then(|| Span::ball(tape, width, domain));
    let (context, zeros) = match graph.input() {
        Input::Tokens { context, zero_prefix, .. } => {
            (context.checked_add(zero_prefix), zero_prefix)
        }
        _ => (None, 0),
    };
    let others = Vec::new();
    Ok((State { change, value, others, context, zeros, channels }, first))
}

/// Whether a node works on an image.
fn mixes_pixels(nodes: &[Node]) -> bool {
    nodes.iter().any(|node| match &node.op {
        Op::Conv(_)
        | Op::Shift { .. }
        | Op::SpaceToDepth { .. }
        | Op::Pool(_)
        | Op::GlobalPool { .. } => true,
        op => op.body().is_some_and(mixes_pixels),
    })
}

/// Whether the constant of a node, or of one inside it, depends on the size of its input.
fn any_wants_values(nodes: &[Node]) -> bool {
    nodes.iter().any(|node| match &node.op {
        Op::Attention(_) | Op::GatedMlp { .. } => true,
        Op::Activation { function, .. } => *function == Function::Relu2,
        op => op.body().is_some_and(any_wants_values),
    })
}
