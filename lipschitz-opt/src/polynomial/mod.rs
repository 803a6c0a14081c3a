//! Odd polynomials on the singular values of a matrix.

mod kernel;
mod newton_schulz;
mod orthogonal;
mod polar_express;
mod steps;

pub(crate) use kernel::{Short, add_diagonal};
pub use newton_schulz::NewtonSchulz;
pub(crate) use orthogonal::{
    apply_steps, orthogonalise_each, orthogonalise_work, polar_work, product, sign, sign_work, wide,
};
pub use orthogonal::{orthogonalise, orthogonalise_composed, polar, rounding};
pub(crate) use steps::maximum;
pub use steps::{Steps, at};
