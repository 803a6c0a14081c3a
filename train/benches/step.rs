//! `cargo bench --bench step -- 256` (or `768`): where the time of a transformer's training step
//! goes, for every optimizer and every constraint; medians, in one run. Three layers at width 256,
//! one at 768, batches of 4 × 256 tokens. `-- scaling`: how a step grows with width, tokens, batch
//! and depth, and how much of it is matrix products. `-- memory`: how its peak memory grows.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::Model;
use lipschitz_nn::init::{self, Blocks};
use lipschitz_nn::linalg::{Strided, matmul};
use lipschitz_nn::presets::{BlockConfig, Gpt};
use lipschitz_opt::constraint::{ConstraintConfig, ConstraintKind, HardCap, NormEstimator};
use lipschitz_opt::{
    AdamWConfig, MuonConfig, NewtonSchulz, OptimizerConfig, Rate, Recipe, SgdConfig,
};
use lipschitz_train::config::Config;
use lipschitz_train::preset;
use lipschitz_train::step::{Times, Training};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const STEPS: usize = 7;

#[allow(unsafe_code)]
fn main() {
    // SAFETY: the first statement of the program.
    unsafe { lipschitz_train::runtime::prepare() };
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["256"] => table(256, 3),
        ["768"] => table(768, 1),
        ["scaling"] => scaling(),
        ["memory"] => memory(),
        ["peak", dim, layers, context, batch] => {
            let [dim, layers, context, batch] =
                [dim, layers, context, batch].map(|n| n.parse().expect("a number"));
            let x = tokens(batch, context);
            measure(&mut training(&graph(dim, layers, context), &recipe()), &x, &x, 1);
            println!("{}", peak_memory().expect("the memory of this process"));
        }
        ["json", kind, steps, ref data @ ..] => {
            json(kind, steps.parse().expect("a count of steps"), data.first().copied())
        }
        [] => println!("say what: cargo bench --bench step -- 256, 768, scaling or memory"),
        ref other => panic!("unknown: {other:?}"),
    }
}

fn graph(dim: usize, layers: usize, context: usize) -> lipschitz_nn::Graph {
    Gpt::new(65, context, layers, BlockConfig::new(dim, dim / 64)).graph().expect("it fits")
}

/// A network on variables, with what trains it.
fn training(graph: &lipschitz_nn::Graph, recipe: &Recipe) -> Training {
    let weights =
        init::weights(graph, 0, Blocks::Whole, &Device::Cpu, DType::F32).expect("weights");
    let (model, vars) =
        Model::new(graph.clone(), weights).and_then(|m| m.trainable()).expect("a model");
    let variables = recipe.variables(graph, vars, 0.02).expect("variables");
    Training::new(model, variables, recipe, std::rc::Rc::default()).expect("a training")
}

fn tokens(batch: usize, tokens: usize) -> Tensor {
    let ids: Vec<u32> =
        (0..(batch * tokens) as u32).map(|i| i.wrapping_mul(2_654_435_761) % 65).collect();
    Tensor::from_vec(ids, (batch, tokens), &Device::Cpu).expect("tokens")
}

