//! Decoders with queries, keys and values in one tensor, head by head: GPT-NeoX and Pythia,
//! Falcon, BLOOM, Persimmon; and MPT, whose positions are slopes as BLOOM's.

use crate::activation::NamedActivation;
use crate::expression::WeightMap;
use crate::families::decoder::{
    ALL_HEADS, Block, Body, Frame, Gains, HEADS, Layout, Norm, Projections, QueryKeyNorm, Unit,
    as_the_library, head_dim,
};
use crate::heads::Head;
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::rope::{Keys, Rope, rope};
use lipschitz_nn::Error;
use lipschitz_nn::graph::{Alibi, Attention, Function, NormKind, Span};

/// How a family calls what is around its blocks.
struct Names {
    root: &'static str,
    embedding: &'static str,
    /// A norm of the embedding.
    embedding_norm: Option<&'static str>,
    blocks: &'static str,
    last_norm: &'static str,
    scores: &'static str,
    token_classes: &'static str,
}

/// The blocks, all alike, and what is around them.
fn decoder(
    model: &ModelDir,
    names: &Names,
    block: &Block,
    layers: usize,
    (head, context): (Head, usize),
    mixer: &Attention,
) -> Result<Mapping, Error> {
    let &ModelDir { config, files, .. } = model;
    let (dim, root) = (block.dim, files.prefix(names.root));
    let mut weights = WeightMap::default();
    let mut before = Vec::new();
    if let Some(name) = names.embedding_norm {
        block.norm.put(&mut weights, "embedding_norm", &format!("{root}{name}"), dim);
        before.push(block.norm.node("embedding_norm", dim));
    }
    let mut blocks = Vec::new();
    for i in 0..layers {
        let (to, from) = (format!("blocks.{i}"), format!("{root}{}.{i}", names.blocks));
        blocks.push(block.body(&mut weights, &to, &from, mixer.clone()));
    }
    block.norm.put(&mut weights, "norm", &format!("{root}{}", names.last_norm), dim);
    let frame = Frame {
        head,
        vocabulary: config.size("vocab_size")?,
        dim,
        context,
        embedding: format!("{root}{}", names.embedding),
        factor: 1.0,
        scores: (names.scores, false),
        token_classes: names.token_classes,
    };
    let after = vec![block.norm.node("norm", dim)];
    frame.around(model, Body { weights, before, blocks, after, logits: Vec::new() })
}

pub(crate) fn gpt_neox(model: &ModelDir) -> Result<Mapping, Error> {
    as_the_library(model)?;
    let &ModelDir { config, files, dialect, .. } = model;
    let dim = config.size("hidden_size")?;
    let (heads, head_dim) = head_dim(config, "num_attention_heads", dim)?;
    config.assume("head_dim", &head_dim.into())?;
    config.ignore(&["is_decoder"]);
    let layers = config.layers("num_hidden_layers", files.len())?;
    let keys =
        Keys { theta: "rotary_emb_base", share: Some(("rotary_pct", 0.25)), ..Keys::DEFAULT };
    let Rope { rotary, logits, context, note } = rope(config, (layers, head_dim), keys, dialect)?;
    let bias = config.flag("attention_bias")?;
    let (attention, unit) = ("input_layernorm", "post_attention_layernorm");
    let block = Block {
        dim,
        hidden: config.size("intermediate_size")?,
        norm: Norm::layer(config.eps("layer_norm_eps")?),
        layout: if config.flag("use_parallel_residual")? {
            Layout::ParallelApart { attention, unit }
        } else {
            Layout::Before { attention, unit }
        },
        projections: Projections::Groups("attention.query_key_value"),
        output: "attention.dense",
        query_key: None,
        unit: Unit::Plain {
            phi: NamedActivation::read(config, "hidden_act")?,
            up: "mlp.dense_h_to_4h",
            down: "mlp.dense_4h_to_h",
        },
        unit_bias: true,
        branch: 1.0,
        transposed: false,
    };
    let usual = Attention::new(dim, heads, head_dim);
    let mixer = Attention {
        rotary: Some(rotary),
        bias,
        output_bias: bias,
        logit_scale: usual.logit_scale * logits,
        ..usual
    };
    let names = Names {
        root: "gpt_neox.",
        embedding: "embed_in",
        embedding_norm: None,
        blocks: "layers",
        last_norm: "final_layer_norm",
        // Called otherwise in what newer releases save.
        scores: if files.get("lm_head.weight").is_some() { "lm_head" } else { "embed_out" },
        token_classes: "classifier",
    };
    let head = Head::of(config, "GPTNeoX", ALL_HEADS)?;
    let mut mapping = decoder(model, &names, &block, layers, (head, context), &mixer)?
        .aside("rotary_emb.inv_freq", "rotary frequencies, which follow from the config")
        .aside("attention.bias", "the causal mask")
        .aside("attention.masked_bias", "the number that masks");
    mapping.notes.extend(note);
    Ok(mapping)
}

