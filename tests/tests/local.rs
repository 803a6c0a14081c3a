//! Nobody breaks a certificate around one input: random networks of every node kind, attacked by
//! gradients and at random within the radius, in every norm.

use candle_core::{DType, Device, Tensor, Var};
use lipschitz_certify::bound::WeightNorms;
use lipschitz_certify::ellipsoid::{self, Aim};
use lipschitz_certify::local::{
    Allowed, Distance, Local, Proof, Settings, Trials, exact, substitutions, survey, verify,
};
use lipschitz_certify::robust::Effort;
use lipschitz_certify::spectral::Method;
use lipschitz_certify::upper::Upper;
use lipschitz_nn::Model;
use lipschitz_nn::graph::{Attention, Function, Graph, Input, Node, Op, Pool, Pooling};
use lipschitz_tests::{
    Dice, random_convolution_graph, random_graph, random_image_graph, random_model,
};

/// Random changes for each network and radius.
const CHANGES: usize = 120;

/// Networks in a usual run; more with `LIPSCHITZ_LOCAL=N`.
fn networks() -> u64 {
    std::env::var("LIPSCHITZ_LOCAL").ok().and_then(|n| n.parse().ok()).unwrap_or(300)
}

/// `[batch, tokens, width]`, scaled to a size of exactly `radius` each, but for rounding.
fn sized(x: &Tensor, distance: Distance, radius: f64) -> Tensor {
    let (b, tokens, width) = x.dims3().unwrap();
    let size = match distance {
        Distance::Token => x.sqr().unwrap().sum_keepdim(2).unwrap().sqrt().unwrap(),
        Distance::L2 => {
            let flat = x.reshape((b, tokens * width)).unwrap().sqr().unwrap();
            flat.sum(1).unwrap().sqrt().unwrap().reshape((b, 1, 1)).unwrap()
        }
        Distance::Linf => {
            let flat = x.reshape((b, tokens * width)).unwrap().abs().unwrap();
            flat.max(1).unwrap().reshape((b, 1, 1)).unwrap()
        }
    };
    let factor = ((size + 1e-300).unwrap().recip().unwrap() * (radius * (1.0 - 1e-12))).unwrap();
    x.broadcast_mul(&factor).unwrap()
}

struct Case {
    model: Model,
    /// `[1, tokens, width]`
    x: Tensor,
    shape: Vec<usize>,
}

impl Case {
    /// Outputs of the last token, `[batch, outputs]`.
    fn run(&self, x: &Tensor) -> Tensor {
        let dims: Vec<usize> = [&[x.dim(0).unwrap()], &self.shape[..]].concat();
        let x = x.reshape(dims).unwrap();
        let y = match self.model.graph().input() {
            Input::Tokens { .. } => self.model.forward_embeddings(&x).unwrap(),
            _ => self.model.forward(&x).unwrap(),
        };
        match y.rank() {
            3 => y.narrow(1, y.dim(1).unwrap() - 1, 1).unwrap().squeeze(1).unwrap(),
            _ => y,
        }
    }

    /// The largest changes of each output that random changes and a few steps of ascent find.
    fn attack(&self, dice: &mut Dice, distance: Distance, radius: f64, at: &[f64]) -> Vec<f64> {
        let (_, tokens, width) = self.x.dims3().unwrap();
        let mut found = vec![0.0_f64; at.len()];
        let mut see = |y: &Tensor| {
            for row in y.detach().to_vec2::<f64>().unwrap() {
                for ((found, y), at) in found.iter_mut().zip(row).zip(at) {
                    *found = found.max((y - at).abs());
                }
            }
        };
        let changes = sized(&dice.tensor(&[CHANGES, tokens, width], 1.0), distance, radius);
        see(&self.run(&self.x.broadcast_add(&changes.to_dtype(DType::F64).unwrap()).unwrap()));
        let (goal, sign) = (dice.below(at.len()), if dice.coin() { 1.0 } else { -1.0 });
        let mut change = changes.narrow(0, 0, 1).unwrap().to_dtype(DType::F64).unwrap();
        for _ in 0..6 {
            let var = Var::from_tensor(&(&self.x + &change).unwrap()).unwrap();
            let y = self.run(var.as_tensor());
            see(&y);
            let goal = (y.narrow(1, goal, 1).unwrap().sum_all().unwrap() * sign).unwrap();
            let gradients = goal.backward().unwrap();
            let Some(g) = gradients.get(var.as_tensor()) else { break };
            let g = g.detach();
            let step = if distance == Distance::Linf { g.sign().unwrap() } else { g };
            change = sized(&step, distance, radius);
        }
        see(&self.run(&(&self.x + &change).unwrap()));
        found
    }
}

