//! Optimizers and constraints against independent computations: SVD, and loops over scalars.

mod workshop;

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::graph::Geometry;
use lipschitz_opt::constraint::{
    hard_cap_quintic, hard_cap_quintic_at, hard_cap_sign, soft_cap, soft_cap_composed,
};
use lipschitz_opt::polynomial::{
    NewtonSchulz, at, orthogonalise, orthogonalise_composed, polar, rounding,
};
use lipschitz_opt::{
    AdamWConfig, MuonConfig, OptimizerConfig, PerHead, Precision, Rate, SgdConfig, UpdateScale,
    Variables, Warmup, scale,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use workshop::{adamw, matrix, muon, norm, random, sgd, sigma_max, spectrum, step, variables};

/// `U f(Σ) Vᵀ` by SVD, with f applied to scalars; the largest difference of an element.
fn off(got: &Tensor, m: &Tensor, f: impl Fn(f64) -> f64) -> f64 {
    let (got, exact) = (matrix(got), matrix(m));
    let svd = exact.thin_svd().unwrap();
    let s = svd.S().column_vector();
    let mut largest = 0f64;
    for i in 0..got.nrows() {
        for j in 0..got.ncols() {
            let want: f64 =
                (0..s.nrows()).map(|k| svd.U()[(i, k)] * f(s[k]) * svd.V()[(j, k)]).sum();
            let off = (got[(i, j)] - want).abs();
            assert!(off.is_finite(), "element {i}, {j} is {}", got[(i, j)]);
            largest = largest.max(off);
        }
    }
    largest
}

/// The largest difference of an element.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let all = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(all.iter().all(|x| x.is_finite()), "not a number, or infinite");
    f64::from(all.into_iter().fold(0.0, f32::max))
}

fn frobenius(m: &Tensor) -> f64 {
    matrix(m).singular_values().unwrap().iter().map(|x| x * x).sum::<f64>().sqrt()
}

const SHAPES: [(usize, usize); 9] =
    [(1, 1), (1, 7), (7, 1), (5, 5), (6, 13), (13, 6), (24, 96), (80, 16), (40, 40)];

/// Spectra: random, all equal, geometric over six decades, rank one, two clusters.
fn matrices(rng: &mut ChaCha8Rng) -> Vec<Tensor> {
    let mut out = Vec::new();
    for (rows, columns) in SHAPES {
        let n = rows.min(columns);
        out.extend([1e-30, 1.0, 1e30].map(|factor| random(&[rows, columns], factor, rng)));
        let values: [Vec<f64>; 4] = [
            vec![1.0; n],
            (0..n).map(|i| 10f64.powf(-6.0 * i as f64 / n as f64)).collect(),
            (0..n).map(|i| if i == 0 { 1.0 } else { 0.0 }).collect(),
            (0..n).map(|i| if i % 2 == 0 { 1.0 } else { 0.01 }).collect(),
        ];
        out.extend(values.iter().map(|values| spectrum(rows, columns, values, rng)));
    }
    out
}

/// The kernels and the composed forms agree, on both sides of the range of norms that need no
/// scaling first.
#[test]
fn kernels_equal_the_composed_forms() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let mut worst = 0f64;
    for (rows, columns) in SHAPES {
        for factor in [1e-12, 1e-5, 1.0, 1e12] {
            let m = random(&[2, rows, columns], factor, &mut rng);
            for set in NewtonSchulz::ALL {
                let (a, b) =
                    (orthogonalise(&m, set).unwrap(), orthogonalise_composed(&m, set).unwrap());
                worst = worst.max(distance(&a, &b));
            }
        }
        let m = random(&[2, rows, columns], 1.0, &mut rng);
        let (a, b) = (soft_cap(&m, 0.01).unwrap(), soft_cap_composed(&m, 0.01).unwrap());
        worst = worst.max(distance(&a, &b));
    }
    println!("largest distance of an element: {worst:.1e}");
    assert!(worst < 1e-3, "{worst}");
}

