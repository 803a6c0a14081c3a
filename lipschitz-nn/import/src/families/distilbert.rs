//! DistilBERT.

use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::Dialect;
use lipschitz_nn::graph::{Function, Input};

use super::bert::{Embeddings, HEADS};
use super::encoder::{Layers, Names, Norms, mixer};
use crate::activation::NamedActivation;
use crate::heads::{Classes, Head, MaskedTokens, TextHead};
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::net::Net;

const NAMES: Names = Names {
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    mlp_norm: "output_layer_norm",
    fused: None,
};

/// The library writes it into its code.
const EPS: f64 = 1e-12;

pub(crate) fn distilbert(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, dialect, .. } = model;
    let dim = config.size("dim")?;
    let heads = config.heads("n_heads", dim)?;
    let (vocabulary, context) =
        (config.size("vocab_size")?, config.size("max_position_embeddings")?);
    // Sinusoidal positions are stored in the same table as learned ones.
    config.ignore(&["sinusoidal_pos_embds"]);
    let mut phi = NamedActivation::read(config, "activation")?;
    if dialect == Dialect::Candle {
        phi = phi.approximate();
    }
    let layers = config.layers("n_layers", files.len())?;
    let hidden = config.size("hidden_dim")?;
    let head = Head::of(config, "DistilBert", HEADS)?;
    model.candle_has(head, &[Head::Vocabulary])?;
    // Written into candle's code.
    let tied = config.flag("tie_word_embeddings")? || model.of_candle();
    let root = files.prefix("distilbert.");
    let embeddings =
        Embeddings { root, dim, eps: EPS, positions: [context, 0, context], types: None };
    let masked = MaskedTokens {
        dense: "vocab_transform",
        norm: "vocab_layer_norm",
        phi,
        eps: EPS,
        decoder: "vocab_projector",
        bias: "vocab_projector.bias",
        shared_bias: None,
        dim,
        embedding: dim,
        vocabulary,
    };
    // The activation of the classifier is in the library's code.
    let relu = NamedActivation::plain(Function::Relu);
    let classes = Classes { dense: "pre_classifier", phi: relu, scores: "classifier" };
    let end = TextHead { head, tied, masked, classes };
    let tie = end.tie(model, embeddings.table("word", vocabulary))?;
    let mut net = Net::default();
    embeddings.put(&mut net, tie.first.clone(), vocabulary);
    let names = (0..layers).map(|i| format!("{root}transformer.layer.{i}"));
    let mixer = mixer(dim, heads);
    let layers = Layers { mixer, hidden, eps: EPS, phi, norms: Norms::After, names: NAMES };
    let layers = layers.all(&mut net.weights, names);
    net.push(layers);
    let ties = end.put(model, &mut net, tie)?;
    let mapping = net
        .mapping(Input::tokens(context))?
        .note("no token is padding")
        .aside("position_ids", "positions count from 0");
    Ok(ties.into_iter().fold(mapping, Mapping::tied))
}
