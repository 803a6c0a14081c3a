//! The arrays of numpy's `.npz`, stored or compressed, in C or Fortran order.

use candle_core::DType;

use super::archive::{self, Member};
use super::files::{Found, Layout, Start};
use super::source::Source;
use lipschitz_nn::Error;

/// The longest header of an array that is read.
const LONGEST: u64 = 1 << 16;

/// The arrays of a `.npz`, in the order of the archive, which is the order in which `numpy.savez`
/// was given them.
pub(crate) fn arrays(source: &Source, members: Vec<Member>) -> Result<Vec<Found>, Error> {
    let mut out = Vec::new();
    for member in members {
        let start = archive::start(source, &member, LONGEST)?;
        let name = member.name.strip_suffix(".npy").unwrap_or(&member.name).to_string();
        let header = header(&start)
            .map_err(|what| source.wrong(format!("has the member `{name}`, which {what}")))?;
        let Header { dtype, kind, shape, fortran, size } = header;
        let count = member.bytes.saturating_sub(size);
        let layout = if fortran && shape.iter().filter(|n| **n > 1).count() > 1 {
            let mut stride = 1usize;
            let strides = shape.iter().map(|n| {
                let here = stride;
                stride = stride.saturating_mul(*n);
                here
            });
            Layout::Strided(strides.collect())
        } else {
            Layout::Dense
        };
        let start = if member.packed {
            Start::Member { name: member.name, skip: size }
        } else {
            Start::Offset(member.offset.saturating_add(size))
        };
        out.push(Found { name, shape, dtype, kind: kind.into(), start, count, layout });
    }
    Ok(out)
}

/// The header of an array, and where it ends.
fn header_text(bytes: &[u8]) -> Option<(&str, usize)> {
    let rest = bytes.strip_prefix(b"\x93NUMPY")?;
    let (size, start): (usize, usize) = match *rest.first()? {
        1 => (usize::from(u16::from_le_bytes(rest.get(2..4)?.try_into().ok()?)), 10),
        2 | 3 => (u32::from_le_bytes(rest.get(2..6)?.try_into().ok()?) as usize, 12),
        _ => return None,
    };
    let end = start.checked_add(size)?;
    Some((std::str::from_utf8(bytes.get(start..end)?).ok()?, end))
}

/// The pickle of an array of one Python object.
pub(crate) fn pickled(bytes: &[u8]) -> Option<&[u8]> {
    let (text, end) = header_text(bytes)?;
    text.contains("'|O'").then(|| &bytes[end..])
}

struct Header {
    dtype: Option<DType>,
    /// The type as numpy spells it.
    kind: String,
    shape: Vec<usize>,
    fortran: bool,
    /// Of the header itself, in bytes.
    size: u64,
}

fn header(bytes: &[u8]) -> Result<Header, String> {
    let none = || "is no array of numpy's".to_string();
    let (text, end) = header_text(bytes).ok_or_else(none)?;
    let after = |key: &str| {
        let (_, rest) = text.split_once(&format!("'{key}':")).ok_or_else(none)?;
        if rest.contains(&format!("'{key}':")) {
            return Err(format!("says `{key}` twice"));
        }
        Ok(rest.trim_start())
    };
    let order = after("fortran_order")?;
    let fortran = match (order.starts_with("True"), order.starts_with("False")) {
        (true, _) => true,
        (_, true) => false,
        _ => return Err(none()),
    };
    let kind = after("descr")?
        .strip_prefix('\'')
        .and_then(|rest| rest.split('\'').next())
        .ok_or("is an array of records, not of numbers")?
        .to_string();
    let dtype = match kind.as_str() {
        "<f2" => Some(DType::F16),
        "<f4" => Some(DType::F32),
        "<f8" => Some(DType::F64),
        "<i2" => Some(DType::I16),
        "<i4" => Some(DType::I32),
        "<i8" => Some(DType::I64),
        "<u4" => Some(DType::U32),
        "|u1" => Some(DType::U8),
        "|O" => {
            return Err("is an array of Python objects; nothing was run; save numbers".into());
        }
        other if other.starts_with('>') => {
            return Err("holds big-endian numbers; save it on a little-endian machine".into());
        }
        _ => None,
    };
    let shape =
        after("shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')')).ok_or_else(none)?.0;
    let sizes = shape.split(',').map(str::trim).filter(|s| !s.is_empty());
    let shape = sizes.map(|s| s.parse().map_err(|_| none())).collect::<Result<Vec<usize>, _>>()?;
    Ok(Header { dtype, kind, shape, fortran, size: end as u64 })
}
