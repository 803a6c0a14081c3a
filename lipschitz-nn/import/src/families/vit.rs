//! Vision transformers: ViT, DeiT, ViT-MSN and I-JEPA.

use lipschitz_nn::Error;
use lipschitz_nn::graph::{Attention, Input, Node, Op};

use super::encoder::{Layers, Names, Norms, mixer};
use crate::activation::NamedActivation;
use crate::expression::TensorExpr;
use crate::heads::Head;
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::net::Net;
use crate::pixels::{NORMALISED, Normalisation};

/// Sizes that families of images read under the same names.
pub(super) struct Sizes {
    pub dim: usize,
    pub heads: usize,
    pub layers: usize,
    pub eps: f64,
    pub channels: usize,
    /// Height and width of an image.
    pub sides: [usize; 2],
    pub patch: usize,
    pub phi: NamedActivation,
}

/// The tensors in front of the layers.
pub(super) struct Front<'a> {
    /// Name of the convolution that maps patches.
    pub patches: String,
    /// Whether it has a bias.
    pub bias: bool,
    /// Learned tokens in front of the patches, in order; each has a position.
    pub tokens: Vec<TensorExpr>,
    /// Name of the table of positions, and whether its shape begins with a batch of 1.
    pub positions: &'a str,
    pub batched: bool,
}

impl Sizes {
    pub(super) fn read(model: &ModelDir) -> Result<Self, Error> {
        let &ModelDir { config, files, .. } = model;
        let dim = config.size("hidden_size")?;
        // There are no words.
        config.ignore(&["tie_word_embeddings"]);
        let sides = config.height_and_width("image_size")?;
        let [patch, wide] = config.height_and_width("patch_size")?;
        if patch != wide {
            return Err(config.unsupported("patch_size", format!("{patch} by {wide}")));
        }
        if let Some(side) = sides.iter().find(|side| !side.is_multiple_of(patch)) {
            return Err(
                config.wrong("patch_size", format!("is {patch}, which does not divide {side}"))
            );
        }
        Ok(Self {
            dim,
            heads: config.heads("num_attention_heads", dim)?,
            layers: config.layers("num_hidden_layers", files.len())?,
            eps: config.eps("layer_norm_eps")?,
            channels: config.size("num_channels")?,
            sides,
            patch,
            phi: NamedActivation::read(config, "hidden_act")?,
        })
    }

    pub(super) fn input(&self) -> Input {
        let [height, width] = self.sides;
        Input::Pixels { channels: self.channels, height, width }
    }

    /// Number of patches.
    pub(super) fn patches(&self) -> usize {
        self.sides.iter().map(|side| side / self.patch).product()
    }

    /// A learned token.
    pub(super) fn token(&self, name: String) -> TensorExpr {
        TensorExpr::new(name, &[1, 1, self.dim]).reshape(&[self.dim])
    }

    /// The map of patches, of pixels where it is known how they are normalised.
    pub(super) fn map_patches(
        &self,
        pixels: Option<&Normalisation>,
        net: &mut Net,
        from: &str,
        bias: bool,
    ) -> Result<(), Error> {
        let Self { dim, channels, patch, .. } = *self;
        let numbers = channels * patch * patch;
        // A convolution whose steps are as long as its kernel is a linear map of each patch.
        let kernel = TensorExpr::new(format!("{from}.weight"), &[dim, channels, patch, patch]);
        let mut matrix = kernel.reshape(&[dim, numbers]);
        let mut shift = bias.then(|| TensorExpr::new(format!("{from}.bias"), &[dim]));
        if let Some(pixels) = pixels {
            let (folded, moved) = pixels.fold(matrix, shift, channels, patch)?;
            (matrix, shift) = (folded, Some(moved));
        }
        net.op(Op::Patches { size: patch });
        net.push(crate::nodes::linear("patches", numbers, dim, shift.is_some()));
        net.weights.put("patches.weight", matrix);
        if let Some(shift) = shift {
            net.weights.put("patches.bias", shift);
        }
        Ok(())
    }

    /// Patches, mapped, behind learned tokens, with positions.
    pub(super) fn front(
        &self,
        pixels: Option<&Normalisation>,
        net: &mut Net,
        front: Front,
    ) -> Result<(), Error> {
        let dim = self.dim;
        self.map_patches(pixels, net, &front.patches, front.bias)?;
        let length = self.patches() + front.tokens.len();
        // The last is in front of the patches, the first in front of all.
        for (i, token) in front.tokens.into_iter().enumerate().rev() {
            let name = if i == 0 { "class".to_string() } else { format!("token_{i}") };
            net.weights.put(format!("{name}.weight"), token);
            net.push(Node::new(name, Op::ClassToken { dim }));
        }
        let shape: &[usize] = if front.batched { &[1, length, dim] } else { &[length, dim] };
        let table = TensorExpr::new(front.positions, shape);
        net.positions(table.reshape(&[length, dim]), length, dim);
        Ok(())
    }

