//! Models saved by Hugging Face transformers itself (`tests/golden/make.py`): our outputs are the
//! library's.

mod outputs;

use std::path::{Path, PathBuf};

use lipschitz_import::candle_core::{DType, Device};
use lipschitz_import::{ImportOptions, Imported, import};
use lipschitz_nn::checkpoint::load_tensors;
use outputs::{distance, flat};

fn models() -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let entries = std::fs::read_dir(golden).unwrap().map(|e| e.unwrap().path());
    let mut models: Vec<PathBuf> = entries
        .filter(|path| {
            path.join("config.json").exists() && path.join("expected.safetensors").exists()
        })
        .collect();
    models.sort();
    models
}

#[test]
fn outputs_are_those_of_the_library() {
    let mut report = Vec::new();
    let mut wrong = Vec::new();
    for dir in models() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let (expected, _) = load_tensors(&dir.join("expected.safetensors"), &Device::Cpu).unwrap();
        // Of a model of two inputs, the one that is read.
        let part = name.split_once('.').map(|(_, part)| part.to_string());
        let options = ImportOptions { part, ..ImportOptions::default() };
        let Imported { model, .. } = match import(&dir, &options) {
            Ok(imported) => imported,
            Err(e) => {
                wrong.push(format!("{name}: {e}"));
                continue;
            }
        };
        let model = model.to(&Device::Cpu, DType::F64).unwrap();
        let input = expected.get("tokens").unwrap_or_else(|| &expected["pixels"]);
        let output = model.forward(input).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(output.dims(), expected["output"].dims(), "{name}");
        let (found, wanted) = (flat(&output), flat(&expected["output"]));
        let size = wanted.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let off = distance(&found, &wanted) / size;
        report.push(format!("{name} {off:.1e}"));
        if off > 1e-5 || off.is_nan() {
            wrong.push(format!("{name}: {off:.2e} of {size:.2} apart"));
        }
    }
    println!("{}", report.join(", "));
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(report.len() >= 110, "{report:?}");
}
