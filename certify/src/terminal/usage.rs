//! Command lines: as clap reads them, and what it says of wrong ones.

use std::ffi::OsString;

use clap::error::{ContextValue, ErrorKind};
use clap::{Command, Parser};

use super::{escaped, note};

/// Parses the command line. Prints help or the version, or what is wrong with the command line and
/// how it is used.
///
/// # Errors
/// The exit code: 0 after help or the version, 2 after a usage error.
pub fn parse<T: Parser>() -> Result<T, u8> {
    read(&super::program::arguments()).map_err(refuse)
}

/// As clap reads it; but where what follows `--json` is missed elsewhere, as the model in
/// `eval --json MODEL`, it was no file to write to.
fn read<T: Parser>(args: &[OsString]) -> Result<T, clap::Error> {
    parsed(args).or_else(|error| {
        let missing = error.kind() == ErrorKind::MissingRequiredArgument;
        let alone = |arg: &OsString| if arg == "--json" { "--json=-".into() } else { arg.clone() };
        let again = || parsed(&args.iter().map(alone).collect::<Vec<_>>()).ok();
        missing.then(again).flatten().ok_or(error)
    })
}

fn parsed<T: Parser>(args: &[OsString]) -> Result<T, clap::Error> {
    let mut command = negative(T::command());
    let matches = command.try_get_matches_from_mut(args)?;
    T::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Options take what begins with a minus and is a number, so that the option says what it wants.
fn negative(command: Command) -> Command {
    let options =
        command.mut_args(|arg| match arg.is_positional() || !arg.get_action().takes_values() {
            true => arg,
            false => arg.allow_negative_numbers(true),
        });
    options.mut_subcommands(negative)
}

/// Prints an error as clap lays it out. What it quotes from the command line cannot move the cursor
/// or begin a line of its own.
fn refuse(mut error: clap::Error) -> u8 {
    if !error.use_stderr() {
        let _ = error.print();
        return 0;
    }
    let calm = |text: &String| escaped(text, "");
    let quoted: Vec<_> = error
        .context()
        .filter_map(|(kind, value)| match value {
            ContextValue::String(text) => Some((kind, ContextValue::String(calm(text)))),
            ContextValue::Strings(texts) => {
                Some((kind, ContextValue::Strings(texts.iter().map(calm).collect())))
            }
            _ => None,
        })
        .collect();
    for (kind, value) in quoted {
        error.insert(kind, value);
    }
    let text = error.render().to_string();
    if escaped(&text, "\n") == text {
        let _ = error.print();
    } else {
        note(format_args!("{}", text.trim_end()));
    }
    2
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::terminal::JsonOutput;

    #[derive(Parser)]
    struct Program {
        model: PathBuf,
        #[command(flatten)]
        json: JsonOutput,
        #[arg(long)]
        quiet: bool,
        #[arg(long, value_parser = crate::terminal::ranges::count(1, 9))]
        count: Option<usize>,
    }

    #[test]
    fn json_goes_to_stdout_or_to_a_file_and_takes_no_model() {
        for (line, place) in [
            ("p model", None),
            ("p model --json", Some("-")),
            ("p model --json -", Some("-")),
            ("p model --json --quiet", Some("-")),
            ("p model --json out.json", Some("out.json")),
            ("p --json out.json model", Some("out.json")),
            ("p --json=out.json model", Some("out.json")),
            // As it was while `--json` took nothing.
            ("p --json model", Some("-")),
            ("p --quiet --json model", Some("-")),
        ] {
            let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let Program { model, json, .. } = read(&args).unwrap();
            assert_eq!(model, PathBuf::from("model"), "{line}");
            assert_eq!(json.path().map(|path| path.to_str().unwrap()), place, "{line}");
        }
        let args = ["p", "--json"].map(OsString::from);
        assert!(read::<Program>(&args).is_err());
        let args = ["p", "model", "--count", "-1"].map(OsString::from);
        let said = read::<Program>(&args).err().unwrap().to_string();
        assert!(said.contains("'-1'") && said.contains("--count"), "{said}");
        assert_eq!(
            read::<Program>(&["p", "model", "--count", "2"].map(OsString::from)).unwrap().count,
            Some(2)
        );
    }
}
