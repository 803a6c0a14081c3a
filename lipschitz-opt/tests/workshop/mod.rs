//! What the tests share: matrices of given spectra, variables of every kind, steps along given
//! gradients.
#![allow(dead_code)]

use candle_core::{Device, Tensor, Var};
use faer::Mat;
use lipschitz_nn::graph::{Axis, Geometry, HeadBlocks, Init, Parameter};
use lipschitz_opt::{
    AdamWConfig, MuonConfig, Optimizer, Rate, SgdConfig, Variable, Variables, scale,
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

fn unit(rng: &mut ChaCha8Rng) -> f64 {
    f64::from(rng.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0
}

pub(crate) fn random(shape: &[usize], factor: f64, rng: &mut ChaCha8Rng) -> Tensor {
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| (factor * unit(rng)) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

pub(crate) fn matrix(t: &Tensor) -> Mat<f64> {
    let rows = t.to_vec2::<f32>().unwrap();
    Mat::from_fn(rows.len(), rows[0].len(), |i, j| f64::from(rows[i][j]))
}

fn tensor(m: &Mat<f64>) -> Tensor {
    let at = (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| (i, j)));
    Tensor::from_vec(
        at.map(|at| m[at] as f32).collect::<Vec<_>>(),
        (m.nrows(), m.ncols()),
        &Device::Cpu,
    )
    .unwrap()
}

/// A random matrix with these singular values.
pub(crate) fn spectrum(
    rows: usize,
    columns: usize,
    values: &[f64],
    rng: &mut ChaCha8Rng,
) -> Tensor {
    let m = matrix(&random(&[rows, columns], 1.0, rng));
    let svd = m.thin_svd().unwrap();
    let diagonal =
        Mat::from_fn(values.len(), values.len(), |i, j| if i == j { values[i] } else { 0.0 });
    tensor(&(svd.U() * diagonal * svd.V().transpose()))
}

pub(crate) fn sigma_max(t: &Tensor) -> f64 {
    matrix(t).singular_values().unwrap()[0]
}

/// The norm of a weight, or the largest of its heads' blocks, by SVD.
pub(crate) fn norm(w: &Tensor, p: &Parameter, heads: Option<HeadBlocks>) -> f64 {
    let (rows, columns) = w.dims2().unwrap();
    let blocks: Vec<Tensor> = match heads {
        None => vec![w.clone()],
        Some(HeadBlocks { count, axis: Axis::Rows }) => {
            (0..count).map(|i| w.narrow(0, i * rows / count, rows / count).unwrap()).collect()
        }
        Some(HeadBlocks { count, axis: Axis::Columns }) => {
            (0..count).map(|i| w.narrow(1, i * columns / count, columns / count).unwrap()).collect()
        }
    };
    scale(p, heads) * blocks.iter().map(sigma_max).fold(0.0, f64::max)
}

/// The outer product of the first singular vectors: the step that makes a matrix grow most.
pub(crate) fn top(t: &Tensor) -> Tensor {
    let m = matrix(t);
    let svd = m.svd().unwrap();
    tensor(&Mat::from_fn(m.nrows(), m.ncols(), |i, j| svd.U()[(i, 0)] * svd.V()[(j, 0)]))
}

/// `UVᵀ`: the step that makes every singular value grow.
pub(crate) fn all(t: &Tensor) -> Tensor {
    let m = matrix(t);
    let svd = m.thin_svd().unwrap();
    tensor(&(svd.U() * svd.V().transpose()))
}

/// A table, a vector, matrices wide, tall and split into heads either way; two of one shape; rates
/// that differ.
pub(crate) fn variables(rng: &mut ChaCha8Rng) -> Variables {
    let heads = |axis| Some(HeadBlocks { count: 4, axis });
    [
        ("table", vec![12, 8], Geometry::Table, None),
        ("vector", vec![8], Geometry::Vector, None),
        ("query", vec![16, 8], Geometry::Matrix, heads(Axis::Rows)),
        ("key", vec![16, 8], Geometry::Matrix, heads(Axis::Rows)),
        ("output", vec![8, 16], Geometry::Matrix, heads(Axis::Columns)),
        ("up", vec![24, 8], Geometry::Matrix, None),
        ("down", vec![8, 24], Geometry::Matrix, None),
        ("head", vec![1, 24], Geometry::Matrix, None),
    ]
    .into_iter()
    .map(|(name, shape, geometry, heads)| {
        let var = Var::from_tensor(&random(&shape, 1.0, rng)).unwrap();
        Variable {
            parameter: Parameter {
                name: name.into(),
                shape,
                geometry,
                heads,
                init: Init::Zero,
                convolution: None,
            },
            var,
            rate: 1.0,
        }
    })
    .collect()
}

pub(crate) fn copy(variables: &Variables) -> Variables {
    let var = |v: &Variable| Var::from_tensor(&v.var.as_tensor().copy().unwrap()).unwrap();
    variables.iter().map(|v| Variable { var: var(v), ..v.clone() }).collect()
}

pub(crate) fn bits(variables: &Variables) -> Vec<u32> {
    let values =
        variables.iter().flat_map(|v| v.var.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    values.map(f32::to_bits).collect()
}

/// A step along given gradients: those of `Σ ⟨W, G⟩`.
pub(crate) fn step(
    optimizer: &mut dyn Optimizer,
    variables: &Variables,
    gradients: &[Tensor],
    rate: Rate,
) {
    let terms = variables
        .iter()
        .zip(gradients)
        .map(|(v, g)| (v.var.as_tensor() * g).unwrap().sum_all().unwrap());
    let loss = terms.reduce(|a, b| (a + b).unwrap()).unwrap();
    optimizer.step(&loss.backward().unwrap(), rate).unwrap();
}

pub(crate) fn muon() -> MuonConfig {
    MuonConfig { beta: 0.9, nesterov: true, ..MuonConfig::default() }
}

pub(crate) fn adamw() -> AdamWConfig {
    AdamWConfig {
        beta1: 0.8,
        beta2: 0.95,
        eps: 1e-6,
        bias_correction: true,
        weight_decay: 0.1,
        decoupled: false,
    }
}

pub(crate) fn sgd() -> SgdConfig {
    SgdConfig { momentum: 0.7, nesterov: false, weight_decay: 0.2 }
}
