//! Nobody breaks the bound: gradient search for the steepest pair, over random networks, against
//! the certificate.

use candle_core::{Device, Tensor};
use lipschitz_certify::certificate::{Certificate, Formula, certify};
use lipschitz_certify::probe;
use lipschitz_certify::spectral::Method;
use lipschitz_certify::upper::Upper;
use lipschitz_certify::verify::verify;
use lipschitz_nn::graph::{Attention, Function, Graph, Input, Node, NormKind, Op, Span};
use lipschitz_nn::{Model, Weights};
use lipschitz_tests::{
    Dice, random_convolution_graph, random_graph, random_image_graph, random_model,
};

/// Pairs compared without any search, a network.
const PAIRS: usize = 90;

/// The largest ℓ2 norm of a token (of the whole for images) of each element of a batch.
fn norms(x: &Tensor, tokens: bool) -> Vec<f64> {
    let x = if tokens { x.clone() } else { x.flatten_from(1).unwrap().unsqueeze(1).unwrap() };
    x.sqr().unwrap().sum(2).unwrap().sqrt().unwrap().max(1).unwrap().to_vec1().unwrap()
}

/// Scaled so that every token (or image) has ℓ2 norm at most `radius`.
fn inside(x: &Tensor, tokens: bool, radius: f64) -> Tensor {
    let flat = if tokens { x.clone() } else { x.flatten_from(1).unwrap() };
    let size = flat.sqr().unwrap().sum_keepdim(candle_core::D::Minus1).unwrap().sqrt().unwrap();
    let factor = (size.recip().unwrap() * (radius * (1.0 - 1e-12))).unwrap().minimum(1f64).unwrap();
    flat.broadcast_mul(&factor).unwrap().reshape(x.dims()).unwrap()
}

/// Random pairs, near and far, in the domain: all outputs, single outputs and margins stay below
/// their constants.
fn random_pairs(
    model: &Model,
    c: &Certificate,
    shape: &[usize],
    tokens: bool,
    dice: &mut Dice,
    what: &str,
) {
    let radius = c.domain.radius.to_f64().min(1e3);
    let dims: Vec<usize> = [&[PAIRS], shape].concat();
    let a = inside(&(dice.tensor(&dims, 1.0) * radius).unwrap(), tokens, radius);
    let step = dice.pick(&[1e-3, 0.1, 3.0]) * radius;
    let b = inside(&(&a + (dice.tensor(&dims, 1.0) * step).unwrap()).unwrap(), tokens, radius);
    let run = |x: &Tensor| {
        if tokens { model.forward_embeddings(x).unwrap() } else { model.forward(x).unwrap() }
    };
    let change = (run(&a) - run(&b)).unwrap();
    let (apart, moved) = (norms(&(&a - &b).unwrap(), tokens), norms(&change, tokens));
    let outputs: Vec<Vec<f64>> = (0..PAIRS)
        .map(|i| change.get(i).unwrap().flatten_all().unwrap().to_vec1().unwrap())
        .collect();
    let width = *change.dims().last().unwrap();
    for i in 0..PAIRS {
        let holds = |found: f64, constant: Upper, name: &str| {
            let allowed = constant.to_f64() * apart[i] * (1.0 + 1e-6) + 1e-9;
            assert!(found <= allowed, "{what}: {name} moved by {found}, allowed {allowed}");
        };
        holds(moved[i], c.l2, "the output");
        for token in outputs[i].chunks(width) {
            let (low, high) =
                token.iter().fold((f64::MAX, f64::MIN), |(l, h), x| (l.min(*x), h.max(*x)));
            holds(high.max(-low), c.logit.l2, "an output");
            holds(high - low, c.margin.l2, "a margin");
        }
    }
}

/// What a search finds, and the bound: what is certain is not above it at all, and what was computed is
/// not by more than rounding.
fn searched(model: &Model, c: &Certificate, starts: &Tensor, what: &str) -> (f64, f64) {
    let radius = c.domain.radius.to_f64();
    let found = probe::search(model, starts, radius, 20).unwrap_or_else(|e| panic!("{e}: {what}"));
    let bound = c.l2.to_f64();
    assert!(found.at_least <= bound, "{} is certain: {what}", found.at_least);
    let found = found.sensitivity;
    assert!(found <= bound * (1.0 + 1e-6), "found {found}, certified {bound}: {what}");
    (found, bound)
}

