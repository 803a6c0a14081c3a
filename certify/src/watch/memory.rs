//! Norms that are proven once, as long as their weights stay what they are.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use crate::Error;
use crate::bound::{Norm, Norms, WeightNorms};
use crate::pinned::Pinned;
use crate::spectral::Method;
use crate::upper::Upper;

/// The norms of the checkpoint before, by name and by the digests of their weights.
#[derive(Debug, Default)]
pub struct Memory(HashMap<String, Upper>);

impl Memory {
    /// Those of one checkpoint alone, so that it does not grow.
    pub(super) fn replace(&mut self, known: HashMap<String, Upper>) {
        self.0 = known;
    }
}

/// Proven norms, with a memory.
pub(super) struct Remembering<'a> {
    source: &'a Pinned<'a>,
    norms: WeightNorms<'a>,
    before: &'a HashMap<String, Upper>,
    now: RefCell<HashMap<String, Upper>>,
    proven: Cell<usize>,
    goes_on: &'a dyn Fn() -> bool,
    stopped: Cell<bool>,
}

impl<'a> Remembering<'a> {
    pub(super) fn new(
        source: &'a Pinned<'a>,
        memory: &'a Memory,
        goes_on: &'a dyn Fn() -> bool,
    ) -> Self {
        Self {
            source,
            norms: WeightNorms::new(source, Method::Proven, &|_| {}),
            before: &memory.0,
            now: RefCell::default(),
            proven: Cell::new(0),
            goes_on,
            stopped: Cell::new(false),
        }
    }

    /// How many norms were proven, and how many known.
    pub(super) fn counts(&self) -> (usize, usize) {
        let proven = self.proven.get();
        (proven, self.now.borrow().len() - proven)
    }

    /// Whether it was to stop.
    pub(super) fn stopped(&self) -> bool {
        self.stopped.get()
    }

    pub(super) fn into_known(self) -> HashMap<String, Upper> {
        self.now.into_inner()
    }

    /// A norm with the digests of its weights.
    fn key(&self, norm: &Norm) -> String {
        let mut key = norm.to_string();
        for weight in norm.weights() {
            // One without a digest is not of this network, and fails below.
            key.push('\n');
            key.push_str(self.source.line(weight).unwrap_or_default());
        }
        key
    }
}

impl Norms for Remembering<'_> {
    fn norm(&self, norm: &Norm) -> Result<Upper, Error> {
        let key = self.key(norm);
        if let Some(known) = self.now.borrow().get(&key) {
            return Ok(*known);
        }
        if let Some(known) = self.before.get(&key) {
            self.now.borrow_mut().insert(key, *known);
            return Ok(*known);
        }
        if !(self.goes_on)() {
            self.stopped.set(true);
            return Err(Error::Unknown("norms that were left out".into()));
        }
        let found = self.norms.norm(norm)?;
        self.proven.set(self.proven.get() + 1);
        self.now.borrow_mut().insert(key, found);
        Ok(found)
    }

    fn prepare(&self, norms: &[Norm]) -> Result<(), Error> {
        let unknown = |norm: &&Norm| {
            let key = self.key(norm);
            !self.now.borrow().contains_key(&key) && !self.before.contains_key(&key)
        };
        let unknown: Vec<Norm> = norms.iter().filter(unknown).cloned().collect();
        // What is out of time is refused when it is asked for.
        if unknown.is_empty() || !(self.goes_on)() { Ok(()) } else { self.norms.prepare(&unknown) }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use lipschitz_nn::graph::{Function, Input};
    use lipschitz_nn::{Graph, Model, Weights};

    use crate::range::{self, Inputs};
    use crate::watch::{Memory, measure};

    fn model(first: f32, second: f32) -> Model {
        let graph = Graph::builder(Input::Vector { dim: 2 })
            .linear("a", 2)
            .activation(Function::Relu)
            .linear("b", 2)
            .build()
            .unwrap();
        let weight = |name: &str, shape: &[usize]| {
            let x = match name {
                "a.weight" => first,
                "b.weight" => second,
                _ => 0.5,
            };
            Tensor::full(x, shape, &Device::Cpu).unwrap()
        };
        let weights: Weights = graph
            .parameters()
            .iter()
            .map(|p| (p.name.clone(), weight(&p.name, &p.shape)))
            .collect();
        Model::new(graph, weights).unwrap()
    }

    /// What changes is proven again, what stays is not, and what is measured is as if all were.
    #[test]
    fn unchanged_norms_are_proven_once() {
        let inputs = Inputs { radius: Some(1.0), limit: None };
        let mut memory = Memory::default();
        let mut next = |a: f32, b: f32| {
            let model = model(a, b);
            let measured = measure(&model, inputs, &mut memory, &|| true).unwrap().unwrap();
            let fresh = measure(&model, inputs, &mut Memory::default(), &|| true).unwrap().unwrap();
            assert_eq!((measured.lipschitz, measured.range), (fresh.lipschitz, fresh.range));
            assert_eq!(measured.norms, fresh.norms);
            let ranges = range::prove(&model, inputs, 0, &|_| {}).unwrap();
            assert_eq!(ranges.largest(), measured.range);
            (measured.proven, measured.reused, fresh.proven)
        };
        let (proven, reused, all) = next(1.0, 1.0);
        assert_eq!((proven, reused), (all, 0));
        assert_eq!(next(1.0, 1.0), (0, all, all));
        let (proven, reused, _) = next(1.0, 2.0);
        assert!(proven > 0 && reused > 0 && proven + reused == all, "{proven} {reused}");
        // The memory is of the last one alone.
        assert_eq!(next(1.0, 1.0).0, proven);
        // Those of both, and not of the biases.
        let (both, reused, _) = next(3.0, 3.0);
        assert!(both > proven && reused > 0, "{both} {reused}");
    }

    #[test]
    fn a_proof_can_be_stopped() {
        let stopped =
            measure(&model(1.0, 1.0), Inputs::default(), &mut Memory::default(), &|| false);
        assert!(stopped.unwrap().is_none());
    }
}
