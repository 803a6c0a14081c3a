use std::path::PathBuf;

use anyhow::{Result, anyhow};
use candle_core::Device;
use clap::Args;
use lipschitz_certify::outln;
use lipschitz_certify::terminal::ranges;
use lipschitz_train::sample::{Sampling, sample};

/// Write text with a language model.
#[derive(Args)]
pub(super) struct Sample {
    /// A run directory, a checkpoint, or a third-party model.
    model: PathBuf,
    /// How the text begins.
    #[arg(long, default_value = "\n")]
    prompt: String,
    /// How many tokens to write.
    #[arg(long, default_value_t = 400, value_parser = ranges::count(0, 10_000_000))]
    tokens: usize,
    /// Divides the logits: below 1 the text is more predictable, above 1 more varied; 0 always
    /// takes the likeliest token.
    #[arg(long, default_value_t = 0.8,
        value_parser = ranges::number(0.0, 1e6))]
    temperature: f64,
    /// The same seed writes the same text.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Sample {
    pub(super) fn run(self) -> Result<()> {
        let (model, meta) = lipschitz_certify::load(&self.model, &Device::Cpu)?;
        let tokenizer = meta.tokenizer.ok_or_else(|| {
            anyhow!(
                "{}: holds no tokenizer, as models of images, and of token shards that had no tokenizer.json \
                 beside them; only a language model with one writes text",
                self.model.display()
            )
        })?;
        let sampling =
            Sampling { tokens: self.tokens, temperature: self.temperature, seed: self.seed };
        outln!("{}", sample(&model, &tokenizer, &self.prompt, sampling)?);
        Ok(())
    }
}
