//! What each constraint guarantees, at every step and under every optimizer, by SVD. Where a
//! constraint guarantees nothing, an example in which it fails.

mod workshop;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Tensor, Var};
use lipschitz_nn::graph::{Axis, Geometry, HeadBlocks, Init, Parameter};
use lipschitz_opt::constraint::{
    Constraint, ConstraintConfig, ConstraintKind, HardCap, NormEstimator,
};
use lipschitz_opt::{
    MuonConfig, NewtonSchulz, Optimizer, OptimizerConfig, PerHead, Precision, Rate, Recipe,
    UpdateScale, Variable, Variables,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use workshop::{adamw, all, muon, norm, random, sgd, step, top, variables};

fn optimizers() -> Vec<OptimizerConfig> {
    let heads = |names: &[&str]| PerHead::Named(names.iter().map(ToString::to_string).collect());
    [
        MuonConfig { ..muon() },
        MuonConfig {
            per_head: PerHead::All(true),
            newton_schulz: NewtonSchulz::PolarExpress,
            ..muon()
        },
        MuonConfig {
            per_head: heads(&["query", "output"]),
            newton_schulz: NewtonSchulz::Jordan,
            ..muon()
        },
        MuonConfig { update_scale: UpdateScale::Adam, weight_decay: 0.1, ..muon() },
        MuonConfig { precision: Precision::Bf16, ..muon() },
    ]
    .into_iter()
    .map(OptimizerConfig::Muon)
    .chain([OptimizerConfig::Adamw(adamw()), OptimizerConfig::Sgd(sgd())])
    .collect()
}

/// Every constraint that promises a cap, with every option that changes it.
fn constraints() -> Vec<ConstraintConfig> {
    let mut out = Vec::new();
    let heads = |names: &[&str]| PerHead::Named(names.iter().map(ToString::to_string).collect());
    for per_head in [PerHead::All(false), PerHead::All(true), heads(&["key", "output"])] {
        for (sigma_max, factors) in [
            (0.3, BTreeMap::new()),
            (4.0, BTreeMap::from([("query".to_string(), 0.5), ("head".into(), 2.0)])),
        ] {
            let base = |method| ConstraintConfig {
                per_head: per_head.clone(),
                factors: factors.clone(),
                ..ConstraintConfig::capped(method, sigma_max)
            };
            out.extend([
                base(ConstraintKind::SpectralNormalize),
                base(ConstraintKind::Stiefel),
                base(ConstraintKind::SpectralSoftCap),
                ConstraintConfig { decay: Some(0.05), ..base(ConstraintKind::SpectralSoftCap) },
                base(ConstraintKind::SpectralHardCap),
                ConstraintConfig {
                    form: Some(HardCap::Sign),
                    ..base(ConstraintKind::SpectralHardCap)
                },
                base(ConstraintKind::SvdClip),
                base(ConstraintKind::AlmostOrthogonal),
            ]);
        }
    }
    let names =
        |names: &[&str]| -> BTreeSet<String> { names.iter().map(ToString::to_string).collect() };
    out.push(ConstraintConfig {
        row_caps: names(&["head", "query"]),
        column_caps: names(&["up"]),
        ..ConstraintConfig::capped(ConstraintKind::SpectralSoftCap, 0.7)
    });
    out.extend([PerHead::All(false), PerHead::All(true)].map(|per_head| ConstraintConfig {
        decay: Some(0.5),
        per_head,
        ..ConstraintConfig::new(ConstraintKind::WeightDecay)
    }));
    out
}

/// Stiefel meets its cap to a few millionths, in all singular values, for steps that cubics bring back
/// and for others; what is clipped is only below it.
#[test]
fn all_singular_values_meet_the_cap() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    type Heads = Option<HeadBlocks>;
    let variable = |name: &str, rows: usize, columns: usize, heads: Heads, rng: &mut ChaCha8Rng| {
        let shape = vec![rows, columns];
        // Near orthogonal: of a matrix with tiny singular values nothing is said.
        let side = rows / heads.map_or(1, |h| h.count);
        let at = |i: usize| f32::from(u8::from(i / columns % side % columns == i % columns));
        let eye: Vec<f32> = (0..rows * columns).map(at).collect();
        let eye = Tensor::from_vec(eye, (rows, columns), &candle_core::Device::Cpu).unwrap();
        let var = Var::from_tensor(&(eye + random(&shape, 0.01, rng)).unwrap()).unwrap();
        let (geometry, init) = (Geometry::Matrix, Init::Zero);
        let name = format!("{name}.weight");
        Variable {
            parameter: Parameter { name, shape, geometry, heads, init, convolution: None },
            var,
            rate: 1.0,
        }
    };
    let heads = Some(HeadBlocks { count: 4, axis: Axis::Rows });
    let variables = vec![
        variable("square", 192, 192, None, &mut rng),
        variable("wide", 40, 150, None, &mut rng),
        variable("tall", 150, 40, None, &mut rng),
        variable("value", 96, 48, heads, &mut rng),
        variable("head", 9, 70, None, &mut rng),
    ];
    let config = ConstraintConfig {
        per_head: PerHead::All(true),
        clip: ["head".to_string()].into(),
        ..ConstraintConfig::capped(ConstraintKind::Stiefel, 1.7)
    };
    let moves = OptimizerConfig::Muon(MuonConfig { per_head: PerHead::All(true), ..muon() });
    let recipe = Recipe::new(moves, config);
    let mut constraint = Constraint::new(&recipe).unwrap();
    let mut optimizer = recipe.build(&variables).unwrap();
    variables[4].var.set(&variables[4].var.zeros_like().unwrap()).unwrap();
    constraint.project(&variables).unwrap();
    for (i, rate) in [0.1, 0.05, 0.3, 1.0, 3.0, 0.1, 0.01, 0.1].into_iter().enumerate() {
        let gradients: Vec<Tensor> =
            variables.iter().map(|v| random(&v.parameter.shape, 1.0, &mut rng)).collect();
        step(&mut *optimizer, &variables, &gradients, Rate::constant(rate));
        constraint.apply(&variables, Rate::constant(rate)).unwrap();
        for v in &variables {
            let w = v.var.as_tensor();
            let heads = v.parameter.heads;
            let blocks = heads.map_or(1, |h| h.count);
            let rows = v.parameter.shape[0] / blocks;
            for block in 0..blocks {
                let part = w.narrow(0, block * rows, rows).unwrap();
                let values = workshop::matrix(&part).singular_values().unwrap();
                let share = |s: f64| s * lipschitz_opt::scale(&v.parameter, heads) / 1.7;
                let (high, low) = (share(values[0]), share(values[values.len() - 1]));
                let name = &v.parameter.name;
                assert!(high <= 1.0, "{name}, step {i}: {high}");
                // A step of the cap's own size may end at singular values that are tiny.
                let any = name == "head.weight" || rate >= 1.0;
                let near = if any { f64::NEG_INFINITY } else { 1.0 - 1e-5 };
                assert!(low > near, "{name}, step {i}: {low}");
                assert!(name != "head.weight" || i > 0 || high < 0.99, "{high}");
                if i > 5 && name != "head.weight" {
                    assert!(low > 1.0 - 3e-6, "{name}, step {i}: {low}");
                }
            }
        }
    }
    // The limit of a weight is one on its promise, and is saved.
    let head = &variables[4].parameter;
    constraint.limit(head, 0.5);
    assert_eq!(constraint.promise(head).unwrap().sigma_max, 0.85);
    let mut other = Constraint::new(&recipe).unwrap();
    other.load_state(&constraint.state().unwrap(), &variables).unwrap();
    assert_eq!(other.promise(head), constraint.promise(head));
    for constraint in [&mut constraint, &mut other] {
        constraint.apply(&variables, Rate::constant(0.0)).unwrap();
        assert!(norm(variables[4].var.as_tensor(), head, None) <= 0.85);
    }
}

