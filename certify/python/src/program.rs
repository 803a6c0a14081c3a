//! The programs `certify` and `train`, in Python's process.

use std::ffi::OsString;
use std::io::Write;

use lipschitz_certify::terminal;
use pyo3::prelude::*;

use crate::Error;

/// program(name, arguments, again)
/// --
///
/// Runs the program of this name, once in a process, and gives its exit code. `again` is the command
/// that starts it in a process of its own.
#[pyfunction]
pub(crate) fn program(
    py: Python<'_>,
    name: &str,
    arguments: Vec<OsString>,
    again: Vec<OsString>,
) -> PyResult<u8> {
    let main = match name {
        "certify" => lipschitz_certify::cli::main,
        "train" => lipschitz_train::cli::main,
        _ => return Err(Error::new_err(format!("there is no program {name}"))),
    };
    let line = std::iter::once(OsString::from(name)).chain(arguments).collect();
    terminal::program::called(line, again);
    py.detach(|| {
        let code = main();
        // What a program of its own does as it ends.
        let _ = std::io::stdout().flush();
        Ok(code)
    })
}
