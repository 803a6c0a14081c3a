//! Llama and its kin: decoders whose configs and tensors are called as Llama's are.

use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::expression::WeightMap;
use crate::families::decoder::{
    Block, Body, Frame, Gain, Gates, Layout, Norm, Projections, Unit, as_the_library,
};
use crate::heads::Head;
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::rope::{Rope, by_layer_type, rope};
use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::Dialect;
use lipschitz_nn::graph::{Attention, Function, Node, Op, Rotary};

use super::variants::{Bias, Eps, Pointwise, Variant, Windows, variant};

/// What a family's config says beyond the shapes of a Llama: factors and caps.
struct Scales {
    /// Attention's logits are `q·k` times this.
    logit: f64,
    /// Cap of attention's logits, and of the final ones.
    cap: Option<f64>,
    final_cap: Option<f64>,
    /// Factor on embedding vectors that becomes a node.
    embedding: f64,
    /// Factor on what a block adds.
    branch: f64,
    /// Factor on the final logits.
    scores: f64,
}

impl Scales {
    fn read(model: &ModelDir, head_dim: usize) -> Result<Self, Error> {
        let &ModelDir { config, dialect, family, .. } = model;
        let logit = (head_dim as f64).sqrt().recip();
        let (cap, final_cap) = (None, None);
        let mut scales = Self { logit, cap, final_cap, embedding: 1.0, branch: 1.0, scores: 1.0 };
        match family {
            "gemma" => {}
            "gemma2" | "gemma3_text" => {
                let scalar = config.number("query_pre_attn_scalar")?;
                if scalar <= 0.0 {
                    let what = format!("is {scalar}, wanted a number above 0");
                    return Err(config.wrong("query_pre_attn_scalar", what));
                }
                if dialect != Dialect::Candle {
                    scales.logit = scalar.sqrt().recip();
                }
                scales.final_cap = config.number_if("final_logit_softcapping")?;
                if family == "gemma2" {
                    scales.cap = config.number_if("attn_logit_softcapping")?;
                } else {
                    config.assume("attn_logit_softcapping", &serde_json::Value::Null)?;
                }
            }
            "granite" => {
                scales.logit = factor(config, "attention_multiplier")?;
                scales.embedding = factor(config, "embedding_multiplier")?;
                scales.branch = factor(config, "residual_multiplier")?;
                let divisor = config.number("logits_scaling")?;
                scales.scores = divisor.recip();
                if !scales.scores.is_finite() {
                    let what = format!("is {divisor}, wanted a number to divide by");
                    return Err(config.wrong("logits_scaling", what));
                }
            }
            "cohere" => scales.scores = factor(config, "logit_scale")?,
            _ => {}
        }
        if family.starts_with("gemma") {
            config.only("use_bidirectional_attention", false)?;
        }
        Ok(scales)
    }
}

/// A factor with which the library's norms, which it computes in f32, do not overflow.
fn factor(config: &ConfigReader, key: &str) -> Result<f64, Error> {
    match config.number(key)? {
        factor if factor.abs() <= 1e12 => Ok(factor),
        factor => Err(config.wrong(key, format!("is {factor}, wanted a factor of at most 1e12"))),
    }
}

fn bias(config: &ConfigReader, bias: Bias) -> Result<bool, Error> {
    match bias {
        Bias::Never => Ok(false),
        Bias::Always => Ok(true),
        Bias::Option(key) => config.flag(key),
    }
}

/// The blocks of this variant.
fn block(model: &ModelDir, v: &Variant, dim: usize, branch: f64) -> Result<Block, Error> {
    let config = model.config;
    let eps = match v.eps {
        Eps::Option(key) => config.eps(key)?,
        Eps::Fixed(eps) => eps,
    };
    let phi = activation(model, v)?;
    let (unit, unit_bias) = match v.unit {
        Pointwise::Gated { fused, bias } => {
            let names = if fused {
                Gates::Rows(["mlp.gate_up_proj", "mlp.down_proj"])
            } else {
                Gates::Apart(["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"])
            };
            (Unit::Gated { function: phi.gate(), names }, bias)
        }
        Pointwise::Plain { up, down, bias } => (Unit::Plain { phi, up, down }, bias),
    };
    let mut layout = v.layout;
    if let Some(key) = v.parallel_if
        && config.flag(key)?
    {
        layout = Layout::Parallel { norm: "input_layernorm" };
    }
    let mut query_key = v.query_key;
    if let Some(key) = v.query_key_if
        && !config.flag(key)?
    {
        query_key = None;
    }
    let projections = if v.fused {
        Projections::Rows("self_attn.qkv_proj")
    } else {
        Projections::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"])
    };
    Ok(Block {
        dim,
        hidden: config.size("intermediate_size")?,
        norm: Norm { kind: v.norm, eps, gain: v.gain, shift: v.shift },
        layout,
        projections,
        output: v.output,
        query_key,
        unit,
        unit_bias: self::bias(config, unit_bias)?,
        branch,
        transposed: false,
    })
}

