//! Decoders with RMS norms, rotary positions and gated units: Llama and its kin.

use crate::Dialect;
use crate::config::{Activation, Config};
use crate::formats::files::Files;
use crate::plan::{Plan, Take, Takes, attention, blocks, linear, residual, rms_norm};
use crate::rope::{Rope, rope};
use lipschitz_nn::Error;
use lipschitz_nn::graph::{Attention, Input, Node, Op, Span};

/// What a family has beside a plain Llama. Defaults are those of the library's config classes.
struct Kind {
    class: &'static str,
    eps: f64,
    tied: bool,
    /// Bias on queries, keys and values, on the output, and in the gated unit; none: the config
    /// says.
    qkv_bias: Option<bool>,
    output_bias: Option<bool>,
    mlp_bias: Option<bool>,
    /// Queries, keys and values in one tensor, gate and up in another.
    fused: bool,
    /// Gains are stored less 1, and embeddings multiplied by √dim.
    gemma: bool,
    norms: Norms,
    query_key_norm: Option<Span>,
    head_dim: Option<usize>,
    activation: (&'static str, &'static str),
}

/// Where the norms of a block are.
#[derive(Clone, Copy, PartialEq)]
enum Norms {
    Before,
    After,
    Both,
}

fn kind(family: &str) -> Kind {
    let llama = Kind {
        class: "Llama",
        eps: 1e-6,
        tied: false,
        qkv_bias: None,
        output_bias: None,
        mlp_bias: Some(false),
        fused: false,
        gemma: false,
        norms: Norms::Before,
        query_key_norm: None,
        head_dim: None,
        activation: ("hidden_act", "silu"),
    };
    let none = Some(false);
    match family {
        "mistral" => Kind { class: "Mistral", qkv_bias: none, output_bias: none, ..llama },
        "qwen2" => Kind { class: "Qwen2", qkv_bias: Some(true), output_bias: none, ..llama },
        "qwen3" => {
            Kind { class: "Qwen3", query_key_norm: Some(Span::Head), head_dim: Some(128), ..llama }
        }
        "phi3" => Kind {
            class: "Phi3",
            eps: 1e-5,
            qkv_bias: none,
            output_bias: none,
            fused: true,
            ..llama
        },
        "olmo2" => Kind {
            class: "Olmo2",
            eps: 1e-5,
            norms: Norms::After,
            query_key_norm: Some(Span::Heads),
            ..llama
        },
        "gemma" => Kind {
            class: "Gemma",
            tied: true,
            gemma: true,
            head_dim: Some(256),
            activation: ("hidden_act", "gelu_pytorch_tanh"),
            ..llama
        },
        "gemma2" => Kind {
            class: "Gemma2",
            tied: true,
            gemma: true,
            norms: Norms::Both,
            head_dim: Some(256),
            activation: ("hidden_activation", "gelu_pytorch_tanh"),
            ..llama
        },
        _ => Kind { mlp_bias: None, ..llama },
    }
}

