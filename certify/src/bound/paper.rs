//! The formula of Newhouse et al. (2025), for comparison with published figures. It is **not a
//! bound**: it puts whole-matrix norms into the formula of a single head while logits are divided
//! by the head's width (see `docs/mathematics.md`).

use lipschitz_nn::graph::{Function, Graph, Input, Node, Op, join};
use lipschitz_nn::norm::rms_to_rms;

use super::norms::{Block, Norms};
use crate::Error;
use crate::upper::{Upper, abs};

/// The value of the formula, RMS → RMS.
///
/// Apart from the heads, it differs from the network in three ways: it divides the constant of the
/// MLP by 1.1289 twice, multiplies the value path by the logit scale, and omits scales on the
/// output.
///
/// # Errors
/// [`Error::Unknown`] for a node that the formula does not cover.
pub fn formula(graph: &Graph, norms: &dyn Norms) -> Result<Upper, Error> {
    let tokens = matches!(graph.input(), Input::Tokens { .. });
    let mut x = State { lipschitz: Upper::ONE, radius: Upper::ONE };
    for node in graph.nodes() {
        x = step(node, "", x, norms, tokens)?;
    }
    Ok(x.lipschitz)
}

#[derive(Clone, Copy)]
struct State {
    lipschitz: Upper,
    /// RMS norm of the activations, according to the formula.
    radius: Upper,
}

fn step(
    node: &Node,
    prefix: &str,
    x: State,
    norms: &dyn Norms,
    tokens: bool,
) -> Result<State, Error> {
    let path = node.path(prefix);
    let number = Upper::from_f64;
    let rms = |name: &str, outputs: usize, inputs: usize| -> Result<Upper, Error> {
        let norm = norms.matrix(&Block::whole(join(&path, &join(name, "weight"))))?;
        Ok(norm * number(rms_to_rms(outputs, inputs)))
    };
    let through =
        |factor: Upper| State { lipschitz: x.lipschitz * factor, radius: x.radius * factor };
    Ok(match &node.op {
        Op::Embedding { .. } | Op::Scale { .. } | Op::Flatten => x,
        Op::Linear { outputs, inputs, bias: false } => through(rms("", *outputs, *inputs)?),
        Op::Sequential { body } => {
            body.iter().try_fold(x, |x, n| step(n, &path, x, norms, tokens))?
        }
        Op::Residual { skip, branch, body } => {
            let start = State { lipschitz: Upper::ONE, ..x };
            let y = body.iter().try_fold(start, |x, n| step(n, &path, x, norms, tokens))?;
            let (a, b) = (abs(*skip), abs(*branch));
            State {
                lipschitz: x.lipschitz * (a + b * y.lipschitz),
                radius: a * x.radius + b * y.radius,
            }
        }
        // Dividing by 1.1289 makes GELU's slope 1; the formula divides once more.
        Op::Activation { function: Function::GeluErf, scale } if tokens => through(abs(*scale)),
        Op::Activation { function: Function::Relu | Function::Abs, scale } => through(abs(*scale)),
        Op::Attention(a)
            if !a.bias && !a.output_bias && a.query_key_norm.is_none() && a.logit_cap.is_none() =>
        {
            let width = a.heads * a.head_dim;
            let (query, key) = (rms("query", width, a.dim)?, rms("key", width, a.dim)?);
            let value =
                rms("value", width, a.dim)? * rms("output", a.dim, width)? * abs(a.output_scale);
            let scale = abs(a.logit_scale) * number(a.head_dim as f64);
            let radius = x.radius * x.radius;
            let logits = Upper::ONE + number(2.0) * query * key * radius;
            State { lipschitz: x.lipschitz * value * scale * logits, radius: x.radius * value }
        }
        op => {
            return Err(Error::Unknown(format!(
                "`{path}`: the published formula has no {} like this",
                op.kind()
            )));
        }
    })
}
