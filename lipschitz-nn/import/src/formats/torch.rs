//! Files of `torch.save`: a pickle that says where each tensor lies in storages, which are members
//! of a zip archive, or, before PyTorch 1.6, follow each other behind the pickle.

use std::borrow::Cow;
use std::collections::BTreeMap;

use candle_core::DType;
use serde_json::Value;

use super::archive::{self, Member};
use super::files::{Found, Layout, Start};
use super::kind::LEGACY;
use super::pickle::{Id, Machine, Object};
use super::source::Source;
use super::state_dict::{self, StateDict};
use lipschitz_nn::Error;

/// What a file holds.
pub(crate) struct Contents {
    /// Where its tensors were, if not at the outside.
    pub entry: Option<String>,
    /// In the order of the dictionary.
    pub tensors: Vec<Found>,
    /// Plain data beside them.
    pub sidecar: BTreeMap<String, Value>,
}

/// A tensor as a pickle describes it: a view of a storage.
pub(super) struct Tensor {
    /// None for a type that no weight has.
    pub dtype: Option<DType>,
    pub shape: Vec<usize>,
    kind: Cow<'static, str>,
    /// Of an element, in bytes.
    size: u64,
    storage: String,
    /// Where it begins in the storage, and how far its elements are apart, in elements.
    offset: u64,
    strides: Vec<usize>,
}

/// The type of a storage's elements: its name, itself if weights can have it, and its size in
/// bytes.
fn element(storage: &str) -> Option<(&'static str, Option<DType>, u64)> {
    Some(match storage.strip_prefix("torch.")?.strip_suffix("Storage")? {
        "Float" => ("float32", Some(DType::F32), 4),
        "Double" => ("float64", Some(DType::F64), 8),
        "Half" => ("float16", Some(DType::F16), 2),
        "BFloat16" => ("bfloat16", Some(DType::BF16), 2),
        "Long" => ("int64", Some(DType::I64), 8),
        "Byte" => ("uint8", Some(DType::U8), 1),
        "Int" => ("int32", None, 4),
        "Short" => ("int16", None, 2),
        "Char" => ("int8", None, 1),
        "Bool" => ("bool", None, 1),
        "ComplexFloat" => ("complex64", None, 8),
        "ComplexDouble" => ("complex128", None, 16),
        "QInt8" => ("qint8", None, 1),
        "QUInt8" => ("quint8", None, 1),
        "QUInt4x2" => ("quint4x2", None, 1),
        "QUInt2x4" => ("quint2x4", None, 1),
        "QInt32" => ("qint32", None, 4),
        _ => return None,
    })
}

/// The size of the elements of types without a storage of their own, in bytes.
fn wide(name: &str) -> Option<u64> {
    Some(match name {
        "uint16" => 2,
        "uint32" | "complex32" => 4,
        "uint64" => 8,
        _ if name.starts_with("float8_") || name.starts_with("float4_") => 1,
        _ => return None,
    })
}

/// A value as a tensor; none if it is something else.
///
/// # Errors
/// What kind of tensor it is, if none that is read.
pub(super) fn tensor(machine: &Machine, id: Id) -> Result<Option<Tensor>, String> {
    let Object::Call(_, arguments) = machine.memory[id] else { return Ok(None) };
    let (Some(callee), Some(arguments)) = (machine.callee(id), machine.tuple(arguments)) else {
        return Ok(None);
    };
    let damaged = || "is no whole tensor".to_string();
    // What holds a tensor may hold no further one that holds one.
    let inner = |id: Option<&Id>| {
        let id = *id.ok_or_else(damaged)?;
        match machine.callee(id) {
            Some(
                "torch._utils._rebuild_tensor"
                | "torch._utils._rebuild_tensor_v2"
                | "torch._utils._rebuild_tensor_v3",
            ) => tensor(machine, id),
            _ => Err(format!("is a parameter around {}", machine.describe(id))),
        }
    };
    let Some(kind) = callee
        .strip_prefix("torch._utils._rebuild_")
        .or_else(|| callee.strip_prefix("torch._tensor._rebuild_"))
    else {
        return Ok(None);
    };
    match kind {
        "tensor" | "tensor_v2" => view(machine, arguments, None).map(Some),
        "tensor_v3" => view(machine, arguments, Some(())).map(Some),
        "parameter" | "parameter_with_state" => inner(arguments.first()),
        "from_type_v2" => {
            let [rebuild, class, arguments, ..] = *arguments else { return Err(damaged()) };
            match machine.said(class) {
                Some(
                    "torch.Tensor" | "torch.nn.parameter.Parameter" | "torch.nn.parameter.Buffer",
                ) => {}
                other => {
                    let class = other.unwrap_or("an unknown class");
                    return Err(format!("is a tensor of the class `{class}`, which is not read"));
                }
            }
            match (machine.said(rebuild), machine.tuple(arguments)) {
                (Some("torch._utils._rebuild_tensor_v2"), Some(arguments)) => {
                    view(machine, arguments, None).map(Some)
                }
                (Some("torch._utils._rebuild_parameter"), Some(arguments)) => {
                    inner(arguments.first())
                }
                (other, _) => Err(format!("is made by `{}`", other.unwrap_or("an unknown call"))),
            }
        }
        "sparse_tensor" | "sparse_csr_tensor" => Err("is a sparse tensor; make it dense".into()),
        "qtensor" => Err("is a quantized tensor; dequantize it".into()),
        "nested_tensor" => Err("is a nested tensor, which is not read".into()),
        "meta_tensor_no_storage" => Err("is a tensor on the device `meta`, without numbers".into()),
        "wrapper_subclass" => {
            let class = arguments.first().and_then(|id| machine.said(*id));
            let class = class.unwrap_or("an unknown class");
            Err(format!("is a tensor of the class `{class}`, which is not read"))
        }
        _ => Err(format!("is made by `{callee}`, which is not read; save it from the CPU")),
    }
}

