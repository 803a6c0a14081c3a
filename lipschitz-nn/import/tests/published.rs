//! Configs as they are published, with small sizes: each is read as Hugging Face transformers reads
//! it (`tests/golden/configs.py`), or refused for a reason that is true.

mod library;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value;

use library::{Outcome, Tensors, ours, save};

/// What the importer refuses, and words of its reason.
const REFUSED: &[(&str, &str)] = &[
    // The library itself has forgotten positions relative to each other, and reads another model.
    ("bert_japanese_relative", "position_embedding_type"),
    ("llama_2_7b_gptq", "quantization_config"),
    ("mixtral_8x7b", "experts"),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// The weights that follow from their names, as `configs.py` makes them.
fn weight(name: &str, shape: &[usize]) -> Tensor {
    let c: usize = name.bytes().enumerate().map(|(j, byte)| (j + 1) * usize::from(byte)).sum();
    let lower = name.to_lowercase();
    let vector = shape.len() <= 1;
    let gain = vector
        && name.ends_with("weight")
        && ["norm", "ln_"].iter().any(|part| lower.contains(part));
    let last = shape.last().map_or(1.0, |n| *n as f64);
    let (factor, shift) = (if vector { 0.3 } else { 2.0 / last.sqrt() }, f64::from(gain));
    let element = |i: usize| {
        let wave = ((c % 997) as f64 + 0.37 * (i * i % 1009) as f64).sin();
        (shift + factor * wave) as f32
    };
    let x: Vec<f32> = (0..shape.iter().product()).map(element).collect();
    Tensor::from_vec(x, shape, &Device::Cpu).expect("as many as the shape has")
}

/// What the model is given.
fn input(config: &Value) -> Tensor {
    let size = |key: &str| config[key].as_u64().expect("the config says it") as usize;
    if config.get("image_size").is_some() {
        let (images, side) = (2, size("image_size"));
        let x: Vec<f64> = (0..images * 3 * side * side).map(|i| (i as f64).sin()).collect();
        return Tensor::from_vec(x, (images, 3, side, side), &Device::Cpu).unwrap();
    }
    let vocabulary = size("vocab_size");
    let ids: Vec<u32> = (0..24).map(|i| 2 + (7 * i % (vocabulary - 2)) as u32).collect();
    Tensor::from_vec(ids, (2, 12), &Device::Cpu).unwrap()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// What the importer makes of a config, with tensors of these shapes.
fn import(config: &Value, shapes: &Value) -> Result<Outcome, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let tensors: Tensors = shapes.as_object().into_iter().flatten().map(named).collect();
    save(dir.path(), &tensors);
    ours(dir.path(), &input(config))
}

fn named((name, shape): (&String, &Value)) -> (String, Tensor) {
    let shape = shape.as_array().into_iter().flatten().filter_map(Value::as_u64);
    (name.clone(), weight(name, &shape.map(|n| n as usize).collect::<Vec<_>>()))
}

#[test]
fn published_configs_are_read_or_refused_for_a_reason() {
    let expected = read(&folder().join("configs.json"));
    let mut wrong = Vec::new();
    let mut seen = BTreeMap::new();
    for entry in std::fs::read_dir(folder().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let config = read(&path);
        let reason = REFUSED.iter().find(|(refused, _)| *refused == name).map(|(_, why)| why);
        let [file, outcome] = [0, 1].map(|i| &expected["configs"][&name][i]);
        let shapes = file.as_u64().map_or(&Value::Null, |i| &expected["files"][i as usize]);
        match (import(&config, shapes), reason, outcome.is_array()) {
            (Ok(found), None, true) if Outcome::read(outcome).is(&found) => {}
            (Err(what), Some(why), _) if what.contains(why) && !what.contains('\n') => {}
            (Ok(_), None, true) => wrong.push(format!("{name}: is read as another function")),
            (Ok(_), ..) => wrong.push(format!("{name}: is read, and should not be")),
            (Err(what), ..) => wrong.push(format!("{name}: {what}")),
        }
        seen.insert(name, ());
    }
    assert!(REFUSED.iter().all(|(name, _)| seen.contains_key(*name)), "a refused config is gone");
    assert!(seen.len() >= 40, "{} configs", seen.len());
    wrong.sort();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
