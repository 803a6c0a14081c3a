//! The ellipsoid walk: matrices in place of norms.
//!
//! Bound propagation carries one number per value, the largest norm of a token's change, and
//! multiplies norms; with depth that loses much. Here a change is `F ζ` for some ‖ζ‖ ≤ 1: it lies in
//! the ellipsoid `E(FFᵀ) = {z : zzᵀ ⪯ FFᵀ}`, and so do the tokens themselves. The proofs are in
//! `docs/mathematics.md`, beside the functions that use them: [`span`](self) keeps a skip connection
//! and its branch together, `Tape::rebase` is the rule for slopes, `attention` the one for heads.
//!
//! Every rule has free positive multipliers. Any of them prove a bound; [`search`] looks for good
//! ones, and [`prove`] takes given ones in one pass, every rounding accounted for.

mod approx;
mod attention;
mod block;
#[cfg(test)]
mod checks;
mod enclose;
mod multipliers;
mod parts;
mod positions;
mod slopes;
mod span;
mod state;
mod tape;
mod vectors;
mod walk;
mod weights;

pub use multipliers::Slot;
pub use weights::Weights;

use std::collections::BTreeMap;

use lipschitz_nn::Graph;
use lipschitz_nn::graph::{Input, Node, NodeId, Op};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::bound::{PAIRS, SLACK};
use crate::source::Source;
use crate::upper::Upper;
use multipliers::{Logs, Multipliers};
use parts::Pass;
pub(crate) use state::{Changes, Elements};
use state::{Keep, Stop};

/// What ellipsoids prove.
#[derive(Clone, Debug)]
pub struct Ellipsoids {
    /// What a certificate states of it.
    pub bound: EllipsoidBound,
    /// The constant of each difference of outputs i > j, ℓ2 → absolute value, at `i(i−1)/2 + j`;
    /// empty where there are more outputs than are compared in pairs.
    pub pairs: Vec<Upper>,
}

/// A bound by ellipsoids, with the multipliers that prove it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EllipsoidBound {
    /// The network's Lipschitz constant, ℓ2 → ℓ2 per token.
    pub l2: Upper,
    /// The constant of a single output, the largest: ℓ2 → absolute value.
    pub logit: Upper,
    /// The constant of the difference of two outputs, the largest: ℓ2 → absolute value.
    pub margin: Upper,
    /// The constant from the input to each node of the outermost level.
    pub nodes: Vec<Reached>,
    /// The free numbers of the proof, in the order of their use.
    pub multipliers: Vec<Slot>,
}

/// How far a change of the input can have grown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reached {
    /// The node.
    pub id: NodeId,
    /// The constant from the input to its output, ℓ2 → ℓ2 per token.
    pub cumulative: Upper,
}

/// Steps of a search that takes a minute or two, and nothing where a single one would take
/// long or large memory: 30 for the networks that this project trains on a processor, 0 for large ones.
pub fn usual_steps(graph: &Graph) -> usize {
    const STEPS: usize = 30;
    const WORK: f64 = 2e10;
    // A change of an image or vector is a square matrix of its elements: half a GiB each.
    const ELEMENTS: usize = 8192;
    let elements = match graph.input() {
        Input::Tokens { .. } => 0,
        Input::Pixels { channels, height, width } => {
            channels.saturating_mul(height).saturating_mul(width)
        }
        Input::Vector { dim } => dim,
    };
    if elements > ELEMENTS {
        return 0;
    }
    fn matrices(nodes: &[Node]) -> f64 {
        let cube = |m: usize, n: usize| m as f64 * n as f64 * m.max(n) as f64;
        let of = |node: &Node| match &node.op {
            Op::Linear { inputs, outputs, .. } => cube(*inputs, *outputs),
            Op::GatedMlp { dim, hidden, .. } => 3.0 * cube(*dim, *hidden),
            Op::Attention(a) => 4.0 * cube(a.dim, a.heads * a.head_dim),
            Op::OffsetAttention { inputs, head_dim, offsets } => {
                cube(*inputs, offsets.len() * head_dim)
            }
            Op::RmsNorm { dim, .. } | Op::LayerNorm { dim, .. } => cube(*dim, *dim),
            op => op.body().map_or(0.0, matrices),
        };
        nodes.iter().map(of).sum()
    }
    // In front of what reads the whole image or vector, its change is a square of its elements.
    fn whole(nodes: &[Node], slopes: &mut usize) -> bool {
        nodes.iter().all(|node| match &node.op {
            Op::Activation { .. } | Op::Clip { .. } | Op::SoftCap { .. } | Op::MaxMin => {
                *slopes += 1;
                true
            }
            Op::Scale { .. } | Op::Flatten => true,
            Op::Sequential { body } => whole(body, slopes),
            _ => false,
        })
    }
    let mut slopes = 0;
    whole(graph.nodes(), &mut slopes);
    let work = slopes as f64 * (elements as f64).powi(3) + matrices(graph.nodes());
    if work <= WORK { STEPS } else { 0 }
}