    /// What the reader of a certificate should know about the images.
    pub(super) fn notes(&self, pixels: Option<&Normalisation>, mapping: Mapping) -> Mapping {
        let pixels = pixels.map_or_else(|| NORMALISED.to_string(), |pixels| pixels.note());
        mapping.note(FIXED).note(pixels)
    }
}

const FIXED: &str = "images have the size that the config names; positions are not interpolated";

const NAMES: Names = Names {
    query: "attention.attention.query",
    key: "attention.attention.key",
    value: "attention.attention.value",
    output: "attention.output.dense",
    attention_norm: "layernorm_before",
    up: "intermediate.dense",
    down: "output.dense",
    mlp_norm: "layernorm_after",
    fused: None,
};

/// How the families differ.
struct Kin {
    class: &'static str,
    prefix: &'static str,
    /// Learned tokens in front of the patches.
    tokens: &'static [&'static str],
}

impl Kin {
    fn of(family: &str) -> Self {
        match family {
            "deit" => {
                let tokens = &["cls_token", "distillation_token"];
                Self { class: "DeiT", prefix: "deit.", tokens }
            }
            "ijepa" => Self { class: "IJepa", prefix: "ijepa.", tokens: &[] },
            "vit_msn" => Self { class: "ViTMSN", prefix: "vit.", tokens: &["cls_token"] },
            _ => Self { class: "ViT", prefix: "vit.", tokens: &["cls_token"] },
        }
    }
}

pub(crate) fn vit(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, family, .. } = model;
    if family != "vit" {
        model.no_candle()?;
    }
    let s = Sizes::read(model)?;
    let (dim, eps, hidden) = (s.dim, s.eps, config.size("intermediate_size")?);
    let bias = config.flag("qkv_bias")?;
    config.ignore(&["encoder_stride"]);
    // A pooler is made and not read.
    if family != "vit_msn" {
        NamedActivation::read(config, "pooler_act")?;
    }
    if config.size_if("pooler_output_size")?.is_some_and(|size| size != s.dim) {
        return Err(config.wrong("pooler_output_size", format!("is not the width, {}", s.dim)));
    }
    let kin = Kin::of(family);
    if config.architecture()? == Some("DeiTForImageClassificationWithTeacher") {
        let what = "names `DeiTForImageClassificationWithTeacher`, whose scores are the mean of two \
                    heads that read two tokens, which no node of a graph computes";
        return Err(config.wrong("architectures", what));
    }
    let head = Head::of(config, kin.class, &[Head::Classes])?;
    let root = files.prefix(kin.prefix);
    let from = format!("{root}embeddings");
    let front = Front {
        patches: format!("{from}.patch_embeddings.projection"),
        bias: true,
        tokens: kin.tokens.iter().map(|name| s.token(format!("{from}.{name}"))).collect(),
        positions: &format!("{from}.position_embeddings"),
        batched: true,
    };
    let mut net = Net::default();
    s.front(model.pixels, &mut net, front)?;
    let mixer = Attention { bias, ..mixer(dim, s.heads) };
    let layers = Layers { mixer, hidden, eps, phi: s.phi, norms: Norms::Before, names: NAMES };
    // The library saves the layers of some classes without the prefix of the rest.
    let inner = format!("{root}encoder.");
    let inner = if files.below(&inner) { inner.as_str() } else { "encoder." };
    let layers = layers.all(&mut net.weights, (0..s.layers).map(|i| format!("{inner}layer.{i}")));
    net.push(layers);
    let norm = format!("{root}layernorm");
    if head == Head::Classes {
        let classes = head.labels(config)?;
        if kin.tokens.is_empty() {
            net.layer_norm("norm", &norm, dim, eps);
            net.op(Op::MeanPool);
        } else {
            // The norm weights each token by itself, so the class token alone is enough.
            net.op(Op::FirstToken);
            net.layer_norm("norm", &norm, dim, eps);
        }
        net.linear("head", "classifier", [classes, dim]);
    } else {
        net.layer_norm("norm", &norm, dim, eps);
    }
    let why = "the output does not read it";
    Ok(s.notes(model.pixels, net.mapping(s.input())?)
        .aside("pooler.dense.weight", why)
        .aside("pooler.dense.bias", why)
        .aside("mask_token", "nothing is masked"))
}