impl Case {
    /// The smallest margin of output `class` that random changes and some steps of descent find.
    fn lowest(&self, dice: &mut Dice, distance: Distance, radius: f64, class: usize) -> f64 {
        let (_, tokens, width) = self.x.dims3().unwrap();
        let margin = |y: &Tensor| -> f64 {
            let rows = y.detach().to_vec2::<f64>().unwrap();
            let of = |row: Vec<f64>| {
                let others = row.iter().enumerate().filter(|(j, _)| *j != class);
                row[class] - others.map(|(_, z)| *z).fold(f64::MIN, f64::max)
            };
            rows.into_iter().map(of).fold(f64::MAX, f64::min)
        };
        let changes = sized(&dice.tensor(&[CHANGES, tokens, width], 1.0), distance, radius);
        let changes = changes.to_dtype(DType::F64).unwrap();
        let mut lowest = margin(&self.run(&self.x.broadcast_add(&changes).unwrap()));
        let mut change = changes.narrow(0, 0, 1).unwrap();
        for step in 0..16 {
            let var = Var::from_tensor(&(&self.x + &change).unwrap()).unwrap();
            let y = self.run(var.as_tensor());
            lowest = lowest.min(margin(&y));
            let row = y.detach().to_vec2::<f64>().unwrap().remove(0);
            let others = (0..row.len()).filter(|j| *j != class);
            let Some(rival) = others.max_by(|a, b| row[*a].total_cmp(&row[*b])) else { break };
            let goal = |j: usize| y.narrow(1, j, 1).unwrap().sum_all().unwrap();
            let gradients = (goal(rival) - goal(class)).unwrap().backward().unwrap();
            let Some(g) = gradients.get(var.as_tensor()) else { break };
            let g = g.detach();
            let next = if distance == Distance::Linf { g.sign().unwrap() } else { g };
            // Jumps first, then smaller steps around.
            let next = sized(&next, distance, radius);
            let kept = if step < 8 { 0.0 } else { 0.7 };
            let mixed = ((change * kept).unwrap() + (next * (1.0 - kept)).unwrap()).unwrap();
            change = sized(&mixed, distance, radius);
        }
        lowest.min(margin(&self.run(&(&self.x + &change).unwrap())))
    }
}

