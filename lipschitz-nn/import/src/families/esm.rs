//! ESM: an encoder of proteins, with norms in front and rotary or learned positions.

use candle_core::DType;
use lipschitz_nn::Error;
use lipschitz_nn::graph::{Attention, Function, Input, Pairing, Rotary};

use super::bert::{HEADS, no_decoder};
use super::encoder::{Layers, Names, Norms, mixer};
use crate::activation::NamedActivation;
use crate::expression::TensorExpr;
use crate::heads::{Classes, Head, MaskedTokens, TextHead};
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::net::Net;

const NAMES: Names =
    Names { attention_norm: "attention.LayerNorm", mlp_norm: "LayerNorm", ..Names::BERT };

/// The share of tokens that training replaced by the mask, which the library makes up for by
/// scaling all embeddings down by it.
const MASKED: f64 = 0.15 * 0.8;

/// How the names of stored angles end.
const STORED: &str = "rotary_embeddings.inv_freq";

/// Angles per token, as they are stored with the weights; where they are not, those of the base.
fn rotary(model: &ModelDir, head_dim: usize) -> Result<Rotary, Error> {
    let &ModelDir { config, files, .. } = model;
    let plain = Rotary::new(config.number("rope_theta")?, Pairing::Half);
    let Some(name) = files.names().find(|name| name.ends_with(STORED)) else { return Ok(plain) };
    let angles = files.read(name)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    if angles.len() * 2 != head_dim {
        let what = format!("has {} angles for heads of {head_dim}", angles.len());
        return Err(Error::weight(name, what));
    }
    Ok(Rotary { frequencies: Some(angles), ..plain })
}

/// Adds positions: to the attention of the layers, or to the embeddings. How many tokens there can
/// be.
fn positions(
    model: &ModelDir,
    root: &str,
    net: &mut Net,
    mixer: &mut Attention,
) -> Result<usize, Error> {
    let (config, dim) = (model.config, mixer.dim);
    let rows = config.size("max_position_embeddings")?;
    match config.text("position_embedding_type")? {
        "rotary" => {
            mixer.rotary = Some(rotary(model, mixer.head_dim)?);
            Ok(rows)
        }
        "absolute" => {
            config.ignore(&["rope_theta"]);
            // Positions count from behind the padding id.
            let offset = config.count("pad_token_id")? + 1;
            let context = rows.checked_sub(offset).filter(|n| *n > 0).ok_or_else(|| {
                let what = format!("is {rows}, and the first token is at {offset}");
                config.wrong("max_position_embeddings", what)
            })?;
            let table = format!("{root}embeddings.position_embeddings.weight");
            let table = TensorExpr::new(table, &[rows, dim]).rows(offset, context);
            net.positions(table, context, dim);
            Ok(context)
        }
        other => Err(config.unsupported("position_embedding_type", format!("`{other}`"))),
    }
}

fn head(model: &ModelDir, dim: usize, eps: f64) -> Result<TextHead<'static>, Error> {
    let config = model.config;
    let gelu = NamedActivation::plain(Function::GeluErf);
    let masked = MaskedTokens {
        dense: "lm_head.dense",
        norm: "lm_head.layer_norm",
        phi: gelu,
        eps,
        decoder: "lm_head.decoder",
        bias: "lm_head.bias",
        shared_bias: None,
        dim,
        embedding: dim,
        vocabulary: config.size("vocab_size")?,
    };
    let phi = NamedActivation::plain(Function::Tanh);
    let classes = Classes { dense: "classifier.dense", phi, scores: "classifier.out_proj" };
    let tied = config.flag("tie_word_embeddings")?;
    Ok(TextHead { head: Head::of(config, "Esm", HEADS)?, tied, masked, classes })
}

pub(crate) fn esm(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, .. } = model;
    model.no_candle()?;
    let dim = config.size("hidden_size")?;
    let heads = config.heads("num_attention_heads", dim)?;
    let hidden = config.size("intermediate_size")?;
    let count = config.layers("num_hidden_layers", files.len())?;
    let eps = config.eps("layer_norm_eps")?;
    no_decoder(config)?;
    config.only("is_folding_model", false)?;
    // Of the folding model, and of the tokenizer.
    config.ignore(&["esmfold_config", "vocab_list"]);
    config.assume("hidden_act", &"gelu".into())?;
    let end = head(model, dim, eps)?;
    let vocabulary = end.masked.vocabulary;
    let root = files.prefix("esm.");
    let table = format!("{root}embeddings.word_embeddings.weight");
    let tie = end.tie(model, TensorExpr::new(table, &[vocabulary, dim]))?;
    let mut net = Net::default();
    let scaled = config.flag("token_dropout")?;
    // Its code compares tokens with these.
    config.count("pad_token_id")?;
    if scaled {
        config.count("mask_token_id")?;
    }
    let tokens = tie.first.clone();
    net.embedding(if scaled { tokens.times(1.0 - MASKED) } else { tokens }, vocabulary, dim);
    let mut mixer = mixer(dim, heads);
    let context = positions(model, root, &mut net, &mut mixer)?;
    if config.flag("emb_layer_norm_before")? {
        net.layer_norm("embedding_norm", &format!("{root}embeddings.layer_norm"), dim, eps);
    }
    let phi = NamedActivation::plain(Function::GeluErf);
    let layers = Layers { mixer, hidden, eps, phi, norms: Norms::Before, names: NAMES };
    let from = (0..count).map(|i| format!("{root}encoder.layer.{i}"));
    let layers = layers.all(&mut net.weights, from);
    net.push(layers);
    net.layer_norm("norm", &format!("{root}encoder.emb_layer_norm_after"), dim, eps);
    let ties = end.put(model, &mut net, tie)?;
    let unread = "the head does not read it";
    let mut mapping = net
        .mapping(Input::tokens(context))?
        .note("no token is padding")
        .aside("position_ids", "positions count from 0")
        .aside("embeddings.position_embeddings.weight", "positions are rotary")
        .aside(STORED, "the graph holds these angles")
        .aside("contact_head.regression.weight", "the head of another task")
        .aside("contact_head.regression.bias", "the head of another task")
        .aside("pooler.dense.weight", unread)
        .aside("pooler.dense.bias", unread);
    if scaled {
        mapping = mapping
            .note("no token is the mask: embeddings are scaled by 0.88, as they are where none is");
    }
    Ok(ties.into_iter().fold(mapping, Mapping::tied))
}
