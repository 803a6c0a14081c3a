//! What a forward pass rounds away stays within what is allowed for it, for random networks of
//! every kind of node: in f32, and in f32 with every tensor rounded to f16 or bf16, beside a pass in f64.

use candle_core::{D, DType, Device, Tensor};
use lipschitz_certify::bound::{BF16, F16, F32, Format, WeightNorms, rounding};
use lipschitz_certify::spectral::Method;
use lipschitz_certify::upper::Upper;
use lipschitz_nn::graph::{Function, Graph, Input, Node, Op};
use lipschitz_nn::{Model, Seen};
use lipschitz_tests::{
    Dice, random_convolution_graph, random_graph, random_image_graph, random_model,
};

fn largest(x: &Tensor) -> f64 {
    let x = x.to_dtype(DType::F64).unwrap();
    let norms = x.sqr().unwrap().sum(D::Minus1).unwrap().sqrt().unwrap();
    norms.flatten_all().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap()
}

/// The largest distance of outputs in a format from those in f64, and what is allowed for it.
fn measured(model: &Model, x: &Tensor, format: Format) -> (f64, f64) {
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
    let computed = match format.mixed() {
        true => {
            let kept = single.to(&Device::Cpu, format.dtype).unwrap();
            let kept = kept.to(&Device::Cpu, DType::F32).unwrap();
            let mut tap = |_: Seen<'_>, x: Tensor| Ok(rounded(&x));
            let y = match tokens {
                true => kept.forward_embeddings_tapped(&x, &mut tap),
                false => kept.forward_tapped(&x, &mut tap),
            };
            y.unwrap().to_dtype(DType::F64).unwrap()
        }
        false => run(&single),
    };
    let off = largest(&(computed - run(&double)).unwrap());
    let flat = if tokens { x.clone() } else { x.flatten_from(1).unwrap() };
    let radius = Upper::from_f64(largest(&flat) * (1.0 + 1e-6));
    let norms = WeightNorms::new(&single, Method::Proven, &|_| {});
    (off, rounding(model.graph(), &norms, radius, format).unwrap().to_f64())
}

#[test]
fn computed_outputs_are_within_the_allowance() {
    for (format, least) in [(F32, 1e-3), (BF16, 1e-2), (F16, 1e-2)] {
        within(format, least);
    }
}

/// Whether all are, and the nearest at least this share of what is allowed.
fn within(format: Format, least: f64) {
    let (mut finite, mut tried, mut closest) = (0, 0, 0f64);
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
        let (off, allowed) = measured(&model, &dice.tensor(&shape, size), format);
        tried += 1;
        if allowed.is_finite() && off.is_finite() {
            finite += 1;
            let name = format.dtype.as_str();
            assert!(off <= allowed, "{name}: {off} is above {allowed}: seed {seed}, {text}");
            closest = closest.max(off / allowed);
        }
    }
    // An allowance that is always infinite, or absurd, would pass everything.
    assert!(finite > tried / 3, "{finite} of {tried}");
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
