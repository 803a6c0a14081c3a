//! MPNet: BERT with a position bias that all layers share.

use lipschitz_nn::Error;
use lipschitz_nn::graph::{Attention, Function, Input, PositionBias};

use super::bert::{Embeddings, HEADS, Options, asides};
use super::encoder::{Layers, Names};
use crate::activation::NamedActivation;
use crate::expression::TensorExpr;
use crate::heads::{Classes, Head, MaskedTokens, TextHead};
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::net::Net;

const NAMES: Names = Names {
    query: "attention.attn.q",
    key: "attention.attn.k",
    value: "attention.attn.v",
    output: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    ..Names::BERT
};

/// Written into the library's code, whatever the config says.
const BIAS: PositionBias = PositionBias { buckets: 32, max_distance: 128 };
const FIRST_POSITION: usize = 2;

pub(crate) fn mpnet(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, .. } = model;
    model.no_candle()?;
    let o = Options::read(model)?;
    config.assume("is_decoder", &false.into())?;
    config.assume("add_cross_attention", &false.into())?;
    let rows = config.size("relative_attention_num_buckets")?;
    if rows < BIAS.buckets {
        let what = format!("is {rows}: the library reads {} of them", BIAS.buckets);
        return Err(config.wrong("relative_attention_num_buckets", what));
    }
    let head = Head::of(config, "MPNet", HEADS)?;
    let (dim, context) = (o.dim, o.context(config, FIRST_POSITION)?);
    let root = files.prefix("mpnet.");
    let positions = [o.positions, FIRST_POSITION, context];
    let embeddings = Embeddings { root, dim, eps: o.eps, positions, types: None };
    let gelu = NamedActivation::plain(Function::GeluErf);
    let masked = MaskedTokens {
        dense: "lm_head.dense",
        norm: "lm_head.layer_norm",
        phi: gelu,
        eps: o.eps,
        decoder: "lm_head.decoder",
        bias: "lm_head.decoder.bias",
        shared_bias: Some("lm_head.bias"),
        dim,
        embedding: dim,
        vocabulary: o.vocabulary,
    };
    let phi = NamedActivation::plain(Function::Tanh);
    let classes = Classes { dense: "classifier.dense", phi, scores: "classifier.out_proj" };
    let end = TextHead { head, tied: o.tied, masked, classes };
    let tie = end.tie(model, embeddings.table("word", o.vocabulary))?;
    let mut net = Net::default();
    embeddings.put(&mut net, tie.first.clone(), o.vocabulary);
    let plain = o.layers(NAMES);
    let mixer = Attention { position_bias: Some(BIAS), ..plain.mixer.clone() };
    let from = (0..o.layers).map(|i| format!("{root}encoder.layer.{i}"));
    let layers = Layers { mixer, ..plain }.all(&mut net.weights, from);
    net.push(layers);
    let table = format!("{root}encoder.relative_attention_bias.weight");
    let table = TensorExpr::new(table, &[rows, o.heads]).rows(0, BIAS.buckets);
    for i in 0..o.layers {
        net.weights.put(format!("blocks.{i}.attention.position_bias.weight"), table.clone());
    }
    let ties = end.put(model, &mut net, tie)?;
    let (part, why) = match head {
        Head::Vocabulary => ("lm_head.bias", "a head that is not tied has a bias of its own"),
        _ => ("lm_head.*", "the head of another task"),
    };
    let mapping = asides(net.mapping(Input::tokens(context))?).aside(part, why);
    Ok(ties.into_iter().fold(mapping, Mapping::tied))
}
