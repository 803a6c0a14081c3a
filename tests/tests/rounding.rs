//! What a forward pass rounds away stays within what is allowed for it, for random networks of
//! every kind of node: in f32, and in f32 with every tensor rounded to f16 or bf16, beside a pass in f64.

use candle_core::{D, DType, Device, Tensor};
use lipschitz_certify::bound::{BF16, F16, F32, F64, Format, WeightNorms, rounding};
use lipschitz_certify::executed::{self, Proof};
use lipschitz_certify::spectral::Method;
use lipschitz_certify::upper::Upper;
use lipschitz_nn::graph::{
    Alibi, Attention, Function, Graph, Input, Node, Op, Pairing, Pool, Pooling, Rotary,
};
use lipschitz_nn::{Model, Seen};
use lipschitz_tests::{
    Dice, random_convolution_graph, random_graph, random_image_graph, random_model,
};

fn largest(x: &Tensor) -> f64 {
    let x = x.to_dtype(DType::F64).unwrap();
    let norms = x.sqr().unwrap().sum(D::Minus1).unwrap().sqrt().unwrap();
    norms.flatten_all().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap()
}

/// What a pass in a format does, and what is proven of it.
struct Measured {
    /// The largest distance of outputs from those in f64.
    off: f64,
    /// The largest absolute value of any tensor.
    largest: f64,
    /// What is allowed for the distance.
    allowed: f64,
    proof: Proof,
}

fn measured(model: &Model, x: &Tensor, format: Format) -> Measured {
    // Weights and inputs of f32 are exact in f64.
    let single = model.to(&Device::Cpu, DType::F32).unwrap();
    let double = single.to(&Device::Cpu, DType::F64).unwrap();
    let rounded = |x: &Tensor| x.to_dtype(format.dtype).unwrap().to_dtype(DType::F32).unwrap();
    let x = x.to_dtype(DType::F32).unwrap();
    let tokens = matches!(model.graph().input(), Input::Tokens { .. });
    let run = |model: &Model| {
        let x = x.to_dtype(model.dtype()).unwrap();
        let y = if tokens { model.forward_embeddings(&x) } else { model.forward(&x) };
        y.unwrap().to_dtype(DType::F64).unwrap()
    };
    let kept = single.to(&Device::Cpu, format.dtype).unwrap().to(&Device::Cpu, DType::F32).unwrap();
    let mut most = 0.0_f64;
    let mut tap = |_: Seen<'_>, x: Tensor| {
        let x = rounded(&x);
        let all = x.abs()?.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from);
        most = all.filter(|x| x.is_finite()).fold(most, f64::max);
        Ok(x)
    };
    let tapped = match tokens {
        true => kept.forward_embeddings_tapped(&x, &mut tap),
        false => kept.forward_tapped(&x, &mut tap),
    };
    let tapped = tapped.unwrap().to_dtype(DType::F64).unwrap();
    let computed = if format.mixed() { tapped } else { run(&single) };
    let off = largest(&(computed - run(&double)).unwrap());
    let flat = if tokens { x.clone() } else { x.flatten_from(1).unwrap() };
    let radius = Upper::from_f64(largest(&flat) * (1.0 + 1e-6));
    let norms = WeightNorms::new(&single, Method::Proven, &|_| {});
    let allowed = rounding(model.graph(), &norms, radius, format).unwrap().to_f64();
    let proof = executed::prove(&single, radius, format).unwrap_or(Proof::Unbounded);
    Measured { off, largest: most, allowed, proof }
}

#[test]
fn computed_outputs_are_within_the_allowance() {
    for (format, least) in [(F32, 1e-3), (BF16, 1e-2), (F16, 1e-2)] {
        within(format, least);
    }
}

