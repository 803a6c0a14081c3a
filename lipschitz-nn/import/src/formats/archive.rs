//! Zip archives: PyTorch's, and numpy's `.npz`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use candle_core::DType;
use zip::{CompressionMethod, ZipArchive};

use lipschitz_nn::checkpoint::Entry;
use lipschitz_nn::{At, Error};

/// Where the bytes of a member lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub offset: u64,
    pub bytes: u64,
}

/// The members of an archive by name. Compressed ones are refused: they could be any size once
/// unpacked.
pub(crate) fn members(path: &Path) -> Result<BTreeMap<String, Member>, Error> {
    let damaged =
        |e: &dyn std::fmt::Display| Error::file(path, format!("is not a whole zip archive: {e}"));
    let file = File::open(path).at(path)?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| damaged(&e))?;
    let mut out = BTreeMap::new();
    for i in 0..archive.len() {
        let member = archive.by_index_raw(i).map_err(|e| damaged(&e))?;
        let name = member.name().map_err(|e| damaged(&e))?.into_owned();
        if member.compression() != CompressionMethod::Stored || member.encrypted() {
            let what = format!(
                "has the compressed member `{name}`; save it uncompressed (numpy.savez, torch.save)"
            );
            return Err(Error::file(path, what));
        }
        let offset =
            member.data_start().ok_or_else(|| damaged(&format!("nothing is known of `{name}`")))?;
        out.insert(name, Member { offset, bytes: member.size() });
    }
    Ok(out)
}

/// The bytes of a member.
pub(crate) fn read(path: &Path, member: Member) -> Result<Vec<u8>, Error> {
    let mut file = File::open(path).at(path)?;
    if member.bytes > file.metadata().at(path)?.len() {
        return Err(Error::file(path, "has a member that is larger than the file"));
    }
    file.seek(SeekFrom::Start(member.offset)).at(path)?;
    let mut bytes = vec![0; member.bytes as usize];
    file.read_exact(&mut bytes).at(path)?;
    Ok(bytes)
}

/// Whether there is a member of this name.
pub(crate) fn has(path: &Path, name: &str) -> Result<bool, Error> {
    let damaged =
        |e: &dyn std::fmt::Display| Error::file(path, format!("is not a whole zip archive: {e}"));
    let file = File::open(path).at(path)?;
    let archive = ZipArchive::new(BufReader::new(file)).map_err(|e| damaged(&e))?;
    Ok(archive.index_for_name(name).is_some())
}

/// How much larger than its archive a member may be: what compresses better is no trained weight.
const LARGEST_RATIO: u64 = 64;

/// The bytes of a member that may be compressed.
pub(crate) fn unpack(path: &Path, name: &str) -> Result<Vec<u8>, Error> {
    let damaged =
        |e: &dyn std::fmt::Display| Error::file(path, format!("cannot unpack `{name}`: {e}"));
    let file = File::open(path).at(path)?;
    let limit = LARGEST_RATIO * file.metadata().at(path)?.len();
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| damaged(&e))?;
    let member = archive.by_name(name).map_err(|e| damaged(&e))?;
    let mut bytes = Vec::new();
    member.take(limit + 1).read_to_end(&mut bytes).map_err(|e| damaged(&e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::file(
            path,
            format!(
                "has the member `{name}`, which unpacks to over {LARGEST_RATIO} times the file"
            ),
        ));
    }
    Ok(bytes)
}

/// The longest header of an array that is read.
const LONGEST: u64 = 1 << 16;

/// The arrays of a `.npz`.
pub(crate) fn arrays(path: &Path) -> Result<Vec<Entry>, Error> {
    let mut out = Vec::new();
    for (name, member) in members(path)? {
        let start = read(path, Member { bytes: member.bytes.min(LONGEST), ..member })?;
        let name = name.strip_suffix(".npy").unwrap_or(&name).to_string();
        let (dtype, shape, size) = header(&start).ok_or_else(|| {
            Error::file(
                path,
                format!("has the member `{name}`, which is no array of numbers in C order"),
            )
        })?;
        let (offset, bytes) = (member.offset + size, member.bytes.saturating_sub(size));
        out.push(Entry { name, shape, dtype: Some(dtype), offset, bytes });
    }
    Ok(out)
}

/// The header of an array, and where it ends.
fn header_text(bytes: &[u8]) -> Option<(&str, usize)> {
    let rest = bytes.strip_prefix(b"\x93NUMPY")?;
    let (size, start) = match *rest.first()? {
        1 => (usize::from(u16::from_le_bytes(rest.get(2..4)?.try_into().ok()?)), 10),
        2 | 3 => (u32::from_le_bytes(rest.get(2..6)?.try_into().ok()?) as usize, 12),
        _ => return None,
    };
    Some((std::str::from_utf8(bytes.get(start..start + size)?).ok()?, start + size))
}

/// The pickle of an array of one Python object.
pub(crate) fn pickled(bytes: &[u8]) -> Option<&[u8]> {
    let (text, end) = header_text(bytes)?;
    text.contains("'|O'").then(|| &bytes[end..])
}

/// Type and shape of an array, and the size of its header in bytes.
fn header(bytes: &[u8]) -> Option<(DType, Vec<usize>, u64)> {
    let (text, end) = header_text(bytes)?;
    let after = |key: &str| Some(text.split_once(&format!("'{key}':"))?.1.trim_start());
    if !after("fortran_order")?.starts_with("False") {
        return None;
    }
    let dtype = match after("descr")?.strip_prefix('\'')?.split('\'').next()? {
        "<f2" => DType::F16,
        "<f4" => DType::F32,
        "<f8" => DType::F64,
        "<i8" => DType::I64,
        "|u1" => DType::U8,
        _ => return None,
    };
    let shape = after("shape")?.strip_prefix('(')?.split_once(')')?.0;
    let sizes = shape.split(',').map(str::trim).filter(|s| !s.is_empty());
    Some((dtype, sizes.map(|s| s.parse().ok()).collect::<Option<Vec<usize>>>()?, end as u64))
}
