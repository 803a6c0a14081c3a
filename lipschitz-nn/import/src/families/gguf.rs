//! Models in GGUF, whose metadata stand for a config: `llama` (Llama, Mistral and others that
//! llama.cpp calls so) and `qwen2`.
//!
//! Source: the names of llama.cpp (`gguf-py/gguf/constants.py`). Its `llama` pairs neighbouring
//! coordinates in rotary positions: queries and keys are stored with their rows in that order.

use std::path::Path;

use serde_json::{Map, Value};

use crate::config::ConfigReader;
use crate::expression::{TensorExpr, WeightMap};
use crate::formats::files::Files;
use crate::mapping::Mapping;
use crate::nodes::{attention, blocks, linear, residual, rms_norm};
use lipschitz_nn::Error;
use lipschitz_nn::graph::{Attention, Function, Input, Node, Op, Pairing, Rotary};

/// Architectures, which coordinates they pair, and whether queries, keys and values have biases;
/// none: the tensors say.
const ARCHITECTURES: &[(&str, Pairing, Option<bool>)] =
    &[("llama", Pairing::Interleaved, None), ("qwen2", Pairing::Half, Some(true))];

/// Keys that say nothing of the function.
const INERT: &[&str] = &["general.", "tokenizer.", "quantize.", "split."];

/// The architecture and the mapping of a GGUF file.
pub(crate) fn mapping(
    path: &Path,
    metadata: Map<String, Value>,
    files: &Files,
    ignored: &[String],
) -> Result<(String, Mapping), Error> {
    let inert = |key: &&str| INERT.iter().any(|start| key.starts_with(start));
    let keys: Vec<String> =
        metadata.keys().map(String::as_str).filter(inert).map(String::from).collect();
    let config = ConfigReader::of(path, String::new(), metadata);
    config.ignore(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    let Some(family) = config.text_if("general.architecture")?.map(str::to_string) else {
        return Err(config.wrong("general.architecture", "is missing"));
    };
    if let Some(kind) = config.text_if("general.type")?.filter(|kind| *kind != "model") {
        return Err(config.wrong("general.type", format!("is `{kind}`, wanted a whole model")));
    }
    if let Some(count) = config.count_if("split.count")?.filter(|count| *count > 1) {
        let what =
            format!("is {count}: this is one part of a model; merge the parts into one file");
        return Err(config.wrong("split.count", what));
    }
    let Some((_, pairing, bias)) = ARCHITECTURES.iter().find(|(name, ..)| *name == family) else {
        let known = ARCHITECTURES.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ");
        let what = format!("is `{family}`, which is not supported in GGUF; supported are {known}");
        return Err(config.wrong("general.architecture", what));
    };
    let bias = bias.unwrap_or_else(|| files.get("blk.0.attn_q.bias").is_some());
    let mut mapping =
        Decoder { config: &config, files, family: &family }.mapping(*pairing, bias)?;
    mapping.notes.extend(config.finish(ignored)?);
    Ok((format!("{family} (GGUF)"), mapping))
}

struct Decoder<'a> {
    config: &'a ConfigReader,
    files: &'a Files,
    family: &'a str,
}

