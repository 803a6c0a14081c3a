use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use lipschitz_certify::certificate::{Formula, certify};
use lipschitz_certify::plots::tradeoff::Tradeoff;
use lipschitz_certify::plots::{self, layers, robust, training};
use lipschitz_certify::spectral::Method;
use lipschitz_certify::terminal;
use lipschitz_plot::{Chart, Format, render};

/// Plot runs.
#[derive(Args)]
pub(super) struct PlotCommand {
    #[command(subcommand)]
    plot: Plot,
}

#[derive(Subcommand)]
enum Plot {
    /// Loss or accuracy against the certified constant, one point per run, with the Pareto front.
    Tradeoff {
        /// Run directories, or directories of runs.
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        /// The file to write: .svg or .png; - writes SVG to stdout.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Metric in summary.json on the horizontal axis.
        #[arg(long, default_value = "lipschitz_log10")]
        x: String,
        /// Metric in summary.json on the vertical axis.
        #[arg(long, default_value = "val_loss")]
        y: String,
        /// Colour by a key of the config, such as model.heads, in place of the constraint.
        #[arg(long, value_name = "KEY")]
        color: Option<String>,
        /// Write the points to this file too; - is stdout.
        #[arg(long, value_name = "FILE")]
        csv: Option<PathBuf>,
    },
    /// Where the bound of one network comes from, one bar per node.
    Layers {
        /// A run directory, a checkpoint, or a third-party model.
        model: PathBuf,
        /// The file to write: .svg or .png; - writes SVG to stdout.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// The domain: ℓ2 radius per token (or of the whole input) [default: the natural domain].
        #[arg(long, allow_negative_numbers = true)]
        radius: Option<f64>,
    },
    /// Certified, attacked and clean accuracy over the radius.
    Robust {
        /// Files that `certify robust --json` wrote.
        #[arg(required = true)]
        results: Vec<PathBuf>,
        /// The file to write: .svg or .png; - writes SVG to stdout.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Losses, the certified constant and norms over the steps.
    Training {
        /// Run directories, or directories of runs.
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        /// The file to write: .svg or .png; - writes SVG to stdout.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
}

impl PlotCommand {
    pub(super) fn run(self) -> Result<()> {
        match self.plot {
            Plot::Tradeoff { runs, output, x, y, color, csv } => {
                if csv.as_ref() == Some(&output) {
                    bail!("{}: --output and --csv are the same file; name two", output.display())
                }
                let tradeoff = Tradeoff::read(&runs, &x, &y, color.as_deref())?;
                super::tell_unfinished(&runs);
                for run in &tradeoff.left_out {
                    terminal::note(format_args!(
                        "left out: {} has no finite `{x}` or `{y}`",
                        run.display()
                    ));
                }
                write(&output, &[tradeoff.chart()])?;
                if let Some(csv) = csv {
                    terminal::write(&csv, tradeoff.csv().as_bytes())?;
                }
            }
            Plot::Layers { model, output, radius } => {
                super::check_radius(radius)?;
                let certificate = certify(
                    &lipschitz_certify::open(&model)?,
                    Method::Proven,
                    Formula::Sound,
                    radius,
                )
                .map_err(|e| super::about(&model, e))?;
                write(&output, &[layers::chart(&certificate)])?;
            }
            Plot::Robust { results, output } => write(&output, &[robust::chart(&results)?])?,
            Plot::Training { runs, output } => write(&output, &training::charts(&runs)?)?,
        }
        Ok(())
    }
}

/// Writes charts, as SVG where they go to stdout.
fn write(path: &Path, charts: &[Chart]) -> Result<()> {
    if !terminal::is_stream(path) {
        return Ok(plots::write(path, charts)?);
    }
    let bytes = render(charts, Format::Svg).map_err(lipschitz_certify::Error::from)?;
    terminal::write(path, &bytes)
}
