//! Inputs from seeds: valid small files, changed where files go wrong or are made to do harm.

use lipschitz_tests::Dice;

/// How the parts of a file are put together. A change to a part leaves the file whole around it,
/// so that it reaches what reads the part.
#[derive(Clone)]
pub(crate) enum Build {
    /// One part.
    Raw,
    /// A header behind its length, and data.
    Safetensors,
    /// A zip archive of members with these names.
    Zip(Vec<String>),
    /// A pickle, made up instruction by instruction, between these bytes.
    Pickle(Vec<u8>, Vec<u8>),
    /// The same in a zip archive, with a storage of these bytes.
    ZipPickle(Vec<u8>),
    /// Assignments of values to keys, one of which is made up.
    Settings(Vec<String>),
}

/// A valid file.
pub(crate) struct Seed {
    pub(crate) build: Build,
    pub(crate) parts: Vec<Vec<u8>>,
}

impl Seed {
    pub(crate) fn raw(bytes: Vec<u8>) -> Self {
        Self { build: Build::Raw, parts: vec![bytes] }
    }

    /// # Panics
    /// If it is no safetensors file.
    pub(crate) fn safetensors(bytes: &[u8]) -> Self {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let (header, data) = bytes[8..].split_at(length);
        Self { build: Build::Safetensors, parts: vec![header.to_vec(), data.to_vec()] }
    }

    /// The whole file; none where each input is made up.
    pub(crate) fn whole(&self) -> Option<Vec<u8>> {
        match self.build {
            Build::Pickle(..) | Build::ZipPickle(_) => None,
            Build::Settings(_) => Some(b"train.steps=3".to_vec()),
            _ => Some(self.bytes(&self.parts)),
        }
    }

