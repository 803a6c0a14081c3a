//! `certify range` and `certify watch` as their users meet them.

mod workshop;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use candle_core::Tensor;
use lipschitz_nn::Weights;
use serde_json::Value;
use workshop::Workshop;

fn certify(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_certify"));
    command.args(args).env("CANDLE_NUM_THREADS", "1");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What a command prints on stdout and stderr, if it ends with this code.
fn ended(code: i32, args: &[&str]) -> (String, String) {
    let Output { status, stdout, stderr } = certify(args).output().unwrap();
    let (stdout, stderr) = (text(&stdout), text(&stderr));
    assert_eq!(status.code(), Some(code), "{args:?}: {stdout}\n{stderr}");
    (stdout, stderr)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// One element of a weight is this.
fn outlier(name: &'static str, x: f32) -> impl Fn(&mut Weights) {
    move |weights: &mut Weights| {
        let w = &weights[name];
        let mut values = w.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values[0] = x;
        let w = Tensor::from_vec(values, w.shape(), w.device()).unwrap();
        weights.insert(name.into(), w);
    }
}

#[test]
fn ranges_are_decided() {
    let w = Workshop::new();
    let model = w.string("model.safetensors");
    let (stdout, stderr) = ended(0, &["range", &model]);
    assert!(stdout.contains("every tensor fits e4m3 without a scale"), "{stdout}");
    assert!(stdout.contains("blocks.0") && stderr.is_empty(), "{stdout} {stderr}");
    // The document names every tensor, and its numbers agree with one another.
    let found = json(&ended(0, &["range", &model, "--json", "--effort", "0"]).0);
    assert_eq!(
        (&found["format"], &found["number"], &found["end"]),
        (&1.into(), &"e4m3".into(), &448.0.into())
    );
    assert_eq!((&found["fits"], &found["first"]), (&true.into(), &Value::Null));
    let tensors = found["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), Workshop::model().graph().sites().len());
    for t in tensors {
        let largest = t["largest"]["value"].as_str().unwrap().parse::<f64>().unwrap();
        let scale = t["scale_log2"].as_i64().unwrap();
        let scaled = |k: i64| largest * 2f64.powi(k as i32);
        assert!(scaled(scale) <= 448.0 && scaled(scale + 1) > 448.0, "{t}");
        assert!(t["observed"].is_null() && t["fits"] == (scale >= 0), "{t}");
        let heads = t["stage"] == "logit";
        assert_eq!(
            t.get("heads").is_some_and(|h| h.as_array().unwrap().len() == 4),
            heads || t["stage"] == "product" || t["stage"] == "probability",
            "{t}"
        );
    }
    assert_eq!(found["weights"].as_array().unwrap().len(), Workshop::model().weights().len());
    // Ellipsoids make nothing larger.
    let tight = json(&ended(0, &["range", &model, "--json", "--effort", "5"]).0);
    let of = |found: &Value, i: usize| -> f64 {
        found["tensors"][i]["largest"]["value"].as_str().unwrap().parse().unwrap()
    };
    assert!((0..tensors.len()).all(|i| of(&tight, i) <= of(&found, i)));
    // A smaller ball has smaller elements.
    let near = json(&ended(0, &["range", &model, "--json", "--radius", "0.1", "--effort", "0"]).0);
    assert!(of(&near, tensors.len() - 1) < of(&found, tensors.len() - 1));
}

#[test]
fn what_does_not_fit_is_named_first() {
    let w = Workshop::new();
    let big = w.save("big.safetensors", outlier("blocks.1.mlp.up.weight", 1e4));
    let (stdout, stderr) = ended(1, &["range", &big]);
    assert!(stderr.starts_with("error: `blocks.1.mlp.up` does not fit e4m3"), "{stderr}");
    assert!(!stdout.contains("every tensor fits"), "{stdout}");
    ended(0, &["range", &big, "--format", "bf16", "--quiet"]);
    ended(1, &["range", &big, "--format", "int8", "--quiet"]);
    let found = json(&ended(1, &["range", &big, "--json"]).0);
    assert_eq!((&found["fits"], &found["first"]), (&false.into(), &"blocks.1.mlp.up".into()));
    let said = ended(2, &["range", &big, "--format", "e3m4"]).1;
    assert!(said.contains("e4m3"), "{said}");
    let said = ended(2, &["range", &w.string("none")]).1;
    assert!(said.contains("no such file"), "{said}");
    let said = ended(2, &["range", &big, "--radius", "-1"]).1;
    assert!(said.contains("--radius"), "{said}");
    let nan = w.save("nan.safetensors", outlier("head.weight", f32::NAN));
    let said = ended(2, &["range", &nan]).1;
    assert!(said.contains("head.weight"), "{said}");
}

/// The certificate of weights rounded to 8 bits, which is verified against the stored ones.
#[test]
fn certificates_of_rounded_weights_hold() {
    let w = Workshop::new();
    let model = w.string("model.safetensors");
    let mut seen = Vec::new();
    for to in ["e4m3", "e5m2", "int8"] {
        let file = w.string(&format!("{to}.json"));
        ended(0, &["bound", &model, "--weights", to, "--json", &file, "--effort", "0"]);
        let (stdout, _) = ended(0, &["verify", &file, &model]);
        assert!(stdout.contains(to), "{stdout}");
        let certificate = json(&std::fs::read_to_string(&file).unwrap());
        assert_eq!(certificate["rounding"], *to);
        seen.push(certificate["l2"]["value"].as_str().unwrap().parse::<f64>().unwrap());
        // It is not that of another rounding.
        let text = std::fs::read_to_string(&file).unwrap();
        let forged = text.replace(&format!("\"rounding\": \"{to}\""), "\"rounding\": \"bf16\"");
        assert_ne!(text, forged);
        let forgery = w.string("forged.json");
        std::fs::write(&forgery, forged).unwrap();
        ended(1, &["verify", &forgery, &model]);
    }
    let plain: f64 =
        ended(0, &["bound", &model, "--quiet", "--effort", "0"]).0.trim().parse().unwrap();
    assert!(seen.iter().all(|l| (l / plain - 1.0).abs() < 0.5 && *l != plain), "{seen:?} {plain}");
}

fn lines(log: &Path) -> Vec<Value> {
    std::fs::read_to_string(log).unwrap_or_default().lines().map(json).collect()
}

#[test]
fn a_directory_is_watched() {
    let w = Workshop::new();
    let dir = w.path("runs");
    std::fs::create_dir(&dir).unwrap();
    let name = dir.display().to_string();
    let log = dir.join("watch.jsonl");
    w.save("runs/step_1.safetensors", |_| {});
    w.save("runs/step_2.safetensors", outlier("head.weight", 3.0));
    let (stdout, _) = ended(0, &["watch", &name, "--once"]);
    assert_eq!(stdout.lines().count(), 2, "{stdout}");
    let found = lines(&log);
    let numbers = |i: usize, key: &str| found[i][key].as_u64().unwrap();
    assert_eq!((numbers(0, "step"), numbers(1, "step")), (1, 2));
    // All norms but those of the head are known the second time.
    assert_eq!(numbers(0, "reused"), 0);
    assert!((1..5).contains(&numbers(1, "proven")) && numbers(1, "reused") > 20, "{}", found[1]);
    assert_eq!(found[0]["logits"]["blocks.0.attention"].as_array().unwrap().len(), 4);
    assert_eq!(found[0]["norms"].as_object().unwrap().len(), 13);
    // What is in the log is not there twice; a line that was cut off is ended.
    std::fs::OpenOptions::new()
        .append(true)
        .open(&log)
        .and_then(|mut f| std::io::Write::write_all(&mut f, b"{\"format\""))
        .unwrap();
    assert_eq!(ended(0, &["watch", &name, "--once"]).0, "");
    assert!(std::fs::read_to_string(&log).unwrap().ends_with("{\"format\"\n"));
    // A breach ends it, unless a hook answers.
    let limits = w.string("limits.toml");
    std::fs::write(&limits, "[norms]\n\"head*\" = 2.5\n").unwrap();
    let fresh = w.string("fresh.jsonl");
    let args = ["watch", &name, "--once", "--limits", &limits, "--log", &fresh];
    let (_, stderr) = ended(1, &args);
    assert!(stderr.contains("step_2") && stderr.contains("`head.weight`"), "{stderr}");
    assert_eq!(lines(Path::new(&fresh)).last().unwrap()["breaches"].as_array().unwrap().len(), 1);
    // As long as it is there; and known ones by limits that are new.
    ended(1, &args);
    assert_eq!(lines(Path::new(&fresh)).len(), 2);
    std::fs::write(&limits, "[norms]\n\"head*\" = 2.25\n").unwrap();
    ended(1, &args);
    assert_eq!(lines(Path::new(&fresh)).len(), 3);
    std::fs::write(&limits, "[norms]\n\"haed*\" = 9\n").unwrap();
    assert!(ended(1, &args).1.contains("`haed*` is of no matrix"));
    std::fs::write(&limits, "[norms]\n\"head*\" = 2.5\n").unwrap();
    // Nothing is added to what is no log.
    let said = ended(2, &["watch", &name, "--once", "--log", &limits]).1;
    assert!(said.contains("is no log of checkpoints"), "{said}");
    let told = w.string("told");
    let hook = format!("echo \"$LIPSCHITZ_CHECKPOINT $LIPSCHITZ_BREACHES\" > {told}");
    let again = w.string("again.jsonl");
    ended(0, &["watch", &name, "--once", "--limits", &limits, "--log", &again, "--hook", &hook]);
    let said = std::fs::read_to_string(&told).unwrap();
    assert!(said.contains("step_2") && said.contains("head.weight"), "{said}");
    std::fs::write(&limits, "nrom = 2\n").unwrap();
    let said = ended(2, &args).1;
    assert!(said.contains("nrom") && said.contains("line 1"), "{said}");
    // A file that is only half there.
    let whole = std::fs::read(dir.join("step_1.safetensors")).unwrap();
    std::fs::write(dir.join("step_3.safetensors"), &whole[..whole.len() / 2]).unwrap();
    let said = ended(2, &["watch", &name, "--once", "--log", &w.string("l3.jsonl")]).1;
    assert!(said.contains("step_3"), "{said}");
    assert_eq!(lines(Path::new(&w.string("l3.jsonl"))).len(), 2);
    let svg = w.string("watch.svg");
    ended(0, &["plot", "watch", &fresh, "-o", &svg]);
    assert!(std::fs::read_to_string(&svg).unwrap().contains("<svg"));
    let said = ended(2, &["watch", &w.string("model.safetensors")]).1;
    assert!(said.contains("no directory"), "{said}");
}

/// A file that is written while it is watched, and a signal.
#[cfg(unix)]
#[test]
fn watching_outlives_half_a_file_and_ends_on_a_signal() {
    let w = Workshop::new();
    let dir = w.path("runs");
    std::fs::create_dir(&dir).unwrap();
    let whole = std::fs::read(w.path("model.safetensors")).unwrap();
    let log = w.string("log.jsonl");
    let name = dir.display().to_string();
    let mut child = certify(&["watch", &name, "--every", "0.1", "--log", &log])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let file = dir.join("a.safetensors");
    for part in 1..=6 {
        std::fs::write(&file, &whole[..whole.len() * part / 6]).unwrap();
        std::thread::sleep(Duration::from_millis(150));
    }
    let start = Instant::now();
    while lines(Path::new(&log)).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing is logged");
        std::thread::sleep(Duration::from_millis(50));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(0));
    assert_eq!(lines(Path::new(&log)).len(), 1);
}