/// The soft cap's decay is λη whatever the shape of a matrix and however many heads it has: far below the cap
/// nothing else moves.
#[test]
fn the_soft_caps_decay_is_that_of_the_learning_rate() {
    let variables = variables(&mut ChaCha8Rng::seed_from_u64(3));
    let config = ConstraintConfig {
        per_head: PerHead::All(true),
        decay: Some(0.5),
        ..ConstraintConfig::capped(ConstraintKind::SpectralSoftCap, 100.0)
    };
    let recipe = Recipe::new(
        OptimizerConfig::Muon(MuonConfig { per_head: PerHead::All(true), ..muon() }),
        config,
    );
    let mut constraint = Constraint::new(&recipe).unwrap();
    let before: Vec<Tensor> = variables.iter().map(|v| v.var.as_tensor().copy().unwrap()).collect();
    constraint.apply(&variables, Rate::constant(0.1)).unwrap();
    let mut matrices = 0;
    for (v, before) in
        variables.iter().zip(&before).filter(|(v, _)| v.parameter.geometry == Geometry::Matrix)
    {
        let keep = 1.0 - 0.5 * 0.1 * v.rate;
        let off = (v.var.as_tensor() - (before * keep).unwrap()).unwrap();
        let largest = |x: &Tensor| {
            x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap()
        };
        assert!(largest(&off) <= 1e-5 * largest(before), "{}", v.parameter.name);
        matrices += 1;
    }
    assert!(matrices > 3);
}