/// Over networks of every node kind: no output moves further than is proven, and for small changes
/// of smooth networks what is proven is found.
#[test]
fn no_output_moves_further_than_is_proven() {
    let (mut kinds, mut near, mut tried) = (std::collections::BTreeSet::new(), Vec::new(), 0);
    let (mut margins_left, mut inside): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    for seed in 0..networks() {
        let mut dice = Dice::new(77_000 + seed);
        let tokens = seed % 5 > 1;
        let graph = match seed % 5 {
            0 => random_image_graph(&mut dice),
            1 => random_convolution_graph(&mut dice),
            _ => random_graph(&mut dice),
        };
        let json = serde_json::to_string(&graph).unwrap();
        for kind in json.split("\"op\":\"").skip(1) {
            kinds.insert(kind.split('"').next().unwrap().to_string());
        }
        let model = exact(&random_model(graph, &mut dice)).unwrap();
        let shape = match tokens {
            true => vec![1 + dice.below(4), model.weights()["embedding.weight"].dim(1).unwrap()],
            false => vec![2, 4, 4],
        };
        let as_tokens = if tokens { shape.clone() } else { vec![1, shape.iter().product()] };
        let x = dice.tensor(&[&[1], &as_tokens[..]].concat(), 1.0).to_dtype(DType::F64).unwrap();
        let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
        // With and without what ellipsoids know.
        let size = x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
        let domain = Upper::from_f64(2.0 * size + 1.0);
        let ellipsoids = match dice.coin() {
            true => ellipsoid::tighten(&model, domain, Aim::Pairs, 3, &mut |_, _| {}).unwrap(),
            false => None,
        };
        let known = ellipsoids.as_ref().map(|e| (&e.bound, domain));
        let local = Local::new(&model, &norms, known).unwrap();
        let point = local.at(&x.reshape(&shape[..]).unwrap()).unwrap();
        let claims = point.values().unwrap();
        let case = Case { model: model.clone(), x, shape };
        let first = case.run(&case.x).to_vec2::<f64>().unwrap().remove(0);
        // Two ways to compute the same, each off by its rounding: no more than is proven of both.
        let still = point.reach(&claims, 0.0, Distance::L2);
        for ((a, b), still) in first.iter().zip(claims.at_input()).zip(still) {
            let apart = (a - b).abs();
            assert!(apart <= 2.0 * still.to_f64(), "seed {seed}: {a} {b} {still}: {json}");
            assert!(still.to_f64() <= 1e-7 * (1.0 + a.abs()), "seed {seed}: {still}: {json}");
        }
        // A margin is bounded on one side alone, at its own radius.
        if let (Some(class), true) = (point.class(), first.len() > 1) {
            let others: Vec<usize> = (0..first.len()).filter(|j| *j != class).collect();
            let margins = point.margins(class, &others).unwrap();
            let distance = dice.pick(&[Distance::Token, Distance::L2, Distance::Linf]);
            let radius = point.radius(&margins, distance);
            if radius > 0.0 && radius.is_finite() {
                let whole = margins.at_input().iter().copied().fold(f64::MAX, f64::min);
                let left = case.lowest(&mut dice, distance, radius, class);
                assert!(left > -1e-11, "seed {seed}, {distance:?} {radius}: {left}: {json}");
                margins_left.push(left / whole);
            }
        }
        for radius in [1e-5, 0.01, 0.1, 0.6] {
            let distance = dice.pick(&[Distance::Token, Distance::L2, Distance::Linf]);
            let reach = point.reach(&claims, radius, distance);
            for _ in 0..4 {
                let drawn = dice.tensor(case.x.dims(), 1.0).to_dtype(DType::F64).unwrap();
                let moved = (&case.x + sized(&drawn, distance, radius)).unwrap();
                let other = local.at(&moved.reshape(&case.shape[..]).unwrap()).unwrap();
                let (share, what) = point.share(&other, radius, distance);
                assert!(share <= 1.0, "seed {seed}, {distance:?} {radius}: {what}: {json}");
                inside.push(share);
            }
            let found = case.attack(&mut dice, distance, radius, &first);
            tried += CHANGES + 7;
            for (i, (found, reach)) in found.iter().zip(&reach).enumerate() {
                let allowed = reach.to_f64() * (1.0 + 1e-9) + 1e-11 * (1.0 + first[i].abs());
                assert!(
                    *found <= allowed,
                    "seed {seed}, {distance:?} {radius}: output {i} moved by {found}, proven \
                     {reach}: {json}"
                );
                if radius < 1e-4 && reach.to_f64() > 1e-8 {
                    near.push(found / reach.to_f64());
                }
            }
        }
    }
    near.sort_by(f64::total_cmp);
    let (median, most) = (near[near.len() / 2], near[near.len() - 1]);
    println!(
        "{tried} changes; found / proven for small ones: median {median:.3}, largest {most:.6}"
    );
    inside.sort_by(f64::total_cmp);
    let (middle, end) = (inside[inside.len() / 2], inside[inside.len() - 1]);
    println!("inside, the largest share of a bound: median {middle:.3}, largest {end:.6}");
    assert!(middle > 0.3 && end > 0.95, "{middle} {end}");
    margins_left.sort_by(f64::total_cmp);
    let half = margins_left[margins_left.len() / 2];
    println!(
        "{} margins at their radii: {:.4} of one is left at least, {half:.3} in the median",
        margins_left.len(),
        margins_left[0]
    );
    assert!(margins_left.len() > 100 && margins_left[0] < 0.05 && half < 0.6);
    assert!(kinds.len() >= 29, "a node kind was never tried: {kinds:?}");
    assert!(median > 0.2 && most > 0.999, "{median} {most}");
}

/// Factors that cancel, or that all outputs have, change no decision and so no radius: also where squares of
/// what they multiply are 0 in f64.
#[test]
fn factors_that_cancel_change_no_radius() {
    let small = 2f64.powi(-565);
    let radius = |model: &Model, x: &Tensor| -> Option<f64> {
        let norms = WeightNorms::new(model, Method::Proven, &|_| {});
        let local = Local::new(model, &norms, None).unwrap();
        let point = local.at(x).unwrap();
        let class = point.class()?;
        let others: Vec<usize> = (0..point.outputs().len()).filter(|j| *j != class).collect();
        let margins = point.margins(class, &others).unwrap();
        Some(point.radius(&margins, Distance::L2)).filter(|_| !others.is_empty())
    };
    let (mut ends, mut insides) = (0, 0);
    for seed in 0..60 {
        let mut dice = Dice::new(91_000 + seed);
        let graph = random_graph(&mut dice);
        let model = exact(&random_model(graph.clone(), &mut dice)).unwrap();
        let width = model.weights()["embedding.weight"].dim(1).unwrap();
        let tokens = 1 + dice.below(4);
        let x = dice.tensor(&[tokens, width], 1.0).to_dtype(DType::F64).unwrap();
        let Some(plain) = radius(&model, &x).filter(|r| *r > 0.0 && r.is_finite()) else {
            continue;
        };
        let json = serde_json::to_string(&graph).unwrap();
        // Of all outputs.
        let nodes = graph.nodes().iter().cloned();
        let nodes = nodes.chain([Node::new("", Op::Scale { factor: small })]).collect();
        let scaled = Graph::new(graph.input(), nodes).unwrap();
        let scaled = Model::new(scaled, model.weights().clone()).unwrap();
        let found = radius(&scaled, &x).unwrap();
        let share = found / plain;
        assert!(share > 0.99 && share < 1.0 + 1e-6, "seed {seed}: {plain} {found}: {json}");
        ends += 1;
        // Of values, and taken back by the output map.
        let mut weights = model.weights().clone();
        let outputs = weights.keys().filter_map(|name| name.strip_suffix("output.weight"));
        let attentions: Vec<String> = outputs.map(str::to_string).collect();
        let mut pairs = 0;
        for path in attentions {
            for (name, factor) in
                [("value.weight", small), ("value.bias", small), ("output.weight", small.recip())]
            {
                if let Some(weight) = weights.get_mut(&format!("{path}{name}")) {
                    *weight = (&*weight * factor).unwrap();
                    pairs += 1;
                }
            }
        }
        if pairs > 1 {
            let found = radius(&Model::new(graph, weights).unwrap(), &x).unwrap();
            assert!(found <= plain * (1.0 + 1e-6), "seed {seed}: {plain} {found}: {json}");
            insides += usize::from(found > 0.0);
        }
    }
    assert!(ends > 15 && insides > 5, "{ends} {insides}");
}

