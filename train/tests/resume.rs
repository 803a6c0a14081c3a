//! A resumed run is the run that was stopped, and loses nothing of it.

mod workshop;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::Device;
use lipschitz_nn::checkpoint;
use lipschitz_train::config::Config;
use lipschitz_train::run_dir::{Lock, load};
use lipschitz_train::sweep;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use workshop::*;

const TEXT: &str = "the same characters in another order are another text; ";

/// Six steps on a text.
fn on_text() -> Workshop {
    let w =
        Workshop::new(&TINY.replace("steps = 30", "steps = 6").replace("every = 7", "every = 3"));
    std::fs::write(w.path("text.txt"), TEXT.repeat(20)).unwrap();
    let config = std::fs::read_to_string(w.path("tiny.toml")).unwrap();
    let data = format!("kind = \"text\"\npath = {:?}", w.path("text.txt"));
    let config = config.replace("kind = \"play\"\ncharacters = 4000", &data);
    std::fs::write(w.path("tiny.toml"), config).unwrap();
    w
}

/// Every file below a directory, with its content; the lock is no content.
fn content(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in path.read_dir().unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(content(&path));
        } else if !path.ends_with(".lock") {
            all.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    all
}

fn replace(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    std::fs::write(file, text.replace(from, to)).unwrap();
}

/// What is no longer the same run is refused by name, and stays as it is.
#[test]
fn another_run_is_not_taken_for_this_one() {
    let w = on_text();
    w.done("run", &[], &[]);
    w.done("other", &["train.seed=1"], &[]);
    let other = |name: &str| w.path("other/checkpoint").join(name);
    type Harm<'a> = Box<dyn Fn(&Path) + 'a>;
    let copied = |name: &'static str| -> Harm {
        Box::new(move |run: &Path| {
            std::fs::copy(other(name), run.join("checkpoint").join(name)).unwrap();
        })
    };
    let state = |run: &Path| run.join("checkpoint/state.json");
    let nothing = || -> Harm { Box::new(|_| {}) };
    let cases: Vec<(&str, Harm, &[&str], &str)> = vec![
        ("fewer", nothing(), &["train.steps=3"], "has made 6 steps, and train.steps is 3"),
        (
            "rate",
            nothing(),
            &["train.learning_rate=0.2"],
            "train.learning_rate is 0.1 there and 0.2",
        ),
        ("seed", nothing(), &["train.seed=1"], "train.seed is 0 there and 1 here"),
        (
            "text",
            Box::new(|_| {
                let reversed: String = TEXT.chars().rev().collect();
                std::fs::write(w.path("text.txt"), reversed.repeat(20)).unwrap();
            }),
            &[],
            "was trained on other data than",
        ),
        ("model", copied("model.safetensors"), &[], "model.safetensors: is not what the run saved"),
        (
            "optimizer",
            copied("optimizer.safetensors"),
            &[],
            "optimizer.safetensors: is not what the run saved",
        ),
        ("state", copied("state.json"), &[], "is not what the run saved"),
        (
            "all",
            Box::new(|run| {
                for name in ["model.safetensors", "optimizer.safetensors", "state.json"] {
                    std::fs::copy(other(name), run.join("checkpoint").join(name)).unwrap();
                }
            }),
            &[],
            "train.seed is 1 there and 0 here",
        ),
        (
            "moved",
            Box::new(|run| replace(&state(run), "\"step\":6", "\"step\":4")),
            &[],
            "state.json: is not what the run saved",
        ),
        (
            "no state",
            Box::new(|run| std::fs::remove_file(state(run)).unwrap()),
            &[],
            "state.json: is not what the run saved",
        ),
        (
            "no digest",
            Box::new(|run| replace(&state(run), "\"digest\"", "\"digesu\"")),
            &[],
            "state.json: is not what the run saved",
        ),
    ];
    for (name, harm, settings, expected) in cases {
        let run = w.copy("run", name);
        harm(&run);
        let before = content(&run);
        let said = refused(&mut w.run(name, settings, &["--resume"]));
        assert!(said.contains(expected) && said.contains("; "), "{name}: {said}");
        assert!(content(&run) == before, "{name}: the directory has changed");
        std::fs::write(w.path("text.txt"), TEXT.repeat(20)).unwrap();
    }

    // A config that was edited in its place is compared with the checkpoint's.
    let run = w.copy("run", "edited");
    let config = run.join("config.toml");
    replace(&config, "learning_rate = 0.1", "learning_rate = 0.2");
    let mut command = train(&[]);
    let said = refused(command.arg("run").arg(&config).arg("--out").arg(&run).arg("--resume"));
    assert!(said.contains("train.learning_rate is 0.1 there and 0.2 here"), "{said}");
    // Given what the run was made with, the file is true again.
    w.done("edited", &[], &["--resume"]);
    assert_eq!(std::fs::read(config).unwrap(), std::fs::read(w.path("run/config.toml")).unwrap());
}