/// Attention of the blocks, but for positions and windows.
fn mixer(config: &ConfigReader, family: &str, v: &Variant, dim: usize) -> Result<Attention, Error> {
    let heads = config.size("num_attention_heads")?;
    let key_value_heads = config.size_if("num_key_value_heads")?.unwrap_or(heads);
    let of_width = || Ok::<_, Error>(dim / config.heads("num_attention_heads", dim)?);
    let head_dim = if family == "stablelm" {
        let head_dim = of_width()?;
        config.assume("head_dim", &head_dim.into())?;
        head_dim
    } else {
        // Classes without this option do not take null for none, and one that has it neither.
        if config.names("head_dim") && !config.has("head_dim") || family == "ministral" {
            config.size("head_dim")?;
        }
        config.size_if("head_dim")?.map_or_else(of_width, Ok)?
    };
    if !config.has("attention_bias") && v.qkv_bias == Bias::Never {
        config.assume("attention_bias", &false.into())?;
    }
    if family == "olmo"
        && let Some(clip) = config.number_if("clip_qkv")?
    {
        let what =
            format!("is {clip}: queries, keys and values that are clipped are not supported");
        return Err(config.wrong("clip_qkv", what));
    }
    if v.square_output && heads * head_dim != dim {
        let what = format!("times {heads} heads is not the width {dim}, as the library wants it");
        return Err(config.wrong("head_dim", what));
    }
    Ok(Attention {
        key_value_heads,
        bias: bias(config, v.qkv_bias)?,
        output_bias: bias(config, v.output_bias)?,
        ..Attention::new(dim, heads, head_dim)
    })
}

/// Positions and window of one layer.
struct Layer {
    rotary: Option<Rotary>,
    window: Option<usize>,
    /// Factor on the logits, which the scaling of rotary positions brings.
    logits: f64,
}

/// Positions and window of each layer.
struct Layers {
    each: Vec<Layer>,
    context: usize,
    note: Option<String>,
}

impl Layers {
    fn read(model: &ModelDir, v: &Variant, head_dim: usize) -> Result<Self, Error> {
        let &ModelDir { config, files, dialect, family, .. } = model;
        let layers = config.layers("num_hidden_layers", files.len())?;
        let windows = windows(config, family, v.windows, layers, dialect)?;
        let turned = |rope: &Rope, window| Layer {
            rotary: Some(rope.rotary.clone()),
            window,
            logits: rope.logits,
        };
        if v.windows == Windows::Pattern {
            let [sliding, full] = by_layer_type(config, (layers, head_dim), dialect)?;
            let of = |window: Option<usize>| {
                turned(if window.is_some() { &sliding } else { &full }, window)
            };
            let each = windows.into_iter().map(of).collect();
            let context = full.context.min(sliding.context);
            return Ok(Self { each, context, note: full.note.or(sliding.note) });
        }
        let rope = rope(config, (layers, head_dim), v.rope, dialect)?;
        let turns = match v.windows {
            Windows::NotTurned => self::turned(config, layers)?,
            _ => vec![true; layers],
        };
        let of = |(window, turns)| {
            if turns { turned(&rope, window) } else { Layer { rotary: None, window, logits: 1.0 } }
        };
        let each = windows.into_iter().zip(turns).map(of).collect();
        Ok(Self { each, context: rope.context, note: rope.note })
    }
}

