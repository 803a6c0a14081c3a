//! Writes token shards from text, document by document.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use lipschitz_data::codec::Codec;
use lipschitz_data::corpus;
use lipschitz_data::shard::{MAX_VOCABULARY, ShardBuilder, files};
use lipschitz_data::text::{read, without_mark};
use lipschitz_nn::At;
use lipschitz_nn::checkpoint::{self, Tokenizer};
use serde::Deserialize;
use tokenizers::AddedToken;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// GPT-2's token between documents.
pub const SEPARATOR: &str = "<|endoftext|>";

/// Any error of the tokenizers library.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why no token shards are written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that cannot be read or written.
    #[error("{0}")]
    Network(#[from] lipschitz_nn::Error),
    /// A text or a tokenizer.
    #[error("{0}")]
    Data(#[from] lipschitz_data::Error),
    /// Files that are not GPT-2's.
    #[error(
        "{} and {}: are not GPT-2's vocabulary and merges: {}",
        vocabulary.display(),
        merges.display(),
        error.to_string().replace('\n', " ")
    )]
    NotGpt2 {
        /// `vocab.json`.
        vocabulary: PathBuf,
        /// `merges.txt`.
        merges: PathBuf,
        /// What the tokenizers library says.
        #[source]
        error: BoxError,
    },
    /// A tokenizer that the tokenizers library does not write.
    #[error("{0}")]
    Tokenizer(#[source] BoxError),
    /// A share of held-out tokens that is none.
    #[error("the share to hold out is {0}; it must be between 0 and 1")]
    HeldOut(f64),
    /// Shards of no tokens.
    #[error("a shard holds at least one token")]
    EmptyShard,
    /// More ids than 16 bits number.
    #[error(
        "the tokenizer has {0} tokens; a shard has 16 bits per token, up to {MAX_VOCABULARY} ids"
    )]
    TooManyIds(usize),
    /// A directory that has shards already.
    #[error("{}: is there already", .0.display())]
    Exists(PathBuf),
    /// Nothing to read.
    #[error("there is nothing to make shards of; name text files")]
    NoInputs,
    /// A file under two names, whose documents would be trained on and held out.
    #[error("{}: is named twice; name it once", .0.display())]
    NamedTwice(PathBuf),
    /// A line of a `.jsonl` file that is not JSON.
    #[error("{}: line {line} is not JSON: {error}", path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        error: serde_json::Error,
    },
    /// A line of a `.jsonl` file without a text.
    #[error("{}: line {line} has no string under `text`", path.display())]
    NoText {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A single document in a `.jsonl` file.
    #[error(
        "one document cannot be trained on and held out; give more, or a single text file, which \
         is cut"
    )]
    OneDocument,
    /// Hardly any text.
    #[error(
        "{train} tokens to train on and {val} held out are too few, each part needs two; give more text"
    )]
    TooFew {
        /// Tokens to train on.
        train: usize,
        /// Tokens that are held out.
        val: usize,
    },
}

/// A tokenizer as GPT-2's from its two files: byte-level pairs, `vocab.json` and `merges.txt`.
///
/// # Errors
/// One line that names the file that is missing or damaged.
pub fn gpt2_tokenizer(vocabulary: &Path, merges: &Path) -> Result<Tokenizer, Error> {
    for path in [vocabulary, merges] {
        File::open(path).at(path)?;
    }
    let name = |path: &Path| path.to_string_lossy().into_owned();
    let bpe = BPE::from_file(&name(vocabulary), &name(merges)).build();
    let bpe = bpe.map_err(|error| {
        let (vocabulary, merges) = (vocabulary.to_path_buf(), merges.to_path_buf());
        Error::NotGpt2 { vocabulary, merges, error }
    })?;
    let special = bpe.get_vocab().contains_key(SEPARATOR);
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer: tokenizers::Tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes));
    if special {
        let separator = AddedToken::from(SEPARATOR, true);
        tokenizer.add_special_tokens([separator]).map_err(Error::Tokenizer)?;
    }
    let text = tokenizer.to_string(false).map_err(Error::Tokenizer)?;
    let json = serde_json::from_str(&text).map_err(|e| Error::Tokenizer(e.into()))?;
    Ok(Tokenizer::Json { json })
}

