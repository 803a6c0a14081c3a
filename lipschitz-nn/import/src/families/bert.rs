//! BERT and its kin: encoders whose norms come after each sum.

use lipschitz_nn::Error;
use lipschitz_nn::graph::{Function, Input};

use super::encoder::{Layers, Names, Norms, mixer};
use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::expression::TensorExpr;
use crate::heads::{Classes, Head, MaskedTokens, TextHead};
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::net::Net;

/// Heads that the families here have.
pub(super) const HEADS: &[Head] =
    &[Head::Vocabulary, Head::Classes, Head::TokenClasses, Head::Answers];

const ONE_SEGMENT: &str = "every token is in the first segment (token type 0), and none is padding";

/// The options that these families share.
pub(super) struct Options {
    pub dim: usize,
    pub heads: usize,
    pub hidden: usize,
    pub layers: usize,
    pub eps: f64,
    pub phi: NamedActivation,
    pub vocabulary: usize,
    /// Rows of the table of positions.
    pub positions: usize,
    /// Whether the head's matrix is the embedding.
    pub tied: bool,
}

impl Options {
    pub(super) fn read(model: &ModelDir) -> Result<Self, Error> {
        let &ModelDir { config, files, .. } = model;
        let dim = config.size("hidden_size")?;
        config.assume("position_embedding_type", &"absolute".into())?;
        Ok(Self {
            dim,
            heads: config.heads("num_attention_heads", dim)?,
            hidden: config.size("intermediate_size")?,
            layers: config.layers("num_hidden_layers", files.len())?,
            eps: config.eps("layer_norm_eps")?,
            phi: NamedActivation::read(config, "hidden_act")?,
            vocabulary: config.size("vocab_size")?,
            positions: config.size("max_position_embeddings")?,
            tied: config.flag("tie_word_embeddings")?,
        })
    }

    /// Layers with norms after each sum.
    pub(super) fn layers(&self, names: Names) -> Layers {
        let Self { dim, heads, hidden, eps, phi, .. } = *self;
        Layers { mixer: mixer(dim, heads), hidden, eps, phi, norms: Norms::After, names }
    }

    /// How many tokens there can be, where the first one is at position `offset`.
    pub(super) fn context(&self, config: &ConfigReader, offset: usize) -> Result<usize, Error> {
        let context = self.positions.checked_sub(offset).filter(|n| *n > 0);
        let small = || format!("is {}, and the first token is at {offset}", self.positions);
        context.ok_or_else(|| config.wrong("max_position_embeddings", small()))
    }
}

/// Attention that sees tokens behind a token, and nothing but the text.
pub(super) fn no_decoder(config: &ConfigReader) -> Result<(), Error> {
    ["is_decoder", "add_cross_attention"].iter().try_for_each(|key| config.only(key, false))
}

/// Embeddings of tokens and of their positions, those of the first segment added, and a norm.
pub(super) struct Embeddings<'a> {
    pub root: &'a str,
    pub dim: usize,
    pub eps: f64,
    /// Rows of the table of positions, the first that is used, and how many are.
    pub positions: [usize; 3],
    /// Number of segments; none has no table of them.
    pub types: Option<usize>,
}

impl Embeddings<'_> {
    /// A table.
    pub(super) fn table(&self, name: &str, rows: usize) -> TensorExpr {
        let name = format!("{}embeddings.{name}_embeddings.weight", self.root);
        TensorExpr::new(name, &[rows, self.dim])
    }

    pub(super) fn put(&self, net: &mut Net, tokens: TensorExpr, vocabulary: usize) {
        let [rows, from, context] = self.positions;
        net.embedding(tokens, vocabulary, self.dim);
        let positions = self.table("position", rows).rows(from, context);
        let positions = match self.types {
            Some(types) => positions.add_row(self.table("token_type", types).rows(0, 1)),
            None => positions,
        };
        net.positions(positions, context, self.dim);
        let norm = format!("{}embeddings.LayerNorm", self.root);
        net.layer_norm("embedding_norm", &norm, self.dim, self.eps);
    }
}

/// Tensors that are set aside in all of these families.
pub(super) fn asides(mapping: Mapping) -> Mapping {
    let unread = "the head does not read it";
    mapping
        .note(ONE_SEGMENT)
        .aside("position_ids", "positions count from 0")
        .aside("embeddings.token_type_ids", "all are 0")
        .aside("pooler.dense.weight", unread)
        .aside("pooler.dense.bias", unread)
}

