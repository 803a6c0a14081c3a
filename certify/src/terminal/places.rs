//! Where in a TOML file something is wrong: its line, its column, and the line itself, in one line
//! of text.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::shown;

/// What is wrong with a TOML file, after where it is.
pub fn syntax(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
    match error.span() {
        Some(span) => format!("{}: {message}", place(text, span.start)),
        None => message,
    }
}

/// The place of a byte: ``line 3, column 9, `steps = = 5` ``.
pub fn place(text: &str, at: usize) -> String {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let before = &text[..at];
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let (line, column) = (before.matches('\n').count() + 1, before[start..].chars().count() + 1);
    let whole = text[start..].lines().next().unwrap_or_default().trim();
    let quoted = if whole.is_empty() { String::new() } else { format!(", `{}`", shown(whole)) };
    format!("line {line}, column {column}{quoted}")
}

/// Where a key, `path` from the outermost, has its value; with a `name`, where below it that is a
/// key or a value. As near as the text has it.
pub fn of_key<'a>(
    text: &str,
    path: impl IntoIterator<Item = &'a str>,
    name: Option<&str>,
) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let (mut at, mut tables) = (None, vec![document.get_ref()]);
    for key in path {
        let mut entries = tables.iter().flat_map(|table| table.iter());
        let (_, value) = entries.find(|(name, _)| name.get_ref() == key)?;
        (at, tables) = (Some(value.span().start), inside(value));
    }
    let Some(name) = name else { return at };
    let entries = || tables.iter().flat_map(|table| table.iter());
    let key = entries().find(|(key, _)| key.get_ref() == name).map(|(key, _)| key.span().start);
    let value = entries().find(|(_, value)| value.get_ref().as_str() == Some(name));
    key.or_else(|| value.map(|(_, value)| value.span().start)).or(at)
}

/// The tables that a value is, or that are in its list.
fn inside<'a, 'i>(value: &'a Spanned<DeValue<'i>>) -> Vec<&'a DeTable<'i>> {
    match value.get_ref() {
        DeValue::Table(table) => vec![table],
        DeValue::Array(list) => {
            list.iter().filter_map(|value| value.get_ref().as_table()).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "a = 1\n\n[train]\n  steps = 5 # ä\nkind = 'plays'\n[[groups]]\nx = 1\n\
                        [[groups]]\n\u{e4}y = 2\n";

    #[test]
    fn a_place_is_a_line_and_a_column_in_characters() {
        let at = |what: &str| place(TEXT, TEXT.find(what).unwrap());
        assert_eq!(at("steps"), "line 4, column 3, `steps = 5 # ä`");
        assert_eq!(at("y = 2"), "line 9, column 2, `äy = 2`");
        assert_eq!(place("", 7), "line 1, column 1");
        assert_eq!(place("ä", 1), "line 1, column 1, `ä`");
        let error = toml::from_str::<toml::Table>("a = 1\nb = = 2\n").unwrap_err();
        let said = syntax("a = 1\nb = = 2\n", &error);
        assert!(
            said.starts_with("line 2, column 5, `b = = 2`: ") && !said.contains('\n'),
            "{said}"
        );
    }

    #[test]
    fn keys_are_found_in_sections_and_lists() {
        let text = TEXT.replace('\u{e4}', "");
        let at = |path: &[&str], name| of_key(&text, path.iter().copied(), name);
        assert_eq!(at(&["train", "steps"], None), text.find("5 #"));
        assert_eq!(at(&["train"], Some("steps")), text.find("steps"));
        assert_eq!(at(&["train"], Some("plays")), text.find("'plays'"));
        assert_eq!(at(&["groups"], Some("y")), text.find("y = 2"));
        assert_eq!(at(&[], Some("a")), Some(0));
        assert_eq!(at(&["absent", "steps"], None), None);
    }
}
