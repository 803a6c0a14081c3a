//! Pickles. A pickle is a program; this machine knows the instructions that build numbers, texts,
//! lists and dictionaries, writes down calls in place of making them, and stops at the first name
//! that its caller does not know.

use std::collections::BTreeMap;

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
    /// Bytes.
    Other,
}

pub(crate) struct Machine<'a> {
    code: &'a [u8],
    known: fn(&str) -> bool,
    pub memory: Vec<Object>,
    stack: Vec<Id>,
    memo: BTreeMap<u32, Id>,
    /// The largest that the memo holds.
    remembered: Id,
    /// What was set on an object after it was made.
    pub states: BTreeMap<Id, Id>,
}

impl<'a> Machine<'a> {
    /// Runs a pickle to its end; what it leaves. `known` says which names it may use.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn run(code: &'a [u8], known: fn(&str) -> bool) -> Result<(Self, Id), String> {
        let (memory, stack, memo, states) =
            (Vec::new(), Vec::new(), BTreeMap::new(), BTreeMap::new());
        let mut machine = Self { code, known, memory, stack, memo, remembered: 0, states };
        while !machine.step()? {}
        let top = machine.pop()?;
        Ok((machine, top))
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
        let text = std::str::from_utf8(self.take(size)?)
            .map_err(|_| "its pickle has a text that is not UTF-8")?;
        self.push(Object::Text(text.to_string()));
        Ok(())
    }

    fn push(&mut self, object: Object) {
        self.memory.push(object);
        self.stack.push(self.memory.len() - 1);
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.stack.pop().ok_or_else(|| "its pickle weights from an empty stack".to_string())
    }

    fn top(&self) -> Result<Id, String> {
        self.stack
            .last()
            .copied()
            .ok_or_else(|| "its pickle weights from an empty stack".to_string())
    }

    fn popped(&mut self, count: usize) -> Result<Vec<Id>, String> {
        let at =
            self.stack.len().checked_sub(count).ok_or("its pickle weights from an empty stack")?;
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
            (Object::Dict(there), 0) => {
                there.extend(pairs.chunks(2).map(|pair| (pair[0], pair[1])))
            }
            _ => return Err("its pickle sets items of what is no dictionary".into()),
        }
        Ok(())
    }

    fn append(&mut self, items: &[Id]) -> Result<(), String> {
        let list = self.top()?;
        if let Some(floats) = self.floats(list, items) {
            match &mut self.memory[list] {
                Object::Floats(there) => there.extend(floats),
                there => *there = Object::Floats(floats),
            }
            return Ok(());
        }
        match &mut self.memory[list] {
            Object::List(there) => there.extend(items),
            _ => return Err("its pickle appends to what is no list".into()),
        }
        Ok(())
    }

    /// The items that are appended to a list, if it and they are floats alone; they leave the
    /// memory, so that a float weights eight bytes.
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
        self.memory.truncate(first);
        Some(floats)
    }

    fn remember(&mut self, at: u32) -> Result<(), String> {
        let id = self.top()?;
        self.remembered = self.remembered.max(id);
        self.memo.insert(at, id);
        Ok(())
    }

    fn name(&mut self, name: String) -> Result<(), String> {
        if !(self.known)(&name) {
            return Err(format!(
                "its pickle names `{name}`, which is no part of a tensor; nothing was run"
            ));
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
            0x88 => self.push(Object::Flag(true)),
            0x89 => self.push(Object::Flag(false)),
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
                let mut full =
                    [if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 }; 8];
                full[..size].copy_from_slice(bytes);
                self.push(Object::Number(i64::from_le_bytes(full)));
            }
            b'G' => {
                let bits = self.take(8)?.iter().fold(0u64, |bits, b| bits << 8 | u64::from(*b));
                self.push(Object::Float(f64::from_bits(bits)));
            }
            b'C' => {
                let size = self.byte()?.into();
                self.take(size)?;
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
                self.push(if self.said(parts[0]) == Some("collections.OrderedDict") {
                    Object::Dict(Vec::new())
                } else {
                    Object::Call(parts[0], parts[1])
                });
            }
            // State of an object, such as the version numbers of a state dictionary.
            b'b' => {
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

    fn recall(&mut self, at: u32) -> Result<(), String> {
        let id = *self.memo.get(&at).ok_or("its pickle recalls what it never kept")?;
        self.stack.push(id);
        Ok(())
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
}
