//! Tables with aligned columns, which fit the terminal.
//!
//! On a terminal that is too narrow, first the columns that can be left out are, then long texts are shortened. In pipes and
//! files, tables are complete, but for columns that are for some rows only and say nothing.

use std::io::{self, Write};

use unicode_width::UnicodeWidthStr;

use super::tone::Tone;
use super::width;
use crate::telemetry::has_colour;

/// Space between columns.
const GAP: usize = 2;

/// Columns that a shortened text keeps.
const MIN_WIDTH: usize = 12;

/// A column.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Column {
    heading: String,
    /// Whether its texts can be shortened.
    is_elastic: bool,
    /// If it can be left out: the columns with the highest rank are first.
    rank: Option<u8>,
    /// Whether it is left out if it says nothing, wherever the table is printed.
    is_for_some: bool,
}

impl Column {
    /// One that is always shown whole.
    pub(in crate::cli) fn new(heading: &str) -> Self {
        Self { heading: heading.to_owned(), is_elastic: false, rank: None, is_for_some: false }
    }

    /// One whose texts can be shortened.
    pub(in crate::cli) fn elastic(self) -> Self {
        Self { is_elastic: true, ..self }
    }

    /// One that can be left out, before those with a lower rank.
    pub(in crate::cli) fn optional(self, rank: u8) -> Self {
        Self { rank: Some(rank), ..self }
    }

    /// One that is left out if it says nothing.
    pub(in crate::cli) fn if_any(self) -> Self {
        Self { is_for_some: true, ..self }
    }
}

/// One text of a table.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::cli) struct Cell {
    pub(in crate::cli) text: String,
    tone: Tone,
}

impl Cell {
    pub(in crate::cli) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// A table.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(in crate::cli) const fn new(columns: Vec<Column>) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub(in crate::cli) fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    pub(in crate::cli) const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Prints it.
    pub(in crate::cli) fn print(&self) -> io::Result<()> {
        let stdout = io::stdout();
        let text = self.layout(width(), has_colour(&stdout));
        stdout.lock().write_all(text.as_bytes())
    }

    /// Its lines, for a terminal of so many columns, if any.
    pub(in crate::cli) fn layout(&self, width: Option<usize>, has_colour: bool) -> String {
        let says_something = |at: &usize| !self.columns[*at].is_for_some || !self.is_blank(*at);
        let columns = (0..self.columns.len()).filter(says_something);
        let mut shown: Vec<(usize, usize)> = columns.map(|at| (at, self.width_of(at))).collect();
        if let Some(available) = width {
            self.leave_out(&mut shown, available);
            self.shorten(&mut shown, available);
        }
        let headings: Vec<Cell> =
            self.columns.iter().map(|column| Cell::toned(&*column.heading, Tone::Strong)).collect();
        let mut text = String::new();
        for row in std::iter::once(&headings).chain(&self.rows) {
            text.push_str(&line(row, &shown, has_colour));
            text.push('\n');
        }
        text
    }

    /// The width of a column: that of its longest text.
    fn width_of(&self, at: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.text.width());
        cells.chain([self.columns[at].heading.width()]).max().unwrap_or_default()
    }

    /// Whether a column says nothing.
    fn is_blank(&self, at: usize) -> bool {
        let cells = self.rows.iter().filter_map(|row| row.get(at));
        cells.into_iter().all(|cell| matches!(&*cell.text, "" | "-"))
    }

    /// Leaves columns out until the others fit: those that say nothing, then those with the highest rank.
    fn leave_out(&self, shown: &mut Vec<(usize, usize)>, available: usize) {
        if total(shown) > available {
            shown.retain(|(at, _)| self.columns[*at].rank.is_none() || !self.is_blank(*at));
        }
        while total(&self.with_shortest(shown)) > available {
            let rank = |&(at, _): &(usize, usize)| Some((self.columns[at].rank?, at));
            let Some((_, last)) = shown.iter().filter_map(rank).max() else { return };
            shown.retain(|(at, _)| *at != last);
        }
    }

    /// The columns as narrow as they can be.
    fn with_shortest(&self, shown: &[(usize, usize)]) -> Vec<(usize, usize)> {
        let shortest = |&(at, width): &(usize, usize)| {
            (at, if self.columns[at].is_elastic { width.min(MIN_WIDTH) } else { width })
        };
        shown.iter().map(shortest).collect()
    }

    /// Shortens the widest elastic columns until all fit.
    fn shorten(&self, shown: &mut [(usize, usize)], available: usize) {
        while total(shown) > available {
            let excess = total(shown) - available;
            let elastic =
                shown.iter_mut().filter(|(at, width)| self.columns[*at].is_elastic && *width > MIN_WIDTH);
            let Some((_, width)) = elastic.max_by_key(|(_, width)| *width) else { return };
            *width = width.saturating_sub(excess).max(MIN_WIDTH);
        }
    }
}

