//! Manners of both programs: mistakes on the command line get one line, and output that cannot be
//! written is no panic.

use std::io::Write;
use std::panic;
use std::process::ExitCode;

use clap::Parser;

/// The command line, or the exit code after help, a version, or one line on what is wrong with it.
///
/// # Errors
/// The exit code: 0 after help, 2 after a mistake.
pub fn parse<T: Parser>() -> Result<T, ExitCode> {
    T::try_parse().map_err(|error| {
        if !error.use_stderr() {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        let text = error.to_string();
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with("Usage:"));
        note(format_args!("{}", lines.collect::<Vec<_>>().join(" ")));
        ExitCode::from(2)
    })
}

/// A line on stderr; one that cannot be written is no reason to stop what it tells of.
pub fn note(line: std::fmt::Arguments) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Makes printing results to a closed pipe, as `head` leaves one, end the program quietly, and to a
/// full disk with a line and exit code 2.
pub fn end_with_the_reader() {
    let loud = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let said = info
            .payload()
            .downcast_ref::<String>()
            .and_then(|said| said.strip_prefix("failed printing to stdout: "));
        match said {
            Some(said) if said.contains("Broken pipe") => std::process::exit(0),
            Some(said) => {
                note(format_args!(
                    "error: the result cannot be printed: {said}; write it elsewhere"
                ));
                std::process::exit(2)
            }
            None => loud(info),
        }
    }));
}

/// Shell completions, on stdout.
pub fn completions(shell: clap_complete::Shell, command: &mut clap::Command, name: &str) {
    let mut text = Vec::new();
    clap_complete::generate(shell, command, name, &mut text);
    print!("{}", String::from_utf8_lossy(&text));
}
