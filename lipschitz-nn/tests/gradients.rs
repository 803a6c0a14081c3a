//! Every gradient against central finite differences in f64, and every fused operation against its composed twin.

use candle_core::{DType, Device, Tensor, Var};
use lipschitz_nn::graph::{Attention, Function, Graph, Input, Node, Op, Pairing, Rotary};
use lipschitz_nn::{Model, Weights, ops};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn random(shape: &[usize], rng: &mut ChaCha8Rng) -> Tensor {
    let unit = |rng: &mut ChaCha8Rng| f64::from(rng.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0;
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| unit(rng)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn random_model(graph: Graph, rng: &mut ChaCha8Rng) -> Model {
    let weights: Weights = graph.parameters().iter().map(|p| (p.name.clone(), random(&p.shape, rng))).collect();
    Model::new(graph, weights).unwrap()
}

fn scalar(t: &Tensor) -> f64 {
    t.sum_all().unwrap().to_scalar::<f64>().unwrap()
}

/// Checks the gradient of `f` with respect to each variable, element by element.
fn check(what: &str, variables: &[(String, Var)], f: &dyn Fn() -> Tensor) {
    let gradients = f().sum_all().unwrap().backward().unwrap();
    for (name, variable) in variables {
        let gradient = gradients.get(variable.as_tensor()).unwrap_or_else(|| panic!("{what}: no gradient of {name}"));
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let start = variable.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for i in 0..start.len() {
            let h = 1e-6;
            let at = |x: f64| {
                let mut moved = start.clone();
                moved[i] = x;
                variable.set(&Tensor::from_vec(moved, variable.shape(), &Device::Cpu).unwrap()).unwrap();
                scalar(&f())
            };
            let difference = (at(start[i] + h) - at(start[i] - h)) / (2.0 * h);
            at(start[i]);
            let error = (difference - gradient[i]).abs();
            assert!(error < 1e-6 * (1.0 + difference.abs()), "{what}: {name}[{i}]: {} not {difference}", gradient[i]);
        }
    }
}

fn check_graph(what: &str, graph: Graph, input: Tensor, rng: &mut ChaCha8Rng) {
    let (model, variables) = random_model(graph, rng).trainable().unwrap();
    let mut variables: Vec<(String, Var)> = variables.into_iter().map(|(p, v)| (p.name, v)).collect();
    let output = model.forward(&input).unwrap();
    let weighting = random(output.dims(), rng);
    if input.dtype() == DType::F64 {
        let input = Var::from_tensor(&input).unwrap();
        variables.push(("input".into(), input.clone()));
        check(what, &variables, &|| (model.forward(input.as_tensor()).unwrap() * &weighting).unwrap());
    } else {
        check(what, &variables, &|| (model.forward(&input).unwrap() * &weighting).unwrap());
    }
}

fn attention(heads: usize, key_value_heads: usize, rotary: Option<Pairing>, bias: bool, norm: bool) -> Attention {
    Attention {
        dim: 6,
        heads,
        key_value_heads,
        head_dim: 4,
        logit_scale: 0.7,
        output_scale: 0.5,
        causal: bias,
        rotary: rotary.map(|pairing| Rotary { base: 100.0, pairing }),
        bias,
        output_bias: bias,
        query_key_norm: norm.then_some(0.1),
        logit_cap: rotary.map(|_| 0.8),
    }
}

#[test]
fn every_node_kind_has_the_right_gradient() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let tokens = Tensor::new(&[[0u32, 2, 1], [3, 3, 0]], &Device::Cpu).unwrap();
    let embedding = Node::new("embedding", Op::Embedding { vocabulary: 4, dim: 6 });
    let mut on_tokens = |what: &str, op: Op| {
        let nodes = vec![embedding.clone(), Node::new("node", op)];
        check_graph(what, Graph::new(Input::Tokens { context: 3 }, nodes).unwrap(), tokens.clone(), &mut rng);
    };
    on_tokens("linear", Op::Linear { inputs: 6, outputs: 5, bias: true });
    on_tokens("positions", Op::Positions { length: 3, dim: 6 });
    on_tokens("scale", Op::Scale { factor: -1.5 });
    on_tokens("soft cap", Op::SoftCap { cap: 0.6 });
    on_tokens("clip", Op::Clip { limit: 0.4 });
    on_tokens("rms norm", Op::RmsNorm { dim: 6, eps: 0.01 });
    on_tokens("layer norm", Op::LayerNorm { dim: 6, eps: 0.01, bias: true });
    on_tokens("mean pool", Op::MeanPool);
    for function in
        [Function::Relu, Function::GeluErf, Function::GeluTanh, Function::Silu, Function::Tanh, Function::Sigmoid]
    {
        on_tokens(&format!("{function:?}"), Op::Activation { function, scale: 0.8 });
        on_tokens(&format!("gated {function:?}"), Op::GatedMlp { dim: 6, hidden: 7, function });
    }
    for (heads, kv, rotary, bias, norm) in [
        (1, 1, None, false, false),
        (2, 2, Some(Pairing::Half), true, false),
        (4, 2, Some(Pairing::Interleaved), false, true),
        (3, 1, None, true, true),
    ] {
        on_tokens(&format!("attention {heads}/{kv}"), Op::Attention(attention(heads, kv, rotary, bias, norm)));
    }
    let body = vec![Node::new("inner", Op::Linear { inputs: 6, outputs: 6, bias: false })];
    on_tokens("residual", Op::Residual { skip: 0.75, branch: 0.25, body: body.clone() });
    on_tokens("sequential", Op::Sequential { body });
    let image = random(&[2, 3, 4, 4], &mut rng);
    let pixels = Input::Pixels { channels: 3, height: 4, width: 4 };
    let head = |inputs| Node::new("head", Op::Linear { inputs, outputs: 3, bias: true });
    let flat = Graph::new(pixels, vec![Node::new("", Op::Flatten), head(48)]).unwrap();
    check_graph("flatten", flat, image.clone(), &mut rng);
    let patches = vec![Node::new("", Op::Patches { size: 2 }), head(12), Node::new("", Op::MeanPool)];
    check_graph("patches", Graph::new(pixels, patches).unwrap(), image, &mut rng);
}

/// Values and gradients of two functions of the same variables agree.
fn same(what: &str, variables: &[&Var], fused: &Tensor, composed: &Tensor, tolerance: f64) {
    let distance = |a: &Tensor, b: &Tensor| {
        let d = (a.to_dtype(DType::F64).unwrap() - b.to_dtype(DType::F64).unwrap()).unwrap().abs().unwrap();
        d.flatten_all().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap()
    };
    assert_eq!(fused.dims(), composed.dims());
    assert!(distance(fused, composed) < tolerance, "{what}: values {}", distance(fused, composed));
    let loss = |y: &Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let (a, b) = (loss(fused), loss(composed));
    for (i, v) in variables.iter().enumerate() {
        let error = distance(a.get(v.as_tensor()).unwrap(), b.get(v.as_tensor()).unwrap());
        assert!(error < 20.0 * tolerance, "{what}: gradient {i}: {error}");
    }
}

#[test]
fn fused_operations_equal_their_twins() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for (dtype, tolerance) in [(DType::F32, 4e-6), (DType::F64, 2e-6)] {
        let var = |shape: &[usize], factor: f64, rng: &mut ChaCha8Rng| {
            Var::from_tensor(&(random(shape, rng) * factor).unwrap().to_dtype(dtype).unwrap()).unwrap()
        };
        for function in
            [Function::Relu, Function::GeluErf, Function::GeluTanh, Function::Silu, Function::Tanh, Function::Sigmoid]
        {
            let x = var(&[3, 7001], 6.0, &mut rng);
            let fused = ops::activation(x.as_tensor(), function, 0.9).unwrap();
            let composed = ops::composed::activation(x.as_tensor(), function, 0.9).unwrap();
            same(&format!("{function:?}"), &[&x], &fused, &composed, tolerance);
        }
        for pairing in [Pairing::Half, Pairing::Interleaved] {
            let x = var(&[2, 9, 3, 8], 1.0, &mut rng);
            let rotary = Rotary { base: 50.0, pairing };
            let fused = ops::rotary(x.as_tensor(), rotary).unwrap();
            let composed = ops::composed::rotary(x.as_tensor(), rotary).unwrap();
            same(&format!("{pairing:?}"), &[&x], &fused, &composed, tolerance);
        }
        for (tokens, heads, groups, mask) in [
            (1, 1, 1, ops::Mask::Causal),
            (130, 4, 2, ops::Mask::Causal),
            (65, 3, 3, ops::Mask::None),
            (64, 2, 1, ops::Mask::None),
        ] {
            let q = var(&[2, tokens, heads, 6], 2.0, &mut rng);
            let (k, v) = (var(&[2, tokens, groups, 6], 2.0, &mut rng), var(&[2, tokens, groups, 6], 1.0, &mut rng));
            let fused = ops::attention(&q, &k, &v, 0.4, None, mask).unwrap();
            let composed = ops::composed::attention(&q, &k, &v, 0.4, None, mask).unwrap();
            same(&format!("attention {tokens} {heads}/{groups}"), &[&q, &k, &v], &fused, &composed, tolerance);
        }
    }
}

/// A view that candle's own linear layer gets wrong (a transposed, hence non-contiguous, 3-D input).
#[test]
fn linear_reads_views() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (x, w) = (random(&[2, 5, 4], &mut rng), random(&[3, 5], &mut rng));
    let view = x.transpose(1, 2).unwrap();
    let expected = view.contiguous().unwrap().reshape((8, 5)).unwrap().matmul(&w.t().unwrap()).unwrap();
    let y = ops::linear(&view, &w, None).unwrap().reshape((8, 3)).unwrap();
    assert_eq!(y.to_vec2::<f64>().unwrap(), expected.to_vec2::<f64>().unwrap());
}
