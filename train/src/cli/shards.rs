use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lipschitz_certify::outln;
use lipschitz_certify::terminal::ranges;
use lipschitz_data::codec::read_tokenizer;
use lipschitz_nn::checkpoint::Tokenizer;
use lipschitz_train::shards::{self, ShardOptions};

/// Tokenise text into shards.
#[derive(Args)]
pub(super) struct Shards {
    /// Text files, each one document; `.jsonl` files have one per line, under the key `text`. A
    /// single text file is split in two.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// The directory to write `text_train_*.bin`, `text_val_*.bin` and `tokenizer.json` to.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A tokenizer.json of the tokenizers library.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["vocab", "merges"])]
    tokenizer: Option<PathBuf>,
    /// GPT-2's vocabulary.
    #[arg(long, value_name = "FILE", requires = "merges")]
    vocab: Option<PathBuf>,
    /// GPT-2's merges.
    #[arg(long, value_name = "FILE", requires = "vocab")]
    merges: Option<PathBuf>,
    /// Tokens in a shard.
    #[arg(long, default_value_t = 100_000_000, value_parser = ranges::count(1, i32::MAX as u64))]
    shard_size: usize,
    /// Share of the tokens to hold out, above 0 and below 1; the last part of a single text.
    #[arg(long, default_value_t = 0.1)]
    val: f64,
}

impl Shards {
    pub(super) fn run(self, quiet: bool) -> Result<()> {
        let tokenizer = self.tokenizer()?;
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::no_length() };
        bar.set_style(ProgressStyle::with_template("{spinner} {msg}")?);
        let options = ShardOptions {
            inputs: &self.inputs,
            tokenizer: &tokenizer,
            out: &self.out,
            size: self.shard_size,
            val: self.val,
        };
        let made = shards::make(&options, &|made| {
            bar.set_message(format!(
                "{} documents, {} tokens",
                made.documents,
                made.train.0 + made.val.0
            ));
            bar.tick();
        })?;
        bar.finish_and_clear();
        let files = |n: usize| if n == 1 { "file" } else { "files" };
        outln!(
            "{}: {} tokens to train on in {} {}, {} held out in {} {}",
            self.out.display(),
            made.train.0,
            made.train.1,
            files(made.train.1),
            made.val.0,
            made.val.1,
            files(made.val.1)
        );
        outln!("use them with [data] kind = \"shards\", path = \"{}\"", self.out.display());
        Ok(())
    }
    fn tokenizer(&self) -> Result<Tokenizer> {
        match (&self.tokenizer, &self.vocab, &self.merges) {
            (Some(json), None, None) => Ok(read_tokenizer(json)?),
            (None, Some(vocabulary), Some(merges)) => {
                Ok(shards::gpt2_tokenizer(vocabulary, merges)?)
            }
            _ => bail!(
                "name a tokenizer: --tokenizer tokenizer.json, or --vocab vocab.json with \
                 --merges merges.txt"
            ),
        }
    }
}
