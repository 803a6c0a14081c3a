//! Models saved by Hugging Face transformers itself (`tests/golden/make.py`), as certificates speak
//! of them; that our outputs are the library's is a test of the crate that imports them.

use std::path::{Path, PathBuf};

use candle_core::Device;
use lipschitz_certify::certificate::{Certificate, Formula, certify};
use lipschitz_certify::spectral::Method;
use lipschitz_import::{Dialect, ImportOptions, import};
use lipschitz_nn::checkpoint::load_tensors;
use lipschitz_tests::foreign::{distance, flat, ours};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn models() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(golden()).unwrap().map(|e| e.unwrap().path());
    let mut models: Vec<PathBuf> = entries
        .filter(|path| path.join("config.json").exists() && path.extension().is_none())
        .collect();
    models.sort();
    models
}

/// Every family has a finite constant on its natural domain, and the certificate says whose
/// function it is.
#[test]
fn certificates_are_finite_and_name_the_origin() {
    for dir in models() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let opened = lipschitz_certify::open(&dir).unwrap_or_else(|e| panic!("{name}: {e}"));
        let certificate: Certificate =
            certify(&opened, Method::Proven, Formula::Sound, None).unwrap();
        assert!(certificate.proven && certificate.l2.is_finite(), "{name}");
        let origin = certificate.origin.clone().unwrap();
        let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        // The configs of timm name an architecture.
        let family = config["model_type"].as_str().unwrap_or("timm");
        assert_eq!(origin.family, family, "{name}");
        assert_eq!((origin.dialect, origin.unused.len()), (Dialect::Original, 0));
        lipschitz_certify::verify::verify(&certificate, &opened)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// Checkpoints of the code of Newhouse et al. (2025) (`tests/golden/make_modula.py`): a list of
/// matrices beside its config.
#[test]
fn the_methods_checkpoints_are_those_of_its_code() {
    for (name, family) in [("gpt", "tokens"), ("mlp", "vectors")] {
        let path = golden().join("modula").join(format!("{name}.npz"));
        let (expected, _) =
            load_tensors(&path.with_extension("expected.safetensors"), &Device::Cpu).unwrap();
        let model = ours(&path, Dialect::Original);
        let (found, wanted) =
            (flat(&model.forward(&expected[family]).unwrap()), flat(&expected["output"]));
        let size = wanted.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let off = distance(&found, &wanted) / size;
        assert!(size > 0.01 && off < 1e-6, "{name}: {off:.2e} of {size:.2} apart");
        let certificate =
            certify(&lipschitz_certify::open(&path).unwrap(), Method::Proven, Formula::Sound, None)
                .unwrap();
        assert!(certificate.l2.is_finite());
        assert_eq!(certificate.origin.unwrap().family, "modula");
    }
}

/// The archive that their training script writes, compressed Python objects: its last
/// checkpoint.
#[test]
fn the_methods_run_archives_are_read() {
    let path = golden().join("modula").join("gpt_run.npz");
    let plain = ours(&golden().join("modula").join("gpt.npz"), Dialect::Original);
    let run = ours(&path, Dialect::Original);
    assert_eq!(run.graph(), plain.graph());
    for (name, weight) in plain.weights() {
        assert_eq!(flat(weight), flat(&run.weights()[name]), "{name}");
    }
    let origin = import(&path, &ImportOptions::default()).unwrap().meta.provenance.origin.unwrap();
    assert_eq!(origin.family, "modula");
}

/// Candle's function is another one where the two differ, and the origin says which was taken.
#[test]
fn dialects_differ_where_candle_does() {
    for (name, differs) in [
        ("gemma2", true),
        ("mistral", true),
        ("distilbert", true),
        ("dinov2", true),
        ("olmo2", false),
    ] {
        let dir = golden().join(name);
        let (expected, _) = load_tensors(&dir.join("expected.safetensors"), &Device::Cpu).unwrap();
        let input = expected.get("tokens").unwrap_or_else(|| &expected["pixels"]);
        let out = |dialect| flat(&ours(&dir, dialect).forward(input).unwrap());
        let off = distance(&out(Dialect::Original), &out(Dialect::Candle));
        assert_eq!(off > 1e-6, differs, "{name}: {off}");
        let options = ImportOptions { dialect: Dialect::Candle, ..ImportOptions::default() };
        let meta = import(&dir, &options).unwrap().meta;
        assert_eq!(meta.provenance.origin.unwrap().dialect, Dialect::Candle);
    }
}

/// Configs with which the library computes something else than it says elsewhere: the shapes of all weights
/// agree.
#[test]
fn what_the_library_does_only_here_is_refused() {
    let changed = |name: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let dir = tempfile::tempdir().unwrap();
        let from = golden().join(name);
        std::fs::copy(from.join("model.safetensors"), dir.path().join("model.safetensors"))
            .unwrap();
        let text = std::fs::read_to_string(from.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        change(&mut config);
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        import(dir.path(), &ImportOptions::default()).map(drop).map_err(|e| e.to_string())
    };
    let said =
        |name: &str, change: &dyn Fn(&mut serde_json::Value)| changed(name, change).unwrap_err();
    for name in ["dinov2", "dinov2-registers"] {
        assert_eq!(changed(name, &|_| ()), Ok(()));
        let said = said(name, &|config| config["image_size"] = serde_json::json!([4, 16]));
        assert!(said.contains("image_size") && said.contains("is no square"), "{said}");
    }
    let truncate = |value: bool| {
        move |config: &mut serde_json::Value| {
            config["rope_parameters"]["sliding_attention"]["truncate"] = value.into();
        }
    };
    assert_eq!(changed("gemma3_text", &truncate(true)), Ok(()));
    let said = said("gemma3_text", &truncate(false));
    assert!(said.contains("truncate") && said.contains("does not read"), "{said}");
}
