//! A reader of TensorBoard's event files, as TensorBoard reads those of a directory: in the order of
//! their names, each up to a record that a crash cut short, and without the points that a later
//! start of the run takes back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The points of each tag: step, and the bits of the value.
pub type Points = BTreeMap<String, Vec<(u64, u32)>>;

/// What a directory's event files show.
pub fn points(directory: &Path) -> Points {
    let mut points = Points::new();
    for file in files(directory) {
        for event in frames(&file) {
            let step = number(&event, 2);
            if field(&event, 7).is_some_and(|session| number(&session, 1) == 1) {
                points.values_mut().for_each(|all| all.retain(|(at, _)| *at < step));
            }
            for (_, value) in field(&event, 5).iter().flat_map(|summary| fields(summary)) {
                let tag = String::from_utf8(field(&value, 1).unwrap()).unwrap();
                let bits = u32::from_le_bytes(field(&value, 2).unwrap().try_into().unwrap());
                points.entry(tag).or_default().push((step, bits));
            }
        }
    }
    points.retain(|_, all| !all.is_empty());
    points
}

/// The event files of a directory, in the order of their names.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = directory.read_dir().unwrap().flatten().map(|entry| entry.path());
    let is_events = |path: &PathBuf| {
        path.file_name().unwrap().to_string_lossy().starts_with("events.out.tfevents.")
    };
    let mut files: Vec<PathBuf> = entries.filter(is_events).collect();
    files.sort();
    files
}

/// The content of the whole records of a file, every checksum verified.
pub fn frames(path: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let (mut rest, mut frames) = (bytes.as_slice(), Vec::new());
    while rest.len() >= 12 {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let checksum = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        assert_eq!(checksum(8), masked(&rest[..8]), "{}", path.display());
        if rest.len() < 16 + length {
            break;
        }
        assert_eq!(checksum(12 + length), masked(&rest[12..12 + length]), "{}", path.display());
        frames.push(rest[12..12 + length].to_vec());
        rest = &rest[16 + length..];
    }
    frames
}

/// CRC-32C bit by bit, and TFRecord's mask of it.
pub fn masked(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
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

/// The fields of a message: number, and the value's bytes (a varint as its number, little endian).
pub fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
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

/// The first field of this number.
pub fn field(bytes: &[u8], number: u64) -> Option<Vec<u8>> {
    fields(bytes).into_iter().find(|(n, _)| *n == number).map(|(_, bytes)| bytes)
}

/// The first field of this number, as a number.
pub fn number(bytes: &[u8], number: u64) -> u64 {
    u64::from_le_bytes(field(bytes, number).unwrap().try_into().unwrap())
}
