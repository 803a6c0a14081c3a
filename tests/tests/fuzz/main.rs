//! Readers of files from elsewhere, on damaged and made-up ones: whatever the bytes, a reader ends
//! within a second, with a result or an error, and with memory in proportion to the file. A result
//! that is written and read again is the same.
//!
//! Each reader has a process of its own, so that an abort or an endless loop ends that alone and
//! names the input. `LIPSCHITZ_FUZZ=1000000 cargo test -p lipschitz-tests --test fuzz` reads as many
//! files with each reader as it says; `LIPSCHITZ_FUZZ_FROM` is the number of the first. An input is
//! a function of its number, so a finding can be repeated by it.

#![cfg(target_os = "linux")]

mod mutate;
mod readers;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lipschitz_tests::Dice;
use readers::Reader;

/// Inputs for each reader, if nothing else is said.
const INPUTS: u64 = 2000;
/// A reader may take this long for an input.
const TIME: Duration = Duration::from_secs(1);
/// A process that has got no further in this time does not end.
const HANGS: Duration = Duration::from_secs(30);
/// After so many findings, a reader is not tried further.
const FINDINGS: usize = 10;

const CHILD: &str = "LIPSCHITZ_FUZZ_CHILD";

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// The most memory that the process had since it was last asked, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

thread_local! {
    /// What the last panic said.
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What is wrong with what a reader makes of an input; none if nothing is.
fn wrong(reader: &Reader, dir: &Path, bytes: &[u8]) -> Option<String> {
    let timed = || {
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let (before, start) = (peak(), Instant::now());
        let read = catch_unwind(AssertUnwindSafe(|| (reader.read)(dir, bytes)));
        // The kernel counts roughly, so that a peak may lie below an earlier one.
        (read, start.elapsed(), peak().saturating_sub(before))
    };
    let (read, time, memory) = timed();
    if read.is_err() {
        return Some(format!("panics: {}", SAID.take()));
    }
    let most = 4 * bytes.len() as u64 + reader.room;
    if memory > most {
        return Some(format!("takes {memory} bytes for {}", bytes.len()));
    }
    // A busy machine is slow once, not three times.
    if time > TIME && timed().1 > TIME && timed().1 > TIME {
        return Some(format!("takes {time:?}"));
    }
    None
}

/// Reads inputs from a number on, as the environment says; writes down which one is being read.
#[test]
fn child() {
    let Ok(name) = std::env::var(CHILD) else { return };
    let (from, to) = (number("FROM").unwrap(), number("TO").unwrap());
    let dir = std::env::var("DIR").unwrap();
    let dir = Path::new(&dir);
    let reader = readers::all().into_iter().find(|reader| reader.name == name).unwrap();
    let seeds = (reader.seeds)(dir);
    std::panic::set_hook(Box::new(|info| SAID.set(info.to_string().replace('\n', " "))));
    let (mut accepted, mut findings) = (0, String::new());
    for index in from..to {
        let bytes = mutate::input(&seeds, &mut Dice::new(index));
        std::fs::write(dir.join("index"), index.to_string()).unwrap();
        std::fs::write(dir.join(reader.file), &bytes).unwrap();
        readers::ACCEPTED.set(false);
        if let Some(what) = wrong(&reader, dir, &bytes) {
            findings += &format!("{index}: {what}: {}\n", shown(&bytes));
            std::fs::write(dir.join("findings"), &findings).unwrap();
            if findings.lines().count() >= FINDINGS {
                break;
            }
        }
        accepted += u64::from(readers::ACCEPTED.get());
        if index.is_multiple_of(64) || index + 1 == to {
            std::fs::write(dir.join("accepted"), accepted.to_string()).unwrap();
        }
    }
    std::fs::write(dir.join("done"), "").unwrap();
}

/// The beginning of an input.
fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(80)].escape_ascii().to_string()
}

