//! Any UTF-8 file as data: characters, or the tokens of a `tokenizer.json`.

use std::path::{Path, PathBuf};

use lipschitz_nn::checkpoint::Tokenizer;
use lipschitz_nn::graph::Input;
use lipschitz_nn::{At, kind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::codec::read_tokenizer;
use crate::corpus::{self, Corpus};
use crate::held_out::{self, Part};
use crate::{DataKind, DataSet, Error, memory};

/// `kind = "text"`: any UTF-8 file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// The file.
    pub path: PathBuf,
    /// A `tokenizer.json`; characters without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// A file that is held out as a whole, in place of the last part of `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_path: Option<PathBuf>,
    /// The share of the characters that is held out, at the end of `path`; a tenth without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_fraction: Option<f64>,
}

impl TextConfig {
    /// The characters of a file, of which the last tenth is held out.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), tokenizer: None, val_path: None, val_fraction: None }
    }

    /// The held-out part of a text for a model of this config, that was trained on data of this digest: the
    /// same part that its run held out. Where that was a file of its own, `path` is taken as a whole, and the
    /// file that was trained on stands for the one that was held out.
    ///
    /// # Errors
    /// One line that names the file; [`Error::Changed`] if it is not what the model was trained on any more.
    pub(crate) fn held_out(
        &self,
        path: &Path,
        tokenizer: Tokenizer,
        trained: Option<&str>,
    ) -> Result<Corpus, Error> {
        let name = |path: &Path| path.display().to_string();
        let part = held_out::part(path, &self.path, self.val_path.as_deref());
        let text = read(path)?;
        let corpus = match &part {
            Part::File(beside) => {
                let names = [&*name(path), &*name(beside)];
                Corpus::from_files(names, (&text, &read(beside)?), Some(tokenizer))?
            }
            Part::Other if self.val_path.is_some() => {
                return Corpus::held_out(&name(path), &text, tokenizer);
            }
            Part::Share | Part::Other => {
                Corpus::from_text(&name(path), &text, self.val_fraction, Some(tokenizer))?
            }
        };
        let own = !matches!(part, Part::Other);
        match trained.filter(|trained| own && *trained != corpus.digest()) {
            Some(_) => Err(Error::Changed(name(path))),
            None => Ok(corpus),
        }
    }
}

impl DataKind for TextConfig {
    fn check(&self) -> Result<(), Error> {
        held_out::check(&self.path, self.val_path.as_deref(), self.val_fraction)
    }

    fn load(&self) -> Result<Box<dyn DataSet>, Error> {
        Ok(Box::new(load(self)?))
    }

    fn reads(&self, input: Input) -> bool {
        corpus::reads(input)
    }
}

/// Reads one UTF-8 file, or two. Without a `tokenizer.json` the vocabulary is their characters,
/// sorted.
///
/// # Errors
/// One line that names the file: missing, not UTF-8 (with the byte's offset), too short, or a
/// tokenizer that cannot be read; or a share that is none.
pub fn load(config: &TextConfig) -> Result<Corpus, Error> {
    config.check()?;
    let text = read(&config.path)?;
    let tokenizer = config.tokenizer.as_deref().map(read_tokenizer).transpose()?;
    let name = config.path.display().to_string();
    match &config.val_path {
        None => Corpus::from_text(&name, &text, config.val_fraction, tokenizer),
        Some(path) => {
            let (val_name, val) = (path.display().to_string(), read(path)?);
            Corpus::from_files([&name, &val_name], (&text, &val), tokenizer)
        }
    }
}

/// What some editors put in front of a text. It is no part of it.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// The text without a byte order mark in front.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

