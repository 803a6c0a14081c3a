//! Inputs to prove something around, whatever the network reads.

use candle_core::Tensor;
use lipschitz_nn::Model;
use lipschitz_nn::graph::{Graph, Input, Shape};

use super::{BoxError, images, tokens};
use crate::Error;
use crate::spectral::vector_norm;
use crate::upper::Upper;

/// Batches of inputs `[batch, tokens, width]` in f64, where an image or a vector is one token, each with
/// its class: its label, or for text what is predicted after it.
pub(crate) type Cases = Vec<(Tensor, Vec<usize>)>;

/// The first `limit` inputs.
///
/// # Errors
/// [`Error::Data`] if they do not fit the model.
pub(crate) fn cases<E: Into<BoxError>>(
    model: &Model,
    batches: impl IntoIterator<Item = Result<(Tensor, Tensor), E>>,
    limit: usize,
) -> Result<Cases, Error> {
    match model.graph().input() {
        Input::Tokens { .. } => {
            if !matches!(model.graph().output(), Shape::Tokens(_) | Shape::Vector(_)) {
                return Err(Error::Data("the model decides nothing".into()));
            }
            Ok(tokens::predictions(model, batches, None, limit)?.inputs)
        }
        Input::Pixels { channels, height, width } => {
            images::inputs(batches, limit, &[channels, height, width])
        }
        Input::Vector { dim } => images::inputs(batches, limit, &[dim]),
    }
}

/// Inputs `[batch, tokens, width]` in the shape that the network reads; those of a language model are
/// embedding vectors.
pub(crate) fn as_input(graph: &Graph, x: &Tensor) -> Result<Tensor, Error> {
    let batch = x.dim(0)?;
    Ok(match graph.input() {
        Input::Tokens { .. } => x.clone(),
        Input::Pixels { channels, height, width } => x.reshape((batch, channels, height, width))?,
        Input::Vector { dim } => x.reshape((batch, dim))?,
    })
}

/// Outputs `[batch, outputs]`: those of the last token where each has some.
pub(crate) fn outputs(model: &Model, x: &Tensor) -> Result<Tensor, Error> {
    let y = match model.graph().input() {
        Input::Tokens { .. } => model.forward_embeddings(x)?,
        _ => model.forward(x)?,
    };
    Ok(match model.graph().output() {
        Shape::Tokens(_) => y.narrow(1, y.dim(1)? - 1, 1)?.squeeze(1)?,
        _ => y,
    })
}

/// The largest ℓ2 norm of an input, all tokens together.
pub(crate) fn largest_norm(cases: &[(Tensor, Vec<usize>)]) -> Result<Upper, Error> {
    let mut largest = Upper::ZERO;
    for (x, _) in cases {
        for row in x.flatten_from(1)?.to_vec2::<f64>()? {
            largest = largest.max(vector_norm(&row));
        }
    }
    Ok(largest)
}
