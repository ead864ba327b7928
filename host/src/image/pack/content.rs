//! The content of a regular file as it is in the archive: all of it, or in the sparse format 1.0 of GNU tar, with a map of
//! the parts with data in front of these.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::unix::fs::FileExt;
use std::vec;

use rustix::fs::{SeekFrom, Stat, seek};
use rustix::io::Errno;

use crate::archive::Segment;

const BLOCK: u64 = 512;

/// Parts with data, each of which is kept in memory. From the last of them on, holes are not looked for.
const MAX_PARTS: usize = 1 << 16;

/// Reads the content of a file.
pub(super) struct Content {
    file: File,
    /// Size of the file with its holes, if it has some.
    sparse: Option<u64>,
    /// Bytes in the archive.
    size: u64,
    map: Cursor<Vec<u8>>,
    parts: vec::IntoIter<Segment>,
    /// What is left of the current part.
    part: Segment,
}

impl Content {
    pub(super) fn new(file: File, stat: &Stat) -> io::Result<Self> {
        let length = stat.st_size.cast_unsigned();
        // What the system has in `st_blocks` has this unit on all file systems.
        let allocated = stat.st_blocks.cast_unsigned().saturating_mul(BLOCK);
        let whole = vec![Segment { offset: 0, length }];
        let parts = if allocated < length { find_parts(&file, length, MAX_PARTS)? } else { None };
        let parts = parts.filter(|parts| *parts != whole);
        let map = parts.as_deref().map(encode_map).unwrap_or_default();
        let sparse = parts.is_some().then_some(length);
        let parts = parts.unwrap_or(whole);
        let size = map.len() as u64 + parts.iter().map(|part| part.length).sum::<u64>();
        let part = Segment { offset: 0, length: 0 };
        Ok(Self { file, sparse, size, map: Cursor::new(map), parts: parts.into_iter(), part })
    }

    /// Bytes in the archive.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The pax records of the member.
    pub(super) fn records(&self) -> Vec<(String, Vec<u8>)> {
        let Some(length) = self.sparse else { return Vec::new() };
        [("major", 1), ("minor", 0), ("realsize", length)]
            .map(|(key, value)| (format!("GNU.sparse.{key}"), value.to_string().into_bytes()))
            .into()
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.map.read(buffer)?;
        if count > 0 || buffer.is_empty() {
            return Ok(count);
        }
        while self.part.length == 0 {
            let Some(part) = self.parts.next() else { return Ok(0) };
            self.part = part;
        }
        let limit = usize::try_from(self.part.length).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..limit], self.part.offset)?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        self.part.offset += count as u64;
        self.part.length -= count as u64;
        Ok(count)
    }
}

/// The parts of a file with data, at whole blocks and in order. `None` if its file system does not know them.
fn find_parts(file: &File, length: u64, max: usize) -> io::Result<Option<Vec<Segment>>> {
    let mut parts = Vec::new();
    let mut position = 0;
    while position < length {
        let data = match seek(file, SeekFrom::Data(position)) {
            Ok(data) if data < length => data,
            // The rest is a hole.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let hole = match parts.len() + 1 < max {
            true => seek(file, SeekFrom::Hole(data)),
            false => Ok(length),
        };
        let end = match hole {
            Ok(hole) => hole.checked_next_multiple_of(BLOCK).unwrap_or(length).min(length),
            // It became shorter meanwhile.
            Err(Errno::NXIO) => length,
            Err(errno) => return Err(errno.into()),
        };
        let offset = (data - data % BLOCK).max(position);
        parts.push(Segment { offset, length: end - offset });
        position = end;
    }
    Ok(Some(parts))
}

/// The map in front of the data: decimal numbers, each with a line feed, padded to a block.
fn encode_map(parts: &[Segment]) -> Vec<u8> {
    let mut map = format!("{}\n", parts.len()).into_bytes();
    for Segment { offset, length } in parts {
        map.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK as usize), 0);
    map
}

