//! A third-party model on disk: opened, checked to be complete, read a weight at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use lipschitz_nn::checkpoint::{
    self, Dialect, Header, MAX_HEADER, Meta, Origin, Provenance, Tokenizer, WeightOrigin,
};
use lipschitz_nn::{Error, check_finite, text};

use crate::config::ConfigReader;
use crate::declared;
use crate::expression::TensorExpr;
use crate::families::{
    self, gguf, llama2c, matrices, modula, modula_run, nanogpt, onnx, vision_file,
};
use crate::formats::files::Files;
use crate::formats::kind::Kind;
use crate::formats::source::Source;
use crate::library::LIBRARY;
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::options::ImportOptions;
use crate::pixels::Normalisation;
use crate::report::ImportReport;
use crate::sentence::Sentence;
use crate::sidecars;
use crate::undecided::Undecided;

/// A third-party model that stays on disk; each weight is read when it is asked for.
#[derive(Debug)]
pub struct Foreign {
    path: PathBuf,
    files: Files,
    weights: BTreeMap<String, TensorExpr>,
    shapes: BTreeMap<String, Vec<usize>>,
    dtype: DType,
    meta: Meta,
    report: ImportReport,
}

/// A model as it was found: not yet checked to be complete.
struct Found {
    family: String,
    /// The library whose reading was taken.
    library: Option<String>,
    mapping: Mapping,
    files: Files,
    tokenizer: Option<Tokenizer>,
    /// Whether the order of its layers, and what is between them, are the caller's to say.
    matrices: bool,
}

impl Found {
    fn new(family: &str, mapping: Mapping, files: Files) -> Self {
        Self {
            family: family.into(),
            library: None,
            mapping,
            files,
            tokenizer: None,
            matrices: false,
        }
    }

    fn in_directory(path: &Path, options: &ImportOptions) -> Result<Self, Error> {
        let config = ConfigReader::open(&path.join("config.json"))?;
        if vision_file::of_timm(&config) {
            let files = Files::of_directory(path)?;
            let mapping = vision_file::timm(&config, &files, options)?;
            return Ok(Self::new("timm", mapping, files));
        }
        let (config, family) = classed(config, options.class.as_deref())?;
        families::find(&config, &family)?;
        let sentence = Sentence::beside(path)?;
        let config = config.into_class(&family)?;
        // Modules stand behind the base model, whatever class saved it.
        if sentence.is_some() && options.class.is_some() {
            let what = "belongs to an encoder of sentences, whose class is not to be said";
            return Err(Error::file(&path.join("config.json"), what));
        }
        let config = match (&sentence, family.as_str()) {
            (None, _) => config,
            // Of this family the base model has a decoder, and the encoder alone is loaded.
            (Some(_), "bart" | "m2m_100" | "marian" | "mbart" | "pegasus") => {
                let what = format!(
                    "is `{family}` beside a modules.json: behind it the library pools the vectors of a \
                     decoder, or of an encoder without its weights, which is not supported"
                );
                return Err(config.wrong("model_type", what));
            }
            (Some(_), "t5") => config.with("architectures", vec!["T5EncoderModel"].into()),
            (Some(_), _) => config.without("architectures"),
        };
        config.ignore(&["model_type"]);
        sidecars::check(path, &config)?;
        let mut files = Files::of_directory(path)?;
        let config = config.of_numbers(files.numbers());
        let dialect = options.dialect;
        let pixels = Normalisation::beside(path)?;
        let model = ModelDir {
            config: &config,
            files: &files,
            dialect,
            family: &family,
            part: options.part.as_deref(),
            pixels: pixels.as_ref(),
        };
        let mut mapping = families::mapping(&model, &options.ignore)?;
        if let Some(note) = rounded(&config, &files, &mapping)? {
            mapping = mapping.note(note);
        }
        if let Some(class) = &options.class {
            mapping = mapping.note(format!("read as the class `{class}`, as was said at import"));
        }
        if let Some(sentence) = sentence {
            mapping = sentence.append(mapping, &mut files)?;
        }
        let library = match dialect {
            Dialect::Original => format!("Hugging Face transformers {}", LIBRARY.transformers),
            Dialect::Candle => "candle-transformers".to_string(),
        };
        Ok(Self { library: Some(library), ..Self::new(&family, mapping, files) })
    }

