//! How well a network predicts held-out data.

use candle_core::{D, DType, Device, Tensor};
use lipschitz_nn::graph::Shape;
use lipschitz_nn::{Graph, Model, ops};

use crate::{Batch, DataSet, Error, Predicts, Protocol};

/// Images that are evaluated at once, at least: they are small.
const IMAGES: usize = 256;

/// Figures over a held-out split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy, nats; or mean squared error, where numbers are predicted.
    pub loss: f64,
    /// Share of predictions whose largest logit is right; none of numbers.
    pub accuracy: Option<f64>,
    /// How many predictions.
    pub count: usize,
    /// Median over predictions of the largest logit less the next; none of numbers.
    pub margin: Option<f64>,
}

/// Loss, accuracy and margin of a network on a held-out split.
///
/// # Errors
/// If the data does not fit the network or its protocol.
pub fn evaluate(
    model: &Model,
    data: &dyn DataSet,
    protocol: Protocol,
    batch_size: usize,
    device: &Device,
) -> Result<Evaluation, Error> {
    let forward = |x: &Tensor| model.forward(x);
    evaluate_as(model.graph(), &forward, data, protocol, batch_size, device)
}

/// As [`evaluate`], of whatever `forward` computes in place of the network of this graph.
///
/// # Errors
/// As [`evaluate`], and what `forward` gives.
pub fn evaluate_as(
    graph: &Graph,
    forward: &dyn Fn(&Tensor) -> Result<Tensor, lipschitz_nn::Error>,
    data: &dyn DataSet,
    protocol: Protocol,
    batch_size: usize,
    device: &Device,
) -> Result<Evaluation, Error> {
    let context = graph.context();
    if context.is_some() && !matches!(graph.output(), Shape::Tokens(_)) {
        return Err(Error::PredictsNoTokens);
    }
    check_outputs(graph, data)?;
    total(forward, data.predicts(), data.held_out(protocol, batch_size, context, device)?)
}

/// Sequences or images at a time where training takes `batch_size`: images are small, and many at once
/// take less time.
#[must_use]
pub fn evaluation_size(graph: &Graph, batch_size: usize) -> usize {
    if graph.context().is_some() { batch_size } else { batch_size.max(IMAGES) }
}

/// Whether a network reads each token of the data and has an output for each token or class, or as many as
/// it has numbers; and predicts a token from those before it alone.
///
/// # Errors
/// [`Error::TooFewOutputs`], [`Error::TooFewTokensKnown`] or [`Error::LooksAhead`].
pub fn check_outputs(graph: &Graph, data: &dyn DataSet) -> Result<(), Error> {
    check_causal(graph)?;
    let (outputs, wanted) = (graph.outputs(), data.outputs());
    let fits = match data.predicts() {
        Predicts::Classes => outputs >= wanted,
        Predicts::Numbers => outputs == wanted,
    };
    match graph.vocabulary() {
        _ if !fits => Err(Error::TooFewOutputs { outputs, wanted }),
        Some(vocabulary) => check_vocabulary(vocabulary, data),
        None => Ok(()),
    }
}

/// Whether an embedding has a row for each token of the data.
///
/// # Errors
/// [`Error::TooFewTokensKnown`].
pub fn check_vocabulary(vocabulary: usize, data: &dyn DataSet) -> Result<(), Error> {
    match data.outputs() {
        tokens if tokens > vocabulary => {
            Err(Error::TooFewTokensKnown { name: data.name().to_string(), vocabulary, tokens })
        }
        _ => Ok(()),
    }
}

/// Whether each output for a token depends on no token behind it, which is what is to be predicted.
///
/// # Errors
/// [`Error::LooksAhead`].
pub fn check_causal(graph: &Graph) -> Result<(), Error> {
    match graph.looks_ahead().filter(|_| matches!(graph.output(), Shape::Tokens(_))) {
        Some(node) if graph.context().is_some() => Err(Error::LooksAhead(node)),
        _ => Ok(()),
    }
}

fn total(
    forward: &dyn Fn(&Tensor) -> Result<Tensor, lipschitz_nn::Error>,
    predicts: Predicts,
    batches: impl IntoIterator<Item = Result<Batch, Error>>,
) -> Result<Evaluation, Error> {
    let mut total = Total::default();
    for batch in batches {
        let (x, y) = batch?;
        match predicts {
            Predicts::Classes => total.add(&forward(&x)?, &y)?,
            Predicts::Numbers => total.add_numbers(&forward(&x)?, &y)?,
        }
    }
    total.mean()
}

