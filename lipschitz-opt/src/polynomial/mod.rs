//! Odd polynomials on the singular values of a matrix.

mod caps;
mod kernel;
mod newton_schulz;
mod orthogonal;
mod polar_express;

pub(crate) use caps::soft_cap_each;
pub use caps::{
    HARD_CAP_END, hard_cap_maximum, hard_cap_quintic, hard_cap_quintic_at, hard_cap_sign,
    hard_cap_steps, soft_cap, soft_cap_strength,
};
pub use newton_schulz::{NewtonSchulz, Steps, at, maximum};
pub use orthogonal::{apply, orthogonalise, polar, rounding};
pub(crate) use orthogonal::{by_gram, orthogonalise_each};

/// The forms composed of tensors, for comparison.
pub mod composed {
    pub use super::caps::soft_cap_composed as soft_cap;
    pub use super::orthogonal::composed as orthogonalise;
}