/// `storage, offset, shape, strides, requires_grad, hooks`, then, for the third version, a type;
/// then bits that change what the numbers mean.
fn view(machine: &Machine, arguments: &[Id], typed: Option<()>) -> Result<Tensor, String> {
    let damaged = || "is no whole tensor".to_string();
    let [storage, offset, shape, strides, rest @ ..] = arguments else { return Err(damaged()) };
    let Object::Storage(storage) = machine.memory[*storage] else { return Err(damaged()) };
    let Storage { kind, key, base, .. } = Storage::of(machine, storage).ok_or_else(damaged)?;
    let rest = rest.get(2..).unwrap_or_default();
    let (named, bits) = match typed {
        None => (None, rest.first()),
        Some(()) => (Some(*rest.first().ok_or_else(damaged)?), rest.get(1)),
    };
    let (kind, dtype, size) = match named {
        None => {
            let element = element(kind);
            let (name, dtype, size) =
                element.ok_or_else(|| format!("has numbers of `{kind}`, which is not known"))?;
            (Cow::Borrowed(name), dtype, size)
        }
        Some(named) => {
            let name = machine.said(named).and_then(|n| n.strip_prefix("torch."));
            let name = name.ok_or_else(damaged)?;
            let size =
                wide(name).ok_or_else(|| format!("has numbers of `{name}`, which is not known"))?;
            (Cow::Owned(name.to_string()), None, size)
        }
    };
    if let Some(bits) = bits {
        match &machine.memory[*bits] {
            Object::None => {}
            Object::Dict(bits) => {
                for (bit, value) in bits {
                    if !matches!(machine.memory[*value], Object::Flag(false) | Object::None) {
                        let bit = machine.said(*bit).unwrap_or("?");
                        return Err(format!(
                            "is a lazy view (`{bit}`); resolve it before you save it (resolve_neg, \
                             resolve_conj)"
                        ));
                    }
                }
            }
            _ => return Err(damaged()),
        }
    }
    let sizes = |id: Id| {
        let number = |n: &Id| usize::try_from(machine.number(*n)?).ok();
        let out = machine.tuple(id)?.iter().map(number).collect::<Option<Vec<usize>>>();
        out.filter(|sizes| sizes.len() <= 64)
    };
    let (shape, strides) =
        (sizes(*shape).ok_or_else(damaged)?, sizes(*strides).ok_or_else(damaged)?);
    let offset = machine.number(*offset).and_then(|offset| offset.checked_add(base));
    let offset = offset.ok_or_else(damaged)?;
    if shape.len() != strides.len() {
        return Err(damaged());
    }
    Ok(Tensor { dtype, shape, kind, size, storage: key.to_string(), offset, strides })
}

/// What a persistent id says of a storage.
struct Storage<'a> {
    kind: &'a str,
    key: &'a str,
    /// How many elements it has.
    count: u64,
    /// Where a view of it begins, in elements: files of before 1.6 have views of storages.
    base: u64,
}

