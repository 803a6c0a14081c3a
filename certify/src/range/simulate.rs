//! A network as hardware of few bits runs it: weights and activations rounded with static scales that
//! no input can overflow, products added in `f32`.

use std::cell::Cell;
use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use lipschitz_nn::graph::Site;
use lipschitz_nn::{Model, Seen};

use super::{Inputs, Number, TensorRange, prove};
use crate::Error;
use crate::source::{Rounded, Rounding, Source};

/// Which tensors are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What products of matrices multiply, as where hardware multiplies in few bits and everything
    /// else stays in many.
    Operands,
    /// Every tensor between two operations, as where all of them are stored in few bits.
    All,
}

/// A network whose weights and activations are rounded.
pub struct Simulated {
    model: Model,
    number: Number,
    /// log2 of the factor of each tensor that is rounded.
    scales: BTreeMap<Site, i32>,
    /// How many elements were beyond the end of the format, and how many were rounded.
    clipped: Cell<(u64, u64)>,
}

impl Simulated {
    /// Rounds the weights, and proves ranges of the network that they make.
    ///
    /// # Errors
    /// [`Error::Unknown`] names a tensor that is not bounded, so that no static scale suits it.
    pub fn new(
        model: &Model,
        number: Number,
        extent: Extent,
        inputs: Inputs,
    ) -> Result<Self, Error> {
        let rounded = Rounded { source: model, to: Rounding::from(number) };
        let ranges = prove(&rounded, inputs, 0, &|_| {})?;
        let operands = model.graph().operands();
        let wanted = |t: &&TensorRange| extent == Extent::All || operands.contains(&t.site);
        let scale = |t: &TensorRange| {
            if t.largest == crate::upper::Upper::ZERO {
                return Ok((t.site.clone(), 0));
            }
            // A scale beyond the range of f32 would leave nothing of a number.
            let scale = number.scale(t.largest).map(|k| k.clamp(-100, 100) as i32);
            let unknown = || Error::Unknown(format!("the largest element of `{}`", t.name));
            Ok((t.site.clone(), scale.ok_or_else(unknown)?))
        };
        let scales =
            ranges.tensors.iter().filter(wanted).map(scale).collect::<Result<_, Error>>()?;
        let weights = model.weights().keys().map(|name| {
            let weight = rounded.tensor(name)?.to_dtype(model.dtype())?;
            Ok((name.clone(), weight.to_device(&model.device())?))
        });
        let weights = weights.collect::<Result<_, Error>>()?;
        let model = Model::new(model.graph().clone(), weights)?;
        Ok(Self { model, number, scales, clipped: Cell::default() })
    }

    /// The network's output, as [`Model::forward`].
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, lipschitz_nn::Error> {
        self.model.forward_tapped(x, &mut |seen: Seen<'_>, x: Tensor| {
            let site = Site { id: seen.id.clone(), stage: seen.stage };
            match self.scales.get(&site) {
                Some(k) => Ok(self.rounded(&x, *k)?),
                None => Ok(x),
            }
        })
    }

    /// How many elements were beyond the end of the format, of how many that were rounded. Roundings
    /// before a tensor can move it beyond what is proven of the network in real arithmetic.
    pub fn clipped(&self) -> (u64, u64) {
        self.clipped.get()
    }

    fn rounded(&self, x: &Tensor, k: i32) -> candle_core::Result<Tensor> {
        let (up, down) = (2f64.powi(k), 2f64.powi(-k));
        let (mut clipped, all) = self.clipped.get();
        let round = |x: f64| {
            let scaled = x * up;
            clipped += u64::from(scaled.abs() > self.number.end());
            self.number.round(scaled) * down
        };
        let flat = x.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let values: Vec<f64> = flat.into_iter().map(round).collect();
        self.clipped.set((clipped, all + values.len() as u64));
        Tensor::from_vec(values, x.dims(), x.device())?.to_dtype(x.dtype())
    }
}