pub(crate) fn llama(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, dialect, family, .. } = model;
    let v = variant(family);
    let (dim, vocabulary) = (config.size("hidden_size")?, config.size("vocab_size")?);
    let mixer = mixer(config, family, &v, dim)?;
    let scales = Scales::read(model, mixer.head_dim)?;
    let block = block(model, &v, dim, scales.branch)?;
    let layers = Layers::read(model, &v, mixer.head_dim)?;
    if dialect == Dialect::Candle {
        if !v.candle {
            as_the_library(model)?;
        }
        let turned = layers.each.iter().filter_map(|layer| layer.rotary.as_ref());
        let scaled = turned.into_iter().any(|rotary| rotary.frequencies.is_some());
        refused_by_candle(config, family, mixer.head_dim * mixer.heads == dim, scaled)?;
    }
    // Published configs say these, which the library does not read.
    match family {
        "smollm3" => config.ignore(&["max_window_layers"]),
        "starcoder2" => {
            config.assume("mlp_type", &"default".into())?;
            config.assume("norm_type", &"layer_norm".into())?;
        }
        _ => {}
    }
    let head = Head::of_any(config, v.classes, v.heads)?;
    if head == Head::TokenClasses && !config.flag_or("token_classification_bias", true)? {
        return Err(config.unsupported("token_classification_bias", false));
    }
    let prefix = if head == Head::Answers { v.answers } else { "model." };
    let root = files.prefix(prefix);
    let mut weights = WeightMap::default();
    let mut blocks = Vec::new();
    for (i, Layer { rotary, window, logits }) in layers.each.into_iter().enumerate() {
        let mixer = Attention {
            rotary,
            window,
            logit_scale: logits * scales.logit,
            logit_cap: scales.cap,
            ..mixer.clone()
        };
        let (to, from) = (format!("blocks.{i}"), format!("{root}layers.{i}"));
        blocks.push(block.body(&mut weights, &to, &from, mixer));
    }
    block.norm.put(&mut weights, "norm", &format!("{root}{}", v.last_norm), dim);
    let scale = |factor: f64| (factor != 1.0).then(|| Node::new("", Op::Scale { factor }));
    let cap = scales.final_cap.map(|cap| Node::new("", Op::SoftCap { cap }));
    let frame = Frame {
        head,
        vocabulary,
        dim,
        context: layers.context,
        embedding: format!("{root}embed_tokens"),
        factor: if v.gain == Gain::LessOne { (dim as f64).sqrt() } else { 1.0 },
        scores: ("lm_head", v.head_bias),
        token_classes: "score",
    };
    let body = Body {
        weights,
        before: scale(scales.embedding).into_iter().collect(),
        blocks,
        after: vec![block.norm.node("norm", dim)],
        logits: scale(scales.scores).into_iter().chain(cap).collect(),
    };
    let mut mapping = frame
        .around(model, body)?
        .aside("rotary_emb.inv_freq", "rotary frequencies, which follow from the config");
    mapping.notes.extend(layers.note);
    if v.gain == Gain::LessOne {
        mapping = mapping
            .note("embedding vectors are those multiplied by √dim, gains those with 1 added");
    }
    Ok(mapping)
}

/// The layers whose queries and keys are turned: all but every fourth, or as the config says.
fn turned(config: &ConfigReader, layers: usize) -> Result<Vec<bool>, Error> {
    let interval = config.size("no_rope_layer_interval")?;
    let Some(given) = config.numbers("no_rope_layers")? else {
        return Ok((1..=layers).map(|i| !i.is_multiple_of(interval)).collect());
    };
    if given.len() < layers {
        let what = format!("has {} entries for {layers} layers", given.len());
        return Err(config.wrong("no_rope_layers", what));
    }
    Ok(given.into_iter().take(layers).map(|turned| turned != 0.0).collect())
}

fn activation(model: &ModelDir, v: &Variant) -> Result<NamedActivation, Error> {
    let &ModelDir { config, family, .. } = model;
    let phi = NamedActivation::read(config, v.activation)?;
    if family == "llama" && model.of_candle() && phi != NamedActivation::plain(Function::Silu) {
        let what = "is not the SiLU that is written into candle's model";
        return Err(config.wrong(v.activation, what));
    }
    if family == "gemma" && model.of_candle() {
        // Candle takes either name, at its word.
        let said = |key: &str| Ok::<_, Error>(config.names(key) && config.text_if(key)?.is_some());
        if said("hidden_act")? && said("hidden_activation")? {
            let what =
                "is there beside `hidden_activation`, and candle's model refuses both; remove one";
            return Err(config.wrong("hidden_act", what));
        }
        return Ok(match config.text_if("hidden_activation")? {
            Some(_) => NamedActivation::read(config, "hidden_activation")?,
            None => phi,
        });
    }
    if family == "gemma" {
        // The class does not read the other name, which some releases give.
        if config.text_if("hidden_activation")?.is_some() {
            config.assume("hidden_activation", &"gelu_pytorch_tanh".into())?;
        }
        // It takes GELU in the first releases to be the approximation that they were trained with.
        if config.text(v.activation)? == "gelu" {
            return Ok(phi.approximate());
        }
    }
    if v.activation == "hidden_activation" {
        config.assume("hidden_act", &"gelu_pytorch_tanh".into())?;
    }
    Ok(phi)
}

