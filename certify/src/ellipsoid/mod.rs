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
mod multipliers;
mod span;
mod tape;
mod walk;
mod weights;

pub use multipliers::Slot;
pub use weights::Weights;

use lipschitz_nn::Graph;
use lipschitz_nn::graph::NodeId;

use crate::Error;
use crate::upper::Upper;
use multipliers::Multipliers;
use walk::Stop;

/// What ellipsoids prove.
#[derive(Clone, Debug)]
pub struct Ellipsoids {
    /// The network's Lipschitz constant, ℓ2 → ℓ2 per token.
    pub lipschitz: Upper,
    /// The constant of a single output, the largest.
    pub logit: Upper,
    /// The constant of the difference of two outputs, the largest.
    pub margin: Upper,
    /// The constant of each difference of outputs i > j, at `i(i−1)/2 + j`; empty where there are
    /// more outputs than are compared in pairs.
    pub pairs: Vec<Upper>,
    /// The constant from the input to each node of the outermost level.
    pub trail: Vec<(NodeId, Upper)>,
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
    let end = match walk::walk(graph, weights, domain, given, true) {
        Ok(end) => end,
        Err(Stop::Nothing) => return Ok(None),
        Err(Stop::Failed(error)) => return Err(error),
    };
    if !end.tape.multipliers.borrow().finished() {
        return Ok(None);
    }
    let factor = &end.factor.value;
    let lipschitz = factor.norm();
    let max = |all: &[Upper]| all.iter().fold(Upper::ZERO, |m, x| m.max(*x));
    let logit = max(&factor.row_norms()).min(lipschitz);
    let pairs =
        if factor.rows <= crate::bound::PAIRS { factor.row_differences() } else { Vec::new() };
    let apart = lipschitz * Upper::from_f64(2.0).sqrt();
    let margin = if pairs.is_empty() { logit + logit } else { max(&pairs) }.min(apart);
    let trail = end.trail.into_iter().map(|(id, s)| (id, s.value)).collect();
    Ok(lipschitz.is_finite().then_some(Ellipsoids { lipschitz, logit, margin, pairs, trail }))
}

/// Looks for good multipliers by `steps` steps of gradient descent (Kingma and Ba, *Adam*, 2015) on
/// the logarithm of the bound. None if there is no bound of this kind. `watch` is called with each
/// step and the bound that it had, an estimate.
///
/// # Errors
/// [`Error::Network`] names a weight that cannot be read.
pub fn search(
    graph: &Graph,
    weights: &Weights<'_>,
    domain: Upper,
    steps: usize,
    watch: &mut dyn FnMut(usize, Upper),
) -> Result<Option<Vec<Slot>>, Error> {
    const RATE: f64 = 0.25;
    const MEMORY: (f64, f64) = (0.8, 0.95);
    let mut logs: Vec<Vec<f64>> = Vec::new();
    let mut moments: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut best: Option<(Upper, Vec<Slot>)> = None;
    for step in 0..=steps {
        let end = walk::walk(graph, weights, domain, Multipliers::search(logs), false);
        let end = match end {
            Ok(end) => end,
            Err(Stop::Nothing) => break,
            Err(Stop::Failed(error)) => return Err(error),
        };
        let norm = end.tape.norm(&end.factor);
        watch(step, norm.value);
        let found = {
            let multipliers = end.tape.multipliers.borrow();
            (multipliers.logs.clone(), multipliers.slots.clone())
        };
        if best.as_ref().is_none_or(|(value, _)| norm.value < *value) {
            best = Some((norm.value, found.1));
        }
        logs = found.0;
        if step == steps {
            break;
        }
        let gradient = end.tape.gradient(norm);
        moments.resize_with(logs.len(), Vec::new);
        let progress = step as f64 / steps as f64;
        let rate = RATE * (0.05 + 0.475 * (1.0 + (std::f64::consts::PI * progress).cos()));
        let n = step as i32 + 1;
        for ((logs, gradient), moments) in logs.iter_mut().zip(&gradient).zip(&mut moments) {
            moments.resize(logs.len(), (0.0, 0.0));
            for ((l, g), (m, v)) in logs.iter_mut().zip(gradient).zip(moments) {
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
