//! Runs and sweeps that are killed at any moment, over and over, some on a full disk: they end as
//! ones that were left alone, in every bit of weights, states, metrics and plots.
//!
//! `cargo test -p lipschitz-train --test kills -- --ignored --nocapture` makes 200 of each and says
//! how they went; `KILLS` and `SEED` change their number and their times.
#![cfg(unix)]

mod workshop;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use workshop::*;

/// What ended a process, and how often.
#[derive(Debug, Default)]
struct Figures {
    ended: BTreeMap<String, usize>,
    /// Kills that came too late.
    finished: usize,
    /// Runs or sweeps that ended in spite of kills, and were compared.
    compared: usize,
}

impl Figures {
    fn count(&self) -> usize {
        self.ended.values().sum()
    }

    fn add(&mut self, how: &str) {
        *self.ended.entry(how.to_string()).or_default() += 1;
    }
}

const SIGNALS: [&str; 4] = ["KILL", "TERM", "INT", "HUP"];

/// How a process is ended.
enum Fault {
    Signal(&'static str),
    /// No file may be longer than this many KiB.
    LongFiles(u64),
    /// So many KiB are left on the disk.
    Full(u64),
}

/// A small disk, which can be filled.
struct Disk(PathBuf);

impl Disk {
    /// None, said loudly, where this user may mount none.
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir(&at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=16m", "none"]).arg(&at);
        if !mount.output().is_ok_and(|output| output.status.success()) {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: no disk can be mounted, so files are limited in length instead"
            );
            return None;
        }
        Some(Self(at))
    }

    /// Leaves this many KiB.
    fn fill(&self, left: u64) {
        let df = Command::new("df").args(["-k", "--output=avail"]).arg(&self.0).output().unwrap();
        let free: u64 = text(&df.stdout).lines().last().unwrap().trim().parse().unwrap();
        let ballast = vec![1; free.saturating_sub(left) as usize * 1024];
        std::fs::write(self.0.join("ballast"), ballast).unwrap();
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn fault(rng: &mut ChaCha8Rng, disk: Option<&Disk>) -> Fault {
    match rng.random_range(0..10) {
        0 => Fault::LongFiles(rng.random_range(0..40)),
        1 if disk.is_some() => Fault::Full(rng.random_range(0..120)),
        _ => Fault::Signal(SIGNALS[rng.random_range(0..4)]),
    }
}

/// The command, with files of limited length.
fn limited(command: &Command, kib: u64) -> Command {
    let mut shell = Command::new("bash");
    // The write fails, instead of a signal.
    shell.args(["-c", &format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\""), "bash"]);
    shell.arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    shell
}

/// How a signal ended a process; none if it was too late. Each way a process may end is one of
/// those that were meant.
fn how(status: ExitStatus, said: &str, signal: &str) -> Option<String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => None,
        (Some(130), _) => Some(format!("{signal}, saved")),
        // Before the program listens, or by a signal that cannot be caught.
        (None, Some(_)) => Some(format!("{signal}, at once")),
        other => panic!("{other:?}: {said}"),
    }
}

/// A full disk is one line that says so.
fn is_full(status: ExitStatus, said: &str) -> bool {
    let told = said.contains("the disk is full") || said.contains("File too large");
    match status.code() {
        Some(0) => false,
        Some(2) if told => true,
        other => panic!("{other:?}: {said}"),
    }
}

/// Starts a process, ends it as the fault says, and counts.
fn ended(
    mut command: Command,
    fault: &Fault,
    disk: Option<&Disk>,
    rng: &mut ChaCha8Rng,
    longest: u64,
    figures: &mut Figures,
) -> bool {
    let output = match fault {
        Fault::Signal(name) => {
            let child = spawn(&mut command);
            std::thread::sleep(Duration::from_millis(rng.random_range(0..longest)));
            signal(name, &child.id());
            if rng.random_range(0..6) == 0 {
                std::thread::sleep(Duration::from_millis(rng.random_range(0..20)));
                signal(SIGNALS[rng.random_range(0..4)], &child.id());
            }
            let output = child.output();
            match how(output.status, &text(&output.stderr), name) {
                Some(how) => figures.add(&how),
                None => figures.finished += 1,
            }
            output
        }
        Fault::LongFiles(kib) => {
            let output = limited(&command, *kib).output().unwrap();
            if is_full(output.status, &text(&output.stderr)) {
                figures.add("file too long");
            }
            output
        }
        Fault::Full(left) => {
            let disk = disk.unwrap();
            disk.fill(*left);
            let output = command.output().unwrap();
            disk.empty();
            if is_full(output.status, &text(&output.stderr)) {
                figures.add("disk full");
            }
            output
        }
    };
    output.status.success()
}

