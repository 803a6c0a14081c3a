//! Thousands of changes to configs and weights: the importer reads each as Hugging Face
//! transformers does (`tests/golden/mutate.py`), or refuses it.

mod library;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::checkpoint::load_tensors;
use serde_json::{Map, Value, json};

use library::{Outcome, Tensors, ours, save};

/// How many of the cases that the library reads as the model itself the importer has to take, so
/// that it cannot pass by refusing.
const TAKEN: f64 = 0.2;

/// As few cases as there may be.
const CASES: usize = 70_000;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join("mutations")
}

/// A change, and the number of what the library makes of it; -1 where it refuses.
struct Case {
    /// What is changed, for messages.
    key: String,
    change: String,
    config: Value,
    operations: Vec<Value>,
    outcome: i64,
}

/// Where a path leads: into an object as long as there is one, else a key as it stands.
fn inside<'a>(config: &'a mut Value, path: &str) -> (&'a mut Map<String, Value>, String) {
    let mut at = config;
    let mut rest = path;
    while let Some((first, last)) = rest.split_once('.') {
        if !at.get(first).is_some_and(Value::is_object) {
            break;
        }
        at = &mut at[first];
        rest = last;
    }
    (at.as_object_mut().expect("it is an object"), rest.to_string())
}

fn set(config: &Value, path: &str, value: Option<&Value>) -> Value {
    let mut config = config.clone();
    let (at, key) = inside(&mut config, path);
    match value {
        Some(value) => drop(at.insert(key, value.clone())),
        None => drop(at.remove(&key)),
    }
    config
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().expect("the script writes an object")
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().expect("the script writes a list")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("the script writes a text")
}

/// One key at a time.
fn keys(table: &Value, config: &Value, suffix: &str, cases: &mut Vec<Case>) {
    let mut case = |key: &str, value: Option<&Value>, outcome: i64| {
        let change = value.map_or("missing".into(), Value::to_string);
        let config = set(config, key, value);
        cases.push(Case {
            key: format!("{key}{suffix}"),
            change,
            config,
            operations: vec![],
            outcome,
        });
    };
    for group in list(&table["keys"]) {
        for key in list(&group[0]) {
            for (outcome, values) in object(&group[1]) {
                for value in list(values) {
                    case(text(key), Some(value), outcome.parse().expect("a number"));
                }
            }
        }
    }
    for (key, outcome) in object(&table["missing"]) {
        case(key, None, outcome.as_i64().expect("a number"));
    }
}

/// Nested lists as a tensor: token ids where all numbers are whole, else pictures.
fn tensor(value: &Value) -> Tensor {
    fn walk(value: &Value, shape: &mut Vec<usize>, depth: usize, out: &mut Vec<f64>) {
        match value.as_array() {
            Some(list) => {
                if shape.len() == depth {
                    shape.push(list.len());
                }
                for value in list {
                    walk(value, shape, depth + 1, out);
                }
            }
            None => out.push(value.as_f64().expect("a number")),
        }
    }
    let (mut shape, mut numbers) = (Vec::new(), Vec::new());
    walk(value, &mut shape, 0, &mut numbers);
    let dtype = if shape.len() == 2 { DType::U32 } else { DType::F64 };
    let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu).expect("as many as the shape has");
    tensor.to_dtype(dtype).expect("on the CPU")
}

