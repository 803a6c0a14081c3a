//! What is too large, too long, or changed by others while it is read: one line with the figures,
//! exit code 2, and nothing left behind.

mod workshop;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use workshop::{text, train};

/// The single line on stderr of a program that has refused its input.
fn refusal(what: &dyn std::fmt::Debug, output: &Output) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{what:?}: {} {said}", output.status);
    assert_eq!(said.lines().count(), 1, "{what:?}: {said}");
    said
}

/// Runs, expecting a refusal within seconds.
fn refused(args: &[&str]) -> String {
    let clock = Instant::now();
    let said = refusal(&args, &train(args).output().unwrap());
    assert!(clock.elapsed().as_secs() < 60, "{args:?} took {:?}", clock.elapsed());
    said
}

fn ok(args: &[&str]) -> String {
    let output = train(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        let workshop = Self(tempfile::tempdir().unwrap());
        let config = ok(&["config", "gpt-play"]);
        std::fs::write(workshop.path("demo.toml"), config).unwrap();
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn string(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), content).unwrap();
        self.string(name)
    }

    /// The command line of a small run with these settings.
    fn args(&self, command: &str, settings: &[&str]) -> Vec<String> {
        let small = [
            "model.dim=16",
            "model.layers=1",
            "model.heads=2",
            "model.context=16",
            "data.characters=20000",
            "train.batch_size=4",
            "train.steps=2",
        ];
        let settings = small.iter().chain(settings);
        let settings = settings.flat_map(|s| ["--set".to_string(), s.to_string()]);
        [command.to_string(), self.string("demo.toml")].into_iter().chain(settings).collect()
    }

    fn run(&self, out: &str, settings: &[&str]) -> Output {
        let mut args = self.args("run", settings);
        args.extend(["--out".into(), self.string(out)]);
        train(&args.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap()
    }

    fn trained(&self, out: &str, settings: &[&str]) -> String {
        let output = self.run(out, settings);
        assert!(output.status.success(), "{}", text(&output.stderr));
        self.string(out)
    }
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Each ended by a signal, minutes later, in a directory that it left.
#[test]
fn runs_that_no_machine_holds_are_refused_before_anything_is_written() {
    let w = Workshop::new();
    let cases = [
        ("train.batch_size=268435456", "activations", "lower train.batch_size"),
        ("model.dim=262144", "weights", "lower model.dim"),
    ];
    for (setting, mostly, remedy) in cases {
        let clock = Instant::now();
        let output = w.run("never", &[setting]);
        let said = refusal(&setting, &output);
        for part in ["a training step takes at least", "of memory", "are free", mostly, remedy] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(clock.elapsed().as_secs() < 60, "{:?}", clock.elapsed());
        assert!(!w.path("never").exists());

        let (key, value) = setting.split_once('=').unwrap();
        let base = w.string("demo.toml");
        let sweep = w.write("sweep.toml", format!("base = '{base}'\n[grid]\n{key} = [{value}]\n"));
        let said = refused(&["sweep", &sweep, "--out", &w.string("never")]);
        assert!(said.contains("takes at least") && said.contains(remedy), "{said}");
        assert!(!w.path("never").exists());

        let args = w.args("estimate", &[setting]);
        let out = ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(out.contains("GiB of each process") && out.contains("cannot be trained"), "{out}");
    }
    for (key, most) in [("model.layers", "1024"), ("data.characters", "1000000000")] {
        let setting = format!("{key}=1000000000000");
        let said = refusal(&setting, &w.run("never", &[&setting]));
        let range = format!("{key} is 1000000000000; it must be from 1 to {most}");
        assert!(said.contains(&range), "{said}");
        assert!(!w.path("never").exists());
    }
    // What fits is no concern of these.
    w.trained("small", &[]);
    let args = w.args("estimate", &[]);
    let out = ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(!out.contains("cannot be trained"), "{out}");
}

/// An allocation that fails all the same, here because the shell allows no more.
#[cfg(target_os = "linux")]
#[test]
fn an_allocation_that_fails_is_told_and_no_signal() {
    let w = Workshop::new();
    let mut args = w.args("run", &["model.context=512", "train.batch_size=512", "model.dim=128"]);
    args.extend(["--out".into(), w.string("run"), "--threads".into(), "1".into()]);
    let command = "ulimit -v 1200000 && exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", command, env!("CARGO_BIN_EXE_train")])
        .args(&args)
        .arg("--quiet")
        .env("CANDLE_NUM_THREADS", "1")
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{} {said}", output.status);
    assert!(said.starts_with("memory allocation of ") && said.contains(" bytes failed"), "{said}");
    // The standard library's own note on backtraces may follow.
    assert!(said.lines().skip(1).all(|line| line.starts_with("note: ")), "{said}");
}