    fn bytes(&self, parts: &[Vec<u8>]) -> Vec<u8> {
        match (&self.build, parts) {
            (Build::Safetensors, [header, data]) => {
                [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
            }
            (Build::Zip(names), _) => zip(names, parts),
            _ => parts.concat(),
        }
    }
}

/// An input, by the dice.
pub(crate) fn input(seeds: &[Seed], dice: &mut Dice) -> Vec<u8> {
    let seed = &seeds[dice.below(seeds.len())];
    match &seed.build {
        Build::Pickle(before, after) => {
            let mut code = pickle(dice);
            if dice.coin() {
                change(&mut code, seeds, dice);
            }
            [&before[..], &code, after].concat()
        }
        Build::ZipPickle(data) => {
            let mut code = pickle(dice);
            if dice.coin() {
                change(&mut code, seeds, dice);
            }
            zip(&["m/data.pkl".into(), "m/data/0".into()], &[code, data.clone()])
        }
        Build::Settings(keys) => {
            let key = &keys[dice.below(keys.len())];
            let mut text = format!("{key}={}", value(dice)).into_bytes();
            if dice.below(4) == 0 {
                change(&mut text, seeds, dice);
            }
            text
        }
        _ => {
            let mut parts = seed.parts.clone();
            let whole = dice.coin();
            if !whole {
                // Small parts say how the large ones are to be read.
                let part = (0..3).map(|_| dice.below(parts.len())).min_by_key(|i| parts[*i].len());
                let part = part.unwrap_or_default();
                for _ in 0..1 + dice.below(3) {
                    change(&mut parts[part], seeds, dice);
                }
            }
            let mut bytes = seed.bytes(&parts);
            if whole {
                for _ in 0..1 + dice.below(4) {
                    change(&mut bytes, seeds, dice);
                }
            }
            bytes
        }
    }
}

fn any_u64(dice: &mut Dice) -> u64 {
    (0..4).fold(0, |n, _| n << 16 | dice.below(1 << 16) as u64)
}

/// Numbers at which sizes, offsets and counts go wrong.
fn extreme(dice: &mut Dice, length: u64) -> u64 {
    let near = length.wrapping_add(dice.below(5) as u64).wrapping_sub(2);
    let power = 1u64 << dice.below(64);
    let near_power = power.wrapping_add(dice.below(3) as u64).wrapping_sub(1);
    dice.pick(&[0, 1, 2, u64::MAX, i64::MAX as u64, near, power, near_power, near_power])
}

/// A value as texts hold it.
fn value(dice: &mut Dice) -> String {
    let nested = |open: &str, close: &str, n: usize| open.repeat(n) + &close.repeat(n);
    match dice.below(12) {
        0..4 => (*dice.pick(&[
            &"0",
            &"-1",
            &"1",
            &"-0.0",
            &"1e308",
            &"1e309",
            &"-1e308",
            &"5e-324",
            &"0.5",
            &"nan",
            &"inf",
            &"18446744073709551615",
            &"18446744073709551616",
            &"-9223372036854775808",
            &"9223372036854775807",
            &"4294967296",
            &"2147483648",
            &"1e-300",
            &"65536",
            &"1_000",
            &"0x10",
            &"00",
            &"1e",
            &"3.5e38",
        ]))
        .into(),
        4 => any_u64(dice).to_string(),
        5 => dice.below(100).to_string(),
        6 => (*dice.pick(&[
            &"null",
            &"true",
            &"false",
            &"{}",
            &"[]",
            &"\"\"",
            &"\"a\"",
            &"[1, 2]",
            &"\"\\u0000\"",
            &"[{}]",
            &"{a = 1}",
            &"{\"a\": 1}",
            &"\"\\ud800\"",
            &"'x'",
            &"2020-01-01",
            &"none",
            &"\"cuda:99999999999\"",
            &"\"F64\"",
            &"\"relu\"",
            &"\"muon\"",
            &"\"adamw\"",
        ]))
        .into(),
        7 => format!("{}", dice.unit() * 10f64.powi(dice.below(640) as i32 - 320)),
        8 => "9".repeat(1 + dice.below(400)),
        9 => format!("\"{}\"", "x".repeat(1 + dice.below(3000))),
        10 => {
            let depth = 1 + dice.below(5000);
            let (open, close) = dice.pick(&[("[", "]"), ("{\"a\":", "}"), ("(", ")")]);
            nested(open, close, depth)
        }
        _ => {
            format!("{:?}", ["é", "\u{202e}", "\0", "\\", "\"", "𝔘", "=", "#", "\n"][dice.below(9)])
        }
    }
}

/// One change.
fn change(bytes: &mut Vec<u8>, seeds: &[Seed], dice: &mut Dice) {
    let length = bytes.len();
    let place = |dice: &mut Dice| dice.below(length.max(1));
    let range = |dice: &mut Dice, length: usize| {
        let start = dice.below(length.max(1)).min(length);
        let most = if dice.coin() { 16 } else { length };
        start..(start + dice.below(most.max(1)) + 1).min(length)
    };
    match dice.below(if length == 0 { 1 } else { 12 }) {
        // Random bytes put in.
        0 => {
            let at = dice.below(length + 1);
            let new: Vec<u8> = (0..1 + dice.below(20)).map(|_| dice.below(256) as u8).collect();
            bytes.splice(at..at, new);
        }
        1 => {
            let at = place(dice);
            bytes[at] ^= 1 << dice.below(8);
        }
        2 => {
            let at = place(dice);
            bytes[at] = dice.pick(&[0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'.', b'\n']);
        }
        3 => {
            let at = place(dice);
            bytes.truncate(at);
        }
        4 => drop(bytes.drain(range(dice, length))),
        // Something of the file, or of another one, in another place.
        5 | 6 => {
            let other = &seeds[dice.below(seeds.len())];
            let from = match other.parts.get(dice.below(other.parts.len().max(1))) {
                Some(part) if dice.coin() => part.clone(),
                _ => bytes.clone(),
            };
            let piece = from[range(dice, from.len())].to_vec();
            let at = place(dice);
            let end = if dice.coin() { at } else { (at + piece.len()).min(length) };
            bytes.splice(at..end, piece);
        }
        // A number of two, four or eight bytes.
        7 | 8 => {
            let (at, width) = (place(dice), dice.pick(&[2, 4, 8]));
            let mut number = extreme(dice, length as u64).to_le_bytes();
            if dice.below(8) == 0 {
                number[..width].reverse();
            }
            let end = (at + width).min(length);
            bytes[at..end].copy_from_slice(&number[..end - at]);
        }
        // A number or a word of a text.
        _ => {
            let at = place(dice);
            let of = |b: &u8| b.is_ascii_alphanumeric() || b"+-._".contains(b);
            let Some(start) = bytes[at..].iter().position(of).map(|i| at + i) else { return };
            let start = bytes[..start].iter().rposition(|b| !of(b)).map_or(0, |i| i + 1);
            let end = bytes[start..].iter().position(|b| !of(b)).map_or(length, |i| start + i);
            bytes.splice(start..end, value(dice).into_bytes());
        }
    }
}

/// A pickle of instructions that fit together often enough to get far.
fn pickle(dice: &mut Dice) -> Vec<u8> {
    let mut out = vec![0x80, 2];
    for _ in 0..dice.below(60) {
        let small = dice.below(4) as u8;
        let piece: Vec<u8> = match dice.below(24) {
            0 => vec![b'}'],
            1 => vec![b']'],
            2 => vec![b'('],
            3 => vec![dice.pick(b"NtsuaeRb0123)")],
            4 => vec![b'K', dice.below(256) as u8],
            5 => [&b"J"[..], &(extreme(dice, 9) as u32).to_le_bytes()].concat(),
            6 => vec![dice.pick(&[0x85, 0x86, 0x87])],
            7 => {
                let name =
                    dice.pick(&[&b"w"[..], b"0.weight", b"storage", b"cpu", b"m/data/0", b""]);
                [&b"X"[..], &(name.len() as u32).to_le_bytes(), name].concat()
            }
            8 => vec![b'q', small],
            9 => vec![b'h', small],
            10 => vec![0x94],
            11 => b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(),
            12 => b"ctorch\nFloatStorage\n".to_vec(),
            13 => b"ccollections\nOrderedDict\n".to_vec(),
            14 => vec![b'Q'],
            15 => [&b"\x8a"[..], &[8], &extreme(dice, 9).to_le_bytes()].concat(),
            // A storage, as PyTorch writes it.
            16 | 17 => [
                &b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK"[..],
                &[dice.below(40) as u8],
                b"tQ",
            ]
            .concat(),
            // A tensor in a dictionary of its own.
            18..21 => {
                let mut number = || match dice.below(4) {
                    0 => [&b"\x8a\x08"[..], &extreme(dice, 9).to_le_bytes()].concat(),
                    _ => vec![b'K', dice.below(5) as u8],
                };
                let [offset, a, b, c, d] = [(); 5].map(|()| number());
                [
                    &b"}X\x08\0\0\x000.weightctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage"[..],
                    b"ctorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x10tQ",
                    &offset, &a, &b, b"\x86", &c, &d, b"\x86\x89ccollections\nOrderedDict\n)RtRs",
                ]
                .concat()
            }
            21 => [&b"G"[..], &any_u64(dice).to_be_bytes()].concat(),
            22 => [&b"B"[..], &(extreme(dice, 3) as u32).to_le_bytes(), b"abc"].concat(),
            _ => vec![dice.below(256) as u8],
        };
        out.extend(piece);
    }
    if dice.below(10) > 0 {
        out.push(b'.');
    }
    out
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
fn zip(names: &[String], members: &[Vec<u8>]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in names.iter().zip(members) {
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

/// A stored zip archive as its members.
///
/// # Panics
/// If it is no archive of stored members.
pub(crate) fn unzip(bytes: &[u8]) -> Seed {
    let u16_at = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let u32_at = |at: usize| u16_at(at) | u16_at(at + 2) << 16;
    let end = bytes.windows(4).rposition(|w| w == b"PK\x05\x06").unwrap();
    let (mut at, mut names, mut parts) = (u32_at(end + 16), Vec::new(), Vec::new());
    for _ in 0..u16_at(end + 10) {
        assert_eq!((&bytes[at..at + 4], u16_at(at + 10)), (&b"PK\x01\x02"[..], 0));
        let (size, name, start) = (u32_at(at + 24), u16_at(at + 28), u32_at(at + 42));
        names.push(String::from_utf8(bytes[at + 46..at + 46 + name].to_vec()).unwrap());
        let data = start + 30 + u16_at(start + 26) + u16_at(start + 28);
        parts.push(bytes[data..data + size].to_vec());
        at += 46 + name + u16_at(at + 30) + u16_at(at + 32);
    }
    Seed { build: Build::Zip(names), parts }
}