fn total(shown: &[(usize, usize)]) -> usize {
    let widths: usize = shown.iter().map(|(_, width)| width).sum();
    widths + GAP * shown.len().saturating_sub(1)
}

/// One line, without spaces at its end.
fn line(row: &[Cell], shown: &[(usize, usize)], has_colour: bool) -> String {
    let mut line = String::new();
    // Spaces are added before a text, so that there are none at the end.
    let mut spaces = 0;
    for &(at, width) in shown {
        let Some(cell) = row.get(at) else { continue };
        let text = truncated(&cell.text, width);
        if !text.is_empty() {
            line.push_str(&" ".repeat(spaces));
            line.push_str(&cell.tone.paint(&text, has_colour));
            spaces = 0;
        }
        spaces += width.saturating_sub(text.width()) + GAP;
    }
    line
}

/// A text of at most so many columns.
pub(in crate::cli) fn truncated(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut shortened = String::new();
    for character in text.chars() {
        shortened.push(character);
        if shortened.width() >= width {
            shortened.pop();
            break;
        }
    }
    shortened.push('…');
    shortened
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: Vec<Column>, rows: &[&[&str]]) -> Table {
        let mut table = Table::new(columns);
        rows.iter().for_each(|row| table.push(row.iter().map(|text| Cell::from(*text)).collect()));
        table
    }

    #[test]
    fn columns_are_aligned() {
        let columns = vec![Column::new("ID"), Column::new("N"), Column::new("LAST")];
        let table = table(columns, &[&["größe", "1", ""], &["漢字", "2 b", "x"]]);
        assert_eq!(table.layout(None, false), "ID     N    LAST\ngröße  1\n漢字   2 b  x\n");
    }

    #[test]
    fn a_table_fits_its_terminal() {
        let columns = vec![
            Column::new("ID"),
            Column::new("EMPTY").optional(1),
            Column::new("MORE").optional(2),
            Column::new("COMMAND").elastic(),
        ];
        let long = "sh -c 'echo a long line'";
        let table = table(columns, &[&["web", "-", "0123456789", long]]);
        let widths = |width| {
            let text = table.layout(Some(width), false);
            assert!(text.lines().all(|line| line.width() <= width), "{text}");
            text
        };
        assert_eq!(widths(80), table.layout(None, false));
        assert!(widths(40).contains("0123456789  sh -c 'echo a"), "{}", widths(40));
        assert_eq!(widths(36), "ID   MORE        COMMAND\nweb  0123456789  sh -c 'echo a long…\n");
        assert_eq!(widths(20), "ID   COMMAND\nweb  sh -c 'echo a …\n");
        // What cannot be shortened is shown whole.
        assert_eq!(table.layout(Some(3), false), "ID   COMMAND\nweb  sh -c 'echo…\n");
    }

    #[test]
    fn a_column_for_some_is_left_out_if_it_says_nothing() {
        let columns = || vec![Column::new("ID"), Column::new("DISK").if_any(), Column::new("END").if_any()];
        let some = table(columns(), &[&["web", "-", ""], &["db", "1 B", "-"]]);
        assert_eq!(some.layout(None, false), "ID   DISK\nweb  -\ndb   1 B\n");
        assert_eq!(table(columns(), &[&["web", "-", ""]]).layout(Some(200), false), "ID\nweb\n");
        assert_eq!(table(columns(), &[]).layout(None, false), "ID\n");
    }

    #[test]
    fn colours_do_not_change_the_layout() {
        let mut table = Table::new(vec![Column::new("STATE"), Column::new("ID")]);
        table.push(vec![Cell::toned("OK", Tone::Good), Cell::from("a")]);
        assert_eq!(
            table.layout(None, true),
            "\u{1b}[1mSTATE\u{1b}[0m  \u{1b}[1mID\u{1b}[0m\n\u{1b}[32mOK\u{1b}[0m     a\n"
        );
    }
}
