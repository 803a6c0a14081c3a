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

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use lipschitz_nn::graph::{Function, Input};
    use lipschitz_nn::{Graph, Weights};

    use super::*;

    fn model() -> Model {
        let graph = Graph::builder(Input::Vector { dim: 3 })
            .linear("up", 8)
            .activation(Function::Relu)
            .linear("down", 2)
            .build()
            .unwrap();
        let weight = |shape: &[usize]| {
            let values = (0..shape.iter().product()).map(|i: usize| (i as f32 * 1.3).sin());
            Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
        };
        let weights: Weights =
            graph.parameters().iter().map(|p| (p.name.clone(), weight(&p.shape))).collect();
        Model::new(graph, weights).unwrap()
    }

    fn apart(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    /// More bits are nearer to the network, and no number is cut.
    #[test]
    fn a_simulation_is_near_the_network() {
        let model = model();
        let x = Tensor::new(&[[0.3_f32, -0.9, 0.11], [1.0, 1.0, -1.0]], &Device::Cpu).unwrap();
        let inputs = Inputs { radius: None, limit: Some(1.0) };
        let exact = model.forward(&x).unwrap();
        let run = |number, extent| {
            let simulated = Simulated::new(&model, number, extent, inputs).unwrap();
            let y = simulated.forward(&x).unwrap();
            let (clipped, rounded) = simulated.clipped();
            assert!(clipped == 0 && rounded > 0, "{number}: {clipped} of {rounded}");
            (apart(&y, &exact), rounded)
        };
        let all = |number| run(number, Extent::All).0;
        let (e5m2, e4m3, bf16) = (all(Number::E5m2), all(Number::E4m3), all(Number::Bf16));
        assert!(bf16 > 0.0 && bf16 < e4m3.min(e5m2), "{bf16} {e4m3} {e5m2}");
        assert!(e5m2 < 3.0 && bf16 < 0.1, "{bf16} {e5m2}");
        // The operands of two products: 3 and 8 numbers of two inputs.
        assert_eq!(run(Number::E4m3, Extent::Operands).1, 22);
        // Without a bound on the input there is no static scale.
        let open = Simulated::new(&model, Number::E4m3, Extent::All, Inputs::default());
        assert!(open.is_err_and(|e| e.to_string().contains("`input`")));
    }
}
