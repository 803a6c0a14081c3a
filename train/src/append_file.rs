//! Files that grow during a run.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use lipschitz_nn::{At, Error, checkpoint};

/// A file that lines are added to until the run ends. It stays open, so that what was written is
/// not lost when the file is removed.
#[derive(Debug)]
pub(crate) struct AppendFile {
    path: PathBuf,
    file: File,
    /// How long it is at least.
    length: u64,
}

/// What others did to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Harm {
    /// It was removed, and is whole again.
    Removed,
    /// It was replaced or cut short; what follows is added to what is there.
    Changed,
}

impl AppendFile {
    /// Opens a file, made if it is missing, to add to its end.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let made = !path.exists();
        let file = File::options().create(true).read(true).append(true).open(path).at(path)?;
        let length = file.metadata().at(path)?.len();
        if made {
            checkpoint::sync(directory(path)).at(path)?;
        }
        Ok(Self { path: path.to_path_buf(), file, length })
    }

    /// Makes a new file.
    ///
    /// # Errors
    /// Those of the system, [`io::ErrorKind::AlreadyExists`] among them.
    pub(crate) fn create_new(path: &Path) -> io::Result<Self> {
        let file = File::options().create_new(true).read(true).append(true).open(path)?;
        checkpoint::sync(directory(path))?;
        Ok(Self { path: path.to_path_buf(), file, length: 0 })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds bytes.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).at(&self.path)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Waits until all of it is on disk; its name is since it was made.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().at(&self.path)
    }

    /// Writes the file again if it was removed, and says what others did to it.
    pub(crate) fn restore(&mut self) -> Result<Option<Harm>, Error> {
        let path = &self.path;
        if is_at(&self.file, path) {
            let length = self.file.metadata().at(path)?.len();
            let cut = length < self.length;
            self.length = length;
            return Ok(cut.then_some(Harm::Changed));
        }
        let harm = if path.exists() { Harm::Changed } else { Harm::Removed };
        if harm == Harm::Removed {
            let mut all = Vec::new();
            self.file.rewind().at(path)?;
            self.file.read_to_end(&mut all).at(path)?;
            checkpoint::write(path, &all)?;
        }
        *self = Self::open(path)?;
        Ok(Some(harm))
    }
}

/// Whether this open file is still the one of that name.
#[cfg(unix)]
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |m: std::fs::Metadata| (m.dev(), m.ino());
    match (file.metadata(), path.metadata()) {
        (Ok(open), Ok(named)) => place(open) == place(named),
        _ => false,
    }
}

/// Whether this open file is still the one of that name: here, whether there is one.
#[cfg(not(unix))]
pub(crate) fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// The directory of a file.
pub(crate) fn directory(path: &Path) -> &Path {
    path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_outlives_the_removal_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = AppendFile::open(&path).unwrap();
        log.append(b"one\n").unwrap();
        assert_eq!(log.restore().unwrap(), None);
        std::fs::remove_file(&path).unwrap();
        log.append(b"two\n").unwrap();
        assert_eq!(log.restore().unwrap(), Some(Harm::Removed));
        log.append(b"three\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\nthree\n");
        assert_eq!(log.restore().unwrap(), None);
        // What another put there is added to.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "other\n").unwrap();
        assert_eq!(log.restore().unwrap(), Some(Harm::Changed));
        log.append(b"four\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"other\nfour\n");
        std::fs::write(&path, "").unwrap();
        assert_eq!(log.restore().unwrap(), Some(Harm::Changed));
        log.append(b"five\n").unwrap();
        assert_eq!(
            (log.restore().unwrap(), std::fs::read(&path).unwrap()),
            (None, b"five\n".into())
        );
    }
}
