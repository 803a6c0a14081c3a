//! Encoders of text and images against candle-transformers' own models on the same weights.

use candle_core::{DType, Tensor};
use candle_nn::{Module, VarBuilder};
use candle_transformers::models::{bert, dinov2, distilbert, modernbert, t5, vit, xlm_roberta};
use lipschitz_import::Dialect;
use lipschitz_tests::Dice;
use lipschitz_tests::foreign::{Case, Recorder, Run, Tensors};
use serde_json::{Value, json};

type Built = candle_core::Result<Run>;

fn parsed<T: serde::de::DeserializeOwned>(config: &Value) -> T {
    serde_json::from_value(config.clone()).unwrap_or_else(|e| panic!("candle's config: {e}"))
}

/// A bias of the keys adds the same to all logits of a query.
const KEYS: &[&str] = &["key.bias", "k_lin.bias"];

#[test]
fn bert() {
    fn build(c: &Value, vb: VarBuilder) -> Built {
        let model = bert::BertModel::load(vb, &parsed(c))?;
        Ok(Box::new(move |x: &Tensor| model.forward(x, &x.zeros_like()?, None)))
    }
    let config = json!({"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 11,
        "hidden_size": 12,
        "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 10,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "max_position_embeddings": 9, "type_vocab_size": 2, "initializer_range": 0.02,
        "layer_norm_eps": 1e-12, "pad_token_id": 0});
    Case { last: false, silent: KEYS, ..Case::new("bert", config, build) }.check();
}

#[test]
fn distilbert_with_candles_gelu() {
    fn build(c: &Value, vb: VarBuilder) -> Built {
        let model = distilbert::DistilBertModel::load(vb, &parsed(c))?;
        Ok(Box::new(move |x: &Tensor| {
            model.forward(x, &Tensor::zeros((1, 1, x.dim(1)?, x.dim(1)?), DType::U8, x.device())?)
        }))
    }
    let config = json!({"model_type": "distilbert", "architectures": ["DistilBertModel"],
        "vocab_size": 11, "dim": 12,
        "n_layers": 2, "n_heads": 3, "hidden_dim": 10, "activation": "gelu",
        "max_position_embeddings": 9,
        "initializer_range": 0.02, "pad_token_id": 0});
    let case = Case::new("distilbert", config, build);
    Case { dialect: Dialect::Candle, last: false, silent: KEYS, ..case }.check();
}

#[test]
fn xlm_roberta_counts_positions_from_behind_the_padding() {
    fn build(c: &Value, vb: VarBuilder) -> Built {
        let model = xlm_roberta::XLMRobertaModel::new(&parsed(c), vb)?;
        Ok(Box::new(move |x: &Tensor| {
            let ones = x.ones_like()?;
            model.forward(x, &ones, &x.zeros_like()?, None, None, None)
        }))
    }
    let config = json!({"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"],
        "vocab_size": 11,
        "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 10, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 10,
        "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1,
        "position_embedding_type": "absolute"});
    Case { last: false, silent: KEYS, ..Case::new("xlm-roberta", config, build) }.check();
}

#[test]
fn modernbert_near_and_far() {
    fn build(c: &Value, vb: VarBuilder) -> Built {
        let model = modernbert::ModernBert::load(vb, &parsed(c))?;
        Ok(Box::new(move |x: &Tensor| model.forward(x, &x.ones_like()?)))
    }
    let config = json!({"model_type": "modernbert", "architectures": ["ModernBertModel"],
        "vocab_size": 11,
        "hidden_size": 12, "num_hidden_layers": 4, "num_attention_heads": 3,
        "intermediate_size": 10,
        "max_position_embeddings": 7, "layer_norm_eps": 1e-5, "norm_eps": 1e-5, "pad_token_id": 0,
        "global_attn_every_n_layers": 3, "global_rope_theta": 160.0, "local_attention": 4,
        "local_rope_theta": 10.0,
        "hidden_activation": "gelu"});
    let recorder = Recorder::lacking(&["model.layers.0.attn_norm.weight"]);
    // Candle's model reads its positions for the full length alone.
    let inputs = lipschitz_tests::foreign::ids(&[7], 11);
    Case { last: false, recorder, inputs, ..Case::new("modernbert", config, build) }.check();
}

