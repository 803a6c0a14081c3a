use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use lipschitz_certify::certificate::{self, Formula};
use lipschitz_certify::plots::graph;
use lipschitz_certify::spectral::Method;
use lipschitz_certify::terminal::{self, Kind};
use lipschitz_plot::Format;

/// Draw the architecture with each node's bound.
#[derive(Args)]
pub(super) struct GraphCommand {
    /// A run directory, a checkpoint, or a third-party model.
    model: PathBuf,
    /// The file to write: .pdf, .png, .svg, .dot or .json; - writes SVG to stdout.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

impl GraphCommand {
    pub(super) fn run(self) -> Result<()> {
        let extension = match terminal::is_stream(&self.output) {
            true => "svg",
            false => self.output.extension().and_then(|e| e.to_str()).unwrap_or_default(),
        };
        let extension = extension.to_lowercase();
        let format = match terminal::is_stream(&self.output) {
            true => Some(Format::Svg),
            false => Format::of(&self.output).ok(),
        };
        if format.is_none() && !["dot", "json"].contains(&extension.as_str()) {
            bail!("{}: name the output .pdf, .png, .svg, .dot or .json", self.output.display())
        }
        let kind = match &*extension {
            "json" => Kind::Json(&["format", "input", "nodes"]),
            _ => Kind::Picture,
        };
        terminal::ready(&self.output, kind)?;
        let model = lipschitz_certify::open(&self.model)?;
        let network = &model.meta().graph;
        let bytes = if extension == "json" {
            serde_json::to_vec_pretty(network)?
        } else {
            let certificate = certificate::certify(&model, Method::Proven, Formula::Sound, None)
                .map_err(|e| super::about(&self.model, e))?;
            let bounds = graph::bounds(&certificate);
            match format {
                Some(format) => lipschitz_plot::draw(&graph::scene(network, &bounds), format)?,
                None => terminal::escaped(&network.to_dot(&bounds), "\n").into_bytes(),
            }
        };
        terminal::write(&self.output, &bytes)
    }
}
