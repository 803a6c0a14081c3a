use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use clap::Args;
use lipschitz_certify::report::{self, Made};
use lipschitz_certify::terminal::{self, Kind};

/// Write one HTML page for many runs: trade-off plots, sortable table, certificates by layer,
/// training curves.
///
/// The page opens from disk, needs no network, and follows the light or dark mode of the system.
#[derive(Args)]
pub(super) struct ReportCommand {
    /// Run directories, or directories of runs.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// The file to write; - is stdout.
    #[arg(short, long, value_name = "FILE.html")]
    output: PathBuf,
}

impl ReportCommand {
    pub(super) fn run(self) -> Result<()> {
        let end = self.output.extension().map(|end| end.to_ascii_lowercase());
        let others = ["pdf", "svg", "png", "json", "csv", "md", "txt"];
        if end.is_some_and(|end| others.iter().any(|other| end == *other)) {
            bail!("{}: a report is an HTML page; end its name in .html", self.output.display())
        }
        terminal::ready(&self.output, Kind::Page)?;
        let made = Made {
            date: date(SystemTime::now()),
            command: command(terminal::program::arguments()),
        };
        let page = report::page(&self.runs, &made)?;
        super::tell_unfinished(&self.runs);
        terminal::write(&self.output, page.as_bytes())
    }
}

/// The command line, with quotes where a shell needs them.
fn command(arguments: Vec<OsString>) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%".contains(c);
    let quoted = |argument: String| match argument.chars().all(plain) && !argument.is_empty() {
        true => argument,
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    };
    // The program by its name, wherever it lies.
    let rest = arguments.iter().skip(1).map(|word| quoted(word.to_string_lossy().into_owned()));
    std::iter::once("certify".to_string()).chain(rest).collect::<Vec<_>>().join(" ")
}

/// A time as `2026-11-28 19:03 UTC`.
fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (mut day, minute) = (seconds / 86_400, seconds % 86_400 / 60);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for days in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    format!("{year}-{month:02}-{:02} {:02}:{:02} UTC", day + 1, minute / 60, minute % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, said) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_078_012_800, "2004-02-29 00:00 UTC"),
            (1_709_251_200, "2024-03-01 00:00 UTC"),
            (1_767_225_599, "2025-12-31 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(date(UNIX_EPOCH + Duration::from_secs(seconds)), said);
        }
    }

    #[test]
    fn a_command_can_be_pasted() {
        let said = |arguments: &[&str]| command(arguments.iter().map(OsString::from).collect());
        assert_eq!(
            said(&["/x/certify", "report", "a/b", "-o", "c.html"]),
            "certify report a/b -o c.html"
        );
        assert_eq!(said(&["certify", "it's $HOME", ""]), r"certify 'it'\''s $HOME' ''");
    }
}