/// A chain of two sorted layers by hand: inside of the distance to the first jump the network is linear,
/// and the proof is exact; and a radius is where the margin ends.
#[test]
fn a_linear_piece_is_exact() {
    let graph = Graph::builder(Input::Vector { dim: 4 })
        .linear("up", 6)
        .activation(Function::Relu)
        .linear("down", 3)
        .build()
        .unwrap();
    let model = exact(&random_model(graph, &mut Dice::new(5))).unwrap();
    let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
    let local = Local::new(&model, &norms, None).unwrap();
    let x = Tensor::new(&[0.9, -1.3, 0.4, 2.0], &Device::Cpu).unwrap();
    let point = local.at(&x).unwrap();
    let class = point.class().unwrap();
    let others: Vec<usize> = (0..3).filter(|j| *j != class).collect();
    let claims = point.margins(class, &others).unwrap();
    // The first jump, by hand: the smallest |u_i|/‖w_i‖.
    let w = model.weights()["up.weight"].to_vec2::<f64>().unwrap();
    let x: Vec<f64> = x.to_vec1().unwrap();
    let dot = |w: &[f64], x: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
    let jump = w.iter().map(|w| dot(w, &x).abs() / dot(w, w).sqrt()).fold(f64::MAX, f64::min);
    let radius = 0.99 * jump;
    for (reach, k) in point.reach(&claims, radius, Distance::L2).iter().zip(0..) {
        let slope = claims.tangent_of(k, Distance::L2);
        let exact = claims.at_input()[k] / slope * radius;
        assert!((reach.to_f64() / exact - 1.0).abs() < 1e-9, "{reach} {exact}");
    }
    let radius = point.radius(&claims, Distance::L2);
    assert!(radius > 0.0 && radius <= claims.tangent(Distance::L2));
    assert!(point.holds(&claims, radius, Distance::L2));
}

/// `1 ∓ 5 max(x, 0)` at x = −0.1, where the slope is 0: the first ends at 0.2, so that a change of 0.3 is met;
/// the second only grows, and what is convex takes nothing from it.
#[test]
fn what_is_convex_takes_from_one_side() {
    let relu = Node::new("", Op::Activation { function: Function::Relu, scale: 1.0 });
    for (middle, factor) in [(relu, 1.0), (Node::new("", Op::MaxMin), 2f64.sqrt())] {
        let pair = matches!(middle.op, Op::MaxMin);
        let width = if pair { 2 } else { 1 };
        for sign in [-1.0, 1.0] {
            let nodes = vec![
                Node::new("up", Op::Linear { inputs: 1, outputs: width, bias: false }),
                middle.clone(),
                Node::new("down", Op::Linear { inputs: width, outputs: 2, bias: true }),
            ];
            let graph = Graph::new(Input::Vector { dim: 1 }, nodes).unwrap();
            let (up, down) = match pair {
                // The larger of x and 0 comes first.
                true => (vec![1.0, 0.0], vec![5.0 * sign, 0.0, 0.0, 0.0]),
                false => (vec![1.0], vec![5.0 * sign, 0.0]),
            };
            let weights = [
                ("up.weight", Tensor::from_vec(up, (width, 1), &Device::Cpu)),
                ("down.weight", Tensor::from_vec(down, (2, width), &Device::Cpu)),
                ("down.bias", Tensor::new(&[1.0, 0.0], &Device::Cpu)),
            ];
            let weights = weights.map(|(name, x)| (name.to_string(), x.unwrap()));
            let model = Model::new(graph, weights.into_iter().collect()).unwrap();
            let model = exact(&model).unwrap();
            let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
            let local = Local::new(&model, &norms, None).unwrap();
            let point = local.at(&Tensor::new(&[-0.1], &Device::Cpu).unwrap()).unwrap();
            let claims = point.margins(0, &[1]).unwrap();
            let holds = |radius| point.holds(&claims, radius, Distance::L2);
            if sign > 0.0 {
                assert!(holds(1e3), "{pair}");
            } else {
                assert!(!holds(0.3001) && holds(0.299 / factor), "{pair}");
            }
            // Outputs are bounded on both sides.
            let reach = point.reach(&claims, 0.3, Distance::L2)[0].to_f64();
            assert!((1.0 - 1e-9..=factor * 1.3).contains(&reach), "{pair} {sign}: {reach}");
        }
    }
}