/// No bit of a checkpoint can be flipped without being noticed.
#[test]
fn a_flipped_bit_is_noticed() {
    let w = on_text();
    w.done("run", &[], &[]);
    let run = w.path("run");
    let position = load(&run, &Device::Cpu).unwrap().unwrap().position;
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (name, flips) in
        [("state.json", 400), ("optimizer.safetensors", 60), ("model.safetensors", 60)]
    {
        let file = run.join("checkpoint").join(name);
        let whole = std::fs::read(&file).unwrap();
        for _ in 0..flips {
            let (byte, bit) = (rng.random_range(0..whole.len()), rng.random_range(0..8));
            let mut flipped = whole.clone();
            flipped[byte] ^= 1 << bit;
            std::fs::write(&file, flipped).unwrap();
            // A digit of the seconds beyond those that a number has says the same.
            let found = load(&run, &Device::Cpu);
            let same = found.is_ok_and(|saved| saved.unwrap().position == position);
            assert!(!same || name == "state.json", "{name}: bit {bit} of byte {byte}");
        }
        std::fs::write(&file, whole).unwrap();
    }
    w.done("run", &[], &["--resume"]);
}

/// What does not change the past may change: more steps, intervals, where the data lies.
#[test]
fn more_steps_intervals_and_a_moved_text_stay_possible() {
    let w = on_text();
    let constant = "train.schedule.kind=constant";
    w.done("whole", &[constant, "train.steps=12"], &[]);
    w.done("run", &[constant], &[]);
    std::fs::rename(w.path("text.txt"), w.path("elsewhere.txt")).unwrap();
    let path = format!("data.path={:?}", w.path("elsewhere.txt"));
    let said = w.done(
        "run",
        &[constant, "train.steps=12", &path, "train.log_every=2", "train.checkpoint_every=5"],
        &["--resume", "--quiet"],
    );
    assert_eq!(said, "");
    let of = |run: &str| load(&w.path(run), &Device::Cpu).unwrap().unwrap();
    let (whole, run) = (of("whole"), of("run"));
    assert_eq!(run.position.step, 12);
    for (name, weight) in whole.model.weights() {
        let values = |w: &candle_core::Tensor| w.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(weight), values(&run.model.weights()[name]), "{name}");
    }
    assert!(json(&w.path("run/summary.json"))["step_changes"].is_null());
}

