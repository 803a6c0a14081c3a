//! `cargo bench -p lipschitz-certify -- gpt2` (or `llama`): a whole certificate of a model of that
//! shape with random weights, read from disk. For `gpt2` also singular value decompositions of the
//! same matrices in the same run. Prints time and peak memory of each. `-- ellipsoids FILE STEPS`
//! tightens the certificate of a checkpoint so, and verifies it; `-- ellipsoids` does it for the
//! shape of GPT-2. `-- convolutions`: norms of convolutions by channels and sides. `-- local`: proofs around
//! one input of transformers by width, depth and tokens, and of a perceptron.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use faer::Mat;
use lipschitz_certify::bound::{WeightNorms, walk};
use lipschitz_certify::certificate::{Formula, certify};
use lipschitz_certify::ellipsoid::{self, Aim};
use lipschitz_certify::local::{Distance, Local};
use lipschitz_certify::robust::Margins;
use lipschitz_certify::spectral::{Matrix, Method, convolution_norm};
use lipschitz_certify::upper::Upper;
use lipschitz_certify::verify::verify;
use lipschitz_nn::checkpoint::{self, Meta, Provenance, Reader};
use lipschitz_nn::graph::{
    Attention, Convolution, Function, Geometry, Graph, Input, Node, Op, Pairing, Rotary,
};
use lipschitz_nn::linalg::{Strided, matmul};
use lipschitz_nn::presets::{BlockConfig, Gpt};
use lipschitz_nn::{Model, Weights};

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["make", shape, file] => make(shape, Path::new(file)),
        ["prove", file] => prove(Path::new(file)),
        ["svd", file] => svd(Path::new(file)),
        ["ellipsoids", file, steps] => ellipsoids(Path::new(file), steps.parse().expect("steps")),
        ["ellipsoids"] => of_shape("gpt2", &["ellipsoids"], &["3"]),
        ["convolutions"] => convolutions(),
        ["local"] => around_inputs(),
        ["gpt2"] => all("gpt2", true),
        ["llama"] => all("llama", false),
        [] => println!(
            "name a shape: cargo bench -p lipschitz-certify -- gpt2, or llama (no SVD, 2.2 GB on \
             disk), or ellipsoids, convolutions or local"
        ),
        ref other => panic!("unknown: {other:?}"),
    }
}

fn all(shape: &str, against: bool) {
    of_shape(shape, if against { &["prove", "svd"] } else { &["prove"] }, &[]);
}

/// Steps on a model of this shape, each a process of its own, so that its peak memory is measured by
/// itself.
fn of_shape(shape: &str, steps: &[&str], more: &[&str]) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join(format!("{shape}.safetensors"));
    let file = file.to_str().expect("a path in UTF-8");
    let step = |args: &[&str]| {
        let this = std::env::current_exe().expect("this program");
        assert!(Command::new(this).args(args).status().expect("it starts").success(), "{args:?}");
    };
    step(&["make", shape, file]);
    steps.iter().for_each(|name| step(&[&[*name, file], more].concat()));
}

fn ellipsoids(file: &Path, steps: usize) {
    let reader = Reader::open(file).expect("a checkpoint");
    let norms = certify(&reader, Method::Proven, Formula::Sound, None).expect("a certificate");
    println!("norms:   L ≤ {}, a margin {}", norms.rms, norms.margin.l2);
    let start = Instant::now();
    let both = norms.tighten(&reader, steps, &mut |_, _| {}).expect("a certificate");
    let seconds = start.elapsed().as_secs_f64();
    println!("both:    L ≤ {}, a margin {}", both.rms, both.margin.l2);
    if let Some((norms, ellipsoids)) = mean_pairs(&reader, both.domain.radius, steps) {
        println!(
            "pairs of outputs, mean: {norms:.4} by norms, {ellipsoids:.4} by ellipsoids, ℓ2: {:.1} % less",
            100.0 * (1.0 - ellipsoids / norms)
        );
    }
    println!("search:  {steps} steps and the proof {seconds:.1} s, {}", peak());
    let start = Instant::now();
    verify(&both, &reader).expect("it holds");
    println!("verify:  {:.1} s", start.elapsed().as_secs_f64());
}