/// The documented errors: 3e-3 in f32, 0.2 in bf16.
#[test]
fn orthogonalise_moves_singular_values_alone() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (mut worst, mut worst_half) = (0f64, 0f64);
    for m in matrices(&mut rng) {
        for set in NewtonSchulz::ALL {
            let size = frobenius(&m);
            let got = orthogonalise(&m, set).unwrap();
            worst = worst.max(off(&got, &m, |s| set.at(s / size)));
            let most = set.maximum() * (1.0 + rounding(m.dims()[0], m.dims()[1]));
            assert!(sigma_max(&got) <= most, "{set:?} {:?}: {}", m.dims(), sigma_max(&got));
            let half = m.to_dtype(DType::BF16).unwrap();
            let rounded = half.to_dtype(DType::F32).unwrap();
            let size = frobenius(&rounded);
            let got = orthogonalise(&half, set).unwrap().to_dtype(DType::F32).unwrap();
            // Singular values below what bf16 resolves turn into noise that a set amplifies as it
            // should.
            let fine = matrix(&rounded)
                .singular_values()
                .unwrap()
                .iter()
                .all(|s| *s == 0.0 || *s > 0.1 * size);
            if fine {
                worst_half = worst_half.max(off(&got, &rounded, |s| set.at(s / size)));
            }
        }
    }
    println!("largest error of an element: f32 {worst:.1e}, bf16 {worst_half:.1e}");
    assert!(worst < 3e-3, "{worst}");
    assert!(worst_half < 0.2, "{worst_half}");
    let zero = Tensor::zeros((3, 4), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(
        orthogonalise(&zero, NewtonSchulz::SixStep).unwrap().to_vec2::<f32>().unwrap(),
        [[0.0; 4]; 3]
    );
}

#[test]
fn polar_is_the_polar_factor() {
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    for (rows, columns) in SHAPES {
        let n = rows.min(columns);
        let values: Vec<f64> =
            (0..n).map(|i| 3.0 * 10f64.powf(-1.5 * i as f64 / n as f64)).collect();
        let m = spectrum(rows, columns, &values, &mut rng);
        let off = off(&polar(&m).unwrap(), &m, |_| 1.0);
        assert!(off < 1e-4, "{rows}×{columns}: {off}");
    }
}

/// Both forms of the hard cap against scalars, and never above the cap.
#[test]
fn hard_caps_cap() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for (rows, columns) in SHAPES {
        let n = rows.min(columns);
        for cap in [0.3, 1.0, 6.0] {
            for round in 0..4 {
                // Up to twice the cap, many at the cap itself, some next to it, some tiny.
                let value = |i: usize| match (i + round) % 4 {
                    0 => 2.0,
                    1 => 1.0,
                    2 => 1.0 + 1e-3 * i as f64,
                    _ => 1e-4 * (1 + i) as f64,
                };
                let values: Vec<f64> = (0..n).map(|i| cap * value(i).min(2.0)).collect();
                let m = spectrum(rows, columns, &values, &mut rng);
                let exact = hard_cap_sign(&m, cap).unwrap();
                let error = off(&exact, &m, |s| s.min(cap));
                assert!(error < 1e-3 * cap, "{rows}×{columns} {cap}: {error}");
                assert!(
                    sigma_max(&exact) <= cap * (1.0 + 2e-4),
                    "{rows}×{columns} {cap}: {}",
                    sigma_max(&exact)
                );
                let quintic = hard_cap_quintic(&m, cap).unwrap();
                let error = off(&quintic, &m, |s| hard_cap_quintic_at(s, cap));
                assert!(error < 1e-5 * cap, "{rows}×{columns} {cap}: {error}");
                assert!(sigma_max(&quintic) <= cap * (1.0 + 1e-5), "{}", sigma_max(&quintic));
            }
        }
    }
}

/// The largest RMS norm of a row of 8.
fn largest_row(x: &Tensor) -> f64 {
    let rows = x.reshape(((), 8)).unwrap().sqr().unwrap().mean(1).unwrap().sqrt().unwrap();
    f64::from(rows.max(0).unwrap().to_scalar::<f32>().unwrap())
}

