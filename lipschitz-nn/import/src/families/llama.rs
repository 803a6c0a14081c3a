//! Decoders with RMS norms, rotary positions and gated units: Llama and its kin.

use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::expression::{TensorExpr, WeightMap};
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::nodes::{attention, blocks, linear, residual, rms_norm};
use crate::rope::{Rope, Share, rope};
use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::Dialect;
use lipschitz_nn::graph::{Attention, Function, Input, Node, Op, Span};

/// What sets a family apart from a plain Llama. Defaults are those of the library's config classes.
struct Variant {
    class: &'static str,
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
    activation: &'static str,
}

/// Where the norms of a block are.
#[derive(Clone, Copy, PartialEq)]
enum Norms {
    Before,
    After,
    Both,
}

impl Norms {
    /// The norms of a block, ours and the library's.
    fn names(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Before => {
                &[("attention.norm", "input_layernorm"), ("mlp.norm", "post_attention_layernorm")]
            }
            Self::After => &[
                ("attention.post_norm", "post_attention_layernorm"),
                ("mlp.post_norm", "post_feedforward_layernorm"),
            ],
            Self::Both => &[
                ("attention.norm", "input_layernorm"),
                ("attention.post_norm", "post_attention_layernorm"),
                ("mlp.norm", "pre_feedforward_layernorm"),
                ("mlp.post_norm", "post_feedforward_layernorm"),
            ],
        }
    }
}

fn variant(family: &str) -> Variant {
    let llama = Variant {
        class: "Llama",
        qkv_bias: None,
        output_bias: None,
        mlp_bias: Some(false),
        fused: false,
        gemma: false,
        norms: Norms::Before,
        query_key_norm: None,
        activation: "hidden_act",
    };
    let none = Some(false);
    match family {
        "mistral" => Variant { class: "Mistral", qkv_bias: none, output_bias: none, ..llama },
        "qwen2" => Variant { class: "Qwen2", qkv_bias: Some(true), output_bias: none, ..llama },
        "qwen3" => Variant { class: "Qwen3", query_key_norm: Some(Span::Head), ..llama },
        "phi3" => {
            Variant { class: "Phi3", qkv_bias: none, output_bias: none, fused: true, ..llama }
        }
        "olmo2" => Variant {
            class: "Olmo2",
            norms: Norms::After,
            query_key_norm: Some(Span::Heads),
            ..llama
        },
        "gemma" => Variant { class: "Gemma", gemma: true, ..llama },
        "gemma2" => Variant {
            class: "Gemma2",
            gemma: true,
            norms: Norms::Both,
            activation: "hidden_activation",
            ..llama
        },
        _ => Variant { mlp_bias: None, ..llama },
    }
}

/// What the blocks of a model have in common.
struct Blocks {
    variant: Variant,
    dim: usize,
    hidden: usize,
    heads: usize,
    key_value_heads: usize,
    head_dim: usize,
    eps: f64,
    qkv_bias: bool,
    output_bias: bool,
    mlp_bias: bool,
    function: Function,
}

impl Blocks {
    fn read(config: &ConfigReader, family: &str, dim: usize) -> Result<Self, Error> {
        let variant = variant(family);
        let (hidden, heads) =
            (config.size("intermediate_size")?, config.size("num_attention_heads")?);
        let key_value_heads = config.size_if("num_key_value_heads")?.unwrap_or(heads);
        let eps = config.eps("rms_norm_eps")?;
        let head_dim = match config.size_if("head_dim")? {
            Some(head_dim) => head_dim,
            // Classes without this option do not take it to be none.
            None if config.names("head_dim") && matches!(family, "qwen2" | "phi3" | "olmo2") => {
                return Err(config.wrong("head_dim", "is null"));
            }
            None => dim / config.heads("num_attention_heads", dim)?,
        };
        let bias = |key: &str, fixed: Option<bool>| fixed.map_or_else(|| config.flag(key), Ok);
        let qkv_bias = bias("attention_bias", variant.qkv_bias)?;
        let output_bias = bias("attention_bias", variant.output_bias)?;
        let mlp_bias = bias("mlp_bias", variant.mlp_bias)?;
        if variant.qkv_bias == Some(false) {
            config.assume("attention_bias", &false.into())?;
        }
        let function = activation(config, &variant, family)?;
        Ok(Self {
            variant,
            dim,
            hidden,
            heads,
            key_value_heads,
            head_dim,
            eps,
            qkv_bias,
            output_bias,
            mlp_bias,
            function,
        })
    }

