//! Every gradient against central finite differences in f64, and every fused operation against its
//! composed twin.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use lipschitz_nn::graph::{
    Alibi, Attention, Convolution, Function, Graph, Input, Node, NormKind, Op, Pairing,
    PositionBias, Rotary, Span,
};
use lipschitz_nn::linalg::Precision;
use lipschitz_nn::ops::{Documents, Scores};
use lipschitz_nn::random::{Stream, seeded, symmetric};
use lipschitz_nn::{Model, Weights, ops};
use rand::RngExt;

fn random(shape: &[usize], rng: &mut Stream) -> Tensor {
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| symmetric(rng)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn random_model(graph: Graph, rng: &mut Stream) -> Model {
    let weights: Weights =
        graph.parameters().iter().map(|p| (p.name.clone(), random(&p.shape, rng))).collect();
    Model::new(graph, weights).unwrap()
}

fn scalar(t: &Tensor) -> f64 {
    t.sum_all().unwrap().to_scalar::<f64>().unwrap()
}

/// Checks the gradient of `f` with respect to each variable, element by element.
fn check(what: &str, variables: &[(String, Var)], f: &dyn Fn() -> Tensor) {
    let gradients = f().sum_all().unwrap().backward().unwrap();
    for (name, variable) in variables {
        let gradient = gradients
            .get(variable.as_tensor())
            .unwrap_or_else(|| panic!("{what}: no gradient of {name}"));
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let start = variable.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for i in 0..start.len() {
            let h = 1e-6;
            let at = |x: f64| {
                let mut moved = start.clone();
                moved[i] = x;
                variable
                    .set(&Tensor::from_vec(moved, variable.shape(), &Device::Cpu).unwrap())
                    .unwrap();
                scalar(&f())
            };
            let difference = (at(start[i] + h) - at(start[i] - h)) / (2.0 * h);
            at(start[i]);
            let error = (difference - gradient[i]).abs();
            assert!(
                error < 1e-6 * (1.0 + difference.abs()),
                "{what}: {name}[{i}]: {} not {difference}",
                gradient[i]
            );
        }
    }
}

fn check_graph(what: &str, graph: Graph, input: Tensor, rng: &mut Stream) {
    let (model, variables) = random_model(graph, rng).trainable().unwrap();
    let mut variables: Vec<(String, Var)> =
        variables.into_iter().map(|(p, v)| (p.name, v)).collect();
    let output = model.forward(&input).unwrap();
    let weighting = random(output.dims(), rng);
    if input.dtype() == DType::F64 {
        let input = Var::from_tensor(&input).unwrap();
        variables.push(("input".into(), input.clone()));
        check(what, &variables, &|| {
            (model.forward(input.as_tensor()).unwrap() * &weighting).unwrap()
        });
    } else {
        check(what, &variables, &|| (model.forward(&input).unwrap() * &weighting).unwrap());
    }
}

fn attention(
    heads: usize,
    key_value_heads: usize,
    rotary: Option<Pairing>,
    bias: bool,
    norm: bool,
) -> Attention {
    Attention {
        dim: 6,
        heads,
        key_value_heads,
        head_dim: 4,
        logit_scale: 0.7,
        output_scale: 0.5,
        causal: bias,
        rotary: rotary.map(|pairing| Rotary::new(100.0, pairing)),
        bias,
        output_bias: bias,
        query_key_norm: norm.then_some(0.1),
        logit_cap: rotary.map(|_| 0.8),
        ..Attention::new(6, heads, 4)
    }
}

#[test]
fn every_node_kind_has_the_right_gradient() {
    let mut rng = seeded(1);
    let tokens = Tensor::new(&[[0u32, 2, 1], [3, 3, 0]], &Device::Cpu).unwrap();
    let embedding = Node::new("embedding", Op::Embedding { vocabulary: 4, dim: 6 });
    let mut on_tokens = |what: &str, op: Op| {
        let nodes = vec![embedding.clone(), Node::new("node", op)];
        check_graph(what, Graph::new(Input::tokens(3), nodes).unwrap(), tokens.clone(), &mut rng);
    };
    on_tokens("linear", Op::Linear { inputs: 6, outputs: 5, bias: true });
    on_tokens("positions", Op::Positions { length: 3, dim: 6 });
    on_tokens("scale", Op::Scale { factor: -1.5 });
    on_tokens("soft cap", Op::SoftCap { cap: 0.6 });
    on_tokens("clip", Op::Clip { limit: 0.4 });
    on_tokens("rms norm", Op::RmsNorm { dim: 6, eps: 0.01, gain: true });
    on_tokens("layer norm", Op::LayerNorm { dim: 6, eps: 0.01, bias: true, gain: true });
    on_tokens("mean pool", Op::MeanPool);
    on_tokens("first token", Op::FirstToken);
    on_tokens("last token", Op::LastToken);
    on_tokens("rms norm without gain", Op::RmsNorm { dim: 6, eps: 0.01, gain: false });
    for bias in [false, true] {
        let norm = Op::LayerNorm { dim: 6, eps: 0.01, bias, gain: false };
        on_tokens("layer norm without gain", norm);
    }
    on_tokens("max and min", Op::MaxMin);
    let at = |head_dim, offsets| Op::OffsetAttention { inputs: 6, head_dim, offsets };
    on_tokens("heads at offsets", at(2, vec![0, 1, 2]));
    on_tokens("heads at the same offset and beyond the start", at(3, vec![1, 7, 1, 0]));
    // Shorter than every token here, longer than every token, and in between.
    for eps in [1e-6, 1e3, 1.3] {
        on_tokens("normalise", Op::Normalise { eps });
    }
    let near = |causal| Attention { window: Some(2), causal, ..Attention::new(6, 2, 4) };
    on_tokens("window", Op::Attention(near(false)));
    on_tokens("causal window", Op::Attention(near(true)));
    let stacked = Attention {
        query_key_norm: Some(0.1),
        query_key_span: Span::Heads,
        key_value_heads: 1,
        ..Attention::new(6, 2, 4)
    };
    on_tokens("norm over all heads", Op::Attention(stacked));
    let position_bias = Some(PositionBias { buckets: 4, max_distance: 3 });
    for (query_key_span, query_key_kind, query_key_shift) in [
        (Span::Head, NormKind::Layer, false),
        (Span::EachHead, NormKind::Layer, true),
        (Span::Heads, NormKind::Layer, true),
        (Span::Head, NormKind::Rms, true),
        (Span::EachHead, NormKind::Rms, false),
    ] {
        let normed = Attention {
            query_key_norm: Some(0.1),
            query_key_span,
            query_key_kind,
            query_key_shift,
            key_value_heads: 1,
            ..Attention::new(6, 2, 4)
        };
        on_tokens("norm of queries and keys", Op::Attention(normed));
    }
    for causal in [false, true] {
        let alibi = Some(Alibi::new(2, 1.0));
        let sloped = Attention { causal, alibi: alibi.clone(), ..Attention::new(6, 2, 4) };
        on_tokens("slopes", Op::Attention(sloped));
        let both = Attention { causal, alibi, position_bias, ..Attention::new(6, 2, 4) };
        on_tokens("slopes and a position bias", Op::Attention(both));
        on_tokens(
            "position bias",
            Op::Attention(Attention { causal, position_bias, ..Attention::new(6, 2, 4) }),
        );
    }
    for function in Function::ALL {
        on_tokens(&format!("{function:?}"), Op::Activation { function, scale: 0.8 });
        on_tokens(
            &format!("gated {function:?}"),
            Op::GatedMlp { dim: 6, hidden: 7, function, bias: true },
        );
    }
    for (heads, kv, rotary, bias, norm) in [
        (1, 1, None, false, false),
        (2, 2, Some(Pairing::Half), true, false),
        (4, 2, Some(Pairing::Interleaved), false, true),
        (3, 1, None, true, true),
    ] {
        on_tokens(
            &format!("attention {heads}/{kv}"),
            Op::Attention(attention(heads, kv, rotary, bias, norm)),
        );
    }
    let body = vec![Node::new("inner", Op::Linear { inputs: 6, outputs: 6, bias: false })];
    on_tokens("residual", Op::Residual { skip: 0.75, branch: 0.25, body: body.clone() });
    on_tokens("sequential", Op::Sequential { body: body.clone() });
    let mlp = vec![
        Node::new("up", Op::Linear { inputs: 6, outputs: 7, bias: false }),
        Node::new("", Op::Activation { function: Function::Mish, scale: 1.0 }),
        Node::new("down", Op::Linear { inputs: 7, outputs: 6, bias: false }),
    ];
    let branches = vec![
        // The first two run as one operation each.
        Node::new("attention", Op::Attention(Attention::new(6, 2, 4))),
        Node::new("mlp", Op::Residual { skip: 0.3, branch: 0.6, body: mlp }),
        Node::new("map", Op::Sequential { body }),
    ];
    let parallel = Node::new("parallel", Op::Parallel { branches });
    on_tokens("parallel", parallel.op.clone());
    on_tokens(
        "parallel behind a norm in a residual",
        Op::Residual {
            skip: 1.0,
            branch: 1.0,
            body: vec![
                Node::new("norm", Op::LayerNorm { dim: 6, eps: 0.1, bias: true, gain: true }),
                parallel,
            ],
        },
    );
    // These run as one operation.
    for function in [Function::GeluErf, Function::Silu] {
        let linear = |name: &str, inputs, outputs| {
            Node::new(name, Op::Linear { inputs, outputs, bias: false })
        };
        let activation = Node::new("", Op::Activation { function, scale: 0.8 });
        let body = vec![linear("up", 6, 7), activation, linear("down", 7, 6)];
        on_tokens("MLP block", Op::Residual { skip: 0.7, branch: -0.4, body });
    }
    for (heads, key_value_heads, causal, rotary) in [
        (1, 1, true, None),
        (4, 2, false, Some(Pairing::Half)),
        (2, 2, true, Some(Pairing::Interleaved)),
    ] {
        let rotary = rotary.map(|pairing| Rotary::new(100.0, pairing));
        let a = Attention {
            key_value_heads,
            causal,
            rotary,
            output_scale: 0.6,
            ..Attention::new(6, heads, 4)
        };
        let body = vec![Node::new("", Op::Attention(a))];
        on_tokens("attention block", Op::Residual { skip: 0.7, branch: 0.9, body });
    }
    let image = random(&[2, 3, 4, 4], &mut rng);
    let pixels = Input::Pixels { channels: 3, height: 4, width: 4 };
    let head = |inputs| Node::new("head", Op::Linear { inputs, outputs: 3, bias: true });
    let flat = Graph::new(pixels, vec![Node::new("", Op::Flatten), head(48)]).unwrap();
    check_graph("flatten", flat, image.clone(), &mut rng);
    let patches =
        vec![Node::new("", Op::Patches { size: 2 }), head(12), Node::new("", Op::MeanPool)];
    check_graph("patches", Graph::new(pixels, patches).unwrap(), image, &mut rng);
}

/// The nodes by their formulas, written out token by token.
#[test]
fn nodes_compute_their_formulas() {
    let mut rng = seeded(21);
    let tokens = Tensor::new(&[[0u32, 2, 1, 3]], &Device::Cpu).unwrap();
    let build = |ops: Vec<Node>| {
        let embedding = Node::new("embedding", Op::Embedding { vocabulary: 4, dim: 6 });
        Graph::new(Input::tokens(4), [vec![embedding], ops].concat()).unwrap()
    };
    let rows = |x: &Tensor| x.squeeze(0).unwrap().to_vec2::<f64>().unwrap();
    let near = |what: &str, a: &[f64], b: &[f64]| {
        assert_eq!(a.len(), b.len(), "{what}");
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() < 1e-12 * (1.0 + b.abs()), "{what}: {a} not {b}");
        }
    };

    // x + attention(x) + map(x), from the three networks that it is made of.
    let map = Node::new("map", Op::Linear { inputs: 6, outputs: 6, bias: true });
    let mixer = Attention { alibi: Some(Alibi::new(3, 2.0)), ..Attention::new(6, 3, 4) };
    let mixer = Node::new("mixer", Op::Attention(mixer));
    let sum = Op::Parallel { branches: vec![mixer.clone(), map.clone()] };
    let block = Op::Residual { skip: 1.0, branch: 1.0, body: vec![Node::new("sum", sum)] };
    let whole = random_model(build(vec![Node::new("block", block)]), &mut rng);
    let part = |nodes: Vec<Node>| {
        let graph = build(nodes);
        let of = |name: &str| {
            let inside = format!("block.sum.{name}");
            whole.weights().get(&inside).unwrap_or_else(|| &whole.weights()[name]).clone()
        };
        let weights = graph.parameters().iter().map(|p| (p.name.clone(), of(&p.name))).collect();
        Model::new(graph, weights).unwrap().forward(&tokens).unwrap()
    };
    let added = ((part(vec![]) + part(vec![mixer.clone()])).unwrap() + part(vec![map])).unwrap();
    for (a, b) in rows(&whole.forward(&tokens).unwrap()).iter().zip(&rows(&added)) {
        near("parallel", a, b);
    }

    // Attention with slopes, one query at a time.
    for causal in [true, false] {
        let slopes = vec![0.5, -0.25];
        let alibi = Some(Alibi { slopes: slopes.clone() });
        let a = Attention { causal, alibi, ..Attention::new(6, 2, 3) };
        let graph = build(vec![Node::new("a", Op::Attention(a))]);
        let model = random_model(graph, &mut rng);
        let x = model.weights()["embedding.weight"]
            .index_select(&tokens.squeeze(0).unwrap(), 0)
            .unwrap();
        let of = |name: &str| {
            let w = &model.weights()[&format!("a.{name}.weight")];
            x.matmul(&w.t().unwrap()).unwrap().to_vec2::<f64>().unwrap()
        };
        let (q, k, v) = (of("query"), of("key"), of("value"));
        let mut mixed = vec![vec![0.0; 6]; 4];
        for (h, slope) in slopes.iter().enumerate() {
            for i in 0..4 {
                let keys: Vec<usize> = (0..if causal { i + 1 } else { 4 }).collect();
                let score = |j: &usize| {
                    let dot: f64 = (3 * h..3 * h + 3).map(|c| q[i][c] * k[*j][c]).sum();
                    (dot / 3f64.sqrt() - slope * i.abs_diff(*j) as f64).exp()
                };
                let all: f64 = keys.iter().map(score).sum();
                for c in 3 * h..3 * h + 3 {
                    mixed[i][c] = keys.iter().map(|j| score(j) / all * v[*j][c]).sum();
                }
            }
        }
        let mixed = Tensor::new(mixed, &Device::Cpu).unwrap();
        let wanted = mixed.matmul(&model.weights()["a.output.weight"].t().unwrap()).unwrap();
        let found = rows(&model.forward(&tokens).unwrap());
        for (a, b) in found.iter().zip(&wanted.to_vec2::<f64>().unwrap()) {
            near("slopes", a, b);
        }
    }

    // Heads at offsets, and the halves of each token in order.
    let offsets = vec![2, 0, 7];
    let heads = Op::OffsetAttention { inputs: 6, head_dim: 2, offsets: offsets.clone() };
    let model = random_model(build(vec![Node::new("o", heads)]), &mut rng);
    let weight = |name: &str| model.weights()[name].to_vec2::<f64>().unwrap();
    let (table, v, w) =
        (weight("embedding.weight"), weight("o.value.weight"), weight("o.shares.weight"));
    for (t, y) in rows(&model.forward(&tokens).unwrap()).iter().enumerate() {
        let part = |(h, offset): (usize, &usize)| -> Vec<f64> {
            let Some(from) = t.checked_sub(*offset) else { return vec![0.0; 2] };
            let x = &table[[0, 2, 1, 3][from]];
            let dot = |row: &Vec<f64>| row.iter().zip(x).map(|(a, b)| a * b).sum::<f64>();
            v[2 * h..2 * h + 2].iter().map(|row| w[0][h] * dot(row)).collect()
        };
        let wanted: Vec<f64> = offsets.iter().enumerate().flat_map(part).collect();
        near("heads at offsets", y, &wanted);
    }
    let graph = build(vec![Node::new("", Op::MaxMin)]);
    let sorted = random_model(graph, &mut rng);
    let table = sorted.weights()["embedding.weight"].to_vec2::<f64>().unwrap();
    for (t, y) in rows(&sorted.forward(&tokens).unwrap()).iter().enumerate() {
        let x = &table[[0, 2, 1, 3][t]];
        let pair = |i: usize| (x[i].max(x[i + 3]), x[i].min(x[i + 3]));
        let wanted = (0..3).map(|i| pair(i).0).chain((0..3).map(|i| pair(i).1));
        near("max and min", y, &wanted.collect::<Vec<_>>());
    }

    // Norms and tokens.
    let model = random_model(build(vec![]), &mut rng);
    let x = rows(&model.forward(&tokens).unwrap());
    let on = |op: Op| {
        let graph = build(vec![Node::new("", op)]);
        Model::new(graph, model.weights().clone()).unwrap().forward(&tokens).unwrap()
    };
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    for eps in [1e-12, 1.2, 50.0] {
        for (x, y) in x.iter().zip(rows(&on(Op::Normalise { eps }))) {
            let wanted: Vec<f64> = x.iter().map(|v| v / norm(x).max(eps)).collect();
            near("normalise", &y, &wanted);
        }
    }
    for (x, y) in
        x.iter().zip(rows(&on(Op::LayerNorm { dim: 6, eps: 0.3, bias: false, gain: false })))
    {
        let mean = x.iter().sum::<f64>() / 6.0;
        let centred: Vec<f64> = x.iter().map(|v| v - mean).collect();
        let root = (norm(&centred).powi(2) / 6.0 + 0.3).sqrt();
        near("layer norm", &y, &centred.iter().map(|v| v / root).collect::<Vec<_>>());
    }
    near("last token", &rows(&on(Op::LastToken).unsqueeze(0).unwrap())[0], &x[3]);

    // Each head has its own gain, the others' do not reach it.
    let a = Attention {
        query_key_norm: Some(0.1),
        query_key_span: Span::EachHead,
        query_key_kind: NormKind::Layer,
        query_key_shift: true,
        ..Attention::new(6, 2, 3)
    };
    let each = random_model(build(vec![Node::new("a", Op::Attention(a.clone()))]), &mut rng);
    let shared = Attention { query_key_span: Span::Head, ..a };
    let graph = build(vec![Node::new("a", Op::Attention(shared))]);
    let mut weights = each.weights().clone();
    let mut alike = each.weights().clone();
    for name in ["query", "key"] {
        for kind in ["weight", "bias"] {
            let name = format!("a.{name}_norm.{kind}");
            let first = weights[&name].narrow(0, 0, 3).unwrap();
            alike.insert(name.clone(), Tensor::cat(&[&first, &first], 0).unwrap());
            weights.insert(name, first);
        }
    }
    let shared = Model::new(graph, weights).unwrap().forward(&tokens).unwrap();
    let alike = Model::new(each.graph().clone(), alike).unwrap().forward(&tokens).unwrap();
    let each = each.forward(&tokens).unwrap();
    assert_eq!(rows(&shared), rows(&alike));
    assert_ne!(rows(&shared), rows(&each));
}

