//! What a forward pass rounds away stays within what is allowed for it, for random networks of
//! every kind of node: in f32, whose rounding a pass in f64 shows.

use candle_core::{D, DType, Device, Tensor};
use lipschitz_certify::bound::{WeightNorms, rounding};
use lipschitz_certify::spectral::Method;
use lipschitz_certify::upper::Upper;
use lipschitz_nn::Model;
use lipschitz_nn::graph::Input;
use lipschitz_tests::{
    Dice, random_convolution_graph, random_graph, random_image_graph, random_model,
};

/// u of f32.
const UNIT: f64 = f32::EPSILON as f64 / 2.0;

fn largest(x: &Tensor) -> f64 {
    let x = x.to_dtype(DType::F64).unwrap();
    let norms = x.sqr().unwrap().sum(D::Minus1).unwrap().sqrt().unwrap();
    norms.flatten_all().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap()
}

/// The largest distance of outputs in f32 from those in f64, and what is allowed for it.
fn measured(model: &Model, x: &Tensor) -> (f64, f64) {
    // Weights and inputs are exact in both.
    let single = model.to(&Device::Cpu, DType::F32).unwrap();
    let double = single.to(&Device::Cpu, DType::F64).unwrap();
    let x = x.to_dtype(DType::F32).unwrap();
    let tokens = matches!(model.graph().input(), Input::Tokens { .. });
    let run = |model: &Model| {
        let x = x.to_dtype(model.dtype()).unwrap();
        let y = if tokens { model.forward_embeddings(&x) } else { model.forward(&x) };
        y.unwrap().to_dtype(DType::F64).unwrap()
    };
    let off = largest(&(run(&single) - run(&double)).unwrap());
    let flat = if tokens { x.clone() } else { x.flatten_from(1).unwrap() };
    let radius = Upper::from_f64(largest(&flat) * (1.0 + 1e-6));
    let norms = WeightNorms::new(&single, Method::Proven, &|_| {});
    (off, rounding(model.graph(), &norms, radius, UNIT).unwrap().to_f64())
}

#[test]
fn computed_outputs_are_within_the_allowance() {
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
        let (off, allowed) = measured(&model, &dice.tensor(&shape, size));
        tried += 1;
        if allowed.is_finite() && off.is_finite() {
            finite += 1;
            assert!(off <= allowed, "{off} is above {allowed}: seed {seed}, {text}");
            closest = closest.max(off / allowed);
        }
    }
    // An allowance that is always infinite, or absurd, would pass everything.
    assert!(finite > tried / 3, "{finite} of {tried}");
    assert!(closest > 1e-3, "{closest}");
}