/// Runs a reader over all inputs; panics with what it found.
fn fuzz(name: &str) {
    let first = number("LIPSCHITZ_FUZZ_FROM").unwrap_or(0);
    let end = first + number("LIPSCHITZ_FUZZ").unwrap_or(INPUTS);
    let start = Instant::now();
    let reader = readers::all().into_iter().find(|reader| reader.name == name);
    let file = reader.map_or("", |reader| reader.file);
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let dir = dir.unwrap();
    let text = |file: &str| std::fs::read_to_string(dir.path().join(file)).unwrap_or_default();
    let (mut from, mut all, mut accepted) = (first, Vec::new(), 0u64);
    while from < end && all.len() < FINDINGS {
        for file in ["index", "findings", "accepted", "done"] {
            let _ = std::fs::remove_file(dir.path().join(file));
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(CHILD, name)
            .env("FROM", from.to_string())
            .env("TO", end.to_string())
            .env("DIR", dir.path())
            .env("CANDLE_NUM_THREADS", "1")
            .env("RAYON_NUM_THREADS", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (mut last, mut since) = (String::new(), Instant::now());
        let died = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break if dir.path().join("done").exists() {
                    None
                } else {
                    Some(format!("{status}"))
                };
            }
            let index = text("index");
            if index != last {
                (last, since) = (index, Instant::now());
            }
            if since.elapsed() > HANGS {
                child.kill().unwrap();
                child.wait().unwrap();
                break Some("does not end".to_string());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        all.extend(text("findings").lines().map(String::from));
        accepted += text("accepted").parse::<u64>().unwrap_or(0);
        let Some(died) = died else { break };
        let index = text("index");
        let bytes = std::fs::read(dir.path().join(file)).unwrap_or_default();
        all.push(format!("{index}: ends the process: {died}: {}", shown(&bytes)));
        // What is not about an input, such as a seed that cannot be made, would come again.
        from = index.parse::<u64>().unwrap_or(end) + 1;
    }
    let count = end - first;
    eprintln!("{name}: {count} inputs, {accepted} accepted, {:.1?}", start.elapsed());
    assert!(all.is_empty(), "{name}:\n{}", all.join("\n"));
}

macro_rules! readers {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            fuzz(stringify!($name));
        })*

        #[test]
        fn every_reader_has_a_test() {
            let names: Vec<&str> = readers::all().iter().map(|reader| reader.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

readers! {
    checkpoint certificate config setting torch legacy numpy gguf onnx llama2c directory shard tokenizer
    tensors idx image
}

/// Changes begin at files that are read.
#[test]
fn every_reader_reads_a_seed() {
    for reader in readers::all() {
        let dir = tempfile::tempdir().unwrap();
        let seeds = (reader.seeds)(dir.path());
        let read = seeds.iter().filter_map(mutate::Seed::whole).filter(|bytes| {
            std::fs::write(dir.path().join(reader.file), bytes).unwrap();
            readers::ACCEPTED.set(false);
            (reader.read)(dir.path(), bytes);
            readers::ACCEPTED.get()
        });
        assert!(read.count() > 0, "{}", reader.name);
    }
}

/// The harness finds what it looks for.
#[test]
fn planted_faults_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let planted = |read: fn(&Path, &[u8])| {
        let reader =
            Reader { name: "planted", file: "f", room: 16 << 20, seeds: |_| Vec::new(), read };
        wrong(&reader, dir.path(), &[0; 100]).unwrap_or_default()
    };
    assert!(planted(|_, _| panic!("planted")).starts_with("panics"));
    assert!(planted(|_, _| drop(std::hint::black_box(vec![1u8; 64 << 20]))).starts_with("takes"));
    let slow = planted(|_, _| std::thread::sleep(TIME + Duration::from_millis(50)));
    assert!(slow.ends_with('s') && slow.starts_with("takes 1."), "{slow}");
    assert_eq!(planted(|_, _| ()), "");
}