/// Over 1,400 networks of every node kind, 126,000 random pairs and a gradient search on each; also
/// says how tight the bounds are, so that a vacuous bound would show.
#[test]
fn no_pair_is_steeper_than_the_certificate() {
    let (mut ratios, mut gains) = (Vec::new(), Vec::new());
    let mut kinds = std::collections::BTreeSet::new();
    let mut tried = vec![0; Function::ALL.len()];
    for seed in 0..1400 {
        let mut dice = Dice::new(seed);
        let tokens = seed % 7 > 1;
        let graph = if tokens { random_graph(&mut dice) } else { random_image_graph(&mut dice) };
        let json = serde_json::to_string(&graph).unwrap();
        for kind in json.split("\"op\":\"").skip(1) {
            kinds.insert(kind.split('"').next().unwrap().to_string());
        }
        for (function, tried) in Function::ALL.iter().zip(&mut tried) {
            *tried += json
                .matches(&format!("\"function\":{}", serde_json::to_string(function).unwrap()))
                .count();
        }
        let model = random_model(graph, &mut dice);
        let given = (!tokens).then(|| dice.pick(&[0.3, 1.0, 5.0]));
        let by_norms = certify(&model, Method::Proven, Formula::Sound, given).unwrap();
        let certificate = by_norms.clone().tighten(&model, 5, &mut |_, _| {}).unwrap();
        let shape = if tokens {
            vec![1 + dice.below(4), model.weights()["embedding.weight"].dim(1).unwrap()]
        } else {
            vec![2, 4, 4]
        };
        let what = format!("seed {seed}, {json}");
        random_pairs(&model, &certificate, &shape, tokens, &mut dice, &what);
        let starts = dice.tensor(&[&[3], &shape[..]].concat(), 1.0);
        let (found, bound) = searched(&model, &certificate, &starts, &what);
        if bound.is_finite() && bound > 0.0 {
            ratios.push(found / bound);
        }
        // The ellipsoids alone, also where norms are better.
        let Some(ellipsoids) = &certificate.ellipsoids else { continue };
        let (bound, norms) = (ellipsoids.l2.to_f64(), by_norms.l2.to_f64());
        assert!(found <= bound * (1.0 + 1e-6), "found {found}, ellipsoids {bound}: {what}");
        if norms.is_finite() && bound > 0.0 {
            gains.push(norms / bound);
        }
        if seed % 20 == 0 {
            verify(&certificate, &model).unwrap_or_else(|e| panic!("{e}: {what}"));
        }
    }
    assert_eq!(kinds.len(), 24, "a node kind was never tried: {kinds:?}");
    assert!(tried.iter().all(|count| *count > 20), "a function was hardly tried: {tried:?}");
    assert!(ratios.len() > 1200, "only {} finite bounds", ratios.len());
    gains.sort_by(f64::total_cmp);
    let (median, best) = (gains[gains.len() / 2], gains[gains.len() - 1]);
    println!("norms / ellipsoids: {} networks, median {median:.3}, largest {best:.1}", gains.len());
    assert!(gains.len() > 1000 && median > 1.0, "{} ellipsoids, {median}", gains.len());
    ratios.sort_by(f64::total_cmp);
    let (median, best) = (ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
    println!("found / certified: median {median:.3}, largest {best:.6}");
    assert!(best > 0.9, "no bound is nearly met, so the search finds nothing: {best}");
}

/// The same for networks of convolutions: 600 of them, by certificates that are proven again.
#[test]
fn no_pair_of_images_is_steeper_through_convolutions() {
    let (mut ratios, mut kinds) = (Vec::new(), std::collections::BTreeSet::new());
    for seed in 0..600 {
        let mut dice = Dice::new(50_000 + seed);
        let graph = random_convolution_graph(&mut dice);
        let json = serde_json::to_string(&graph).unwrap();
        for kind in json.split("\"op\":\"").skip(1) {
            kinds.insert(kind.split('"').next().unwrap().to_string());
        }
        let what = format!("seed {seed}, {json}");
        let model = random_model(graph, &mut dice);
        let given = Some(dice.pick(&[0.3, 1.0, 5.0]));
        let certificate = certify(&model, Method::Proven, Formula::Sound, given).unwrap();
        random_pairs(&model, &certificate, &[2, 4, 4], false, &mut dice, &what);
        let starts = dice.tensor(&[3, 2, 4, 4], 1.0);
        let (found, bound) = searched(&model, &certificate, &starts, &what);
        if bound.is_finite() && bound > 0.0 {
            ratios.push(found / bound);
        }
        if seed % 20 == 0 {
            verify(&certificate, &model).unwrap_or_else(|e| panic!("{e}: {what}"));
        }
    }
    for kind in ["conv2d", "shift", "space_to_depth", "pool", "global_pool", "max_min", "patches"] {
        assert!(kinds.contains(kind), "never tried: {kind}");
    }
    ratios.sort_by(f64::total_cmp);
    let (median, best) = (ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
    println!("found / certified: median {median:.3}, largest {best:.6}, of {}", ratios.len());
    assert!(ratios.len() > 500 && best > 0.9, "{} {best}", ratios.len());
}

/// A network of vectors with given weights, and its constant.
fn constant(nodes: Vec<Node>, inputs: usize, weight: impl Fn(&str) -> Tensor) -> f64 {
    let graph = Graph::new(Input::Vector { dim: inputs }, nodes).unwrap();
    let weights: Weights =
        graph.parameters().iter().map(|p| (p.name.clone(), weight(&p.name))).collect();
    certify(&Model::new(graph, weights).unwrap(), Method::Proven, Formula::Sound, None)
        .unwrap()
        .l2
        .to_f64()
}

/// Where the true constant is known in closed form, the certified one is not below it and hardly
/// above: a slope divided away twice, a scale forgotten or an estimate taken for a norm would show.
#[test]
fn known_constants_are_met() {
    let number = |x: f64| Tensor::new(&[[x]], &Device::Cpu).unwrap();
    let linear = |name: &str| Node::new(name, Op::Linear { inputs: 1, outputs: 1, bias: false });
    let near = |found: f64, truth: f64| {
        assert!((truth..truth * (1.0 + 1e-6)).contains(&found), "{found} {truth}")
    };
    // GELU over 1.1289 between two linear maps of one number: its largest slope is a hair above 1.
    let gelu = Node::new("", Op::Activation { function: Function::GeluErf, scale: 1.0 / 1.1289 });
    near(
        constant(vec![linear("a"), gelu, linear("b")], 1, |_| number(3.0)),
        9.0 * 1.128_904_145 / 1.1289,
    );
    // |x| between two has slopes 1 and −1.
    let abs = Node::new("", Op::Activation { function: Function::Abs, scale: 0.5 });
    near(constant(vec![linear("a"), abs, linear("b")], 1, |_| number(3.0)), 4.5);
    // Scales at the end and in the middle.
    let scale = |factor| Node::new("", Op::Scale { factor });
    near(
        constant(vec![linear("a"), scale(-0.5), linear("b"), scale(7.0)], 1, |_| number(2.0)),
        14.0,
    );
    // Five hundred singular values within 1e-6 of 1, where an iteration from below stays below.
    let n = 500;
    let diagonal: Vec<f64> = (0..n * n)
        .map(|k| if k % (n + 1) == 0 { 1.0 - 1e-6 * (k / n) as f64 / n as f64 } else { 0.0 })
        .collect();
    let diagonal = Tensor::from_vec(diagonal, (n, n), &Device::Cpu).unwrap();
    let wide = Node::new("a", Op::Linear { inputs: n, outputs: n, bias: false });
    near(constant(vec![wide], n, |_| diagonal.clone()), 1.0);
}

/// A network of vectors with given weights, and its certificate for inputs of ℓ2 norm up to
/// `radius`.
fn certified(
    nodes: Vec<Node>,
    inputs: usize,
    radius: Option<f64>,
    weight: impl Fn(&str) -> Tensor,
) -> (Model, Certificate) {
    let graph = Graph::new(Input::Vector { dim: inputs }, nodes).unwrap();
    let weights: Weights =
        graph.parameters().iter().map(|p| (p.name.clone(), weight(&p.name))).collect();
    let model = Model::new(graph, weights).unwrap();
    let certificate = certify(&model, Method::Proven, Formula::Sound, radius).unwrap();
    (model, certificate)
}

/// Each function between two linear maps of one number: the steepest of 40,000 pairs of neighbours
/// in the domain is not above the constant, and nearly reaches it.
#[test]
fn the_steepest_place_of_each_function() {
    let slopes = [0.0, 0.2, 2.0].map(|slope| Function::LeakyRelu { slope });
    let alphas = [1.0, -0.5, 3.0].map(|alpha| Function::Elu { alpha });
    for function in Function::ALL.into_iter().chain(slopes).chain(alphas) {
        for (radius, factor) in [(0.5, 1.0), (4.0, 3.0)] {
            let linear =
                |name: &str| Node::new(name, Op::Linear { inputs: 1, outputs: 1, bias: false });
            let phi = Node::new("", Op::Activation { function, scale: -0.7 });
            let nodes = vec![linear("a"), phi, linear("b")];
            let weight = |_: &str| Tensor::new(&[[factor]], &Device::Cpu).unwrap();
            let (model, c) = certified(nodes, 1, Some(radius), weight);
            let n = 40_000;
            let at: Vec<f64> =
                (0..=n).map(|i| radius * (2.0 * i as f64 / n as f64 - 1.0)).collect();
            let x = Tensor::from_vec(at.clone(), (n + 1, 1), &Device::Cpu).unwrap();
            let y = model.forward(&x).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let steepest =
                (0..n).map(|i| ((y[i + 1] - y[i]) / (at[i + 1] - at[i])).abs()).fold(0.0, f64::max);
            let bound = c.l2.to_f64();
            assert!(steepest <= bound * (1.0 + 1e-9), "{function:?}: {steepest} above {bound}");
            // Over the whole domain of the function, so that its steepest place is there.
            if radius == 4.0 {
                assert!(steepest > 0.99 * bound, "{function:?}: {steepest} far below {bound}");
            }
            let largest = y.iter().fold(0.0, |m: f64, y| m.max(y.abs()));
            let row = c.nodes.last().unwrap();
            assert!(largest <= row.radius.to_f64() * (1.0 + 1e-9), "{function:?}: {largest}");
        }
    }
}

/// Branches side by side whose steepest directions are one direction: constants add, and nothing
/// less holds.
#[test]
fn branches_add_up() {
    let near = |found: Upper, truth: f64| {
        assert!((truth..truth * (1.0 + 1e-6)).contains(&found.to_f64()), "{found} {truth}")
    };
    let linear = |name: &str, bias| Node::new(name, Op::Linear { inputs: 2, outputs: 2, bias });
    let sum = |branches| Node::new("sum", Op::Parallel { branches });
    let diagonal = |a: f64, b: f64| Tensor::new(&[[a, 0.0], [0.0, b]], &Device::Cpu).unwrap();
    let vector = |a: f64, b: f64| Tensor::new(&[a, b], &Device::Cpu).unwrap();
    let weight = |name: &str| match name {
        "sum.a.weight" | "all.sum.a.weight" => diagonal(1.5, 0.5),
        "sum.b.weight" | "all.sum.b.weight" => diagonal(2.0, 3.0),
        "sum.c.inner.weight" => diagonal(1.0, 0.0),
        "sum.b.bias" => vector(3.0, 4.0),
        "norm.weight" => vector(7.0, 1.0),
        "norm.bias" => vector(0.0, 5.0),
        other => panic!("{other}"),
    };
    // 1.5 + 3 + 2 · 1, on a ball of radius 2: 2 (1.5 + 3 + 2) + 5.
    let scaled = vec![linear("inner", false), Node::new("", Op::Scale { factor: -2.0 })];
    let c = Node::new("c", Op::Sequential { body: scaled });
    let branches = sum(vec![linear("a", false), linear("b", true), c]);
    let (_, found) = certified(vec![branches], 2, Some(2.0), weight);
    near(found.l2, 6.5);
    near(found.nodes.last().unwrap().radius, 18.0);
    // The same direction is the steepest of both, so that a pair reaches the sum, in and out of a
    // residual.
    let both = || sum(vec![linear("a", false), linear("a2", false)]);
    let body = vec![both()];
    let residual = Node::new("all", Op::Residual { skip: 1.0, branch: 1.0, body });
    for (nodes, truth) in [(vec![both()], 3.0), (vec![residual], 4.0)] {
        let (model, c) = certified(nodes, 2, Some(2.0), |_| diagonal(1.5, 0.5));
        let x = Tensor::new(&[[1.0, 0.3], [-1.0, 0.3]], &Device::Cpu).unwrap();
        let y = model.forward(&x).unwrap().to_vec2::<f64>().unwrap();
        let steep = (y[0][0] - y[1][0]).hypot(y[0][1] - y[1][1]) / 2.0;
        assert!((steep - truth).abs() < 1e-12 && steep <= c.l2.to_f64(), "{steep} {}", c.l2);
        near(c.l2, truth);
    }
    // A norm leaves its gain to branches that begin with weights: ‖W diag γ‖ of each,
    // 10.5 and 14, over ½; not 7 (1.5 + 3).
    let norm = || Node::new("norm", Op::LayerNorm { dim: 2, eps: 0.25, bias: true, gain: true });
    let branches = sum(vec![linear("a", false), linear("b", false)]);
    let (_, found) = certified(vec![norm(), branches], 2, None, weight);
    near(found.l2, 24.5 / 0.5);
    // x itself is a branch without weights: the gain stays with the norm.
    let skip = Node::new("skip", Op::Sequential { body: vec![] });
    let (_, found) = certified(vec![norm(), sum(vec![linear("a", false), skip])], 2, None, weight);
    near(found.l2, 7.0 / 0.5 * 2.5);
    near(found.nodes[0].lipschitz, 7.0 / 0.5);
    // Without a gain there is none to fold.
    let plain = Node::new("norm", Op::RmsNorm { dim: 2, eps: 0.25, gain: false });
    let branches = sum(vec![linear("a", false), linear("b", false)]);
    let (_, found) = certified(vec![plain, branches], 2, None, weight);
    near(found.l2, 4.5 / 0.5);
}

/// Near 0, a normalised vector is the vector over ε.
#[test]
fn normalising_is_steepest_at_zero() {
    for eps in [1e-12, 0.3, 5.0] {
        let linear = Node::new("a", Op::Linear { inputs: 2, outputs: 2, bias: false });
        let nodes = vec![linear, Node::new("", Op::Normalise { eps })];
        let weight = |_: &str| Tensor::eye(2, candle_core::DType::F64, &Device::Cpu).unwrap();
        let (model, c) = certified(nodes, 2, None, weight);
        let x = Tensor::new(&[[0.5 * eps, 0.0], [-0.5 * eps, 0.0]], &Device::Cpu).unwrap();
        let y = model.forward(&x).unwrap().to_vec2::<f64>().unwrap();
        let steep = (y[0][0] - y[1][0]) / eps;
        let bound = c.l2.to_f64();
        assert!(steep <= bound * (1.0 + 1e-12) && steep > bound * (1.0 - 1e-6), "{steep} {bound}");
        assert_eq!(c.nodes[1].radius.to_f64(), 1.0);
    }
}

/// A square has a constant where its input is bounded, by elements behind a linear map, and none
/// elsewhere: the node is named.
#[test]
fn squares_want_a_bound() {
    let n = 50;
    let linear = Node::new("up", Op::Linear { inputs: n, outputs: n, bias: false });
    let square = Node::new("square", Op::Activation { function: Function::Relu2, scale: 1.0 });
    let eye = |_: &str| Tensor::eye(n, candle_core::DType::F64, &Device::Cpu).unwrap();
    let (_, c) = certified(vec![linear.clone(), square.clone()], n, None, eye);
    assert!(!c.l2.is_finite());
    assert!(c.warnings.iter().any(|text| text.contains("square (activation)")), "{:?}", c.warnings);
    // Elements of a token of norm 3 are up to 3; of J/√n times it, too, but of J/n, 3/√n.
    let (_, c) = certified(vec![linear.clone(), square.clone()], n, Some(3.0), eye);
    assert!((6.0..6.0 + 1e-6).contains(&c.l2.to_f64()), "{}", c.l2);
    let mean = |_: &str| Tensor::full(1.0 / n as f64, (n, n), &Device::Cpu).unwrap();
    let (model, c) = certified(vec![linear, square], n, Some(3.0), mean);
    let truth = 2.0 * 3.0 / (n as f64).sqrt();
    assert!((truth..truth * (1.0 + 1e-6)).contains(&c.l2.to_f64()), "{} {truth}", c.l2);
    // Met at the border of the ball.
    let at = |r: f64| {
        let x = Tensor::full(r / (n as f64).sqrt(), (1, n), &Device::Cpu).unwrap();
        model.forward(&x).unwrap()
    };
    let moved = (at(3.0) - at(3.0 - 1e-6)).unwrap().sqr().unwrap().sum_all().unwrap();
    let steep = moved.to_scalar::<f64>().unwrap().sqrt() / 1e-6;
    assert!(steep <= c.l2.to_f64() && steep > 0.999 * truth, "{steep} {}", c.l2);
}

/// A node's row states the node's own constant and radius, a folded gain or not.
#[test]
fn rows_of_norms_speak_of_the_whole_norm() {
    let norm = Node::new("norm", Op::LayerNorm { dim: 2, eps: 0.25, bias: true, gain: true });
    let head = Node::new("head", Op::Linear { inputs: 2, outputs: 1, bias: false });
    let graph = Graph::new(Input::Vector { dim: 2 }, vec![norm, head]).unwrap();
    let weight = |name: &str| match name {
        "norm.weight" => Tensor::new(&[3.0, 1.0], &Device::Cpu).unwrap(),
        "norm.bias" => Tensor::new(&[0.0, 7.0], &Device::Cpu).unwrap(),
        _ => Tensor::new(&[[0.0, 1.0]], &Device::Cpu).unwrap(),
    };
    let weights: Weights =
        graph.parameters().iter().map(|p| (p.name.clone(), weight(&p.name))).collect();
    let c = certify(&Model::new(graph, weights).unwrap(), Method::Proven, Formula::Sound, None)
        .unwrap();
    let near = |found: Upper, truth: f64| {
        assert!((truth..truth * (1.0 + 1e-6)).contains(&found.to_f64()), "{found} {truth}")
    };
    near(c.nodes[0].lipschitz, 3.0 / 0.5);
    near(c.nodes[0].cumulative, 3.0 / 0.5);
    near(c.nodes[0].radius, 3.0 * 2f64.sqrt() + 7.0);
    // The head reads the second number alone, whose gain is 1.
    near(c.l2, 1.0 / 0.5);
}

/// More rows than are compared in pairs.
#[test]
fn margins_of_many_outputs_hold() {
    let n = 1100;
    let head = Node::new("head", Op::Linear { inputs: 2, outputs: n, bias: false });
    let graph = Graph::new(Input::Vector { dim: 2 }, vec![head]).unwrap();
    let rows: Vec<f64> =
        (0..n).flat_map(|i| if i == 400 { [2.0, 0.0] } else { [-1.0, 0.1] }).collect();
    let weights = Weights::from([(
        "head.weight".to_string(),
        Tensor::from_vec(rows, (n, 2), &Device::Cpu).unwrap(),
    )]);
    let c = certify(&Model::new(graph, weights).unwrap(), Method::Proven, Formula::Sound, None)
        .unwrap();
    let true_margin = (3.0f64.powi(2) + 0.01).sqrt();
    assert!(
        c.margin.l2.to_f64() >= true_margin && c.logit.l2.to_f64() >= 2.0,
        "{:?} {:?}",
        c.margin,
        c.logit
    );
}

/// Identity weights, `heads` heads of width 4, tokens of RMS norm at most 1.
fn identity_attention(heads: usize) -> Model {
    let head_dim = 4;
    let dim = heads * head_dim;
    let attention = Attention {
        dim,
        heads,
        key_value_heads: heads,
        head_dim,
        logit_scale: 1.0 / head_dim as f64,
        output_scale: 1.0 / 3.0,
        causal: false,
        rotary: None,
        bias: false,
        output_bias: false,
        query_key_norm: None,
        ..Attention::new(dim, heads, head_dim)
    };
    let nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary: dim, dim }),
        Node::new("attention", Op::Attention(attention)),
    ];
    let graph = Graph::new(Input::tokens(8), nodes).unwrap();
    let identity = Tensor::eye(dim, candle_core::DType::F64, &Device::Cpu).unwrap();
    let weight = |name: &str| {
        let scale = if name.starts_with("embedding") { (dim as f64).sqrt() } else { 1.0 };
        (identity.clone() * scale).unwrap()
    };
    let weights: Weights =
        graph.parameters().iter().map(|p| (p.name.clone(), weight(&p.name))).collect();
    Model::new(graph, weights).unwrap()
}

