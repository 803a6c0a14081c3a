//! Why data cannot be used.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use lipschitz_nn::graph::Input;

use crate::memory::size;

/// Any error of the tokenizers library.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An error of this crate. Its text is complete, causes and all, in one line; it says what is
/// wrong, and the command line adds what to do where that is a matter of keys and flags.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that is missing or does not hold what it should, or candle's own error.
    #[error("{0}")]
    Network(#[from] lipschitz_nn::Error),
    /// A directory that is not there.
    #[error("{}: no such directory", .0.display())]
    NoDirectory(PathBuf),
    /// Examples that are no longer what a model was trained on.
    #[error(
        "{0}: is not what the model was trained on any more, so it cannot be told which examples it has \
         not seen; give the data as they were, or a copy under another name to use all of them"
    )]
    Changed(String),
    /// A file that is not text.
    #[error("{}: is not UTF-8: byte {offset} is 0x{byte:02x}; convert the file", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where the first byte is that is not UTF-8.
        offset: usize,
        /// That byte.
        byte: u8,
    },
    /// Something wrong with one of several texts.
    #[error("{name}: {error}")]
    In {
        /// The file or the generator.
        name: String,
        /// What is wrong with it.
        #[source]
        error: Box<Error>,
    },
    /// A text too short to be split.
    #[error(
        "{name}: too short, its {characters} characters make {train} tokens to train on and {val} \
         to validate, and each part needs at least two; give a longer text"
    )]
    TooShort {
        /// The file or the generator.
        name: String,
        /// Characters of the whole text.
        characters: usize,
        /// Tokens to train on.
        train: usize,
        /// Tokens to validate on.
        val: usize,
    },
    /// A text too short to be evaluated.
    #[error(
        "{name}: too short, its {characters} characters make {tokens} tokens, and an evaluation \
         needs at least two; give a longer text"
    )]
    TooShortToEvaluate {
        /// The file.
        name: String,
        /// Characters of the text.
        characters: usize,
        /// Tokens of it.
        tokens: usize,
    },
    /// Token shards too short to be used.
    #[error(
        "{name}: {train} tokens to train on and {val} to validate; each part needs at least two"
    )]
    TooFewTokens {
        /// The directory.
        name: String,
        /// Tokens to train on.
        train: usize,
        /// Tokens to validate on.
        val: usize,
    },
    /// A batch of no windows, or of windows of no tokens.
    #[error("a batch needs at least one window of at least one token")]
    EmptyBatch,
    /// A window longer than the training text.
    #[error(
        "{name}: its {tokens} training tokens hold no window of {context} and the token after it; \
         give a longer text or a shorter context"
    )]
    NoWindow {
        /// The file or the generator.
        name: String,
        /// Tokens to train on.
        tokens: usize,
        /// Tokens of a window.
        context: usize,
    },
    /// A validation split shorter than the published evaluation.
    #[error(
        "{name}: the `paper` protocol reads {needed} validation tokens and there are {tokens}; \
         use the `full` protocol"
    )]
    TooShortForPaper {
        /// The file or the generator.
        name: String,
        /// Tokens that the protocol reads.
        needed: usize,
        /// Tokens to validate on.
        tokens: usize,
    },
    /// The published evaluation, asked for of images.
    #[error("the `paper` protocol reads text; other data is evaluated by `full`")]
    PaperReadsText,
    /// A held-out split without a single input.
    #[error("the held-out split is empty; give more data")]
    EmptySplit,
    /// A network that reads no tokens, where tokens are needed.
    #[error("the model reads no tokens")]
    ReadsNoTokens,
    /// A network that gives one output for a whole text, where one for each token is needed.
    #[error(
        "the model gives one output for a whole text, not one for each token, so it predicts no \
         next tokens"
    )]
    PredictsNoTokens,
    /// A network that would be told what it is to predict.
    #[error(
        "`{0}` attends to tokens that come later, so that the next token is no prediction: set its `causal` \
         to true"
    )]
    LooksAhead(String),
    /// A network with fewer outputs than the data has tokens or classes, or another number of them
    /// than it has numbers.
    #[error(
        "the model has {outputs} outputs, and the data {wanted} tokens, classes or numbers: it does \
         not predict this data"
    )]
    TooFewOutputs {
        /// Of the network.
        outputs: usize,
        /// Of the data.
        wanted: usize,
    },
    /// A network whose embedding has fewer rows than the data has tokens.
    #[error(
        "{name}: has {tokens} tokens, and the model's embedding {vocabulary} rows; give it as many, or \
         take a tokenizer of no more"
    )]
    TooFewTokensKnown {
        /// Of the data.
        name: String,
        /// Rows of the embedding.
        vocabulary: usize,
        /// Tokens of the data.
        tokens: usize,
    },
    /// A network that reads something else than the data.
    #[error(
        "model and data do not fit: the model reads {reads}{}",
        holds.as_ref().map_or(String::new(), |holds| format!(", and the data holds {holds}"))
    )]
    Misfit {
        /// What the model reads, in words.
        reads: String,
        /// What the data holds, where that is known.
        holds: Option<String>,
    },
    /// A config that says of its data what the data does not.
    #[error("{name}: data.{key} is {said}, and the data has {found}; leave the key out or mend it")]
    Contradiction {
        /// The file or directory.
        name: String,
        /// The key.
        key: &'static str,
        /// Its value.
        said: String,
        /// What the data has.
        found: String,
    },
    /// A class that cannot be on both sides of a split.
    #[error(
        "{name}: {what}, and one is needed to train on and one to hold out; give more, or data that \
         is held out"
    )]
    SingleExample {
        /// The file or directory.
        name: String,
        /// What has it.
        what: String,
    },
    /// Numbers to predict, where classes are needed, or the other way around.
    #[error("{name}: holds {holds} to predict, and {wanted} are needed here")]
    OtherTargets {
        /// The file or directory.
        name: String,
        /// What it holds.
        holds: &'static str,
        /// What is needed.
        wanted: &'static str,
    },
    /// Data whose kind is not seen from its files.
    #[error(
        "{}: holds no data for a model of images or vectors: a folder of each class with PNG or \
         JPEG files, files of MNIST or CIFAR, or a .safetensors or .npz file with x and y",
        .0.display()
    )]
    UnknownKind(PathBuf),
    /// A model of tokens that does not know how text becomes tokens.
    #[error(
        "the checkpoint holds no tokenizer, so text cannot be read for it; give a directory of \
         token shards"
    )]
    NoTokenizer,
    /// A vocabulary of characters that lists one of them twice.
    #[error("the tokenizer lists the character {0:?} twice")]
    RepeatedCharacter(char),
    /// A tokenizer that the tokenizers library does not read, or ids that it does not decode.
    #[error("{}", one_line(.0))]
    Tokenizer(#[source] BoxError),
    /// A text that the tokenizers library does not encode.
    #[error("the tokenizer cannot encode the text: {}", one_line(.0))]
    Encode(#[source] BoxError),
    /// A character outside the vocabulary.
    #[error(
        "the character {character:?} (number {number} of the text) is not among the {known} the \
         model knows; remove it"
    )]
    UnknownCharacter {
        /// The character.
        character: char,
        /// Its place in the text, from 1.
        number: usize,
        /// Characters of the vocabulary.
        known: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is out of range: the tokenizer has {size}")]
    UnknownId {
        /// The id.
        id: u32,
        /// Ids of the vocabulary.
        size: usize,
    },
    /// A file that is not a token shard.
    #[error(
        "{}: is not a token shard: one begins with {magic} in a header of {header} bytes",
        path.display()
    )]
    NotAShard {
        /// The file.
        path: PathBuf,
        /// The number that a shard begins with.
        magic: i32,
        /// Bytes before the tokens.
        header: usize,
    },
    /// More tokens than the header of a shard can count.
    #[error("a shard has at most {} tokens", i32::MAX)]
    ShardTooLong,
    /// A directory without shards of one part.
    #[error("{}: holds no shard *_{part}_*.bin", directory.display())]
    NoShards {
        /// The directory.
        directory: PathBuf,
        /// `train` or `val`.
        part: &'static str,
    },
    /// A shard that would be trained on and held out.
    #[error("{}: is a shard of both parts by its name; keep _train_ or _val_ in it", .0.display())]
    BothParts(PathBuf),
    /// Shards without a tokenizer, of a vocabulary that is not given either.
    #[error(
        "{}: holds no tokenizer.json, so the size of the vocabulary is unknown",
        .0.display()
    )]
    UnknownVocabulary(PathBuf),
    /// A token of a shard that the vocabulary does not have.
    #[error(
        "{}: token number {number} is {id}, beyond the vocabulary of {vocabulary}",
        path.display()
    )]
    BeyondVocabulary {
        /// The shard.
        path: PathBuf,
        /// The place of the token, from 0.
        number: usize,
        /// Its id.
        id: u32,
        /// Ids of the vocabulary.
        vocabulary: usize,
    },
    /// A number of a config that is out of its range.
    #[error("data.{key} is {found}; it must be from {least} to {most}")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        found: usize,
        /// The smallest that is allowed.
        least: usize,
        /// The largest that is allowed.
        most: usize,
    },
    /// A share of a text to hold out that is none.
    #[error("data.val_fraction is {0}; it must be above 0 and below 1")]
    HeldOut(f64),
    /// A part of a text to hold out, and a file.
    #[error(
        "give one of data.val_path and data.val_fraction, and take the other out (`--set \
         data.val_fraction=`): what a path names is held out as a whole"
    )]
    TwoHeldOut,
    /// What is held out is what is trained on.
    #[error("{}: is trained on and held out; name another in data.val_path, or take it out", .0.display())]
    HeldOutIsTrained(PathBuf),
    /// Tokens of another tokenizer.
    #[error("{}: holds tokens of another tokenizer than the model's", .0.display())]
    OtherTokenizer(PathBuf),
    /// More memory than there is.
    #[error(
        "{what} takes at least {} of memory, and {} of {} are free",
        size(*need),
        size(*free as f64),
        size(*total as f64)
    )]
    Memory {
        /// What takes it.
        what: String,
        /// How many bytes it takes at least.
        need: f64,
        /// Bytes that are free.
        free: u64,
        /// Bytes that there are.
        total: u64,
    },
    /// A tokenizer that makes texts very much longer.
    #[error(
        "the tokenizer can make {growth:.0} bytes out of each byte of a text; up to {most} can be \
         worked with"
    )]
    Explosive {
        /// Bytes out of one.
        growth: f64,
        /// As many as are allowed.
        most: f64,
    },
}

