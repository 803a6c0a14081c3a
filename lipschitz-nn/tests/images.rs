//! Nodes on images: by their formulas, pixel by pixel; their gradients by finite differences; kernels
//! against candle's operations.

use candle_core::{DType, Device, Tensor, Var};
use lipschitz_nn::graph::{Convolution, Function, Graph, Input, Node, Op, Pool, Pooling};
use lipschitz_nn::linalg::Precision;
use lipschitz_nn::random::{self, Stream};
use lipschitz_nn::{Model, ops};

fn var(shape: &[usize], rng: &mut Stream) -> Var {
    let values = random::normals(rng, shape.iter().product());
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

fn numbers(x: &Tensor) -> Vec<f64> {
    let flat = x.detach().flatten_all().unwrap();
    flat.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn near(what: &str, a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{what}, element {i}: {a} not {b}");
    }
}

/// The gradients of `Σ c ∘ f` by finite differences.
fn check(what: &str, inputs: &[&Var], rng: &mut Stream, f: &dyn Fn() -> Tensor) {
    let weighting = var(f().dims(), rng);
    let value = || (f() * weighting.as_tensor()).unwrap().sum_all().unwrap();
    let gradients = value().backward().unwrap();
    for (which, input) in inputs.iter().enumerate() {
        let found = numbers(gradients.get(input.as_tensor()).unwrap());
        let (old, dims) = (numbers(input.as_tensor()), input.dims().to_vec());
        let at = |i: usize, by: f64| {
            let mut moved = old.clone();
            moved[i] += by;
            input.set(&Tensor::from_vec(moved, &dims[..], &Device::Cpu).unwrap()).unwrap();
            value().to_scalar::<f64>().unwrap()
        };
        let h = 1e-5;
        let wanted: Vec<f64> = (0..old.len()).map(|i| (at(i, h) - at(i, -h)) / (2.0 * h)).collect();
        input.set(&Tensor::from_vec(old.clone(), &dims[..], &Device::Cpu).unwrap()).unwrap();
        near(&format!("{what}, gradient {which}"), &found, &wanted, 1e-6);
    }
}

fn kinds() -> Vec<Convolution> {
    let plain = Convolution { bias: false, ..Convolution::same(4, 6, 3) };
    vec![
        plain,
        Convolution { circular: true, ..plain },
        Convolution { stride: 2, bias: true, ..plain },
        Convolution { stride: 2, circular: true, groups: 2, ..plain },
        Convolution { kernel: 2, stride: 2, padding: 0, ..plain },
        Convolution { kernel: 1, padding: 0, bias: true, ..plain },
        Convolution { kernel: 1, padding: 0, groups: 2, ..plain },
        Convolution { kernel: 5, padding: 4, ..plain },
        Convolution { kernel: 4, padding: 1, circular: true, ..plain },
        Convolution { kernel: 3, padding: 1, stride: 3, ..plain },
        Convolution { outputs: 4, groups: 4, bias: true, ..plain },
        Convolution { kernel: 2, stride: 3, padding: 1, ..plain },
    ]
}

#[test]
fn convolutions_are_their_formula() {
    let mut rng = random::seeded(1);
    for c in kinds() {
        let (h, w) = (5, 6);
        let x = var(&[3, c.inputs, h, w], &mut rng);
        let weight = var(&c.weight(), &mut rng);
        let bias = c.bias.then(|| var(&[c.outputs], &mut rng));
        let b = bias.as_ref().map(|b| b.as_tensor());
        let f =
            || ops::convolution(x.as_tensor(), weight.as_tensor(), b, &c, Precision::F32).unwrap();
        let (y, xs, ws) = (f(), numbers(&x), numbers(&weight));
        let (oh, ow) = (c.side(h).unwrap(), c.side(w).unwrap());
        assert_eq!(y.dims(), [3, c.outputs, oh, ow]);
        let (gi, go, k) = (c.inputs / c.groups, c.outputs / c.groups, c.kernel);
        let mut wanted = Vec::new();
        for n in 0..3 {
            for o in 0..c.outputs {
                for i in 0..oh {
                    for j in 0..ow {
                        let mut sum = b.map_or(0.0, |b| numbers(b)[o]);
                        for ci in 0..gi {
                            for u in 0..k {
                                for v in 0..k {
                                    let at = |i: usize, u: usize, side: usize| {
                                        let at = (i * c.stride + u) as i64 - c.padding as i64;
                                        let side = side as i64;
                                        if c.circular {
                                            Some(at.rem_euclid(side) as usize)
                                        } else {
                                            (0..side).contains(&at).then_some(at as usize)
                                        }
                                    };
                                    let (Some(p), Some(q)) = (at(i, u, h), at(j, v, w)) else {
                                        continue;
                                    };
                                    let channel = o / go * gi + ci;
                                    let pixel = ((n * c.inputs + channel) * h + p) * w + q;
                                    sum += ws[((o * gi + ci) * k + u) * k + v] * xs[pixel];
                                }
                            }
                        }
                        wanted.push(sum);
                    }
                }
            }
        }
        near(&format!("{c:?}"), &numbers(&y), &wanted, 1e-12);
        let inputs: Vec<&Var> = [&x, &weight].into_iter().chain(bias.as_ref()).collect();
        check(&format!("{c:?}"), &inputs, &mut rng, &f);
        let composed = ops::composed::convolution(&x, &weight, b, &c, Precision::F32).unwrap();
        near(&format!("{c:?}, composed"), &numbers(&composed), &wanted, 1e-12);
    }
}

#[test]
fn shifts_and_squares_move_pixels() {
    let mut rng = random::seeded(2);
    let x = var(&[2, 4, 4, 6], &mut rng);
    let xs = numbers(&x);
    let offsets = [[0, 1], [-1, 0], [2, -3], [9, 0]];
    for circular in [false, true] {
        let f = || ops::shift(&x, &offsets, circular).unwrap();
        let mut wanted = Vec::new();
        for n in 0..2 {
            for (c, [down, right]) in offsets.iter().enumerate() {
                for i in 0..4_i32 {
                    for j in 0..6_i32 {
                        let (mut p, mut q) = (i - down, j - right);
                        if circular {
                            (p, q) = (p.rem_euclid(4), q.rem_euclid(6));
                        }
                        let inside = (0..4).contains(&p) && (0..6).contains(&q);
                        let at = ((n * 4 + c) as i32 * 4 + p) * 6 + q;
                        wanted.push(if inside { xs[at as usize] } else { 0.0 });
                    }
                }
            }
        }
        assert_eq!(numbers(&f()), wanted);
        assert_eq!(numbers(&ops::composed::shift(&x, &offsets, circular).unwrap()), wanted);
        check("shift", &[&x], &mut rng, &f);
    }
    let f = || ops::space_to_depth(&x, 2).unwrap();
    let y = f();
    assert_eq!(y.dims(), [2, 16, 2, 3]);
    // Channel 1, row 1 and column 0 of a square; the square in row 1, column 2.
    let at = y.get(0).unwrap().get(4 + 2).unwrap().get(1).unwrap().get(2).unwrap();
    assert_eq!(numbers(&at)[0], xs[24 + 3 * 6 + 4]);
    check("squares", &[&x], &mut rng, &f);
}

#[test]
fn pooling_is_its_formula() {
    let mut rng = random::seeded(3);
    let x = var(&[2, 3, 5, 4], &mut rng);
    let xs = numbers(&x);
    for pooling in [Pooling::Average, Pooling::Max, Pooling::L2] {
        for (window, stride, padding) in [(2, 2, 0), (3, 2, 1), (2, 1, 1), (3, 1, 0), (1, 3, 0)] {
            let pool = Pool { pooling, window, stride, padding };
            let f = || ops::pool(&x, &pool).unwrap();
            let (oh, ow) = (pool.side(5).unwrap(), pool.side(4).unwrap());
            let mut wanted = Vec::new();
            for plane in 0..6 {
                for i in 0..oh {
                    for j in 0..ow {
                        let mut seen = Vec::new();
                        for u in 0..window {
                            for v in 0..window {
                                let p = (i * stride + u).wrapping_sub(padding);
                                let q = (j * stride + v).wrapping_sub(padding);
                                if p < 5 && q < 4 {
                                    seen.push(xs[plane * 20 + p * 4 + q]);
                                }
                            }
                        }
                        let size = (window * window) as f64;
                        wanted.push(match pooling {
                            Pooling::Average => seen.iter().sum::<f64>() / size,
                            Pooling::Max => seen.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                            Pooling::L2 => seen.iter().map(|x| x * x).sum::<f64>().sqrt(),
                        });
                    }
                }
            }
            near(&format!("{pool:?}"), &numbers(&f()), &wanted, 1e-12);
            let composed = ops::composed::pool(&x, &pool).unwrap();
            near(&format!("{pool:?}, composed"), &numbers(&composed), &wanted, 1e-12);
            check(&format!("{pool:?}"), &[&x], &mut rng, &f);
            let g = |y: Tensor| numbers(y.sum_all().unwrap().backward().unwrap().get(&x).unwrap());
            near("gradients", &g(f()), &g(composed), 1e-12);
        }
        let f = || ops::global_pool(&x, pooling).unwrap();
        assert_eq!(f().dims(), [2, 3]);
        check("of all pixels", &[&x], &mut rng, &f);
    }
    // At zero a norm has no gradient, and gives none.
    let zero = Var::zeros((1, 1, 2, 2), DType::F64, &Device::Cpu).unwrap();
    let y = ops::global_pool(&zero, Pooling::L2).unwrap().sum_all().unwrap();
    assert_eq!(numbers(y.backward().unwrap().get(&zero).unwrap()), [0.0; 4]);
}

/// A graph of every node on images runs, by kernels and without them, and its text is read back.
#[test]
fn graphs_of_images_run() {
    let mut rng = random::seeded(4);
    let pixels = Input::Pixels { channels: 3, height: 8, width: 8 };
    let moved = vec![[0, 1], [0, -1], [1, 0], [-1, 0]];
    let graph = Graph::builder(pixels)
        .space_to_depth(2)
        .convolution("in", Convolution { circular: true, ..Convolution::same(12, 8, 3) })
        .max_min()
        .residual("block", |b| {
            b.convolution("conv", Convolution::same(8, 8, 3)).activation(Function::Relu)
        })
        .parallel("sum", |b| {
            b.branch("a", |b| b.shift(moved, true).convolution("c", Convolution::same(8, 6, 1)))
                .branch("b", |b| b.convolution("c", Convolution::same(8, 6, 3)))
        })
        .pool(Pool { pooling: Pooling::Max, window: 2, stride: 2, padding: 0 })
        .flatten()
        .linear("head", 5)
        .build()
        .unwrap();
    assert_eq!(Graph::from_json(&serde_json::to_string(&graph).unwrap()).unwrap(), graph);
    let weights = graph.parameters().into_iter();
    let weights = weights.map(|p| (p.name, var(&p.shape, &mut rng).as_detached_tensor()));
    let model = Model::new(graph, weights.collect()).unwrap();
    let x = var(&[2, 3, 8, 8], &mut rng);
    let fused = numbers(&model.forward(&x).unwrap());
    let composed = lipschitz_nn::linalg::without_kernels(|| numbers(&model.forward(&x).unwrap()));
    near("graph", &fused, &composed, 1e-12);
    for (nodes, said) in [
        (vec![Node::new("c", Op::Conv(Convolution::same(4, 4, 3)))], "3 channels|4 channels"),
        (
            vec![Node::new(
                "c",
                Op::Conv(Convolution { padding: 3, ..Convolution::same(3, 4, 3) }),
            )],
            "padding 3",
        ),
        (
            vec![Node::new(
                "c",
                Op::Conv(Convolution { circular: true, padding: 0, ..Convolution::same(3, 4, 9) }),
            )],
            "more than once",
        ),
        (
            vec![Node::new("c", Op::Conv(Convolution { groups: 2, ..Convolution::same(3, 4, 3) }))],
            "2 groups",
        ),
        (
            vec![Node::new("c", Op::Conv(Convolution { stride: 0, ..Convolution::same(3, 4, 3) }))],
            "stride",
        ),
        (vec![Node::new("s", Op::Shift { offsets: vec![[0, 0]; 2], circular: true })], "divide"),
        (vec![Node::new("s", Op::Shift { offsets: vec![], circular: true })], "offsets"),
        (vec![Node::new("s", Op::SpaceToDepth { size: 3 })], "does not fit"),
        (
            vec![Node::new(
                "p",
                Op::Pool(Pool { pooling: Pooling::Max, window: 2, stride: 1, padding: 2 }),
            )],
            "padding 2",
        ),
        (vec![Node::new("m", Op::MaxMin)], "even"),
        (
            vec![
                Node::new("f", Op::Flatten),
                Node::new("g", Op::GlobalPool { pooling: Pooling::L2 }),
            ],
            "wants an image",
        ),
    ] {
        let error = Graph::new(pixels, nodes).unwrap_err().to_string();
        assert!(said.split('|').any(|said| error.contains(said)), "{error}, not {said}");
    }
}

/// Random chains of few and of many images: values are those of candle's operations, and gradients
/// those of the layers one by one on each image alone, which finite differences show to be right above.
#[test]
fn chains_of_layers_are_the_layers_in_turn() {
    let mut rng = random::seeded(5);
    let draw = |rng: &mut Stream, n: usize| random::below(rng, n);
    for trial in 0..40 {
        let batch = [1, 3, 37, 70][trial % 4];
        let sides = [4 + 2 * draw(&mut rng, 3), 4 + 2 * draw(&mut rng, 2)];
        let (mut channels, mut sizes) = (4, sides);
        let x = var(&[batch, channels, sides[0], sides[1]], &mut rng);
        let (mut layers, mut vars) = (Vec::new(), Vec::new());
        for _ in 0..1 + draw(&mut rng, 6) {
            layers.push(match draw(&mut rng, 5) {
                0 | 1 => {
                    let kinds = kinds();
                    let c = kinds[draw(&mut rng, kinds.len())];
                    let c = Convolution { inputs: channels, ..c };
                    let wide = c.circular && c.padding > sizes[0].min(sizes[1]);
                    let (Some(h), Some(w)) = (c.side(sizes[0]), c.side(sizes[1])) else { continue };
                    if wide || !channels.is_multiple_of(c.groups) {
                        continue;
                    }
                    (channels, sizes) = (c.outputs, [h, w]);
                    let weight = var(&c.weight(), &mut rng);
                    let bias = c.bias.then(|| var(&[c.outputs], &mut rng));
                    let layer = ops::ImageLayer::Convolution(
                        c,
                        weight.as_tensor().clone(),
                        bias.as_ref().map(|b| b.as_tensor().clone()),
                    );
                    vars.push(weight);
                    vars.extend(bias);
                    layer
                }
                2 => ops::ImageLayer::Shift {
                    offsets: vec![[0, 1], [-1, draw(&mut rng, 3) as i32]],
                    circular: draw(&mut rng, 2) == 0,
                },
                3 => ops::ImageLayer::MaxMin,
                _ => ops::ImageLayer::Activation { function: Function::Tanh, scale: 1.5 },
            });
        }
        let what = format!("{batch} images, {layers:?}");
        let weighting = |y: &Tensor| (y * y.sin().unwrap()).unwrap().sum_all().unwrap();
        let of = |y: &Tensor| {
            let gradients = weighting(y).backward().unwrap();
            let all = vars.iter().chain([&x]);
            all.map(|v| gradients.get(v.as_tensor()).map(numbers)).collect::<Vec<_>>()
        };
        let composed = ops::composed::image_chain(&x, &layers, Precision::F32).unwrap();
        let alone = |i: usize| {
            layers.iter().fold(x.narrow(0, i, 1).unwrap(), |x, layer| {
                ops::image_chain(&x, std::slice::from_ref(layer), Precision::F32, true).unwrap()
            })
        };
        let alone = (0..batch).map(alone).collect::<Vec<_>>();
        let wanted = of(&Tensor::cat(&alone, 0).unwrap());
        for keep in [true, false] {
            let y = ops::image_chain(&x, &layers, Precision::F32, keep).unwrap();
            near(&what, &numbers(&y), &numbers(&composed), 1e-11);
            for (found, wanted) in of(&y).iter().zip(&wanted) {
                let (Some(found), Some(wanted)) = (found, wanted) else {
                    assert!(found.is_none() && wanted.is_none(), "{what}");
                    continue;
                };
                near(&what, found, wanted, 1e-10);
            }
        }
        // A constant image has no gradient; those of the weights are the same.
        let constant = x.as_detached_tensor();
        let y = ops::image_chain(&constant, &layers, Precision::F32, true).unwrap();
        for (found, wanted) in of(&y).iter().zip(&wanted).take(vars.len()) {
            near(&what, found.as_ref().unwrap(), wanted.as_ref().unwrap(), 1e-10);
        }
    }
}