#[test]
fn numbers_out_of_their_range_are_told_with_it() {
    let w = Workshop::new();
    let demo = w.string("demo.toml");
    let cases: [(&[&str], &str); 12] = [
        (&["config", "demo", "--threads", "100000"], "1..=1024"),
        (&["config", "demo", "--threads", "0"], "1..=1024"),
        (&["eval", "x", "--batch-size", "0"], "1..=268435456"),
        (&["eval", "x", "--batch-size", "99999999999"], "1..=268435456"),
        (&["sample", "x", "--tokens", "99999999999"], "0..=10000000"),
        (&["sample", "x", "--temperature", "-1"], "from 0 to 1000000"),
        (&["sample", "x", "--temperature", "nan"], "from 0 to 1000000"),
        (&["shards", "x", "--out", "y", "--shard-size", "0"], "1..=2147483647"),
        (&["sweep", &demo, "--out", "y", "--jobs", "5000"], "1..=1024"),
        (&["estimate", &demo, "--processes", "0"], "1..=1048576"),
        (&["estimate", &demo, "--outputs", "0"], "1..=268435456"),
        (&["estimate", &demo, "--bf16", "0"], "above 0, up to 1000000000"),
    ];
    for (args, range) in cases {
        let output = train(args).output().unwrap();
        let said = text(&output.stderr);
        // A usage error, as clap lays it out.
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(range) && said.contains("try '--help'"), "{args:?}: {said}");
    }
    ok(&["estimate", &demo, "--processes", "1048576", "--set", "train.batch_size=1048576"]);
    ok(&["config", "demo", "--threads", "1024"]);
}

/// A tokenizer of words over bytes.
fn tokenizer(more: &Value) -> String {
    let mut vocab = serde_json::Map::new();
    let letters = (0x21..0x180u32).filter_map(char::from_u32).map(String::from);
    for (word, id) in letters.chain(["th".into(), "the".into(), "Ġthe".into()]).zip(0u32..) {
        vocab.insert(word, id.into());
    }
    let mut json = json!({"version": "1.0", "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "model": {"type": "BPE", "vocab": vocab,
            "merges": [["t", "h"], ["th", "e"], ["Ġ", "the"]]}});
    json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json.to_string()
}

#[test]
fn a_tokenizer_that_makes_gigabytes_of_a_line_is_refused() {
    let w = Workshop::new();
    let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let normalizer = json!({"type": "Sequence", "normalizers": vec![double; 40]});
    let exploding = w.write("explode.json", tokenizer(&json!({"normalizer": normalizer})));
    let small = w.write("small.txt", "a cat sat on a mat\n".repeat(300));
    let out = w.string("shards");
    let said = refused(&["shards", &small, "--tokenizer", &exploding, "--out", &out]);
    assert!(said.contains("explode.json: the tokenizer can make 3298534883328 bytes"), "{said}");
    assert!(said.contains("choose another tokenizer"), "{said}");
    assert!(!w.path("shards").exists());
    let data =
        format!("data={{ kind = \"text\", path = \"{small}\", tokenizer = \"{exploding}\" }}");
    let said = refusal(&data, &w.run("never", &[&data]));
    assert!(said.contains("3298534883328 bytes") && !w.path("never").exists(), "{said}");
}