/// Updates have the size that the couplings build on: at most the stated bound, and close to it.
#[test]
fn muon_moves_every_weight_by_the_learning_rate() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let names = PerHead::Named(["query", "output"].map(String::from).into());
    for per_head in [PerHead::All(false), PerHead::All(true), names] {
        for newton_schulz in NewtonSchulz::ALL {
            for update_scale in [
                UpdateScale::RmsToRms,
                UpdateScale::Spectral,
                UpdateScale::Jordan,
                UpdateScale::Adam,
            ] {
                let variables = variables(&mut rng);
                let muon = MuonConfig {
                    per_head: per_head.clone(),
                    newton_schulz,
                    update_scale,
                    ..muon()
                };
                let config = OptimizerConfig::Muon(muon);
                let mut optimizer = config.build(variables.clone()).unwrap();
                let gradients: Vec<Tensor> =
                    variables.iter().map(|v| random(&v.parameter.shape, 1.0, &mut rng)).collect();
                let before: Vec<Tensor> =
                    variables.iter().map(|v| v.var.as_tensor().copy().unwrap()).collect();
                step(&mut *optimizer, &variables, &gradients, Rate::constant(0.5));
                for (v, before) in variables.iter().zip(&before) {
                    let p = &v.parameter;
                    let moved = ((before - v.var.as_tensor()).unwrap() / 0.5).unwrap();
                    let bound = config.update_bound(p).unwrap();
                    if p.geometry != Geometry::Matrix {
                        let size = largest_row(&moved);
                        assert!((0.95..=bound.whole).contains(&size), "{}: {size}", p.name);
                        continue;
                    }
                    let heads = p.heads.filter(|heads| heads.count > 1);
                    let (whole, block) = (norm(&moved, p, None), norm(&moved, p, heads));
                    assert!(
                        whole <= bound.whole && block <= bound.block,
                        "{}: {whole} {block} {bound:?}",
                        p.name
                    );
                    let tight = if per_head.of(p).is_some() {
                        block / bound.block
                    } else {
                        whole / bound.whole
                    };
                    assert!(tight > 0.55, "{} {newton_schulz:?}: {tight} of the bound", p.name);
                }
            }
        }
    }
}

/// β grows over the first steps, and the state knows where it is.
#[test]
fn momentum_warms_up() {
    let config = OptimizerConfig::Muon(MuonConfig {
        warmup: Some(Warmup { from: 0.0, steps: 4 }),
        beta: 0.8,
        ..muon()
    });
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let variables: Variables = variables(&mut rng).into_iter().take(1).collect();
    let mut optimizer = config.build(variables.clone()).unwrap();
    let g = random(&variables[0].parameter.shape, 1.0, &mut rng);
    let mut wanted = 0.0;
    for t in 0..6 {
        let beta = if t < 4 { 0.2 * f64::from(t) } else { 0.8 };
        wanted = beta * wanted + (1.0 - beta);
        step(&mut *optimizer, &variables, std::slice::from_ref(&g), Rate::constant(0.1));
        let state = optimizer.state().unwrap();
        let m = &state["muon.momentum.table"];
        let off = (m - (&g * wanted).unwrap())
            .unwrap()
            .abs()
            .unwrap()
            .flatten_all()
            .unwrap()
            .max(0)
            .unwrap();
        assert!(off.to_scalar::<f32>().unwrap() < 1e-6);
        assert_eq!(state["muon.steps"].to_vec1::<u32>().unwrap(), [t as u32 + 1]);
    }
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

#[test]
fn adamw_is_the_loop_over_scalars() {
    for (bias_correction, decoupled) in [(true, false), (false, true)] {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let variables = variables(&mut rng);
        let config = AdamWConfig { bias_correction, decoupled, ..adamw() };
        let mut optimizer = OptimizerConfig::Adamw(config).build(variables.clone()).unwrap();
        let zeros = |v: &lipschitz_opt::Variable| vec![0.0; v.var.elem_count()];
        let mut scalars: Vec<[Vec<f64>; 3]> =
            variables.iter().map(|v| [flat(v.var.as_tensor()), zeros(v), zeros(v)]).collect();
        for t in 1..=20 {
            let rate = Rate { peak: 0.02, factor: 1.0 / f64::from(t) };
            let gradients: Vec<Tensor> =
                variables.iter().map(|v| random(&v.parameter.shape, 1.0, &mut rng)).collect();
            step(&mut *optimizer, &variables, &gradients, rate);
            for (([w, m, v], g), variable) in scalars.iter_mut().zip(&gradients).zip(&variables) {
                let learning_rate = rate.now() * variable.rate;
                for (i, g) in flat(g).into_iter().enumerate() {
                    m[i] = 0.8 * m[i] + 0.2 * g;
                    v[i] = 0.95 * v[i] + 0.05 * g * g;
                    let correct =
                        |beta: f64| if bias_correction { 1.0 - beta.powi(t) } else { 1.0 };
                    let (mean, square) = (m[i] / correct(0.8), v[i] / correct(0.95));
                    let decay = if decoupled { 0.1 * rate.factor } else { 0.1 * learning_rate };
                    w[i] = (1.0 - decay) * w[i] - learning_rate * mean / (square.sqrt() + 1e-6);
                }
            }
        }
        for (v, [scalar, ..]) in variables.iter().zip(&scalars) {
            let off = flat(v.var.as_tensor())
                .iter()
                .zip(scalar)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f64::max);
            assert!(off < 1e-5, "{}: {off}", v.parameter.name);
        }
    }
}

