use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use lipschitz_certify::report;
use lipschitz_nn::checkpoint;

/// One page for many runs: trade-off, sortable table, certificates by layer, training curves.
///
/// It opens from disk, needs no network, and is light or dark as the reader's system is.
#[derive(Args)]
pub(super) struct ReportCommand {
    /// Run directories, or directories of runs.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Where to.
    #[arg(short, long, value_name = "FILE.html")]
    output: PathBuf,
}

impl ReportCommand {
    pub(super) fn run(self) -> Result<()> {
        let page = report::page(&self.runs)?;
        super::tell_unfinished(&self.runs);
        Ok(checkpoint::write(&self.output, page.as_bytes())?)
    }
}
