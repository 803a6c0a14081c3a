//! Text as token ids: a vocabulary of characters or a `tokenizer.json`, random training batches,
//! two evaluations.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{Device, Tensor};
use lipschitz_nn::checkpoint::Tokenizer;
use lipschitz_nn::{At, Error};

use super::tokens::Tokens;
use super::{digest, order};

/// Windows of the published evaluation: 20 batches of 64, each window one token after the last.
pub const PAPER_WINDOWS: usize = 20 * 64;

/// A text in token ids. One that is read here is cut as nanoGPT cuts it: the first 90 % of the
/// characters train, the rest validates.
#[derive(Clone, Debug)]
pub struct TextData {
    /// The file or the generator, for messages.
    pub name: String,
    /// How the text became ids, where that is known.
    pub tokenizer: Option<Tokenizer>,
    /// All ids are below this.
    pub vocabulary: usize,
    /// What is trained on.
    pub train: Tokens,
    /// What is held out.
    pub val: Tokens,
    /// SHA-256 in hexadecimal: of the text's UTF-8 bytes, or of the SHA-256 of each shard.
    pub digest: String,
}

impl TextData {
    /// Reads a UTF-8 file. Without a `tokenizer.json` the vocabulary is the file's characters,
    /// sorted.
    ///
    /// # Errors
    /// One line that names the file: missing, not UTF-8 (with the byte's offset), too short, or a
    /// tokenizer that cannot be read.
    pub fn load(path: &Path, tokenizer: Option<&Path>) -> Result<Self> {
        let text = read(path)?;
        let tokenizer = tokenizer.map(read_tokenizer).transpose()?;
        Self::from_text(&path.display().to_string(), &text, tokenizer)
    }

    /// The same for a text in memory; `name` stands for the file in messages.
    ///
    /// # Errors
    /// One line that begins with `name`: too short, or a text the tokenizer cannot encode.
    pub fn from_text(name: &str, text: &str, tokenizer: Option<Tokenizer>) -> Result<Self> {
        let characters = text.chars().count();
        let cut = text.char_indices().nth(characters * 9 / 10).map_or(text.len(), |(at, _)| at);
        let tokenizer = tokenizer.unwrap_or_else(|| {
            let distinct: BTreeSet<char> = text.chars().collect();
            Tokenizer::Characters { characters: distinct.into_iter().collect() }
        });
        let codec = Codec::new(&tokenizer)?;
        let encode =
            |part: &str| codec.encode(part).with_context(|| name.to_string()).map_err(one_line);
        let (train, val) = (encode(&text[..cut])?, encode(&text[cut..])?);
        ensure!(
            train.len() > 1 && val.len() > 1,
            "{name}: too short, its {characters} characters make {} tokens to train on and {} to validate, and each part \
             needs at least two; give a longer text",
            train.len(),
            val.len()
        );
        let (name, vocabulary, digest) =
            (name.to_string(), codec.vocabulary(), digest([text.as_bytes()]));
        let (train, val) = (Tokens::Memory(train), Tokens::Memory(val));
        Ok(Self { name, tokenizer: Some(tokenizer), vocabulary, train, val, digest })
    }

    /// The training batch of `step`, as `(inputs, targets)`, u32 `[batch_size, context]` each, the
    /// targets one token ahead. Where its windows lie depends on seed and step alone.
    ///
    /// # Errors
    /// One line if the text has no window of that length; candle's error if the device refuses.
    pub fn batch(
        &self,
        seed: u64,
        step: u64,
        batch_size: usize,
        context: usize,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        ensure!(
            batch_size > 0 && context > 0,
            "a batch needs at least one window of at least one token"
        );
        let starts = self.train.len().saturating_sub(context);
        ensure!(
            starts > 0,
            "{}: its {} training tokens hold no window of {context} and the token after it; give a longer text or a \
             shorter context",
            self.name,
            self.train.len()
        );
        let mut rng = order::random(seed, "text", step);
        let starts: Vec<usize> = (0..batch_size).map(|_| order::below(&mut rng, starts)).collect();
        windows(&self.train, &starts, context, device)
    }