/// A few inputs of the held-out split as the points that a certificate speaks of: embedding vectors
/// of up to two windows, or the pixels of up to 16 images or vectors.
///
/// # Errors
/// If the data does not fit the network.
pub fn starts(model: &Model, data: &dyn DataSet) -> Result<Tensor, Error> {
    let context = model.graph().context();
    let (count, window) =
        if context.is_some() { (2, context.map(|c| c.min(64))) } else { (16, None) };
    let first = data.held_out(Protocol::Full, count, window, &model.device())?.next();
    let (x, _) = first.ok_or(Error::EmptySplit)??;
    Ok(if context.is_some() { model.embed(&x)? } else { x })
}

#[derive(Default)]
struct Total {
    loss: f64,
    right: f64,
    count: usize,
    margins: Vec<f32>,
}

impl Total {
    fn add(&mut self, logits: &Tensor, targets: &Tensor) -> Result<(), Error> {
        let targets = targets.flatten_all()?;
        let flat = logits.reshape((targets.dim(0)?, ()))?;
        let n = targets.dim(0)?;
        let found = ops::cross_entropy(&flat, &targets)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        self.loss += found[0] * n as f64;
        self.right += (found[1] * n as f64).round();
        self.count += n;
        self.margins.extend(margins(&flat)?);
        Ok(())
    }

    /// The squared errors of numbers `[n, width]`, with their mean over the width.
    fn add_numbers(&mut self, found: &Tensor, wanted: &Tensor) -> Result<(), Error> {
        let n = wanted.dim(0)?;
        let error = (found.to_dtype(DType::F64)? - wanted.to_dtype(DType::F64)?)?;
        self.loss += error.sqr()?.mean(D::Minus1)?.sum_all()?.to_scalar::<f64>()?;
        self.count += n;
        Ok(())
    }

    fn mean(mut self) -> Result<Evaluation, Error> {
        if self.count == 0 {
            return Err(Error::EmptySplit);
        }
        let n = self.count as f64;
        let (loss, count) = (self.loss / n, self.count);
        if self.margins.is_empty() {
            return Ok(Evaluation { loss, accuracy: None, count, margin: None });
        }
        let middle = self.margins.len() / 2;
        let margin = f64::from(*self.margins.select_nth_unstable_by(middle, f32::total_cmp).1);
        Ok(Evaluation { loss, accuracy: Some(self.right / n), count, margin: Some(margin) })
    }
}

/// The largest logit less the next, of each prediction `[n, outputs]`.
fn margins(logits: &Tensor) -> Result<Vec<f32>, Error> {
    let outputs = logits.dim(D::Minus1)?;
    let all = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let margin = |row: &[f32]| {
        let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for z in row {
            if *z > first {
                (first, second) = (*z, first);
            } else if *z > second {
                second = *z;
            }
        }
        first - second
    };
    Ok(all.chunks(outputs.max(1)).map(margin).collect())
}

#[cfg(test)]
mod tests {
    use lipschitz_nn::graph::{Attention, Input, Node, Op};

    use super::*;

    /// Whoever sees the next token does not predict it; a class of a whole text may depend on all of it.
    #[test]
    fn a_next_token_that_is_seen_is_no_prediction() {
        let said = |causal, last: Option<Op>| {
            let attention = Attention { causal, ..Attention::new(4, 2, 2) };
            let body = vec![Node::new("mix", Op::Attention(attention))];
            let nodes = [
                Node::new("embedding", Op::Embedding { vocabulary: 3, dim: 4 }),
                Node::new("block", Op::Residual { skip: 1.0, branch: 1.0, body }),
            ];
            let nodes = nodes.into_iter().chain(last.map(|op| Node::new("", op))).collect();
            check_causal(&Graph::new(Input::tokens(4), nodes).unwrap()).map_err(|e| e.to_string())
        };
        let found = said(false, None).unwrap_err();
        assert!(found.starts_with("`block.mix` attends to tokens that come later"), "{found}");
        for (causal, last) in
            [(true, None), (false, Some(Op::MeanPool)), (true, Some(Op::LastToken))]
        {
            said(causal, last).unwrap();
        }
    }
}
