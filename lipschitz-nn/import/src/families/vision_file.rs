//! Vision transformers of timm and of torchvision: files of tensors, whose names and shapes say all
//! but the number of heads. A config of timm names an architecture, and so the heads.

use std::path::Path;

use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::Dialect;
use lipschitz_nn::graph::{Function, Op};

use super::encoder::{Layers, Names, Norms, mixer};
use super::vit::{Front, Sizes};
use crate::Undecided;
use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::formats::files::Files;
use crate::mapping::Mapping;
use crate::net::Net;
use crate::options::ImportOptions;
use crate::pixels::Normalisation;

/// What a library calls the tensors.
struct Kin {
    library: &'static str,
    class: &'static str,
    patches: &'static str,
    positions: &'static str,
    /// In front of a layer's number.
    layer: &'static str,
    names: Names,
    norm: &'static str,
    head: &'static str,
}

const TIMM: Kin = Kin {
    library: "timm",
    class: "cls_token",
    patches: "patch_embed.proj",
    positions: "pos_embed",
    layer: "blocks.",
    names: Names {
        output: "attn.proj",
        attention_norm: "norm1",
        up: "mlp.fc1",
        down: "mlp.fc2",
        mlp_norm: "norm2",
        fused: Some(["attn.qkv.weight", "attn.qkv.bias"]),
        ..Names::BERT
    },
    norm: "norm",
    head: "head",
};

const TORCHVISION: Kin = Kin {
    library: "torchvision",
    class: "class_token",
    patches: "conv_proj",
    positions: "encoder.pos_embedding",
    layer: "encoder.layers.encoder_layer_",
    names: Names {
        output: "self_attention.out_proj",
        attention_norm: "ln_1",
        up: "mlp.0",
        down: "mlp.3",
        mlp_norm: "ln_2",
        fused: Some(["self_attention.in_proj_weight", "self_attention.in_proj_bias"]),
        ..Names::BERT
    },
    norm: "encoder.ln",
    head: "heads.head",
};

/// torchvision's names before 2022.
const OLD_UP: &str = "mlp.linear_1";
const OLD_DOWN: &str = "mlp.linear_2";

/// Written into the code of both libraries.
const EPS: f64 = 1e-6;

/// Sides of patches and of images of the architectures whose names say all of them.
const PATCHES: &[&str] = &["8", "14", "16", "32"];
const SIDES: &[&str] = &["224", "384"];

/// What an architecture of timm is.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Architecture {
    dim: usize,
    layers: usize,
    heads: usize,
    patch: usize,
    side: usize,
}

impl Architecture {
    /// By its name, such as `vit_base_patch16_224`, if it is one of the plain ones.
    fn of(name: &str) -> Option<Self> {
        let mut words = name.split('_');
        let (family, size, patch, side) =
            (words.next()?, words.next()?, words.next()?, words.next()?);
        let patch = patch.strip_prefix("patch")?;
        let known = ["vit", "deit"].contains(&family)
            && PATCHES.contains(&patch)
            && SIDES.contains(&side)
            && words.next().is_none();
        let [dim, layers, heads] = match size {
            "tiny" => [192, 12, 3],
            "small" => [384, 12, 6],
            "base" => [768, 12, 12],
            "large" => [1024, 24, 16],
            _ => return None,
        };
        let (patch, side) = (patch.parse().ok()?, side.parse().ok()?);
        known.then_some(Self { dim, layers, heads, patch, side })
    }
}

/// Whether this is what [`vision`] calls a model.
pub(crate) fn is(family: &str) -> bool {
    [TIMM.library, TORCHVISION.library].contains(&family)
}

/// Whether a config is one of timm.
pub(crate) fn of_timm(config: &ConfigReader) -> bool {
    config.names("architecture") && config.names("pretrained_cfg") && !config.names("model_type")
}

/// Fails unless the scores read the class token.
fn class_token(config: &ConfigReader) -> Result<(), Error> {
    match config.text_if("global_pool")? {
        None | Some("token") => Ok(()),
        Some(pool) => Err(config.unsupported("global_pool", format!("`{pool}`"))),
    }
}

/// Fails unless sizes that tensors have are what they are said to be: of others the library changes the
/// weights that it loads.
fn shapes(given: &ConfigReader, files: &Files) -> Result<(), Error> {
    let size = |name: String, dim: usize| files.get(&name).and_then(|i| i.shape.get(dim).copied());
    let channels = size(format!("{}.weight", TIMM.patches), 1).unwrap_or(0);
    let classes = size(format!("{}.weight", TIMM.head), 0).unwrap_or(0);
    for (key, found) in [("in_chans", channels), ("num_classes", classes)] {
        if let Some(said) = given.count_if(key)?.filter(|said| *said != found) {
            return Err(given.wrong(key, format!("is {said}, and the tensors are of {found}")));
        }
    }
    let width = size(format!("{}.weight", TIMM.patches), 0).unwrap_or(0) as f64;
    let up = format!("{}0.{}.weight", TIMM.layer, TIMM.names.up);
    match (given.number_if("mlp_ratio")?, size(up, 0)) {
        (Some(ratio), Some(hidden)) if (ratio * width) as usize != hidden => {
            let what = format!("is {ratio}, and the tensors are of {hidden} numbers");
            Err(given.wrong("mlp_ratio", what))
        }
        _ => Ok(()),
    }
}

