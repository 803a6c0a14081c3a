//! Gradients of weights that do not pass through candle's store, which clears a tensor of the same size for each
//! and adds to it: for a wide network that is as much traffic as all the rest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, Tensor, TensorId};

use crate::linalg::{Real, axpby};

/// Gradients by weight; clones share them.
#[derive(Clone, Default)]
pub struct Gradients(Arc<Mutex<HashMap<TensorId, Result<Tensor>>>>);

impl Gradients {
    /// Adds to the gradient of a weight, if it records one.
    pub(super) fn put<T: Real>(&self, weight: &Tensor, gradient: Vec<T>) {
        if !weight.track_op() {
            return;
        }
        let more = Tensor::from_vec(gradient, weight.shape(), weight.device());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = match (all.remove(&weight.id()), more) {
            (Some(Ok(mut sum)), Ok(more)) => axpby(&mut sum, 1.0, &more, 1.0).map(|()| sum),
            (Some(Err(error)), _) => Err(error),
            (_, more) => more,
        };
        all.insert(weight.id(), sum);
    }

    /// The gradient of a weight, which it then is no more.
    ///
    /// # Errors
    /// What went wrong when it was put there.
    pub fn take(&self, weight: &Tensor) -> Result<Option<Tensor>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&weight.id()).transpose()
    }
}
