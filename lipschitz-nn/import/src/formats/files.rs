//! The tensors of third-party files: where each one lies, and how its numbers do. Reading an index
//! is all that a format needs.
//!
//! Files are not trusted: an index is no larger than its file, shapes are multiplied with checks,
//! and every tensor must lie inside the file before any memory is taken for it. All tensors
//! together are no more than twice the file, but for what its format dequantises or, in small
//! files, unpacks.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::quantized::{GgmlDType, ggml_file};
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value};

use super::kind::Kind;
use super::source::Source;
use super::{archive, gguf, npy, onnx, torch};
use lipschitz_nn::checkpoint::{Damage, Entry, Header};
use lipschitz_nn::{Error, text};

/// A tensor as the reader of a format finds it.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub name: String,
    pub shape: Vec<usize>,
    /// As it is read; none for a type that no weight has, such as booleans.
    pub dtype: Option<DType>,
    /// Its type, as the format spells it.
    pub kind: Cow<'static, str>,
    pub start: Start,
    /// How many bytes it lies in; of a type that is not read, as far as that is known.
    pub count: u64,
    pub layout: Layout,
}

/// Where a tensor begins.
#[derive(Clone, Debug)]
pub(crate) enum Start {
    /// In the file.
    Offset(u64),
    /// In a compressed member of an archive, behind the member's own header.
    Member { name: String, skip: u64 },
}

/// How the numbers of a tensor lie.
#[derive(Clone, Debug)]
pub(crate) enum Layout {
    /// One after another, the last axis first.
    Dense,
    /// So many elements apart, by axis.
    Strided(Vec<usize>),
    /// Quantised, in blocks.
    Blocks(GgmlDType),
}

/// A tensor on disk.
#[derive(Clone, Debug)]
pub(crate) struct Info {
    pub shape: Vec<usize>,
    /// None for a type that no weight has, such as booleans.
    pub dtype: Option<DType>,
    /// Its type, as the file spells it.
    pub kind: Cow<'static, str>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// The file, by its number.
    File { file: usize, start: Start, count: u64, layout: Layout },
    /// Unpacked already.
    Memory(Tensor),
}

/// The tensors of one or several files, by name.
#[derive(Debug, Default)]
pub(crate) struct Files {
    sources: Vec<Source>,
    tensors: BTreeMap<String, Info>,
    /// Their names in the order of the file, where its format has one.
    order: Option<Vec<String>>,
    /// What was taken off the front of every name.
    stripped: String,
    /// What a reader of the certificate should know about the files.
    notes: Vec<String>,
    sidecar: BTreeMap<String, Value>,
    metadata: Option<Map<String, Value>>,
}

/// What wrappers of a model put in front of all names, and no model of its own: `torch.compile`,
/// data parallelism, DeepSpeed. The library does not find the tensors of a directory behind them.
const WRAPPERS: &[&str] = &["_orig_mod.", "module.", "_forward_module."];

/// What stands in front of all names where the model is an attribute of the object that was saved,
/// or of the model itself: only where no config says the names.
const ATTRIBUTES: &[&str] =
    &["_orig_mod.", "module.", "_forward_module.", "model.", "net.", "network."];

/// Memory that tensors may take whatever the size of their file, in bytes.
const ENOUGH: u64 = 1 << 20;

/// The longest header of a safetensors file whatever the size of the file, in bytes.
const LONGEST_HEADER: u64 = 1 << 22;

impl Files {
    /// The weights of a Hugging Face directory: one file, or those that an index names.
    pub(crate) fn of_directory(directory: &Path) -> Result<Self, Error> {
        for (single, index) in [
            ("model.safetensors", "model.safetensors.index.json"),
            ("pytorch_model.bin", "pytorch_model.bin.index.json"),
        ] {
            let single = directory.join(single);
            if single.exists() {
                let mut files = Self::default();
                files.add(&single, None)?;
                return Ok(files);
            }
            let index = directory.join(index);
            if index.exists() {
                return Self::of_shards(directory, &index);
            }
        }
        Err(Error::file(
            directory,
            "holds neither model.safetensors nor pytorch_model.bin, nor an index of shards",
        ))
    }

