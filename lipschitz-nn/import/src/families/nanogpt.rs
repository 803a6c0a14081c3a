//! Checkpoints of nanoGPT, as its training script saves them: the weights under `model`, the
//! model's options under `model_args`.
//!
//! Source: the code published as nanoGPT (`model.py`). It is GPT-2 with maps stored
//! `[outputs, inputs]`, a head that is the embedding, and biases everywhere or nowhere.

use std::path::Path;

use serde_json::Value;

use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::expression::{TensorExpr, WeightMap};
use crate::families::decoder::{Block, Layout, Norm, Projections, Unit, head_dim};
use crate::formats::files::Files;
use crate::mapping::Mapping;
use crate::nodes::{blocks, linear};
use lipschitz_nn::Error;
use lipschitz_nn::graph::{Attention, Function, Input, Node, Op};

/// The mapping, if these are the tensors and options of a nanoGPT.
pub(crate) fn nanogpt(path: &Path, files: &Files) -> Result<Option<Mapping>, Error> {
    let Some(Value::Object(options)) = files.sidecar("model_args") else { return Ok(None) };
    if files.get("transformer.wte.weight").is_none() {
        return Ok(None);
    }
    let config = ConfigReader::of(path, "model_args.".into(), options.clone());
    let mapping = mapping(&config, files).map_err(|e| match e {
        Error::Weight { .. } => Error::file(path, e),
        e => e,
    })?;
    config.finish(&[])?;
    Ok(Some(mapping))
}

fn mapping(config: &ConfigReader, files: &Files) -> Result<Mapping, Error> {
    let dim = config.size("n_embd")?;
    let (heads, head_dim) = head_dim(config, "n_head", dim)?;
    let (vocabulary, context) = (config.size("vocab_size")?, config.size("block_size")?);
    if !config.names("bias") {
        let what = "is missing: the first releases of nanoGPT have none, and another GELU";
        return Err(config.wrong("bias", what));
    }
    let bias = config.flag("bias")?;
    let block = Block {
        dim,
        hidden: 4 * dim,
        norm: Norm { shift: bias, ..Norm::layer(1e-5) },
        layout: Layout::Before { attention: "ln_1", unit: "ln_2" },
        projections: Projections::Rows("attn.c_attn"),
        output: "attn.c_proj",
        query_key: None,
        unit: Unit::Plain {
            phi: NamedActivation::plain(Function::GeluErf),
            up: "mlp.c_fc",
            down: "mlp.c_proj",
        },
        unit_bias: bias,
        branch: 1.0,
        transposed: false,
    };
    let mixer = Attention { bias, output_bias: bias, ..Attention::new(dim, heads, head_dim) };
    let mut weights = WeightMap::default();
    let embedding = TensorExpr::new("transformer.wte.weight", &[vocabulary, dim]);
    weights.put("embedding.weight", embedding);
    let positions = TensorExpr::new("transformer.wpe.weight", &[context, dim]);
    weights.put("positions.weight", positions);
    let mut bodies = Vec::new();
    for i in 0..config.layers("n_layer", files.len())? {
        let (to, from) = (format!("blocks.{i}"), format!("transformer.h.{i}"));
        bodies.push(block.body(&mut weights, &to, &from, mixer.clone()));
    }
    block.norm.put(&mut weights, "norm", "transformer.ln_f", dim);
    // It is one tensor, saved under both names.
    let head = TensorExpr::new("lm_head.weight", &[vocabulary, dim]);
    if !files.equal("transformer.wte.weight", "lm_head.weight")? {
        let what = "differs from `transformer.wte.weight`, which nanoGPT has as one with it";
        return Err(Error::weight("lm_head.weight", what));
    }
    weights.put("head.weight", head);
    let nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary, dim }),
        Node::new("positions", Op::Positions { length: context, dim }),
        blocks(bodies),
        block.norm.node("norm", dim),
        linear("head", dim, vocabulary, false),
    ];
    Ok(Mapping::new(Input::tokens(context), nodes, weights)?
        .aside("attn.bias", "the causal mask")
        .note("GELU is the exact one, as in nanoGPT since June 2023; before, it was approximated"))
}
