//! The command line of the program that runs, and how it is started once more.
//!
//! A program is a process of its own, or it is called from another language's, which has a command
//! line of its own.

use std::ffi::OsString;
use std::io;
use std::process::Command;
use std::sync::OnceLock;

struct Called {
    arguments: Vec<OsString>,
    again: Vec<OsString>,
}

static CALLED: OnceLock<Called> = OnceLock::new();

/// Says what the command line is where it is not the process's own: `arguments`, with the program's
/// name first. `again` is what starts the program in a process of its own. Counts once.
pub fn called(arguments: Vec<OsString>, again: Vec<OsString>) {
    let _ = CALLED.set(Called { arguments, again });
}

/// The command line, with the program's name first.
pub fn arguments() -> Vec<OsString> {
    CALLED.get().map_or_else(|| std::env::args_os().collect(), |called| called.arguments.clone())
}

/// A command that starts this program, without arguments yet.
///
/// # Errors
/// The system's own, if it does not say where the program is.
pub fn again() -> io::Result<Command> {
    let Some([program, first @ ..]) = CALLED.get().map(|called| called.again.as_slice()) else {
        return std::env::current_exe().map(Command::new);
    };
    let mut command = Command::new(program);
    command.args(first);
    Ok(command)
}