/// Under a schedule, more steps make another run, which is said and recorded; it is nobody's run of
/// that many steps.
#[test]
fn a_changed_step_count_under_a_schedule_is_told_and_kept() {
    let w = on_text();
    w.done("run", &[], &[]);
    let twelve = ["train.steps=12"];
    let config = |steps: &str| Config::read(&w.path("tiny.toml"), &[steps.to_string()]).unwrap();
    assert!(sweep::finished(&w.path("run"), &config("train.steps=6")).is_some());
    let said = w.done("run", &twelve, &["--resume", "--quiet"]);
    let told = "train.steps was 6 for the steps up to 6 and is 12 from here on";
    assert!(said.contains(told) && said.lines().count() == 1, "{said}");
    // It is told once, and kept.
    let again = w.done("run", &["train.steps=13"], &["--resume", "--quiet"]);
    assert!(again.contains("train.steps was 12 for the steps up to 12"), "{again}");
    assert_eq!(w.done("run", &["train.steps=13"], &["--resume", "--quiet"]), "");
    let changes = serde_json::json!([
        { "step": 6, "from": 6, "to": 12 }, { "step": 12, "from": 12, "to": 13 }
    ]);
    let run = w.path("run");
    assert_eq!(json(&run.join("summary.json"))["step_changes"], changes);
    assert_eq!(
        json(&run.join("checkpoint/state.json"))["state"]["position"]["step_changes"],
        changes
    );
    let written = std::fs::read_to_string(run.join("config.toml")).unwrap();
    let comments: Vec<&str> = written.lines().take_while(|line| line.starts_with('#')).collect();
    assert_eq!(
        comments,
        [
            "# Steps 1 to 6 were made with train.steps = 6.",
            "# Steps 7 to 12 were made with train.steps = 12."
        ]
    );
    assert!(sweep::finished(&run, &config("train.steps=13")).is_none());
    // One that was told to go on and has not yet is not finished, whatever its old summary says.
    let run = w.path("begun");
    w.done("begun", &["train.schedule.kind=constant"], &[]);
    replace(&run.join("config.toml"), "steps = 6", "steps = 12");
    let config = Config::read(&run.join("config.toml"), &[]).unwrap();
    assert!(sweep::finished(&run, &config).is_none());
}

