//! ModernBERT: an encoder with norms in front, gated units, rotary positions, and local attention
//! in most layers.

use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::expression::{TensorExpr, WeightMap};
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::nodes::{attention, blocks, layer_norm, linear, residual};
use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::Dialect;
use lipschitz_nn::graph::{Attention, Input, Node, Op, Pairing, Rotary};

pub(crate) fn modernbert(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, dialect, .. } = model;
    let (dim, heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
    if !dim.is_multiple_of(heads) {
        return Err(
            config.wrong("num_attention_heads", format!("is {heads}, which does not divide {dim}"))
        );
    }
    let (vocabulary, context) =
        (config.size("vocab_size")?, config.size("max_position_embeddings")?);
    let hidden = config.size("intermediate_size")?;
    let layers = config.layers("num_hidden_layers", files.len())?;
    let eps = config.eps("norm_eps", config.number_or("layer_norm_eps", 1e-5)?)?;
    let phi = NamedActivation::read(config, "hidden_activation", "gelu")?;
    for key in ["attention_bias", "mlp_bias", "norm_bias"] {
        config.only(key, false)?;
    }
    // Of the classifier, of training, and of kernels.
    config.ignore(&[
        "classifier_activation",
        "classifier_bias",
        "classifier_pooling",
        "decoder_bias",
        "deterministic_flash_attn",
        "position_embedding_type",
        "reference_compile",
        "repad_logits_with_grad",
        "sparse_pred_ignore_index",
        "sparse_prediction",
    ]);
    let every = config.size_or("global_attn_every_n_layers", 3)?;
    let local = config.size_or("local_attention", 128)?;
    let types = config.texts("layer_types")?;
    let is_local = |i: usize| match types.as_ref().map(|types| types.get(i).copied()) {
        None => Ok(!i.is_multiple_of(every)),
        Some(Some("sliding_attention")) => Ok(true),
        Some(Some("full_attention")) => Ok(false),
        Some(other) => Err(config
            .wrong("layer_types", format!("has {other:?} for layer {i}, which is not supported"))),
    };
    let [global_base, local_base] = bases(config)?;
    if dialect == Dialect::Candle
        && (phi != NamedActivation::named("gelu").unwrap_or(phi)
            || types.is_some() && !uniform(&types, every))
    {
        return Err(config.wrong(
            "layer_types",
            "or `hidden_activation` is one that candle's model does not know",
        ));
    }

    let root = files.prefix("model.");
    let mut weights = WeightMap::default();
    let embedding =
        TensorExpr::new(format!("{root}embeddings.tok_embeddings.weight"), &[vocabulary, dim]);
    weights.put("embedding.weight", embedding.clone());
    weights.norm("embedding_norm", &format!("{root}embeddings.norm"), dim, false);
    let mut bodies = Vec::new();
    for i in 0..layers {
        let (to, from) = (format!("blocks.{i}"), format!("{root}layers.{i}"));
        let fused = TensorExpr::new(format!("{from}.attn.Wqkv.weight"), &[3 * dim, dim]);
        for (j, name) in ["query", "key", "value"].into_iter().enumerate() {
            weights.put(format!("{to}.attention.{name}.weight"), fused.clone().rows(j * dim, dim));
        }
        weights.linear(
            &format!("{to}.attention.output"),
            &format!("{from}.attn.Wo"),
            dim,
            dim,
            false,
        );
        let fused = TensorExpr::new(format!("{from}.mlp.Wi.weight"), &[2 * hidden, dim]);
        weights.put(format!("{to}.mlp.gate.weight"), fused.clone().rows(0, hidden));
        weights.put(format!("{to}.mlp.up.weight"), fused.rows(hidden, hidden));
        weights.linear(&format!("{to}.mlp.down"), &format!("{from}.mlp.Wo"), dim, hidden, false);
        weights.norm(&format!("{to}.mlp.norm"), &format!("{from}.mlp_norm"), dim, false);
        let near = is_local(i)?;
        let mixer = Attention {
            causal: false,
            rotary: Some(Rotary::new(if near { local_base } else { global_base }, Pairing::Half)),
            // Half of the window on either side, and the token itself.
            window: near.then_some(local / 2 + 1),
            ..Attention::new(dim, heads, dim / heads)
        };
        let mut mix = vec![attention(mixer)];
        // The first block comes right behind the norm of the embeddings.
        if i > 0 {
            weights.norm(&format!("{to}.attention.norm"), &format!("{from}.attn_norm"), dim, false);
            mix.insert(0, layer_norm("norm", dim, eps, false));
        }
        let function = phi.gate(config, "hidden_activation")?;
        let gated = Node::new("", Op::GatedMlp { dim, hidden, function, bias: false });
        bodies.push(vec![
            residual("attention", mix),
            residual("mlp", vec![layer_norm("norm", dim, eps, false), gated]),
        ]);
    }
    weights.norm("norm", &format!("{root}final_norm"), dim, false);
    let mut nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary, dim }),
        layer_norm("embedding_norm", dim, eps, false),
        blocks(bodies),
        layer_norm("norm", dim, eps, false),
    ];
    let mut aside = Vec::new();
    match config.architecture()? {
        None | Some("ModernBertModel") => {}
        Some("ModernBertForMaskedLM") => {
            let tied = config.flag("tie_word_embeddings", true)?;
            weights.linear("transform", "head.dense", dim, dim, false);
            weights.norm("transform_norm", "head.norm", dim, false);
            let own = TensorExpr::new("decoder.weight", &[vocabulary, dim]);
            weights.put("head.weight", if tied { embedding } else { own });
            weights.vector("head.bias", "decoder.bias", vocabulary);
            nodes.push(linear("transform", dim, dim, false));
            // The library calls the head's activation that of the classifier, GELU in every
            // release.
            nodes.extend(phi.nodes());
            nodes.push(layer_norm("transform_norm", dim, eps, false));
            nodes.push(linear("head", dim, vocabulary, true));
            if tied {
                aside.push(("decoder.weight".to_string(), "the head is the embedding"));
            }
        }
        Some(name) => {
            return Err(
                config.wrong("architectures", format!("names `{name}`, which is not supported"))
            );
        }
    }
    config.flag("tie_word_embeddings", true)?;
    let mut mapping =
        Mapping::new(Input::tokens(context), nodes, weights)?.note("no token is padding");
    mapping.aside.extend(aside);
    Ok(mapping)
}

/// Whether the layers' kinds are what their number alone says.
fn uniform(types: &Option<Vec<&str>>, every: usize) -> bool {
    let kind =
        |i: usize| if i.is_multiple_of(every) { "full_attention" } else { "sliding_attention" };
    types.as_ref().is_none_or(|types| types.iter().enumerate().all(|(i, t)| *t == kind(i)))
}

/// Bases of the rotary positions of global and local layers.
fn bases(config: &ConfigReader) -> Result<[f64; 2], Error> {
    let mut bases = [
        config.number_or("global_rope_theta", 160_000.0)?,
        config.number_or("local_rope_theta", 10_000.0)?,
    ];
    if let Some(kinds) = config.inside("rope_parameters")? {
        for (base, kind) in bases.iter_mut().zip(["full_attention", "sliding_attention"]) {
            let Some(inner) = kinds.inside(kind)? else { continue };
            *base = inner.number_or("rope_theta", *base)?;
            if inner.text("rope_type")?.is_some_and(|t| t != "default") {
                return Err(inner.wrong("rope_type", "is not `default`, which is not supported"));
            }
            inner.finish()?;
        }
        kinds.finish()?;
    }
    Ok(bases)
}
