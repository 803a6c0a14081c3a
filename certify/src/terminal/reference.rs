//! The page about a program, made from the command line that it reads.

use std::fmt::Write;

use clap::{Arg, ArgAction, Command};

/// The page, in Markdown.
pub fn page(command: &Command) -> String {
    let mut command = command.clone();
    command.build();
    let name = command.get_name();
    let mut out = format!("# The program {name}\n\n{}\n", about(&command));
    let global: Vec<&Arg> = command.get_arguments().filter(|arg| arg.is_global_set()).collect();
    if !global.is_empty() {
        out += "\nEvery command takes:\n\n";
        table(&global, &mut out);
    }
    commands(&command, name, &mut out);
    out
}

fn commands(command: &Command, path: &str, out: &mut String) {
    let shown = command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help");
    for below in shown {
        let path = format!("{path} {}", below.get_name());
        if below.has_subcommands() {
            commands(below, &path, out);
            continue;
        }
        let usage = below.clone().render_usage().to_string();
        let usage = usage.trim().trim_start_matches("Usage: ").trim();
        let _ = write!(out, "\n## {path}\n\n```text\n{usage}\n```\n\n{}\n", about(below));
        let own = |arg: &&Arg| {
            !arg.is_global_set()
                && !arg.is_hide_set()
                && !matches!(arg.get_id().as_str(), "help" | "version")
        };
        let own: Vec<&Arg> = below.get_arguments().filter(own).collect();
        if !own.is_empty() {
            *out += "\n";
            table(&own, out);
        }
    }
}

fn about(command: &Command) -> String {
    let text = command.get_long_about().or(command.get_about()).map(ToString::to_string);
    text.unwrap_or_default().trim().replace('<', "&lt;")
}

fn table(arguments: &[&Arg], out: &mut String) {
    *out += "| | default | |\n|---|---|---|\n";
    for arg in arguments {
        let help = arg.get_long_help().or(arg.get_help());
        let mut help = cell(&help.map(ToString::to_string).unwrap_or_default());
        let values = arg.get_possible_values();
        let values: Vec<_> = values.iter().filter(|value| !value.is_hide_set()).collect();
        if arg.get_action().takes_values() && !values.is_empty() && values[0].get_help().is_some() {
            let each = values.iter().map(|value| {
                let help = value.get_help().map(ToString::to_string).unwrap_or_default();
                format!("`{}`: {}", value.get_name(), cell(&help).trim_end_matches('.'))
            });
            let help_of_each = each.collect::<Vec<_>>().join("; ");
            help = format!("{}. {help_of_each}.", help.trim_end_matches('.'));
        } else if arg.get_action().takes_values() && !values.is_empty() {
            let each = values.iter().map(|value| format!("`{}`", value.get_name()));
            let names = each.collect::<Vec<_>>().join(", ");
            help = format!("{}. One of {names}.", help.trim_end_matches('.'));
        }
        let default = arg.get_default_values().iter().map(|value| value.to_string_lossy());
        let default = default.collect::<Vec<_>>().join(",");
        let default = if default.is_empty() || !arg.get_action().takes_values() {
            String::new()
        } else {
            format!("`{}`", default.escape_debug())
        };
        let _ = writeln!(out, "| {} | {default} | {help} |", written(arg));
    }
}

/// How an argument is written.
fn written(arg: &Arg) -> String {
    let names = match arg.get_value_names() {
        Some(names) => names.iter().map(|name| format!("<{name}>")).collect(),
        None => vec![format!("<{}>", arg.get_id().as_str().to_uppercase())],
    };
    let value = names.join(" ");
    let Some(long) = arg.get_long() else {
        let more = if matches!(arg.get_action(), ArgAction::Append) { "…" } else { "" };
        return format!("`{value}{more}`");
    };
    let short = arg.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    let takes = arg.get_action().takes_values();
    let optional = arg.get_num_args().is_some_and(|count| count.min_values() == 0);
    let value = match (takes, optional) {
        (false, _) => String::new(),
        (true, true) => format!(" [{value}]"),
        (true, false) => format!(" {value}"),
    };
    format!("`{short}--{long}{value}`")
}

/// A text as one cell of a table.
pub fn cell(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // Inside of code nothing but the end of a cell has a meaning.
    let part = |(i, part): (usize, &str)| match i % 2 {
        0 => part.replace('<', "&lt;").replace('[', "\\["),
        _ => part.to_string(),
    };
    let parts: Vec<String> = text.split('`').enumerate().map(part).collect();
    parts.join("`").replace('|', "\\|")
}
