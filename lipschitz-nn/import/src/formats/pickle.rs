//! Pickles. A pickle is a program; this machine knows the instructions that build numbers, texts,
//! lists and dictionaries, writes down calls in place of making them, and stops at the first name
//! that its caller does not know.
//!
//! An instruction of one byte can make a value of forty, so the machine has a limit on its memory.

use std::collections::BTreeMap;
use std::mem::{size_of, size_of_val};

use serde_json::{Map, Value};

/// A value, by its place in the machine's memory: values that contain each other need no care when
/// they are dropped.
pub(crate) type Id = usize;

#[derive(Clone, Debug)]
pub(crate) enum Object {
    None,
    Number(i64),
    Flag(bool),
    Float(f64),
    /// A list of floats alone, kept as such: a matrix has one per row.
    Floats(Vec<f64>),
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
    /// Bytes, sets, numbers of more than 64 bits.
    Other,
}

pub(crate) struct Machine<'a> {
    code: &'a [u8],
    known: fn(&str) -> bool,
    /// How many bytes of memory it may still take.
    room: usize,
    pub memory: Vec<Object>,
    stack: Vec<Id>,
    memo: BTreeMap<u32, Id>,
    /// The largest that the memo holds.
    remembered: Id,
    /// What was set on an object after it was made.
    pub states: BTreeMap<Id, Id>,
    /// The items of objects of unknown classes that are dictionaries too.
    items: BTreeMap<Id, Vec<(Id, Id)>>,
}

/// Memory that every pickle may take, in bytes.
const ENOUGH: usize = 1 << 22;

/// What a value costs besides what it owns: its place in memory, and one on the stack.
const VALUE: usize = size_of::<Object>() + size_of::<Id>();
/// What an entry of the machine's maps costs.
const ENTRY: usize = 32;

const EMPTY: &str = "its pickle takes from an empty stack";

