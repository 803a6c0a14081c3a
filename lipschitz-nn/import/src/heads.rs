//! What a model computes behind its body, by the name of its class.

use lipschitz_nn::Error;

use crate::config::ConfigReader;
use crate::expression::WeightMap;
use crate::nodes::linear;
use lipschitz_nn::graph::Node;

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
];

impl Head {
    /// The head of the class that the config names, one of those that a family has.
    ///
    /// # Errors
    /// [`Error::File`] if the class is another.
    pub(crate) fn of(config: &ConfigReader, class: &str, known: &[Self]) -> Result<Self, Error> {
        let Some(name) = config.architecture()? else { return Ok(Self::Hidden) };
        let found = name
            .strip_prefix(class)
            .and_then(|end| ENDS.iter().find(|(known, _)| *known == end))
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
