//! What the kernels of a GPU compute, run on a processor, beside the same out of candle's operations.

use candle_core::{DType, Device, Tensor, Var};

use super::activation::Map;
use super::attention::{Mask, Scores, Tiles};
use super::composed;
use super::cross_entropy::OfRows;
use super::documents::Documents;
use super::normalise::NormKernel;
use super::residual::Residual;
use crate::gpu::OnGpu;
use crate::gpu::emulated::{is_possible, run, with_gradient};
use crate::graph::Function;
use crate::linalg::{AdamStep, Axpby, MeanSquare, Update, work};
use crate::random::{keyed, normals};

/// Random numbers of this shape in f32.
fn random(shape: &[usize], label: &str) -> Tensor {
    let all = normals(&mut keyed(7, label, 0), shape.iter().product());
    let all: Vec<f32> = all.into_iter().map(|x| x as f32).collect();
    Tensor::from_vec(all, shape, &Device::Cpu).unwrap()
}

fn numbers(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(found: &Tensor, wanted: &Tensor, what: &str) {
    assert_eq!(found.dims(), wanted.dims(), "{what}");
    let (found, wanted) = (numbers(found), numbers(wanted));
    let size = wanted.iter().fold(1e-3f64, |size, x| size.max(x.abs()));
    for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        // NaN is as far off as can be.
        assert!((found - wanted).abs() <= 3e-6 * size, "{what}, {i}: {found}, not {wanted}");
    }
}

/// Compares result and gradients with those of `reference` in f64.
fn check(
    op: &impl OnGpu,
    inputs: &[&Tensor],
    reference: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
    what: &str,
) {
    let exact = |x: &&Tensor| Var::from_tensor(&x.to_dtype(DType::F64).unwrap()).unwrap();
    let exact: Vec<Var> = inputs.iter().map(exact).collect();
    let wanted =
        reference(&exact.iter().map(|x| x.as_tensor().clone()).collect::<Vec<_>>()).unwrap();
    let grad = random(wanted.dims(), "grad");
    let loss = (&wanted * grad.to_dtype(DType::F64).unwrap()).unwrap().sum_all().unwrap();
    let store = loss.backward().unwrap();
    let (found, gradients) = with_gradient(op, inputs, &grad);
    assert_close(&found, &wanted, what);
    assert_eq!(gradients.len(), inputs.len());
    for (i, (found, x)) in gradients.iter().zip(&exact).enumerate() {
        assert_close(found, store.get(x).unwrap(), &format!("{what}, gradient {i}"));
    }
}

#[test]
fn elementwise_functions() {
    if !is_possible() {
        return;
    }
    // More than the threads of a block; away from kinks.
    let x = (random(&[3, 331], "x") * 2.5).unwrap();
    for (function, scale) in [
        (Function::Relu, 1.5),
        (Function::Abs, 1.0),
        (Function::GeluErf, 0.9),
        (Function::GeluTanh, 1.0),
        (Function::Silu, 2.0),
        (Function::Tanh, 1.0),
        (Function::Sigmoid, 1.0),
        (Function::Identity, 0.5),
        (Function::Relu2, 1.0),
        (Function::LeakyRelu { slope: 0.2 }, 1.0),
        (Function::Elu { alpha: 1.5 }, 1.0),
        (Function::Softplus, 1.0),
        (Function::Mish, 1.0),
        (Function::QuickGelu, 1.0),
        (Function::HardSwish, 1.0),
        (Function::HardSigmoid, 1.0),
    ] {
        let reference = |x: &[Tensor]| composed::activation(&x[0], function, scale);
        check(&Map::Activation(function, scale), &[&x], reference, &format!("{function:?}"));
    }
    check(&Map::SoftCap(1.5), &[&x], |x| composed::soft_cap(&x[0], 1.5), "soft cap");
    check(&Map::Clip(1.5), &[&x], |x| composed::clip(&x[0], 1.5), "clip");
    let y = random(&[3, 331], "y");
    let residual = Residual { skip: 0.7, branch: -1.3 };
    check(&residual, &[&x, &y], |x| composed::residual(&x[0], &x[1], 0.7, -1.3), "residual");
}