/// Directories of earlier versions have no digests: what cannot be checked is said, and what can be
/// is checked.
#[test]
fn a_run_of_an_earlier_version_is_resumed() {
    let w = on_text();
    w.done("whole", &[], &[]);
    w.done("run", &["train.steps=6"], &[]);
    let checkpoint = w.path("run/checkpoint");
    let state = json(&checkpoint.join("state.json"));
    let as_before = |position: &str| {
        let file = checkpoint.join("optimizer.safetensors");
        let (tensors, _) = checkpoint::load_tensors(&file, &Device::Cpu).unwrap();
        let tensors = tensors.iter().map(|(name, t)| (name.as_str(), t.clone()));
        let metadata = HashMap::from([("position".to_string(), position.to_string())]);
        checkpoint::save_tensors(&file, tensors, Some(metadata)).unwrap();
    };
    std::fs::remove_file(checkpoint.join("state.json")).unwrap();
    std::fs::remove_file(w.path("run/best.safetensors")).unwrap();
    as_before(r#"{"step":4,"seconds":0.5}"#);
    let said = refused(&mut w.run("run", &[], &["--resume"]));
    assert!(said.contains("checkpoint: is not what the run saved"), "{said}");
    as_before(r#"{"step":6,"seconds":0.5}"#);
    let said = refused(&mut w.run("run", &["train.seed=7"], &["--resume"]));
    assert!(said.contains("train.seed is 0 there and 7 here"), "{said}");
    let said = w.done("run", &[], &["--resume", "--quiet"]);
    assert!(said.contains("cannot be checked") && said.lines().count() == 1, "{said}");
    let bytes = |name: &str| std::fs::read(w.path(name).join("model.safetensors")).unwrap();
    assert!(bytes("run") == bytes("whole"));
    // From here on it can be.
    let now = json(&checkpoint.join("state.json"));
    for key in ["model", "optimizer"] {
        assert_eq!(now["state"][key], state["state"][key]);
    }
    assert_eq!(w.done("run", &[], &["--resume", "--quiet"]), "");
}

/// The best weights are those with the lowest validation loss, also after a resume, and after a
/// crash between the checkpoint and their own name.
#[test]
fn the_best_weights_stay_beside_the_last() {
    let w = Workshop::new(TINY);
    // Steps so large that the loss goes up and down.
    let set = |steps: &'static str| {
        [steps, "train.eval_every=1", "train.learning_rate=1", "train.schedule.kind=constant"]
    };
    w.done("whole", &set("train.steps=20"), &[]);
    let lines = metrics(&w.path("whole"));
    let loss = |line: &serde_json::Value| line["val_loss"].as_f64().unwrap();
    let lowest = |lines: &[serde_json::Value]| {
        let best = lines.iter().min_by(|a, b| loss(a).total_cmp(&loss(b))).unwrap();
        (best["step"].as_u64().unwrap(), loss(best))
    };
    let step_of = |run: &str| {
        let (_, meta) =
            checkpoint::load(&w.path(run).join("best.safetensors"), &Device::Cpu).unwrap();
        meta.provenance.step.unwrap()
    };
    let (best, lowest_loss) = lowest(&lines);
    assert!(1 < best && best < 20, "the first or the last is the best: this tests nothing");
    assert_eq!(step_of("whole"), best);
    let summary = json(&w.path("whole/summary.json"));
    assert_eq!(
        (&summary["best_step"], &summary["best_val_loss"]),
        (&best.into(), &lowest_loss.into())
    );
    for cut in BTreeSet::from([1, best - 1, best, best + 1, 19]).into_iter().map(|cut| cut as usize)
    {
        let (run, steps) = (format!("cut at {cut}"), format!("train.steps={cut}"));
        let mut settings = set("train.steps=20").map(String::from);
        settings[0] = steps;
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        w.done(&run, &settings, &[]);
        let so_far = lowest(&lines[..cut]).0;
        assert_eq!(step_of(&run), so_far);
        if so_far == cut as u64 {
            // As a crash before the new best has its name leaves it.
            std::fs::remove_file(w.path(&run).join("best.safetensors")).unwrap();
        }
        assert_eq!(w.done(&run, &set("train.steps=20"), &["--resume", "--quiet"]), "");
        assert_eq!(step_of(&run), best);
        if cut == 19 {
            // One that was removed is told of.
            std::fs::remove_file(w.path(&run).join("best.safetensors")).unwrap();
            let said = w.done(&run, &set("train.steps=20"), &["--resume", "--quiet"]);
            assert!(said.contains(&format!("no longer, the best of step {best}")), "{said}");
        }
    }
}

/// What was removed between two parts of a run is told of, or found elsewhere.
#[test]
fn what_is_removed_between_two_parts_of_a_run_is_missed() {
    let w = on_text();
    w.done("run", &[], &[]);
    let run = w.copy("run", "without log");
    std::fs::remove_file(run.join("metrics.jsonl")).unwrap();
    let said = w.done("without log", &[], &["--resume", "--quiet"]);
    assert!(said.contains("holds 0 of the 6 lines") && said.lines().count() == 1, "{said}");
    // The checkpoint has the config.
    let run = w.copy("run", "without config");
    std::fs::remove_file(run.join("config.toml")).unwrap();
    let said = refused(&mut w.run("without config", &[], &[]));
    assert!(said.contains("holds a run already"), "{said}");
    let said = refused(&mut w.run("without config", &["train.seed=3"], &["--resume"]));
    assert!(said.contains("train.seed is 0 there and 3 here"), "{said}");
    assert_eq!(w.done("without config", &[], &["--resume", "--quiet"]), "");
    Ended::of(&run).assert_is(&Ended::of(&w.path("run")));
    // A crash between the two renames leaves the old checkpoint under another name.
    let run = w.copy("run", "between names");
    std::fs::rename(run.join("checkpoint"), run.join("checkpoint.old")).unwrap();
    std::fs::create_dir(run.join("checkpoint.new")).unwrap();
    std::fs::write(run.join(".Ab3dEf6hIj9L.new"), "half a file").unwrap();
    assert_eq!(w.done("between names", &[], &["--resume", "--quiet"]), "");
    Ended::of(&run).assert_is(&Ended::of(&w.path("run")));
    assert_tidy(&run);
}

/// Checkpoints come by steps and by time, too.
#[test]
fn a_crash_loses_no_more_than_was_asked_for() {
    let w = Workshop::new(TINY);
    let long = ["train.steps=100000", "train.eval_every=100000", "train.schedule.kind=constant"];
    let saved_after = |out: &str, setting: &str| {
        let mut child = spawn(&mut w.run(out, &[&long[..], &[setting]].concat(), &[]));
        wait_for_lines(&w.path(out), 25, &mut child);
        assert!(signal("KILL", &child.id()));
        child.output();
        (load(&w.path(out), &Device::Cpu).unwrap().map(|s| s.position.step), lines(&w.path(out)))
    };
    assert_eq!(saved_after("none", "train.log_every=1").0, None);
    // One without a checkpoint begins again, and takes back what it has logged.
    w.done("none", &[&["train.steps=30"], &long[1..]].concat(), &["--resume", "--quiet"]);
    let points = &workshop::events::points(&w.path("none"))["loss/train"];
    assert!(points.iter().map(|(step, _)| *step).eq(1..=30), "{points:?}");
    assert_eq!(workshop::lines(&w.path("none")), 30);
    let (step, lines) = saved_after("steps", "train.checkpoint_every=10");
    let step = step.unwrap();
    assert!(step >= 20 && step.is_multiple_of(10) && lines as u64 <= step + 10, "{step} {lines}");
    let (step, lines) = saved_after("time", "train.checkpoint_minutes=1e-9");
    assert!(step.unwrap() + 1 >= lines as u64, "{step:?} {lines}");
    for (setting, said) in [
        ("train.checkpoint_every=0", "train.checkpoint_every is 0"),
        ("train.checkpoint_minutes=0", "train.checkpoint_minutes is 0"),
        ("train.checkpoint_minutes=nan", "nan is no number"),
    ] {
        assert!(refused(&mut w.run("refused", &[setting], &[])).contains(said));
    }
}

/// Ends a run by a signal; what it said.
fn stopped(child: Running) -> String {
    assert!(signal("TERM", &child.id()));
    let output = child.output();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    said
}

/// Whatever is removed during a run is told and written again, be it the directory itself, and the
/// run ends as one that was left alone.
#[test]
fn what_is_removed_during_a_run_is_told_and_comes_back() {
    let w = Workshop::new(TINY);
    for name in ["", ".lock", "metrics.jsonl", "config.toml", "checkpoint", "best.safetensors"] {
        // The best weights come with an evaluation, and are not to come again at once.
        let (every, count) = if name == "best.safetensors" { (60, 65) } else { (1_000_000, 10) };
        let every = format!("train.eval_every={every}");
        let set = |steps: &str| {
            ["train.schedule.kind=constant", "train.checkpoint_every=5", &every]
                .map(String::from)
                .into_iter()
                .chain([format!("train.steps={steps}")])
                .collect::<Vec<_>>()
        };
        let out = format!("without {}", if name.is_empty() { "all" } else { name });
        let run = w.path(&out);
        let long = set("1000000");
        let long: Vec<&str> = long.iter().map(String::as_str).collect();
        let mut child = spawn(&mut w.run(&out, &long, &["--quiet"]));
        wait_for("a checkpoint", || run.join("checkpoint").exists());
        wait_for_lines(&run, count, &mut child);
        // All at once for the run, at any moment of it.
        let id = child.id();
        assert!(signal("STOP", &id));
        let (path, reached) = (run.join(name), lines(&run));
        let removed = match path.is_dir() {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        };
        assert!(signal("CONT", &id));
        // The checkpoint may be between its names.
        assert!(removed.is_ok() || name == "checkpoint");
        wait_for("its return", || {
            assert!(!child.has_ended(), "{name}: ended");
            [".lock", "metrics.jsonl", "config.toml", "checkpoint"]
                .iter()
                .all(|n| run.join(n).exists())
                && lines(&run) > reached + 3
        });
        let said = stopped(child);
        // A checkpoint that goes while the next takes its place is not missed.
        let told = said.contains(name) && said.contains("removed during the run");
        assert!(told || name == "checkpoint", "{name}: {said}");
        let step = load(&run, &Device::Cpu).unwrap().unwrap().position.step;
        assert_eq!(lines(&run) as u64, step, "{name}: lines are lost");
        let short = set(&(step + 3).to_string());
        let short: Vec<&str> = short.iter().map(String::as_str).collect();
        assert_eq!(w.done(&out, &short, &["--resume", "--quiet"]), "", "{name}");
        w.done(&format!("alone {out}"), &short, &[]);
        let bytes = |out: &str| std::fs::read(w.path(out).join("model.safetensors")).unwrap();
        assert!(bytes(&out) == bytes(&format!("alone {out}")), "{name}");
        let whole = metrics(&w.path(&format!("alone {out}")));
        // The one that was stopped did not evaluate its last step as an end.
        assert_eq!(metrics(&run)[..step as usize], whole[..step as usize], "{name}");
        assert!(workshop::events::points(&run)["loss/train"].len() as u64 >= step + 3, "{name}");
        assert_tidy(&run);
    }
}

/// A lock that was removed and taken by another ends the first run, before it writes again.
#[test]
fn a_run_that_another_process_has_taken_over_ends() {
    let w = Workshop::new(TINY);
    let mut child = spawn(&mut w.run("run", &["train.steps=1000000"], &["--quiet"]));
    wait_for_lines(&w.path("run"), 5, &mut child);
    let mut taken = None;
    wait_for("the lock", || {
        let _ = std::fs::remove_file(w.path("run/.lock"));
        taken = Lock::take(&w.path("run")).unwrap();
        taken.is_some()
    });
    let output = child.output();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.lines().last().unwrap().contains("another process is training this run"),
        "{said}"
    );
}

