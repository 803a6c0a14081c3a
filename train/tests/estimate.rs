//! What a step is said to need beside what it takes. A test alone in its program: what is measured
//! is the program's memory.

mod workshop;

use std::io::Write;
use std::process::Command;
use std::rc::Rc;

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::Model;
use lipschitz_nn::init::{self, Blocks};
use lipschitz_nn::linalg::without_kernels;
use lipschitz_opt::Rate;
use lipschitz_train::config::Config;
use lipschitz_train::estimate::estimate;
use lipschitz_train::step::{Times, Training};
use workshop::status;

/// What is run, and its vocabulary.
const CASES: [(&str, &[&str], usize); 6] = [
    // Attention's scores, then logits, then weights outweigh the rest.
    ("many tokens", &["model.context=512", "train.batch_size=8"], 64),
    ("many words", &["model.context=128", "train.batch_size=32"], 8192),
    (
        "recomputed",
        &["model.context=256", "model.layers=6", "train.batch_size=16", "train.recompute=true"],
        64,
    ),
    ("in parts", &["model.context=512", "train.batch_size=8", "train.accumulate=2"], 64),
    ("bf16", &["model.context=256", "train.batch_size=16", "train.precision=bf16"], 64),
    ("many weights", &["model.context=16", "train.batch_size=1", "model.dim=512"], 64),
];

/// Bytes that are said, and that a step takes in this program, which has done nothing before.
fn measure(settings: &[&str], vocabulary: usize) -> (f64, f64) {
    let mut all =
        vec!["model.dim=256".to_string(), "model.layers=3".into(), "model.heads=4".into()];
    all.extend(settings.iter().map(|s| s.to_string()));
    let config =
        Config::parse(lipschitz_train::preset::text("gpt-shakespeare").unwrap(), &all).unwrap();
    let graph = config.graph(vocabulary).unwrap();
    let said = estimate(&config, &graph, &[], 1).unwrap().memory;
    let recipe = config.recipe();
    let weights = init::weights(&graph, 0, Blocks::Whole, &Device::Cpu, DType::F32).unwrap();
    let model = Model::new(graph.clone(), weights).unwrap();
    let model = model.recomputing(config.train.recompute).with_precision(config.train.precision);
    let (model, vars) = model.trainable().unwrap();
    let variables = recipe.variables(&graph, vars, config.train.learning_rate).unwrap();
    let mut training = Training::new(model, variables, &recipe, Rc::default()).unwrap();
    let shape = (config.train.batch_size, graph.context().unwrap());
    let ids = Tensor::zeros(shape, DType::U32, &Device::Cpu).unwrap();
    let before = status("VmRSS");
    let (parts, rate) = (config.train.accumulate, Rate::constant(0.1));
    without_kernels(|| training.step(&ids, &ids, parts, rate, &mut Times::default()).unwrap());
    (said.gradients + said.activations.max(said.update), status("VmHWM") - before)
}

#[test]
fn memory_is_what_a_step_takes() {
    const CASE: &str = "ESTIMATE_CASE";
    if let Ok(case) = std::env::var(CASE) {
        let (_, settings, vocabulary) = CASES[case.parse::<usize>().unwrap()];
        let (said, taken) = measure(settings, vocabulary);
        println!("\n{} {}", said / taken, taken / 1e6);
        return;
    }
    if !std::path::Path::new("/proc/self/status").exists() {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: this system does not say how much memory a program has had at most"
        );
        return;
    }
    let mut off = Vec::new();
    for (i, (name, ..)) in CASES.iter().enumerate() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let out = command.env(CASE, i.to_string()).arg("--nocapture").output().unwrap();
        let out = String::from_utf8(out.stdout).unwrap();
        let numbers = out.lines().find_map(|line| {
            let (ratio, taken) = line.split_once(' ')?;
            Some((ratio.parse::<f64>().ok()?, taken.parse::<f64>().ok()?))
        });
        let (ratio, taken) = numbers.unwrap_or_else(|| panic!("{name}: {out}"));
        println!("{name}: {taken:.0} MB, said {ratio:.2} times as much");
        if !(0.8..1.25).contains(&ratio) {
            off.push(name);
        }
    }
    assert!(off.is_empty(), "{off:?}");
}
