//! The members of a tar archive, read one after the other.
//!
//! The tar library parses the fields of headers. What it does between them does not suit archives of layers: it splits pax
//! records at line feeds, which values of extended attributes contain, and takes any size for them.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{Segment, Sparse};

const BLOCK: usize = 512;

/// Maximum size of what precedes a header and belongs to it: pax records and long names.
const MAX_RECORDS: u64 = 1 << 20;

/// Maximum number of parts with data in the older format of sparse files.
const MAX_SEGMENTS: usize = 1 << 20;

/// Prefix of pax records with extended attributes.
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";

/// A member of an archive.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) kind: EntryType,
    pub(crate) path: PathBuf,
    /// Target of a link.
    pub(crate) link: PathBuf,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Modification time in seconds and nanoseconds.
    pub(crate) modified: (i64, u32),
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Bytes in the archive.
    pub(crate) size: u64,
    pub(crate) sparse: Option<Sparse>,
    /// Extended attributes.
    pub(crate) attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads the members of an archive.
pub(crate) struct Members<R> {
    stream: R,
    /// What is left of the current member, with the padding after it.
    left: u64,
    /// Bytes read.
    position: u64,
}

/// What precedes a header and belongs to it.
#[derive(Default)]
struct Extensions {
    records: Vec<(Vec<u8>, Vec<u8>)>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    /// Bytes of all of it, whether they are kept or not.
    bytes: u64,
}