    /// Widths of the queries, and of the keys or values, of all heads.
    fn widths(&self) -> (usize, usize) {
        (self.heads * self.head_dim, self.key_value_heads * self.head_dim)
    }

    /// The gain of a norm.
    fn norm(&self, weights: &mut WeightMap, to: &str, from: &str, width: usize) {
        let gain = TensorExpr::new(format!("{from}.weight"), &[width]);
        weights.put(format!("{to}.weight"), if self.variant.gemma { gain.add(1.0) } else { gain });
    }

    /// The weights of block `from` under `to`.
    fn weights(&self, weights: &mut WeightMap, to: &str, from: &str) {
        let (mine, theirs) = (format!("{to}.attention"), format!("{from}.self_attn"));
        if self.variant.fused {
            self.fused_projections(weights, to, from);
        } else {
            self.projections(weights, to, from);
        }
        let Self { dim, hidden, mlp_bias, .. } = *self;
        let (output, down) = (format!("{theirs}.o_proj"), format!("{from}.mlp.down_proj"));
        weights.linear(&format!("{mine}.output"), &output, dim, self.widths().0, self.output_bias);
        weights.linear(&format!("{to}.mlp.down"), &down, dim, hidden, mlp_bias);
        if let Some(span) = self.variant.query_key_norm {
            let width = |all| if span == Span::Heads { all } else { self.head_dim };
            let (query, key) = self.widths();
            for (name, theirs_name, all) in [("query", "q", query), ("key", "k", key)] {
                let (to, from) =
                    (format!("{mine}.{name}_norm"), format!("{theirs}.{theirs_name}_norm"));
                self.norm(weights, &to, &from, width(all));
            }
        }
        for (ours, name) in self.variant.norms.names() {
            self.norm(weights, &format!("{to}.{ours}"), &format!("{from}.{name}"), dim);
        }
    }

    /// Queries, keys and values, gate and up, each from a tensor of its own.
    fn projections(&self, weights: &mut WeightMap, to: &str, from: &str) {
        let (query, key) = self.widths();
        let Self { dim, hidden, qkv_bias, mlp_bias, .. } = *self;
        for (ours, theirs, width, bias) in [
            ("attention.query", "self_attn.q_proj", query, qkv_bias),
            ("attention.key", "self_attn.k_proj", key, qkv_bias),
            ("attention.value", "self_attn.v_proj", key, qkv_bias),
            ("mlp.gate", "mlp.gate_proj", hidden, mlp_bias),
            ("mlp.up", "mlp.up_proj", hidden, mlp_bias),
        ] {
            weights.linear(&format!("{to}.{ours}"), &format!("{from}.{theirs}"), width, dim, bias);
        }
    }

    /// Queries, keys and values from one tensor, gate and up from another.
    fn fused_projections(&self, weights: &mut WeightMap, to: &str, from: &str) {
        let (query, key) = self.widths();
        let Self { dim, hidden, .. } = *self;
        let name = format!("{from}.self_attn.qkv_proj.weight");
        let fused = TensorExpr::new(name, &[query + 2 * key, dim]);
        for (name, first, count) in
            [("query", 0, query), ("key", query, key), ("value", query + key, key)]
        {
            let rows = fused.clone().rows(first, count);
            weights.put(format!("{to}.attention.{name}.weight"), rows);
        }
        let name = format!("{from}.mlp.gate_up_proj.weight");
        let fused = TensorExpr::new(name, &[2 * hidden, dim]);
        for (name, first) in [("gate", 0), ("up", hidden)] {
            let rows = fused.clone().rows(first, hidden);
            weights.put(format!("{to}.mlp.{name}.weight"), rows);
        }
    }

    /// The nodes of one block around this attention.
    fn nodes(&self, mixer: Attention) -> Vec<Node> {
        let Self { dim, hidden, eps, function, .. } = *self;
        let norms = self.variant.norms;
        let around = |node: Node| {
            let before = (norms != Norms::After).then(|| rms_norm("norm", dim, eps));
            let after = (norms != Norms::Before).then(|| rms_norm("post_norm", dim, eps));
            before.into_iter().chain([node]).chain(after).collect()
        };
        let gated = Node::new("", Op::GatedMlp { dim, hidden, function, bias: self.mlp_bias });
        vec![residual("attention", around(attention(mixer))), residual("mlp", around(gated))]
    }
}

