//! What training does to the weights: their proven norms, and whether the constraint's promises
//! hold.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use lipschitz_certify::bound::{Block, Norm, Part, kernel_of};
use lipschitz_certify::certificate::Certificate;
use lipschitz_certify::spectral::{Matrix, Method, convolution_norm, max_row_norm, spectral_norm};
use lipschitz_certify::upper::Upper;
use lipschitz_nn::Model;
use lipschitz_nn::graph::{Axis, Geometry, Parameter};
use lipschitz_opt::constraint::{Constraint, Promise};
use lipschitz_opt::{Variables, scale};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Relative excess of a proven norm over its cap that rounding in `f32` explains; more is an error.
pub const CAP_TOLERANCE: f64 = 1e-3;

/// One matrix at one step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MatrixMetrics {
    /// RMS→RMS norm, proven: not below the truth.
    pub norm: f64,
    /// `‖W‖_F² / σ_max²`: how many singular values are as large as the first.
    pub stable_rank: f64,
    /// RMS→RMS norm of what the step changed, constraint and all, by power iteration.
    pub update: f64,
}

/// Every matrix, after a step from the values `before`.
///
/// # Errors
/// NaN or infinity in a weight, by its name.
pub fn matrices(
    certificate: &Certificate,
    variables: &Variables,
    before: &[Tensor],
) -> Result<BTreeMap<String, MatrixMetrics>, Error> {
    let mut out = BTreeMap::new();
    for (v, before) in variables.iter().zip(before) {
        let p = &v.parameter;
        if p.geometry != Geometry::Matrix {
            continue;
        }
        let w = Matrix::from_tensor(&p.name, v.var.as_tensor())?;
        let sigma = certificate
            .norm(&Norm::Matrix(Block::whole(&p.name)))
            .unwrap_or_else(|| spectral_norm(&w, Method::Proven).upper)
            .to_f64();
        let frobenius = w.data.iter().map(|x| x * x).sum::<f64>();
        let after = v.var.as_tensor().detach().to_device(&Device::Cpu)?;
        let moved = Matrix::from_tensor(&p.name, &(after - before)?)?;
        let factor = scale(p, None);
        let update = factor * spectral_norm(&moved, Method::Power).upper.to_f64();
        let stable_rank = if sigma > 0.0 { frobenius / (sigma * sigma) } else { 0.0 };
        out.insert(p.name.clone(), MatrixMetrics { norm: factor * sigma, stable_rank, update });
    }
    Ok(out)
}

/// The largest absolute value of any node's output, on at most eight of the inputs.
///
/// # Errors
/// As [`Model::forward`].
pub fn largest_activation(model: &Model, x: &Tensor) -> Result<f64, Error> {
    let mut largest = 0f64;
    // Node by node a forward pass takes twice as long, so not the whole batch.
    let x = x.narrow(0, 0, x.dim(0)?.min(8))?;
    model.forward_watched(&x, &mut |_, y| {
        if y.dtype().is_float() {
            largest = largest.max(f64::from(y.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?));
        }
        Ok(())
    })?;
    Ok(largest)
}

/// Every cap that the constraint promises, against norms that are proven.
///
/// # Errors
/// [`Error::AboveCap`] names the weight that is above its cap.
pub fn check_caps(
    certificate: &Certificate,
    variables: &Variables,
    constraint: &Constraint,
) -> Result<(), Error> {
    for v in variables {
        let p = &v.parameter;
        let Some(promise) = constraint.promise(p) else { continue };
        for (what, norm, cap) in promised(certificate, p, v.var.as_tensor(), &promise)? {
            if norm > Upper::from_f64(cap * (1.0 + CAP_TOLERANCE)) {
                return Err(Error::AboveCap { name: what.to_string(), norm, cap });
            }
        }
    }
    Ok(())
}

/// The ℓ2 norms that a promise speaks of, each with its proven value and its cap.
fn promised(
    certificate: &Certificate,
    p: &Parameter,
    w: &Tensor,
    promise: &Promise,
) -> Result<Vec<(Norm, Upper, f64)>, Error> {
    let matrix = || Matrix::from_tensor(&p.name, w);
    let whole = || Block::whole(&p.name);
    let mut out = Vec::new();
    if let Some(row) = promise.row {
        out.push((Norm::Row(whole()), max_row_norm(&matrix()?), row));
    }
    if let (Some(cap), Some(kernel)) = (promise.convolution, kernel_of(&certificate.graph, &p.name))
    {
        let norm = Norm::Convolution(kernel.clone());
        let upper = match certificate.norm(&norm) {
            Some(upper) => upper,
            None => {
                let c = &kernel.convolution;
                convolution_norm(&matrix()?, c, kernel.sides, Method::Proven).upper
            }
        };
        out.push((norm, upper, cap));
        return Ok(out);
    }
    match p.geometry {
        Geometry::Vector => {}
        Geometry::Table => {
            let cap = promise.sigma_max * (p.shape[1] as f64).sqrt();
            out.push((Norm::Row(whole()), max_row_norm(&matrix()?), cap));
        }
        Geometry::Matrix => {
            let cap = promise.sigma_max / scale(p, promise.heads);
            let count = promise.heads.map_or(1, |heads| heads.count);
            let rows = promise.heads.is_none_or(|heads| heads.axis == Axis::Rows);
            for index in 0..count {
                let part = Part { index, count };
                let block = if rows { whole().rows(part) } else { whole().columns(part) };
                let norm = Norm::Matrix(block);
                // The proof uses other norms where a gain is folded in; then the cap's own is
                // proven here.
                let upper = match certificate.norm(&norm) {
                    Some(upper) => upper,
                    None => {
                        let w = matrix()?;
                        let block = if rows {
                            w.row_block(index, count)
                        } else {
                            w.column_block(index, count)
                        };
                        spectral_norm(&block, Method::Proven).upper
                    }
                };
                out.push((norm, upper, cap));
            }
        }
    }
    Ok(out)
}
