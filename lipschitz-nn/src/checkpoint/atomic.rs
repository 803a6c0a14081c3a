//! Writing a file in one step.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{At, Error};

/// Writes a file through a temporary one next to it, so that a crash or a full disk leaves the old
/// one whole. A link is followed, and what is no file, such as a pipe, is written into.
///
/// # Errors
/// [`Error::File`] and [`Error::Io`] name the path and what the system said.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    // These stand for a file that others write to as well, which must not be replaced.
    match path.to_str() {
        Some("/dev/stdout") => return std::io::stdout().write_all(bytes).at(path),
        Some("/dev/stderr") => return std::io::stderr().write_all(bytes).at(path),
        _ => {}
    }
    let path = &target(path);
    if path.metadata().is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        let pipe = File::options().write(true).open(path);
        return pipe.and_then(|mut pipe| pipe.write_all(bytes)).at(path);
    }
    replace(path, bytes)
}

/// Where a link points to, be it to what is not there yet; what is no link, itself.
fn target(path: &Path) -> PathBuf {
    let pointed = |to: PathBuf| path.parent().map(|directory| directory.join(&to)).unwrap_or(to);
    path.canonicalize()
        .or_else(|_| std::fs::read_link(path).map(pointed))
        .unwrap_or_else(|_| path.to_path_buf())
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let name = path.file_name().ok_or_else(|| Error::file(path, "is not the name of a file"))?;
    let fresh = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
    let written = File::create(&fresh)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    let replaced = written.and_then(|()| std::fs::rename(&fresh, path));
    if replaced.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    replaced.at(path)
}