/// Caps of attention's and of the final logits, and what `q·k` is divided by the root of.
struct Logits {
    cap: Option<f64>,
    final_cap: Option<f64>,
    scalar: f64,
}

impl Logits {
    fn read(model: &ModelDir, head_dim: usize) -> Result<Self, Error> {
        let &ModelDir { config, dialect, family, .. } = model;
        let mut logits = Self { cap: None, final_cap: None, scalar: head_dim as f64 };
        if matches!(family, "gemma" | "gemma2") {
            config.only("use_bidirectional_attention", false)?;
        }
        if family == "gemma2" {
            let scalar = config.number("query_pre_attn_scalar")?;
            logits.cap = config.number_if("attn_logit_softcapping")?;
            logits.final_cap = config.number_if("final_logit_softcapping")?;
            if dialect != Dialect::Candle {
                logits.scalar = scalar;
            }
        }
        if logits.scalar <= 0.0 {
            let what = format!("is {}, wanted a number above 0", logits.scalar);
            return Err(config.wrong("query_pre_attn_scalar", what));
        }
        Ok(logits)
    }
}

/// Whether the model has a head: the library's base model has none, and is what it takes where no
/// class is named.
fn has_head(config: &ConfigReader, class: &str) -> Result<bool, Error> {
    match config.architecture()? {
        None => Ok(false),
        Some(name) => match name.strip_prefix(class) {
            Some("ForCausalLM") => Ok(true),
            Some("Model") => Ok(false),
            _ => Err(config.no_class(name)),
        },
    }
}

pub(crate) fn llama(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, dialect, family, .. } = model;
    let (dim, vocabulary) = (config.size("hidden_size")?, config.size("vocab_size")?);
    let layers = config.layers("num_hidden_layers", files.len())?;
    let block = Blocks::read(config, family, dim)?;
    let Blocks { heads, key_value_heads, head_dim, eps, .. } = block;
    let share = if family == "phi3" { Share::Option(1.0) } else { Share::All };
    let Rope { rotary, logits, context, note } = rope(config, head_dim, share, dialect)?;
    let windows = windows(config, family, layers, dialect)?;
    if dialect == Dialect::Candle {
        refused_by_candle(config, family, head_dim * heads == dim, rotary.frequencies.is_some())?;
    }
    let Logits { cap, final_cap, scalar } = Logits::read(model, head_dim)?;
    let head = has_head(config, block.variant.class)?;
    let tied = config.flag("tie_word_embeddings")?;
    let gemma = block.variant.gemma;

    let root = files.prefix("model.");
    let mut weights = WeightMap::default();
    let shape = [vocabulary, dim];
    let tie = model.tie(
        tied && head,
        TensorExpr::new(format!("{root}embed_tokens.weight"), &shape),
        TensorExpr::new("lm_head.weight", &shape),
    )?;
    let scaled = tie.first.clone().times((dim as f64).sqrt());
    weights.put("embedding.weight", if gemma { scaled } else { tie.first.clone() });
    let mut bodies = Vec::new();
    for (i, window) in windows.into_iter().enumerate() {
        block.weights(&mut weights, &format!("blocks.{i}"), &format!("{root}layers.{i}"));
        bodies.push(block.nodes(Attention {
            key_value_heads,
            logit_scale: logits / scalar.sqrt(),
            rotary: Some(rotary.clone()),
            bias: block.qkv_bias,
            output_bias: block.output_bias,
            query_key_norm: block.variant.query_key_norm.map(|_| eps),
            query_key_span: block.variant.query_key_norm.unwrap_or_default(),
            logit_cap: cap,
            window,
            ..Attention::new(dim, heads, head_dim)
        }));
    }
    block.norm(&mut weights, "norm", &format!("{root}norm"), dim);
    let mut nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary, dim }),
        blocks(bodies),
        rms_norm("norm", dim, eps),
    ];
    if head {
        nodes.push(linear("head", dim, vocabulary, false));
        weights.put("head.weight", tie.second.clone());
        nodes.extend(final_cap.map(|cap| Node::new("", Op::SoftCap { cap })));
    }
    let mut mapping = Mapping::new(Input::tokens(context), nodes, weights)?
        .aside("rotary_emb.inv_freq", "rotary frequencies, which follow from the config");
    if head {
        mapping = mapping.tied(tie);
    }
    mapping.notes.extend(note);
    if gemma {
        mapping = mapping
            .note("embedding vectors are those multiplied by √dim, gains those with 1 added");
    }
    Ok(mapping)
}