/// Whether all are, and the nearest at least this share of what is allowed.
fn within(format: Format, least: f64) {
    let (mut finite, mut tried, mut closest, mut bounded) = (0, 0, 0f64, 0);
    for seed in 0..520 {
        let mut dice = Dice::new(seed);
        // The last ones are of convolutions.
        let tokens = dice.coin() && seed < 400;
        let graph = match tokens {
            true => random_graph(&mut dice),
            false if seed < 400 => random_image_graph(&mut dice),
            false => random_convolution_graph(&mut dice),
        };
        let text = serde_json::to_string(&graph).unwrap();
        let model = random_model(graph, &mut dice);
        let shape = if tokens {
            vec![3, 1 + dice.below(4), model.weights()["embedding.weight"].dim(1).unwrap()]
        } else {
            vec![3, 2, 4, 4]
        };
        let size = dice.pick(&[0.1, 1.0, 30.0]);
        let found = measured(&model, &dice.tensor(&shape, size), format);
        let Measured { off, allowed, largest, proof } = found;
        tried += 1;
        if let Proof::Within { outputs, values } = proof {
            bounded += 1;
            let name = format.dtype.as_str();
            assert!(largest <= values.to_f64(), "{name}: {largest} {values}: seed {seed}, {text}");
            assert!(off <= outputs.to_f64(), "{name}: {off} {outputs}: seed {seed}, {text}");
        }
        if allowed.is_finite() && off.is_finite() {
            finite += 1;
            let name = format.dtype.as_str();
            assert!(off <= allowed, "{name}: {off} is above {allowed}: seed {seed}, {text}");
            closest = closest.max(off / allowed);
        }
    }
    // An allowance that is always infinite, or absurd, would pass everything.
    assert!(finite > tried / 3, "{finite} of {tried}");
    assert!(bounded > tried / 10, "{bounded} of {tried}");
    assert!(closest > least, "{closest}");
}

/// What is allowed for a network without weights, on the ball of radius 1.
fn allowed(dim: usize, op: Op, format: Format) -> f64 {
    let graph = Graph::new(Input::Vector { dim }, vec![Node::new("", op)]).unwrap();
    let model = Model::new(graph, std::collections::BTreeMap::new()).unwrap();
    let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
    rounding(model.graph(), &norms, Upper::ONE, format).unwrap().to_f64()
}

/// What a sum of branches loses between the smallest numbers of f16, and what a limit loses that is none
/// of the type.
#[test]
fn sums_next_to_zero_and_limits_are_rounded() {
    let kept = |x: f64, format: Format| {
        let x = Tensor::new(&[x as f32], &Device::Cpu).unwrap().to_dtype(format.dtype).unwrap();
        x.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()[0]
    };
    // x + ReLU(x) times 1e-5, of 1024 elements whose norm is below 1.
    let relu = Node::new("", Op::Activation { function: Function::Relu, scale: 1.0 });
    let sum = Op::Residual { skip: 1e-5, branch: 1e-5, body: vec![relu] };
    let x = kept(0.028_31, F16);
    let off = 32.0 * (kept(2e-5 * x, F16) - 2e-5 * 0.028_31).abs();
    assert!(off > 5e-7 && off <= allowed(1024, sum, F16), "{off}");
    for format in [F32, BF16, F16] {
        let off = (kept(0.1, format) - 0.1).abs();
        let allowed = allowed(1, Op::Clip { limit: 0.1 }, format);
        assert!(off > 1e-9 && off <= allowed, "{off} {allowed}");
    }
}

/// A model of f32, on tokens whose embedding has these rows.
fn of_tokens(rows: &[&[f32]], nodes: Vec<Node>, weights: &[(&str, &[&[f32]])]) -> Model {
    let dim = rows[0].len();
    let embedding = Node::new("embedding", Op::Embedding { vocabulary: rows.len(), dim });
    let nodes = std::iter::once(embedding).chain(nodes).collect();
    let tensor = |rows: &[&[f32]]| {
        Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
    };
    let all = weights.iter().copied().chain([("embedding.weight", rows)]);
    let weights = all.map(|(name, rows)| (name.to_string(), tensor(rows))).collect();
    Model::new(Graph::new(Input::tokens(4), nodes).unwrap(), weights).unwrap()
}