/// A vector of zeros has length 0, and a gradient.
#[test]
fn normalising_nothing_gives_nothing() {
    for dtype in [DType::F32, DType::F64] {
        let x = Var::zeros((2, 3), dtype, &Device::Cpu).unwrap();
        let y = ops::normalise(x.as_tensor(), 1e-12).unwrap();
        assert_eq!(y.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap(), [[0.0; 3]; 2]);
        let gradients = y.sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(x.as_tensor()).unwrap().to_dtype(DType::F64).unwrap();
        for found in gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap() {
            assert!((found * 1e-12 - 1.0).abs() < 1e-6, "{found}");
        }
    }
}

/// Far from zero no function overflows on its way, and what is no number stays none.
#[test]
fn functions_far_from_zero() {
    for function in Function::ALL {
        let at = |x: f32| {
            let x = Tensor::new(&[x], &Device::Cpu).unwrap();
            let one = |y: Tensor| y.to_vec1::<f32>().unwrap()[0];
            let fused = one(ops::activation(&x, function, 1.0).unwrap());
            (fused, one(ops::composed::activation(&x, function, 1.0).unwrap()))
        };
        for x in [-1e6f32, -200.0, -90.0, 90.0, 200.0, 1e6] {
            let (fused, composed) = at(x);
            assert!(fused.is_finite() && composed.is_finite(), "{function:?} at {x}");
            assert!(
                (fused - composed).abs() <= 1e-5 * composed.abs() + 1e-12,
                "{function:?} at {x}: {fused}, composed {composed}"
            );
        }
        assert!(at(f32::NAN).0.is_nan(), "{function:?}");
    }
}

