//! Ellipsoids against attacks: nobody breaks the bound, and it is nearly met where it can be.

use candle_core::{Device, Tensor};
use lipschitz_certify::certificate::{Certificate, Formula, certify};
use lipschitz_certify::ellipsoid::{self, Weights as Matrices};
use lipschitz_certify::probe;
use lipschitz_certify::source::Source;
use lipschitz_certify::spectral::Method;
use lipschitz_certify::upper::Upper;
use lipschitz_certify::verify::verify;
use lipschitz_nn::graph::{Attention, Function, Graph, Input, Node, Op, PositionBias};
use lipschitz_nn::{Model, Weights};
use lipschitz_tests::{Dice, random_graph, random_image_graph, random_model};
use serde_json::{Value, json};

fn tensor(rows: &[&[f64]]) -> Tensor {
    let (n, m) = (rows.len(), rows[0].len());
    Tensor::from_vec(rows.concat(), (n, m), &Device::Cpu).unwrap()
}

fn linear(name: &str, inputs: usize, outputs: usize) -> Node {
    Node::new(name, Op::Linear { inputs, outputs, bias: false })
}

fn residual(name: &str, skip: f64, branch: f64, body: Vec<Node>) -> Node {
    Node::new(name, Op::Residual { skip, branch, body })
}

fn activation(function: Function) -> Node {
    Node::new("", Op::Activation { function, scale: 1.0 })
}

/// The certificate by norms, and the constant that ellipsoids give alone.
fn constants(model: &Model, steps: usize) -> (Certificate, Certificate, f64) {
    let norms = certify(model, Method::Proven, Formula::Sound, None).unwrap();
    let both = norms.clone().tighten(model, steps, &mut |_, _| {}).unwrap();
    let alone = both.ellipsoids.as_ref().map_or(f64::INFINITY, |e| e.l2.to_f64());
    (norms, both, alone)
}

/// The steepest pair that is found from several starts, for sequences of one to six tokens.
fn found(model: &Model, dim: usize, radius: f64, dice: &mut Dice) -> f64 {
    let search = |tokens: usize, dice: &mut Dice| {
        probe::search(model, &dice.tensor(&[6, tokens, dim], 1.0), radius, 60).unwrap().sensitivity
    };
    (1..=6).map(|tokens| search(tokens, dice)).fold(0.0, f64::max)
}

/// A causal layer whose heads favour places by a bias of their own.
fn places(dim: usize, heads: usize, head_dim: usize) -> Attention {
    let position_bias = Some(PositionBias { buckets: 8, max_distance: 16 });
    Attention { position_bias, ..Attention::new(dim, heads, head_dim) }
}

fn tokens(dim: usize, rest: Vec<Node>) -> Graph {
    let embedding = Node::new("embedding", Op::Embedding { vocabulary: 5, dim });
    Graph::new(Input::tokens(6), [vec![embedding], rest].concat()).unwrap()
}

/// Two heads that cancel where both read the token two places back, and not in the second token of
/// a sequence, where one reads the token before and one itself. Whoever looks at late tokens alone
/// proves 1.
#[test]
fn early_tokens_are_not_ignored() {
    let m = 3.0;
    let model = cancelling(m);
    let (norms, _, bound) = constants(&model, 40);
    let reached = found(&model, 2, norms.domain.radius.to_f64(), &mut Dice::new(1));
    // Token 1 is x₁ + m (x₀ − x₁).
    assert!(reached > 0.99 * (2.0 * m - 1.0), "{reached}");
    assert!(reached <= bound * (1.0 + 1e-6), "found {reached}, certified {bound}");
    assert!(bound < 1.05 * (2.0 * m - 1.0), "{bound} is far above {reached}");
}

