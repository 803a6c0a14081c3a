//! Where results go: stdout or files, and `-` as the name of either.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lipschitz_nn::checkpoint::{self, Header, KEY};
use lipschitz_nn::text;
use lipschitz_plot::svg::invisible;
use serde::de::IgnoredAny;

use super::{escaped, note};

/// Whether a name stands for stdin or stdout.
pub fn is_stream(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Where a file of this name is written: `-` is stdout.
pub fn target(path: &Path) -> &Path {
    if is_stream(path) { Path::new("/dev/stdout") } else { path }
}

/// What a program writes to a file that the user names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A result as JSON: an object that has these keys, or a list of such.
    Json(&'static [&'static str]),
    /// A table with commas between its columns, of which these are the first.
    Csv(&'static str),
    /// A picture, or a graph as text.
    Picture,
    /// An HTML page.
    Page,
    /// A network of this project that is not one of a run.
    Checkpoint,
    /// Tensors of these names and no others: a pair of inputs, outputs.
    Tensors(&'static [&'static str]),
    /// A network in ONNX that this project wrote.
    Onnx,
    /// A program that this project wrote.
    Program,
}

impl Kind {
    /// Whether a file, of which these are the first bytes, is of the kind.
    fn is(self, path: &Path, start: &[u8]) -> bool {
        let text = String::from_utf8_lossy(start);
        let lower = text.trim_start().to_lowercase();
        let begins = |marks: &[&str]| marks.iter().any(|mark| lower.starts_with(mark));
        match self {
            Self::Json(keys) => has_keys(path, keys),
            Self::Csv(columns) => {
                text.strip_prefix(columns).is_some_and(|rest| rest.starts_with([',', '\n']))
            }
            Self::Picture => {
                begins(&["<svg", "%pdf", "\u{fffd}png", "digraph"])
                    || begins(&["<?xml"]) && lower.contains("<svg")
            }
            Self::Page => begins(&["<!doctype html"]),
            Self::Checkpoint => {
                let named = ["model.safetensors", "best.safetensors"].map(OsStr::new);
                let run = path.file_name().is_some_and(|name| named.contains(&name))
                    && path.parent().is_some_and(|run| run.join("metrics.jsonl").exists());
                !run && header(path).is_some_and(|h| h.metadata().contains_key(KEY))
            }
            Self::Tensors(names) => header(path).is_some_and(|h| {
                let own: BTreeSet<_> = h.entries().into_iter().map(|entry| entry.name).collect();
                let names = names.iter().map(|name| name.to_string()).collect();
                !h.metadata().contains_key(KEY) && own == names
            }),
            Self::Onnx => lower.contains("lipschitz-import"),
            Self::Program => lower.starts_with("\"\"\"runs a network in pytorch"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Json(_) => "a result of this kind as JSON",
            Self::Csv(_) => "a table of this kind",
            Self::Picture => "a picture",
            Self::Page => "an HTML page",
            Self::Checkpoint => "a network that was imported or exported",
            Self::Tensors(_) => "a file of such tensors alone",
            Self::Onnx | Self::Program => "a file that this program wrote",
        }
    }
}

/// The header of a file of safetensors, if it is one.
fn header(path: &Path) -> Option<Header> {
    Header::read(&mut File::open(path).ok()?).ok()
}

/// Whether a file is one value of JSON, an object with these keys or a list of them.
fn has_keys(path: &Path, keys: &[&str]) -> bool {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Result {
        One(BTreeMap<String, IgnoredAny>),
        Many(Vec<BTreeMap<String, IgnoredAny>>),
    }
    let Ok(file) = File::open(path) else { return false };
    let has = |one: &BTreeMap<String, IgnoredAny>| keys.iter().all(|key| one.contains_key(*key));
    match serde_json::from_reader(io::BufReader::new(file)) {
        Ok(Result::One(one)) => has(&one),
        Ok(Result::Many(many)) => many.iter().all(has),
        Err(_) => false,
    }
}

/// Refuses one file under two of these names, such as `--csv`: of what is read and written, one would be
/// lost.
///
/// # Errors
/// Names the file and both.
pub fn distinct(files: &[(&str, Option<&Path>)]) -> Result<()> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let named = files.iter().filter_map(|(name, path)| path.map(|path| (name, path)));
    let named: Vec<_> = named.collect();
    for (i, (second, path)) in named.iter().enumerate() {
        if let Some((first, _)) = named[..i].iter().find(|(_, other)| real(other) == real(path)) {
            bail!("{}: {first} and {second} are the same file; name two", path.display())
        }
    }
    Ok(())
}

