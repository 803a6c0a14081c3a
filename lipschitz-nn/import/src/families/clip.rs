//! CLIP and SigLIP: a model of images and a model of texts, each a transformer with norms in front.
//! A model of both reads one of the two. In Chinese-CLIP the model of texts is a BERT.

use lipschitz_nn::Error;
use lipschitz_nn::graph::{Attention, Input, Op};

use super::bert::{Embeddings, Options, asides};
use super::encoder::{Layers, Names, Norms, mixer};
use super::vit::{Front, Sizes};
use crate::Undecided;
use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::expression::TensorExpr;
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::net::Net;

/// What a model gives of the vectors of its tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// All of them.
    Tokens,
    /// One vector, in the space that texts and images share.
    Features,
    /// Scores of classes.
    Classes(usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Clip,
    Siglip,
}

impl Kind {
    fn of(family: &str) -> Self {
        if family.starts_with("siglip") { Self::Siglip } else { Self::Clip }
    }
}

const POOLED_BY_ID: &str = "the vectors of all tokens: which of them is a text's vector depends on \
                            the ids of its tokens, which no node of a graph reads";
const POOLED_BY_PROBE: &str = "the vectors of all tokens: an image's own vector is pooled by \
                               attention from a learned query, which no node of a graph computes";
const NOT_READ: &str = "the output does not read it";

/// A model of texts alone.
pub(crate) fn text(model: &ModelDir) -> Result<Mapping, Error> {
    model.no_candle()?;
    let end = match model.config.architecture()? {
        None if Kind::of(model.family) == Kind::Siglip
            || model.family == "chinese_clip_text_model" =>
        {
            let what = "names no class, and of this family the library takes none for itself";
            return Err(model.config.wrong("architectures", what));
        }
        None | Some("CLIPTextModel" | "ChineseCLIPTextModel" | "SiglipTextModel") => End::Tokens,
        Some("CLIPTextModelWithProjection") => End::Features,
        Some(name) => return Err(model.config.no_class(name)),
    };
    match (model.family, end) {
        ("chinese_clip_text_model", End::Tokens) => chinese_texts(model, None),
        ("chinese_clip_text_model", _) => Err(model.config.no_class("CLIPTextModelWithProjection")),
        _ => texts(model, end, None),
    }
}

/// A model of images alone.
pub(crate) fn vision(model: &ModelDir) -> Result<Mapping, Error> {
    model.no_candle()?;
    let end = match model.config.architecture()? {
        None | Some("CLIPVisionModel" | "ChineseCLIPVisionModel" | "SiglipVisionModel") => {
            End::Tokens
        }
        Some("CLIPVisionModelWithProjection") => End::Features,
        Some(name) => return Err(model.config.no_class(name)),
    };
    images(model, end, None)
}

/// A model of both.
pub(crate) fn both(model: &ModelDir) -> Result<Mapping, Error> {
    model.no_candle()?;
    let &ModelDir { config, family, .. } = model;
    let classes = match config.architecture()? {
        None | Some("CLIPModel" | "ChineseCLIPModel" | "SiglipModel") => None,
        Some("CLIPForImageClassification" | "SiglipForImageClassification") => {
            Some(config.labels()?)
        }
        Some(name) => return Err(config.no_class(name)),
    };
    let part = match (model.part, classes) {
        (None | Some("vision"), Some(_)) => "vision",
        (Some(part @ ("text" | "vision")), None) => part,
        (None, None) => {
            let what =
                format!("is a `{family}`, which reads texts and images: choose one of the two");
            return Err(config.undecided(Undecided::TwoInputs(what)));
        }
        (Some(other), _) => {
            let what = format!("is `{family}`, which has no part `{other}` that can be imported");
            return Err(config.wrong("model_type", what));
        }
    };
    // Of the scores of pairs, and of training.
    config.ignore(&["logit_scale_init_value", "tie_word_embeddings"]);
    for old in ["text_config_dict", "vision_config_dict"] {
        if config.inside(old)?.is_some() {
            return Err(config.wrong(old, "overrides the options of a part, in a way of its own"));
        }
    }
    let kind = Kind::of(family);
    let end = classes.map_or(End::Features, End::Classes);
    let outer = if kind == Kind::Clip && classes.is_none() {
        Some(config.size("projection_dim")?)
    } else {
        config.ignore(&["projection_dim"]);
        None
    };
    drawn(config, kind)?;
    let mapping = of_part(model, part, end, outer)?;
    // The library makes the config of the other one too, and refuses what does not hold together.
    of_part(model, if part == "text" { "vision" } else { "text" }, End::Tokens, None)?;
    let gone = if part == "text" { "vision_model.*" } else { "text_model.*" };
    let projection =
        if part == "text" { "visual_projection.weight" } else { "text_projection.weight" };
    let why = "of the other input";
    Ok(mapping
        .note(format!("of the model of texts and images, the {part} alone"))
        .aside(gone, why)
        .aside(projection, why)
        .aside("logit_scale", "of the scores of pairs")
        .aside("logit_bias", "of the scores of pairs"))
}

