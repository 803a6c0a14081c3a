//! Every optimizer with every constraint, trained for real: the loss falls, and what the pair
//! promises holds at every step, with norms that are proven (the trainer checks them at every line
//! it logs, and here it logs every step).

use std::fs;
use std::path::Path;

use lipschitz_opt::constraint::ConstraintKind;
use lipschitz_train::config::Config;
use lipschitz_train::run_dir::Metrics;
use lipschitz_train::trainer::{self, End, RunOptions};

/// Optimizers, each with its learning rate; that of SGD depends on what is learnt and for how long.
const OPTIMIZERS: [(&str, Option<f64>); 3] = [
    ("{ kind = \"muon\", nesterov = true, newton_schulz = \"polar_express\" }", Some(0.1)),
    ("{ kind = \"adamw\", bias_correction = true }", Some(0.01)),
    ("{ kind = \"sgd\", momentum = 0.9 }", None),
];

/// Every method, with the options that make it another one.
fn constraints() -> Vec<String> {
    let mut out = Vec::new();
    for method in ConstraintKind::ALL {
        let key = method.key();
        let more: &[&str] = match method {
            ConstraintKind::None => &[""],
            ConstraintKind::WeightDecay => &["decay = 0.03"],
            ConstraintKind::SpectralWeightDecay => &["decay = 0.05"],
            ConstraintKind::SpectralNormalize => {
                &["sigma_max = 1.5, per_head = true", "sigma_max = 1.5, norm = \"power\""]
            }
            ConstraintKind::SpectralHardCap => {
                &["sigma_max = 1.5, per_head = true", "sigma_max = 1.5, form = \"sign\""]
            }
            ConstraintKind::Stiefel
            | ConstraintKind::SpectralHammer
            | ConstraintKind::SvdClip
            | ConstraintKind::AlmostOrthogonal => &["sigma_max = 1.5"],
            ConstraintKind::SpectralSoftCap => {
                &["sigma_max = 1.5, per_head = [\"query\", \"output\"], row_caps = [\"head\"]"]
            }
        };
        for more in more {
            let comma = if more.is_empty() { "" } else { ", " };
            out.push(format!("{{ method = \"{key}\"{comma}{more} }}"));
        }
    }
    out
}

/// What needs attention heads is left out for an MLP.
fn headless(constraint: &str) -> String {
    constraint.replace(", per_head = true", "").replace(", per_head = [\"query\", \"output\"]", "")
}

/// Mean loss of the first and last eighth of a run.
fn train_pair(base: &str, settings: &[String], out: &Path) -> (f64, f64) {
    let config = Config::parse(base, settings).unwrap();
    match trainer::run(&config, &RunOptions::new(out)) {
        Ok(End::Done(_)) => {}
        other => panic!("{settings:?}: {other:?}"),
    }
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let losses: Vec<f64> = text
        .lines()
        .map(|line| serde_json::from_str::<Metrics>(line).unwrap().train_loss.unwrap())
        .collect();
    assert_eq!(
        losses.len() as u64,
        config.train.steps,
        "a step was not logged, so its caps were not proven"
    );
    let part = (losses.len() / 8).max(1);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    (mean(&losses[..part]), mean(&losses[losses.len() - part..]))
}

fn all_pairs(base: &str, heads: bool, steps: u64, sgd: f64, common: &[String]) {
    let dir = tempfile::tempdir().unwrap();
    for (i, (optimizer, rate)) in OPTIMIZERS.iter().enumerate() {
        for (j, constraint) in constraints().iter().enumerate() {
            let constraint = if heads { constraint.clone() } else { headless(constraint) };
            let mut settings = vec![
                format!("optimizer={optimizer}"),
                format!("constraint={constraint}"),
                format!("train.learning_rate={}", rate.unwrap_or(sgd)),
                format!("train.steps={steps}"),
                "train.log_every=1".to_string(),
                format!("train.eval_every={steps}"),
            ];
            settings.extend_from_slice(common);
            let (first, last) = train_pair(base, &settings, &dir.path().join(format!("{i}-{j}")));
            println!("{optimizer} {constraint}: loss {first:.3} to {last:.3}");
            assert!(last < first - 0.02, "{optimizer} {constraint}: loss {first} to {last}");
        }
    }
}

fn plays(steps: u64) {
    let small = [
        "model.dim=16",
        "model.layers=1",
        "model.context=16",
        "data.characters=20000",
        "train.batch_size=8",
    ];
    all_pairs(
        lipschitz_train::preset::text("gpt-play").unwrap(),
        true,
        steps,
        0.3,
        &small.map(String::from),
    );
}

fn pixels(steps: u64, sgd: f64) {
    let Some(path) = lipschitz_tests::shared("cifar10") else { return };
    let mut small: Vec<String> = [
        "model.hidden=[32,16]",
        "data.limit_train=400",
        "data.limit_test=50",
        "train.batch_size=50",
    ]
    .map(String::from)
    .into();
    small.push(format!("data.path={}", path.display()));
    all_pairs(lipschitz_train::preset::text("mlp-cifar10").unwrap(), false, steps, sgd, &small);
}

#[test]
fn every_pair_learns_plays_and_keeps_its_promise() {
    plays(40);
}

#[test]
fn every_pair_learns_pixels_and_keeps_its_promise() {
    pixels(60, 0.3);
}

#[test]
#[ignore = "the same for longer, six seconds a pair, four minutes in all: cargo test --workspace \
            --test pairs -- --ignored"]
fn every_pair_for_longer() {
    plays(600);
    // Faster, and without a constraint, it kills every ReLU after a while.
    pixels(200, 0.1);
}
