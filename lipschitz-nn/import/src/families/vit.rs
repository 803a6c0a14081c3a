//! Vision transformers: ViT and DINOv2.

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
use lipschitz_nn::graph::{Attention, Function, Input, Node, Op};

/// Sizes that both families read under the same names.
struct Sizes {
    dim: usize,
    heads: usize,
    layers: usize,
    eps: f64,
    channels: usize,
    side: usize,
    patch: usize,
    bias: bool,
    phi: NamedActivation,
}

impl Sizes {
    fn read(config: &ConfigReader, files: &Files) -> Result<Self, Error> {
        let dim = config.size("hidden_size")?;
        let heads = config.heads("num_attention_heads", dim)?;
        let (side, patch) = (config.size("image_size")?, config.size("patch_size")?);
        if !side.is_multiple_of(patch) {
            return Err(
                config.wrong("patch_size", format!("is {patch}, which does not divide {side}"))
            );
        }
        Ok(Self {
            dim,
            heads,
            layers: config.layers("num_hidden_layers", files.len())?,
            eps: config.eps("layer_norm_eps")?,
            channels: config.size("num_channels")?,
            side,
            patch,
            bias: config.flag("qkv_bias")?,
            phi: NamedActivation::read(config, "hidden_act")?,
        })
    }

    fn input(&self) -> Input {
        Input::Pixels { channels: self.channels, height: self.side, width: self.side }
    }

    /// Patches, embedded, behind a class token, with positions.
    fn front(&self, weights: &mut WeightMap, from: &str) -> Vec<Node> {
        let Self { dim, channels, patch, .. } = *self;
        let (numbers, tokens) = (channels * patch * patch, (self.side / patch).pow(2) + 1);
        // A convolution whose steps are as long as its kernel is a linear map of each patch.
        let kernel = TensorExpr::new(
            format!("{from}.patch_embeddings.projection.weight"),
            &[dim, channels, patch, patch],
        );
        weights.put("patches.weight", kernel.reshape(&[dim, numbers]));
        weights.vector("patches.bias", &format!("{from}.patch_embeddings.projection.bias"), dim);
        weights.put(
            "class.weight",
            TensorExpr::new(format!("{from}.cls_token"), &[1, 1, dim]).reshape(&[dim]),
        );
        let positions = TensorExpr::new(format!("{from}.position_embeddings"), &[1, tokens, dim]);
        weights.put("positions.weight", positions.reshape(&[tokens, dim]));
        vec![
            Node::new("", Op::Patches { size: patch }),
            linear("patches", numbers, dim, true),
            Node::new("class", Op::ClassToken { dim }),
            Node::new("positions", Op::Positions { length: tokens, dim }),
        ]
    }

    /// The nodes of attention, and its queries, keys and values.
    fn mixer(&self, weights: &mut WeightMap, to: &str, from: &str) -> Vec<Node> {
        let Self { dim, heads, bias, .. } = *self;
        for name in ["query", "key", "value"] {
            weights.linear(
                &format!("{to}.{name}"),
                &format!("{from}.attention.{name}"),
                dim,
                dim,
                bias,
            );
        }
        let mixer = Attention {
            causal: false,
            bias,
            output_bias: true,
            ..Attention::new(dim, heads, dim / heads)
        };
        vec![layer_norm("norm", dim, self.eps, true), attention(mixer)]
    }
}

const FIXED: &str = "images have the size that the config names; positions are not interpolated";

pub(crate) fn vit(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, .. } = model;
    let s = Sizes::read(config, files)?;
    let (dim, eps, hidden) = (s.dim, s.eps, config.size("intermediate_size")?);
    config.ignore(&["encoder_stride", "pooler_act", "pooler_output_size"]);
    let root = files.prefix("vit.");
    let mut weights = WeightMap::default();
    let mut nodes = s.front(&mut weights, &format!("{root}embeddings"));
    let mut bodies = Vec::new();
    for i in 0..s.layers {
        let (to, from) = (format!("blocks.{i}"), format!("{root}encoder.layer.{i}"));
        let mixer = s.mixer(&mut weights, &format!("{to}.attention"), &format!("{from}.attention"));
        weights.linear(
            &format!("{to}.attention.output"),
            &format!("{from}.attention.output.dense"),
            dim,
            dim,
            true,
        );
        weights.norm(
            &format!("{to}.attention.norm"),
            &format!("{from}.layernorm_before"),
            dim,
            true,
        );
        weights.norm(&format!("{to}.mlp.norm"), &format!("{from}.layernorm_after"), dim, true);
        weights.linear(
            &format!("{to}.mlp.up"),
            &format!("{from}.intermediate.dense"),
            hidden,
            dim,
            true,
        );
        weights.linear(
            &format!("{to}.mlp.down"),
            &format!("{from}.output.dense"),
            dim,
            hidden,
            true,
        );
        let mut mlp = vec![layer_norm("norm", dim, eps, true), linear("up", dim, hidden, true)];
        mlp.extend(s.phi.nodes());
        mlp.push(linear("down", hidden, dim, true));
        bodies.push(vec![residual("attention", mixer), residual("mlp", mlp)]);
    }
    nodes.push(blocks(bodies));
    weights.norm("norm", &format!("{root}layernorm"), dim, true);
    let head = Head::of(config, "ViT", &[Head::Classes])?;
    if head == Head::Classes {
        let classes = head.labels(config)?;
        // The norm weights each token by itself, so the class token alone is enough.
        nodes.extend([
            Node::new("", Op::FirstToken),
            layer_norm("norm", dim, eps, true),
            linear("head", dim, classes, true),
        ]);
        weights.linear("head", "classifier", classes, dim, true);
    } else {
        nodes.push(layer_norm("norm", dim, eps, true));
    }
    let why = "the output does not read it";
    let mapping = Mapping::new(s.input(), nodes, weights)?.note(FIXED);
    Ok(mapping
        .aside("pooler.dense.weight", why)
        .aside("pooler.dense.bias", why)
        .aside("mask_token", "nothing is masked"))
}

