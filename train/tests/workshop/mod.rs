//! Small runs of the program, and everything that two runs are compared by.

// Each test file uses a part of it.
#![allow(dead_code, unreachable_pub)]

pub mod events;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// The program with these arguments and one thread.
pub fn train(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
    command.args(args).env("CANDLE_NUM_THREADS", "1").env("RAYON_NUM_THREADS", "1");
    command
}

/// A line of `/proc/self/status`, in bytes.
pub fn status(key: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap();
    1024.0 * line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()
}

/// A network that makes a step in a millisecond.
pub const TINY: &str = r#"
[model]
preset = "gpt"
dim = 8
layers = 1
heads = 2
context = 8
[data]
kind = "play"
characters = 4000
[optimizer]
kind = "muon"
[constraint]
method = "spectral_soft_cap"
sigma_max = 2.0
[train]
steps = 30
batch_size = 2
learning_rate = 0.1
log_every = 1
eval_every = 7
"#;

/// A directory for runs of one config.
pub struct Workshop {
    dir: TempDir,
}

impl Workshop {
    /// Runs of this config, with changes to it.
    pub fn new(config: &str) -> Self {
        let workshop = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(workshop.path("tiny.toml"), config).unwrap();
        workshop
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `train run` into a directory, with settings and with further arguments.
    pub fn run(&self, out: &str, settings: &[&str], more: &[&str]) -> Command {
        let mut command = train(&[]);
        command.arg("run").arg(self.path("tiny.toml")).arg("--out").arg(self.path(out));
        settings.iter().for_each(|setting| {
            command.args(["--set", setting]);
        });
        command.args(more);
        command
    }

    /// Trains to the end, expecting success; what was said.
    pub fn done(&self, out: &str, settings: &[&str], more: &[&str]) -> String {
        succeeds(&mut self.run(out, settings, more))
    }

    /// A copy of a run, to be harmed.
    pub fn copy(&self, run: &str, to: &str) -> PathBuf {
        let status = Command::new("cp").arg("-r").arg(self.path(run)).arg(self.path(to)).status();
        assert!(status.unwrap().success());
        self.path(to)
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs, expecting success; what was said.
pub fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stderr)
}

/// Runs, expecting exit code 2 and one line, which is returned.
pub fn refused(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let said = text(&stderr);
    assert_eq!(status.code(), Some(2), "{command:?}: {said}");
    assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
    said
}

/// A program at work, which does not outlive a test that fails.
pub struct Running(Option<Child>);

/// Starts a program whose stderr is kept.
pub fn spawn(command: &mut Command) -> Running {
    Running(Some(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()))
}

impl Running {
    fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    pub fn id(&self) -> String {
        self.0.as_ref().unwrap().id().to_string()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child().try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    pub fn output(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sends a signal; whether the process was there.
pub fn signal(name: &str, target: &str) -> bool {
    let mut kill = Command::new("kill");
    kill.args([&format!("-{name}"), "--", target]).stderr(Stdio::null()).status().unwrap().success()
}

/// Waits until something holds.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(120), "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a run at work has logged this many lines.
pub fn wait_for_lines(run: &Path, count: usize, running: &mut Running) {
    wait_for("lines of the log", || {
        assert!(!running.has_ended(), "ended too early");
        lines(run) >= count
    });
}

/// How many lines the log has.
pub fn lines(run: &Path) -> usize {
    std::fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

pub fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// The lines of a run's metrics, without the clocks.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line = |line: &str| without(serde_json::from_str(line).unwrap(), &["seconds", "times"]);
    text.lines().map(line).collect()
}

fn without(mut value: Value, keys: &[&str]) -> Value {
    for key in keys {
        value.as_object_mut().unwrap().remove(*key);
    }
    value
}

/// Everything that a run ends with, but the time that it took and its name.
#[derive(PartialEq)]
pub struct Ended {
    /// Weights and states, byte by byte.
    pub files: BTreeMap<String, Vec<u8>>,
    pub position: Value,
    pub metrics: Vec<Value>,
    pub summary: Value,
    pub points: events::Points,
}

impl Ended {
    pub fn of(run: &Path) -> Self {
        let names = [
            "model.safetensors",
            "best.safetensors",
            "certificate.json",
            "config.toml",
            "checkpoint/model.safetensors",
            "checkpoint/optimizer.safetensors",
        ];
        let read = |name: &str| {
            let path = run.join(name);
            let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (name.to_string(), bytes)
        };
        Self {
            files: names.map(read).into(),
            position: without(
                json(&run.join("checkpoint/state.json"))["state"]["position"].clone(),
                &["seconds"],
            ),
            metrics: metrics(run),
            summary: without(json(&run.join("summary.json")), &["seconds", "label"]),
            points: events::points(run),
        }
    }

    /// Fails, saying where, unless both are the same.
    pub fn assert_is(&self, other: &Self) {
        for (name, bytes) in &self.files {
            assert!(*bytes == other.files[name], "{name} differs");
        }
        assert_eq!(self.position, other.position);
        assert_eq!(self.metrics, other.metrics);
        assert_eq!(self.summary, other.summary);
        assert!(self.points.keys().eq(other.points.keys()), "other tags");
        for (tag, points) in &self.points {
            assert_eq!(*points, other.points[tag], "{tag}");
        }
    }
}

/// Nothing of a killed process or of a checkpoint in the making is left.
pub fn assert_tidy(run: &Path) {
    for entry in run.read_dir().unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let left = name.ends_with(".new") || name.ends_with(".old");
        assert!(!left, "{}: {name} is left", run.display());
    }
}
