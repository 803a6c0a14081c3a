//! The right to write to the directory of a run.

use std::cell::RefCell;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use lipschitz_nn::At;

use crate::Error;
use crate::append_file::is_at;

/// The right to write to the directory of a run, which one process has at a time. The system takes
/// it back when the process ends, however it ends, so nothing has to be cleaned up after a crash.
#[derive(Debug)]
pub struct Lock {
    directory: PathBuf,
    file: RefCell<File>,
}

const NAME: &str = ".lock";

impl Lock {
    /// Takes the right to write to a directory; none if another process has it.
    ///
    /// # Errors
    /// If the directory cannot be written to.
    pub fn take(directory: &Path) -> Result<Option<Self>, Error> {
        let path = directory.join(NAME);
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).at(&path)?;
        match file.try_lock() {
            Ok(()) => {
                let (directory, file) = (directory.to_path_buf(), RefCell::new(file));
                Ok(Some(Self { directory, file }))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(lipschitz_nn::Error::Io { path, error }.into()),
        }
    }

    /// The one that is held, or a new one; none on a file system without locks.
    ///
    /// # Errors
    /// [`Error::RunLocked`] if another process has it.
    pub(crate) fn or_take(
        directory: &Path,
        held: Option<&Rc<Self>>,
    ) -> Result<Option<Rc<Self>>, Error> {
        if let Some(held) = held {
            return Ok(Some(held.clone()));
        }
        match Self::take(directory) {
            // A file system without locks cannot tell; what else is wrong with it shows when the
            // run is written.
            Err(_) => Ok(None),
            Ok(None) => Err(Error::RunLocked(directory.to_path_buf())),
            Ok(lock) => Ok(lock.map(Rc::new)),
        }
    }

    /// Takes the right again if its file was removed, since another process that makes a new one
    /// could not know of this; whether it was.
    ///
    /// # Errors
    /// [`Error::RunLocked`] if another process has taken it in the meantime.
    pub(crate) fn retake(&self) -> Result<bool, Error> {
        if is_at(&self.file.borrow(), &self.directory.join(NAME)) {
            return Ok(false);
        }
        let fresh = Self::take(&self.directory)?;
        let fresh = fresh.ok_or_else(|| Error::RunLocked(self.directory.clone()))?;
        self.file.replace(fresh.file.into_inner());
        Ok(true)
    }
}
