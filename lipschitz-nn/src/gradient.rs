//! The gradient of a loss, with activations kept or worked out again.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use crate::graph::{Node, Op};
use crate::model::Pass;
use crate::ops;
use crate::{Error, Model};

impl Model {
    /// `loss` of the network's output for `x`; its gradient with respect to the weights that record
    /// one is added to `total`.
    ///
    /// A model made by [`Model::recomputing`] keeps the input of each residual block alone, on any
    /// device.
    ///
    /// # Errors
    /// As [`Model::forward`], and what `loss` gives.
    pub fn gradient<E: From<Error>>(
        &self,
        x: &Tensor,
        total: &mut GradStore,
        loss: impl FnOnce(&Tensor) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        let mut pass = self.pass(x)?;
        let segments = if self.recomputes() { self.segments() } else { Vec::new() };
        // Blocks that run as one operation do this themselves.
        let fused = self.weights().values().next().is_some_and(|w| ops::fused(&[w]));
        let chained = |(node, prefix): &(&Node, String)| {
            !matches!(node.op, Op::Residual { .. })
                || fused && self.link(node, prefix, &pass, &mut Vec::new())
        };
        let all_chained = segments.iter().all(chained);
        let Some((last, segments)) = segments.split_last().filter(|_| !all_chained) else {
            let y = self.sequence(self.graph().nodes(), "", self.input(x)?, &mut pass)?;
            let value = loss(&y)?;
            self.add(total, value.backward().map_err(Error::from)?)?;
            return Ok(value.detach());
        };
        let mut inputs = vec![self.input(x)?];
        for (node, prefix) in segments {
            let next =
                self.node(node, prefix, inputs[inputs.len() - 1].clone(), &mut pass)?.detach();
            inputs.push(next);
        }
        let run = |(node, prefix): &(&Node, String),
                   input: &Tensor,
                   pass: &mut Pass|
         -> Result<_, Error> {
            // Token ids have no gradient.
            let var = input.dtype().is_float().then(|| Var::from_tensor(input)).transpose()?;
            let start = var.as_ref().map_or_else(|| input.clone(), |var| var.as_tensor().clone());
            Ok((self.node(node, prefix, start, pass)?, var))
        };
        let (y, mut start) = run(last, &inputs[segments.len()], &mut pass)?;
        let value = loss(&y)?;
        let mut gradients = value.backward().map_err(Error::from)?;
        let value = value.detach();
        drop(y);
        for (segment, input) in segments.iter().zip(&inputs).rev() {
            let Some(grad) = start.and_then(|var| gradients.remove(var.as_tensor())) else { break };
            let grad = grad.detach();
            self.add(total, std::mem::take(&mut gradients))?;
            let (y, var) = run(segment, input, &mut pass)?;
            gradients = (y * grad).and_then(|y| y.sum_all()?.backward()).map_err(Error::from)?;
            start = var;
        }
        self.add(total, gradients)?;
        Ok(value)
    }

    /// Adds the gradients of the weights, and lets go of the rest: in candle's store each gradient
    /// holds on to the activations that it was made of, and constants have one, too.
    fn add(&self, total: &mut GradStore, mut more: GradStore) -> Result<(), Error> {
        for w in self.weights().values() {
            if let Some(more) = more.remove(w) {
                let sum = match total.remove(w) {
                    Some(mut sum) => {
                        ops::mix(&mut sum, 1.0, &more.detach(), 1.0)?;
                        sum
                    }
                    None => more.detach(),
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
        collect(self.graph().nodes(), "", &mut out);
        out
    }
}
