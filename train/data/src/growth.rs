//! How much longer a tokenizer makes a text before it is cut into tokens. A few replacements, one
//! behind the other, could make gigabytes out of a line.

use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::{
    DecoderWrapper, NormalizedString, Normalizer, NormalizerWrapper, PreTokenizerWrapper,
};

use crate::Error;

/// Bytes that one byte of text may become. Tokenizers in use stay below a hundred.
const MAX_GROWTH: f64 = 4096.0;

/// Whether a tokenizer makes at most [`MAX_GROWTH`] bytes out of one, of text that it encodes or of
/// tokens that it decodes.
///
/// # Errors
/// [`Error::Explosive`] if it can make more.
pub(crate) fn check(tokenizer: &tokenizers::Tokenizer) -> Result<(), Error> {
    let normaliser = tokenizer.get_normalizer().map_or(1.0, normaliser);
    let encoded = normaliser * tokenizer.get_pre_tokenizer().map_or(1.0, pre_tokenizer);
    let decoded = tokenizer.get_decoder().map_or(1.0, decoder);
    match encoded.max(decoded) {
        growth if growth > MAX_GROWTH => Err(Error::Explosive { growth, most: MAX_GROWTH }),
        _ => Ok(()),
    }
}

/// The length of a text after the tokenizer's normaliser, found in little memory: up to what it
/// would do across the ends of short parts.
pub(crate) fn normalised_len(
    tokenizer: &tokenizers::Tokenizer,
    text: &str,
) -> Result<usize, Error> {
    const PART: usize = 256;
    let Some(normaliser) = tokenizer.get_normalizer() else { return Ok(text.len()) };
    let (mut rest, mut length) = (text, 0usize);
    while !rest.is_empty() {
        let end = (PART..rest.len()).find(|at| rest.is_char_boundary(*at)).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        let mut part = NormalizedString::from(part);
        normaliser.normalize(&mut part).map_err(Error::Encode)?;
        length = length.saturating_add(part.len());
        rest = after;
    }
    Ok(length)
}

/// The most bytes that a normaliser makes out of one.
fn normaliser(normaliser: &NormalizerWrapper) -> f64 {
    use NormalizerWrapper as N;
    match normaliser {
        // No more than the number of characters, and no fewer than one.
        N::StripNormalizer(_) | N::StripAccents(_) | N::Nmt(_) => 1.0,
        // `İ`: two bytes become three.
        N::Lowercase(_) => 1.5,
        N::ByteLevel(_) => 2.0,
        // UTF-8 in canonical form: up to three times as long (Unicode Standard Annex 15).
        N::NFC(_) | N::NFD(_) => 3.0,
        // U+FDFA: 3 bytes become 33.
        N::NFKC(_) | N::NFKD(_) => 11.0,
        // Spaces around ideographs, then NFD and small letters.
        N::BertNormalizer(_) => 5.0 / 3.0 * 3.0 * 1.5,
        N::Sequence(all) => all.as_ref().iter().map(self::normaliser).product(),
        N::Prepend(prepend) => 1.0 + prepend.prepend.len() as f64,
        N::Replace(replace) => self::replace(replace),
        // A table of replacements; the library does not show it. SentencePiece's own have U+FDFA.
        N::Precompiled(_) => 33.0,
    }
}

/// The most bytes that a replacement makes out of one: a pattern of so many bytes becomes the
/// content, and a pattern that matches nothing at all puts it between any two.
fn replace(replace: &tokenizers::normalizers::Replace) -> f64 {
    let content = replace.content.len() as f64;
    match pattern(replace) {
        Some(ReplacePattern::String(pattern)) if !pattern.is_empty() => {
            (content / pattern.len() as f64).max(1.0)
        }
        _ => 2.0 * content + 1.0,
    }
}

/// What a replacement looks for, which the library shows in JSON alone.
pub(crate) fn pattern(replace: &tokenizers::normalizers::Replace) -> Option<ReplacePattern> {
    let mut json = serde_json::to_value(replace).ok()?;
    serde_json::from_value(json.get_mut("pattern")?.take()).ok()
}

