//! What is proven of each checkpoint of a training that something else runs: norms, the largest
//! logits, ranges and the constant, against limits. Norms of weights that stay the same are proven
//! once.

mod folder;
mod limits;
mod memory;

pub use folder::{Candidate, Stamp, candidates, run};
pub use limits::Limits;
pub use memory::Memory;

use std::collections::BTreeMap;

use lipschitz_nn::graph::{Geometry, Stage};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::bound::{Block, Norm, Norms, walk};
use crate::pinned::Pinned;
use crate::range::{self, Inputs};
use crate::source::Source;
use crate::upper::{Upper, count, root_down};
use memory::Remembering;

/// What is proven of one checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// SHA-256 over names, shapes, types and values of the weights, as in a certificate.
    pub weights_sha256: String,
    /// The Lipschitz constant by norms, RMS → RMS.
    pub lipschitz: Upper,
    /// The largest logit of attention that any input can have, before a position bias; null without
    /// attention.
    pub largest_logit: Option<Upper>,
    /// The same of each head, by the path of the attention; infinite ones are null.
    pub logits: BTreeMap<String, Vec<Option<f64>>>,
    /// The largest element of any tensor of a forward pass.
    pub range: Upper,
    /// The name of that tensor.
    pub widest: String,
    /// The spectral norm of every matrix, RMS → RMS.
    pub norms: BTreeMap<String, f64>,
    /// Norms that were proven for this checkpoint, and those known from the one before.
    pub proven: usize,
    /// Norms known from the checkpoint before.
    pub reused: usize,
}

/// Proves what there is to say about a checkpoint. `memory` has the norms of the one before, and gets
/// those of this one. `goes_on` is asked before each proof; where it says no, there is
/// nothing.
///
/// # Errors
/// [`Error`] names the weight or node about which nothing is known.
pub fn measure(
    source: &dyn Source,
    inputs: Inputs,
    memory: &mut Memory,
    goes_on: &dyn Fn() -> bool,
) -> Result<Option<Measured>, Error> {
    let source = &Pinned::new(source)?;
    let norms = Remembering::new(source, memory, goes_on);
    match of(source, &norms, inputs) {
        Ok(mut measured) => {
            (measured.proven, measured.reused) = norms.counts();
            let known = norms.into_known();
            memory.replace(known);
            Ok(Some(measured))
        }
        Err(_) if norms.stopped() => Ok(None),
        Err(error) => Err(error),
    }
}

fn of(source: &Pinned, norms: &Remembering, inputs: Inputs) -> Result<Measured, Error> {
    let radius = inputs.radius.map(Upper::from_f64);
    let bound = walk(source.graph(), norms, radius)?;
    let ranges = range::given(source, norms, inputs, 0, &|_| {})?;
    let mut logits = BTreeMap::new();
    for t in &ranges.tensors {
        // The cap comes after the scale, and takes its place.
        if matches!(t.site.stage, Stage::Logit | Stage::CappedLogit) {
            let path = t.name.rsplit_once('.').map_or(t.name.as_str(), |(path, _)| path);
            let finite = |x: &Upper| Some(x.to_f64()).filter(|x| x.is_finite());
            logits.insert(path.to_string(), t.heads.iter().map(finite).collect());
        }
    }
    let mut matrices = BTreeMap::new();
    for p in source.graph().parameters() {
        let (Geometry::Matrix, &[rows, columns]) = (p.geometry, &p.shape[..]) else { continue };
        let sigma = norms.norm(&Norm::Matrix(Block::whole(&p.name)))?;
        // √(columns/rows) σ_max, rounded up as every bound.
        let rms = (sigma * count(columns).sqrt()).div_up(root_down(rows as f64));
        matrices.insert(p.name.clone(), rms.to_f64());
    }
    let range = ranges.largest();
    let widest = ranges.tensors.iter().find(|t| t.largest == range);
    Ok(Measured {
        weights_sha256: source.digest().to_string(),
        lipschitz: bound.rms(),
        largest_logit: ranges.largest_logit(),
        logits,
        range,
        widest: widest.map(|t| t.name.clone()).unwrap_or_default(),
        norms: matrices,
        proven: 0,
        reused: 0,
    })
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Format version, [`FORMAT`].
    pub format: u32,
    /// When it was written, in seconds since 1970.
    pub time: f64,
    /// The checkpoint.
    pub path: String,
    /// The step that it was saved after, if it or its name says so.
    pub step: Option<u64>,
    /// SHA-256 of what is asked: the graph, and the inputs that the bounds hold for. Earlier versions did not
    /// say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
    /// What is proven.
    #[serde(flatten)]
    pub measured: Measured,
    /// How long that took.
    pub seconds: f64,
    /// The limits that do not hold, in words.
    pub breaches: Vec<String>,
}

/// The format version of a [`Line`].
pub const FORMAT: u32 = 1;
