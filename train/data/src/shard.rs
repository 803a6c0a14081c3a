//! One token shard as modded-nanogpt writes it: 256 little-endian 32-bit integers, of which the
//! first three are a magic number, the version and the number of tokens, then the tokens, 16 bits
//! each.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use lipschitz_nn::{At, checkpoint, kind};
use sha2::{Digest, Sha256};

use crate::Error;

const MAGIC: i32 = 20240520;
const VERSION: i32 = 1;
/// Bytes before the tokens.
const HEADER: usize = 256 * 4;

/// The largest vocabulary: ids have 16 bits.
pub const MAX_VOCABULARY: usize = 1 << 16;

/// Bytes that are read at a time where a whole shard is.
const BUFFER: usize = 1 << 20;

/// One file. Its tokens are read when they are asked for: a file that another program changes or
/// cuts short meanwhile gives other tokens or an error.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    /// Open all the time, or opened for each read.
    file: Option<File>,
    count: usize,
}

impl Shard {
    /// Looks at a file's header and its length. It stays open, unless it is one of very many.
    ///
    /// # Errors
    /// One line that names the file: missing, no shard, of another version, longer or shorter than
    /// it says.
    pub fn open(path: &Path, keep: bool) -> Result<Self, Error> {
        let damaged = |what: String| Error::from(lipschitz_nn::Error::file(path, what));
        let file = File::open(path).at(path)?;
        let length = file.metadata().at(path)?.len();
        let not_a_shard = || {
            let mut start = vec![0; kind::START.min(length as usize)];
            let read = read_at(&file, &mut start, 0);
            match read.ok().and_then(|()| kind::of(&start)) {
                Some(known) => damaged(known.instead_of("a token shard")),
                None => Error::NotAShard { path: path.to_path_buf(), magic: MAGIC, header: HEADER },
            }
        };
        let mut header = [0; 12];
        if length < HEADER as u64 || read_at(&file, &mut header, 0).is_err() {
            return Err(not_a_shard());
        }
        let number = |i: usize| {
            i32::from_le_bytes([
                header[4 * i],
                header[4 * i + 1],
                header[4 * i + 2],
                header[4 * i + 3],
            ])
        };
        let [magic, version, said] = [number(0), number(1), number(2)];
        if magic != MAGIC {
            return Err(not_a_shard());
        }
        if version != VERSION {
            return Err(damaged(format!(
                "is a token shard of version {version}; this program reads version {VERSION}"
            )));
        }
        let found = (length - HEADER as u64) / 2;
        let count = usize::try_from(said).ok().filter(|n| (HEADER + 2 * n) as u64 == length);
        let count = count.ok_or_else(|| {
            damaged(format!(
                "says it has {said} tokens and its length is that of {found}; it is damaged, \
                 fetch or make it again"
            ))
        })?;
        Ok(Self { path: path.to_path_buf(), file: keep.then_some(file), count })
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Appends the ids in a range of places, which must lie within the shard.
    ///
    /// # Errors
    /// One line that names the file, if it can no longer be read, or has become shorter.
    pub fn read(&self, places: Range<usize>, out: &mut Vec<u32>) -> Result<(), Error> {
        let mut bytes = vec![0; 2 * places.len()];
        self.bytes(HEADER + 2 * places.start, &mut bytes)?;
        out.extend(ids(&bytes));
        Ok(())
    }

    /// SHA-256 of the whole file; `each` hears of every token and its place.
    ///
    /// # Errors
    /// As [`Shard::read`], and what `each` gives.
    pub fn scan(
        &self,
        mut each: impl FnMut(usize, u32) -> Result<(), Error>,
    ) -> Result<[u8; 32], Error> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; BUFFER];
        let header = &mut buffer[..HEADER];
        self.bytes(0, header)?;
        hash.update(header);
        for first in (0..self.count).step_by(BUFFER / 2) {
            let bytes = &mut buffer[..2 * (self.count - first).min(BUFFER / 2)];
            self.bytes(HEADER + 2 * first, bytes)?;
            hash.update(&*bytes);
            for (id, place) in ids(bytes).zip(first..) {
                each(place, id)?;
            }
        }
        Ok(hash.finalize().into())
    }

    /// Fills a buffer from a place in the file on.
    fn bytes(&self, start: usize, buffer: &mut [u8]) -> Result<(), Error> {
        let read = match &self.file {
            Some(file) => read_at(file, buffer, start as u64),
            None => File::open(&self.path).and_then(|file| read_at(&file, buffer, start as u64)),
        };
        match read {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let what = "has become shorter since it was opened; make or fetch it again, and \
                            leave it alone while it is read";
                Err(lipschitz_nn::Error::file(&self.path, what).into())
            }
            read => Ok(read.at(&self.path)?),
        }
    }

    /// Writes a shard, in one step.
    ///
    /// # Errors
    /// As [`ShardBuilder::write`].
    pub fn write(path: &Path, ids: &[u16]) -> Result<(), Error> {
        let mut builder = ShardBuilder::default();
        builder.reserve(ids.len());
        ids.iter().for_each(|id| builder.push(*id));
        builder.write(path)
    }
}

/// A shard in memory, as the bytes of its file.
#[derive(Debug, Default)]
pub struct ShardBuilder {
    tokens: Vec<u8>,
}

impl ShardBuilder {
    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.tokens.len().saturating_sub(HEADER) / 2
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes room for so many more tokens, and no more.
    pub fn reserve(&mut self, more: usize) {
        self.tokens.reserve_exact(HEADER + 2 * more);
    }

