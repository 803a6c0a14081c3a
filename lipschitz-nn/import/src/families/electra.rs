//! ELECTRA: BERT whose embeddings can be narrower than its layers.

use lipschitz_nn::Error;
use lipschitz_nn::graph::{Function, Input};

use super::bert::{Embeddings, HEADS, Options, asides, no_decoder};
use super::encoder::Names;
use crate::activation::NamedActivation;
use crate::heads::{Classes, Head, MaskedTokens, TextHead};
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::net::Net;

pub(crate) fn electra(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, .. } = model;
    model.no_candle()?;
    let o = Options::read(model)?;
    no_decoder(config)?;
    // Of a head of choices, which is not imported.
    config.ignore(&["summary_activation", "summary_type", "summary_use_proj"]);
    let known = [HEADS, &[Head::Replaced]].concat();
    let head = Head::of(config, "Electra", &known)?;
    let embedding = config.size("embedding_size")?;
    let (dim, context) = (o.dim, o.positions);
    let root = files.prefix("electra.");
    let embeddings = Embeddings {
        root,
        dim: embedding,
        eps: o.eps,
        positions: [o.positions, 0, context],
        types: Some(config.size("type_vocab_size")?),
    };
    // Written into the library's code.
    let gelu = NamedActivation::plain(Function::GeluErf);
    let masked = MaskedTokens {
        dense: "generator_predictions.dense",
        norm: "generator_predictions.LayerNorm",
        phi: gelu,
        eps: o.eps,
        decoder: "generator_lm_head",
        bias: "generator_lm_head.bias",
        shared_bias: None,
        dim,
        embedding,
        vocabulary: o.vocabulary,
    };
    let classes = Classes { dense: "classifier.dense", phi: gelu, scores: "classifier.out_proj" };
    let end = TextHead { head, tied: o.tied, masked, classes };
    let tie = end.tie(model, embeddings.table("word", o.vocabulary))?;
    let mut net = Net::default();
    embeddings.put(&mut net, tie.first.clone(), o.vocabulary);
    if embedding != dim {
        net.linear("project", &format!("{root}embeddings_project"), [dim, embedding]);
    }
    let layers = (0..o.layers).map(|i| format!("{root}encoder.layer.{i}"));
    let layers = o.layers(Names::BERT).all(&mut net.weights, layers);
    net.push(layers);
    let ties = end.put(model, &mut net, tie)?;
    if head == Head::Replaced {
        net.linear("transform", "discriminator_predictions.dense", [dim, dim]);
        net.activation(o.phi);
        net.linear("head", "discriminator_predictions.dense_prediction", [1, dim]);
    }
    let other = "the head of another task";
    let mut mapping = asides(net.mapping(Input::tokens(context))?);
    for (part, kept) in [
        ("discriminator_predictions.*", head == Head::Replaced),
        ("generator_predictions.*", head == Head::Vocabulary),
        ("generator_lm_head.*", head == Head::Vocabulary),
    ] {
        if !kept {
            mapping = mapping.aside(part, other);
        }
    }
    Ok(ties.into_iter().fold(mapping, Mapping::tied))
}