fn activation(config: &ConfigReader, variant: &Variant, family: &str) -> Result<Function, Error> {
    let key = variant.activation;
    let mut phi = NamedActivation::read(config, key)?;
    if family == "gemma" {
        // Its config class takes GELU in the first releases to be the approximation that they
        // were trained with, and does not read the other name, which some of them give.
        if config.text(key)? == "gelu" {
            phi = phi.approximate();
        }
        if config.text_if("hidden_activation")?.is_some() {
            config.assume("hidden_activation", &"gelu_pytorch_tanh".into())?;
        }
    }
    if family == "gemma2" {
        config.assume("hidden_act", &"gelu_pytorch_tanh".into())?;
    }
    Ok(phi.gate())
}

/// How many positions each layer's tokens see. Candle's masks let one more through than the
/// library's, and do not differ by layer.
fn windows(
    config: &ConfigReader,
    family: &str,
    layers: usize,
    dialect: Dialect,
) -> Result<Vec<Option<usize>>, Error> {
    let sliding = matches!(family, "mistral" | "qwen2" | "qwen3" | "phi3" | "gemma2");
    let by_type = matches!(family, "qwen2" | "qwen3" | "gemma2");
    let types: Option<Vec<String>> =
        config.texts("layer_types")?.map(|types| types.into_iter().map(str::to_string).collect());
    if let Some(types) = &types
        && types.len() != layers
    {
        let what = format!("has {} entries for {layers} layers", types.len());
        return Err(config.wrong("layer_types", what));
    }
    if !by_type && types.iter().flatten().any(|kind| kind != "full_attention") {
        return Err(config.wrong("layer_types", format!("is not read of a {family} model")));
    }
    if !sliding {
        if config.size_if("sliding_window")?.is_some() {
            return Err(config.wrong("sliding_window", format!("is not read of a {family} model")));
        }
        return Ok(vec![None; layers]);
    }
    let given = config.size_if("sliding_window")?;
    let (used, first) = match family {
        "qwen2" | "qwen3" => {
            (config.flag("use_sliding_window")?, config.count("max_window_layers")?)
        }
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
    let slides = |i: usize| match (&types, family) {
        (Some(types), _) if by_type => match types[i].as_str() {
            "sliding_attention" => Ok(true),
            "full_attention" => Ok(false),
            other => Err(config.unsupported("layer_types", format!("`{other}`"))),
        },
        (_, "gemma2") => Ok(i.is_multiple_of(2)),
        (_, "qwen2" | "qwen3") => Ok(used && i >= first),
        _ => Ok(true),
    };
    // The two Qwen drop the window where it is not used, whatever the layers' types say.
    let given = if used { given } else { None };
    (0..layers)
        .map(|i| match (slides(i)?, given) {
            (true, None) if by_type && types.is_some() => {
                Err(config.wrong("sliding_window", "is none, but layers slide"))
            }
            (true, window) => Ok(window),
            (false, _) => Ok(None),
        })
        .collect()
}

/// Options that candle's model of this family does not know.
fn refused_by_candle(
    config: &ConfigReader,
    family: &str,
    square: bool,
    scaled: bool,
) -> Result<(), Error> {
    if matches!(family, "llama" | "qwen2" | "olmo2" | "phi3") && !square {
        return Err(config.wrong(
            "head_dim",
            "times the heads is not the width, which candle's model weights for granted",
        ));
    }
    if family == "llama" && (config.flag("attention_bias")? || config.flag("mlp_bias")?) {
        return Err(config.wrong("attention_bias", "is true, which candle's model does not know"));
    }
    if !matches!(family, "llama" | "phi3") && scaled {
        return Err(config.wrong("rope_scaling", "is given, which candle's model does not know"));
    }
    Ok(())
}
