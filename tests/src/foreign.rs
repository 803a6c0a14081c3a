//! What the tests of imports share: seeded weights under the names that candle's own models ask
//! for, as a model directory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use lipschitz_import::{Dialect, ImportOptions, Imported, import, wanted};
use lipschitz_nn::Model;
use lipschitz_nn::checkpoint::save_tensors;
use serde_json::Value;

use crate::Dice;

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// A forward pass of candle's.
pub type Run = Box<dyn FnMut(&Tensor) -> candle_core::Result<Tensor>>;

/// Gives every tensor that is asked for, and remembers them.
#[derive(Clone, Default)]
pub struct Recorder {
    asked: Arc<Mutex<Tensors>>,
    has: &'static [&'static str],
    lacks: &'static [&'static str],
}

impl Recorder {
    /// One that says it has these, when it is asked whether.
    pub fn having(has: &'static [&'static str]) -> Self {
        Self { has, ..Self::default() }
    }

    /// One that does not give these.
    pub fn lacking(lacks: &'static [&'static str]) -> Self {
        Self { lacks, ..Self::default() }
    }

    /// What was asked for.
    pub fn tensors(&self) -> Tensors {
        self.asked.lock().expect("no test panics inside").clone()
    }
}

impl SimpleBackend for Recorder {
    fn get(
        &self,
        s: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        _: &Device,
    ) -> candle_core::Result<Tensor> {
        if self.lacks.contains(&name) {
            candle_core::bail!("{name} is not there")
        }
        let tensor = seeded(name, s.dims());
        self.asked.lock().expect("no test panics inside").insert(name.to_string(), tensor.clone());
        tensor.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name} is asked for without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.has.contains(&name)
    }
}

/// Numbers that depend on the name alone, of a size that matters: gains around 1, biases away from
/// 0.
pub fn seeded(name: &str, shape: &[usize]) -> Tensor {
    let seed = name.bytes().fold(7u64, |h, b| h.wrapping_mul(0x0100_0000_01b3) ^ u64::from(b));
    let mut dice = Dice::new(seed);
    let vector = shape.iter().filter(|n| **n > 1).count() <= 1;
    let gain = vector && name.ends_with("weight") || name.ends_with("gamma");
    let inputs: usize = shape.iter().skip(1).product();
    let size = if vector { 0.4 } else { 2.5 / (inputs as f64).sqrt() };
    let table = name.contains("embed")
        || name.contains("wte")
        || name.contains("wpe")
        || name.contains("shared");
    let x = dice.tensor(shape, if table && !vector { 1.0 } else { size });
    let x = if gain { (x + 1.0).expect("on the CPU") } else { x };
    x.to_dtype(DType::F32).expect("on the CPU")
}

/// Writes a model directory as the library does.
pub fn write(dir: &Path, config: &Value, tensors: &Tensors) {
    std::fs::write(dir.join("config.json"), config.to_string()).expect("the directory is ours");
    let tensors = tensors.iter().map(|(name, t)| (name.as_str(), t.clone()));
    save_tensors(&dir.join("model.safetensors"), tensors, None).expect("the directory is ours");
}

/// The model of a directory, in f64.
pub fn ours(dir: &Path, dialect: Dialect) -> Model {
    let options = ImportOptions { dialect, ..ImportOptions::default() };
    let Imported { model, .. } = import(dir, &options).unwrap_or_else(|e| panic!("{e}"));
    model.to(&Device::Cpu, DType::F64).expect("on the CPU")
}

/// A model of candle's, and the config under which it is imported.
pub struct Case {
    /// For messages.
    pub name: &'static str,
    /// As the library writes it.
    pub config: Value,
    /// Whose function is imported.
    pub dialect: Dialect,
    /// What candle's constructor is given.
    pub recorder: Recorder,
    /// Builds candle's model.
    pub build: fn(&Value, VarBuilder) -> candle_core::Result<Run>,
    /// Whether it gives the output of the last token alone.
    pub last: bool,
    /// What it reads.
    pub inputs: Vec<Tensor>,
    /// Tensors that cannot change the output, by the end of their name.
    pub silent: &'static [&'static str],
    /// Names and shapes as the library has them, of those that candle asks for.
    pub rename: fn(Tensors) -> Tensors,
}

/// Token ids for sequences of these lengths, two of each; none is a padding id.
pub fn ids(lengths: &[usize], vocabulary: u32) -> Vec<Tensor> {
    let mut dice = Dice::new(5);
    let mut one = |t: &usize| {
        let ids: Vec<u32> =
            (0..2 * t).map(|_| 2 + dice.below(vocabulary as usize - 2) as u32).collect();
        Tensor::from_vec(ids, (2, *t), &Device::Cpu).expect("as many as the shape has")
    };
    lengths.iter().map(&mut one).collect()
}

