//! What can overflow, for any input: a proven bound on the largest element of every tensor of a
//! forward pass, and of every weight.
//!
//! Bound propagation says how long a token can be at each node. Here each tensor's elements are
//! bounded, row by row of the map that makes them (`linear`), with ellipsoids where they are
//! tighter; the proofs are in `docs/mathematics.md`. The bounds are of the function in real
//! arithmetic, as those of a certificate are.

mod attention;
mod decision;
mod hull;
mod linear;
mod observe;
mod set;
mod simulate;
mod walk;

pub use crate::number::Number;
pub use decision::{Decision, FORMAT, Tensor, Verdict, Weight};
pub use observe::observe;
pub use simulate::{Extent, Simulated};
pub use walk::Inputs;

use lipschitz_nn::graph::{Input, Site, Stage};
use serde::Serialize;

use crate::Error;
use crate::bound::{Norm, Norms, Watch, WeightNorms};
use crate::certificate::{self, Certificate};
use crate::ellipsoid;
use crate::pinned::Pinned;
use crate::source::{Rounding, Source};
use crate::spectral::{Matrix, Method};
use crate::upper::Upper;
use walk::Bounds;

/// Bounds on every tensor of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranges {
    /// SHA-256 over names, shapes, types and values of the weights, as in a certificate.
    pub weights_sha256: String,
    /// The type to which the stored weights were rounded first, if they were.
    pub rounding: Option<Rounding>,
    /// The inputs that the bounds hold for.
    pub domain: Domain,
    /// Every tensor of a forward pass, in its order.
    pub tensors: Vec<TensorRange>,
    /// Every weight, in the order of their names.
    pub weights: Vec<WeightRange>,
}

/// The inputs that ranges cover.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Domain {
    /// In words.
    pub text: String,
    /// ℓ2 radius of the ball that contains each token's embedding vector, or the whole of an image
    /// or a vector.
    pub radius: Upper,
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        certificate::domain(f, &self.text, self.radius)
    }
}

/// One tensor of a forward pass.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorRange {
    /// Its name: the node's path, and what it is there.
    pub name: String,
    /// Where it is made.
    #[serde(flatten)]
    pub site: Site,
    /// No element is above this in absolute value.
    pub largest: Upper,
    /// For logits and probabilities: the same for each head.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<Upper>,
}

/// One weight.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WeightRange {
    /// Its name.
    pub name: String,
    /// The largest absolute value of an element, exactly.
    pub largest: f64,
}

impl Ranges {
    /// The largest logit of attention that can be, before a position bias: the last of the others.
    /// None without attention.
    pub fn largest_logit(&self) -> Option<Upper> {
        let logits = |stage| self.tensors.iter().filter(move |t| t.site.stage == stage);
        let capped = |t: &TensorRange| {
            logits(Stage::CappedLogit)
                .find(|c| c.site.id == t.site.id)
                .map_or(t.largest, |c| c.largest)
        };
        logits(Stage::Logit).map(capped).reduce(Upper::max)
    }

    /// The largest element of any tensor of a forward pass.
    pub fn largest(&self) -> Upper {
        self.tensors.iter().fold(Upper::ZERO, |max, t| max.max(t.largest))
    }

    /// The largest element of a weight, in absolute value.
    pub fn largest_weight(&self) -> Upper {
        self.weights.iter().fold(Upper::ZERO, |max, w| max.max(Upper::from_f64(w.largest)))
    }
}

/// Bounds the elements of every tensor, for all of these inputs; by ellipsoids too where `steps`, of
/// the search for their multipliers, is not 0. `watch` hears of each step and norm before it is
/// computed.
///
/// # Errors
/// [`Error`] names the weight or node about which nothing is known, or a weight that holds NaN or
/// infinity.
pub fn prove(
    source: &dyn Source,
    inputs: Inputs,
    steps: usize,
    watch: Watch<'_>,
) -> Result<Ranges, Error> {
    let source = &Pinned::new(source)?;
    let norms = WeightNorms::new(source, Method::Proven, watch);
    given(source, &norms, inputs, steps, watch)
}

/// As [`prove`], beside a certificate of the same weights, whose norms are not proven again.
///
/// # Errors
/// As [`prove`], and [`Error::Violated`] if the certificate is not about these weights, or states an
/// estimate.
pub fn beside(
    certificate: &Certificate,
    source: &dyn Source,
    inputs: Inputs,
) -> Result<Ranges, Error> {
    let source = &Pinned::new(source)?;
    if source.digest() != certificate.weights_sha256 {
        return Err(Error::Violated("the certificate is not about this network".into()));
    }
    if !certificate.method.is_bound() {
        return Err(Error::Violated("the certificate states an estimate, not a bound".into()));
    }
    let proven = WeightNorms::new(source, Method::Proven, &|_| {});
    given(source, &Stated { certificate, proven }, inputs, 0, &|_| {})
}

/// The norms of a certificate, and where it has none, proven ones.
struct Stated<'a> {
    certificate: &'a Certificate,
    proven: WeightNorms<'a>,
}

impl Norms for Stated<'_> {
    fn norm(&self, norm: &Norm) -> Result<Upper, Error> {
        self.certificate.norm(norm).map_or_else(|| self.proven.norm(norm), Ok)
    }
}

/// As [`prove`], of weights that stay what they are, whose norms are known.
pub(crate) fn given(
    source: &Pinned,
    norms: &dyn Norms,
    inputs: Inputs,
    steps: usize,
    watch: Watch<'_>,
) -> Result<Ranges, Error> {
    let (mut bounds, radius) = walk::walk(source, norms, inputs, &Bounds::new())?;
    let known = ellipsoid::elements(source, radius, steps, &mut |step, _| {
        watch(&format!("ellipsoids, step {step} of {steps}"));
    })?;
    if !known.is_empty() {
        (bounds, _) = walk::walk(source, norms, inputs, &known)?;
    }
    let mut tensors = Vec::new();
    for (site, name) in source.graph().sites() {
        let elements =
            bounds.remove(&site).ok_or_else(|| Error::Unknown(format!("the tensor `{name}`")))?;
        let largest = set::largest(&elements);
        let by_head = site.stage.is_logit() || site.stage == Stage::Probability;
        let heads = if by_head { elements } else { Vec::new() };
        tensors.push(TensorRange { name, site, largest, heads });
    }
    let largest = |name: String| {
        let largest = Matrix::from_tensor(&name, &source.tensor(&name)?)?.largest();
        Ok(WeightRange { name, largest })
    };
    Ok(Ranges {
        weights_sha256: source.digest().to_string(),
        rounding: source.rounding(),
        domain: Domain { text: text(source, inputs), radius },
        tensors,
        weights: source.names().into_iter().map(largest).collect::<Result<_, Error>>()?,
    })
}

fn text(source: &dyn Source, inputs: Inputs) -> String {
    let tokens = matches!(source.graph().input(), Input::Tokens { .. });
    match (tokens, inputs.radius.is_some(), inputs.limit.is_some()) {
        (true, false, _) => "all sequences of token ids up to the context",
        (true, true, _) => "sequences of vectors, each of ℓ2 norm at most the given radius",
        (false, false, false) => "all inputs",
        (false, true, false) => "inputs of ℓ2 norm at most the given radius",
        (false, false, true) => "inputs whose elements are at most the given limit",
        (false, true, true) => "inputs within the given radius and limit",
    }
    .into()
}
