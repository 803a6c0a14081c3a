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

/// Whether [`write()`] could write there, found out before there is anything to write.
///
/// # Errors
/// As those of [`write()`].
pub fn writable(path: &Path) -> Result<(), Error> {
    let path = &target(path);
    match path.metadata() {
        Ok(there) if there.is_dir() => Err(Error::file(path, "is a directory; name a file")),
        Ok(there) if !there.is_file() => Ok(()),
        _ => temporary(path).map(drop),
    }
}

/// Where a link points to, be it to what is not there yet; what is no link, itself.
fn target(path: &Path) -> PathBuf {
    let pointed = |to: PathBuf| path.parent().map(|directory| directory.join(&to)).unwrap_or(to);
    path.canonicalize()
        .or_else(|_| std::fs::read_link(path).map(pointed))
        .unwrap_or_else(|_| path.to_path_buf())
}

/// A temporary file has a random name, so that two writers of one file do not share it, and is made
/// by this call or not at all, so that no link that waits under its name is followed. The directory
/// is synced too: a new name outlives a loss of power only then.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut fresh = temporary(path)?;
    fresh.write_all(bytes).and_then(|()| fresh.as_file().sync_all()).at(path)?;
    fresh.persist(path).map_err(|e| e.error).at(path)?;
    sync(directory(path)).at(path)
}

fn temporary(path: &Path) -> Result<tempfile::NamedTempFile, Error> {
    if path.file_name().is_none() {
        return Err(Error::file(path, "is not the name of a file"));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(SUFFIX).rand_bytes(RANDOM);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(directory(path)).at(path)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

const SUFFIX: &str = ".new";
/// Random characters in a temporary file's name.
const RANDOM: usize = 12;

/// Whether a file name is that of a temporary file of [`write()`], which only a killed process leaves
/// behind.
#[must_use]
pub fn is_temporary(name: &str) -> bool {
    let random = name.strip_prefix('.').and_then(|name| name.strip_suffix(SUFFIX));
    random.is_some_and(|r| r.len() == RANDOM && r.chars().all(|c| c.is_ascii_alphanumeric()))
}

/// Waits until a directory's names are on disk, where the system can.
///
/// # Errors
/// What the system says.
pub fn sync(directory: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn no_link_under_a_temporary_name_is_followed_and_long_names_fit() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        symlink(&victim, dir.path().join(".report.json.new")).unwrap();
        assert!(is_temporary(".Ab3dEf6hIj9L.new"));
        for name in [".lock", ".report.json.new", "Ab3dEf6hIj9L.new", ".Ab3dEf6hIj9L"] {
            assert!(!is_temporary(name), "{name}");
        }
        let name = format!("{}.json", "n".repeat(250));
        for name in ["report.json", &name] {
            let path = dir.path().join(name);
            write(&path, b"content").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"content");
            // As readable as any file that a program makes.
            assert_ne!(path.metadata().unwrap().permissions().mode() & 0o077, 0);
        }
        assert_eq!(std::fs::read(&victim).unwrap(), b"untouched");
    }

    /// What is left behind can be told by its name.
    #[test]
    fn a_temporary_file_is_known_as_one() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for _ in 0..200 {
                    write(&dir.path().join("file"), &[0; 1 << 16]).unwrap();
                }
            });
            let mut seen = 0;
            while !writer.is_finished() {
                for entry in dir.path().read_dir().unwrap().flatten() {
                    let name = entry.file_name().into_string().unwrap();
                    if name != "file" {
                        assert!(is_temporary(&name), "{name}");
                        seen += 1;
                    }
                }
            }
            assert!(seen > 0);
        });
    }

    /// Two writers and a reader: what is read is what one of them wrote.
    #[test]
    fn writers_of_one_file_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shared");
        write(&path, &[0; 1 << 16]).unwrap();
        std::thread::scope(|scope| {
            for byte in [1, 2] {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..100 {
                        write(path, &vec![byte; 1 << 16]).unwrap();
                    }
                });
            }
            for _ in 0..2000 {
                let found = std::fs::read(&path).unwrap();
                assert_eq!(found.len(), 1 << 16);
                assert!(found.iter().all(|byte| *byte == found[0]));
            }
        });
        // Nothing is left behind.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
