//! Odd polynomials on the singular values of a matrix.

mod caps;
mod newton_schulz;
mod orthogonal;
mod polar_express;

pub use caps::{
    HARD_CAP_END, add_cube, hard_cap_maximum, hard_cap_quintic, hard_cap_quintic_at, hard_cap_sign, hard_cap_steps,
    soft_cap_strength,
};
pub use newton_schulz::{NewtonSchulz, Steps, at, maximum};
pub use orthogonal::{apply, orthogonalise, polar};