/// Queries that are a shift alone still weigh the keys: without it in their size, values alone
/// would count, with a constant of 1.
#[test]
fn a_shift_of_queries_counts() {
    for span in [Span::Head, Span::EachHead, Span::Heads] {
        for kind in [NormKind::Rms, NormKind::Layer] {
            let a = Attention {
                causal: false,
                query_key_norm: Some(1.0),
                query_key_span: span,
                query_key_kind: kind,
                query_key_shift: true,
                ..Attention::new(4, 2, 2)
            };
            let nodes = vec![
                Node::new("embedding", Op::Embedding { vocabulary: 4, dim: 4 }),
                Node::new("a", Op::Attention(a)),
            ];
            let graph = Graph::new(Input::tokens(8), nodes).unwrap();
            let weight = |name: &str, shape: &[usize]| match (name, shape) {
                ("a.query_norm.weight" | "a.key_norm.bias", _) => {
                    Tensor::zeros(shape, candle_core::DType::F64, &Device::Cpu).unwrap()
                }
                ("a.query_norm.bias", [n]) => {
                    let alternating = (0..*n).map(|i| if i % 2 == 0 { 4.0 } else { -4.0 });
                    Tensor::from_vec(alternating.collect::<Vec<f64>>(), *n, &Device::Cpu).unwrap()
                }
                (_, [n]) => Tensor::ones(*n, candle_core::DType::F64, &Device::Cpu).unwrap(),
                _ => Tensor::eye(4, candle_core::DType::F64, &Device::Cpu).unwrap(),
            };
            let weights: Weights = graph
                .parameters()
                .iter()
                .map(|p| (p.name.clone(), weight(&p.name, &p.shape)))
                .collect();
            let model = Model::new(graph, weights).unwrap();
            let c = certify(&model, Method::Proven, Formula::Sound, Some(2.0)).unwrap();
            let starts = Dice::new(5).tensor(&[8, 2, 4], 2.0);
            let found = probe::search(&model, &starts, 2.0, 120).unwrap().sensitivity;
            let bound = c.l2.to_f64();
            assert!(found > 1.2 && found <= bound, "{span:?}, {kind:?}: {found}, {bound}");
        }
    }
}

