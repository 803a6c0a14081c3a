//! Several processes train as one does. Needs the feature `mpi`, and `mpirun` to start them.
#![cfg(feature = "mpi")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lipschitz_train::run_dir::{Metrics, Summary};
use tempfile::TempDir;

const CONFIG: &str = r#"
    lipschitz_target = 10
    [model]
    preset = "gpt"
    dim = 32
    layers = 2
    heads = 2
    context = 32
    [data]
    kind = "play"
    characters = 50000
    [optimizer]
    kind = "muon"
    [constraint]
    method = "spectral_soft_cap"
    [train]
    steps = 30
    batch_size = 12
    learning_rate = 0.1
    log_every = 5
    eval_every = 10
"#;

struct Workshop(TempDir);

impl Workshop {
    /// None, said loudly, where there is no `mpirun`.
    fn new() -> Option<Self> {
        if Command::new("mpirun").arg("--version").output().is_err() {
            let _ = writeln!(std::io::stderr(), "SKIPPED: there is no mpirun");
            return None;
        }
        let workshop = Self(tempfile::tempdir().unwrap());
        std::fs::write(workshop.path("small.toml"), CONFIG).unwrap();
        Some(workshop)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, ranks: usize, out: &str, more: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_train");
        let mut command = Command::new(if ranks == 1 { program } else { "mpirun" });
        if ranks > 1 {
            command.args(["--oversubscribe", "-n", &ranks.to_string(), program]);
        }
        command
            .args(["--quiet", "--threads", "1", "run"])
            .arg(self.path("small.toml"))
            .arg("--out")
            .arg(self.path(out));
        // Containers and build machines run as root.
        command
            .args(more)
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.env("CANDLE_NUM_THREADS", "1").stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn ok(&self, ranks: usize, out: &str, more: &[&str]) {
        let Output { status, stderr, .. } = self.command(ranks, out, more).output().unwrap();
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    }

    fn metrics(&self, out: &str) -> Vec<Metrics> {
        let text = std::fs::read_to_string(self.path(out).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn summary(&self, out: &str) -> Summary {
        serde_json::from_str(&std::fs::read_to_string(self.path(out).join("summary.json")).unwrap())
            .unwrap()
    }

    /// Two runs are the same, up to the rounding of sums taken in another order.
    fn same(&self, a: &str, b: &str) {
        let (first, second) = (self.metrics(a), self.metrics(b));
        assert_eq!(first.len(), second.len());
        let close = |x: Option<f64>, y: Option<f64>| match (x, y) {
            (Some(x), Some(y)) => {
                assert!((x - y).abs() < 2e-4 * y.abs().max(1.0), "{a}, {b}: {x} {y}")
            }
            (x, y) => assert_eq!(x, y),
        };
        for (x, y) in first.iter().zip(&second) {
            assert_eq!((x.step, x.tokens), (y.step, y.tokens));
            close(x.train_loss, y.train_loss);
            close(x.val_loss, y.val_loss);
            close(x.lipschitz, y.lipschitz);
            close(x.grad_norm, y.grad_norm);
        }
        close(Some(self.summary(a).val_loss), Some(self.summary(b).val_loss));
    }
}

#[test]
fn two_and_three_processes_train_as_one_does_and_go_on_with_another_number() {
    let Some(w) = Workshop::new() else { return };
    w.ok(1, "one", &[]);
    assert!(w.summary("one").val_loss < 3.0 && w.summary("one").lipschitz.to_f64() <= 10.0);
    for ranks in [2, 3] {
        let out = format!("of {ranks}");
        w.ok(ranks, &out, &[]);
        w.same(&out, "one");
        assert!(w.metrics(&out)[1].times.unwrap().exchange > 0.0);
    }
    // Each optimizer keeps its state with the owners, and hands it over.
    for kind in ["adamw", "sgd"] {
        let kind_set = format!("optimizer.kind={kind}");
        let settings = [
            "--set",
            kind_set.as_str(),
            "--set",
            "train.learning_rate=0.01",
            "--set",
            "train.schedule.kind=constant",
        ];
        let more = |rest: &[&'static str]| [&settings[..], rest].concat();
        w.ok(1, kind, &more(&[]));
        let moved = format!("{kind} moved");
        w.ok(2, &moved, &more(&["--set", "train.steps=10"]));
        w.ok(3, &moved, &more(&["--set", "train.steps=20", "--resume"]));
        w.ok(1, &moved, &more(&["--resume"]));
        w.same(&moved, kind);
    }
}

/// Waits until the run has a checkpoint.
fn wait_for_checkpoint(run: &Path, child: &mut Child) {
    let start = Instant::now();
    while !run.join("checkpoint/optimizer.safetensors").exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended too early");
        assert!(start.elapsed() < Duration::from_secs(120), "no checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The processes whose command line holds `needle` and that are children of `parent`.
fn children(parent: u32) -> Vec<u32> {
    let parent = parent.to_string();
    let output = Command::new("ps").args(["-o", "pid=", "--ppid", &parent]).output().unwrap();
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

#[test]
fn a_killed_process_stops_the_job_and_the_run_goes_on_from_its_checkpoint() {
    let Some(w) = Workshop::new() else { return };
    let long = ["--set", "train.steps=3000", "--set", "train.schedule.kind=constant"];
    let mut job = w.command(2, "run", &long).spawn().unwrap();
    wait_for_checkpoint(&w.path("run"), &mut job);
    let victim = children(job.id())[1];
    assert!(Command::new("kill").args(["-9", &victim.to_string()]).status().unwrap().success());
    let Output { status, stderr, .. } = job.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert!(!status.success() && said.contains("rank 1") && said.contains("signal 9"), "{said}");
    let reached = w.metrics("run").last().unwrap().step;
    let to = format!("train.steps={}", reached + 20);
    let fewer = ["--set", &to, "--set", "train.schedule.kind=constant"];
    w.ok(1, "run", &[&fewer[..], &["--resume"]].concat());
    w.ok(1, "alone", &fewer);
    w.same("run", "alone");
}

#[test]
fn what_stops_one_process_stops_all_with_one_line() {
    let Some(w) = Workshop::new() else { return };
    let refused = |out: &str, more: &[&str], code: i32| {
        let Output { status, stderr, .. } = w.command(2, out, more).output().unwrap();
        let said = String::from_utf8_lossy(&stderr).into_owned();
        assert_eq!(status.code(), Some(code), "{said}");
        said
    };
    assert!(
        refused("odd", &["--set", "train.batch_size=7"], 2)
            .contains("which 2 processes cannot share evenly")
    );
    assert!(!w.path("odd").exists());
    w.ok(2, "there", &["--set", "train.steps=2"]);
    assert!(refused("there", &[], 2).contains("error: rank 0: "));
    // Data that one process lacks, or has half of.
    let shard = |name: &str, tokens: u32, there: u32| {
        let header = [20240520, 1, tokens].into_iter().chain(std::iter::repeat_n(0, 253));
        let numbers = (0..there).map(|i| (i * i % 97) as u16);
        let bytes: Vec<u8> =
            header.flat_map(u32::to_le_bytes).chain(numbers.flat_map(u16::to_le_bytes)).collect();
        let path = w.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    for part in ["train", "val"] {
        shard(&format!("whole/x_{part}_0.bin"), 2000, 2000);
    }
    shard("missing/x_val_0.bin", 2000, 2000);
    shard("half/x_val_0.bin", 2000, 2000);
    shard("half/x_train_0.bin", 2000, 1000);
    for (name, told) in
        [("missing", "holds no shard *_train_*.bin"), ("half", "says it has 2000 tokens")]
    {
        let data = |name: &str| {
            format!(
                "data={{ kind = \"shards\", path = \"{}\", vocabulary = 97 }}",
                w.path(name).display()
            )
        };
        let out = format!("without {name}");
        let job = w.command(2, &out, &["--set", &data("whole")]);
        // Of two programs under one `mpirun`, the second has the other data.
        let args: Vec<_> = job.get_args().skip(3).map(std::ffi::OsStr::to_owned).collect();
        let mut second = args.clone();
        *second.last_mut().unwrap() = data(name).into();
        let mut pair = Command::new("mpirun");
        pair.args(["--oversubscribe", "-n", "1"]).args(args).args([":", "-n", "1"]).args(second);
        pair.envs(job.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let Output { status, stderr, .. } = pair.output().unwrap();
        let said = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(said.contains("error: rank 1: ") && said.contains(told), "{said}");
        assert_eq!(said.matches("error: ").count(), 1, "{said}");
        assert!(!w.path(&out).exists());
    }
    // What cannot be written is told by the first, and the others do not wait for ever.
    std::fs::create_dir(w.path("blocked")).unwrap();
    std::fs::write(w.path("blocked/checkpoint.new"), "in the way").unwrap();
    let said = refused("blocked", &[], 2);
    assert!(said.contains("error: rank 0: ") && said.contains("checkpoint.new"), "{said}");
}
