//! Problems of a configuration file, each shown at its position.
//!
//! ```text
//! error: unknown key `destroy_timout`
//!  --> agent.toml:4:1
//!   |
//! 4 | destroy_timout = "60s"
//!   | ^^^^^^^^^^^^^^ not a key of this table
//! help: did you mean `destroy_timeout`?
//! ```

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Maximum number of characters of a line that are shown.
const MAX_WIDTH: usize = 100;

/// A problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong.
    pub message: String,
    /// Byte range in the file; `None` for problems outside of it.
    pub span: Option<Range<usize>>,
    /// Text next to the underlined range: what is expected or wrong there.
    pub label: String,
    /// Another range that is part of the problem, with its label.
    pub related: Option<(Range<usize>, String)>,
    /// What to do about it.
    pub help: Vec<String>,
}

impl Diagnostic {
    /// A problem at `span`.
    #[must_use]
    pub fn at(span: Range<usize>, message: impl Into<String>, label: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            span: Some(span),
            label: label.into(),
            related: None,
            help: Vec::new(),
        }
    }

    /// A problem outside of the file.
    #[must_use]
    pub fn global(message: impl Into<String>) -> Self {
        Self { message: message.into(), span: None, label: String::new(), related: None, help: Vec::new() }
    }

    /// Adds another range.
    #[must_use]
    pub fn related(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.related = Some((span, label.into()));
        self
    }

    /// Adds a line of help.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    /// Adds a line of help, if there is one.
    #[must_use]
    pub fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help.extend(help);
        self
    }
}

/// All problems of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics {
    /// `None` without a configuration file.
    file: Option<PathBuf>,
    text: String,
    diagnostics: Vec<Diagnostic>,
}

impl std::error::Error for Diagnostics {}

impl Diagnostics {
    /// Problems in the text of a file.
    #[must_use]
    pub fn new(file: Option<&Path>, text: &str, mut diagnostics: Vec<Diagnostic>) -> Self {
        // Those without a position come last, as they may follow from the others.
        diagnostics.sort_by_key(|diagnostic| diagnostic.span.as_ref().map_or(usize::MAX, |span| span.start));
        Self { file: file.map(Path::to_owned), text: text.to_owned(), diagnostics }
    }

    /// The problems, in the order of their positions.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Diagnostic> {
        self.diagnostics.iter()
    }

    /// Line and column of a problem, counted from 1.
    #[must_use]
    pub fn position(&self, diagnostic: &Diagnostic) -> Option<(usize, usize)> {
        diagnostic.span.as_ref().map(|span| position(&self.text, span.start))
    }

    fn origin(&self) -> String {
        self.file.as_ref().map_or_else(|| "the configuration".to_owned(), |file| file.display().to_string())
    }

    fn show(&self, f: &mut fmt::Formatter<'_>, diagnostic: &Diagnostic) -> fmt::Result {
        writeln!(f, "error: {}", diagnostic.message)?;
        if let Some(span) = &diagnostic.span {
            let excerpts: Vec<Excerpt> = std::iter::once((span, diagnostic.label.as_str()))
                .chain(diagnostic.related.iter().map(|(span, label)| (span, label.as_str())))
                .map(|(span, label)| Excerpt::of(&self.text, span, label))
                .collect();
            let width =
                excerpts.iter().map(|excerpt| excerpt.line.to_string().len()).max().unwrap_or_default();
            for (i, excerpt) in excerpts.iter().enumerate() {
                let arrow = if i == 0 { "-->" } else { ":::" };
                let (line, column) = (excerpt.line, excerpt.column);
                writeln!(f, "{:width$}{arrow} {}:{line}:{column}", "", self.origin())?;
                excerpt.show(f, width)?;
            }
        }
        diagnostic.help.iter().try_for_each(|help| writeln!(f, "help: {help}"))
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.diagnostics {
            self.show(f, diagnostic)?;
            writeln!(f)?;
        }
        let count = self.diagnostics.len();
        let problems = if count == 1 { "problem" } else { "problems" };
        write!(f, "found {count} {problems} in {}", self.origin())
    }
}

