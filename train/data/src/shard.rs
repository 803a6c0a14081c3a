//! One token shard as modded-nanogpt writes it: 256 little-endian 32-bit integers, of which the
//! first three are a magic number, the version and the number of tokens, then the tokens, 16 bits
//! each.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use lipschitz_nn::{At, checkpoint, kind};
use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::Error;

const MAGIC: i32 = 20240520;
const VERSION: i32 = 1;
/// Bytes before the tokens.
const HEADER: usize = 256 * 4;

/// The largest vocabulary: ids have 16 bits.
pub const MAX_VOCABULARY: usize = 1 << 16;

/// One file, mapped into memory.
#[derive(Debug)]
pub struct Shard {
    map: Mmap,
    count: usize,
}

impl Shard {
    /// Maps a file, and looks at its header and its length.
    ///
    /// # Errors
    /// One line that names the file: missing, no shard, of another version, longer or shorter than
    /// it says.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let damaged = |what: String| Error::from(lipschitz_nn::Error::file(path, what));
        let file = File::open(path).at(path)?;
        // SAFETY: the map is read only. A file that another program changes meanwhile changes the
        // tokens read, which are plain integers of which every value is checked where it is used;
        // one that is cut short ends the program.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.at(path)?;
        let number = |i: usize| {
            map.get(4 * i..4 * i + 4)
                .and_then(|b| b.try_into().ok())
                .map(i32::from_le_bytes)
                .unwrap_or_default()
        };
        if map.len() < HEADER || number(0) != MAGIC {
            if let Some(known) = kind::of(&map[..map.len().min(kind::START)]) {
                return Err(damaged(known.instead_of("a token shard")));
            }
            let path = path.to_path_buf();
            return Err(Error::NotAShard { path, magic: MAGIC, header: HEADER });
        }
        if number(1) != VERSION {
            return Err(damaged(format!(
                "is a token shard of version {}; this program reads version {VERSION}",
                number(1)
            )));
        }
        let (said, found) = (number(2), (map.len() - HEADER) / 2);
        let count = usize::try_from(said).ok().filter(|n| HEADER + 2 * n == map.len());
        let count = count.ok_or_else(|| {
            damaged(format!(
                "says it has {said} tokens and its length is that of {found}; it is damaged, \
                 fetch or make it again"
            ))
        })?;
        Ok(Self { map, count })
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The ids in a range of places, which must lie within the shard.
    pub fn ids(&self, places: Range<usize>) -> impl Iterator<Item = u32> {
        let bytes = &self.map[HEADER + 2 * places.start..HEADER + 2 * places.end];
        bytes.chunks_exact(2).map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]])))
    }

    /// SHA-256 of the whole file.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.map[..]).into()
    }

    /// Writes a shard, in one step.
    ///
    /// # Errors
    /// If the disk is full, for example.
    pub fn write(path: &Path, ids: &[u16]) -> Result<(), Error> {
        let count = i32::try_from(ids.len()).map_err(|_| Error::ShardTooLong)?;
        let mut bytes = Vec::with_capacity(HEADER + 2 * ids.len());
        [MAGIC, VERSION, count].iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes.resize(HEADER, 0);
        ids.iter().for_each(|id| bytes.extend(id.to_le_bytes()));
        Ok(checkpoint::write(path, &bytes)?)
    }
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
        let shard = Shard::open(&path).unwrap();
        assert_eq!(shard.ids(0..3).collect::<Vec<_>>(), [7, 50256, 65535]);
    }

    #[test]
    fn damaged_shards_are_named_with_the_reason() {
        let said = |change: &dyn Fn(&mut Vec<u8>)| {
            let (_dir, path) = written(&[1, 2, 3], change);
            let text = format!("{:#}", Shard::open(&path).unwrap_err());
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
            Shard::open(Path::new("no/such.bin")).unwrap_err().to_string().contains("no/such.bin")
        );
    }
}