/// How many positions each layer's tokens see. Candle's masks let one more through than the
/// library's, and do not differ by layer.
fn windows(
    config: &ConfigReader,
    family: &str,
    kind: Windows,
    layers: usize,
    dialect: Dialect,
) -> Result<Vec<Option<usize>>, Error> {
    let types = layer_types(config, layers)?;
    if !kind.by_type() && types.iter().flatten().any(|slides| *slides) {
        return Err(config.wrong("layer_types", format!("is not read of a {family} model")));
    }
    let given = config.size_if("sliding_window")?;
    if kind == Windows::None {
        return match given {
            None => Ok(vec![None; layers]),
            Some(_) => {
                Err(config.wrong("sliding_window", format!("is not read of a {family} model")))
            }
        };
    }
    if kind == Windows::Listed && given.is_none() {
        return Err(config.wrong("sliding_window", "is none, with which the library does not run"));
    }
    let (used, first) = match kind {
        Windows::From => (config.flag("use_sliding_window")?, config.count("max_window_layers")?),
        Windows::NotTurned => (config.flag("use_sliding_window")?, 0),
        _ => (true, 0),
    };
    if dialect == Dialect::Candle {
        return candle_windows(config, family, layers, used, given);
    }
    let slides: Vec<bool> = match (&types, kind) {
        (Some(types), _) if kind.by_type() => types.clone(),
        (_, Windows::Alternate) => (0..layers).map(|i| i.is_multiple_of(2)).collect(),
        (_, Windows::From) => (0..layers).map(|i| used && i >= first).collect(),
        (_, Windows::Pattern) => {
            let pattern = config.size_or("sliding_window_pattern", 6)?;
            (1..=layers).map(|i| !i.is_multiple_of(pattern)).collect()
        }
        (_, Windows::NotTurned) => {
            turned(config, layers)?.into_iter().map(|t| used && given.is_some() && !t).collect()
        }
        _ => vec![true; layers],
    };
    if kind == Windows::Pattern {
        config.ignore(&["sliding_window_pattern"]);
    }
    if kind == Windows::NotTurned && !used && slides.contains(&true) {
        return Err(config.wrong("use_sliding_window", "is false, but layers slide"));
    }
    // The two Qwen drop the window where it is not used, whatever the layers' types say.
    let given = if used { given } else { None };
    slides
        .into_iter()
        .map(|slides| match (slides, given) {
            (true, None) if kind.by_type() && types.is_some() => {
                Err(config.wrong("sliding_window", "is none, but layers slide"))
            }
            (true, window) => Ok(window),
            (false, _) => Ok(None),
        })
        .collect()
}

/// Which layers slide, where the config says it of each.
fn layer_types(config: &ConfigReader, layers: usize) -> Result<Option<Vec<bool>>, Error> {
    let Some(types) = config.texts("layer_types")? else { return Ok(None) };
    if types.len() != layers {
        let what = format!("has {} entries for {layers} layers", types.len());
        return Err(config.wrong("layer_types", what));
    }
    let slides = |kind: &str| match kind {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(config.unsupported("layer_types", format!("`{other}`"))),
    };
    types.into_iter().map(slides).collect::<Result<_, _>>().map(Some)
}

fn candle_windows(
    config: &ConfigReader,
    family: &str,
    layers: usize,
    used: bool,
    given: Option<usize>,
) -> Result<Vec<Option<usize>>, Error> {
    if family == "qwen3" && used {
        return Err(
            config.wrong("use_sliding_window", "is true, which candle refuses for this family")
        );
    }
    let window = if matches!(family, "phi3" | "qwen3") { None } else { given.map(|w| w + 1) };
    Ok(vec![window; layers])
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
    // Candle's models read a base and a share at the outermost level alone, Llama's has a base where none
    // is said, and all read a scaling under its older name.
    let usual = (family == "llama").then_some(10000.0);
    let read = if config.names("rope_theta") { config.number_if("rope_theta")? } else { usual };
    // Without a share all of each head is turned, in candle's models and in the library's.
    let share = config.number_if("partial_rotary_factor")?.unwrap_or(1.0);
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(inner) = config.inside(key)? else { continue };
        let other = |key: &str, read: Option<f64>| {
            let said = inner.number_if(key)?;
            Ok::<_, Error>(said.is_some_and(|said| read.is_some_and(|read| read != said)))
        };
        let scales = |key: &str| {
            let kind = inner.text_if(key)?;
            Ok::<_, Error>(kind.is_some_and(|kind| kind != "default"))
        };
        let new = key == "rope_parameters";
        if other("rope_theta", read)?
            || other("partial_rotary_factor", Some(share))?
            || new && (scales("rope_type")? || scales("type")?)
        {
            let what = "says what candle's model does not read there: it reads `rope_theta`, \
                        `partial_rotary_factor` and `rope_scaling`";
            return Err(config.wrong(key, what));
        }
    }
    if !matches!(family, "llama" | "phi3") && scaled {
        return Err(config.wrong("rope_scaling", "is given, which candle's model does not know"));
    }
    Ok(())
}