/// The most bytes that a pre-tokenizer makes out of one.
fn pre_tokenizer(pre_tokenizer: &PreTokenizerWrapper) -> f64 {
    use PreTokenizerWrapper as P;
    match pre_tokenizer {
        // A space in front of a part of one byte, and two bytes for one that shows nothing.
        P::ByteLevel(_) => 3.0,
        // A replacement of up to four bytes, and one in front.
        P::Metaspace(_) => 5.0,
        P::Sequence(all) => all.as_ref().iter().map(self::pre_tokenizer).product(),
        P::BertPreTokenizer(_)
        | P::Delimiter(_)
        | P::Whitespace(_)
        | P::Split(_)
        | P::Punctuation(_)
        | P::WhitespaceSplit(_)
        | P::Digits(_)
        | P::UnicodeScripts(_)
        | P::FixedLength(_) => 1.0,
    }
}

/// The most bytes that a decoder makes out of one of a token's.
fn decoder(decoder: &DecoderWrapper) -> f64 {
    use DecoderWrapper as D;
    match decoder {
        D::Replace(replace) => self::replace(replace),
        D::Sequence(all) => all.get_decoders().iter().map(self::decoder).product(),
        // A space between tokens.
        D::WordPiece(_) | D::BPE(_) | D::CTC(_) => 2.0,
        // Bytes that are no text become U+FFFD.
        D::ByteLevel(_) | D::ByteFallback(_) => 3.0,
        D::Metaspace(_) | D::Fuse(_) | D::Strip(_) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tokenizer(normalizer: &Value, decoder: &Value) -> tokenizers::Tokenizer {
        let json = json!({"version": "1.0", "added_tokens": [], "normalizer": normalizer,
            "decoder": decoder, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}});
        tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap()
    }

    fn replacements(count: usize, content: &str, pattern: &Value) -> Value {
        let one = json!({"type": "Replace", "pattern": pattern, "content": content});
        json!({"type": "Sequence", "normalizers": vec![one.clone(); count],
            "decoders": vec![one; count]})
    }

    #[test]
    fn replacements_that_explode_are_refused() {
        let letter = json!({"String": "a"});
        let double = |count| replacements(count, "aa", &letter);
        check(&tokenizer(&double(12), &Value::Null)).unwrap();
        let said = check(&tokenizer(&double(40), &Value::Null)).unwrap_err().to_string();
        assert!(said.contains("1099511627776 bytes") && said.contains("4096"), "{said}");
        assert!(check(&tokenizer(&Value::Null, &double(40))).is_err());
        let long = "x".repeat(5000);
        assert!(check(&tokenizer(&replacements(1, &long, &letter), &Value::Null)).is_err());
        // One that matches between any two characters.
        let nothing = replacements(6, "xx", &json!({"Regex": "q*"}));
        assert!(check(&tokenizer(&nothing, &Value::Null)).is_err());
    }

    /// Each normaliser on texts that it makes longer.
    #[test]
    fn no_normaliser_makes_more_than_is_said() {
        let all = [
            json!({"type": "NFC"}),
            json!({"type": "NFD"}),
            json!({"type": "NFKC"}),
            json!({"type": "NFKD"}),
            json!({"type": "Lowercase"}),
            json!({"type": "StripAccents"}),
            json!({"type": "Nmt"}),
            json!({"type": "ByteLevel"}),
            json!({"type": "Strip", "strip_left": true, "strip_right": true}),
            json!({"type": "Prepend", "prepend": "▁▁"}),
            json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": false, "lowercase": true}),
            replacements(1, "bcde", &json!({"String": "a"})),
            replacements(3, "xy", &json!({"Regex": "x*"})),
        ];
        let every = (0..0x11_0000u32).filter_map(char::from_u32).map(String::from);
        let texts: Vec<String> = every.chain(["aaaa".into(), "İ中ﷺ".into()]).collect();
        for json in all {
            let tokenizer = tokenizer(&json, &Value::Null);
            let normalizer = tokenizer.get_normalizer().unwrap();
            let most = normaliser(normalizer);
            for text in &texts {
                let mut after = NormalizedString::from(text.as_str());
                normalizer.normalize(&mut after).unwrap();
                let (before, after) = (text.len() as f64, after.len() as f64);
                assert!(after <= most * before + 1e-9, "{json}: {text:?} {before} {after}");
            }
        }
    }

    #[test]
    fn the_length_after_normalising_is_found_in_parts() {
        let tokenizer = tokenizer(&replacements(2, "aa", &json!({"String": "a"})), &Value::Null);
        let text = "aä".repeat(1000);
        assert_eq!(normalised_len(&tokenizer, &text).unwrap(), 6000);
    }
}
