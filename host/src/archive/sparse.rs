//! Sparse files of GNU tar in pax archives, formats 0.0, 0.1 and 1.0. The tar library knows only the older format; it
//! would take these for ordinary files, with the map of the holes in front of the data or without the holes.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::vec;

use tar::Entry;

const BLOCK: u64 = 512;

/// Maximum number of parts with data. Each is kept in memory.
const MAX_SEGMENTS: usize = 1 << 20;

/// A sparse file, as its pax header describes it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sparse {
    name: Option<PathBuf>,
    size: u64,
    /// `None` if it is in front of the data.
    map: Option<Vec<Segment>>,
}

/// A part of the file with data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Sparse {
    /// Whether a member is a sparse file, and which.
    pub(crate) fn of(entry: &mut Entry<'_, impl Read>) -> io::Result<Option<Self>> {
        let Some(extensions) = entry.pax_extensions()? else { return Ok(None) };
        // The library skips what it cannot parse, and would take another name for that of the member.
        let extensions = extensions.collect::<io::Result<Vec<_>>>()?;
        Self::of_records(extensions.iter().map(|extension| (extension.key_bytes(), extension.value_bytes())))
    }

    /// Whether a member with these pax records is a sparse file, and which.
    pub(crate) fn of_records<'a>(
        records: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> io::Result<Option<Self>> {
        let (mut name, mut size, mut version) = (None, None, (None, None));
        let (mut numbers, mut is_listed) = (Vec::new(), false);
        for (key, value) in records {
            let Some(key) = key.strip_prefix(b"GNU.sparse.").and_then(|key| std::str::from_utf8(key).ok())
            else {
                continue;
            };
            match key {
                "name" => name = Some(Path::new(OsStr::from_bytes(value)).to_owned()),
                "size" | "realsize" => size = Some(number(value)?),
                "major" => version.0 = Some(number(value)?),
                "minor" => version.1 = Some(number(value)?),
                "map" => {
                    is_listed = true;
                    for text in value.split(|byte| *byte == b',').filter(|text| !text.is_empty()) {
                        push(&mut numbers, number(text)?)?;
                    }
                }
                "offset" | "numbytes" => {
                    is_listed = true;
                    push(&mut numbers, number(value)?)?;
                }
                _ => {}
            }
        }
        let Some(size) = size else { return Ok(None) };
        match version {
            (Some(1), Some(0)) => Ok(Some(Self { name, size, map: None })),
            (None | Some(0), _) if is_listed => Ok(Some(Self { name, size, map: Some(segments(&numbers)?) })),
            _ => Err(invalid("its sparse format is unknown")),
        }
    }

    /// A sparse file of the older format of GNU tar, with its map.
    pub(crate) fn with_map(size: u64, map: Vec<Segment>) -> Self {
        Self { name: None, size, map: Some(map) }
    }

    /// Size of the file with its holes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The parts with data, in order and within the file. Reads the map if it is in front of the data.
    pub(crate) fn segments(self, data: impl Read) -> io::Result<Vec<Segment>> {
        let mut data = data;
        let map = match self.map {
            Some(map) => map,
            None => read_map(&mut data)?,
        };
        let mut position = 0;
        for Segment { offset, length } in &map {
            let end = offset.checked_add(*length).filter(|end| *end <= self.size && position <= *offset);
            position = end.ok_or_else(overlapping)?;
        }
        Ok(map)
    }

    /// The name of the file, if the member has another one.
    pub(crate) fn name(&self) -> Option<&Path> {
        self.name.as_deref()
    }

    /// Reads the file with its holes.
    pub(crate) fn read<R: Read>(self, mut data: R) -> io::Result<Filled<R>> {
        let map = match self.map {
            Some(map) => map,
            None => read_map(&mut data)?,
        };
        Ok(Filled {
            data,
            segments: map.into_iter(),
            hole: 0,
            left: 0,
            padding: 0,
            position: 0,
            size: self.size,
        })
    }
}

/// A sparse file with zeros in its holes.
pub(crate) struct Filled<R> {
    data: R,
    segments: vec::IntoIter<Segment>,
    /// What is left of the current hole, and of the segment after it.
    hole: u64,
    left: u64,
    /// Bytes after the segment, up to the end of its last block.
    padding: u64,
    /// Where the segment ends.
    position: u64,
    size: u64,
}

