//! DINOv2, and its variant with registers: vision transformers with factors on their branches.

use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::Dialect;
use lipschitz_nn::graph::{Attention, Function, Node, Op};

use super::encoder::mixer;
use super::vit::{Front, Sizes};
use crate::expression::{TensorExpr, WeightMap};
use crate::heads::Head;
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::net::Net;
use crate::nodes::{attention, blocks, layer_norm, linear, residual};

/// Sizes of a layer.
struct Layer<'a> {
    sizes: &'a Sizes,
    mixer: Attention,
    hidden: usize,
    gated: bool,
}

/// Puts a map whose rows have factors.
fn scaled(weights: &mut WeightMap, to: &str, from: &str, shape: [usize; 2], factors: &str) {
    let factors = TensorExpr::new(factors, &shape[..1]);
    let weight = TensorExpr::new(format!("{from}.weight"), &shape);
    let bias = TensorExpr::new(format!("{from}.bias"), &shape[..1]);
    weights.put(format!("{to}.weight"), weight.scale_rows(factors.clone()));
    weights.put(format!("{to}.bias"), bias.scale_rows(factors));
}

impl Layer<'_> {
    fn body(&self, weights: &mut WeightMap, to: &str, from: &str) -> Vec<Node> {
        let (dim, eps) = (self.sizes.dim, self.sizes.eps);
        for name in ["query", "key", "value"] {
            let (to, from) =
                (format!("{to}.attention.{name}"), format!("{from}.attention.attention.{name}"));
            weights.linear(&to, &from, dim, dim, self.mixer.bias);
        }
        // The factors on a branch go into its last map.
        let (output, attended) =
            (format!("{to}.attention.output"), format!("{from}.attention.output.dense"));
        let factors = format!("{from}.layer_scale1.lambda1");
        scaled(weights, &output, &attended, [dim, dim], &factors);
        weights.norm(&format!("{to}.attention.norm"), &format!("{from}.norm1"), dim, true);
        weights.norm(&format!("{to}.mlp.norm"), &format!("{from}.norm2"), dim, true);
        let mut mlp = vec![layer_norm("norm", dim, eps, true)];
        mlp.extend(self.unit(weights, &format!("{to}.mlp"), from));
        let mix = vec![layer_norm("norm", dim, eps, true), attention(self.mixer.clone())];
        vec![residual("attention", mix), residual("mlp", mlp)]
    }

    /// The two maps between which the function is, or the three of a gated unit.
    fn unit(&self, weights: &mut WeightMap, to: &str, from: &str) -> Vec<Node> {
        let (dim, hidden) = (self.sizes.dim, self.hidden);
        let last = if self.gated { "weights_out" } else { "fc2" };
        let (down, inner) = (format!("{to}.down"), format!("{from}.mlp.{last}"));
        scaled(weights, &down, &inner, [dim, hidden], &format!("{from}.layer_scale2.lambda1"));
        if !self.gated {
            weights.linear(&format!("{to}.up"), &format!("{from}.mlp.fc1"), hidden, dim, true);
            let mut nodes = vec![linear("up", dim, hidden, true)];
            nodes.extend(self.sizes.phi.nodes());
            nodes.push(linear("down", hidden, dim, true));
            return nodes;
        }
        let weight = TensorExpr::new(format!("{from}.mlp.weights_in.weight"), &[2 * hidden, dim]);
        let bias = TensorExpr::new(format!("{from}.mlp.weights_in.bias"), &[2 * hidden]);
        for (j, name) in ["gate", "up"].into_iter().enumerate() {
            weights.put(format!("{to}.{name}.weight"), weight.clone().rows(j * hidden, hidden));
            weights.put(format!("{to}.{name}.bias"), bias.clone().rows(j * hidden, hidden));
        }
        vec![Node::new("", Op::GatedMlp { dim, hidden, function: Function::Silu, bias: true })]
    }
}

