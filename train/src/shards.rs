//! Text into token shards, document by document.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use lipschitz_data::shards::{MOST, Shard, files};
use lipschitz_data::text::{Codec, read, read_tokenizer};
use lipschitz_nn::At;
use lipschitz_nn::checkpoint::{self, Tokenizer};
use tokenizers::AddedToken;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// GPT-2's token between documents.
pub const SEPARATOR: &str = "<|endoftext|>";

/// GPT-2's kind of tokenizer from its two files: byte-level pairs, `vocab.json` and `merges.txt`.
///
/// # Errors
/// One line that names the file that is missing or damaged.
pub fn gpt2_tokenizer(vocabulary: &Path, merges: &Path) -> Result<Tokenizer> {
    for path in [vocabulary, merges] {
        File::open(path).at(path)?;
    }
    let name = |path: &Path| path.to_string_lossy().into_owned();
    let bpe = BPE::from_file(&name(vocabulary), &name(merges)).build();
    let bpe = bpe.map_err(|e| {
        let what = e.to_string().replace('\n', " ");
        anyhow!(
            "{} and {}: are not GPT-2's vocabulary and merges: {what}",
            vocabulary.display(),
            merges.display()
        )
    })?;
    let special = bpe.get_vocab().contains_key(SEPARATOR);
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer: tokenizers::Tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes));
    if special {
        tokenizer
            .add_special_tokens([AddedToken::from(SEPARATOR, true)])
            .map_err(|e| anyhow!("{e}"))?;
    }
    let text = tokenizer.to_string(false).map_err(|e| anyhow!("{e}"))?;
    Ok(Tokenizer::Json { json: serde_json::from_str(&text)? })
}

/// What shards are made of and how.
pub struct Plan<'a> {
    /// Text files, each a document, and `.jsonl` files, each line one under the key `text`.
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

/// What was made.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Made {
    /// Documents.
    pub documents: usize,
    /// Tokens to train on, and files.
    pub train: (usize, usize),
    /// Tokens held out, and files.
    pub val: (usize, usize),
}

/// Writes shards and the tokenizer. Each document begins with the separator, if the tokenizer has
/// one. Whole documents are held out, and of a single one the last part.
///
/// # Errors
/// One line: a file that is missing or is no text, more tokens than 16 bits number, shards that are
/// there already, a full disk.
pub fn make(plan: &Plan, watch: &dyn Fn(Made)) -> Result<Made> {
    ensure!(
        (0.0..1.0).contains(&plan.val) && plan.val > 0.0,
        "--val {}: must be between 0 and 1",
        plan.val
    );
    ensure!(plan.size > 0, "a shard holds at least one token");
    let codec = Codec::new(plan.tokenizer)?;
    ensure!(
        codec.vocabulary() <= MOST,
        "the tokenizer has {} tokens; shards hold 16 bits a token, up to {MOST}",
        codec.vocabulary()
    );
    std::fs::create_dir_all(plan.out).at(plan.out)?;
    for part in ["train", "val"] {
        if let Some(path) = files(plan.out, part)?.first() {
            bail!("{}: is there already; choose another --out", path.display())
        }
    }
    // One id, if the tokenizer knows the separator as such.
    let separator =
        codec.encode(SEPARATOR).ok().filter(|ids| ids.len() == 1).map(|ids| ids[0] as u16);
    let [mut train, mut val] =
        ["train", "val"].map(|part| Part { plan, part, ids: Vec::new(), files: 0, tokens: 0 });
    let mut documents = 0;
    let mut add = |text: &str, held_out: Option<bool>, said: &str| -> Result<Made> {
        let encoded = codec.encode(text).with_context(|| said.to_string())?;
        let ids = separator.into_iter().chain(encoded.into_iter().map(|id| id as u16));
        let behind = (val.tokens as f64) < plan.val * (train.tokens + val.tokens) as f64;
        let part = if held_out.unwrap_or(behind) { &mut val } else { &mut train };
        part.add(ids)?;
        documents += 1;
        let made =
            Made { documents, train: (train.tokens, train.files), val: (val.tokens, val.files) };
        watch(made);
        Ok(made)
    };
    let lines = |path: &Path| path.extension().is_some_and(|e| e == "jsonl");
    match plan.inputs {
        [] => bail!("there is nothing to make shards of; name text files"),
        [only] if !lines(only) => {
            let (text, said) = (read(only)?, only.display().to_string());
            let characters = text.chars().count() as f64;
            let cut = text
                .char_indices()
                .nth((characters * (1.0 - plan.val)) as usize)
                .map_or(text.len(), |(at, _)| at);
            add(&text[..cut], Some(false), &said)?;
            add(&text[cut..], Some(true), &said)?;
        }
        inputs => {
            for path in inputs {
                let said = path.display().to_string();
                if !lines(path) {
                    add(&read(path)?, None, &said)?;
                    continue;
                }
                let file = File::open(path).at(path)?;
                for (line, number) in BufReader::new(file).lines().zip(1..) {
                    let line = line.at(path)?;
                    if line.trim().is_empty() {
                        continue;
                    }
                    let value: serde_json::Value = serde_json::from_str(&line)
                        .map_err(|e| anyhow!("{said}: line {number} is not JSON: {e}"))?;
                    let Some(text) = value["text"].as_str() else {
                        bail!("{said}: line {number} has no string under `text`")
                    };
                    add(text, None, &said)?;
                }
            }
        }
    }
    train.flush()?;
    val.flush()?;
    ensure!(
        val.tokens > 0,
        "one document cannot be trained on and held out; give more, or a single text file, which \
         is cut"
    );
    if let Tokenizer::Json { json } = plan.tokenizer {
        checkpoint::write(&plan.out.join("tokenizer.json"), &serde_json::to_vec(json)?)?;
    }
    Ok(Made { documents, train: (train.tokens, train.files), val: (val.tokens, val.files) })
}

struct Part<'a> {
    plan: &'a Plan<'a>,
    part: &'a str,
    ids: Vec<u16>,
    files: usize,
    tokens: usize,
}

impl Part<'_> {
    fn add(&mut self, ids: impl Iterator<Item = u16>) -> Result<()> {
        for id in ids {
            self.ids.push(id);
            self.tokens += 1;
            if self.ids.len() == self.plan.size {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if !self.ids.is_empty() {
            let name = format!("text_{}_{:06}.bin", self.part, self.files);
            Shard::write(&self.plan.out.join(name), &self.ids)?;
            self.ids.clear();
            self.files += 1;
        }
        Ok(())
    }
}

/// The tokenizer that the command line names.
///
/// # Errors
/// If it names none, or files that are none.
pub fn tokenizer(
    json: Option<&Path>,
    vocabulary: Option<&Path>,
    merges: Option<&Path>,
) -> Result<Tokenizer> {
    match (json, vocabulary, merges) {
        (Some(json), None, None) => read_tokenizer(json),
        (None, Some(vocabulary), Some(merges)) => gpt2_tokenizer(vocabulary, merges),
        _ => bail!(
            "name a tokenizer: --tokenizer tokenizer.json, or --vocab vocab.json with --merges \
             merges.txt"
        ),
    }
}