/// A run whose steps take seconds.
fn slow(w: &Workshop, out: &str) -> Running {
    let settings = [
        "train.batch_size=200000",
        "train.accumulate=100000",
        "train.steps=3",
        "train.eval_every=3",
    ];
    let mut command = w.run(out, &settings, &["--quiet"]);
    let child = spawn(&mut command);
    wait_for("its beginning", || w.path(out).join("metrics.jsonl").exists());
    std::thread::sleep(Duration::from_millis(300));
    child
}

/// Signals that come together are one, as `timeout` and closed terminals send them; one that comes
/// later ends the run at once.
#[cfg(unix)]
#[test]
fn a_second_signal_ends_a_run_at_once() {
    let w = Workshop::new(TINY);
    let mut child = slow(&w, "run");
    let id = child.id();
    assert!(signal("TERM", &id) && signal("TERM", &id));
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!child.has_ended(), "ended by two signals that came together");
    assert!(signal("INT", &id));
    let start = std::time::Instant::now();
    assert_eq!(child.output().status.code(), Some(130));
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    assert!(!w.path("run/checkpoint").exists(), "it was saved, so it did not end at once");

    let mut child = spawn(&mut w.run("timeout", &["train.steps=1000000"], &["--quiet"]));
    wait_for_lines(&w.path("timeout"), 10, &mut child);
    let id = child.id();
    assert!(signal("TERM", &id) && signal("TERM", &id));
    assert_eq!(child.output().status.code(), Some(130));
    assert!(load(&w.path("timeout"), &Device::Cpu).unwrap().unwrap().position.step >= 10);
}