/// Which shards are written.
pub struct ShardOptions<'a> {
    /// Text files, each one document, and `.jsonl` files with one per line, under the key `text`.
    pub inputs: &'a [PathBuf],
    /// Text into tokens.
    pub tokenizer: &'a Tokenizer,
    /// The directory.
    pub out: &'a Path,
    /// Tokens in a full shard.
    pub size: usize,
    /// Share of the tokens that is held out.
    pub val: f64,
}

/// What is written so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ShardCounts {
    /// Documents.
    pub documents: usize,
    /// Tokens to train on, and files.
    pub train: (usize, usize),
    /// Tokens held out, and files.
    pub val: (usize, usize),
}

/// Writes shards and the tokenizer. Each document begins with the separator, if the tokenizer has
/// one. Whole documents are held out, and of a single one the last part. `watch` hears of every
/// document.
///
/// # Errors
/// One line: a file that is missing or is no text, more tokens than 16 bits number, shards that are
/// there already, a full disk.
pub fn make(options: &ShardOptions, watch: &dyn Fn(ShardCounts)) -> Result<ShardCounts, Error> {
    if !(options.val > 0.0 && options.val < 1.0) {
        return Err(Error::HeldOut(options.val));
    }
    if options.size == 0 {
        return Err(Error::EmptyShard);
    }
    let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    let mut known = BTreeSet::new();
    if let Some(path) = options.inputs.iter().find(|path| !known.insert(real(path))) {
        return Err(Error::NamedTwice(path.clone()));
    }
    let there = options.out.exists();
    let made = write(options, watch);
    if made.is_err() && !there {
        // Gone if nothing is in it.
        let _ = std::fs::remove_dir(options.out);
    }
    made
}

fn write(options: &ShardOptions, watch: &dyn Fn(ShardCounts)) -> Result<ShardCounts, Error> {
    let mut writer = Writer::new(options, watch)?;
    match options.inputs {
        [] => return Err(Error::NoInputs),
        [only] if !is_jsonl(only) => writer.split(only)?,
        inputs => {
            for path in inputs {
                if is_jsonl(path) {
                    writer.lines(path)?
                } else {
                    writer.add(&read(path)?, None, path)?
                }
            }
        }
    }
    writer.finish()
}

fn is_jsonl(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "jsonl")
}

/// A line of a `.jsonl` file. Its other keys are passed over, whatever they hold.
#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
}

/// Writes documents to the shards of both splits.
struct Writer<'a> {
    options: &'a ShardOptions<'a>,
    watch: &'a dyn Fn(ShardCounts),
    codec: Codec,
    separator: Option<u16>,
    documents: usize,
    train: SplitWriter<'a>,
    val: SplitWriter<'a>,
}

impl<'a> Writer<'a> {
    fn new(options: &'a ShardOptions, watch: &'a dyn Fn(ShardCounts)) -> Result<Self, Error> {
        let codec = Codec::new(options.tokenizer)?;
        if codec.vocabulary() > MAX_VOCABULARY {
            return Err(Error::TooManyIds(codec.vocabulary()));
        }
        std::fs::create_dir_all(options.out).at(options.out)?;
        for name in ["train", "val"] {
            if let Some(path) = files(options.out, name)?.into_iter().next() {
                return Err(Error::Exists(path));
            }
        }
        // One id, if the tokenizer knows the separator as such: not that of what it does not know.
        let separator = codec.id(SEPARATOR).map(|id| id as u16);
        let [train, val] = ["train", "val"].map(|name| SplitWriter::new(options, name));
        Ok(Self { options, watch, codec, separator, documents: 0, train, val })
    }

    fn counts(&self) -> ShardCounts {
        let Self { documents, train, val, .. } = self;
        ShardCounts {
            documents: *documents,
            train: (train.tokens, train.files),
            val: (val.tokens, val.files),
        }
    }

