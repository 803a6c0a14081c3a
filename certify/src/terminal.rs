//! Command-line conventions of both programs: usage errors as clap prints them, each error of ours
//! on one line with a remedy, results on stdout or in files, tables in the terminal's width, shell
//! completions.

mod output;
pub mod places;
pub mod program;
pub mod reference;
pub mod stop;
pub mod tables;
mod usage;

pub mod ranges;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use lipschitz_nn::At;
use lipschitz_plot::svg::invisible;

use crate::Error;

pub use output::{JsonOutput, Kind, distinct, is_stream, print, read, ready, target, write};
pub use usage::parse;

/// Makes a program end with exit code 2 where its memory does not suffice: an allocation that fails
/// is told on a line by the standard library, with a note or a backtrace as RUST_BACKTRACE has it,
/// which then aborts. What the system itself ends for want of memory ends without a word; no program
/// can catch that.
pub fn end_without_memory() {
    #[cfg(unix)]
    {
        let always = std::sync::Arc::new(AtomicBool::new(true));
        // Fails only for signals that cannot be caught, of which this is none.
        let abort = signal_hook::consts::SIGABRT;
        let _ = signal_hook::flag::register_conditional_shutdown(abort, 2, always);
    }
}

/// The longest part of a text from a file that is shown, in characters.
const LONGEST: usize = 400;

/// A text from a file, for a place in a line: characters that show nothing of themselves are
/// escaped, line breaks too, so that no file can write what this program did not say; and it is cut
/// where it is too long to read.
pub fn shown(text: &str) -> String {
    let cut = text.char_indices().nth(LONGEST).map_or(text, |(end, _)| &text[..end]);
    let mut out = escaped(cut, "");
    if cut.len() < text.len() {
        out.push('…');
    }
    out
}

/// Escapes all invisible characters but these.
pub fn escaped(text: &str, kept: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if invisible(c) && !kept.contains(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

static HUSHED: AtomicBool = AtomicBool::new(false);

/// Shows no progress from here on.
pub fn hush() {
    HUSHED.store(true, Ordering::Relaxed);
}

/// Whether progress is shown: on a terminal, unless [hushed](hush).
pub fn loud() -> bool {
    io::stderr().is_terminal() && !HUSHED.load(Ordering::Relaxed)
}

/// Prints a line on stderr. A line that cannot be written is ignored.
pub fn note(line: std::fmt::Arguments) {
    let _ = writeln!(io::stderr(), "{}", escaped(&line.to_string(), "\n"));
}

/// Like `println!`, through [`terminal::print`](print()).
#[macro_export]
macro_rules! outln {
    ($($part:tt)*) => {
        $crate::terminal::print(format_args!("{}\n", format_args!($($part)*)))
    };
}

/// An error as one line: its causes, without those that the text already contains, and a remedy.
pub fn line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut named = false;
    for cause in error.chain() {
        let said = match cause.downcast_ref() {
            Some(candle) => lipschitz_nn::candle_in_words(candle),
            None => cause.to_string(),
        };
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        // The error that names the file already contains the system's message.
        let told = text.contains(&said) || named && cause.is::<io::Error>();
        named |= matches!(cause.downcast_ref(), Some(lipschitz_nn::Error::Io { .. }));
        if !told {
            if !text.is_empty() {
                text += ": ";
            }
            text += &said;
        }
        // What is said of candle's errors is complete; their causes repeat it, with backtraces.
        let candle = matches!(cause.downcast_ref(), Some(lipschitz_nn::Error::Candle(_)));
        if candle || cause.is::<candle_core::Error>() {
            break;
        }
    }
    match error.chain().find_map(remedy) {
        Some(remedy) => format!("{text}; {remedy}"),
        None => text,
    }
}

/// The exit code of an error: 1 for a claim that does not hold, 2 for bad input.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let violated = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(Error::Violated(_)))
    };
    if error.chain().any(violated) { 1 } else { 2 }
}

/// The remedy for an error of a library, which does not know the programs.
fn remedy(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    None.or_else(|| error.downcast_ref().and_then(remedy_of_proof))
        .or_else(|| error.downcast_ref().and_then(remedy_of_recipe))
        .or_else(|| error.downcast_ref().and_then(remedy_of_data))
        .or_else(|| {
            error.downcast_ref::<Box<lipschitz_data::Error>>().and_then(|e| remedy_of_data(e))
        })
        .or_else(|| error.downcast_ref().and_then(remedy_of_import))
        .or_else(|| error.downcast_ref().and_then(remedy_of_network))
}

fn remedy_of_proof(error: &Error) -> Option<&'static str> {
    match error {
        Error::NoPromise(_) => Some(
            "a target needs one: choose a constraint.method that keeps sigma_max, such as \
             spectral_soft_cap, spectral_hard_cap, spectral_normalize, stiefel or svd_clip",
        ),
        _ => None,
    }
}

fn remedy_of_recipe(error: &lipschitz_opt::Error) -> Option<&'static str> {
    use lipschitz_opt::Error as E;
    match error {
        E::MissingCap(_) => Some("give it, or a lipschitz_target that it is solved from"),
        E::Svd(_) => Some("lower train.learning_rate"),
        _ => None,
    }
}

