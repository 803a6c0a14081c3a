//! `cargo bench -p train --bench step -- 256` (or `768`): where a training step of the transformer goes, for every optimizer and
//! every constraint; medians, in one run. Three layers at width 256, one at 768, batches of 4 × 256 tokens.

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::Model;
use lipschitz_nn::init::{self, Blocks};
use lipschitz_nn::presets::Gpt;
use lipschitz_opt::constraint::{Constraint, ConstraintConfig, Estimate, HardCap, Method};
use lipschitz_opt::{AdamWConfig, MuonConfig, NewtonSchulz, OptimizerConfig, Rate, Recipe, SgdConfig};
use train::step::{Times, Training};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const STEPS: usize = 7;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["256"] => table(256, 3),
        ["768"] => table(768, 1),
        [] => println!("name a width: cargo bench -p train --bench step -- 256, or 768"),
        ref other => panic!("unknown: {other:?}"),
    }
}

fn graph(dim: usize, layers: usize) -> lipschitz_nn::Graph {
    let (heads, context) = (dim / 64, 256);
    let (logit_scale, output_scale, final_scale) = (1.0 / 64.0, 1.0 / 3.0, 1.0);
    Gpt { vocabulary: 65, context, dim, layers, heads, logit_scale, output_scale, final_scale }
        .graph()
        .expect("it fits")
}

/// Median times of the parts of a step.
fn measure(dim: usize, layers: usize, recipe: &Recipe) -> Times {
    let graph = graph(dim, layers);
    let weights = init::weights(&graph, 0, Blocks::Whole, &Device::Cpu, DType::F32).expect("weights");
    let (model, vars) = Model::new(graph.clone(), weights).and_then(|m| m.trainable()).expect("a model");
    let variables = recipe.variables(&graph, vars, 0.02).expect("variables");
    let optimizer = recipe.build(&variables).expect("an optimizer");
    let constraint = Constraint::new(recipe).expect("a constraint");
    let mut training = Training { model, variables, optimizer, constraint };
    let tokens: Vec<u32> = (0..4 * 256u32).map(|i| i.wrapping_mul(2_654_435_761) % 65).collect();
    let x = Tensor::from_vec(tokens, (4, 256), &Device::Cpu).expect("tokens");
    let mut all = Vec::new();
    for i in 0..STEPS + 2 {
        let mut times = Times::default();
        training.step(&x, &x, Rate::constant(0.02), &mut times).expect("a step");
        if i >= 2 {
            all.push(times);
        }
    }
    let median = |part: fn(&Times) -> f64| {
        let mut values: Vec<f64> = all.iter().map(part).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Times {
        forward: median(|t| t.forward),
        backward: median(|t| t.backward),
        update: median(|t| t.update),
        constraint: median(|t| t.constraint),
    }
}

fn table(dim: usize, layers: usize) {
    let muon = |newton_schulz| OptimizerConfig::Muon(MuonConfig { newton_schulz, ..MuonConfig::default() });
    let none = ConstraintConfig::default;
    let mut rows: Vec<(String, Recipe)> =
        NewtonSchulz::ALL.into_iter().map(|set| (format!("Muon, {set:?}"), Recipe::new(muon(set), none()))).collect();
    rows.push(("AdamW".into(), Recipe::new(OptimizerConfig::Adamw(AdamWConfig::default()), none())));
    rows.push(("SGD".into(), Recipe::new(OptimizerConfig::Sgd(SgdConfig::default()), none())));
    for method in Method::ALL.into_iter().filter(|m| *m != Method::None) {
        let base = || match method {
            Method::WeightDecay | Method::SpectralWeightDecay => {
                ConstraintConfig { decay: Some(0.05), ..ConstraintConfig::new(method) }
            }
            _ => ConstraintConfig::capped(method, 1.0),
        };
        let mut configs = vec![(method.name().to_string(), base())];
        match method {
            Method::SpectralNormalize => {
                let power = ConstraintConfig { norm: Some(Estimate::Power), ..base() };
                configs.push(("spectral normalize, power".into(), power));
            }
            Method::SpectralHardCap => {
                configs
                    .push(("spectral hard cap, sign".into(), ConstraintConfig { form: Some(HardCap::Sign), ..base() }));
            }
            _ => {}
        }
        let recipe = |constraint| Recipe::new(muon(NewtonSchulz::SixStep), constraint);
        rows.extend(configs.into_iter().map(|(name, config)| (name, recipe(config))));
    }
    let measured: Vec<(String, Times)> = rows.iter().map(|(name, r)| (name.clone(), measure(dim, layers, r))).collect();
    let svd = measured.last().map_or(f64::NAN, |(_, times)| times.constraint);
    println!(
        "width {dim}, {layers} layers, 4 × 256 tokens; medians of {STEPS} steps, ms; constraints under Muon, SixStep"
    );
    println!(
        "{:28} {:>9} {:>9} {:>9} {:>11} {:>10} {:>9}",
        "", "forward", "backward", "update", "constraint", "share", "of SVD"
    );
    for (name, t) in &measured {
        let ms = |x: f64| format!("{:.1}", 1000.0 * x);
        // The share of what the row is about.
        let (part, of_svd) = match t.constraint / svd {
            r if t.constraint > 1e-4 => (t.constraint, format!("{r:.3}")),
            _ => (t.update, "–".into()),
        };
        let share = format!("{:.1} %", 100.0 * part / t.total());
        let (forward, backward, update, constraint) = (ms(t.forward), ms(t.backward), ms(t.update), ms(t.constraint));
        println!("{name:28} {forward:>9} {backward:>9} {update:>9} {constraint:>11} {share:>10} {of_svd:>9}");
    }
}