impl<R: Read> Read for Filled<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = buffer.len() as u64;
            if self.hole > 0 {
                let count = self.hole.min(length);
                self.hole -= count;
                let count = usize::try_from(count).unwrap_or(buffer.len());
                buffer[..count].fill(0);
                return Ok(count);
            }
            if self.left > 0 {
                let count = usize::try_from(self.left.min(length)).unwrap_or(buffer.len());
                let count = self.data.read(&mut buffer[..count])?;
                if count == 0 && !buffer.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.left -= count as u64;
                return Ok(count);
            }
            let Some(segment) = self.segments.next() else {
                self.hole = self.size - self.position;
                self.position = self.size;
                match self.hole {
                    0 => return Ok(0),
                    _ => continue,
                }
            };
            let end = segment.offset.checked_add(segment.length).filter(|end| *end <= self.size);
            let (Some(end), true) = (end, self.position <= segment.offset) else {
                return Err(overlapping());
            };
            io::copy(&mut (&mut self.data).take(self.padding), &mut io::sink())?;
            self.hole = segment.offset - self.position;
            self.left = segment.length;
            self.padding = segment.length.next_multiple_of(BLOCK) - segment.length;
            self.position = end;
        }
    }
}

/// Reads the map in front of the data: decimal numbers, each with a line feed, padded to a block.
fn read_map(data: &mut impl Read) -> io::Result<Vec<Segment>> {
    let mut block = [0; BLOCK as usize];
    let mut at = block.len();
    let mut next = || -> io::Result<u64> {
        let (mut text, mut length) = ([0; 20], 0);
        loop {
            if at == block.len() {
                data.read_exact(&mut block)?;
                at = 0;
            }
            let byte = block[at];
            at += 1;
            if byte == b'\n' {
                return number(&text[..length]);
            }
            *text.get_mut(length).ok_or_else(|| invalid("a number in a sparse file is too long"))? = byte;
            length += 1;
        }
    };
    let count = usize::try_from(next()?).ok().filter(|count| *count <= MAX_SEGMENTS).ok_or_else(too_many)?;
    (0..count).map(|_| Ok(Segment { offset: next()?, length: next()? })).collect()
}

fn segments(numbers: &[u64]) -> io::Result<Vec<Segment>> {
    match numbers.as_chunks() {
        (pairs, []) => {
            Ok(pairs.iter().map(|[offset, length]| Segment { offset: *offset, length: *length }).collect())
        }
        _ => Err(invalid("a part of a sparse file has no length")),
    }
}

fn push(numbers: &mut Vec<u64>, number: u64) -> io::Result<()> {
    if numbers.len() >= 2 * MAX_SEGMENTS {
        return Err(too_many());
    }
    numbers.push(number);
    Ok(())
}

fn number(text: &[u8]) -> io::Result<u64> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    text.and_then(|text| text.parse().ok()).ok_or_else(|| invalid("a number of a sparse file is malformed"))
}

fn too_many() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a sparse file has more than {MAX_SEGMENTS} parts"))
}

fn overlapping() -> io::Error {
    invalid("the parts of a sparse file overlap, or are behind its end")
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(size: u64, map: &[(u64, u64)], data: &[u8]) -> io::Result<Vec<u8>> {
        let map = map.iter().map(|(offset, length)| Segment { offset: *offset, length: *length }).collect();
        let mut content = Vec::new();
        Sparse { name: None, size, map: Some(map) }.read(data)?.read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn holes_are_filled_with_zeros() {
        assert_eq!(filled(8, &[(2, 3), (8, 0)], b"abc").unwrap(), b"\0\0abc\0\0\0");
        assert_eq!(filled(3, &[], b"").unwrap(), [0; 3]);
        let blocks = [&b"a"[..], &[0; 511], b"b"].concat();
        assert_eq!(
            filled(4, &[(0, 1), (3, 1)], &blocks).unwrap(),
            b"a\0\0b",
            "each part begins with a block"
        );
    }

    #[test]
    fn a_map_that_contradicts_itself_is_an_error() {
        for map in [&[(0, 4)][..], &[(2, 1), (0, 1)], &[(0, 2), (1, 1)], &[(u64::MAX, 2)], &[(9, 0)]] {
            assert!(filled(8, map, b"ab").is_err(), "{map:?}");
        }
    }

    #[test]
    fn a_map_in_front_of_the_data_is_bounded() {
        let map = |text: &[u8]| {
            let mut data = text.to_vec();
            data.resize(data.len().next_multiple_of(512), 0);
            read_map(&mut data.as_slice())
        };
        assert_eq!(map(b"1\n2\n3\n").unwrap(), [Segment { offset: 2, length: 3 }]);
        for text in
            [&b"1048577\n"[..], b"1\n2\n", b"-1\n", b"\n", b"1\n+2\n3\n", b"000000000000000000001\n", b""]
        {
            assert!(map(text).is_err(), "{text:?}");
        }
    }
}
