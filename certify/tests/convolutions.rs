//! Norms of convolutions against those of the matrices that they are, and of images through whole
//! networks.

use std::time::Instant;

use candle_core::{Device, Tensor};
use lipschitz_certify::bound::{WeightNorms, walk};
use lipschitz_certify::spectral::{Matrix, Method, convolution_norm, spectral_norm};
use lipschitz_certify::{plan, probe};
use lipschitz_nn::graph::{
    Alibi, Attention, Convolution, Graph, Input, Node, Op, Pool, Pooling, PositionBias,
};
use lipschitz_nn::linalg::Precision;
use lipschitz_nn::random::{self, Stream};
use lipschitz_nn::{Model, ops};
use lipschitz_opt::constraint::{Constraint, ConstraintConfig, ConstraintKind};
use lipschitz_opt::{MuonConfig, OptimizerConfig, Rate, Recipe};

/// The matrix of a convolution: what it makes of each pixel.
fn dense(w: &Matrix, c: &Convolution, [height, width]: [usize; 2]) -> Matrix {
    let n = c.inputs * height * width;
    let eye = Tensor::eye(n, candle_core::DType::F64, &Device::Cpu).unwrap();
    let x = eye.reshape((n, c.inputs, height, width)).unwrap();
    let w = Tensor::from_slice(&w.data, (w.rows, w.columns), &Device::Cpu).unwrap();
    let y = ops::convolution(&x, &w, None, c, Precision::F32).unwrap();
    let y = y.flatten_from(1).unwrap();
    let (rows, columns) = y.dims2().unwrap();
    Matrix { rows, columns, data: y.flatten_all().unwrap().to_vec1().unwrap() }
}

fn kernels(c: &Convolution, rng: &mut Stream) -> Vec<Matrix> {
    let [rows, columns] = c.weight();
    let n = rows * columns;
    let square = c.kernel * c.kernel;
    let normal = random::normals(rng, n);
    let even = |i: usize| (i % square / c.kernel + i % c.kernel).is_multiple_of(2);
    let sign = |i: usize| if even(i) { 1.0 } else { -1.0 };
    let all = [
        normal.clone(),
        // Largest at the frequency 0, and at the highest.
        normal.iter().map(|x| x.abs()).collect(),
        normal.iter().enumerate().map(|(i, x)| x.abs() * sign(i)).collect(),
        // One pixel, and tiny and huge ones.
        (0..n).map(|i| f64::from(u8::from(i % square == square / 2)) * normal[i]).collect(),
        normal.iter().map(|x| x * 1e-200).collect(),
        normal.iter().map(|x| x * 1e60).collect(),
        vec![1.0; n],
    ];
    all.into_iter().map(|data| Matrix { rows, columns, data }).collect()
}

fn kinds() -> Vec<Convolution> {
    let plain = Convolution { bias: false, ..Convolution::same(3, 4, 3) };
    let round = Convolution { circular: true, ..plain };
    vec![
        round,
        plain,
        Convolution { inputs: 4, outputs: 2, ..round },
        Convolution { kernel: 2, padding: 0, ..round },
        Convolution { kernel: 5, padding: 1, ..round },
        Convolution { kernel: 5, padding: 2, ..plain },
        Convolution { kernel: 3, padding: 0, ..plain },
        Convolution { kernel: 3, padding: 2, ..plain },
        Convolution { stride: 2, ..round },
        Convolution { stride: 2, ..plain },
        Convolution { stride: 3, padding: 0, kernel: 2, ..plain },
        Convolution { kernel: 2, stride: 2, padding: 0, ..plain },
        Convolution { kernel: 1, padding: 0, ..plain },
        Convolution { kernel: 4, stride: 3, padding: 1, ..round },
        Convolution { inputs: 4, groups: 2, ..round },
        Convolution { inputs: 4, groups: 4, stride: 2, ..plain },
    ]
}