fn cases(file: &Value) -> Vec<Case> {
    let config = &file["config"];
    let mut cases = Vec::new();
    keys(file, config, "", &mut cases);
    if let Some(legacy) = file.get("legacy") {
        keys(legacy, &legacy["config"], " (legacy)", &mut cases);
    }
    for changed in list(&file["sets"]) {
        let mut config = config.clone();
        for (key, value) in object(&changed[0]) {
            config = set(&config, key, Some(value));
        }
        for key in list(&changed[1]) {
            config = set(&config, text(key), None);
        }
        let mut names: Vec<&str> = object(&changed[0]).keys().map(String::as_str).collect();
        names.sort_unstable();
        let key = format!("set {}", names.join("+"));
        let change = format!("{} without {}", changed[0], changed[1]);
        let outcome = changed[2].as_i64().expect("a number");
        cases.push(Case { key, change, config, operations: vec![], outcome });
    }
    for (name, outcomes) in object(&file["each"]) {
        for (kind, outcome) in ["drop", "negate", "zero"].into_iter().zip(list(outcomes)) {
            let (key, change) = (format!("weights {kind}"), name.clone());
            let (config, operations) = (config.clone(), vec![json!([kind, name])]);
            let outcome = outcome.as_i64().expect("a number");
            cases.push(Case { key, change, config, operations, outcome });
        }
    }
    for changed in list(&file["weights"]) {
        let mut config = config.clone();
        for (key, value) in object(&changed[1]) {
            config = set(&config, key, Some(value));
        }
        let operations = list(&changed[0]).clone();
        let change = format!("{} {}", changed[0], changed[1]);
        let outcome = changed[2].as_i64().expect("a number");
        cases.push(Case { key: "weights".into(), change, config, operations, outcome });
    }
    cases
}

fn apply(tensors: &Tensors, operations: &[Value]) -> Tensors {
    let mut out = tensors.clone();
    for operation in operations {
        let name = text(&operation[1]);
        let scaled = |by: f64| out[name].affine(by, 0.0).expect("on the CPU");
        let renamed = |to: &dyn Fn(&String) -> String| {
            out.iter().map(|(name, tensor)| (to(name), tensor.clone())).collect()
        };
        match text(&operation[0]) {
            "copy" => drop(out.insert(text(&operation[2]).into(), out[name].clone())),
            "negate" => drop(out.insert(name.into(), scaled(-1.0))),
            "zero" => drop(out.insert(name.into(), scaled(0.0))),
            "drop" => drop(out.remove(name)),
            "rename" => out = renamed(&|n| n.replace(name, text(&operation[2]))),
            "prefix" => out = renamed(&|n| format!("{name}{n}")),
            "strip" => out = renamed(&|n| n.strip_prefix(name).unwrap_or(n).to_string()),
            other => panic!("{other} is not known"),
        }
    }
    out
}

/// What became of the cases of a model.
#[derive(Default)]
struct Tally {
    agree: usize,
    both_refuse: usize,
    we_refuse: usize,
    /// Cases that the library reads as the model itself, and those of them that we take.
    same: usize,
    same_taken: usize,
    /// By what is wrong and the key: the changes.
    wrong: BTreeMap<(&'static str, String), Vec<String>>,
}

/// What the importer makes of a directory: the output, or why it refuses.
fn read(dir: &Path, input: &Tensor) -> Result<Outcome, (&'static str, String)> {
    match catch_unwind(AssertUnwindSafe(|| ours(dir, input))) {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(message)) if message.contains('\n') => Err(("more than one line", message)),
        Ok(Err(message)) => Err(("", message)),
        Err(_) => Err(("panic", String::new())),
    }
}