/// `train run`, killed until it has been so often, in one directory after the other.
fn kill_runs(kills: usize, seed: u64, mounted: bool) -> Figures {
    let config = TINY.replace("steps = 30", "steps = 60\ncheckpoint_every = 3");
    let w = Workshop::new(&config);
    w.done("alone", &[], &["--quiet"]);
    let expected = Ended::of(&w.path("alone"));
    let disk = mounted.then(|| Disk::mount(w.path("disk"))).flatten();
    let place = |number: usize| match disk {
        Some(_) => format!("disk/run {number}"),
        None => format!("run {number}"),
    };
    let (mut rng, mut figures) = (ChaCha8Rng::seed_from_u64(seed), Figures::default());
    let mut number = 0;
    while figures.count() < kills {
        let out = place(number);
        let resume: &[&str] =
            if w.path(&out).join("config.toml").exists() { &["--resume"] } else { &[] };
        let command = w.run(&out, &[], &[&["--quiet"], resume].concat());
        let fault = fault(&mut rng, disk.as_ref());
        if ended(command, &fault, disk.as_ref(), &mut rng, 200, &mut figures) {
            compare(&w.path(&out), &expected, &mut figures);
            number += 1;
        }
    }
    let out = place(number);
    if w.path(&out).join("config.toml").exists() {
        w.done(&out, &[], &["--quiet", "--resume"]);
        compare(&w.path(&out), &expected, &mut figures);
    }
    figures
}

fn compare(run: &Path, expected: &Ended, figures: &mut Figures) {
    Ended::of(run).assert_is(expected);
    assert_tidy(run);
    figures.compared += 1;
    std::fs::remove_dir_all(run).unwrap();
}

const GRID: &str = "base = 'tiny.toml'\n[set]\ntrain.steps = 60\ntrain.checkpoint_every = 4\n\
                    [[grid]]\ntrain.seed = [0, 1]\n[[grid]]\ntrain.seed = [2]\noptimizer = [{ kind \
                    = 'adamw' }]\n[[grid]]\ntrain.seed = [3]\nconstraint = [{ method = \
                    'spectral_normalize', sigma_max = 1 }]\n";

/// The processes that a process has started.
fn children(parent: &str) -> Vec<String> {
    let output = Command::new("ps").args(["-o", "pid=", "--ppid", parent]).output().unwrap();
    text(&output.stdout).split_whitespace().map(String::from).collect()
}

