//! Where the output that is shown begins: the last lines, or what was written since a time.

use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use super::files::{Content, Part};

/// Bytes that are read at a time.
const BLOCK: usize = 64 << 10;

/// A place in the output: a part, and an offset in it. Ordered as the output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Index of the part.
    pub(super) part: usize,
    pub(super) offset: u64,
}

impl Place {
    const BEGINNING: Self = Self { part: 0, offset: 0 };

    /// Behind everything in these parts.
    fn end(parts: &mut [Part]) -> io::Result<Self> {
        let Some((last, _)) = parts.split_last_mut() else { return Ok(Self::BEGINNING) };
        let offset = length(&mut last.content)?;
        Ok(Self { part: parts.len() - 1, offset })
    }
}

/// What is shown.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Selection {
    /// The last lines; all if `None`.
    pub(super) lines: Option<usize>,
    /// What was written at this time or later.
    pub(super) since: Option<SystemTime>,
}

impl Selection {
    /// Where it begins in the files of a log.
    pub(super) fn beginning(self, parts: &mut [Part]) -> io::Result<Place> {
        let lines = self.lines.map(|lines| of_last_lines(parts, lines)).transpose()?;
        let since = self.since.map(|time| since(parts, time)).transpose()?;
        Ok(lines.max(since).unwrap_or(Place::BEGINNING))
    }
}

/// Where the last `lines` lines begin. One that is not complete counts.
fn of_last_lines(parts: &mut [Part], lines: usize) -> io::Result<Place> {
    if lines == 0 {
        return Place::end(parts);
    }
    // The line feed at the end begins no line.
    let mut wanted = None;
    for (index, part) in parts.iter_mut().enumerate().rev() {
        let end = length(&mut part.content)?;
        let Some(last) = end.checked_sub(1) else { continue };
        let wanted = match &mut wanted {
            Some(wanted) => wanted,
            none => {
                none.insert(lines.saturating_add(usize::from(ends_with_a_line(&mut part.content, last)?)))
            }
        };
        let found = match &mut part.content {
            Content::Plain(file) => {
                let read = |buffer: &mut [u8], at| file.read_exact_at(buffer, at);
                search_backwards(read, end, wanted)?
            }
            content => search_forwards(content, wanted)?,
        };
        if let Some(offset) = found {
            return Ok(Place { part: index, offset });
        }
    }
    Ok(Place::BEGINNING)
}

/// Where the first line begins that was written at a time or later.
fn since(parts: &mut [Part], time: SystemTime) -> io::Result<Place> {
    for (index, part) in parts.iter_mut().enumerate() {
        let Some(times) = &part.times else { continue };
        if let Some(offset) = times.since(time)? {
            let offset = next_line(&mut part.content, offset)?;
            return Ok(Place { part: index, offset });
        }
    }
    Place::end(parts)
}

/// Positions a part at an offset.
pub(super) fn seek(content: &mut Content, offset: u64) -> io::Result<()> {
    use io::{Seek, SeekFrom};
    match content {
        Content::Plain(file) => file.seek(SeekFrom::Start(offset)).map(drop),
        Content::Gzip(_) => {
            content.rewind()?;
            io::copy(&mut content.take(offset), &mut io::sink()).map(drop)
        }
    }
}

/// The offset, or that of the next line if it is within one.
fn next_line(content: &mut Content, offset: u64) -> io::Result<u64> {
    let Some(before) = offset.checked_sub(1) else { return Ok(0) };
    seek(content, before)?;
    let mut at = before;
    let mut block = vec![0; BLOCK];
    loop {
        match content.read(&mut block)? {
            0 => return Ok(at),
            count => match block[..count].iter().position(|byte| *byte == b'\n') {
                Some(position) => return Ok(at + position as u64 + 1),
                None => at += count as u64,
            },
        }
    }
}

/// The length of what is read.
fn length(content: &mut Content) -> io::Result<u64> {
    match content {
        Content::Plain(file) => Ok(file.metadata()?.len()),
        Content::Gzip(_) => {
            content.rewind()?;
            let length = io::copy(content, &mut io::sink())?;
            content.rewind()?;
            Ok(length)
        }
    }
}

fn ends_with_a_line(content: &mut Content, last: u64) -> io::Result<bool> {
    let mut byte = [0];
    seek(content, last)?;
    content.read_exact(&mut byte)?;
    Ok(byte == *b"\n")
}