/// Of 150 outputs the hundred largest others change the decision far away; one of the rest does at 0.4.
#[test]
fn outputs_that_are_not_compared_stay_below_too() {
    const OUTPUTS: usize = 150;
    let graph = Graph::builder(Input::Vector { dim: 2 })
        .linear("up", 4)
        .activation(Function::Relu)
        .linear("down", OUTPUTS)
        .build()
        .unwrap();
    // (x₀ + 10)₊ and (x₁ + 10)₊ are the input; the others are 0 until it is 1 away.
    let up = [1.0, 0.0, 0.0, 1.0, 3.0, 0.0, 0.0, 3.0];
    let mut down = vec![0.0; OUTPUTS * 4];
    let mut bias = vec![-5.0; OUTPUTS];
    bias[1..101].fill(9.0);
    (bias[0], bias[120]) = (10.0, 8.0 + 10.0 * (3.0 - 4.0));
    down[120 * 4..120 * 4 + 4].copy_from_slice(&[-3.0, 4.0, 3.0, 3.0]);
    (1..101).for_each(|j| down[j * 4] = 1e-3);
    let weights = [
        ("up.weight", Tensor::from_slice(&up, (4, 2), &Device::Cpu)),
        ("up.bias", Tensor::new(&[10.0, 10.0, -3.0, -3.0], &Device::Cpu)),
        ("down.weight", Tensor::from_vec(down, (OUTPUTS, 4), &Device::Cpu)),
        ("down.bias", Tensor::from_vec(bias, OUTPUTS, &Device::Cpu)),
    ];
    let weights = weights.map(|(name, x)| (name.to_string(), x.unwrap()));
    let model = Model::new(graph, weights.into_iter().collect()).unwrap();
    let x = Tensor::zeros((1, 2), DType::F64, &Device::Cpu).unwrap();
    let y = Tensor::zeros(1, DType::U32, &Device::Cpu).unwrap();
    let settings =
        Settings { distance: Distance::L2, limit: 1, radii: Vec::new(), attack: None, search: 0 };
    let data = || [Ok::<_, lipschitz_certify::Error>((x.clone(), y.clone()))];
    let survey = survey(&model, data(), &settings, &|_| {}).unwrap();
    let radius = survey.inputs[0].radius;
    // √2 for the difference of two outputs, and the constants of both maps.
    assert!(radius > 0.05 && radius <= 0.4, "{radius}");
    verify(&model, data(), &survey, &|_| {}).unwrap();
    for wrong in [0.41, f64::NAN, -1.0] {
        let mut claim = survey.clone();
        claim.inputs[0].radius = wrong;
        assert!(verify(&model, data(), &claim, &|_| {}).is_err(), "{wrong}");
    }
}

/// What is no number, no finite number, or outside of the domain proves nothing.
#[test]
fn nothing_is_proven_outside() {
    let graph = Graph::builder(Input::Vector { dim: 2 })
        .linear("up", 3)
        .activation(Function::GeluErf)
        .linear("down", 2)
        .build()
        .unwrap();
    let model = exact(&random_model(graph, &mut Dice::new(1))).unwrap();
    let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
    let domain = Upper::from_f64(2.0);
    let found = ellipsoid::tighten(&model, domain, Aim::Pairs, 2, &mut |_, _| {}).unwrap();
    let found = found.unwrap();
    let local = Local::new(&model, &norms, Some((&found.bound, domain))).unwrap();
    let point = local.at(&Tensor::new(&[1.0, 1.0], &Device::Cpu).unwrap()).unwrap();
    let claims = point.values().unwrap();
    for radius in [f64::NAN, f64::INFINITY, 0.7, -1.0] {
        let reach = point.reach(&claims, radius, Distance::L2);
        assert!(reach.iter().all(|r| !r.is_finite()), "{radius}");
        assert!(!point.holds(&claims, radius, Distance::L2), "{radius}");
    }
    assert!(point.reach(&claims, 0.5, Distance::L2).iter().all(|r| r.is_finite()));
    let half = model.to(&Device::Cpu, DType::F32).unwrap();
    assert!(Local::new(&half, &norms, None).is_err());
}