/// The tokens of a text are the same however many pieces it is encoded in, across their ends and
/// those of shards.
#[test]
fn shards_hold_the_tokens_of_the_whole_text() {
    let w = Workshop::new();
    let plain = w.write("tokenizer.json", tokenizer(&json!({})));
    let words = ["the", "then", " ", "  ", "\n", "a", "'s", "été", ".", "\n\n", "中文", "12"];
    let mut at = 1u64;
    let long: String = (0..200_000)
        .map(|_| {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            words[(at >> 33) as usize % words.len()].to_string() + " "
        })
        .collect();
    let input = w.write("long.txt", &long);
    let out = w.string("shards");
    ok(&["shards", &input, "--tokenizer", &plain, "--out", &out, "--shard-size", "100000"]);
    let whole = tokenizers::Tokenizer::from_file(&plain).unwrap();
    let (train, val) = lipschitz_data::corpus::split(&long, Some(0.1));
    for (part, text) in [("train", train), ("val", val)] {
        let mut ids = Vec::new();
        for path in lipschitz_data::shard::files(&w.path("shards"), part).unwrap() {
            let shard = lipschitz_data::shard::Shard::open(&path, true).unwrap();
            shard.read(0..shard.len(), &mut ids).unwrap();
        }
        assert!(ids == whole.encode_fast(text, false).unwrap().get_ids(), "{part}");
    }
}

#[test]
fn a_byte_order_mark_is_passed_over() {
    let w = Workshop::new();
    let json = w.write("tokenizer.json", tokenizer(&json!({})));
    let lines = "{\"text\": \"the first\"}\n{\"text\": \"then the other\"}\n".repeat(50);
    let made = |name: &str, text: String| {
        let input = w.write(&format!("{name}.jsonl"), text);
        let out = w.string(name);
        ok(&["shards", &input, "--tokenizer", &json, "--out", &out, "--val", "0.3"]);
        std::fs::read(w.path(name).join("text_train_000000.bin")).unwrap()
    };
    assert_eq!(made("plain", lines.clone()), made("marked", format!("\u{feff}{lines}")));
}

fn wait_for_lines(log: &Path, lines: usize, child: &mut Child) {
    let start = Instant::now();
    while std::fs::read_to_string(log).map_or(0, |text| text.lines().count()) < lines {
        assert!(start.elapsed() < Duration::from_secs(120), "no progress");
        assert!(child.try_wait().unwrap().is_none(), "ended too early");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Through a map this ended the run by a signal.
#[test]
fn a_shard_that_is_cut_short_during_a_run_is_told() {
    let w = Workshop::new();
    let json = w.write("tokenizer.json", tokenizer(&json!({})));
    let input = w.write("text.txt", "the cat and then the mat ".repeat(4000));
    let out = w.string("shards");
    ok(&["shards", &input, "--tokenizer", &json, "--out", &out]);
    let mut args = w.args("run", &["data={ kind = \"shards\" }", &format!("data.path={out}")]);
    for more in ["train.steps=1000000", "train.log_every=1", "lipschitz_target=100"] {
        args.extend(["--set".into(), more.into()]);
    }
    args.extend(["--out".into(), w.string("run"), "--quiet".into()]);
    let mut child = train(&args.iter().map(String::as_str).collect::<Vec<_>>())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_lines(&w.path("run/metrics.jsonl"), 3, &mut child);
    let shard = w.path("shards/text_train_000000.bin");
    std::fs::File::options().write(true).open(&shard).unwrap().set_len(1024).unwrap();
    let said = refusal(&args, &child.wait_with_output().unwrap());
    let named = said.contains("text_train_000000.bin") && said.contains("has become shorter");
    assert!(named, "{said}");
}

/// What a run holds out is what its model is evaluated on.
#[test]
fn a_model_is_evaluated_on_what_its_run_held_out() {
    let w = Workshop::new();
    let play = lipschitz_data::play::text(1, 20_000);
    let (path, held) = (w.write("play.txt", &play), w.write("held.txt", &play[..3000]));
    let data = |more: &str| format!("data={{ kind = \"text\", path = \"{path}\"{more} }}");
    let evaluated = |run: &str, args: &[&str]| {
        let args = [&["eval", run, "--json"], args].concat();
        let result: Value = serde_json::from_str(&ok(&args)).unwrap();
        let summary = json_of(&Path::new(run).join("summary.json"));
        let difference = result["loss"].as_f64().unwrap() - summary["val_loss"].as_f64().unwrap();
        assert!(difference.abs() < 1e-6, "{args:?}: {result} {summary}");
        result["predictions"].as_u64().unwrap()
    };
    let trained = |out: &str, more: &str| w.trained(out, &[&data(more)]);
    let whole = trained("tenth", "");
    assert_eq!(evaluated(&whole, &[]), 1999);
    assert_eq!(evaluated(&whole, &["--data", &path]), 1999);
    let part = trained("quarter", ", val_fraction = 0.25");
    assert_eq!(evaluated(&part, &[]), 4999);
    assert_eq!(evaluated(&part, &["--data", &path]), 4999);
    let apart = trained("apart", &format!(", val_path = \"{held}\""));
    assert_eq!(evaluated(&apart, &[]), 2999);
    assert_eq!(evaluated(&apart, &["--data", &held]), 2999);
    assert_eq!(evaluated(&apart, &["--data", &path]), 2999);
    let both = data(&format!(", val_path = \"{held}\", val_fraction = 0.5"));
    let said = refusal(&both, &w.run("never", &[&both]));
    assert!(said.contains("one of data.val_path") && !w.path("never").exists(), "{said}");
    // A file of the demo's own play.
    let demo = w.trained("play", &[]);
    assert_eq!(evaluated(&demo, &[]), 1999);
}

/// Paths of the numbers in a table.
fn numbers(table: &toml::Table, prefix: &str, out: &mut Vec<String>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(inner) => numbers(inner, &path, out),
            toml::Value::Integer(_) | toml::Value::Float(_) => out.push(path),
            _ => {}
        }
    }
}