/// The same behind zeros: with two of them every token is a late one. One is not enough: the first
/// token is x₀ − m x₀.
#[test]
fn behind_zeros_no_token_is_early() {
    for (zeros, least, most) in [(1, 2.0, 5.5), (2, 1.0, 1.01), (3, 1.0, 1.01)] {
        let model = cancelling(3.0);
        let graph = model.graph().behind_zeros(zeros).unwrap();
        let model = Model::new(graph, model.weights().clone()).unwrap();
        let (norms, both, bound) = constants(&model, 40);
        let reached = found(&model, 2, norms.domain.radius.to_f64(), &mut Dice::new(1));
        assert!(reached >= 0.99 * least, "{zeros} zeros: {reached}");
        assert!(reached <= bound * (1.0 + 1e-6), "found {reached}, certified {bound}");
        assert!(bound <= most, "{zeros} zeros: {bound}");
        verify(&both, &model).unwrap();
    }
}

fn cancelling(m: f64) -> Model {
    let dim = 2;
    let graph = tokens(
        dim,
        vec![residual("a", 1.0, 1.0, vec![Node::new("", Op::Attention(places(dim, 2, 2)))])],
    );
    let mut weights = Weights::new();
    let eye = |f: f64| [[f, 0.0], [0.0, f]];
    let stack = |a: f64, b: f64| {
        let rows = [eye(a), eye(b)].concat();
        tensor(&rows.iter().map(|r| &r[..]).collect::<Vec<_>>())
    };
    let beside = tensor(&[&[m, 0.0, -m, 0.0], &[0.0, m, 0.0, -m]]);
    let table: Vec<Vec<f64>> = (0..8)
        .map(|bucket| match bucket {
            0 => vec![0.0, 30.0],
            1 => vec![30.0, 0.0],
            2 => vec![60.0, 60.0],
            _ => vec![0.0, 0.0],
        })
        .collect();
    let table = tensor(&table.iter().map(|r| &r[..]).collect::<Vec<_>>());
    for p in graph.parameters() {
        let w = match p.name.as_str() {
            "a.query.weight" | "a.key.weight" => stack(0.0, 0.0),
            "a.value.weight" => stack(1.0, 1.0),
            "a.output.weight" => beside.clone(),
            "a.position_bias.weight" => table.clone(),
            _ => Tensor::ones((5, dim), candle_core::DType::F64, &Device::Cpu).unwrap(),
        };
        weights.insert(p.name.clone(), w);
    }
    Model::new(graph, weights).unwrap()
}

/// What a head reads of its own token is added to the token with the sign of the factor behind it, and the
/// mean of all tokens is another token than the first: whoever lets either cancel proves next to nothing.
#[test]
fn what_does_not_cancel_counts() {
    let head = || linear("head", 1, 2);
    let attention = Attention { output_scale: -1.0, ..places(1, 1, 1) };
    let signs = tokens(
        1,
        vec![residual("a", 1.0, 1.0, vec![Node::new("", Op::Attention(attention))]), head()],
    );
    let plain = |op: Op| Node::new("", op);
    let other = vec![plain(Op::Scale { factor: -1.0 }), plain(Op::FirstToken)];
    let branches = vec![plain(Op::MeanPool), plain(Op::Sequential { body: other })];
    let picked = tokens(1, vec![plain(Op::Parallel { branches }), head()]);
    // 2x; and the mean of six less the first of them. Both by the two rows of the head.
    for (graph, truth) in [(signs, 2.0), (picked, 5.0 / 3.0)] {
        let weight = |name: &str, shape: &[usize]| {
            let numbers: Vec<f64> = match name {
                "a.query.weight" | "a.key.weight" => vec![0.0],
                "a.output.weight" => vec![-1.0],
                "a.position_bias.weight" => {
                    (0..8).map(|i| if i == 0 { 60.0 } else { 0.0 }).collect()
                }
                "head.weight" => vec![1.0, -1.0],
                _ => vec![1.0; shape.iter().product()],
            };
            Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
        };
        let all = graph.parameters();
        let weights = all.iter().map(|p| (p.name.clone(), weight(&p.name, &p.shape))).collect();
        let model = Model::new(graph, weights).unwrap();
        let (norms, _, bound) = constants(&model, 40);
        let truth = truth * 2_f64.sqrt();
        let reached = found(&model, 1, norms.domain.radius.to_f64(), &mut Dice::new(2));
        assert!((0.99 * truth..=truth * (1.0 + 1e-9)).contains(&reached), "{reached} of {truth}");
        assert!(bound >= truth * (1.0 - 1e-9) && bound < 4.1, "{bound} for {truth}");
    }
}

