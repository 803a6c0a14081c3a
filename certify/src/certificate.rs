//! The certificate: a theorem about one checkpoint, as a document.

use std::fmt;

use lipschitz_nn::checkpoint::Origin;
use lipschitz_nn::graph::{Graph, Input, NodeId, Shape, join};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::bound::{
    Block, NodeBound, Norm, Norms, Walk, Watch, WeightNorms, WeightRow, paper, walk,
};
use crate::ellipsoid::{self, Aim, EllipsoidBound};
use crate::pinned::Pinned;
use crate::source::{Rounding, Source};
use crate::spectral::Method;
use crate::upper::{self, Upper, count, root_down};

/// The latest format version of a certificate. Format 1 lacks the ids of nodes; formats 1 and 2 have
/// no bound by ellipsoids, and format 3 has one. From format 4 on, attention has a rule for the
/// norm of all tokens together.
pub const FORMAT: u32 = 4;

/// The first format whose proofs ask for [`Norm::Reads`].
pub(crate) const TOGETHER: u32 = 4;

/// The JSON schema of a certificate, as `docs/certificate.schema.json` holds it.
pub fn schema() -> String {
    let mut schema = schemars::schema_for!(Certificate).to_value();
    unwrap_lines(&mut schema);
    format!("{schema:#}\n")
}

/// Joins the lines of descriptions, which are wrapped as in the source code.
fn unwrap_lines(schema: &mut serde_json::Value) {
    match schema {
        serde_json::Value::Object(fields) => {
            fields.iter_mut().for_each(|(key, value)| match value {
                serde_json::Value::String(text) if key == "description" => {
                    *text = text.replace('\n', " ");
                }
                value => unwrap_lines(value),
            })
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(unwrap_lines),
        _ => {}
    }
}

/// Which formula the bound comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Formula {
    /// Valid for any number of heads.
    #[default]
    Sound,
    /// The published one, which is not a bound for more than one head.
    Paper,
}

/// A theorem about one checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Format version, at most [`FORMAT`].
    pub format: u32,
    /// Version of the program that wrote it.
    pub version: String,
    /// SHA-256 over names, shapes, types and values of the weights.
    pub weights_sha256: String,
    /// The network.
    pub graph: Graph,
    /// The type to which the stored weights were rounded first, if they were: the certificate is
    /// then about the network that inference in this type runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounding: Option<Rounding>,
    /// For an imported network: its family, whose function it computes, and what was left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Which formula the bound comes from.
    pub formula: Formula,
    /// How spectral norms were bounded.
    pub method: Method,
    /// Whether `rms` and `l2` are proven; false if a part of them is an estimate.
    pub proven: bool,
    /// The constant from RMS norm to RMS norm; the norm of a sequence is the largest norm of a
    /// token.
    pub rms: Upper,
    /// The constant from ℓ2 norm to ℓ2 norm; the norm of a sequence is the largest norm of a token.
    pub l2: Upper,
    /// The constant of a single output: from RMS norm, or ℓ2 norm, to its absolute value.
    pub logit: Output,
    /// The constant of the difference of any two outputs, the margin between two classes.
    pub margin: Output,
    /// The inputs that the theorem covers.
    pub domain: Domain,
    /// One row per node.
    pub nodes: Vec<NodeBound>,
    /// One row per norm of a weight.
    pub weights: Vec<WeightRow>,
    /// A second proof, by ellipsoids in place of norms. Each constant above is the smaller of the
    /// two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ellipsoids: Option<EllipsoidBound>,
    /// What the theorem assumes, in words.
    pub assumptions: Vec<String>,
    /// What a reader should know before using the number.
    pub warnings: Vec<String>,
}

impl Certificate {
    /// The upper bound that the certificate states for a norm, if the proof uses that norm.
    pub fn norm(&self, norm: &Norm) -> Option<Upper> {
        let name = norm.to_string();
        self.weights.iter().find(|row| row.name == name).map(|row| row.upper)
    }

    /// The constant that norms alone give, ℓ2 → ℓ2: that of the last node of the outermost level.
    /// None for a network of no nodes, and for format 1, in which nodes have no ids.
    pub fn by_norms(&self) -> Option<Upper> {
        let last = NodeId::default().child(self.graph.nodes().len().checked_sub(1)?);
        self.nodes.iter().find(|row| row.id == last).map(|row| row.cumulative)
    }
}

/// A Lipschitz constant of a scalar, in absolute value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// From RMS norm.
    pub rms: Upper,
    /// From ℓ2 norm.
    pub l2: Upper,
}

/// The inputs that a certificate covers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Domain {
    /// In words.
    pub text: String,
    /// Whether the radius was given; otherwise it is that of the natural domain.
    pub given: bool,
    /// ℓ2 radius of the ball that contains each token; infinite for all inputs.
    pub radius: Upper,
    /// For embeddings: the largest ℓ2 distance of two rows, as a scale for radii.
    pub diameter: Option<Upper>,
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        domain(f, &self.text, self.radius)
    }
}

