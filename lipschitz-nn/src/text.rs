//! Text files: configs, certificates, tokenizers, graphs. A file of another kind is named for what
//! it is, and a mark of the byte order in front is passed over.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::kind::{self, START};
use crate::{At, Error};

/// Reads a text file that was to be `wanted`, such as `a certificate`.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::File`] says what it is instead, or where it is not
/// UTF-8.
pub fn read(path: &Path, wanted: &str) -> Result<String, Error> {
    let mut file = File::open(path).at(path)?;
    read_from(&mut file, wanted).at(path)?.map_err(|what| Error::file(path, what))
}

/// As [`read`], of what a reader gives; what is wrong with it is given as words.
///
/// # Errors
/// What the operating system says.
pub fn read_from(from: &mut impl Read, wanted: &str) -> io::Result<Result<String, String>> {
    // A large file of another kind is not read to its end.
    let mut bytes = Vec::new();
    from.by_ref().take(START as u64).read_to_end(&mut bytes)?;
    if let Some(what) = wrong(&bytes, wanted) {
        return Ok(Err(what));
    }
    from.read_to_end(&mut bytes)?;
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => {
            let at = e.utf8_error().valid_up_to();
            let byte = e.as_bytes().get(at).copied().unwrap_or_default();
            let what = format!("is not UTF-8: byte {at} is 0x{byte:02x}; save it as UTF-8 text");
            return Ok(Err(what));
        }
    };
    Ok(Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_string(),
        None => text,
    }))
}

/// What is wrong with the start of a text, if anything is.
fn wrong(start: &[u8], wanted: &str) -> Option<String> {
    if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") {
        return Some("is text in UTF-16; save it as UTF-8".into());
    }
    if kind::is_text(start) {
        return kind::page(start).map(|known| known.instead_of(wanted));
    }
    kind::known(start).map(|known| known.instead_of(wanted)).or_else(|| {
        let controls = std::str::from_utf8(start).is_ok();
        controls.then(|| format!("is a binary file, not {wanted}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Result<String, String> {
        read_from(&mut &bytes[..], "a config").unwrap()
    }

    #[test]
    fn files_of_other_kinds_are_named() {
        for (bytes, said) in [
            (&b"\x1f\x8b\x08\0\0\0"[..], "is compressed with gzip, not a config; unpack it first"),
            (b"<!DOCTYPE html>\n<html>", "is a web page or XML, not a config; the download"),
            (b"  \n<?xml version=\"1.0\"?>", "is a web page or XML"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
            (b"%PDF-1.7\n1 0 obj", "is a PDF document, not a config"),
            (b"%PDF-1.7\n%\xb5\xb5\xb5", "is a PDF document, not a config"),
            (b"PK\x03\x04\x14\0", "is a zip archive"),
            (b"GGUF\x03\0\0\0", "is a GGUF file"),
            (b"\x89HDF\r\n\x1a\n\0", "is an HDF5 file"),
            (b"\x80\x04\x95\x0a\0", "is a pickle of Python objects"),
            (b"\x40\0\0\0\0\0\0\0{\"a\":", "is a safetensors file"),
            (b"\xff\xfea\0=\0", "is text in UTF-16"),
            (b"a = 1\0", "is a binary file, not a config"),
            (b"caf\xe9 = 1", "byte 3 is 0xe9"),
        ] {
            let found = of(bytes).unwrap_err();
            assert!(found.starts_with(said) || found.contains(said), "{found}, wanted {said}");
        }
    }

    #[test]
    fn a_mark_of_the_byte_order_is_passed_over() {
        assert_eq!(of("\u{feff}a = 1\n".as_bytes()).unwrap(), "a = 1\n");
        // What is empty is for the reader of the text to judge.
        assert_eq!(of(b"").unwrap(), "");
        // Cut within a character, a start is still that of a text.
        let long = "ä".repeat(START);
        assert_eq!(of(format!("x{long}").as_bytes()).unwrap().chars().count(), START + 1);
    }
}
