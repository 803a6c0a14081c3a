//! The walk: one pass over the graph that carries a radius forward and multiplies Lipschitz constants.
//!
//! Norm of a value: the largest ℓ2 norm of a token (of the whole, for vectors and images). Every node answers: given
//! inputs of norm at most R, what bounds the outputs, and what is the Lipschitz constant on that ball? Balls are
//! convex, so constants multiply along a path and add over a sum. The proofs are in `docs/mathematics.md`.

mod attention;
mod norms;
pub mod paper;
mod pointwise;
mod weights;

pub use norms::{Norms, Part};
pub use weights::WeightNorms;

use lipschitz_nn::graph::{Graph, Input, Node, Op, join};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::upper::Upper;

/// What the walk found out about one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The node's path.
    pub path: String,
    /// The node's kind.
    pub kind: String,
    /// Its Lipschitz constant, ℓ2 a token, on the ball of its inputs.
    pub lipschitz: Upper,
    /// From the input of the network, or of the residual body that the node is in, to the node's output.
    pub cumulative: Upper,
    /// A bound on the ℓ2 norm of each token of its output.
    pub radius: Upper,
    /// Which rule gave the constant.
    pub rule: String,
}

/// The result of a walk.
#[derive(Clone, Debug, PartialEq)]
pub struct Walk {
    /// The network's Lipschitz constant, ℓ2 → ℓ2 a token, on the ball of radius `domain`.
    pub lipschitz: Upper,
    /// ℓ2 radius of the domain, a token (of the whole input for images and vectors; infinite: everywhere).
    pub domain: Upper,
    /// A bound on the ℓ2 norm of each token of the output.
    pub radius: Upper,
    /// Numbers in one token of the input.
    pub inputs: usize,
    /// Numbers in one token of the output.
    pub outputs: usize,
    /// A row a node, in the order of the forward pass.
    pub rows: Vec<Row>,
}

impl Walk {
    /// The constant from RMS norm to RMS norm: `√(inputs/outputs)` times the one in ℓ2.
    pub fn rms(&self) -> Upper {
        (self.lipschitz * count(self.inputs).sqrt()).over(down(self.outputs))
    }
}

/// n as a number.
fn count(n: usize) -> Upper {
    Upper::from_f64(n as f64)
}

/// Not above √n.
fn down(n: usize) -> f64 {
    (n as f64).sqrt().next_down()
}

/// |x| as a number; infinite for NaN, so that nothing is proven about it.
fn abs(x: f64) -> Upper {
    if x.is_nan() { Upper::INFINITY } else { Upper::from_f64(x.abs()) }
}

/// What is known about a value.
#[derive(Clone, Copy)]
struct State {
    /// Bound on the ℓ2 norm of a token.
    radius: Upper,
    /// Numbers in a token.
    width: usize,
}

/// A node's answer.
struct Step {
    lipschitz: Upper,
    out: State,
    rule: String,
}

/// Walks `graph` with the norms that `norms` gives; the domain is the ball of ℓ2 radius `radius` a token, or the whole
/// natural domain: embedding rows for tokens, everything for images and vectors.
///
/// # Errors
/// [`Error`] names the node or weight that nothing is known about.
pub fn walk(graph: &Graph, norms: &dyn Norms, radius: Option<Upper>) -> Result<Walk, Error> {
    graph.check()?;
    let mut rows = Vec::new();
    let (nodes, start) = match (graph.input, graph.nodes.split_first()) {
        (Input::Tokens { .. }, Some((Node { name, op: Op::Embedding { dim, .. } }, rest))) => {
            let natural = norms.row(&join(name, "weight"))?;
            let radius = radius.unwrap_or(natural);
            let (one, kind, rule) = (Upper::ONE, "embedding".to_string(), "domain: the embedding vectors".to_string());
            rows.push(Row { path: name.clone(), kind, lipschitz: one, cumulative: one, radius, rule });
            (rest, State { radius, width: *dim })
        }
        (Input::Tokens { .. }, _) => return Err(Error::Unknown("the input: tokens without an embedding".into())),
        (Input::Pixels { channels, height, width }, _) => {
            let radius = radius.unwrap_or(Upper::INFINITY);
            (&graph.nodes[..], State { radius, width: channels * height * width })
        }
        (Input::Vector { dim }, _) => {
            (&graph.nodes[..], State { radius: radius.unwrap_or(Upper::INFINITY), width: dim })
        }
    };
    let channels = if let Input::Pixels { channels, .. } = graph.input { channels } else { 0 };
    let mut walker = Walker { norms, channels, rows };
    let (lipschitz, out) = walker.sequence(nodes, "", start, Upper::ONE)?;
    let (domain, inputs) = (start.radius, start.width);
    Ok(Walk { lipschitz, domain, radius: out.radius, inputs, outputs: out.width, rows: walker.rows })
}