/// Never below the truth; for images that go round at most a thousandth above it, wherever the stride
/// divides their sides. The lower ends are below it.
#[test]
fn norms_contain_those_of_the_matrices() {
    let mut rng = random::seeded(5);
    let mut worst: f64 = 0.0;
    for c in kinds() {
        for sides in [[6, 6], [4, 6], [5, 7]] {
            for w in kernels(&c, &mut rng) {
                let truth = spectral_norm(&dense(&w, &c, sides), Method::Proven);
                let what = format!("{c:?} on {sides:?}, {}", w.data[0]);
                for method in [Method::Proven, Method::Gram, Method::Frobenius] {
                    let found = convolution_norm(&w, &c, sides, method);
                    assert_eq!(found.method, method, "{what}");
                    let (low, high) = (found.lower, found.upper.to_f64());
                    assert!(high >= truth.lower, "{what}: {high} below {}", truth.lower);
                    assert!(low <= truth.upper.to_f64(), "{what}: {low} above {:?}", truth);
                    // Where an output is at every pixel, or at every one of the stride.
                    let full = |side: usize| c.side(side).is_some_and(|n| n * c.stride == side);
                    let exact = c.circular && sides.into_iter().all(full);
                    if method == Method::Proven && exact {
                        let excess = high / truth.lower - 1.0;
                        assert!(excess < 1e-3, "{what}: {excess}");
                        worst = worst.max(excess);
                        assert!(low > 0.999 * truth.lower, "{what}: {low}");
                    }
                }
                let power = convolution_norm(&w, &c, sides, Method::Power);
                assert!(power.upper.to_f64() <= truth.upper.to_f64() * (1.0 + 1e-12), "{what}");
            }
        }
    }
    println!("above the norm of the dense matrix by at most {worst:.2e}");
}

/// What is not a number proves nothing, and nothing is zero.
#[test]
fn odd_kernels() {
    let c = Convolution::same(2, 2, 3);
    let of = |data: Vec<f64>| {
        let w = Matrix { rows: 2, columns: 18, data };
        convolution_norm(&w, &c, [4, 4], Method::Proven).upper.to_f64()
    };
    assert_eq!(of(vec![0.0; 36]), 0.0);
    assert!(of([vec![f64::NAN], vec![0.0; 35]].concat()).is_infinite());
}