/// A layer norm over all heads takes their mean from each: the queries of a head whose own map is zero are
/// as large as those of the others make them.
#[test]
fn the_mean_of_other_heads_counts() {
    let a = Attention {
        causal: false,
        logit_scale: 1.0,
        query_key_norm: Some(1.0),
        query_key_span: Span::Heads,
        query_key_kind: NormKind::Layer,
        ..Attention::new(1, 2, 1)
    };
    let nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary: 2, dim: 1 }),
        Node::new("a", Op::Attention(a)),
    ];
    let graph = Graph::new(Input::tokens(2), nodes).unwrap();
    let weight = |name: &str, shape: &[usize]| {
        let all: Vec<f64> = match name {
            "embedding.weight" => vec![1.0, -1.0],
            "a.query.weight" | "a.key.weight" => vec![0.0, 2.0],
            "a.value.weight" | "a.output.weight" => vec![1.0, 0.0],
            _ => vec![10.0; 2],
        };
        Tensor::from_vec(all, shape, &Device::Cpu).unwrap()
    };
    let weights: Weights =
        graph.parameters().iter().map(|p| (p.name.clone(), weight(&p.name, &p.shape))).collect();
    let model = Model::new(graph, weights).unwrap();
    let bound = certify(&model, Method::Proven, Formula::Sound, None).unwrap().l2.to_f64();
    let starts = Tensor::new(&[[[1.0], [0.0]]], &Device::Cpu).unwrap();
    let found = probe::search(&model, &starts, 1.0, 120).unwrap().sensitivity;
    assert!(found > 10.0 && found <= bound, "{found}, {bound}");
}