/// Squares of f64 that overflow or underflow in between make another decision than the network's: it has no
/// radius.
#[test]
fn nothing_is_proven_of_what_f64_cannot_square() {
    let scale = |factor: f64| Op::Scale { factor };
    let pool = |factor: f64, pool: Op| vec![scale(factor), pool, scale(factor.recip())];
    let window = Pool { pooling: Pooling::L2, window: 2, stride: 1, padding: 0 };
    let (vector, image) =
        (Input::Vector { dim: 2 }, Input::Pixels { channels: 1, height: 2, width: 2 });
    let rms = Op::RmsNorm { dim: 2, eps: 1e-6, gain: false };
    let layer = Op::LayerNorm { dim: 2, eps: 1e-6, gain: false, bias: false };
    let normalise = Op::Normalise { eps: 1e-12 };
    let flat = |mut ops: Vec<Op>| {
        ops.push(Op::Flatten);
        ops
    };
    let cases = [
        (vector, vec![scale(1e155), rms.clone()], false),
        (vector, vec![scale(1e155), layer], false),
        (vector, vec![scale(1e155), normalise], false),
        (vector, vec![scale(1e100), rms], true),
        (image, pool(1e-170, Op::GlobalPool { pooling: Pooling::L2 }), false),
        (image, pool(1e-100, Op::GlobalPool { pooling: Pooling::L2 }), true),
        (image, flat(pool(1e-170, Op::Pool(window))), false),
        (image, flat(pool(1e-100, Op::Pool(window))), true),
    ];
    for (input, ops, right) in cases {
        let said = format!("{ops:?}");
        let inputs = if input == vector { 2 } else { 1 };
        let mut nodes: Vec<Node> = ops.into_iter().map(|op| Node::new("", op)).collect();
        nodes.push(Node::new("head", Op::Linear { inputs, outputs: 2, bias: true }));
        // The first class where the first feature is above ½, as it is.
        let mut first = vec![0.0; 2 * inputs];
        first[0] = 1.0;
        let tensor = |x: Vec<f64>, dims: &[usize]| Tensor::from_vec(x, dims, &Device::Cpu).unwrap();
        let weights = [
            ("head.weight".to_string(), tensor(first, &[2, inputs])),
            ("head.bias".to_string(), tensor(vec![0.0, 0.5], &[2])),
        ];
        let model = Model::new(Graph::new(input, nodes).unwrap(), weights.into()).unwrap();
        let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
        let x = match input == vector {
            true => tensor(vec![1.0, 0.0], &[2]),
            false => tensor(vec![1.0, 0.0, 0.0, 0.0], &[1, 2, 2]),
        };
        let point = Local::new(&model, &norms, None).unwrap().at(&x).unwrap();
        let class = point.class();
        let radius = class.map_or(0.0, |class| {
            let claims = point.margins(class, &[1 - class]).unwrap();
            point.radius(&claims, Distance::L2)
        });
        match right {
            true => assert!(class == Some(0) && radius > 0.1, "{said}: {class:?} {radius}"),
            false => assert_eq!(radius, 0.0, "{said}: {class:?}"),
        }
    }
}

/// One output is the largest wherever the input moves: its radius is a number that JSON holds, and it is
/// proven again.
#[test]
fn a_single_output_never_changes() {
    let graph = Graph::builder(Input::Vector { dim: 2 }).linear("head", 1).build().unwrap();
    let model = random_model(graph, &mut Dice::new(4));
    let x = Tensor::new(&[[1.0, 2.0]], &Device::Cpu).unwrap();
    let y = Tensor::zeros(1, DType::U32, &Device::Cpu).unwrap();
    let attack = Some(Effort { steps: 2, restarts: 1 });
    let settings =
        Settings { distance: Distance::L2, limit: 1, radii: Vec::new(), attack, search: 0 };
    let data = || [Ok::<_, lipschitz_certify::Error>((x.clone(), y.clone()))];
    let found = survey(&model, data(), &settings, &|_| {}).unwrap();
    assert_eq!(found.inputs[0].radius, f64::MAX);
    assert_eq!(found.inputs[0].broken, None);
    let text = serde_json::to_string(&found).unwrap();
    let read: lipschitz_certify::local::Survey = serde_json::from_str(&text).unwrap();
    assert_eq!(read, found);
    verify(&model, data(), &read, &|_| {}).unwrap();
}