    /// A file, or the files of a directory, with a graph beside them.
    fn declared(path: &Path, graph: &Path, entry: Option<&str>) -> Result<Self, Error> {
        let mapping = declared::mapping(graph)?;
        let files =
            if path.is_dir() { Files::of_directory(path)? } else { Files::of_file(path, entry)? };
        Ok(Self::new("graph", mapping, files))
    }

    fn in_file(path: &Path, options: &ImportOptions) -> Result<Self, Error> {
        let source = Source::open(path)?;
        let kind = Kind::of(&source)?;
        // A damaged file of llama2.c is like no other; its name may say what it was.
        let bin = kind == Kind::Unknown && path.extension().is_some_and(|e| e == "bin");
        if kind == Kind::Llama2c || bin {
            let (mapping, files) = llama2c::open(source)?;
            return Ok(Self::new("llama2.c", mapping, files));
        }
        if kind == Kind::Onnx {
            let (mapping, files) = onnx::open(source)?;
            return Ok(Self::new("onnx", mapping, files));
        }
        if let Some((config, files)) = modula_run::open(path)? {
            let mapping = modula::mapping(&config, &files)?;
            return Ok(Self::new("modula", mapping, files));
        }
        let mut files = Files::of_file(path, options.entry.as_deref())?;
        if let Some(metadata) = files.metadata() {
            let (family, mapping) = gguf::mapping(path, metadata.clone(), &files, &options.ignore)?;
            return Ok(Self::new(&family, mapping, files));
        }
        let listed = files.get("arr_0").is_some();
        if listed && let Some(mapping) = modula::modula(path, &files)? {
            return Ok(Self::new("modula", mapping, files));
        }
        if let Some(mapping) = nanogpt::nanogpt(path, &files)? {
            return Ok(Self::new("nanogpt", mapping, files));
        }
        files.strip_attributes();
        if let Some((family, mapping)) = vision_file::vision(path, &files, options)? {
            return Ok(Self::new(family, mapping, files));
        }
        let mapping = matrices::matrices(path, &files, options)?;
        Ok(Self { matrices: true, ..Self::new("mlp", mapping, files) })
    }

    /// The type of the weights: that of all tensors, where all have one and none is computed with;
    /// f64 where one is, since a sum or a product of two numbers seldom fits their type, or where
    /// there is some; else f32.
    fn dtype(&self) -> DType {
        let expressions = || self.mapping.weights.iter().map(|(_, expression)| expression);
        let types: Vec<DType> = expressions()
            .flat_map(TensorExpr::sources)
            .filter_map(|(name, _)| self.files.get(name)?.dtype)
            .collect();
        let computed = expressions().any(TensorExpr::computes);
        match types.first() {
            Some(first) if !computed && types.iter().all(|t| t == first) => *first,
            _ if computed || types.contains(&DType::F64) => DType::F64,
            _ => DType::F32,
        }
    }