/// The published formula puts whole-matrix norms into the formula of one head: with eight heads a
/// pair breaks it.
#[test]
fn the_published_formula_is_exceeded_and_ours_is_not() {
    let mut found = Vec::new();
    for heads in [1, 2, 4, 8] {
        let model = identity_attention(heads);
        let published = certify(&model, Method::Proven, Formula::Paper, None).unwrap();
        let sound = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
        assert!((published.rms.to_f64() - 1.0).abs() < 1e-6, "{}", published.rms);
        assert!(!published.proven && !published.warnings.is_empty());
        let radius = sound.domain.radius.to_f64();
        let dim = heads * 4;
        let mut best: f64 = 0.0;
        // Tokens at two opposite points make the covariance in the bound large.
        for seed in 0..6 {
            let starts =
                (Dice::new(seed).tensor(&[8, 2 + seed as usize, dim], 1.0) * radius).unwrap();
            best = best.max(probe::search(&model, &starts, radius, 120).unwrap().sensitivity);
        }
        assert!(
            best <= sound.l2.to_f64() * (1.0 + 1e-6),
            "{heads} heads: found {best}, certified {}",
            sound.l2
        );
        found.push(best);
    }
    println!("found with 1, 2, 4, 8 heads: {found:.2?}; published: 1.00");
    assert!(found[0] <= 1.0 && found[3] > 1.5, "{found:?}");
}

