//! Sweeps: killed and continued, shared between processes, changed, and with runs that fail.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

/// Networks that train in a fraction of a second.
const TINY: &str = r#"
preset = "gpt-play"
[set]
model.dim = 8
model.heads = 2
model.layers = 1
model.context = 8
data.characters = 4000
train.batch_size = 2
train.steps = 12
train.log_every = 6
train.eval_every = 3
"#;

struct Workshop {
    dir: TempDir,
    file: PathBuf,
}

impl Workshop {
    fn new(varies: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sweep.toml");
        std::fs::write(&file, format!("{TINY}{varies}")).unwrap();
        Self { dir, file }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sweep(&self, out: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
        command.arg("sweep").arg(&self.file).arg("--out").arg(self.path(out)).args(more);
        command.env("CANDLE_NUM_THREADS", "1").env("RAYON_NUM_THREADS", "1");
        command
    }

    fn done(&self, out: &str, more: &[&str]) -> String {
        let output = self.sweep(out, more).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The file of every run that has it, by the run's name.
fn files(out: &Path, name: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(out).into_iter().flatten().flatten();
    let read = |entry: std::fs::DirEntry| {
        Some((entry.file_name().into_string().ok()?, std::fs::read(entry.path().join(name)).ok()?))
    };
    entries.filter_map(read).collect()
}

/// The lines of each run's metrics, without the clock.
fn metrics(out: &Path) -> BTreeMap<String, Vec<serde_json::Value>> {
    let line = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        value["seconds"] = 0.into();
        value["times"] = 0.into();
        value
    };
    files(out, "metrics.jsonl")
        .into_iter()
        .map(|(name, m)| (name, text(&m).lines().map(line).collect()))
        .collect()
}

/// Ends a sweep as a crash of it alone, a crash of the machine or a reader at the keyboard would;
/// whether it said so.
fn end(mut child: Child, how: usize) -> bool {
    let id = child.id();
    let target = if how == 1 { format!("-{id}") } else { id.to_string() };
    let signal = if how == 2 { "-INT" } else { "-KILL" };
    let _ =
        Command::new("kill").args([signal, "--", &target]).stderr(Stdio::null()).status().unwrap();
    let Output { status, stderr, .. } = {
        child.stdin = None;
        child.wait_with_output().unwrap()
    };
    // Ctrl-C may come before the program listens to it.
    if how == 2 && status.code().is_some() {
        let said = text(&stderr);
        assert_eq!(status.code(), Some(130), "{said}");
        assert!(said.contains("Continue with: train sweep"), "{said}");
        return true;
    }
    assert_eq!(status.code(), None, "it was to be killed");
    false
}

#[test]
fn a_sweep_killed_ten_times_ends_as_one_left_alone() {
    let w = Workshop::new(
        "[[grid]]\ntrain.seed = [0, 1, 2, 3, 4]\nconstraint.sigma_max = [1, 2, 3, 4]\n\
         [[grid]]\ntrain.seed = [0, 1, 2, 3, 4]\nconstraint = [{ method = 'none' }, { method = 'spectral_normalize', sigma_max = 1 }]\n\
         [[grid]]\ntrain.seed = [0, 1, 2, 3, 4]\noptimizer = [{ kind = 'adamw' }]\nlipschitz_target = [1, 10, 100, 1000]\n",
    );
    w.done("alone", &["--jobs", "2"]);
    let expected = files(&w.path("alone"), "model.safetensors");
    assert_eq!(expected.len(), 50);

    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let out = w.path("killed");
    let mut said = false;
    for round in 0..10 {
        let child = w
            .sweep("killed", &["--jobs", "2"])
            .process_group(0)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A few runs later, at any point of the next.
        let goal = files(&out, "summary.json").len() + rng.random_range(0..5);
        let start = Instant::now();
        while files(&out, "summary.json").len() < goal {
            assert!(start.elapsed() < Duration::from_secs(120), "no progress");
            std::thread::sleep(Duration::from_millis(3));
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(20..200)));
        assert!(files(&out, "summary.json").len() < 50, "finished before it was killed ten times");
        said |= end(child, round % 3);
    }
    assert!(said, "no sweep said how to continue it");
    // At once, while runs of the last one may still be saving.
    w.done("killed", &["--jobs", "2"]);
    assert!(files(&out, "model.safetensors") == expected, "the weights differ");
    assert_eq!(metrics(&out), metrics(&w.path("alone")));
    assert!(files(&out, "failed.txt").is_empty());
    // Every start of a run leaves a file of events, and some were continued from a checkpoint.
    let parts = |name: &String| {
        let names = std::fs::read_dir(out.join(name))
            .unwrap()
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok());
        names.filter(|name| name.starts_with("events.")).count()
    };
    let continued = expected.keys().filter(|name| parts(name) > 1).count();
    eprintln!("{continued} of 50 runs were continued");
    assert!(continued > 0, "no run was stopped half way");
}

