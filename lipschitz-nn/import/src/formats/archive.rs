//! Zip archives: PyTorch's, and numpy's `.npz`. An archive is not trusted: what it unpacks to and
//! how many members it has are bounded by its size.

use std::fs::File;
use std::io::{BufReader, Read};

use zip::{CompressionMethod, ZipArchive};

use super::source::Source;
use lipschitz_nn::Error;

/// A member, and where its bytes lie.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub name: String,
    /// Where it begins in the file.
    pub offset: u64,
    /// How many bytes it has, unpacked; of a compressed one, as the archive says.
    pub bytes: u64,
    pub packed: bool,
}

fn damaged(source: &Source, e: &dyn std::fmt::Display) -> Error {
    source.wrong(format!("is not a whole zip archive: {e}; fetch it again"))
}

/// Members that an archive may have whatever its size.
const FEW: u64 = 1 << 16;

/// Compressed members that an archive may have.
const MOST_PACKED: usize = 4096;

fn archive<'a>(source: &Source, file: &'a File) -> Result<ZipArchive<BufReader<&'a File>>, Error> {
    ZipArchive::new(BufReader::new(file)).map_err(|e| damaged(source, &e))
}

/// Fails if the archive's end says more members than its size bears. An entry of the directory
/// takes more memory than it has bytes.
fn check_count(source: &Source) -> Result<(), Error> {
    let end = source.end(FEW + 98)?;
    // What locates the end record of a large archive.
    for at in end.windows(4).enumerate().filter(|(_, w)| w == b"PK\x06\x07").map(|(at, _)| at) {
        let number = |bytes: &[u8]| Some(u64::from_le_bytes(bytes.try_into().ok()?));
        let Some(record) = end.get(at + 8..at + 16).and_then(number) else { continue };
        let Ok(record) = source.bytes(record, 56) else { continue };
        let count = record.get(32..40).and_then(number).unwrap_or_default();
        if record.starts_with(b"PK\x06\x06") && count > FEW.max(source.length() / 256) {
            let length = source.length();
            return Err(source.wrong(format!("says {count} members in {length} bytes")));
        }
    }
    Ok(())
}

/// The members of an archive, in its order.
pub(crate) fn members(source: &Source) -> Result<Vec<Member>, Error> {
    check_count(source)?;
    let file = source.at(0)?;
    let mut archive = archive(source, &file)?;
    if archive.has_duplicate_names() {
        return Err(source.wrong("is an archive with two members of one name"));
    }
    let mut out = Vec::new();
    for i in 0..archive.len() {
        let member = archive.by_index_raw(i).map_err(|e| damaged(source, &e))?;
        let name = member.name().map_err(|e| damaged(source, &e))?.into_owned();
        if member.encrypted() {
            return Err(source.wrong(format!("has the encrypted member `{name}`")));
        }
        let packed = match member.compression() {
            CompressionMethod::Stored => false,
            CompressionMethod::Deflated => true,
            other => {
                let what =
                    format!("has the member `{name}`, compressed with {other}; save it anew");
                return Err(source.wrong(what));
            }
        };
        let offset = member
            .data_start()
            .ok_or_else(|| damaged(source, &format!("nothing is known of `{name}`")))?;
        out.push(Member { name, offset, bytes: member.size(), packed });
    }
    // Each is looked up in the directory anew.
    let packed = out.iter().filter(|member| member.packed).count();
    if packed > MOST_PACKED {
        let what = format!("has {packed} compressed members; save it uncompressed (numpy.savez)");
        return Err(source.wrong(what));
    }
    source.check(&file)?;
    Ok(out)
}

/// The bytes of a member that is not compressed.
pub(crate) fn read(source: &Source, member: &Member) -> Result<Vec<u8>, Error> {
    if member.packed {
        let what = format!(
            "has the compressed member `{}`; torch.save compresses none, save it again",
            member.name
        );
        return Err(source.wrong(what));
    }
    source.bytes(member.offset, member.bytes)
}

/// The first bytes of a member, compressed or not.
pub(crate) fn start(source: &Source, member: &Member, most: u64) -> Result<Vec<u8>, Error> {
    if !member.packed {
        return source.bytes(member.offset, member.bytes.min(most));
    }
    with(source, &member.name, |packed| {
        let mut bytes = Vec::new();
        packed.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    })
}

/// Reads a member with what unpacks it.
fn with<T>(
    source: &Source,
    name: &str,
    read: impl FnOnce(&mut dyn Read) -> std::io::Result<T>,
) -> Result<T, Error> {
    let cannot = |e: &dyn std::fmt::Display| source.wrong(format!("cannot unpack `{name}`: {e}"));
    let file = source.at(0)?;
    let mut archive = archive(source, &file)?;
    let mut member = archive.by_name(name).map_err(|e| cannot(&e))?;
    let out = read(&mut member);
    source.check(&file)?;
    out.map_err(|e| cannot(&e))
}

/// The bytes of a compressed member behind its first `skip`, which are `count` and no more. Its
/// checksum is verified.
pub(crate) fn unpack_exactly(
    source: &Source,
    name: &str,
    skip: u64,
    count: u64,
) -> Result<Vec<u8>, Error> {
    with(source, name, |packed| {
        std::io::copy(&mut packed.take(skip), &mut std::io::sink())?;
        let mut bytes = Vec::new();
        packed.take(count.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == count {
            return Ok(bytes);
        }
        let what = format!("it does not hold the {count} bytes of its header");
        Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what))
    })
}

/// How much larger than its archive a member of Python objects may be: what compresses better is no
/// trained weight.
const LARGEST_RATIO: u64 = 64;

/// The bytes of a member that may be compressed.
pub(crate) fn unpack(source: &Source, name: &str) -> Result<Vec<u8>, Error> {
    let limit = LARGEST_RATIO.saturating_mul(source.length());
    let bytes = with(source, name, |packed| {
        let mut bytes = Vec::new();
        packed.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        Ok(bytes)
    })?;
    if bytes.len() as u64 > limit {
        let what = format!(
            "has the member `{name}`, which unpacks to over {LARGEST_RATIO} times the file"
        );
        return Err(source.wrong(what));
    }
    Ok(bytes)
}
