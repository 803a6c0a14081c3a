//! TensorBoard event files.
//!
//! A file is a sequence of TFRecord frames: the length (u64, little endian), its checksum, the
//! bytes, their checksum. Each holds one `Event` protobuf message, encoded here by hand: `1:
//! double wall_time`, `2: int64 step`, `3: string file_version`, `5: Summary { 1: Value { 1: string
//! tag, 2: float simple_value } }`, `7: SessionLog { 1: status }`.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use lipschitz_nn::{At, Error};

/// Writes scalars for TensorBoard. Every start of a run writes a file of its own; TensorBoard reads
/// those of a directory as one run.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
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
        let (path, file) = loop {
            let path = directory.join(format!("events.out.tfevents.{seconds:010}.train"));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => break (path, file),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => seconds += 1,
                Err(error) => return Err(Error::Io { path, error }),
            }
        };
        let mut writer = Self { path, file: BufWriter::new(file) };
        writer.event(0, &bytes_field(3, b"brain.Event:2"))?;
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
        writer.event(step, &bytes_field(7, &varint_field(1, START)))?;
        writer.flush()?;
        Ok(writer)
    }

    /// Writes the value of a scalar at a step.
    ///
    /// # Errors
    /// [`Error::File`] names the file and what the system said.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f32) -> Result<(), Error> {
        let mut scalar = bytes_field(1, tag.as_bytes());
        scalar.push(2 << 3 | FIXED32);
        scalar.extend(value.to_le_bytes());
        self.event(step, &bytes_field(5, &bytes_field(1, &scalar)))
    }

    /// Flushes to the system, so that a reader sees everything. Dropping the writer does so too,
    /// but cannot report errors.
    ///
    /// # Errors
    /// [`Error::File`] names the file and what the system said.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.file.flush().at(&self.path)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn event(&mut self, step: u64, content: &[u8]) -> Result<(), Error> {
        let mut event = vec![1 << 3 | FIXED64];
        event.extend(since_epoch().as_secs_f64().to_le_bytes());
        event.extend(varint_field(2, step));
        event.extend(content);
        self.file.write_all(&frame(&event)).at(&self.path)
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

    /// The content of the frames of a file, every checksum verified.
    fn frames(path: &Path) -> Vec<Vec<u8>> {
        let bytes = std::fs::read(path).unwrap();
        let (mut rest, mut frames) = (bytes.as_slice(), Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let checksum = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            assert_eq!(checksum(8), masked(&rest[..8]));
            assert_eq!(checksum(12 + length), masked(&rest[12..12 + length]));
            frames.push(rest[12..12 + length].to_vec());
            rest = &rest[16 + length..];
        }
        frames
    }

    fn read_varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }

    /// The fields of a message: number, and the value's bytes (a varint as its number, little
    /// endian).
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = read_varint(&mut bytes);
            let length = match key & 7 {
                0 => {
                    fields.push((key >> 3, read_varint(&mut bytes).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => read_varint(&mut bytes) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            fields.push((key >> 3, bytes[..length].to_vec()));
            bytes = &bytes[length..];
        }
        fields
    }

    fn field(bytes: &[u8], number: u64) -> Vec<u8> {
        fields(bytes).into_iter().find(|(n, _)| *n == number).unwrap().1
    }

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

    #[test]
    fn scalars_come_back_with_tag_step_value_and_time() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(&directory.path().join("new")).unwrap();
        writer.scalar("loss", 7, 1.25).unwrap();
        writer.scalar("log10 Lipschitz bound", 300, f32::NEG_INFINITY).unwrap();
        writer.flush().unwrap();
        let name = writer.path().file_name().unwrap().to_str().unwrap().to_string();
        assert!(name.starts_with("events.out.tfevents.") && name.ends_with(".train"), "{name}");
        let events = frames(writer.path());
        assert_eq!(field(&events[0], 3), b"brain.Event:2");
        assert_eq!(events.len(), 3);
        for (event, (tag, step, value)) in events[1..]
            .iter()
            .zip([("loss", 7_u64, 1.25), ("log10 Lipschitz bound", 300, f32::NEG_INFINITY)])
        {
            assert_eq!(field(event, 2), step.to_le_bytes());
            let scalar = field(&field(event, 5), 1);
            assert_eq!(
                (field(&scalar, 1), field(&scalar, 2)),
                (tag.as_bytes().to_vec(), value.to_le_bytes().to_vec())
            );
            let wall = f64::from_le_bytes(field(event, 1).try_into().unwrap());
            assert!((wall - since_epoch().as_secs_f64()).abs() < 60.0);
        }
    }

    #[test]
    fn every_start_has_its_own_file_and_a_resumed_one_says_from_where() {
        let directory = tempfile::tempdir().unwrap();
        let first = EventWriter::create(directory.path()).unwrap();
        let second = EventWriter::resume(directory.path(), 40).unwrap();
        assert!(first.path() < second.path());
        let events = frames(second.path());
        assert_eq!(field(&events[1], 2), 40_u64.to_le_bytes());
        assert_eq!(field(&field(&events[1], 7), 1), 1_u64.to_le_bytes());
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = EventWriter::create(&file.path().join("sub")).unwrap_err().to_string();
        assert!(error.starts_with(&file.path().display().to_string()), "{error}");
    }
}