/// The mean constant of a difference of two outputs, by norms and by ellipsoids that aim at it.
fn mean_pairs(reader: &Reader, radius: Upper, steps: usize) -> Option<(f64, f64)> {
    let norms = WeightNorms::new(reader, Method::Proven, &|_| {});
    let walk = walk(&reader.meta().graph, &norms, Some(radius)).expect("a bound");
    let found = ellipsoid::tighten(reader, radius, Aim::Pairs, steps, &mut |_, _| {});
    let found = found.expect("a checkpoint")?;
    let n = walk.outputs;
    let mean = |found| {
        let margins = Margins::new(&reader.meta().graph, &walk, &norms, found).expect("norms");
        let pairs = (0..n).flat_map(|i| (0..i).map(move |j| (i, j)));
        let sum: f64 = pairs.map(|(i, j)| margins.constant(i, j).to_f64()).sum();
        sum / (n * (n - 1) / 2) as f64
    };
    (n > 1).then(|| (mean(None), mean(Some(&found))))
}

/// Rate of a matmul of f64 of this side, in operations per second.
fn rate(n: usize) -> f64 {
    let (a, mut out) = (vec![0.5_f64; n * n], vec![0.0; n * n]);
    let mut once = || {
        let start = Instant::now();
        let a = Strided::dense(&a, n);
        matmul(&mut out, n, a, a, false, 1.0, true);
        start.elapsed().as_secs_f64()
    };
    let fastest = (0..9).map(|_| once()).fold(f64::INFINITY, f64::min);
    2.0 * (n as f64).powi(3) / fastest
}

/// Numbers around 0 that are the same in every run.
fn noise(n: usize) -> Vec<f64> {
    (0..n).map(|i| (i * 7919 % 2003) as f64 / 1001.5 - 1.0).collect()
}

/// What is counted: at each of the frequencies, of which those come in pairs, the sum of the coefficients
/// of AᴴA, `4·(2k − 1)²` operations of n² numbers, and the factorisation of a complex matrix, `4n³/3`.
fn convolutions() {
    let peak = rate(512);
    println!("one matmul of f64, 512 × 512: {:.0} GFLOP/s", peak / 1e9);
    println!("channels  side  kernel   edges   seconds   GFLOP/s   share   interval");
    for (n, side, k, circular) in [
        (32, 32, 3, true),
        (64, 16, 3, true),
        (64, 16, 3, false),
        (64, 32, 3, false),
        (128, 8, 3, false),
        (128, 16, 3, false),
        (256, 8, 3, false),
        (64, 16, 5, false),
        (256, 8, 1, false),
    ] {
        let convolution = Convolution { circular, ..Convolution::same(n, n, k) };
        let [rows, columns] = convolution.weight();
        let w = Matrix { rows, columns, data: noise(rows * columns) };
        let start = Instant::now();
        let found = convolution_norm(&w, &convolution, [side; 2], Method::Proven);
        let seconds = start.elapsed().as_secs_f64();
        let torus = if circular { side } else { side + k / 2 };
        let frequencies = if k == 1 { 1.0 } else { (torus * torus / 2 + 1) as f64 };
        let (n3, n2, terms) = ((n as f64).powi(3), (n * n) as f64, (2 * k - 1) as f64);
        let done = frequencies * (4.0 / 3.0 * n3 + 2.0 * terms * terms * n2);
        println!(
            "{n:>8} {side:>5} {k:>7}   {:>5} {seconds:>9.3} {:>9.1} {:>5.0} %   {:.1e}",
            if circular { "round" } else { "zeros" },
            done / seconds / 1e9,
            100.0 * done / seconds / peak,
            found.upper.to_f64() / found.lower - 1.0
        );
    }
}

