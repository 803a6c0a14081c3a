//! Checkpoints of the JAX code of Newhouse et al. (2025): the list of matrices of
//! `model.initialize`, in its order, in a `.npz` (`numpy.savez(path, *weights)`), next to the
//! config of the run in a `.json` of the same name.

use std::path::Path;

use crate::config::ConfigReader;
use crate::expression::{TensorExpr, WeightMap};
use crate::formats::files::Files;
use crate::mapping::Mapping;
use crate::nodes::{attention, blocks, linear};
use lipschitz_nn::Error;
use lipschitz_nn::graph::{Attention, Function, Input, Node, Op, Pairing, Rotary};
use lipschitz_nn::presets::GELU_SCALE;

/// The mapping, if there is a config next to the file.
pub(crate) fn modula(path: &Path, files: &Files) -> Result<Option<Mapping>, Error> {
    let beside = path.with_extension("json");
    if !beside.exists() {
        return Ok(None);
    }
    let whole = ConfigReader::open(&beside)?;
    // A results file holds the config of its run; options that the model's constructor does not
    // take are of training.
    let config = whole.inside("parameters")?.unwrap_or(whole);
    Ok(Some(mapping(&config, files)?))
}

/// The mapping of a run's config.
pub(crate) fn mapping(config: &ConfigReader, files: &Files) -> Result<Mapping, Error> {
    match config.text_if("data")? {
        Some("cifar") => mlp(config, files),
        Some("shakespeare" | "fineweb") => transformer(config, files),
        other => {
            Err(config.wrong("data", format!("is {other:?}, wanted cifar, shakespeare or fineweb")))
        }
    }
}

fn scaled(config: &ConfigReader, nodes: &mut Vec<Node>) -> Result<(), Error> {
    let factor = config.number_or("final_scale", 1.0)?;
    if factor != 1.0 {
        nodes.push(Node::new("", Op::Scale { factor }));
    }
    Ok(())
}

fn mlp(config: &ConfigReader, files: &Files) -> Result<Mapping, Error> {
    const INPUTS: usize = 3 * 32 * 32;
    let (dim, count) = (config.size("d_embed")?, config.layers("num_blocks", files.len())?);
    let mut weights = WeightMap::default();
    let mut nodes = Vec::new();
    for i in 0..count.max(2) {
        let (inputs, outputs) =
            (if i == 0 { INPUTS } else { dim }, if i + 1 == count.max(2) { 10 } else { dim });
        if i > 0 {
            nodes.push(Node::new("", Op::Activation { function: Function::Relu, scale: 1.0 }));
        }
        nodes.push(linear(format!("layer{i}"), inputs, outputs, false));
        weights.put(
            format!("layer{i}.weight"),
            TensorExpr::new(format!("arr_{i}"), &[outputs, inputs]),
        );
    }
    scaled(config, &mut nodes)?;
    Mapping::new(Input::Vector { dim: INPUTS }, nodes, weights)
}

/// The code weights sines for cosines and the other way round, so that each pair is reflected in
/// place of rotated. Between a query and a key two reflections make a rotation, the other way.
fn turned_back(head_dim: usize) -> Rotary {
    const BASE: f64 = 10000.0;
    let half = head_dim / 2;
    let frequencies = (0..half).map(|i| -BASE.powf(-(i as f64) / half as f64)).collect();
    Rotary { frequencies: Some(frequencies), ..Rotary::new(BASE, Pairing::Half) }
}

fn transformer(config: &ConfigReader, files: &Files) -> Result<Mapping, Error> {
    let (dim, heads, vocabulary) =
        (config.size("d_embed")?, config.size("num_heads")?, config.size("vocab_size")?);
    if !dim.is_multiple_of(heads) {
        return Err(config.wrong("num_heads", format!("is {heads}, which does not divide {dim}")));
    }
    let layers = config.layers("num_blocks", files.len())?;
    let context = config.size_or("seq_len", 256)?;
    if config.text_if("layernorm_substitute")?.is_some_and(|name| name != "none") {
        return Err(config.wrong("layernorm_substitute", "is not `none`, which is not supported"));
    }
    let head_dim = dim / heads;
    let alpha = config.number_or("residual_scale", 1.0)? / (2.0 * layers as f64);
    let mixer = Attention {
        logit_scale: config.number_or("softmax_scale", 1.0)? / head_dim as f64,
        output_scale: 1.0 / 3.0,
        rotary: Some(turned_back(head_dim)),
        ..Attention::new(dim, heads, head_dim)
    };
    let mut weights = WeightMap::default();
    let mut number = 0;
    let mut next = |weights: &mut WeightMap, to: String, shape: [usize; 2], transposed: bool| {
        let take = TensorExpr::new(format!("arr_{number}"), &shape);
        weights.put(to, if transposed { take.transpose() } else { take });
        number += 1;
    };
    next(&mut weights, "embedding.weight".into(), [dim, vocabulary], true);
    let mix =
        |name: &str, body| Node::new(name, Op::Residual { skip: 1.0 - alpha, branch: alpha, body });
    let mut bodies = Vec::new();
    for i in 0..layers {
        // In the order in which the code composes its modules.
        for name in ["value", "query", "key", "output"] {
            next(&mut weights, format!("blocks.{i}.attention.{name}.weight"), [dim, dim], false);
        }
        next(&mut weights, format!("blocks.{i}.mlp.up.weight"), [4 * dim, dim], false);
        next(&mut weights, format!("blocks.{i}.mlp.down.weight"), [dim, 4 * dim], false);
        // JAX weights the tanh approximation unless told otherwise.
        let gelu =
            Node::new("", Op::Activation { function: Function::GeluTanh, scale: GELU_SCALE });
        let mlp =
            vec![linear("up", dim, 4 * dim, false), gelu, linear("down", 4 * dim, dim, false)];
        bodies.push(vec![mix("attention", vec![attention(mixer.clone())]), mix("mlp", mlp)]);
    }
    next(&mut weights, "head.weight".into(), [vocabulary, dim], false);
    let embedding = Node::new("embedding", Op::Embedding { vocabulary, dim });
    let mut nodes = vec![embedding, blocks(bodies), linear("head", dim, vocabulary, false)];
    scaled(config, &mut nodes)?;
    Mapping::new(Input::tokens(context), nodes, weights)
}
