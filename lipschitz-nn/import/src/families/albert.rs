//! ALBERT: BERT whose layers share their weights, with embeddings narrower than its layers.

use lipschitz_nn::Error;
use lipschitz_nn::graph::{Function, Input};

use super::bert::{Embeddings, HEADS, Options, asides};
use super::encoder::Names;
use crate::activation::NamedActivation;
use crate::heads::{Classes, Head, MaskedTokens, TextHead};
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::net::Net;

const NAMES: Names = Names {
    query: "attention.query",
    key: "attention.key",
    value: "attention.value",
    output: "attention.dense",
    attention_norm: "attention.LayerNorm",
    up: "ffn",
    down: "ffn_output",
    mlp_norm: "full_layer_layer_norm",
    fused: None,
};

/// The largest number of layers: those that share weights are each bounded by themselves.
const MAX_LAYERS: usize = 4096;

/// The tensors' names of each layer in turn: the layers are dealt to the groups in order, and each
/// runs all the inner layers of its group.
fn layers(model: &ModelDir, root: &str) -> Result<Vec<String>, Error> {
    let config = model.config;
    let count = config.size("num_hidden_layers")?;
    let groups = config.layers("num_hidden_groups", model.files.len())?;
    let inner = config.layers("inner_group_num", model.files.len())?;
    if count.saturating_mul(inner) > MAX_LAYERS {
        return Err(
            config.wrong("num_hidden_layers", format!("is {count}, wanted up to {MAX_LAYERS}"))
        );
    }
    if groups > count {
        let what = format!("is {groups}, and there are {count} layers");
        return Err(config.wrong("num_hidden_groups", what));
    }
    // As the library divides, in floating point.
    let group = |i: usize| (i as f64 / (count as f64 / groups as f64)) as usize;
    let from = format!("{root}encoder.albert_layer_groups");
    let name = |(i, j)| format!("{from}.{}.albert_layers.{j}", group(i));
    Ok((0..count).flat_map(|i| (0..inner).map(move |j| (i, j))).map(name).collect())
}

pub(crate) fn albert(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, .. } = model;
    model.no_candle()?;
    let dim = config.size("hidden_size")?;
    let root = files.prefix("albert.");
    let names = layers(model, root)?;
    let o = Options { layers: names.len(), ..Options::read(model)? };
    config.assume("is_decoder", &false.into())?;
    config.assume("add_cross_attention", &false.into())?;
    // Of the program that the family was trained with.
    config.assume("down_scale_factor", &1.into())?;
    for key in ["gap_size", "net_structure_type", "num_memory_blocks"] {
        config.assume(key, &0.into())?;
    }
    let embedding = config.size("embedding_size")?;
    let both = config.architecture()? == Some("AlbertForPreTraining");
    let head = if both { Head::Vocabulary } else { Head::of(config, "Albert", HEADS)? };
    let embeddings = Embeddings {
        root,
        dim: embedding,
        eps: o.eps,
        positions: [o.positions, 0, o.positions],
        types: Some(config.size("type_vocab_size")?),
    };
    let masked = MaskedTokens {
        dense: "predictions.dense",
        norm: "predictions.LayerNorm",
        phi: o.phi,
        eps: o.eps,
        decoder: "predictions.decoder",
        bias: "predictions.decoder.bias",
        shared_bias: Some("predictions.bias"),
        dim,
        embedding,
        vocabulary: o.vocabulary,
    };
    let pooler = format!("{root}pooler");
    let phi = NamedActivation::plain(Function::Tanh);
    let classes = Classes { dense: &pooler, phi, scores: "classifier" };
    let end = TextHead { head, tied: o.tied, masked, classes };
    let tie = end.tie(model, embeddings.table("word", o.vocabulary))?;
    let mut net = Net::default();
    embeddings.put(&mut net, tie.first.clone(), o.vocabulary);
    let project = format!("{root}encoder.embedding_hidden_mapping_in");
    net.linear("project", &project, [dim, embedding]);
    let layers = o.layers(NAMES).all(&mut net.weights, names);
    net.push(layers);
    let ties = end.put(model, &mut net, tie)?;
    let (unread, other) = ("the head does not read it", "the head of another task");
    let mut mapping = asides(net.mapping(Input::tokens(o.positions))?)
        .aside("pooler.weight", unread)
        .aside("pooler.bias", unread)
        .aside("predictions.bias", "a head that is not tied has a bias of its own")
        .aside("sop_classifier.*", other);
    if head != Head::Vocabulary {
        mapping = mapping.aside("predictions.*", other);
    }
    if both {
        mapping = mapping.note("of the model's two outputs, the scores of the vocabulary");
    }
    Ok(ties.into_iter().fold(mapping, Mapping::tied))
}
