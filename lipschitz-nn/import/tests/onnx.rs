//! ONNX files of PyTorch's two exporters and made by hand (`tests/golden/make_onnx.py`): our outputs
//! are those of onnxruntime, or the file is refused.

use std::path::{Path, PathBuf};

use lipschitz_import::candle_core::{DType, Device, Tensor};
use lipschitz_import::{ImportOptions, Imported, import};
use lipschitz_nn::checkpoint::load_tensors;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/onnx")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "onnx")).collect();
    files.sort();
    files
}

fn flat(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// How far our outputs are from what the file beside the model says, relative to the largest.
fn distance(path: &Path, expected: &Path) -> Result<f64, String> {
    let Imported { model, .. } =
        import(path, &ImportOptions::default()).map_err(|e| e.to_string())?;
    let model = model.to(&Device::Cpu, DType::F64).unwrap();
    let (expected, _) = load_tensors(expected, &Device::Cpu).unwrap();
    let input = ["tokens", "pixels", "vectors"].iter().find_map(|name| expected.get(*name));
    let output = model.forward(input.unwrap()).map_err(|e| e.to_string())?;
    let wanted = &expected["output"];
    assert_eq!(output.elem_count(), wanted.elem_count(), "{}", path.display());
    let (found, wanted) = (flat(&output), flat(wanted));
    let size = wanted.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let off = found.iter().zip(&wanted).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()));
    Ok(off / size)
}

#[test]
fn outputs_are_those_of_onnxruntime() {
    let (mut report, mut wrong) = (Vec::new(), Vec::new());
    let folder = std::env::var_os("LIPSCHITZ_ONNX").map_or_else(folder, PathBuf::from);
    for path in files(&folder) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        match distance(&path, &path.with_extension("safetensors")) {
            Ok(off) if off <= 1e-5 => report.push(format!("{name} {off:.1e}")),
            Ok(off) => wrong.push(format!("{name}: {off:.2e} apart")),
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
    }
    println!("{}", report.join(", "));
    assert!(wrong.is_empty(), "{wrong:#?}");
}
