//! Nomic BERT: BERT with rotary positions, gated units and no biases.

use lipschitz_nn::Error;
use lipschitz_nn::graph::{Attention, Function, Input, Node, Op, Pairing, Rotary};

use super::bert::{HEADS, asides};
use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::expression::{TensorExpr, WeightMap};
use crate::heads::{Classes, Head, MaskedTokens, TextHead};
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::net::Net;
use crate::nodes::{attention, blocks, layer_norm, residual};

/// The base of the rotary positions.
fn base(config: &ConfigReader) -> Result<f64, Error> {
    let default = config.theta("global");
    let Some(inner) = config.inside("rope_parameters")? else { return Ok(default) };
    let base = inner.number_or("rope_theta", default)?;
    if inner.names("rope_type") {
        match inner.text("rope_type")? {
            "default" => {}
            kind => return Err(inner.unsupported("rope_type", format!("`{kind}`"))),
        }
    }
    inner.finish(&[])?;
    if base > 0.0 {
        return Ok(base);
    }
    Err(config.wrong("rope_parameters", format!("has the base {base}, wanted one above 0")))
}

/// Sizes of a layer.
struct Layer {
    mixer: Attention,
    hidden: usize,
    eps: f64,
    function: Function,
}

impl Layer {
    fn body(&self, weights: &mut WeightMap, to: &str, from: &str) -> Vec<Node> {
        let Self { hidden, eps, function, ref mixer } = *self;
        let (dim, width) = (mixer.dim, mixer.heads * mixer.head_dim);
        let fused = TensorExpr::new(format!("{from}.attn.Wqkv.weight"), &[3 * width, dim]);
        for (j, name) in ["query", "key", "value"].into_iter().enumerate() {
            let part = fused.clone().rows(j * width, width);
            weights.put(format!("{to}.attention.{name}.weight"), part);
        }
        let (output, attended) =
            (format!("{to}.attention.output"), format!("{from}.attn.out_proj"));
        weights.linear(&output, &attended, dim, width, false);
        for (ours, theirs, outputs, inputs) in [
            ("up", "fc11", hidden, dim),
            ("gate", "fc12", hidden, dim),
            ("down", "fc2", dim, hidden),
        ] {
            let (to, from) = (format!("{to}.mlp.{ours}"), format!("{from}.mlp.{theirs}"));
            weights.linear(&to, &from, outputs, inputs, false);
        }
        weights.norm(&format!("{to}.attention_norm"), &format!("{from}.norm1"), dim, true);
        weights.norm(&format!("{to}.mlp_norm"), &format!("{from}.norm2"), dim, true);
        let unit = Node::new("", Op::GatedMlp { dim, hidden, function, bias: false });
        vec![
            residual("attention", vec![attention(mixer.clone())]),
            layer_norm("attention_norm", dim, eps, true),
            residual("mlp", vec![unit]),
            layer_norm("mlp_norm", dim, eps, true),
        ]
    }
}

pub(crate) fn nomic(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, .. } = model;
    model.no_candle()?;
    let dim = config.size("hidden_size")?;
    let (heads, eps) = (config.size("num_attention_heads")?, config.eps("layer_norm_eps")?);
    let head_dim = match config.size_if("head_dim")? {
        Some(head_dim) => head_dim,
        None => dim / config.heads("num_attention_heads", dim)?,
    };
    let (vocabulary, context) =
        (config.size("vocab_size")?, config.size("max_position_embeddings")?);
    let phi = NamedActivation::read(config, "hidden_act")?;
    config.assume("position_embedding_type", &"absolute".into())?;
    let rotary = Some(Rotary::new(base(config)?, Pairing::Half));
    let mixer = Attention { causal: false, rotary, ..Attention::new(dim, heads, head_dim) };
    let function = phi.gate();
    let layer = Layer { mixer, hidden: config.size("intermediate_size")?, eps, function };
    let layers = config.layers("num_hidden_layers", files.len())?;
    let root = files.prefix("nomic_bert.");
    let masked = MaskedTokens {
        dense: "cls.predictions.transform.dense",
        norm: "cls.predictions.transform.layer_norm",
        phi,
        eps,
        decoder: "cls.predictions.decoder",
        bias: "cls.predictions.decoder.bias",
        shared_bias: Some("cls.predictions.bias"),
        dim,
        embedding: dim,
        vocabulary,
    };
    let pooler = format!("{root}pooler.dense");
    let tanh = NamedActivation::plain(Function::Tanh);
    let classes = Classes { dense: &pooler, phi: tanh, scores: "classifier" };
    let head = Head::of(config, "NomicBert", HEADS)?;
    // Written into the library's class, apart from its other defaults.
    let tied = config.flag_or("tie_word_embeddings", true)?;
    let end = TextHead { head, tied, masked, classes };
    let table = |name: &str, rows: usize| {
        TensorExpr::new(format!("{root}embeddings.{name}_embeddings.weight"), &[rows, dim])
    };
    let tie = end.tie(model, table("word", vocabulary))?;
    let mut net = Net::default();
    let segment = table("token_type", config.size("type_vocab_size")?).rows(0, 1);
    net.embedding(tie.first.clone().add_row(segment), vocabulary, dim);
    net.layer_norm("embedding_norm", &format!("{root}emb_ln"), dim, eps);
    let body = |i: usize| (format!("blocks.{i}"), format!("{root}encoder.layers.{i}"));
    let bodies = (0..layers).map(body);
    let bodies = bodies.map(|(to, from)| layer.body(&mut net.weights, &to, &from)).collect();
    net.push(blocks(bodies));
    let ties = end.put(model, &mut net, tie)?;
    let mapping = asides(net.mapping(Input::tokens(context))?)
        .aside("cls.predictions.bias", "a head that is not tied has a bias of its own");
    Ok(ties.into_iter().fold(mapping, Mapping::tied))
}
