use lipschitz_certify::outln;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lipschitz_train::shards::{self, Plan};

/// Make token shards from text.
#[derive(Args)]
pub(super) struct Shards {
    /// Text files, each a document; of `.jsonl` files each line is one, under the key `text`. A
    /// single text file is cut in two.
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
    #[arg(long, default_value_t = 100_000_000)]
    shard_size: usize,
    /// Share of the tokens to hold out.
    #[arg(long, default_value_t = 0.1)]
    val: f64,
}

impl Shards {
    pub(super) fn run(self, quiet: bool) -> Result<()> {
        let tokenizer = shards::tokenizer(
            self.tokenizer.as_deref(),
            self.vocab.as_deref(),
            self.merges.as_deref(),
        )?;
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::no_length() };
        bar.set_style(ProgressStyle::with_template("{spinner} {msg}")?);
        let plan = Plan {
            inputs: &self.inputs,
            tokenizer: &tokenizer,
            out: &self.out,
            size: self.shard_size,
            val: self.val,
        };
        let made = shards::make(&plan, &|made| {
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
}