    /// Batches that predict every token of the validation split but the first exactly once:
    /// consecutive windows that do not overlap, the last one as short as what is left (a batch of
    /// its own, `[1, rest]`).
    ///
    /// Averaging over the split weighs each batch with its number of tokens.
    pub fn full(&self, batch_size: usize, context: usize, device: &Device) -> Evaluation<'_> {
        let context = context.max(1);
        let predicted = self.val.len().saturating_sub(1);
        let starts = (0..predicted / context).map(|i| i * context).collect();
        let rest = predicted % context;
        let rest = (rest > 0).then_some((predicted - rest, rest));
        Evaluation {
            tokens: &self.val,
            starts,
            rest,
            batch_size: batch_size.max(1),
            context,
            device: device.clone(),
        }
    }

    /// Batches of the published evaluation: the first [`PAPER_WINDOWS`] windows of the validation
    /// split at stride 1. With 256 tokens a window this reads 1,536 characters only, and they are
    /// easy ones: for comparison alone.
    ///
    /// # Errors
    /// One line if the validation split is shorter than these windows.
    pub fn paper(
        &self,
        batch_size: usize,
        context: usize,
        device: &Device,
    ) -> Result<Evaluation<'_>> {
        let context = context.max(1);
        let need = PAPER_WINDOWS + context;
        ensure!(
            self.val.len() >= need,
            "{}: the `paper` protocol reads {need} validation tokens and there are {}; use the \
             `full` protocol",
            self.name,
            self.val.len()
        );
        let (starts, batch_size) = ((0..PAPER_WINDOWS).collect(), batch_size.max(1));
        Ok(Evaluation {
            tokens: &self.val,
            starts,
            rest: None,
            batch_size,
            context,
            device: device.clone(),
        })
    }
}

/// The batches of one evaluation, as `(inputs, targets)`, u32 `[windows, tokens]` each.
#[derive(Clone, Debug)]
pub struct Evaluation<'a> {
    tokens: &'a Tokens,
    starts: std::collections::VecDeque<usize>,
    rest: Option<(usize, usize)>,
    batch_size: usize,
    context: usize,
    device: Device,
}

impl Evaluation<'_> {
    /// How many tokens the batches still to come predict.
    pub fn predictions(&self) -> usize {
        self.starts.len() * self.context + self.rest.map_or(0, |(_, length)| length)
    }
}

impl Iterator for Evaluation<'_> {
    type Item = Result<(Tensor, Tensor)>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch: Vec<usize> =
            self.starts.drain(..self.batch_size.min(self.starts.len())).collect();
        if !batch.is_empty() {
            return Some(windows(self.tokens, &batch, self.context, &self.device));
        }
        self.rest.take().map(|(start, length)| windows(self.tokens, &[start], length, &self.device))
    }
}

/// Windows of `length` tokens from `starts`, and the same one token later.
fn windows(
    tokens: &Tokens,
    starts: &[usize],
    length: usize,
    device: &Device,
) -> Result<(Tensor, Tensor)> {
    let from = |shift: usize| {
        let mut ids = Vec::with_capacity(starts.len() * length);
        starts.iter().for_each(|start| tokens.read(start + shift, length, &mut ids));
        Tensor::from_vec(ids, (starts.len(), length), device).map_err(Error::from)
    };
    Ok((from(0)?, from(1)?))
}

/// Reads a UTF-8 file.
///
/// # Errors
/// One line that names the file, and the first byte that is none.
pub fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).at(path)?;
    Ok(String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::file(
            path,
            format!("is not UTF-8: byte {at} is 0x{:02x}; convert the file", e.as_bytes()[at]),
        )
    })?)
}

/// Reads a `tokenizer.json`.
///
/// # Errors
/// One line that names the file if it is missing or not a tokenizer.
pub fn read_tokenizer(path: &Path) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).at(path)?;
    let no = |e: &dyn std::fmt::Display| {
        Error::file(path, line(&format!("is not a tokenizer.json of the tokenizers library: {e}")))
    };
    let json = serde_json::from_slice(&bytes).map_err(|e| no(&e))?;
    let tokenizer = Tokenizer::Json { json };
    Codec::new(&tokenizer).map_err(|e| no(&e))?;
    Ok(tokenizer)
}

/// A checkpoint's tokenizer made ready for use.
pub struct Codec(Kind);

enum Kind {
    Characters { ids: HashMap<char, u32>, characters: Vec<char> },
    Json(Box<tokenizers::Tokenizer>),
}

