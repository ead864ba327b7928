//! How output is shown: as it is, or line by line with times and names.

use std::io::{self, Write};
use std::time::SystemTime;

use humantime::format_rfc3339_millis;

use super::times::Times;

/// The longest part of a line that is kept until the rest of it is there.
const MAX_LINE: usize = 64 << 10;

/// Colours of names, of those that can be read on light and dark backgrounds.
const COLOURS: [&str; 6] = ["36", "33", "32", "35", "34", "31"];

/// Writes the output of one container.
pub(super) struct Printer<W> {
    sink: W,
    /// What each line begins with. The lines of several containers are not mixed, so each is written when it is complete.
    name: Option<String>,
    with_times: bool,
    /// The line that is not complete, if there is a name.
    line: Vec<u8>,
    is_within_line: bool,
}

impl<W: Write> Printer<W> {
    pub(super) const fn new(sink: W, name: Option<String>, with_times: bool) -> Self {
        Self { sink, name, with_times, line: Vec::new(), is_within_line: false }
    }

    /// Writes what is at an offset of a file.
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64, times: &mut Option<Times>) -> io::Result<()> {
        if self.name.is_none() && !self.with_times {
            self.sink.write_all(bytes)?;
            // Shows incomplete lines as well.
            return self.sink.flush();
        }
        let mut offset = offset;
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if !self.is_within_line {
                self.begin_line(offset, times)?;
            }
            self.line.extend_from_slice(part);
            self.is_within_line = !part.ends_with(b"\n");
            offset += part.len() as u64;
            if self.name.is_none() || !self.is_within_line {
                self.flush()?;
            } else if self.line.len() > MAX_LINE {
                self.end_line()?;
            }
        }
        Ok(())
    }

    /// Writes a line that is not complete.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if self.name.is_some() && self.is_within_line { self.end_line() } else { self.sink.flush() }
    }

    fn begin_line(&mut self, offset: u64, times: &mut Option<Times>) -> io::Result<()> {
        if let Some(name) = &self.name {
            self.line.extend_from_slice(name.as_bytes());
        }
        if self.with_times {
            let time = times.as_mut().map(|times| times.at(offset)).transpose()?.flatten();
            self.line.extend_from_slice(describe(time).as_bytes());
        }
        Ok(())
    }

    fn end_line(&mut self) -> io::Result<()> {
        self.line.push(b'\n');
        self.is_within_line = false;
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.write_all(&self.line)?;
        self.line.clear();
        self.sink.flush()
    }
}

/// A time in a column of its own.
fn describe(time: Option<SystemTime>) -> String {
    time.map_or_else(|| format!("{:24} ", "-"), |time| format!("{} ", format_rfc3339_millis(time)))
}

/// The names of containers as their lines begin with them, of one width.
pub(super) fn names(ids: &[String], coloured: bool) -> Vec<String> {
    let width = ids.iter().map(|id| id.chars().count()).max().unwrap_or_default();
    let name = |(index, id): (usize, &String)| match coloured {
        true => format!("\x1b[{}m{id:width$} |\x1b[0m ", COLOURS[index % COLOURS.len()]),
        false => format!("{id:width$} | "),
    };
    ids.iter().enumerate().map(name).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Seek;

    use super::*;

    fn times() -> Option<Times> {
        let mut file: File = tempfile::tempfile().unwrap();
        for number in [0_u64, 0, 4, 1_500_000_000] {
            file.write_all(&number.to_le_bytes()).unwrap();
        }
        file.rewind().unwrap();
        Some(Times::new(file))
    }

    fn printed(name: Option<&str>, with_times: bool, parts: &[&str], finish: bool) -> String {
        let mut sink = Vec::new();
        let mut printer = Printer::new(&mut sink, name.map(str::to_owned), with_times);
        let (mut offset, mut times) = (0, times());
        for part in parts {
            printer.write(part.as_bytes(), offset, &mut times).unwrap();
            offset += part.len() as u64;
        }
        if finish {
            printer.finish().unwrap();
        }
        String::from_utf8(sink).unwrap()
    }

    #[test]
    fn output_is_shown_as_it_is() {
        assert_eq!(printed(None, false, &["a\nb", "c\n\nd"], false), "a\nbc\n\nd");
    }

    #[test]
    fn each_line_begins_with_its_time() {
        let shown = printed(None, true, &["a", "bc\n", "second\nth"], false);
        let expected =
            "1970-01-01T00:00:00.000Z abc\n1970-01-01T00:00:01.500Z second\n1970-01-01T00:00:01.500Z th";
        assert_eq!(shown, expected);
        let mut sink = Vec::new();
        Printer::new(&mut sink, None, true).write(b"a\n", 0, &mut None).unwrap();
        assert_eq!(sink, b"-                        a\n");
    }

    #[test]
    fn lines_with_a_name_are_written_when_they_are_complete() {
        assert_eq!(printed(Some("web | "), false, &["a", "b\nc"], false), "web | ab\n");
        assert_eq!(printed(Some("web | "), false, &["a", "b\nc"], true), "web | ab\nweb | c\n");
        let long = "x".repeat(MAX_LINE + 1);
        assert_eq!(printed(Some("> "), false, &[&long, "y\n"], false), format!("> {long}\n> y\n"));
    }

    #[test]
    fn names_have_one_width_and_colours_on_a_terminal() {
        let ids = ["web".to_owned(), "pod.db".to_owned()];
        assert_eq!(names(&ids, false), ["web    | ", "pod.db | "]);
        assert_eq!(names(&ids, true), ["\x1b[36mweb    |\x1b[0m ", "\x1b[33mpod.db |\x1b[0m "]);
    }
}