/// Line and column of a byte offset, counted from 1. Columns count characters.
#[must_use]
pub(super) fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(byte)];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Part of a line, with the range that is underlined.
struct Excerpt<'a> {
    line: usize,
    column: usize,
    text: String,
    indent: usize,
    length: usize,
    label: &'a str,
}

impl<'a> Excerpt<'a> {
    fn of(text: &str, span: &Range<usize>, label: &'a str) -> Self {
        let (line, column) = position(text, span.start);
        let start = text.floor_char_boundary(span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let full = text[line_start..line_end].trim_end();

        // A range of several lines is underlined to the end of its first line.
        let end = text.floor_char_boundary(span.end).clamp(start, line_end);
        let length = text[start..end].trim_end().chars().count().max(1);
        let (shown, indent) = clip(full, column - 1, length);
        let length = length.min(MAX_WIDTH);
        Self { line, column, text: shown, indent, length, label }
    }

    fn show(&self, f: &mut fmt::Formatter<'_>, width: usize) -> fmt::Result {
        let Self { line, text, indent, length, label, .. } = self;
        writeln!(f, "{:width$} |", "")?;
        writeln!(f, "{line:width$} | {text}")?;
        let underlined = format!("{:width$} | {:indent$}{} {label}", "", "", "^".repeat(*length));
        writeln!(f, "{}", underlined.trim_end())
    }
}

/// The part of a line that is shown, and the column in it at which the underlined range begins. Tabs are replaced by
/// single spaces and control characters by U+FFFD, so that columns are aligned and the terminal is not controlled.
fn clip(line: &str, from: usize, length: usize) -> (String, usize) {
    let printable = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    let total = line.chars().count();
    if total <= MAX_WIDTH {
        return (line.chars().map(printable).collect(), from);
    }
    let margin = MAX_WIDTH.saturating_sub(length.min(MAX_WIDTH)) / 2;
    let first = from.saturating_sub(margin).min(total - MAX_WIDTH);
    let mut shown: String = line.chars().skip(first).take(MAX_WIDTH).map(printable).collect();
    let mut indent = from - first;
    if first > 0 {
        shown.insert_str(0, "… ");
        indent += 2;
    }
    if first + MAX_WIDTH < total {
        shown.push_str(" …");
    }
    (shown, indent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_underlined() {
        let text = "a = 1\n  größe = \"x\"\n";
        let at = text.find("\"x\"").unwrap();
        let diagnostic = Diagnostic::at(at..at + 3, "bad size", "expected a size").help("write `1 MiB`");
        let shown = Diagnostics::new(Some(Path::new("f.toml")), text, vec![diagnostic]).to_string();
        assert_eq!(
            shown,
            "error: bad size\n --> f.toml:2:11\n  |\n2 |   größe = \"x\"\n  |           ^^^ expected a size\n\
             help: write `1 MiB`\n\nfound 1 problem in f.toml"
        );
    }

    #[test]
    fn a_long_line_is_cut_around_the_range() {
        let text = format!("key = \"{}!{}\"", "x".repeat(5000), "y".repeat(5000));
        let at = text.find('!').unwrap();
        let diagnostic = Diagnostic::at(at..at + 1, "bad", "here");
        let shown = Diagnostics::new(None, &text, vec![diagnostic]).to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() < 120), "{shown}");
        let column = lines[4].chars().position(|c| c == '^').unwrap();
        assert_eq!(lines[3].chars().nth(column), Some('!'));
    }

    #[test]
    fn ranges_at_and_beyond_the_end_do_not_panic() {
        for span in [0..0, 3..3, 2..9, 40..50] {
            let shown = Diagnostics::new(None, "a =", vec![Diagnostic::at(span, "m", "l")]).to_string();
            assert!(shown.contains('^'), "{shown}");
        }
    }
}