/// What reaches the end of a type is told: where no row of the table does, but the domain; in a tensor that
/// is scaled down; where the input is off already.
#[test]
fn what_overflows_somewhere_is_not_bounded() {
    let head = |inputs, outputs| Node::new("head", Op::Linear { inputs, outputs, bias: false });
    let steep: &[&[f32]] = &[&[0.0, 2e4, 0.0, 0.0], &[0.0, 0.0, 1.0, 0.0]];
    let row: &[f32] = &[8.0, 0.0, 0.0, 0.0];
    let direction = of_tokens(&[row, row], vec![head(4, 2)], &[("head.weight", steep)]);
    let attention = Attention { logit_scale: 1e-6, ..Attention::new(1, 1, 1) };
    // 255.69 is 256 in f16, and the square of that is above 65504.
    let scaled_down = of_tokens(
        &[&[1.00049]],
        vec![Node::new("a", Op::Attention(attention)), head(1, 2)],
        &[
            ("a.query.weight", &[&[255.69]]),
            ("a.key.weight", &[&[255.69]]),
            ("a.value.weight", &[&[1.0]]),
            ("a.output.weight", &[&[1.0]]),
            ("head.weight", &[&[1.0], &[-1.0]]),
        ],
    );
    for (model, radius) in [(direction, 8.0), (scaled_down, 1.00049)] {
        for (format, fits) in [(F16, false), (BF16, true), (F32, true)] {
            let proof = executed::prove(&model, Upper::from_f64(radius), format).unwrap();
            let within = matches!(proof, Proof::Within { .. });
            assert_eq!(within, fits, "{}: {proof:?}", format.dtype.as_str());
        }
    }
}

/// Queries that are scaled before their product with keys overflow where no logit does.
#[test]
fn scaled_queries_overflow() {
    let of = |logit_scale: f64, key: f32| {
        let attention = Attention { logit_scale, window: Some(2), ..Attention::new(1, 1, 1) };
        let weights: [(&str, &[&[f32]]); 4] = [
            ("a.query.weight", &[&[1e4]]),
            ("a.key.weight", &[&[key]]),
            ("a.value.weight", &[&[1.0]]),
            ("a.output.weight", &[&[1.0]]),
        ];
        let model = of_tokens(&[&[0.4]], vec![Node::new("a", Op::Attention(attention))], &weights);
        executed::prove(&model, Upper::from_f64(0.5), F32).unwrap()
    };
    let (large, usual) = (of(1e35, 2e-38), of(1.0, 2e-3));
    assert!(matches!(large, Proof::Overflow { .. }), "{large:?}");
    assert!(matches!(usual, Proof::Within { .. }), "{usual:?}");
}

/// Angles are off in proportion to the frequency that makes them.
#[test]
fn fast_rotations_are_rounded() {
    let of = |frequency: f64| {
        let rotary =
            Rotary { frequencies: Some(vec![frequency]), ..Rotary::new(1e4, Pairing::Half) };
        let attention = Attention { rotary: Some(rotary), ..Attention::new(2, 1, 2) };
        let one: &[&[f32]] = &[&[1.0, 0.0], &[0.0, 1.0]];
        let names = ["a.query.weight", "a.key.weight", "a.value.weight", "a.output.weight"];
        let weights = names.map(|name| (name, one));
        let model =
            of_tokens(&[&[1.0, 0.0]], vec![Node::new("a", Op::Attention(attention))], &weights);
        let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
        rounding(model.graph(), &norms, Upper::ONE, F64).unwrap().to_f64()
    };
    // The product of a position and a frequency alone may be off by half a unit.
    let angle = 3.0 * 1e9 * f64::EPSILON / 2.0;
    assert!(of(1.0) < angle && of(1e9) > angle, "{} {}", of(1.0), of(1e9));
}

