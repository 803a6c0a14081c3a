//! GPT-2 and its kin: GPT-2, whose matrices are stored transposed, GPT-BigCode, whose heads share
//! one key and value, GPT-Neo with its local layers, and GPT-J, whose unit reads what attention
//! reads.

use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::expression::{TensorExpr, WeightMap};
use crate::families::decoder::{
    ALL_HEADS, Block, Body, Frame, HEADS, Layout, Norm, Projections, Unit, as_the_library, head_dim,
};
use crate::heads::Head;
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::Dialect;
use lipschitz_nn::graph::{Attention, Function, Node, Op, Pairing, Rotary};

/// Options of a summary that no imported class computes.
const SUMMARY: &[&str] = &[
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
];

/// The unit's two maps.
const MLP: [&str; 2] = ["mlp.c_fc", "mlp.c_proj"];

/// What the families share, read from their common option names.
struct Sizes {
    dim: usize,
    heads: usize,
    head_dim: usize,
    hidden: usize,
    layers: usize,
    context: usize,
}

/// Sizes under the names of GPT-2.
fn sizes(model: &ModelDir) -> Result<Sizes, Error> {
    let &ModelDir { config, files, .. } = model;
    let dim = config.size("n_embd")?;
    let (heads, head_dim) = head_dim(config, "n_head", dim)?;
    config.ignore(&["n_ctx"]);
    config.ignore(SUMMARY);
    Ok(Sizes {
        dim,
        heads,
        head_dim,
        hidden: config.size_if("n_inner")?.unwrap_or(4 * dim),
        layers: config.layers("n_layer", files.len())?,
        context: config.size("n_positions")?,
    })
}

/// Blocks of layer norms and a plain unit, under the names of GPT-2.
fn block(config: &ConfigReader, s: &Sizes, [up, down]: [&'static str; 2]) -> Result<Block, Error> {
    let phi = NamedActivation::read(config, "activation_function")?;
    Ok(Block {
        dim: s.dim,
        hidden: s.hidden,
        norm: Norm::layer(config.eps("layer_norm_epsilon")?),
        layout: Layout::Before { attention: "ln_1", unit: "ln_2" },
        projections: Projections::Rows("attn.c_attn"),
        output: "attn.c_proj",
        query_key: None,
        unit: Unit::Plain { phi, up, down },
        unit_bias: true,
        branch: 1.0,
        transposed: false,
    })
}

/// Learned positions where there are some, the blocks around these attentions, and a head.
fn decoder(
    model: &ModelDir,
    s: &Sizes,
    block: &Block,
    positions: bool,
    (head, head_bias): (Head, bool),
    mixer: impl Fn(usize) -> Attention,
) -> Result<Mapping, Error> {
    let &ModelDir { config, files, .. } = model;
    let (dim, context) = (s.dim, s.context);
    let root = files.prefix("transformer.");
    let mut weights = WeightMap::default();
    let mut before = Vec::new();
    if positions {
        let table = TensorExpr::new(format!("{root}wpe.weight"), &[context, dim]);
        weights.put("positions.weight", table);
        before.push(Node::new("positions", Op::Positions { length: context, dim }));
    }
    let mut blocks = Vec::new();
    for i in 0..s.layers {
        let (to, from) = (format!("blocks.{i}"), format!("{root}h.{i}"));
        blocks.push(block.body(&mut weights, &to, &from, mixer(i)));
    }
    block.norm.put(&mut weights, "norm", &format!("{root}ln_f"), dim);
    let frame = Frame {
        head,
        vocabulary: config.size("vocab_size")?,
        dim,
        context,
        embedding: format!("{root}wte"),
        factor: 1.0,
        scores: ("lm_head", head_bias),
        token_classes: "classifier",
    };
    let after = vec![block.norm.node("norm", dim)];
    frame.around(model, Body { weights, before, blocks, after, logits: Vec::new() })
}

pub(crate) fn gpt2(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, dialect, .. } = model;
    if dialect == Dialect::Candle {
        return Err(config.wrong("model_type", "is gpt2, which candle has no model of"));
    }
    let s = sizes(model)?;
    config.only("add_cross_attention", false)?;
    config.only("reorder_and_upcast_attn", false)?;
    config.ignore(&["is_decoder"]);
    let scaled = config.flag("scale_attn_weights")?;
    let by_layer = config.flag("scale_attn_by_inverse_layer_idx")?;
    let head = Head::of(config, "GPT2", ALL_HEADS)?;
    let block = Block { transposed: true, ..block(config, &s, MLP)? };
    let mapping = decoder(model, &s, &block, true, (head, false), |i| {
        let scale = if scaled { (s.head_dim as f64).sqrt().recip() } else { 1.0 };
        Attention {
            logit_scale: if by_layer { scale / (i + 1) as f64 } else { scale },
            bias: true,
            output_bias: true,
            ..Attention::new(s.dim, s.heads, s.head_dim)
        }
    })?;
    Ok(mapping
        .aside("attn.bias", "the causal mask")
        .aside("attn.masked_bias", "the number that masks"))
}

