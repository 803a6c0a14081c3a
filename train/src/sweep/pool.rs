//! Trains the runs of a sweep, several at once, each in a process of its own.
//!
//! A run belongs to the process that holds the [`Lock`] of its directory, so two sweeps share a
//! directory without making a run twice. A child reads its config from its standard input and
//! stops, with a checkpoint, when that input ends: so children do not outlive a sweep that is
//! killed.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lipschitz_certify::terminal::program;
use lipschitz_nn::{At, checkpoint};

use super::live::Live;
use super::outcome::Outcome;
use super::{SweepRun, finished, places};
use crate::Error;
use crate::config::Config;
use crate::error::Within;
use crate::run_dir::{Lock, holds_run};
use crate::trainer::{self, End, RunOptions};

/// How the runs are to be made.
pub struct PoolOptions<'a> {
    /// The runs.
    pub runs: &'a [SweepRun],
    /// The directory of their directories.
    pub out: &'a Path,
    /// How many at once.
    pub jobs: usize,
    /// Threads of all of them together.
    pub threads: usize,
    /// Make runs again that failed before.
    pub retry_failed: bool,
    /// Raised to stop all runs at their next step.
    pub stop: Arc<AtomicBool>,
    /// Show nothing.
    pub quiet: bool,
}

/// Exit code of a child that found another process at work on its run.
pub const ELSEWHERE: u8 = 75;

/// Where a failed run keeps what it said.
const FAILED: &str = "failed.txt";

/// How long until a run that another process holds is looked at again.
const LATER: Duration = Duration::from_millis(300);

/// Makes all runs that are not finished; one outcome per run, with its directory. Waits for runs
/// that another sweep is making.
///
/// # Errors
/// If the directory cannot be read or written. A run that fails is no error here.
pub fn run(options: &PoolOptions) -> Result<Vec<(PathBuf, Outcome)>, Error> {
    fs::create_dir_all(options.out).at(options.out)?;
    let places = places(options.out, options.runs)?;
    let mut pool = Pool {
        options,
        live: Live::new(options.runs, options.quiet),
        waiting: (0..places.len()).map(|i| (i, None)).collect(),
        running: Vec::new(),
        outcomes: vec![None; places.len()],
        places,
    };
    while pool.turn()? {
        thread::sleep(Duration::from_millis(20));
    }
    pool.live.finish();
    Ok(pool
        .places
        .into_iter()
        .zip(pool.outcomes.into_iter().map(|o| o.unwrap_or(Outcome::Stopped)))
        .collect())
}

struct Pool<'a> {
    options: &'a PoolOptions<'a>,
    places: Vec<PathBuf>,
    live: Live,
    /// Runs to come; those that another process holds not before a time.
    waiting: VecDeque<(usize, Option<Instant>)>,
    running: Vec<Running>,
    outcomes: Vec<Option<Outcome>>,
}

struct Running {
    run: usize,
    child: Child,
    /// Dropped to stop it.
    input: Option<ChildStdin>,
    said: JoinHandle<String>,
}

