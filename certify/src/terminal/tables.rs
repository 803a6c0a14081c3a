//! Tables on stdout: as wide as they are in a pipe, and no wider than a terminal.

use std::io::IsTerminal;

use comfy_table::{
    Cell, CellAlignment, ColumnConstraint, ContentArrangement, LineStyle, Table, Width, presets,
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

/// The table within `width` columns: words and headers are broken over lines, numbers are not, and no
/// column of words becomes narrower than one can read.
fn within(mut table: Table, width: usize) -> Table {
    let widths: Vec<usize> =
        table.column_max_content_widths().iter().map(|w| usize::from(*w)).collect();
    let padding: usize =
        table.column_iter().map(|column| usize::from(column.padding_width())).sum();
    // Between two columns is one more.
    let around = padding + widths.len().saturating_sub(1);
    if widths.iter().sum::<usize>() + around <= width {
        return table;
    }
    let (mut least, named) = (around, number_width(&table, 0).is_none());
    for (i, natural) in widths.iter().enumerate() {
        let number = number_width(&table, i);
        least += number.unwrap_or(WORDS).min(*natural);
        if let (Some(number), Some(column)) = (number, table.column_mut(i)) {
            column.set_constraint(fixed(number + usize::from(column.padding_width())));
        }
    }
    // What a row is about is kept whole before what is said of it.
    let first = widths.first().copied().unwrap_or_default();
    let more = first.min(NAME) - first.min(WORDS);
    if named
        && least + more <= width
        && let Some(column) = table.column_mut(0)
        && let Ok(name) = u16::try_from(first.min(NAME) + usize::from(column.padding_width()))
    {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(name)));
    }
    let width = u16::try_from(width.max(least)).unwrap_or(u16::MAX);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    table
}

fn fixed(width: usize) -> ColumnConstraint {
    ColumnConstraint::Absolute(Width::Fixed(u16::try_from(width).unwrap_or(u16::MAX)))
}

/// The width in which a column of numbers breaks none of them and no word of its header; none for a
/// column of words.
fn number_width(table: &Table, column: usize) -> Option<usize> {
    let whole = table.column(column)?.constraint()?;
    if !matches!(whole, ColumnConstraint::ContentWidth) {
        return None;
    }
    let wide = |text: &str| text.chars().count();
    let mut cells = table.column_cells_with_header_iter(column).flatten().map(Cell::content);
    let header = cells.next().unwrap_or_default();
    let word = header.split(' ').map(wide).max().unwrap_or_default();
    Some(cells.map(|cell| wide(&cell)).max().unwrap_or_default().max(word))
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
        for width in [200, natural, natural - 1, 60, 50, 45] {
            let table = within(example(), width);
            assert!(widest(&table) <= width, "{width}\n{table}");
            // No number is broken, and no word is lost.
            for whole in ["1.148", "9999.9", "1.20e17", "certified", "σ_max"] {
                assert!(table.to_string().contains(whole), "{whole}\n{table}");
            }
        }
        assert_eq!(within(example(), 200).to_string(), example().to_string());
        assert_eq!(within(example(), natural).to_string(), example().to_string());
        // What fits nowhere stays readable.
        assert!(within(example(), 10).to_string().contains("9999.9"));
    }
}
