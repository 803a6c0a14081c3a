//! ONNX: a graph of operators and its tensors, as protocol buffers, with large tensors perhaps in
//! files beside it. Fields that no reader here looks at are passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::{At, Error};
use prost::Message;
use prost::bytes::Bytes;

use super::files::{Files, Found, Layout, Start};
use super::source::Source;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Model {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(string, tag = "2")]
    pub producer: String,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSet>,
    #[prost(message, repeated, tag = "14")]
    pub metadata: Vec<Entry>,
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<Function>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct OperatorSet {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// Operators that the model defines itself; only whether there are some is looked at.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Function {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Graph {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<Node>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<RawTensor>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<Value>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<Value>,
    #[prost(message, repeated, tag = "15")]
    pub sparse_initializer: Vec<Sparse>,
}

/// A sparse tensor; only whether there are some is looked at.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Sparse {}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Node {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<Attribute>,
    #[prost(string, tag = "7")]
    pub domain: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Attribute {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, tag = "2")]
    pub f: f32,
    #[prost(int64, tag = "3")]
    pub i: i64,
    #[prost(bytes = "bytes", tag = "4")]
    pub s: Bytes,
    #[prost(message, optional, tag = "5")]
    pub t: Option<RawTensor>,
    #[prost(float, repeated, tag = "7")]
    pub floats: Vec<f32>,
    #[prost(int64, repeated, tag = "8")]
    pub ints: Vec<i64>,
    #[prost(int32, tag = "20")]
    pub r#type: i32,
}

