//! The tensors that a `torch.save` file names.

use std::path::Path;

use candle_core::DType;

use super::archive;
use super::pickle::{Id, Machine, Object};
use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::Entry;

/// What may be named: what PyTorch writes for a dictionary of tensors.
fn known(name: &str) -> bool {
    let storage =
        name.strip_prefix("torch.").is_some_and(|n| n.ends_with("Storage") && !n.contains('.'));
    storage
        || matches!(
            name,
            "collections.OrderedDict"
                | "torch._utils._rebuild_tensor_v2"
                | "torch._utils._rebuild_parameter"
                | "torch._tensor._rebuild_from_type_v2"
                | "torch.Tensor"
                | "torch.nn.parameter.Parameter"
        )
}

/// A tensor: its type, the member with its storage, where in it, and its shape.
fn tensor(machine: &Machine, id: Id) -> Option<(Option<DType>, String, u64, Vec<usize>)> {
    let Object::Call(name, arguments) = machine.memory[id] else { return None };
    let arguments = machine.tuple(arguments)?;
    match machine.said(name)? {
        "torch._utils._rebuild_parameter" => {
            // A parameter holds a tensor, and no further one.
            let inner = *arguments.first()?;
            let Object::Call(name, _) = machine.memory[inner] else { return None };
            if machine.said(name)? == "torch._utils._rebuild_tensor_v2" {
                tensor(machine, inner)
            } else {
                None
            }
        }
        "torch._utils._rebuild_tensor_v2" => {
            let [storage, offset, shape, stride, ..] = *arguments else { return None };
            let Object::Storage(storage) = machine.memory[storage] else { return None };
            let [_, kind, key, ..] = *machine.tuple(storage)? else { return None };
            let dtype = match machine.said(kind)?.strip_prefix("torch.")? {
                "FloatStorage" => Some(DType::F32),
                "DoubleStorage" => Some(DType::F64),
                "HalfStorage" => Some(DType::F16),
                "BFloat16Storage" => Some(DType::BF16),
                "LongStorage" => Some(DType::I64),
                "ByteStorage" => Some(DType::U8),
                "BoolStorage" => None,
                _ => return None,
            };
            let sizes = |id: Id| {
                machine.tuple(id)?.iter().map(|n| machine.number(*n)).collect::<Option<Vec<u64>>>()
            };
            let (shape, stride) = (sizes(shape)?, sizes(stride)?);
            let mut dense = 1u64;
            for (size, stride) in shape.iter().zip(&stride).rev() {
                if *size != 1 && *stride != dense {
                    return None;
                }
                dense = dense.checked_mul(*size)?;
            }
            let shape = shape.iter().map(|n| usize::try_from(*n).ok()).collect::<Option<_>>()?;
            Some((dtype, machine.said(key)?.to_string(), machine.number(offset)?, shape))
        }
        _ => None,
    }
}

/// The longest pickle that is read, in bytes: an index has a few hundred per tensor.
const LONGEST: u64 = 1 << 24;

/// Reads the index of tensors; a dictionary may hold them under `state_dict` or `model`.
pub(crate) fn tensors(path: &Path) -> Result<Vec<Entry>, Error> {
    let members = archive::members(path)?;
    let mut programs =
        members.keys().filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let (Some(program), None) = (programs.next(), programs.next()) else {
        return Err(Error::file(
            path,
            "is a zip archive without one data.pkl; torch.save writes one",
        ));
    };
    let root = program.strip_suffix("data.pkl").unwrap_or_default();
    if let Some(order) = members.get(&format!("{root}byteorder"))
        && archive::read(path, *order)? != b"little"
    {
        return Err(Error::file(
            path,
            "holds big-endian numbers; save it on a little-endian machine",
        ));
    }
    if members[program].bytes > LONGEST {
        return Err(Error::file(
            path,
            format!("has a pickle of {} bytes, which is no index", members[program].bytes),
        ));
    }
    let code = archive::read(path, members[program])?;
    let named = |what: String| Error::file(path, what);
    let (machine, top) = Machine::run(&code, known).map_err(named)?;
    let Object::Dict(mut pairs) = machine.memory[top].clone() else {
        return Err(named("its pickle holds no dictionary of tensors".into()));
    };
    let inner = |(key, value): &(Id, Id)| match &machine.memory[*value] {
        Object::Dict(inner) if matches!(machine.said(*key), Some("state_dict" | "model")) => {
            Some(inner.clone())
        }
        _ => None,
    };
    if let Some(inner) = pairs.iter().find_map(inner) {
        pairs = inner;
    }
    let mut out = Vec::new();
    for (key, value) in pairs {
        let name = machine
            .said(key)
            .ok_or_else(|| named("its dictionary has a key that is no text".into()))?;
        let (dtype, member, offset, shape) = tensor(&machine, value).ok_or_else(|| {
            named(format!(
                "`{name}` is no contiguous tensor of a type that is known; save the \
                           state_dict alone"
            ))
        })?;
        let storage = members
            .get(&format!("{root}data/{member}"))
            .ok_or_else(|| named(format!("lacks the numbers of `{name}`")))?;
        let size = dtype.map_or(1, |d| d.size_in_bytes()) as u64;
        let count = shape.iter().try_fold(size, |n, d| n.checked_mul(*d as u64));
        let within = |bytes: u64| {
            let from = offset.checked_mul(size)?;
            (from.checked_add(bytes)? <= storage.bytes)
                .then_some((storage.offset.checked_add(from)?, bytes))
        };
        let (offset, bytes) = count.and_then(within).ok_or_else(|| {
            named(format!(
                "has the tensor `{name}` of shape {shape:?}, which its storage does not hold"
            ))
        })?;
        out.push(Entry { name: name.to_string(), shape, dtype, offset, bytes });
    }
    Ok(out)
}