impl<'a> Storage<'a> {
    fn of(machine: &'a Machine, id: Id) -> Option<Self> {
        let [tag, kind, key, _, count, ref rest @ ..] = *machine.tuple(id)? else { return None };
        if machine.said(tag)? != "storage" {
            return None;
        }
        let base = match rest.first() {
            None => 0,
            Some(id) if matches!(machine.memory[*id], Object::None) => 0,
            Some(id) => machine.number(*machine.tuple(*id)?.get(1)?)?,
        };
        let (kind, key, count) = (machine.said(kind)?, machine.said(key)?, machine.number(count)?);
        Some(Self { kind, key, count, base })
    }
}

/// The longest pickle that is read, in bytes: an index has a few hundred per tensor.
const LONGEST: u64 = 1 << 26;

/// How much memory a pickle of a file may take, in bytes: with the pickle itself, less than four
/// times the file.
fn room(source: &Source) -> usize {
    usize::try_from(source.length()).unwrap_or(usize::MAX).saturating_mul(2)
}

/// Reads the index of a zip archive of PyTorch; `entry` names the dictionary of weights.
pub(crate) fn zipped(
    source: &Source,
    members: Vec<Member>,
    entry: Option<&str>,
) -> Result<Contents, Error> {
    let members: BTreeMap<String, Member> =
        members.into_iter().map(|member| (member.name.clone(), member)).collect();
    let has =
        |end: &str| members.keys().any(|name| name == end || name.ends_with(&format!("/{end}")));
    if has("constants.pkl") || members.keys().any(|name| name.contains("/code/")) {
        let what = "is a TorchScript archive, which is a program; load it with torch.jit.load and \
                    save its state_dict() with torch.save";
        return Err(source.wrong(what));
    }
    let mut programs =
        members.iter().filter(|(name, _)| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let (Some((program, pickle)), None) = (programs.next(), programs.next()) else {
        let what = if has("archive_format") || has("serialized_exported_program.json") {
            "is a program of torch.export; save the state_dict() of its module with torch.save"
        } else if has("config.json") && has("model.weights.h5") {
            "is a Keras archive; save its weights as safetensors or with numpy.savez"
        } else {
            "is a zip archive without one data.pkl, as torch.save writes it, and without arrays of \
             numpy's; unpack it, or give the file that it holds"
        };
        return Err(source.wrong(what));
    };
    let root = program.strip_suffix("data.pkl").unwrap_or_default();
    if let Some(order) = members.get(&format!("{root}byteorder"))
        && (order.bytes > 16 || archive::read(source, order)? != b"little")
    {
        return Err(big_endian(source));
    }
    if pickle.bytes > LONGEST {
        let what = format!("has a pickle of {} bytes, which is no index", pickle.bytes);
        return Err(source.wrong(what));
    }
    let code = archive::read(source, pickle)?;
    let (machine, top) =
        Machine::run(&code, |_| true, room(source)).map_err(|what| source.wrong(what))?;
    storages(source, &machine)?;
    contents(source, &machine, top, entry, |key| {
        let member = members.get(&format!("{root}data/{key}"))?;
        (!member.packed).then_some((member.offset, member.bytes))
    })
}

/// The type and the number of elements of each storage. PyTorch reads each once, as what it is first said to
/// be.
fn storages<'a>(
    source: &Source,
    machine: &'a Machine,
) -> Result<BTreeMap<&'a str, (&'a str, u64)>, Error> {
    let mut known = BTreeMap::new();
    for object in &machine.memory {
        let Object::Storage(id) = object else { continue };
        let Some(Storage { kind, key, count, .. }) = Storage::of(machine, *id) else { continue };
        if known.insert(key, (kind, count)).is_some_and(|before| before != (kind, count)) {
            return Err(source.wrong(format!("describes the storage `{key}` in two ways")));
        }
    }
    Ok(known)
}

fn big_endian(source: &Source) -> Error {
    source.wrong("holds big-endian numbers; save it on a little-endian machine")
}

