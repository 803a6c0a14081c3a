//! The memory that a step takes at least, beside what runs take: it must be below, so that nothing
//! is refused that could be run, and not far below, so that what cannot be run is refused.
//! A test alone in its program, with the program's allocator: what is measured is its memory.

mod workshop;

use std::io::Write;
use std::process::Command;

use lipschitz_train::config::Config;
use lipschitz_train::estimate::least;
use lipschitz_train::trainer::{self, RunOptions};
use workshop::status;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is run, and how many different characters its text has.
const CASES: [(&str, &[&str], u32); 8] = [
    ("many tokens", &["model.context=512", "train.batch_size=16"], 60),
    ("large batch", &["model.context=64", "train.batch_size=256"], 60),
    ("wide", &["model.context=16", "train.batch_size=2", "model.dim=768"], 60),
    ("deep", &["model.context=64", "train.batch_size=16", "model.layers=24"], 60),
    ("many words", &["model.context=64", "train.batch_size=32"], 8000),
    (
        "recomputed",
        &["model.context=256", "model.layers=8", "train.batch_size=32", "train.recompute=true"],
        60,
    ),
    ("in parts", &["model.context=256", "train.batch_size=64", "train.accumulate=4"], 60),
    (
        "AdamW",
        &[
            "model.context=64",
            "train.batch_size=8",
            "model.dim=768",
            "optimizer={ kind = \"adamw\" }",
            "constraint={ method = \"none\" }",
            "train.learning_rate=0.001",
        ],
        60,
    ),
];

/// Bytes that are said, and that a run takes in this program, which has done nothing before.
fn measure(settings: &[&str], characters: u32) -> (f64, f64) {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.txt");
    let letters = (0..characters).filter_map(|i| char::from_u32(0x4e00 + i));
    let letters: String = letters.collect();
    std::fs::write(&text, letters.repeat(20_000usize.div_ceil(characters as usize))).unwrap();
    let common = [
        "model.dim=256".to_string(),
        "model.layers=3".into(),
        "model.heads=4".into(),
        "train.steps=2".into(),
        "train.log_every=2".into(),
        "train.eval_every=2".into(),
        format!("data.path={}", text.display()),
    ];
    let all: Vec<String> =
        common.into_iter().chain(settings.iter().map(|s| s.to_string())).collect();
    let config =
        Config::parse(lipschitz_train::preset::text("gpt-shakespeare").unwrap(), &all).unwrap();
    let graph = config.graph(characters as usize).unwrap();
    let said = least(&config, &graph, &[], 1).unwrap().total();
    let before = status("VmRSS");
    trainer::run(&config, &RunOptions::new(&dir.path().join("run"))).unwrap();
    (said, status("VmHWM") - before)
}

#[test]
#[ignore = "takes minutes: cargo test -p lipschitz-train --test least -- --ignored --nocapture"]
fn a_run_takes_more_than_the_least_and_not_much_more() {
    const CASE: &str = "LEAST_CASE";
    if let Ok(case) = std::env::var(CASE) {
        let (_, settings, characters) = CASES[case.parse::<usize>().unwrap()];
        let (said, taken) = measure(settings, characters);
        println!("\n{} {}", said / 1e6, taken / 1e6);
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
        let out =
            command.env(CASE, i.to_string()).args(["--ignored", "--nocapture"]).output().unwrap();
        let out = String::from_utf8(out.stdout).unwrap();
        let numbers = out.lines().find_map(|line| {
            let (said, taken) = line.split_once(' ')?;
            Some((said.parse::<f64>().ok()?, taken.parse::<f64>().ok()?))
        });
        let (said, taken) = numbers.unwrap_or_else(|| panic!("{name}: {out}"));
        let share = said / taken;
        println!("{name}: {taken:.0} MB, at least {said:.0} MB: {share:.2}");
        if !(0.35..1.0).contains(&share) {
            off.push(name);
        }
    }
    assert!(off.is_empty(), "{off:?}");
}
