use anyhow::Result;
use clap::Args;
use lipschitz_certify::terminal;
use lipschitz_train::preset;

/// Print a commented config to start from.
#[derive(Args)]
pub(super) struct ConfigCommand {
    /// convnet-cifar10, convnet-mnist, demo, gpt-play, gpt-shakespeare, gpt-tight, isometric-shakespeare,
    /// mlp-cifar10, mlp-images, nanogpt-145m, shift-cifar10 or vit-cifar10.
    preset: String,
}

impl ConfigCommand {
    pub(super) fn run(self) -> Result<()> {
        terminal::print(format_args!("{}", preset::find(&self.preset)?));
        Ok(())
    }
}
