//! The part of the Python package `lipschitz` that is Rust: networks that are proven, constraints on
//! arrays, and the two programs. What it gives are documents and numbers; `lipschitz/*.py` makes
//! objects of them.
//!
//! Python's interpreter lock is released wherever something is computed, and Ctrl-C ends it.

mod arrays;
mod constraint;
mod interrupt;
mod network;
mod program;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pyo3::create_exception!(
    lipschitz,
    Error,
    PyValueError,
    "What is wrong with a model, a file or a number, in one line."
);
pyo3::create_exception!(
    lipschitz,
    Violated,
    Error,
    "A claim does not hold: a certificate, or a bound that something found exceeds."
);

/// An error as Python raises it, with the line that the programs print.
fn raised(error: impl Into<anyhow::Error>) -> PyErr {
    let error = error.into();
    let line = lipschitz_certify::terminal::line(&error);
    match lipschitz_certify::terminal::exit_code(&error) {
        1 => Violated::new_err(line),
        _ => Error::new_err(line),
    }
}

#[pymodule]
mod _lipschitz {
    #[pymodule_export]
    use super::Error;
    #[pymodule_export]
    use super::Violated;
    #[pymodule_export]
    use super::arrays::spectral_norm_upper;
    #[pymodule_export]
    use super::constraint::Constraint;
    #[pymodule_export]
    use super::network::Network;
    #[pymodule_export]
    use super::program::program;
}
