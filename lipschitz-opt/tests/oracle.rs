//! Optimizers and constraints against independent computations: SVD, and loops over scalars.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use faer::Mat;
use lipschitz_nn::graph::{Axis, Geometry, HeadBlocks, Init, Parameter};
use lipschitz_nn::norm::rms_to_rms;
use lipschitz_opt::constraint::{Constraint, ConstraintConfig};
use lipschitz_opt::polynomial::orthogonalise;
use lipschitz_opt::{NewtonSchulz, OptimizerConfig, Variables};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn unit(rng: &mut ChaCha8Rng) -> f64 {
    f64::from(rng.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0
}

fn random(shape: &[usize], factor: f64, rng: &mut ChaCha8Rng) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| (factor * unit(rng)) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn matrix(t: &Tensor) -> Mat<f64> {
    let rows = t.to_vec2::<f32>().unwrap();
    Mat::from_fn(rows.len(), rows[0].len(), |i, j| f64::from(rows[i][j]))
}

fn sigma_max(t: &Tensor) -> f64 {
    matrix(t).singular_values().unwrap()[0]
}

/// The outer product of the first singular vectors: the step that makes a matrix grow most.
fn top(t: &Tensor) -> Tensor {
    let m = matrix(t);
    let svd = m.svd().unwrap();
    let values = (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| (i, j)));
    let values: Vec<f32> = values.map(|(i, j)| (svd.U()[(i, 0)] * svd.V()[(j, 0)]) as f32).collect();
    Tensor::from_vec(values, (m.nrows(), m.ncols()), &Device::Cpu).unwrap()
}

fn parameter(name: &str, shape: &[usize], geometry: Geometry, heads: Option<HeadBlocks>) -> Parameter {
    Parameter { name: name.into(), shape: shape.to_vec(), geometry, heads, init: Init::Zero }
}

/// A table, a vector, matrices wide, tall and split into heads either way.
fn variables(rng: &mut ChaCha8Rng) -> Variables {
    let (rows, columns) =
        (Some(HeadBlocks { count: 4, axis: Axis::Rows }), HeadBlocks { count: 4, axis: Axis::Columns });
    [
        parameter("table", &[12, 8], Geometry::Table, None),
        parameter("vector", &[8], Geometry::Vector, None),
        parameter("query", &[16, 8], Geometry::Matrix, rows),
        parameter("output", &[8, 16], Geometry::Matrix, Some(columns)),
        parameter("up", &[24, 8], Geometry::Matrix, None),
        parameter("head", &[1, 24], Geometry::Matrix, None),
    ]
    .into_iter()
    .map(|p| {
        let start = random(&p.shape, 1.0, rng);
        (p, Var::from_tensor(&start).unwrap())
    })
    .collect()
}

/// A step along given gradients: those of `Σ ⟨W, G⟩`.
fn step(optimizer: &mut dyn lipschitz_opt::Optimizer, variables: &Variables, gradients: &[Tensor], learning_rate: f64) {
    let terms = variables.iter().zip(gradients).map(|((_, w), g)| (w.as_tensor() * g).unwrap().sum_all().unwrap());
    let loss = terms.reduce(|a, b| (a + b).unwrap()).unwrap();
    optimizer.step(&loss.backward().unwrap(), learning_rate).unwrap();
}

fn muon(per_head: bool, newton_schulz: NewtonSchulz) -> OptimizerConfig {
    OptimizerConfig::Muon { beta: 0.9, nesterov: true, per_head, newton_schulz }
}

fn adamw() -> OptimizerConfig {
    OptimizerConfig::Adamw { beta1: 0.8, beta2: 0.95, eps: 1e-6, bias_correction: true, weight_decay: 0.1 }
}

