//! Caps on rows or columns in place of singular values, and on the rows of tables.

use candle_core::{D, Tensor};
use lipschitz_nn::graph::Parameter;

use super::config::ConstraintConfig;
use crate::Error;
use crate::blocks::matrix_name;

/// The RMS norm at which the rows of tables are kept.
pub(crate) const TABLE_ROWS: f64 = 1.0;

/// The side of a matrix whose vectors are capped.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Vectors {
    Rows,
    Columns,
}

/// The side whose vectors are capped in place of a weight's singular values, if one is.
pub(crate) fn vectors(config: &ConstraintConfig, parameter: &Parameter) -> Option<Vectors> {
    let name = matrix_name(&parameter.name);
    if config.row_caps.contains(name) {
        Some(Vectors::Rows)
    } else if config.column_caps.contains(name) {
        Some(Vectors::Columns)
    } else {
        None
    }
}

/// The `[out, in]` matrix with `√in·‖row‖₂ ≤ cap`, or with `‖column‖_RMS ≤ cap`.
pub(super) fn cap_vectors(w: &Tensor, side: Vectors, cap: f64) -> Result<Tensor, Error> {
    match side {
        // √in·‖row‖₂ is `in` times the row's RMS norm.
        Vectors::Rows => cap_rows(w, cap / w.dim(1)? as f64),
        Vectors::Columns => Ok(cap_rows(&w.t()?.contiguous()?, cap)?.t()?.contiguous()?),
    }
}

/// Each row over the larger of 1 and its RMS norm over the cap.
pub(super) fn cap_rows(w: &Tensor, cap: f64) -> Result<Tensor, Error> {
    let norms = if (1e-12..1e12).contains(&cap) {
        w.sqr()?.mean_keepdim(D::Minus1)?.sqrt()?
    } else {
        // Squares of what is far from 1 would overflow or underflow.
        let top = (w.abs()?.max_keepdim(D::Minus1)? + f64::from(f32::MIN_POSITIVE))?;
        let unit = w.broadcast_div(&top)?;
        (unit.sqr()?.mean_keepdim(D::Minus1)?.sqrt()? * top)?
    };
    let norms = (norms * ((1.0 + 1e-5) / cap))?;
    Ok(w.broadcast_div(&norms.maximum(1f64)?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn rows_end_at_any_cap() {
        for (cap, size) in
            [1e-30, 1e-20, 1e-11, 1.0, 1e20].map(|cap| (cap, cap)).into_iter().chain([(1e-30, 0.1)])
        {
            let values: Vec<f32> = (1..=12).map(|i| (size * f64::from(i) / 4.0) as f32).collect();
            let w = Tensor::from_vec(values, (3, 4), &Device::Cpu).unwrap();
            let capped = cap_rows(&w, cap).unwrap().to_dtype(candle_core::DType::F64).unwrap();
            let rows = (&capped / cap).unwrap().sqr().unwrap().mean(1).unwrap().sqrt().unwrap();
            let rows = rows.to_vec1::<f64>().unwrap();
            assert!(size > cap || rows[0] < 0.69 && rows[0] > 0.68, "{cap:e}: {rows:?}");
            assert!(rows[1..].iter().all(|x| *x <= 1.0 && *x > 0.9999), "{cap:e}: {rows:?}");
        }
    }
}