impl Case {
    /// A decoder, under the library's own function.
    pub fn new(
        name: &'static str,
        config: Value,
        build: fn(&Value, VarBuilder) -> candle_core::Result<Run>,
    ) -> Self {
        let (dialect, recorder) = (Dialect::Original, Recorder::default());
        let inputs = ids(&[1, 2, 5, 7], 11);
        Self {
            name,
            config,
            dialect,
            recorder,
            build,
            last: true,
            inputs,
            silent: &[],
            rename: |t| t,
        }
    }

    fn candle(&self, tensors: &Tensors) -> Run {
        let tensors = tensors.iter().map(|(n, t)| (n.clone(), t.clone())).collect();
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        (self.build)(&self.config, vb).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    fn output(&self, model: &Model, input: &Tensor) -> Vec<f64> {
        let y = model.forward(input).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let y = if self.last { y.narrow(1, y.dim(1).unwrap() - 1, 1).unwrap() } else { y };
        flat(&y)
    }

    /// Names and shapes are those that candle asks for; outputs agree; every tensor changes both
    /// alike.
    pub fn check(&self) {
        let name = self.name;
        let vb = VarBuilder::from_backend(Box::new(self.recorder.clone()), DType::F32, Device::Cpu);
        drop((self.build)(&self.config, vb).unwrap_or_else(|e| panic!("{name}: {e}")));
        let theirs = self.recorder.tensors();
        let tensors = (self.rename)(theirs.clone());
        let dir = tempfile::tempdir().expect("a directory can be made");
        write(dir.path(), &self.config, &tensors);
        let options = ImportOptions { dialect: self.dialect, ..ImportOptions::default() };
        let wanted = wanted(dir.path(), &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        let asked: Vec<(String, Vec<usize>)> =
            tensors.iter().map(|(n, t)| (n.clone(), t.dims().to_vec())).collect();
        assert_eq!(wanted, asked, "{name}: what the importer reads, and what candle asks for");

        let model = ours(dir.path(), self.dialect);
        let single = model.to(&Device::Cpu, DType::F32).unwrap();
        let mut candle = self.candle(&theirs);
        let (mut tolerance, mut size): (f64, f64) = (0.0, 0.0);
        for input in &self.inputs {
            let (ours, rounded) = (self.output(&model, input), self.output(&single, input));
            size = ours.iter().fold(size, |m, x| m.max(x.abs()));
            // What rounding to f32 does to this very function; candle's order of operations
            // differs.
            tolerance = tolerance.max(8.0 * distance(&ours, &rounded) + 1e-6 * size);
            let found = flat(&candle(input).unwrap_or_else(|e| panic!("{name}: {e}")));
            let off = distance(&ours, &found);
            assert!(
                off <= tolerance,
                "{name}, {:?}: {off} apart, allowed {tolerance}",
                input.dims()
            );
        }
        assert!(
            tolerance < 1e-3 * size,
            "{name}: a tolerance of {tolerance} on {size} says nothing"
        );

        let input = &self.inputs[self.inputs.len() - 1];
        let (before, candle_before) = (self.output(&model, input), flat(&candle(input).unwrap()));
        let mut unmoved = Vec::new();
        for changed in theirs.keys() {
            let mut theirs = theirs.clone();
            let noise = (seeded("noise", theirs[changed].dims()) * 0.3).unwrap();
            theirs.insert(changed.clone(), (&theirs[changed] + noise).unwrap());
            write(dir.path(), &self.config, &(self.rename)(theirs.clone()));
            let after = self.output(&ours(dir.path(), self.dialect), input);
            let candle_after = flat(&self.candle(&theirs)(input).unwrap());
            let off = distance(&after, &candle_after);
            assert!(
                off <= 4.0 * tolerance,
                "{name}, with another {changed}: {off} apart, allowed {tolerance}"
            );
            let moved = distance(&before, &after) > 8.0 * tolerance;
            assert_eq!(
                moved,
                distance(&candle_before, &candle_after) > 8.0 * tolerance,
                "{name}: {changed}"
            );
            if !moved && !self.silent.iter().any(|end| changed.ends_with(end)) {
                unmoved.push(changed);
            }
        }
        assert!(unmoved.is_empty(), "{name}: these change nothing: {unmoved:?}");
    }
}

/// All elements, in f64.
pub fn flat(x: &Tensor) -> Vec<f64> {
    let x = x.to_dtype(DType::F64).and_then(|x| x.flatten_all()).expect("on the CPU");
    x.to_vec1().expect("a vector")
}

/// The largest difference of two elements.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "outputs of different sizes");
    // NaN is as far away as can be.
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}
