//! What is made to take memory: no more than four times the file, and a constant.

#![cfg(target_os = "linux")]

use std::io::Write;
use std::path::Path;

use lipschitz_import::{ImportOptions, import};

/// The most memory that the process had since it was last asked, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 },
        )
    })
}

/// A zip archive of stored members.
fn zip(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let start = out.len() as u32;
        let sizes = [crc32(data), data.len() as u32, data.len() as u32];
        let sizes: Vec<u8> = sizes.iter().flat_map(|n| n.to_le_bytes()).collect();
        let lengths = [(name.len() as u16).to_le_bytes(), [0, 0]].concat();
        let common = [&[0; 8][..], &sizes, &lengths].concat();
        out.extend([b"PK\x03\x04\x14\x00", &common[..], name.as_bytes(), data].concat());
        let tail = [&[0; 10][..], &start.to_le_bytes()].concat();
        directory
            .extend([b"PK\x01\x02\x14\x00\x14\x00", &common[..], &tail, name.as_bytes()].concat());
    }
    let count = (members.len() as u16).to_le_bytes();
    let (size, at) = ((directory.len() as u32).to_le_bytes(), (out.len() as u32).to_le_bytes());
    out.extend(directory);
    out.extend([b"PK\x05\x06\0\0\0\0", &count[..], &count, &size, &at, &[0, 0]].concat());
    out
}

/// PyTorch reads a storage once, as what it is first said to be: two types of one are none.
#[test]
fn a_storage_has_one_type() {
    let text =
        |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let tensor = |name: &str, kind: &str, count: u8| {
        let class = format!("ctorch\n{kind}\n");
        let storage =
            [text("storage"), class.into_bytes(), text("0"), text("cpu"), vec![b'K', count]];
        let storage = [&b"("[..], &storage.concat(), b"tQ"].concat();
        let rest = b"K\0(K\x02K\x02t(K\x02K\x01t\x89ccollections\nOrderedDict\n)RtR";
        [text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec(), storage, rest.to_vec()]
            .concat()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pt");
    let said = |second: (&str, u8)| {
        let tensors =
            [tensor("0.weight", "FloatStorage", 4), tensor("2.weight", second.0, second.1)];
        let pickle = [&b"\x80\x02}("[..], &tensors.concat(), b"u."].concat();
        let numbers = [1.0f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat();
        std::fs::write(&path, zip(&[("m/data.pkl".into(), pickle), ("m/data/0".into(), numbers)]))
            .unwrap();
        import(&path, &ImportOptions::default()).map(drop).map_err(|e| e.to_string())
    };
    let alike = said(("FloatStorage", 4));
    assert!(alike.as_ref().err().is_none_or(|e| !e.contains("storage")), "{alike:?}");
    for other in [("HalfStorage", 8), ("IntStorage", 4), ("FloatStorage", 3)] {
        let error = said(other).unwrap_err();
        assert!(error.contains("describes the storage `0` in two ways"), "{other:?}: {error}");
    }
}

const SIZE: usize = 24 << 20;

fn torch(pickle: Vec<u8>) -> Vec<u8> {
    zip(&[("m/data.pkl".into(), pickle)])
}

fn legacy(pickle: Vec<u8>) -> Vec<u8> {
    let head = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.\x80\x02";
    [&head[..], &pickle].concat()
}

fn safetensors(header: Vec<u8>, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], &header, &vec![0; data]].concat()
}

fn gguf(tensors: u64, keys: u64, rest: Vec<u8>) -> Vec<u8> {
    [b"GGUF\x03\0\0\0", &tensors.to_le_bytes()[..], &keys.to_le_bytes(), &rest].concat()
}

#[test]
fn memory_is_bounded_by_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let many = |byte: &[u8]| byte.repeat(SIZE / byte.len());
    let shapes = format!(
        r#"{{"a":{{"dtype":"F32","shape":[0{}],"data_offsets":[0,0]}}}}"#,
        ",0".repeat(SIZE / 2)
    );
    let key = |i: u32| {
        let name = format!("{i:08}");
        [&8u64.to_le_bytes()[..], name.as_bytes(), &[7, 0, 0, 0, 1]].concat()
    };
    let flags = [&1u64.to_le_bytes()[..], b"a\x09\0\0\0\x07\0\0\0", &(SIZE as u64).to_le_bytes()];
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("values of one byte", torch(many(b"N"))),
        ("empty lists", torch(many(b"]"))),
        ("memo", torch([&b"N"[..], &many(b"\x94")].concat())),
        ("doubles", legacy([&b"N"[..], &many(b"2")].concat())),
        ("tuples", legacy([&b"N"[..], &many(b"\x85")].concat())),
        ("states", legacy([&b"N"[..], &many(b"Nb")].concat())),
        ("sizes", safetensors(shapes.into_bytes(), 0)),
        ("keys", gguf(0, 1 << 60, (0..1 << 20).flat_map(key).collect())),
        ("flags", gguf(0, 1, [&flags.concat()[..], &many(b"\x01")].concat())),
        ("layers", {
            let layers = (SIZE / 64) as i32;
            let sizes = [2, 1, layers, 1, 1, 1, 1].map(i32::to_le_bytes).concat();
            [&sizes[..], &many(b"\0")].concat()
        }),
        ("claims", gguf(1 << 60, 0, many(b"\0"))),
        ("text", gguf(0, 1, [&(1u64 << 60).to_le_bytes()[..], &many(b"a")].concat())),
    ];
    for (name, bytes) in table {
        std::fs::File::create(&path).unwrap().write_all(&bytes).unwrap();
        let length = bytes.len() as u64;
        drop(bytes);
        // What this test itself holds counts too.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = peak();
        let error = import(&path, &ImportOptions::default()).err();
        let taken = peak() - before;
        assert!(taken <= 4 * length + (16 << 20), "{name}: {taken} bytes for {length}");
        let line = error.unwrap_or_else(|| panic!("{name} was imported")).to_string();
        assert!(!line.contains('\n') && line.len() < 1000, "{name}: {line}");
        assert!(Path::new(&path).exists());
    }
}