#[test]
fn two_sweeps_share_a_directory_and_a_changed_one_finds_its_runs() {
    let grid = "[grid]\ntrain.seed = [0, 1, 2, 3, 4, 5]\n";
    let w = Workshop::new(grid);
    let parts = [&["--shard", "1/2"], &["--shard", "2/2"]];
    w.done("parts", parts[0]);
    assert_eq!(files(&w.path("parts"), "summary.json").len(), 3);
    w.done("parts", parts[1]);
    let start = |_| {
        w.sweep("shared", &["--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let both: Vec<Child> = (0..2).map(start).collect();
    for child in both {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let runs: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        assert!(
            runs.len() == 6
                && runs
                    .iter()
                    .all(|r| r["state"] == "finished" && r["summary"]["val_loss"].is_f64())
        );
    }
    let shared = metrics(&w.path("shared"));
    assert_eq!(shared, metrics(&w.path("parts")));
    assert!(shared.values().all(|lines| lines.len() == 5), "a run was made twice");

    // Another key that varies gives other names; the runs that are there are kept under theirs.
    let before = files(&w.path("shared"), "summary.json");
    std::fs::write(&w.file, format!("{TINY}{grid}train.learning_rate = [0.1, 0.05]\n")).unwrap();
    let said = text(&w.sweep("shared", &[]).output().unwrap().stderr);
    assert_eq!(said.matches("finished before").count(), 6, "{said}");
    let after = files(&w.path("shared"), "summary.json");
    assert!(after.len() == 12 && before.iter().all(|(name, bytes)| after[name] == *bytes));
}

#[test]
fn a_run_that_fails_stops_no_other_and_is_made_again_on_request() {
    let w = Workshop::new(
        "[[grid]]\ntrain.seed = [0, 1]\n[[grid]]\ntrain.learning_rate = [1e30]\nconstraint = \
         [{ method = 'none' }]\n",
    );
    let Output { status, stdout, stderr } = w.sweep("out", &[]).output().unwrap();
    let (table, said) = (text(&stdout), text(&stderr));
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        table.contains("seed=1")
            && table.contains("failed: ")
            && table.contains("lower train.learning_rate"),
        "{table}"
    );
    assert!(said.lines().last().unwrap().starts_with("error: 1 of 3 runs"), "{said}");
    let failed = files(&w.path("out"), "failed.txt");
    assert_eq!(failed.len(), 1);
    assert!(text(failed.values().next().unwrap()).contains("training diverged"));
    assert_eq!(files(&w.path("out"), "summary.json").len(), 2);

    let again = w.sweep("out", &[]).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("failed before: "));
    let retried = w.sweep("out", &["--retry-failed"]).output().unwrap();
    let said = text(&retried.stderr);
    assert!(
        retried.status.code() == Some(1)
            && said.contains(": failed: ")
            && !said.contains("failed before"),
        "{said}"
    );
}

/// A file where the directory of a run goes.
#[test]
fn a_run_that_has_no_place_stops_no_other() {
    let w = Workshop::new("[grid]\ntrain.seed = [0, 1, 2]\n");
    w.done("first", &[]);
    let names: Vec<String> = files(&w.path("first"), "summary.json").into_keys().collect();
    assert_eq!(names.len(), 3, "{names:?}");
    std::fs::create_dir(w.path("out")).unwrap();
    std::fs::write(w.path("out").join(&names[0]), "here").unwrap();
    let output = w.sweep("out", &[]).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("error: 1 of 3 runs"), "{said}");
    assert_eq!(files(&w.path("out"), "summary.json").len(), 2);
    assert_eq!(std::fs::read(w.path("out").join(&names[0])).unwrap(), b"here");
}

#[test]
fn bad_input_gets_one_line_before_any_run() {
    let cases = [
        ("[grid]\ntrain.seed = [0]\nmodel.heads = [2, 3]\n", &[][..], "head"),
        ("[grid]\nlipschitz_target = [2, 1e-30]\n", &[], "lipschitz_target=0.0000"),
        ("[grid]\ntrain.device = ['tpu']\n", &[], "tpu"),
        ("[grid]\ndata.characters = [4000, 3]\n", &[], "characters=3"),
        ("[grid]\ntrain.seed = [0, 1]\n", &["--set", "train.stepz=1"], "did you mean `steps`?"),
        ("[grid]\ntrain.seed = [0, 1]\n", &["--shard", "3/2"], "I from 1 to N"),
        ("[grid]\ntrain.seed = [0, 1]\n", &["--jobs", "0"], "0 is not in 1..=1024"),
    ];
    for (varies, args, expected) in cases {
        let w = Workshop::new(varies);
        let output = w.sweep("out", args).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{varies}: {said}");
        // What clap refuses is laid out by clap.
        let usage = args.contains(&"--shard") || args.contains(&"--jobs");
        let lines = said.lines().count() == 1 || usage;
        assert!(lines && said.contains(expected), "{varies}: {said}");
        assert!(!w.path("out").exists(), "{varies}");
    }
}