/// The numbers by which an attribute says what it is.
pub(crate) mod kind {
    pub(crate) const FLOAT: i32 = 1;
    pub(crate) const INT: i32 = 2;
    pub(crate) const STRING: i32 = 3;
    pub(crate) const TENSOR: i32 = 4;
    pub(crate) const FLOATS: i32 = 6;
    pub(crate) const INTS: i32 = 7;
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RawTensor {
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    #[prost(int32, repeated, tag = "5")]
    pub int32_data: Vec<i32>,
    #[prost(int64, repeated, tag = "7")]
    pub int64_data: Vec<i64>,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub raw_data: Option<Bytes>,
    #[prost(double, repeated, tag = "10")]
    pub double_data: Vec<f64>,
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<Entry>,
    #[prost(int32, tag = "14")]
    pub data_location: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Entry {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Value {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<Type>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Type {
    #[prost(message, optional, tag = "1")]
    pub tensor: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TensorType {
    #[prost(int32, tag = "1")]
    pub element: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Shape {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Dimension {
    #[prost(int64, optional, tag = "1")]
    pub value: Option<i64>,
    #[prost(string, tag = "2")]
    pub parameter: String,
}

/// Whether numbers of this type are whole, floating point, or neither; the numbers of
/// `TensorProto.DataType`.
pub(crate) fn number(data_type: i32) -> Option<(DType, &'static str)> {
    Some(match data_type {
        1 => (DType::F32, "float32"),
        2 => (DType::U8, "uint8"),
        6 => (DType::I32, "int32"),
        7 => (DType::I64, "int64"),
        9 => (DType::U8, "bool"),
        10 => (DType::F16, "float16"),
        11 => (DType::F64, "float64"),
        16 => (DType::BF16, "bfloat16"),
        _ => return None,
    })
}

/// A name like the one wanted that is not among these yet, and is from now on.
pub(crate) fn fresh(names: &mut BTreeSet<String>, wanted: &str) -> String {
    let mut name = wanted.to_string();
    let mut count = 1;
    while !names.insert(name.clone()) {
        count += 1;
        name = format!("{wanted}_{count}");
    }
    name
}

/// The number of booleans among the types.
pub(crate) const BOOL: i32 = 9;

impl Value {
    /// The number of its type, and its sizes, of which any may be open; none where it is no tensor
    /// or has no sizes.
    pub(crate) fn tensor(&self) -> Option<(i32, Vec<Option<usize>>)> {
        let tensor = self.r#type.as_ref()?.tensor.as_ref()?;
        let size = |d: &Dimension| d.value.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        Some((tensor.element, tensor.shape.as_ref()?.dim.iter().map(size).collect()))
    }
}

/// A file: its graph, whose tensors are taken out, and the tensors by name.
pub(crate) struct Contents {
    pub graph: Graph,
    /// The version of the standard operators.
    pub opset: i64,
    pub files: Files,
    /// Which tensors hold truth values.
    pub booleans: Vec<String>,
    /// The most tokens that the network reads, where the program that wrote it says so.
    pub context: Option<usize>,
}

/// What the most tokens stand under, among the metadata.
pub(crate) const CONTEXT: &str = "lipschitz.context";

/// What structures may take in memory, whatever the size of the file, in bytes.
const ENOUGH: usize = 1 << 24;

/// From this size on a tensor stays in the file until it is asked for, in bytes.
const LARGE: usize = 1 << 12;

/// Reads a file.
///
/// # Errors
/// [`Error::File`] if it is damaged, defines operators itself, or names data outside its folder.
pub(crate) fn read(source: Source) -> Result<Contents, Error> {
    let length = source.length();
    let bytes = Bytes::from(source.bytes(0, length)?);
    let cost = cost(&bytes, Kind::Model, 0).ok_or_else(|| source.wrong(DAMAGED))?;
    if cost > bytes.len().saturating_mul(2).max(ENOUGH) {
        return Err(source.wrong("has more structure than a file of its size describes"));
    }
    let model = Model::decode(bytes.clone()).map_err(|_| source.wrong(DAMAGED))?;
    let opset = opset(&model);
    let context = model.metadata.iter().find(|entry| entry.key == CONTEXT);
    let context = context.and_then(|entry| entry.value.parse().ok());
    let Some(mut graph) = model.graph else {
        return Err(source.wrong("is an ONNX model without a graph"));
    };
    let opset = opset.map_err(|what| source.wrong(what))?;
    if !graph.sparse_initializer.is_empty() {
        return Err(source.wrong("holds sparse tensors, which are not read"));
    }
    let mut tensors = std::mem::take(&mut graph.initializer);
    // What a constant's node holds has the name of what the node makes.
    for node in &mut graph.node {
        let constant = node.op_type == "Constant" || node.op_type == "ConstantOfShape";
        for attribute in &mut node.attribute {
            if let Some(mut tensor) = attribute.t.take()
                && constant
                && attribute.name == "value"
            {
                tensor.name = node.output.first().cloned().unwrap_or_default();
                tensors.push(tensor);
            }
        }
    }
    let (files, booleans) = place(source, &bytes, tensors)?;
    Ok(Contents { graph, opset, files, booleans, context })
}

const DAMAGED: &str = "is a damaged ONNX model, or no ONNX model; fetch it again";

/// The version of the standard operators.
fn opset(model: &Model) -> Result<i64, String> {
    if let Some(Function { name }) = model.functions.first() {
        return Err(format!(
            "defines the operator `{name}` itself; export it with the standard ones"
        ));
    }
    let standard = |set: &&OperatorSet| set.domain.is_empty() || set.domain == "ai.onnx";
    let mut sets = model.opset_import.iter().filter(standard);
    match (sets.next(), sets.next()) {
        (Some(set), None) => Ok(set.version),
        _ => Err("does not say one version of the standard operators".into()),
    }
}

/// Says where each tensor lies. What is small is taken into memory.
fn place(
    source: Source,
    bytes: &Bytes,
    tensors: Vec<RawTensor>,
) -> Result<(Files, Vec<String>), Error> {
    let path = source.path().to_path_buf();
    let wrong = |name: &str, what: &str| Error::file(&path, Error::weight(name, what));
    let (mut memory, mut here, mut booleans) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    let mut beside: BTreeMap<String, Vec<Found>> = BTreeMap::new();
    for tensor in tensors {
        let name = tensor.name.clone();
        if !seen.insert(name.clone()) {
            return Err(wrong(&name, "is there twice"));
        }
        let sizes = tensor.dims.iter().map(|n| usize::try_from(*n).ok());
        let Some(shape) = sizes.collect::<Option<Vec<usize>>>() else {
            return Err(wrong(&name, "has a negative size"));
        };
        let (dtype, kind) = match number(tensor.data_type) {
            Some((dtype, kind)) => (Some(dtype), kind.into()),
            None => (None, format!("type {}", tensor.data_type).into()),
        };
        if tensor.data_type == BOOL {
            booleans.push(name.clone());
        }
        let found = |start: u64, count: u64| {
            let (start, layout) = (Start::Offset(start), Layout::Dense);
            Found { name: name.clone(), shape: shape.clone(), dtype, kind, start, count, layout }
        };
        if tensor.data_location == 1 {
            let place = external(&tensor, dtype, &shape).map_err(|what| wrong(&name, &what))?;
            let (location, offset, count) = place;
            beside.entry(location).or_default().push(found(offset, count));
            continue;
        }
        match &tensor.raw_data {
            Some(raw) if dtype.is_none() || raw.len() >= LARGE => {
                let offset = (raw.as_ptr() as usize).saturating_sub(bytes.as_ptr() as usize);
                here.push(found(offset as u64, raw.len() as u64));
            }
            _ => {
                let tensor = small(&tensor, dtype, &shape).map_err(|what| wrong(&name, &what))?;
                memory.push((name, tensor));
            }
        }
    }
    let mut files = Files::of_found(source, here)?;
    files.join("", Files::of_tensors(memory)).map_err(|e| Error::file(&path, e))?;
    for (location, found) in beside {
        let source = beside_model(&path, &location)?;
        files.join("", Files::of_found(source, found)?).map_err(|e| Error::file(&path, e))?;
    }
    Ok((files, booleans))
}

/// The file of an external tensor, and its place there.
fn external(
    tensor: &RawTensor,
    dtype: Option<DType>,
    shape: &[usize],
) -> Result<(String, u64, u64), String> {
    let mut keys: Vec<&str> = tensor.external_data.iter().map(|e| e.key.as_str()).collect();
    keys.sort_unstable();
    if keys.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("says twice where its numbers lie".into());
    }
    let entry = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| &e.value);
    let number = |key: &str| match entry(key) {
        Some(value) => {
            value.parse::<u64>().map(Some).map_err(|_| format!("has no number as its {key}"))
        }
        None => Ok(None),
    };
    let location = entry("location").ok_or("lies in a file that is not named")?.clone();
    let size = dtype.map_or(0, |dtype| dtype.size_in_bytes());
    let bytes = shape.iter().try_fold(size, |n, d| n.checked_mul(*d)).ok_or("is too large")?;
    let count = number("length")?.unwrap_or(bytes as u64);
    Ok((location, number("offset")?.unwrap_or(0), count))
}

/// A file in the folder of the model, or below.
fn beside_model(path: &Path, location: &str) -> Result<Source, Error> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let relative = Path::new(location);
    let inside =
        relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    let target = folder.join(relative);
    let real = |path: &Path| path.canonicalize().at(path);
    if location.is_empty() || !inside || !real(&target)?.starts_with(real(folder)?) {
        let what = format!("names the data file `{location}`, which is not in its folder");
        return Err(Error::file(path, what));
    }
    Source::open(&target)
}

/// A tensor that the file spells out.
fn small(tensor: &RawTensor, dtype: Option<DType>, shape: &[usize]) -> Result<Tensor, String> {
    let dtype =
        dtype.ok_or_else(|| format!("has the type {}, which is not read", tensor.data_type))?;
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).ok_or("is too large")?;
    let bytes = match &tensor.raw_data {
        Some(raw) => raw.to_vec(),
        None => typed(tensor, dtype),
    };
    if Some(bytes.len()) != count.checked_mul(dtype.size_in_bytes()) {
        return Err(format!("has the shape {shape:?}, and {} bytes of {dtype:?}", bytes.len()));
    }
    if count == 0 {
        return Tensor::zeros(shape, dtype, &Device::Cpu).map_err(|e| e.to_string());
    }
    Tensor::from_raw_buffer(&bytes, dtype, shape, &Device::Cpu).map_err(|e| e.to_string())
}

/// Numbers that stand one by one, as bytes. Halves and truth values stand as whole numbers.
fn typed(tensor: &RawTensor, dtype: DType) -> Vec<u8> {
    let ints = || tensor.int32_data.iter();
    match dtype {
        DType::F32 => tensor.float_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F64 => tensor.double_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::I64 => tensor.int64_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::I32 => ints().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 | DType::BF16 => ints().flat_map(|x| (*x as u16).to_le_bytes()).collect(),
        _ => ints().map(|x| *x as u8).collect(),
    }
}

/// The messages in which others are.
#[derive(Clone, Copy)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Value,
    Type,
    TensorType,
    Shape,
    /// Fields without messages.
    Leaf,
}

/// How much memory the structures of a message take, about, before any is taken: a message of two
/// bytes is one of hundreds when it is read, and a whole number of one byte one of eight. None if
/// the bytes are no message.
fn cost(mut bytes: &[u8], kind: Kind, depth: usize) -> Option<usize> {
    if depth > 16 {
        return None;
    }
    let mut total = 0usize;
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let field = tag >> 3;
        let length = match tag & 7 {
            0 => {
                varint(&mut bytes)?;
                total = total.saturating_add(8);
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (inside, rest) = bytes.split_at_checked(length)?;
        bytes = rest;
        if tag & 7 != 2 {
            total = total.saturating_add(8);
            continue;
        }
        let inner = match (kind, field) {
            (Kind::Model, 7) => Some((Kind::Graph, size_of::<Graph>())),
            (Kind::Model, 8 | 14 | 25) => Some((Kind::Leaf, size_of::<OperatorSet>())),
            (Kind::Graph, 1) => Some((Kind::Node, size_of::<Node>())),
            (Kind::Graph, 5) | (Kind::Attribute, 5) => Some((Kind::Tensor, size_of::<RawTensor>())),
            (Kind::Graph, 11 | 12) => Some((Kind::Value, size_of::<Value>())),
            (Kind::Graph, 15) => Some((Kind::Leaf, 8)),
            (Kind::Node, 5) => Some((Kind::Attribute, size_of::<Attribute>())),
            (Kind::Tensor, 13) => Some((Kind::Leaf, size_of::<Entry>())),
            (Kind::Value, 2) => Some((Kind::Type, size_of::<Type>())),
            (Kind::Type, 1) => Some((Kind::TensorType, size_of::<TensorType>())),
            (Kind::TensorType, 2) => Some((Kind::Shape, size_of::<Shape>())),
            (Kind::Shape, 1) => Some((Kind::Leaf, size_of::<Dimension>())),
            _ => None,
        };
        let here = match (inner, kind, field) {
            (Some((kind, size)), ..) => cost(inside, kind, depth + 1)?.saturating_add(size),
            // Whole numbers, one after another; floats are as they lie.
            (None, Kind::Tensor, 1 | 5 | 7) | (None, Kind::Attribute, 8) => {
                inside.len().saturating_mul(8)
            }
            (None, Kind::Tensor, 4 | 10) => inside.len(),
            // The bytes of a tensor stay where they are.
            (None, Kind::Tensor, 9) => 0,
            (None, Kind::Node, 1 | 2) => inside.len() + size_of::<String>(),
            (None, Kind::Leaf | Kind::Node | Kind::Tensor | Kind::Value | Kind::Attribute, _) => {
                inside.len()
            }
            // Passed over.
            _ => 0,
        };
        total = total.saturating_add(here);
    }
    Some(total)
}

/// A whole number in groups of seven bits, the lowest first.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