#[cfg(test)]
mod tests {
    use rustix::fs::fstat;
    use tar::EntryType;

    use super::super::header;
    use super::*;
    use crate::archive::Members;

    const HOLE: u64 = 16 << 20;

    fn file(length: u64, data: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (offset, bytes) in data {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file
    }

    fn content(file: &File) -> Content {
        Content::new(file.try_clone().unwrap(), &fstat(file).unwrap()).unwrap()
    }

    /// Writes a file into an archive and reads it from there. Returns its size in the archive, and what was read.
    fn packed(file: &File) -> (u64, Vec<u8>) {
        let content = content(file);
        let size = content.size();
        let mut builder = tar::Builder::new(Vec::new());
        let records = content.records();
        if !records.is_empty() {
            let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            builder.append_pax_extensions(records).unwrap();
        }
        let stat = fstat(file).unwrap();
        let mut header = header(&stat, EntryType::Regular);
        header.set_size(size);
        builder.append_data(&mut header, "file", content).unwrap();
        header.set_size(0);
        builder.append_data(&mut header, "next", io::empty()).unwrap();
        let archive = builder.into_inner().unwrap();
        let mut members = Members::new(&archive[..]);
        let member = members.next().unwrap().unwrap();
        assert_eq!((member.path.to_str(), member.size), (Some("file"), size));
        let (sparse, mut found) = (member.sparse.clone(), Vec::new());
        let mut data = members.content(&member);
        match sparse {
            Some(sparse) => sparse.read(&mut data).unwrap().read_to_end(&mut found).unwrap(),
            None => data.read_to_end(&mut found).unwrap(),
        };
        assert_eq!(members.next().unwrap().unwrap().path.to_str(), Some("next"));
        (size, found)
    }

    #[test]
    fn holes_are_not_in_the_archive() {
        let files = [
            ("at the end", file(HOLE, &[(0, b"begin")])),
            ("at the beginning", file(0, &[(HOLE, b"end")])),
            ("several", file(0, &[(0, b"a"), (HOLE, b"b"), (2 * HOLE + 1, b"c")])),
            ("nothing else", file(HOLE + 1, &[])),
        ];
        for (name, file) in files {
            let length = file.metadata().unwrap().len();
            let (size, found) = packed(&file);
            let mut expected = vec![0; usize::try_from(length).unwrap()];
            file.read_exact_at(&mut expected, 0).unwrap();
            assert!(size < HOLE / 2, "{name}: {size} bytes");
            assert!(found == expected, "{name}: {} bytes of {length}", found.len());
        }
    }

    #[test]
    fn a_file_without_holes_is_an_ordinary_member() {
        for bytes in [&b""[..], b"content", &[7; 10_000]] {
            let file = file(0, &[(0, bytes)]);
            assert!(content(&file).records().is_empty());
            assert_eq!(packed(&file), (bytes.len() as u64, bytes.to_vec()));
        }
    }

    #[test]
    fn a_file_that_becomes_shorter_is_an_error() {
        for file in [file(0, &[(0, b"content")]), file(0, &[(0, b"begin"), (HOLE, b"end")])] {
            let mut content = content(&file);
            file.set_len(1).unwrap();
            let error = io::copy(&mut content, &mut io::sink()).unwrap_err();
            assert!(error.to_string().contains("shorter"), "{error}");
        }
    }

    #[test]
    fn what_is_behind_the_last_part_is_in_the_archive_with_its_holes() {
        let file = file(0, &[(0, b"a"), (HOLE, b"b"), (2 * HOLE, b"c"), (3 * HOLE, b"d")]);
        let length = file.metadata().unwrap().len();
        let parts = find_parts(&file, length, 2).unwrap().unwrap();
        let [first, last] = parts[..] else { panic!("{parts:?}") };
        assert!(first.offset == 0 && (1..HOLE / 2).contains(&first.length), "{first:?}");
        assert!((HOLE / 2..=HOLE).contains(&last.offset), "{last:?}");
        assert_eq!(last.offset + last.length, length);
    }
}