/// A text is classified as a whole, and its embedding vectors move: the survey names radii that hold.
#[test]
fn texts_are_surveyed_whatever_the_network_gives_for_them() {
    for whole in [true, false] {
        let mut nodes = vec![
            Node::new("embedding", Op::Embedding { vocabulary: 5, dim: 6 }),
            Node::new("attention", Op::Attention(Attention::new(6, 2, 3))),
        ];
        if whole {
            nodes.push(Node::new("", Op::LastToken));
        }
        nodes.push(Node::new("head", Op::Linear { inputs: 6, outputs: 3, bias: true }));
        let graph = Graph::new(Input::tokens(4), nodes).unwrap();
        let model = random_model(graph, &mut Dice::new(3));
        let ids = Tensor::new(&[[0_u32, 1, 2, 3], [4, 4, 1, 0]], &Device::Cpu).unwrap();
        let batch = (ids.clone(), ids);
        let settings = Settings {
            distance: Distance::Token,
            limit: 2,
            radii: vec![0.1],
            attack: Some(Effort { steps: 5, restarts: 1 }),
            search: 2,
        };
        let batches = || [Ok::<_, lipschitz_certify::Error>(batch.clone())];
        let found = survey(&model, batches(), &settings, &|_| {}).unwrap();
        verify(&model, batches(), &found, &|_| {}).unwrap();
        let refused = |change: &dyn Fn(&mut lipschitz_certify::local::Survey), what: &str| {
            let mut claim = found.clone();
            change(&mut claim);
            let said = verify(&model, batches(), &claim, &|_| {}).unwrap_err().to_string();
            assert!(said.contains(what), "{said}");
        };
        refused(&|claim| claim.inputs[1].radius *= 1.7, "input 1: a radius");
        refused(&|claim| claim.inputs[1].radius = f64::NAN, "input 1: a radius");
        refused(&|claim| claim.inputs[0].sha256.clear(), "input 0: is not the one");
        refused(&|claim| claim.inputs[0].class += 1, "input 0: output");
        refused(&|claim| claim.inputs[1].input = 2, "input 2: the data holds 2");
        refused(&|claim| claim.weights_sha256.clear(), "the weights");
        refused(&|claim| claim.inputs[1].radius = -1.0, "input 1: a radius");
        refused(&|claim| claim.inputs[0].global *= 1.1, "input 0: is described");
        refused(&|claim| claim.inputs[0].margin *= 1.1, "input 0: is described");
        refused(&|claim| claim.inputs[0].correct = Some(true), "input 0: is described");
        refused(&|claim| claim.inputs[0].margin *= 1.0 + 1e-7, "input 0: is described");
        refused(
            &|claim| claim.inputs[1].broken = Some(claim.inputs[1].radius),
            "is changed within",
        );
        refused(&|claim| claim.tokens = 3, "is not one of 3 tokens");
        refused(&|claim| claim.inputs.clear(), "in ascending order");
        refused(&|claim| claim.inputs.swap(0, 1), "in ascending order");
        refused(&|claim| claim.search = usize::MAX, "in ascending order");
        refused(&|claim| claim.inputs[1].outputs[0].upper[2] = Some(-9.0), "outputs at 0.1");
        refused(&|claim| claim.inputs[1].outputs[0].radius *= 1.01, "outputs at 0.101");
        assert_eq!((found.inputs.len(), found.tokens), (2, 4), "{whole}");
        for input in found.inputs {
            assert!(input.radius >= input.global && input.global > 0.0, "{whole}: {input:?}");
            assert_eq!((input.outputs[0].lower.len(), input.correct), (3, None), "{whole}");
        }
    }
}

/// `x/max(‖x‖, ε)` by hand: along x nothing changes to first order, and a change across takes
/// `1 − 1/√(1 + r²/‖x‖²)`; below ε it is x/ε.
#[test]
fn a_direction_is_bent_as_much_as_is_proven() {
    let head = Node::new("head", Op::Linear { inputs: 3, outputs: 3, bias: false });
    let nodes = vec![Node::new("", Op::Normalise { eps: 0.1 }), head];
    let same = Tensor::eye(3, DType::F64, &Device::Cpu).unwrap();
    let weights = [("head.weight".to_string(), same)].into_iter().collect();
    let model = Model::new(Graph::new(Input::Vector { dim: 3 }, nodes).unwrap(), weights).unwrap();
    let model = exact(&model).unwrap();
    let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
    let local = Local::new(&model, &norms, None).unwrap();
    for (size, radius) in
        [(0.6, 0.01), (0.6, 0.2), (0.6, 0.55), (0.15, 0.1), (0.05, 0.02), (0.09, 0.3)]
    {
        let point = local.at(&Tensor::new(&[size, 0.0, 0.0], &Device::Cpu).unwrap()).unwrap();
        let reach = point.reach(&point.values().unwrap(), radius, Distance::L2);
        let f = |x: f64, y: f64| x / x.hypot(y).max(0.1);
        let at = f(size, 0.0);
        let found = (0..1000)
            .map(|i| f64::from(i) * std::f64::consts::TAU / 1000.0)
            .flat_map(|a| [(0.5, a), (1.0, a)])
            .map(|(share, a)| {
                let (x, y) = (size + share * radius * a.cos(), share * radius * a.sin());
                (f(x, y) - at).abs()
            })
            .fold(0.0, f64::max);
        let proven = reach[0].to_f64();
        assert!(found <= proven * (1.0 + 1e-12), "{size} {radius}: {found} {proven}");
    }
}

