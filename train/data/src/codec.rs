//! Text to token ids and back: a vocabulary of characters, or a `tokenizer.json`.

use std::collections::HashMap;
use std::path::Path;

use lipschitz_nn::checkpoint::Tokenizer;
use lipschitz_nn::text;

use crate::caught::caught;
use crate::cuts::Cuts;
use crate::error::one_line;
use crate::{Error, growth, memory};

/// Reads a `tokenizer.json`.
///
/// # Errors
/// One line that names the file if it is missing or not a tokenizer.
pub fn read_tokenizer(path: &Path) -> Result<Tokenizer, Error> {
    let text = text::read(path, "a tokenizer.json")?;
    let no = |e: &dyn std::fmt::Display| {
        let what = format!("is not a tokenizer.json of the tokenizers library: {}", one_line(e));
        lipschitz_nn::Error::file(path, what)
    };
    let json = serde_json::from_str(&text).map_err(|e| no(&e))?;
    let tokenizer = Tokenizer::Json { json };
    Codec::new(&tokenizer).map_err(|error| match error {
        Error::Explosive { .. } => error.of(&path.display().to_string()),
        error => no(&error).into(),
    })?;
    Ok(tokenizer)
}

/// A checkpoint's tokenizer made ready for use.
pub struct Codec(Kind);

enum Kind {
    Characters { ids: HashMap<char, u32>, characters: Vec<char> },
    Json(Box<tokenizers::Tokenizer>, Cuts),
}

/// Bytes of a text that are encoded at a time, at least, where it can be cut.
const PIECE: usize = 1 << 16;

/// Bytes of memory that the tokenizers library takes for each byte of a text, at least, as it
/// encodes it in one piece.
const PER_BYTE: f64 = 64.0;

/// A tokenizer of the tokenizers library. The library panics at merges that do not fit the prefix of
/// subwords.
fn read_json(bytes: &[u8]) -> Result<tokenizers::Tokenizer, Error> {
    let read = caught(|| tokenizers::Tokenizer::from_bytes(bytes));
    read.map_err(|panic| Error::Tokenizer(panic.into()))?.map_err(Error::Tokenizer)
}