/// Heads at different offsets read different tokens, so their constants add up like squares: a pair
/// that moves two tokens along the best direction of the head that reads each reaches it. As one
/// matrix, the same heads have a smaller norm, which is no bound.
#[test]
fn heads_at_offsets_reach_their_constant() {
    let heads = Op::OffsetAttention { inputs: 3, head_dim: 2, offsets: vec![0, 1] };
    let nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary: 5, dim: 3 }),
        Node::new("o", heads),
    ];
    let graph = Graph::new(Input::tokens(6), nodes).unwrap();
    let rows =
        |rows: &[[f64; 3]]| Tensor::from_vec(rows.concat(), (rows.len(), 3), &Device::Cpu).unwrap();
    let value = rows(&[[1.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.5]]);
    let weights: Weights = [
        ("embedding.weight", rows(&[[1.0, -2.0, 2.0]; 5])),
        ("o.value.weight", value),
        ("o.shares.weight", Tensor::new(&[[0.8, -0.6]], &Device::Cpu).unwrap()),
    ]
    .into_iter()
    .map(|(name, w)| (name.to_string(), w))
    .collect();
    let model = Model::new(graph, weights).unwrap();
    let certificate = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
    let both = certificate.clone().tighten(&model, 5, &mut |_, _| {}).unwrap();
    let starts = Dice::new(4).tensor(&[6, 3, 3], 1.0);
    let found = probe::search(&model, &starts, 3.0, 100).unwrap().sensitivity;
    for bound in [certificate.l2.to_f64(), both.ellipsoids.as_ref().unwrap().l2.to_f64()] {
        assert!(found <= bound * (1.0 + 1e-6), "{found} {bound}");
        assert!((1.0..1.0 + 1e-6).contains(&bound), "{bound}");
    }
    assert!(found > 0.99, "only {found}");
    verify(&both, &model).unwrap();
}