/// One head between multiples of the identity, with a bias for each bucket, and a skip.
fn one_head(dim: usize, scale: f64, output: f64, bias: [f64; 8], input: Input) -> Model {
    let attention = Attention { logit_scale: scale, ..places(dim, 1, dim) };
    let layer = residual("a", 1.0, 1.0, vec![Node::new("", Op::Attention(attention))]);
    let first = match input {
        Input::Pixels { .. } => Node::new("", Op::Patches { size: 2 }),
        _ => Node::new("embedding", Op::Embedding { vocabulary: 5, dim }),
    };
    let graph = Graph::new(input, vec![first, layer]).unwrap();
    let eye =
        |f: f64| (Tensor::eye(dim, candle_core::DType::F64, &Device::Cpu).unwrap() * f).unwrap();
    let weight = |name: &str| match name {
        "a.output.weight" => eye(output),
        "a.position_bias.weight" => Tensor::new(&bias, &Device::Cpu).unwrap().unsqueeze(1).unwrap(),
        "embedding.weight" => {
            Tensor::ones((5, dim), candle_core::DType::F64, &Device::Cpu).unwrap()
        }
        _ => eye(1.0),
    };
    let weights = graph.parameters().iter().map(|p| (p.name.clone(), weight(&p.name))).collect();
    Model::new(graph, weights).unwrap()
}

/// Biases so far apart that their exponentials are no numbers any more, and contents that overrule
/// them all the same: the head is not forgotten.
#[test]
fn contents_may_overrule_any_bias() {
    let mut bias = [0.0; 8];
    bias[0] = 1000.0;
    let model = one_head(2, 1000.0, 3.0, bias, Input::tokens(6));
    let (norms, _, bound) = constants(&model, 10);
    let reached = found(&model, 2, norms.domain.radius.to_f64(), &mut Dice::new(2));
    assert!(reached > 3.9 && reached <= bound * (1.0 + 1e-6), "found {reached}, certified {bound}");
}

/// Patches of an image are more than one token: a head that reads the one before does not cancel the
/// skip.
#[test]
fn patches_have_places_too() {
    let mut bias = [0.0; 8];
    bias[1] = 60.0;
    let input = Input::Pixels { channels: 1, height: 4, width: 4 };
    let model = one_head(4, 0.0, -1.0, bias, input);
    let norms = certify(&model, Method::Proven, Formula::Sound, Some(2.0)).unwrap();
    let both = norms.tighten(&model, 10, &mut |_, _| {}).unwrap();
    let bound = both.ellipsoids.unwrap().l2.to_f64();
    let starts = Dice::new(3).tensor(&[6, 1, 4, 4], 1.0);
    let reached = probe::search(&model, &starts, 2.0, 60).unwrap().sensitivity;
    assert!(reached > 1.3 && reached <= bound * (1.0 + 1e-6), "found {reached}, certified {bound}");
}

