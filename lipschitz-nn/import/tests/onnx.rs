//! ONNX files of PyTorch's two exporters and made by hand (`tests/golden/make_onnx.py`): our outputs
//! are those of onnxruntime, or the file is refused.

mod outputs;

use std::path::{Path, PathBuf};

use lipschitz_import::candle_core::{DType, Device};
use lipschitz_import::{ImportOptions, Imported, import};
use lipschitz_nn::checkpoint::load_tensors;
use outputs::flat;

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
    Ok(outputs::distance(&found, &wanted) / size)
}

#[test]
fn outputs_are_those_of_onnxruntime() {
    let (mut report, mut wrong) = (Vec::new(), Vec::new());
    let folder = std::env::var_os("LIPSCHITZ_ONNX").map_or_else(folder, PathBuf::from);
    let all = files(&folder);
    assert!(all.len() >= 25, "{}", all.len());
    for path in all {
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

/// Files made by hand that only look like what is read: zeros in place of logits or behind a softmax,
/// constants in front of a soft cap, constants of more axes, types of fewer bits, statistics of a batch,
/// tables and factors that go with the number of tokens or examples.
#[test]
fn what_only_looks_like_a_layer_is_refused() {
    let all = files(&folder().join("refused"));
    assert!(all.len() > 30, "{}", all.len());
    for path in all {
        let read = import(&path, &ImportOptions::default());
        assert!(read.is_err(), "{} is read", path.display());
    }
}

/// Where a file is not quite what its network is, the certificate says so.
#[test]
fn what_is_not_quite_the_file_is_noted() {
    let notes = |name: &str| {
        let path = folder().join(format!("{name}.onnx"));
        let meta = import(&path, &ImportOptions::default()).unwrap().meta;
        meta.provenance.origin.unwrap().notes.join("; ")
    };
    assert!(notes("activations.dynamo").contains("2.1e-9"));
    assert!(!notes("mlp.script").contains("2.1e-9"));
}

/// The norm of an output, and the sums over its elements i of output[i]·cos(k·i + k) for k = 1…6.
fn digest(y: &[f64]) -> Vec<f64> {
    let norm = y.iter().map(|x| x * x).sum::<f64>().sqrt();
    let sum = |k: usize| -> f64 {
        y.iter().enumerate().map(|(i, x)| x * ((k * i + k) as f64).cos()).sum()
    };
    std::iter::once(norm).chain((1..7).map(sum)).collect()
}

/// Bytes in place of those from one place to another; and the digest of what comes of it.
type Case = (Vec<(usize, usize, String)>, Vec<f64>);

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// A changed operator, option, constant or wire: the network is the one that onnxruntime runs then,
/// or the file is refused.
#[test]
fn changed_files_are_read_as_they_stand_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut taken, mut all, mut wrong) = (0, 0, Vec::new());
    let folder = std::env::var_os("LIPSCHITZ_ONNX").map_or_else(folder, PathBuf::from);
    for path in files(&folder) {
        let cases = path.with_extension("mutations.json");
        let Ok(text) = std::fs::read_to_string(&cases) else { continue };
        let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
        let original = std::fs::read(&path).unwrap();
        let expected = path.with_extension("safetensors");
        let (expected, _) = load_tensors(&expected, &Device::Cpu).unwrap();
        let input = ["tokens", "pixels", "vectors"].iter().find_map(|name| expected.get(*name));
        for (i, (edits, wanted)) in cases.iter().enumerate() {
            all += 1;
            let mut bytes = original.clone();
            for (from, to, with) in edits.iter().rev() {
                bytes.splice(from..to, hex(with));
            }
            let changed = dir.path().join("changed.onnx");
            std::fs::write(&changed, bytes).unwrap();
            let Ok(Imported { model, .. }) = import(&changed, &ImportOptions::default()) else {
                continue;
            };
            taken += 1;
            let model = model.to(&Device::Cpu, DType::F64).unwrap();
            let Ok(output) = model.forward(input.unwrap()) else {
                wrong.push(format!("{} {i}: does not run", path.display()));
                continue;
            };
            let found = digest(&flat(&output));
            let off = outputs::distance(&found, wanted);
            // Of f32 and its rounding: sums cancel.
            if off > 2e-4 * wanted[0].max(1e-3) || off.is_nan() {
                wrong.push(format!("{} {i}: {found:?}, not {wanted:?}", path.display()));
            }
        }
    }
    println!("{taken} of {all} changed files are read");
    assert!(wrong.is_empty(), "{}: {wrong:#?}", wrong.len());
    // It cannot pass by refusing all.
    assert!(all >= 300 && taken * 5 >= all, "{taken} of {all}");
}