pub(crate) fn falcon(model: &ModelDir) -> Result<Mapping, Error> {
    as_the_library(model)?;
    let &ModelDir { config, files, dialect, .. } = model;
    if config.flag("alibi")? {
        let what = "is true: the library rounds the slopes times the positions to bfloat16, which \
                    is no slope over the distance";
        return Err(config.wrong("alibi", what));
    }
    config.assume("apply_residual_connection_post_layernorm", &false.into())?;
    // A former name, which wins.
    let former = config.size_if("n_embed")?;
    let dim = former.map_or_else(|| config.size("hidden_size"), Ok)?;
    if former.is_some() {
        config.ignore(&["hidden_size"]);
    }
    let (heads, head_dim) = head_dim(config, "num_attention_heads", dim)?;
    config.assume("head_dim", &head_dim.into())?;
    let layers = config.layers("num_hidden_layers", files.len())?;
    let Rope { rotary, logits, context, note } =
        rope(config, (layers, head_dim), Keys::DEFAULT, dialect)?;
    let (key_value_heads, layout) = falcon_kind(model, heads)?;
    let bias = config.flag("bias")?;
    let block = Block {
        dim,
        hidden: config.size_if("ffn_hidden_size")?.unwrap_or(4 * dim),
        norm: Norm::layer(config.eps("layer_norm_epsilon")?),
        layout,
        projections: Projections::Groups("self_attention.query_key_value"),
        output: "self_attention.dense",
        query_key: None,
        unit: Unit::Plain {
            phi: NamedActivation::read(config, "activation")?,
            up: "mlp.dense_h_to_4h",
            down: "mlp.dense_4h_to_h",
        },
        unit_bias: bias,
        branch: 1.0,
        transposed: false,
    };
    let usual = Attention::new(dim, heads, head_dim);
    let mixer = Attention {
        key_value_heads,
        rotary: Some(rotary),
        bias,
        output_bias: bias,
        logit_scale: usual.logit_scale * logits,
        ..usual
    };
    let head = Head::of(config, "Falcon", ALL_HEADS)?;
    let names = Names { embedding_norm: None, ..TRANSFORMER };
    let mut mapping = decoder(model, &names, &block, layers, (head, context), &mixer)?
        .aside("rotary_emb.inv_freq", "rotary frequencies, which follow from the config");
    mapping.notes.extend(note);
    Ok(mapping)
}

/// The heads of keys and values, and where the norms of a block are, in the three kinds of Falcon.
fn falcon_kind(model: &ModelDir, heads: usize) -> Result<(usize, Layout), Error> {
    let config = model.config;
    let (new, parallel) = (config.flag("new_decoder_architecture")?, config.flag("parallel_attn")?);
    let groups = config.size_if("num_kv_heads")?.unwrap_or(heads);
    let shared = config.flag("multi_query")?;
    let key_value_heads = match (new, shared) {
        (false, true) => 1,
        _ => groups,
    };
    if !new && !shared && groups != heads {
        let what = format!("is {groups} for {heads} heads, with which the library does not run");
        return Err(config.wrong("num_kv_heads", what));
    }
    if !heads.is_multiple_of(key_value_heads) {
        let what = format!("is {key_value_heads}, which does not divide {heads}");
        return Err(config.wrong("num_kv_heads", what));
    }
    let norms = config.count_if("num_ln_in_parallel_attn")?.unwrap_or(if new { 2 } else { 1 });
    let one = Layout::Parallel { norm: "input_layernorm" };
    let layout = match (new, parallel, norms) {
        (true, true, 2) => Layout::ParallelApart { attention: "ln_attn", unit: "ln_mlp" },
        (true, true, 1) | (false, true, 0 | 1) => one,
        (false, false, _) => {
            Layout::Before { attention: "input_layernorm", unit: "post_attention_layernorm" }
        }
        _ => {
            let what = format!("is {norms}, with which the library does not run this model");
            return Err(config.wrong("num_ln_in_parallel_attn", what));
        }
    };
    Ok((key_value_heads, layout))
}