impl<R: Read> Members<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, left: 0, position: 0 }
    }

    /// Number of bytes before the content of the current member.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Reads up to the next member; `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> io::Result<Option<Member>> {
        self.skip()?;
        self.next_header()
    }

    /// As [`Self::next`], of a stream that stands where `skip` would.
    fn next_header(&mut self) -> io::Result<Option<Member>> {
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            let kind = header.entry_type();
            let is_extension = matches!(
                kind,
                EntryType::XHeader
                    | EntryType::XGlobalHeader
                    | EntryType::GNULongName
                    | EntryType::GNULongLink
            );
            if !is_extension {
                return self.member(&header, extensions).map(Some);
            }
            let size = header.entry_size()?;
            // A member may have any number of them, each with a header of its own.
            extensions.bytes = extensions.bytes.saturating_add(size).saturating_add(BLOCK as u64);
            if extensions.bytes > MAX_RECORDS {
                return Err(invalid("the extended headers of a member are larger than 1 MiB"));
            }
            let content = self.small(size)?;
            match kind {
                EntryType::XHeader => extensions.records.extend(parse_records(&content)?),
                EntryType::GNULongName => extensions.path = Some(without_nul(content)),
                EntryType::GNULongLink => extensions.link = Some(without_nul(content)),
                // Metadata of the archive.
                _ => {}
            }
        }
    }

    /// The content of the current member.
    pub(crate) fn content(&mut self, member: &Member) -> Content<'_, R> {
        let padding = member.size.checked_next_multiple_of(BLOCK as u64).map_or(0, |end| end - member.size);
        let size = self.left.saturating_sub(padding);
        Content { members: self, left: size }
    }

    /// Reads to the end of the stream, where a compressed one has its checksum.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        io::copy(&mut self.stream, &mut io::sink()).map(drop)
    }

    /// The stream, to move it to the next member.
    pub(crate) fn skip_with(&mut self, skip: impl FnOnce(&mut R, u64) -> io::Result<()>) -> io::Result<()> {
        skip(&mut self.stream, self.left)?;
        self.position += self.left;
        self.left = 0;
        Ok(())
    }

    fn skip(&mut self) -> io::Result<()> {
        let count = io::copy(&mut (&mut self.stream).take(self.left), &mut io::sink())?;
        self.position += count;
        match count == self.left {
            true => {
                self.left = 0;
                Ok(())
            }
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        let bytes = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.stream.read(&mut bytes[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.position += BLOCK as u64;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let (before, rest) = bytes.split_at(148);
        let sum: u32 = before.iter().chain(&rest[8..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        match header.cksum() {
            Ok(stored) if stored == sum => Ok(Some(header)),
            _ => Err(invalid("the checksum of a header is wrong, so it is no tar archive, or damaged")),
        }
    }

    fn member(&mut self, header: &Header, extensions: Extensions) -> io::Result<Member> {
        let Extensions { records, path, link, .. } = extensions;
        let record = |key: &str| {
            let found = records.iter().rev().find(|(name, _)| name == key.as_bytes());
            found.map(|(_, value)| value.as_slice())
        };
        let number = |key: &str, field: io::Result<u64>| match record(key) {
            Some(text) => parse_number(text),
            None => field,
        };
        let size = number("size", header.entry_size())?;
        // That of no file, and its end would be beyond the largest number.
        if i64::try_from(size).is_err() {
            return Err(invalid("the size of a member is larger than any file can be"));
        }
        let kind = header.entry_type();
        let has_content = !matches!(
            kind,
            EntryType::Link
                | EntryType::Symlink
                | EntryType::Directory
                | EntryType::Char
                | EntryType::Block
                | EntryType::Fifo
        );
        let path = record("path").map(<[u8]>::to_vec).or(path).unwrap_or_else(|| header.path_bytes().into());
        let link = record("linkpath").map(<[u8]>::to_vec).or(link);
        let link = link.or_else(|| header.link_name_bytes().map(Into::into)).unwrap_or_default();
        let mut sparse = Sparse::of_records(records.iter().map(|(key, value)| (&key[..], &value[..])))?;
        if kind == EntryType::GNUSparse {
            sparse = Some(self.older_sparse(header)?);
        }
        // Some write a size for members that have no content.
        self.left = if has_content { size.next_multiple_of(BLOCK as u64) } else { 0 };
        let path = match sparse.as_ref().and_then(Sparse::name) {
            Some(name) => name.to_owned(),
            None => to_path(&path),
        };
        let kind = match kind {
            // Old archives have no type for directories.
            EntryType::Regular if path.as_os_str().as_bytes().ends_with(b"/") => EntryType::Directory,
            EntryType::GNUSparse | EntryType::Continuous => EntryType::Regular,
            kind => kind,
        };
        Ok(Member {
            kind,
            path,
            link: to_path(&link),
            mode: header.mode()?,
            uid: number("uid", header.uid())?,
            gid: number("gid", header.gid())?,
            modified: match record("mtime") {
                Some(text) => parse_time(text)?,
                None => (header.mtime()?.try_into().unwrap_or(i64::MAX), 0),
            },
            device: match kind {
                EntryType::Char | EntryType::Block => {
                    (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0))
                }
                _ => (0, 0),
            },
            size: if has_content { size } else { 0 },
            sparse,
            attributes: records
                .iter()
                .filter_map(|(key, value)| Some((key.strip_prefix(ATTRIBUTE)?.to_vec(), value.clone())))
                .collect(),
        })
    }

    /// The map of a sparse file in the older format, which is in its header and in blocks after it.
    fn older_sparse(&mut self, header: &Header) -> io::Result<Sparse> {
        let gnu = header.as_gnu().ok_or_else(|| invalid("a sparse file has no header of GNU tar"))?;
        let mut map = Vec::new();
        add_segments(&mut map, &gnu.sparse)?;
        let mut extended = gnu.is_extended();
        while extended {
            let mut block = GnuExtSparseHeader::new();
            self.stream.read_exact(block.as_mut_bytes())?;
            self.position += BLOCK as u64;
            add_segments(&mut map, block.sparse())?;
            extended = block.is_extended();
        }
        Ok(Sparse::with_map(gnu.real_size()?, map))
    }

    /// The content of a member that describes another, of at most [`MAX_RECORDS`].
    fn small(&mut self, size: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = (&mut self.stream).take(size).read_to_end(&mut bytes)? as u64;
        self.position += read;
        if read < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left = size.next_multiple_of(BLOCK as u64) - size;
        self.skip()?;
        Ok(bytes)
    }
}

/// The content of a member, as it is in the archive.
pub(crate) struct Content<'a, R> {
    members: &'a mut Members<R>,
    left: u64,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if limit == 0 {
            return Ok(0);
        }
        let count = self.members.stream.read(&mut buffer[..limit])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        self.members.left -= count as u64;
        self.members.position += count as u64;
        Ok(count)
    }
}

/// The records of a pax header: each its length in decimal, a space, a key, `=`, a value, and a line feed.
fn parse_records(bytes: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let malformed = || invalid("a pax record is malformed");
    let mut rest = bytes;
    let mut records = Vec::new();
    while !rest.is_empty() {
        let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let length = usize::try_from(parse_number(&rest[..space])?).map_err(|_| malformed())?;
        let record = rest.get(space + 1..length).ok_or_else(malformed)?;
        let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        rest = &rest[length..];
    }
    Ok(records)
}

fn add_segments(map: &mut Vec<Segment>, entries: &[GnuSparseHeader]) -> io::Result<()> {
    for entry in entries.iter().filter(|entry| !entry.is_empty()) {
        if map.len() == MAX_SEGMENTS {
            return Err(invalid("a sparse file has too many parts"));
        }
        map.push(Segment { offset: entry.offset()?, length: entry.length()? });
    }
    Ok(())
}

fn parse_number(text: &[u8]) -> io::Result<u64> {
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|text| text.parse().ok()).ok_or_else(|| invalid("a number in a pax record is malformed"))
}

