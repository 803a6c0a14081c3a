//! What the tests against the library's outputs share.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use lipschitz_import::{ImportOptions, import};
use lipschitz_nn::checkpoint::save_tensors;
use serde_json::Value;

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// How far two numbers may be apart, as a share of the output's size.
const CLOSE: f64 = 1e-5;

/// An output, in short: its shape, its Euclidean norm, and for k = 1…6 the sums over its elements
/// i = 0, 1, … of output\[i\] · cos(k·i + k).
#[derive(Debug)]
pub(crate) struct Outcome {
    shape: Vec<usize>,
    norm: f64,
    sums: Vec<f64>,
}

impl Outcome {
    pub(crate) fn of(output: &Tensor) -> Self {
        let x = output.to_dtype(DType::F64).and_then(|x| x.flatten_all()).expect("on the CPU");
        let x: Vec<f64> = x.to_vec1().expect("a vector");
        let sum = |k: u32| {
            let wave = |(i, x): (usize, &f64)| x * (f64::from(k) * i as f64 + f64::from(k)).cos();
            x.iter().enumerate().map(wave).sum()
        };
        Self {
            shape: output.dims().to_vec(),
            norm: x.iter().map(|x| x * x).sum::<f64>().sqrt(),
            sums: (1..=6).map(sum).collect(),
        }
    }

    /// As the scripts write it.
    pub(crate) fn read(value: &Value) -> Self {
        let numbers: Vec<f64> =
            value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        let shape = value[0].as_array().into_iter().flatten().filter_map(Value::as_u64);
        Self {
            shape: shape.map(|n| n as usize).collect(),
            norm: numbers[0],
            sums: numbers[1..].to_vec(),
        }
    }

    /// Whether another is this one, but for rounding.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let near = |a: &f64, b: &f64| (a - b).abs() <= CLOSE * self.norm;
        self.shape == other.shape
            && near(&self.norm, &other.norm)
            && self.sums.len() == other.sums.len()
            && self.sums.iter().zip(&other.sums).all(|(a, b)| near(a, b))
    }
}

/// What the importer makes of a directory, in f64, or why it refuses.
pub(crate) fn ours(dir: &Path, input: &Tensor) -> Result<Outcome, String> {
    let imported = import(dir, &ImportOptions::default()).map_err(|e| e.to_string())?;
    let model = imported.model.to(&Device::Cpu, DType::F64).map_err(|e| e.to_string())?;
    let output = model.forward(input).map_err(|e| e.to_string())?;
    Ok(Outcome::of(&output))
}

/// Writes the weights of a model directory.
pub(crate) fn save(dir: &Path, tensors: &Tensors) {
    let tensors = tensors.iter().map(|(name, t)| (name.as_str(), t.clone()));
    save_tensors(&dir.join("model.safetensors"), tensors, None).expect("the directory is ours");
}
