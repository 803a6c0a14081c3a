//! Where a text may be cut so that the tokens of its parts, one behind the other, are those of the
//! whole.
//!
//! A tokenizer finds its added tokens in a text, normalises what is between them, cuts that into
//! words and makes tokens of each word alone. So a text `LR` has the tokens of `L` and then those
//! of `R` if at the cut no added token is torn, the normaliser works on both sides apart, and a
//! word ends in either case. There are two kinds of cut where many tokenizers do that:
//!
//! - [`Cut::Space`], before a space between words: `L` ends with two ASCII letters, `R` begins with
//!   a space and two more. Normalisers leave these five characters as they are, but for capitals,
//!   and nothing composes across them. Pre-tokenizers end a word at a space after a letter, and one
//!   that puts a space in front of a text finds it there.
//! - [`Cut::Line`], after the end of a line: `L` ends with a newline behind a character that is no
//!   white space, and `R` begins with one that is none either. The published patterns make the
//!   newline a word or the end of one: whether another follows or the text ends, it is the whole
//!   run of white space, so what looks ahead finds the same.
//!
//! A kind of normaliser or pre-tokenizer that is not known to do so allows no cut.

use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, NormalizerWrapper, PreTokenizerWrapper,
};

use crate::growth::pattern;

/// Published patterns of words, of GPT-2, GPT-4 and Llama 3, Qwen 2, and GPT-4o. A letter and a
/// space are in one match only if the space is its first character, and a newline is followed in its
/// match by line ends alone (or by `/`, in the last).
const PATTERNS: [&str; 5] = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// A kind of place in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Space,
    Line,
}

/// The kinds of cut that a tokenizer allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cuts {
    space: bool,
    line: bool,
}

impl Cuts {
    const NONE: Self = Self { space: false, line: false };
    const SPACE: Self = Self { space: true, line: false };
    const BOTH: Self = Self { space: true, line: true };

    /// Those of a tokenizer.
    pub(crate) fn of(tokenizer: &tokenizers::Tokenizer) -> Self {
        let normaliser = tokenizer.get_normalizer();
        let before = normaliser.map_or(Self::BOTH, normalised);
        // Without a pre-tokenizer the whole text is a word.
        let words = tokenizer.get_pre_tokenizer().map_or(Self::NONE, separated);
        let added = tokenizer.get_added_tokens_decoder();
        let tokens = added.values().map(|token| around(token, normaliser));
        tokens.fold(before.and(words), Self::and)
    }

    fn and(self, other: Self) -> Self {
        Self { space: self.space && other.space, line: self.line && other.line }
    }

    /// A text in pieces of at least so many bytes, cut as soon after that as it may be.
    pub(crate) fn pieces(self, text: &str, least: usize) -> impl Iterator<Item = &str> {
        let mut rest = text;
        // An empty text is one piece, too.
        let mut ended = false;
        std::iter::from_fn(move || {
            if ended {
                return None;
            }
            let (piece, after) = rest.split_at(self.next(rest, least).unwrap_or(rest.len()));
            ended = after.is_empty();
            rest = after;
            Some(piece)
        })
    }

    /// The first place from `least` on where a text may be cut.
    fn next(self, text: &str, least: usize) -> Option<usize> {
        let allowed = |cut: Cut| match cut {
            Cut::Space => self.space,
            Cut::Line => self.line,
        };
        (least.max(1)..text.len()).find(|at| kind(text, *at).is_some_and(allowed))
    }
}

/// The kind of cut that there is at a place of a text.
fn kind(text: &str, at: usize) -> Option<Cut> {
    let bytes = text.as_bytes();
    let letters = |range: std::ops::Range<usize>| {
        bytes.get(range).is_some_and(|some| some.iter().all(u8::is_ascii_alphabetic))
    };
    if bytes[at] == b' ' {
        let is = at >= 2 && letters(at - 2..at) && letters(at + 1..at + 3);
        return is.then_some(Cut::Space);
    }
    if bytes[at - 1] != b'\n' {
        return None;
    }
    let before = text[..at - 1].chars().next_back()?;
    let after = text[at..].chars().next()?;
    let is = !before.is_whitespace() && !after.is_whitespace() && after != '/';
    is.then_some(Cut::Line)
}

