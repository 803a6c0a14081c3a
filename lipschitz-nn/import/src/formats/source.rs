//! A file that stays open: what is read later is of the file that was opened, whatever happens to
//! its name, and a file that is written into meanwhile is refused.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use lipschitz_nn::{At, Error};

#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    file: Mutex<File>,
    /// Its length, and when it was last written to, where the system says so.
    state: (u64, Option<SystemTime>),
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        // Opening a pipe could wait for ever.
        if !std::fs::metadata(path).at(path)?.is_file() {
            return Err(Error::file(path, "is no regular file"));
        }
        let file = File::open(path).at(path)?;
        let state = state(&file).at(path)?;
        Ok(Self { path: path.to_path_buf(), file: Mutex::new(file), state })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// In bytes.
    pub(crate) fn length(&self) -> u64 {
        self.state.0
    }

    /// The file from `offset` on.
    pub(crate) fn at(&self, offset: u64) -> Result<MutexGuard<'_, File>, Error> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset)).at(&self.path)?;
        Ok(file)
    }

    /// Fails if the file was written to since it was opened.
    pub(crate) fn check(&self, file: &File) -> Result<(), Error> {
        if state(file).at(&self.path)? == self.state {
            return Ok(());
        }
        let what = "has changed since it was opened; start again when nothing writes to it";
        Err(self.wrong(what))
    }

    /// These bytes, none of which lie outside the file.
    pub(crate) fn bytes(&self, offset: u64, count: u64) -> Result<Vec<u8>, Error> {
        if offset.checked_add(count).is_none_or(|end| end > self.length()) {
            let length = self.length();
            return Err(self.wrong(format!(
                "is truncated: {count} bytes at {offset} are wanted of {length}; fetch it again"
            )));
        }
        let file = self.at(offset)?;
        let mut bytes = vec![0; count as usize];
        let read = (&*file).read_exact(&mut bytes);
        self.check(&file)?;
        read.at(&self.path)?;
        Ok(bytes)
    }

    /// The first bytes, fewer if the file has no more.
    pub(crate) fn start(&self, count: u64) -> Result<Vec<u8>, Error> {
        self.bytes(0, count.min(self.length()))
    }

    /// The last bytes, fewer if the file has no more.
    pub(crate) fn end(&self, count: u64) -> Result<Vec<u8>, Error> {
        let count = count.min(self.length());
        self.bytes(self.length() - count, count)
    }

    /// An error about the file.
    pub(crate) fn wrong(&self, what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::file(&self.path, what)
    }
}

fn state(file: &File) -> std::io::Result<(u64, Option<SystemTime>)> {
    let found = file.metadata()?;
    Ok((found.len(), found.modified().ok()))
}
