use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use lipschitz_certify::certificate::{Formula, certify};
use lipschitz_certify::plots::caps::Curve;
use lipschitz_certify::plots::tradeoff::{self, Tradeoff};
use lipschitz_certify::plots::{
    self, caps, layers, local, matrices, ranges, robust, training, watch,
};
use lipschitz_certify::spectral::Method;
use lipschitz_certify::terminal::{self, Kind, places};
use lipschitz_opt::OptimizerConfig;
use lipschitz_opt::constraint::ConstraintConfig;
use lipschitz_plot::{Chart, Format, Page, render};
use serde::Deserialize;

use super::effort::{Effort, spinner};

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
        #[command(flatten)]
        figure: Figure,
        #[command(flatten)]
        labels: Labels,
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
        #[command(flatten)]
        figure: Figure,
        /// The domain: ℓ2 radius per token (or of the whole input) [default: the natural domain].
        #[arg(long)]
        radius: Option<f64>,
        #[command(flatten)]
        effort: Effort,
    },
    /// What the constraints of configs make of singular values, each in one step: before and after.
    Caps {
        /// Configs, of which only [optimizer], [constraint] and train.learning_rate are used; - is
        /// stdin.
        #[arg(required = true)]
        configs: Vec<PathBuf>,
        #[command(flatten)]
        figure: Figure,
        #[command(flatten)]
        labels: Labels,
    },
    /// Certified, attacked and clean accuracy over the radius.
    Robust {
        /// Files that `certify robust --json` wrote.
        #[arg(required = true)]
        results: Vec<PathBuf>,
        #[command(flatten)]
        figure: Figure,
        #[command(flatten)]
        labels: Labels,
    },
    /// How many decisions are certified around their inputs, over the radius, beside the global bound
    /// and the attack.
    Local {
        /// Files that `certify local --json` wrote.
        #[arg(required = true)]
        results: Vec<PathBuf>,
        #[command(flatten)]
        figure: Figure,
        #[command(flatten)]
        labels: Labels,
    },
    /// The largest element of each tensor, proven and observed, through a network.
    Range {
        /// Files that `certify range --json` wrote.
        #[arg(required = true)]
        results: Vec<PathBuf>,
        #[command(flatten)]
        figure: Figure,
        #[command(flatten)]
        labels: Labels,
    },
    /// What `certify watch` logged: the constant, the largest possible logits and elements, and norms
    /// over the steps.
    Watch {
        /// Logs, or directories that hold a watch.jsonl.
        #[arg(required = true)]
        logs: Vec<PathBuf>,
        #[command(flatten)]
        figure: Figure,
        #[command(flatten)]
        labels: Labels,
    },
    /// Norms of matrices over their cap, their stable ranks, and the largest activation, over the steps.
    Matrices {
        /// Run directories, or directories of runs.
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        #[command(flatten)]
        figure: Figure,
        #[command(flatten)]
        labels: Labels,
    },
    /// Losses, the certified constant and norms over the steps.
    Training {
        /// Run directories, or directories of runs.
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        #[command(flatten)]
        figure: Figure,
        #[command(flatten)]
        labels: Labels,
    },
}

/// The figure to write.
#[derive(Args)]
struct Figure {
    /// The file to write: .svg, .pdf or .png; - writes SVG to stdout.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// A title of its own.
    #[arg(long)]
    title: Option<String>,
    /// Width and height in pixels, such as 1280x800; a PNG has twice as many each way. Several plots
    /// lie beside one another where the figure is wide.
    #[arg(long, value_name = "WxH", value_parser = size)]
    size: Option<(f32, f32)>,
}

impl Figure {
    fn write(self, charts: &[Chart]) -> Result<()> {
        let page = Page { title: self.title.unwrap_or_default(), size: self.size };
        if !terminal::is_stream(&self.output) {
            return Ok(plots::write_page(&self.output, charts, &page)?);
        }
        let bytes = render(charts, &page, Format::Svg).map_err(lipschitz_certify::Error::from)?;
        terminal::write(&self.output, &bytes)
    }
}

#[derive(Args)]
struct Labels {
    /// Words for the runs, separated by commas: one for each, in the order of the runs (those inside
    /// a directory are sorted by name).
    #[arg(long, value_name = "TEXT", value_delimiter = ',')]
    labels: Vec<String>,
}

/// Least and largest width or height.
const PIXELS: std::ops::RangeInclusive<u32> = 240..=4096;

fn size(text: &str) -> Result<(f32, f32), String> {
    let side = |text: &str| text.parse().ok().filter(|side| PIXELS.contains(side));
    let sides = text.to_lowercase().replace('×', "x");
    match sides.split_once('x').map(|(w, h)| (side(w), side(h))) {
        Some((Some(width), Some(height))) => Ok((width as f32, height as f32)),
        _ => Err(format!(
            "give width and height in pixels from {} to {}, such as 1280x800",
            PIXELS.start(),
            PIXELS.end()
        )),
    }
}

