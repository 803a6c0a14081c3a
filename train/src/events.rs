//! TensorBoard event files.
//!
//! A file is a sequence of TFRecord frames: the length (u64, little endian), its checksum, the
//! bytes, their checksum. Each holds one `Event` protobuf message, encoded here by hand: `1:
//! double wall_time`, `2: int64 step`, `3: string file_version`, `5: Summary { 1: Value { 1: string
//! tag, 2: float simple_value } }`, `7: SessionLog { 1: status }`.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use lipschitz_nn::{At, Error};

use crate::append_file::{AppendFile, Harm};

/// Writes scalars for TensorBoard. Every start of a run writes a file of its own; TensorBoard reads
/// those of a directory as one run.
#[derive(Debug)]
pub struct EventWriter {
    file: AppendFile,
    /// Events that are not written yet.
    waiting: Vec<u8>,
}

impl EventWriter {
    /// A new file `events.out.tfevents.<seconds>.train` in a directory, created if missing.
    /// Seconds already taken are passed over, so that starts within one second stay apart and files
    /// sort by age.
    ///
    /// # Errors
    /// [`Error::File`] names the file and what the system said.
    pub fn create(directory: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(directory).at(directory)?;
        let mut seconds = since_epoch().as_secs();
        let file = loop {
            let path = directory.join(format!("events.out.tfevents.{seconds:010}.train"));
            match AppendFile::create_new(&path) {
                Ok(file) => break file,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => seconds += 1,
                Err(error) => return Err(Error::Io { path, error }),
            }
        };
        let mut writer = Self { file, waiting: Vec::new() };
        writer.event(0, &bytes_field(3, b"brain.Event:2"));
        writer.flush()?;
        Ok(writer)
    }

    /// The same for a resumed run: TensorBoard drops what earlier files say of `step` and
    /// later steps, which an interrupted run may have logged and not kept.
    ///
    /// # Errors
    /// As [`EventWriter::create`].
    pub fn resume(directory: &Path, step: u64) -> Result<Self, Error> {
        const START: u64 = 1;
        let mut writer = Self::create(directory)?;
        writer.event(step, &bytes_field(7, &varint_field(1, START)));
        writer.flush()?;
        Ok(writer)
    }

    /// Adds the value of a scalar at a step.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f32) {
        let mut scalar = bytes_field(1, tag.as_bytes());
        scalar.push(2 << 3 | FIXED32);
        scalar.extend(value.to_le_bytes());
        self.event(step, &bytes_field(5, &bytes_field(1, &scalar)));
    }

    /// Writes what was added, so that a reader sees everything. Dropping the writer does so too,
    /// but cannot report errors.
    ///
    /// # Errors
    /// [`Error::File`] names the file and what the system said.
    pub fn flush(&mut self) -> Result<(), Error> {
        // What cannot be written now is not written later, behind a part of itself.
        self.file.append(&std::mem::take(&mut self.waiting))
    }

    /// Waits until everything is on disk.
    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        self.flush()?;
        self.file.sync()
    }

    /// Writes the file again if it was removed, and says in words what others did to it.
    pub(crate) fn restore(&mut self) -> Result<Option<String>, Error> {
        let what = match self.file.restore()? {
            None => return Ok(None),
            Some(Harm::Removed) => "was removed during the run; it is written again",
            Some(Harm::Changed) => {
                "was replaced or cut during the run; what follows is added to it"
            }
        };
        Ok(Some(format!("{} {what}", self.path().display())))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    fn event(&mut self, step: u64, content: &[u8]) {
        let mut event = vec![1 << 3 | FIXED64];
        event.extend(since_epoch().as_secs_f64().to_le_bytes());
        event.extend(varint_field(2, step));
        event.extend(content);
        self.waiting.extend(frame(&event));
    }
}

impl Drop for EventWriter {
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

// Wire types of protobuf; a varint is 0.
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

fn since_epoch() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Seven bits per byte, the lowest first; the high bit says that more follow.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn varint_field(number: u8, value: u64) -> Vec<u8> {
    [vec![number << 3], varint(value)].concat()
}

fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | BYTES], varint(bytes.len() as u64).as_slice(), bytes].concat()
}

/// A TFRecord.
fn frame(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    [&length, masked(&length).to_le_bytes().as_slice(), bytes, &masked(bytes).to_le_bytes()]
        .concat()
}

/// TFRecord's checksum: CRC-32C rotated by 15 bits, plus a constant, so that a checksum of
/// checksums is no degenerate case.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_published_one_masked() {
        // The check value of CRC-32C (Castagnoli), and the mask's formula in shifts.
        let crc: u32 = 0xe306_9283;
        assert_eq!(crc32c::crc32c(b"123456789"), crc);
        assert_eq!(masked(b"123456789"), crc.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn a_record_is_bit_for_bit_the_known_one() {
        let length_crc = masked(&[3, 0, 0, 0, 0, 0, 0, 0]).to_le_bytes();
        let record = frame(b"abc");
        assert_eq!(record[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((&record[8..12], &record[12..15]), (length_crc.as_slice(), b"abc".as_slice()));
        // CRC-32C of "abc" is 364b3fb7.
        assert_eq!(
            record[15..],
            0x364b_3fb7_u32.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
        );
    }

    #[test]
    fn varints_of_known_numbers() {
        assert_eq!(varint(0), [0]);
        assert_eq!(varint(127), [0x7f]);
        assert_eq!(varint(300), [0xac, 0x02]);
        assert_eq!(varint(u64::MAX).len(), 10);
    }
}
