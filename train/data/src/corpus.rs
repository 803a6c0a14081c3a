//! A text in token ids: random training windows, two evaluations.

use std::collections::{BTreeSet, VecDeque};

use candle_core::Device;
use lipschitz_nn::checkpoint::Tokenizer;
use lipschitz_nn::graph::Input;
use lipschitz_nn::random;

use crate::codec::Codec;
use crate::tokens::{Ids, Tokens};
use crate::{Batch, Batches, DataSet, Error, Protocol, TrainingBatches, digest};

/// Windows of the published evaluation: 20 batches of 64, each window one token after the last.
pub const PAPER_WINDOWS: usize = 20 * 64;

/// A text in token ids, split into a part to train on and one that is held out.
#[derive(Clone, Debug)]
pub struct Corpus {
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
    /// SHA-256 in hexadecimal: of the text's UTF-8 bytes; or, where a file of its own is held out, of those of
    /// both and how many are trained on; or of the SHA-256 of each shard and how many of those are.
    pub digest: String,
}

/// The parts of a text: the first characters train, and the last `held_out` (a share above 0 and
/// below 1, a tenth unless told) validate, as nanoGPT splits a text.
pub fn split(text: &str, held_out: Option<f64>) -> (&str, &str) {
    let characters = text.chars().count();
    let kept = match held_out {
        None => (characters as u128 * 9 / 10) as usize,
        // A little more than the product in floating point, which may be just below a whole number.
        Some(share) => (characters as f64 * (1.0 - share) + 1e-6) as usize,
    };
    let cut = text.char_indices().nth(kept).map_or(text.len(), |(at, _)| at);
    text.split_at(cut)
}

impl Corpus {
    /// A text in memory, of which a share at its end is held out, by [`split`]. Without a tokenizer the
    /// vocabulary is the text's characters, sorted. `name` stands for the file in messages.
    ///
    /// # Errors
    /// One line that begins with `name`: too short, or a text the tokenizer cannot encode.
    pub fn from_text(
        name: &str,
        text: &str,
        held_out: Option<f64>,
        tokenizer: Option<Tokenizer>,
    ) -> Result<Self, Error> {
        // The config says where it is cut.
        let digest = digest([text.as_bytes()]);
        Self::of_parts([name; 2], split(text, held_out), tokenizer, digest)
    }

    /// A text to train on and one that is held out, each with the name of its file. Without a
    /// tokenizer the vocabulary is the characters of both, sorted.
    ///
    /// # Errors
    /// One line that begins with a name: too short, or a text the tokenizer cannot encode.
    pub fn from_files(
        names: [&str; 2],
        (train, val): (&str, &str),
        tokenizer: Option<Tokenizer>,
    ) -> Result<Self, Error> {
        let trained = (train.len() as u64).to_le_bytes();
        let digest = digest([train.as_bytes(), val.as_bytes(), &trained]);
        Self::of_parts(names, (train, val), tokenizer, digest)
    }

    fn of_parts(
        names: [&str; 2],
        (train, val): (&str, &str),
        tokenizer: Option<Tokenizer>,
        digest: String,
    ) -> Result<Self, Error> {
        let corpus = Self::encoded(names, (train, val), tokenizer, digest)?;
        if corpus.train.len() < 2 || corpus.val.len() < 2 {
            let characters = train.chars().count() + val.chars().count();
            let (train, val) = (corpus.train.len(), corpus.val.len());
            return Err(Error::TooShort { name: corpus.name, characters, train, val });
        }
        Ok(corpus)
    }

    /// A text of which everything is held out: nothing can be trained on it.
    ///
    /// # Errors
    /// One line that begins with `name`: too short, or a text the tokenizer cannot encode.
    pub fn held_out(name: &str, text: &str, tokenizer: Tokenizer) -> Result<Self, Error> {
        let digest = digest([text.as_bytes()]);
        let corpus = Self::encoded([name; 2], ("", text), Some(tokenizer), digest)?;
        if corpus.val.len() < 2 {
            let (name, characters) = (corpus.name, text.chars().count());
            return Err(Error::TooShortToEvaluate { name, characters, tokens: corpus.val.len() });
        }
        Ok(corpus)
    }

    fn encoded(
        [name, val_name]: [&str; 2],
        (train, val): (&str, &str),
        tokenizer: Option<Tokenizer>,
        digest: String,
    ) -> Result<Self, Error> {
        let tokenizer = tokenizer.unwrap_or_else(|| {
            let distinct: BTreeSet<char> = train.chars().chain(val.chars()).collect();
            Tokenizer::Characters { characters: distinct.into_iter().collect() }
        });
        let codec = Codec::new(&tokenizer)?;
        let vocabulary = codec.vocabulary();
        let encode = |part: &str, name: &str| -> Result<Tokens, Error> {
            // Characters are as many tokens; of others there are fewer, nobody knows how many.
            let room = match tokenizer {
                Tokenizer::Characters { .. } => part.chars().count(),
                Tokenizer::Json { .. } => 0,
            };
            let mut ids = Ids::new(vocabulary, room);
            codec.each(part, |id| ids.push(id)).map_err(|e| e.of(name))?;
            Ok(Tokens::Memory(ids))
        };
        let (ids, val_ids) = (encode(train, name)?, encode(val, val_name)?);
        let (name, tokenizer) = (name.to_string(), Some(tokenizer));
        Ok(Self { name, tokenizer, vocabulary, train: ids, val: val_ids, digest })
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
    ) -> Result<Batch, Error> {
        if batch_size == 0 || context == 0 {
            return Err(Error::EmptyBatch);
        }
        let starts = self.train.len().saturating_sub(context);
        if starts == 0 {
            let (name, tokens) = (self.name.clone(), self.train.len());
            return Err(Error::NoWindow { name, tokens, context });
        }
        let mut rng = random::keyed(seed, "text", step);
        let starts: Vec<usize> = (0..batch_size).map(|_| random::below(&mut rng, starts)).collect();
        self.train.windows(&starts, context, device)
    }

