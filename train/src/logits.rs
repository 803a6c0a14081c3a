//! A cap on logits that no input exceeds.
//!
//! The logit of a head is `s qᵀk` with `q = W_q x + b_q` and `k = W_k x' + b_k`. So where c is proven
//! to be the most that it can be for any input, and m is wanted, W, b of both sides times `√(m/c)` make
//! it m: what query-key clipping does for the largest logit that was seen. Normalised queries and keys
//! have their gains scaled in place of W.

use candle_core::Tensor;
use lipschitz_certify::range::{self, Inputs, Ranges};
use lipschitz_certify::upper::Upper;
use lipschitz_nn::graph::{Attention, Graph, Node, NodeId, Op, Stage, join};

use crate::Error;
use crate::config::Config;
use crate::step::Training;

/// What rounding the weights in f32 may add to a logit.
const ROUNDING: f64 = 1e-6;

/// The attention nodes among these and inside of them, with their paths.
fn attentions(
    nodes: &[Node],
    prefix: &str,
    above: &NodeId,
    out: &mut Vec<(NodeId, String, Attention)>,
) {
    for (i, node) in nodes.iter().enumerate() {
        let (id, path) = (above.child(i), node.path(prefix));
        attentions(node.op.body().unwrap_or_default(), &path, &id, out);
        if let Op::Attention(a) = &node.op {
            out.push((id, path, a.clone()));
        }
    }
}

/// Whether a network has attention.
pub(crate) fn has_attention(graph: &Graph) -> bool {
    let mut all = Vec::new();
    attentions(graph.nodes(), "", &NodeId::default(), &mut all);
    !all.is_empty()
}

/// Proves the largest logit of every head, and brings those that are above the cap under it.
///
/// # Errors
/// A network about which nothing can be proven; candle's own.
pub(crate) fn fit(config: &Config, training: &mut Training) -> Result<(), Error> {
    let Some(most) = config.max_logit else { return Ok(()) };
    let model = training.model.detached();
    let ranges = range::prove(&model, Inputs::default(), 0, &|_| {})?;
    let mut all = Vec::new();
    attentions(model.graph().nodes(), "", &NodeId::default(), &mut all);
    for (id, path, a) in all {
        let at = |t: &&range::TensorRange| t.site.id == id && t.site.stage == Stage::Logit;
        let Some(logits) = ranges.tensors.iter().find(at) else { continue };
        // Of each head of queries; one of keys serves as many as share it.
        let factor = |c: &Upper| match c.to_f64() {
            c if c > most => (most / c).sqrt() * (1.0 - ROUNDING),
            _ => 1.0,
        };
        let query: Vec<f64> = logits.heads.iter().map(factor).collect();
        let shared = a.group_size();
        let least = |heads: &[f64]| heads.iter().copied().fold(1.0, f64::min);
        let key: Vec<f64> = query.chunks(shared).map(least).collect();
        if least(&query) == 1.0 {
            continue;
        }
        for (side, heads) in [("query", &query), ("key", &key)] {
            let of = if a.query_key_norm.is_some() { format!("{side}_norm") } else { side.into() };
            for what in ["weight", "bias"] {
                let name = join(&join(&path, &of), what);
                let Some(v) = training.variables.iter().find(|v| v.parameter.name == name) else {
                    continue;
                };
                // A gain may be that of every head.
                let apart = v.parameter.shape[0] == heads.len() * a.head_dim;
                let each = if apart { heads.clone() } else { vec![least(heads)] };
                v.var.set(&scaled(&v.var.as_tensor().detach(), &each)?)?;
            }
        }
    }
    Ok(())
}

/// Equal shares of the rows of `w`, each times its factor.
fn scaled(w: &Tensor, factors: &[f64]) -> candle_core::Result<Tensor> {
    let share = w.dim(0)? / factors.len().max(1);
    let parts = factors
        .iter()
        .enumerate()
        .map(|(i, factor)| w.narrow(0, i * share, share)? * *factor)
        .collect::<candle_core::Result<Vec<_>>>()?;
    Tensor::cat(&parts, 0)
}

/// Whether no logit can be above the cap.
///
/// # Errors
/// [`Error::AboveLogit`] if one can.
pub(crate) fn check(config: &Config, ranges: &Ranges) -> Result<(), Error> {
    let Some(most) = config.max_logit else { return Ok(()) };
    let logits = ranges.tensors.iter().filter(|t| t.site.stage == Stage::Logit);
    match logits.map(|t| t.largest).find(|logit| *logit > Upper::from_f64(most)) {
        Some(logit) => Err(Error::AboveLogit { logit, most }),
        None => Ok(()),
    }
}
