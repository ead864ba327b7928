//! Divides the bytes of a spool into messages: lines, and parts of lines that are too long.

use std::io;

use cofferdam_plugin_api::log_companion::Spool;

/// Bytes that are read at a time.
const CHUNK: usize = 64 << 10;

/// What has been read of a spool and not been sent: a copy, for which nothing is lost when the process is killed.
#[derive(Debug)]
pub(crate) struct Lines {
    bytes: Vec<u8>,
    /// Beginning of what has not been sent.
    start: usize,
    /// How much of that has no line feed.
    searched: usize,
    /// The longest message.
    max_line: usize,
}

/// The next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    /// Its bytes.
    pub(crate) length: usize,
    /// Whether a line feed follows, which is no part of it.
    pub(crate) line_feed: bool,
    /// Whether it is a part of a line that continues.
    pub(crate) partial: bool,
}

impl Message {
    /// How many bytes of the stream it stands for.
    pub(crate) const fn taken(self) -> usize {
        self.length + self.line_feed as usize
    }
}

impl Lines {
    pub(crate) const fn new(max_line: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, searched: 0, max_line }
    }

    /// The next message. `None` until there is more of the line; if `is_last`, nothing more follows.
    pub(crate) fn next(&mut self, spool: &Spool<'_>, is_last: bool) -> io::Result<Option<Message>> {
        loop {
            let rest = &self.bytes[self.start..];
            let within = rest.len().min(self.max_line + 1);
            if let Some(at) = rest[self.searched..within].iter().position(|byte| *byte == b'\n') {
                let length = self.searched + at;
                return Ok(Some(Message { length, line_feed: true, partial: false }));
            }
            self.searched = within;
            let length = rest.len();
            if length > self.max_line {
                return Ok(Some(Message { length: self.max_line, line_feed: false, partial: true }));
            }
            if self.fill(spool)? {
                continue;
            }
            let last = Message { length, line_feed: false, partial: false };
            return Ok((is_last && length > 0).then_some(last));
        }
    }

    /// The bytes of a message that [`Lines::next`] returned.
    pub(crate) fn bytes(&self, message: Message) -> &[u8] {
        &self.bytes[self.start..self.start + message.length]
    }

    /// A message has been sent.
    pub(crate) fn advance(&mut self, message: Message) {
        self.start += message.taken();
        self.searched = 0;
    }

    /// Reads more. Returns whether there was more.
    fn fill(&mut self, spool: &Spool<'_>) -> io::Result<bool> {
        self.bytes.drain(..self.start);
        self.start = 0;
        let length = self.bytes.len();
        self.bytes.resize(length + CHUNK, 0);
        let read = spool.read(0, length as u64, &mut self.bytes[length..]);
        self.bytes.truncate(length + *read.as_ref().unwrap_or(&0));
        Ok(read? > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use cofferdam_plugin_api::log_companion::Status;

    use super::*;

    /// All messages of a file, with what is known of each.
    fn messages(file: &File, max_line: usize, is_last: bool) -> Vec<(Vec<u8>, bool, bool)> {
        let status = Status::new(tempfile::tempfile().unwrap());
        let mut spool = Spool::<1>::open(file.try_clone().unwrap(), &status, 0, 1 << 30).unwrap();
        let mut lines = Lines::new(max_line);
        let mut found = Vec::new();
        while let Some(message) = lines.next(&spool, is_last).unwrap() {
            found.push((lines.bytes(message).to_vec(), message.line_feed, message.partial));
            lines.advance(message);
            spool.advance(0, message.taken() as u64).unwrap();
        }
        found
    }

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    #[test]
    fn lines_are_messages_and_the_last_one_needs_no_line_feed() {
        let expected = |count| {
            let all = [(&b"one"[..], true), (b"", true), (b"\0two\xff", true), (b"end", false)];
            all[..count].iter().map(|(text, feed)| (text.to_vec(), *feed, false)).collect::<Vec<_>>()
        };
        let file = file(b"one\n\n\0two\xff\nend");
        assert_eq!(messages(&file, 100, false), expected(3));
        assert_eq!(messages(&file, 100, true), expected(4));
    }

    #[test]
    fn only_a_line_that_is_too_long_is_divided() {
        let parts = |text: &[u8]| -> Vec<(usize, bool, bool)> {
            let found = messages(&file(text), 4, true).into_iter();
            found.map(|(text, feed, partial)| (text.len(), feed, partial)).collect()
        };
        assert_eq!(parts(b"abcd\nab\n"), [(4, true, false), (2, true, false)]);
        assert_eq!(parts(b"abcdefghi\n"), [(4, false, true), (4, false, true), (1, true, false)]);
        assert_eq!(parts(b"abcde"), [(4, false, true), (1, false, false)]);
    }

    #[test]
    fn messages_may_be_longer_than_what_is_read_at_once() {
        let long = vec![b'x'; 5 * CHUNK + 7];
        let text = [&long[..], b"\nshort\n"].concat();
        let found = messages(&file(&text), 1 << 20, false);
        assert_eq!(found.len(), 2);
        assert!(found[0].0 == long && found[1].0 == b"short");
    }

    #[test]
    fn what_has_no_line_feed_is_searched_once() {
        let status = Status::new(tempfile::tempfile().unwrap());
        let file = file(&[b'x'; 1000]);
        let spool = Spool::<1>::open(file, &status, 0, 1 << 30).unwrap();
        let mut lines = Lines::new(1 << 20);
        assert_eq!(lines.next(&spool, false).unwrap(), None);
        assert_eq!(lines.searched, 1000);
        assert_eq!(lines.next(&spool, false).unwrap(), None);
    }
}
