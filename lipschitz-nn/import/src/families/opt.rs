//! OPT: learned positions from the second row on, and an embedding that may be narrower than the
//! rest.

use crate::activation::NamedActivation;
use crate::expression::{TensorExpr, WeightMap};
use crate::families::decoder::{
    Block, Body, Frame, Gain, Layout, Norm, Projections, Unit, as_the_library, head_dim,
};
use crate::heads::Head;
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::nodes::linear;
use lipschitz_nn::Error;
use lipschitz_nn::graph::{Attention, Node, Op};

/// Rows of the table of positions that no position reads.
const OFFSET: usize = 2;

pub(crate) fn opt(model: &ModelDir) -> Result<Mapping, Error> {
    as_the_library(model)?;
    let &ModelDir { config, files, .. } = model;
    let dim = config.size("hidden_size")?;
    let (heads, head_dim) = head_dim(config, "num_attention_heads", dim)?;
    let width = config.size_if("word_embed_proj_dim")?.unwrap_or(dim);
    let context = config.size("max_position_embeddings")?;
    let layers = config.layers("num_hidden_layers", files.len())?;
    let bias = config.flag("enable_bias")?;
    let affine = config.flag("layer_norm_elementwise_affine")?;
    let before = config.flag("do_layer_norm_before")?;
    let last_norm = !config.flag("_remove_final_layer_norm")? && before;
    config.ignore(&["layerdrop", "init_std"]);
    let (attention, unit) = ("self_attn_layer_norm", "final_layer_norm");
    let block = Block {
        dim,
        hidden: config.size("ffn_dim")?,
        norm: Norm {
            gain: if affine { Gain::Plain } else { Gain::None },
            shift: affine,
            // The library takes the default of its layer norms.
            ..Norm::layer(1e-5)
        },
        layout: if before {
            Layout::Before { attention, unit }
        } else {
            Layout::After { attention, unit }
        },
        projections: Projections::Apart([
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
        ]),
        output: "self_attn.out_proj",
        query_key: None,
        unit: Unit::Plain {
            phi: NamedActivation::read(config, "activation_function")?,
            up: "fc1",
            down: "fc2",
        },
        unit_bias: bias,
        branch: 1.0,
        transposed: false,
    };
    let mixer = Attention { bias, output_bias: bias, ..Attention::new(dim, heads, head_dim) };
    let root = format!("{}decoder.", files.prefix("model."));
    let mut weights = WeightMap::default();
    let rows = [context + OFFSET, dim];
    let table = TensorExpr::new(format!("{root}embed_positions.weight"), &rows);
    weights.put("positions.weight", table.rows(OFFSET, context));
    let mut around = [Vec::new(), Vec::new()];
    if width != dim {
        weights.linear("project_in", &format!("{root}project_in"), dim, width, false);
        around[0].push(linear("project_in", width, dim, false));
    }
    around[0].push(Node::new("positions", Op::Positions { length: context, dim }));
    let mut blocks = Vec::new();
    for i in 0..layers {
        let (to, from) = (format!("blocks.{i}"), format!("{root}layers.{i}"));
        blocks.push(block.body(&mut weights, &to, &from, mixer.clone()));
    }
    if last_norm {
        block.norm.put(&mut weights, "norm", &format!("{root}final_layer_norm"), dim);
        around[1].push(block.norm.node("norm", dim));
    }
    if width != dim {
        weights.linear("project_out", &format!("{root}project_out"), width, dim, false);
        around[1].push(linear("project_out", dim, width, false));
    }
    let frame = Frame {
        head: Head::of(config, "OPT", &[Head::Vocabulary, Head::Classes, Head::Answers])?,
        vocabulary: config.size("vocab_size")?,
        dim: width,
        context,
        embedding: format!("{root}embed_tokens"),
        factor: 1.0,
        scores: ("lm_head", false),
        token_classes: "classifier",
    };
    let [before, after] = around;
    let mapping =
        frame.around(model, Body { weights, before, blocks, after, logits: Vec::new() })?;
    Ok(mapping.note("no token is padding"))
}