struct Walker<'a> {
    norms: &'a dyn Norms,
    /// Colour channels of an image, the width of a patch of one pixel.
    channels: usize,
    rows: Vec<Row>,
}

impl Walker<'_> {
    fn sequence(&mut self, nodes: &[Node], prefix: &str, start: State, from: Upper) -> Result<(Upper, State), Error> {
        let (mut lipschitz, mut state) = (Upper::ONE, start);
        for node in nodes {
            let step = self.node(node, prefix, state, from * lipschitz)?;
            lipschitz = lipschitz * step.lipschitz;
            state = step.out;
            self.rows.push(Row {
                path: node.path(prefix),
                kind: node.op.kind().into(),
                lipschitz: step.lipschitz,
                cumulative: from * lipschitz,
                radius: state.radius,
                rule: step.rule,
            });
        }
        Ok((lipschitz, state))
    }

    fn node(&mut self, node: &Node, prefix: &str, x: State, from: Upper) -> Result<Step, Error> {
        let path = node.path(prefix);
        let path = path.as_str();
        let step = |lipschitz, radius, width, rule: &str| {
            Ok(Step { lipschitz, out: State { radius, width }, rule: rule.to_string() })
        };
        match &node.op {
            Op::Sequential { body } => {
                let (lipschitz, out) = self.sequence(body, path, x, from)?;
                Ok(Step { lipschitz, out, rule: "product".into() })
            }
            // δ(a x + b f(x)) ≤ (|a| + |b| L_f) δx
            Op::Residual { skip, branch, body } => {
                let (inner, out) = self.sequence(body, path, x, Upper::ONE)?;
                let (a, b) = (abs(*skip), abs(*branch));
                step(a + b * inner, a * x.radius + b * out.radius, x.width, "|a| + |b| L")
            }
            Op::Linear { outputs, bias, .. } => {
                let norm = self.norms.matrix(&join(path, "weight"), Part::ALL)?;
                let mut radius = norm * x.radius;
                if *bias {
                    radius = radius + self.norms.vector(&join(path, "bias"), Part::ALL)?;
                }
                step(norm, radius, *outputs, "‖W‖")
            }
            Op::Embedding { .. } => Err(Error::Unknown(format!("`{path}`: an embedding that is not the first node"))),
            Op::Positions { .. } => {
                let row = self.norms.row(&join(path, "weight"))?;
                step(Upper::ONE, x.radius + row, x.width, "a translation")
            }
            Op::Activation { function, scale } => {
                let scale = abs(*scale);
                let radius = scale * pointwise::norm(*function, x.radius, x.width);
                step(scale * pointwise::slope(*function), radius, x.width, "largest slope")
            }
            Op::Scale { factor } => step(abs(*factor), abs(*factor) * x.radius, x.width, "|c|"),
            Op::Attention(a) => attention::bound(a, path, self.norms, x),
            // The Jacobian of x/√(mean x² + ε) is at most 1/√ε, and centring is a projection.
            Op::RmsNorm { eps, .. } | Op::LayerNorm { eps, .. } => {
                let gain = self.norms.largest(&join(path, "weight"))?;
                let lipschitz = gain.over(eps.sqrt().next_down());
                let mut radius = (gain * count(x.width).sqrt()).min(lipschitz * x.radius);
                if let Op::LayerNorm { bias: true, .. } = node.op {
                    radius = radius + self.norms.vector(&join(path, "bias"), Part::ALL)?;
                }
                step(lipschitz, radius, x.width, "max |γ| / √ε")
            }
            Op::GatedMlp { function, .. } => {
                let weight = |name: &str| join(path, &join(name, "weight"));
                let norm = |name| self.norms.matrix(&weight(name), Part::ALL);
                let (gate, up, down) = (norm("gate")?, norm("up")?, norm("down")?);
                let largest_gate = pointwise::value(*function, self.norms.row(&weight("gate"))? * x.radius);
                let largest_up = self.norms.row(&weight("up"))? * x.radius;
                // δ(φ(g) ∘ u) = δφ(g) ∘ u + φ(g) ∘ δu, each factor without δ bounded by its largest element.
                let product = pointwise::slope(*function) * gate * largest_up + up * largest_gate;
                let radius = down * largest_gate * up * x.radius;
                step(down * product, radius, x.width, "product rule on row norms")
            }
            Op::Flatten => step(Upper::ONE, x.radius, x.width, "an isometry"),
            // A token is a part of the image, so its norm and its change are at most the image's.
            Op::Patches { size } => step(Upper::ONE, x.radius, self.channels * size * size, "parts of the image"),
            Op::MeanPool => step(Upper::ONE, x.radius, x.width, "a mean"),
        }
    }
}
