//! BERT and its kin: encoders whose norms come after each sum.

use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::expression::{TensorExpr, WeightMap};
use crate::formats::files::Files;
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::nodes::{attention, blocks, layer_norm, linear, residual};
use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::Dialect;
use lipschitz_nn::graph::{Attention, Function, Input, Node, Op};

/// Sizes of an encoder, and how its tensors are called.
struct Encoder {
    dim: usize,
    heads: usize,
    hidden: usize,
    eps: f64,
    layers: usize,
    phi: NamedActivation,
    /// Query, key, value, output, first norm, up, down, second norm.
    names: [&'static str; 8],
}

impl Encoder {
    /// The body of one block: a sum and a norm, twice.
    fn block(&self, weights: &mut WeightMap, to: &str, from: &str) -> Vec<Node> {
        let Self { dim, heads, hidden, eps, .. } = *self;
        let [query, key, value, output, first, up, down, second] =
            self.names.map(|name| format!("{from}.{name}"));
        for (ours, theirs) in [("query", query), ("key", key), ("value", value), ("output", output)]
        {
            weights.linear(&format!("{to}.attention.{ours}"), &theirs, dim, dim, true);
        }
        weights.norm(&format!("{to}.attention_norm"), &first, dim, true);
        weights.linear(&format!("{to}.mlp.up"), &up, hidden, dim, true);
        weights.linear(&format!("{to}.mlp.down"), &down, dim, hidden, true);
        weights.norm(&format!("{to}.mlp_norm"), &second, dim, true);
        let mixer = Attention {
            causal: false,
            bias: true,
            output_bias: true,
            ..Attention::new(dim, heads, dim / heads)
        };
        let mut mlp = vec![linear("up", dim, hidden, true)];
        mlp.extend(self.phi.nodes());
        mlp.push(linear("down", hidden, dim, true));
        vec![
            residual("attention", vec![attention(mixer)]),
            layer_norm("attention_norm", dim, eps, true),
            residual("mlp", mlp),
            layer_norm("mlp_norm", dim, eps, true),
        ]
    }
}

fn divides(config: &ConfigReader, key: &str, heads: usize, dim: usize) -> Result<(), Error> {
    if dim.is_multiple_of(heads) {
        return Ok(());
    }
    Err(config.wrong(key, format!("is {heads}, which does not divide {dim}")))
}

/// What the model computes behind its encoder.
enum Head {
    /// The vectors of all tokens.
    Hidden,
    /// A distribution over the vocabulary for each token.
    Vocabulary,
    /// Scores of the whole sequence.
    Classes,
}

fn head(config: &ConfigReader, class: &str) -> Result<Head, Error> {
    Ok(match config.architecture()?.map(|name| name.strip_prefix(class).ok_or(name)) {
        None | Some(Ok("Model")) => Head::Hidden,
        Some(Ok("ForMaskedLM")) => Head::Vocabulary,
        Some(Ok("ForSequenceClassification")) => Head::Classes,
        Some(Ok(rest)) => {
            return Err(config
                .wrong("architectures", format!("names `{class}{rest}`, which is not supported")));
        }
        Some(Err(name)) => {
            return Err(
                config.wrong("architectures", format!("names `{name}`, which is not supported"))
            );
        }
    })
}

/// Number of classes of a classifier: the rows of its last matrix.
fn classes(files: &Files, weight: &str) -> Result<usize, Error> {
    match files.get(weight).map(|info| info.shape.as_slice()) {
        Some([classes, _]) => Ok(*classes),
        Some(shape) => Err(Error::Weight {
            name: weight.into(),
            what: format!("has shape {shape:?}, wanted a matrix"),
        }),
        None => Err(Error::Weight { name: weight.into(), what: "is missing".into() }),
    }
}

const ONE_SEGMENT: &str = "every token is in the first segment (token type 0), and none is padding";

pub(crate) fn bert(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, family, .. } = model;
    let roberta = family != "bert";
    let (class, prefix) = match family {
        "roberta" => ("Roberta", "roberta."),
        "xlm-roberta" => ("XLMRoberta", "roberta."),
        _ => ("Bert", "bert."),
    };
    let (dim, heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
    divides(config, "num_attention_heads", heads, dim)?;
    let eps = config.eps("layer_norm_eps", 1e-12)?;
    let (vocabulary, positions) =
        (config.size("vocab_size")?, config.size("max_position_embeddings")?);
    let types = config.size_or("type_vocab_size", if roberta { 1 } else { 2 })?;
    let hidden = config.size("intermediate_size")?;
    let layers = config.layers("num_hidden_layers", files.len())?;
    let phi = NamedActivation::read(config, "hidden_act", "gelu")?;
    for key in ["is_decoder", "add_cross_attention"] {
        config.only(key, false)?;
    }
    if let Some(kind) = config.text("position_embedding_type")?
        && kind != "absolute"
    {
        return Err(
            config.wrong("position_embedding_type", format!("is `{kind}`, which is not supported"))
        );
    }
    let tied = config.flag("tie_word_embeddings", true)?;
    // RoBERTa counts positions from behind the padding id.
    let offset = if roberta { config.size_or("pad_token_id", 1)? + 1 } else { 0 };
    let context = positions.checked_sub(offset).filter(|n| *n > 0);
    let context = context
        .ok_or_else(|| config.wrong("max_position_embeddings", format!("is {positions}")))?;
    let encoder = Encoder {
        dim,
        heads,
        hidden,
        eps,
        layers,
        phi,
        names: [
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "attention.output.LayerNorm",
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        ],
    };
    let root = files.prefix(prefix);
    let mut weights = WeightMap::default();
    let table = |name: &str, rows: usize| {
        TensorExpr::new(format!("{root}embeddings.{name}_embeddings.weight"), &[rows, dim])
    };
    let embedding = table("word", vocabulary);
    weights.put("embedding.weight", embedding.clone());
    let first_type = table("token_type", types).rows(0, 1);
    weights.put(
        "positions.weight",
        table("position", positions).rows(offset, context).add_row(first_type),
    );
    weights.norm("embedding_norm", &format!("{root}embeddings.LayerNorm"), dim, true);
    let bodies = (0..encoder.layers)
        .map(|i| {
            encoder.block(&mut weights, &format!("blocks.{i}"), &format!("{root}encoder.layer.{i}"))
        })
        .collect();
    let mut nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary, dim }),
        Node::new("positions", Op::Positions { length: context, dim }),
        layer_norm("embedding_norm", dim, eps, true),
        blocks(bodies),
    ];
    let pooler = "pooler.dense";
    let mut aside = vec![
        ("position_ids", "positions count from 0"),
        ("embeddings.token_type_ids", "all are 0"),
    ];
    match head(config, class)? {
        Head::Hidden => aside.extend([
            ("pooler.dense.weight", "the output is the vectors of all tokens"),
            ("pooler.dense.bias", "the output is the vectors of all tokens"),
        ]),
        Head::Vocabulary => {
            let [dense, norm, bias, decoder] = if roberta {
                ["lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder"]
            } else {
                [
                    "cls.predictions.transform.dense",
                    "cls.predictions.transform.LayerNorm",
                    "cls.predictions.bias",
                    "cls.predictions.decoder",
                ]
            };
            weights.linear("transform", dense, dim, dim, true);
            weights.norm("transform_norm", norm, dim, true);
            let own = TensorExpr::new(format!("{decoder}.weight"), &[vocabulary, dim]);
            weights.put("head.weight", if tied { embedding } else { own });
            weights.vector("head.bias", bias, vocabulary);
            nodes.push(linear("transform", dim, dim, true));
            nodes.extend(if roberta {
                NamedActivation::plain(Function::GeluErf).nodes()
            } else {
                phi.nodes()
            });
            nodes.push(layer_norm("transform_norm", dim, eps, true));
            nodes.push(linear("head", dim, vocabulary, true));
            aside.extend([
                ("decoder.bias", "it is the same tensor as the head's bias"),
                ("pooler.dense.weight", "the head does not read it"),
                ("pooler.dense.bias", "the head does not read it"),
                ("cls.seq_relationship.weight", "the head of another task"),
                ("cls.seq_relationship.bias", "the head of another task"),
            ]);
            if tied {
                aside.push(("decoder.weight", "the head is the embedding"));
            }
        }
        Head::Classes => {
            let (dense, last) = if roberta {
                ("classifier.dense".to_string(), "classifier.out_proj")
            } else {
                (format!("{root}{pooler}"), "classifier")
            };
            let classes = classes(files, &format!("{last}.weight"))?;
            weights.linear("pooler", &dense, dim, dim, true);
            weights.linear("head", last, classes, dim, true);
            nodes.push(Node::new("", Op::FirstToken));
            nodes.push(linear("pooler", dim, dim, true));
            nodes.push(Node::new("", Op::Activation { function: Function::Tanh, scale: 1.0 }));
            nodes.push(linear("head", dim, classes, true));
        }
    }
    let mut mapping = Mapping::new(Input::tokens(context), nodes, weights)?.note(ONE_SEGMENT);
    mapping.aside.extend(aside.into_iter().map(|(end, why)| (end.to_string(), why)));
    Ok(mapping)
}

