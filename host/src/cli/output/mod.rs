//! Standard output: tables, lines and JSON.

use std::io::{self, Write};

use serde::Serialize;

/// Prints a table with aligned columns.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    io::stdout().lock().write_all(layout(headings, rows).as_bytes())
}

/// Prints a value as indented JSON.
pub(super) fn json(value: &(impl Serialize + ?Sized)) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    io::stdout().lock().write_all(&text)
}

/// Prints a line.
pub(super) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Escapes control characters, so that untrusted text cannot control the terminal.
pub(super) fn escape_control(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn layout(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(headings.get(column).map(|heading| heading.chars().count())).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let headings: Vec<String> = headings.iter().map(ToString::to_string).collect();
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(rows) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["größe".into(), "1".into()], vec!["a".into(), "2 b".into()]];
        assert_eq!(layout(&["ID", "N"], &rows), "ID     N\ngröße  1\na      2 b\n");
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escape_control("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
    }
}