/// Seconds of each part of a proof around an input, the second of two, when norms of weights are known.
fn around_inputs() {
    println!(
        "{:>22} {:>8} {:>9} {:>9} {:>9}   radius",
        "", "values", "margins", "radius", "all, s"
    );
    let gpt = |dim, layers, tokens| {
        let graph = Gpt::new(65, tokens, layers, BlockConfig::new(dim, 4)).graph();
        (format!("{layers} × {dim}, {tokens} tokens"), graph.expect("it fits"), vec![tokens, dim])
    };
    let perceptron = Graph::builder(Input::Vector { dim: 784 })
        .linear("a", 256)
        .activation(Function::Relu)
        .linear("b", 256)
        .activation(Function::Relu)
        .linear("c", 10)
        .build();
    let perceptron = ("784-256-256-10".to_string(), perceptron.expect("it fits"), vec![784]);
    for (name, graph, shape) in [
        perceptron,
        gpt(64, 1, 16),
        gpt(64, 3, 16),
        gpt(64, 3, 64),
        gpt(128, 3, 64),
        gpt(128, 6, 64),
        gpt(256, 3, 64),
    ] {
        let device = Device::Cpu;
        // As large as at a start, and none 0.
        let weight = |shape: &[usize]| {
            let size = (*shape.last().unwrap_or(&1) as f64).sqrt();
            let numbers = noise(shape.iter().product()).into_iter().map(|x| x / size).collect();
            Tensor::from_vec(numbers, shape, &device).expect("a weight")
        };
        let all = graph.parameters();
        let weights: Weights = all.iter().map(|p| (p.name.clone(), weight(&p.shape))).collect();
        let model = Model::new(graph, weights).expect("a model");
        let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
        let local = Local::new(&model, &norms, None).expect("in f64");
        let x = Tensor::from_vec(noise(shape.iter().product()), shape, &device).expect("an input");
        let mut times = [0.0; 3];
        let mut radius = 0.0;
        for _ in 0..2 {
            let start = Instant::now();
            let point = local.at(&x).expect("a point");
            let values = start.elapsed().as_secs_f64();
            let class = point.class().expect("a decision");
            let others: Vec<usize> = (0..point.outputs().len()).filter(|i| *i != class).collect();
            let claims = point.margins(class, &others).expect("margins");
            let margins = start.elapsed().as_secs_f64();
            radius = point.radius(&claims, Distance::L2);
            times = [values, margins - values, start.elapsed().as_secs_f64() - margins];
        }
        let [values, margins, radii] = times;
        let all: f64 = times.iter().sum();
        println!("{name:>22} {values:>8.3} {margins:>9.3} {radii:>9.3} {all:>9.3}   {radius:.2e}");
    }
}

fn attention(dim: usize, heads: usize, key_value_heads: usize, rotary: bool) -> Attention {
    let head_dim = dim / heads;
    let rotary = rotary.then_some(Rotary::new(10000.0, Pairing::Half));
    Attention {
        key_value_heads,
        bias: rotary.is_none(),
        output_bias: rotary.is_none(),
        rotary,
        ..Attention::new(dim, heads, head_dim)
    }
}

fn gpt2() -> Graph {
    let (dim, vocabulary, length) = (768, 50304, 1024);
    let norm =
        |name: &str| Node::new(name, Op::LayerNorm { dim, eps: 1e-5, bias: true, gain: true });
    let linear =
        |name: &str, inputs, outputs| Node::new(name, Op::Linear { inputs, outputs, bias: true });
    let residual =
        |name: String, body| Node::new(name, Op::Residual { skip: 1.0, branch: 1.0, body });
    let mut nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary, dim }),
        Node::new("positions", Op::Positions { length, dim }),
    ];
    for i in 0..12 {
        let mixer = Node::new("attention", Op::Attention(attention(dim, 12, 12, false)));
        nodes.push(residual(format!("a{i}"), vec![norm("norm"), mixer]));
        let gelu = Node::new("", Op::Activation { function: Function::GeluTanh, scale: 1.0 });
        let body =
            vec![norm("norm"), linear("up", dim, 4 * dim), gelu, linear("down", 4 * dim, dim)];
        nodes.push(residual(format!("m{i}"), body));
    }
    nodes.push(norm("norm"));
    nodes.push(Node::new("head", Op::Linear { inputs: dim, outputs: vocabulary, bias: false }));
    Graph::new(Input::tokens(length), nodes).expect("it fits together")
}