    /// The model, if every tensor is accounted for.
    fn complete(self, path: &Path, options: &ImportOptions) -> Result<Foreign, Error> {
        let report = ImportReport::new(&self.mapping, &self.files);
        if let Some(what) = report.failure(options.allow_unused) {
            return Err(Error::file(path, what));
        }
        let dtype = self.dtype();
        let Self { family, library, mapping, files, tokenizer, .. } = self;
        let Mapping { graph, weights, notes, .. } = mapping;
        let origins = graph.parameters().into_iter().filter_map(|p| {
            let tensors = report.applied.get(&p.name)?.clone();
            Some(WeightOrigin { weight: p.name, tensors })
        });
        let origins = origins.collect();
        let shapes: BTreeMap<_, _> =
            graph.parameters().into_iter().map(|p| (p.name, p.shape)).collect();
        let weights: BTreeMap<_, _> = weights.into_iter().collect();
        if let Some(name) = shapes.keys().find(|name| !weights.contains_key(*name)) {
            return Err(Error::file(path, Error::weight(name, "is missing")));
        }
        if let Some(name) = weights.keys().find(|name| !shapes.contains_key(*name)) {
            return Err(Error::file(path, Error::weight(name, "is not in the graph")));
        }
        let notes = notes.into_iter().chain(files.notes()).chain(report.set_aside()).collect();
        let (dialect, unused) = (options.dialect, report.unused.clone());
        let provenance = Provenance {
            version: env!("CARGO_PKG_VERSION").into(),
            origin: Some(Origin { family, dialect, library, notes, weights: origins, unused }),
            ..Provenance::default()
        };
        let (format, config) = (checkpoint::FORMAT, serde_json::Value::Null);
        let classes = Vec::new();
        let meta = Meta { format, graph, config, tokenizer, classes, provenance };
        Ok(Foreign { path: path.to_path_buf(), files, weights, shapes, dtype, meta, report })
    }
}

impl Foreign {
    /// Opens a model as [`import`](crate::import()) does; reads no weights.
    ///
    /// # Errors
    /// As [`import`](crate::import()).
    pub fn open(path: &Path, options: &ImportOptions) -> Result<Self, Error> {
        if is_ours(path) {
            return Err(Error::file(path, "is a checkpoint of this project already"));
        }
        if path.is_dir() && is_ours(&path.join("model.safetensors")) {
            return Err(Error::file(
                path,
                "is a run of this project, which is read without an import",
            ));
        }
        let mut found = match &options.graph {
            Some(graph) => Found::declared(path, graph, options.entry.as_deref())?,
            None if path.is_dir() => Found::in_directory(path, options)?,
            None => Found::in_file(path, options)?,
        };
        if path.is_dir() {
            found.tokenizer = tokenizer(path)?;
        }
        let matrices = found.matrices;
        if options.part.is_some()
            && !["clip", "chinese_clip", "siglip"].contains(&found.family.as_str())
        {
            let what = "is no model of texts and images, of which one is to be said";
            return Err(Error::file(path, what));
        }
        if options.heads.is_some() && (path.is_dir() || !vision_file::is(&found.family)) {
            let what = "is no file of a vision transformer alone: its heads are not to be said";
            return Err(Error::file(path, what));
        }
        if options.class.is_some() && found.library.is_none() {
            let what = "is no directory of transformers: its class is not to be said";
            return Err(Error::file(path, what));
        }
        let foreign = found.complete(path, options)?;
        if !matrices && (!options.activation.is_empty() || options.order.is_some()) {
            let what = "is no file of matrices alone: what its layers are, and what is between \
                        them, is not to be said";
            return Err(Error::file(path, what));
        }
        Ok(foreign)
    }

    /// What a checkpoint of it holds besides the weights.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// What became of each tensor.
    pub fn report(&self) -> &ImportReport {
        &self.report
    }

    /// The names of all weights, in order.
    pub fn names(&self) -> Vec<String> {
        self.weights.keys().cloned().collect()
    }