/// How much of what was promised is used, at most, over all weights, and over matrices under
/// singular-value caps.
fn used(constraint: &Constraint, variables: &Variables) -> (f64, f64) {
    let (mut largest, mut reached) = (0f64, 0f64);
    for v in variables {
        let Some(promise) = constraint.promise(&v.parameter) else { continue };
        let w = v.var.as_tensor();
        if v.parameter.geometry == Geometry::Table {
            let rows = w.sqr().unwrap().mean(1).unwrap().sqrt().unwrap();
            largest = largest.max(
                f64::from(rows.max(0).unwrap().to_scalar::<f32>().unwrap()) / promise.sigma_max,
            );
            continue;
        }
        let share = norm(w, &v.parameter, promise.heads) / promise.sigma_max;
        largest = largest.max(share);
        reached = reached.max(share);
        if let Some(row) = promise.row {
            let rows = w.sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
            let share = f64::from(rows.max(0).unwrap().to_scalar::<f32>().unwrap()) / row;
            assert!(
                (0.5..=1.0).contains(&share),
                "{}: a row has {share} of its cap",
                v.parameter.name
            );
        }
    }
    (largest, reached)
}

/// The largest values of [`used`] over steps with gradients that push where it hurts: along the
/// first singular vectors, along all of them, at random, and with steps too large for a coupling.
fn used_over_steps(
    optimizer: &mut dyn Optimizer,
    constraint: &mut Constraint,
    variables: &Variables,
    rng: &mut ChaCha8Rng,
) -> (f64, f64) {
    let (mut largest, mut reached) = (0f64, 0f64);
    for i in 0..14 {
        let rate = Rate::constant(if i < 11 { 0.08 } else { 3.0 });
        let gradients: Vec<Tensor> = variables
            .iter()
            .map(|v| match (v.parameter.geometry, i % 3) {
                (Geometry::Matrix, 1) => top(v.var.as_tensor()).neg().unwrap(),
                (Geometry::Matrix, 2) => all(v.var.as_tensor()).neg().unwrap(),
                _ => random(&v.parameter.shape, 1.0, rng),
            })
            .collect();
        step(optimizer, variables, &gradients, rate);
        constraint.apply(variables, rate).unwrap();
        let (l, r) = used(constraint, variables);
        (largest, reached) = (largest.max(l), reached.max(r));
    }
    (largest, reached)
}

