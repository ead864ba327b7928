//! The files with the output of a container: the current one, and rotated ones.
//!
//! They may be in a directory of the container, which can put anything in their place. So each is opened without following
//! symbolic links, must be a regular file, and is the one that the agent opened. If a logger writes them, only that logger
//! knows which ones they are: then those in the sandbox must belong to the container's user, who could read them anyway,
//! and have no other name.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cofferdam_core::model::view::FileId;
use cofferdam_linux::foreign::{self, OpenError, Resolve};
use flate2::read::GzDecoder;

use super::times::Times;

/// The most rotated files that are looked for, and with those of their times are open at once.
const MAX_FILES: u32 = 100;

/// How often the rotated files are listed again while they are being rotated.
const ATTEMPTS: usize = 10;

/// Where the output of a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Log {
    /// The current file.
    pub(super) path: PathBuf,
    /// Which file it is, if the agent opened it: then there are no others.
    pub(super) file: Option<FileId>,
    /// The user that files must belong to.
    pub(super) owner: Option<u32>,
    /// Whether there are files with times.
    pub(super) has_times: bool,
}

/// Why the output of a container cannot be read.
#[derive(Debug, thiserror::Error)]
enum LogError {
    #[error("cannot read the output of the container in `{}`", path.display())]
    Open { path: PathBuf, source: OpenError },
    #[error("`{}` is not a file of the container's logger; the container has put it there", path.display())]
    Replaced { path: PathBuf },
}

/// An open file of the log.
#[derive(Debug)]
pub(super) struct Part {
    /// Which file it is.
    pub(super) id: FileId,
    /// Which file it was before it was compressed.
    original: Option<FileId>,
    pub(super) content: Content,
    pub(super) times: Option<Times>,
}

#[cfg(test)]
impl Part {
    pub(super) const fn of(content: Content, times: Option<Times>) -> Self {
        Self { id: FileId { device: 0, inode: 0 }, original: None, content, times }
    }
}

/// How a file is read.
#[derive(Debug)]
pub(super) enum Content {
    Plain(File),
    Gzip(Box<GzDecoder<File>>),
}

impl Log {
    /// All files, the oldest first.
    pub(super) fn parts(&self) -> io::Result<Vec<Part>> {
        for attempt in 1.. {
            let current = self.current()?;
            let mut parts = Vec::new();
            if self.file.is_none() {
                let mut numbers = Rotated::new(self);
                while let Some(part) = numbers.next_older()? {
                    parts.push(part);
                }
            }
            // Otherwise one was rotated meanwhile, and may be there twice or not at all.
            let is_same = self.current()?.map(|part| part.id) == current.as_ref().map(|part| part.id);
            if is_same || attempt == ATTEMPTS {
                parts.reverse();
                parts.dedup_by_key(|part| part.id);
                parts.extend(current);
                return Ok(parts);
            }
        }
        Ok(Vec::new())
    }

    /// The current file; `None` if it is missing, as during a rotation.
    pub(super) fn current(&self) -> io::Result<Option<Part>> {
        self.part(&self.path)
    }

    /// The file that follows another one, which is kept open; `None` if that is still the current one. The second value is
    /// whether there was none in between: files that have been removed are not shown.
    ///
    /// Numbers of inodes are used again, but not that of an open file. If a file is the compressed one, so is the newest
    /// that names it.
    pub(super) fn after(&self, id: FileId) -> io::Result<Option<(Part, bool)>> {
        for attempt in 1.. {
            let Some(current) = self.current()? else { return Ok(None) };
            if current.id == id {
                return Ok(None);
            }
            let newest = current.id;
            let mut next = current;
            let mut rotated = Rotated::new(self);
            let found = loop {
                match rotated.next_older()? {
                    Some(part) if part.id == id || part.original == Some(id) => break true,
                    Some(part) => next = part,
                    None => break false,
                }
            };
            let is_same = self.current()?.is_some_and(|current| current.id == newest);
            if found || is_same || attempt == ATTEMPTS {
                return Ok(Some((next, found)));
            }
        }
        Ok(None)
    }

    fn part(&self, path: &Path) -> io::Result<Option<Part>> {
        let Some(file) = self.open(path)? else { return Ok(None) };
        let id = FileId::of(&file.metadata()?);
        let times = self.times(path)?;
        Ok(Some(Part { id, original: None, content: Content::Plain(file), times }))
    }

    fn times(&self, path: &Path) -> io::Result<Option<Times>> {
        if !self.has_times {
            return Ok(None);
        }
        Ok(self.open(&with_ending(path, ".times"))?.map(Times::new))
    }

    /// Opens a file; `None` if it is missing.
    fn open(&self, path: &Path) -> io::Result<Option<File>> {
        let below = path.strip_prefix("/").unwrap_or(path);
        let open = || {
            let root = foreign::directory(Path::new("/"))?;
            foreign::open_regular(foreign::find(root, below, Resolve::WithoutLinks)?)
        };
        let file = match open() {
            Ok(file) => file,
            Err(error) if error.is_missing() => return Ok(None),
            Err(source) => return Err(io::Error::other(LogError::Open { path: path.to_owned(), source })),
        };
        let metadata = file.metadata()?;
        let is_other = self.file.is_some_and(|expected| FileId::of(&metadata) != expected);
        // One that was just removed has no name.
        let is_foreign = self.owner.is_some_and(|owner| metadata.uid() != owner || metadata.nlink() > 1);
        if is_other || is_foreign {
            return Err(io::Error::other(LogError::Replaced { path: path.to_owned() }));
        }
        Ok(Some(file))
    }
}

