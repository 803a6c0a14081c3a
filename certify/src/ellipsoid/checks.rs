//! Each rule against what it says, by attack.

use std::collections::BTreeMap;

use lipschitz_nn::graph::{Attention, Function, Graph, Input, Node, Op, PositionBias};
use lipschitz_nn::init::{self, Blocks};
use lipschitz_nn::{Model, random};
use rand_chacha::ChaCha8Rng;

use candle_core::{DType, Device};

use super::Aim;
use super::approx::{Approx, Enclosed, above, cut, inverse_transpose};
use super::multipliers::{Logs, Multipliers};
use super::parts::Pass;
use super::positions::classes;
use super::tape::Tape;
use super::vectors::dot;

use super::weights::Weights;
use crate::upper::Upper;

fn draw(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Approx {
    let data = (0..rows * columns).map(|_| random::symmetric(rng)).collect();
    Approx::exact(rows, columns, data)
}

fn row(a: &Approx, i: usize) -> &[f64] {
    &a.data[i * a.columns..(i + 1) * a.columns]
}

/// `‖aᵀ v‖²`
fn square(a: &Approx, v: &[f64]) -> f64 {
    let scale = 4f64.powi(a.exponent as i32);
    let column = |j: usize| (0..a.rows).map(|i| a.data[i * a.columns + j] * v[i]).sum::<f64>();
    scale * (0..a.columns).map(|j| column(j).powi(2)).sum::<f64>()
}

fn unit(rng: &mut ChaCha8Rng, n: usize) -> Vec<f64> {
    let v: Vec<f64> = (0..n).map(|_| random::symmetric(rng)).collect();
    let size = dot(&v, &v).sqrt();
    v.into_iter().map(|x| x / size).collect()
}

/// Products of integers that do not fit in 53 bits, against exact integer arithmetic: the error that
/// is kept covers what rounding lost, and it lost something.
#[test]
fn no_rounding_is_left_out() {
    let mut rng = random::seeded(1);
    let mut lost = 0;
    for _ in 0..300 {
        let n = 1 + (random::symmetric(&mut rng).abs() * 7.0) as usize;
        let whole = |rng: &mut ChaCha8Rng| (random::symmetric(rng) * 2f64.powi(40)).round();
        let a: Vec<f64> = (0..n * n).map(|_| whole(&mut rng)).collect();
        let b: Vec<f64> = (0..n * n).map(|_| whole(&mut rng)).collect();
        let product = Approx::exact(n, n, a.clone()).times(&Approx::exact(n, n, b.clone()));
        let unit = 2f64.powi(product.exponent as i32);
        let mut off = 0.0;
        for i in 0..n {
            for j in 0..n {
                let exact: i128 = (0..n).map(|k| a[i * n + k] as i128 * b[k * n + j] as i128).sum();
                let computed = (product.data[i * n + j] * unit) as i128;
                off += ((exact - computed) as f64).powi(2);
            }
        }
        let kept = product.error.to_f64() * unit;
        assert!(off.sqrt() <= kept, "{} lost, {kept} kept", off.sqrt());
        lost += usize::from(off > 0.0);
    }
    assert!(lost > 200, "{lost}");
}

/// Weights of terms do not sum to more than 1: `Σ 1/s² ≤ 1` for the scales s.
#[test]
fn shares_are_shares() {
    let tape = Tape::new(Multipliers::search(Logs::new()), false);
    for sizes in [vec![0.0, 0.0], vec![3.0, -2.0, 100.0], vec![-900.0, 5.0, 5.0, 1.0]] {
        let what = format!("{sizes:?}");
        let scales = tape.shares(&what, &sizes).unwrap();
        let sum: f64 = scales.iter().map(|s| s.value.to_f64().powi(-2)).sum();
        assert!(sum <= 1.0 + 1e-15 && sum > 1.0 - 1e-9, "{sum}");
    }
}

/// For free ω within ±u·ζ, the pair of new unknowns is in the unit ball, and on its edge at the
/// extremes; the factor is one from below.
#[test]
fn slopes_stay_in_the_unit_ball() {
    let mut rng = random::seeded(2);
    for n in [1, 2, 5, 9] {
        for _ in 0..40 {
            let u = draw(&mut rng, 2 * n, n);
            let small = u.scale(Upper::from_f64(0.9 / u.norm().to_f64()));
            let found = cut(&small).unwrap();
            let size = 2f64.powi(small.exponent as i32);
            let zeta = unit(&mut rng, n);
            let omega: f64 = (0..2 * n).map(|i| (size * dot(row(&small, i), &zeta)).powi(2)).sum();
            let own = square(&found.l, &zeta);
            assert!(own + omega <= 1.0 + 1e-12, "{}", own + omega);
            assert!(own + omega >= 1.0 - 1e-9, "{}", own + omega);
            let back = found.solve(&draw(&mut rng, 3, n), &inverse_transpose(&found.l));
            assert!(back.error.to_f64() < 1e-9 && back.error > Upper::ZERO);
            assert!(found.floor > 0.0 && found.floor <= 1.0 - 0.81 + 1e-9);
        }
    }
    // Not positive definite: nothing is proven.
    assert!(cut(&Approx::exact(2, 2, vec![1.0, 0.0, 0.0, 0.5])).is_none());
    assert!(cut(&Approx::exact(1, 1, vec![1.0 - 1e-17])).is_none());
    assert!(cut(&Approx::exact(1, 1, vec![f64::NAN])).is_none());
}

/// Ellipsoids contain what they are to contain, in every direction, singular ones and errors of the
/// blocks included.
#[test]
fn ellipsoids_enclose_and_dominate() {
    let mut rng = random::seeded(3);
    for n in [1, 3, 6] {
        for kind in 0..3 {
            let mut a = draw(&mut rng, n, n + 2);
            let b = draw(&mut rng, n, n);
            if kind == 1 {
                // Rank one.
                let first = row(&a, 0).to_vec();
                (0..n).for_each(|i| a.data[i * (n + 2)..][..n + 2].copy_from_slice(&first));
            }
            if kind == 2 {
                a.error = Upper::from_f64(0.01);
            }
            let d = Approx::exact(1, n, vec![0.25; n]);
            let l = Approx::enclose(
                n,
                &[Enclosed::Dense(&a), Enclosed::Dense(&b), Enclosed::Diagonal(0, &d)],
            )
            .unwrap();
            let positive = above(&a, &b).unwrap();
            for _ in 0..50 {
                let v = unit(&mut rng, n);
                let inside = square(&a, &v) + square(&b, &v) + 0.0625;
                let inside = if kind == 2 {
                    // The error may point anywhere.
                    (square(&a, &v).sqrt() + 0.0099).powi(2) + square(&b, &v) + 0.0625
                } else {
                    inside
                };
                assert!(square(&l, &v) >= inside * (1.0 - 1e-14), "{kind}");
                assert!(kind == 2 || square(&l, &v) <= inside + 1e-9 * square(&a, &v).max(1.0));
                let union = square(&a, &v) + square(&positive.factor, &v);
                assert!(union >= square(&b, &v) - 1e-12);
            }
            if kind == 0 {
                let lift = positive.lift(&a, &b).unwrap();
                let size = lift.norm().to_f64();
                assert!(size > 0.0 && size < 1e-5, "{n}: {size}");
            }
        }
    }
    assert!(Approx::enclose(1, &[Enclosed::Dense(&Approx::exact(1, 1, vec![f64::NAN]))]).is_none());
}

/// The classes of a table that was worked out by hand.
#[test]
fn classes_of_tokens() {
    let position_bias = Some(PositionBias { buckets: 8, max_distance: 16 });
    let a = Attention { position_bias, ..Attention::new(4, 2, 2) };
    // Head 0 reads two places back, or one, or itself; head 1 anything.
    let table: Vec<f64> =
        [10.0, 20.0, 40.0, 0.0, 0.0, 0.0, 0.0, 0.0].iter().flat_map(|b| [*b, 0.0]).collect();
    let table = Approx::exact(8, 2, table);
    let found = classes(&a, Some(&table), Some(5), 0);
    let places: Vec<Option<usize>> =
        found.iter().map(|class| class.heads[0].map(|head| head.0)).collect();
    assert_eq!(places, [Some(2), Some(1), Some(0)]);
    // In the first token head 1 has nowhere else to look; later it reads any.
    assert_eq!(found[2].heads[1], Some((0, Upper::ZERO)));
    assert!(found[0].heads[1].is_none() && found[1].heads[1].is_none());
    let odds = found[0].heads[0].unwrap().1.to_f64();
    assert!(odds >= (-20f64).exp() && odds < (-20f64).exp() * 1.001, "{odds}");
    // Far apart is not infinitely far; without a longest sequence nothing is known.
    let far = Approx::exact(8, 2, (0..16).map(|i| if i == 0 { 2000.0 } else { 0.0 }).collect());
    let found = classes(&a, Some(&far), Some(5), 0);
    assert!(found[0].heads[0].unwrap().1 > Upper::ZERO);
    let nothing = [super::positions::Class { heads: vec![None; 2] }];
    assert_eq!(classes(&a, Some(&table), None, 0), nothing);
    // Behind one zero no token is a first one, behind two none is a second; but a window hides them.
    let behind = |window, zeros| {
        let found = classes(&Attention { window, ..a.clone() }, Some(&table), Some(7), zeros);
        found.iter().map(|class| class.heads[0].map(|head| head.0)).collect::<Vec<_>>()
    };
    assert_eq!(behind(None, 1), [Some(2), Some(1)]);
    assert_eq!(behind(None, 2), [Some(2)]);
    assert_eq!(behind(Some(2), 4), [Some(1)]);
    assert_eq!(behind(Some(3), 1), [Some(2), Some(1)]);
    // Rotary positions hide what contents add.
    let turned = Attention {
        rotary: Some(lipschitz_nn::graph::Rotary::new(10.0, lipschitz_nn::graph::Pairing::Half)),
        ..a
    };
    assert_eq!(classes(&turned, Some(&table), Some(5), 0).len(), 1);
}

/// Every kind of rule in one network or another.
fn networks() -> Vec<Graph> {
    let dim = 4;
    let linear =
        |name: &str, inputs, outputs, bias| Node::new(name, Op::Linear { inputs, outputs, bias });
    let phi = |function| Node::new("", Op::Activation { function, scale: 0.9 });
    let mlp =
        |function| vec![linear("up", dim, 6, true), phi(function), linear("down", 6, dim, true)];
    let residual =
        |name: &str, body| Node::new(name, Op::Residual { skip: 0.6, branch: 0.8, body });
    let attention = |a: Attention| vec![Node::new("", Op::Attention(a))];
    let plain = Attention { bias: true, output_bias: true, ..Attention::new(dim, 2, 2) };
    let rotary = Attention {
        rotary: Some(lipschitz_nn::graph::Rotary::new(10.0, lipschitz_nn::graph::Pairing::Half)),
        ..Attention::new(dim, 2, 2)
    };
    let shared = Attention { key_value_heads: 1, ..Attention::new(dim, 2, 2) };
    let normed = Attention { query_key_norm: Some(0.5), ..plain.clone() };
    let places = Attention {
        position_bias: Some(PositionBias { buckets: 4, max_distance: 8 }),
        ..plain.clone()
    };
    let max_min = Node::new("", Op::MaxMin);
    let of = |rest: Vec<Node>| {
        let embedding = Node::new("embedding", Op::Embedding { vocabulary: 5, dim });
        let head = linear("head", dim, 3, false);
        Graph::new(Input::tokens(6), [vec![embedding], rest, vec![head]].concat()).unwrap()
    };
    let norm = |bias| Node::new("n", Op::LayerNorm { dim, eps: 0.3, bias, gain: true });
    let gated = Op::GatedMlp { dim, hidden: 5, function: Function::Silu, bias: true };
    let branches = vec![
        Node::new("x", Op::Sequential { body: mlp(Function::GeluErf) }),
        Node::new("y", Op::Sequential { body: attention(shared.clone()) }),
    ];
    vec![
        of(vec![residual("a", attention(plain)), residual("m", mlp(Function::GeluErf))]),
        of(vec![residual("a", attention(rotary)), residual("m", mlp(Function::Sigmoid))]),
        of(vec![residual("a", attention(normed)), residual("m", mlp(Function::Relu2))]),
        of(vec![residual("a", [vec![norm(true)], attention(shared)].concat())]),
        of(vec![residual("g", vec![norm(false), Node::new("", gated)])]),
        of(vec![residual("p", vec![Node::new("", Op::Parallel { branches })])]),
        of(vec![residual("a", attention(places)), residual("m", mlp(Function::Abs))]),
        of(vec![
            Node::new("o", Op::OffsetAttention { inputs: dim, head_dim: 2, offsets: vec![0, 1] }),
            residual(
                "m",
                vec![linear("up", dim, 6, true), max_min.clone(), linear("w", 6, dim, true)],
            ),
            linear("square", dim, dim, false),
            max_min,
        ]),
    ]
}

/// The derivative by multipliers against differences along random directions, for every rule. (What
/// is stored has five digits, which differences of this size do not see.)
#[test]
fn derivatives_are_those_of_the_bound() {
    let both = |graph: Graph| [Aim::All, Aim::Pairs].map(|aim| (graph.clone(), aim));
    for (k, (graph, aim)) in networks().into_iter().flat_map(both).enumerate() {
        let mut weights =
            init::weights(&graph, 3, Blocks::Whole, &Device::Cpu, DType::F64).unwrap();
        let mut rng = random::seeded(k as u64);
        for (name, w) in &mut weights {
            let n = w.elem_count();
            let factor = if name.ends_with("position_bias.weight") { 9.0 } else { 0.8 };
            let data: Vec<f64> = (0..n).map(|_| factor * random::symmetric(&mut rng)).collect();
            *w = candle_core::Tensor::from_vec(data, w.dims(), &Device::Cpu).unwrap();
        }
        let model = Model::new(graph.clone(), weights).unwrap();
        let weights = Weights::new(&model, true);
        let run = |logs: &Logs, split: bool| match Pass::new(
            &graph,
            &weights,
            Upper::from_f64(1.5),
            logs.clone(),
            (aim, split),
        ) {
            Ok(pass) => pass,
            Err(_) => panic!("network {k}: no walk"),
        };
        let gradient = |pass: Pass<'_>| match pass.gradient() {
            Ok(gradient) => gradient,
            Err(_) => panic!("network {k}: no walk"),
        };
        let value = |logs: &Logs| 2.0 * run(logs, false).bound().to_f64().ln();
        let mut logs = run(&Logs::new(), false).logs;
        logs.values_mut().flatten().for_each(|l| *l += 0.5 * random::symmetric(&mut rng));
        // Node by node it is the same, up to the order of sums.
        let (whole, split) = (run(&logs, false), run(&logs, true));
        assert_eq!((whole.bound(), &whole.slots), (split.bound(), &split.slots), "network {k}");
        let (gradient, split) = (gradient(whole), gradient(split));
        let split: BTreeMap<String, Vec<f64>> = split.into_iter().collect();
        for (of, g) in &gradient {
            let near = |a: &f64, b: &f64| (a - b).abs() <= 1e-9 * (1.0 + a.abs());
            assert!(g.iter().zip(&split[of]).all(|(a, b)| near(a, b)), "network {k}: {of}");
        }
        for _ in 0..4 {
            let (mut along, mut near, mut far) = (0.0, logs.clone(), logs.clone());
            let step = 3e-3;
            for (of, g) in &gradient {
                for (i, g) in g.iter().enumerate() {
                    let d = random::symmetric(&mut rng);
                    along += g * d;
                    near.get_mut(of).unwrap()[i] -= step * d;
                    far.get_mut(of).unwrap()[i] += step * d;
                }
            }
            // At a kink, as the largest of two norms has one, the derivative is one of two.
            let here = value(&logs);
            let sides = [(here - value(&near)) / step, (value(&far) - here) / step];
            let size: f64 = gradient.iter().flat_map(|(_, g)| g).map(|g| g * g).sum::<f64>().sqrt();
            let allowed = 0.03 * size.max(0.05);
            let (low, high) = (sides[0].min(sides[1]), sides[0].max(sides[1]));
            assert!(
                (low - allowed..high + allowed).contains(&along),
                "network {k}: {sides:?} measured, {along} derived, gradient {size}"
            );
        }
    }
}
