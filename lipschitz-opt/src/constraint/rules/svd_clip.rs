//! The exact clip: `min(σ, σ_max)` on the singular values by an SVD in f64 on the CPU.
//!
//! `σ ≤ σ_max` under any optimizer.

use candle_core::{DType, Device, Tensor};
use faer::Mat;

use super::super::config::ConstraintConfig;
use super::super::norms::{MARGIN, TopVectors};
use super::super::rule::{Apply, Blocks, Rule, aim_at_cap, each, promise_cap};
use crate::Error;

pub(super) static RULE: Rule = Rule {
    key: "svd_clip",
    name: "SVD clip",
    capped: true,
    constants: &[],
    check: |_| Ok(()),
    aim: aim_at_cap,
    promise: promise_cap,
    apply: Apply::Matrices(apply),
    work: |_, _, _| None,
};

fn apply(
    _: &ConstraintConfig,
    matrices: &[Blocks<'_>],
    _: &mut TopVectors,
) -> Result<Vec<Tensor>, Error> {
    each(matrices, |m| m.cap * (1.0 - MARGIN), |cap, x| clip(&x, cap))
}

/// `min(σ, cap)` on the singular values of each matrix of `[count, rows, columns]`, in f64 on the
/// CPU.
pub(super) fn clip(x: &Tensor, cap: f64) -> Result<Tensor, Error> {
    let (count, rows, columns) = x.dims3()?;
    let values =
        x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let mut out = Vec::with_capacity(values.len());
    for block in values.chunks(rows * columns).take(count) {
        let m = Mat::from_fn(rows, columns, |i, j| block[i * columns + j]);
        let svd = m.thin_svd().map_err(|e| Error::Svd(format!("{e:?}")))?;
        let s = svd.S().column_vector();
        let mut left = svd.U().to_owned();
        for j in 0..left.ncols() {
            let kept = s[j].min(cap);
            left.col_mut(j).iter_mut().for_each(|x| *x *= kept);
        }
        let capped = left * svd.V().transpose();
        out.extend(
            (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))).map(|(i, j)| capped[(i, j)]),
        );
    }
    Ok(Tensor::from_vec(out, (count, rows, columns), &Device::Cpu)?
        .to_dtype(x.dtype())?
        .to_device(x.device())?)
}