/// The cuts whose sides a normaliser treats apart, and whose characters it leaves as they are.
fn normalised(normaliser: &NormalizerWrapper) -> Cuts {
    use NormalizerWrapper as N;
    match normaliser {
        // Neither makes white space of anything else, nor composes a newline with what follows.
        N::NFC(_) | N::NFD(_) | N::Lowercase(_) => Cuts::BOTH,
        // The compatible forms of some marks are a space and the mark; others are taken away.
        N::NFKC(_) | N::NFKD(_) | N::StripAccents(_) | N::Nmt(_) => Cuts::SPACE,
        // Newlines become spaces, and spaces come around ideographs.
        N::BertNormalizer(_) => Cuts::SPACE,
        // One character, with its marks, after the other.
        N::Precompiled(_) if keeps_ascii(normaliser) => Cuts::SPACE,
        N::Replace(replace) => match pattern(replace) {
            // Runs of spaces are not next to a cut.
            Some(ReplacePattern::Regex(pattern)) if pattern == " {2,}" => Cuts::SPACE,
            // It finds nothing that has one of the five characters.
            Some(ReplacePattern::String(pattern))
                if !pattern.is_empty()
                    && !pattern.contains(|c: char| c == ' ' || c.is_ascii_alphabetic()) =>
            {
                Cuts::SPACE
            }
            _ => Cuts::NONE,
        },
        N::Sequence(all) => all.as_ref().iter().map(normalised).fold(Cuts::BOTH, Cuts::and),
        // At the beginning and the end of a text.
        N::StripNormalizer(_) | N::Prepend(_) => Cuts::NONE,
        // Spaces become other characters.
        N::Precompiled(_) | N::ByteLevel(_) => Cuts::NONE,
    }
}

/// Whether a normaliser leaves ASCII letters and the space as they are.
fn keeps_ascii(normaliser: &NormalizerWrapper) -> bool {
    let kept = |c: char| {
        let mut text = NormalizedString::from(String::from(c));
        normaliser.normalize(&mut text).is_ok() && text.get().chars().eq([c])
    };
    ('a'..='z').chain('A'..='Z').chain([' ']).all(kept)
}

/// The cuts at which a pre-tokenizer ends a word.
fn separated(pre_tokenizer: &PreTokenizerWrapper) -> Cuts {
    use PreTokenizerWrapper as P;
    match pre_tokenizer {
        P::BertPreTokenizer(_) | P::Whitespace(_) | P::WhitespaceSplit(_) => Cuts::BOTH,
        // A word with a space in front already gets no other.
        P::ByteLevel(bytes) if bytes.use_regex => {
            Cuts { space: true, line: !bytes.add_prefix_space }
        }
        P::Metaspace(spaces) if spaces.split => Cuts::SPACE,
        P::Split(split) => {
            // Each match is a word.
            let kept = matches!(
                (split.behavior, split.invert),
                (SplitDelimiterBehavior::Isolated, false) | (SplitDelimiterBehavior::Removed, true)
            );
            match &split.pattern {
                SplitPattern::Regex(regex) if kept && PATTERNS.contains(&regex.as_str()) => {
                    Cuts::BOTH
                }
                _ => Cuts::NONE,
            }
        }
        P::Sequence(all) => in_turn(all.as_ref()),
        P::ByteLevel(_)
        | P::Metaspace(_)
        | P::Delimiter(_)
        | P::Punctuation(_)
        | P::Digits(_)
        | P::UnicodeScripts(_)
        | P::FixedLength(_) => Cuts::NONE,
    }
}

/// Those of pre-tokenizers one after the other: each cuts every word of the last alone, so a cut
/// that one of them makes stays. Before it there may be such as leave letters and white space
/// together as they find them.
fn in_turn(all: &[PreTokenizerWrapper]) -> Cuts {
    use PreTokenizerWrapper as P;
    let transparent = |p: &&P| matches!(p, P::Digits(_) | P::Punctuation(_));
    let cuts = all.iter().find(|p| !transparent(p)).map_or(Cuts::NONE, separated);
    // What is put in front of a text is put in front of any of its parts.
    let prefixes = all.iter().any(|p| match p {
        P::ByteLevel(bytes) => bytes.add_prefix_space,
        P::Metaspace(_) | P::Sequence(_) => true,
        _ => false,
    });
    Cuts { line: cuts.line && !prefixes, ..cuts }
}

/// The cuts that an added token does not reach across.
fn around(token: &AddedToken, normaliser: Option<&NormalizerWrapper>) -> Cuts {
    let mut forms = vec![token.content.clone()];
    if let (true, Some(normaliser)) = (token.normalized, normaliser) {
        let mut text = NormalizedString::from(token.content.as_str());
        if normaliser.normalize(&mut text).is_err() {
            return Cuts::NONE;
        }
        forms.push(text.get().to_string());
    }
    let letter = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphabetic());
    // White space beside a token with these goes with it.
    let takes = forms.iter().any(|form| {
        token.lstrip && letter(form.chars().next())
            || token.rstrip && letter(form.chars().next_back())
    });
    let holds_cut = |form: &String| {
        form.as_bytes().windows(2).any(|pair| pair[0].is_ascii_alphabetic() && pair[1] == b' ')
    };
    Cuts {
        space: !takes && !forms.iter().any(holds_cut),
        line: !token.lstrip && !forms.iter().any(|form| form.contains('\n')),
    }
}

#[cfg(test)]
mod tests;