/// Random networks whose heads favour places, by weak and by strong biases: soundness, and that the
/// known places pay.
#[test]
fn heads_that_favour_places() {
    let (mut gains, mut best) = (Vec::new(), 0.0_f64);
    for seed in 0..60 {
        let mut dice = Dice::new(seed);
        let dim = 4;
        let mut nodes = Vec::new();
        for layer in 0..1 + dice.below(2) {
            let mut attention = places(dim, 2, 2);
            attention.bias = dice.coin();
            attention.window = dice.coin().then_some(3);
            nodes.push(residual(
                &format!("a{layer}"),
                0.7,
                0.8,
                vec![Node::new("", Op::Attention(attention))],
            ));
            let body =
                vec![linear("up", dim, 6), activation(Function::Abs), linear("down", 6, dim)];
            nodes.push(residual(&format!("m{layer}"), 0.6, 0.5, body));
        }
        let graph = tokens(dim, nodes);
        let model = random_model(graph.clone(), &mut dice);
        // Contents from weak to such as overrule biases.
        let (strength, contents) =
            (dice.pick(&[3.0, 10.0, 40.0, 900.0]), dice.pick(&[1.0, 1.0, 60.0]));
        let mut weights = model.weights().clone();
        for (name, w) in &mut weights {
            let factor = match name.rsplit_once('.').map(|(path, _)| path) {
                Some(path) if path.ends_with("position_bias") => strength,
                Some(path) if path.ends_with("query") => contents,
                _ => 1.0,
            };
            *w = (w.clone() * factor).unwrap();
        }
        let model = Model::new(graph, weights).unwrap();
        let (norms, both, bound) = constants(&model, 12);
        let reached = found(&model, dim, norms.domain.radius.to_f64(), &mut dice);
        assert!(reached <= bound * (1.0 + 1e-6), "seed {seed}: found {reached}, certified {bound}");
        verify(&both, &model).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        gains.push(norms.l2.to_f64() / bound);
        best = best.max(reached / bound);
    }
    gains.sort_by(f64::total_cmp);
    println!("norms / ellipsoids: median {:.2}; found / ellipsoids: {best:.3}", gains[30]);
    assert!(gains[30] > 1.3 && best > 0.6, "{} {best}", gains[30]);
}

/// Random networks of all node kinds, each weight made far smaller or larger: what a search finds for
/// certain is below what ellipsoids prove.
#[test]
fn weights_of_any_size() {
    let (mut proven, mut close) = (0, 0);
    for seed in 0..250 {
        let mut dice = Dice::new(50_000 + seed);
        let tokens = seed % 3 > 0;
        let graph = if tokens { random_graph(&mut dice) } else { random_image_graph(&mut dice) };
        let model = random_model(graph.clone(), &mut dice);
        let mut weights = model.weights().clone();
        for w in weights.values_mut() {
            *w = (w.clone() * dice.pick(&[1e-3, 0.1, 1.0, 1.0, 10.0, 300.0])).unwrap();
        }
        let model = Model::new(graph, weights).unwrap();
        let given = (!tokens).then(|| dice.pick(&[0.3, 5.0]));
        let norms = certify(&model, Method::Proven, Formula::Sound, given).unwrap();
        let both = norms.tighten(&model, 3, &mut |_, _| {}).unwrap();
        let Some(ellipsoids) = &both.ellipsoids else { continue };
        proven += 1;
        let shape = match tokens {
            true => vec![4, 1 + dice.below(4), model.weights()["embedding.weight"].dim(1).unwrap()],
            false => vec![4, 2, 4, 4],
        };
        let starts = dice.tensor(&shape, 1.0);
        let radius = both.domain.radius.to_f64();
        let Ok(found) = probe::search(&model, &starts, radius, 20) else { continue };
        let (sure, bound) = (found.at_least, ellipsoids.l2.to_f64());
        assert!(sure <= bound, "seed {seed}: found {sure}, certified {bound}");
        close += usize::from(sure > 0.1 * bound);
    }
    println!("{proven} bounds by ellipsoids, {close} within ten times of what is found");
    assert!(proven > 200 && close > 20, "{proven} {close}");
}

/// Layers that are attacked in each of two tests: 150, or what `LIPSCHITZ_LAYERS` says.
fn layers() -> u64 {
    let said = std::env::var("LIPSCHITZ_LAYERS").ok();
    said.map_or(150, |said| said.parse().expect("LIPSCHITZ_LAYERS is a number"))
}