/// Reads the index of a file of before 1.6: three pickles about the format, one of the object, one
/// of the keys of its storages, then the storages, each behind the count of its elements.
pub(crate) fn legacy(source: &Source, entry: Option<&str>) -> Result<Contents, Error> {
    let code = source.start(LONGEST)?;
    let run = |code| Machine::run(code, |_| true, room(source)).map_err(|what| source.wrong(what));
    let (magic, _) = run(&code)?;
    let ends = code.len() - magic.rest().len();
    if !code[..ends].ends_with(LEGACY) {
        return Err(source.wrong("does not begin as a file of torch.save does"));
    }
    let (version, number) = run(magic.rest())?;
    if version.number(number) != Some(1001) {
        return Err(source.wrong("has a version of torch.save's former format other than 1001"));
    }
    let (system, top) = run(version.rest())?;
    let order = match &system.memory[top] {
        Object::Dict(pairs) => {
            pairs.iter().find(|(key, _)| system.said(*key) == Some("little_endian"))
        }
        _ => None,
    };
    if order.is_some_and(|(_, value)| !matches!(system.memory[*value], Object::Flag(true))) {
        return Err(big_endian(source));
    }
    let (machine, top) = run(system.rest())?;
    let (keys, list) = run(machine.rest())?;
    let Object::List(list) = &keys.memory[list] else {
        return Err(source.wrong("lacks the list of its storages"));
    };
    let known = storages(source, &machine)?;
    let mut storages = BTreeMap::new();
    let mut at = (code.len() - keys.rest().len()) as u64;
    for key in list {
        let named = keys.said(*key).and_then(|key| Some((key, *known.get(key)?)));
        let Some((key, (kind, count))) = named else {
            return Err(source.wrong("lists a storage that nothing describes"));
        };
        // Types without a storage of their own lie in bytes.
        let size = element(kind).map(|(_, _, size)| size);
        let size = size.or((kind == "torch.storage.UntypedStorage").then_some(1));
        let Some(size) = size else {
            return Err(source.wrong(format!("has the storage `{key}` of an unknown type")));
        };
        let found = source.bytes(at, 8)?;
        let found = found.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        let bytes = count.checked_mul(size);
        let (true, Some(bytes)) = (found == count, bytes) else {
            let what =
                format!("has {found} numbers in the storage `{key}`, its index says {count}");
            return Err(source.wrong(what));
        };
        let start = at + 8;
        at = start.saturating_add(bytes);
        if at > source.length() {
            let length = source.length();
            return Err(source.wrong(format!(
                "is truncated: it has {length} bytes and its storages end at {at}; fetch it again"
            )));
        }
        if storages.insert(key, (start, bytes)).is_some() {
            return Err(source.wrong(format!("has the storage `{key}` twice")));
        }
    }
    contents(source, &machine, top, entry, |key| storages.get(key).copied())
}

/// The tensors of a pickle; `storage` says where one begins in the file, and how many bytes it has.
fn contents(
    source: &Source,
    machine: &Machine,
    top: Id,
    entry: Option<&str>,
    storage: impl Fn(&str) -> Option<(u64, u64)>,
) -> Result<Contents, Error> {
    let StateDict { entry, tensors, sidecar } =
        state_dict::choose(machine, top, entry).map_err(|what| source.wrong(what))?;
    let mut out = Vec::new();
    for (name, tensor) in tensors {
        let (start, bytes) = storage(&tensor.storage)
            .ok_or_else(|| source.wrong(format!("lacks the numbers of `{name}`")))?;
        out.push(tensor.found(&name, start, bytes).ok_or_else(|| {
            let shape = &tensor.shape;
            source.wrong(format!(
                "has the tensor `{name}` of shape {shape:?}, which its storage does not hold"
            ))
        })?);
    }
    Ok(Contents { entry, tensors: out, sidecar })
}

impl Tensor {
    /// Where it lies in a file whose storage begins at `start` and has so many bytes; none if it
    /// reaches outside.
    fn found(&self, name: &str, start: u64, bytes: u64) -> Option<Found> {
        let Self { dtype, shape, kind, size, offset, strides, .. } = self;
        let empty = shape.contains(&0);
        // The elements from the first to the last.
        let reach = shape.iter().zip(strides).try_fold(0u64, |sum, (n, stride)| {
            sum.checked_add((n.saturating_sub(1) as u64).checked_mul(*stride as u64)?)
        })?;
        let count = if empty { 0 } else { reach.checked_add(1)?.checked_mul(*size)? };
        let from = offset.checked_mul(*size)?;
        if from.checked_add(count)? > bytes {
            return None;
        }
        let mut dense = 1u64;
        let mut contiguous = true;
        for (n, stride) in shape.iter().zip(strides).rev() {
            contiguous &= *n == 1 || *stride as u64 == dense;
            dense = dense.saturating_mul(*n as u64);
        }
        Some(Found {
            name: name.into(),
            shape: shape.clone(),
            dtype: *dtype,
            kind: kind.clone(),
            start: Start::Offset(start.checked_add(from)?),
            count,
            layout: if contiguous || empty {
                Layout::Dense
            } else {
                Layout::Strided(strides.clone())
            },
        })
    }
}