/// Positions of the patches, then registers and the class token, which has a position too, in front:
/// registers have none.
fn with_registers(s: &Sizes, model: &ModelDir, net: &mut Net, from: &str) -> Result<(), Error> {
    let (dim, patches) = (s.dim, s.patches());
    let registers = model.config.count("num_register_tokens")?;
    model.config.check_rows("num_register_tokens", registers)?;
    s.map_patches(model.pixels, net, &format!("{from}.patch_embeddings.projection"), true)?;
    let table = TensorExpr::new(format!("{from}.position_embeddings"), &[1, patches + 1, dim])
        .reshape(&[patches + 1, dim]);
    net.positions(table.clone().rows(1, patches), patches, dim);
    let all = TensorExpr::new(format!("{from}.register_tokens"), &[1, registers, dim]);
    for i in (0..registers).rev() {
        let one = all.clone().reshape(&[registers, dim]).rows(i, 1).reshape(&[dim]);
        net.weights.put(format!("register_{i}.weight"), one);
        net.push(Node::new(format!("register_{i}"), Op::ClassToken { dim }));
    }
    let class = s.token(format!("{from}.cls_token")).add_row(table.rows(0, 1));
    net.weights.put("class.weight", class);
    net.push(Node::new("class", Op::ClassToken { dim }));
    Ok(())
}

pub(crate) fn dinov2(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, dialect, family, .. } = model;
    let registers = family == "dinov2_with_registers";
    if registers {
        model.no_candle()?;
    }
    let candle = dialect == Dialect::Candle;
    let mut s = Sizes::read(model)?;
    if s.sides[0] != s.sides[1] {
        let what = "is no square: for such images the library resamples the table of positions";
        return Err(config.wrong("image_size", what));
    }
    if candle {
        // Written into candle's code.
        (s.eps, s.phi) = (1e-5, s.phi.approximate());
    }
    let dim = s.dim;
    config.ignore(&[
        "apply_layernorm",
        "layerscale_value",
        "reshape_hidden_states",
        "stage_names",
        "use_mask_token",
    ]);
    // What a backbone gives; saved configs name the last of its stages.
    if config.names("out_features") {
        config.assume("out_features", &vec![format!("stage{}", s.layers)].into())?;
    }
    if config.names("out_indices") {
        config.assume("out_indices", &vec![s.layers].into())?;
    }
    let wide = config.number("mlp_ratio")? * dim as f64;
    if !(1.0..1e9).contains(&wide) {
        return Err(config.wrong("mlp_ratio", "gives a hidden layer of no sensible width"));
    }
    let gated = config.flag("use_swiglu_ffn")?;
    if candle && gated {
        return Err(config.wrong("use_swiglu_ffn", "is true, which candle's model does not know"));
    }
    let hidden = if gated { (wide as usize * 2 / 3).div_ceil(8) * 8 } else { wide as usize };
    let (class, prefix) = if registers {
        ("Dinov2WithRegisters", "dinov2_with_registers.")
    } else {
        ("Dinov2", "dinov2.")
    };
    let head = Head::of(config, class, &[Head::Classes])?;
    if registers && head == Head::Classes {
        let what = "names a classifier that reads the mean of the patches without the registers, \
                    which no node of a graph computes";
        return Err(config.wrong("architectures", what));
    }
    let root = files.prefix(prefix);
    let from = format!("{root}embeddings");
    let mut net = Net::default();
    if registers {
        with_registers(&s, model, &mut net, &from)?;
    } else {
        let front = Front {
            patches: format!("{from}.patch_embeddings.projection"),
            bias: true,
            tokens: vec![s.token(format!("{from}.cls_token"))],
            positions: &format!("{from}.position_embeddings"),
            batched: true,
        };
        s.front(model.pixels, &mut net, front)?;
    }
    let mixer = Attention { bias: config.flag("qkv_bias")?, ..mixer(dim, s.heads) };
    let layer = Layer { sizes: &s, mixer, hidden, gated };
    let names = |i: usize| (format!("blocks.{i}"), format!("{root}encoder.layer.{i}"));
    let names = (0..s.layers).map(names);
    let bodies = names.map(|(to, from)| layer.body(&mut net.weights, &to, &from)).collect();
    net.push(blocks(bodies));
    net.layer_norm("norm", &format!("{root}layernorm"), dim, s.eps);
    if head == Head::Classes {
        let classes = head.labels(config)?;
        net.op(Op::FirstAndMean);
        net.linear("head", "classifier", [classes, 2 * dim]);
    }
    let mapping = s.notes(model.pixels, net.mapping(s.input())?);
    Ok(mapping.aside("mask_token", "nothing is masked"))
}
