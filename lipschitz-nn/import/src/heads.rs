//! What a model computes behind its body, by the name of its class.

use lipschitz_nn::Error;

use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::expression::{TensorExpr, WeightMap};
use crate::model_dir::{ModelDir, Tie};
use crate::net::Net;
use crate::nodes::linear;
use lipschitz_nn::graph::{Node, Op};

/// A head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// None: the vectors of all tokens. Also where no class is named, since the library then takes
    /// the base model.
    Hidden,
    /// Scores of all tokens of the vocabulary, for each token.
    Vocabulary,
    /// Scores of classes, for the whole sequence.
    Classes,
    /// Scores of classes, for each token.
    TokenClasses,
    /// Scores of each token as the begin and the end of an answer.
    Answers,
    /// The score of each token to be another than the text had.
    Replaced,
}

/// What a class is called behind the name of its family.
const ENDS: &[(&str, Head)] = &[
    ("Model", Head::Hidden),
    ("ForCausalLM", Head::Vocabulary),
    ("LMHeadModel", Head::Vocabulary),
    ("ForMaskedLM", Head::Vocabulary),
    ("ForSequenceClassification", Head::Classes),
    ("ForImageClassification", Head::Classes),
    ("ForTokenClassification", Head::TokenClasses),
    ("ForQuestionAnswering", Head::Answers),
    ("ForPreTraining", Head::Replaced),
];

impl Head {
    /// The head of the class that the config names, one of those that a family has.
    ///
    /// # Errors
    /// [`Error::File`] if the class is another.
    pub(crate) fn of(config: &ConfigReader, class: &str, known: &[Self]) -> Result<Self, Error> {
        Self::of_any(config, &[class], known)
    }

    /// The same, where classes of the family have several names.
    pub(crate) fn of_any(
        config: &ConfigReader,
        classes: &[&str],
        known: &[Self],
    ) -> Result<Self, Error> {
        let Some(name) = config.architecture()? else { return Ok(Self::Hidden) };
        let found = classes
            .iter()
            .filter_map(|class| name.strip_prefix(class))
            .find_map(|end| ENDS.iter().find(|(known, _)| *known == end))
            .map(|(_, head)| *head)
            .filter(|head| *head == Self::Hidden || known.contains(head));
        found.ok_or_else(|| config.no_class(name))
    }

    /// Number of scores.
    ///
    /// # Errors
    /// [`Error::File`] if the config's labels are no list of labels, or not two for answers.
    pub(crate) fn labels(self, config: &ConfigReader) -> Result<usize, Error> {
        let labels = config.labels()?;
        if self == Self::Answers && labels != 2 {
            return Err(config.wrong("num_labels", format!("is {labels}, where answers have 2")));
        }
        Ok(labels)
    }

    /// The linear map of each token to scores, of [`Head::TokenClasses`] and [`Head::Answers`].
    pub(crate) fn of_tokens(
        self,
        config: &ConfigReader,
        weights: &mut WeightMap,
        nodes: &mut Vec<Node>,
        dim: usize,
    ) -> Result<(), Error> {
        let labels = self.labels(config)?;
        let from = if self == Self::Answers { "qa_outputs" } else { "classifier" };
        weights.linear("head", from, labels, dim, true);
        nodes.push(linear("head", dim, labels, true));
        Ok(())
    }
}

/// What a model of text computes behind its layers.
pub(crate) struct TextHead<'a> {
    pub head: Head,
    /// Whether the config ties the scores of the vocabulary to the embedding.
    pub tied: bool,
    pub masked: MaskedTokens<'a>,
    pub classes: Classes<'a>,
}

/// Scores of classes from the first token: a linear map, a function, and the scores.
pub(crate) struct Classes<'a> {
    /// Name of the first map.
    pub dense: &'a str,
    pub phi: NamedActivation,
    /// Name of the second.
    pub scores: &'a str,
}

/// Scores of the vocabulary as models of masked tokens have them: a linear map, a function, a norm,
/// and a matrix that may be the embedding's.
pub(crate) struct MaskedTokens<'a> {
    /// Names of the first map and of the norm.
    pub dense: &'a str,
    pub norm: &'a str,
    pub phi: NamedActivation,
    pub eps: f64,
    /// Names of the last map and of its bias.
    pub decoder: &'a str,
    pub bias: &'a str,
    /// A bias that this one is tied to, where the matrix is.
    pub shared_bias: Option<&'a str>,
    /// Width of a token, and of the embedding.
    pub dim: usize,
    pub embedding: usize,
    pub vocabulary: usize,
}

impl TextHead<'_> {
    /// The embedding, and the matrix of the scores.
    pub(crate) fn tie(&self, model: &ModelDir, embedding: TensorExpr) -> Result<Tie, Error> {
        let MaskedTokens { decoder, embedding: dim, vocabulary, .. } = self.masked;
        let matrix = TensorExpr::new(format!("{decoder}.weight"), &[vocabulary, dim]);
        model.tie(self.tied && self.head == Head::Vocabulary, embedding, matrix)
    }

    /// Adds the nodes; what became of the tensors that may be tied.
    pub(crate) fn put(self, model: &ModelDir, net: &mut Net, tie: Tie) -> Result<Vec<Tie>, Error> {
        let Self { head, tied, masked, classes } = self;
        match head {
            Head::Vocabulary => {
                let biases = masked.put(model, net, tied, tie.second.clone())?;
                return Ok(biases.into_iter().chain([tie]).collect());
            }
            Head::Classes => {
                let (dim, labels) = (masked.dim, head.labels(model.config)?);
                net.op(Op::FirstToken);
                net.linear("pooler", classes.dense, [dim, dim]);
                net.activation(classes.phi);
                net.linear("head", classes.scores, [labels, dim]);
            }
            Head::TokenClasses | Head::Answers => {
                head.of_tokens(model.config, &mut net.weights, &mut net.nodes, masked.dim)?;
            }
            Head::Hidden | Head::Replaced => {}
        }
        Ok(Vec::new())
    }
}

impl MaskedTokens<'_> {
    fn put(
        self,
        model: &ModelDir,
        net: &mut Net,
        tied: bool,
        matrix: TensorExpr,
    ) -> Result<Option<Tie>, Error> {
        let Self { dense, norm, phi, eps, dim, embedding, vocabulary, .. } = self;
        net.linear("transform", dense, [embedding, dim]);
        net.activation(phi);
        net.layer_norm("transform_norm", norm, embedding, eps);
        net.weights.put("head.weight", matrix);
        net.push(linear("head", embedding, vocabulary, true));
        let own = TensorExpr::new(self.bias, &[vocabulary]);
        let Some(shared) = self.shared_bias else {
            net.weights.put("head.bias", own);
            return Ok(None);
        };
        let biases = model.tie(tied, TensorExpr::new(shared, &[vocabulary]), own)?;
        net.weights.put("head.bias", biases.second.clone());
        Ok(Some(biases))
    }
}