    /// Batches that predict every token of the validation split but the first exactly once:
    /// consecutive windows that do not overlap, the last one as short as what is left (a batch of
    /// its own, `[1, rest]`).
    ///
    /// Averaging over the split weighs each batch with its number of tokens.
    pub fn full(&self, batch_size: usize, context: usize, device: &Device) -> Windows<'_> {
        let context = context.max(1);
        let predicted = self.val.len().saturating_sub(1);
        let starts = (0..predicted / context).map(|i| i * context).collect();
        let rest = predicted % context;
        let rest = (rest > 0).then_some((predicted - rest, rest));
        let (batch_size, device) = (batch_size.max(1), device.clone());
        Windows { tokens: &self.val, starts, rest, batch_size, context, device }
    }

    /// Batches of the published evaluation: the first [`PAPER_WINDOWS`] windows of the validation
    /// split at stride 1. With 256 tokens per window this reads 1,536 characters only, and they are
    /// easy ones: for comparison alone.
    ///
    /// # Errors
    /// One line if the validation split is shorter than these windows.
    pub fn paper(
        &self,
        batch_size: usize,
        context: usize,
        device: &Device,
    ) -> Result<Windows<'_>, Error> {
        let context = context.max(1);
        let (needed, tokens) = (PAPER_WINDOWS + context, self.val.len());
        if tokens < needed {
            return Err(Error::TooShortForPaper { name: self.name.clone(), needed, tokens });
        }
        let (starts, batch_size) = ((0..PAPER_WINDOWS).collect(), batch_size.max(1));
        let device = device.clone();
        Ok(Windows { tokens: &self.val, starts, rest: None, batch_size, context, device })
    }
}

/// Whether a network with this input reads a corpus.
pub(crate) fn reads(input: Input) -> bool {
    matches!(input, Input::Tokens { .. })
}

impl DataSet for Corpus {
    fn name(&self) -> &str {
        &self.name
    }

    fn outputs(&self) -> usize {
        self.vocabulary
    }

    fn digest(&self) -> &str {
        &self.digest
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    fn check(&self, input: Input) -> Result<(), Error> {
        match input {
            Input::Tokens { context, .. } => self.batch(0, 0, 1, context, &Device::Cpu).map(|_| ()),
            Input::Pixels { .. } | Input::Vector { .. } => Err(Error::misfit(input)),
        }
    }

    fn training(
        &self,
        seed: u64,
        context: Option<usize>,
    ) -> Result<Box<dyn TrainingBatches + '_>, Error> {
        let context = context.ok_or(Error::ReadsNoTokens)?;
        Ok(Box::new(RandomWindows { corpus: self, seed, context }))
    }

    fn held_out_len(&self) -> usize {
        self.val.len()
    }

    fn held_out(
        &self,
        protocol: Protocol,
        batch_size: usize,
        context: Option<usize>,
        device: &Device,
    ) -> Result<Batches<'_>, Error> {
        let context = context.ok_or(Error::ReadsNoTokens)?;
        Ok(Box::new(match protocol {
            Protocol::Full => self.full(batch_size, context, device),
            Protocol::Paper => self.paper(batch_size, context, device)?,
        }))
    }
}

struct RandomWindows<'a> {
    corpus: &'a Corpus,
    seed: u64,
    context: usize,
}

impl TrainingBatches for RandomWindows<'_> {
    fn batch(&mut self, step: u64, batch_size: usize, device: &Device) -> Result<Batch, Error> {
        self.corpus.batch(self.seed, step, batch_size, self.context, device)
    }
}

/// The batches of one evaluation, as `(inputs, targets)`, u32 `[windows, tokens]` each.
#[derive(Clone, Debug)]
pub struct Windows<'a> {
    tokens: &'a Tokens,
    starts: VecDeque<usize>,
    rest: Option<(usize, usize)>,
    batch_size: usize,
    context: usize,
    device: Device,
}

impl Windows<'_> {
    /// How many tokens the batches still to come predict.
    pub fn predictions(&self) -> usize {
        self.starts.len() * self.context + self.rest.map_or(0, |(_, length)| length)
    }
}

impl Iterator for Windows<'_> {
    type Item = Result<Batch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch: Vec<usize> =
            self.starts.drain(..self.batch_size.min(self.starts.len())).collect();
        if !batch.is_empty() {
            return Some(self.tokens.windows(&batch, self.context, &self.device));
        }
        let (start, length) = self.rest.take()?;
        Some(self.tokens.windows(&[start], length, &self.device))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;

    use super::*;

    fn numbered(n: u32) -> Corpus {
        let tokenizer = Tokenizer::Characters { characters: String::new() };
        let (ids, vocabulary) = (Tokens::Memory((0..n).collect()), n as usize);
        let (name, tokenizer, digest) = ("numbers".into(), Some(tokenizer), String::new());
        Corpus { name, tokenizer, vocabulary, train: ids.clone(), val: ids, digest }
    }

    fn rows(tensor: &Tensor) -> Vec<Vec<u32>> {
        tensor.to_vec2().unwrap()
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
}
