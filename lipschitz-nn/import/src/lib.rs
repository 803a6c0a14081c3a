//! Other people's models: a foreign checkpoint becomes a graph and its weights.
//!
//! A family (one file each) turns a `config.json` into a graph and says for each weight which
//! tensor it is and what is done with it; everything else is shared. An import is complete or it
//! fails: every weight is found in the shape that the config implies, every tensor is used or known
//! not to matter, every option is read or known to leave the function as it is.

mod config;
mod families;
mod formats;
mod plan;
mod report;
mod rope;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};

use config::Config;
use families::{bert, gpt2, llama, llama2c, mlp, modernbert, modula, modula_run, t5, vit};
use formats::files::Files;
use lipschitz_nn::checkpoint::{self, Meta, Provenance, Tokenizer};
use lipschitz_nn::{At, Error, Model, Weights, check_finite};
use plan::{Plan, Take};

pub use lipschitz_nn::checkpoint::{Dialect, Origin};
pub use report::{Misshapen, Report};

/// How to import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Whose function it is to be, where candle computes another one than the library that the
    /// model comes from.
    pub dialect: Dialect,
    /// Whether tensors that nothing is known about may be left out; they are named in the origin.
    pub allow_unused: bool,
    /// For a file of matrices alone: the elementwise function between them, by its name in PyTorch,
    /// such as `relu`.
    pub activation: Option<String>,
}

/// A foreign model as one of ours.
#[derive(Debug)]
pub struct Imported {
    /// The network, on the CPU.
    pub model: Model,
    /// What a checkpoint of it holds beside the weights.
    pub meta: Meta,
    /// What became of each tensor.
    pub report: Report,
}

/// A foreign model that stays on disk, each weight until it is asked for.
#[derive(Debug)]
pub struct Foreign {
    path: PathBuf,
    files: Files,
    takes: BTreeMap<String, Take>,
    shapes: BTreeMap<String, Vec<usize>>,
    dtype: DType,
    meta: Meta,
    report: Report,
}

/// The families that can be imported, by the `model_type` of a config.
pub const FAMILIES: &[&str] = &[
    "bert",
    "dinov2",
    "distilbert",
    "gemma",
    "gemma2",
    "gpt2",
    "gpt_bigcode",
    "llama",
    "mistral",
    "modernbert",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "roberta",
    "t5",
    "vit",
    "xlm-roberta",
];

/// Whether `path` is a model of somebody else's: a directory with a `config.json`, or a file of a
/// foreign format.
pub fn is_foreign(path: &Path) -> bool {
    if path.is_dir() {
        return path.join("config.json").exists();
    }
    path.extension()
        .and_then(|e| e.to_str())
        .is_some_and(|e| ["bin", "pt", "pth", "npz"].contains(&e))
}

/// Imports a model: a directory with a `config.json` and safetensors or PyTorch files; a `.bin` of
/// llama2.c; a `.npz` of the method's JAX code, an archive of a run or matrices with the config
/// beside them; or a file of matrices (`.safetensors`, `.pt`, `.npz`), taken as a multilayer
/// perceptron.
///
/// The weights keep their float type where all have one and none is computed with; else they become
/// f32 (f64 where there is some). Each file is read tensor by tensor, so that memory stays within
/// the size of the weights and of the largest tensor.
///
/// # Errors
/// [`Error::File`] names the file, and the option or tensor that is missing, unknown or does not
/// fit.
pub fn import(path: &Path, options: &Options) -> Result<Imported, Error> {
    let foreign = Foreign::open(path, options)?;
    let weight = |name: &String| Ok((name.clone(), foreign.tensor(name)?));
    let weights = foreign.takes.keys().map(weight).collect::<Result<Weights, Error>>()?;
    let model =
        Model::new(foreign.meta.graph.clone(), weights).map_err(|e| Error::file(path, e))?;
    Ok(Imported { model, meta: foreign.meta, report: foreign.report })
}

fn open_directory(path: &Path, options: &Options) -> Result<Foreign, Error> {
    let config = Config::open(&path.join("config.json"))?;
    let files = Files::of_directory(path)?;
    let (family, plan) = plan(&config, &files, options.dialect)?;
    let tokenizer = tokenizer(path)?;
    complete(path, family, plan, files, tokenizer, options)
}

fn open_file(path: &Path, options: &Options) -> Result<Foreign, Error> {
    let mut start = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read(&mut start)).at(path)?;
    let bin = path.extension().is_some_and(|e| e == "bin");
    if bin && &start[..read] != b"PK\x03\x04" {
        let (plan, files) = llama2c::open(path)?;
        return complete(path, "llama2.c".into(), plan, files, None, options);
    }
    if path.extension().is_some_and(|e| e == "npz")
        && let Some((config, files)) = modula_run::open(path)?
    {
        let plan = modula::plan(&config, &files)?;
        return complete(path, "modula".into(), plan, files, None, options);
    }
    let files = Files::of_file(path)?;
    if path.extension().is_some_and(|e| e == "npz")
        && let Some(plan) = modula::modula(path, &files)?
    {
        return complete(path, "modula".into(), plan, files, None, options);
    }
    let plan = mlp::mlp(path, &files, options.activation.as_deref())?;
    complete(path, "mlp".into(), plan, files, None, options)
}

/// The tensors that a model directory's `config.json` asks for, by name and shape; reads no
/// weights.
///
/// # Errors
/// As [`import`].
pub fn wanted(path: &Path, options: &Options) -> Result<Vec<(String, Vec<usize>)>, Error> {
    let config = Config::open(&path.join("config.json"))?;
    let (_, plan) = plan(&config, &Files::of_directory(path)?, options.dialect)?;
    let mut out: Vec<(String, Vec<usize>)> = plan
        .takes
        .iter()
        .flat_map(|(_, take)| take.sources())
        .map(|(n, s)| (n.to_string(), s.to_vec()))
        .collect();
    out.sort();
    out.dedup();
    Ok(out)
}