/// What f32 holds is one network in f32 and in f64; what it does not is another.
#[test]
fn weights_of_f64_are_not_those_of_f32() {
    for (weight, same) in [(0.25, true), (0.1, false)] {
        let weight = Tensor::new(&[[weight, 2.0_f64]], &Device::Cpu).unwrap();
        let head = Node::new("head", Op::Linear { inputs: 2, outputs: 1, bias: false });
        let graph = Graph::new(Input::Vector { dim: 2 }, vec![head]).unwrap();
        let model = Model::new(graph, [("head.weight".to_string(), weight)].into()).unwrap();
        for (format, held) in [(F64, true), (F32, same), (BF16, same), (F16, same)] {
            let proof = executed::prove(&model, Upper::ONE, format);
            assert_eq!(proof.is_ok(), held, "{proof:?}");
            if let Err(error) = proof {
                assert!(error.to_string().contains("other weights"), "{error}");
            }
        }
    }
}

/// Squares that overflow or underflow in between, in f64: a norm of what is too large is 0, as is one of what
/// is too small.
#[test]
fn squares_of_f64_are_not_forgotten() {
    let allowed = |input: Input, ops: Vec<Op>| {
        let nodes = ops.into_iter().map(|op| Node::new("", op)).collect();
        let model = Model::new(Graph::new(input, nodes).unwrap(), Default::default()).unwrap();
        let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
        rounding(model.graph(), &norms, Upper::ONE, F64).unwrap()
    };
    let scale = |factor: f64| Op::Scale { factor };
    let norms = [
        Op::RmsNorm { dim: 2, eps: 1e-6, gain: false },
        Op::LayerNorm { dim: 2, eps: 1e-6, gain: false, bias: false },
        Op::Normalise { eps: 1e-12 },
    ];
    for norm in norms {
        let of = |factor: f64| allowed(Input::Vector { dim: 2 }, vec![scale(factor), norm.clone()]);
        assert!(!of(1e155).is_finite(), "{norm:?}");
        assert!(of(1e100).is_finite(), "{norm:?}");
    }
    let image = Input::Pixels { channels: 1, height: 2, width: 2 };
    let window = Pool { pooling: Pooling::L2, window: 2, stride: 1, padding: 0 };
    for pool in [Op::GlobalPool { pooling: Pooling::L2 }, Op::Pool(window)] {
        let of = |factor: f64| {
            allowed(image, vec![scale(factor), pool.clone(), scale(factor.recip())]).to_f64()
        };
        // The image (1, 0, 0, 0) becomes 0 in place of 1.
        assert!(of(1e-170) >= 1.0 && of(1e-100) < 1e-9, "{pool:?}");
    }
}

