//! One step of the search: the bound at some multipliers, and its derivative, one part of the
//! network after another.
//!
//! The first pass keeps what is known between two parts. The second goes backwards and walks each
//! part once more, now on a tape: so no more than one part is ever on record.

use lipschitz_nn::Graph;
use lipschitz_nn::graph::{Node, NodeId, Op};

use super::Aim;
use super::multipliers::{Logs, Multipliers, Slot};
use super::state::{OrStop, State, Stop, start};
use super::tape::{Derivative, Gradient, Scalar, Tape, Var};
use super::walk::Walker;
use super::weights::Weights;
use crate::upper::Upper;

/// A node outside of any branch.
struct Unit<'a> {
    node: &'a Node,
    prefix: String,
    id: NodeId,
}

/// The first pass.
pub(super) struct Pass<'a> {
    weights: &'a Weights<'a>,
    parts: Vec<Vec<Unit<'a>>>,
    /// What is known in front of each part.
    before: Vec<State>,
    /// The last part, on a tape, with the matrices that it began with and the bound.
    last: (Tape, Vec<Var>, Scalar),
    /// Logarithms of all multipliers, with those that are used for the first time.
    pub(super) logs: Logs,
    /// What was used.
    pub(super) slots: Vec<Slot>,
}

impl<'a> Pass<'a> {
    /// A pass that looks at what is aimed for; `split` says whether every node is a part, or all of them together.
    pub(super) fn new(
        graph: &'a Graph,
        weights: &'a Weights<'a>,
        domain: Upper,
        mut logs: Logs,
        (aim, split): (Aim, bool),
    ) -> Result<Self, Stop> {
        let (state, first) = start(graph, domain, aim == Aim::Values)?;
        let mut units = Vec::new();
        for (i, node) in graph.nodes().iter().enumerate().skip(first) {
            collect(node, "", NodeId::default().child(i), &mut units);
        }
        let parts: Vec<Vec<Unit<'_>>> = match split {
            true => units.into_iter().map(|unit| vec![unit]).collect(),
            false => vec![units],
        };
        let (mut state, mut before, mut slots) = (state, Vec::new(), Vec::new());
        let mut last = None;
        for (k, part) in parts.iter().enumerate() {
            before.push(state.clone());
            let record = k + 1 == parts.len();
            let tape = Tape::new(Multipliers::search(std::mem::take(&mut logs)), record);
            let leaves = state.vars().iter().map(|var| tape.leaf(var)).collect::<Vec<_>>();
            state = run(part, weights, &tape, state.made_of(&leaves))?;
            {
                let mut multipliers = tape.multipliers.borrow_mut();
                slots.extend(multipliers.slots.iter().cloned());
                logs = multipliers.logs.clone();
                if !record {
                    multipliers.slots.clear();
                }
            }
            last = Some((tape, leaves));
        }
        let (tape, leaves) = last.or_stop()?;
        let end = if aim == Aim::Values { state.value.as_ref().or_stop()? } else { &state.change };
        let factor = end.matrix(&tape).or_stop()?;
        let norm = match aim {
            Aim::All | Aim::Values => tape.norm(&factor),
            // Σ_{i<j} ‖f_i − f_j‖² = n Σ ‖f_i − f̄‖² for the rows f_i.
            Aim::Pairs => tape.frobenius(&tape.centred(&factor)),
        };
        Ok(Self { weights, parts, before, last: (tape, leaves, norm), logs, slots })
    }

    /// What is to be small, an estimate.
    pub(super) fn bound(&self) -> Upper {
        self.last.2.value
    }

    /// The derivative of twice its logarithm.
    pub(super) fn gradient(self) -> Result<Gradient, Stop> {
        let (tape, leaves, norm) = self.last;
        let (mut gradient, mut of) = tape.gradient(Derivative::TwiceLog(norm), &leaves);
        for (part, before) in self.parts.iter().zip(self.before).rev().skip(1) {
            let tape = Tape::new(Multipliers::search(self.logs.clone()), true);
            let leaves = before.vars().iter().map(|var| tape.leaf(var)).collect::<Vec<_>>();
            let after = run(part, self.weights, &tape, before.made_of(&leaves))?;
            let parts = after.vars().into_iter().zip(of).collect();
            let (more, next) = tape.gradient(Derivative::Of(parts), &leaves);
            gradient.extend(more);
            of = next;
        }
        Ok(gradient)
    }
}

/// The nodes of sequences, however deep they are nested.
fn collect<'a>(node: &'a Node, prefix: &str, id: NodeId, out: &mut Vec<Unit<'a>>) {
    match &node.op {
        Op::Sequential { body } => {
            let path = node.path(prefix);
            for (i, node) in body.iter().enumerate() {
                collect(node, &path, id.child(i), out);
            }
        }
        _ => out.push(Unit { node, prefix: prefix.into(), id }),
    }
}

fn run(part: &[Unit<'_>], weights: &Weights<'_>, tape: &Tape, state: State) -> Result<State, Stop> {
    let mut walker = Walker { tape, weights, state, seen: None, changes: None };
    for unit in part {
        walker.node(unit.node, &unit.prefix, &unit.id)?;
        walker.unite()?;
    }
    Ok(walker.state)
}
