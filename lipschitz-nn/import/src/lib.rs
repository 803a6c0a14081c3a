#![doc = include_str!("../README.md")]
//!
//! A family (one file each) turns a `config.json` into a graph, and says of which tensors each
//! weight is made; everything else is shared. [`families`] lists the families.
//!
//! Files are not trusted: indices are no larger than their files, shapes are multiplied with
//! checks, and pickles are read without running them.

mod activation;
mod check;
mod config;
mod declared;
mod export;
mod expression;
mod families;
mod foreign;
mod formats;
mod heads;
mod library;
mod mapping;
mod model_dir;
mod net;
mod nodes;
mod options;
mod pixels;
mod report;
mod rope;
mod sentence;
mod sidecars;
mod undecided;

use std::path::Path;

use lipschitz_nn::checkpoint::Meta;
use lipschitz_nn::{Error, Model, Weights};

pub use candle_core;
pub use check::{Disagreement, TOLERANCE, check};
pub use export::onnx;
pub use families::families;
pub use foreign::{Foreign, wanted};
pub use lipschitz_nn::checkpoint::{Dialect, Origin};
pub use options::ImportOptions;
pub use pixels::NORMALISED;
pub use report::{ImportReport, Misshapen};
pub use undecided::Undecided;

use candle_core::Tensor;
use formats::files::Files;
use formats::kind::Kind;

/// A third-party model as one of this project.
#[derive(Debug)]
pub struct Imported {
    /// The network, on the CPU.
    pub model: Model,
    /// What a checkpoint of it holds besides the weights.
    pub meta: Meta,
    /// What became of each tensor.
    pub report: ImportReport,
}

/// The tensors of these names in a file of safetensors or of numpy (`.npz`), of data rather than of
/// a model.
///
/// # Errors
/// [`Error::File`] if the file is damaged or of another kind, lacks one of them, or holds it in a
/// type that is not read; [`Error::Io`] if it is missing.
pub fn tensors<const N: usize>(path: &Path, names: [&str; N]) -> Result<[Tensor; N], Error> {
    let files = Files::of_file(path, None)?;
    let one = |name: &str| -> Result<Tensor, Error> {
        let Some(info) = files.get(name) else {
            let there = files.names().take(20).map(|name| format!("`{name}`")).collect::<Vec<_>>();
            let what = format!("holds no `{name}`, only {}", there.join(", "));
            return Err(Error::file(path, what));
        };
        if info.dtype.is_none() {
            let what =
                format!("holds `{name}` as {}; save it as whole numbers or floats", info.kind);
            return Err(Error::file(path, what));
        }
        files.read(name)
    };
    let read = names.iter().map(|name| one(name)).collect::<Result<Vec<_>, Error>>()?;
    read.try_into().map_err(|_| Error::file(path, "holds other tensors"))
}

/// Whether `path` is a third-party model: a directory with a `config.json`, or a file that begins
/// as another format than safetensors does, whatever it is called. Of a safetensors file its
/// metadata say whose it is.
pub fn is_foreign(path: &Path) -> bool {
    if path.is_dir() {
        return path.join("config.json").exists();
    }
    let named = |end: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(end));
    match Kind::at(path) {
        Ok(Kind::Safetensors) | Err(_) => false,
        Ok(Kind::Unknown) => ["bin", "pt", "pth", "npz", "gguf", "onnx"].into_iter().any(named),
        Ok(_) => true,
    }
}

/// Imports a model: a directory with a `config.json` and safetensors or PyTorch files; a GGUF file; an
/// ONNX file; a file of llama2.c; an `.npz` of the JAX code of Newhouse et al. (2025), an archive of a run or
/// matrices with the config beside them; or a file of matrices of safetensors, PyTorch or numpy,
/// taken as a multilayer perceptron. Files are known by their first bytes.
///
/// The weights keep their float type where all have one and none is computed with; else they become
/// f32 (f64 where there is some). Each file is read tensor by tensor, so that memory stays within
/// the size of the weights and of the largest tensor.
///
/// # Errors
/// [`Error::File`] names the file, and the option or tensor that is missing, unknown or does not
/// fit.
pub fn import(path: &Path, options: &ImportOptions) -> Result<Imported, Error> {
    let foreign = Foreign::open(path, options)?;
    let weight = |name: String| foreign.tensor(&name).map(|tensor| (name, tensor));
    let weights = foreign.names().into_iter().map(weight).collect::<Result<Weights, Error>>()?;
    let (meta, report) = (foreign.meta().clone(), foreign.report().clone());
    let model = Model::new(meta.graph.clone(), weights).map_err(|e| Error::file(path, e))?;
    Ok(Imported { model, meta, report })
}