/// Every promise holds after every step, and is used.
#[test]
fn promises_hold_at_every_step() {
    let mut promised = BTreeSet::new();
    for optimizer in &optimizers() {
        for config in &constraints() {
            let mut rng = ChaCha8Rng::seed_from_u64(3);
            let mut variables = variables(&mut rng);
            // One weight learns faster than the rest.
            variables[3].rate = 1.7;
            let recipe = Recipe::new(optimizer.clone(), config.clone());
            let mut constraint = Constraint::new(&recipe).unwrap();
            let mut moves = recipe.build(&variables).unwrap();
            // Every constraint caps tables; a promise about a matrix is what counts.
            let promises = |v: &Variable| {
                v.parameter.geometry == Geometry::Matrix
                    && constraint.promise(&v.parameter).is_some()
            };
            if !variables.iter().any(promises) {
                continue;
            }
            promised.insert((optimizer.name(), config.method.key()));
            constraint.project(&variables).unwrap();
            assert!(
                used(&constraint, &variables).0 <= 1.0,
                "{optimizer:?} {config:?}: before the first step"
            );
            let (largest, reached) =
                used_over_steps(&mut *moves, &mut constraint, &variables, &mut rng);
            assert!(largest <= 1.0, "{optimizer:?} {config:?}: {largest} of what is promised");
            // A constraint that crushes every weight would hold as well. Weight decay comes near
            // its limit after 1/(ηλ) steps.
            let enough = if config.method == ConstraintKind::WeightDecay { 0.3 } else { 0.9 };
            assert!(
                reached > enough,
                "{optimizer:?} {config:?}: only {reached} of what is promised is used"
            );
        }
    }
    let missing: Vec<_> = ConstraintKind::ALL
        .iter()
        .flat_map(|m| ["Muon", "AdamW", "SGD"].map(|o| (o, m.key())))
        .filter(|pair| !promised.contains(pair))
        .collect();
    let expected = [
        ("Muon", "none"),
        ("AdamW", "none"),
        ("SGD", "none"),
        ("AdamW", "weight_decay"),
        ("SGD", "weight_decay"),
        ("Muon", "spectral_weight_decay"),
        ("AdamW", "spectral_weight_decay"),
        ("SGD", "spectral_weight_decay"),
        ("Muon", "spectral_hammer"),
        ("AdamW", "spectral_hammer"),
        ("SGD", "spectral_hammer"),
    ];
    assert_eq!(missing, expected, "pairs without a promise");
}

/// The norm of `up` over steps that make every singular value grow.
fn grown(
    config: &ConstraintConfig,
    optimizer: OptimizerConfig,
    steps: usize,
    learning_rate: f64,
) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let variables: Variables =
        variables(&mut rng).into_iter().filter(|v| v.parameter.name == "up").collect();
    let recipe = Recipe::new(optimizer, config.clone());
    let mut constraint = Constraint::new(&recipe).unwrap();
    let mut moves = recipe.build(&variables).unwrap();
    for _ in 0..steps {
        let gradients: Vec<Tensor> =
            variables.iter().map(|v| all(v.var.as_tensor()).neg().unwrap()).collect();
        step(&mut *moves, &variables, &gradients, Rate::constant(learning_rate));
        constraint.apply(&variables, Rate::constant(learning_rate)).unwrap();
    }
    norm(variables[0].var.as_tensor(), &variables[0].parameter, None)
}