/// Values and gradients of two functions of the same variables agree, relative to their largest
/// elements.
fn same(what: &str, variables: &[&Var], fused: &Tensor, composed: &Tensor, tolerance: f64) {
    let largest = |x: &Tensor| {
        x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap()
    };
    let distance = |a: &Tensor, b: &Tensor| {
        assert_eq!(a.dims(), b.dims(), "{what}");
        let [a, b] = [a, b].map(|x| x.detach().to_dtype(DType::F64).unwrap());
        largest(&(&a - &b).unwrap()) / largest(&b).max(1e-3)
    };
    assert!(distance(fused, composed) < tolerance, "{what}: values {}", distance(fused, composed));
    // Weighted, so that no sum of gradients is zero for all inputs.
    let weights: Vec<f64> =
        (0..fused.elem_count()).map(|i| ((i * 37 + 11) % 23) as f64 / 23.0 - 0.3).collect();
    let weights = Tensor::from_vec(weights, fused.shape(), &Device::Cpu)
        .unwrap()
        .to_dtype(fused.dtype())
        .unwrap();
    let loss = |y: &Tensor| (y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    let (a, b) = (loss(fused), loss(composed));
    for (i, v) in variables.iter().enumerate() {
        let error = distance(a.get(v.as_tensor()).unwrap(), b.get(v.as_tensor()).unwrap());
        assert!(error < tolerance, "{what}: gradient {i}: {error}");
    }
}

/// Documents of about nine tokens.
fn documents(batch: usize, tokens: usize, rng: &mut Stream) -> Documents {
    let ids: Vec<u32> = (0..batch * tokens).map(|_| rng.random_range(0..9)).collect();
    Documents::new(&Tensor::from_vec(ids, (batch, tokens), &Device::Cpu).unwrap(), 3).unwrap()
}

/// 1e-5 in f32, as a share of the largest element. In f64 what candle's own constants leave (its
/// `gelu` has six digits).
const TOLERANCES: [(DType, f64); 2] = [(DType::F32, 1e-5), (DType::F64, 2e-6)];

#[test]
fn fused_operations_equal_their_twins() {
    let mut rng = seeded(2);
    for (dtype, tolerance) in TOLERANCES {
        let var = |shape: &[usize], factor: f64, rng: &mut Stream| {
            Var::from_tensor(&(random(shape, rng) * factor).unwrap().to_dtype(dtype).unwrap())
                .unwrap()
        };
        let x = var(&[3, 7001], 6.0, &mut rng);
        for function in Function::ALL {
            let fused = ops::activation(&x, function, 0.9).unwrap();
            let composed = ops::composed::activation(&x, function, 0.9).unwrap();
            same(&format!("{function:?}"), &[&x], &fused, &composed, tolerance);
        }
        let (fused, composed) =
            (ops::soft_cap(&x, 1.7).unwrap(), ops::composed::soft_cap(&x, 1.7).unwrap());
        same("soft cap", &[&x], &fused, &composed, tolerance);
        let (fused, composed) =
            (ops::clip(&x, 1.7).unwrap(), ops::composed::clip(&x, 1.7).unwrap());
        same("clip", &[&x], &fused, &composed, tolerance);
        for width in [2, 34, 1200] {
            let x = var(&[3, 150, width], 2.0, &mut rng);
            let (fused, composed) =
                (ops::max_min(&x).unwrap(), ops::composed::max_min(&x).unwrap());
            same(&format!("max and min {width}"), &[&x], &fused, &composed, tolerance);
        }
        // Equal halves, and what is not a number.
        let odd = Var::new(&[[1f32, f32::NAN, 2.0, 1.0, 3.0, f32::NAN]], &Device::Cpu).unwrap();
        let of = |y: Tensor| {
            let g = y.narrow(1, 0, 3).unwrap().sum_all().unwrap().backward().unwrap();
            let g = g.get(odd.as_tensor()).unwrap().to_vec2::<f32>().unwrap();
            (format!("{:?}", y.to_vec2::<f32>().unwrap()), g)
        };
        let fused = of(ops::max_min(&odd).unwrap());
        assert_eq!(fused, of(ops::composed::max_min(&odd).unwrap()));
        assert!(fused.0.contains("NaN") && fused.1[0][0] == 1.0 && fused.1[0][3] == 0.0);
        let odd = Tensor::zeros((2, 3), dtype, &Device::Cpu).unwrap();
        assert!(ops::max_min(&odd).is_err() && ops::composed::max_min(&odd).is_err());
        for (tokens, head_dim, offsets) in
            [(1, 1, vec![0]), (5, 3, vec![0, 1, 2, 9]), (70, 16, vec![3, 0, 69, 70, 3])]
        {
            let z = var(&[3, tokens, head_dim * offsets.len()], 2.0, &mut rng);
            let w = var(&[1, offsets.len()], 1.0, &mut rng);
            let fused = ops::look_back(&z, &w, &offsets).unwrap();
            let composed = ops::composed::look_back(&z, &w, &offsets).unwrap();
            same(&format!("offsets {offsets:?}"), &[&z, &w], &fused, &composed, tolerance);
            let few = Tensor::zeros((1, offsets.len() + 1), dtype, &Device::Cpu).unwrap();
            assert!(ops::look_back(&z, &few, &offsets).is_err());
            assert!(ops::composed::look_back(&z, &few, &offsets).is_err());
        }
        let y = var(&[3, 7001], 2.0, &mut rng);
        let fused = ops::residual(&x, &y, 0.9, -0.2).unwrap();
        same(
            "residual",
            &[&x, &y],
            &fused,
            &ops::composed::residual(&x, &y, 0.9, -0.2).unwrap(),
            tolerance,
        );
        for (rows, dim) in [(1, 1), (5, 17), (300, 64), (130, 129)] {
            let (x, gain, bias) = (
                var(&[rows, dim], 3.0, &mut rng),
                var(&[dim], 1.0, &mut rng),
                var(&[dim], 1.0, &mut rng),
            );
            let fused = ops::rms_norm(&x, &gain, 0.01).unwrap();
            let composed = ops::composed::rms_norm(&x, &gain, 0.01).unwrap();
            same(&format!("rms norm {rows} {dim}"), &[&x, &gain], &fused, &composed, tolerance);
            for bias in [None, Some(&bias)] {
                let fused = ops::layer_norm(&x, &gain, bias.map(Var::as_tensor), 0.01).unwrap();
                let composed =
                    ops::composed::layer_norm(&x, &gain, bias.map(Var::as_tensor), 0.01).unwrap();
                let variables: Vec<_> = [&x, &gain].into_iter().chain(bias).collect();
                same(&format!("layer norm {rows} {dim}"), &variables, &fused, &composed, tolerance);
            }
        }
        for (n, classes) in [(1, 1), (3, 2), (257, 65), (130, 1000)] {
            let logits = var(&[n, classes], 5.0, &mut rng);
            let targets: Vec<u32> = (0..n).map(|i| (i * 31 % classes) as u32).collect();
            let targets = Tensor::from_vec(targets, n, &Device::Cpu).unwrap();
            let fused = ops::cross_entropy(&logits, &targets).unwrap();
            let composed = ops::composed::cross_entropy(&logits, &targets).unwrap();
            same(&format!("cross-entropy {n} {classes}"), &[&logits], &fused, &composed, tolerance);
        }
        for (vocabulary, dim, shape) in
            [(1, 1, vec![1, 1]), (65, 33, vec![3, 200]), (7, 8, vec![5])]
        {
            let table = var(&[vocabulary, dim], 1.0, &mut rng);
            let count: usize = shape.iter().product();
            let ids: Vec<u32> = (0..count).map(|i| (i * i % vocabulary) as u32).collect();
            let ids = Tensor::from_vec(ids, shape, &Device::Cpu).unwrap();
            let fused = ops::embedding(&table, &ids).unwrap();
            same(
                "embedding",
                &[&table],
                &fused,
                &ops::composed::embedding(&table, &ids).unwrap(),
                tolerance,
            );
        }
        for (dims, outputs) in
            [(vec![1, 1], 1), (vec![4, 1, 33], 7), (vec![2, 129, 40], 65), (vec![3, 5], 200)]
        {
            let w = var(&[outputs, dims[dims.len() - 1]], 1.0, &mut rng);
            let (x, b) = (var(&dims, 1.0, &mut rng), var(&[outputs], 1.0, &mut rng));
            for bias in [None, Some(&b)] {
                let fused = ops::linear(&x, &w, bias.map(Var::as_tensor), Precision::F32).unwrap();
                let composed =
                    ops::composed::linear(&x, &w, bias.map(Var::as_tensor), Precision::F32)
                        .unwrap();
                let variables: Vec<_> = [&x, &w].into_iter().chain(bias).collect();
                same(
                    &format!("linear {dims:?} {outputs}"),
                    &variables,
                    &fused,
                    &composed,
                    tolerance,
                );
            }
        }
        for pairing in [Pairing::Half, Pairing::Interleaved] {
            let x = var(&[2, 9, 3, 8], 1.0, &mut rng);
            for frequencies in [None, Some(vec![0.9, 0.1, 0.02, 0.01]), Some(vec![0.5, 0.2, 0.1])] {
                let rotary = Rotary { frequencies, ..Rotary::new(50.0, pairing) };
                let fused = ops::rotary(&x, &rotary).unwrap();
                let composed = ops::composed::rotary(&x, &rotary).unwrap();
                same(&format!("{rotary:?}"), &[&x], &fused, &composed, tolerance);
            }
        }
        for (tokens, heads, groups, mask) in [
            (1, 1, 1, ops::Mask::Causal),
            (130, 4, 2, ops::Mask::Causal),
            (65, 3, 3, ops::Mask::None),
            (64, 2, 1, ops::Mask::None),
        ] {
            let q = var(&[2, tokens, heads, 6], 2.0, &mut rng);
            let (k, v) = (
                var(&[2, tokens, groups, 6], 2.0, &mut rng),
                var(&[2, tokens, groups, 6], 1.0, &mut rng),
            );
            let fused = ops::attention(&q, &k, &v, &Scores::new(0.4, mask)).unwrap();
            let composed = ops::composed::attention(&q, &k, &v, &Scores::new(0.4, mask)).unwrap();
            same(
                &format!("attention {tokens} {heads}/{groups}"),
                &[&q, &k, &v],
                &fused,
                &composed,
                tolerance,
            );
            let documents = documents(2, tokens, &mut rng);
            let scores = Scores { documents: Some(&documents), ..Scores::new(0.4, mask) };
            let fused = ops::attention(&q, &k, &v, &scores).unwrap();
            let composed = ops::composed::attention(&q, &k, &v, &scores).unwrap();
            same(
                &format!("documents {tokens} {heads}/{groups}"),
                &[&q, &k, &v],
                &fused,
                &composed,
                tolerance,
            );
        }
    }
}

#[test]
fn fused_blocks_equal_their_twins() {
    let mut rng = seeded(4);
    for (dtype, tolerance) in TOLERANCES {
        let var = |shape: &[usize], factor: f64, rng: &mut Stream| {
            Var::from_tensor(&(random(shape, rng) * factor).unwrap().to_dtype(dtype).unwrap())
                .unwrap()
        };
        for (batch, tokens, dim, hidden) in [(1, 1, 1, 1), (2, 65, 12, 31), (3, 130, 33, 20)] {
            let x = var(&[batch, tokens, dim], 1.0, &mut rng);
            let (up, down) =
                (var(&[hidden, dim], 1.0, &mut rng), var(&[dim, hidden], 1.0, &mut rng));
            for (function, keep) in [(Function::GeluErf, true), (Function::Silu, false)] {
                let block = ops::MlpBlock { function, scale: 0.9, skip: 0.8, branch: 0.3 };
                let fused = ops::mlp_block(block, &x, &up, &down, keep).unwrap();
                let composed = ops::composed::mlp_block(block, &x, &up, &down).unwrap();
                same(
                    &format!("MLP {batch} {tokens}"),
                    &[&x, &up, &down],
                    &fused,
                    &composed,
                    tolerance,
                );
            }
        }
        for (batch, tokens, dim, heads, groups, head, causal, rotary, keep) in [
            (1, 1, 1, 1, 1, 1, true, None, true),
            (2, 130, 12, 4, 2, 6, true, Some(Pairing::Half), false),
            (3, 65, 9, 3, 3, 4, false, Some(Pairing::Interleaved), true),
            (1, 64, 16, 6, 1, 8, true, Some(Pairing::Half), true),
        ] {
            let block = ops::AttentionBlock {
                heads,
                key_value_heads: groups,
                logit_scale: 0.4,
                causal,
                rotary: rotary.map(|pairing| Rotary::new(100.0, pairing)),
                skip: 0.8,
                branch: 0.3,
                documents: causal.then(|| documents(batch, tokens, &mut rng)),
            };
            let x = var(&[batch, tokens, dim], 1.0, &mut rng);
            let w = var(&[(heads + 2 * groups) * head, dim], 1.0, &mut rng);
            let output = var(&[dim, heads * head], 1.0, &mut rng);
            let fused = ops::attention_block(&block, &x, &w, &output, keep).unwrap();
            let composed = ops::composed::attention_block(&block, &x, &w, &output, None).unwrap();
            same(&format!("{block:?}"), &[&x, &w, &output], &fused, &composed, tolerance);
            // The same, between two MLPs.
            let mlp =
                ops::MlpBlock { function: Function::GeluErf, scale: 0.9, skip: 0.6, branch: 0.5 };
            let [query, key, value] =
                [heads, groups, groups].map(|n| var(&[n * head, dim], 1.0, &mut rng));
            let [up, down] = [[5, dim], [dim, 5]].map(|shape| var(&shape, 1.0, &mut rng));
            let tensors =
                |vars: &[&Var]| vars.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>();
            let weights: [Tensor; 4] =
                tensors(&[&query, &key, &value, &output]).try_into().unwrap();
            let table = var(&[8, heads], 1.0, &mut rng);
            let bias =
                Some((PositionBias { buckets: 8, max_distance: 40 }, table.as_tensor().clone()));
            let mlp_block =
                || ops::FusedBlock::Mlp(mlp, tensors(&[&up, &down]).try_into().unwrap());
            for bias in [None, bias] {
                let weights = weights.clone();
                let mut all = vec![&x, &query, &key, &value, &output, &up, &down];
                all.extend(bias.is_some().then_some(&table));
                let blocks = [
                    mlp_block(),
                    ops::FusedBlock::Attention(block.clone(), weights, bias),
                    mlp_block(),
                ];
                let fused = ops::chain(&x, &blocks, keep, None).unwrap();
                let composed = ops::composed::chain(&x, &blocks).unwrap();
                same(&format!("chain around {block:?}"), &all, &fused, &composed, tolerance);
                // Gathered beside candle's store: matrices are there, and all else is where it was.
                let gathered = ops::Gradients::default();
                let apart = ops::chain(&x, &blocks, keep, Some(&gathered)).unwrap();
                let back = |y: &Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
                let (own, usual) = (back(&apart), back(&fused));
                for (i, var) in all.iter().enumerate() {
                    let usual = usual.get(var.as_tensor()).unwrap();
                    let (own, put) = (own.get(var.as_tensor()), gathered.take(var).unwrap());
                    assert!(put.is_some() == (1..7).contains(&i) && own.is_some() != put.is_some());
                    let values = |x: &Tensor| {
                        let x = x.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
                        x.to_vec1::<f64>().unwrap()
                    };
                    assert_eq!(values(put.as_ref().or(own).unwrap()), values(usual), "{i}");
                }
            }
        }
    }
}

/// A second call of `backward` on one graph, and inputs that need no gradient.
#[test]
fn blocks_can_be_differentiated_twice_and_in_part() {
    let mut rng = seeded(5);
    let [x, up, down] =
        [[4, 6], [5, 6], [6, 5]].map(|shape| Var::from_tensor(&random(&shape, &mut rng)).unwrap());
    let block = ops::MlpBlock { function: Function::Silu, scale: 1.0, skip: 1.0, branch: 1.0 };
    let y = ops::mlp_block(block, &x, &up, &down, true).unwrap().sum_all().unwrap();
    let values = |g: &Tensor| g.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let gradient = |y: &Tensor| values(y.backward().unwrap().get(up.as_tensor()).unwrap());
    assert_eq!(gradient(&y), gradient(&y));
    let part =
        ops::mlp_block(block, &x.as_tensor().detach(), &up, &down.as_tensor().detach(), true)
            .unwrap();
    let part = part.sum_all().unwrap().backward().unwrap();
    assert_eq!(values(part.get(up.as_tensor()).unwrap()), gradient(&y));
    assert!(part.get(x.as_tensor()).is_none() && part.get(down.as_tensor()).is_none());
}

/// Transposed views, with gradients that go back through the transposition.
#[test]
fn fused_operations_read_views() {
    let mut rng = seeded(6);
    let mut var = |shape: &[usize]| Var::from_tensor(&random(shape, &mut rng)).unwrap();
    let (x, y, gain) = (var(&[3, 7, 5]), var(&[3, 7, 5]), var(&[7]));
    let (up, down) = (var(&[4, 7]), var(&[7, 4]));
    // [3, 7, 5] and [7, 4], [4, 7] as [3, 5, 7], [4, 7] and [7, 4].
    let (view, other) = (x.transpose(1, 2).unwrap(), y.transpose(1, 2).unwrap());
    let (wide, tall) = (down.t().unwrap(), up.t().unwrap());
    assert!(!view.is_contiguous() && !wide.is_contiguous());
    let block = ops::MlpBlock { function: Function::Silu, scale: 1.0, skip: 0.5, branch: 0.5 };
    let as_heads = |t: &Tensor| t.unsqueeze(2).unwrap();
    let causal = Scores::new(0.4, ops::Mask::Causal);
    let cases: Vec<(&str, Vec<&Var>, Tensor, Tensor)> = vec![
        (
            "activation",
            vec![&x],
            ops::activation(&view, Function::GeluErf, 1.0).unwrap(),
            ops::composed::activation(&view, Function::GeluErf, 1.0).unwrap(),
        ),
        (
            "residual",
            vec![&x, &y],
            ops::residual(&view, &other, 0.3, 0.7).unwrap(),
            ops::composed::residual(&view, &other, 0.3, 0.7).unwrap(),
        ),
        (
            "norm",
            vec![&x, &gain],
            ops::rms_norm(&view, &gain, 0.1).unwrap(),
            ops::composed::rms_norm(&view, &gain, 0.1).unwrap(),
        ),
        (
            "MLP block",
            vec![&x, &up, &down],
            ops::mlp_block(block, &view, &wide, &tall, true).unwrap(),
            ops::composed::mlp_block(block, &view, &wide, &tall).unwrap(),
        ),
        (
            "attention",
            vec![&x, &y],
            ops::attention(&as_heads(&view), &as_heads(&other), &as_heads(&other), &causal)
                .unwrap(),
            ops::composed::attention(
                &as_heads(&view),
                &as_heads(&other),
                &as_heads(&other),
                &causal,
            )
            .unwrap(),
        ),
    ];
    for (what, variables, fused, composed) in cases {
        same(what, &variables, &fused, &composed, 2e-6);
    }
}

/// A view that candle's own linear layer gets wrong (a transposed, hence non-contiguous, 3-D
/// input).
#[test]
fn linear_reads_views() {
    let mut rng = seeded(3);
    let (x, w) = (random(&[2, 5, 4], &mut rng), random(&[3, 5], &mut rng));
    let view = x.transpose(1, 2).unwrap();
    let expected =
        view.contiguous().unwrap().reshape((8, 5)).unwrap().matmul(&w.t().unwrap()).unwrap();
    let y = ops::linear(&view, &w, None, Precision::F32).unwrap().reshape((8, 3)).unwrap();
    let error = (y - expected)
        .unwrap()
        .abs()
        .unwrap()
        .flatten_all()
        .unwrap()
        .max(0)
        .unwrap()
        .to_scalar::<f64>()
        .unwrap();
    assert!(error < 1e-14, "{error}");
}

/// Rotary positions are relative, so a document reads the same behind another as alone, in every
/// form of the forward pass.
#[test]
fn documents_in_one_sequence_do_not_see_each_other() {
    let mut rng = seeded(12);
    for causal in [true, false] {
        let attention = Attention {
            causal,
            rotary: Some(Rotary::new(100.0, Pairing::Half)),
            logit_scale: 2.0,
            ..Attention::new(8, 2, 4)
        };
        let attention = Op::Attention(attention);
        let residual =
            Op::Residual { skip: 0.5, branch: 0.5, body: vec![Node::new("", attention.clone())] };
        let nodes = vec![
            Node::new("embedding", Op::Embedding { vocabulary: 7, dim: 8 }),
            Node::new("a", residual.clone()),
            Node::new("b", residual),
            Node::new("c", attention),
        ];
        let graph = |separator| {
            Graph::new(Input::Tokens { context: 9, separator, zero_prefix: 0 }, nodes.clone())
                .unwrap()
        };
        let weight = |shape: &[usize], rng: &mut Stream| random(shape, rng);
        let weights: Weights = graph(None)
            .parameters()
            .iter()
            .map(|p| (p.name.clone(), weight(&p.shape, &mut rng)))
            .collect();
        let [packed, open] =
            [Some(6), None].map(|s| Model::new(graph(s), weights.clone()).unwrap());
        let ids = |ids: &[u32]| Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let both = ids(&[1, 2, 3, 6, 4, 5, 2, 6, 1]);
        let alone = ids(&[6, 4, 5, 2]);
        let distance = |a: &Tensor, b: &Tensor| {
            (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap()
        };
        let whole = packed.forward(&both).unwrap();
        let part = whole.narrow(1, 3, 4).unwrap();
        let own = packed.forward(&alone).unwrap();
        assert!(distance(&part, &own) < 1e-12, "{}", distance(&part, &own));
        let mut silent = |_: &str, _: &Tensor| Ok(());
        assert!(distance(&whole, &packed.forward_watched(&both, &mut silent).unwrap()) < 1e-12);
        assert!(distance(&part, &open.forward(&both).unwrap().narrow(1, 3, 4).unwrap()) > 1e-3);
    }
    let nodes = vec![Node::new("embedding", Op::Embedding { vocabulary: 7, dim: 8 })];
    let refused =
        Graph::new(Input::Tokens { context: 9, separator: Some(7), zero_prefix: 0 }, nodes)
            .unwrap_err()
            .to_string();
    assert!(refused.contains("separator 7"), "{refused}");
}

/// Behind zeros a network is itself on sequences that begin with zeros, without their outputs; its
/// gradient too, kept or recomputed, and whether a chain of blocks runs as one operation or not.
#[test]
fn behind_zeros() {
    let mut rng = seeded(21);
    for (dtype, near) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
        let position_bias = Some(PositionBias { buckets: 8, max_distance: 16 });
        let attention =
            Attention { causal: true, position_bias, logit_scale: 2.0, ..Attention::new(8, 2, 4) };
        let body = vec![Node::new("", Op::Attention(attention))];
        let block = Node::new("a", Op::Residual { skip: 0.5, branch: 0.5, body });
        let nodes = vec![
            Node::new("embedding", Op::Embedding { vocabulary: 7, dim: 8 }),
            Node::new("blocks", Op::Sequential { body: vec![block] }),
            Node::new("head", Op::Linear { inputs: 8, outputs: 3, bias: true }),
        ];
        let plain = Graph::new(Input::tokens(9), nodes).unwrap();
        let weights: Weights = plain
            .parameters()
            .iter()
            .map(|p| (p.name.clone(), random(&p.shape, &mut rng).to_dtype(dtype).unwrap()))
            .collect();
        let behind = Model::new(plain.behind_zeros(3).unwrap(), weights.clone()).unwrap();
        let plain = Model::new(plain, weights).unwrap();
        let distance = |a: &Tensor, b: &Tensor| {
            let most = (a - b).unwrap().abs().unwrap().max_all().unwrap();
            most.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
        };
        let ids = Tensor::new(&[[1u32, 2, 3, 6, 4, 5]], &Device::Cpu).unwrap();
        let x = plain.embed(&ids).unwrap();
        let padded = x.pad_with_zeros(1, 3, 0).unwrap();
        let want = plain.forward_embeddings(&padded).unwrap().narrow(1, 3, 6).unwrap();
        let alone = plain.forward(&ids).unwrap();
        let found = behind.forward(&ids).unwrap();
        assert!(distance(&found, &want) < near && distance(&found, &alone) > 0.01);
        assert!(distance(&behind.forward_embeddings(&x).unwrap(), &want) < near);
        let mut paths = Vec::new();
        let mut watch = |path: &str, _: &Tensor| {
            paths.push(path.to_string());
            Ok(())
        };
        let watched = behind.forward_watched(&ids, &mut watch).unwrap();
        assert!(distance(&watched, &want) < near);
        assert!(paths.iter().all(|path| !path.is_empty()), "{paths:?}");

        let (trained, variables) = behind.trainable().unwrap();
        let loss = |y: &Tensor| -> Result<Tensor, lipschitz_nn::Error> { Ok(y.sqr()?.sum_all()?) };
        let mut kept = GradStore::default();
        trained.gradient(&ids, None, &mut kept, loss).unwrap();
        let mut again = GradStore::default();
        trained.clone().recomputing(true).gradient(&ids, None, &mut again, loss).unwrap();
        // As candle differentiates the other.
        let y = trained.forward_watched(&ids, &mut |_, _| Ok(())).unwrap();
        let want = loss(&y).unwrap().backward().unwrap();
        for (parameter, variable) in &variables {
            let [a, b, c] = [&kept, &again, &want].map(|g| g.get(variable).unwrap());
            let scale = c.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap();
            let near = near * (1.0 + scale.to_scalar::<f64>().unwrap());
            let name = &parameter.name;
            assert!(distance(a, c) < near && distance(b, c) < near, "{name}");
        }
    }
}

/// A loss and its gradient: with activations kept, and with those of each block recomputed.
/// The same operations in the same order, so the same bits; in the chain of fused blocks, and node
/// by node.
#[test]
fn recomputing_changes_no_bit_of_a_gradient() {
    let mut rng = seeded(13);
    let attention = Attention { causal: true, logit_scale: 2.0, ..Attention::new(8, 2, 4) };
    let block = |name: &str, norm: bool| {
        let mut body = vec![Node::new("attend", Op::Attention(attention.clone()))];
        if norm {
            body.insert(0, Node::new("norm", Op::RmsNorm { dim: 8, eps: 0.1, gain: true }));
        }
        Node::new(name, Op::Residual { skip: 0.5, branch: 0.5, body })
    };
    for (norm, precision) in
        [(false, Precision::F32), (true, Precision::F32), (true, Precision::Bf16)]
    {
        let nodes = vec![
            Node::new("embedding", Op::Embedding { vocabulary: 7, dim: 8 }),
            Node::new("blocks", Op::Sequential { body: vec![block("0", norm), block("1", norm)] }),
            Node::new("head", Op::Linear { inputs: 8, outputs: 7, bias: true }),
        ];
        let graph =
            Graph::new(Input::Tokens { context: 9, separator: Some(3), zero_prefix: 0 }, nodes)
                .unwrap();
        let weight =
            |shape: &[usize], rng: &mut Stream| random(shape, rng).to_dtype(DType::F32).unwrap();
        let weights: Weights = graph
            .parameters()
            .iter()
            .map(|p| (p.name.clone(), weight(&p.shape, &mut rng)))
            .collect();
        let model = Model::new(graph, weights).unwrap().with_precision(precision);
        let ids = Tensor::new(
            &[[1u32, 2, 3, 6, 4, 5, 3, 6, 1], [0, 0, 1, 2, 5, 6, 4, 3, 3]],
            &Device::Cpu,
        )
        .unwrap();
        let gradient = |recompute: bool| {
            let (model, vars) = model.clone().recomputing(recompute).trainable().unwrap();
            let loss = |y: &Tensor| {
                let flat = y.reshape(((), 7)).unwrap();
                Ok::<_, lipschitz_nn::Error>(
                    ops::cross_entropy(&flat, &ids.flatten_all()?)?.get(0)?,
                )
            };
            let mut gradients = GradStore::default();
            let value = model.gradient(&ids, None, &mut gradients, loss).unwrap();
            let of = |v: &Var| {
                gradients
                    .get(v.as_tensor())
                    .unwrap()
                    .flatten_all()
                    .unwrap()
                    .to_vec1::<f32>()
                    .unwrap()
            };
            (value.to_scalar::<f32>().unwrap(), vars.iter().map(|(_, v)| of(v)).collect::<Vec<_>>())
        };
        let (kept, again) = (gradient(false), gradient(true));
        assert_eq!(kept.0, again.0);
        assert!(kept.1.iter().flatten().any(|g| g.abs() > 1e-3));
        assert_eq!(kept.1, again.1, "norm {norm}, {precision:?}");
    }
}

/// So are convolutions, forward and backward.
#[test]
fn convolutions_in_bf16_are_those_of_rounded_factors() {
    let mut rng = seeded(15);
    let c = Convolution { groups: 2, bias: false, ..Convolution::same(4, 6, 3) };
    let x = random(&[2, 4, 5, 5], &mut rng).to_dtype(DType::F32).unwrap();
    let w = random(&c.weight(), &mut rng).to_dtype(DType::F32).unwrap();
    let rounded = |x: &Tensor| x.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    let of = |x: &Tensor, w: &Tensor, precision| {
        let w = Var::from_tensor(w).unwrap();
        let y = ops::convolution(x, w.as_tensor(), None, &c, precision).unwrap();
        let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        [y.detach(), gradients.get(&w).unwrap().clone()]
    };
    let (half, full) =
        (of(&x, &w, Precision::Bf16), of(&rounded(&x), &rounded(&w), Precision::F32));
    let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    for (half, full) in half.iter().zip(&full) {
        let error = largest(&(half - full).unwrap());
        assert!(error > 0.0 && error <= largest(full) * 0.02, "{error} of {}", largest(full));
    }
    assert_eq!(largest(&(&half[0] - rounded(&half[0])).unwrap()), 0.0);
}

/// What is computed in bf16 is off by its rounding, and by no more.
#[test]
fn products_in_bf16_are_products_of_rounded_factors() {
    let mut rng = seeded(14);
    let [x, w] =
        [[3, 40], [5, 40]].map(|shape| random(&shape, &mut rng).to_dtype(DType::F32).unwrap());
    let rounded = |x: &Tensor| x.to_dtype(DType::BF16).unwrap().to_dtype(DType::F64).unwrap();
    let y = ops::linear(&x, &w, None, Precision::Bf16).unwrap().to_dtype(DType::F64).unwrap();
    let exact = rounded(&x).matmul(&rounded(&w).t().unwrap()).unwrap();
    let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    let error = largest(&(&y - &exact).unwrap());
    // Half a unit in the last of 8 bits, and sums in f32.
    assert!(error > 0.0 && error <= largest(&exact) * (1.0 / 256.0 + 1e-5), "{error}");
    assert_eq!(largest(&(&y - rounded(&y)).unwrap()), 0.0);
}