/// Median times of each part of a step, after two steps of warm-up.
fn measure(training: &mut Training, x: &Tensor, y: &Tensor, steps: usize) -> Times {
    let mut all = Vec::new();
    for i in 0..steps + 2 {
        let mut times = Times::default();
        training.step(x, y, 1, Rate::constant(0.02), &mut times).expect("a step");
        if i >= 2 {
            all.push(times);
        }
    }
    let part = |part: fn(&Times) -> f64| median(all.iter().map(part).collect());
    Times {
        forward: part(|t| t.forward),
        backward: part(|t| t.backward),
        update: part(|t| t.update),
        constraint: part(|t| t.constraint),
        exchange: 0.0,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn recipe() -> Recipe {
    let muon = OptimizerConfig::Muon(MuonConfig::default());
    Recipe::new(muon, ConstraintConfig::capped(ConstraintKind::SpectralSoftCap, 1.0))
}

/// How the time of a step scales with each size, from the default one; GFLOP/s of the matmuls, and
/// the time that they would take at the rate of one large matmul as a share of the step.
fn scaling() {
    let default = (256, 3, 256, 16);
    let sizes = [
        [64, 128, 256, 512, 1024].map(|dim| (dim, 3, 256, 4)).to_vec(),
        [64, 128, 256, 512, 1024].map(|tokens| (256, 3, tokens, 4096 / tokens)).to_vec(),
        [2048, 4096, 8192].map(|tokens| (256, 3, tokens, 1)).to_vec(),
        vec![(2048, 1, 256, 4), (256, 3, 64, 1)],
        [4, 16, 64].map(|batch| (256, 3, 256, batch)).to_vec(),
        [1, 3, 6, 12].map(|layers| (256, layers, 256, 4)).to_vec(),
    ];
    let peak = peak();
    println!(
        "one matmul of 4096 × 256 × 1024: {:.0} GFLOP/s; medians of {STEPS} steps",
        peak / 1e9
    );
    println!(
        "{:>5} {:>6} {:>6} {:>5} {:>12} {:>12} {:>9} {:>9}",
        "width", "layers", "tokens", "batch", "gradient, ms", "update, ms", "GFLOP/s", "matmuls"
    );
    for (dim, layers, context, batch) in sizes.concat().into_iter().chain([default]) {
        let x = tokens(batch, context);
        let t = measure(&mut training(&graph(dim, layers, context), &recipe()), &x, &x, STEPS);
        let gradient = t.forward + t.backward;
        let rate = flops(dim, layers, context, batch) / gradient;
        println!(
            "{dim:>5} {layers:>6} {context:>6} {batch:>5} {:>12.1} {:>12.1} {:>9.0} {:>7.0} %",
            1000.0 * gradient,
            1000.0 * (t.update + t.constraint),
            rate / 1e9,
            100.0 * rate / peak
        );
    }
}

/// The largest resident memory of three steps, each size in a process of its own, beside what is kept: weights,
/// gradients and momentum, and for the gradient ten numbers of each token's width in each layer.
fn memory() {
    println!("width layers tokens batch   peak, MiB   weights ×3   activations   the rest");
    for [dim, layers, context, batch] in [
        [128, 3, 256, 16],
        [256, 3, 256, 16],
        [512, 3, 256, 16],
        [1024, 3, 256, 16],
        [256, 1, 256, 16],
        [256, 6, 256, 16],
        [256, 12, 256, 16],
        [256, 3, 64, 64],
        [256, 3, 1024, 4],
        [256, 3, 4096, 1],
        [256, 3, 256, 4],
        [256, 3, 256, 64],
    ] {
        let this = std::env::current_exe().expect("this program");
        let sizes = [dim, layers, context, batch].map(|n| n.to_string());
        let run =
            std::process::Command::new(this).arg("peak").args(&sizes).output().expect("a run");
        let peak: f64 = String::from_utf8_lossy(&run.stdout).trim().parse().expect("a number");
        let parameters = graph(dim, layers, context).parameters();
        let count: usize = parameters.iter().map(|p| p.shape.iter().product::<usize>()).sum();
        let mib = |numbers: usize| 4.0 * numbers as f64 / f64::from(1 << 20);
        let (held, kept) = (3.0 * mib(count), mib(10 * dim * layers * context * batch));
        println!(
            "{dim:>5} {layers:>6} {context:>6} {batch:>5} {peak:>11.0} {held:>12.0} {kept:>13.0} {:>10.0}",
            peak - held - kept
        );
    }
}

/// The largest resident memory of this process so far, in MiB.
fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| {
        line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<f64>().ok()
    });
    Some(kib? / 1024.0)
}

/// Operations of the matmuls of a forward and a backward pass.
fn flops(dim: usize, layers: usize, context: usize, batch: usize) -> f64 {
    let rows = (batch * context) as f64;
    let weights = (layers * 12 * dim * dim + 65 * dim) as f64;
    // Queries 64 at a time meet the keys up to the last of them; two products forward, and five
    // back, one of which is made again.
    let pairs: usize = (0..context)
        .step_by(64)
        .map(|first| {
            let end = (first + 64).min(context);
            (end - first) * end
        })
        .sum();
    6.0 * rows * weights + 7.0 * 2.0 * (batch * layers * dim * pairs) as f64
}

/// Operations per second of one large matmul.
fn peak() -> f64 {
    let (m, n, k) = (4096, 256, 1024);
    let (a, b) = (vec![0.5f32; m * k], vec![0.25f32; k * n]);
    let mut out = vec![0f32; m * n];
    let mut once = || {
        let start = Instant::now();
        matmul(&mut out, n, Strided::dense(&a, k), Strided::dense(&b, n), false, 1.0, true);
        start.elapsed().as_secs_f64()
    };
    2.0 * (m * n * k) as f64 / median((0..15).map(|_| once()).collect())
}

