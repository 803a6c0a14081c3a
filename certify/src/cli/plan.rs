use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use lipschitz_certify::terminal::tables::fitted;
use lipschitz_certify::terminal::{self, places, ranges};
use lipschitz_certify::{outln, plan};
use lipschitz_nn::Graph;
use lipschitz_nn::graph::Geometry;
use lipschitz_nn::presets::ModelConfig;
use lipschitz_opt::constraint::ConstraintConfig;
use lipschitz_opt::modular::RatesConfig;
use lipschitz_opt::{Group, OptimizerConfig, PerHead, Recipe, SgdConfig};
use serde::{Deserialize, Serialize};

/// Before training: the bound at given caps, or the caps for a target.
///
/// The bound holds for every network of this architecture whose weights obey the caps, so for any
/// result of training.
#[derive(Args)]
#[command(group(clap::ArgGroup::new("wanted").required(true)))]
pub(super) struct PlanCommand {
    /// The config of a run, or - for stdin; only its sections [model], [optimizer], [[groups]] and
    /// [constraint] are used.
    config: PathBuf,
    /// The target, a constant RMS → RMS that is not to be exceeded: prints caps.
    #[arg(long, value_name = "L", group = "wanted")]
    target: Option<f64>,
    /// The cap of every matrix, times its factor in the config: prints the bound.
    #[arg(long, value_name = "S", group = "wanted")]
    sigma_max: Option<f64>,
    /// Vocabulary or number of classes: also prints the constants of single nodes and outputs,
    /// which depend on it. The constant from RMS to RMS norm does not.
    #[arg(long, value_name = "N", value_parser = ranges::count(1, 1 << 28))]
    outputs: Option<usize>,
    /// Cap each head of queries, keys and values, in place of what the config says.
    #[arg(long)]
    per_head: bool,
}

/// The part of a config on which a plan depends; `train` reads the rest.
#[derive(Deserialize)]
struct Planned {
    model: ModelConfig,
    /// Without one, nothing is known about updates; only the promise of weight decay depends on
    /// them.
    #[serde(default = "unknown")]
    optimizer: OptimizerConfig,
    #[serde(default)]
    groups: Vec<Group>,
    constraint: ConstraintConfig,
}

fn unknown() -> OptimizerConfig {
    OptimizerConfig::Sgd(SgdConfig::default())
}

#[derive(Serialize)]
struct Section<'a> {
    constraint: &'a ConstraintConfig,
}

impl PlanCommand {
    pub(super) fn run(self) -> Result<()> {
        for (flag, value) in [("--target", self.target), ("--sigma-max", self.sigma_max)] {
            if let Some(value) = value
                && !(value.is_finite() && value > 0.0)
            {
                bail!("{flag} {value}: must be a number above 0")
            }
        }
        let path = &self.config;
        let text = terminal::read(path, "a config")?;
        let config: Planned = toml::from_str(&text)
            .map_err(|e| anyhow::anyhow!(places::syntax(&text, &e)))
            .with_context(|| path.display().to_string())?;
        // The bound from RMS norm to RMS norm is the same for any number of outputs. The default is
        // large because a separator must be one of them.
        let graph = config
            .model
            .graph(self.outputs.unwrap_or(1 << 20))
            .with_context(|| path.display().to_string())?;
        let known = self.outputs.is_some() || matches!(config.model, ModelConfig::Graph { .. });
        let Planned { optimizer, groups, constraint, .. } = config;
        let mut recipe = Recipe { optimizer, groups, rates: RatesConfig::default(), constraint };
        if self.per_head {
            recipe.constraint.per_head = PerHead::All(true);
        }
        match (self.target, self.sigma_max) {
            (Some(target), _) => caps(&graph, &recipe, target),
            (None, Some(sigma)) => {
                match recipe.with_sigma_max(sigma).filter(|recipe| recipe.promises_all(&graph)) {
                    Some(recipe) => bound(&graph, &recipe, known),
                    None => {
                        Err(lipschitz_certify::Error::NoPromise(recipe.constraint.method).into())
                    }
                }
            }
            (None, None) => Ok(()),
        }
    }
}

fn bound(graph: &Graph, recipe: &Recipe, known: bool) -> Result<()> {
    let walk = plan::plan(graph, recipe)?;
    if known {
        outln!("{}\n", fitted(super::bound::nodes(&walk.rows)));
    }
    outln!("L ≤ {}  RMS → RMS, for every network under these caps", walk.rms());
    if let Ok(formula) = plan::published(graph, recipe) {
        outln!("the published formula, no bound for more than one head, says {formula}");
    }
    if known {
        outln!(
            "one output moves by at most {} times the RMS norm of a change",
            walk.from_rms(walk.logit)
        );
    } else {
        outln!(
            "give --outputs N for the constants of nodes and of single outputs, which depend on \
             their number"
        );
    }
    Ok(())
}

fn caps(graph: &Graph, recipe: &Recipe, target: f64) -> Result<()> {
    let uniform = plan::solve(graph, recipe, target)?;
    let show = |title: &str, planned: &Recipe| -> Result<()> {
        outln!(
            "# {title}: L ≤ {}  RMS → RMS\n{}",
            plan::bound(graph, planned)?,
            section(&planned.constraint)?
        );
        Ok(())
    };
    show("One cap for all", &uniform)?;
    if !recipe.constraint.method.capped() {
        return Ok(());
    }
    let spent = plan::spend(graph, recipe, target)?;
    let matrices: Vec<_> =
        graph.parameters().into_iter().filter(|p| p.geometry == Geometry::Matrix).collect();
    let gain = plan::mean_cap(&spent, &matrices) / plan::mean_cap(&uniform, &matrices) - 1.0;
    if gain < 0.01 {
        outln!("# Caps a matrix name would be larger by {:.1} % only.", 100.0 * gain);
        return Ok(());
    }
    show(&format!("A cap for each matrix name, {:.0} % larger in the mean", 100.0 * gain), &spent)
}

/// The `[constraint]` section of a config.
fn section(constraint: &ConstraintConfig) -> Result<String> {
    Ok(toml::to_string(&Section { constraint })?)
}