/// A domain in words, with its radius if it has one: rounded down, for what is proven holds there.
pub(crate) fn domain(f: &mut fmt::Formatter, text: &str, radius: Upper) -> fmt::Result {
    // Below the normal numbers f64 has none that is not above it.
    let shown = match radius.to_f64() {
        r if r <= f64::MIN_POSITIVE => 0.0,
        r => r.min(1e308),
    };
    match radius.is_finite() {
        true => write!(f, "{text}, ‖x‖₂ ≤ {}", upper::radius(shown)),
        false => f.write_str(text),
    }
}

/// Certifies a model on the ball of ℓ2 radius `radius` per token, or without a radius on its
/// natural domain.
///
/// # Errors
/// [`Error`] names the weight or node about which nothing is known, or a weight that holds NaN or
/// infinity.
pub fn certify(
    source: &dyn Source,
    method: Method,
    formula: Formula,
    radius: Option<f64>,
) -> Result<Certificate, Error> {
    certify_watched(source, method, formula, radius, &|_| {})
}

/// As [`certify`]; `watch` is called with the name of each norm before it is computed.
///
/// # Errors
/// As [`certify`].
pub fn certify_watched(
    source: &dyn Source,
    method: Method,
    formula: Formula,
    radius: Option<f64>,
    watch: Watch<'_>,
) -> Result<Certificate, Error> {
    prove(&Pinned::new(source)?, FORMAT, method, formula, radius, watch)
}

/// As [`certify_watched`], of weights that stay what they are, with the proof of a format.
pub(crate) fn prove(
    source: &Pinned,
    format: u32,
    method: Method,
    formula: Formula,
    radius: Option<f64>,
    watch: Watch<'_>,
) -> Result<Certificate, Error> {
    let norms = WeightNorms::new(source, method, watch);
    let known = Known { norms: &norms, format };
    let theorem = theorem(source.graph(), &known, formula, radius.map(Upper::from_f64))?;
    document(source, method, formula, radius.is_some(), theorem, norms.into_rows(), None)
}

impl Certificate {
    /// The same certificate with a second proof, by ellipsoids, where that gives anything: `steps`
    /// steps of a search for its multipliers. `watch` is called with each step and the constant that
    /// it had, an estimate.
    ///
    /// # Errors
    /// [`Error`] if `source` is not what the certificate is about, or cannot be read.
    pub fn tighten(
        self,
        source: &dyn Source,
        steps: usize,
        watch: &mut dyn FnMut(usize, Upper),
    ) -> Result<Self, Error> {
        if self.formula != Formula::Sound || !self.method.is_bound() {
            return Ok(self);
        }
        let source = &Pinned::new(source)?;
        if source.digest() != self.weights_sha256 || *source.graph() != self.graph {
            return Err(Error::Violated("the certificate is not about this network".into()));
        }
        let found = ellipsoid::tighten(source, self.domain.radius, Aim::All, steps, watch)?;
        let given = self.domain.given;
        let radius = given.then_some(self.domain.radius);
        let stated = Stated(&self.weights);
        let known = Known { norms: &stated, format: self.format };
        let theorem = theorem(&self.graph, &known, self.formula, radius)?;
        let bound = found.map(|found| found.bound);
        // The second proof has been there since format 3.
        let format = if bound.is_some() { self.format.max(3) } else { self.format };
        let tight =
            document(source, self.method, self.formula, given, theorem, self.weights, bound)?;
        Ok(Self { format, ..tight })
    }
}

/// The norms that the proof of a format asks for.
pub(crate) struct Known<'a> {
    pub norms: &'a dyn Norms,
    pub format: u32,
}

impl Norms for Known<'_> {
    fn norm(&self, norm: &Norm) -> Result<Upper, Error> {
        match norm {
            Norm::Reads(_) if self.format < TOGETHER => Ok(Upper::INFINITY),
            norm => self.norms.norm(norm),
        }
    }
}

/// The norms that a certificate states.
pub(crate) struct Stated<'a>(pub &'a [WeightRow]);

impl Norms for Stated<'_> {
    fn norm(&self, norm: &Norm) -> Result<Upper, Error> {
        let name = norm.to_string();
        let missing = || {
            let what = format!("weights: the norm of {name} is missing");
            Error::Violated(format!("the certificate does not hold: {what}"))
        };
        Ok(self.0.iter().find(|row| row.name == name).ok_or_else(missing)?.upper)
    }
}

/// What the norms of the weights imply.
pub(crate) struct Theorem {
    pub walk: Walk,
    rms: Upper,
    l2: Upper,
    diameter: Option<Upper>,
}