impl Codec {
    /// Prepares a tokenizer.
    ///
    /// # Errors
    /// One line if it lists a character twice or is not one the tokenizers library reads.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        Ok(Self(match tokenizer {
            Tokenizer::Characters { characters } => {
                let characters: Vec<char> = characters.chars().collect();
                let mut ids = HashMap::new();
                for (&c, id) in characters.iter().zip(0..) {
                    ensure!(
                        ids.insert(c, id).is_none(),
                        "the tokenizer lists the character {c:?} twice"
                    );
                }
                Kind::Characters { ids, characters }
            }
            Tokenizer::Json { json } => {
                let bytes = serde_json::to_vec(json)?;
                let tokenizer = tokenizers::Tokenizer::from_bytes(bytes)
                    .map_err(|e| anyhow!(line(&e.to_string())))?;
                Kind::Json(Box::new(tokenizer))
            }
        }))
    }

    /// How many ids there are; every id is below this.
    pub fn vocabulary(&self) -> usize {
        match &self.0 {
            Kind::Characters { characters, .. } => characters.len(),
            Kind::Json(tokenizer) => {
                let ids = tokenizer.get_vocab(true).into_values();
                ids.max().map_or(0, |largest| largest as usize + 1)
            }
        }
    }

    /// The ids of a text, without special tokens around it.
    ///
    /// # Errors
    /// One line that names the first character without an id, or what the tokenizers library says.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.0 {
            Kind::Characters { ids, .. } => {
                let id = |(at, c)| {
                    ids.get(&c).copied().ok_or_else(|| {
                        anyhow!(
                            "the character {c:?} (number {} of the text) is not among the {} the \
                             model knows; remove it",
                            at + 1,
                            ids.len()
                        )
                    })
                };
                text.chars().enumerate().map(id).collect()
            }
            Kind::Json(tokenizer) => match tokenizer.encode_fast(text, false) {
                Ok(encoding) => Ok(encoding.get_ids().to_vec()),
                Err(e) => bail!("the tokenizer cannot encode the text: {}", line(&e.to_string())),
            },
        }
    }

    /// The text of ids.
    ///
    /// # Errors
    /// One line that names an id out of range.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let size = self.vocabulary();
        if let Some(id) = ids.iter().find(|id| **id as usize >= size) {
            bail!("token id {id} is out of range: the tokenizer has {size}");
        }
        match &self.0 {
            Kind::Characters { characters, .. } => {
                Ok(ids.iter().map(|id| characters[*id as usize]).collect())
            }
            Kind::Json(tokenizer) => {
                tokenizer.decode(ids, false).map_err(|e| anyhow!(line(&e.to_string())))
            }
        }
    }
}

fn line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join(" ")
}