#[test]
fn norms() {
    if !is_possible() {
        return;
    }
    // Narrower and wider than a block, more rows than parts of their sum.
    for shape in [[70, 24], [3, 600]] {
        let x = (random(&shape, "x") + 0.3).unwrap();
        let (gain, bias) = (random(&shape[1..], "gain"), random(&shape[1..], "bias"));
        let what = format!("{shape:?}");
        let norm = |centred| NormKernel { eps: 1e-3, centred };
        let rms = |x: &[Tensor]| composed::rms_norm(&x[0], &x[1], 1e-3);
        check(&norm(false), &[&x, &gain], rms, &what);
        let layer = |x: &[Tensor]| composed::layer_norm(&x[0], &x[1], x.get(2), 1e-3);
        check(&norm(true), &[&x, &gain], layer, &what);
        check(&norm(true), &[&x, &gain, &bias], layer, &what);
    }
}

#[test]
fn losses() {
    if !is_possible() {
        return;
    }
    for [n, classes] in [[5, 3], [9, 700]] {
        let logits = (random(&[n, classes], "logits") * 3.0).unwrap();
        let mut targets: Vec<u32> = (0..n).map(|i| (i * 5 % classes) as u32).collect();
        // Some rows are right.
        for row in [0, 2] {
            targets[row] = logits.get(row).unwrap().argmax(0).unwrap().to_scalar().unwrap();
        }
        let targets = Tensor::new(targets, &Device::Cpu).unwrap();
        let op = OfRows { targets: targets.clone() };
        let reference = |x: &[Tensor]| composed::cross_entropy(&x[0], &targets);
        check(&op, &[&logits], reference, &format!("{n} rows"));
    }
    // The first of equals wins, and a target beyond the classes has no loss.
    let equal = Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap();
    let of = |targets: [u32; 2]| {
        let op = OfRows { targets: Tensor::new(&targets, &Device::Cpu).unwrap() };
        numbers(&with_gradient(&op, &[&equal], &random(&[2], "grad")).0)
    };
    assert_eq!(of([0, 1])[1], 0.5);
    assert!(of([0, 4])[0].is_nan());
}

/// Every kind of mask, groups, biases, caps and documents, of tokens that fill no tile.
#[test]
fn attention() {
    if !is_possible() {
        return;
    }
    // Batch, tokens, heads, groups, width; and what there is.
    let separators =
        |tokens: usize| -> Vec<u32> { (0..2 * tokens).map(|i| u32::from(i % 11 == 7)).collect() };
    for (i, (sizes, mask, cap, biased, documents)) in [
        ([1, 1, 1, 1, 4], Mask::Causal, None, true, false),
        ([2, 70, 2, 1, 12], Mask::Causal, None, true, false),
        ([2, 45, 4, 2, 5], Mask::None, Some(2.0), true, false),
        ([1, 70, 1, 1, 40], Mask::Near { window: 9, causal: true }, None, false, false),
        ([1, 67, 2, 2, 16], Mask::Near { window: 40, causal: false }, Some(1.0), false, false),
        ([2, 41, 2, 2, 8], Mask::Causal, None, false, true),
        ([2, 50, 2, 1, 33], Mask::Near { window: 20, causal: true }, None, true, true),
        ([1, 37, 1, 1, 128], Mask::Causal, None, true, false),
        // More tiles than parts of the sums for a bias.
        ([1, 300, 1, 1, 3], Mask::Causal, None, true, false),
    ]
    .into_iter()
    .enumerate()
    {
        let [batch, tokens, heads, groups, dim] = sizes;
        let q = random(&[batch, tokens, heads, dim], "q");
        let kv = random(&[2, batch, tokens, groups, dim], "kv");
        let bias = random(&[heads, 2 * tokens - 1], "bias");
        let ids = Tensor::from_vec(separators(tokens), (2, tokens), &Device::Cpu).unwrap();
        let documents = documents.then(|| Documents::new(&ids, 1).unwrap());
        let scores = Scores {
            cap,
            bias: biased.then_some(&bias),
            documents: documents.as_ref(),
            ..Scores::new(0.4, mask)
        };
        let [k, v] = [0, 1].map(|i| kv.get(i).unwrap());
        let tiles = Tiles::of(&q, &k, &v, &scores).unwrap().expect("it is covered");
        let inputs: Vec<&Tensor> = [&q, &kv].into_iter().chain(scores.bias).collect();
        let reference = |x: &[Tensor]| {
            let scores = Scores { bias: x.get(2), ..scores };
            composed::attention(&x[0], &x[1].get(0)?, &x[1].get(1)?, &scores)
        };
        check(&tiles, &inputs, reference, &format!("case {i}"));
    }
}

