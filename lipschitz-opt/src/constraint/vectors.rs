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
    let norms = (w.sqr()?.mean_keepdim(D::Minus1)?.sqrt()? * ((1.0 + 1e-5) / cap))?;
    Ok(w.broadcast_div(&norms.maximum(1f64)?)?)
}
