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
    /// Whether the output of one container must not change how a terminal shows that of another one.
    is_terminal: bool,
    /// The line that is not complete, if there is a name.
    line: Vec<u8>,
    /// Where what the container has written begins in it.
    output: usize,
    is_within_line: bool,
}

impl<W: Write> Printer<W> {
    pub(super) const fn new(sink: W, name: Option<String>, with_times: bool, is_terminal: bool) -> Self {
        Self { sink, name, with_times, is_terminal, line: Vec::new(), output: 0, is_within_line: false }
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
        self.output = self.line.len();
        Ok(())
    }

    fn end_line(&mut self) -> io::Result<()> {
        self.line.push(b'\n');
        self.is_within_line = false;
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.is_terminal && self.name.is_some() {
            let output = self.line.split_off(self.output);
            append_visibly(&mut self.line, &output);
        }
        self.sink.write_all(&self.line)?;
        self.line.clear();
        self.output = 0;
        self.sink.flush()
    }
}

/// Appends a line with its control characters in caret notation, but for tabs and the sequences that select colours.
fn append_visibly(line: &mut Vec<u8>, output: &[u8]) {
    let mut rest = output;
    while let Some((byte, after)) = rest.split_first() {
        let length = match (byte, after) {
            (b'\x1b', _) if colour(rest) > 0 => colour(rest),
            (b'\t' | b'\n', _) | (b'\r', b"\n") => 1,
            // Those beyond ASCII, in UTF-8.
            (0xc2, [control @ 0x80..=0x9f, after @ ..]) => {
                line.extend_from_slice(&[b'M', b'-', b'^', control ^ 0xc0]);
                rest = after;
                continue;
            }
            (byte, after) if byte.is_ascii_control() => {
                line.extend_from_slice(&[b'^', byte ^ 0x40]);
                rest = after;
                continue;
            }
            _ => 1,
        };
        line.extend_from_slice(&rest[..length]);
        rest = &rest[length..];
    }
}

/// The length of a sequence that selects colours; 0 if it is none.
fn colour(bytes: &[u8]) -> usize {
    let Some(parameters) = bytes.strip_prefix(b"\x1b[") else { return 0 };
    match parameters.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b';' | b':')) {
        Some(end) if parameters[end] == b'm' => end + 3,
        _ => 0,
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
        // What a container has selected ends with its line.
        true => format!("\x1b[0m\x1b[{}m{id:width$} |\x1b[0m ", COLOURS[index % COLOURS.len()]),
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
        let mut printer = Printer::new(&mut sink, name.map(str::to_owned), with_times, false);
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
        Printer::new(&mut sink, None, true, true).write(b"a\n", 0, &mut None).unwrap();
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
        assert_eq!(names(&ids, true), ["\x1b[0m\x1b[36mweb    |\x1b[0m ", "\x1b[0m\x1b[33mpod.db |\x1b[0m "]);
    }

    #[test]
    fn control_characters_of_one_of_several_containers_are_visible_on_a_terminal() {
        let output = b"\ta\x1b[1;31mred\x1b[0m \x1b[2Jx\x1b]0;title\x07 \x7f\rb \xc2\x9b1m \xc3\xa9 \xff\r\n";
        for (name, is_terminal) in [(Some("web | "), true), (Some("web | "), false), (None, true)] {
            let mut sink = Vec::new();
            let mut printer = Printer::new(&mut sink, name.map(str::to_owned), false, is_terminal);
            printer.write(&output[..10], 0, &mut None).unwrap();
            printer.write(&output[10..], 10, &mut None).unwrap();
            let shown = match (name, is_terminal) {
                (Some(_), true) => {
                    &b"web | \ta\x1b[1;31mred\x1b[0m ^[[2Jx^[]0;title^G ^?^Mb M-^[1m \xc3\xa9 \xff\r\n"[..]
                }
                (Some(_), false) => &[b"web | ", &output[..]].concat(),
                (None, _) => output,
            };
            assert_eq!(sink, shown, "{}", String::from_utf8_lossy(&sink));
        }
    }
}
