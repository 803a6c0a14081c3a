//! The program `certify`: one file per subcommand.

mod bound;
mod decisions;
mod effort;
mod executed;
pub mod export;
mod graph;
mod import;
mod local;
mod plan;
mod plot;
mod probe;
mod range;
mod report;
mod robust;
mod run;
mod substitutions;
mod verify;
mod watch;

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};
use lipschitz_certify::terminal;

/// Proves a Lipschitz bound of a trained checkpoint, and plots the results.
///
/// MODEL is a run directory, a .safetensors checkpoint, or a third-party model: a directory
/// with a config.json, an ONNX or GGUF file, a .bin of llama2.c, a .pt of nanoGPT, an archive of Newhouse
/// et al. (2025), or a .pt or .npz of one matrix. Exit code 0: fine; 1: a check failed; 2: bad input.
#[derive(Parser)]
#[command(name = "certify", version)]
struct Cli {
    /// Threads to use [default: all cores].
    #[arg(long, global = true, value_parser = terminal::ranges::threads())]
    threads: Option<usize>,
    /// Show no progress.
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bound(bound::BoundCommand),
    Verify(verify::VerifyCommand),
    Probe(probe::ProbeCommand),
    Range(range::RangeCommand),
    Robust(robust::RobustCommand),
    Local(local::LocalCommand),
    Plan(plan::PlanCommand),
    Plot(plot::PlotCommand),
    Report(report::ReportCommand),
    Graph(graph::GraphCommand),
    Run(run::RunCommand),
    Import(import::ImportCommand),
    Export(export::ExportCommand),
    Watch(watch::WatchCommand),
    /// The JSON schema of a certificate, on stdout.
    Schema,
    /// The page about this program, in Markdown on stdout.
    #[command(hide = true)]
    Reference,
    /// Shell completions, on stdout.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Manual pages for `man`, one file per command.
    Man {
        /// The directory to write them to.
        directory: PathBuf,
    },
}

/// The command line that the program reads.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program on the [command line](terminal::program), and gives its exit code.
pub fn main() -> u8 {
    terminal::end_without_memory();
    let cli = match terminal::parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    if cli.quiet {
        terminal::hush();
    }
    if let Some(threads) = cli.threads {
        // Fails only if the pool has been built already, and nothing ran before this line.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
    let result = match cli.command {
        Command::Bound(command) => command.run(),
        Command::Verify(command) => command.run(),
        Command::Probe(command) => command.run(),
        Command::Range(command) => command.run(),
        Command::Robust(command) => command.run(),
        Command::Local(command) => command.run(),
        Command::Plan(command) => command.run(),
        Command::Plot(command) => command.run(),
        Command::Report(command) => command.run(),
        Command::Graph(command) => command.run(),
        Command::Run(command) => command.run(),
        Command::Import(command) => command.run(),
        Command::Export(command) => command.run(),
        Command::Watch(command) => command.run(),
        Command::Schema => {
            terminal::print(format_args!("{}", lipschitz_certify::certificate::schema()));
            Ok(())
        }
        Command::Completions { shell } => {
            terminal::completions(shell, &mut Cli::command(), "certify");
            Ok(())
        }
        Command::Reference => {
            terminal::print(format_args!("{}", terminal::reference::page(&Cli::command())));
            Ok(())
        }
        Command::Man { directory } => terminal::manual(Cli::command(), &directory),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            terminal::note(format_args!("error: {}", terminal::line(&error)));
            terminal::exit_code(&error)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every command, with its own name last.
    fn commands() -> Vec<clap::Command> {
        fn below(command: &clap::Command, out: &mut Vec<clap::Command>) {
            out.push(command.clone());
            command.get_subcommands().for_each(|command| below(command, out));
        }
        let mut out = Vec::new();
        below(&Cli::command(), &mut out);
        out
    }

    fn flags(command: &clap::Command) -> BTreeSet<String> {
        command.get_arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?))).collect()
    }

    #[test]
    fn json_takes_a_file_or_nothing_in_every_command() {
        let mut found = Vec::new();
        for command in commands() {
            for arg in command.get_arguments().filter(|arg| arg.get_long() == Some("json")) {
                let count = arg.get_num_args().unwrap();
                assert_eq!((count.min_values(), count.max_values()), (0, 1), "{command}");
                found.push(command.get_name().to_string());
            }
        }
        assert_eq!(found, ["bound", "probe", "range", "robust", "local"]);
    }

    /// A remedy that names a flag names the command that has it.
    #[test]
    fn remedies_name_flags_that_there_are() {
        let import = commands().into_iter().find(|c| c.get_name() == "import").unwrap();
        let has = flags(&import);
        let source = include_str!("../terminal.rs").split("#[cfg(test)]").next().unwrap();
        let mut seen = 0;
        for part in source.split("U::").skip(1) {
            let part = part.split("E::").next().unwrap();
            let words = part.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
            for flag in words.filter(|word| word.len() > 2 && word.starts_with("--")) {
                assert!(has.contains(flag), "{flag}");
                assert!(part.contains("`certify import`"), "{part}");
                seen += 1;
            }
        }
        assert!(seen >= 10, "{seen}");
    }

    #[test]
    fn help_is_no_wider_than_asked() {
        for mut command in commands() {
            let text = command.clone().term_width(60).render_long_help().to_string();
            // Names of values are not broken.
            let wide = |line: &&str| line.chars().count() > 60 && line.trim().contains(' ');
            let words = text.lines().filter(wide).filter(|line| !line.contains("--"));
            assert_eq!(words.collect::<Vec<_>>(), Vec::<&str>::new(), "{command}");
            let _ = command.render_usage();
        }
    }
}
