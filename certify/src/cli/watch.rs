use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Args;
use lipschitz_certify::range::Inputs;
use lipschitz_certify::source::Source;
use lipschitz_certify::terminal::{self, ranges, shown};
use lipschitz_certify::watch::{
    Candidate, FORMAT, Limits, Line, Memory, Stamp, candidates, measure,
};
use lipschitz_certify::{Error, outln};
use lipschitz_nn::graph::Input;
use lipschitz_nn::{At, Graph};
use sha2::{Digest, Sha256};

/// Follow a directory of checkpoints while something else trains: a line of a log for each new one,
/// with proven norms, the largest possible logits and elements, the bound, and what breaches limits.
///
/// Follows files of safetensors, and directories with a config.json, in DIR and in its
/// subdirectories. Norms of weights that did not change are not proven again. Ends on Ctrl-C with
/// exit code 0, and at a breach with 1, unless a hook answers it.
#[derive(Args)]
pub(super) struct WatchCommand {
    /// The directory.
    dir: PathBuf,
    /// A TOML file of limits: `lipschitz`, `logit`, `range`, `norm`, and `[norms]` by name.
    #[arg(long, value_name = "FILE")]
    limits: Option<PathBuf>,
    /// The log, one JSON object per line, continued if it is there [default: DIR/watch.jsonl].
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Run this command, by `sh -c`, at a breach, and go on: LIPSCHITZ_CHECKPOINT and
    /// LIPSCHITZ_BREACHES say of what.
    #[arg(long, value_name = "COMMAND")]
    hook: Option<String>,
    /// Take what is there, and end.
    #[arg(long)]
    once: bool,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 5.0, value_name = "S",
        value_parser = ranges::number(0.1, 86_400.0))]
    every: f64,
    /// The domain: ℓ2 radius per token's embedding vector, or of the whole input [default: the
    /// natural domain].
    #[arg(long)]
    radius: Option<f64>,
    /// The domain of images and vectors: the largest absolute value of an element.
    #[arg(long, value_name = "X",
        value_parser = ranges::positive(1e300))]
    limit: Option<f64>,
    /// Print nothing on stdout.
    #[arg(long, short)]
    quiet: bool,
}

/// How often a checkpoint is tried that cannot be read, while nothing about it changes.
const TRIES: usize = 3;

/// Between two tries of a single look.
const PAUSE: Duration = Duration::from_millis(300);

impl WatchCommand {
    pub(super) fn run(self) -> Result<()> {
        super::check_radius(self.radius)?;
        if !self.dir.is_dir() {
            bail!(
                "{}: is no directory; name the one that checkpoints are saved to",
                self.dir.display()
            )
        }
        let limits = match &self.limits {
            Some(file) => Limits::read(file)?,
            None => Limits::default(),
        };
        let log = self.log.clone().unwrap_or_else(|| self.dir.join("watch.jsonl"));
        let mut watch = Watch {
            log: Log::open(&log)?,
            limits,
            memory: Memory::default(),
            seen: BTreeMap::new(),
            stop: terminal::stop::on_signal(None),
            command: self,
        };
        watch.follow()
    }
}

/// A checkpoint that was seen before.
struct Seen {
    stamp: Stamp,
    /// How often this version was tried; none are left where it is done with.
    left: usize,
}

struct Watch {
    command: WatchCommand,
    limits: Limits,
    log: Log,
    memory: Memory,
    seen: BTreeMap<PathBuf, Seen>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn follow(&mut self) -> Result<()> {
        let mut failed: BTreeSet<PathBuf> = BTreeSet::new();
        while !self.stopped() {
            let found = candidates(&self.command.dir)?;
            self.seen.retain(|path, _| found.iter().any(|c| c.path == *path));
            let mut waiting = false;
            for candidate in &found {
                if self.stopped() {
                    return Ok(());
                }
                let Some(tried) = self.look(candidate)? else { continue };
                match tried {
                    Ok(()) => {
                        failed.remove(&candidate.path);
                    }
                    Err(error) => {
                        // One that is still being written is whole at a later look.
                        let left = self.seen.get(&candidate.path).map_or(0, |seen| seen.left);
                        waiting |= left > 0;
                        if left == 0 {
                            let said = terminal::line(&error);
                            terminal::note(format_args!("left out: {said}"));
                            failed.insert(candidate.path.clone());
                        }
                    }
                }
            }
            if self.command.once && !waiting {
                return match failed.first() {
                    Some(path) => bail!("{}: cannot be read as a checkpoint", path.display()),
                    None => Ok(()),
                };
            }
            let every = Duration::from_secs_f64(self.command.every);
            self.sleep(if self.command.once { PAUSE } else { every });
        }
        Ok(())
    }