impl Error {
    /// Data that a network with this input does not read.
    pub fn misfit(input: Input) -> Self {
        Self::Misfit { reads: in_words(input), holds: None }
    }

    /// Data of another shape than a network with this input reads.
    pub(crate) fn misfit_of(reads: Input, holds: Input) -> Self {
        Self::Misfit { reads: in_words(reads), holds: Some(in_words(holds)) }
    }

    /// The same error, said of one of several texts.
    #[must_use]
    pub fn of(self, name: &str) -> Self {
        Self::In { name: name.to_string(), error: Box::new(self) }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Network(error.into())
    }
}

/// What a network with this input reads.
fn in_words(input: Input) -> String {
    match input {
        Input::Tokens { .. } => "tokens".to_string(),
        Input::Pixels { channels, height, width } => {
            format!("images of {channels} x {height} x {width}")
        }
        Input::Vector { dim } => format!("vectors of {dim} numbers"),
    }
}

/// An error about what a file or directory holds.
pub(crate) fn unusable(path: &Path, what: impl Into<BoxError>) -> Error {
    lipschitz_nn::Error::file(path, what).into()
}

/// Whether a number of a config is in its range.
pub(crate) fn in_range(
    key: &'static str,
    found: usize,
    range: RangeInclusive<usize>,
) -> Result<(), Error> {
    let (least, most) = (*range.start(), *range.end());
    if range.contains(&found) { Ok(()) } else { Err(Error::Range { key, found, least, most }) }
}

/// As [`in_range`], of a number that may be absent.
pub(crate) fn in_range_if(
    key: &'static str,
    found: Option<usize>,
    range: RangeInclusive<usize>,
) -> Result<(), Error> {
    found.map_or(Ok(()), |found| in_range(key, found, range))
}

/// What another library says, on one line.
pub(crate) fn one_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