/// Finds the place behind the line feed number `wanted` from the end, or reduces `wanted` by those that there are.
fn search_backwards(
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<()>,
    end: u64,
    wanted: &mut usize,
) -> io::Result<Option<u64>> {
    let mut block = vec![0; BLOCK];
    let mut end = end;
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let length = usize::try_from(end - start).unwrap_or(BLOCK);
        read(&mut block[..length], start)?;
        for (index, _) in block[..length].iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            *wanted -= 1;
            if *wanted == 0 {
                return Ok(Some(start + index as u64 + 1));
            }
        }
        end = start;
    }
    Ok(None)
}

/// The same for what can only be read forwards: counts the line feeds, and finds the wanted one when it is read again. Its
/// number is that of a hostile file, so their places are not kept.
fn search_forwards(content: &mut Content, wanted: &mut usize) -> io::Result<Option<u64>> {
    let mut count = 0;
    for_each_line_feed(content, |_| {
        count += 1;
        true
    })?;
    if count < *wanted {
        *wanted -= count;
        return Ok(None);
    }
    let (mut before, mut place) = (count - *wanted, None);
    for_each_line_feed(content, |at| {
        if before == 0 {
            place = Some(at + 1);
            return false;
        }
        before -= 1;
        true
    })?;
    Ok(place)
}

/// Calls `visit` with the offset of each line feed, until it returns false.
fn for_each_line_feed(content: &mut Content, mut visit: impl FnMut(u64) -> bool) -> io::Result<()> {
    content.rewind()?;
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    loop {
        let count = content.read(&mut block)?;
        let mut line_feeds = block[..count].iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        if count == 0 || !line_feeds.all(|(index, _)| visit(at + index as u64)) {
            return content.rewind();
        }
        at += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, Write};
    use std::time::Duration;

    use flate2::write::GzEncoder;

    use super::super::times::Times;
    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    fn plain(text: &str) -> Part {
        Part::of(Content::Plain(file(text.as_bytes())), None)
    }

    fn gzip(text: &str) -> Part {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        let file = file(&encoder.finish().unwrap());
        Part::of(Content::Gzip(Box::new(flate2::read::GzDecoder::new(file))), None)
    }

    /// Everything from a place on.
    fn rest(parts: &mut [Part], place: Place) -> String {
        let mut text = String::new();
        for (index, part) in parts.iter_mut().enumerate().skip(place.part) {
            seek(&mut part.content, if index == place.part { place.offset } else { 0 }).unwrap();
            part.content.read_to_string(&mut text).unwrap();
        }
        text
    }

    #[test]
    fn the_last_lines_are_found_in_plain_and_compressed_parts() {
        let texts = ["one\ntwo\nth", "ree\nfour\n", "", "five\nsi", "x"];
        let all = texts.concat();
        let lines: Vec<&str> = all.split_inclusive('\n').collect();
        for kinds in 0..1 << texts.len() {
            let make = |(index, text): (usize, &&str)| {
                if kinds >> index & 1 == 1 { gzip(text) } else { plain(text) }
            };
            for count in (0..9).chain([usize::MAX]) {
                let mut parts: Vec<Part> = texts.iter().enumerate().map(make).collect();
                let place = of_last_lines(&mut parts, count).unwrap();
                let expected = lines[lines.len().saturating_sub(count)..].concat();
                assert_eq!(rest(&mut parts, place), expected, "{kinds:b} {count}");
            }
        }
    }

    #[test]
    fn the_last_lines_of_a_large_file_are_found() {
        let text: String = (0..50_000).map(|number| format!("line {number}\n")).collect();
        for mut parts in [vec![plain(&text)], vec![gzip(&text)]] {
            let place = of_last_lines(&mut parts, 20_000).unwrap();
            let rest = rest(&mut parts, place);
            assert!(rest.starts_with("line 30000\n") && text.ends_with(&rest));
        }
    }

    #[test]
    fn the_first_line_since_a_time_is_found() {
        let times = |pairs: &[(u64, u64)]| {
            let bytes =
                pairs.iter().flat_map(|(offset, time)| [offset.to_le_bytes(), time.to_le_bytes()].concat());
            Some(Times::new(file(&bytes.collect::<Vec<u8>>())))
        };
        let make = || {
            [
                Part::of(gzip("1234\n67\n").content, times(&[(0, 10), (2, 20)])),
                Part::of(plain("abc\nxyz\n").content, times(&[(0, 30), (4, 40)])),
            ]
        };
        for (time, expected) in [
            (5, "1234\n67\nabc\nxyz\n"),
            // Within a line, which began before.
            (20, "67\nabc\nxyz\n"),
            (21, "abc\nxyz\n"),
            (40, "xyz\n"),
            (41, ""),
        ] {
            let mut parts = make();
            let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(time);
            let place = since(&mut parts, time).unwrap();
            assert_eq!(rest(&mut parts, place), expected, "{time:?}");
        }
    }
}