/// Every number of every preset at the ends of what a number can be: a message on one line, or a
/// run.
#[test]
fn every_number_of_a_config_at_its_extremes_is_a_line_or_a_run() {
    use lipschitz_train::config::Config;
    use lipschitz_train::trainer::{self, RunOptions};
    use lipschitz_train::{estimate, preset};

    const EXTREMES: [&str; 13] = [
        "0",
        "-1",
        "1",
        "9223372036854775807",
        "-9223372036854775808",
        "0.0",
        "-0.5",
        "1e308",
        "5e-324",
        "0.9999999999999999",
        "nan",
        "inf",
        "-inf",
    ];
    let more = [
        "data.val_fraction",
        "data.vocabulary",
        "data.limit_val",
        "data.limit_test",
        "model.alpha",
        "model.separator",
        "constraint.decay",
        "constraint.sigma_max",
        "optimizer.weight_decay",
        "optimizer.epsilon",
        "train.accumulate",
        "train.schedule.decay",
        "lipschitz_target",
    ];
    let small = [
        "model.dim=16",
        "model.context=16",
        "train.batch_size=4",
        "train.steps=2",
        "train.eval_every=1",
        "data={ kind = \"play\", characters = 20000 }",
    ];
    let dir = tempfile::tempdir().unwrap();
    let (mut runs, mut refusals) = (0, 0);
    for name in preset::NAMES {
        let text = preset::text(name).unwrap();
        let table: toml::Table = toml::from_str(text).unwrap();
        let shape: &[&str] = match name {
            "demo" => &["model.stages=[{ heads = 2, head_dim = 4, layers = 1 }]"],
            "gpt-play" | "gpt-tight" => &["model.layers=1", "model.heads=2"],
            _ => &[],
        };
        let trains = !shape.is_empty();
        let mut keys = Vec::new();
        numbers(&table, "", &mut keys);
        keys.extend(more.map(String::from));
        for key in keys {
            for value in EXTREMES {
                let mut settings: Vec<String> = Vec::new();
                if trains {
                    settings.extend(small.iter().chain(shape).map(ToString::to_string));
                }
                settings.push(format!("{key}={value}"));
                let clock = Instant::now();
                let made = Config::parse(text, &settings).and_then(|config| {
                    let graph = config.graph(60)?;
                    config.recipe().check_for(&graph)?;
                    estimate::least(&config, &graph, &[], 1)?;
                    estimate::estimate(&config, &graph, &[], 1)?;
                    if trains && config.train.steps <= 2 {
                        let out = dir.path().join("run");
                        let _ = std::fs::remove_dir_all(&out);
                        trainer::run(&config, &RunOptions::new(&out))?;
                    }
                    Ok(())
                });
                let took = clock.elapsed();
                assert!(took.as_secs() < 60, "{name} {key}={value}: {took:?}");
                match made {
                    Ok(()) => runs += 1,
                    Err(error) => {
                        let said = error.to_string();
                        let one = !said.is_empty() && !said.contains('\n') && said.len() < 600;
                        assert!(one, "{name} {key}={value}: {said}");
                        refusals += 1;
                    }
                }
            }
        }
    }
    assert!(runs > 100 && refusals > 300, "{runs} {refusals}");
}