/// One line for `pytorch.py`: a step of the transformer of a width and a batch (`256x16`) or of the
/// convolutional network, or an epoch of the MLP on the images in a directory; seconds, and the largest resident memory in MiB.
fn json(kind: &str, steps: usize, data: Option<&str>) {
    let (gradient, update, parts) = match data {
        None if kind == "convnet" => {
            let config = Config::parse(preset::find("convnet-cifar10").expect("a preset"), &[]);
            let graph = config.and_then(|config| config.graph(10)).expect("a graph");
            let x = Tensor::rand(0_f32, 1.0, (256, 3, 32, 32), &Device::Cpu).expect("images");
            let y = Tensor::from_iter((0..256_u32).map(|i| i % 10), &Device::Cpu).expect("classes");
            let t = measure(&mut training(&graph, &recipe()), &x, &y, steps);
            (t.forward + t.backward, t.update + t.constraint, t)
        }
        None => {
            let (dim, batch) = kind.split_once('x').expect("a width and a batch");
            let [dim, batch] = [dim, batch].map(|n| n.parse().expect("a number"));
            let x = tokens(batch, 256);
            let t = measure(&mut training(&graph(dim, 3, 256), &recipe()), &x, &x, steps);
            (t.forward + t.backward, t.update + t.constraint, t)
        }
        Some(path) => {
            let config = Config::parse(
                preset::find("mlp-cifar10").expect("a preset"),
                &[format!("data.path={path:?}")],
            );
            let (epoch, t) = epochs(&config.expect("a config"), steps);
            (epoch, 0.0, t)
        }
    };
    let line = serde_json::json!({
        "gradient": gradient, "update": update, "peak": peak_memory(), "parts": parts,
    });
    println!("{line}");
}

/// Median seconds of epochs of 98 batches of 512 images, their loading included; and the parts of
/// the last.
fn epochs(config: &Config, epochs: usize) -> (f64, Times) {
    let data = config.data.kind().load().expect("the images");
    let graph = config.graph(10).expect("a graph");
    let mut training = training(&graph, &recipe());
    let mut batches = data.training(0, None).expect("batches");
    let (mut times, mut parts) = (Vec::new(), Times::default());
    for epoch in 0..epochs as u64 {
        parts = Times::default();
        let start = Instant::now();
        for step in 0..98 {
            let (x, y) = batches.batch(epoch * 98 + step, 512, &Device::Cpu).expect("a batch");
            training.step(&x, &y, 1, Rate::constant(0.02), &mut parts).expect("a step");
        }
        times.push(start.elapsed().as_secs_f64());
    }
    (median(times), parts)
}

fn table(dim: usize, layers: usize) {
    let muon = |newton_schulz| {
        OptimizerConfig::Muon(MuonConfig { newton_schulz, ..MuonConfig::default() })
    };
    let none = ConstraintConfig::default;
    let x = tokens(4, 256);
    let mut rows: Vec<(String, Recipe)> = NewtonSchulz::ALL
        .into_iter()
        .map(|set| (format!("Muon, {set:?}"), Recipe::new(muon(set), none())))
        .collect();
    rows.push((
        "AdamW".into(),
        Recipe::new(OptimizerConfig::Adamw(AdamWConfig::default()), none()),
    ));
    rows.push(("SGD".into(), Recipe::new(OptimizerConfig::Sgd(SgdConfig::default()), none())));
    for method in ConstraintKind::ALL.into_iter().filter(|m| *m != ConstraintKind::None) {
        let base = || match method {
            ConstraintKind::WeightDecay | ConstraintKind::SpectralWeightDecay => {
                ConstraintConfig { decay: Some(0.05), ..ConstraintConfig::new(method) }
            }
            _ => ConstraintConfig::capped(method, 1.0),
        };
        let mut configs = vec![(method.name().to_string(), base())];
        match method {
            ConstraintKind::SpectralNormalize => {
                let power = ConstraintConfig { norm: Some(NormEstimator::Power), ..base() };
                configs.push(("spectral normalize, power".into(), power));
            }
            ConstraintKind::SpectralHardCap => {
                configs.push((
                    "spectral hard cap, sign".into(),
                    ConstraintConfig { form: Some(HardCap::Sign), ..base() },
                ));
            }
            _ => {}
        }
        let recipe = |constraint| Recipe::new(muon(NewtonSchulz::SixStep), constraint);
        rows.extend(configs.into_iter().map(|(name, config)| (name, recipe(config))));
    }
    let measured: Vec<(String, Times)> = rows
        .iter()
        .map(|(name, r)| {
            (name.clone(), measure(&mut training(&graph(dim, layers, 256), r), &x, &x, STEPS))
        })
        .collect();
    let svd = measured.last().map_or(f64::NAN, |(_, times)| times.constraint);
    println!(
        "width {dim}, {layers} layers, 4 × 256 tokens; medians of {STEPS} steps, ms; constraints \
         under Muon, SixStep"
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
        let (forward, backward, update, constraint) =
            (ms(t.forward), ms(t.backward), ms(t.update), ms(t.constraint));
        println!(
            "{name:28} {forward:>9} {backward:>9} {update:>9} {constraint:>11} {share:>10} \
             {of_svd:>9}"
        );
    }
}