pub(crate) fn llama(
    config: &Config,
    files: &Files,
    dialect: Dialect,
    family: &str,
) -> Result<Plan, Error> {
    let kind = kind(family);
    let (dim, vocabulary) = (config.size("hidden_size")?, config.size("vocab_size")?);
    let (hidden, heads) = (config.size("intermediate_size")?, config.size("num_attention_heads")?);
    let layers = config.layers("num_hidden_layers", files.len())?;
    let key_value_heads = config.size_or("num_key_value_heads", heads)?;
    let eps = config.eps("rms_norm_eps", kind.eps)?;
    let head_dim = match (config.size_if("head_dim")?, kind.head_dim) {
        (Some(head_dim), _) | (None, Some(head_dim)) => head_dim,
        (None, None) if dim.is_multiple_of(heads) => dim / heads,
        (None, None) => {
            return Err(config
                .wrong("num_attention_heads", format!("is {heads}, which does not divide {dim}")));
        }
    };
    let bias = |key: &str, fixed: Option<bool>| fixed.map_or_else(|| config.flag(key, false), Ok);
    let qkv_bias = bias("attention_bias", kind.qkv_bias)?;
    let output_bias = bias("attention_bias", kind.output_bias)?;
    let mlp_bias = bias("mlp_bias", kind.mlp_bias)?;
    let function = activation(config, &kind, family)?;
    let Rope { rotary, logits, context, note } = rope(config, head_dim, dialect)?;
    let windows = windows(config, family, layers, dialect)?;
    if dialect == Dialect::Candle {
        refused_by_candle(config, family, head_dim * heads == dim, rotary.frequencies.is_some())?;
    }
    let (logit_cap, final_cap, scalar) = match family {
        "gemma2" => {
            config.only("use_bidirectional_attention", false)?;
            let scalar = config.number_or("query_pre_attn_scalar", 256.0)?;
            let caps = (
                config.number_if("attn_logit_softcapping")?,
                config.number_if("final_logit_softcapping")?,
            );
            (caps.0, caps.1, if dialect == Dialect::Candle { head_dim as f64 } else { scalar })
        }
        "gemma" => {
            config.only("use_bidirectional_attention", false)?;
            (None, None, head_dim as f64)
        }
        _ => (None, None, head_dim as f64),
    };
    if scalar <= 0.0 {
        return Err(
            config.wrong("query_pre_attn_scalar", format!("is {scalar}, wanted a number above 0"))
        );
    }

    let head = match config.architecture()? {
        None => true,
        Some(name) if name == format!("{}ForCausalLM", kind.class) => true,
        Some(name) if name == format!("{}Model", kind.class) => false,
        Some(name) => {
            return Err(
                config.wrong("architectures", format!("names `{name}`, which is not supported"))
            );
        }
    };
    let tied = config.flag("tie_word_embeddings", kind.tied)?;

    let root = files.prefix("model.");
    let mut takes = Takes::default();
    let embedding = Take::new(format!("{root}embed_tokens.weight"), &[vocabulary, dim]);
    let scale = (dim as f64).sqrt();
    takes.put(
        "embedding.weight",
        if kind.gemma { embedding.clone().times(scale) } else { embedding.clone() },
    );
    let norm = |takes: &mut Takes, to: &str, from: &str, width: usize| {
        let gain = Take::new(format!("{from}.weight"), &[width]);
        takes.put(format!("{to}.weight"), if kind.gemma { gain.add(1.0) } else { gain });
    };
    let (query, key) = (heads * head_dim, key_value_heads * head_dim);
    let mut bodies = Vec::new();
    for (i, window) in windows.into_iter().enumerate() {
        let (to, from) = (format!("blocks.{i}"), format!("{root}layers.{i}"));
        let (mine, theirs) = (format!("{to}.attention"), format!("{from}.self_attn"));
        if kind.fused {
            let fused = || Take::new(format!("{theirs}.qkv_proj.weight"), &[query + 2 * key, dim]);
            takes.put(format!("{mine}.query.weight"), fused().rows(0, query));
            takes.put(format!("{mine}.key.weight"), fused().rows(query, key));
            takes.put(format!("{mine}.value.weight"), fused().rows(query + key, key));
            let fused = || Take::new(format!("{from}.mlp.gate_up_proj.weight"), &[2 * hidden, dim]);
            takes.put(format!("{to}.mlp.gate.weight"), fused().rows(0, hidden));
            takes.put(format!("{to}.mlp.up.weight"), fused().rows(hidden, hidden));
        } else {
            for (ours, name, width) in
                [("query", "q_proj", query), ("key", "k_proj", key), ("value", "v_proj", key)]
            {
                takes.linear(
                    &format!("{mine}.{ours}"),
                    &format!("{theirs}.{name}"),
                    width,
                    dim,
                    qkv_bias,
                );
            }
            takes.linear(
                &format!("{to}.mlp.gate"),
                &format!("{from}.mlp.gate_proj"),
                hidden,
                dim,
                mlp_bias,
            );
            takes.linear(
                &format!("{to}.mlp.up"),
                &format!("{from}.mlp.up_proj"),
                hidden,
                dim,
                mlp_bias,
            );
        }
        takes.linear(
            &format!("{mine}.output"),
            &format!("{theirs}.o_proj"),
            dim,
            query,
            output_bias,
        );
        takes.linear(
            &format!("{to}.mlp.down"),
            &format!("{from}.mlp.down_proj"),
            dim,
            hidden,
            mlp_bias,
        );
        if let Some(span) = kind.query_key_norm {
            let width = |all| if span == Span::Heads { all } else { head_dim };
            norm(
                &mut takes,
                &format!("{mine}.query_norm"),
                &format!("{theirs}.q_norm"),
                width(query),
            );
            norm(&mut takes, &format!("{mine}.key_norm"), &format!("{theirs}.k_norm"), width(key));
        }
        let norms: &[(&str, &str)] = match kind.norms {
            Norms::Before => {
                &[("attention.norm", "input_layernorm"), ("mlp.norm", "post_attention_layernorm")]
            }
            Norms::After => &[
                ("attention.post_norm", "post_attention_layernorm"),
                ("mlp.post_norm", "post_feedforward_layernorm"),
            ],
            Norms::Both => &[
                ("attention.norm", "input_layernorm"),
                ("attention.post_norm", "post_attention_layernorm"),
                ("mlp.norm", "pre_feedforward_layernorm"),
                ("mlp.post_norm", "post_feedforward_layernorm"),
            ],
        };
        norms.iter().for_each(|(ours, name)| {
            norm(&mut takes, &format!("{to}.{ours}"), &format!("{from}.{name}"), dim)
        });

        let mixer = Attention {
            key_value_heads,
            logit_scale: logits / scalar.sqrt(),
            rotary: Some(rotary.clone()),
            bias: qkv_bias,
            output_bias,
            query_key_norm: kind.query_key_norm.map(|_| eps),
            query_key_span: kind.query_key_norm.unwrap_or_default(),
            logit_cap,
            window,
            ..Attention::new(dim, heads, head_dim)
        };
        let gated = Node::new("", Op::GatedMlp { dim, hidden, function, bias: mlp_bias });
        let around = |node: Node| {
            let before = (kind.norms != Norms::After).then(|| rms_norm("norm", dim, eps));
            let after = (kind.norms != Norms::Before).then(|| rms_norm("post_norm", dim, eps));
            before.into_iter().chain([node]).chain(after).collect()
        };
        bodies.push(vec![
            residual("attention", around(attention(mixer))),
            residual("mlp", around(gated)),
        ]);
    }
    norm(&mut takes, "norm", &format!("{root}norm"), dim);
    let mut nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary, dim }),
        blocks(bodies),
        rms_norm("norm", dim, eps),
    ];
    if head {
        nodes.push(linear("head", dim, vocabulary, false));
        let own = Take::new("lm_head.weight", &[vocabulary, dim]);
        takes.put("head.weight", if tied { embedding } else { own });
        nodes.extend(final_cap.map(|cap| Node::new("", Op::SoftCap { cap })));
    }
    let mut plan = Plan::new(Input::tokens(context), nodes, takes)?
        .aside("rotary_emb.inv_freq", "rotary frequencies, which follow from the config");
    if tied || !head {
        plan = plan.aside("lm_head.weight", "the head is the embedding");
    }
    plan.notes.extend(note);
    if kind.gemma {
        plan =
            plan.note("embedding vectors are those multiplied by √dim, gains those with 1 added");
    }
    Ok(plan)
}

