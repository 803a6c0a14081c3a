//! The gradient of a loss, with activations kept or worked out again.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use crate::graph::{Node, Op};
use crate::model::Pass;
use crate::ops;
use crate::{Error, Model};

impl Model {
    /// `loss` of the network's output for `x`, and its gradient with respect to the weights that record one.
    ///
    /// A model made by [`Model::recomputing`] keeps the input of each residual block alone, on any device.
    ///
    /// # Errors
    /// As [`Model::forward`], and what `loss` gives.
    pub fn gradient<E: From<Error>>(
        &self,
        x: &Tensor,
        loss: impl FnOnce(&Tensor) -> Result<Tensor, E>,
    ) -> Result<(Tensor, GradStore), E> {
        let mut pass = self.pass(x)?;
        let segments = if self.recomputes() { self.segments() } else { Vec::new() };
        // Blocks that run as one operation do this themselves.
        let fused = self.weights().values().next().is_some_and(|w| ops::fused(&[w]));
        let chained = |(node, prefix): &(&Node, String)| {
            !matches!(node.op, Op::Residual { .. }) || fused && self.link(node, prefix, &pass, &mut Vec::new())
        };
        let all_chained = segments.iter().all(chained);
        let Some((last, segments)) = segments.split_last().filter(|_| !all_chained) else {
            let y = self.sequence(&self.graph().nodes, "", self.input(x)?, &mut pass)?;
            let value = loss(&y)?;
            let gradients = value.backward().map_err(Error::from)?;
            return Ok((value, gradients));
        };
        let mut inputs = vec![self.input(x)?];
        for (node, prefix) in segments {
            let next = self.node(node, prefix, inputs[inputs.len() - 1].clone(), &mut pass)?.detach();
            inputs.push(next);
        }
        let run = |(node, prefix): &(&Node, String), input: &Tensor, pass: &mut Pass| -> Result<_, Error> {
            // Token ids have no gradient.
            let var = input.dtype().is_float().then(|| Var::from_tensor(input)).transpose()?;
            let start = var.as_ref().map_or_else(|| input.clone(), |var| var.as_tensor().clone());
            Ok((self.node(node, prefix, start, pass)?, var))
        };
        let (y, mut start) = run(last, &inputs[segments.len()], &mut pass)?;
        let value = loss(&y)?;
        let mut total = value.backward().map_err(Error::from)?;
        drop(y);
        for (segment, input) in segments.iter().zip(&inputs).rev() {
            let Some(grad) = start.and_then(|var| total.remove(var.as_tensor())) else { break };
            let (y, var) = run(segment, input, &mut pass)?;
            let mut more = (y * grad.detach()).and_then(|y| y.sum_all()?.backward()).map_err(Error::from)?;
            self.add_gradients(&mut total, &mut more)?;
            if let Some(var) = &var
                && let Some(grad) = more.remove(var.as_tensor())
            {
                total.insert(var.as_tensor(), grad);
            }
            start = var;
        }
        Ok((value, total))
    }

    /// Moves the gradients of the weights from one store to another, where they are added to what is there.
    ///
    /// # Errors
    /// Candle's own.
    pub fn add_gradients(&self, total: &mut GradStore, more: &mut GradStore) -> Result<(), Error> {
        for w in self.weights().values() {
            if let Some(more) = more.remove(w) {
                let sum = match total.remove(w) {
                    Some(mut sum) => {
                        ops::mix(&mut sum, 1.0, &more, 1.0)?;
                        sum
                    }
                    None => more,
                };
                total.insert(w, sum);
            }
        }
        Ok(())
    }

    /// The nodes in turn, with those inside of a sequence.
    fn segments(&self) -> Vec<(&Node, String)> {
        fn collect<'a>(nodes: &'a [Node], prefix: &str, out: &mut Vec<(&'a Node, String)>) {
            for node in nodes {
                match &node.op {
                    Op::Sequential { body } => collect(body, &node.path(prefix), out),
                    _ => out.push((node, prefix.to_string())),
                }
            }
        }
        let mut out = Vec::new();
        collect(&self.graph().nodes, "", &mut out);
        out
    }
}