fn plan(config: &Config, files: &Files, dialect: Dialect) -> Result<(String, Plan), Error> {
    let Some(family) = config.text("model_type")?.map(str::to_string) else {
        return Err(config.wrong("model_type", "is missing"));
    };
    let plan = match family.as_str() {
        "bert" | "roberta" | "xlm-roberta" => bert::bert(config, files, &family)?,
        "distilbert" => bert::distilbert(config, files, dialect)?,
        "modernbert" => modernbert::modernbert(config, files, dialect)?,
        "vit" => vit::vit(config, files)?,
        "dinov2" => vit::dinov2(config, files, dialect)?,
        "t5" => t5::t5(config, files, dialect)?,
        "gpt2" => gpt2::gpt2(config, files, dialect)?,
        "gpt_bigcode" => gpt2::bigcode(config, files, dialect)?,
        "gemma" | "gemma2" | "llama" | "mistral" | "olmo2" | "phi3" | "qwen2" | "qwen3" => {
            llama::llama(config, files, dialect, &family)?
        }
        "mixtral" | "qwen2_moe" | "qwen3_moe" | "deepseek_v2" | "deepseek_v3" | "phimoe"
        | "olmoe" | "jamba" | "dbrx" | "granitemoe" | "gpt_oss" => {
            let what = "sends tokens to the top experts, so its function jumps and has no finite \
                        Lipschitz constant";
            return Err(config.wrong("model_type", format!("is `{family}`: it {what}")));
        }
        _ => {
            let known = FAMILIES.join(", ");
            return Err(config.wrong(
                "model_type",
                format!("is `{family}`, which is not supported; supported are {known}"),
            ));
        }
    };
    config.finish()?;
    Ok((family, plan))
}

/// What a plan asks for, if every tensor is accounted for.
fn complete(
    path: &Path,
    family: String,
    plan: Plan,
    files: Files,
    tokenizer: Option<Tokenizer>,
    options: &Options,
) -> Result<Foreign, Error> {
    let report = Report::new(&plan, &files);
    if let Some(what) = report.failure(options.allow_unused) {
        return Err(Error::file(path, what));
    }
    let sources = || plan.takes.iter().flat_map(|(_, take)| take.sources());
    let types: Vec<DType> = sources().filter_map(|(name, _)| files.get(name)?.dtype).collect();
    let computed = plan.takes.iter().any(|(_, take)| take.computes());
    let dtype = match types.first() {
        Some(first) if !computed && types.iter().all(|t| t == first) => *first,
        _ if types.contains(&DType::F64) => DType::F64,
        _ => DType::F32,
    };
    let shapes: BTreeMap<_, _> =
        plan.graph.parameters().into_iter().map(|p| (p.name, p.shape)).collect();
    let takes: BTreeMap<_, _> = plan.takes.into_iter().collect();
    if let Some(name) = shapes.keys().find(|name| !takes.contains_key(*name)) {
        return Err(Error::file(path, Error::weight(name, "is missing")));
    }
    if let Some(name) = takes.keys().find(|name| !shapes.contains_key(*name)) {
        return Err(Error::file(path, Error::weight(name, "is not in the graph")));
    }
    let mut notes = plan.notes;
    notes.extend(report.set_aside());
    let origin = Origin { family, dialect: options.dialect, notes, unused: report.unused.clone() };
    let provenance = Provenance {
        version: env!("CARGO_PKG_VERSION").into(),
        origin: Some(origin),
        ..Provenance::default()
    };
    let config = serde_json::Value::Null;
    let meta =
        Meta { format: checkpoint::FORMAT, graph: plan.graph, config, tokenizer, provenance };
    Ok(Foreign { path: path.to_path_buf(), files, takes, shapes, dtype, meta, report })
}

impl Foreign {
    /// Opens a model as [`import`] does; reads no weights.
    ///
    /// # Errors
    /// As [`import`].
    pub fn open(path: &Path, options: &Options) -> Result<Self, Error> {
        if path.is_dir() { open_directory(path, options) } else { open_file(path, options) }
    }

    /// What a checkpoint of it holds beside the weights.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The names of all weights, in order.
    pub fn names(&self) -> Vec<String> {
        self.takes.keys().cloned().collect()
    }

    /// Reads a weight, on the CPU.
    ///
    /// # Errors
    /// [`Error::File`] if there is none of this name, it cannot be read, its shape is not the
    /// graph's, or a number is not finite.
    pub fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        let read = || {
            let (Some(take), Some(shape)) = (self.takes.get(name), self.shapes.get(name)) else {
                return Err(Error::weight(name, "is missing"));
            };
            let weight = take.read(&self.files, self.dtype)?;
            if weight.dims() != shape {
                return Err(Error::weight(
                    name,
                    format!("has shape {:?}, the graph wants {shape:?}", weight.dims()),
                ));
            }
            check_finite(name, &weight)?;
            Ok(weight)
        };
        read().map_err(|e| Error::file(&self.path, e))
    }
}

/// The tokenizer beside a model, if there is one.
fn tokenizer(directory: &Path) -> Result<Option<Tokenizer>, Error> {
    let path: PathBuf = directory.join("tokenizer.json");
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).at(&path)?;
    let json =
        serde_json::from_str(&text).map_err(|e| Error::file(&path, format!("is not JSON: {e}")))?;
    Ok(Some(Tokenizer::Json { json }))
}
