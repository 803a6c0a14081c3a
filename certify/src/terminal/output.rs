//! Where results go: stdout or files, and `-` as the name of either.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lipschitz_nn::{checkpoint, text};
use lipschitz_plot::svg::invisible;

use super::{escaped, note};

/// Whether a name stands for stdin or stdout.
pub fn is_stream(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Where a file of this name is written: `-` is stdout.
pub fn target(path: &Path) -> &Path {
    if is_stream(path) { Path::new("/dev/stdout") } else { path }
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
