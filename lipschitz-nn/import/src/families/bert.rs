//! BERT and its kin: encoders whose norms come after each sum.

use crate::activation::NamedActivation;
use crate::expression::{TensorExpr, WeightMap};
use crate::heads::Head;
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

const ONE_SEGMENT: &str = "every token is in the first segment (token type 0), and none is padding";

pub(crate) fn bert(model: &ModelDir) -> Result<Mapping, Error> {
    let &ModelDir { config, files, family, .. } = model;
    let roberta = family != "bert";
    let (class, prefix) = match family {
        "roberta" => ("Roberta", "roberta."),
        "xlm-roberta" => ("XLMRoberta", "roberta."),
        _ => ("Bert", "bert."),
    };
    let dim = config.size("hidden_size")?;
    let heads = config.heads("num_attention_heads", dim)?;
    let eps = config.eps("layer_norm_eps")?;
    let (vocabulary, positions) =
        (config.size("vocab_size")?, config.size("max_position_embeddings")?);
    let types = config.size("type_vocab_size")?;
    let hidden = config.size("intermediate_size")?;
    let layers = config.layers("num_hidden_layers", files.len())?;
    let phi = NamedActivation::read(config, "hidden_act")?;
    for key in ["is_decoder", "add_cross_attention"] {
        config.only(key, false)?;
    }
    config.assume("position_embedding_type", &"absolute".into())?;
    let tied = config.flag("tie_word_embeddings")?;
    // RoBERTa counts positions from behind the padding id.
    let offset = if roberta { config.count("pad_token_id")? + 1 } else { 0 };
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
    let known = [Head::Vocabulary, Head::Classes, Head::TokenClasses, Head::Answers];
    let head = if config.architecture()? == Some("BertForPreTraining") {
        Head::Vocabulary
    } else {
        Head::of(config, class, &known)?
    };
    let decoder = if roberta { "lm_head.decoder" } else { "cls.predictions.decoder" };
    let tied = tied && head == Head::Vocabulary;
    let own = TensorExpr::new(format!("{decoder}.weight"), &[vocabulary, dim]);
    let tie = model.tie(tied, table("word", vocabulary), own)?;
    weights.put("embedding.weight", tie.first.clone());
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
    let mut aside = vec![
        ("position_ids", "positions count from 0"),
        ("embeddings.token_type_ids", "all are 0"),
    ];
    let unread = "the head does not read it";
    if head != Head::Classes || roberta {
        aside.extend([("pooler.dense.weight", unread), ("pooler.dense.bias", unread)]);
    }
    let mut ties = Vec::new();
    match head {
        Head::Hidden => {}
        Head::Vocabulary => {
            let [dense, norm, bias] = if roberta {
                ["lm_head.dense", "lm_head.layer_norm", "lm_head.bias"]
            } else {
                [
                    "cls.predictions.transform.dense",
                    "cls.predictions.transform.LayerNorm",
                    "cls.predictions.bias",
                ]
            };
            weights.linear("transform", dense, dim, dim, true);
            weights.norm("transform_norm", norm, dim, true);
            weights.put("head.weight", tie.second.clone());
            // An untied head has a bias of its own, and leaves this one unread.
            let shared = TensorExpr::new(bias, &[vocabulary]);
            let own = TensorExpr::new(format!("{decoder}.bias"), &[vocabulary]);
            let biases = model.tie(tied, shared, own)?;
            weights.put("head.bias", biases.second.clone());
            aside.push((bias, "a head that is not tied has a bias of its own"));
            ties.extend([tie, biases]);
            nodes.push(linear("transform", dim, dim, true));
            nodes.extend(if roberta {
                NamedActivation::plain(Function::GeluErf).nodes()
            } else {
                phi.nodes()
            });
            nodes.push(layer_norm("transform_norm", dim, eps, true));
            nodes.push(linear("head", dim, vocabulary, true));
            aside.extend([
                ("cls.seq_relationship.weight", "the head of another task"),
                ("cls.seq_relationship.bias", "the head of another task"),
            ]);
        }
        Head::Classes => {
            let (dense, last) = if roberta {
                ("classifier.dense".to_string(), "classifier.out_proj")
            } else {
                (format!("{root}pooler.dense"), "classifier")
            };
            let labels = head.labels(config)?;
            weights.linear("pooler", &dense, dim, dim, true);
            weights.linear("head", last, labels, dim, true);
            nodes.push(Node::new("", Op::FirstToken));
            nodes.push(linear("pooler", dim, dim, true));
            nodes.push(Node::new("", Op::Activation { function: Function::Tanh, scale: 1.0 }));
            nodes.push(linear("head", dim, labels, true));
        }
        Head::TokenClasses | Head::Answers => {
            head.of_tokens(config, &mut weights, &mut nodes, dim)?;
        }
    }
    let mut mapping = Mapping::new(Input::tokens(context), nodes, weights)?.note(ONE_SEGMENT);
    mapping.aside.extend(aside.into_iter().map(|(end, why)| (end.to_string(), why)));
    if config.architecture()? == Some("BertForPreTraining") {
        mapping = mapping.note("of the model's two outputs, the scores of the vocabulary");
    }
    Ok(ties.into_iter().fold(mapping, Mapping::tied))
}

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
    let tied = config.flag("tie_word_embeddings")?;
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
    let known = [Head::Vocabulary, Head::Classes, Head::TokenClasses, Head::Answers];
    let head = Head::of(config, "DistilBert", &known)?;
    let own = TensorExpr::new("vocab_projector.weight", &[vocabulary, dim]);
    let tie = model.tie(tied && head == Head::Vocabulary, table("word", vocabulary), own)?;
    weights.put("embedding.weight", tie.first.clone());
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
    match head {
        Head::Hidden => {}
        Head::Vocabulary => {
            weights.linear("transform", "vocab_transform", dim, dim, true);
            weights.norm("transform_norm", "vocab_layer_norm", dim, true);
            weights.put("head.weight", tie.second.clone());
            weights.vector("head.bias", "vocab_projector.bias", vocabulary);
            nodes.push(linear("transform", dim, dim, true));
            nodes.extend(phi.nodes());
            nodes.push(layer_norm("transform_norm", dim, encoder.eps, true));
            nodes.push(linear("head", dim, vocabulary, true));
        }
        Head::Classes => {
            // Dropouts of the classifier are inert; its activation is in the library's code.
            let labels = head.labels(config)?;
            weights.linear("pooler", "pre_classifier", dim, dim, true);
            weights.linear("head", "classifier", labels, dim, true);
            nodes.push(Node::new("", Op::FirstToken));
            nodes.push(linear("pooler", dim, dim, true));
            nodes.push(Node::new("", Op::Activation { function: Function::Relu, scale: 1.0 }));
            nodes.push(linear("head", dim, labels, true));
        }
        Head::TokenClasses | Head::Answers => {
            head.of_tokens(config, &mut weights, &mut nodes, dim)?;
        }
    }
    Ok(Mapping::new(Input::tokens(context), nodes, weights)?
        .note("no token is padding")
        .aside("position_ids", "positions count from 0")
        .tied(tie))
}