    /// Appends a token.
    pub fn push(&mut self, id: u16) {
        if self.tokens.is_empty() {
            self.tokens.resize(HEADER, 0);
        }
        self.tokens.extend(id.to_le_bytes());
    }

    /// Writes the shard, in one step, and begins another.
    ///
    /// # Errors
    /// If the disk is full, for example.
    pub fn write(&mut self, path: &Path) -> Result<(), Error> {
        let count = i32::try_from(self.len()).map_err(|_| Error::ShardTooLong)?;
        let mut bytes = std::mem::take(&mut self.tokens);
        bytes.resize(bytes.len().max(HEADER), 0);
        for (place, number) in bytes.chunks_exact_mut(4).zip([MAGIC, VERSION, count]) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        checkpoint::write(path, &bytes)?;
        bytes.clear();
        self.tokens = bytes;
        Ok(())
    }
}

/// The ids that these bytes are.
fn ids(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(2).map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]])))
}

/// Fills a buffer from a place in a file on, whatever others read from it.
#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], start: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, start)
}

/// Fills a buffer from a place in a file on, whatever others read from it.
#[cfg(windows)]
fn read_at(file: &File, mut buffer: &mut [u8], mut start: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, start)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                buffer = &mut std::mem::take(&mut buffer)[read..];
                start += read as u64;
            }
        }
    }
    Ok(())
}

/// The files of a directory whose names hold `_PART_` and end in `.bin`, by name.
///
/// # Errors
/// If the directory cannot be read.
pub fn files(directory: &Path, part: &str) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).at(directory)? {
        let path = entry.at(directory)?.path();
        let name =
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.ends_with(".bin") && !name.starts_with('.') && name.contains(&format!("_{part}_")) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(ids: &[u16], change: impl Fn(&mut Vec<u8>)) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text_train_000000.bin");
        Shard::write(&path, ids).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn a_shard_comes_back_and_its_layout_is_the_published_one() {
        let (_dir, path) = written(&[7, 50256, 65535], |_| {});
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 1024 + 6);
        assert_eq!(bytes[..12], [0x88, 0xd8, 0x34, 0x01, 1, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!(bytes[1024..], [7, 0, 0x50, 0xc4, 0xff, 0xff]);
        for keep in [true, false] {
            let shard = Shard::open(&path, keep).unwrap();
            let mut ids = Vec::new();
            shard.read(0..3, &mut ids).unwrap();
            shard.read(1..2, &mut ids).unwrap();
            assert_eq!(ids, [7, 50256, 65535, 50256]);
            let mut seen = Vec::new();
            let digest = shard.scan(|place, id| {
                seen.push((place, id));
                Ok(())
            });
            assert_eq!(digest.unwrap()[..], Sha256::digest(&bytes)[..]);
            assert_eq!(seen, [(0, 7), (1, 50256), (2, 65535)]);
        }
    }

    #[test]
    fn a_scan_reads_across_its_buffer() {
        let long: Vec<u16> = (0..BUFFER as u32 + 7).map(|i| (i % 60_001) as u16).collect();
        let (_dir, path) = written(&long, |_| {});
        let mut seen = Vec::new();
        let shard = Shard::open(&path, true).unwrap();
        let digest = shard.scan(|place, id| {
            assert_eq!(place, seen.len());
            seen.push(id as u16);
            Ok(())
        });
        assert!(seen == long);
        assert_eq!(digest.unwrap()[..], Sha256::digest(std::fs::read(&path).unwrap())[..]);
    }

    /// Through a map, reading it ended the program by a signal.
    #[test]
    fn a_shard_cut_short_while_it_is_read_is_an_error() {
        for keep in [true, false] {
            let (_dir, path) = written(&[1, 2, 3, 4], |_| {});
            let shard = Shard::open(&path, keep).unwrap();
            File::options().write(true).open(&path).unwrap().set_len(1024 + 4).unwrap();
            let mut ids = Vec::new();
            shard.read(0..2, &mut ids).unwrap();
            assert_eq!(ids, [1, 2]);
            for error in
                [shard.read(1..4, &mut ids).unwrap_err(), shard.scan(|_, _| Ok(())).unwrap_err()]
            {
                let said = error.to_string();
                assert!(said.starts_with(&path.display().to_string()), "{said}");
                assert!(said.contains("has become shorter"), "{said}");
            }
        }
    }

    #[test]
    fn damaged_shards_are_named_with_the_reason() {
        let said = |change: &dyn Fn(&mut Vec<u8>)| {
            let (_dir, path) = written(&[1, 2, 3], change);
            let text = format!("{:#}", Shard::open(&path, true).unwrap_err());
            assert!(
                text.starts_with(&path.display().to_string()) && !text.contains('\n'),
                "{text}"
            );
            text
        };
        assert!(said(&|b| b[0] ^= 1).contains("not a token shard"));
        assert!(said(&|b| b.truncate(100)).contains("not a token shard"));
        assert!(said(&|b| b[4] = 2).contains("version 2"));
        assert!(
            said(&|b| b.truncate(1028))
                .contains("says it has 3 tokens and its length is that of 2")
        );
        assert!(said(&|b| b.truncate(1029)).contains("damaged"));
        assert!(said(&|b| b.push(0)).contains("damaged"));
        assert!(
            said(&|b| b[8..12].copy_from_slice(&(-1i32).to_le_bytes()))
                .contains("says it has -1 tokens")
        );
        assert!(
            Shard::open(Path::new("no/such.bin"), true)
                .unwrap_err()
                .to_string()
                .contains("no/such.bin")
        );
    }
}
