//! ModernBERT: an encoder with norms in front, gated units, rotary positions, and local attention
//! in most layers.

use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::expression::{TensorExpr, WeightMap};
use crate::heads::Head;
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::nodes::{attention, blocks, layer_norm, linear, residual};
use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::Dialect;
use lipschitz_nn::graph::{Attention, Input, Node, Op, Pairing, Rotary};

pub(crate) fn modernbert(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, dialect, .. } = model;
    let dim = config.size("hidden_size")?;
    let heads = config.heads("num_attention_heads", dim)?;
    let (vocabulary, context) =
        (config.size("vocab_size")?, config.size("max_position_embeddings")?);
    let hidden = config.size("intermediate_size")?;
    let layers = config.layers("num_hidden_layers", files.len())?;
    let eps = config.eps("norm_eps")?;
    config.assume("layer_norm_eps", &eps.into())?;
    let phi = NamedActivation::read(config, "hidden_activation")?;
    config.assume("position_embedding_type", &"absolute".into())?;
    let (bias, mlp_bias, norm_bias) =
        (config.flag("attention_bias")?, config.flag("mlp_bias")?, config.flag("norm_bias")?);
    // Of training and of kernels.
    config.ignore(&[
        "deterministic_flash_attn",
        "reference_compile",
        "repad_logits_with_grad",
        "sparse_pred_ignore_index",
        "sparse_prediction",
    ]);
    let every = config.size_or("global_attn_every_n_layers", 3)?;
    let local = config.size("local_attention")?;
    // Half of it, which the library writes over it.
    if config.names("sliding_window") && config.size("sliding_window")? != local / 2 {
        return Err(config.wrong("sliding_window", format!("is not half of {local}")));
    }
    let types = config.texts("layer_types")?;
    if let Some(types) = &types
        && types.len() != layers
    {
        let what = format!("has {} entries for {layers} layers", types.len());
        return Err(config.wrong("layer_types", what));
    }
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
    let known = [Head::Vocabulary, Head::Classes, Head::TokenClasses, Head::Answers];
    let head = Head::of(config, "ModernBert", &known)?;
    // Behind the scores of classes candle's model has a softmax.
    model.candle_has(head, &[Head::Vocabulary])?;
    if model.of_candle() {
        for (key, known) in [
            ("attention_bias", false),
            ("mlp_bias", false),
            ("norm_bias", false),
            ("classifier_bias", false),
            ("decoder_bias", true),
        ] {
            config.only(key, known)?;
        }
        if NamedActivation::read(config, "classifier_activation")? != phi {
            let what = "is not the GELU that is written into candle's model";
            return Err(config.wrong("classifier_activation", what));
        }
    }
    let tied = config.flag("tie_word_embeddings")? || model.of_candle();
    let tied = tied && head == Head::Vocabulary;
    let tie = model.tie(
        tied,
        TensorExpr::new(format!("{root}embeddings.tok_embeddings.weight"), &[vocabulary, dim]),
        TensorExpr::new("decoder.weight", &[vocabulary, dim]),
    )?;
    weights.put("embedding.weight", tie.first.clone());
    weights.norm("embedding_norm", &format!("{root}embeddings.norm"), dim, norm_bias);
    let mut bodies = Vec::new();
    for i in 0..layers {
        let (to, from) = (format!("blocks.{i}"), format!("{root}layers.{i}"));
        let mut split = |fused: &str, rows: usize, parts: &[&str], bias: bool| {
            let all = parts.len() * rows;
            let whole = TensorExpr::new(format!("{fused}.weight"), &[all, dim]);
            let shift = TensorExpr::new(format!("{fused}.bias"), &[all]);
            for (j, name) in parts.iter().enumerate() {
                weights.put(format!("{to}.{name}.weight"), whole.clone().rows(j * rows, rows));
                if bias {
                    weights.put(format!("{to}.{name}.bias"), shift.clone().rows(j * rows, rows));
                }
            }
        };
        let parts = ["attention.query", "attention.key", "attention.value"];
        split(&format!("{from}.attn.Wqkv"), dim, &parts, bias);
        split(&format!("{from}.mlp.Wi"), hidden, &["mlp.gate", "mlp.up"], mlp_bias);
        let (output, down) = (format!("{from}.attn.Wo"), format!("{from}.mlp.Wo"));
        weights.linear(&format!("{to}.attention.output"), &output, dim, dim, bias);
        weights.linear(&format!("{to}.mlp.down"), &down, dim, hidden, mlp_bias);
        weights.norm(&format!("{to}.mlp.norm"), &format!("{from}.mlp_norm"), dim, norm_bias);
        let near = is_local(i)?;
        let mixer = Attention {
            causal: false,
            bias,
            output_bias: bias,
            rotary: Some(Rotary::new(if near { local_base } else { global_base }, Pairing::Half)),
            // Half of the window on either side, and the token itself.
            window: near.then_some(local / 2 + 1),
            ..Attention::new(dim, heads, dim / heads)
        };
        let mut mix = vec![attention(mixer)];
        // The first block comes right behind the norm of the embeddings.
        if i > 0 {
            weights.norm(
                &format!("{to}.attention.norm"),
                &format!("{from}.attn_norm"),
                dim,
                norm_bias,
            );
            mix.insert(0, layer_norm("norm", dim, eps, norm_bias));
        }
        let function = phi.gate();
        let gated = Node::new("", Op::GatedMlp { dim, hidden, function, bias: mlp_bias });
        bodies.push(vec![
            residual("attention", mix),
            residual("mlp", vec![layer_norm("norm", dim, eps, norm_bias), gated]),
        ]);
    }
    weights.norm("norm", &format!("{root}final_norm"), dim, norm_bias);
    let mut nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary, dim }),
        layer_norm("embedding_norm", dim, eps, norm_bias),
        blocks(bodies),
        layer_norm("norm", dim, eps, norm_bias),
    ];
    if config.names("sliding_window") {
        return Err(config.wrong("sliding_window", "is set, which `local_attention` says"));
    }
    let pooling = config.text("classifier_pooling")?;
    if !["cls", "mean"].contains(&pooling) {
        return Err(config.unsupported("classifier_pooling", format!("`{pooling}`")));
    }
    if head == Head::Hidden {
        config.ignore(&["classifier_activation", "classifier_bias"]);
    }
    if head != Head::Vocabulary {
        config.ignore(&["decoder_bias"]);
    }
    if head != Head::Hidden {
        if head == Head::Classes {
            let pool = if pooling == "cls" { Op::FirstToken } else { Op::MeanPool };
            nodes.push(Node::new("", pool));
        }
        // Its own activation, whatever the layers' is.
        let phi = NamedActivation::read(config, "classifier_activation")?;
        let bias = config.flag("classifier_bias")?;
        weights.linear("transform", "head.dense", dim, dim, bias);
        weights.norm("transform_norm", "head.norm", dim, norm_bias);
        nodes.push(linear("transform", dim, dim, bias));
        nodes.extend(phi.nodes());
        nodes.push(layer_norm("transform_norm", dim, eps, norm_bias));
    }
    match head {
        Head::Hidden | Head::Replaced => {}
        Head::Vocabulary => {
            let bias = config.flag("decoder_bias")?;
            weights.put("head.weight", tie.second.clone());
            if bias {
                weights.vector("head.bias", "decoder.bias", vocabulary);
            }
            nodes.push(linear("head", dim, vocabulary, bias));
        }
        Head::Classes => {
            let labels = head.labels(config)?;
            weights.linear("head", "classifier", labels, dim, true);
            nodes.push(linear("head", dim, labels, true));
        }
        Head::TokenClasses | Head::Answers => {
            head.of_tokens(config, &mut weights, &mut nodes, dim)?;
        }
    }
    Ok(Mapping::new(Input::tokens(context), nodes, weights)?.note("no token is padding").tied(tie))
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
        config.number_or("global_rope_theta", config.theta("global"))?,
        config.number_or("local_rope_theta", config.theta("local"))?,
    ];
    if config.inside("rope_scaling")?.is_some() {
        return Err(config.wrong("rope_scaling", "is not supported for this family"));
    }
    if let Some(kinds) = config.inside("rope_parameters")? {
        for (base, kind) in bases.iter_mut().zip(["full_attention", "sliding_attention"]) {
            if !kinds.names(kind) {
                continue;
            }
            let inner = kinds.inside(kind)?.ok_or_else(|| kinds.wrong(kind, "is null"))?;
            *base = inner.number_or("rope_theta", *base)?;
            for key in ["rope_type", "type"].into_iter().filter(|key| inner.names(key)) {
                match inner.text(key)? {
                    "default" => {}
                    other => return Err(inner.unsupported(key, format!("`{other}`"))),
                }
            }
            inner.finish(&[])?;
        }
        kinds.finish(&[])?;
    }
    if let Some(base) = bases.iter().find(|base| **base <= 0.0) {
        return Err(config.wrong("rope_theta", format!("is {base}, wanted a number above 0")));
    }
    Ok(bases)
}