/// What a search makes small. All of it is proven in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// The constant of all outputs together.
    All,
    /// The constants of differences of two outputs, in the mean of their squares.
    Pairs,
    /// The norms of the values themselves.
    Values,
}

/// Searches for multipliers and proves what they give; none where there is no bound of this kind.
///
/// # Errors
/// [`Error::Network`] names a weight that cannot be read.
pub fn tighten(
    source: &dyn Source,
    domain: Upper,
    aim: Aim,
    steps: usize,
    watch: &mut dyn FnMut(usize, Upper),
) -> Result<Option<Ellipsoids>, Error> {
    if steps == 0 {
        return Ok(None);
    }
    // What is kept from one step to the next is read once; but large weights are in f32 on disk.
    let keep = usual_steps(source.graph()) > 0;
    let weights = Weights::new(source, keep);
    match search(source.graph(), &weights, domain, aim, steps, watch)? {
        Some(found) => prove(source.graph(), &weights, domain, &found),
        None => Ok(None),
    }
}

/// Proves a bound on the ball of ℓ2 radius `domain` per token, with given multipliers. None if they
/// prove nothing.
///
/// # Errors
/// [`Error::Network`] names a weight that cannot be read.
pub fn prove(
    graph: &Graph,
    weights: &Weights<'_>,
    domain: Upper,
    multipliers: &[Slot],
) -> Result<Option<Ellipsoids>, Error> {
    let given = Multipliers::given(multipliers.to_vec());
    let end = match walk::walk(graph, weights, domain, given, Keep::Constants) {
        Ok(end) => end,
        Err(Stop::Nothing) => return Ok(None),
        Err(Stop::Failed(error)) => return Err(error),
    };
    if !end.tape.multipliers.borrow().finished() {
        return Ok(None);
    }
    let factor = &end.factor.value;
    let lipschitz = factor.norm();
    if !lipschitz.is_finite() {
        return Ok(None);
    }
    let max = |all: &[Upper]| all.iter().fold(Upper::ZERO, |m, x| m.max(*x));
    // As with norms, what is published is looser than what is proven, so that another machine, whose
    // rounding differs, can prove it again.
    let published = |x: Upper| x * Upper::from_f64(1.0 + SLACK);
    let logit = max(&factor.row_norms()).min(lipschitz);
    let mut pairs = if factor.rows <= PAIRS { factor.row_differences() } else { Vec::new() };
    let apart = lipschitz * Upper::from_f64(2.0).sqrt();
    let margin = if factor.rows <= PAIRS { max(&pairs) } else { logit + logit }.min(apart);
    pairs.iter_mut().for_each(|pair| *pair = published(pair.min(apart)));
    let reached = |(id, s): (NodeId, tape::Scalar)| Reached { id, cumulative: published(s.value) };
    let bound = EllipsoidBound {
        l2: published(lipschitz),
        logit: published(logit),
        margin: published(margin),
        nodes: end.trail.into_iter().map(reached).collect(),
        multipliers: multipliers.to_vec(),
    };
    Ok(Some(Ellipsoids { bound, pairs }))
}