/// Reads a factor on weights that are drawn, for which the library takes no null.
fn drawn(config: &ConfigReader, kind: Kind) -> Result<(), Error> {
    if kind == Kind::Clip {
        config.number("initializer_factor")?;
    }
    Ok(())
}

/// One part of a model of both, by the options inside its own.
fn of_part(
    model: &ModelDir,
    part: &str,
    end: End,
    shared: Option<usize>,
) -> Result<Mapping, Error> {
    let &ModelDir { config, family, .. } = model;
    let inner = config.part(&format!("{part}_config"), &format!("{family}_{part}_model"))?;
    // The width of the shared space is the outer config's.
    inner.ignore(&["architectures", "model_type", "projection_dim"]);
    let of = ModelDir { config: &inner, ..*model };
    let mut mapping = match part {
        "text" if family == "chinese_clip" => chinese_texts(&of, shared)?,
        "text" => texts(&of, end, shared)?,
        _ => images(&of, end, shared)?,
    };
    mapping.notes.extend(inner.finish(&[])?);
    Ok(mapping)
}

/// Layers as both kinds of model have them.
fn layers(
    model: &ModelDir,
    mixer: Attention,
    eps: f64,
    phi: NamedActivation,
) -> Result<Layers, Error> {
    drawn(model.config, Kind::of(model.family))?;
    let hidden = model.config.size("intermediate_size")?;
    Ok(Layers { mixer, hidden, eps, phi, norms: Norms::Before, names: Names::CLIP })
}

/// The model of texts; `shared` is the width of the space that it shares with images, where another
/// config says it.
fn texts(model: &ModelDir, end: End, shared: Option<usize>) -> Result<Mapping, Error> {
    let &ModelDir { config, files, family, .. } = model;
    let kind = Kind::of(family);
    let dim = config.size("hidden_size")?;
    // There are no scores of words.
    config.ignore(&["tie_word_embeddings"]);
    let heads = config.heads("num_attention_heads", dim)?;
    let (vocabulary, context) =
        (config.size("vocab_size")?, config.size("max_position_embeddings")?);
    let eps = config.eps("layer_norm_eps")?;
    let phi = NamedActivation::read(config, "hidden_act")?;
    let count = config.layers("num_hidden_layers", files.len())?;
    let root = files.prefix("text_model.");
    let mut net = Net::default();
    let table = |name: &str, rows: usize| {
        TensorExpr::new(format!("{root}embeddings.{name}_embedding.weight"), &[rows, dim])
    };
    net.embedding(table("token", vocabulary), vocabulary, dim);
    net.positions(table("position", context), context, dim);
    let mixer = Attention { causal: kind == Kind::Clip, ..mixer(dim, heads) };
    let layers = layers(model, mixer, eps, phi)?;
    let layers =
        layers.all(&mut net.weights, (0..count).map(|i| format!("{root}encoder.layers.{i}")));
    net.push(layers);
    net.layer_norm("norm", &format!("{root}final_layer_norm"), dim, eps);
    let mut note = None;
    match kind {
        Kind::Clip => {
            // Its code compares tokens with it.
            config.count("eos_token_id")?;
            if shared.is_none() {
                config.ignore(&["projection_dim"]);
            }
            if end == End::Features {
                note = Some(POOLED_BY_ID);
            }
        }
        Kind::Siglip => {
            let width = config.size_if("projection_size")?.unwrap_or(dim);
            if end == End::Features {
                net.op(Op::LastToken);
                net.linear("head", &format!("{root}head"), [width, dim]);
            } else if let Some(unread) = files.get(&format!("{root}head.weight"))
                && unread.shape != [width, dim]
            {
                let what = format!("is {width}, and the head is {:?}", unread.shape);
                return Err(config.wrong("projection_size", what));
            }
        }
    }
    let mapping = net
        .mapping(Input::tokens(context))?
        .note("no token is padding")
        .aside("position_ids", "positions count from 0")
        .aside("text_projection.weight", NOT_READ)
        .aside("head.weight", NOT_READ)
        .aside("head.bias", NOT_READ);
    Ok(note.into_iter().fold(mapping, Mapping::note))
}

