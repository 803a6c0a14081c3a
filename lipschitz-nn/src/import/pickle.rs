//! The tensors that a `torch.save` file names. A pickle is a program; this machine knows the instructions that build
//! dictionaries, lists and tensors, calls nothing, and stops at the first name of anything else.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::DType;

use super::archive;
use super::files::Entry;
use crate::Error;

/// A value, by its place in the machine's memory: values that contain each other need no care when they are dropped.
type Id = usize;

#[derive(Clone, Debug)]
enum Object {
    None,
    Number(i64),
    Text(String),
    Name(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// What a persistent id names: a storage.
    Storage(Id),
    /// A call that is written down and not made.
    Call(Id, Id),
    Mark,
    /// A float, or the state of an object: nothing that a tensor is made of.
    Other,
}

/// What may be named: what PyTorch writes for a dictionary of tensors.
fn known(name: &str) -> bool {
    let storage = name.strip_prefix("torch.").is_some_and(|n| n.ends_with("Storage") && !n.contains('.'));
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

struct Machine<'a> {
    code: &'a [u8],
    memory: Vec<Object>,
    stack: Vec<Id>,
    memo: BTreeMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (head, rest) = self.code.split_at_checked(count).ok_or("its pickle is truncated")?;
        self.code = rest;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn word(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn line(&mut self) -> Result<String, String> {
        let end = self.code.iter().position(|b| *b == b'\n').ok_or("its pickle is truncated")?;
        let line = self.take(end + 1)?;
        Ok(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    fn text(&mut self, size: usize) -> Result<(), String> {
        let text = std::str::from_utf8(self.take(size)?).map_err(|_| "its pickle has a text that is not UTF-8")?;
        self.push(Object::Text(text.to_string()));
        Ok(())
    }

    fn push(&mut self, object: Object) {
        self.memory.push(object);
        self.stack.push(self.memory.len() - 1);
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.stack.pop().ok_or_else(|| "its pickle takes from an empty stack".to_string())
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| "its pickle takes from an empty stack".to_string())
    }

    fn popped(&mut self, count: usize) -> Result<Vec<Id>, String> {
        let at = self.stack.len().checked_sub(count).ok_or("its pickle takes from an empty stack")?;
        Ok(self.stack.split_off(at))
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, String> {
        let at = self.stack.iter().rposition(|id| matches!(self.memory[*id], Object::Mark));
        let at = at.ok_or("its pickle lacks a mark")?;
        let out = self.stack.split_off(at + 1);
        self.stack.pop();
        Ok(out)
    }

    fn set(&mut self, pairs: &[Id]) -> Result<(), String> {
        let dict = self.top()?;
        match (&mut self.memory[dict], pairs.len() % 2) {
            (Object::Dict(there), 0) => there.extend(pairs.chunks(2).map(|pair| (pair[0], pair[1]))),
            _ => return Err("its pickle sets items of what is no dictionary".into()),
        }
        Ok(())
    }

    fn append(&mut self, items: &[Id]) -> Result<(), String> {
        let list = self.top()?;
        match &mut self.memory[list] {
            Object::List(there) => there.extend(items),
            _ => return Err("its pickle appends to what is no list".into()),
        }
        Ok(())
    }

    fn name(&mut self, name: String) -> Result<(), String> {
        if !known(&name) {
            return Err(format!("its pickle names `{name}`, which is no part of a tensor; nothing was run"));
        }
        self.push(Object::Name(name));
        Ok(())
    }

    /// One instruction; true at the end.
    fn step(&mut self) -> Result<bool, String> {
        match self.byte()? {
            0x80 => drop(self.byte()?),
            // A frame says how long it is, and changes nothing.
            0x95 => drop(self.take(8)?),
            b'.' => return Ok(true),
            b'(' => self.push(Object::Mark),
            b'N' => self.push(Object::None),
            0x88 => self.push(Object::Number(1)),
            0x89 => self.push(Object::Number(0)),
            b'K' => {
                let n = self.byte()?;
                self.push(Object::Number(n.into()));
            }
            b'M' => {
                let b = self.take(2)?;
                self.push(Object::Number(u16::from_le_bytes([b[0], b[1]]).into()));
            }
            b'J' => {
                let n = self.word()? as i32;
                self.push(Object::Number(n.into()));
            }
            0x8a => {
                let size = self.byte()?.into();
                let bytes = self.take(size)?;
                if size > 8 {
                    return Err("its pickle has a number of more than 8 bytes".into());
                }
                let mut full = [if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 }; 8];
                full[..size].copy_from_slice(bytes);
                self.push(Object::Number(i64::from_le_bytes(full)));
            }
            b'G' => {
                self.take(8)?;
                self.push(Object::Other);
            }
            b'X' => {
                let size = self.word()? as usize;
                self.text(size)?;
            }
            0x8c => {
                let size = self.byte()?.into();
                self.text(size)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.name(format!("{module}.{name}"))?;
            }
            0x93 => {
                let parts = self.popped(2)?;
                match (&self.memory[parts[0]], &self.memory[parts[1]]) {
                    (Object::Text(module), Object::Text(name)) => {
                        let name = format!("{module}.{name}");
                        self.name(name)?;
                    }
                    _ => return Err("its pickle names what is no text".into()),
                }
            }
            b')' => self.push(Object::Tuple(Vec::new())),
            code @ 0x85..=0x87 => {
                let items = self.popped(usize::from(code) - 0x84)?;
                self.push(Object::Tuple(items));
            }
            b't' => {
                let items = self.since_mark()?;
                self.push(Object::Tuple(items));
            }
            b']' => self.push(Object::List(Vec::new())),
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.append(&items)?;
            }
            b'}' => self.push(Object::Dict(Vec::new())),
            b's' => {
                let pair = self.popped(2)?;
                self.set(&pair)?;
            }
            b'u' => {
                let pairs = self.since_mark()?;
                self.set(&pairs)?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Object::Storage(id));
            }
            b'R' | 0x81 => {
                let parts = self.popped(2)?;
                let ordered = matches!(&self.memory[parts[0]], Object::Name(n) if n == "collections.OrderedDict");
                self.push(if ordered { Object::Dict(Vec::new()) } else { Object::Call(parts[0], parts[1]) });
            }
            // State of an object, such as the version numbers of a state dictionary.
            b'b' => drop(self.pop()?),
            b'q' => {
                let (at, id) = (self.byte()?.into(), self.top()?);
                self.memo.insert(at, id);
            }
            b'r' => {
                let (at, id) = (self.word()?, self.top()?);
                self.memo.insert(at, id);
            }
            0x94 => {
                let (at, id) = (self.memo.len() as u32, self.top()?);
                self.memo.insert(at, id);
            }
            b'h' => {
                let at = self.byte()?.into();
                self.recall(at)?;
            }
            b'j' => {
                let at = self.word()?;
                self.recall(at)?;
            }
            code => return Err(format!("its pickle has the instruction {code:#04x}, which no tensor needs")),
        }
        Ok(false)
    }

    fn recall(&mut self, at: u32) -> Result<(), String> {
        let id = *self.memo.get(&at).ok_or("its pickle recalls what it never kept")?;
        self.stack.push(id);
        Ok(())
    }

    fn tuple(&self, id: Id) -> Option<&[Id]> {
        if let Object::Tuple(items) = &self.memory[id] { Some(items) } else { None }
    }

    fn number(&self, id: Id) -> Option<u64> {
        if let Object::Number(n) = self.memory[id] { u64::try_from(n).ok() } else { None }
    }

    fn said(&self, id: Id) -> Option<&str> {
        if let Object::Text(text) | Object::Name(text) = &self.memory[id] { Some(text) } else { None }
    }

    /// A tensor: its type, the member with its storage, where in it, and its shape.
    fn tensor(&self, id: Id) -> Option<(Option<DType>, String, u64, Vec<usize>)> {
        let Object::Call(name, arguments) = self.memory[id] else { return None };
        let arguments = self.tuple(arguments)?;
        match self.said(name)? {
            "torch._utils._rebuild_parameter" => {
                // A parameter holds a tensor, and no further one.
                let inner = *arguments.first()?;
                let Object::Call(name, _) = self.memory[inner] else { return None };
                if self.said(name)? == "torch._utils._rebuild_tensor_v2" { self.tensor(inner) } else { None }
            }
            "torch._utils._rebuild_tensor_v2" => {
                let [storage, offset, shape, stride, ..] = *arguments else { return None };
                let Object::Storage(storage) = self.memory[storage] else { return None };
                let [_, kind, key, ..] = *self.tuple(storage)? else { return None };
                let dtype = match self.said(kind)?.strip_prefix("torch.")? {
                    "FloatStorage" => Some(DType::F32),
                    "DoubleStorage" => Some(DType::F64),
                    "HalfStorage" => Some(DType::F16),
                    "BFloat16Storage" => Some(DType::BF16),
                    "LongStorage" => Some(DType::I64),
                    "ByteStorage" => Some(DType::U8),
                    "BoolStorage" => None,
                    _ => return None,
                };
                let sizes = |id: Id| self.tuple(id)?.iter().map(|n| self.number(*n)).collect::<Option<Vec<u64>>>();
                let (shape, stride) = (sizes(shape)?, sizes(stride)?);
                let mut dense = 1u64;
                for (size, stride) in shape.iter().zip(&stride).rev() {
                    if *size != 1 && *stride != dense {
                        return None;
                    }
                    dense = dense.checked_mul(*size)?;
                }
                let shape = shape.iter().map(|n| usize::try_from(*n).ok()).collect::<Option<_>>()?;
                Some((dtype, self.said(key)?.to_string(), self.number(offset)?, shape))
            }
            _ => None,
        }
    }
}

/// The longest pickle that is read, in bytes: an index has a few hundred a tensor.
const LONGEST: u64 = 1 << 24;

/// Reads the index of tensors; a dictionary may hold them under `state_dict` or `model`.
pub(super) fn tensors(path: &Path) -> Result<Vec<Entry>, Error> {
    let members = archive::members(path)?;
    let mut programs = members.keys().filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let (Some(program), None) = (programs.next(), programs.next()) else {
        return Err(Error::file(path, "is a zip archive without one data.pkl; torch.save writes one"));
    };
    let root = program.strip_suffix("data.pkl").unwrap_or_default();
    if let Some(order) = members.get(&format!("{root}byteorder"))
        && archive::read(path, *order)? != b"little"
    {
        return Err(Error::file(path, "holds big-endian numbers; save it on a little-endian machine"));
    }
    if members[program].bytes > LONGEST {
        return Err(Error::file(path, format!("has a pickle of {} bytes, which is no index", members[program].bytes)));
    }
    let code = archive::read(path, members[program])?;
    let mut machine = Machine { code: &code, memory: Vec::new(), stack: Vec::new(), memo: BTreeMap::new() };
    let named = |what: String| Error::file(path, what);
    while !machine.step().map_err(named)? {}
    let top = machine.pop().map_err(named)?;
    let Object::Dict(mut pairs) = machine.memory[top].clone() else {
        return Err(named("its pickle holds no dictionary of tensors".into()));
    };
    let inner = |(key, value): &(Id, Id)| match &machine.memory[*value] {
        Object::Dict(inner) if matches!(machine.said(*key), Some("state_dict" | "model")) => Some(inner.clone()),
        _ => None,
    };
    if let Some(inner) = pairs.iter().find_map(inner) {
        pairs = inner;
    }
    let mut out = Vec::new();
    for (key, value) in pairs {
        let name = machine.said(key).ok_or_else(|| named("its dictionary has a key that is no text".into()))?;
        let (dtype, member, offset, shape) = machine.tensor(value).ok_or_else(|| {
            named(format!("`{name}` is no contiguous tensor of a type that is known; save the state_dict alone"))
        })?;
        let storage = members
            .get(&format!("{root}data/{member}"))
            .ok_or_else(|| named(format!("lacks the numbers of `{name}`")))?;
        let size = dtype.map_or(1, |d| d.size_in_bytes()) as u64;
        let count = shape.iter().try_fold(size, |n, d| n.checked_mul(*d as u64));
        let within = |bytes: u64| {
            let from = offset.checked_mul(size)?;
            (from.checked_add(bytes)? <= storage.bytes).then_some((storage.offset.checked_add(from)?, bytes))
        };
        let (offset, bytes) = count.and_then(within).ok_or_else(|| {
            named(format!("has the tensor `{name}` of shape {shape:?}, which its storage does not hold"))
        })?;
        out.push(Entry { name: name.to_string(), shape, dtype, offset, bytes });
    }
    Ok(out)
}
