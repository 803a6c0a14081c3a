//! The encoder of T5: a position bias, logits that are not scaled, norms without a mean.

use crate::activation::NamedActivation;
use crate::expression::{TensorExpr, WeightMap};
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::nodes::{attention, blocks, linear, residual, rms_norm};
use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::Dialect;
use lipschitz_nn::graph::{Attention, Function, Input, Node, Op, PositionBias};

pub(crate) fn t5(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, dialect, .. } = model;
    let (dim, heads, head_dim) =
        (config.size("d_model")?, config.size("num_heads")?, config.size("d_kv")?);
    let (vocabulary, hidden) = (config.size("vocab_size")?, config.size("d_ff")?);
    let layers = config.layers("num_layers", files.len())?;
    let eps = config.eps("layer_norm_epsilon")?;
    let bias = PositionBias {
        buckets: config.size("relative_attention_num_buckets")?,
        max_distance: config.size("relative_attention_max_distance")?,
    };
    // Positions are relative, so no length is too long; this is the one that the library trained
    // with.
    let context = config.size_or("n_positions", 512)?;
    config.only("is_decoder", false)?;
    // Of the decoder; the library ties the embeddings whatever the config says.
    config.ignore(&[
        "is_encoder_decoder",
        "num_decoder_layers",
        "scale_decoder_outputs",
        "tie_word_embeddings",
    ]);
    // The one word stands for two options, which a config can set by themselves.
    let name = config.text("feed_forward_proj")?;
    let parts = name.split('-').count();
    if parts > 2 || parts == 2 && !name.starts_with("gated-") {
        return Err(config.unsupported("feed_forward_proj", format!("`{name}`")));
    }
    let (gated, name) = match name.strip_prefix("gated-") {
        Some("gelu") => (true, "gelu_new"),
        Some(rest) => (true, rest),
        None => (false, name),
    };
    if dialect == Dialect::Candle {
        // Candle's model reads the word alone.
        config.assume("is_gated_act", &gated.into())?;
        config.assume("dense_act_fn", &name.into())?;
    }
    let gated = config.flag_or("is_gated_act", gated)?;
    let (key, name) = if config.names("dense_act_fn") {
        ("dense_act_fn", config.text("dense_act_fn")?)
    } else {
        ("feed_forward_proj", name)
    };
    let function = NamedActivation::named(name)
        .ok_or_else(|| config.wrong(key, format!("names an unknown activation `{name}`")))?;
    // Candle weights ReLU for every unit that is not gated.
    let function = if dialect == Dialect::Candle && !gated {
        NamedActivation::plain(Function::Relu)
    } else {
        function
    };
    match config.architecture()? {
        None => {
            let what = "names no class: the library then takes the encoder with its decoder; to \
                        read the encoder alone, name T5EncoderModel";
            return Err(config.wrong("architectures", what));
        }
        Some("T5EncoderModel" | "T5ForConditionalGeneration" | "T5Model" | "T5WithLMHeadModel") => {
        }
        Some(name) => {
            return Err(
                config.wrong("architectures", format!("names `{name}`, which is not supported"))
            );
        }
    }

    let shape = [vocabulary, dim];
    let (shared, own) = ("shared.weight", "encoder.embed_tokens.weight");
    let tie = model.tie(true, TensorExpr::new(shared, &shape), TensorExpr::new(own, &shape))?;
    let mut weights = WeightMap::default();
    weights.put("embedding.weight", tie.second.clone());
    let width = heads * head_dim;
    let mut bodies = Vec::new();
    for i in 0..layers {
        let (to, from) = (format!("blocks.{i}"), format!("encoder.block.{i}.layer"));
        for (ours, theirs) in [("query", "q"), ("key", "k"), ("value", "v")] {
            weights.linear(
                &format!("{to}.attention.{ours}"),
                &format!("{from}.0.SelfAttention.{theirs}"),
                width,
                dim,
                false,
            );
        }
        weights.linear(
            &format!("{to}.attention.output"),
            &format!("{from}.0.SelfAttention.o"),
            dim,
            width,
            false,
        );
        // One table for all layers, stored with the first.
        let numbers = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        weights.put(
            format!("{to}.attention.position_bias.weight"),
            TensorExpr::new(numbers, &[bias.buckets, heads]),
        );
        weights.norm(&format!("{to}.attention.norm"), &format!("{from}.0.layer_norm"), dim, false);
        weights.norm(&format!("{to}.mlp.norm"), &format!("{from}.1.layer_norm"), dim, false);
        let ff = format!("{from}.1.DenseReluDense");
        let mixer = Attention {
            causal: false,
            logit_scale: 1.0,
            position_bias: Some(bias),
            ..Attention::new(dim, heads, head_dim)
        };
        let mut mlp = vec![rms_norm("norm", dim, eps)];
        weights.linear(&format!("{to}.mlp.down"), &format!("{ff}.wo"), dim, hidden, false);
        if gated {
            weights.linear(&format!("{to}.mlp.gate"), &format!("{ff}.wi_0"), hidden, dim, false);
            weights.linear(&format!("{to}.mlp.up"), &format!("{ff}.wi_1"), hidden, dim, false);
            let function = function.gate();
            mlp.push(Node::new("", Op::GatedMlp { dim, hidden, function, bias: false }));
        } else {
            weights.linear(&format!("{to}.mlp.up"), &format!("{ff}.wi"), hidden, dim, false);
            mlp.push(linear("up", dim, hidden, false));
            mlp.extend(function.nodes());
            mlp.push(linear("down", hidden, dim, false));
        }
        bodies.push(vec![
            residual("attention", vec![rms_norm("norm", dim, eps), attention(mixer)]),
            residual("mlp", mlp),
        ]);
    }
    weights.norm("norm", "encoder.final_layer_norm", dim, false);
    let nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary, dim }),
        blocks(bodies),
        rms_norm("norm", dim, eps),
    ];
    let mapping = Mapping::new(Input::tokens(context), nodes, weights)?
        .note("the encoder alone; no token is padding");
    let why = "the encoder does not read it";
    Ok(mapping
        .aside("decoder.*", why)
        .aside("lm_head.weight", why)
        .aside(shared, "the encoder has an embedding of its own")
        .tied(tie))
}
