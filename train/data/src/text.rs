//! Any UTF-8 file as data: characters, or the tokens of a `tokenizer.json`.

use std::path::{Path, PathBuf};

use lipschitz_nn::graph::Input;
use lipschitz_nn::{At, kind};
use serde::{Deserialize, Serialize};

use crate::codec::read_tokenizer;
use crate::corpus::{self, Corpus};
use crate::{DataKind, DataSet, Error};

/// `kind = "text"`: any UTF-8 file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// The file.
    pub path: PathBuf,
    /// A `tokenizer.json`; characters without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
}

impl DataKind for TextConfig {
    fn load(&self) -> Result<Box<dyn DataSet>, Error> {
        Ok(Box::new(load(&self.path, self.tokenizer.as_deref())?))
    }

    fn reads(&self, input: Input) -> bool {
        corpus::reads(input)
    }
}

/// Reads a UTF-8 file. Without a `tokenizer.json` the vocabulary is the file's characters, sorted.
///
/// # Errors
/// One line that names the file: missing, not UTF-8 (with the byte's offset), too short, or a
/// tokenizer that cannot be read.
pub fn load(path: &Path, tokenizer: Option<&Path>) -> Result<Corpus, Error> {
    let text = read(path)?;
    let tokenizer = tokenizer.map(read_tokenizer).transpose()?;
    Corpus::from_text(&path.display().to_string(), &text, tokenizer)
}

/// Reads a UTF-8 file.
///
/// # Errors
/// One line that names the file, and the first byte that is not UTF-8.
pub fn read(path: &Path) -> Result<String, Error> {
    let bytes = std::fs::read(path).at(path)?;
    let start = &bytes[..bytes.len().min(kind::START)];
    // A web page is a text that can be learnt from; a pointer or a document is in its place.
    let other = if kind::is_text(start) { kind::stand_in(start) } else { kind::known(start) };
    if let Some(known) = other {
        return Err(lipschitz_nn::Error::file(path, known.instead_of("text")).into());
    }
    String::from_utf8(bytes).map_err(|e| {
        let offset = e.utf8_error().valid_up_to();
        Error::NotUtf8 { path: path.to_path_buf(), offset, byte: e.as_bytes()[offset] }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use lipschitz_nn::checkpoint::Tokenizer;

    use super::*;
    use crate::codec::Codec;
    use crate::digest;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn refusal(bytes: &[u8]) -> String {
        let file = file(bytes);
        let error = format!("{:#}", load(file.path(), None).unwrap_err());
        assert!(
            error.starts_with(&file.path().display().to_string()) && !error.contains('\n'),
            "{error}"
        );
        error
    }

    #[test]
    fn a_file_is_cut_at_nine_tenths_of_its_characters_and_comes_back() {
        let text = "dämmerung, ab und zu.".repeat(10);
        let data = load(file(text.as_bytes()).path(), None).unwrap();
        assert_eq!((data.train.len(), data.val.len()), (189, 21));
        let Some(tokenizer @ Tokenizer::Characters { characters }) = &data.tokenizer else {
            panic!()
        };
        assert_eq!(characters, " ,.abdegmnruzä");
        let codec = Codec::new(tokenizer).unwrap();
        assert_eq!(codec.vocabulary(), 14);
        assert_eq!(codec.decode(&[data.train.to_vec(), data.val.to_vec()].concat()).unwrap(), text);
        assert_eq!(data.digest, digest([text.as_bytes()]));
    }

    #[test]
    fn files_that_cannot_be_used_are_named_with_the_reason() {
        assert!(refusal(b"").contains("too short"));
        assert!(refusal(b"too little").contains("10 characters"));
        assert!(refusal(b"caf\xe9 and more").contains("byte 3 is 0xe9"));
        assert!(
            refusal("cut short \u{20ac}".as_bytes().split_last().unwrap().1).contains("byte 10")
        );
        let missing = load(Path::new("no/such/file.txt"), None).unwrap_err().to_string();
        assert!(missing.contains("no/such/file.txt: no such file"), "{missing}");
        let bad = file(b"{\"version\": 1}");
        let error = read_tokenizer(bad.path()).unwrap_err().to_string();
        assert!(error.contains("is not a tokenizer.json") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_tokenizer_json_encodes_and_decodes() {
        let vocab: serde_json::Map<_, _> = ["a", "b", "ab", " "]
            .iter()
            .zip(0..)
            .map(|(w, id): (_, u32)| (w.to_string(), id.into()))
            .collect();
        let json = serde_json::json!({"version": "1.0", "added_tokens": [],
            "decoder": {"type": "Fuse"},
            "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]}});
        let written = file(json.to_string().as_bytes());
        let text = "ab ba ".repeat(20);
        let data = load(file(text.as_bytes()).path(), Some(written.path())).unwrap();
        assert_eq!(data.train.to_vec()[..5], [2, 3, 1, 0, 3]);
        let codec = Codec::new(data.tokenizer.as_ref().unwrap()).unwrap();
        assert_eq!(codec.vocabulary(), 4);
        assert_eq!(codec.decode(&[data.train.to_vec(), data.val.to_vec()].concat()).unwrap(), text);
        assert!(codec.decode(&[4]).is_err());
    }
}