#[test]
fn t5_encoders() {
    fn build(c: &Value, vb: VarBuilder) -> Built {
        let mut model = t5::T5EncoderModel::load(vb, &parsed(c))?;
        Ok(Box::new(move |x: &Tensor| model.forward(x)))
    }
    for unit in ["relu", "gated-gelu", "gated-silu"] {
        let config = json!({"model_type": "t5", "architectures": ["T5EncoderModel"],
            "vocab_size": 11, "d_model": 12,
            "d_kv": 5, "d_ff": 10, "num_layers": 2, "num_heads": 3,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 6, "dropout_rate": 0.1, "layer_norm_epsilon": 1e-6,
            "initializer_factor": 1.0, "feed_forward_proj": unit, "is_encoder_decoder": true,
            "pad_token_id": 0,
            "eos_token_id": 1});
        let recorder = Recorder::having(&["shared.weight"]);
        Case { last: false, recorder, ..Case::new(unit, config, build) }.check();
    }
}

fn images(count: usize, side: usize) -> Vec<Tensor> {
    vec![Dice::new(3).tensor(&[count, 3, side, side], 1.0).to_dtype(DType::F32).unwrap()]
}

#[test]
fn vit() {
    fn build(c: &Value, vb: VarBuilder) -> Built {
        let model = vit::Model::new(&parsed(c), 5, vb)?;
        Ok(Box::new(move |x: &Tensor| model.forward(x)))
    }
    for (bias, side) in [(true, 12), (false, 8)] {
        let config = json!({"model_type": "vit", "architectures": ["ViTForImageClassification"],
            "hidden_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 10,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6, "image_size": side, "patch_size": 4, "num_channels": 3,
            "qkv_bias": bias, "num_labels": 5});
        Case {
            last: false,
            silent: KEYS,
            inputs: images(2, side),
            ..Case::new("vit", config, build)
        }
        .check();
    }
}

/// Candle reads the names of the first release, with fused queries, keys and values; the library
/// has its own.
fn dino_names(tensors: Tensors) -> Tensors {
    let mut out = Tensors::new();
    for (name, tensor) in tensors {
        let name = match name.strip_prefix("blocks.") {
            Some(rest) => format!("dinov2.encoder.layer.{rest}"),
            None => name
                .replace("patch_embed.proj", "dinov2.embeddings.patch_embeddings.projection")
                .replace("pos_embed", "dinov2.embeddings.position_embeddings"),
        };
        let name = match name.as_str() {
            "cls_token" => "dinov2.embeddings.cls_token".to_string(),
            _ => name
                .replace("attn.proj", "attention.output.dense")
                .replace("ls1.gamma", "layer_scale1.lambda1")
                .replace("ls2.gamma", "layer_scale2.lambda1"),
        };
        let name = if let Some(rest) = name.strip_prefix("norm.") {
            format!("dinov2.layernorm.{rest}")
        } else {
            name
        };
        let name = if let Some(rest) = name.strip_prefix("head.") {
            format!("classifier.{rest}")
        } else {
            name
        };
        match name.split_once("attn.qkv.") {
            Some((layer, part)) => {
                let dim = tensor.dim(0).unwrap() / 3;
                for (i, which) in ["query", "key", "value"].into_iter().enumerate() {
                    let piece = tensor.narrow(0, i * dim, dim).unwrap().contiguous().unwrap();
                    out.insert(format!("{layer}attention.attention.{which}.{part}"), piece);
                }
            }
            None => drop(out.insert(name, tensor)),
        }
    }
    out
}

#[test]
fn dinov2_as_candle_computes_it() {
    fn build(_: &Value, vb: VarBuilder) -> Built {
        let model = dinov2::DinoVisionTransformer::new(vb, 1, 4, 2)?;
        Ok(Box::new(move |x: &Tensor| model.forward(x)))
    }
    let config = json!({"model_type": "dinov2", "architectures": ["Dinov2ForImageClassification"],
        "hidden_size": 4,
        "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 4, "hidden_act": "gelu",
        "image_size": 518,
        "patch_size": 14, "num_channels": 3, "qkv_bias": true, "num_labels": 1000});
    // Candle's model reads one image at a time.
    let case = Case::new("dinov2", config, build);
    Case {
        dialect: Dialect::Candle,
        last: false,
        rename: dino_names,
        inputs: images(1, 518),
        ..case
    }
    .check();
}