/// Seconds with an optional fraction.
fn parse_time(text: &[u8]) -> io::Result<(i64, u32)> {
    let malformed = || invalid("a time in a pax record is malformed");
    let text = std::str::from_utf8(text).map_err(|_| malformed())?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().map_err(|_| malformed())?;
    let mut nanoseconds = 0;
    for digit in fraction.bytes().chain(std::iter::repeat(b'0')).take(9) {
        if !digit.is_ascii_digit() {
            return Err(malformed());
        }
        nanoseconds = nanoseconds * 10 + u32::from(digit - b'0');
    }
    match (seconds < 0 || text.starts_with('-')) && nanoseconds > 0 {
        // The fraction counts downwards.
        true => Ok((seconds.saturating_sub(1), 1_000_000_000 - nanoseconds)),
        false => Ok((seconds, nanoseconds)),
    }
}

fn without_nul(mut text: Vec<u8>) -> Vec<u8> {
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    text.truncate(end);
    text
}

fn to_path(bytes: &[u8]) -> PathBuf {
    Path::new(OsStr::from_bytes(bytes)).to_owned()
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_split_by_their_lengths() {
        let value = b"a=b\n\x0a\n";
        let record = [&b"SCHILY.xattr.x="[..], value, b"\n"].concat();
        let text = [format!("{} ", record.len() + 3).as_bytes(), &record].concat();
        let records = parse_records(&text).unwrap();
        assert_eq!(records, [(b"SCHILY.xattr.x".to_vec(), value.to_vec())]);
        for text in [&b"x a=b\n"[..], b"6 a=b", b"99 a=b\n", b"0 a=b\n", b"6 ab c\n", b"3\n", b"1 a=b\n"] {
            assert!(parse_records(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn times_have_a_fraction() {
        assert_eq!(parse_time(b"12").unwrap(), (12, 0));
        assert_eq!(parse_time(b"12.5").unwrap(), (12, 500_000_000));
        assert_eq!(parse_time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(parse_time(b"-0.25").unwrap(), (-1, 750_000_000));
        assert!(parse_time(b"x").is_err() && parse_time(b"1.x").is_err());
    }

    /// A file with pax records, a sparse one, a link with a long name, a directory and a device.
    fn sample() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        let records = [
            ("SCHILY.xattr.user.x", &b"a\nb"[..]),
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"5000"),
            ("mtime", b"-1.5"),
        ];
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        builder.append_pax_extensions(records[..1].iter().copied()).unwrap();
        header.set_size(3);
        builder.append_data(&mut header, "file", &b"abc"[..]).unwrap();
        let map = [&b"1\n4096\n3\n"[..], &[0; 502], b"abc"].concat();
        builder.append_pax_extensions(records[1..].iter().copied()).unwrap();
        header.set_size(map.len() as u64);
        builder.append_data(&mut header, "GNUSparseFile.0/sparse", &map[..]).unwrap();
        for (kind, name) in [
            (EntryType::Symlink, "x".repeat(300)),
            (EntryType::Directory, "d".to_owned()),
            (EntryType::Char, "c".to_owned()),
        ] {
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_device_major(0).unwrap();
            header.set_device_minor(0).unwrap();
            match kind {
                EntryType::Symlink => builder.append_link(&mut header, &name, "target").unwrap(),
                _ => builder.append_data(&mut header, &name, io::empty()).unwrap(),
            }
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn any_archive_is_read_within_its_bounds() {
        let archive = sample();
        let mut members = Members::new(&archive[..]);
        let mut names = Vec::new();
        while let Some(member) = members.next().unwrap() {
            names.push(member.path.as_os_str().len());
        }
        assert_eq!(names, [4, 6, 300, 1, 1]);
        cofferdam_fuzz::fuzz_bytes(&[archive], &["17 path=/../a/../b\n", "99999999999", ".wh."], |archive| {
            let mut members = Members::new(archive);
            let mut read = 0;
            while let Ok(Some(member)) = members.next() {
                let mut content = members.content(&member);
                if let Some(sparse) = member.sparse.clone() {
                    let size = sparse.size();
                    let Ok(segments) = sparse.segments(&mut content) else { return };
                    let is_within = |segment: &Segment| {
                        segment.offset.checked_add(segment.length).is_some_and(|end| end <= size)
                    };
                    assert!(segments.iter().all(is_within), "{segments:?} of {size}");
                }
                let Ok(count) = io::copy(&mut content, &mut io::sink()) else { return };
                read += count;
                assert!(read <= archive.len() as u64 && members.position() <= archive.len() as u64);
            }
        });
    }
}
