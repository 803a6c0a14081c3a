//! Small networks with a known constant, for which a careless bound or statement would be wrong.

use candle_core::{DType, Device, Tensor};
use lipschitz_certify::certificate::{Certificate, Formula, certify};
use lipschitz_certify::probe;
use lipschitz_certify::spectral::Method;
use lipschitz_nn::Model;
use lipschitz_nn::graph::{Attention, Graph, Input, Node, Op, Pooling};

fn matrix(values: &[f64], shape: (usize, usize)) -> Tensor {
    Tensor::from_vec(values.to_vec(), shape, &Device::Cpu).unwrap()
}

fn model(input: Input, nodes: Vec<Node>, weights: &[(&str, Tensor)]) -> Model {
    let weights = weights.iter().map(|(name, w)| (name.to_string(), w.clone())).collect();
    Model::new(Graph::new(input, nodes).unwrap(), weights).unwrap()
}

fn proven(model: &Model) -> Certificate {
    certify(model, Method::Proven, Formula::Sound, None).unwrap()
}

/// Attention of width 1 with zero queries and keys, so that it averages.
fn averaging(value: f64, output: f64) -> (Node, [(&'static str, Tensor); 4]) {
    let one = |x| matrix(&[x], (1, 1));
    let weights = [
        ("a.query.weight", one(0.0)),
        ("a.key.weight", one(0.0)),
        ("a.value.weight", one(value)),
        ("a.output.weight", one(output)),
    ];
    (Node::new("a", Op::Attention(Attention::new(1, 1, 1))), weights)
}

/// An image of two pixels, each a token, averaged causally: (x, y) → (x, (x + y)/2) has norm 1.144
/// for the whole output, and 1 for the larger of the two tokens. The certificate states the latter
/// and says so, and the search measures the same.
#[test]
fn tokens_of_an_image_are_measured_by_the_largest() {
    let (attention, weights) = averaging(1.0, 1.0);
    let nodes = vec![
        Node::new("", Op::Clip { limit: 1.0 }),
        Node::new("", Op::Patches { size: 1 }),
        attention,
    ];
    let model = model(Input::Pixels { channels: 1, height: 1, width: 2 }, nodes, &weights);
    let certificate = proven(&model);
    let l2 = certificate.l2.to_f64();
    assert!((1.0..1.0 + 1e-6).contains(&l2), "{l2}");
    assert!(
        certificate.assumptions.iter().any(|text| text.contains("largest of a token")),
        "{:?}",
        certificate.assumptions
    );
    let starts = matrix(&[0.3, 0.2, -0.1, 0.4], (2, 2)).reshape((2, 1, 1, 2)).unwrap();
    let found = probe::search(&model, &starts, 1.0, 40).unwrap().sensitivity;
    assert!(found <= l2 && found > 0.9, "{found}");
}

/// 2⁸ · 2²⁸ · 2²⁸ is 0 in numbers of 64 bits, and no constant of any image.
#[test]
fn an_image_whose_size_is_no_number_is_refused() {
    let head = || Node::new("head", Op::Linear { inputs: 256, outputs: 3, bias: false });
    let pool = || Node::new("", Op::GlobalPool { pooling: Pooling::Max });
    for sides in [[1 << 28, 1 << 28], [1 << 28, 1], [1 << 15, 1 << 15]] {
        let input = Input::Pixels { channels: 256, height: sides[0], width: sides[1] };
        let said = Graph::new(input, vec![pool(), head()]).unwrap_err().to_string();
        assert!(said.contains("reads images of more than 268435456 numbers"), "{said}");
    }
}

/// V·γ = 10⁻²⁰⁰·10⁻²⁰⁰ underflows to zero, but with O = 10³⁰⁰ the slope at 0 is 10⁻¹⁰⁰.
#[test]
fn a_gain_that_underflows_is_not_lost() {
    for (small, large) in [(1e-200, 1e300), (1e-160, 1e300)] {
        let (attention, attention_weights) = averaging(small, large);
        let nodes = vec![
            Node::new("e", Op::Embedding { vocabulary: 2, dim: 1 }),
            Node::new("n", Op::RmsNorm { dim: 1, eps: 1.0, gain: true }),
            attention,
        ];
        let mut weights = vec![
            ("e.weight", matrix(&[1.0, -1.0], (2, 1))),
            ("n.weight", Tensor::new(&[small], &Device::Cpu).unwrap()),
        ];
        weights.extend(attention_weights);
        let model = model(Input::tokens(1), nodes, &weights);
        assert_eq!(model.dtype(), DType::F64);
        let truth = small * large * small;
        assert!(proven(&model).l2.to_f64() >= truth, "{} is below {truth}", proven(&model).l2);
    }
}

/// A map of norm 1 with outputs of size 10¹² in front of another: rounding moves them by more than a
/// small step does. What is computed is above the constant, what is certain is not; and a constant
/// that is too small by a thousandth is told all the same.
#[test]
fn large_biases_refute_nothing_that_holds() {
    let dim = 4;
    let nodes = vec![
        Node::new("a", Op::Linear { inputs: dim, outputs: dim, bias: true }),
        Node::new("b", Op::Linear { inputs: dim, outputs: dim, bias: false }),
    ];
    // A rotation in two planes, and its inverse up to signs.
    let turn = matrix(
        &[
            0.6, -0.8, 0.0, 0.0, //
            0.8, 0.6, 0.0, 0.0, //
            0.0, 0.0, 0.28, -0.96, //
            0.0, 0.0, 0.96, 0.28,
        ],
        (dim, dim),
    );
    let of = |bias: f64, factor: f64| {
        let weights = [
            ("a.weight", (&turn * factor).unwrap()),
            ("a.bias", Tensor::new(&[bias, -bias, 0.7 * bias, bias], &Device::Cpu).unwrap()),
            ("b.weight", turn.t().unwrap().contiguous().unwrap()),
        ];
        model(Input::Vector { dim }, nodes.clone(), &weights)
    };
    let starts = matrix(&[0.3, -0.2, 0.5, 0.1, -0.4, 0.6, 0.2, -0.7], (2, dim));
    let found = |model: &Model| probe::search(model, &starts, f64::INFINITY, 60).unwrap();
    let mut above = 0;
    for bias in [1e6, 1e9, 1e12, 1e15] {
        let model = of(bias, 1.0);
        let (found, l2) = (found(&model), proven(&model).l2.to_f64());
        assert!(found.at_least <= l2, "{bias}: {} {l2}", found.at_least);
        above += usize::from(found.sensitivity > l2 * (1.0 + 1e-9));
    }
    assert!(above > 0, "this test has no teeth");
    for bias in [0.0, 1.0, 1e6] {
        let (small, large) = (of(bias, 1.0), of(bias, 1.001));
        let (claimed, found) = (proven(&small).l2.to_f64(), found(&large));
        assert!(found.at_least > claimed, "{bias}: {} {claimed}", found.at_least);
    }
}
