//! The gradient of a loss, with activations kept or recomputed.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use super::Model;
use super::program::{Fused, Operation, Step};
use super::run::{Pass, run};
use crate::ops::{Dropout, Gradients};
use crate::{Error, linalg};

impl Model {
    /// `loss` of the network's output for `x`, less what `dropout` leaves out; its gradient with
    /// respect to the weights that record one is added to `total`.
    ///
    /// A model made by [`Model::recomputing`] keeps only the input of each residual block, on any
    /// device.
    ///
    /// # Errors
    /// As [`Model::forward`], and what `loss` gives.
    pub fn gradient<E: From<Error>>(
        &self,
        x: &Tensor,
        dropout: Option<Dropout>,
        total: &mut GradStore,
        loss: impl FnOnce(&Tensor) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        let gathered = Gradients::default();
        let mut pass = Pass { gathered: Some(gathered.clone()), dropout, ..self.pass(x)? };
        let input = self.input(x)?;
        match self.segments(&pass).split_last() {
            Some((last, before)) => {
                self.segment_by_segment(before, last, input, &mut pass, total, loss)
            }
            None => {
                let y = run(&self.program, input, &mut pass)?;
                let value = loss(&y)?;
                self.add(total, value.backward().map_err(Error::from)?, &gathered)?;
                Ok(value.detach())
            }
        }
    }

    /// The nodes in turn, with those inside of a sequence, if activations are to be recomputed
    /// between them; none if not, or if every residual block runs as one operation, which does so
    /// itself.
    fn segments(&self, pass: &Pass) -> Vec<&Step> {
        fn collect<'a>(steps: &'a [Step], out: &mut Vec<&'a Step>) {
            for step in steps {
                match &step.operation {
                    Operation::Sequential(body) => collect(body, out),
                    _ => out.push(step),
                }
            }
        }
        let mut segments = Vec::new();
        if self.recompute {
            collect(&self.program, &mut segments);
        }
        let kernels = self.weights.values().next().is_some_and(|w| linalg::fused(&[w]));
        let one_operation = |step: &&Step| match step.operation {
            Operation::Residual { .. } => kernels && pass.blocks(step).is_some(),
            // A chain of layers recomputes itself, unless it runs node by node.
            _ => pass.dropout.is_none() || !matches!(step.fused, Some(Fused::Layers(_))),
        };
        if segments.iter().all(one_operation) { Vec::new() } else { segments }
    }

    /// Keeps the input of each segment, and runs each once more for its gradient.
    fn segment_by_segment<E: From<Error>>(
        &self,
        before: &[&Step],
        last: &Step,
        input: Tensor,
        pass: &mut Pass,
        total: &mut GradStore,
        loss: impl FnOnce(&Tensor) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        let mut inputs = vec![input];
        for step in before {
            let next = step.run(inputs[inputs.len() - 1].clone(), pass)?.detach();
            inputs.push(next);
        }
        let gathered = pass.gathered.clone().unwrap_or_default();
        let (y, mut start) = run_from(last, &inputs[before.len()], pass)?;
        let value = loss(&y)?;
        let mut gradients = value.backward().map_err(Error::from)?;
        let value = value.detach();
        drop(y);
        for (step, input) in before.iter().zip(&inputs).rev() {
            let Some(grad) = start.and_then(|var| gradients.remove(var.as_tensor())) else { break };
            let grad = grad.detach();
            self.add(total, std::mem::take(&mut gradients), &gathered)?;
            let (y, var) = run_from(step, input, pass)?;
            gradients = (y * grad).and_then(|y| y.sum_all()?.backward()).map_err(Error::from)?;
            start = var;
        }
        self.add(total, gradients, &gathered)?;
        Ok(value)
    }

    /// Adds the gradients of the weights, and lets go of the rest: in candle's store each gradient
    /// holds on to the activations that it was made of, and constants have one, too.
    fn add(
        &self,
        total: &mut GradStore,
        mut more: GradStore,
        gathered: &Gradients,
    ) -> Result<(), Error> {
        for w in self.weights.values() {
            for more in [more.remove(w), gathered.take(w)?].into_iter().flatten() {
                let sum = match total.remove(w) {
                    Some(mut sum) => {
                        linalg::axpby(&mut sum, 1.0, &more.detach(), 1.0)?;
                        sum
                    }
                    None => more.detach(),
                };
                total.insert(w, sum);
            }
        }
        Ok(())
    }
}

/// A step's output, and the variable that it begins with: token ids have none.
fn run_from(step: &Step, input: &Tensor, pass: &mut Pass) -> Result<(Tensor, Option<Var>), Error> {
    let var = input.dtype().is_float().then(|| Var::from_tensor(input)).transpose()?;
    let start = var.as_ref().map_or_else(|| input.clone(), |var| var.as_tensor().clone());
    Ok((step.run(start, pass)?, var))
}