#[test]
fn sgd_is_the_loop_over_scalars() {
    for nesterov in [false, true] {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let variables = variables(&mut rng);
        let config = SgdConfig { nesterov, ..sgd() };
        let mut optimizer = OptimizerConfig::Sgd(config).build(variables.clone()).unwrap();
        let mut scalars: Vec<[Vec<f64>; 2]> = variables
            .iter()
            .map(|v| [flat(v.var.as_tensor()), vec![0.0; v.var.elem_count()]])
            .collect();
        for _ in 0..10 {
            let gradients: Vec<Tensor> =
                variables.iter().map(|v| random(&v.parameter.shape, 1.0, &mut rng)).collect();
            step(&mut *optimizer, &variables, &gradients, Rate::constant(0.05));
            for (([w, m], g), variable) in scalars.iter_mut().zip(&gradients).zip(&variables) {
                let learning_rate = 0.05 * variable.rate;
                for (i, g) in flat(g).into_iter().enumerate() {
                    m[i] = 0.7 * m[i] + g;
                    let direction = if nesterov { g + 0.7 * m[i] } else { m[i] };
                    w[i] = (1.0 - 0.2 * learning_rate) * w[i] - learning_rate * direction;
                }
            }
        }
        for (v, [scalar, _]) in variables.iter().zip(&scalars) {
            let off = flat(v.var.as_tensor())
                .iter()
                .zip(scalar)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f64::max);
            assert!(off < 1e-5, "{}: {off}", v.parameter.name);
        }
    }
}

/// The state is everything: an optimizer that is saved and loaded continues bit for bit, and holds
/// no old graph.
#[test]
fn a_loaded_state_continues_bit_for_bit() {
    let warm =
        MuonConfig { warmup: Some(Warmup { from: 0.5, steps: 20 }), weight_decay: 0.1, ..muon() };
    let half = MuonConfig { precision: Precision::Bf16, ..muon() };
    let configs = [
        OptimizerConfig::Muon(warm),
        OptimizerConfig::Muon(half),
        OptimizerConfig::Adamw(adamw()),
        OptimizerConfig::Sgd(sgd()),
    ];
    for config in configs {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let first = variables(&mut rng);
        let gradients: Vec<Vec<Tensor>> = (0..8)
            .map(|_| first.iter().map(|v| random(&v.parameter.shape, 1.0, &mut rng)).collect())
            .collect();
        let mut optimizer = config.build(first.clone()).unwrap();
        gradients[..4].iter().for_each(|g| step(&mut *optimizer, &first, g, Rate::constant(0.1)));
        let second = workshop::copy(&first);
        let mut resumed = config.build(second.clone()).unwrap();
        let state = optimizer.state().unwrap();
        assert!(state.values().all(|t| !t.track_op()), "{config:?} keeps a graph alive");
        resumed.load_state(&state).unwrap();
        for g in &gradients[4..] {
            step(&mut *optimizer, &first, g, Rate::constant(0.1));
            step(&mut *resumed, &second, g, Rate::constant(0.1));
        }
        assert_eq!(workshop::bits(&first), workshop::bits(&second), "{config:?}");
        let mut broken = state.clone();
        let name = broken.keys().find(|k| k.contains("query")).unwrap().clone();
        broken.remove(&name);
        let error = resumed.load_state(&broken).unwrap_err().to_string();
        assert!(error.contains(&name), "{error}");
    }
}

