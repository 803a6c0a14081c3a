//! Manners of both programs: mistakes on the command line get one line, and a reader that goes away gets no panic.

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
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Usage:"));
        eprintln!("{}", lines.collect::<Vec<_>>().join(" "));
        ExitCode::from(2)
    })
}

/// Makes printing to a closed pipe, as `head` leaves one, end the program quietly.
pub fn end_with_the_reader() {
    let loud = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let said = info.payload().downcast_ref::<String>();
        if said.is_some_and(|said| said.starts_with("failed printing to std") && said.contains("Broken pipe")) {
            std::process::exit(0)
        }
        loud(info);
    }));
}
