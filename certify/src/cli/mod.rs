//! The command line: one file per subcommand.

mod bound;
mod graph;
mod import;
mod plan;
mod plot;
mod probe;
mod report;
mod robust;
mod run;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use lipschitz_certify::terminal;

/// Proves a Lipschitz bound of a trained checkpoint, and plots the results.
///
/// MODEL is a run directory, a .safetensors checkpoint, or a third-party model: a directory
/// with a config.json, a .bin of llama2.c, or a .pt or .npz of one matrix. Exit code 0: fine; 1: a
/// check failed; 2: bad input.
#[derive(Parser)]
#[command(name = "certify", version)]
struct Cli {
    /// Threads to use [default: all cores].
    #[arg(long, global = true)]
    threads: Option<usize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bound(bound::BoundCommand),
    Verify(verify::VerifyCommand),
    Probe(probe::ProbeCommand),
    Robust(robust::RobustCommand),
    Plan(plan::PlanCommand),
    Plot(plot::PlotCommand),
    Report(report::ReportCommand),
    Graph(graph::GraphCommand),
    Run(run::RunCommand),
    Import(import::ImportCommand),
    /// The JSON schema of a certificate, on stdout.
    Schema,
    /// Shell completions, on stdout.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

pub(crate) fn main() -> ExitCode {
    let cli = match terminal::parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    if let Some(threads) = cli.threads {
        // Fails only if the pool has been built already, and nothing ran before this line.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build_global();
    }
    let result = match cli.command {
        Command::Bound(command) => command.run(),
        Command::Verify(command) => command.run(),
        Command::Probe(command) => command.run(),
        Command::Robust(command) => command.run(),
        Command::Plan(command) => command.run(),
        Command::Plot(command) => command.run(),
        Command::Report(command) => command.run(),
        Command::Graph(command) => command.run(),
        Command::Run(command) => command.run(),
        Command::Import(command) => command.run(),
        Command::Schema => {
            terminal::print(format_args!("{}", lipschitz_certify::certificate::schema()));
            Ok(())
        }
        Command::Completions { shell } => {
            terminal::completions(shell, &mut Cli::command(), "certify");
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::note(format_args!("error: {}", terminal::line(&error)));
            ExitCode::from(terminal::exit_code(&error))
        }
    }
}

/// An error; one about a weight also names the model that contains it.
fn about(model: &std::path::Path, error: lipschitz_certify::Error) -> anyhow::Error {
    let weight =
        matches!(error, lipschitz_certify::Error::Network(lipschitz_nn::Error::Weight { .. }));
    let error = anyhow::Error::from(error);
    if weight { error.context(model.display().to_string()) } else { error }
}

/// Names the unfinished runs, which plots of finished ones leave out.
fn tell_unfinished(runs: &[std::path::PathBuf]) {
    for run in lipschitz_certify::plots::unfinished(runs) {
        terminal::note(format_args!("left out: {} is not finished", run.display()));
    }
}

/// Checks `--radius`.
fn check_radius(radius: Option<f64>) -> anyhow::Result<()> {
    match radius {
        Some(radius) if !(radius.is_finite() && radius > 0.0) => {
            anyhow::bail!("--radius {radius}: must be a number above 0")
        }
        _ => Ok(()),
    }
}