    /// The tensors of a file of safetensors, PyTorch, numpy or GGUF; where it holds several sets of
    /// them, of the one that is called `entry`.
    pub(crate) fn of_file(path: &Path, entry: Option<&str>) -> Result<Self, Error> {
        let mut files = Self::default();
        files.add(path, entry)?;
        files.strip(WRAPPERS);
        Ok(files)
    }

    /// Tensors that are in memory.
    pub(crate) fn of_tensors(tensors: Vec<(String, Tensor)>) -> Self {
        let info = |t: Tensor| Info {
            shape: t.dims().to_vec(),
            dtype: Some(t.dtype()),
            kind: t.dtype().as_str().into(),
            place: Place::Memory(t),
        };
        let tensors = tensors.into_iter().map(|(name, t)| (name, info(t))).collect();
        Self { tensors, ..Self::default() }
    }

    /// The tensors of one file that somebody else has found in it.
    pub(crate) fn of_found(source: Source, found: Vec<Found>) -> Result<Self, Error> {
        let mut files = Self::default();
        files.insert(source, found)?;
        Ok(files)
    }

    fn of_shards(directory: &Path, index: &Path) -> Result<Self, Error> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = text::read(index, "an index of shards")?;
        let Index { weight_map } = serde_json::from_str(&text)
            .map_err(|e| Error::file(index, format!("is no index of shards: {e}")))?;
        let mut files = Self::default();
        for shard in weight_map.values().collect::<BTreeSet<_>>() {
            if Path::new(shard).file_name() != Some(std::ffi::OsStr::new(shard)) {
                return Err(Error::file(
                    index,
                    format!("names the shard `{shard}`, which is not a file beside it"),
                ));
            }
            files.add(&directory.join(shard), None)?;
        }
        if let Some(name) = weight_map.keys().find(|name| !files.tensors.contains_key(*name)) {
            return Err(Error::file(
                index,
                format!("names the tensor `{name}`, which no shard holds"),
            ));
        }
        // The order of several files is that of their names, which says nothing.
        files.order = None;
        Ok(files)
    }

    fn add(&mut self, path: &Path, entry: Option<&str>) -> Result<(), Error> {
        let source = Source::open(path)?;
        let kind = Kind::of(&source)?;
        if entry.is_some() && !matches!(kind, Kind::Zip | Kind::LegacyTorch) {
            return Err(source.wrong("is no file of torch.save, so it has no entries"));
        }
        match kind {
            Kind::Safetensors => {
                // The format sorts its tensors by type and name.
                let found = safetensors(&source)?;
                self.insert(source, modern(found))
            }
            Kind::Zip => {
                let members = archive::members(&source)?;
                let ends = |end: &str| members.iter().any(|member| member.name.ends_with(end));
                if ends(".npy") && !ends("data.pkl") {
                    if entry.is_some() {
                        return Err(source.wrong("is no file of torch.save, so it has no entries"));
                    }
                    // In the order of the arguments of `numpy.savez`, which is that of the alphabet
                    // where they were a dictionary of JAX.
                    let found = npy::arrays(&source, members)?;
                    return self.insert(source, modern(found));
                }
                let contents = torch::zipped(&source, members, entry)?;
                self.torch(source, contents)
            }
            Kind::LegacyTorch => {
                let contents = torch::legacy(&source, entry)?;
                self.torch(source, contents)
            }
            Kind::Gguf => {
                let gguf::Contents { metadata, tensors } = gguf::read(&source)?;
                self.notes.extend(dequantised(&tensors));
                self.metadata = Some(metadata);
                self.in_order(source, tensors)
            }
            Kind::Onnx => self.join("", onnx::read(source)?.files),
            Kind::Llama2c => Err(source.wrong("is a model of llama2.c, which stands alone")),
            Kind::Other(what) => Err(source.wrong(what)),
            Kind::Unknown => Err(source.wrong(
                "is of no format that is known, or damaged: safetensors, PyTorch, numpy's .npz, \
                 GGUF, ONNX and llama2.c are",
            )),
        }
    }

    fn torch(&mut self, source: Source, contents: torch::Contents) -> Result<(), Error> {
        let torch::Contents { entry, tensors, sidecar } = contents;
        self.notes.extend(entry.map(|entry| format!("the tensors are those under `{entry}`")));
        self.sidecar = sidecar;
        self.in_order(source, tensors)
    }

    /// Takes the tensors of a file that has them in an order that means something.
    fn in_order(&mut self, source: Source, found: Vec<Found>) -> Result<(), Error> {
        let found = modern(found);
        self.order = Some(found.iter().map(|found| found.name.clone()).collect());
        self.insert(source, found)
    }

    /// Takes the tensors of one file, each checked to lie inside it.
    fn insert(&mut self, source: Source, found: Vec<Found>) -> Result<(), Error> {
        let file = self.sources.len();
        let mut total = 0u64;
        for found in found {
            let size = found.size(source.length()).map_err(|what| source.wrong(what))?;
            total = total.saturating_add(size);
            let Found { name, shape, dtype, kind, start, count, layout } = found;
            let place = Place::File { file, start, count, layout };
            let info = Info { shape, dtype, kind, place };
            if self.tensors.insert(name.clone(), info).is_some() {
                return Err(
                    source.wrong(format!("has the tensor `{name}`, which there is already"))
                );
            }
        }
        // Tied weights share their bytes; more sharing than that would take more memory than the
        // file has bytes, and so would what unpacks to more.
        let length = source.length();
        if total > length.saturating_mul(2).max(ENOUGH) {
            let what = format!("has tensors of {total} bytes in a file of {length}");
            return Err(source.wrong(what));
        }
        self.sources.push(source);
        Ok(())
    }

    /// Takes prefixes off the names, each as often as all have it.
    fn strip(&mut self, prefixes: &[&str]) {
        let common = |names: &BTreeMap<String, Info>| {
            let all = |prefix: &&&str| {
                names.keys().all(|name| name.strip_prefix(**prefix).is_some_and(|n| !n.is_empty()))
            };
            prefixes.iter().find(all).filter(|_| !names.is_empty()).map(|prefix| prefix.len())
        };
        while let Some(length) = common(&self.tensors) {
            let Some(name) = self.tensors.keys().next() else { return };
            self.stripped.push_str(&name[..length]);
            let tensors = std::mem::take(&mut self.tensors).into_iter();
            self.tensors = tensors.map(|(name, info)| (name[length..].to_string(), info)).collect();
            for name in self.order.iter_mut().flatten() {
                name.drain(..length);
            }
        }
    }

    /// Takes off the names what stands in front of all of them, where no config says the names.
    pub(crate) fn strip_attributes(&mut self) {
        self.strip(ATTRIBUTES);
    }

    /// What was taken off the front of every name, if anything.
    pub(crate) fn stripped(&self) -> Option<&str> {
        Some(self.stripped.as_str()).filter(|prefix| !prefix.is_empty())
    }

    /// What a reader of the certificate should know about the files.
    pub(crate) fn notes(&self) -> Vec<String> {
        let stripped = self.stripped().map(|prefix| {
            format!("the names of all tensors began with `{prefix}`, which was taken off")
        });
        self.notes.iter().cloned().chain(stripped).collect()
    }

    /// Plain data that lies beside the tensors in a file of `torch.save`, such as the options of
    /// the model; an object of a class as its fields or its name.
    pub(crate) fn sidecar(&self, key: &str) -> Option<&Value> {
        self.sidecar.get(key)
    }

    /// The metadata of a GGUF file.
    pub(crate) fn metadata(&self) -> Option<&Map<String, Value>> {
        self.metadata.as_ref()
    }

    /// The names in the order of the file, where it means something: that of the dictionary in a
    /// file of PyTorch, of a GGUF file. A safetensors file sorts its tensors.
    pub(crate) fn ordered(&self) -> Option<Vec<&str>> {
        Some(self.order.as_ref()?.iter().map(String::as_str).collect())
    }

    /// Adds the tensors of others, this in front of their names.
    ///
    /// # Errors
    /// [`Error::File`] if there is one of such a name.
    pub(crate) fn join(&mut self, prefix: &str, others: Self) -> Result<(), Error> {
        let before = self.sources.len();
        self.sources.extend(others.sources);
        for (name, mut info) in others.tensors {
            if let Place::File { file, .. } = &mut info.place {
                *file += before;
            }
            let name = format!("{prefix}{name}");
            if self.tensors.insert(name.clone(), info).is_some() {
                return Err(Error::weight(&name, "is there twice"));
            }
        }
        Ok(())
    }

    /// How many numbers all tensors hold together.
    pub(crate) fn numbers(&self) -> u64 {
        let of =
            |info: &Info| info.shape.iter().fold(1u64, |n, size| n.saturating_mul(*size as u64));
        self.tensors.values().map(of).fold(0, u64::saturating_add)
    }

    pub(crate) fn len(&self) -> usize {
        self.tensors.len()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Info> {
        self.tensors.get(name)
    }

    /// Whether the name of some tensor starts with this.
    pub(crate) fn below(&self, prefix: &str) -> bool {
        self.tensors
            .range(prefix.to_string()..)
            .next()
            .is_some_and(|(name, _)| name.starts_with(prefix))
    }

    /// `prefix` if tensors have it, nothing otherwise: a base model saves its tensors without one.
    pub(crate) fn prefix<'a>(&self, prefix: &'a str) -> &'a str {
        if self.below(prefix) { prefix } else { "" }
    }

    /// Whether two tensors hold the same numbers, bit for bit.
    pub(crate) fn equal(&self, a: &str, b: &str) -> Result<bool, Error> {
        let (Some(first), Some(second)) = (self.get(a), self.get(b)) else { return Ok(false) };
        if first.shape != second.shape || first.dtype != second.dtype {
            return Ok(false);
        }
        const PIECE: usize = 1 << 20;
        let (a, b) = (self.read(a)?.flatten_all()?, self.read(b)?.flatten_all()?);
        let count = a.elem_count();
        // Widening keeps every number, and no two numbers become one.
        let bits = |x: &Tensor, from: usize| -> Result<Vec<u64>, Error> {
            let piece = x.narrow(0, from, PIECE.min(count - from))?.to_dtype(DType::F64)?;
            Ok(piece.to_vec1::<f64>()?.into_iter().map(f64::to_bits).collect())
        };
        for from in (0..count).step_by(PIECE) {
            if bits(&a, from)? != bits(&b, from)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads a tensor onto the CPU.
    pub(crate) fn read(&self, name: &str) -> Result<Tensor, Error> {
        let info = self.get(name).ok_or_else(|| Error::weight(name, "is missing"))?;
        let (file, start, count, layout) = match &info.place {
            Place::Memory(tensor) => return Ok(tensor.clone()),
            Place::File { file, start, count, layout } => (*file, start, *count, layout),
        };
        let dtype = info.dtype.ok_or_else(|| {
            Error::weight(name, format!("is of the type {}, which no weight can have", info.kind))
        })?;
        let source = &self.sources[file];
        let bytes = match start {
            Start::Offset(offset) => source.bytes(*offset, count)?,
            Start::Member { name, skip } => archive::unpack_exactly(source, name, *skip, count)?,
        };
        let shape = info.shape.as_slice();
        let bytes = match layout {
            Layout::Blocks(kind) => return blocks(*kind, &bytes, shape),
            Layout::Dense => bytes,
            Layout::Strided(strides) => gather(&bytes, dtype.size_in_bytes(), shape, strides),
        };
        Ok(Tensor::from_raw_buffer(&bytes, dtype, shape, &Device::Cpu)?)
    }
}

impl Found {
    /// How many bytes it has in memory.
    ///
    /// # Errors
    /// If the file, of so many bytes, does not hold it.
    fn size(&self, length: u64) -> Result<u64, String> {
        let Self { name, shape, dtype, start, count, layout, .. } = self;
        // Zeros do not let the other sizes be any: they are multiplied in any order.
        let product = shape.iter().try_fold(1u64, |n, d| n.checked_mul((*d).max(1) as u64));
        let elements = product.map(|n| if shape.contains(&0) { 0 } else { n });
        let size = dtype.map_or(0, |dtype| dtype.size_in_bytes()) as u64;
        let bytes = elements.and_then(|n| n.checked_mul(size));
        let inside = match start {
            Start::Offset(offset) => offset.checked_add(*count).is_some_and(|end| end <= length),
            Start::Member { .. } => true,
        };
        let fits = |bytes: u64| match layout {
            Layout::Dense => bytes == *count,
            // From the first to the last element.
            Layout::Strided(strides) => {
                let reach = shape.iter().zip(strides).try_fold(1u64, |sum, (n, stride)| {
                    sum.checked_add((n.saturating_sub(1) as u64).checked_mul(*stride as u64)?)
                });
                strides.len() == shape.len()
                    && reach.and_then(|n| n.checked_mul(size)).is_some_and(|n| n <= *count)
            }
            Layout::Blocks(kind) => {
                let blocks = elements.map(|n| n / kind.block_size() as u64);
                blocks.and_then(|n| n.checked_mul(kind.type_size() as u64)) == Some(*count)
            }
        };
        match bytes {
            Some(bytes) if inside && (dtype.is_none() || fits(bytes)) => Ok(match layout {
                // What a block dequantises to is the format's own; blocks that overlap are not.
                Layout::Blocks(_) => *count,
                _ if dtype.is_none() => *count,
                _ => bytes,
            }),
            _ => {
                let place = match start {
                    Start::Offset(offset) => format!("{count} bytes at {offset}"),
                    Start::Member { .. } => format!("{count} bytes, unpacked"),
                };
                Err(format!(
                    "has the tensor `{name}` of shape {shape:?} in {place}, which its {length} \
                     bytes do not hold"
                ))
            }
        }
    }
}

/// The elements of a view, one after another; each of `size` bytes.
fn gather(bytes: &[u8], size: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let count: usize = shape.iter().product();
    let mut out = Vec::with_capacity(count * size);
    let mut index = vec![0; shape.len()];
    for _ in 0..count {
        let at: usize = index.iter().zip(strides).map(|(i, stride)| i * stride * size).sum();
        out.extend_from_slice(bytes.get(at..at + size).unwrap_or_default());
        for (i, n) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *n {
                break;
            }
            *i = 0;
        }
    }
    out
}