/// Propagates bounds through the graph with given norms.
pub(crate) fn theorem(
    graph: &Graph,
    norms: &dyn Norms,
    formula: Formula,
    radius: Option<Upper>,
) -> Result<Theorem, Error> {
    let walk = walk(graph, norms, radius)?;
    let diameter = match (graph.input(), graph.nodes().first()) {
        (Input::Tokens { .. }, Some(node)) => {
            Some(norms.norm(&Norm::RowDifference(Block::whole(join(&node.name, "weight"))))?)
        }
        _ => None,
    };
    let (rms, l2) = match formula {
        Formula::Sound => (walk.rms(), walk.lipschitz),
        Formula::Paper => {
            let rms = paper::formula(graph, norms)?;
            let factor = count(walk.outputs).sqrt();
            (rms, (rms * factor).div_up(root_down(walk.inputs as f64)))
        }
    };
    Ok(Theorem { walk, rms, l2, diameter })
}

/// The certificate that states a theorem.
pub(crate) fn document(
    source: &Pinned,
    method: Method,
    formula: Formula,
    given: bool,
    theorem: Theorem,
    weights: Vec<WeightRow>,
    ellipsoids: Option<EllipsoidBound>,
) -> Result<Certificate, Error> {
    let Theorem { mut walk, mut rms, mut l2, diameter } = theorem;
    if let Some(bound) = &ellipsoids {
        (l2, walk.lipschitz) = (l2.min(bound.l2), walk.lipschitz.min(bound.l2));
        rms = rms.min(walk.rms());
        (walk.logit, walk.margin) = (walk.logit.min(bound.logit), walk.margin.min(bound.margin));
    }
    let output = |l2: Upper| Output { rms: walk.from_rms(l2), l2 };
    let mut warnings = Vec::new();
    if formula == Formula::Paper {
        warnings.push(
            "the published formula is NOT a bound for more than one attention head".to_string(),
        );
    }
    if !method.is_bound() {
        warnings.push("spectral norms are estimates from below: this is NOT a bound".to_string());
    }
    if !l2.is_finite() {
        let what = walk.rows.iter().find(|row| !row.lipschitz.is_finite()).map_or_else(
            || "the network".into(),
            |row| format!("{} ({})", row.path, row.kind).trim().to_string(),
        );
        warnings.push(format!("no finite bound: {what} needs a bounded domain; give a radius"));
    }
    for row in weights.iter().filter(|row| row.method != method && row.method != Method::Direct) {
        warnings.push(format!("{}: {} took the place of {}", row.name, row.method, method));
    }
    let tokens = matches!(source.graph().input(), Input::Tokens { .. });
    let text = match (tokens, given) {
        (true, false) => {
            "sequences of vectors, each of ℓ2 norm at most that of the largest embedding row"
        }
        (true, true) => "sequences of vectors, each of ℓ2 norm at most the given radius",
        (false, false) => "all inputs",
        (false, true) => "inputs of ℓ2 norm at most the given radius",
    };
    Ok(Certificate {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_string(),
        weights_sha256: source.digest().to_string(),
        graph: source.graph().clone(),
        rounding: source.rounding(),
        origin: source.origin().cloned(),
        formula,
        method,
        proven: formula == Formula::Sound && method.is_bound(),
        rms,
        l2,
        logit: output(walk.logit),
        margin: output(walk.margin),
        domain: Domain { text: text.into(), given, radius: walk.domain, diameter },
        nodes: walk.rows,
        weights,
        ellipsoids,
        assumptions: assumptions(source.graph(), source.rounding()),
        warnings,
    })
}

fn assumptions(graph: &Graph, rounding: Option<Rounding>) -> Vec<String> {
    let weights = match rounding {
        None => "the stored weights, each taken exactly".to_string(),
        Some(to) => {
            format!("the stored weights, each rounded {} and then taken exactly", to.text())
        }
    };
    let mut out = vec![
        format!("The function is the graph in real arithmetic with {weights}."),
        "Rounding in a forward pass is not part of the function.".to_string(),
    ];
    if let Input::Tokens { separator, zero_prefix, .. } = graph.input() {
        out.push(
            "The norm of a sequence is the largest norm of a token; inputs are embedding vectors, \
             not token ids."
                .into(),
        );
        if zero_prefix > 0 {
            out.push(format!("Each sequence stands behind {zero_prefix} zero vectors."));
        }
        out.push(match separator {
            None => "Sequences of any length up to the context, two compared ones of equal \
                     length."
                .into(),
            Some(_) => "Sequences of any length up to the context, two compared ones of equal \
                        length, with documents that begin at the same places."
                .into(),
        });
    } else {
        out.push(match graph.output() {
            Shape::Tokens(_) => {
                "The norm is that of the whole input, and the largest of a token of the output."
                    .into()
            }
            _ => "The norm is that of the whole input and the whole output.".into(),
        });
    }
    out
}

/// SHA-256 over the lines `name type shape digest` of all weights, in the order of their names.
/// Each digest is over the values as little-endian bytes of their type.
///
/// # Errors
/// [`Error::Network`] if a tensor cannot be read, or holds NaN or infinity.
pub fn digest(source: &dyn Source) -> Result<String, Error> {
    Ok(Pinned::new(source)?.digest().to_string())
}
