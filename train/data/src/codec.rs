//! Text to token ids and back: a vocabulary of characters, or a `tokenizer.json`.

use std::collections::HashMap;
use std::path::Path;

use lipschitz_nn::checkpoint::Tokenizer;
use lipschitz_nn::text;

use crate::Error;
use crate::error::one_line;

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
    Codec::new(&tokenizer).map_err(|e| no(&e))?;
    Ok(tokenizer)
}

/// A checkpoint's tokenizer made ready for use.
pub struct Codec(Kind);

enum Kind {
    Characters { ids: HashMap<char, u32>, characters: Vec<char> },
    Json(Box<tokenizers::Tokenizer>),
}

impl Codec {
    /// Prepares a tokenizer.
    ///
    /// # Errors
    /// One line if it lists a character twice or is not one the tokenizers library reads.
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
                let tokenizer =
                    tokenizers::Tokenizer::from_bytes(bytes).map_err(Error::Tokenizer)?;
                Kind::Json(Box::new(tokenizer))
            }
        }))
    }

    /// How many ids there are; every id is below this.
    pub fn vocabulary(&self) -> usize {
        match &self.0 {
            Kind::Characters { characters, .. } => characters.len(),
            Kind::Json(tokenizer) => {
                let ids = tokenizer.get_vocab(true).into_values();
                ids.max().map_or(0, |largest| largest as usize + 1)
            }
        }
    }

    /// The ids of a text, without special tokens around it.
    ///
    /// # Errors
    /// One line that names the first character without an id, or what the tokenizers library says.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        match &self.0 {
            Kind::Characters { ids, .. } => {
                let id = |(character, number)| {
                    let known = ids.len();
                    ids.get(&character).copied().ok_or(Error::UnknownCharacter {
                        character,
                        number,
                        known,
                    })
                };
                text.chars().zip(1..).map(id).collect()
            }
            Kind::Json(tokenizer) => {
                let encoding = tokenizer.encode_fast(text, false).map_err(Error::Encode)?;
                Ok(encoding.get_ids().to_vec())
            }
        }
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
            Kind::Json(tokenizer) => tokenizer.decode(ids, false).map_err(Error::Tokenizer),
        }
    }
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
}