/// Chinese-CLIP's model of texts: the vectors of all tokens, or the first one's in the space of
/// this width that texts share with images.
fn chinese_texts(model: &ModelDir, shared: Option<usize>) -> Result<Mapping, Error> {
    let &ModelDir { config, files, .. } = model;
    let o = Options::read(model)?;
    let root = files.prefix("text_model.");
    let context = o.context(config, 0)?;
    let embeddings = Embeddings {
        root,
        dim: o.dim,
        eps: o.eps,
        positions: [o.positions, 0, context],
        types: Some(config.size("type_vocab_size")?),
    };
    let mut net = Net::default();
    embeddings.put(&mut net, embeddings.table("word", o.vocabulary), o.vocabulary);
    let layers = (0..o.layers).map(|i| format!("{root}encoder.layer.{i}"));
    let layers = o.layers(Names::BERT).all(&mut net.weights, layers);
    net.push(layers);
    if let Some(width) = shared {
        net.op(Op::FirstToken);
        net.matrix("head", "text_projection", [width, o.dim]);
    }
    let mapping = asides(net.mapping(Input::tokens(context))?);
    Ok(match shared {
        Some(_) => mapping.note("a text's vector, not divided by its norm"),
        None => mapping,
    })
}

/// The model of images.
fn images(model: &ModelDir, end: End, shared: Option<usize>) -> Result<Mapping, Error> {
    let &ModelDir { config, files, family, .. } = model;
    let kind = Kind::of(family);
    let s = Sizes::read(model)?;
    let (dim, eps) = (s.dim, s.eps);
    let root = files.prefix("vision_model.");
    let from = format!("{root}embeddings");
    let class = TensorExpr::new(format!("{from}.class_embedding"), &[dim]);
    let front = Front {
        patches: format!("{from}.patch_embedding"),
        bias: kind == Kind::Siglip,
        tokens: if kind == Kind::Clip { vec![class] } else { Vec::new() },
        positions: &format!("{from}.position_embedding.weight"),
        batched: false,
    };
    let mut net = Net::default();
    s.front(model.pixels, &mut net, front)?;
    if kind == Kind::Clip {
        // Spelt so in the library.
        net.layer_norm("embedding_norm", &format!("{root}pre_layrnorm"), dim, eps);
    }
    let layers = layers(model, mixer(dim, s.heads), eps, s.phi)?;
    let layers =
        layers.all(&mut net.weights, (0..s.layers).map(|i| format!("{root}encoder.layers.{i}")));
    net.push(layers);
    let norm = format!("{root}post_layernorm");
    let mut note = None;
    match (kind, end) {
        (Kind::Clip, End::Tokens) => config.ignore(&["projection_dim"]),
        (Kind::Clip, End::Features) => {
            let width = match shared {
                Some(width) => width,
                None => config.size("projection_dim")?,
            };
            net.op(Op::FirstToken);
            net.layer_norm("norm", &norm, dim, eps);
            net.matrix("head", "visual_projection", [width, dim]);
            note = Some("an image's vector, not divided by its norm");
        }
        (Kind::Clip, End::Classes(labels)) => {
            // The scores do not read the class token.
            net.op(Op::FirstAndMean);
            net.push(crate::nodes::linear("head", 2 * dim, labels, true));
            let scores = TensorExpr::new("classifier.weight", &[labels, dim]);
            net.weights.put("head.weight", scores.after_zeros(dim));
            net.weights.vector("head.bias", "classifier.bias", labels);
        }
        (Kind::Siglip, _) => {
            let pooled = config.flag("vision_use_head")?;
            net.layer_norm("norm", &norm, dim, eps);
            match end {
                End::Classes(labels) => {
                    net.op(Op::MeanPool);
                    net.linear("head", "classifier", [labels, dim]);
                }
                End::Features if pooled => note = Some(POOLED_BY_PROBE),
                End::Features | End::Tokens => {}
            }
        }
    }
    let mapping = s
        .notes(model.pixels, net.mapping(s.input())?)
        .aside("position_ids", "positions count from 0")
        .aside("visual_projection.weight", NOT_READ)
        .aside("post_layernorm.weight", NOT_READ)
        .aside("post_layernorm.bias", NOT_READ)
        .aside("vision_model.head.*", NOT_READ)
        .aside("head.*", NOT_READ);
    Ok(note.into_iter().fold(mapping, Mapping::note))
}