    /// Waits, until a signal comes.
    fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.stopped() && Instant::now() < until {
            thread::sleep(Duration::from_millis(50).min(until - Instant::now()));
        }
    }

    /// Takes a checkpoint if it is new, or was not whole at the last look; what came of it.
    ///
    /// # Errors
    /// What ends the program: a breach, or a log that cannot be written.
    fn look(&mut self, candidate: &Candidate) -> Result<Option<Result<()>>> {
        let once = self.command.once;
        let seen = self.seen.entry(candidate.path.clone());
        let seen = seen.or_insert(Seen { stamp: Stamp::new(), left: 0 });
        if seen.stamp != candidate.stamp {
            let fresh = seen.stamp.is_empty();
            *seen = Seen { stamp: candidate.stamp.clone(), left: TRIES };
            // What has just changed may be changing still.
            if !(once || fresh && settled(&candidate.stamp)) {
                return Ok(None);
            }
        }
        if seen.left == 0 {
            return Ok(None);
        }
        seen.left -= 1;
        let line = match self.measured(candidate) {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(Some(Ok(()))),
            Err(error) => return Ok(Some(Err(error))),
        };
        if let Some(seen) = self.seen.get_mut(&candidate.path) {
            seen.left = 0;
        }
        if !self.log.has(&line) {
            self.log.append(&line)?;
            self.tell(&line)?;
        } else if once && !line.breaches.is_empty() {
            self.tell(&line)?;
        }
        Ok(Some(Ok(())))
    }

    /// The line of a checkpoint; none if a signal came.
    fn measured(&mut self, candidate: &Candidate) -> Result<Option<Line>> {
        let start = Instant::now();
        let path = candidate.path.display().to_string();
        let opened = lipschitz_certify::open(&candidate.path)?;
        let tokens = matches!(opened.graph().input(), Input::Tokens { .. });
        let limit = self.command.limit.filter(|_| !tokens);
        let inputs = Inputs { radius: self.command.radius, limit };
        let stop = self.stop.clone();
        let goes_on = || !stop.load(Ordering::Relaxed);
        let measured = measure(&opened, inputs, &mut self.memory, &goes_on)
            .map_err(|e| super::about(&candidate.path, e))?;
        let Some(measured) = measured else { return Ok(None) };
        let step = opened.meta().provenance.step.or_else(|| candidate.number());
        let breaches = self.limits.breaches(&measured);
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let seconds = start.elapsed().as_secs_f64();
        let asked = Some(asked(opened.graph(), inputs)?);
        Ok(Some(Line { format: FORMAT, time, path, step, asked, measured, seconds, breaches }))
    }

    /// What is printed of a line, and what its breaches lead to.
    fn tell(&self, line: &Line) -> Result<()> {
        if !self.command.quiet {
            let m = &line.measured;
            let step = line.step.map_or(String::new(), |step| format!(" step {step}:"));
            let logit = m.largest_logit.map_or(String::new(), |x| format!(", logits ≤ {x}"));
            outln!(
                "{}:{step} L ≤ {}{logit}, elements ≤ {}, {} norms proven and {} known, {:.1} s",
                shown(&line.path),
                m.lipschitz,
                m.range,
                m.proven,
                m.reused,
                line.seconds
            );
        }
        let Some(first) = line.breaches.first() else { return Ok(()) };
        for breach in &line.breaches {
            terminal::note(format_args!("breach: {}: {}", shown(&line.path), shown(breach)));
        }
        match &self.command.hook {
            None => {
                let what = format!("{}: {}", shown(&line.path), shown(first));
                Err(Error::Violated(what).into())
            }
            Some(hook) => {
                let status = Command::new("sh")
                    .arg("-c")
                    .arg(hook)
                    .env("LIPSCHITZ_CHECKPOINT", &line.path)
                    .env("LIPSCHITZ_BREACHES", line.breaches.join("\n"))
                    .status()
                    .context("--hook")?;
                if !status.success() {
                    terminal::note(format_args!("--hook: ended with {status}"));
                }
                Ok(())
            }
        }
    }
}

/// Whether files were last written some time ago, by the clock.
fn settled(stamp: &Stamp) -> bool {
    const AGE: Duration = Duration::from_secs(2);
    stamp
        .iter()
        .all(|(_, _, time)| time.and_then(|time| time.elapsed().ok()).is_some_and(|age| age > AGE))
}

/// Path, weights, and what was asked.
type Key = (String, String, Option<String>);

fn key(line: &Line) -> Key {
    (line.path.clone(), line.measured.weights_sha256.clone(), line.asked.clone())
}

/// SHA-256 of a graph and the inputs that bounds hold for.
fn asked(graph: &Graph, inputs: Inputs) -> Result<String> {
    let what = serde_json::to_vec(&(graph, inputs.radius, inputs.limit))?;
    Ok(hex::encode(Sha256::digest(what)))
}

/// The log, and which checkpoints are in it, with what they breached.
struct Log {
    path: PathBuf,
    known: BTreeMap<Key, BTreeSet<String>>,
}

impl Log {
    /// Opens a log, or begins one. A line that another program did not finish is ended. Nothing is added to
    /// a file without a line of a log.
    fn open(path: &Path) -> Result<Self> {
        let mut file = File::options().read(true).append(true).create(true).open(path).at(path)?;
        let mut text = String::new();
        file.read_to_string(&mut text).at(path)?;
        let whole = |line: &str| serde_json::from_str::<Line>(line).is_ok();
        if !(text.is_empty() || text.lines().any(whole) || text.starts_with("{\"format\":")) {
            bail!("{}: is there already and is no log of checkpoints; name another", path.display())
        }
        if !text.is_empty() && !text.ends_with('\n') {
            file.seek(SeekFrom::End(0)).at(path)?;
            file.write_all(b"\n").at(path)?;
        }
        let mut log = Self { path: path.to_path_buf(), known: BTreeMap::new() };
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).for_each(|l| log.know(&l));
        Ok(log)
    }

    fn know(&mut self, line: &Line) {
        self.known.entry(key(line)).or_default().extend(line.breaches.iter().cloned());
    }

    /// Whether it has these weights there, and all that they breach.
    fn has(&self, line: &Line) -> bool {
        let known = self.known.get(&key(line));
        known.is_some_and(|known| line.breaches.iter().all(|breach| known.contains(breach)))
    }

    /// Adds a line, all of it at once.
    fn append(&mut self, line: &Line) -> Result<()> {
        let text = serde_json::to_string(line)? + "\n";
        let mut file = File::options().append(true).create(true).open(&self.path).at(&self.path)?;
        file.write_all(text.as_bytes()).at(&self.path)?;
        self.know(line);
        Ok(())
    }
}