/// The rotated files of a log, the newest first.
struct Rotated<'a> {
    log: &'a Log,
    number: u32,
}

impl<'a> Rotated<'a> {
    const fn new(log: &'a Log) -> Self {
        Self { log, number: 0 }
    }

    /// The next one that exists.
    fn next_older(&mut self) -> io::Result<Option<Part>> {
        // While they are renamed, one number is missing.
        for _ in 0..2 {
            if self.number == MAX_FILES {
                break;
            }
            self.number += 1;
            if let Some(part) = self.open()? {
                return Ok(Some(part));
            }
        }
        Ok(None)
    }

    fn open(&self) -> io::Result<Option<Part>> {
        let path = with_ending(&self.log.path, &format!(".{}", self.number));
        if let Some(part) = self.log.part(&path)? {
            return Ok(Some(part));
        }
        // It may have been compressed meanwhile.
        let Some(file) = self.log.open(&with_ending(&path, ".gz"))? else { return Ok(None) };
        let id = FileId::of(&file.metadata()?);
        let decoder = GzDecoder::new(file);
        let original = decoder.header().and_then(|header| original(header.extra()?));
        let times = self.log.times(&path)?;
        Ok(Some(Part { id, original, content: Content::Gzip(Box::new(decoder)), times }))
    }
}

/// The file that was compressed, from the extra field of a gzip header: see `LogFiles` of the plugin API.
fn original(extra: &[u8]) -> Option<FileId> {
    let numbers = extra.strip_prefix(b"CF\x10\x00")?;
    let number = |bytes: &[u8]| Some(u64::from_le_bytes(bytes.try_into().ok()?));
    Some(FileId { device: number(numbers.get(..8)?)?, inode: number(numbers.get(8..)?)? })
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
        }
    }
}

impl Content {
    /// Begins again.
    pub(super) fn rewind(&mut self) -> io::Result<()> {
        use io::Seek;
        match self {
            Self::Plain(file) => file.rewind(),
            Self::Gzip(decoder) => {
                let mut file = decoder.get_ref().try_clone()?;
                file.rewind()?;
                **decoder = GzDecoder::new(file);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use flate2::{Compression, GzBuilder};

    use super::*;

    fn log(path: PathBuf) -> Log {
        Log { path, file: None, owner: None, has_times: false }
    }

    fn compress(from: &Path, to: &Path) {
        let metadata = fs::metadata(from).unwrap();
        let mut extra = b"CF\x10\0".to_vec();
        extra.extend(metadata.dev().to_le_bytes());
        extra.extend(metadata.ino().to_le_bytes());
        let file = File::create(to).unwrap();
        let mut encoder = GzBuilder::new().extra(extra).write(file, Compression::fast());
        encoder.write_all(&fs::read(from).unwrap()).unwrap();
        encoder.finish().unwrap();
    }

    fn text(part: Part) -> String {
        let mut text = String::new();
        let mut content = part.content;
        content.read_to_string(&mut text).unwrap();
        content.rewind().unwrap();
        let mut again = String::new();
        content.read_to_string(&mut again).unwrap();
        assert_eq!(text, again);
        text
    }

    #[test]
    fn parts_are_found_in_order_also_if_compressed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (name, text) in [("stdout", "4"), ("stdout.1", "3"), ("stdout.2", "2"), ("stdout.3", "1")] {
            fs::write(at(name), text).unwrap();
        }
        let oldest = FileId::of(&fs::metadata(at("stdout.3")).unwrap());
        // Kept open by a reader, so that its number is not used again.
        let _open = File::open(at("stdout.3")).unwrap();
        compress(&at("stdout.3"), &at("stdout.3.gz"));
        fs::remove_file(at("stdout.3")).unwrap();
        let log = log(at("stdout"));
        let parts = log.parts().unwrap();
        assert_eq!(parts[0].original, Some(oldest));
        assert_eq!(parts.into_iter().map(text).collect::<Vec<_>>(), ["1", "2", "3", "4"]);

        let mut seen = Vec::new();
        let mut id = oldest;
        while let Some((part, is_next)) = log.after(id).unwrap() {
            assert!(is_next);
            id = part.id;
            seen.push(text(part));
        }
        assert_eq!(seen, ["2", "3", "4"]);

        // The number of the inode of a file that was compressed may be that of another one by now.
        let compressed = FileId::of(&fs::metadata(at("stdout.3.gz")).unwrap());
        assert_eq!(text(log.after(compressed).unwrap().unwrap().0), "2");

        // It was removed; the oldest that is left follows.
        fs::remove_file(at("stdout.3.gz")).unwrap();
        let (part, is_next) = log.after(oldest).unwrap().unwrap();
        assert_eq!((text(part).as_str(), is_next), ("2", false));
    }

    #[test]
    fn a_file_of_another_user_or_with_another_name_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("stdout"), "output").unwrap();
        let own = fs::metadata(at("stdout")).unwrap().uid();
        let with_owner = |owner| Log { owner: Some(owner), ..log(at("stdout")) };
        assert!(with_owner(own).current().is_ok());
        let error = with_owner(own + 1).current().unwrap_err().to_string();
        assert!(error.contains("the container has put it there"), "{error}");
        fs::hard_link(at("stdout"), at("other")).unwrap();
        assert!(with_owner(own).current().is_err());
        fs::remove_file(at("other")).unwrap();
        symlink(at("stdout"), at("stdout.1")).unwrap();
        let error = with_owner(own).parts().unwrap_err().to_string();
        assert!(error.contains("cannot read the output") && error.contains("stdout.1"), "{error}");
    }
}
