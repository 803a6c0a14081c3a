//! GPT-2, whose matrices are stored transposed, and GPT-BigCode, whose heads share one key and
//! value.

use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::expression::{TensorExpr, WeightMap};
use crate::formats::files::Files;
use crate::heads::Head;
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::nodes::{attention, blocks, layer_norm, linear, residual};
use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::Dialect;
use lipschitz_nn::graph::{Attention, Input, Node, Op};

/// What the two families share, read from their common option names.
struct Sizes {
    dim: usize,
    heads: usize,
    hidden: usize,
    eps: f64,
    vocabulary: usize,
    context: usize,
    layers: usize,
    head: bool,
    tied: bool,
}

fn shape(config: &ConfigReader, files: &Files, class: &str) -> Result<Sizes, Error> {
    let dim = config.size("n_embd")?;
    let heads = config.heads("n_head", dim)?;
    config.only("add_cross_attention", false)?;
    config.only("reorder_and_upcast_attn", false)?;
    config.ignore(&[
        "n_ctx",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "attention_softmax_in_fp32",
        "scale_attention_softmax_in_fp32",
        "inference_runner",
        "validate_runner_input",
        "pre_allocate_kv_cache",
        "max_sequence_length",
        "max_batch_size",
        "is_decoder",
    ]);
    let head = Head::of(config, class, &[Head::Vocabulary])? == Head::Vocabulary;
    Ok(Sizes {
        dim,
        heads,
        hidden: config.size_if("n_inner")?.unwrap_or(4 * dim),
        eps: config.eps("layer_norm_epsilon")?,
        vocabulary: config.size("vocab_size")?,
        context: config.size("n_positions")?,
        layers: config.layers("n_layer", files.len())?,
        head,
        tied: config.flag("tie_word_embeddings")?,
    })
}

pub(crate) fn gpt2(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, dialect, .. } = model;
    if dialect == Dialect::Candle {
        return Err(config.wrong("model_type", "is gpt2, which candle has no model of"));
    }
    let s = shape(config, files, "GPT2")?;
    let scaled = config.flag("scale_attn_weights")?;
    let by_layer = config.flag("scale_attn_by_inverse_layer_idx")?;
    let (dim, hidden) = (s.dim, s.hidden);
    let blocks = |weights: &mut WeightMap, i: usize, to: &str, from: &str| {
        for (j, name) in ["query", "key", "value"].into_iter().enumerate() {
            let weight = TensorExpr::new(format!("{from}.attn.c_attn.weight"), &[dim, 3 * dim]);
            let bias = TensorExpr::new(format!("{from}.attn.c_attn.bias"), &[3 * dim]);
            weights.put(
                format!("{to}.attention.{name}.weight"),
                weight.transpose().rows(j * dim, dim),
            );
            weights.put(format!("{to}.attention.{name}.bias"), bias.rows(j * dim, dim));
        }
        for (ours, theirs, inputs, outputs) in [
            ("attention.output", "attn.c_proj", dim, dim),
            ("mlp.up", "mlp.c_fc", dim, hidden),
            ("mlp.down", "mlp.c_proj", hidden, dim),
        ] {
            let weight = TensorExpr::new(format!("{from}.{theirs}.weight"), &[inputs, outputs]);
            weights.put(format!("{to}.{ours}.weight"), weight.transpose());
            weights.vector(&format!("{to}.{ours}.bias"), &format!("{from}.{theirs}.bias"), outputs);
        }
        let head_dim = dim / s.heads;
        let scale = if scaled { (head_dim as f64).sqrt().recip() } else { 1.0 };
        let logit_scale = if by_layer { scale / (i + 1) as f64 } else { scale };
        Attention {
            logit_scale,
            bias: true,
            output_bias: true,
            ..Attention::new(dim, s.heads, head_dim)
        }
    };
    let mapping = decoder(model, &s, blocks)?;
    Ok(mapping
        .aside("attn.bias", "the causal mask")
        .aside("attn.masked_bias", "the number that masks"))
}

