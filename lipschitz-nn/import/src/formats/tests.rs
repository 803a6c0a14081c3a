//! Files that the libraries themselves wrote (`tests/golden/make_formats.py`), against what those
//! read in them.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::load_tensors;
use serde_json::json;

use super::files::Files;
use crate::Undecided;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/formats").join(name)
}

fn numbers(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn holds(files: &Files, expected: &str) {
    let path = golden(&format!("{expected}.expected.safetensors"));
    let (expected, _) = load_tensors(&path, &Device::Cpu).unwrap();
    assert!(!expected.is_empty());
    for (name, wanted) in expected {
        let found = files.read(&name).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((found.dims(), found.dtype()), (wanted.dims(), wanted.dtype()), "{name}");
        assert_eq!(numbers(&found), numbers(&wanted), "{name}");
    }
}

#[test]
fn numbers_are_those_that_the_libraries_read() {
    for (file, expected) in [
        ("views.pt", "views"),
        ("legacy.pt", "legacy"),
        ("legacy4.pt", "legacy4"),
        ("fortran.npz", "fortran"),
        ("compressed.npz", "compressed"),
        ("blocks.gguf", "blocks"),
        ("training.pt", "training"),
    ] {
        let files = Files::of_file(&golden(file), None).unwrap_or_else(|e| panic!("{e}"));
        holds(&files, expected);
    }
    // What is no weight is there, and is not read.
    let files = Files::of_file(&golden("views.pt"), None).unwrap();
    assert_eq!(files.get("mask").unwrap().dtype, None);
    assert!(files.read("mask").unwrap_err().to_string().contains("bool"));
    let files = Files::of_file(&golden("blocks.gguf"), None).unwrap();
    assert_eq!(files.get("I32").unwrap().dtype, None);
    let notes = files.notes().join(" ");
    assert!(notes.contains("dequantised") && notes.contains("Q4_K (1 tensors)"), "{notes}");
}

#[test]
fn a_checkpoint_of_a_script_is_its_weights_with_its_options_beside_them() {
    let files = Files::of_file(&golden("training.pt"), None).unwrap();
    assert_eq!(files.stripped(), Some("module._orig_mod."));
    let notes = files.notes().join("; ");
    assert!(notes.contains("`model_state_dict`") && notes.contains("`module._orig_mod.`"));
    assert_eq!(
        files.sidecar("model_args"),
        Some(&json!({"n_layer": 2, "dropout": 0.0, "bias": true, "name": "tiny"}))
    );
    let args = files.sidecar("args").unwrap();
    assert_eq!((&args["lr"], &args["dtype"]), (&json!(0.1), &json!("torch.float32")));
    assert!(files.sidecar("optimizer").is_none() && files.sidecar("model_state_dict").is_none());
    assert!(files.sidecar("object").is_some_and(|fields| fields["dtype"] == "torch.float32"));
}

#[test]
fn a_choice_between_sets_of_tensors_is_asked_for() {
    let path = golden("choice.pt");
    let error = Files::of_file(&path, None).unwrap_err();
    let Error::File { what, .. } = &error else { panic!("{error}") };
    let Some(Undecided::Entries(said)) = what.downcast_ref() else { panic!("{error}") };
    assert!(said.contains("`model`") && said.contains("`ema.module`"), "{said}");
    let first = Files::of_file(&path, Some("model")).unwrap();
    holds(&first, "choice");
    let second = Files::of_file(&path, Some("ema.module")).unwrap();
    let (one, other) = (first.read("0.weight").unwrap(), second.read("0.weight").unwrap());
    assert_eq!(numbers(&(one * 0.5).unwrap()), numbers(&other));
    let said = Files::of_file(&path, Some("epoch")).unwrap_err().to_string();
    assert!(said.contains("no entry `epoch`") && said.contains("`ema.module`"), "{said}");
    let said = Files::of_file(&golden("fortran.npz"), Some("a")).unwrap_err().to_string();
    assert!(said.contains("fortran.npz"), "{said}");
}

#[test]
fn the_order_is_the_files_own() {
    let files = Files::of_file(&golden("order.pt"), None).unwrap();
    let names = ["encoder.weight", "decoder.weight", "auxiliary.weight"];
    assert_eq!(files.ordered().unwrap(), names);
    let files = Files::of_file(&golden("fortran.npz"), None).unwrap();
    assert_eq!(files.ordered(), None);
    let files = Files::of_file(&golden("views.expected.safetensors"), None).unwrap();
    assert_eq!(files.ordered(), None);
}

#[test]
fn tensors_that_are_not_read_are_refused_by_kind() {
    for (file, says) in [
        ("sparse", "`0.weight` is a sparse tensor"),
        ("quantized", "`0.weight` is a quantized tensor"),
        ("nested", "`0.weight` is a nested tensor"),
        ("meta", "`0.weight` is a tensor on the device `meta`"),
        ("negative", "`0.weight` is a lazy view (`neg`)"),
        ("conjugate", "`0.weight` is a lazy view (`conj`)"),
        ("number", "`logit_scaler` is "),
        ("module", "an object of `torch.nn.modules.container.Sequential`"),
        ("script", "TorchScript"),
        ("expanded", "tensors of 4503599627370496 bytes"),
    ] {
        let error = Files::of_file(&golden(&format!("refused_{file}.pt")), None).unwrap_err();
        let said = error.to_string();
        assert!(said.contains(says) && !said.contains('\n'), "{said}");
    }
    for (file, kind) in
        [("float8", "float8_e4m3fn"), ("uint16", "uint16"), ("complex", "complex64")]
    {
        let files = Files::of_file(&golden(&format!("refused_{file}.pt")), None).unwrap();
        let said = files.read("0.weight").unwrap_err().to_string();
        assert!(said.contains(kind), "{said}");
    }
}

/// What is read is of the file that was opened, whatever becomes of its name.
#[test]
fn a_file_that_is_swapped_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("m.pt"), dir.path().join("other.pt"));
    std::fs::copy(golden("views.pt"), &path).unwrap();
    std::fs::copy(golden("legacy.pt"), &other).unwrap();
    let files = Files::of_file(&path, None).unwrap();
    std::fs::rename(&other, &path).unwrap();
    holds(&files, "views");
}

#[test]
fn wrappers_are_taken_off_where_all_names_have_them() {
    let file = |names: &[&str]| {
        let one =
            |name: &&str| (name.to_string(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let tensors: Vec<(String, Tensor)> = names.iter().map(one).collect();
        let named = tensors.iter().map(|(name, t)| (name.as_str(), t.clone()));
        lipschitz_nn::checkpoint::save_tensors(&path, named, None).unwrap();
        let mut files = Files::of_file(&path, None).unwrap();
        let always = files.names().map(String::from).collect::<Vec<_>>();
        files.strip_attributes();
        (always, files.names().map(String::from).collect::<Vec<_>>())
    };
    let (always, more) = file(&["_orig_mod.module.model.a", "_orig_mod.module.model.b"]);
    assert_eq!((always[0].as_str(), more[0].as_str()), ("model.a", "a"));
    let (always, more) = file(&["module.a", "head"]);
    assert_eq!((&always, always[1].as_str()), (&more, "module.a"));
    // Nothing is left without a name.
    assert_eq!(file(&["module."]).1, ["module."]);
}