pub(crate) fn bigcode(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, dialect, .. } = model;
    let s = sizes(model)?;
    config.only("add_cross_attention", false)?;
    config.only("scale_attn_weights", true)?;
    config.ignore(&[
        "attention_softmax_in_fp32",
        "scale_attention_softmax_in_fp32",
        "inference_runner",
        "validate_runner_input",
        "pre_allocate_kv_cache",
        "max_sequence_length",
        "max_batch_size",
        "is_decoder",
    ]);
    let shared = config.flag("multi_query")?;
    if dialect == Dialect::Candle && !shared {
        return Err(config.wrong("multi_query", "is false, for which candle's model does not run"));
    }
    let phi = NamedActivation::read(config, "activation_function")?;
    if dialect == Dialect::Candle && phi != NamedActivation::plain(Function::GeluTanh) {
        let what = "is not the approximate GELU, which is written into candle's model";
        return Err(config.wrong("activation_function", what));
    }
    let key_value_heads = if shared { 1 } else { s.heads };
    // The class derives it, and saves it.
    config.assume("num_key_value_heads", &key_value_heads.into())?;
    let head = Head::of(config, "GPTBigCode", HEADS)?;
    let qkv = "attn.c_attn";
    let projections = if shared { Projections::Rows(qkv) } else { Projections::Groups(qkv) };
    let block = Block { projections, ..block(config, &s, MLP)? };
    let mixer = Attention {
        key_value_heads,
        bias: true,
        output_bias: true,
        ..Attention::new(s.dim, s.heads, s.head_dim)
    };
    let mapping = decoder(model, &s, &block, true, (head, false), |_| mixer.clone())?;
    Ok(mapping.aside("attn.bias", "the causal mask"))
}

pub(crate) fn gpt_neo(model: &ModelDir) -> Result<Mapping, Error> {
    as_the_library(model)?;
    let &ModelDir { config, files, .. } = model;
    let dim = config.size("hidden_size")?;
    let (heads, head_dim) = head_dim(config, "num_heads", dim)?;
    let layers = config.layers("num_layers", files.len())?;
    let s = Sizes {
        dim,
        heads,
        head_dim,
        hidden: config.size_if("intermediate_size")?.unwrap_or(4 * dim),
        layers,
        context: config.size("max_position_embeddings")?,
    };
    config.ignore(SUMMARY);
    let local = local_layers(config, layers)?;
    let window = config.size("window_size")?;
    let head = Head::of(config, "GPTNeo", ALL_HEADS)?;
    let block = Block {
        projections: Projections::Apart([
            "attn.attention.q_proj",
            "attn.attention.k_proj",
            "attn.attention.v_proj",
        ]),
        output: "attn.attention.out_proj",
        ..block(config, &s, MLP)?
    };
    let mapping = decoder(model, &s, &block, true, (head, false), |i| Attention {
        // The library does not divide by the root of the width.
        logit_scale: 1.0,
        output_bias: true,
        window: local[i].then_some(window),
        ..Attention::new(dim, heads, head_dim)
    })?;
    Ok(mapping
        .aside("attn.attention.bias", "the causal mask")
        .aside("attn.attention.masked_bias", "the number that masks"))
}