impl Pool<'_> {
    /// Looks at all runs once; false when there is nothing left to wait for.
    fn turn(&mut self) -> Result<bool, Error> {
        for running in std::mem::take(&mut self.running) {
            self.reap(running)?;
        }
        if self.options.stop.load(Ordering::Relaxed) {
            self.running.iter_mut().for_each(|r| r.input = None);
            self.live.stopping();
            return Ok(!self.running.is_empty());
        }
        for _ in 0..self.waiting.len() {
            if self.running.len() >= self.options.jobs.max(1) {
                break;
            }
            let Some((run, not_before)) = self.waiting.pop_front() else { break };
            if not_before.is_some_and(|time| time > Instant::now()) {
                self.waiting.push_back((run, not_before));
                continue;
            }
            self.start(run)?;
        }
        self.live.update(&self.places);
        Ok(!self.running.is_empty() || !self.waiting.is_empty())
    }

    fn start(&mut self, run: usize) -> Result<(), Error> {
        let (directory, SweepRun { config, label, .. }) =
            (&self.places[run], &self.options.runs[run]);
        if let Some(summary) = finished(directory, config) {
            self.end(run, Outcome::Finished(Box::new(summary)), true);
            return Ok(());
        }
        let failed = directory.join(FAILED);
        if failed.exists() && !self.options.retry_failed {
            let said = fs::read_to_string(&failed)
                .unwrap_or_else(|e| format!("{}: {e}", failed.display()));
            self.end(run, Outcome::Failed(said.trim().to_string()), true);
            return Ok(());
        }
        let threads = (self.options.threads / self.options.jobs.max(1)).max(1).to_string();
        let mut command = program::again().map_err(process("the path of this program"))?;
        command
            .args(["--quiet", "--threads", &threads, "sweep-member", "--label", label, "--out"])
            .arg(directory);
        for variable in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
            if std::env::var_os(variable).is_none() {
                command.env(variable, &threads);
            }
        }
        let command = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(process("a process for a run"))?;
        let (mut input, error) = (child.stdin.take(), child.stderr.take());
        let said = thread::spawn(move || {
            let mut text = String::new();
            // Bytes that are not text are not shown; the child is read to its end all the same.
            let _ = error.map(|mut error| error.read_to_string(&mut text));
            text
        });
        if let Some(input) = &mut input {
            // A child that has ended already is found out by its exit code.
            let _ = writeln!(input, "{}", serde_json::to_string(config)?);
        }
        self.live.start(run, label, config.train.steps);
        self.running.push(Running { run, child, input, said });
        Ok(())
    }

    /// Records a run that has ended, or puts it back.
    fn reap(&mut self, mut running: Running) -> Result<(), Error> {
        let Some(status) = running.child.try_wait().map_err(process("the process of a run"))?
        else {
            self.running.push(running);
            return Ok(());
        };
        let Running { run, said, .. } = running;
        let said = said.join().unwrap_or_default();
        let (directory, config) = (&self.places[run], &self.options.runs[run].config);
        let outcome = match (status.code(), finished(directory, config)) {
            (Some(0), Some(summary)) => Outcome::Finished(Box::new(summary)),
            (Some(code), _) if code == i32::from(ELSEWHERE) => {
                self.live.elsewhere(run);
                self.waiting.push_back((run, Some(Instant::now() + LATER)));
                return Ok(());
            }
            (Some(130), _) => Outcome::Stopped,
            (Some(code), _) => {
                // A run that was made with fewer steps, under other learning rates, and went on.
                let message = match code {
                    0 => "was made with another number of steps and went on; remove its directory"
                        .into(),
                    _ => message(&said, status),
                };
                // Where nothing can be written, the next sweep makes it again.
                let kept = fs::create_dir_all(directory).at(directory).and_then(|()| {
                    checkpoint::write(&directory.join(FAILED), format!("{message}\n").as_bytes())
                });
                match kept {
                    Ok(()) => Outcome::Failed(message),
                    Err(e) => Outcome::Failed(format!("{message}; not written down: {e}")),
                }
            }
            // Killed from outside, as for want of memory: no fault of the run's own that is known.
            (None, _) => Outcome::Killed(status.to_string()),
        };
        self.end(run, outcome, false);
        Ok(())
    }

    fn end(&mut self, run: usize, outcome: Outcome, before: bool) {
        if let Outcome::Finished(_) = outcome {
            // What it said when it failed before is past, whoever finished it.
            let _ = fs::remove_file(self.places[run].join(FAILED));
        }
        self.live.end(run, &self.options.runs[run].label, &outcome, before);
        self.outcomes[run] = Some(outcome);
    }
}

/// What the operating system says when this is asked of it.
fn process(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |error| Error::Process { what, error }
}

/// The error line of a program that failed.
fn message(said: &str, status: ExitStatus) -> String {
    // A note, such as that on backtraces, is no cause.
    let told = |line: &&str| !line.is_empty() && !line.starts_with("note: ");
    let lines = || said.lines().map(str::trim).filter(told);
    let error = lines().find_map(|line| line.strip_prefix("error: "));
    error.or_else(|| lines().next_back()).map_or_else(|| status.to_string(), str::to_string)
}

/// How [`child`] ended.
#[derive(Debug)]
pub enum Ended {
    /// The run is finished.
    Done,
    /// Its sweep stopped it, after this many steps.
    Stopped(u64),
    /// Another process is at work on it.
    Elsewhere,
}

/// Makes one run for a sweep, which gives the config as a line of JSON on standard input and stops
/// the run by closing it, as raising `stop` does.
///
/// # Errors
/// As [`trainer::run`].
pub fn child(out: &Path, label: String, stop: Arc<AtomicBool>) -> Result<Ended, Error> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(process("the config of a run"))?;
    let config: Config = serde_json::from_str(&line).within("the config of a run")?;
    let flag = stop.clone();
    thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        flag.store(true, Ordering::Relaxed);
    });
    fs::create_dir_all(out).at(out)?;
    let Some(lock) = Lock::take(out)? else { return Ok(Ended::Elsewhere) };
    // Another sweep may have finished it between the look at its files and the lock.
    if finished(out, &config).is_some() {
        return Ok(Ended::Done);
    }
    let (resume, lock) = (holds_run(out), Some(Rc::new(lock)));
    let options = RunOptions { resume, stop, label, lock, ..RunOptions::new(out) };
    Ok(match trainer::run(&config, &options)? {
        End::Done(_) => Ended::Done,
        End::Stopped(step) => Ended::Stopped(step),
    })
}