pub(crate) fn distilbert(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, dialect, .. } = model;
    let (dim, heads) = (config.size("dim")?, config.size("n_heads")?);
    divides(config, "n_heads", heads, dim)?;
    let (vocabulary, context) =
        (config.size("vocab_size")?, config.size("max_position_embeddings")?);
    // Sinusoidal positions are stored in the same table as learned ones.
    config.ignore(&["sinusoidal_pos_embds"]);
    let mut phi = NamedActivation::read(config, "activation", "gelu")?;
    if dialect == Dialect::Candle {
        phi = phi.approximate();
    }
    let tied = config.flag("tie_word_embeddings", true)?;
    let encoder = Encoder {
        dim,
        heads,
        hidden: config.size("hidden_dim")?,
        // The library writes it into its code.
        eps: 1e-12,
        layers: config.layers("n_layers", files.len())?,
        phi,
        names: [
            "attention.q_lin",
            "attention.k_lin",
            "attention.v_lin",
            "attention.out_lin",
            "sa_layer_norm",
            "ffn.lin1",
            "ffn.lin2",
            "output_layer_norm",
        ],
    };
    let root = files.prefix("distilbert.");
    let mut weights = WeightMap::default();
    let table = |name: &str, rows: usize| {
        TensorExpr::new(format!("{root}embeddings.{name}_embeddings.weight"), &[rows, dim])
    };
    let embedding = table("word", vocabulary);
    weights.put("embedding.weight", embedding.clone());
    weights.put("positions.weight", table("position", context));
    weights.norm("embedding_norm", &format!("{root}embeddings.LayerNorm"), dim, true);
    let bodies = (0..encoder.layers)
        .map(|i| {
            encoder.block(
                &mut weights,
                &format!("blocks.{i}"),
                &format!("{root}transformer.layer.{i}"),
            )
        })
        .collect();
    let mut nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary, dim }),
        Node::new("positions", Op::Positions { length: context, dim }),
        layer_norm("embedding_norm", dim, encoder.eps, true),
        blocks(bodies),
    ];
    let mut aside = vec![("position_ids", "positions count from 0")];
    match head(config, "DistilBert")? {
        Head::Hidden => {}
        Head::Vocabulary => {
            weights.linear("transform", "vocab_transform", dim, dim, true);
            weights.norm("transform_norm", "vocab_layer_norm", dim, true);
            let own = TensorExpr::new("vocab_projector.weight", &[vocabulary, dim]);
            weights.put("head.weight", if tied { embedding } else { own });
            weights.vector("head.bias", "vocab_projector.bias", vocabulary);
            nodes.push(linear("transform", dim, dim, true));
            nodes.extend(phi.nodes());
            nodes.push(layer_norm("transform_norm", dim, encoder.eps, true));
            nodes.push(linear("head", dim, vocabulary, true));
            if tied {
                aside.push(("vocab_projector.weight", "the head is the embedding"));
            }
        }
        Head::Classes => {
            // Dropouts of the classifier are inert; its activation is in the library's code.
            let classes = classes(files, "classifier.weight")?;
            weights.linear("pooler", "pre_classifier", dim, dim, true);
            weights.linear("head", "classifier", classes, dim, true);
            nodes.push(Node::new("", Op::FirstToken));
            nodes.push(linear("pooler", dim, dim, true));
            nodes.push(Node::new("", Op::Activation { function: Function::Relu, scale: 1.0 }));
            nodes.push(linear("head", dim, classes, true));
        }
    }
    let mut mapping =
        Mapping::new(Input::tokens(context), nodes, weights)?.note("no token is padding");
    mapping.aside.extend(aside.into_iter().map(|(end, why)| (end.to_string(), why)));
    Ok(mapping)
}