/// The names of BLOOM, which Falcon took over.
const TRANSFORMER: Names = Names {
    root: "transformer.",
    embedding: "word_embeddings",
    embedding_norm: Some("word_embeddings_layernorm"),
    blocks: "h",
    last_norm: "ln_f",
    scores: "lm_head",
    token_classes: "classifier",
};

/// The longest sequence that BLOOM was trained on; its configs need not say one.
const BLOOM_CONTEXT: usize = 2048;

pub(crate) fn bloom(model: &ModelDir) -> Result<Mapping, Error> {
    as_the_library(model)?;
    let &ModelDir { config, files, .. } = model;
    let former = config.size_if("n_embed")?;
    let dim = former.map_or_else(|| config.size("hidden_size"), Ok)?;
    if former.is_some() {
        config.ignore(&["hidden_size"]);
    }
    let (heads, head_dim) = head_dim(config, "n_head", dim)?;
    let layers = config.layers("n_layer", files.len())?;
    config.check_layers("n_head", layers, heads)?;
    config.ignore(&[
        "attention_softmax_in_fp32",
        "bias_dropout_fusion",
        "masked_softmax_fusion",
        "offset_alibi",
        "skip_bias_add",
        "skip_bias_add_qkv",
        // The same sum in pieces.
        "slow_but_exact",
    ]);
    if config.size_if("n_inner")?.is_some() {
        config.assume("n_inner", &(4 * dim).into())?;
    }
    let said = config.size_if("seq_length")?;
    let (attention, unit) = ("input_layernorm", "post_attention_layernorm");
    let block = Block {
        dim,
        hidden: 4 * dim,
        norm: Norm::layer(config.eps("layer_norm_epsilon")?),
        layout: if config.flag("apply_residual_connection_post_layernorm")? {
            Layout::Around { attention, unit }
        } else {
            Layout::Before { attention, unit }
        },
        projections: Projections::Groups("self_attention.query_key_value"),
        output: "self_attention.dense",
        query_key: None,
        unit: Unit::Plain {
            phi: NamedActivation::plain(Function::GeluTanh),
            up: "mlp.dense_h_to_4h",
            down: "mlp.dense_4h_to_h",
        },
        unit_bias: true,
        branch: 1.0,
        transposed: false,
    };
    let mixer = Attention {
        alibi: Some(Alibi::new(heads, 8.0)),
        bias: true,
        output_bias: true,
        ..Attention::new(dim, heads, head_dim)
    };
    let head = Head::of(config, "Bloom", ALL_HEADS)?;
    let context = said.unwrap_or(BLOOM_CONTEXT);
    let mapping = decoder(model, &TRANSFORMER, &block, layers, (head, context), &mixer)?;
    Ok(if said.is_some() {
        mapping
    } else {
        mapping.note(format!("sequences up to {context} tokens; the config sets no limit"))
    })
}

pub(crate) fn persimmon(model: &ModelDir) -> Result<Mapping, Error> {
    as_the_library(model)?;
    let &ModelDir { config, files, dialect, .. } = model;
    let dim = config.size("hidden_size")?;
    let (heads, head_dim) = head_dim(config, "num_attention_heads", dim)?;
    // Read for the frequencies alone, of any config that has it.
    config.assume("head_dim", &head_dim.into())?;
    let layers = config.layers("num_hidden_layers", files.len())?;
    let keys = Keys::of_share(0.5);
    let Rope { rotary, logits, context, note } = rope(config, (layers, head_dim), keys, dialect)?;
    let query_key = QueryKeyNorm {
        kind: NormKind::Layer,
        shift: true,
        span: Span::Head,
        names: ["self_attn.q_layernorm", "self_attn.k_layernorm"],
        gains: Gains::Vector,
    };
    let block = Block {
        dim,
        hidden: config.size("intermediate_size")?,
        norm: Norm::layer(config.eps("layer_norm_eps")?),
        layout: Layout::Before { attention: "input_layernorm", unit: "post_attention_layernorm" },
        projections: Projections::Groups("self_attn.query_key_value"),
        output: "self_attn.dense",
        query_key: config.flag("qk_layernorm")?.then_some(query_key),
        unit: Unit::Plain {
            phi: NamedActivation::read(config, "hidden_act")?,
            up: "mlp.dense_h_to_4h",
            down: "mlp.dense_4h_to_h",
        },
        unit_bias: true,
        branch: 1.0,
        transposed: false,
    };
    let usual = Attention::new(dim, heads, head_dim);
    let mixer = Attention {
        rotary: Some(rotary),
        bias: true,
        output_bias: true,
        logit_scale: usual.logit_scale * logits,
        ..usual
    };
    let names = Names {
        root: "model.",
        embedding: "embed_tokens",
        embedding_norm: None,
        blocks: "layers",
        last_norm: "final_layernorm",
        scores: "lm_head",
        token_classes: "score",
    };
    let head = Head::of(config, "Persimmon", HEADS)?;
    let mut mapping = decoder(model, &names, &block, layers, (head, context), &mixer)?
        .aside("rotary_emb.inv_freq", "rotary frequencies, which follow from the config");
    mapping.notes.extend(note);
    Ok(mapping)
}