impl Decoder<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.family)
    }

    fn size(&self, key: &str) -> Result<usize, Error> {
        self.config.size(&self.key(key))
    }

    /// A size that is another one where the file does not say it.
    fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        self.config.size_or(&self.key(key), default)
    }

    fn wrong(&self, key: &str, what: impl std::fmt::Display) -> Error {
        self.config.wrong(&self.key(key), what)
    }

    fn mapping(&self, pairing: Pairing, bias: bool) -> Result<Mapping, Error> {
        let Self { config, files, .. } = *self;
        let (dim, hidden) = (self.size("embedding_length")?, self.size("feed_forward_length")?);
        let layers = config.layers(&self.key("block_count"), files.len())?;
        let heads = self.size("attention.head_count")?;
        let key_value_heads = self.size_or("attention.head_count_kv", heads)?;
        let context = self.size("context_length")?;
        let epsilon = self.key("attention.layer_norm_rms_epsilon");
        if !config.names(&epsilon) {
            return Err(config.wrong(&epsilon, "is missing"));
        }
        let eps = config.eps(&epsilon)?;
        if !heads.is_multiple_of(key_value_heads) {
            let what = format!("is {key_value_heads}, which does not divide {heads}");
            return Err(self.wrong("attention.head_count_kv", what));
        }
        if !config.names(&self.key("attention.key_length")) && !dim.is_multiple_of(heads) {
            let what = format!("is {heads}, which does not divide {dim}");
            return Err(self.wrong("attention.head_count", what));
        }
        let head_dim = self.size_or("attention.key_length", dim / heads)?;
        if self.size_or("attention.value_length", head_dim)? != head_dim {
            return Err(self.wrong("attention.value_length", "is not that of the keys"));
        }
        for key in ["expert_count", "expert_used_count"] {
            if config.count_if(&self.key(key))?.is_some_and(|n| n > 0) {
                let what = "is above 0: it sends tokens to the top experts, so its function jumps \
                            and has no finite Lipschitz constant";
                return Err(self.wrong(key, what));
            }
        }
        let causal = self.key("attention.causal");
        if !config.flag_or(&causal, true)? {
            return Err(config.unsupported(&causal, false));
        }
        config.only(&self.key("use_parallel_residual"), false)?;
        // How the writer's own source laid its tensors out.
        config.ignore(&[&self.key("tensor_data_layout")]);
        let vocabulary = match files.get("token_embd.weight").map(|info| info.shape.as_slice()) {
            Some([vocabulary, _]) => *vocabulary,
            _ => self.size("vocab_size")?,
        };
        let vocabulary = self.size_or("vocab_size", vocabulary)?;
        let rotary = self.rotary(head_dim, pairing)?;

        let mut weights = WeightMap::default();
        let embedding = TensorExpr::new("token_embd.weight", &[vocabulary, dim]);
        weights.put("embedding.weight", embedding.clone());
        let mut bodies = Vec::new();
        for i in 0..layers {
            let (to, from) = (format!("blocks.{i}"), format!("blk.{i}"));
            let (query, key) = (heads * head_dim, key_value_heads * head_dim);
            for (ours, theirs, outputs, inputs, bias) in [
                ("attention.query", "attn_q", query, dim, bias),
                ("attention.key", "attn_k", key, dim, bias),
                ("attention.value", "attn_v", key, dim, bias),
                ("attention.output", "attn_output", dim, query, false),
                ("mlp.gate", "ffn_gate", hidden, dim, false),
                ("mlp.up", "ffn_up", hidden, dim, false),
                ("mlp.down", "ffn_down", dim, hidden, false),
            ] {
                let (ours, theirs) = (format!("{to}.{ours}"), format!("{from}.{theirs}"));
                weights.linear(&ours, &theirs, outputs, inputs, bias);
            }
            for (ours, theirs) in [("attention.norm", "attn_norm"), ("mlp.norm", "ffn_norm")] {
                weights.norm(&format!("{to}.{ours}"), &format!("{from}.{theirs}"), dim, false);
            }
            let mixer = Attention {
                key_value_heads,
                rotary: Some(rotary.clone()),
                bias,
                ..Attention::new(dim, heads, head_dim)
            };
            let gated =
                Node::new("", Op::GatedMlp { dim, hidden, function: Function::Silu, bias: false });
            bodies.push(vec![
                residual("attention", vec![rms_norm("norm", dim, eps), attention(mixer)]),
                residual("mlp", vec![rms_norm("norm", dim, eps), gated]),
            ]);
        }
        weights.norm("norm", "output_norm", dim, false);
        // A head that is the embedding is not stored again.
        let own = files.get("output.weight").is_some();
        let head = TensorExpr::new("output.weight", &[vocabulary, dim]);
        weights.put("head.weight", if own { head } else { embedding });
        let nodes = vec![
            Node::new("embedding", Op::Embedding { vocabulary, dim }),
            blocks(bodies),
            rms_norm("norm", dim, eps),
            linear("head", dim, vocabulary, false),
        ];
        Ok(Mapping::new(Input::tokens(context), nodes, weights)?
            .aside("rope_freqs.weight", "factors on rotary frequencies, which the graph has"))
    }

    /// Rotary positions: the base, a factor on all of them, and one for each frequency in a tensor.
    fn rotary(&self, head_dim: usize, pairing: Pairing) -> Result<Rotary, Error> {
        let Self { config, files, .. } = *self;
        let base = config.number_or(&self.key("rope.freq_base"), 10000.0)?;
        if base <= 0.0 {
            return Err(self.wrong("rope.freq_base", format!("is {base}, wanted a number above 0")));
        }
        let turned = self.size_or("rope.dimension_count", head_dim)?;
        if turned != head_dim || !head_dim.is_multiple_of(2) {
            let what = format!("is {turned} of {head_dim} coordinates, which is not supported");
            return Err(self.wrong("rope.dimension_count", what));
        }
        // What a model was trained with says nothing of what it computes.
        let told = ["rope.scaling.original_context_length", "rope.scaling.finetuned"];
        told.iter().for_each(|key| config.ignore(&[&self.key(key)]));
        let kind = self.key("rope.scaling.type");
        let factor = match config.text_if(&kind)? {
            None | Some("none") => 1.0,
            Some("linear") => {
                let key = self.key("rope.scaling.factor");
                config.number_if(&key)?.ok_or_else(|| config.wrong(&key, "is missing"))?
            }
            Some(other) => {
                return Err(config.wrong(&kind, format!("is `{other}`, which is not supported")));
            }
        };
        let older = config.number_or(&self.key("rope.scale_linear"), factor)?;
        if older != factor && factor != 1.0 {
            return Err(self.wrong("rope.scale_linear", "contradicts `rope.scaling.factor`"));
        }
        let half = head_dim / 2;
        let factors = match files.get("rope_freqs.weight") {
            None => vec![1.0; half],
            Some(info) if info.shape == [half] => files
                .read("rope_freqs.weight")?
                .to_dtype(candle_core::DType::F64)?
                .to_vec1::<f64>()?,
            Some(info) => {
                let what = format!("has shape {:?}, wanted [{half}]", info.shape);
                return Err(Error::weight("rope_freqs.weight", what));
            }
        };
        let scaled = older != 1.0 || factors.iter().any(|factor| *factor != 1.0);
        let frequency =
            |(i, by): (usize, &f64)| base.powf(-(i as f64) / half as f64) / (by * older);
        let frequencies: Vec<f64> = factors.iter().enumerate().map(frequency).collect();
        if let Some(f) = frequencies.iter().find(|f| !f.is_finite()) {
            return Err(self.wrong("rope.freq_base", format!("gives a frequency of {f}")));
        }
        Ok(Rotary { frequencies: scaled.then_some(frequencies), ..Rotary::new(base, pairing) })
    }
}
