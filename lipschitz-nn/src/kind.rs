//! What a file is, by its first bytes, where it is not what it should be. A name says nothing: a
//! download that failed is a web page under any name.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::Error;

/// How much of a file is looked at, in bytes.
pub const START: usize = 1024;

/// A kind of file that is known by its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// What it is: `is compressed with gzip`.
    pub what: &'static str,
    /// What to do, whatever it should have been.
    pub remedy: Option<&'static str>,
    /// What it is and what to do, where a model was wanted.
    pub model: &'static str,
}

impl Known {
    const fn new(what: &'static str, model: &'static str) -> Self {
        Self { what, remedy: None, model }
    }

    /// A file around another.
    const fn packed(what: &'static str, model: &'static str) -> Self {
        Self { what, remedy: Some("unpack it first"), model }
    }

    /// What is wrong with a file that was to be `wanted`, such as `a certificate`.
    pub fn instead_of(&self, wanted: &str) -> String {
        let text = format!("{}, not {wanted}", self.what);
        match self.remedy {
            Some(remedy) => format!("{text}; {remedy}"),
            None => text,
        }
    }
}

/// A pointer in place of a file.
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";

/// A document that can be all text.
const PDF: &[u8] = b"%PDF";

/// Formats that are known by a fixed start.
const STARTS: &[(&[u8], Known)] = &[
    (
        LFS,
        Known {
            what: "is a Git LFS pointer, which stands for the file itself",
            remedy: Some("run `git lfs pull`, or download the file itself"),
            model: "is a Git LFS pointer, not the file that it stands for; run `git lfs pull`, or \
                    download the file itself",
        },
    ),
    (
        b"\x1f\x8b",
        Known::packed("is compressed with gzip", "is compressed with gzip; unpack it first"),
    ),
    (
        b"BZh",
        Known::packed("is compressed with bzip2", "is compressed with bzip2; unpack it first"),
    ),
    (
        b"\xfd7zXZ\0",
        Known::packed("is compressed with xz", "is compressed with xz; unpack it first"),
    ),
    (
        b"\x28\xb5\x2f\xfd",
        Known::packed(
            "is compressed with Zstandard",
            "is compressed with Zstandard; unpack it first",
        ),
    ),
    (
        b"7z\xbc\xaf\x27\x1c",
        Known::packed("is a 7-Zip archive", "is a 7-Zip archive; unpack it first"),
    ),
    (b"Rar!\x1a\x07", Known::packed("is a RAR archive", "is a RAR archive; unpack it first")),
    (
        b"\x89HDF\r\n\x1a\n",
        Known::new(
            "is an HDF5 file, as Keras writes",
            "is an HDF5 file, as Keras writes; save its weights as safetensors or with numpy.savez",
        ),
    ),
    (
        b"\x93NUMPY",
        Known::new(
            "is a numpy array (.npy)",
            "is a single numpy array (.npy), which says no names; save its matrices with \
             numpy.savez",
        ),
    ),
    (b"lmgg", GGML),
    (b"tjgg", GGML),
    (b"fmgg", GGML),
    (PDF, Known::new("is a PDF document", "is a PDF document, not a model")),
    (b"\x89PNG", PICTURE),
    (b"\xff\xd8\xff", PICTURE),
    (b"\x7fELF", Known::new("is a program", "is a program, not a model")),
    (b"PAR1", PARQUET),
];

const GGML: Known =
    Known::new("is a GGML file, of a model", "is a GGML file from before GGUF; convert it to GGUF");

/// A Parquet file.
pub const PARQUET: Known =
    Known::new("is a Parquet file, of data", "is a Parquet file, of data, not a model");

const PICTURE: Known = Known::new("is a picture", "is a picture, not a model");

/// What a download that failed leaves.
const PAGE: Known = Known {
    what: "is a web page or XML",
    remedy: Some("the download failed, or needs you to sign in; fetch it again"),
    model: "is a web page or XML, not a model: the download failed, or needs you to sign in; \
            fetch it again",
};

/// A safetensors file, whole or not.
pub const SAFETENSORS: Known =
    Known::new("is a safetensors file, of weights", "is a safetensors file, of weights");

const ZIP: Known = Known::packed(
    "is a zip archive, as PyTorch and numpy write too",
    "is a zip archive, as PyTorch and numpy write too",
);
const GGUF: Known = Known::new("is a GGUF file, of a model", "is a GGUF file, of a model");
const PICKLE: Known = Known::new(
    "is a pickle of Python objects, as PyTorch writes too",
    "is a pickle of Python objects, as PyTorch writes too",
);

/// What a file is that a format with a fixed start describes, and that no model is read from.
pub fn fixed(start: &[u8]) -> Option<&'static Known> {
    STARTS.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, known)| known)
}

/// What a binary file is, or a pointer or document in its place, if its start tells.
pub fn known(start: &[u8]) -> Option<&'static Known> {
    let is = |magic: &[u8]| start.starts_with(magic);
    // The length of a header, then the header; the length may begin as anything.
    if start.get(8) == Some(&b'{') && start.get(4..8) == Some(&[0; 4]) {
        return Some(&SAFETENSORS);
    }
    if is(b"PK\x03\x04") || is(b"PK\x05\x06") {
        return Some(&ZIP);
    }
    if is(b"GGUF") {
        return Some(&GGUF);
    }
    if matches!(start, [0x80, 1..=5, ..]) {
        return Some(&PICKLE);
    }
    fixed(start)
}

/// What a text is that is no document of its own kind: a web page, or a pointer.
pub fn page(start: &[u8]) -> Option<&'static Known> {
    let text = String::from_utf8_lossy(start);
    let first = text.trim_start_matches('\u{feff}').trim_start().chars().next();
    if first == Some('<') { Some(&PAGE) } else { stand_in(start) }
}

/// What a file is, binary or text, if its start tells.
pub fn of(start: &[u8]) -> Option<&'static Known> {
    if is_text(start) { page(start) } else { known(start) }
}

/// What the file at a path is, if it can be read and its start tells.
pub fn at(path: &Path) -> Option<&'static Known> {
    let mut start = Vec::new();
    File::open(path).ok()?.take(START as u64).read_to_end(&mut start).ok()?;
    of(&start)
}

/// Refuses a device, such as `/dev/zero`: it may have no end.
///
/// # Errors
/// [`Error::File`].
pub fn no_device(path: &Path) -> Result<(), Error> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = path.metadata().map(|there| there.file_type());
        if kind.is_ok_and(|kind| kind.is_char_device() || kind.is_block_device()) {
            return Err(Error::file(path, "is a device; name a file"));
        }
    }
    Ok(())
}

/// What a text is that stands for another file, or that only looks like text.
pub fn stand_in(start: &[u8]) -> Option<&'static Known> {
    [LFS, PDF].iter().find(|magic| start.starts_with(magic)).and_then(|magic| fixed(magic))
}

/// Whether a start is that of a text: UTF-8, perhaps cut within a character, without control
/// characters that no text has.
pub fn is_text(start: &[u8]) -> bool {
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => {
            std::str::from_utf8(&start[..e.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\r' | '\n' | '\u{c}'))
}