pub(crate) fn dinov2(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, dialect, .. } = model;
    let candle = dialect == Dialect::Candle;
    let mut s = Sizes::read(config, files)?;
    if candle {
        // Written into candle's code.
        (s.eps, s.phi) = (1e-5, s.phi.approximate());
    }
    let (dim, eps) = (s.dim, s.eps);
    config.ignore(&[
        "apply_layernorm",
        "drop_path_rate",
        "layerscale_value",
        "out_features",
        "out_indices",
        "reshape_hidden_states",
        "stage_names",
        "use_mask_token",
    ]);
    let wide = config.number("mlp_ratio")? * dim as f64;
    if !(1.0..1e9).contains(&wide) {
        return Err(config.wrong("mlp_ratio", "gives a hidden layer of no sensible width"));
    }
    let gated = config.flag("use_swiglu_ffn")?;
    if candle && gated {
        return Err(config.wrong("use_swiglu_ffn", "is true, which candle's model does not know"));
    }
    let hidden = if gated { (wide as usize * 2 / 3).div_ceil(8) * 8 } else { wide as usize };
    let root = files.prefix("dinov2.");
    let mut weights = WeightMap::default();
    let mut nodes = s.front(&mut weights, &format!("{root}embeddings"));
    let mut bodies = Vec::new();
    for i in 0..s.layers {
        let (to, from) = (format!("blocks.{i}"), format!("{root}encoder.layer.{i}"));
        let mixer = s.mixer(&mut weights, &format!("{to}.attention"), &format!("{from}.attention"));
        weights.norm(&format!("{to}.attention.norm"), &format!("{from}.norm1"), dim, true);
        weights.norm(&format!("{to}.mlp.norm"), &format!("{from}.norm2"), dim, true);
        // The factors on a branch go into its last map.
        let mut scaled = |to: String, from: String, inputs: usize, factors: &str| {
            let factors = TensorExpr::new(factors, &[dim]);
            let weight = TensorExpr::new(format!("{from}.weight"), &[dim, inputs]);
            weights.put(format!("{to}.weight"), weight.scale_rows(factors.clone()));
            weights.put(
                format!("{to}.bias"),
                TensorExpr::new(format!("{from}.bias"), &[dim]).scale_rows(factors),
            );
        };
        let (first, second) =
            (format!("{from}.layer_scale1.lambda1"), format!("{from}.layer_scale2.lambda1"));
        scaled(
            format!("{to}.attention.output"),
            format!("{from}.attention.output.dense"),
            dim,
            &first,
        );
        let last = if gated { "weights_out" } else { "fc2" };
        scaled(format!("{to}.mlp.down"), format!("{from}.mlp.{last}"), hidden, &second);
        let mut mlp = vec![layer_norm("norm", dim, eps, true)];
        if gated {
            for (j, name) in ["gate", "up"].into_iter().enumerate() {
                let weight =
                    TensorExpr::new(format!("{from}.mlp.weights_in.weight"), &[2 * hidden, dim]);
                let bias = TensorExpr::new(format!("{from}.mlp.weights_in.bias"), &[2 * hidden]);
                weights.put(format!("{to}.mlp.{name}.weight"), weight.rows(j * hidden, hidden));
                weights.put(format!("{to}.mlp.{name}.bias"), bias.rows(j * hidden, hidden));
            }
            mlp.push(Node::new(
                "",
                Op::GatedMlp { dim, hidden, function: Function::Silu, bias: true },
            ));
        } else {
            weights.linear(&format!("{to}.mlp.up"), &format!("{from}.mlp.fc1"), hidden, dim, true);
            mlp.push(linear("up", dim, hidden, true));
            mlp.extend(s.phi.nodes());
            mlp.push(linear("down", hidden, dim, true));
        }
        bodies.push(vec![residual("attention", mixer), residual("mlp", mlp)]);
    }
    nodes.push(blocks(bodies));
    weights.norm("norm", &format!("{root}layernorm"), dim, true);
    nodes.push(layer_norm("norm", dim, eps, true));
    let head = Head::of(config, "Dinov2", &[Head::Classes])?;
    if head == Head::Classes {
        let classes = head.labels(config)?;
        nodes.extend([Node::new("", Op::FirstAndMean), linear("head", 2 * dim, classes, true)]);
        weights.linear("head", "classifier", classes, 2 * dim, true);
    }
    Ok(Mapping::new(s.input(), nodes, weights)?
        .note(FIXED)
        .aside("mask_token", "nothing is masked"))
}
