use std::path::PathBuf;
use std::sync::atomic::Ordering;

use anyhow::Result;
use clap::Args;
use lipschitz_certify::outln;
use lipschitz_certify::terminal::tables::fitted;
use lipschitz_certify::terminal::{self, JsonOutput};
use lipschitz_train::run_dir::Summary;
use lipschitz_train::sweep::pool::{self, Ended, PoolOptions};
use lipschitz_train::sweep::{self, Outcome, SweepRun};

use super::{Failed, Stopped, on_signal, shell, table};

/// Train every network that a sweep file asks for.
///
/// Finished runs are kept and interrupted ones continued: repeat the command to go on after any
/// end.
#[derive(Args)]
pub(super) struct Sweep {
    /// The sweep: a base config, and lists or ranges of values for its keys.
    file: PathBuf,
    /// Where the runs go, one directory each.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Change a key of all runs, as path.to.key=value; path.to.key= takes the key out.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Make only part I of N, for tasks 1 to N of a job array.
    #[arg(long, value_name = "I/N", value_parser = shard)]
    shard: Option<(usize, usize)>,
    /// Runs at once; they share the threads.
    #[arg(long, default_value_t = 1, value_parser = terminal::ranges::count(1, 1024))]
    jobs: usize,
    /// Make runs again that failed before.
    #[arg(long)]
    retry_failed: bool,
    #[command(flatten)]
    json: JsonOutput,
}

fn shard(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    parts
        .filter(|(i, n)| (1..=*n).contains(i))
        .ok_or_else(|| "write it as I/N with I from 1 to N".into())
}

impl Sweep {
    pub(super) fn run(self, quiet: bool, threads: Option<usize>) -> Result<()> {
        self.json.ready(&["label", "directory", "state"])?;
        let stop = on_signal(quiet);
        let mut runs = sweep::file::runs(&self.file, &self.settings)?;
        if let Some((i, n)) = self.shard {
            let mut at = 0..;
            runs.retain(|_| at.next().is_some_and(|at: usize| at % n == i - 1));
        }
        sweep::check(&runs)?;
        let threads =
            threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let (out, jobs, retry_failed) = (&*self.out, self.jobs, self.retry_failed);
        let stop_all = stop.clone();
        let outcomes = pool::run(&PoolOptions {
            runs: &runs,
            out,
            jobs,
            threads,
            retry_failed,
            stop: stop_all,
            quiet,
        })?;
        let ended = outcomes.iter().filter(|(_, o)| *o != Outcome::Stopped).count();
        if stop.load(Ordering::Relaxed) && ended < runs.len() {
            let after = format!(
                "with {ended} of {} runs ended; checkpoints of the others are saved",
                runs.len()
            );
            return Err(Stopped { after, command: command_line() }.into());
        }
        if !self.json.write(|| json(&runs, &outcomes))? {
            print_table(&runs, &outcomes)
        }
        let failed = outcomes.iter().filter(|(_, o)| !matches!(o, Outcome::Finished(_))).count();
        if failed > 0 {
            let what = format!(
                "{failed} of {} runs are not finished; the same command goes on with stopped ones, \
                 --retry-failed makes failed ones again",
                runs.len()
            );
            return Err(Failed(what).into());
        }
        Ok(())
    }
}

fn print_table(runs: &[SweepRun], outcomes: &[(PathBuf, Outcome)]) {
    let finished = runs.iter().zip(outcomes).filter_map(|(run, (_, outcome))| match outcome {
        // The label that this sweep file gives, whatever it was called when it was made.
        Outcome::Finished(summary) => {
            Some(Summary { label: run.label.clone(), ..(**summary).clone() })
        }
        _ => None,
    });
    let finished: Vec<Summary> = finished.collect();
    if !finished.is_empty() {
        outln!("{}", fitted(table::summaries(&finished)));
    }
    for (run, (directory, outcome)) in runs.iter().zip(outcomes) {
        let what = match outcome {
            Outcome::Failed(said) => format!("failed: {said}"),
            Outcome::Killed(how) => format!("ended from outside ({how})"),
            Outcome::Finished(_) | Outcome::Stopped => continue,
        };
        outln!("{}: {what} ({})", run.label, directory.display());
    }
}

/// The results, and what became of runs without one.
fn json(runs: &[SweepRun], outcomes: &[(PathBuf, Outcome)]) -> serde_json::Result<String> {
    let one = |(run, (directory, outcome)): (&SweepRun, &(PathBuf, Outcome))| {
        let (state, summary, error) = match outcome {
            Outcome::Finished(summary) => ("finished", Some(summary), None),
            Outcome::Failed(said) => ("failed", None, Some(said)),
            Outcome::Killed(how) => ("killed", None, Some(how)),
            Outcome::Stopped => ("stopped", None, None),
        };
        let (label, directory) = (&run.label, directory.display().to_string());
        serde_json::json!({
            "label": label, "directory": directory, "state": state, "summary": summary,
            "error": error,
        })
    };
    let all: Vec<serde_json::Value> = runs.iter().zip(outcomes).map(one).collect();
    serde_json::to_string_pretty(&all)
}

/// This program's command line, as a shell would read it.
fn command_line() -> String {
    let words = terminal::program::arguments();
    let rest = words.iter().skip(1).map(|word| word.to_string_lossy().into_owned());
    shell(&std::iter::once("train".to_string()).chain(rest).collect::<Vec<_>>())
}

/// One run of a sweep, for the sweep's own use.
#[derive(Args)]
pub(super) struct SweepMember {
    #[arg(long)]
    out: PathBuf,
    #[arg(long)]
    label: String,
}

/// Another process is at work on the run.
#[derive(Debug, thiserror::Error)]
#[error("another process is at work on this run")]
pub(super) struct Elsewhere;

impl SweepMember {
    pub(super) fn run(self) -> Result<()> {
        match pool::child(&self.out, self.label, on_signal(true))? {
            Ended::Done => Ok(()),
            Ended::Elsewhere => Err(Elsewhere.into()),
            Ended::Stopped(step) => {
                let after = format!("after {step} steps; a checkpoint is saved");
                Err(Stopped { after, command: "the sweep's own command".into() }.into())
            }
        }
    }
}