pub(crate) fn bigcode(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, dialect, .. } = model;
    let s = shape(config, files, "GPTBigCode")?;
    config.only("scale_attn_weights", true)?;
    let shared = config.flag("multi_query")?;
    if dialect == Dialect::Candle && !shared {
        return Err(config.wrong("multi_query", "is false, for which candle's model does not run"));
    }
    let (dim, hidden, heads) = (s.dim, s.hidden, s.heads);
    let head_dim = dim / heads;
    // The class derives it, and saves it.
    config.assume("num_key_value_heads", &(if shared { 1 } else { heads }).into())?;
    let blocks = |weights: &mut WeightMap, _: usize, to: &str, from: &str| {
        let rows = if shared { dim + 2 * head_dim } else { 3 * dim };
        let fused = [("weight", vec![rows, dim]), ("bias", vec![rows])];
        for (part, shape) in fused {
            let fused = TensorExpr::new(format!("{from}.attn.c_attn.{part}"), &shape);
            for (j, name) in ["query", "key", "value"].into_iter().enumerate() {
                let take = match (shared, j) {
                    (true, 0) => fused.clone().rows(0, dim),
                    (true, j) => fused.clone().rows(dim + (j - 1) * head_dim, head_dim),
                    // Each head's query, key and value lie together.
                    (false, j) => {
                        let columns = &shape[1..];
                        let split = [&[heads, 3, head_dim], columns].concat();
                        let whole = [&[dim], columns].concat();
                        fused.clone().reshape(&split).narrow(1, j, 1).reshape(&whole)
                    }
                };
                weights.put(format!("{to}.attention.{name}.{part}"), take);
            }
        }
        weights.linear(
            &format!("{to}.attention.output"),
            &format!("{from}.attn.c_proj"),
            dim,
            dim,
            true,
        );
        weights.linear(&format!("{to}.mlp.up"), &format!("{from}.mlp.c_fc"), hidden, dim, true);
        weights.linear(&format!("{to}.mlp.down"), &format!("{from}.mlp.c_proj"), dim, hidden, true);
        let key_value_heads = if shared { 1 } else { heads };
        Attention {
            key_value_heads,
            bias: true,
            output_bias: true,
            ..Attention::new(dim, heads, head_dim)
        }
    };
    Ok(decoder(model, &s, blocks)?.aside("attn.bias", "the causal mask"))
}

/// Learned positions, blocks with layer norms in front, and a head.
fn decoder(
    model: &ModelDir,
    s: &Sizes,
    block: impl Fn(&mut WeightMap, usize, &str, &str) -> Attention,
) -> Result<Mapping, Error> {
    let Sizes { dim, hidden, eps, vocabulary, context, .. } = *s;
    let &ModelDir { config, files, .. } = model;
    let phi = NamedActivation::read(config, "activation_function")?;
    let root = files.prefix("transformer.");
    let mut weights = WeightMap::default();
    let tie = model.tie(
        s.tied && s.head,
        TensorExpr::new(format!("{root}wte.weight"), &[vocabulary, dim]),
        TensorExpr::new("lm_head.weight", &[vocabulary, dim]),
    )?;
    weights.put("embedding.weight", tie.first.clone());
    weights.put("positions.weight", TensorExpr::new(format!("{root}wpe.weight"), &[context, dim]));
    let mut bodies = Vec::new();
    for i in 0..s.layers {
        let (to, from) = (format!("blocks.{i}"), format!("{root}h.{i}"));
        weights.norm(&format!("{to}.attention.norm"), &format!("{from}.ln_1"), dim, true);
        weights.norm(&format!("{to}.mlp.norm"), &format!("{from}.ln_2"), dim, true);
        let mixer = block(&mut weights, i, &to, &from);
        let mut mlp = vec![layer_norm("norm", dim, eps, true), linear("up", dim, hidden, true)];
        mlp.extend(phi.nodes());
        mlp.push(linear("down", hidden, dim, true));
        let mixer = vec![layer_norm("norm", dim, eps, true), attention(mixer)];
        bodies.push(vec![residual("attention", mixer), residual("mlp", mlp)]);
    }
    weights.norm("norm", &format!("{root}ln_f"), dim, true);
    let mut nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary, dim }),
        Node::new("positions", Op::Positions { length: context, dim }),
        blocks(bodies),
        layer_norm("norm", dim, eps, true),
    ];
    if s.head {
        nodes.push(linear("head", dim, vocabulary, false));
        weights.put("head.weight", tie.second.clone());
    }
    Ok(Mapping::new(Input::tokens(context), nodes, weights)?.tied(tie))
}
