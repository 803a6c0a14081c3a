use anyhow::{Result, anyhow};
use clap::Args;
use lipschitz_certify::terminal;
use lipschitz_train::preset;

/// Print a commented config to start from.
#[derive(Args)]
pub(super) struct ConfigCommand {
    /// demo, gpt-shakespeare, gpt-tight, mlp-cifar10, nanogpt-145m or vit-cifar10.
    preset: String,
}

impl ConfigCommand {
    pub(super) fn run(self) -> Result<()> {
        let text = preset::text(&self.preset).ok_or_else(|| {
            anyhow!("there is no preset `{}`; there are {}", self.preset, preset::NAMES.join(", "))
        })?;
        terminal::print(format_args!("{text}"));
        Ok(())
    }
}