/// U f(Σ/‖m‖_F) Vᵀ by SVD, with f applied to scalars.
#[test]
fn orthogonalise_moves_singular_values_alone() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (rows, columns) in [(1, 1), (1, 7), (7, 1), (5, 5), (6, 13), (13, 6)] {
        for factor in [1e-30, 1.0, 1e30] {
            for set in [NewtonSchulz::SixStep, NewtonSchulz::Jordan] {
                let m = random(&[rows, columns], factor, &mut rng);
                let got = matrix(&orthogonalise(&m, set).unwrap());
                let exact = matrix(&m);
                let svd = exact.svd().unwrap();
                let s = svd.S().column_vector();
                let norm = s.iter().map(|x| x * x).sum::<f64>().sqrt();
                for i in 0..rows {
                    for j in 0..columns {
                        let term = |k: usize| svd.U()[(i, k)] * set.at(s[k] / norm) * svd.V()[(j, k)];
                        let want: f64 = (0..rows.min(columns)).map(term).sum();
                        let off = (got[(i, j)] - want).abs();
                        assert!(off < 2e-4, "{rows}×{columns} · {factor} {set:?}: {off}");
                    }
                }
            }
        }
    }
    let zero = Tensor::zeros((3, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert_eq!(orthogonalise(&zero, NewtonSchulz::SixStep).unwrap().to_vec2::<f32>().unwrap(), [[0.0; 4]; 3]);
}

/// Updates have the size that the couplings build on: at most the learning rate in the parameter's norm.
#[test]
fn muon_moves_every_weight_by_the_learning_rate() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for per_head in [false, true] {
        let variables = variables(&mut rng);
        let mut optimizer = muon(per_head, NewtonSchulz::SixStep).build(variables.clone()).unwrap();
        let gradients: Vec<Tensor> = variables.iter().map(|(p, _)| random(&p.shape, 1.0, &mut rng)).collect();
        let before: Vec<Tensor> = variables.iter().map(|(_, w)| w.as_tensor().copy().unwrap()).collect();
        step(&mut *optimizer, &variables, &gradients, 0.5);
        for ((p, w), before) in variables.iter().zip(&before) {
            let moved = ((before - w.as_tensor()).unwrap() / 0.5).unwrap();
            let size = match p.geometry {
                Geometry::Matrix => {
                    let blocks = p.heads.filter(|h| per_head && h.axis == Axis::Rows).map_or(1, |h| h.count);
                    let rows = p.shape[0] / blocks;
                    let block = |i: usize| moved.narrow(0, i * rows, rows).unwrap();
                    (0..blocks).map(|i| sigma_max(&block(i)) * rms_to_rms(rows, p.shape[1])).fold(0.0, f64::max)
                }
                _ => {
                    let rows = moved.reshape(((), 8)).unwrap().sqr().unwrap().mean(1).unwrap().sqrt().unwrap();
                    f64::from(rows.max(0).unwrap().to_scalar::<f32>().unwrap())
                }
            };
            assert!((0.95..=1.002).contains(&size), "{} per_head {per_head}: {size}", p.name);
        }
    }
}

/// Every cap holds after every step, for every optimizer and constraint, with gradients that push where it hurts.
#[test]
fn caps_hold_at_every_step() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let optimizers = [
        muon(false, NewtonSchulz::SixStep),
        muon(true, NewtonSchulz::SixStep),
        muon(true, NewtonSchulz::Jordan),
        adamw(),
    ];
    for optimizer in &optimizers {
        for per_head in [false, true] {
            for (sigma_max_, factors) in
                [(0.3, BTreeMap::new()), (4.0, BTreeMap::from([("query".to_string(), 0.5), ("head".into(), 2.0)]))]
            {
                for constraint in [
                    ConstraintConfig::SpectralNormalize { sigma_max: sigma_max_, per_head, factors: factors.clone() },
                    ConstraintConfig::SpectralSoftCap {
                        sigma_max: sigma_max_,
                        decay: 0.0,
                        per_head,
                        factors: factors.clone(),
                    },
                    ConstraintConfig::SpectralSoftCap {
                        sigma_max: sigma_max_,
                        decay: 0.05,
                        per_head,
                        factors: factors.clone(),
                    },
                ] {
                    check_caps(optimizer, &constraint, &mut rng);
                }
            }
        }
    }
}

fn check_caps(optimizer: &OptimizerConfig, config: &ConstraintConfig, rng: &mut ChaCha8Rng) {
    let variables = variables(rng);
    let constraint = Constraint::new(config, optimizer).unwrap();
    let mut optimizer_ = optimizer.build(variables.clone()).unwrap();
    constraint.project(&variables).unwrap();
    let (mut largest, mut reached) = (0f64, 0f64);
    for i in 0..12 {
        // The last steps are too large for the soft cap to have a strength.
        let learning_rate = if i < 9 { 0.08 } else { 3.0 };
        let gradients: Vec<Tensor> = variables
            .iter()
            .map(|(p, w)| match p.geometry {
                Geometry::Matrix if i % 3 > 0 => top(w.as_tensor()).neg().unwrap(),
                _ => random(&p.shape, 1.0, rng),
            })
            .collect();
        step(&mut *optimizer_, &variables, &gradients, learning_rate);
        constraint.apply(&variables, learning_rate).unwrap();
        for (p, w) in &variables {
            let Some(promise) = constraint.cap(p) else { continue };
            let excess = if p.geometry == Geometry::Table {
                let rows = w.as_tensor().sqr().unwrap().mean(1).unwrap().sqrt().unwrap();
                f64::from(rows.max(0).unwrap().to_scalar::<f32>().unwrap())
            } else {
                let blocks = p.heads.filter(|_| promise.per_head).map_or(1, |h| h.count);
                let rows = p.shape[0] / blocks;
                let norm = |i: usize| sigma_max(&w.as_tensor().narrow(0, i * rows, rows).unwrap());
                (0..blocks).map(norm).fold(0.0, f64::max) * rms_to_rms(rows, p.shape[1])
            } / promise.sigma_max;
            largest = largest.max(excess);
            reached = if p.geometry == Geometry::Matrix { reached.max(excess) } else { reached };
        }
    }
    assert!(largest <= 1.0, "{optimizer:?} {config:?}: {largest} of the cap");
    // A constraint that crushes every weight would hold as well.
    assert!(reached > 0.9, "{optimizer:?} {config:?}: only {reached} of the cap is used");
}