/// How BERT and RoBERTa differ.
struct Kin {
    class: &'static str,
    prefix: &'static str,
    /// Position of the first token.
    offset: usize,
    /// The head of masked tokens: its first map, norm and bias, its last map and that one's bias.
    masked: [&'static str; 5],
}

impl Kin {
    fn of(config: &ConfigReader, family: &str) -> Result<Self, Error> {
        let class = match family {
            "roberta" => "Roberta",
            "xlm-roberta" => "XLMRoberta",
            "camembert" => "Camembert",
            _ => {
                let masked = [
                    "cls.predictions.transform.dense",
                    "cls.predictions.transform.LayerNorm",
                    "cls.predictions.bias",
                    "cls.predictions.decoder",
                    "cls.predictions.decoder.bias",
                ];
                return Ok(Self { class: "Bert", prefix: "bert.", offset: 0, masked });
            }
        };
        let masked = [
            "lm_head.dense",
            "lm_head.layer_norm",
            "lm_head.bias",
            "lm_head.decoder",
            "lm_head.decoder.bias",
        ];
        // Positions count from behind the padding id.
        let offset = config.count("pad_token_id")? + 1;
        Ok(Self { class, prefix: "roberta.", offset, masked })
    }

    fn is_bert(&self) -> bool {
        self.class == "Bert"
    }

    /// `pooler` is the name of BERT's pooler.
    fn head<'a>(&self, o: &Options, head: Head, pooler: &'a str) -> TextHead<'a> {
        let [dense, norm, shared, decoder, bias] = self.masked;
        let (first, scores) = if self.is_bert() {
            (pooler, "classifier")
        } else {
            ("classifier.dense", "classifier.out_proj")
        };
        let phi = if self.is_bert() { o.phi } else { NamedActivation::plain(Function::GeluErf) };
        let masked = MaskedTokens {
            dense,
            norm,
            phi,
            eps: o.eps,
            decoder,
            bias,
            shared_bias: Some(shared),
            dim: o.dim,
            embedding: o.dim,
            vocabulary: o.vocabulary,
        };
        let phi = NamedActivation::plain(Function::Tanh);
        TextHead { head, tied: o.tied, masked, classes: Classes { dense: first, phi, scores } }
    }
}

pub(crate) fn bert(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, family, .. } = model;
    let o = Options::read(model)?;
    no_decoder(config)?;
    let kin = Kin::of(config, family)?;
    let context = o.context(config, kin.offset)?;
    let both = config.architecture()? == Some("BertForPreTraining");
    let head = if both { Head::Vocabulary } else { Head::of(config, kin.class, HEADS)? };
    match family {
        "bert" => model.candle_has(head, &[Head::Vocabulary])?,
        "xlm-roberta" => model.candle_has(head, &[Head::Classes])?,
        _ => model.no_candle()?,
    }
    let root = files.prefix(kin.prefix);
    let embeddings = Embeddings {
        root,
        dim: o.dim,
        eps: o.eps,
        positions: [o.positions, kin.offset, context],
        types: Some(config.size("type_vocab_size")?),
    };
    let pooler = format!("{root}pooler.dense");
    let end = kin.head(&o, head, &pooler);
    let tie = end.tie(model, embeddings.table("word", o.vocabulary))?;
    let mut net = Net::default();
    embeddings.put(&mut net, tie.first.clone(), o.vocabulary);
    let layers = (0..o.layers).map(|i| format!("{root}encoder.layer.{i}"));
    let layers = o.layers(Names::BERT).all(&mut net.weights, layers);
    net.push(layers);
    let ties = end.put(model, &mut net, tie)?;
    let mut mapping = asides(net.mapping(Input::tokens(context))?);
    let other = "the head of another task";
    if head == Head::Vocabulary {
        mapping = mapping
            .aside(kin.masked[2], "a head that is not tied has a bias of its own")
            .aside("cls.seq_relationship.weight", other)
            .aside("cls.seq_relationship.bias", other);
    } else {
        mapping = mapping.aside(if kin.is_bert() { "cls.*" } else { "lm_head.*" }, other);
    }
    if both {
        mapping = mapping.note("of the model's two outputs, the scores of the vocabulary");
    }
    Ok(ties.into_iter().fold(mapping, Mapping::tied))
}