/// A model of timm with its config.
pub(crate) fn timm(
    config: &ConfigReader,
    files: &Files,
    options: &ImportOptions,
) -> Result<Mapping, Error> {
    let name = config.text("architecture")?;
    let Some(mut known) = Architecture::of(name) else {
        let what = format!(
            "is `{name}`; the architectures of timm that are known are vit_… and \
             deit_{{tiny,small,base,large}}_patch{{8,14,16,32}}_{{224,384}}"
        );
        return Err(config.wrong("architecture", what));
    };
    class_token(config)?;
    config.ignore(&["label_descriptions", "label_names", "num_classes", "num_features"]);
    let Some(inner) = config.inside("pretrained_cfg")? else {
        return Err(config.wrong("pretrained_cfg", "is missing"));
    };
    // The library builds the model for images of this size only where it is fixed, and else for those of the
    // architecture.
    let mut sides = match inner.sizes("input_size")?.as_slice() {
        [_, height, width] if inner.flag_or("fixed_input_size", false)? => [*height, *width],
        [_, height, width] => {
            inner.ignore(&["fixed_input_size"]);
            let sides = [*height, *width];
            if sides != [known.side; 2]
                && !config.inside("model_args")?.is_some_and(|c| c.names("img_size"))
            {
                let what = format!(
                    "is of {height} by {width} pixels and not fixed, and `{name}` is of {}: its positions would be \
                     resampled",
                    known.side
                );
                return Err(inner.wrong("input_size", what));
            }
            sides
        }
        _ => return Err(inner.wrong("input_size", "is not channels, height and width")),
    };
    if let Some(given) = config.inside("model_args")? {
        class_token(&given)?;
        if given.names("img_size") {
            sides = given.height_and_width("img_size")?;
        }
        known = Architecture {
            dim: given.size_or("embed_dim", known.dim)?,
            layers: given.size_or("depth", known.layers)?,
            heads: given.size_or("num_heads", known.heads)?,
            patch: given.size_or("patch_size", known.patch)?,
            ..known
        };
        shapes(&given, files)?;
        given.finish(&[])?;
    }
    let pixels = Normalisation::of_means(inner)?;
    let found = sizes(&TIMM, files, known.heads, Some(sides));
    let found = found.map_err(|what| config.wrong("architecture", what))?;
    let [theirs, ours] =
        [[known.dim, known.layers, known.patch], [found.dim, found.layers, found.patch]];
    if theirs != ours {
        let what = format!(
            "is `{name}`, of width {}, {} layers and patches of {}; the tensors are of width {}, {} layers and \
             patches of {}",
            theirs[0], theirs[1], theirs[2], ours[0], ours[1], ours[2]
        );
        return Err(config.wrong("architecture", what));
    }
    let mut mapping = mapping(&TIMM, files, known.heads, Some(sides), pixels.as_ref())
        .map_err(|what| config.wrong("architecture", what))?;
    mapping.notes.extend(config.finish(&options.ignore)?);
    Ok(mapping.note(format!("timm's `{name}`, with ε = {EPS:e} and GELU")))
}

/// A file of a vision transformer, if it is one, with the name of its library.
pub(crate) fn vision(
    path: &Path,
    files: &Files,
    options: &ImportOptions,
) -> Result<Option<(&'static str, Mapping)>, Error> {
    let is = |kin: &&Kin| {
        files.get(&format!("{}.weight", kin.patches)).is_some()
            && files.get(kin.positions).is_some()
            && files.below(kin.layer)
    };
    let Some(kin) = [TIMM, TORCHVISION].iter().find(is).map(|kin| kin.library) else {
        return Ok(None);
    };
    let mut kin = if kin == TIMM.library { TIMM } else { TORCHVISION };
    if files.below(&format!("{}0.{OLD_UP}.", kin.layer)) {
        (kin.names.up, kin.names.down) = (OLD_UP, OLD_DOWN);
    }
    if options.dialect == Dialect::Candle {
        let what = "is of a model whose function in candle is not known to this importer";
        return Err(Error::file(path, what));
    }
    let Some(heads) = options.heads else {
        let what = format!(
            "holds a vision transformer of {}, and the number of its heads is in no tensor",
            kin.library
        );
        return Err(Error::file(path, Undecided::NoHeads(what)));
    };
    let mapping =
        mapping(&kin, files, heads, None, None).map_err(|what| Error::file(path, what))?;
    let said = format!(
        "a vision transformer of {} with {heads} heads, as was said at import, ε = {EPS:e} and GELU",
        kin.library
    );
    Ok(Some((kin.library, mapping.note(said))))
}