/// Numbers of nodes that f32 does not hold, or not to a share of themselves: nothing is proven.
#[test]
fn constants_that_a_type_does_not_hold_are_not_computed_with() {
    let (few, many) = (1e-45, 1e39);
    let scale = |factor: f64| Op::Scale { factor };
    let relu = |scale: f64| Op::Activation { function: Function::Relu, scale };
    let body = || vec![Node::new("", relu(1.0))];
    let attention = |change: &dyn Fn(&mut Attention)| {
        let mut a = Attention::new(2, 1, 2);
        change(&mut a);
        Op::Attention(a)
    };
    let cases: Vec<(Op, bool)> = vec![
        (scale(few), false),
        (scale(many), false),
        (scale(1e-30), true),
        (scale(0.0), true),
        (relu(many), false),
        (Op::Activation { function: Function::LeakyRelu { slope: few }, scale: 1.0 }, false),
        (Op::Activation { function: Function::Elu { alpha: few }, scale: 1.0 }, false),
        (Op::SoftCap { cap: 1e-39 }, false),
        (Op::SoftCap { cap: 1.0 }, true),
        (Op::Clip { limit: few }, false),
        (Op::Residual { skip: many, branch: 1.0, body: body() }, false),
        (Op::Residual { skip: 1.0, branch: few, body: body() }, false),
        (Op::RmsNorm { dim: 2, eps: many, gain: false }, false),
        (Op::RmsNorm { dim: 2, eps: 1e-6, gain: false }, true),
        (Op::Normalise { eps: 1e20 }, false),
        (attention(&|_| {}), true),
        (attention(&|a| a.output_scale = few), false),
        (attention(&|a| a.logit_scale = few), false),
        (attention(&|a| a.logit_cap = Some(1e-39)), false),
        (attention(&|a| a.alibi = Some(Alibi { slopes: vec![many] })), false),
    ];
    let one: &[&[f32]] = &[&[1.0, 0.0], &[0.0, 1.0]];
    let names = ["a.query.weight", "a.key.weight", "a.value.weight", "a.output.weight"];
    for (op, held) in cases {
        let weights = match op {
            Op::Attention(_) => &names.map(|name| (name, one))[..],
            _ => &[],
        };
        let model = of_tokens(&[&[0.5, 0.0]], vec![Node::new("a", op.clone())], weights);
        let proof = executed::prove(&model, Upper::ONE, F32).unwrap();
        assert_eq!(matches!(proof, Proof::Within { .. }), held, "{op:?}: {proof:?}");
    }
}

/// Factors whose product f32 does not hold are not made one.
#[test]
fn products_of_factors_are_those_of_the_graph() {
    let one: &[&[f32]] = &[&[1.0, 0.0], &[0.0, 1.0]];
    for (factor, weight, behind) in [(1e-23, 1e6_f32, 1e34), (1e20, 1e-20, 1.0)] {
        let body = Attention { output_scale: factor, ..Attention::new(2, 1, 2) };
        let body = vec![Node::new("a", Op::Attention(body))];
        let nodes = vec![
            Node::new("r", Op::Residual { skip: 0.0, branch: factor, body }),
            Node::new("", Op::Scale { factor: behind }),
        ];
        let large: &[&[f32]] = &[&[weight, 0.0], &[0.0, weight]];
        let weights = [
            ("r.a.query.weight", one),
            ("r.a.key.weight", one),
            ("r.a.value.weight", large),
            ("r.a.output.weight", large),
        ];
        let model = of_tokens(&[&[1.0, 0.0]], nodes, &weights);
        let proof = executed::prove(&model, Upper::ONE, F32).unwrap();
        let tokens = Tensor::new(&[[0u32]], &Device::Cpu).unwrap();
        let run = |dtype| {
            let y = model.to(&Device::Cpu, dtype).unwrap().forward(&tokens).unwrap();
            y.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()[0]
        };
        let off = (run(DType::F32) - run(DType::F64)).abs();
        if let Proof::Within { outputs, .. } = proof {
            assert!(off <= outputs.to_f64(), "{off} of {outputs}");
        }
        assert!(off < 1e-3, "{off}");
    }
}

/// A network that has no weights has no float type of theirs: it runs in the one that is asked for.
#[test]
fn a_network_without_weights_runs_in_f64() {
    let graph =
        Graph::builder(Input::Vector { dim: 3 }).activation(Function::Tanh).build().unwrap();
    let model = Model::new(graph, Default::default()).unwrap();
    let x = Tensor::new(&[[0.1_f64, -0.7, 2.3]], &Device::Cpu).unwrap();
    let run = |dtype| {
        let model = model.to(&Device::Cpu, dtype).unwrap();
        assert_eq!(model.dtype(), dtype);
        let y = model.forward(&x.to_dtype(dtype).unwrap()).unwrap();
        y.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap().remove(0)
    };
    let (wide, narrow) = (run(DType::F64), run(DType::F32));
    for ((wide, narrow), x) in wide.iter().zip(&narrow).zip([0.1_f64, -0.7, 2.3]) {
        assert!((wide - x.tanh()).abs() < 1e-15 && wide != narrow, "{wide} {narrow}");
    }
}