fn llama() -> Graph {
    let (dim, hidden, vocabulary) = (2048, 5632, 32000);
    let norm = |name: &str| Node::new(name, Op::RmsNorm { dim, eps: 1e-5, gain: true });
    let residual =
        |name: String, body| Node::new(name, Op::Residual { skip: 1.0, branch: 1.0, body });
    let mut nodes = vec![Node::new("embedding", Op::Embedding { vocabulary, dim })];
    for i in 0..22 {
        let mixer = Node::new("attention", Op::Attention(attention(dim, 32, 4, true)));
        nodes.push(residual(format!("a{i}"), vec![norm("norm"), mixer]));
        let mlp =
            Node::new("mlp", Op::GatedMlp { dim, hidden, function: Function::Silu, bias: false });
        nodes.push(residual(format!("m{i}"), vec![norm("norm"), mlp]));
    }
    nodes.push(norm("norm"));
    nodes.push(Node::new("head", Op::Linear { inputs: dim, outputs: vocabulary, bias: false }));
    Graph::new(Input::tokens(2048), nodes).expect("it fits together")
}

fn make(shape: &str, file: &Path) {
    let (graph, dtype) =
        if shape == "gpt2" { (gpt2(), DType::F32) } else { (llama(), DType::BF16) };
    let random = |shape: &[usize]| Tensor::randn(0f32, 0.02, shape, &Device::Cpu)?.to_dtype(dtype);
    let weights: Result<Weights, candle_core::Error> =
        graph.parameters().iter().map(|p| Ok((p.name.clone(), random(&p.shape)?))).collect();
    let model = Model::new(graph, weights.expect("random weights")).expect("they fit");
    println!("{shape}: {:.0} million parameters, {dtype:?}", model.parameter_count() as f64 / 1e6);
    let provenance = Provenance { version: "bench".into(), ..Provenance::default() };
    let meta = Meta {
        format: checkpoint::FORMAT,
        graph: model.graph().clone(),
        config: serde_json::Value::Null,
        tokenizer: None,
        classes: Vec::new(),
        provenance,
    };
    checkpoint::save(file, &model, &meta).expect("room on disk");
}

fn prove(file: &Path) {
    let start = Instant::now();
    let reader = Reader::open(file).expect("a checkpoint");
    let certificate =
        certify(&reader, Method::Proven, Formula::Sound, None).expect("a certificate");
    let seconds = start.elapsed().as_secs_f64();
    let width = |lower: f64, upper: f64| if lower > 0.0 { upper / lower - 1.0 } else { 0.0 };
    let widest = certificate
        .weights
        .iter()
        .map(|row| width(row.lower, row.upper.to_f64()))
        .fold(0.0, f64::max);
    println!("certificate: {seconds:.1} s, {}, L ≤ {}", peak(), certificate.rms);
    println!("             {} norms, widest interval {widest:.1e}", certificate.weights.len());
}

fn svd(file: &Path) {
    let reader = Reader::open(file).expect("a checkpoint");
    let start = Instant::now();
    let mut count = 0;
    for parameter in reader.meta().graph.parameters() {
        if parameter.geometry == Geometry::Vector {
            continue;
        }
        let tensor = reader.tensor(&parameter.name).expect("a weight");
        let m = Matrix::from_tensor(&parameter.name, &tensor).expect("a matrix");
        let m = Mat::from_fn(m.rows, m.columns, |i, j| m.data[i * m.columns + j]);
        std::hint::black_box(m.singular_values().expect("a decomposition"));
        count += 1;
    }
    println!("SVD of {count} matrices: {:.1} s, {}", start.elapsed().as_secs_f64(), peak());
}

/// The peak memory of this process.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    match line.and_then(|rest| rest.trim().split(' ').next()?.parse::<f64>().ok()) {
        Some(kib) => format!("peak memory {:.0} MiB", kib / 1024.0),
        None => "peak memory unknown here".into(),
    }
}