/// The part of a config that a picture of its constraint depends on.
#[derive(Deserialize)]
struct Constrained {
    optimizer: Option<OptimizerConfig>,
    constraint: Option<ConstraintConfig>,
    train: Option<Rate>,
}

#[derive(Deserialize)]
struct Rate {
    learning_rate: f64,
}

/// The name of a config's constraint, and what it makes of singular values.
fn curve(path: &Path) -> Result<(String, Curve)> {
    let text = terminal::read(path, "a config")?;
    let config: Constrained = toml::from_str(&text)
        .map_err(|e| anyhow::anyhow!(places::syntax(&text, &e)))
        .with_context(|| path.display().to_string())?;
    let Constrained {
        optimizer: Some(optimizer),
        constraint: Some(constraint),
        train: Some(Rate { learning_rate: rate }),
    } = config
    else {
        let path = path.display();
        bail!(
            "{path}: a section [optimizer], [constraint] or [train] is missing; give the config of a run"
        )
    };
    let cap = constraint.sigma_max.map_or(String::new(), |cap| format!(", sigma_max={cap}"));
    let name = format!("{}{cap}, learning_rate={rate}", constraint.name());
    let curve = caps::curve(&optimizer, &constraint, rate);
    Ok((name, curve.with_context(|| path.display().to_string())?))
}

impl PlotCommand {
    pub(super) fn run(self) -> Result<()> {
        let (Plot::Tradeoff { figure, .. }
        | Plot::Layers { figure, .. }
        | Plot::Caps { figure, .. }
        | Plot::Robust { figure, .. }
        | Plot::Local { figure, .. }
        | Plot::Range { figure, .. }
        | Plot::Watch { figure, .. }
        | Plot::Matrices { figure, .. }
        | Plot::Training { figure, .. }) = &self.plot;
        terminal::ready(&figure.output, Kind::Picture)?;
        match self.plot {
            Plot::Tradeoff { runs, figure, labels, x, y, color, csv } => {
                terminal::distinct(&[
                    ("--output", Some(&figure.output)),
                    ("--csv", csv.as_deref()),
                ])?;
                csv.iter()
                    .try_for_each(|path| terminal::ready(path, Kind::Csv(tradeoff::COLUMNS)))?;
                let names = &labels.labels;
                let tradeoff = Tradeoff::read_named(&runs, &x, &y, color.as_deref(), names)?;
                super::tell_unfinished(&runs);
                for run in &tradeoff.left_out {
                    terminal::note(format_args!(
                        "left out: {} has no finite `{x}` or `{y}`",
                        run.display()
                    ));
                }
                figure.write(&[tradeoff.chart()])?;
                if let Some(csv) = csv {
                    terminal::write(&csv, tradeoff.csv().as_bytes())?;
                }
            }
            Plot::Layers { model, figure, radius, effort } => {
                super::check_radius(radius)?;
                let source = lipschitz_certify::open(&model)?;
                let certificate = certify(&source, Method::Proven, Formula::Sound, radius)
                    .map_err(|e| super::about(&model, e))?;
                let bar = spinner();
                let certificate = effort.tighten(certificate, &source, &bar)?;
                bar.finish_and_clear();
                figure.write(&[layers::chart(&certificate)])?;
            }
            Plot::Caps { configs, figure, labels } => {
                let curves: Vec<_> =
                    configs.iter().map(|path| curve(path)).collect::<Result<_>>()?;
                let (own, curves): (Vec<_>, Vec<_>) = curves.into_iter().unzip();
                let names = plots::names(&configs, own, &labels.labels)?;
                figure.write(&[caps::chart(names.into_iter().zip(curves).collect())])?;
            }
            Plot::Robust { results, figure, labels } => {
                figure.write(&[robust::named_chart(&results, &labels.labels)?])?;
            }
            Plot::Local { results, figure, labels } => {
                figure.write(&[local::chart(&results, &labels.labels)?])?;
            }
            Plot::Range { results, figure, labels } => {
                figure.write(&[ranges::chart(&results, &labels.labels)?])?;
            }
            Plot::Watch { logs, figure, labels } => {
                figure.write(&watch::charts(&logs, &labels.labels)?)?;
            }
            Plot::Matrices { runs, figure, labels } => {
                let charts = matrices::charts(&runs, &labels.labels)?;
                super::tell_unfinished(&runs);
                figure.write(&charts)?;
            }
            Plot::Training { runs, figure, labels } => {
                figure.write(&training::named_charts(&runs, &labels.labels)?)?;
            }
        }
        Ok(())
    }
}