/// A block's norm is at most the whole's times √count, and blocks of norm 1 make a whole of norm at
/// most 1: both sides.
#[test]
fn blocks_and_wholes() {
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    for v in variables(&mut rng).iter().filter(|v| v.parameter.heads.is_some()) {
        let (p, w) = (&v.parameter, v.var.as_tensor());
        let (whole, block) = (norm(w, p, None), norm(w, p, p.heads));
        let count = (p.heads.unwrap().count as f64).sqrt();
        assert!(
            block <= whole * count * 1.0001 && whole <= block * 1.0001,
            "{}: {whole} {block}",
            p.name
        );
        assert!((scale(p, p.heads) / scale(p, None) - count).abs() < 1e-12);
    }
    // A set's polynomial at a number is the product of its steps.
    assert_eq!(at(&[[2.0, 0.0, 0.0], [0.5, 1.0, 0.0]], 3.0), 6.0 * (0.5 + 36.0));
}

#[test]
fn constants_out_of_range_are_named() {
    let said = |config: OptimizerConfig| config.build(Vec::new()).err().unwrap().to_string();
    assert!(
        said(OptimizerConfig::Muon(MuonConfig { beta: 1.0, ..muon() }))
            .contains("optimizer.beta is 1")
    );
    let warmup = Some(Warmup { from: f64::NAN, steps: 3 });
    assert!(
        said(OptimizerConfig::Muon(MuonConfig { warmup, ..muon() }))
            .contains("optimizer.warmup.from is NaN")
    );
    assert!(
        said(OptimizerConfig::Adamw(AdamWConfig { eps: 0.0, ..adamw() }))
            .contains("optimizer.eps is 0")
    );
    assert!(
        said(OptimizerConfig::Sgd(SgdConfig { momentum: -0.1, ..sgd() }))
            .contains("optimizer.momentum is -0.1")
    );
}

/// Spectra that a Gram matrix rounds worst, a few large values over many near 10⁻³, along random
/// vectors and along constant ones: what an update can pass its bound by stays below half of what
/// is allowed for.
#[test]
fn updates_stay_within_what_is_allowed_for_rounding() {
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let mut worst = 0f64;
    for (rows, columns) in [(8, 64), (16, 64), (256, 64), (64, 256), (64, 1024), (48, 90)] {
        for i in 0..14 {
            let small = 10f64.powf(-3.6 + 0.15 * f64::from(i));
            for large in [0, 1, rows.min(columns) / 2] {
                let values: Vec<f64> =
                    (0..rows.min(columns)).map(|i| if i < large { 1.0 } else { small }).collect();
                let m = spectrum(rows, columns, &values, &mut rng);
                let constant =
                    if large == 0 { ((rows * columns) as f64).sqrt().recip() } else { 0.0 };
                let m = (m + constant).unwrap();
                for set in NewtonSchulz::ALL {
                    let over = sigma_max(&orthogonalise(&m, set).unwrap()) / set.maximum() - 1.0;
                    worst = worst.max(over / rounding(rows, columns));
                    assert!(
                        over < 0.5 * rounding(rows, columns),
                        "{set:?} {rows} {columns} {small}: {over}"
                    );
                }
            }
        }
    }
    println!("at most {worst:.2} of what is allowed");
}