/// The numbers that blocks stand for, in f32, as the format defines them.
fn blocks(kind: GgmlDType, bytes: &[u8], shape: &[usize]) -> Result<Tensor, Error> {
    // Candle takes the bytes as blocks where they lie; no allocator puts so many at an odd address,
    // but for none at all.
    if bytes.is_empty() || !bytes.as_ptr().cast::<u16>().is_aligned() {
        return match bytes {
            [] => Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?),
            _ => Err(Error::Input("blocks lie at an odd address".into())),
        };
    }
    let quantised = ggml_file::qtensor_from_ggml(kind, bytes, shape.to_vec(), &Device::Cpu)?;
    Ok(quantised.dequantize(&Device::Cpu)?)
}

/// Which types weights had, if some were quantised.
fn dequantised(tensors: &[Found]) -> Option<String> {
    if !tensors.iter().any(|found| matches!(found.layout, Layout::Blocks(_))) {
        return None;
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    tensors.iter().for_each(|found| *counts.entry(&found.kind).or_default() += 1);
    let types: Vec<String> =
        counts.iter().map(|(kind, count)| format!("{kind} ({count} tensors)")).collect();
    let types = types.join(", ");
    Some(format!("weights were dequantised to f32 and are certified as such; the file has {types}"))
}

/// Tensors under the names that newer versions of their library give them.
fn modern(found: Vec<Found>) -> Vec<Found> {
    found.into_iter().map(|found| Found { name: legacy(found.name), ..found }).collect()
}

/// Old checkpoints of BERT call gain and shift of a norm gamma and beta.
fn legacy(name: String) -> String {
    match name.rsplit_once("LayerNorm.") {
        Some((start, "gamma")) => format!("{start}LayerNorm.weight"),
        Some((start, "beta")) => format!("{start}LayerNorm.bias"),
        _ => name,
    }
}

fn safetensors(source: &Source) -> Result<Vec<Found>, Error> {
    let start = source.start(8)?;
    let size = start.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    let length = source.length();
    // An index takes more memory than its JSON.
    if size <= length && size > LONGEST_HEADER.max(length / 8) {
        let what = format!("has a header of {size} bytes in a file of {length}, which is no index");
        return Err(source.wrong(what));
    }
    let mut file = source.at(0)?;
    let header = Header::read(&mut file).map_err(|damage| match damage {
        Damage::Io(error) => Error::Io { path: source.path().to_path_buf(), error },
        other => source.wrong(format!("is not a whole safetensors file ({other}); fetch it again")),
    })?;
    source.check(&file)?;
    let found = |entry: Entry| {
        let Entry { name, shape, dtype, kind, offset, bytes } = entry;
        let (kind, start, layout) = (kind.into(), Start::Offset(offset), Layout::Dense);
        Found { name, shape, dtype, kind, start, count: bytes, layout }
    };
    Ok(header.entries().into_iter().map(found).collect())
}