fn remedy_of_data(error: &lipschitz_data::Error) -> Option<&'static str> {
    use lipschitz_data::Error as E;
    match error {
        E::NoDirectory(_) => Some("check the path"),
        E::NotAShard { .. } | E::NoShards { .. } => Some("make shards with `train shards`"),
        E::UnknownVocabulary(_) => {
            Some("put the tokenizer.json beside the shards, or set data.vocabulary in the config")
        }
        E::BeyondVocabulary { .. } => Some(
            "mend it, or give shards of the model's own tokenizer; data.vocabulary in a config",
        ),
        E::Misfit { .. } => Some("choose another preset or data kind"),
        E::Memory { .. } => Some("give less data, or free some memory"),
        E::Explosive { .. } => Some("choose another tokenizer"),
        _ => None,
    }
}

fn remedy_of_import(undecided: &lipschitz_import::Undecided) -> Option<&'static str> {
    use lipschitz_import::Undecided as U;
    match undecided {
        U::UnknownTensors(_) => {
            Some("give --allow-unused to `certify import` if the function does not need them")
        }
        U::UnknownOptions(_) => Some(
            "give --ignore-option, once for each, to `certify import` if the function does not \
             depend on them",
        ),
        U::NoActivation(_) => Some(
            "give --activation, such as relu, to `certify import` (a directory with a config.json \
             says it)",
        ),
        U::NoHeads(_) => Some("give --heads NUMBER to `certify import`; the model's page says it"),
        U::NoClass(_) => Some("give --class, such as BertModel, to `certify import`"),
        U::TwoInputs(_) => Some("give --part text or --part vision to `certify import`"),
        U::Entries(_) => Some("give --entry NAME to `certify import`"),
        U::NoOrder(_) => {
            Some("give --order NAME,NAME,... to `certify import`, the first layer first")
        }
        U::NoChain(_) => Some(
            "give --order to `certify import` if the layers come in another order, or --graph if \
             they do not follow each other",
        ),
        U::NoGraph(_) => Some(
            "or describe the network with --graph to `certify import`, if nodes of a graph can say \
             it (docs/import/your-own.md)",
        ),
        _ => None,
    }
}

fn remedy_of_network(error: &lipschitz_nn::Error) -> Option<&'static str> {
    use io::ErrorKind as K;
    let lipschitz_nn::Error::Io { error, .. } = error else { return None };
    match error.kind() {
        K::NotFound | K::NotADirectory => Some("check the path"),
        K::PermissionDenied => Some("check who may read and write it"),
        K::StorageFull => Some("free some space and run again"),
        K::IsADirectory => Some("name a file"),
        K::AlreadyExists => Some("choose another name"),
        K::ReadOnlyFilesystem => Some("choose another place"),
        _ => None,
    }
}

/// Writes shell completions to stdout.
pub fn completions(shell: clap_complete::Shell, command: &mut clap::Command, name: &str) {
    let mut text = Vec::new();
    clap_complete::generate(shell, command, name, &mut text);
    print(format_args!("{}", String::from_utf8_lossy(&text)));
}

/// Writes the manual pages of a program to a directory, one for each of its commands.
///
/// # Errors
/// Names the directory if it cannot be written to.
pub fn manual(command: clap::Command, directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).at(directory)?;
    Ok(clap_mangen::generate_to(command, directory).at(directory)?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anyhow::Context;
    use lipschitz_nn::At;

    use super::line;

    #[test]
    fn an_error_is_said_once_with_its_remedy() {
        let missing = || std::fs::read("no/such").at(Path::new("no/such")).unwrap_err();
        let wanted = "no/such: no such file or directory; check the path";
        assert_eq!(line(&missing().into()), wanted);
        assert_eq!(line(&crate::Error::from(missing()).into()), wanted);
        let context = Err::<(), _>(missing()).context("run a").unwrap_err();
        assert_eq!(line(&context), format!("run a: {wanted}"));
        let candle = candle_core::Error::Msg("it failed\n   0: somewhere".into());
        let candle = crate::Error::from(lipschitz_nn::Error::from(candle));
        let said = line(&candle.into());
        assert!(said.contains("(it failed)") && said.contains("report it"), "{said}");
        let direct = candle_core::Error::Msg("it failed".into());
        assert_eq!(line(&direct.into()), said);
        let context = Err::<(), _>(candle_core::Error::Msg("it failed".into())).context("a.npz");
        assert_eq!(line(&context.unwrap_err()), format!("a.npz: {said}"));
        let inside = lipschitz_nn::Error::file(Path::new("b"), missing());
        assert_eq!(line(&inside.into()), format!("b: {wanted}"));
    }

    #[test]
    fn data_that_cannot_be_used_has_the_remedy_of_the_config() {
        let said = |error: lipschitz_data::Error| line(&error.into());
        let unknown = said(lipschitz_data::Error::UnknownVocabulary("shards".into()));
        assert!(unknown.ends_with("or set data.vocabulary in the config"), "{unknown}");
        let directory = Path::new("no/such");
        let missing = lipschitz_data::shards::load(directory, None, None).unwrap_err();
        assert_eq!(said(missing), "no/such: no such directory; check the path");
    }
}