impl Codec {
    /// Prepares a tokenizer.
    ///
    /// # Errors
    /// One line if it lists a character twice, is not one the tokenizers library reads, or makes
    /// texts longer without a sensible limit.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, Error> {
        Ok(Self(match tokenizer {
            Tokenizer::Characters { characters } => {
                let characters: Vec<char> = characters.chars().collect();
                let mut ids = HashMap::new();
                for (&c, id) in characters.iter().zip(0..) {
                    if ids.insert(c, id).is_some() {
                        return Err(Error::RepeatedCharacter(c));
                    }
                }
                Kind::Characters { ids, characters }
            }
            Tokenizer::Json { json } => {
                let bytes = serde_json::to_vec(json).map_err(|e| Error::Tokenizer(e.into()))?;
                let mut tokenizer = read_json(&bytes)?;
                growth::check(&tokenizer)?;
                // A text is encoded as it is, however long: these are for batches.
                tokenizer.with_truncation(None).map_err(Error::Tokenizer)?;
                tokenizer.with_padding(None);
                let cuts = Cuts::of(&tokenizer);
                Kind::Json(Box::new(tokenizer), cuts)
            }
        }))
    }

    /// How many ids there are; every id is below this.
    pub fn vocabulary(&self) -> usize {
        match &self.0 {
            Kind::Characters { characters, .. } => characters.len(),
            Kind::Json(tokenizer, _) => {
                let ids = tokenizer.get_vocab(true).into_values();
                ids.max().map_or(0, |largest| largest as usize + 1)
            }
        }
    }

    /// The id of a token that is in the vocabulary as such, special tokens included.
    pub fn id(&self, token: &str) -> Option<u32> {
        match &self.0 {
            Kind::Characters { ids, .. } => {
                let mut characters = token.chars();
                let first = characters.next()?;
                characters.next().is_none().then(|| ids.get(&first).copied()).flatten()
            }
            Kind::Json(tokenizer, _) => tokenizer.token_to_id(token),
        }
    }

    /// The ids of a text, without special tokens around it.
    ///
    /// # Errors
    /// As [`Codec::each`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::new();
        self.each(text, |id| ids.push(id))?;
        Ok(ids)
    }

    /// The ids of a text that is an input of its own, with the special tokens that its tokenizer puts around it.
    ///
    /// # Errors
    /// As [`Codec::each`].
    pub fn encode_whole(&self, text: &str) -> Result<Vec<u32>, Error> {
        let Kind::Json(tokenizer, _) = &self.0 else { return self.encode(text) };
        check_length(tokenizer, text)?;
        Ok(tokenizer.encode_fast(text, true).map_err(Error::Encode)?.get_ids().to_vec())
    }

    /// The special tokens of a `tokenizer.json`.
    pub fn special(&self) -> Vec<u32> {
        let Kind::Json(tokenizer, _) = &self.0 else { return Vec::new() };
        let all = tokenizer.get_added_tokens_decoder().into_iter();
        all.filter(|(_, token)| token.special).map(|(id, _)| id).collect()
    }

    /// Hears the ids of a text one by one, without special tokens around it.
    ///
    /// A long text is encoded in pieces, in memory that does not grow with it, where the tokenizer
    /// allows that: where the ids of the pieces, one behind the other, are those of the whole, as
    /// its kinds of normaliser and pre-tokenizer guarantee. Any other is encoded as a whole.
    ///
    /// # Errors
    /// One line that names the first character without an id, or what the tokenizers library says;
    /// [`Error::Memory`] for a text that has to be encoded as a whole and is too long for that.
    pub fn each(&self, text: &str, mut id: impl FnMut(u32)) -> Result<(), Error> {
        match &self.0 {
            Kind::Characters { ids, .. } => {
                for (character, number) in text.chars().zip(1..) {
                    let known = ids.len();
                    let unknown = Error::UnknownCharacter { character, number, known };
                    id(ids.get(&character).copied().ok_or(unknown)?);
                }
            }
            Kind::Json(tokenizer, cuts) => {
                for piece in cuts.pieces(text, PIECE) {
                    check_length(tokenizer, piece)?;
                    let encoding = tokenizer.encode_fast(piece, false).map_err(Error::Encode)?;
                    encoding.get_ids().iter().copied().for_each(&mut id);
                }
            }
        }
        Ok(())
    }

    /// The text of ids.
    ///
    /// # Errors
    /// One line that names an id out of range.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        let size = self.vocabulary();
        if let Some(id) = ids.iter().find(|id| **id as usize >= size) {
            return Err(Error::UnknownId { id: *id, size });
        }
        match &self.0 {
            Kind::Characters { characters, .. } => {
                Ok(ids.iter().map(|id| characters[*id as usize]).collect())
            }
            Kind::Json(tokenizer, _) => tokenizer.decode(ids, false).map_err(Error::Tokenizer),
        }
    }
}

/// Whether a piece of text can be encoded in the memory there is.
fn check_length(tokenizer: &tokenizers::Tokenizer, piece: &str) -> Result<(), Error> {
    if piece.len() <= 16 * PIECE {
        return Ok(());
    }
    let need = PER_BYTE * growth::normalised_len(tokenizer, piece)? as f64;
    memory::check(need, || {
        format!(
            "a text of {} that this tokenizer has to encode in one piece",
            memory::size(piece.len() as f64)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_characters_and_ids_are_named() {
        let codec = Codec::new(&Tokenizer::Characters { characters: "abc".into() }).unwrap();
        let error = codec.encode("abXc").unwrap_err().to_string();
        assert!(error.contains("'X'") && error.contains("number 3"), "{error}");
        assert!(codec.decode(&[0, 3]).unwrap_err().to_string().contains("id 3"));
        assert!(Codec::new(&Tokenizer::Characters { characters: "aba".into() }).is_err());
    }

    #[test]
    fn a_merge_shorter_than_the_prefix_of_subwords_is_an_error() {
        let json = serde_json::json!({"model": {
            "type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]],
            "continuing_subword_prefix": "##",
        }});
        let error = Codec::new(&Tokenizer::Json { json }).err().expect("is refused").to_string();
        assert!(!error.contains('\n'), "{error}");
    }
}