    /// Reads a weight, on the CPU.
    ///
    /// # Errors
    /// [`Error::File`] if there is none of this name, it cannot be read, its shape is not the
    /// graph's, or a number is not finite.
    pub fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        let read = || {
            let (Some(expression), Some(shape)) = (self.weights.get(name), self.shapes.get(name))
            else {
                return Err(Error::weight(name, "is missing"));
            };
            let weight = expression.read(&self.files, self.dtype)?;
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

/// The config as this class of the library reads it, and its family. The class says the family where
/// the config, older than that option, does not.
fn classed(config: ConfigReader, class: Option<&str>) -> Result<(ConfigReader, String), Error> {
    let Some(class) = class else {
        if config.names("model_type") {
            let family = config.text("model_type")?.to_string();
            return Ok((config, family));
        }
        let what = "names no `model_type`, as configs of before 2020 do: which class of transformers \
                    loads the model is not known";
        return Err(config.undecided(Undecided::NoClass(what.into())));
    };
    let named = config.names("model_type").then(|| config.text("model_type").map(String::from));
    let family = match (named.transpose()?, families::of_class(class)) {
        (Some(named), _) => named,
        (None, Some(family)) => family.to_string(),
        (None, None) => {
            let what =
                format!("names no `model_type`, and `{class}` is of no family that is known");
            return Err(config.undecided(Undecided::NoClass(what)));
        }
    };
    let config = config.with("model_type", family.clone().into());
    Ok((config.with("architectures", vec![class].into()), family))
}

/// The tensors that a model directory's `config.json` asks for, by name and shape; reads no
/// weights.
///
/// # Errors
/// As [`import`](crate::import()).
pub fn wanted(path: &Path, options: &ImportOptions) -> Result<Vec<(String, Vec<usize>)>, Error> {
    let found = Found::in_directory(path, options)?;
    let mut out: Vec<(String, Vec<usize>)> = found
        .mapping
        .weights
        .iter()
        .flat_map(|(_, expression)| expression.sources())
        .map(|(n, s)| (n.to_string(), s.to_vec()))
        .collect();
    out.sort();
    out.dedup();
    Ok(out)
}

/// Whether this is a checkpoint of this project, which has its graph with it.
fn is_ours(path: &Path) -> bool {
    // An index takes more memory than its text, so the text is looked at first.
    let text = || {
        let mut file = File::open(path).ok()?;
        let mut size = [0; 8];
        file.read_exact(&mut size).ok()?;
        let size = Some(u64::from_le_bytes(size)).filter(|size| *size <= MAX_HEADER)?;
        let mut text = Vec::new();
        file.take(size).read_to_end(&mut text).ok()?;
        let key = format!("\"{}\"", checkpoint::KEY);
        text.windows(key.len()).any(|part| part == key.as_bytes()).then_some(())
    };
    if text().is_none() {
        return false;
    }
    let header = File::open(path).ok().and_then(|mut file| Header::read(&mut file).ok());
    header.is_some_and(|header| header.metadata().contains_key(checkpoint::KEY))
}

/// The tokenizer in a model directory, if there is one.
fn tokenizer(directory: &Path) -> Result<Option<Tokenizer>, Error> {
    let path: PathBuf = directory.join("tokenizer.json");
    if !path.exists() {
        return Ok(None);
    }
    let text = text::read(&path, "a tokenizer.json")?;
    let json =
        serde_json::from_str(&text).map_err(|e| Error::file(&path, format!("is not JSON: {e}")))?;
    Ok(Some(Tokenizer::Json { json }))
}
/// What is to be said where the library rounds weights to another type than they are stored in: that of
/// the config, or the type of one of them for all.
fn rounded(
    config: &ConfigReader,
    files: &Files,
    mapping: &Mapping,
) -> Result<Option<String>, Error> {
    let sources = mapping.weights.iter().flat_map(|(_, expression)| expression.sources());
    let types: Vec<DType> =
        sources.filter_map(|(name, _)| files.get(name)?.dtype).filter(|t| t.is_float()).collect();
    let mut said = None;
    for key in ["torch_dtype", "dtype"] {
        said = config.text_if(key)?.or(said);
    }
    let exactly = "here they are exactly what is stored; `--weights` certifies rounded ones";
    let to = |name: &str| match name.strip_prefix("torch.").unwrap_or(name) {
        "float16" => Some(DType::F16),
        "bfloat16" => Some(DType::BF16),
        "float32" => Some(DType::F32),
        _ => None,
    };
    // Only a wider type holds every number of another.
    let rounds =
        |from: &DType, to: DType| *from != to && from.size_in_bytes() >= to.size_in_bytes();
    Ok(match (said, said.and_then(to)) {
        (Some(name), Some(to)) if types.iter().any(|from| rounds(from, to)) => Some(format!(
            "the config says `{name}`, to which the library rounds other weights when it loads them; {exactly}"
        )),
        (None, _) if types.iter().any(|t| *t != types[0]) => Some(format!(
            "the weights are of several types and the config names none: the library may round all of them \
             to one; {exactly}"
        )),
        _ => None,
    })
}
