//! GGUF, the files of llama.cpp: metadata, an index of tensors, then the tensors, many of them
//! quantised in blocks. Versions 2 and 3, which differ in nothing here.
//!
//! Source: the specification of GGUF in the repository of ggml.

use std::borrow::Cow;
use std::io::{BufReader, Read};

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use serde_json::{Map, Value};

use super::files::{Found, Layout, Start};
use super::source::Source;
use lipschitz_nn::Error;

/// What a file holds.
pub(crate) struct Contents {
    /// By key, such as `llama.block_count`. What is too long to keep, such as a vocabulary, is a text
    /// that says so.
    pub metadata: Map<String, Value>,
    /// In the order of the file.
    pub tensors: Vec<Found>,
}

/// Keys, and tensors, that a file may have whatever its size.
const FEW: u64 = 1 << 16;
/// The longest key or name, in bytes.
const LONGEST_NAME: u64 = (1 << 16) - 1;
/// The longest text, in bytes, and the longest array that are kept.
const KEPT: u64 = 1 << 12;
/// How many values, and bytes of texts, are kept in all.
const ROOM: usize = 1 << 20;

/// The type of a tensor: its name, and how its numbers lie, where that is known.
#[derive(Clone, Copy)]
enum Type {
    /// Numbers one by one: itself if weights can have it, and its size in bytes.
    Plain(&'static str, Option<DType>, u64),
    Blocks(&'static str, GgmlDType),
    /// Known, and not read.
    Other(&'static str),
}

fn numbers_of(kind: u32) -> Option<Type> {
    use GgmlDType as G;
    Some(match kind {
        0 => Type::Plain("F32", Some(DType::F32), 4),
        1 => Type::Plain("F16", Some(DType::F16), 2),
        30 => Type::Plain("BF16", Some(DType::BF16), 2),
        28 => Type::Plain("F64", Some(DType::F64), 8),
        24 => Type::Plain("I8", None, 1),
        25 => Type::Plain("I16", None, 2),
        26 => Type::Plain("I32", None, 4),
        27 => Type::Plain("I64", Some(DType::I64), 8),
        2 => Type::Blocks("Q4_0", G::Q4_0),
        3 => Type::Blocks("Q4_1", G::Q4_1),
        6 => Type::Blocks("Q5_0", G::Q5_0),
        7 => Type::Blocks("Q5_1", G::Q5_1),
        8 => Type::Blocks("Q8_0", G::Q8_0),
        10 => Type::Blocks("Q2_K", G::Q2K),
        11 => Type::Blocks("Q3_K", G::Q3K),
        12 => Type::Blocks("Q4_K", G::Q4K),
        13 => Type::Blocks("Q5_K", G::Q5K),
        14 => Type::Blocks("Q6_K", G::Q6K),
        9 => Type::Other("Q8_1"),
        15 => Type::Other("Q8_K"),
        16 => Type::Other("IQ2_XXS"),
        17 => Type::Other("IQ2_XS"),
        18 => Type::Other("IQ3_XXS"),
        19 => Type::Other("IQ1_S"),
        20 => Type::Other("IQ4_NL"),
        21 => Type::Other("IQ3_S"),
        22 => Type::Other("IQ2_S"),
        23 => Type::Other("IQ4_XS"),
        29 => Type::Other("IQ1_M"),
        34 => Type::Other("TQ1_0"),
        35 => Type::Other("TQ2_0"),
        39 => Type::Other("MXFP4"),
        _ => return None,
    })
}

/// Reads numbers one behind the other, none behind the end of the file.
struct Cursor<'a, R> {
    source: &'a Source,
    reader: R,
    at: u64,
    /// What may still be kept of metadata.
    room: usize,
}

impl<R: Read> Cursor<'_, R> {
    fn left(&self) -> u64 {
        self.source.length().saturating_sub(self.at)
    }

    fn wrong(&self, what: &str) -> Error {
        self.source.wrong(format!("is no whole GGUF file: {what}; fetch it again"))
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        if self.reader.read_exact(&mut bytes).is_err() {
            return Err(self.wrong("it ends in its header"));
        }
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        self.number().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Error> {
        self.number().map(u64::from_le_bytes)
    }

    fn skip(&mut self, count: u64) -> Result<(), Error> {
        if count > self.left() {
            return Err(self.wrong("it ends in its header"));
        }
        let skipped = std::io::copy(&mut (&mut self.reader).take(count), &mut std::io::sink());
        if skipped.ok() != Some(count) {
            return Err(self.wrong("it ends in its header"));
        }
        self.at += count;
        Ok(())
    }

    /// A text of no more than `most` bytes; a longer one is passed over.
    fn text(&mut self, most: u64) -> Result<Option<String>, Error> {
        let count = self.u64()?;
        if count > most {
            self.skip(count)?;
            return Ok(None);
        }
        if count > self.left() {
            return Err(self.wrong("it ends in its header"));
        }
        let mut bytes = vec![0; count as usize];
        if self.reader.read_exact(&mut bytes).is_err() {
            return Err(self.wrong("it ends in its header"));
        }
        self.at += count;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn name(&mut self) -> Result<String, Error> {
        self.text(LONGEST_NAME)?.ok_or_else(|| self.wrong("a name has more than 65535 bytes"))
    }

    /// A value of metadata of this type.
    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, Error> {
        Ok(match kind {
            0 => self.number::<1>()?[0].into(),
            1 => i8::from_le_bytes(self.number()?).into(),
            2 => u16::from_le_bytes(self.number()?).into(),
            3 => i16::from_le_bytes(self.number()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.number()?).into(),
            6 => float(f64::from(f32::from_le_bytes(self.number()?))),
            7 => (self.number::<1>()?[0] != 0).into(),
            8 => match self.text(KEPT)? {
                Some(text) if text.len() <= self.room => {
                    self.room -= text.len();
                    text.into()
                }
                _ => "(a long text)".into(),
            },
            9 => self.array(depth)?,
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.number()?).into(),
            12 => float(f64::from_le_bytes(self.number()?)),
            other => return Err(self.wrong(&format!("its metadata has a value of type {other}"))),
        })
    }

    fn array(&mut self, depth: usize) -> Result<Value, Error> {
        let (kind, count) = (self.u32()?, self.u64()?);
        // The least that a value has: a text or an array its length.
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 if depth > 0 => 12,
            other => return Err(self.wrong(&format!("its metadata has an array of type {other}"))),
        };
        if count.checked_mul(least).is_none_or(|bytes| bytes > self.left()) {
            return Err(self.wrong("it ends in its header"));
        }
        let cost = (count as usize).saturating_mul(size_of::<Value>());
        if count <= KEPT && cost <= self.room {
            self.room -= cost;
            let values = (0..count).map(|_| self.value(kind, depth.saturating_sub(1)));
            return Ok(values.collect::<Result<Vec<_>, Error>>()?.into());
        }
        match kind {
            8 => (0..count).try_for_each(|_| self.text(0).map(drop))?,
            9 => (0..count).try_for_each(|_| self.array(depth - 1).map(drop))?,
            _ => self.skip(count * least)?,
        }
        Ok(format!("(an array of {count})").into())
    }
}

/// JSON has neither infinity nor NaN; they are texts, so that nobody takes them for nothing.
fn float(x: f64) -> Value {
    if x.is_finite() { x.into() } else { x.to_string().into() }
}

/// Reads metadata and index of a file.
pub(crate) fn read(source: &Source) -> Result<Contents, Error> {
    let file = source.at(0)?;
    let reader = BufReader::new(&*file);
    let mut cursor = Cursor { source, reader, at: 0, room: ROOM };
    cursor.number::<4>()?;
    let version = cursor.u32()?;
    match version {
        2 | 3 => {}
        _ if version & 0xffff == 0 => {
            return Err(source.wrong("is a big-endian GGUF file; convert it to little-endian"));
        }
        _ => {
            let what = format!("is a GGUF file of version {version}, known are 2 and 3");
            return Err(source.wrong(format!("{what}; convert it again")));
        }
    }
    let (tensors, keys) = (cursor.u64()?, cursor.u64()?);
    if keys > FEW || tensors > FEW.max(source.length() / 256) {
        return Err(cursor.wrong(&format!("it says {tensors} tensors and {keys} keys")));
    }
    let mut metadata = Map::new();
    for _ in 0..keys {
        let key = cursor.name()?;
        let kind = cursor.u32()?;
        let value = cursor.value(kind, 2)?;
        if metadata.contains_key(&key) {
            return Err(cursor.wrong(&format!("it has the key `{key}` twice")));
        }
        metadata.insert(key, value);
    }
    let mut index = Vec::new();
    for _ in 0..tensors {
        let name = cursor.name()?;
        let axes = cursor.u32()?;
        if axes > 8 {
            return Err(cursor.wrong(&format!("`{name}` has {axes} axes")));
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            let size = cursor.u64()?;
            shape.push(usize::try_from(size).map_err(|_| cursor.wrong("a size is too large"))?);
        }
        // The file begins with the axis whose elements are neighbours.
        shape.reverse();
        index.push((name, shape, cursor.u32()?, cursor.u64()?));
    }
    let align = match metadata.get("general.alignment") {
        None => 32,
        Some(n) => match n.as_u64() {
            Some(n) if n.is_power_of_two() && n <= 1 << 20 => n,
            _ => return Err(cursor.wrong(&format!("its alignment is {n}"))),
        },
    };
    let data = cursor.at.next_multiple_of(align);
    source.check(&file)?;
    drop(file);
    let tensors = index
        .into_iter()
        .map(|(name, shape, kind, offset)| {
            let start = data.checked_add(offset).filter(|_| offset % align == 0);
            let start = start.ok_or_else(|| {
                source.wrong(format!("is no whole GGUF file: `{name}` begins at {offset}"))
            })?;
            found(name, shape, kind, start).map_err(|what| source.wrong(what))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    Ok(Contents { metadata, tensors })
}

/// A tensor of the index, which begins at `start` in the file.
fn found(name: String, shape: Vec<usize>, kind: u32, start: u64) -> Result<Found, String> {
    let large = || format!("has the tensor `{name}` of shape {shape:?}, which no file holds");
    let elements =
        shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64)).ok_or_else(large)?;
    let kind = numbers_of(kind)
        .ok_or_else(|| format!("has the tensor `{name}` of the type {kind}, which is not known"))?;
    let (kind, dtype, count, layout) = match kind {
        Type::Plain(kind, dtype, size) => {
            (kind, dtype, elements.checked_mul(size).ok_or_else(large)?, Layout::Dense)
        }
        Type::Blocks(kind, blocks) => {
            let (each, size) = (blocks.block_size() as u64, blocks.type_size() as u64);
            // A block lies within a row.
            if shape.last().is_none_or(|width| !(*width as u64).is_multiple_of(each)) {
                return Err(format!(
                    "has the tensor `{name}` of shape {shape:?}, whose rows are no blocks of {each}"
                ));
            }
            let count = (elements / each).checked_mul(size).ok_or_else(large)?;
            (kind, Some(DType::F32), count, Layout::Blocks(blocks))
        }
        Type::Other(kind) => (kind, None, 0, Layout::Dense),
    };
    Ok(Found {
        name,
        shape,
        dtype,
        kind: Cow::Borrowed(kind),
        start: Start::Offset(start),
        count,
        layout,
    })
}