/// The constraints that promise nothing, and why.
#[test]
fn constraints_without_a_promise_fail_somewhere() {
    let muon = || OptimizerConfig::Muon(muon());
    // The hammer sets the first singular value, and the second is above the cap.
    let hammer = ConstraintConfig::capped(ConstraintKind::SpectralHammer, 1.0);
    assert!(grown(&hammer, muon(), 20, 0.2) > 1.2);
    // Spectral weight decay of λ: with weight decay's coupling the norm would stay below η/λ.
    let decay = ConstraintConfig {
        decay: Some(0.1),
        ..ConstraintConfig::new(ConstraintKind::SpectralWeightDecay)
    };
    assert!(grown(&decay, muon(), 60, 0.1) > 1.5 * 0.1 / 0.1);
    // Power iteration estimates from below, so what it leaves may be above the cap.
    let power = ConstraintConfig {
        norm: Some(NormEstimator::Power),
        ..ConstraintConfig::capped(ConstraintKind::SpectralNormalize, 1.0)
    };
    let most =
        [1, 2, 3, 5].map(|steps| grown(&power, muon(), steps, 2.0)).into_iter().fold(0.0, f64::max);
    assert!(most > 1.0 + 1e-6, "{most}");
    // Under AdamW a weight decay bounds no norm by 1/λ: an update of one element of learning-rate
    // size has any norm.
    let decay =
        ConstraintConfig { decay: Some(0.5), ..ConstraintConfig::new(ConstraintKind::WeightDecay) };
    assert!(grown(&decay, OptimizerConfig::Adamw(adamw()), 400, 0.05) > 1.0 / 0.5);
    // They do act: without a constraint the norm grows by the learning rate per step.
    assert!(grown(&ConstraintConfig::new(ConstraintKind::None), muon(), 60, 0.1) > 5.0);
    assert!(grown(&hammer, muon(), 60, 0.1) < 5.0);
}

/// What is kept from step to step is part of the state.
#[test]
fn kept_vectors_are_saved() {
    for method in [
        ConstraintKind::SpectralHammer,
        ConstraintKind::SpectralWeightDecay,
        ConstraintKind::SpectralNormalize,
    ] {
        let config = match method {
            ConstraintKind::SpectralWeightDecay => {
                ConstraintConfig { decay: Some(0.1), ..ConstraintConfig::new(method) }
            }
            ConstraintKind::SpectralNormalize => ConstraintConfig {
                norm: Some(NormEstimator::Power),
                ..ConstraintConfig::capped(method, 1.0)
            },
            _ => ConstraintConfig {
                per_head: PerHead::All(true),
                ..ConstraintConfig::capped(method, 1.0)
            },
        };
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        let first = variables(&mut rng);
        let recipe = Recipe::new(OptimizerConfig::Sgd(sgd()), config);
        let mut constraint = Constraint::new(&recipe).unwrap();
        constraint.apply(&first, Rate::constant(0.1)).unwrap();
        let second = workshop::copy(&first);
        let mut resumed = Constraint::new(&recipe).unwrap();
        let state = constraint.state().unwrap();
        assert!(!state.is_empty());
        resumed.load_state(&state, &second).unwrap();
        constraint.apply(&first, Rate::constant(0.1)).unwrap();
        resumed.apply(&second, Rate::constant(0.1)).unwrap();
        assert_eq!(workshop::bits(&first), workshop::bits(&second), "{method:?}");
        let broken = state
            .into_iter()
            .map(|(name, v)| (name, v.narrow(0, 0, 1).unwrap().flatten_all().unwrap()))
            .collect();
        assert!(
            resumed.load_state(&broken, &second).unwrap_err().to_string().contains("has shape")
        );
    }
}

