//! Numbers at the ends of f64: what overflows or underflows in a proof is no excuse for a bound below the truth.

use candle_core::{DType, Device, Tensor};
use lipschitz_certify::certificate::{Formula, certify};
use lipschitz_certify::range::{self, Inputs};
use lipschitz_certify::source::{Rounded, Rounding};
use lipschitz_certify::spectral::Method;
use lipschitz_nn::Model;
use lipschitz_nn::graph::{Attention, Function, Graph, Input, Node, Op, Pairing, Rotary};

fn tensor(rows: &[&[f64]]) -> Tensor {
    Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
}

fn model(input: Input, ops: Vec<(&str, Op)>, weights: &[(&str, &[&[f64]])]) -> Model {
    let nodes = ops.into_iter().map(|(name, op)| Node::new(name, op)).collect();
    let weights = weights.iter().map(|(name, rows)| (name.to_string(), tensor(rows))).collect();
    Model::new(Graph::new(input, nodes).unwrap(), weights).unwrap()
}

fn one() -> Op {
    Op::Linear { inputs: 1, outputs: 1, bias: false }
}

/// A slope whose product with a scale is half of the smallest number.
#[test]
fn slopes_next_to_zero_count() {
    let relu = Op::Activation { function: Function::Relu, scale: 5e-324 };
    let scale = |factor: f64| Op::Scale { factor };
    let ops = vec![("a", one()), ("b", relu), ("c", scale(1e308)), ("d", scale(1e16))];
    let model = model(Input::Vector { dim: 1 }, ops, &[("a.weight", &[&[1.0]])]);
    let truth = 5e-324 * 1e308 * 1e16;
    for steps in [0, 5] {
        let found = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
        let found = found.tighten(&model, steps, &mut |_, _| {}).unwrap();
        assert!(found.l2.to_f64() >= truth * (1.0 - 1e-12), "{} below {truth}", found.l2);
    }
}

/// Elements behind an activation of a tiny scale, and pairs that are turned.
#[test]
fn ranges_next_to_zero_count() {
    let tokens = Input::tokens(2);
    let embedding = |dim| ("embedding", Op::Embedding { vocabulary: 2, dim });
    let relu = |scale| Op::Activation { function: Function::Relu, scale };
    for (small, large) in [(5e-324, 1e23), (1e-300, 1e38)] {
        let ops = vec![
            embedding(1),
            ("a", relu(small)),
            ("b", one()),
            ("c", Op::Scale { factor: 1e280 }),
        ];
        let weights: [(&str, &[&[f64]]); 2] =
            [("embedding.weight", &[&[1.0], &[-1.0]]), ("b.weight", &[&[large]])];
        let ranges =
            range::prove(&model(tokens, ops, &weights), Inputs::default(), 5, &|_| {}).unwrap();
        let truth = small * large * 1e280;
        assert!(
            ranges.largest().to_f64() >= truth * (1.0 - 1e-12),
            "{} below {truth}",
            ranges.largest()
        );
    }
    let rotary = Some(Rotary::new(1e4, Pairing::Half));
    let attention = Attention { rotary, ..Attention::new(2, 1, 2) };
    let id: &[&[f64]] = &[&[1.0, 0.0], &[0.0, 1.0]];
    let weights: [(&str, &[&[f64]]); 5] = [
        ("embedding.weight", &[&[1.0, 0.0], &[0.5, 0.0]]),
        ("a.query.weight", &[&[1e-100, 0.0], &[0.0, 0.0]]),
        ("a.key.weight", id),
        ("a.value.weight", id),
        ("a.output.weight", id),
    ];
    let model = model(tokens, vec![embedding(2), ("a", Op::Attention(attention))], &weights);
    let ranges = range::prove(&model, Inputs::default(), 0, &|_| {}).unwrap();
    let turned: Vec<f64> = ranges
        .tensors
        .iter()
        .filter(|t| t.name.contains("query_rotary"))
        .map(|t| t.largest.to_f64())
        .collect();
    assert!(turned.len() == 1 && turned[0] >= 1e-100, "{turned:?}");
}

/// Weights that are rounded are rounded as it is said.
#[test]
fn weights_are_rounded_to_nearest() {
    let bound = |weight: f64, to: Rounding| {
        let source =
            model(Input::Vector { dim: 1 }, vec![("a", one())], &[("a.weight", &[&[weight]])]);
        let rounded = Rounded { source: &source, to };
        certify(&rounded, Method::Proven, Formula::Sound, None).map(|c| c.l2.to_f64())
    };
    // Just above a tie.
    let above = |bits: i32| 1.0 + 2f64.powi(-bits) + 2f64.powi(-40);
    assert!(bound(above(8), Rounding::Bf16).unwrap() >= 1.0 + 2f64.powi(-7));
    assert!(bound(above(11), Rounding::F16).unwrap() >= 1.0 + 2f64.powi(-10));
    for to in [Rounding::E4m3, Rounding::E5m2, Rounding::Int8] {
        assert!(bound(3.0, to).unwrap() >= 2.9);
        for far in [1e300, 1e-300] {
            let said = bound(far, to).unwrap_err().to_string();
            assert!(said.contains("too far from 1"), "{said}");
        }
    }
}

/// What is proven holds on the ball that is named.
#[test]
fn a_domain_is_rounded_down() {
    let relu2 = Op::Activation { function: Function::Relu2, scale: 1.0 };
    let model = model(
        Input::Vector { dim: 1 },
        vec![("a", one()), ("b", relu2)],
        &[("a.weight", &[&[1.0]])],
    );
    let tiny = certify(&model, Method::Proven, Formula::Sound, Some(1e-320)).unwrap().domain;
    assert!(tiny.to_string().ends_with("≤ 0"), "{tiny}");
    for radius in [1.00001, 10_000_010.0, 0.123_456_789, 16.0] {
        let found = certify(&model, Method::Proven, Formula::Sound, Some(radius)).unwrap();
        let text = found.domain.to_string();
        let named: f64 = text.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(named <= radius && named > 0.999 * radius, "{radius}: {text}");
    }
    let single = model.to(&Device::Cpu, DType::F32).unwrap();
    let text =
        certify(&single, Method::Proven, Formula::Sound, Some(16.0)).unwrap().domain.to_string();
    assert!(text.ends_with("≤ 16"), "{text}");
}