/// Looks for good multipliers by `steps` steps of gradient descent (Kingma and Ba, *Adam*, 2015) on
/// the logarithm of what is aimed for. None if there is no bound of this kind. `watch` is called with
/// each step and what it had, an estimate.
///
/// # Errors
/// [`Error::Network`] names a weight that cannot be read.
pub fn search(
    graph: &Graph,
    weights: &Weights<'_>,
    domain: Upper,
    aim: Aim,
    steps: usize,
    watch: &mut dyn FnMut(usize, Upper),
) -> Result<Option<Vec<Slot>>, Error> {
    const RATE: f64 = 0.25;
    const MEMORY: (f64, f64) = (0.8, 0.95);
    let mut logs = Logs::new();
    let mut moments: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let mut best: Option<(Upper, Vec<Slot>)> = None;
    // A tape of a whole large network would take many times the memory of its weights.
    let split = usual_steps(graph) == 0;
    for step in 0..=steps {
        let pass = match Pass::new(graph, weights, domain, logs, (aim, split)) {
            Ok(pass) => pass,
            Err(Stop::Nothing) => break,
            Err(Stop::Failed(error)) => return Err(error),
        };
        let bound = pass.bound();
        watch(step, bound);
        if best.as_ref().is_none_or(|(value, _)| bound < *value) {
            best = Some((bound, pass.slots.clone()));
        }
        if step == steps {
            break;
        }
        logs = pass.logs.clone();
        let gradient = match pass.gradient() {
            Ok(gradient) => gradient,
            Err(Stop::Nothing) => break,
            Err(Stop::Failed(error)) => return Err(error),
        };
        let progress = step as f64 / steps as f64;
        let rate = RATE * (0.05 + 0.475 * (1.0 + (std::f64::consts::PI * progress).cos()));
        let n = step as i32 + 1;
        for (of, gradient) in gradient {
            let Some(logs) = logs.get_mut(&of) else { continue };
            let moments = moments.entry(of).or_default();
            moments.resize(logs.len(), (0.0, 0.0));
            for ((l, g), (m, v)) in logs.iter_mut().zip(&gradient).zip(moments) {
                let g = if g.is_finite() { *g } else { 0.0 };
                *m = MEMORY.0 * *m + (1.0 - MEMORY.0) * g;
                *v = MEMORY.1 * *v + (1.0 - MEMORY.1) * g * g;
                let (m, v) = (*m / (1.0 - MEMORY.0.powi(n)), *v / (1.0 - MEMORY.1.powi(n)));
                *l -= rate * m / (v.sqrt() + 1e-12);
            }
        }
    }
    Ok(best.map(|(_, slots)| slots))
}

/// Bounds on the elements of tensors, by ellipsoids: with multipliers from `steps` steps of a search,
/// none for 0 and where there is no bound of this kind. `watch` is called with each step and the norm
/// of the output that it had, an estimate.
///
/// # Errors
/// [`Error::Network`] names a weight that cannot be read.
pub(crate) fn elements(
    source: &dyn Source,
    domain: Upper,
    steps: usize,
    watch: &mut dyn FnMut(usize, Upper),
) -> Result<Elements, Error> {
    if steps == 0 || !domain.is_finite() {
        return Ok(Elements::new());
    }
    let (graph, weights) = (source.graph(), Weights::new(source, true));
    let Some(found) = search(graph, &weights, domain, Aim::Values, steps, watch)? else {
        return Ok(Elements::new());
    };
    match walk::walk(graph, &weights, domain, Multipliers::given(found), Keep::Values) {
        Ok(end) if end.tape.multipliers.borrow().finished() => Ok(end.seen),
        Ok(_) | Err(Stop::Nothing) => Ok(Elements::new()),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// How far values change inside of a network where its input changes by a norm of 1 per token, on the
/// ball of radius `domain` per token, by multipliers that prove a bound there; nothing where they do
/// not.
///
/// # Errors
/// [`Error::Network`] names a weight that cannot be read.
pub(crate) fn changes(
    source: &dyn Source,
    domain: Upper,
    multipliers: &[Slot],
) -> Result<Changes, Error> {
    let (graph, weights) = (source.graph(), Weights::new(source, true));
    let given = Multipliers::given(multipliers.to_vec());
    match walk::walk(graph, &weights, domain, given, Keep::Changes) {
        Ok(end) if end.tape.multipliers.borrow().finished() => Ok(end.changes),
        Ok(_) | Err(Stop::Nothing) => Ok(Changes::default()),
        Err(Stop::Failed(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A search on an image holds squares of its elements: not for every user's memory.
    #[test]
    fn large_images_are_not_searched_unasked() {
        let of = |side: usize| {
            let nodes =
                vec![Node::new("", Op::Patches { size: side / 4 }), Node::new("", Op::MeanPool)];
            usual_steps(
                &Graph::new(Input::Pixels { channels: 3, height: side, width: side }, nodes)
                    .unwrap(),
            )
        };
        assert_eq!([of(32), of(64), of(224), of(4096)], [30, 0, 0, 0]);
        let deep =
            |dim| Graph::new(Input::Vector { dim }, vec![Node::new("", Op::MaxMin)]).unwrap();
        assert_eq!([1 << 10, 1 << 12, 1 << 20].map(|dim| usual_steps(&deep(dim))), [30, 0, 0]);
        // A map that reads them is not square.
        let pixels = Input::Pixels { channels: 3, height: 32, width: 32 };
        let clip = Node::new("", Op::Clip { limit: 1.0 });
        let read = |clip: Option<Node>| {
            let map = Node::new("map", Op::Linear { inputs: 3072, outputs: 64, bias: false });
            let nodes = clip.into_iter().chain([Node::new("", Op::Flatten), map]).collect();
            usual_steps(&Graph::new(pixels, nodes).unwrap())
        };
        assert_eq!([read(None), read(Some(clip))], [30, 0]);
    }
}
