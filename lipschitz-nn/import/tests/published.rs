//! Configs as they are published, with small sizes: each is read as Hugging Face transformers reads
//! it (`tests/golden/configs.py`), or refused for a reason that is true.

mod library;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use lipschitz_import::ImportOptions;
use serde_json::{Value, json};

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

/// Options that published configs of newer families have beside those of the golden models.
fn published() -> Vec<(&'static str, Value)> {
    let generation = json!({
        "bad_words_ids": null, "begin_suppress_tokens": null, "chunk_size_feed_forward": 0,
        "cross_attention_hidden_size": null, "diversity_penalty": 0.0, "do_sample": false,
        "early_stopping": false, "encoder_no_repeat_ngram_size": 0, "forced_eos_token_id": null,
        "is_decoder": false, "is_encoder_decoder": false, "length_penalty": 1.0, "max_length": 20,
        "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
        "output_scores": false, "pruned_heads": {}, "remove_invalid_values": false,
        "repetition_penalty": 1.0, "return_dict": true, "return_dict_in_generate": false,
        "suppress_tokens": null, "temperature": 1.0, "tf_legacy_loss": false,
        "tie_encoder_decoder": false, "tie_word_embeddings": true, "top_k": 50, "top_p": 1.0,
        "torchscript": false, "typical_p": 1.0, "use_bfloat16": false
    });
    vec![
        (
            "albert",
            json!({
                "down_scale_factor": 1, "gap_size": 0, "net_structure_type": 0, "num_memory_blocks": 0
            }),
        ),
        ("clip-classes", json!({"text_config": generation, "vision_config": generation})),
        ("clip-text", generation.clone()),
        ("clip-vision", generation),
        ("deit", json!({"encoder_stride": 16, "hidden_dropout_prob": 0.0})),
        ("dinov2-registers", json!({"drop_path_rate": 0.0, "reshape_hidden_states": true})),
        ("electra", json!({"summary_last_dropout": 0.1, "summary_type": "first"})),
        ("falcon", json!({"alibi": false, "auto_map": {}, "hidden_dropout": 0.0})),
        ("gemma3_text", json!({"cache_implementation": "hybrid", "sliding_window_pattern": 2})),
        ("gptj", json!({"rotary": true, "summary_type": "cls_index", "summary_use_proj": true})),
        ("mpt", json!({"init_device": "cpu", "tokenizer_name": "x", "verbose": 0})),
        ("neox", json!({"classifier_dropout": 0.1, "attention_bias": true})),
        ("opt", json!({"prefix": "</s>", "activation_dropout": 0.0, "layerdrop": 0.0})),
        ("phi", json!({"embd_pdrop": 0.0, "resid_pdrop": 0.1, "rope_scaling": null})),
        ("smollm3", json!({"max_window_layers": 28, "pretraining_tp": 2})),
        ("starcoder2", json!({"mlp_type": "default", "norm_type": "layer_norm"})),
    ]
}

#[test]
fn options_of_published_configs_are_taken() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let mut wrong = Vec::new();
    for (name, options) in published() {
        let from = golden.join(name);
        let mut config = read(&from.join("config.json"));
        for (key, value) in options.as_object().unwrap() {
            match (config.get_mut(key).and_then(Value::as_object_mut), value.as_object()) {
                (Some(inner), Some(more)) => inner.extend(more.clone()),
                _ => config[key] = value.clone(),
            }
        }
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&from).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        if let Err(what) = lipschitz_import::import(dir.path(), &ImportOptions::default()) {
            wrong.push(format!("{name}: {what}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