/// An error and its causes as one message.
fn one_line(error: anyhow::Error) -> anyhow::Error {
    anyhow!("{error:#}")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn numbered(n: u32) -> TextData {
        let tokenizer = Tokenizer::Characters { characters: String::new() };
        let (ids, vocabulary) = (Tokens::Memory((0..n).collect()), n as usize);
        let (name, tokenizer, digest) = ("numbers".into(), Some(tokenizer), String::new());
        TextData { name, tokenizer, vocabulary, train: ids.clone(), val: ids, digest }
    }

    fn rows(tensor: &Tensor) -> Vec<Vec<u32>> {
        tensor.to_vec2().unwrap()
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn refusal(bytes: &[u8]) -> String {
        let file = file(bytes);
        let error = format!("{:#}", TextData::load(file.path(), None).unwrap_err());
        assert!(
            error.starts_with(&file.path().display().to_string()) && !error.contains('\n'),
            "{error}"
        );
        error
    }

    #[test]
    fn a_file_is_cut_at_nine_tenths_of_its_characters_and_comes_back() {
        let text = "dämmerung, ab und zu.".repeat(10);
        let data = TextData::load(file(text.as_bytes()).path(), None).unwrap();
        assert_eq!((data.train.len(), data.val.len()), (189, 21));
        let Some(tokenizer @ Tokenizer::Characters { characters }) = &data.tokenizer else {
            panic!()
        };
        assert_eq!(characters, " ,.abdegmnruzä");
        let codec = Codec::new(tokenizer).unwrap();
        assert_eq!(codec.vocabulary(), 14);
        assert_eq!(codec.decode(&[data.train.to_vec(), data.val.to_vec()].concat()).unwrap(), text);
        assert_eq!(data.digest, digest([text.as_bytes()]));
    }

    #[test]
    fn files_that_cannot_be_used_are_named_with_the_reason() {
        assert!(refusal(b"").contains("too short"));
        assert!(refusal(b"too little").contains("10 characters"));
        assert!(refusal(b"caf\xe9 and more").contains("byte 3 is 0xe9"));
        assert!(
            refusal("cut short \u{20ac}".as_bytes().split_last().unwrap().1).contains("byte 10")
        );
        let missing = TextData::load(Path::new("no/such/file.txt"), None).unwrap_err().to_string();
        assert!(missing.contains("no/such/file.txt: no such file"), "{missing}");
        let bad = file(b"{\"version\": 1}");
        let error = read_tokenizer(bad.path()).unwrap_err().to_string();
        assert!(error.contains("is not a tokenizer.json") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn unknown_characters_and_ids_are_named() {
        let codec = Codec::new(&Tokenizer::Characters { characters: "abc".into() }).unwrap();
        let error = codec.encode("abXc").unwrap_err().to_string();
        assert!(error.contains("'X'") && error.contains("number 3"), "{error}");
        assert!(codec.decode(&[0, 3]).unwrap_err().to_string().contains("id 3"));
        assert!(Codec::new(&Tokenizer::Characters { characters: "aba".into() }).is_err());
    }

    #[test]
    fn a_batch_is_a_function_of_seed_and_step_and_its_targets_are_one_ahead() {
        let data = numbered(1000);
        let batch = |seed, step| {
            data.batch(seed, step, 8, 5, &Device::Cpu).map(|(x, y)| (rows(&x), rows(&y))).unwrap()
        };
        assert_eq!(batch(1, 7), batch(1, 7));
        assert_ne!(batch(1, 7), batch(1, 8));
        assert_ne!(batch(1, 7), batch(2, 7));
        let (inputs, targets) = batch(1, 7);
        assert_eq!((inputs.len(), inputs[0].len()), (8, 5));
        for (x, y) in inputs.iter().zip(&targets) {
            assert!(
                x.iter().zip(y).all(|(a, b)| a + 1 == *b) && x.windows(2).all(|w| w[0] + 1 == w[1])
            );
        }
    }

    #[test]
    fn the_data_order_of_version_one_stays() {
        let (inputs, _) = numbered(1000).batch(42, 3, 6, 1, &Device::Cpu).unwrap();
        assert_eq!(rows(&inputs).concat(), [315, 491, 121, 874, 837, 378]);
    }

    #[test]
    fn batches_reach_the_first_and_the_last_window_and_short_texts_are_refused() {
        let data = numbered(4);
        let (inputs, targets) = data.batch(0, 0, 64, 2, &Device::Cpu).unwrap();
        let seen: BTreeSet<Vec<u32>> = rows(&inputs).into_iter().collect();
        assert_eq!(seen, BTreeSet::from([vec![0, 1], vec![1, 2]]));
        assert_eq!(rows(&targets).concat().into_iter().max(), Some(3));
        let error = data.batch(0, 0, 1, 4, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("numbers") && error.contains("shorter context"), "{error}");
        assert!(data.batch(0, 0, 0, 2, &Device::Cpu).is_err());
    }

    #[test]
    fn the_full_evaluation_predicts_every_token_once() {
        for n in [2, 3, 9, 10, 11, 40, 41] {
            let data = numbered(n);
            let evaluation = data.full(3, 5, &Device::Cpu);
            assert_eq!(evaluation.predictions(), n as usize - 1);
            let mut predicted = Vec::new();
            for batch in evaluation {
                let (inputs, targets) = batch.unwrap();
                assert!(inputs.dims()[0] <= 3 && inputs.dims() == targets.dims());
                for (x, y) in rows(&inputs).iter().zip(rows(&targets)) {
                    assert!(x.iter().zip(&y).all(|(a, b)| a + 1 == *b));
                    predicted.extend(y);
                }
            }
            assert_eq!(predicted, (1..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_published_evaluation_reads_1280_windows_at_stride_one() {
        let data = numbered(PAPER_WINDOWS as u32 + 256);
        let batches: Vec<_> =
            data.paper(64, 256, &Device::Cpu).unwrap().map(Result::unwrap).collect();
        assert_eq!(batches.len(), 20);
        let starts: Vec<u32> =
            batches.iter().flat_map(|(x, _)| rows(x)).map(|row| row[0]).collect();
        assert_eq!(starts, (0..1280).collect::<Vec<_>>());
        assert_eq!(rows(&batches[19].1)[63][255], 1535);
        let error = numbered(1535).paper(64, 256, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("`full`"), "{error}");
    }

    #[test]
    fn a_tokenizer_json_encodes_and_decodes() {
        let vocab: serde_json::Map<_, _> = ["a", "b", "ab", " "]
            .iter()
            .zip(0..)
            .map(|(w, id): (_, u32)| (w.to_string(), id.into()))
            .collect();
        let json = serde_json::json!({"version": "1.0", "added_tokens": [],
            "decoder": {"type": "Fuse"},
            "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]}});
        let written = file(json.to_string().as_bytes());
        let text = "ab ba ".repeat(20);
        let data = TextData::load(file(text.as_bytes()).path(), Some(written.path())).unwrap();
        assert_eq!(data.train.to_vec()[..5], [2, 3, 1, 0, 3]);
        let codec = Codec::new(data.tokenizer.as_ref().unwrap()).unwrap();
        assert_eq!(codec.vocabulary(), 4);
        assert_eq!(codec.decode(&[data.train.to_vec(), data.val.to_vec()].concat()).unwrap(), text);
        assert!(codec.decode(&[4]).is_err());
    }
}