/// The update of one group does not touch another, and each has its own rate.
#[test]
fn groups_move_by_their_own() {
    use lipschitz_opt::Group;
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let variables_ = variables(&mut rng);
    let group = |pattern: &str, learning_rate, optimizer| Group {
        pattern: pattern.into(),
        learning_rate,
        optimizer,
    };
    let recipe = Recipe {
        groups: vec![
            group("table", Some(0.0), None),
            group("*e*", None, Some(OptimizerConfig::Sgd(sgd()))),
            group("output", Some(0.3), None),
        ],
        ..Recipe::new(OptimizerConfig::Muon(muon()), ConstraintConfig::default())
    };
    let graph = lipschitz_nn::Graph::new(
        lipschitz_nn::graph::Input::Vector { dim: 2 },
        vec![lipschitz_nn::graph::Node::new(
            "x",
            lipschitz_nn::graph::Op::Linear { inputs: 2, outputs: 2, bias: false },
        )],
    )
    .unwrap();
    let vars = variables_.iter().map(|v| (v.parameter.clone(), v.var.clone())).collect();
    let grouped = recipe.variables(&graph, vars, 0.1).unwrap();
    let rates: BTreeMap<&str, f64> =
        grouped.iter().map(|v| (v.parameter.name.as_str(), v.rate)).collect();
    assert_eq!((rates["table"], rates["query"], rates["output"]), (0.0, 1.0, 0.3 / 0.1));
    let before = workshop::copy(&grouped);
    let gradients: Vec<Tensor> =
        grouped.iter().map(|v| random(&v.parameter.shape, 1.0, &mut rng)).collect();
    step(&mut *recipe.build(&grouped).unwrap(), &grouped, &gradients, Rate::constant(0.1));
    for ((v, before), g) in grouped.iter().zip(&before).zip(&gradients) {
        let moved = (before.var.as_tensor() - v.var.as_tensor()).unwrap();
        let size = |t: &Tensor| {
            f64::from(t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt()
        };
        match v.parameter.name.as_str() {
            "table" => assert_eq!(size(&moved), 0.0),
            "output" => assert!((norm(&moved, &v.parameter, None) / 0.3 - 1.0).abs() < 0.05),
            "query" | "key" | "vector" | "head" => {
                let decay = (before.var.as_tensor() * (0.1 * 0.2)).unwrap();
                let plain = ((g * 0.1).unwrap() + decay).unwrap();
                assert!(size(&(moved - plain).unwrap()) < 1e-5, "{}", v.parameter.name);
            }
            _ => assert!(
                (norm(&moved, &v.parameter, None) / 0.1 - 1.0).abs() < 0.05,
                "{}",
                v.parameter.name
            ),
        }
    }
    let stray = Recipe { groups: vec![group("nothing*", None, None)], ..recipe };
    assert!(stray.check_for(&graph).unwrap_err().to_string().contains("`nothing*`"));
}

#[test]
fn constants_that_do_not_fit_are_named() {
    let said = |config: ConstraintConfig| config.check().unwrap_err().to_string();
    let capped = |method| ConstraintConfig::capped(method, 1.0);
    let cases = [
        (
            ConstraintConfig::capped(ConstraintKind::SpectralNormalize, f64::NAN),
            "constraint.sigma_max is NaN",
        ),
        (
            capped(ConstraintKind::WeightDecay),
            "constraint.sigma_max is no constant of `weight_decay`",
        ),
        (ConstraintConfig::new(ConstraintKind::WeightDecay), "constraint.decay is missing"),
        (
            ConstraintConfig { decay: Some(0.1), ..capped(ConstraintKind::Stiefel) },
            "constraint.decay is no constant of `stiefel`",
        ),
        (
            ConstraintConfig {
                clip: ["head".to_string()].into(),
                ..capped(ConstraintKind::SvdClip)
            },
            "constraint.clip is no constant of `svd_clip`",
        ),
        (
            ConstraintConfig { decay: Some(-0.1), ..capped(ConstraintKind::SpectralSoftCap) },
            "constraint.decay is -0.1",
        ),
        (
            ConstraintConfig { form: Some(HardCap::Sign), ..capped(ConstraintKind::SvdClip) },
            "constraint.form",
        ),
        (
            ConstraintConfig {
                norm: Some(NormEstimator::Power),
                ..capped(ConstraintKind::SvdClip)
            },
            "constraint.norm",
        ),
        (
            ConstraintConfig {
                factors: [("head".to_string(), 0.0)].into(),
                ..capped(ConstraintKind::SvdClip)
            },
            "constraint.factors.head is 0",
        ),
        (
            ConstraintConfig {
                row_caps: ["head".to_string()].into(),
                column_caps: ["head".to_string()].into(),
                ..capped(ConstraintKind::SvdClip)
            },
            "choose one",
        ),
    ];
    for (config, wanted) in cases {
        let said = said(config);
        assert!(said.contains(wanted), "{said}");
    }
}
