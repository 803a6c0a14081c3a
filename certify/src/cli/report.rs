use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use lipschitz_certify::{report, terminal};

/// Write one HTML page for many runs: trade-off plots, sortable table, certificates by layer,
/// training curves.
///
/// The page opens from disk, needs no network, and follows the light or dark mode of the system.
#[derive(Args)]
pub(super) struct ReportCommand {
    /// Run directories, or directories of runs.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// The file to write; - is stdout.
    #[arg(short, long, value_name = "FILE.html")]
    output: PathBuf,
}

impl ReportCommand {
    pub(super) fn run(self) -> Result<()> {
        let page = report::page(&self.runs)?;
        super::tell_unfinished(&self.runs);
        terminal::write(&self.output, page.as_bytes())
    }
}
