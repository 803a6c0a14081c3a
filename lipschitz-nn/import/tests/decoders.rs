//! Options of decoders: what they say matters, older names mean the same, and what is not supported
//! is refused with its name. And checkpoints of nanoGPT.

mod outputs;

use std::path::{Path, PathBuf};

use lipschitz_import::candle_core::{DType, Device};
use lipschitz_import::{Dialect, ImportOptions, Imported, import};
use lipschitz_nn::checkpoint::load_tensors;
use outputs::flat;
use serde_json::{Map, Value, json};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn config(name: &str) -> Map<String, Value> {
    let text = std::fs::read_to_string(golden(name).join("config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A golden model under another config.
fn changed(name: &str, config: &Map<String, Value>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let text = serde_json::to_string(config).unwrap();
    std::fs::write(dir.path().join("config.json"), text).unwrap();
    dir
}

/// Why it is refused.
fn refused(name: &str, config: &Map<String, Value>, options: &ImportOptions) -> Option<String> {
    import(changed(name, config).path(), options).err().map(|e| e.to_string())
}

/// The config without these options and with those.
fn edited(name: &str, without: &[&str], with: Value) -> Map<String, Value> {
    let mut config = config(name);
    config.retain(|key, _| !without.contains(&key.as_str()));
    config.extend(with.as_object().unwrap().clone());
    config
}

/// How far its outputs are from what the library computes under the config of the golden model.
fn distance(name: &str, config: &Map<String, Value>) -> f64 {
    let dir = changed(name, config);
    apart(dir.path(), &dir.path().join("expected.safetensors"))
}

/// How far the outputs of a model are from those expected.
fn apart(model: &Path, expected: &Path) -> f64 {
    let Imported { model, .. } = import(model, &ImportOptions::default())
        .unwrap_or_else(|e| panic!("{}: {e}", model.display()));
    let model = model.to(&Device::Cpu, DType::F64).unwrap();
    let (expected, _) = load_tensors(expected, &Device::Cpu).unwrap();
    let found = flat(&model.forward(&expected["tokens"]).unwrap());
    let wanted = flat(&expected["output"]);
    outputs::distance(&found, &wanted)
}

/// A golden model of each family that reads its options in another place.
const MODELS: &[&str] = &[
    "arcee",
    "bigcode",
    "bloom",
    "cohere",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "gpt2",
    "neo",
    "neox",
    "gptj",
    "granite",
    "helium",
    "llama",
    "bart",
    "m2m_100",
    "marian",
    "mbart",
    "ministral",
    "mistral",
    "mpt",
    "olmo",
    "olmo2",
    "opt",
    "pegasus",
    "persimmon",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
];

/// What older releases saved means the same.
#[test]
fn older_names_of_options_are_read() {
    let cases = [
        (
            "gemma3_text-pattern",
            vec!["rope_parameters", "layer_types", "_sliding_window_pattern"],
            json!({"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 3}),
        ),
        ("neox", vec!["rope_parameters"], json!({"rotary_pct": 0.5, "rotary_emb_base": 100})),
        ("phi", vec!["rope_parameters"], json!({"rope_theta": 100, "partial_rotary_factor": 0.5})),
        (
            "stablelm",
            vec!["rope_parameters"],
            json!({"rope_theta": 100, "partial_rotary_factor": 0.5}),
        ),
        ("smollm3", vec!["layer_types", "no_rope_layers"], json!({})),
        ("falcon", vec!["hidden_size"], json!({"n_embed": 8})),
        ("bloom", vec!["hidden_size", "n_layer"], json!({"n_embed": 8, "num_hidden_layers": 2})),
        ("mpt", vec![], json!({"architectures": ["MPTForCausalLM"]})),
        ("neo", vec!["attention_layers"], json!({})),
        ("opt", vec!["word_embed_proj_dim"], json!({})),
        ("gptj", vec!["n_head"], json!({"num_attention_heads": 2})),
    ];
    for (name, without, with) in cases {
        let off = distance(name, &edited(name, &without, with));
        assert!(off < 1e-4, "{name}: {off:e} apart");
    }
}

/// Each of these changes the function; a model that is read all the same must differ.
#[test]
fn what_options_say_matters() {
    let cases = [
        ("granite", json!({"residual_multiplier": 0.5})),
        ("granite", json!({"embedding_multiplier": 0.5})),
        ("granite", json!({"attention_multiplier": 3.0})),
        ("granite", json!({"logits_scaling": 0.5})),
        ("cohere", json!({"logit_scale": 0.5})),
        ("smollm3", json!({"no_rope_layers": [1, 1, 1, 1], "layer_types": null})),
        ("gemma3_text", json!({"layer_types": ["full_attention", "sliding_attention"]})),
        ("gemma3_text", json!({"sliding_window": 4})),
        ("gemma3_text", json!({"final_logit_softcapping": 2.0})),
        ("gemma3_text", json!({"query_pre_attn_scalar": 30})),
        ("gptj", json!({"rotary_dim": 4})),
        ("neo", json!({"window_size": 2})),
        (
            "neo",
            json!({"attention_types": [[["global"], 2]], "attention_layers": ["global", "global"]}),
        ),
        ("neox", json!({"use_parallel_residual": false})),
        ("neox", json!({"hidden_act": "relu"})),
        ("bloom", json!({"apply_residual_connection_post_layernorm": true})),
        ("mpt", json!({"attn_config": {"softmax_scale": 0.3}})),
        ("opt", json!({"activation_function": "gelu"})),
        ("opt-narrow", json!({"_remove_final_layer_norm": true})),
        ("persimmon", json!({"hidden_act": "relu"})),
        ("ministral", json!({"sliding_window": 3})),
        ("marian", json!({"scale_embedding": false})),
        ("m2m_100", json!({"pad_token_id": 1})),
        ("starcoder2", json!({"sliding_window": 2})),
        ("starcoder2", json!({"norm_epsilon": 0.1})),
        ("arcee", json!({"hidden_act": "relu"})),
        (
            "phi",
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 100.0,
            "partial_rotary_factor": 1.0}}),
        ),
    ];
    for (name, with) in cases {
        let off = distance(name, &edited(name, &[], with.clone()));
        // A norm behind the blocks that is not there anyway.
        let same = with.get("_remove_final_layer_norm").is_some();
        assert_eq!(off < 1e-4, same, "{name} with {with}: {off:e} apart");
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let cases = [
        ("falcon", json!({"alibi": true}), "`alibi` is true: the library rounds the slopes"),
        ("falcon", json!({"multi_query": false, "num_kv_heads": 1}), "`num_kv_heads` is 1"),
        ("falcon", json!({"num_ln_in_parallel_attn": 2}), "`num_ln_in_parallel_attn` is 2"),
        ("falcon-new", json!({"parallel_attn": false}), "`num_ln_in_parallel_attn`"),
        ("falcon-new", json!({"num_kv_heads": 3}), "`num_kv_heads` is 3, which does not divide"),
        ("mpt", json!({"attn_config": {"clip_qkv": 6}}), "`attn_config.clip_qkv` is 6"),
        ("mpt", json!({"attn_config": {"alibi": false}}), "`attn_config.alibi` is false"),
        ("mpt", json!({"attn_config": {"qk_ln": true}}), "`attn_config.qk_ln` is true"),
        ("mpt", json!({"expansion_ratio": 2}), "`expansion_ratio` is 2"),
        ("mpt", json!({"norm_type": "rmsnorm"}), "`norm_type` is rmsnorm"),
        ("mpt", json!({"logit_scale": 2.0}), "`logit_scale` is 2.0"),
        ("gptj", json!({"rotary_dim": null}), "`rotary_dim`"),
        ("gptj", json!({"rotary_dim": 3}), "`rotary_dim`"),
        ("gptj", json!({"rotary": false}), "`rotary` is false"),
        ("ministral", json!({"head_dim": null}), "`head_dim`"),
        ("ministral", json!({"sliding_window": null}), "`sliding_window` is none"),
        ("chinese_clip-text", json!({"architectures": null}), "`architectures` names no class"),
        ("bart", json!({"normalize_before": true}), "`normalize_before` is true"),
        ("marian", json!({"static_position_embeddings": false}), "`static_position_embeddings`"),
        ("marian", json!({"architectures": ["MarianForCausalLM"]}), "`MarianForCausalLM`"),
        ("bart", json!({"is_decoder": true}), "`is_decoder` is true"),
        ("pegasus", json!({"extra": 1}), "`extra` = 1"),
        ("granite", json!({"logits_scaling": 0}), "`logits_scaling` is 0"),
        ("smollm3", json!({"no_rope_layers": [1]}), "`no_rope_layers` has 1 entries"),
        ("smollm3", json!({"use_sliding_window": false}), "`use_sliding_window` is false"),
        ("smollm3", json!({"sliding_window": null}), "`sliding_window` is none"),
        (
            "gemma3_text",
            json!({"rope_parameters": null, "rope_scaling": {"type": "linear", "factor": 2.0}}),
            "`rope_scaling.type` is \"linear\"",
        ),
        ("gemma3_text", json!({"is_causal": false}), "`is_causal` is off"),
        ("granite", json!({"residual_multiplier": 1e30}), "`residual_multiplier` is 1"),
        (
            "gemma3_text",
            json!({"rope_parameters": {"rope_type": "default"}}),
            "`rope_parameters.rope_type`",
        ),
        ("gemma3_text", json!({"attn_logit_softcapping": 5.0}), "`attn_logit_softcapping` is 5"),
        (
            "gemma3_text",
            json!({"use_bidirectional_attention": true}),
            "`use_bidirectional_attention`",
        ),
        (
            "gemma3_text",
            json!({"architectures": ["Gemma3ForConditionalGeneration"]}),
            "`architectures`",
        ),
        ("neo", json!({"attention_layers": ["local", "global"]}), "`attention_layers` differs"),
        ("neo", json!({"attention_types": [[["local"], 1]]}), "`attention_types`"),
        ("neo", json!({"attention_types": "global"}), "`attention_types` is"),
        ("neo", json!({"attention_types": [[[], 9999999999u64]]}), "`attention_types`"),
        ("helium", json!({"head_dim": 6}), "`head_dim` times 2 heads is not the width 8"),
        ("stablelm", json!({"head_dim": 8}), "`head_dim` is 8"),
        ("olmo", json!({"clip_qkv": 8.0}), "`clip_qkv` is 8"),
        ("cohere", json!({"logit_scale": null}), "`logit_scale` is null"),
        ("cohere", json!({"layer_norm_eps": 0.0}), "no finite Lipschitz constant"),
        ("bloom", json!({"n_inner": 3}), "`n_inner` is 3"),
        ("neox", json!({"rope_theta": 50}), "`rope_theta` is 50"),
        ("falcon", json!({"architectures": ["FalconForMultipleChoice"]}), "`architectures` names"),
        (
            "llama-classes",
            json!({"architectures": ["LlamaForSequenceClassification"],
            "id2label": {}}),
            "`id2label`",
        ),
    ];
    for (name, with, wanted) in cases {
        let config = edited(name, &[], with.clone());
        let said = refused(name, &config, &ImportOptions::default())
            .unwrap_or_else(|| panic!("{name} with {with} is read"));
        assert!(said.contains(wanted), "{name} with {with}: {said}");
    }
}

/// Candle's function of these families is not known, so that it is not given.
#[test]
fn only_the_library_s_function_is_given() {
    let options = ImportOptions { dialect: Dialect::Candle, ..ImportOptions::default() };
    for name in MODELS {
        let (read, plain) = (golden(name), config(name));
        let known = matches!(
            plain["model_type"].as_str().unwrap(),
            "gemma"
                | "gemma2"
                | "gpt_bigcode"
                | "llama"
                | "mistral"
                | "olmo2"
                | "phi3"
                | "qwen2"
                | "qwen3"
        );
        match import(&read, &options) {
            Ok(_) => assert!(known, "{name}"),
            Err(e) => assert!(known || e.to_string().contains("candle"), "{name}: {e}"),
        }
    }
}

/// What is written into the code of candle's models, or what they do not read.
#[test]
fn candle_s_function_is_candle_s() {
    let options = ImportOptions { dialect: Dialect::Candle, ..ImportOptions::default() };
    let plain = json!({"attention_bias": false, "mlp_bias": false, "rope_theta": 100.0});
    let llama = |with: Value| {
        let mut all = plain.clone();
        all.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        edited("llama-yarn", &["rope_parameters"], all)
    };
    let theta =
        |theta: f64| json!({"rope_parameters": {"rope_theta": theta, "rope_type": "default"}});
    let without = |mut config: Map<String, Value>| {
        config.remove("rope_theta");
        config
    };
    let cases = [
        ("llama-yarn", llama(json!({})), ""),
        ("llama-yarn", llama(theta(100.0)), ""),
        ("llama-yarn", llama(theta(500.0)), "`rope_parameters`"),
        ("llama-yarn", without(llama(theta(100.0))), "`rope_parameters`"),
        ("llama-yarn", without(llama(theta(1e4))), ""),
        ("llama-yarn", edited("llama-yarn", &[], plain.clone()), "`rope_parameters`"),
        ("llama-yarn", llama(json!({"hidden_act": "gelu"})), "the SiLU"),
        ("llama-yarn", llama(json!({"tie_word_embeddings": true})), "differs from"),
        ("qwen3", edited("qwen3", &[], json!({"tie_word_embeddings": true})), "differs from"),
        (
            "llama-classes",
            edited("llama-classes", &[], json!({"rope_theta": 100.0})),
            "names a class",
        ),
        ("gemma", edited("gemma", &[], json!({"hidden_activation": "gelu"})), "remove one"),
        ("gemma", edited("gemma", &[], json!({"tie_word_embeddings": false})), ""),
        ("gemma", edited("gemma", &[], json!({"hidden_activation": null})), ""),
        (
            "llama-yarn",
            llama(
                json!({"rope_parameters": {"type": "linear", "factor": 2.0, "rope_theta": 100.0}}),
            ),
            "`rope_parameters`",
        ),
        (
            "llama-yarn",
            llama(json!({"rope_scaling": {"rope_type": "default", "rope_theta": 50.0}})),
            "`rope_scaling`",
        ),
        ("bigcode", edited("bigcode", &[], json!({"activation_function": "relu"})), "multi_query"),
    ];
    for (name, config, wanted) in cases {
        let said = refused(name, &config, &options);
        match (wanted, said) {
            ("", said) => assert_eq!(said, None, "{name}: {config:?}"),
            (wanted, said) => assert!(
                said.as_ref().is_some_and(|said| said.contains(wanted)),
                "{name}: {config:?}: {said:?}"
            ),
        }
    }
    // GELU is the exact one here, and its approximation in the library.
    let config = edited("gemma", &[], json!({"hidden_act": "gelu"}));
    let graph = |options: &ImportOptions| {
        let read = import(changed("gemma", &config).path(), options).unwrap();
        serde_json::to_string(read.model.graph()).unwrap()
    };
    assert!(graph(&options).contains("gelu_erf") && !graph(&options).contains("gelu_tanh"));
    assert!(!graph(&ImportOptions::default()).contains("gelu_erf"));
}

/// Published configs say that there is none.
#[test]
fn a_width_that_is_null_is_the_usual_one() {
    assert!(distance("bloom", &edited("bloom", &[], json!({"n_inner": null}))) < 1e-4);
}

#[test]
fn checkpoints_of_nanogpt_are_read_as_they_are() {
    for name in ["biased", "plain"] {
        let path = golden("nanogpt").join(format!("{name}.pt"));
        let off = apart(&path, &path.with_extension("expected.safetensors"));
        assert!(off < 1e-4, "{name}: {off:e} apart");
        let origin = import(&path, &ImportOptions::default()).unwrap().meta.provenance.origin;
        assert_eq!(origin.unwrap().family, "nanogpt");
    }
}