#[test]
fn adamw_is_the_loop_over_scalars() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let variables = variables(&mut rng);
    let mut optimizer = adamw().build(variables.clone()).unwrap();
    let flat = |t: &Tensor| -> Vec<f64> {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
    };
    let mut twins: Vec<[Vec<f64>; 3]> = variables
        .iter()
        .map(|(_, w)| [flat(w.as_tensor()), vec![0.0; w.elem_count()], vec![0.0; w.elem_count()]])
        .collect();
    for t in 1..=20 {
        let learning_rate = 0.02 / f64::from(t);
        let gradients: Vec<Tensor> = variables.iter().map(|(p, _)| random(&p.shape, 1.0, &mut rng)).collect();
        step(&mut *optimizer, &variables, &gradients, learning_rate);
        for ([w, m, v], g) in twins.iter_mut().zip(&gradients) {
            for (i, g) in flat(g).into_iter().enumerate() {
                m[i] = 0.8 * m[i] + 0.2 * g;
                v[i] = 0.95 * v[i] + 0.05 * g * g;
                let (mean, square) = (m[i] / (1.0 - 0.8f64.powi(t)), v[i] / (1.0 - 0.95f64.powi(t)));
                w[i] -= learning_rate * (0.1 * w[i] + mean / (square.sqrt() + 1e-6));
            }
        }
    }
    for ((p, w), [twin, ..]) in variables.iter().zip(&twins) {
        let off = flat(w.as_tensor()).iter().zip(twin).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < 1e-5, "{}: {off}", p.name);
    }
}

/// The state is everything: an optimizer that is saved and loaded goes on bit for bit, and holds no old graph.
#[test]
fn a_loaded_state_continues_bit_for_bit() {
    for config in [muon(true, NewtonSchulz::SixStep), adamw()] {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let first = variables(&mut rng);
        let gradients: Vec<Vec<Tensor>> =
            (0..8).map(|_| first.iter().map(|(p, _)| random(&p.shape, 1.0, &mut rng)).collect()).collect();
        let mut optimizer = config.build(first.clone()).unwrap();
        gradients[..4].iter().for_each(|g| step(&mut *optimizer, &first, g, 0.1));
        let copy = |(p, w): &(Parameter, Var)| (p.clone(), Var::from_tensor(&w.as_tensor().copy().unwrap()).unwrap());
        let second: Variables = first.iter().map(copy).collect();
        let mut resumed = config.build(second.clone()).unwrap();
        let state = optimizer.state().unwrap();
        assert!(state.values().all(|t| !t.track_op()), "{config:?} keeps a graph alive");
        resumed.load_state(&state).unwrap();
        for g in &gradients[4..] {
            step(&mut *optimizer, &first, g, 0.1);
            step(&mut *resumed, &second, g, 0.1);
        }
        let bits = |v: &Variables| -> Vec<u32> {
            let values = v.iter().flat_map(|(_, w)| w.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            values.map(f32::to_bits).collect()
        };
        assert_eq!(bits(&first), bits(&second), "{config:?}");
        let mut broken = state.clone();
        let name = broken.keys().find(|k| k.contains("query")).unwrap().clone();
        broken.remove(&name);
        let error = resumed.load_state(&broken).unwrap_err().to_string();
        assert!(error.contains(&name), "{error}");
    }
}

#[test]
fn constants_out_of_range_are_named() {
    let optimizer =
        OptimizerConfig::Muon { beta: 1.0, nesterov: false, per_head: false, newton_schulz: NewtonSchulz::Jordan };
    assert!(optimizer.build(Vec::new()).err().unwrap().to_string().contains("optimizer.beta is 1"));
    let constraint =
        ConstraintConfig::SpectralNormalize { sigma_max: f64::NAN, per_head: false, factors: Default::default() };
    assert!(Constraint::new(&constraint, &adamw()).err().unwrap().to_string().contains("constraint.sigma_max is NaN"));
}
