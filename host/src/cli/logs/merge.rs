//! The streams of a container in the order in which it wrote them, as far as their times are stored.
//!
//! Without times, one stream follows the other.

use std::io::{self, Write};
use std::time::SystemTime;

use super::follow::Tail;
use super::print::Printer;

/// Bytes that are read at a time.
const BLOCK: usize = 32 << 10;

/// A stream, and what shows it.
pub(super) struct Source<W> {
    pub(super) tail: Tail,
    pub(super) printer: Printer<W>,
    /// What was read, of which what is before `begin` has been shown.
    block: Vec<u8>,
    begin: usize,
    /// Where `begin` is in its file.
    offset: u64,
}

impl<W: Write> Source<W> {
    pub(super) const fn new(tail: Tail, printer: Printer<W>) -> Self {
        Self { tail, printer, block: Vec::new(), begin: 0, offset: 0 }
    }

    /// Reads more if everything was shown. Returns whether there is something to show.
    fn fill(&mut self) -> io::Result<bool> {
        if self.begin < self.block.len() {
            return Ok(true);
        }
        self.block.resize(BLOCK, 0);
        let read = self.tail.read_known(&mut self.block)?;
        let (offset, length) = read.unwrap_or_default();
        self.block.truncate(length);
        (self.begin, self.offset) = (0, offset);
        Ok(read.is_some())
    }

    /// Shows a line, and those after it that were written by the time.
    fn show(&mut self, until: Option<Option<SystemTime>>) -> io::Result<()> {
        let mut end = self.begin;
        while end < self.block.len() {
            if let Some(until) = until
                && end > self.begin
                && self.tail.time_at(self.offset + (end - self.begin) as u64)? > until
            {
                break;
            }
            let line = self.block[end..].iter().position(|byte| *byte == b'\n');
            end = line.map_or(self.block.len(), |line| end + line + 1);
        }
        let shown = &self.block[self.begin..end];
        self.tail.print(shown, self.offset, &mut self.printer)?;
        self.offset += shown.len() as u64;
        self.begin = end;
        Ok(())
    }
}

/// Shows what was there when the streams were opened.
pub(super) fn show_known(sources: &mut [Source<impl Write>]) -> io::Result<()> {
    loop {
        let mut times = Vec::with_capacity(sources.len());
        for (index, source) in sources.iter_mut().enumerate() {
            if source.fill()? {
                times.push((source.tail.time_at(source.offset)?, index));
            }
        }
        // Where both are the same, standard output is first.
        times.sort_unstable();
        let Some((_, first)) = times.first() else { return Ok(()) };
        sources[*first].show(times.get(1).map(|(time, _)| *time))?;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use super::super::files::Log;
    use super::super::start::Selection;
    use super::*;

    /// What two streams have shown, in its order.
    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Lines, with the seconds at which they were written.
    fn write(path: &Path, lines: &[(&str, Option<u64>)]) {
        let (mut text, mut times) = (String::new(), Vec::new());
        for (line, second) in lines {
            if let Some(second) = second {
                times.extend((text.len() as u64).to_le_bytes());
                times.extend((second * 1_000_000_000).to_le_bytes());
            }
            text.push_str(line);
        }
        fs::write(path, text).unwrap();
        fs::write(format!("{}.times", path.display()), times).unwrap();
    }

    fn shown(directory: &Path, selection: Selection) -> String {
        let screen = Screen::default();
        let source = |name: &str| {
            let log = Log { path: directory.join(name), file: None, owner: None, has_times: true };
            let printer = Printer::new(screen.clone(), None, false, false);
            Source::new(Tail::open(log, selection).unwrap(), printer)
        };
        let mut sources = [source("stdout"), source("stderr")];
        // What is added later is not shown.
        for name in ["stdout", "stderr"] {
            let path = directory.join(name);
            fs::write(&path, [&*fs::read(&path).unwrap(), b"later\n"].concat()).unwrap();
        }
        show_known(&mut sources).unwrap();
        drop(sources);
        let shown = screen.0.lock().unwrap().clone();
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn lines_are_in_the_order_of_their_times() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let selections = [
            (Selection::default(), "o1\no2\ne1\ne2\no3\ne3\no4\nend"),
            (Selection { lines: Some(1), since: None }, "o4\nend"),
        ];
        for (selection, expected) in selections {
            write(&at("stdout.1"), &[("o1\n", Some(1)), ("o2\n", None)]);
            write(&at("stdout"), &[("o3\n", Some(5)), ("o4\n", Some(9))]);
            write(
                &at("stderr"),
                &[("e1\n", Some(2)), ("e2\n", Some(4)), ("e3\n", Some(6)), ("end", Some(10))],
            );
            assert_eq!(shown(directory.path(), selection), expected);
        }
    }

    #[test]
    fn one_stream_follows_the_other_without_times() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let long = "x".repeat(BLOCK + 7);
        write(&at("stdout"), &[("o1\n", None), (&long, None), ("\n", None)]);
        write(&at("stderr"), &[("e1\n", None)]);
        assert_eq!(shown(directory.path(), Selection::default()), format!("o1\n{long}\ne1\n"));
    }
}