/// A run under `nohup` outlives its terminal.
#[cfg(target_os = "linux")]
#[test]
fn a_run_that_is_to_ignore_hangups_does() {
    let w = Workshop::new(TINY);
    let run = w.run("run", &["train.steps=300"], &["--quiet"]);
    let mut shell = std::process::Command::new("sh");
    shell
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh"])
        .arg(run.get_program())
        .args(run.get_args());
    let mut child = spawn(&mut shell);
    wait_for_lines(&w.path("run"), 5, &mut child);
    assert!(signal("HUP", &child.id()));
    assert_eq!(child.output().status.code(), Some(0));
    assert_eq!(lines(&w.path("run")), 300);
}

/// Names reach the disk after what they name, and nothing goes before what replaces it has come: as
/// the system calls of a run say.
#[cfg(target_os = "linux")]
#[test]
fn what_is_saved_is_on_disk_before_anything_relies_on_it() {
    let w = Workshop::new(TINY);
    let calls = w.path("calls");
    let run = w.run("run", &["train.steps=4", "train.eval_every=2"], &["--quiet"]);
    let mut strace = std::process::Command::new("strace");
    strace.args(["-f", "-y", "-qq", "-e", "trace=/fsync|rename|unlink|rmdir", "-o"]).arg(&calls);
    strace.arg(run.get_program()).args(run.get_args());
    match strace.output() {
        Ok(output) if output.status.success() => {}
        _ => {
            let _ = writeln!(std::io::stderr(), "SKIPPED: strace cannot be used here");
            return;
        }
    }
    let calls = std::fs::read_to_string(calls).unwrap();
    let calls: Vec<&str> = calls.lines().filter(|line| line.contains(" = 0")).collect();
    let run = w.path("run").display().to_string();
    let find = |from: usize, what: &[&str]| {
        let at = calls[from..].iter().position(|line| what.iter().all(|part| line.contains(part)));
        from + at.unwrap_or_else(|| panic!("no {what:?} after {from} in {calls:#?}"))
    };
    // The second checkpoint, which replaces the first.
    let first = find(0, &["rename", "checkpoint.new\"", "checkpoint\""]);
    let away = find(first, &["rename", "checkpoint\"", "checkpoint.old\""]);
    let back = find(away, &["rename", "checkpoint.new\"", "checkpoint\""]);
    for log in ["metrics.jsonl>", "events.out.tfevents"] {
        assert!(find(first, &["fsync", log]) < away, "{log}");
    }
    let mut at = first;
    for file in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        let content = find(at, &["fsync", "checkpoint.new/."]);
        let named = find(content, &["rename", "checkpoint.new/.", file]);
        at = find(named, &["fsync", "checkpoint.new>"]);
        assert!(at < away, "{file}");
    }
    let names = find(back, &["fsync", &format!("{run}>")]);
    let gone = find(first, &["unlink", "model.safetensors"]);
    assert!(names < gone, "the old checkpoint goes first");
    // The directory's own name.
    find(0, &["fsync", &format!("{}>", w.path("").display().to_string().trim_end_matches('/'))]);
}

/// A signal that comes behind the last step leaves a checkpoint too, and no results without their summary.
#[test]
fn a_run_is_stopped_at_its_end_too() {
    use lipschitz_train::trainer::{self, End, RunOptions};
    let w = on_text();
    w.done("run", &[], &[]);
    let out = w.path("run");
    let config = Config::read(&out.join("config.toml"), &[]).unwrap();
    let summary = || std::fs::read_to_string(out.join("summary.json"));
    let before = summary().unwrap();
    std::fs::remove_file(out.join("summary.json")).unwrap();
    let end = |stop: bool| {
        let options = RunOptions { resume: true, ..RunOptions::new(&out) };
        options.stop.store(stop, std::sync::atomic::Ordering::Relaxed);
        trainer::run(&config, &options).unwrap()
    };
    assert!(matches!(end(true), End::Stopped(6)));
    assert!(summary().is_err());
    assert!(matches!(end(false), End::Done(Some(_))));
    let [before, after] = [before, summary().unwrap()]
        .map(|text| serde_json::from_str::<serde_json::Value>(&text).unwrap());
    assert_eq!(before["val_loss"], after["val_loss"]);
    assert_eq!(before["lipschitz"], after["lipschitz"]);
}