impl<'a> Machine<'a> {
    /// Runs a pickle to its end; what it leaves. `known` says which names it may use, and it takes
    /// about `room` bytes of memory at the most, or a few MiB if that is more.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn run(
        code: &'a [u8],
        known: fn(&str) -> bool,
        room: usize,
    ) -> Result<(Self, Id), String> {
        let mut machine = Self {
            code,
            known,
            room: room.max(ENOUGH),
            memory: Vec::new(),
            stack: Vec::new(),
            memo: BTreeMap::new(),
            remembered: 0,
            states: BTreeMap::new(),
            items: BTreeMap::new(),
        };
        while !machine.step()? {}
        let top = machine.pop()?;
        Ok((machine, top))
    }

    /// The bytes behind the pickle that was run.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.code
    }

    fn spend(&mut self, bytes: usize) -> Result<(), String> {
        self.room = self
            .room
            .checked_sub(bytes)
            .ok_or("its pickle would take far more memory than it has bytes")?;
        Ok(())
    }

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
        // Lone surrogates are no UTF-8, and in no name of a tensor.
        let text = String::from_utf8_lossy(self.take(size)?).into_owned();
        self.push(Object::Text(text))
    }

    /// Bytes, of which nothing is kept.
    fn skip(&mut self, size: usize) -> Result<(), String> {
        self.take(size)?;
        self.push(Object::Other)
    }

    fn long(&mut self) -> Result<usize, String> {
        let size = self.take(8)?.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        usize::try_from(size).map_err(|_| "its pickle is truncated".into())
    }

    /// A whole number of so many bytes.
    fn integer(&mut self, size: usize) -> Result<(), String> {
        let bytes = self.take(size)?;
        if size > 8 {
            return self.push(Object::Other);
        }
        let mut full = [if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 }; 8];
        full[..size].copy_from_slice(bytes);
        self.push(Object::Number(i64::from_le_bytes(full)))
    }

    fn push(&mut self, object: Object) -> Result<(), String> {
        let owned = match &object {
            Object::Text(text) | Object::Name(text) => text.capacity(),
            Object::Tuple(items) | Object::List(items) => items.capacity() * size_of::<Id>(),
            Object::Dict(pairs) => pairs.capacity() * size_of::<(Id, Id)>(),
            _ => 0,
        };
        self.spend(VALUE + owned)?;
        self.memory.push(object);
        self.stack.push(self.memory.len() - 1);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.stack.pop().ok_or_else(|| EMPTY.to_string())
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| EMPTY.to_string())
    }

    fn popped<const N: usize>(&mut self) -> Result<[Id; N], String> {
        let mut out = [0; N];
        for id in out.iter_mut().rev() {
            *id = self.pop()?;
        }
        Ok(out)
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, String> {
        let at = self.stack.iter().rposition(|id| matches!(self.memory[*id], Object::Mark));
        let at = at.ok_or("its pickle lacks a mark")?;
        let out = self.stack.split_off(at + 1);
        self.stack.pop();
        Ok(out)
    }

    fn set(&mut self, pairs: &[Id]) -> Result<(), String> {
        self.spend(size_of_val(pairs))?;
        let target = self.top()?;
        let (pairs, []) = pairs.as_chunks::<2>() else {
            return Err("its pickle sets a key without a value".into());
        };
        let pairs = pairs.iter().map(|[key, value]| (*key, *value));
        match &mut self.memory[target] {
            Object::Dict(there) => there.extend(pairs),
            Object::Call(..) => self.items.entry(target).or_default().extend(pairs),
            _ => return Err("its pickle sets items of what is no dictionary".into()),
        }
        Ok(())
    }

    fn append(&mut self, items: &[Id]) -> Result<(), String> {
        let list = self.top()?;
        if let Some(floats) = self.floats(list, items) {
            self.room += floats.len() * VALUE;
            self.spend(floats.len() * size_of::<f64>())?;
            match &mut self.memory[list] {
                Object::Floats(there) => there.extend(floats),
                there => *there = Object::Floats(floats),
            }
            return Ok(());
        }
        self.spend(size_of_val(items))?;
        match &mut self.memory[list] {
            Object::List(there) => there.extend(items),
            // Of an object of an unknown class, or a set: nothing reads them.
            Object::Call(..) | Object::Other => {}
            _ => return Err("its pickle appends to what is no list".into()),
        }
        Ok(())
    }

    /// The items that are appended to a list, if it and they are floats alone; they leave the
    /// memory, so that a float takes eight bytes.
    fn floats(&mut self, list: Id, items: &[Id]) -> Option<Vec<f64>> {
        let fits = match &self.memory[list] {
            Object::List(there) => there.is_empty(),
            Object::Floats(_) => true,
            _ => false,
        };
        let first = *items.first()?;
        // The last that were made, with nothing between, and nothing remembers them: then nothing
        // else can refer to them.
        let last = items.iter().enumerate().all(|(i, id)| *id == first + i)
            && first + items.len() == self.memory.len();
        if !fits || !last || self.remembered >= first || list >= first {
            return None;
        }
        let float = |id: &Id| if let Object::Float(x) = self.memory[*id] { Some(x) } else { None };
        let floats = items.iter().map(float).collect::<Option<Vec<f64>>>()?;
        // One that was doubled is still on the stack.
        if self.stack.iter().rev().take_while(|id| **id != list).any(|id| *id >= first) {
            return None;
        }
        self.memory.truncate(first);
        Some(floats)
    }

    fn remember(&mut self, at: u32) -> Result<(), String> {
        self.spend(ENTRY)?;
        let id = self.top()?;
        self.remembered = self.remembered.max(id);
        self.memo.insert(at, id);
        Ok(())
    }

    fn recall(&mut self, at: u32) -> Result<(), String> {
        let id = *self.memo.get(&at).ok_or("its pickle recalls what it never kept")?;
        self.again(id)
    }

    /// What there is already, once more.
    fn again(&mut self, id: Id) -> Result<(), String> {
        self.spend(size_of::<Id>())?;
        // From now on a second place may refer to it.
        self.remembered = self.remembered.max(id);
        self.stack.push(id);
        Ok(())
    }

    fn name(&mut self, name: String) -> Result<(), String> {
        if !(self.known)(&name) {
            return Err(format!(
                "its pickle names `{name}`, which is no part of a tensor; nothing was run"
            ));
        }
        self.push(Object::Name(name))
    }

    /// Writes a call down; one of a dictionary's class is a dictionary.
    fn call(&mut self, callee: Id, arguments: Id) -> Result<(), String> {
        let dict = matches!(
            self.said(callee),
            Some("collections.OrderedDict" | "collections.defaultdict" | "builtins.dict")
        );
        // A dictionary may be given its items in the call; that is read as an unknown object.
        let empty = |id: &Id| !matches!(self.memory[*id], Object::Dict(_) | Object::List(_));
        let dict = dict && self.tuple(arguments).is_none_or(|items| items.iter().all(empty));
        self.push(if dict { Object::Dict(Vec::new()) } else { Object::Call(callee, arguments) })
    }

    /// One instruction; true at the end.
    fn step(&mut self) -> Result<bool, String> {
        match self.byte()? {
            0x80 => drop(self.byte()?),
            // A frame says how long it is, and changes nothing.
            0x95 => drop(self.take(8)?),
            b'.' => return Ok(true),
            b'(' => self.push(Object::Mark)?,
            b'N' => self.push(Object::None)?,
            0x88 => self.push(Object::Flag(true))?,
            0x89 => self.push(Object::Flag(false))?,
            b'0' => drop(self.pop()?),
            b'1' => drop(self.since_mark()?),
            b'2' => {
                let top = self.top()?;
                self.again(top)?;
            }
            b'K' => self.unsigned(1)?,
            b'M' => self.unsigned(2)?,
            b'J' => self.integer(4)?,
            0x8a => {
                let size = self.byte()?.into();
                self.integer(size)?;
            }
            0x8b => {
                let size = self.word()? as usize;
                self.integer(size)?;
            }
            b'G' => {
                let bits = self.take(8)?.iter().fold(0u64, |bits, b| bits << 8 | u64::from(*b));
                self.push(Object::Float(f64::from_bits(bits)))?;
            }
            b'C' | b'U' => {
                let size = self.byte()?.into();
                self.skip(size)?;
            }
            b'B' | b'T' => {
                let size = self.word()? as usize;
                self.skip(size)?;
            }
            0x8e | 0x96 => {
                let size = self.long()?;
                self.skip(size)?;
            }
            b'X' => {
                let size = self.word()? as usize;
                self.text(size)?;
            }
            0x8c => {
                let size = self.byte()?.into();
                self.text(size)?;
            }
            0x8d => {
                let size = self.long()?;
                self.text(size)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.name(format!("{module}.{name}"))?;
            }
            0x93 => {
                let [module, name] = self.popped()?;
                match (&self.memory[module], &self.memory[name]) {
                    (Object::Text(module), Object::Text(name)) => {
                        let name = format!("{module}.{name}");
                        self.name(name)?;
                    }
                    _ => return Err("its pickle names what is no text".into()),
                }
            }
            b')' => self.push(Object::Tuple(Vec::new()))?,
            0x85 => {
                let items = self.popped::<1>()?;
                self.push(Object::Tuple(items.to_vec()))?;
            }
            0x86 => {
                let items = self.popped::<2>()?;
                self.push(Object::Tuple(items.to_vec()))?;
            }
            0x87 => {
                let items = self.popped::<3>()?;
                self.push(Object::Tuple(items.to_vec()))?;
            }
            b't' => {
                let items = self.since_mark()?;
                self.push(Object::Tuple(items))?;
            }
            b']' => self.push(Object::List(Vec::new()))?,
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.append(&items)?;
            }
            b'}' => self.push(Object::Dict(Vec::new()))?,
            b's' => {
                let pair = self.popped::<2>()?;
                self.set(&pair)?;
            }
            b'u' => {
                let pairs = self.since_mark()?;
                self.set(&pairs)?;
            }
            // Sets: an empty one, more of it, a frozen one.
            0x8f => self.push(Object::Other)?,
            0x90 => drop(self.since_mark()?),
            0x91 => {
                self.since_mark()?;
                self.push(Object::Other)?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Object::Storage(id))?;
            }
            b'R' | 0x81 => {
                let [callee, arguments] = self.popped()?;
                self.call(callee, arguments)?;
            }
            // With arguments by name.
            0x92 => {
                let [callee, arguments, _] = self.popped()?;
                self.push(Object::Call(callee, arguments))?;
            }
            // State of an object, such as the version numbers of a state dictionary.
            b'b' => {
                self.spend(ENTRY)?;
                let (state, object) = (self.pop()?, self.top()?);
                self.states.insert(object, state);
            }
            b'q' => {
                let at = self.byte()?.into();
                self.remember(at)?;
            }
            b'r' => {
                let at = self.word()?;
                self.remember(at)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let at = self.byte()?.into();
                self.recall(at)?;
            }
            b'j' => {
                let at = self.word()?;
                self.recall(at)?;
            }
            code => {
                return Err(format!(
                    "its pickle has the instruction {code:#04x}, which no tensor needs"
                ));
            }
        }
        Ok(false)
    }

    /// A whole number of so many bytes, none of which is a sign.
    fn unsigned(&mut self, size: usize) -> Result<(), String> {
        let n = self.take(size)?.iter().rev().fold(0i64, |n, b| n << 8 | i64::from(*b));
        self.push(Object::Number(n))
    }

    /// The items of a tuple.
    pub(crate) fn tuple(&self, id: Id) -> Option<&[Id]> {
        if let Object::Tuple(items) = &self.memory[id] { Some(items) } else { None }
    }

    /// A whole number that is not negative.
    pub(crate) fn number(&self, id: Id) -> Option<u64> {
        if let Object::Number(n) = self.memory[id] { u64::try_from(n).ok() } else { None }
    }

    /// A text or a name.
    pub(crate) fn said(&self, id: Id) -> Option<&str> {
        if let Object::Text(text) | Object::Name(text) = &self.memory[id] {
            Some(text)
        } else {
            None
        }
    }

    /// What is called, of a call that was written down.
    pub(crate) fn callee(&self, id: Id) -> Option<&str> {
        if let Object::Call(callee, _) = self.memory[id] { self.said(callee) } else { None }
    }

    /// A value in words, for messages.
    pub(crate) fn describe(&self, id: Id) -> String {
        match &self.memory[id] {
            Object::None => "None".into(),
            Object::Number(_) | Object::Float(_) => "a number".into(),
            Object::Flag(_) => "a truth value".into(),
            Object::Text(_) => "a text".into(),
            Object::Name(name) => format!("the name `{name}`"),
            Object::Tuple(_) => "a tuple".into(),
            Object::List(_) | Object::Floats(_) => "a list".into(),
            Object::Dict(_) => "a dictionary".into(),
            Object::Storage(_) => "a storage".into(),
            Object::Call(callee, _) => {
                format!("an object of `{}`", self.said(*callee).unwrap_or("an unknown class"))
            }
            Object::Mark | Object::Other => "bytes".into(),
        }
    }

    /// Plain data as JSON: an object of an unknown class as what it was given after it was made, or
    /// as its name. `room` is how many bytes of it may be made: what contains one list many times
    /// over could be larger than any memory.
    pub(crate) fn plain(&self, id: Id, room: &mut usize) -> Option<Value> {
        self.nested(id, room, 64)
    }

    fn nested(&self, id: Id, room: &mut usize, depth: usize) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        let mut spend = |bytes: usize| {
            *room = room.checked_sub(bytes + 2 * size_of::<Value>())?;
            Some(())
        };
        spend(0)?;
        Some(match &self.memory[id] {
            Object::None => Value::Null,
            Object::Flag(flag) => (*flag).into(),
            Object::Number(n) => (*n).into(),
            // JSON has neither infinity nor NaN.
            Object::Float(x) if !x.is_finite() => x.to_string().into(),
            Object::Float(x) => (*x).into(),
            Object::Floats(all) => {
                spend(all.len().checked_mul(size_of::<Value>())?)?;
                all.clone().into()
            }
            Object::Text(text) | Object::Name(text) => {
                spend(text.len())?;
                text.clone().into()
            }
            Object::List(items) | Object::Tuple(items) => {
                let items = items.iter().map(|id| self.nested(*id, room, depth));
                items.collect::<Option<Vec<_>>>()?.into()
            }
            Object::Dict(pairs) => self.object(pairs, room, depth)?,
            Object::Call(callee, _) => match (self.items.get(&id), self.states.get(&id)) {
                (Some(pairs), _) => self.object(pairs, room, depth)?,
                (None, Some(state)) => self.nested(*state, room, depth)?,
                (None, None) => self.nested(*callee, room, depth)?,
            },
            Object::Storage(_) | Object::Mark | Object::Other => "bytes".into(),
        })
    }

    fn object(&self, pairs: &[(Id, Id)], room: &mut usize, depth: usize) -> Option<Value> {
        let mut out = Map::new();
        for (key, item) in pairs {
            let key = match &self.memory[*key] {
                Object::Text(text) => text.clone(),
                Object::Number(n) => n.to_string(),
                _ => return None,
            };
            *room = room.checked_sub(key.len())?;
            out.insert(key, self.nested(*item, room, depth)?);
        }
        Some(Value::Object(out))
    }
}
