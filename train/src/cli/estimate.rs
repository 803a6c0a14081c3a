use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use comfy_table::Table;
use lipschitz_certify::outln;
use lipschitz_certify::terminal::tables::{self, fitted};
use lipschitz_certify::terminal::{self, ranges};
use lipschitz_train::estimate::{self, Speeds, StepCost, estimate};
use lipschitz_train::teacher;

/// Memory and time of a training step on any number of GPUs, by arithmetic, before anything is run.
///
/// The default speeds are 40 % of those in NVIDIA's data sheet of an H100 SXM (989 Tflop/s in bf16,
/// 67 in f32, 3350 GB/s), and 80 % of a network port of 400 Gbit/s.
#[derive(Args)]
pub(super) struct EstimateCommand {
    /// The config of a run; - reads it from stdin.
    config: PathBuf,
    /// Change a key of the config, as path.to.key=value; path.to.key= takes the key out.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Numbers of processes, one per GPU.
    #[arg(long, value_delimiter = ',', default_value = "1",
        value_parser = ranges::count(1, 1 << 20))]
    processes: Vec<usize>,
    /// Vocabulary or number of classes, instead of the data's.
    #[arg(long, value_name = "N", value_parser = ranges::count(1, 1 << 28))]
    outputs: Option<usize>,
    /// Sustained Tflop/s of matmuls in bf16.
    #[arg(long, value_name = "TFLOPS", default_value_t = 396.0,
        value_parser = ranges::positive(1e9))]
    bf16: f64,
    /// Sustained Tflop/s of matmuls in f32.
    #[arg(long, value_name = "TFLOPS", default_value_t = 27.0,
        value_parser = ranges::positive(1e9))]
    f32: f64,
    /// GB/s to and from a device's memory.
    #[arg(long, value_name = "GB/S", default_value_t = 1340.0,
        value_parser = ranges::positive(1e9))]
    bandwidth: f64,
    /// GB/s that each process sends to the others.
    #[arg(long, value_name = "GB/S", default_value_t = 40.0,
        value_parser = ranges::positive(1e9))]
    exchange: f64,
}

impl EstimateCommand {
    pub(super) fn run(self) -> Result<()> {
        let config = super::config_at(&self.config, &self.settings)?;
        let data = config.data.kind();
        let graph = match self.outputs.or(data.outputs()) {
            // What an image is like, only the data says.
            Some(outputs) if self.outputs.is_some() && data.input().is_none() => {
                let input = data.load_little().map(|little| little.input()).unwrap_or_else(|_| {
                    terminal::note(format_args!(
                        "note: the data is not there; if it is images, 3×32×32 is assumed"
                    ));
                    None
                });
                config.graph_of(outputs, input)?
            }
            Some(outputs) => config.graph(outputs)?,
            None => config.graph_for(&*data.load_little()?)?,
        };
        let teachers = teacher::check(&config, &graph, None)?;
        config.recipe().check_for(&graph)?;
        config.recipe().check_rates(&graph, config.train.learning_rate)?;
        let here = estimate::check(&config, &graph, &teachers);
        let cost =
            |processes: &usize| Ok((*processes, estimate(&config, &graph, &teachers, *processes)?));
        let costs = self.processes.iter().map(cost).collect::<Result<Vec<_>>>()?;
        let Some((_, last)) = costs.last() else { bail!("--processes: give at least one number") };
        let examples = if graph.context().is_some() { "tokens" } else { "images" };
        outln!(
            "{} weights; {} {examples} per step, in {} per process. By arithmetic, not measured.",
            significant(last.weights as f64),
            significant(last.tokens as f64),
            match last.parts {
                1 => "one part".into(),
                parts => format!("{parts} parts"),
            }
        );
        outln!("GiB of each process:\n{}", fitted(memory_table(&costs)));
        let times = time_table(&costs, &self.speeds(), examples);
        outln!("seconds per step:\n{}", fitted(times));
        match here {
            Err(error @ lipschitz_train::Error::TooLarge { .. }) => {
                outln!("On this machine's CPU it cannot be trained: {error}.");
            }
            here => here?,
        }
        if last.update.is_none() {
            outln!(
                "?: an SVD is done on the CPU, and its time is not known; another constraint does \
                 without"
            );
        }
        Ok(())
    }

    fn speeds(&self) -> Speeds {
        Speeds {
            f32: self.f32 * 1e12,
            bf16: self.bf16 * 1e12,
            memory: self.bandwidth * 1e9,
            exchange: self.exchange * 1e9,
        }
    }
}

fn memory_table(costs: &[(usize, StepCost)]) -> Table {
    let mut table = table(&["weights", "gradients", "optimizer", "activations", "update", "peak"]);
    for (processes, cost) in costs {
        let m = &cost.memory;
        let row = [m.weights, m.gradients, m.optimizer, m.activations, m.update, m.peak()].map(gib);
        table.add_row(std::iter::once(processes.to_string()).chain(row));
    }
    table
}

fn time_table(costs: &[(usize, StepCost)], speeds: &Speeds, examples: &str) -> Table {
    let rate = format!("{examples} per second");
    let mut table = table(&["matmuls", "traffic", "update", "exchange", "total", &rate]);
    for (processes, cost) in costs {
        let row = match cost.seconds(speeds) {
            Some(parts) => {
                let total: f64 = parts.iter().sum();
                let rate = significant(cost.tokens as f64 / total);
                parts.into_iter().chain([total]).map(seconds).chain([rate]).collect()
            }
            None => vec!["?".to_string(); 6],
        };
        table.add_row(std::iter::once(processes.to_string()).chain(row));
    }
    table
}

fn table(columns: &[&str]) -> Table {
    let header = [&["processes"], columns].concat();
    tables::table(&header, 0..header.len())
}

fn gib(bytes: f64) -> String {
    format!("{:.2}", bytes / f64::from(1 << 30))
}

fn seconds(s: f64) -> String {
    if s < 10.0 { format!("{s:.3}") } else { significant(s) }
}

/// Three digits, with k, M or G.
fn significant(x: f64) -> String {
    let (x, unit) = match x {
        1e9.. => (x / 1e9, " G"),
        1e6.. => (x / 1e6, " M"),
        1e3.. => (x / 1e3, " k"),
        _ => (x, ""),
    };
    let digits = if x < 10.0 {
        2
    } else if x < 100.0 {
        1
    } else {
        0
    };
    format!("{x:.digits$}{unit}")
}