/// `train sweep`, likewise: the sweep alone is killed, one of its runs, or all at once.
fn kill_sweeps(kills: usize, seed: u64, mounted: bool) -> Figures {
    let w = Workshop::new(TINY);
    std::fs::write(w.path("sweep.toml"), GRID).unwrap();
    let sweep = |out: &str| {
        let mut command = train(&[]);
        command.arg("sweep").arg(w.path("sweep.toml")).arg("--out").arg(w.path(out));
        command.args(["--jobs", "2", "--threads", "2", "--quiet", "--retry-failed"]);
        command.process_group(0);
        command
    };
    let runs = |out: &str| -> BTreeMap<String, PathBuf> {
        let entries = w.path(out).read_dir().unwrap().flatten().map(|entry| entry.path());
        let named = |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_string(), path);
        entries.map(named).collect()
    };
    succeeds(&mut sweep("alone"));
    let expected: BTreeMap<String, Ended> =
        runs("alone").iter().map(|(name, path)| (name.clone(), Ended::of(path))).collect();
    assert_eq!(expected.len(), 4);
    let disk = mounted.then(|| Disk::mount(w.path("disk"))).flatten();
    let place = |number: usize| match disk {
        Some(_) => format!("disk/sweep {number}"),
        None => format!("sweep {number}"),
    };
    let compare = |out: &str, figures: &mut Figures| {
        let found = runs(out);
        assert!(found.keys().eq(expected.keys()), "{found:?}");
        for (name, run) in &found {
            Ended::of(run).assert_is(&expected[name]);
            assert_tidy(run);
            assert!(!run.join("failed.txt").exists());
        }
        figures.compared += 1;
        std::fs::remove_dir_all(w.path(out)).unwrap();
    };
    let (mut rng, mut figures) = (ChaCha8Rng::seed_from_u64(seed), Figures::default());
    let mut number = 0;
    while figures.count() < kills {
        let out = place(number);
        let ended = match fault(&mut rng, disk.as_ref()) {
            Fault::Signal(name) => {
                let child = spawn(&mut sweep(&out));
                std::thread::sleep(Duration::from_millis(rng.random_range(0..500)));
                let members = children(&child.id());
                let (whom, target) = match rng.random_range(0..3) {
                    0 => ("all", format!("-{}", child.id())),
                    1 if !members.is_empty() => {
                        ("one run", members[rng.random_range(0..members.len())].clone())
                    }
                    _ => ("the sweep", child.id()),
                };
                let there = signal(name, &target);
                end_of_sweep(child, &format!("{name} to {whom}"), there, &mut figures)
            }
            Fault::LongFiles(kib) => {
                let mut command = limited(&sweep(&out), kib);
                command.process_group(0);
                end_of_full(&mut command, "file too long", &mut figures)
            }
            Fault::Full(left) => {
                disk.as_ref().unwrap().fill(left);
                let ended = end_of_full(&mut sweep(&out), "disk full", &mut figures);
                disk.as_ref().unwrap().empty();
                ended
            }
        };
        if ended {
            compare(&out, &mut figures);
            number += 1;
        }
    }
    let out = place(number);
    succeeds(&mut sweep(&out));
    compare(&out, &mut figures);
    figures
}

/// Waits for a sweep that was told to end, or one of whose runs was; whether all is done.
fn end_of_sweep(child: Running, by: &str, there: bool, figures: &mut Figures) -> bool {
    let output = child.output();
    let (status, said) = (output.status, text(&output.stderr));
    match (status.code(), status.signal()) {
        (Some(0), _) => figures.finished += 1,
        // One of its runs is not finished, or all that were left are saved.
        (Some(1), _) => assert!(there && said.contains("runs are not finished"), "{said}"),
        (Some(130), _) => assert!(said.contains("Continue with: train sweep"), "{said}"),
        (None, Some(_)) => {}
        other => panic!("{other:?}: {said}"),
    }
    if !status.success() {
        figures.add(by);
    }
    status.success()
}

/// Runs a sweep on a full disk, which either fails runs of it or the sweep itself.
fn end_of_full(command: &mut Command, by: &str, figures: &mut Figures) -> bool {
    let output = command.output().unwrap();
    let (status, said) = (output.status, text(&output.stderr));
    match status.code() {
        Some(0) => {}
        Some(1) => assert!(said.contains("runs are not finished"), "{said}"),
        _ => assert!(is_full(status, &said)),
    }
    if !status.success() {
        figures.add(by);
    }
    status.success()
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn a_run_killed_at_any_moment_ends_as_one_left_alone() {
    let figures = kill_runs(16, 11, false);
    eprintln!("{figures:?}");
}

#[test]
fn a_sweep_killed_at_any_moment_ends_as_one_left_alone() {
    let figures = kill_sweeps(6, 12, false);
    eprintln!("{figures:?}");
}

#[test]
#[ignore = "minutes: 200 kills of a run"]
fn a_run_killed_two_hundred_times() {
    let (kills, seed) = (from_environment("KILLS", 200), from_environment("SEED", 1));
    let figures = kill_runs(kills as usize, seed, true);
    eprintln!("runs, seed {seed}: {figures:#?}");
    assert_eq!(figures.count() as u64, kills);
}

#[test]
#[ignore = "minutes: 200 kills of a sweep"]
fn a_sweep_killed_two_hundred_times() {
    let (kills, seed) = (from_environment("KILLS", 200), from_environment("SEED", 1));
    let figures = kill_sweeps(kills as usize, seed, true);
    eprintln!("sweeps, seed {seed}: {figures:#?}");
    assert_eq!(figures.count() as u64, kills);
}