/// Whether a result of this kind can be written there, found out before it is computed. It replaces a result of its own kind alone, so
/// that a slip of the keyboard loses no weights.
///
/// # Errors
/// Names the file, and what is in its way.
pub fn ready(path: &Path, kind: Kind) -> Result<()> {
    if is_stream(path) {
        return Ok(());
    }
    checkpoint::writable(path)?;
    let there = path.metadata().is_ok_and(|there| there.is_file() && there.len() > 0);
    if !there {
        return Ok(());
    }
    let mut start = Vec::new();
    let file = File::open(path).and_then(|file| file.take(1 << 12).read_to_end(&mut start));
    file.with_context(|| path.display().to_string())?;
    if !kind.is(path, &start) {
        let (path, kind) = (path.display(), kind.name());
        bail!(
            "{path}: is there already and is not {kind}, so it is not replaced; name another file"
        )
    }
    Ok(())
}

/// Writes a result to a file in one step, or to stdout if its name is `-`.
///
/// # Errors
/// Names the file and what the system said.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if is_stream(path) {
        print_bytes(bytes);
        return Ok(());
    }
    Ok(checkpoint::write(path, bytes)?)
}

/// Reads a text that was to be `wanted`, such as `a certificate`, from a file, or from stdin if its
/// name is `-`.
///
/// # Errors
/// Names the file, and what it is instead.
pub fn read(path: &Path, wanted: &str) -> Result<String> {
    if !is_stream(path) {
        return Ok(text::read(path, wanted)?);
    }
    let read = text::read_from(&mut io::stdin().lock().by_ref(), wanted).context("stdin")?;
    read.map_err(|what| anyhow::anyhow!("stdin: {what}"))
}

/// `--json`: where the result goes as JSON.
#[derive(Clone, Debug, clap::Args)]
pub struct JsonOutput {
    /// Write the result as JSON to FILE. Without FILE, or with -, it goes to stdout, and nothing
    /// else does.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
}

impl JsonOutput {
    /// The name of the file, if JSON is wanted.
    pub fn path(&self) -> Option<&Path> {
        self.json.as_deref()
    }

    /// Whether stdout has the JSON, and so nothing else.
    pub fn takes_stdout(&self) -> bool {
        self.path().is_some_and(is_stream)
    }

    /// Whether JSON with these keys can be written where it is wanted; see [`ready`].
    ///
    /// # Errors
    /// As those of [`ready`].
    pub fn ready(&self, keys: &'static [&'static str]) -> Result<()> {
        self.path().map_or(Ok(()), |path| ready(path, Kind::Json(keys)))
    }

    /// Writes the JSON that `text` gives where it is wanted; whether stdout has it now.
    ///
    /// # Errors
    /// Names the file and what the system said.
    pub fn write(&self, text: impl FnOnce() -> serde_json::Result<String>) -> Result<bool> {
        let Some(path) = self.path() else { return Ok(false) };
        let text = text()?;
        if self.takes_stdout() {
            print_bytes(format!("{}\n", calm(&text)).as_bytes());
        } else {
            checkpoint::write(path, text.as_bytes())?;
        }
        Ok(self.takes_stdout())
    }
}

/// The same JSON, with characters that show nothing of themselves written as JSON escapes them.
fn calm(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if invisible(c) && c != '\n' {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().for_each(|unit| out += &format!("\\u{unit:04x}"));
        } else {
            out.push(c);
        }
    }
    out
}

/// Prints a part of a result on stdout. Ends the program quietly if the pipe is closed, as by
/// `head`, and with a line on stderr and exit code 2 if it cannot be written, as on a full disk.
pub fn print(line: std::fmt::Arguments) {
    print_bytes(escaped(&line.to_string(), "\n\t").as_bytes());
}

