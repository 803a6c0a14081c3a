//! The program `train`: one file per subcommand.

mod config;
mod demo;
mod estimate;
mod eval;
mod remedy;
mod run;
mod sample;
mod shards;
mod sweep;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use lipschitz_certify::terminal;
use lipschitz_train::config::Config;

/// Trains networks under an enforced Lipschitz constant.
///
/// Exit code 0: fine; 1: a bound or a cap does not hold, or a run of a sweep failed; 2: bad input;
/// 130: stopped by Ctrl-C or a scheduler's signal, with a checkpoint saved.
#[derive(Parser)]
#[command(name = "train", version)]
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
    Demo(demo::Demo),
    Run(run::Run),
    Sweep(sweep::Sweep),
    #[command(hide = true)]
    SweepMember(sweep::SweepMember),
    Eval(eval::Eval),
    Sample(sample::Sample),
    Shards(shards::Shards),
    Estimate(estimate::EstimateCommand),
    Config(config::ConfigCommand),
    /// The page about this program, or that about the keys of a config, in Markdown on stdout.
    #[command(hide = true)]
    Reference {
        /// The keys of a config.
        #[arg(long)]
        config: bool,
    },
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

/// A flag that the first signal raises, which is answered unless this program is to be quiet.
fn on_signal(quiet: bool) -> Arc<AtomicBool> {
    let told = "stopping after this step, with a checkpoint; once more ends it at once";
    terminal::stop::on_signal((!quiet).then_some(told))
}

/// Stopped by a signal; says how to go on.
#[derive(Debug, thiserror::Error)]
#[error("stopped {after}. Continue with: {command}")]
struct Stopped {
    after: String,
    command: String,
}

/// Not all of what was asked for was done.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

/// The command line that the program reads.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program on the [command line](terminal::program), and gives its exit code. It wants to
/// be [prepared](crate::runtime::prepare).
pub fn main() -> u8 {
    terminal::end_without_memory();
    let cli = match terminal::parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    if let Some(threads) = cli.threads {
        // Fails only if the pool has been built already, and nothing ran before this line.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
    let quiet = cli.quiet;
    let result = match cli.command {
        Command::Demo(command) => command.run(quiet),
        Command::Run(command) => command.run(quiet),
        Command::Sweep(command) => command.run(quiet, cli.threads),
        Command::SweepMember(command) => command.run(),
        Command::Eval(command) => command.run(),
        Command::Sample(command) => command.run(),
        Command::Shards(command) => command.run(quiet),
        Command::Estimate(command) => command.run(),
        Command::Config(command) => command.run(),
        Command::Completions { shell } => {
            terminal::completions(shell, &mut Cli::command(), "train");
            Ok(())
        }
        Command::Reference { config } => {
            let page = match config {
                true => lipschitz_train::reference::page(),
                false => terminal::reference::page(&Cli::command()),
            };
            terminal::print(format_args!("{page}"));
            Ok(())
        }
        Command::Man { directory } => terminal::manual(Cli::command(), &directory),
    };
    let Err(error) = result else { return 0 };
    if let Some(stopped) = error.downcast_ref::<Stopped>() {
        terminal::note(format_args!("{stopped}"));
        return 130;
    }
    if error.is::<sweep::Elsewhere>() {
        return lipschitz_train::sweep::pool::ELSEWHERE;
    }
    terminal::note(format_args!("error: {}", line(&error)));
    code(&error)
}

/// The config of this name; `-` is stdin.
fn config_at(path: &Path, settings: &[String]) -> anyhow::Result<Config> {
    if !terminal::is_stream(path) {
        return Ok(Config::read(path, settings)?);
    }
    Config::parse(&terminal::read(path, "a config")?, settings).context("stdin")
}

/// An error as one line, with what to do about it.
fn line(error: &anyhow::Error) -> String {
    let line = terminal::line(error);
    match error.chain().find_map(remedy::remedy) {
        Some(remedy) => format!("{line}; {remedy}"),
        None => line,
    }
}

/// 1 for a claim that does not hold or runs that failed, 2 for bad input.
fn code(error: &anyhow::Error) -> u8 {
    let violated = error.downcast_ref().is_some_and(lipschitz_train::Error::is_violation);
    if violated || error.is::<Failed>() { 1 } else { terminal::exit_code(error) }
}

/// A command as a shell reads it.
fn shell<T: AsRef<str>>(words: &[T]) -> String {
    let quoted = |word: &T| {
        let word = word.as_ref();
        let plain = !word.is_empty()
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-/=+:,@%".contains(c));
        if plain { word.to_string() } else { format!("'{}'", word.replace('\'', "'\\''")) }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn json_takes_a_file_or_nothing_in_every_command() {
        let cli = Cli::command();
        let mut found = Vec::new();
        for command in cli.get_subcommands() {
            for arg in command.get_arguments().filter(|arg| arg.get_long() == Some("json")) {
                let count = arg.get_num_args().unwrap();
                assert_eq!((count.min_values(), count.max_values()), (0, 1), "{command}");
                found.push(command.get_name().to_string());
            }
        }
        assert_eq!(found, ["sweep", "eval"]);
    }

    #[test]
    fn remedies_name_flags_that_there_are() {
        let cli = Cli::command();
        let of = |name: &str| -> BTreeSet<String> {
            let command = cli.find_subcommand(name).unwrap();
            let long = |arg: &clap::Arg| Some(format!("--{}", arg.get_long()?));
            command.get_arguments().filter_map(long).collect()
        };
        // Where the errors with remedies come from; --features is one of cargo's.
        let has = &of("run") | &of("shards");
        let words =
            include_str!("remedy.rs").split(|c: char| !(c.is_ascii_lowercase() || c == '-'));
        for flag in words.filter(|word| word.len() > 2 && word.starts_with("--")) {
            assert!(has.contains(flag) || flag == "--features", "{flag}");
        }
        assert!(of("shards").contains("--out") && of("demo").contains("--out"));
    }
}