/// Of attacked layers, what an attack reaches of the constant: never more, and nearly all somewhere.
fn stay_inside(kind: &str, mut ratios: Vec<f64>) {
    ratios.sort_by(f64::total_cmp);
    let (low, median, top) = (ratios[0], ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
    println!(
        "{} {kind} / ellipsoids: {low:.4}, median {median:.4}, largest {top:.6}",
        ratios.len()
    );
    assert!(top > 0.99 && median > 0.9, "{median} {top}");
}

/// One output of a layer of attention, with free probabilities and free changes of logits: what two
/// tokens far apart can do, for each head alone. With one output all terms can point the same way, so
/// that their sum is reached; it is never above the constant, and nearly is it.
#[test]
fn free_attention_stays_inside_and_reaches_the_edge() {
    let dim = 4;
    let length = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    // aᵀ b, for rows.
    let product = |a: &[Vec<f64>], b: &[Vec<f64>]| -> Vec<Vec<f64>> {
        let of = |i: usize, j: usize| a.iter().zip(b).map(|(a, b)| a[i] * b[j]).sum();
        (0..a[0].len()).map(|i| (0..b[0].len()).map(|j| of(i, j)).collect()).collect()
    };
    // v A, for a row.
    let row = |v: &[f64], a: &[Vec<f64>]| {
        product(&v.iter().map(|x| vec![*x]).collect::<Vec<_>>(), a).remove(0)
    };
    // From below, and near.
    let norm = |a: &[Vec<f64>]| {
        let mut v = vec![1.0; a[0].len()];
        let mut size = 0.0;
        for _ in 0..200 {
            let u: Vec<f64> =
                a.iter().map(|a| a.iter().zip(&v).map(|(a, v)| a * v).sum()).collect();
            size = length(&u) / length(&v).max(f64::MIN_POSITIVE);
            v = row(&u, a);
            let by = length(&v).max(f64::MIN_POSITIVE);
            v.iter_mut().for_each(|v| *v /= by);
        }
        size
    };
    let mut ratios = Vec::new();
    for seed in 0..layers() {
        let mut dice = Dice::new(70_000 + seed);
        let (heads, head_dim) = (1 + dice.below(3), 1 + dice.below(3));
        let (skip, branch) = (dice.unit(), dice.unit());
        let key_value_heads = if dice.coin() { heads } else { 1 };
        let attention = Attention {
            key_value_heads,
            causal: dice.coin(),
            logit_scale: 2.0 * dice.unit(),
            output_scale: dice.unit(),
            ..Attention::new(dim, heads, head_dim)
        };
        let a = attention.clone();
        let nodes = vec![
            linear("first", dim, dim),
            residual("a", skip, branch, vec![Node::new("", Op::Attention(attention))]),
            linear("head", dim, 1),
        ];
        let model = random_model(tokens(dim, nodes), &mut dice);
        let (norms, _, bound) = constants(&model, 60);
        let radius = norms.domain.radius.to_f64();
        let get = |name: &str| model.weights()[name].to_vec2::<f64>().unwrap();
        let (first, head) = (get("first.weight"), get("head.weight").remove(0));
        let [q, k, v] = ["query", "key", "value"].map(|name| get(&format!("a.{name}.weight")));
        let out = get("a.output.weight");
        let on_input =
            |w: &[Vec<f64>]| -> Vec<Vec<f64>> { w.iter().map(|w| row(w, &first)).collect() };
        let mut reached = skip.abs() * length(&row(&head, &first));
        for h in 0..heads {
            let own = |w: &[Vec<f64>], i: usize| on_input(&w[i * head_dim..(i + 1) * head_dim]);
            let group = h / (heads / key_value_heads);
            let logits = norm(&product(&own(&q, h), &own(&k, group)));
            // Both of δq·k and q·δk, of tokens at the edge.
            let sigma = 2.0 * a.logit_scale.abs() * radius * logits;
            let columns: Vec<Vec<f64>> =
                out.iter().map(|o| o[h * head_dim..(h + 1) * head_dim].to_vec()).collect();
            let read = row(&row(&head, &columns), &own(&v, group));
            reached += (branch * a.output_scale).abs() * (1.0 + sigma * radius) * length(&read);
        }
        assert!(reached <= bound * (1.0 + 1e-9), "seed {seed}: {reached} above {bound}");
        ratios.push(reached / bound);
    }
    stay_inside("layers of attention", ratios);
}

/// One output of a residual perceptron, with free slopes: the largest over all signs is never above
/// the constant, and nearly reaches it somewhere.
#[test]
fn free_slopes_stay_inside_and_reach_the_edge() {
    let (dim, hidden) = (3, 5);
    let mut ratios = Vec::new();
    for seed in 0..layers() {
        let mut dice = Dice::new(1000 + seed);
        let (skip, branch) = (dice.unit(), dice.unit());
        let function = dice.pick(&[Function::Relu, Function::Abs]);
        let body =
            vec![linear("up", dim, hidden), activation(function), linear("down", hidden, dim)];
        let nodes = vec![residual("m", skip, branch, body), linear("head", dim, 1)];
        let graph = Graph::new(Input::Vector { dim }, nodes).unwrap();
        let model = random_model(graph, &mut dice);
        let get = |name: &str| model.weights()[name].to_vec2::<f64>().unwrap();
        let (up, down, head) = (get("m.up.weight"), get("m.down.weight"), get("head.weight"));
        let (centre, spread) = if function == Function::Relu { (0.5, 0.5) } else { (0.0, 1.0) };
        let mut largest: f64 = 0.0;
        for signs in 0..1 << hidden {
            let mut row = vec![0.0; dim];
            for j in 0..dim {
                row[j] = skip * head[0][j];
                for k in 0..hidden {
                    let s = if signs >> k & 1 == 1 { centre + spread } else { centre - spread };
                    let back: f64 = (0..dim).map(|i| head[0][i] * down[i][k]).sum();
                    row[j] += branch * back * s * up[k][j];
                }
            }
            largest = largest.max(row.iter().map(|x| x * x).sum::<f64>().sqrt());
        }
        let (_, _, bound) = constants(&model, 40);
        assert!(largest <= bound * (1.0 + 1e-9), "seed {seed}: {largest} above {bound}");
        ratios.push(largest / bound);
    }
    stay_inside("perceptrons with free slopes", ratios);
}

/// One head that turns by content: the term of changed probabilities is most of the constant, so
/// that a bound without it would be broken.
#[test]
fn changed_probabilities_count() {
    let dim = 2;
    let mut attention = Attention::new(dim, 1, 2);
    attention.causal = false;
    attention.logit_scale = 4.0;
    let graph = tokens(dim, vec![Node::new("a", Op::Attention(attention))]);
    let eye = tensor(&[&[1.0, 0.0], &[0.0, 1.0]]);
    let weight = |name: &str| match name {
        "embedding.weight" => {
            Tensor::ones((5, dim), candle_core::DType::F64, &Device::Cpu).unwrap()
        }
        _ => eye.clone(),
    };
    let weights = graph.parameters().iter().map(|p| (p.name.clone(), weight(&p.name))).collect();
    let model = Model::new(graph, weights).unwrap();
    let (norms, _, bound) = constants(&model, 20);
    let reached = found(&model, dim, norms.domain.radius.to_f64(), &mut Dice::new(3));
    // The mean alone moves by at most 1.
    assert!(reached > 2.0 && reached <= bound, "found {reached}, certified {bound}");
}

/// Weights of any size: scaling one by 10^±60 and the next by 10^∓60 changes nothing.
#[test]
fn scale_free() {
    let graph = || {
        let body = vec![linear("up", 4, 6), activation(Function::Relu), linear("down", 6, 4)];
        let nodes =
            vec![linear("first", 4, 4), residual("m", 0.5, 0.5, body), linear("head", 4, 3)];
        Graph::new(Input::Vector { dim: 4 }, nodes).unwrap()
    };
    let model = random_model(graph(), &mut Dice::new(5));
    let plain = constants(&model, 20).2;
    for e in [200.0_f64, -200.0, 400.0, -400.0] {
        let mut weights = model.weights().clone();
        for (name, by) in [("first.weight", e), ("head.weight", -e)] {
            let scaled = (weights[name].clone() * 2f64.powf(by)).unwrap();
            weights.insert(name.into(), scaled);
        }
        let scaled = constants(&Model::new(graph(), weights).unwrap(), 20).2;
        assert!((scaled / plain - 1.0).abs() < 1e-3, "{e}: {scaled} against {plain}");
    }
}

/// Any positive multipliers prove a bound, so what must be caught is the claim: every number that
/// is lowered, raised, dropped or made something else.
#[test]
fn forged_claims_are_refused() {
    let body = vec![linear("up", 4, 6), activation(Function::GeluErf), linear("down", 6, 4)];
    let attention = Node::new("", Op::Attention(places(4, 2, 2)));
    let graph = tokens(
        4,
        vec![
            residual("a", 0.5, 0.5, vec![attention]),
            residual("m", 0.5, 0.5, body),
            linear("head", 4, 3),
        ],
    );
    let model = random_model(graph, &mut Dice::new(7));
    let (norms, honest, _) = constants(&model, 15);
    verify(&norms, &model).unwrap();
    verify(&honest, &model).unwrap();
    let document = serde_json::to_value(&honest).unwrap();
    let refused = |forged: Value, what: &str| {
        let read = serde_json::from_value::<Certificate>(forged);
        let said = read
            .map_err(|e| e.to_string())
            .and_then(|c| verify(&c, &model).map_err(|e| e.to_string()));
        assert!(said.is_err(), "{what} was taken");
    };
    let lower = |upper: &Value| -> Value {
        let u: Upper = serde_json::from_value(upper.clone()).unwrap();
        serde_json::to_value(u * Upper::from_f64(0.999)).unwrap()
    };
    for field in ["l2", "logit", "margin"] {
        let mut forged = document.clone();
        forged["ellipsoids"][field] = lower(&document["ellipsoids"][field]);
        refused(forged, field);
    }
    let nodes = document["ellipsoids"]["nodes"].as_array().unwrap().len();
    for i in 0..nodes {
        let mut forged = document.clone();
        let at = &mut forged["ellipsoids"]["nodes"][i]["cumulative"];
        *at = lower(at);
        refused(forged, "a node");
    }
    let slots = document["ellipsoids"]["multipliers"].as_array().unwrap().len();
    assert!(slots >= 4, "{slots}");
    for i in 0..slots {
        let values = document["ellipsoids"]["multipliers"][i]["values"].as_array().unwrap();
        for (k, value) in values.iter().enumerate() {
            let x = value.as_f64().unwrap();
            for bad in
                [json!(0.0), json!(-x), json!(x * 3.0), json!(1e200), json!("1"), Value::Null]
            {
                let mut forged = document.clone();
                forged["ellipsoids"]["multipliers"][i]["values"][k] = bad.clone();
                // A larger multiplier may prove more than is claimed by a hair, never less.
                let read = serde_json::from_value::<Certificate>(forged);
                if let Ok(c) = read.as_ref().map_err(|_| ()) {
                    let again = prove_again(&model, c);
                    let claimed = honest.ellipsoids.as_ref().unwrap().l2;
                    let holds = verify(c, &model).is_ok();
                    assert!(!holds || again.is_some_and(|l2| l2 <= claimed), "{i} {k} {bad}");
                }
            }
        }
        let mut forged = document.clone();
        forged["ellipsoids"]["multipliers"].as_array_mut().unwrap().remove(i);
        refused(forged, "a missing step");
        let mut forged = document.clone();
        forged["ellipsoids"]["multipliers"][i]["values"].as_array_mut().unwrap().pop();
        refused(forged, "a missing multiplier");
    }
    let mut forged = document.clone();
    let extra = document["ellipsoids"]["multipliers"][0].clone();
    forged["ellipsoids"]["multipliers"].as_array_mut().unwrap().push(extra);
    refused(forged, "a step too many");
    let mut forged = document;
    forged["ellipsoids"]["l2"] = Value::Null;
    refused(forged, "no number");
}

fn prove_again(model: &Model, c: &Certificate) -> Option<Upper> {
    let given = c.ellipsoids.as_ref()?;
    let weights = Matrices::new(model, false);
    let again =
        ellipsoid::prove(Source::graph(model), &weights, c.domain.radius, &given.multipliers);
    again.unwrap().map(|found| found.bound.l2)
}

/// `½ (I + P)` and `½ (I − P)` around the swap P of halves, with max and min in between: the first
/// takes their sum, whose slopes are known, the second their difference, of which each slope is
/// free. Whoever takes the slopes of max and min for a diagonal of 0s and 1s, or for one number a
/// pair, proves less than 1 for one of them.
#[test]
fn max_and_min_are_no_diagonal() {
    let half = 3;
    let rows = |sign: f64| -> Vec<Vec<f64>> {
        let row = |i: usize| {
            let mut row = vec![0.0; 2 * half];
            (row[i], row[(i + half) % (2 * half)]) = (0.5, 0.5 * sign);
            row
        };
        (0..2 * half).map(row).collect()
    };
    let model = |first: Option<f64>, last: &[f64]| {
        let dim = 2 * half;
        let body = vec![linear("in", dim, dim), Node::new("", Op::MaxMin), linear("out", dim, dim)];
        let graph = tokens(dim, body);
        let weight = |name: &str| {
            let eye = Tensor::eye(dim, candle_core::DType::F64, &Device::Cpu).unwrap();
            match (name, first) {
                ("in.weight", Some(sign)) => Tensor::new(rows(sign), &Device::Cpu).unwrap(),
                ("out.weight", _) => {
                    let all =
                        last.iter().map(|sign| Tensor::new(rows(*sign), &Device::Cpu).unwrap());
                    all.reduce(|a, b| (a + b).unwrap()).unwrap()
                }
                ("embedding.weight", _) => {
                    Tensor::ones((5, dim), candle_core::DType::F64, &Device::Cpu).unwrap()
                }
                _ => eye,
            }
        };
        let weight = |p: &lipschitz_nn::graph::Parameter| (p.name.clone(), weight(&p.name));
        let weights = graph.parameters().iter().map(weight).collect();
        Model::new(graph, weights).unwrap()
    };
    let mut dice = Dice::new(5);
    for (first, last, wanted) in [
        (None, &[1.0, -1.0][..], 1.0),
        (None, &[1.0], 1.0),
        (None, &[-1.0], 1.0),
        (Some(-1.0), &[-1.0], 1.0),
        // The sum of what had no sum.
        (Some(-1.0), &[1.0], 0.0),
    ] {
        let model = model(first, last);
        let (norms, both, bound) = constants(&model, 20);
        let reached = found(&model, 2 * half, norms.domain.radius.to_f64(), &mut dice);
        assert!(reached <= bound * (1.0 + 1e-6) + 1e-9, "{first:?} {last:?}: {reached}, {bound}");
        assert!(reached >= 0.99 * wanted, "{first:?} {last:?}: only {reached}");
        assert!(bound < wanted + 0.1, "{first:?} {last:?}: {bound}, not {wanted}");
        verify(&both, &model).unwrap();
    }
}
