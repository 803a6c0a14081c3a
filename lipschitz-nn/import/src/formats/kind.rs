//! What a file is, by its first bytes. Its name says nothing: a `.bin` may be of PyTorch or of
//! llama2.c, and a download that failed is a web page under any name.

use std::path::Path;

use lipschitz_nn::checkpoint::MAX_HEADER;
use lipschitz_nn::{Error, kind};

use super::source::Source;
use crate::families::llama2c;

/// A format that is read, or what the file is instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Safetensors,
    /// A zip archive: of PyTorch, or of numpy.
    Zip,
    /// What PyTorch wrote before it wrote zip archives.
    LegacyTorch,
    Gguf,
    Llama2c,
    Onnx,
    /// Known and not read: what it is, and what to do.
    Other(&'static str),
    Unknown,
}

/// What the magic number of PyTorch's former format looks like, as a pickle.
pub(crate) const LEGACY: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// The last bytes of a table of TensorFlow's checkpoints.
const TABLE: [u8; 8] = 0xdb47_7524_8b80_fb57_u64.to_le_bytes();

impl Kind {
    /// Recognises a file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read.
    pub(crate) fn of(source: &Source) -> Result<Self, Error> {
        let start = source.start(kind::START as u64)?;
        let is = |magic: &[u8]| start.starts_with(magic);
        if start.is_empty() {
            return Ok(Self::Other("is empty; fetch it again"));
        }
        if is(b"PK\x03\x04") || is(b"PK\x05\x06") {
            return Ok(Self::Zip);
        }
        if is(b"GGUF") {
            return Ok(Self::Gguf);
        }
        if is(&llama2c::MAGIC.to_le_bytes()) {
            return Ok(Self::Llama2c);
        }
        // A header's length, then JSON. The length may begin as anything, so it is looked at first.
        let header = start.get(8) == Some(&b'{');
        let length = start.iter().take(8).rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        if header && length <= MAX_HEADER {
            return Ok(Self::Safetensors);
        }
        if let Some(known) = kind::fixed(&start) {
            return Ok(Self::Other(known.model));
        }
        // A pickle begins with its protocol.
        if let [0x80, 1..=5, rest @ ..] = start.as_slice() {
            let legacy = LEGACY.starts_with(&rest[..rest.len().min(LEGACY.len())]);
            // Protocol 4 and later begin with the length of a frame.
            let framed = rest.first() == Some(&0x95) && rest.get(9..).is_some_and(is_legacy);
            return Ok(if legacy || framed {
                Self::LegacyTorch
            } else {
                Self::Other(
                    "is a pickle of other Python objects, such as scikit-learn's, not a file of \
                     torch.save; nothing was run; save the model's tensors as safetensors",
                )
            });
        }
        if header && length.to_le_bytes().contains(&0) {
            return Ok(Self::Safetensors);
        }
        if source.length() >= 28 && llama2c::matches(source)? {
            return Ok(Self::Llama2c);
        }
        if start.get(257..262) == Some(b"ustar") {
            return Ok(Self::Other("is a tar archive; unpack it first"));
        }
        if start.get(4..8) == Some(b"TFL3") {
            return Ok(Self::Other(
                "is a TensorFlow Lite model; save the original model's weights as safetensors",
            ));
        }
        if source.length() > 48 && source.end(8)? == TABLE {
            return Ok(Self::Other(
                "is a TensorFlow checkpoint; load it there and save its weights as safetensors or \
                 with numpy.savez",
            ));
        }
        if let Some(what) = text(&start) {
            return Ok(Self::Other(what));
        }
        // Field 1, the version of the format; then the producer, its version, or the graph.
        let next = |tag: u8| [0x12, 0x1a, 0x22, 0x28, 0x32, 0x3a, 0x42].contains(&tag);
        if matches!(start.as_slice(), [0x08, 0x02..=0x20, tag, ..] if next(*tag)) {
            return Ok(Self::Onnx);
        }
        Ok(structured(&start).map_or(Self::Unknown, Self::Other))
    }

    /// Recognises the file at `path`.
    ///
    /// # Errors
    /// As [`Kind::of`].
    pub(crate) fn at(path: &Path) -> Result<Self, Error> {
        Self::of(&Source::open(path)?)
    }
}

fn is_legacy(rest: &[u8]) -> bool {
    rest.starts_with(LEGACY)
}

/// What a text is.
fn text(start: &[u8]) -> Option<&'static str> {
    if !kind::is_text(start) {
        return None;
    }
    if let Some(page) = kind::page(start) {
        return Some(page.model);
    }
    let text = String::from_utf8_lossy(start);
    Some(match text.trim_start_matches('\u{feff}').trim_start().chars().next() {
        None => "is blank; fetch it again",
        Some('{' | '[') => {
            "is JSON text, not a file of weights; give the file of weights, or the directory that \
             holds both"
        }
        Some(_) => "is a text, not a file of weights; check what was downloaded",
    })
}

/// What a file of tagged fields is: protocol buffers and MessagePack have no magic numbers.
fn structured(start: &[u8]) -> Option<&'static str> {
    match start {
        // Field 1, the version; field 2, the graphs.
        [0x08, 0x01, 0x12, ..] => Some(
            "is a TensorFlow SavedModel; load it there and save its weights as safetensors or with \
             numpy.savez",
        ),
        // A map of few, many, or very many entries, whose first key is a text.
        [0x81..=0x8f, 0xa1..=0xbf | 0xd9, ..]
        | [0xde, _, _, 0xa1..=0xbf | 0xd9, ..]
        | [0xdf, _, _, _, _, 0xa1..=0xbf | 0xd9, ..] => Some(
            "is MessagePack, as Flax writes; load it there and save its weights as safetensors or \
             with numpy.savez",
        ),
        _ => None,
    }
}