/// Two logits of 10⁷ that are equal, and the largest: each has half, in the gradient too, where their sum's
/// logarithm is nothing beside them.
#[test]
fn attention_of_large_logits() {
    if !is_possible() {
        return;
    }
    let q = Tensor::full(1e4f32, (1, 3, 1, 1), &Device::Cpu).unwrap();
    let k = Tensor::new(&[1e3f32, 1e3, -1e3], &Device::Cpu).unwrap().reshape((1, 3, 1, 1)).unwrap();
    let kv = Tensor::stack(&[&k, &random(&[1, 3, 1, 1], "v")], 0).unwrap();
    let tiles = Tiles::of(&q, &k, &k, &Scores::new(1.0, Mask::None)).unwrap().unwrap();
    let grad = Tensor::ones((1, 3, 1, 1), DType::F32, &Device::Cpu).unwrap();
    let (_, gradients) = with_gradient(&tiles, &[&q, &kv], &grad);
    assert_eq!(numbers(&gradients[1].get(1).unwrap()), [1.5, 1.5, 0.0]);
}

fn updated<const N: usize>(update: &impl Update<N>, what: &str) {
    let x = random(&[700], "x");
    let y: [Tensor; N] = std::array::from_fn(|i| random(&[700], ["m", "v"][i]).abs().unwrap());
    let all: Vec<Tensor> = [&x].into_iter().chain(&y).cloned().collect();
    let (_, found) = run(&work(update, 700), &all);
    let mut wanted = numbers(&x);
    let exact = y.each_ref().map(numbers);
    update.run(&mut wanted, exact.each_ref().map(Vec::as_slice));
    assert_close(&found[0], &Tensor::from_vec(wanted, 700, &Device::Cpu).unwrap(), what);
    for (found, y) in found[1..].iter().zip(&y) {
        assert_eq!(numbers(found), numbers(y), "{what}: what is read stays");
    }
}

#[test]
fn updates_in_place() {
    if !is_possible() {
        return;
    }
    updated(&Axpby { a: 0.9, b: -0.2 }, "axpby");
    updated(&MeanSquare { beta: 0.95 }, "mean of squares");
    let corrections = (0.1, 0.05);
    updated(&AdamStep { keep: 0.99, rate: 0.01, eps: 0.1, corrections }, "Adam");
}

/// NVRTC compiles every source, in all its sizes. It needs no GPU.
#[cfg(feature = "cuda")]
#[test]
fn sources_compile() {
    let targets = Tensor::zeros(2, DType::U32, &Device::Cpu).unwrap();
    let mut all = vec![
        Map::Clip(1.0).forward(&[&[2, 3]]),
        Residual { skip: 1.0, branch: 1.0 }.forward(&[&[2, 3], &[2, 3]]),
        NormKernel { eps: 1.0, centred: true }.forward(&[&[2, 3], &[3]]),
        OfRows { targets }.forward(&[&[2, 3]]),
        work(&Axpby { a: 1.0, b: 1.0 }, 2),
    ];
    for dim in [8, 64, 128] {
        let q = random(&[1, 2, 1, dim], "q");
        let tiles = Tiles::of(&q, &q, &q, &Scores::new(1.0, Mask::Causal)).unwrap().unwrap();
        all.push(tiles.forward(&[q.dims(), &[2, 1, 2, 1, dim]]));
    }
    for work in all {
        let (name, code) = crate::gpu::cuda::compiled(&work).unwrap();
        for launch in &work.launches {
            assert!(code.contains(&format!(".entry {}(", launch.kernel)), "{name}");
        }
    }
}