    /// Adds a document of `path`; where it is not said, it is held out if too few tokens are.
    /// A part of it may be written before an error is found in the rest.
    fn add(&mut self, text: &str, held_out: Option<bool>, path: &Path) -> Result<(), Error> {
        let (train, val) = (&mut self.train, &mut self.val);
        let behind = (val.tokens as f64) < self.options.val * (train.tokens + val.tokens) as f64;
        let split = if held_out.unwrap_or(behind) { val } else { train };
        // No text has more tokens than bytes, and its separator.
        split.reserve(text.len() + 1);
        let mut written = self.separator.map_or(Ok(()), |separator| split.add(separator));
        let encoded = self.codec.each(text, |id| {
            if written.is_ok() {
                written = split.add(id as u16);
            }
        });
        encoded.map_err(|e| e.of(&path.display().to_string()))?;
        written?;
        self.documents += 1;
        (self.watch)(self.counts());
        Ok(())
    }

    /// A single text, of which the last part is held out.
    fn split(&mut self, path: &Path) -> Result<(), Error> {
        let text = read(path)?;
        let (train, val) = corpus::split(&text, Some(self.options.val));
        self.add(train, Some(false), path)?;
        self.add(val, Some(true), path)
    }

    /// A document per line, under the key `text`.
    fn lines(&mut self, path: &Path) -> Result<(), Error> {
        let file = File::open(path).at(path)?;
        for (text, line) in BufReader::new(file).lines().zip(1..) {
            let text = text.at(path)?;
            let text = if line == 1 { without_mark(&text) } else { &text };
            if text.trim().is_empty() {
                continue;
            }
            let path_buf = || path.to_path_buf();
            // Only an object has keys; a list would be read as a struct's fields.
            if !text.trim_start().starts_with('{') {
                return Err(Error::NoText { path: path_buf(), line });
            }
            let document: Document = serde_json::from_str(text).map_err(|error| {
                if error.is_data() {
                    Error::NoText { path: path_buf(), line }
                } else {
                    Error::NotJson { path: path_buf(), line, error }
                }
            })?;
            self.add(&document.text, None, path)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<ShardCounts, Error> {
        let (train, val) = (self.train.tokens, self.val.tokens);
        if self.documents == 1 && val == 0 {
            return Err(Error::OneDocument);
        }
        if train < 2 || val < 2 {
            return Err(Error::TooFew { train, val });
        }
        self.train.flush()?;
        self.val.flush()?;
        if let Tokenizer::Json { json } = self.options.tokenizer {
            let bytes = serde_json::to_vec(json).map_err(|e| Error::Tokenizer(e.into()))?;
            checkpoint::write(&self.options.out.join("tokenizer.json"), &bytes)?;
        }
        Ok(self.counts())
    }
}

/// The shards of one split.
struct SplitWriter<'a> {
    options: &'a ShardOptions<'a>,
    name: &'static str,
    /// The shard that is being filled.
    shard: ShardBuilder,
    files: usize,
    tokens: usize,
}

impl<'a> SplitWriter<'a> {
    fn new(options: &'a ShardOptions, name: &'static str) -> Self {
        Self { options, name, shard: ShardBuilder::default(), files: 0, tokens: 0 }
    }

    /// Makes room for up to so many tokens, where they are many.
    fn reserve(&mut self, tokens: usize) {
        const MANY: usize = 1 << 20;
        if tokens > MANY {
            self.shard.reserve(tokens.min(self.options.size - self.shard.len()));
        }
    }

    fn add(&mut self, id: u16) -> Result<(), Error> {
        self.shard.push(id);
        self.tokens += 1;
        if self.shard.len() == self.options.size { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Error> {
        if !self.shard.is_empty() {
            let name = format!("text_{}_{:06}.bin", self.name, self.files);
            self.shard.write(&self.options.out.join(name))?;
            self.files += 1;
        }
        Ok(())
    }
}