fn print_bytes(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    if let Err(error) = out.write_all(bytes).and_then(|()| out.flush()) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(0)
        }
        note(format_args!("error: the result cannot be printed: {error}; write it elsewhere"));
        std::process::exit(2)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_result_replaces_its_own_kind_alone() {
        use super::Kind::{self, Checkpoint, Onnx, Page, Picture, Program};
        const JSON: Kind = Kind::Json(&["a", "b"]);
        const CSV: Kind = Kind::Csv("a,b");
        const TENSORS: Kind = Kind::Tensors(&["a", "b"]);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let tensors = |key: &str, names: &[&str]| {
            let tensor = |name: &&str| {
                format!(r#""{name}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#)
            };
            let all: Vec<String> = names.iter().map(tensor).collect();
            let header = format!(r#"{{"__metadata__":{{"{key}":"x"}},{}}}"#, all.join(","));
            [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
        };
        let files: [(Vec<u8>, &[Kind]); 19] = [
            (b"{\"a\": 1, \"b\": {}, \"c\": 2}\n".into(), &[JSON]),
            (b"[{\"a\": 1, \"b\": []}]".into(), &[JSON]),
            (b"{\"a\": 1}".into(), &[]),
            (b"{\"a\": 1, \"b\": 2}\n{\"a\": 1, \"b\": 2}\n".into(), &[]),
            (b"[a]\nb = 1\n".into(), &[]),
            (b"a,b\n1,2\n".into(), &[CSV]),
            (b"a,b,c\n1,2,3\n".into(), &[CSV]),
            (b"a,bc\n1,2\n".into(), &[]),
            (b"name,age\n1,2\n".into(), &[]),
            (b"<svg xmlns=''>".into(), &[Picture]),
            (b"<?xml version='1.0'?>\n<page/>".into(), &[]),
            (b"\x89PNG\r\n".into(), &[Picture]),
            (b"<!doctype html>".into(), &[Page]),
            (tensors("lipschitz", &["a", "b"]), &[Checkpoint]),
            (tensors("format", &["a", "b"]), &[TENSORS]),
            (tensors("format", &["a", "b", "c"]), &[]),
            (b"\x08\x08\x12\x10lipschitz-import".into(), &[Onnx]),
            (b"\"\"\"Runs a network in PyTorch.".into(), &[Program]),
            (b"my own words, in a file".into(), &[]),
        ];
        let kinds = [JSON, CSV, Picture, Page, Checkpoint, TENSORS, Onnx, Program];
        for (bytes, own) in files {
            std::fs::write(&path, &bytes).unwrap();
            for kind in kinds {
                let ready = super::ready(&path, kind);
                assert_eq!(ready.is_ok(), own.contains(&kind), "{kind:?}: {bytes:?}");
            }
        }
        // That of a run stays.
        let run = directory.path().join("run");
        std::fs::create_dir(&run).unwrap();
        for name in ["best.safetensors", "other.safetensors", "metrics.jsonl"] {
            std::fs::write(run.join(name), tensors("lipschitz", &["a"])).unwrap();
        }
        super::ready(&run.join("best.safetensors"), Checkpoint).unwrap_err();
        super::ready(&run.join("other.safetensors"), Checkpoint).unwrap();
        std::fs::remove_dir_all(run).unwrap();
        std::fs::write(&path, "").unwrap();
        for kind in kinds {
            super::ready(&path, kind).unwrap();
            super::ready(&directory.path().join("new"), kind).unwrap();
            for bad in ["gone/new", "file/new", "."] {
                super::ready(&directory.path().join(bad), kind).unwrap_err();
            }
        }
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
        let other = directory.path().join(".").join("file");
        let said =
            super::distinct(&[("--csv", Some(&path)), ("-o", None), ("--json", Some(&other))]);
        assert!(
            said.unwrap_err().to_string().ends_with("--csv and --json are the same file; name two")
        );
        let stream = Some("-".as_ref());
        let said = super::distinct(&[("--csv", stream), ("--json", stream)]).unwrap_err();
        assert_eq!(said.to_string(), "-: --csv and --json are the same file; name two");
        super::distinct(&[("--csv", stream), ("--json", Some(&path))]).unwrap();
    }

    #[test]
    fn json_on_a_terminal_stays_json() {
        let value = serde_json::json!({ "a\u{202e}b": "\u{200b}\u{e0001}ä\n" });
        let text = super::calm(&serde_json::to_string(&value).unwrap());
        assert!(
            text.contains("\\u202e") && text.contains("\\u200b") && text.contains('ä'),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