/// Every replacement of tokens is run: none changes a decision that is proven to stay, and what was found
/// to change one does. Half of the tokens are near another one, so that something is proven.
#[test]
fn no_replacement_of_tokens_breaks_a_proof() {
    let (mut proven, mut several, mut by_trials, mut broken, mut run) = (0, 0, 0, 0, 0);
    for seed in 0..150 {
        let mut dice = Dice::new(31_000 + seed);
        let model = random_model(random_graph(&mut dice), &mut dice);
        let mut weights = model.weights().clone();
        let table = weights["embedding.weight"].to_dtype(DType::F64).unwrap();
        let (vocabulary, dim) = table.dims2().unwrap();
        let apart = dice.pick(&[1e-3, 0.02, 0.1, 0.5]);
        let mut rows = table.to_vec2::<f64>().unwrap();
        for i in (1..vocabulary).step_by(2) {
            let noise: Vec<f64> =
                dice.tensor(&[dim], apart).to_dtype(DType::F64).unwrap().to_vec1().unwrap();
            rows[i] = rows[i - 1].iter().zip(noise).map(|(x, e)| x + e).collect();
        }
        let dtype = weights["embedding.weight"].dtype();
        let table = Tensor::new(rows, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        weights.insert("embedding.weight".into(), table);
        let model = Model::new(model.graph().clone(), weights).unwrap();
        let tokens = (1 + dice.below(4)).min(model.graph().context().unwrap());
        let ids: Vec<u32> = (0..3 * tokens).map(|_| dice.below(vocabulary) as u32).collect();
        let ids = Tensor::from_vec(ids, (3, tokens), &Device::Cpu).unwrap();
        let allowed = match dice.coin() {
            true => Allowed::Nearest(1 + dice.below(2)),
            false => Allowed::Listed(
                (0..vocabulary as u32)
                    .step_by(2)
                    .map(|i| (i, vec![(i + 1) % vocabulary as u32]))
                    .collect(),
            ),
        };
        let trials = dice.pick(&[0, 0, 30]);
        let (search, fixed) = (2 * dice.below(2), Vec::new());
        let effort = Trials { limit: 9, most: 3, trials, search, fixed };
        let batches = [Ok::<_, lipschitz_certify::Error>((ids.clone(), ids))];
        let found = match substitutions(&model, batches, &allowed, &effort, &|_| {}) {
            Ok(found) => found,
            // Windows of several documents alone.
            Err(error) => {
                assert!(error.to_string().contains("within one document"), "{error}");
                continue;
            }
        };
        let model = exact(&model).unwrap();
        let class = |ids: &[u32]| -> usize {
            let x = Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu).unwrap();
            let y = model.forward(&x).unwrap();
            let y = if y.rank() == 3 { y.narrow(1, ids.len() - 1, 1).unwrap() } else { y };
            let y: Vec<f64> = y.flatten_all().unwrap().to_vec1().unwrap();
            (0..y.len()).max_by(|a, b| y[*a].total_cmp(&y[*b])).unwrap()
        };
        for row in found.inputs {
            // All sequences, with how many tokens are others.
            let mut all = vec![(Vec::new(), 0)];
            for (own, others) in row.ids.iter().zip(&row.allowed) {
                let more = |(ids, count): (Vec<u32>, usize)| {
                    let next = std::iter::once((*own, 0)).chain(others.iter().map(|o| (*o, 1)));
                    next.map(|(id, one)| ([&ids[..], &[id]].concat(), count + one))
                        .collect::<Vec<_>>()
                };
                all = all.into_iter().flat_map(more).collect();
            }
            for (ids, count) in &all {
                if *count <= row.proven {
                    run += 1;
                    assert_eq!(class(ids), row.class, "seed {seed}: {ids:?} of {row:?}");
                }
            }
            let replaceable = row.allowed.iter().filter(|ids| !ids.is_empty()).count();
            assert!(row.proven <= replaceable.min(3), "{row:?}");
            proven += usize::from(row.by == Some(Proof::Bound));
            several += usize::from(row.by == Some(Proof::Bound) && row.proven > 1);
            by_trials += usize::from(row.by == Some(Proof::Trials));
            if let Some(replaced) = &row.broken {
                let mut ids = row.ids.clone();
                for r in replaced {
                    assert!(ids[r.position] == r.from && row.allowed[r.position].contains(&r.to));
                    ids[r.position] = r.to;
                }
                broken += 1;
                assert_ne!(class(&ids), row.class, "seed {seed}: {row:?}");
            }
        }
    }
    println!(
        "{run} sequences; {proven} proven, {several} for several tokens, {by_trials} by trials; {broken} broken"
    );
    assert!(proven > 20 && several > 10 && by_trials > 5 && broken > 5 && run > 200);
}