/// The layers of a file: their numbers count from 0.
fn layers(kin: &Kin, files: &Files) -> usize {
    (0..files.len()).take_while(|i| files.below(&format!("{}{i}.", kin.layer))).count()
}

/// What the names and shapes of tensors say; the sides of images, where no config says them, are
/// those of a square.
fn sizes(
    kin: &Kin,
    files: &Files,
    heads: usize,
    sides: Option<[usize; 2]>,
) -> Result<Sizes, String> {
    let shape = |name: &str| files.get(name).map(|info| info.shape.clone()).unwrap_or_default();
    let [dim, channels, patch, wide] = shape(&format!("{}.weight", kin.patches))[..] else {
        return Err(format!("has no convolution `{}.weight`", kin.patches));
    };
    if patch != wide || patch == 0 || heads == 0 || !dim.is_multiple_of(heads) {
        return Err(format!("has {heads} heads of {dim} numbers, patches of {patch} by {wide}"));
    }
    let [_, tokens, _] = shape(kin.positions)[..] else {
        return Err(format!("has no positions `{}`", kin.positions));
    };
    let across = tokens.saturating_sub(1).isqrt();
    let sides = match sides {
        Some(sides) => sides,
        None if across > 0 && across * across + 1 == tokens => {
            [across.checked_mul(patch).ok_or("has images that are too large")?; 2]
        }
        None => {
            return Err(format!("has {tokens} positions, not those of a square and a class token"));
        }
    };
    if sides.iter().any(|side| !side.is_multiple_of(patch)) {
        return Err(format!("has images of {sides:?} and patches of {patch}"));
    }
    let phi = NamedActivation::plain(Function::GeluErf);
    Ok(Sizes { dim, heads, layers: layers(kin, files), eps: EPS, channels, sides, patch, phi })
}

type Wrong = Box<dyn std::error::Error + Send + Sync>;

fn mapping(
    kin: &Kin,
    files: &Files,
    heads: usize,
    sides: Option<[usize; 2]>,
    pixels: Option<&Normalisation>,
) -> Result<Mapping, Wrong> {
    let s = sizes(kin, files, heads, sides)?;
    let rows = |name: String| files.get(&name).and_then(|info| info.shape.first().copied());
    let (dim, eps) = (s.dim, s.eps);
    let front = Front {
        patches: kin.patches.to_string(),
        bias: true,
        tokens: vec![s.token(kin.class.to_string())],
        positions: kin.positions,
        batched: true,
    };
    let mut net = Net::default();
    s.front(pixels, &mut net, front)?;
    let hidden = rows(format!("{}0.{}.weight", kin.layer, kin.names.up))
        .ok_or("has no layers of a known form")?;
    let phi = s.phi;
    let layers = Layers {
        mixer: mixer(dim, heads),
        hidden,
        eps,
        phi,
        norms: Norms::Before,
        names: kin.names,
    };
    let from = (0..s.layers).map(|i| format!("{}{i}", kin.layer));
    let layers = layers.all(&mut net.weights, from);
    net.push(layers);
    net.op(Op::FirstToken);
    net.layer_norm("norm", kin.norm, dim, eps);
    if let Some(classes) = rows(format!("{}.weight", kin.head)) {
        net.linear("head", kin.head, [classes, dim]);
    }
    let mapping = net.mapping(s.input())?;
    Ok(s.notes(pixels, mapping))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_architectures_are_known() {
        for (name, sizes) in [
            ("vit_tiny_patch16_224", Some([192, 12, 3, 16, 224])),
            ("vit_small_patch32_384", Some([384, 12, 6, 32, 384])),
            ("deit_base_patch16_384", Some([768, 12, 12, 16, 384])),
            ("vit_large_patch14_224", Some([1024, 24, 16, 14, 224])),
            ("vit_base_patch16_clip_224", None),
            ("vit_base_patch16_224_miil", None),
            ("vit_small_patch14_dinov2", None),
            ("vit_huge_patch14_224", None),
            ("vit_base_r50_s16_224", None),
            ("vit_base_patch16_256", None),
            ("vit", None),
        ] {
            let found = Architecture::of(name).map(|a| [a.dim, a.layers, a.heads, a.patch, a.side]);
            assert_eq!(found, sizes, "{name}");
        }
    }
}
