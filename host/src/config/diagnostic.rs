//! What is wrong with a configuration, shown where it was written.
//!
//! ```text
//! error: there is no key `destroy_timout`
//!  --> agent.toml:4:1
//!   |
//! 4 | destroy_timout = "60s"
//!   | ^^^^^^^^^^^^^^ expected a key of this table
//! help: did you mean `destroy_timeout`?
//! ```

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// How much of a line is shown around what it is about.
const SHOWN: usize = 100;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong, in one sentence.
    pub message: String,
    /// Where in the file, in bytes; `None` for what was not written in it.
    pub span: Option<Range<usize>>,
    /// What belongs there, or what is the matter with it.
    pub label: String,
    /// Another place that has to do with it, and how.
    pub other: Option<(Range<usize>, String)>,
    /// What to do.
    pub help: Vec<String>,
}

impl Finding {
    /// Something wrong with what is written at `span`.
    #[must_use]
    pub fn at(span: Range<usize>, message: impl Into<String>, label: impl Into<String>) -> Self {
        Self { message: message.into(), span: Some(span), label: label.into(), other: None, help: Vec::new() }
    }

    /// Something wrong that was not written in the file.
    #[must_use]
    pub fn elsewhere(message: impl Into<String>) -> Self {
        Self { message: message.into(), span: None, label: String::new(), other: None, help: Vec::new() }
    }

    /// With another place that has to do with it.
    #[must_use]
    pub fn and(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.other = Some((span, label.into()));
        self
    }

    /// With advice.
    #[must_use]
    pub fn help(mut self, advice: impl Into<String>) -> Self {
        self.help.push(advice.into());
        self
    }

    /// With advice, if there is any.
    #[must_use]
    pub fn maybe_help(mut self, advice: Option<String>) -> Self {
        self.help.extend(advice);
        self
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// The file; `None` when everything came from elsewhere.
    file: Option<PathBuf>,
    text: String,
    findings: Vec<Finding>,
}

impl std::error::Error for Findings {}

impl Findings {
    /// Findings about the text of a file, in the order in which they are to be shown.
    #[must_use]
    pub fn new(file: Option<&Path>, text: &str, mut findings: Vec<Finding>) -> Self {
        // What was found nowhere comes last: the places above often explain it.
        findings.sort_by_key(|finding| finding.span.as_ref().map_or(usize::MAX, |span| span.start));
        Self { file: file.map(Path::to_owned), text: text.to_owned(), findings }
    }

    /// One by one.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Line and column, from 1, at which a finding is.
    #[must_use]
    pub fn position(&self, finding: &Finding) -> Option<(usize, usize)> {
        finding.span.as_ref().map(|span| position(&self.text, span.start))
    }

    fn origin(&self) -> String {
        self.file.as_ref().map_or_else(|| "the configuration".to_owned(), |file| file.display().to_string())
    }

    fn show(&self, f: &mut fmt::Formatter<'_>, finding: &Finding) -> fmt::Result {
        writeln!(f, "error: {}", finding.message)?;
        if let Some(span) = &finding.span {
            let excerpts: Vec<Excerpt> = std::iter::once((span, finding.label.as_str()))
                .chain(finding.other.iter().map(|(span, label)| (span, label.as_str())))
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
        finding.help.iter().try_for_each(|advice| writeln!(f, "help: {advice}"))
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            self.show(f, finding)?;
            writeln!(f)?;
        }
        let count = self.findings.len();
        let things = if count == 1 { "1 problem".to_owned() } else { format!("{count} problems") };
        write!(f, "found {things} in {}", self.origin())
    }
}

/// Line and column, from 1, of a byte; columns count characters.
#[must_use]
pub(super) fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(byte)];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// A piece of one line, with what is to be underlined.
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

        // A span over several lines is underlined to the end of its first one.
        let end = text.floor_char_boundary(span.end).clamp(start, line_end);
        let length = text[start..end].trim_end().chars().count().max(1);
        let (shown, indent) = clip(full, column - 1, length);
        let length = length.min(SHOWN);
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

/// The part of a line that is shown, and where in it the underlining begins. Tabs become single spaces, and
/// control characters are made visible, so that columns line up and nothing reaches the terminal.
fn clip(line: &str, from: usize, length: usize) -> (String, usize) {
    let escape_control = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    let total = line.chars().count();
    if total <= SHOWN {
        return (line.chars().map(escape_control).collect(), from);
    }
    let room = SHOWN.saturating_sub(length.min(SHOWN)) / 2;
    let first = from.saturating_sub(room).min(total - SHOWN);
    let mut shown: String = line.chars().skip(first).take(SHOWN).map(escape_control).collect();
    let mut indent = from - first;
    if first > 0 {
        shown.insert_str(0, "… ");
        indent += 2;
    }
    if first + SHOWN < total {
        shown.push_str(" …");
    }
    (shown, indent)
}

/// The known word that was probably meant, if one is close.
#[must_use]
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// How many characters must be added, dropped, replaced or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// Words as a sentence lists them: `` `a`, `b` or `c` ``.
#[must_use]
pub(super) fn words<'a>(words: impl IntoIterator<Item = &'a str>, last: &str) -> String {
    let quoted: Vec<String> = words.into_iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        None => "nothing".to_owned(),
        Some((only, [])) => only.clone(),
        Some((end, rest)) => format!("{} {last} {end}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_shown_with_what_is_wrong_underlined() {
        let text = "a = 1\n  größe = \"x\"\n";
        let at = text.find("\"x\"").unwrap();
        let finding = Finding::at(at..at + 3, "bad size", "expected a size").help("write `1 MiB`");
        let shown = Findings::new(Some(Path::new("f.toml")), text, vec![finding]).to_string();
        assert_eq!(
            shown,
            "error: bad size\n --> f.toml:2:11\n  |\n2 |   größe = \"x\"\n  |           ^^^ expected a size\n\
             help: write `1 MiB`\n\nfound 1 problem in f.toml"
        );
    }

    #[test]
    fn a_line_without_end_is_cut_around_what_is_wrong() {
        let text = format!("key = \"{}!{}\"", "x".repeat(5000), "y".repeat(5000));
        let at = text.find('!').unwrap();
        let finding = Finding::at(at..at + 1, "bad", "here");
        let shown = Findings::new(None, &text, vec![finding]).to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() < 120), "{shown}");
        let column = lines[4].chars().position(|c| c == '^').unwrap();
        assert_eq!(lines[3].chars().nth(column), Some('!'));
    }

    #[test]
    fn spans_at_the_very_end_and_beyond_do_not_panic() {
        for span in [0..0, 3..3, 2..9, 40..50] {
            let shown = Findings::new(None, "a =", vec![Finding::at(span, "m", "l")]).to_string();
            assert!(shown.contains('^'), "{shown}");
        }
    }

    #[test]
    fn typos_are_recognised_and_other_words_are_not() {
        let known = ["destroy_timeout", "socket", "log", "log_json"];
        assert_eq!(nearest("destroy_timout", known), Some("destroy_timeout"));
        assert_eq!(nearest("sokcet", known), Some("socket"));
        assert_eq!(nearest("logjson", known), Some("log_json"));
        assert_eq!(nearest("chain", known), None);
    }
}