fn activation(
    config: &Config,
    kind: &Kind,
    family: &str,
) -> Result<lipschitz_nn::graph::Function, Error> {
    let (key, default) = kind.activation;
    if family == "gemma" || family == "gemma2" {
        // Some releases give both names.
        let (new, old) = (config.text("hidden_activation")?, config.text("hidden_act")?);
        return match (new, old) {
            (Some(new), Some(old)) if new != old => Err(config.wrong(
                "hidden_activation",
                format!("is `{new}`, and `hidden_act` is `{old}`; remove one"),
            )),
            (Some(_), _) => Activation::read(config, "hidden_activation", default)?
                .gate(config, "hidden_activation"),
            (None, _) => {
                Activation::read(config, "hidden_act", default)?.gate(config, "hidden_act")
            }
        };
    }
    Activation::read(config, key, default)?.gate(config, key)
}

/// How many positions each layer's tokens see. Candle's masks let one more through than the
/// library's, and do not differ by layer.
fn windows(
    config: &Config,
    family: &str,
    layers: usize,
    dialect: Dialect,
) -> Result<Vec<Option<usize>>, Error> {
    let default = matches!(family, "mistral" | "gemma2").then_some(4096);
    let given =
        if config.names("sliding_window") { config.size_if("sliding_window")? } else { default };
    let types: Option<Vec<String>> =
        config.texts("layer_types")?.map(|types| types.into_iter().map(str::to_string).collect());
    if !matches!(family, "mistral" | "qwen2" | "qwen3" | "phi3" | "gemma2") {
        if given.is_some() {
            return Err(config.wrong("sliding_window", format!("is not known of a {family} model")));
        }
        if types.is_some_and(|types| types.iter().any(|t| t != "full_attention")) {
            return Err(config.wrong("layer_types", format!("is not known of a {family} model")));
        }
        return Ok(vec![None; layers]);
    }
    let (used, first) = match family {
        "qwen2" | "qwen3" => (
            config.flag("use_sliding_window", false)?,
            config.size_if_zero("max_window_layers")?.unwrap_or(28),
        ),
        _ => (true, 0),
    };
    if dialect == Dialect::Candle {
        if family == "qwen3" && used {
            return Err(
                config.wrong("use_sliding_window", "is true, which candle refuses for this family")
            );
        }
        let window = if matches!(family, "phi3" | "qwen3") { None } else { given.map(|w| w + 1) };
        return Ok(vec![window; layers]);
    }
    let slides =
        |i: usize| -> Result<bool, Error> {
            if let Some(types) = &types {
                return match types.get(i).map(String::as_str) {
                    Some("sliding_attention") => Ok(true),
                    Some("full_attention") => Ok(false),
                    Some(other) => Err(config
                        .wrong("layer_types", format!("names `{other}`, which is not supported"))),
                    None => Err(config.wrong(
                        "layer_types",
                        format!("has {} entries for {layers} layers", types.len()),
                    )),
                };
            }
            Ok(match family {
                "gemma2" => i.is_multiple_of(2),
                "qwen2" | "qwen3" => used && i >= first,
                _ => true,
            })
        };
    (0..layers)
        .map(|i| match (slides(i)?, given) {
            (true, Some(window)) => Ok(Some(window)),
            (true, None) if types.is_some() => {
                Err(config.wrong("sliding_window", "is missing, but layers slide"))
            }
            _ => Ok(None),
        })
        .collect()
}

/// Options that candle's model of this family does not know.
fn refused_by_candle(
    config: &Config,
    family: &str,
    square: bool,
    scaled: bool,
) -> Result<(), Error> {
    if matches!(family, "llama" | "qwen2" | "olmo2" | "phi3") && !square {
        return Err(config.wrong(
            "head_dim",
            "times the heads is not the width, which candle's model takes for granted",
        ));
    }
    if family == "llama"
        && (config.flag("attention_bias", false)? || config.flag("mlp_bias", false)?)
    {
        return Err(config.wrong("attention_bias", "is true, which candle's model does not know"));
    }
    if !matches!(family, "llama" | "phi3") && scaled {
        return Err(config.wrong("rope_scaling", "is given, which candle's model does not know"));
    }
    Ok(())
}
