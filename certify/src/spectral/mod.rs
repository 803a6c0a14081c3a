//! Spectral norms: Lanczos proposes, Cholesky proves.
//!
//! Every result is an interval that contains the true norm of the exact matrix. The error bounds
//! use u = 2⁻⁵³ and γ_k = ku/(1−ku).

mod convolution;
mod hermitian;
mod lanczos;
mod matrix;
mod proof;

pub use convolution::convolution_norm;
pub use matrix::{
    Matrix, affine_norm, max_row_difference, max_row_norm, row_differences, vector_norm,
};
pub(crate) use matrix::{all_scaled, exponent, largest, scaled, shift, vector_norm_of};
pub(crate) use proof::{UNDERFLOW, cholesky, quick_norm};
pub use proof::{product_norm, spectral_norm, top_right_singular_vector};

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::upper::Upper;

/// How an upper end was found.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// A sum, with a rounding margin.
    Direct,
    /// Lanczos proposes, Cholesky proves.
    Proven,
    /// Gram iteration with a rounding margin.
    Gram,
    /// The Frobenius norm.
    Frobenius,
    /// Power iteration from below: an estimate, not a bound.
    Power,
}

impl Method {
    /// Whether the upper end is proven.
    pub fn is_bound(self) -> bool {
        self != Method::Power
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Method::Direct => "direct",
            Method::Proven => "proven",
            Method::Gram => "gram",
            Method::Frobenius => "frobenius",
            Method::Power => "power (not a bound)",
        })
    }
}

/// An interval that contains a norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Rounded down.
    pub lower: f64,
    /// Rounded up.
    pub upper: Upper,
    /// How the upper end was found.
    pub method: Method,
}

impl Interval {
    /// The interval of a norm that was summed over `n` elements and rounded up.
    pub(crate) fn direct(upper: Upper, n: usize) -> Self {
        let down = 1.0 - 4.0 * gamma(n + 4).to_f64();
        let lower = (upper.to_f64() * down).next_down().max(0.0);
        Self {
            // Next to 0, f64 has no number that is below by a share.
            lower: if upper.to_f64().is_finite() && lower > 1e-290 { lower } else { 0.0 },
            upper,
            method: Method::Direct,
        }
    }
}

/// γ_k = ku/(1−ku), rounded up.
pub(crate) fn gamma(k: usize) -> Upper {
    let ku = k as f64 * (f64::EPSILON / 2.0);
    // ku is exact for any k that fits in memory. 1 − ku is rounded, so the next smaller number is
    // taken.
    Upper::from_f64(ku).div_up((1.0 - ku).next_down())
}