fn check(name: &str) -> Tally {
    let path = folder().join(format!("{name}.json"));
    let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (tensors, _) =
        load_tensors(&folder().join(format!("{name}.safetensors")), &Device::Cpu).unwrap();
    let tensors: Tensors = tensors.into_iter().collect();
    let outcomes: Vec<Outcome> = list(&file["outcomes"]).iter().map(Outcome::read).collect();
    let input = tensor(file.get("tokens").unwrap_or(&file["pixels"]));
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &tensors);
    let mut saved = Vec::new();
    let mut tally = Tally::default();
    for case in cases(&file) {
        std::fs::write(dir.path().join("config.json"), case.config.to_string()).unwrap();
        if case.operations != saved {
            save(dir.path(), &apply(&tensors, &case.operations));
            saved.clone_from(&case.operations);
        }
        let found = read(dir.path(), &input);
        let wanted = usize::try_from(case.outcome).ok();
        let mut wrong = |what: &'static str, detail: &str| {
            let detail = if detail.is_empty() { String::new() } else { format!(" [{detail}]") };
            let change = format!("{}{detail}", case.change);
            tally.wrong.entry((what, case.key.clone())).or_default().push(change);
        };
        if wanted == Some(0) {
            tally.same += 1;
            tally.same_taken += usize::from(found.is_ok());
        }
        match (found, wanted) {
            (Err((what, message)), _) if !what.is_empty() => wrong(what, &message),
            (Ok(found), Some(wanted)) if outcomes[wanted].is(&found) => tally.agree += 1,
            (Ok(found), Some(_)) => match outcomes.iter().position(|o| o.is(&found)) {
                Some(0) => wrong("another function", "we: as the model itself"),
                Some(other) => wrong("another function", &format!("we: outcome {other}")),
                None => wrong("another function", &format!("we: {found:?}")),
            },
            (Ok(_), None) => wrong("the library refuses", ""),
            (Err(_), None) => tally.both_refuse += 1,
            (Err((_, message)), Some(0)) => {
                tally.we_refuse += 1;
                if std::env::var_os("SHOW_REFUSED").is_some() {
                    println!("refused {name} {}: {}: {message}", case.key, case.change);
                }
            }
            (Err(_), Some(_)) => tally.we_refuse += 1,
        }
    }
    tally
}

#[test]
fn configs_and_weights_mean_what_they_mean_to_the_library() {
    let entries = std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path());
    let mut names: Vec<String> = entries
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let (next, tallies) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(names.len()) {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let tally = check(name);
                    tallies.lock().unwrap().insert(name.clone(), tally);
                }
            });
        }
    });
    let tallies = tallies.into_inner().unwrap();
    assert_eq!(tallies.len(), names.len(), "a model was not gone through");
    let (mut total, mut failures) = (0, Vec::new());
    for (name, tally) in &tallies {
        let wrong: usize = tally.wrong.values().map(Vec::len).sum();
        total += tally.agree + tally.both_refuse + tally.we_refuse + wrong;
        println!(
            "{name}: {} agree, {} refused by both, {} by us alone, {wrong} wrong; {} of {} that \
             are the model itself are taken",
            tally.agree, tally.both_refuse, tally.we_refuse, tally.same_taken, tally.same
        );
        for ((what, key), changes) in &tally.wrong {
            failures.push(format!("{name}: {what}: {key}: {}", changes.join(" | ")));
        }
        if (tally.same_taken as f64) < TAKEN * tally.same as f64 {
            failures.push(format!(
                "{name}: takes {} of {} that are the model itself",
                tally.same_taken, tally.same
            ));
        }
    }
    if total < CASES {
        failures.push(format!("fewer than {CASES} cases"));
    }
    assert!(failures.is_empty(), "of {total} cases, by model and key:\n{}", failures.join("\n"));
}

/// A wrong number, shape or size is seen.
#[test]
fn outcomes_differ() {
    let outcome = Outcome::read(&json!([[2, 1], 1.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]));
    for (other, same) in [
        (json!([[2, 1], 1.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), true),
        (json!([[2, 1], 1.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.60002]), false),
        (json!([[1, 2], 1.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), false),
        (json!([[2, 1], 1.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), false),
    ] {
        assert_eq!(outcome.is(&Outcome::read(&other)), same, "{other}");
    }
    let x = Tensor::new(&[[0.5f64, -2.0]], &Device::Cpu).unwrap();
    let sums: Vec<f64> =
        (1..=6).map(|k| 0.5 * f64::from(k).cos() - 2.0 * f64::from(2 * k).cos()).collect();
    let sums =
        [vec![json!([1, 2]), json!(4.25f64.sqrt())], sums.iter().map(|x| json!(x)).collect()];
    assert!(Outcome::read(&Value::Array(sums.concat())).is(&Outcome::of(&x)));
}