/// Which layers are local: `attention_types` lists patterns, each with how often it comes.
fn local_layers(config: &ConfigReader, layers: usize) -> Result<Vec<bool>, Error> {
    let wrong = |key: &str| config.wrong(key, "is not a list of `global` and `local`");
    let local = |kind: &str, key: &str| match kind {
        "local" => Ok(true),
        "global" => Ok(false),
        _ => Err(wrong(key)),
    };
    let mut all = Vec::new();
    let types = config.list_if("attention_types")?;
    let usual = vec![serde_json::json!([["global", "local"], 12])];
    for item in types.unwrap_or(&usual) {
        let (Some(pattern), Some(times)) = (item[0].as_array(), item[1].as_u64()) else {
            return Err(wrong("attention_types"));
        };
        for _ in 0..times {
            for kind in pattern {
                let kind = kind.as_str().ok_or_else(|| wrong("attention_types"))?;
                all.push(local(kind, "attention_types")?);
            }
            if pattern.is_empty() || all.len() > layers {
                break;
            }
        }
    }
    if all.len() != layers {
        let what = format!("is not of as many entries as there are layers, {layers}");
        return Err(config.wrong("attention_types", what));
    }
    // What the class works out, and saves; it takes no null for it.
    if let Some(given) = config.texts("attention_layers")? {
        let given: Vec<bool> = given
            .into_iter()
            .map(|kind| local(kind, "attention_layers"))
            .collect::<Result<_, _>>()?;
        if given != all {
            return Err(config.wrong("attention_layers", "differs from `attention_types`"));
        }
    } else if config.names("attention_layers") {
        return Err(config.wrong("attention_layers", "is null"));
    }
    Ok(all)
}

pub(crate) fn gptj(model: &ModelDir) -> Result<Mapping, Error> {
    as_the_library(model)?;
    let config = model.config;
    let s = sizes(model)?;
    for key in ["rotary", "scale_attn_weights"] {
        config.assume(key, &true.into())?;
    }
    let turned = config.size_if("rotary_dim")?;
    let turned = turned.filter(|n| n.is_multiple_of(2) && *n <= s.head_dim).ok_or_else(|| {
        let what = format!("is not an even number of the {} coordinates of a head", s.head_dim);
        config.wrong("rotary_dim", what)
    })?;
    let half = turned / 2;
    let base: f64 = 10_000.0;
    let frequencies = (0..half).map(|i| base.powf(-(i as f64) / half as f64)).collect();
    let rotary =
        Rotary { frequencies: Some(frequencies), ..Rotary::new(base, Pairing::Interleaved) };
    let known = &[Head::Vocabulary, Head::Classes, Head::Answers];
    let head = Head::of(config, "GPTJ", known)?;
    let block = Block {
        layout: Layout::Parallel { norm: "ln_1" },
        projections: Projections::Apart(["attn.q_proj", "attn.k_proj", "attn.v_proj"]),
        output: "attn.out_proj",
        ..block(config, &s, ["mlp.fc_in", "mlp.fc_out"])?
    };
    let mixer = Attention { rotary: Some(rotary), ..Attention::new(s.dim, s.heads, s.head_dim) };
    let mapping = decoder(model, &s, &block, false, (head, true), |_| mixer.clone())?;
    Ok(mapping
        .aside("attn.bias", "the causal mask")
        .aside("attn.masked_bias", "the number that masks"))
}