pub(crate) fn mpt(model: &ModelDir) -> Result<Mapping, Error> {
    as_the_library(model)?;
    let &ModelDir { config, files, .. } = model;
    let dim = config.size("d_model")?;
    let (heads, head_dim) = head_dim(config, "n_heads", dim)?;
    let layers = config.layers("n_layers", files.len())?;
    config.check_layers("n_heads", layers, heads)?;
    let context = config.size("max_seq_len")?;
    // Its code computes as for these, whatever is said.
    config.assume("expansion_ratio", &4.into())?;
    config.assume("logit_scale", &serde_json::Value::Null)?;
    config.assume("no_bias", &true.into())?;
    if let Some(norm) = config.text_if("norm_type")?
        && !["low_precision_layernorm", "layernorm"].contains(&norm)
    {
        return Err(config.unsupported("norm_type", norm));
    }
    // There are slopes in place of learned positions, whatever is said; the others are of training.
    config.ignore(&[
        "learned_pos_emb",
        "embedding_fraction",
        "init_config",
        "init_device",
        "verbose",
    ]);
    let usual = Attention::new(dim, heads, head_dim);
    let logit_scale = mpt_attention(model)?.unwrap_or(usual.logit_scale);
    let mixer = Attention { alibi: Some(Alibi::new(heads, 8.0)), logit_scale, ..usual };
    let block = Block {
        dim,
        hidden: 4 * dim,
        norm: Norm { shift: false, ..Norm::layer(config.eps("layer_norm_epsilon")?) },
        layout: Layout::Before { attention: "norm_1", unit: "norm_2" },
        projections: Projections::Rows("attn.Wqkv"),
        output: "attn.out_proj",
        query_key: None,
        unit: Unit::Plain {
            phi: NamedActivation::plain(Function::GeluErf),
            up: "ffn.up_proj",
            down: "ffn.down_proj",
        },
        unit_bias: false,
        branch: 1.0,
        transposed: false,
    };
    let names = Names {
        root: "transformer.",
        embedding: "wte",
        embedding_norm: None,
        blocks: "blocks",
        last_norm: "norm_f",
        scores: "lm_head",
        token_classes: "classifier",
    };
    // Published configs spell it in capitals.
    let head = Head::of_any(config, &["Mpt", "MPT"], ALL_HEADS)?;
    decoder(model, &names, &block, layers, (head, context), &mixer)
}

/// Checks what is said of attention; the factor on its logits if one is said.
fn mpt_attention(model: &ModelDir) -> Result<Option<f64>, Error> {
    let Some(inner) = model.config.inside("attn_config")? else { return Ok(None) };
    inner.ignore(&["attn_impl", "base_config_key", "model_type"]);
    for key in ["prefix_lm", "qk_ln", "attn_uses_sequence_id"] {
        inner.assume(key, &false.into())?;
    }
    inner.assume("alibi", &true.into())?;
    inner.assume("alibi_bias_max", &8.into())?;
    inner.assume("attn_type", &"multihead_attention".into())?;
    if let Some(clip) = inner.number_if("clip_qkv")?.filter(|clip| *clip != 0.0) {
        let what =
            format!("is {clip}: queries, keys and values that are clipped are not supported");
        return Err(inner.wrong("clip_qkv", what));
    }
    let scale = inner.number_if("softmax_scale")?;
    inner.finish(&[])?;
    Ok(scale)
}