/// Reads a UTF-8 file, without the byte order mark in front of it, if it has one.
///
/// # Errors
/// One line that names the file, and the first byte that is not UTF-8; or that the memory is too
/// small for it.
pub fn read(path: &Path) -> Result<String, Error> {
    kind::no_device(path)?;
    let length = std::fs::metadata(path).at(path)?.len();
    // The text, and a byte for each of its tokens or characters.
    memory::check(2.0 * length as f64, || path.display().to_string())?;
    let bytes = std::fs::read(path).at(path)?;
    let start = &bytes[..bytes.len().min(kind::START)];
    // A web page is a text that can be learnt from; a pointer or a document is in its place.
    let other = if kind::is_text(start) { kind::stand_in(start) } else { kind::known(start) };
    if let Some(known) = other {
        return Err(lipschitz_nn::Error::file(path, known.instead_of("text")).into());
    }
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let offset = e.utf8_error().valid_up_to();
        Error::NotUtf8 { path: path.to_path_buf(), offset, byte: e.as_bytes()[offset] }
    })?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Write;

    use super::*;
    use crate::codec::Codec;
    use crate::digest;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn whole(data: &Corpus) -> Vec<u32> {
        [data.train.to_vec().unwrap(), data.val.to_vec().unwrap()].concat()
    }

    fn refusal(bytes: &[u8]) -> String {
        let file = file(bytes);
        let error = format!("{:#}", load(&TextConfig::new(file.path())).unwrap_err());
        assert!(
            error.starts_with(&file.path().display().to_string()) && !error.contains('\n'),
            "{error}"
        );
        error
    }

    #[test]
    fn a_file_is_cut_at_nine_tenths_of_its_characters_and_comes_back() {
        let text = "dämmerung, ab und zu.".repeat(10);
        let data = load(&TextConfig::new(file(text.as_bytes()).path())).unwrap();
        assert_eq!((data.train.len(), data.val.len()), (189, 21));
        let Some(tokenizer @ Tokenizer::Characters { characters }) = &data.tokenizer else {
            panic!()
        };
        assert_eq!(characters, " ,.abdegmnruzä");
        let codec = Codec::new(tokenizer).unwrap();
        assert_eq!(codec.vocabulary(), 14);
        assert_eq!(codec.decode(&whole(&data)).unwrap(), text);
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
        let missing = load(&TextConfig::new("no/such/file.txt")).unwrap_err().to_string();
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
        let text_file = file(text.as_bytes());
        let tokenizer = Some(written.path().to_path_buf());
        let config = TextConfig { tokenizer, ..TextConfig::new(text_file.path()) };
        let data = load(&config).unwrap();
        assert_eq!(data.train.to_vec().unwrap()[..5], [2, 3, 1, 0, 3]);
        let codec = Codec::new(data.tokenizer.as_ref().unwrap()).unwrap();
        assert_eq!(codec.vocabulary(), 4);
        assert_eq!(codec.decode(&whole(&data)).unwrap(), text);
        assert!(codec.decode(&[4]).is_err());
    }

    #[test]
    fn what_is_held_out_can_be_chosen() {
        let text = "abcdefghij".repeat(10);
        let written = file(text.as_bytes());
        let of = |val_fraction| {
            let config = TextConfig { val_fraction, ..TextConfig::new(written.path()) };
            load(&config).map(|data| (data.train.len(), data.val.len()))
        };
        assert_eq!(of(None).unwrap(), (90, 10));
        for (share, val) in [(0.1, 10), (0.3, 30), (0.7, 70), (0.9, 90), (0.123, 13), (0.02, 2)] {
            assert_eq!(of(Some(share)).unwrap(), (100 - val, val), "{share}");
        }
        for share in [0.0, 1.0, -0.5, 2.0, f64::NAN, f64::INFINITY] {
            let said = of(Some(share)).unwrap_err().to_string();
            assert!(said.contains("data.val_fraction is"), "{said}");
        }
        assert!(of(Some(0.001)).unwrap_err().to_string().contains("too short"));

        let held = file("kleine Körner".as_bytes());
        let val_path = Some(held.path().to_path_buf());
        let config = TextConfig { val_path, ..TextConfig::new(written.path()) };
        let data = load(&config).unwrap();
        assert_eq!((data.train.len(), data.val.len()), (100, 13));
        assert_eq!(data.vocabulary, 10 + " klnrKö".chars().count());
        let both = TextConfig { val_fraction: Some(0.5), ..config.clone() };
        assert!(load(&both).unwrap_err().to_string().contains("one of data.val_path"));

        // What is trained on and what is held out are told apart, not only their text.
        let moved = ["kleine Körn", "er kleine Körner"].map(|cut| file(cut.as_bytes()));
        let digest = |train: &Path, val: &Path| {
            let val_path = Some(val.to_path_buf());
            load(&TextConfig { val_path, ..TextConfig::new(train) }).unwrap().digest
        };
        let (short, long) = (moved[0].path(), moved[1].path());
        let whole = file("kleine Körner kleine Körner".as_bytes());
        let halves = [file("kleine Körner ".as_bytes()), file("kleine Körner".as_bytes())];
        let digests = [
            digest(short, long),
            digest(halves[0].path(), halves[1].path()),
            load(&TextConfig::new(whole.path())).unwrap().digest,
        ];
        assert!(digests.iter().collect::<BTreeSet<_>>().len() == 3, "{digests:?}");
        // A trained model has the same part held out.
        let tokenizer = data.tokenizer.clone().unwrap();
        let ids = |data: Corpus| data.val.to_vec().unwrap();
        let wanted = data.val.to_vec().unwrap();
        let part = |config: &TextConfig, path: &Path| {
            ids(config.held_out(path, tokenizer.clone(), None).unwrap())
        };
        // Of what it was trained on, and of nothing that lies there since.
        let trained = |config: &TextConfig, digest: &str| {
            config.held_out(written.path(), tokenizer.clone(), Some(digest)).map(ids)
        };
        assert_eq!(trained(&config, data.digest()).unwrap(), wanted);
        let said = trained(&config, "of another").unwrap_err().to_string();
        assert!(said.contains("is not what the model was trained on any more"), "{said}");
        let share = TextConfig::new(written.path());
        let whole = share.held_out(written.path(), tokenizer.clone(), None).unwrap();
        assert_eq!(trained(&share, whole.digest()).unwrap().len(), 10);
        assert!(trained(&share, data.digest()).is_err());
        // Another text is another text.
        assert_eq!(
            ids(share.held_out(held.path(), tokenizer.clone(), Some("x")).unwrap()).len(),
            2
        );
        let same = Some(written.path().to_path_buf());
        let own = TextConfig { val_path: same, ..TextConfig::new(written.path()) };
        assert!(load(&own).unwrap_err().to_string().contains("is trained on and held out"));
        assert_eq!(part(&config, held.path()), wanted);
        assert_eq!(part(&config, written.path()), wanted, "the file that was trained on");
        let half = TextConfig { val_fraction: Some(0.5), ..TextConfig::new(written.path()) };
        assert_eq!(part(&half, written.path()).len(), 50);
        assert_eq!(part(&TextConfig::new("elsewhere"), written.path()).len(), 10);
    }

    #[test]
    fn a_byte_order_mark_is_no_character() {
        let text = "some text of some words";
        let marked = file(format!("\u{feff}{text}").as_bytes());
        assert_eq!(read(marked.path()).unwrap(), text);
        let plain = file(text.as_bytes());
        let of = |path: &Path| load(&TextConfig::new(path)).unwrap();
        assert_eq!(of(marked.path()).digest, of(plain.path()).digest);
        assert_eq!(of(marked.path()).tokenizer, of(plain.path()).tokenizer);
        // Only in front is it a mark.
        let inside = file(format!("{text}\u{feff}").as_bytes());
        assert_eq!(of(inside.path()).vocabulary, of(plain.path()).vocabulary + 1);
        assert!(refusal(b"\xef\xbb\xbfab\xff").contains("byte 5 is 0xff"));
    }

    /// Truncation and padding of a tokenizer are for batches of sentences.
    #[test]
    fn a_long_text_is_encoded_to_its_end() {
        let json = serde_json::json!({"version": "1.0", "added_tokens": [],
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst",
                "stride": 0},
            "padding": {"strategy": {"Fixed": 100}, "direction": "Right",
                "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}});
        let codec = Codec::new(&Tokenizer::Json { json }).unwrap();
        assert_eq!(codec.encode(&"ab".repeat(50)).unwrap().len(), 100);
        assert_eq!(codec.encode("ab").unwrap(), [0, 1]);
    }
}
