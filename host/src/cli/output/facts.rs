//! Facts, a name and a value on each line, and texts that are wrapped to the width of the terminal. In pipes and files, lines
//! are as long as they are.

use std::io::{self, Write};

use unicode_width::UnicodeWidthStr;

use super::{escape_control, width};

/// The least space for a text, where its place leaves less.
const MIN_SPACE: usize = 20;

/// Prints facts, whose names take so many columns.
pub(in crate::cli) fn facts<N: AsRef<str>>(
    names: usize,
    facts: impl IntoIterator<Item = (N, String)>,
) -> io::Result<()> {
    let (mut stdout, width) = (io::stdout().lock(), width());
    for (name, value) in facts {
        let value = wrapped(&escape_control(&value), names + 1, names + 1, width);
        let line = format!("{:names$} {value}", name.as_ref());
        writeln!(stdout, "{}", line.trim_end())?;
    }
    Ok(())
}

/// A text that begins at a column, with line breaks for a terminal of so many columns, if any. Its other lines begin at the
/// column `indent`. What has no spaces is not broken, so that it can be copied.
pub(in crate::cli) fn wrapped(text: &str, column: usize, indent: usize, width: Option<usize>) -> String {
    let Some(width) = width else { return text.to_owned() };
    let space = width.saturating_sub(indent).max(MIN_SPACE);
    let first = width.saturating_sub(column).max(MIN_SPACE);
    let mut lines = String::new();
    let (mut used, mut available) = (0, first);
    for word in text.split(' ') {
        let needed = word.width();
        if used > 0 && used + 1 + needed > available {
            lines.truncate(lines.trim_end_matches(' ').len());
            lines.push('\n');
            lines.push_str(&" ".repeat(indent));
            (used, available) = (0, space);
        } else if used > 0 {
            lines.push(' ');
            used += 1;
        }
        lines.push_str(word);
        used += needed;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_wrapped_between_words() {
        let text = "größe of a  text that is long, and /a/path/that/is/longer/than/a/line, the end";
        for (width, expected) in [
            (None, text.to_owned()),
            (Some(100), text.to_owned()),
            (
                Some(30),
                "größe of a  text\n    that is long, and\n    /a/path/that/is/longer/than/a/line,\n    the end".to_owned(),
            ),
        ] {
            assert_eq!(wrapped(text, 10, 4, width), expected, "{width:?}");
        }
        // A terminal that is too narrow wraps them itself.
        assert_eq!(wrapped("one two three four five", 10, 4, Some(12)), "one two three four\n    five");
        assert_eq!(wrapped("", 10, 4, Some(12)), "");
    }
}
