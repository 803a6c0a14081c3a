//! Decoders against candle-transformers' own models on the same weights.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{
    bigcode, gemma, gemma2, llama, mistral, olmo2, phi3, qwen2, qwen3,
};
use lipschitz_import::Dialect;
use lipschitz_tests::foreign::{Case, Recorder, Run};
use serde_json::{Value, json};

type Built = candle_core::Result<Run>;

fn parsed<T: serde::de::DeserializeOwned>(config: &Value) -> T {
    serde_json::from_value(config.clone()).unwrap_or_else(|e| panic!("candle's config: {e}"))
}

/// Sizes that are all different, with `more` on top.
fn config(family: &str, class: &str, more: Value) -> Value {
    let mut config = json!({
        "model_type": family, "architectures": [format!("{class}ForCausalLM")], "vocab_size": 11,
        "hidden_size": 12,
        "intermediate_size": 10, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "max_position_embeddings": 40, "rms_norm_eps": 1e-5, "rope_theta": 50.0,
        "hidden_act": "silu",
        "tie_word_embeddings": false
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn build_llama(c: &Value, vb: VarBuilder) -> Built {
    let config = parsed::<llama::LlamaConfig>(c).into_config(false);
    let model = llama::Llama::load(vb, &config)?;
    let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
    Ok(Box::new(move |x: &Tensor| model.forward(x, 0, &mut cache)))
}

/// The same three lines for every family: parse, build, forget the cache and run.
macro_rules! build {
    ($name:ident, $config:ty, $new:expr) => {
        fn $name(c: &Value, vb: VarBuilder) -> Built {
            let config = parsed::<$config>(c);
            #[allow(clippy::redundant_closure_call)]
            let mut model = ($new)(&config, vb)?;
            Ok(Box::new(move |x: &Tensor| {
                model.clear_kv_cache();
                model.forward(x, 0)
            }))
        }
    };
}

build!(build_mistral, mistral::Config, |c, vb| mistral::Model::new(c, vb));
build!(build_qwen2, qwen2::Config, |c, vb| qwen2::ModelForCausalLM::new(c, vb));
build!(build_qwen3, qwen3::Config, |c, vb| qwen3::ModelForCausalLM::new(c, vb));
build!(build_phi3, phi3::Config, |c, vb| phi3::Model::new(c, vb));
build!(build_gemma, gemma::Config, |c, vb| gemma::Model::new(false, c, vb));
build!(build_gemma2, gemma2::Config, |c, vb| gemma2::Model::new(false, c, vb));
build!(build_olmo2, olmo2::Config, |c, vb| olmo2::Model::new(c, vb));

fn build_bigcode(c: &Value, vb: VarBuilder) -> Built {
    let size = |key: &str| c[key].as_u64().unwrap() as usize;
    let config = bigcode::Config {
        vocab_size: size("vocab_size"),
        max_position_embeddings: size("n_positions"),
        num_hidden_layers: size("n_layer"),
        hidden_size: size("n_embd"),
        layer_norm_epsilon: 1e-5,
        n_inner: Some(size("n_inner")),
        num_attention_heads: size("n_head"),
        multi_query: true,
        use_cache: false,
    };
    let mut model = bigcode::GPTBigCode::load(vb, config)?;
    Ok(Box::new(move |x: &Tensor| model.forward(x, 0)))
}

#[test]
fn llama_and_its_rotary_scaling() {
    Case::new("llama", config("llama", "Llama", json!({})), build_llama).check();
    let more = json!({"tie_word_embeddings": true, "num_key_value_heads": 6, "rope_theta": 1000.0,
        "rope_scaling":
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 16}});
    let tied = config("llama", "Llama", more);
    Case { dialect: Dialect::Candle, ..Case::new("llama3", tied, build_llama) }.check();
}

#[test]
fn mistral_with_candles_window() {
    let more = json!({"head_dim": 4, "sliding_window": 3});
    let case = Case::new("mistral", config("mistral", "Mistral", more), build_mistral);
    Case { dialect: Dialect::Candle, ..case }.check();
    let more = json!({"sliding_window": null, "num_key_value_heads": 2});
    Case::new("mistral, no window", config("mistral", "Mistral", more), build_mistral).check();
}

#[test]
fn qwen2_and_qwen3() {
    let more = json!({"sliding_window": 3, "max_window_layers": 1, "use_sliding_window": true});
    let case = Case::new("qwen2", config("qwen2", "Qwen2", more), build_qwen2);
    let recorder = Recorder::having(&["lm_head.weight"]);
    Case { dialect: Dialect::Candle, recorder, ..case }.check();
    let more = json!({"sliding_window": 40, "max_window_layers": 2, "use_sliding_window": false,
        "tie_word_embeddings": true});
    Case::new("qwen2, tied", config("qwen2", "Qwen2", more), build_qwen2).check();
    let more = json!({"head_dim": 4, "attention_bias": true, "sliding_window": null,
        "max_window_layers": 2,
        "use_sliding_window": false});
    Case::new("qwen3", config("qwen3", "Qwen3", more), build_qwen3).check();
}

#[test]
fn phi3_fused_and_partly_turned() {
    let more = json!({"partial_rotary_factor": 0.5, "num_attention_heads": 3, "num_key_value_heads": 1,
            "pad_token_id": null});
    Case::new("phi3", config("phi3", "Phi3", more), build_phi3).check();
    let more = json!({"rope_scaling": {"type": "longrope", "short_factor": [1.3],
        "long_factor": [2.0]},
        "original_max_position_embeddings": 20, "pad_token_id": null});
    let case = Case::new("phi3, longrope", config("phi3", "Phi3", more), build_phi3);
    Case { dialect: Dialect::Candle, ..case }.check();
}

#[test]
fn gemma_and_gemma2() {
    let more = json!({"head_dim": 4, "hidden_act": "gelu_pytorch_tanh", "attention_bias": false,
        "tie_word_embeddings": true});
    Case::new("gemma", config("gemma", "Gemma", more), build_gemma).check();
    let mut more = config(
        "gemma2",
        "Gemma2",
        json!({"head_dim": 4, "attention_bias": false, "tie_word_embeddings": true,
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 9, "sliding_window": 3,
        "attn_logit_softcapping": 1.5, "final_logit_softcapping": 6.0}),
    );
    more.as_object_mut().unwrap().remove("hidden_act");
    let case = Case::new("gemma2", more, build_gemma2);
    Case { dialect: Dialect::Candle, ..case }.check();
}

#[test]
fn olmo2_with_norms_behind_and_over_all_heads() {
    let more = json!({"attention_bias": true});
    Case::new("olmo2", config("olmo2", "Olmo2", more), build_olmo2).check();
}

#[test]
fn bigcode_with_one_key_and_value() {
    let config = json!({"model_type": "gpt_bigcode", "architectures": ["GPTBigCodeForCausalLM"],
        "vocab_size": 11,
        "n_embd": 12, "n_head": 3, "n_layer": 2, "n_inner": 10, "n_positions": 9,
        "multi_query": true,
        "layer_norm_epsilon": 1e-5, "activation_function": "gelu_pytorch_tanh"});
    Case { dialect: Dialect::Candle, ..Case::new("bigcode", config, build_bigcode) }.check();
}
