//! Tables on stdout: as wide as they are in a pipe, and no wider than a terminal.

use std::io::IsTerminal;

use comfy_table::{
    CellAlignment, ColumnConstraint, ContentArrangement, LineStyle, Table, Width, presets,
};

/// Characters that a column of words keeps on a narrow terminal.
const WORDS: usize = 8;

/// Characters that the first column keeps where there is room for them.
const NAME: usize = 24;

/// A table whose header is one of words, `numbers` the columns that hold numbers.
pub fn table<S: AsRef<str>>(header: &[S], numbers: impl IntoIterator<Item = usize>) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()))
        .set_header(header.iter().map(AsRef::as_ref));
    for column in numbers {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table
}

/// The table, in the width of the terminal if stdout is one.
pub fn fitted(table: Table) -> Table {
    match width() {
        Some(width) => within(table, width),
        None => table,
    }
}

/// The columns of the terminal, if stdout is one.
pub fn width() -> Option<usize> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    terminal_size::terminal_size_of(&stdout).map(|(width, _)| usize::from(width.0))
}

/// Whether stdout is read by a person.
pub fn is_shown() -> bool {
    std::io::stdout().is_terminal()
}

/// The table within `width` columns: words are broken over lines, numbers are not, and no column of
/// words becomes narrower than one can read.
fn within(mut table: Table, width: usize) -> Table {
    let widths = table.column_max_content_widths();
    let first = widths.first().copied().map_or(0, usize::from);
    let least = table.column_iter().zip(widths).map(|(column, content)| {
        let content = usize::from(content);
        let whole = matches!(column.constraint(), Some(ColumnConstraint::ContentWidth));
        let content = if whole { content } else { content.min(WORDS) };
        content + usize::from(column.padding_width())
    });
    let least: usize = least.sum();
    // What a row is about is kept whole before what is said of it.
    let name = first.min(NAME);
    if let Some(column) = table.column_mut(0).filter(|column| column.constraint().is_none())
        && least + name - first.min(WORDS) <= width
        && let Ok(name) = u16::try_from(name + usize::from(column.padding_width()))
    {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(name)));
    }
    let width = u16::try_from(width.max(least)).unwrap_or(u16::MAX);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Table {
        let mut table = table(&["network", "method", "σ_max", "certified L ≤"], 2..4);
        table.add_row(["L ≤ 10000", "Muon + spectral soft cap", "1.148", "9999.9"]);
        table.add_row(["AdamW alone", "AdamW + no constraint at all", "–", "1.20e17"]);
        table
    }

    fn widest(table: &Table) -> usize {
        table.to_string().lines().map(|line| line.chars().count()).max().unwrap()
    }

    #[test]
    fn a_table_is_no_wider_than_its_terminal() {
        let natural = widest(&example());
        for width in [200, natural, natural - 1, 60, 50] {
            let table = within(example(), width);
            assert!(widest(&table) <= width, "{width}\n{table}");
            // No number is broken, and no word is lost.
            for whole in ["1.148", "9999.9", "1.20e17", "certified L ≤", "spectral"] {
                assert!(table.to_string().contains(whole), "{whole}\n{table}");
            }
        }
        assert_eq!(within(example(), 200).to_string(), example().to_string());
        assert_eq!(within(example(), natural).to_string(), example().to_string());
        // What fits nowhere stays readable.
        assert!(within(example(), 10).to_string().contains("9999.9"));
    }
}
