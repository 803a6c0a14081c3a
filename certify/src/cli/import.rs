use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use lipschitz_certify::outln;
use lipschitz_import::{ImportOptions, ImportReport, Imported, import};
use lipschitz_nn::checkpoint::{self, Dialect};

/// Convert a third-party model to a checkpoint.
///
/// Fails unless every tensor is accounted for, and every option of its config is known.
#[derive(Args)]
pub(super) struct ImportCommand {
    /// A directory with a config.json and safetensors or PyTorch files, a .bin of llama2.c, or a
    /// file of matrices.
    path: PathBuf,
    /// The checkpoint to write.
    #[arg(short, long, value_name = "FILE.safetensors")]
    output: PathBuf,
    /// Whose function to take, where candle and the library that the model comes from differ.
    #[arg(long, value_enum, default_value_t = Whose::Original)]
    function: Whose,
    /// Leave out unknown tensors; the certificate names them.
    #[arg(long)]
    allow_unused: bool,
    /// For a file of matrices alone: the elementwise function between them, such as relu.
    #[arg(long, value_name = "NAME")]
    activation: Option<String>,
    /// List what became of every tensor.
    #[arg(long)]
    report: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Whose {
    /// That of the library that the model comes from.
    Original,
    /// That of candle's model of the family.
    Candle,
}

impl ImportCommand {
    pub(super) fn run(self) -> Result<()> {
        let dialect = match self.function {
            Whose::Original => Dialect::Original,
            Whose::Candle => Dialect::Candle,
        };
        let options = ImportOptions {
            dialect,
            allow_unused: self.allow_unused,
            activation: self.activation,
            ..ImportOptions::default()
        };
        let Imported { model, meta, report } = import(&self.path, &options)?;
        checkpoint::save(&self.output, &model, &meta)?;
        if self.report {
            list(&report);
        }
        meta.provenance.origin.iter().for_each(super::bound::origin);
        let (count, dtype) = (model.parameter_count(), model.dtype().as_str());
        let (weights, aside) = (report.applied.len(), report.aside.len());
        outln!(
            "{}: {weights} weights, {count} numbers of {dtype}; {aside} tensors set aside",
            self.output.display()
        );
        Ok(())
    }
}

fn list(report: &ImportReport) {
    report.applied.iter().for_each(|(to, from)| outln!("applied: {to} = {}", from.join(", ")));
    report.aside.iter().for_each(|(name, why)| outln!("set aside: {name}: {why}"));
    report.unused.iter().for_each(|name| outln!("unused: {name}"));
}
