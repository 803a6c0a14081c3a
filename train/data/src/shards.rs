//! A directory of token shards as data.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lipschitz_nn::graph::Input;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::codec::{Codec, read_tokenizer};
use crate::corpus::{self, Corpus};
use crate::error::in_range_if;
use crate::shard::{Shard, files};
use crate::tokens::Tokens;
use crate::{DataKind, DataSet, Error, digest};

/// `kind = "shards"`: token shards as modded-nanogpt and `train shards` write them,
/// `*_train_*.bin` and `*_val_*.bin`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShardsConfig {
    /// The directory; its `tokenizer.json`, if it has one, goes into the checkpoint.
    pub path: PathBuf,
    /// Rows of the embedding, above every token; as many as the tokenizer has without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<usize>,
    /// Tokens to validate on; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_val: Option<usize>,
}

impl DataKind for ShardsConfig {
    fn check(&self) -> Result<(), Error> {
        in_range_if("vocabulary", self.vocabulary, 1..=1 << 28)?;
        in_range_if("limit_val", self.limit_val, 2..=usize::MAX >> 1)
    }

    fn load(&self) -> Result<Box<dyn DataSet>, Error> {
        self.check()?;
        Ok(Box::new(load(&self.path, self.vocabulary, self.limit_val)?))
    }

    fn reads(&self, input: Input) -> bool {
        corpus::reads(input)
    }

    fn outputs(&self) -> Option<usize> {
        self.vocabulary
    }
}

/// A file and what it holds.
type Opened = (PathBuf, Arc<Shard>);

/// The shards `*_train_*.bin` and `*_val_*.bin` of a directory, with its `tokenizer.json` if there
/// is one. All tokens are read once, and must be below `vocabulary` (the tokenizer's, if it is not
/// given). Of the held-out tokens the first `limit_val` are used.
///
/// # Errors
/// One line that names the file, and the token if it is beyond the vocabulary.
pub fn load(
    directory: &Path,
    vocabulary: Option<usize>,
    limit_val: Option<usize>,
) -> Result<Corpus, Error> {
    if !directory.is_dir() {
        return Err(Error::NoDirectory(directory.to_path_buf()));
    }
    let path = directory.join("tokenizer.json");
    let tokenizer = if path.exists() { Some(read_tokenizer(&path)?) } else { None };
    let vocabulary = match (vocabulary, &tokenizer) {
        (Some(vocabulary), _) => vocabulary,
        (None, Some(tokenizer)) => Codec::new(tokenizer)?.vocabulary(),
        (None, None) => return Err(Error::UnknownVocabulary(directory.to_path_buf())),
    };
    let (train, val) = (open(directory, "train")?, open(directory, "val")?);
    if let Some((both, _)) = train.iter().find(|(path, _)| val.iter().any(|(val, _)| val == path)) {
        return Err(Error::BothParts(both.clone()));
    }
    let check = |shard: &Opened| check(shard, vocabulary);
    let digests = train.par_iter().chain(&val).map(check).collect::<Result<Vec<_>, _>>()?;
    let trained = (train.len() as u64).to_le_bytes();
    let digest = digest(digests.iter().map(<[u8; 32]>::as_slice).chain([&trained[..]]));
    let (train, val) = (tokens(train, None), tokens(val, limit_val));
    let name = directory.display().to_string();
    if train.len() < 2 || val.len() < 2 {
        return Err(Error::TooFewTokens { name, train: train.len(), val: val.len() });
    }
    Ok(Corpus { name, tokenizer, vocabulary, train, val, digest })
}

/// Files that stay open. More of them are opened for each read: systems allow about a thousand.
const MAX_OPEN: usize = 256;

/// The shards of a part, at least one.
fn open(directory: &Path, part: &'static str) -> Result<Vec<Opened>, Error> {
    let files = files(directory, part)?;
    if files.is_empty() {
        return Err(Error::NoShards { directory: directory.to_path_buf(), part });
    }
    let keep = files.len() <= MAX_OPEN;
    files.into_iter().map(|path| Ok((path.clone(), Arc::new(Shard::open(&path, keep)?)))).collect()
}

/// Whether all tokens are below `vocabulary`; the digest of the file.
fn check((path, shard): &Opened, vocabulary: usize) -> Result<[u8; 32], Error> {
    shard.scan(|number, id| {
        if id as usize >= vocabulary {
            let path = path.clone();
            return Err(Error::BeyondVocabulary { path, number, id, vocabulary });
        }
        Ok(())
    })
}

/// The first tokens of shards one behind the other, all without a limit.
fn tokens(shards: Vec<Opened>, limit: Option<usize>) -> Tokens {
    let count: usize = shards.iter().map(|(_, shard)| shard.len()).sum();
    let shards = shards.into_iter().map(|(_, shard)| shard).collect();
    Tokens::Shards(shards, limit.unwrap_or(count).min(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_across_its_shards() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, ids: &[u16]| Shard::write(&dir.path().join(name), ids).unwrap();
        let missing = load(dir.path(), Some(10), None).unwrap_err().to_string();
        assert!(missing.contains("*_train_*.bin"), "{missing}");
        write("x_train_000002.bin", &[4, 5]);
        write("x_train_000001.bin", &[1, 2, 3]);
        let missing = load(dir.path(), Some(10), None).unwrap_err().to_string();
        assert!(missing.contains("*_val_*.bin"), "{missing}");
        write("x_val_000000.bin", &[6, 7, 8]);
        let data = load(dir.path(), Some(10), Some(2)).unwrap();
        assert_eq!(
            (data.train.to_vec().unwrap(), data.val.to_vec().unwrap()),
            (vec![1, 2, 3, 4, 5], vec![6, 7])
        );
        // A shard that is held out now, and was trained on, makes other data of the same shards.
        std::fs::rename(dir.path().join("x_train_000002.bin"), dir.path().join("a_val_0.bin"))
            .unwrap();
        let moved = load(dir.path(), Some(10), Some(2)).unwrap();
        assert_eq!(moved.train.to_vec().unwrap(), [1, 2, 3]);
        assert_ne!(moved.digest, data.digest);
        std::fs::rename(dir.path().join("a_val_0.bin"), dir.path().join("x_train_000002.bin"))
            .unwrap();
        let mut part = Vec::new();
        data.train.read(2, 2, &mut part).unwrap();
        assert_eq!(part, [3, 4]);
        let beyond = load(dir.path(), Some(8), None).unwrap_err().to_string();
        assert!(
            beyond.contains("x_val_000000.bin") && beyond.contains("token number 2 is 8"),
            "{beyond}"
        );
        let unknown = load(dir.path(), None, None).unwrap_err().to_string();
        assert!(unknown.contains("the size of the vocabulary is unknown"), "{unknown}");
    }
}