/// A stride far beyond the image reads one pixel, and takes no memory for those that it passes over.
#[test]
fn a_large_stride_takes_little_memory() {
    let start = Instant::now();
    let w = Matrix { rows: 1, columns: 1, data: vec![-3.0] };
    for (stride, sides) in
        [(1 << 14, [1, 1]), (1 << 20, [1, 1]), (1 << 28, [1, 1]), (1 << 20, [1, 1 << 20])]
    {
        let c = Convolution { stride, bias: false, ..Convolution::same(1, 1, 1) };
        let found = convolution_norm(&w, &c, sides, Method::Proven).upper.to_f64();
        assert!((3.0..3.0 + 1e-6).contains(&found), "{stride}: {found}");
    }
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

/// The usual large one, by hand: `cargo test -- --ignored --nocapture`.
#[test]
#[ignore = "some seconds"]
fn a_large_convolution_takes_seconds() {
    let c = Convolution { circular: true, bias: false, ..Convolution::same(512, 512, 3) };
    let mut rng = random::seeded(6);
    let data = random::normals(&mut rng, 512 * 512 * 9);
    let w = Matrix { rows: 512, columns: 512 * 9, data };
    for circular in [true, false] {
        let start = Instant::now();
        let found = convolution_norm(&w, &Convolution { circular, ..c }, [32, 32], Method::Proven);
        let excess = found.upper.to_f64() / found.lower - 1.0;
        println!(
            "circular {circular}: {} to {}, {excess:.2e} apart, {:.1} s",
            found.lower,
            found.upper,
            start.elapsed().as_secs_f64()
        );
        assert_eq!(found.method, Method::Proven);
    }
}

fn model(graph: Graph, rng: &mut Stream) -> Model {
    let weights = graph.parameters().into_iter().map(|p| {
        let values = random::normals(rng, p.shape.iter().product());
        (p.name, Tensor::from_vec(values, p.shape, &Device::Cpu).unwrap())
    });
    Model::new(graph.clone(), weights.collect()).unwrap()
}

/// Linear networks on images, whose constant is the norm of a matrix: never below it, and where all
/// is a permutation, an isometry or a mean, equal to it.
#[test]
fn whole_images_are_measured_by_their_norm() {
    let mut rng = random::seeded(7);
    let pixels = Input::Pixels { channels: 2, height: 4, width: 4 };
    let build = || Graph::builder(pixels);
    let moved = vec![[0, 1], [-1, 0]];
    let average =
        |window, stride, padding| Pool { pooling: Pooling::Average, window, stride, padding };
    // The network, and how much above the truth it may be.
    let all = [
        ("a shift", build().shift(moved.clone(), true).flatten().build(), 1e-6),
        ("squares", build().space_to_depth(2).flatten().build(), 1e-6),
        ("a mean of all", build().global_pool(Pooling::Average).build(), 1e-6),
        ("means", build().pool(average(2, 2, 0)).flatten().build(), 1e-6),
        ("means that overlap", build().pool(average(3, 1, 1)).flatten().build(), 1.0),
        ("patches and a mean", build().patches(2).mean_pool().build(), 1e-6),
        ("tokens", build().patches(2).linear("map", 5).mean_pool().build(), 1e-6),
        (
            "tokens with a skip",
            build().patches(2).residual("r", |b| b.linear("map", 8)).mean_pool().build(),
            2.0,
        ),
        ("a class token", build().patches(2).class_token("c").mean_pool().build(), 0.5),
        (
            "a convolution",
            build().convolution("c", Convolution::same(2, 3, 3)).flatten().build(),
            0.5,
        ),
        (
            "a sum",
            build()
                .parallel("p", |b| {
                    b.branch("a", |b| b.convolution("c", Convolution::same(2, 2, 3)))
                        .branch("b", |b| b.shift(vec![[1, 1]], false))
                })
                .flatten()
                .build(),
            1.0,
        ),
    ];
    for (what, graph, most) in all {
        let model = model(graph.unwrap(), &mut rng);
        let eye = Tensor::eye(32, candle_core::DType::F64, &Device::Cpu).unwrap();
        let x = eye.reshape((32, 2, 4, 4)).unwrap();
        let zero = model.forward(&x.narrow(0, 0, 1).unwrap().zeros_like().unwrap()).unwrap();
        let y = model.forward(&x).unwrap().broadcast_sub(&zero).unwrap();
        let (rows, columns) = y.dims2().unwrap();
        let y = y.to_dtype(candle_core::DType::F64).unwrap();
        let data = y.flatten_all().unwrap().to_vec1().unwrap();
        let truth = spectral_norm(&Matrix { rows, columns, data }, Method::Proven);
        let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
        let found = walk(model.graph(), &norms, None).unwrap().lipschitz.to_f64();
        assert!(found >= truth.lower, "{what}: {found} below {}", truth.lower);
        let excess = found / truth.lower - 1.0;
        assert!(excess <= most, "{what}: {excess} above {}", truth.lower);
    }
}

/// Attention between tokens of one pixel each, whose elements lie within `limit`, and their mean. The
/// constant of a mean is 1/√tokens in the norm of all tokens, so that this norm decides.
fn attentive(attention: Attention, tokens: usize, limit: f64) -> Graph {
    let pixels = Input::Pixels { channels: attention.dim, height: 1, width: tokens };
    let nodes = vec![
        Node::new("", Op::Clip { limit }),
        Node::new("", Op::Patches { size: 1 }),
        Node::new("a", Op::Attention(attention)),
        Node::new("", Op::MeanPool),
    ];
    Graph::new(pixels, nodes).unwrap()
}

fn constant(model: &Model) -> f64 {
    let norms = WeightNorms::new(model, Method::Proven, &|_| {});
    walk(model.graph(), &norms, None).unwrap().lipschitz.to_f64()
}

/// Where contents say nothing, attention is a matrix of probabilities times values: of an even mean the
/// norm is 1, and where all read one token it is √tokens. Over √tokens, both are what is proven.
#[test]
fn positions_alone_are_certified_exactly() {
    let eye = Tensor::eye(3, candle_core::DType::F64, &Device::Cpu).unwrap();
    let none = Tensor::zeros((3, 3), candle_core::DType::F64, &Device::Cpu).unwrap();
    for (causal, slope, wanted) in [(false, 0.0, 5f64.sqrt().recip()), (true, -60.0, 1.0)] {
        let alibi = Some(Alibi { slopes: vec![slope] });
        let attention = Attention { causal, alibi, ..Attention::new(3, 1, 3) };
        let weights = [("query", &none), ("key", &none), ("value", &eye), ("output", &eye)];
        let weights = weights.map(|(name, w)| (format!("a.{name}.weight"), w.clone()));
        let model =
            Model::new(attentive(attention, 5, 1.0), weights.into_iter().collect()).unwrap();
        let found = constant(&model);
        assert!(found >= wanted && found <= wanted * (1.0 + 1e-6), "{found} for {wanted}");
    }
}

/// Random attention of all kinds: no pair of images is found that it moves further apart than proven.
#[test]
fn attention_moves_all_tokens_together_by_no_more_than_is_proven() {
    let mut rng = random::seeded(8);
    let mut nearest = 0.0_f64;
    for i in 0..120 {
        let mut pick = |n: usize| random::below(&mut rng, n);
        let (tokens, causal) = (1 + pick(6), pick(2) == 0);
        let (heads, shared, dim) = (2, 1 + pick(2), 3);
        let attention = Attention {
            heads,
            key_value_heads: shared,
            causal,
            logit_scale: [0.05, 0.3, 1.5][pick(3)],
            output_scale: -0.7,
            bias: pick(2) == 0,
            output_bias: pick(2) == 0,
            logit_cap: (pick(3) == 0).then_some(0.5),
            window: (pick(3) == 0).then_some(2),
            position_bias: (pick(2) == 0).then_some(PositionBias { buckets: 4, max_distance: 4 }),
            alibi: (pick(2) == 0).then_some(Alibi { slopes: vec![-3.0, 0.4] }),
            query_key_norm: (pick(4) == 0).then_some(0.1),
            ..Attention::new(dim, heads, 2)
        };
        let graph = attentive(attention.clone(), tokens, 0.6);
        let model = model(graph, &mut rng);
        let proven = constant(&model);
        let starts = random::normals(&mut rng, 6 * dim * tokens);
        let starts = Tensor::from_vec(starts, (6, dim, 1, tokens), &Device::Cpu).unwrap();
        let found = probe::search(&model, &(starts * 0.4).unwrap(), 1e6, 60).unwrap();
        assert!(found.at_least <= proven, "{i}: found {} above {proven}", found.at_least);
        nearest = nearest.max(found.at_least / proven);
    }
    println!("the nearest search reached {nearest:.3} of what is proven");
    assert!(nearest > 0.5, "{nearest}");
}

/// Every constraint that promises a cap keeps convolutions under what a plan says, from weights and
/// after a step: the certificate is never above it. Rescaled kernels come near it.
#[test]
fn plans_hold_for_convolutions() {
    let pixels = Input::Pixels { channels: 3, height: 8, width: 8 };
    let half = Convolution { kernel: 3, stride: 2, padding: 1, ..Convolution::same(6, 8, 3) };
    let graph = Graph::builder(pixels)
        .convolution("a", Convolution { bias: false, ..Convolution::same(3, 6, 3) })
        .max_min()
        .convolution("b", half)
        .convolution("c", Convolution { circular: true, groups: 2, ..Convolution::same(8, 8, 3) })
        .convolution("d", Convolution { kernel: 2, stride: 2, ..Convolution::same(8, 4, 1) })
        .flatten()
        .linear_no_bias("head", 3)
        .build()
        .unwrap();
    let mut near = 0;
    for kind in ConstraintKind::ALL {
        let optimizer = OptimizerConfig::Muon(MuonConfig::default());
        let recipe = Recipe::new(optimizer, ConstraintConfig::capped(kind, 0.7));
        let Ok(planned) = plan::plan(&graph, &recipe) else { continue };
        let planned = planned.lipschitz.to_f64();
        let mut rng = random::seeded(9);
        let weights = graph.parameters().into_iter().map(|p| {
            let values = random::normals(&mut rng, p.shape.iter().product());
            let w = Tensor::from_vec(values, p.shape, &Device::Cpu).unwrap();
            (p.name, w.to_dtype(candle_core::DType::F32).unwrap())
        });
        let model = Model::new(graph.clone(), weights.collect()).unwrap();
        let (model, vars) = model.trainable().unwrap();
        let rate = Rate::constant(0.05);
        let variables = recipe.variables(&graph, vars, rate.peak).unwrap();
        let mut constraint = Constraint::new(&recipe).unwrap();
        let mut optimizer = recipe.build(&variables).unwrap();
        let proven = || {
            let now = model.detached();
            let norms = WeightNorms::new(&now, Method::Proven, &|_| {});
            walk(&graph, &norms, None).unwrap().lipschitz.to_f64()
        };
        constraint.project(&variables).unwrap();
        let mut last = proven();
        assert!(last <= planned * (1.0 + 1e-5), "{kind:?}: {last} above {planned}");
        for _ in 0..3 {
            let x = Tensor::ones((2, 3, 8, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
            let loss = model.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap();
            optimizer.step(&loss.neg().unwrap().backward().unwrap(), rate).unwrap();
            constraint.apply(&variables, rate).unwrap();
            last = proven();
            assert!(last <= planned * (1.0 + 1e-5), "{kind:?}: {last} above {planned}");
        }
        println!("{kind:?}: {last:.4} of {planned:.4}");
        near += usize::from(kind == ConstraintKind::AlmostOrthogonal && last > 0.02 * planned);
    }
    assert_eq!(near, 1);
}
