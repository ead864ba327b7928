//! The calls in progress, in a file that is read after a crash: plugins run in the agent's process, and can end it.
//!
//! The file is mapped into memory and has a slot per call, so a call costs two copies of some bytes and no system
//! call. The pages are the kernel's: they are kept when the process dies. They need not survive the machine.

mod map;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use cofferdam_plugin_model::Method;

use crate::model::now_unix_ms;
use crate::model::view::InterruptedCall;
use map::Map;

/// Number of slots; calls beyond it are not noted.
const SLOTS: usize = 128;

/// Size of a slot and of the header: `begun`, three lengths, and text.
const SLOT: usize = 512;
const TEXT: usize = SLOT - 16;
const SIZE: usize = SLOT * (SLOTS + 1);

/// In the header while an agent uses the file. A new format gets a new value.
const IN_USE: u64 = u64::from_le_bytes(*b"calls-01");

/// The calls of this agent that are in progress.
pub struct CallFile {
    map: Map<SIZE>,
    /// A bit per slot in use.
    used: [AtomicU64; SLOTS / 64],
}

/// A call that is noted until this is dropped.
pub(super) struct Note<'a> {
    file: &'a CallFile,
    slot: usize,
}

impl CallFile {
    /// Replaces the file, and returns the calls during which its last user died.
    ///
    /// # Errors
    /// When the old file cannot be read, or the new one not be reserved or mapped.
    pub fn open(path: &Path) -> io::Result<(Self, Vec<InterruptedCall>)> {
        let interrupted = match OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
        {
            Ok(mut file) => read(&mut file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        // A new file: calls of an earlier agent in this process may be late, and still write to theirs. To truncate
        // that would be a SIGBUS for them.
        let new = path.with_extension("new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&new)?;
        let fill = || {
            // A page for which there is no space left would be a SIGBUS at the first write.
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SIZE as u64)?;
            let map = Map::new(&file)?;
            map.store(0, IN_USE);
            std::fs::rename(&new, path)?;
            Ok(map)
        };
        let map = fill().inspect_err(|_: &io::Error| {
            // Best effort: the first error is more informative.
            drop(std::fs::remove_file(&new));
        })?;
        Ok((Self { map, used: [const { AtomicU64::new(0) }; SLOTS / 64] }, interrupted))
    }

    /// Notes that the agent ends in order: calls in progress are late, and end with it.
    pub fn close(&self) {
        self.map.store(0, 0);
    }

    /// Notes a call. Texts that are too long are cut.
    pub(super) fn note(&self, plugin: &str, method: Method, container: &str) -> Option<Note<'_>> {
        let slot = self.take_slot()?;
        let at = SLOT * (slot + 1);
        let mut bytes = [0; SLOT - 8];
        let mut end = 8;
        for (index, text) in [plugin, method.name(), container].into_iter().enumerate() {
            let length = text.len().min(TEXT + 8 - end);
            bytes[end..end + length].copy_from_slice(&text.as_bytes()[..length]);
            bytes[2 * index..2 * index + 2]
                .copy_from_slice(&u16::try_from(length).unwrap_or(0).to_le_bytes());
            end += length;
        }
        self.map.write(at + 8, &bytes[..end]);
        // Last: whoever finds the time finds the rest.
        self.map.store(at, now_unix_ms().max(1));
        Some(Note { file: self, slot })
    }

    fn take_slot(&self) -> Option<usize> {
        for (index, used) in self.used.iter().enumerate() {
            let mut known = used.load(Ordering::Relaxed);
            while known != u64::MAX {
                let free = known.trailing_ones();
                match used.compare_exchange_weak(
                    known,
                    known | 1 << free,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => return Some(index * 64 + free as usize),
                    Err(changed) => known = changed,
                }
            }
        }
        None
    }
}

impl Drop for Note<'_> {
    fn drop(&mut self) {
        self.file.map.store(SLOT * (self.slot + 1), 0);
        self.file.used[self.slot / 64].fetch_and(!(1 << (self.slot % 64)), Ordering::Release);
    }
}

impl Drop for CallFile {
    fn drop(&mut self) {
        self.close();
    }
}

/// Reads what the last user left. Another format, or a file that was damaged, has nothing to tell.
fn read(file: &mut File) -> io::Result<Vec<InterruptedCall>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(SIZE as u64).read_to_end(&mut bytes)?;
    let number = |at: usize| {
        let bytes = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    if bytes.len() != SIZE || number(0) != IN_USE {
        return Ok(Vec::new());
    }
    let slots = (1..=SLOTS).map(|slot| SLOT * slot);
    Ok(slots
        .filter(|&at| number(at) != 0)
        .filter_map(|at| parse(number(at), &bytes[at + 8..at + SLOT]))
        .collect())
}

fn parse(since_unix_ms: u64, slot: &[u8]) -> Option<InterruptedCall> {
    let (lengths, mut rest) = slot.split_at_checked(8)?;
    let mut text = |index: usize| {
        let length = u16::from_le_bytes([lengths[2 * index], lengths[2 * index + 1]]);
        let (text, remaining) = rest.split_at_checked(usize::from(length))?;
        rest = remaining;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    let (plugin, method, container) = (text(0)?, text(1)?, text(2)?);
    Some(InterruptedCall { plugin, method, container, since_unix_ms })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn call(found: &InterruptedCall) -> (&str, &str, &str) {
        (&found.plugin, &found.method, &found.container)
    }

    #[test]
    fn calls_in_progress_are_found_when_the_agent_died_and_others_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("calls");
        let (file, found) = CallFile::open(&path).unwrap();
        assert_eq!(found, []);
        let running = file.note("a/b", Method::Prepare, "web.sub").unwrap();
        drop(file.note("c/d", Method::Usage, "other").unwrap());
        // What a killed agent leaves is a copy of this.
        let killed = directory.path().join("killed");
        fs::copy(&path, &killed).unwrap();
        drop(running);
        drop(file);
        let (_, found) = CallFile::open(&killed).unwrap();
        assert_eq!(found.iter().map(call).collect::<Vec<_>>(), [("a/b", "prepare", "web.sub")]);
        let (_, found) = CallFile::open(&path).unwrap();
        assert_eq!(found, [], "this one ended in order");
    }

    #[test]
    fn a_late_call_of_an_earlier_user_disturbs_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("calls");
        let (first, _) = CallFile::open(&path).unwrap();
        let late = first.note("a/b", Method::Prepare, "web").unwrap();
        let (second, _) = CallFile::open(&path).unwrap();
        let running = second.note("c/d", Method::Usage, "other").unwrap();
        drop(late);
        drop(first);
        let killed = directory.path().join("killed");
        fs::copy(&path, &killed).unwrap();
        let (_, found) = CallFile::open(&killed).unwrap();
        assert_eq!(found.iter().map(call).collect::<Vec<_>>(), [("c/d", "usage", "other")]);
        drop(running);
    }

    #[test]
    fn texts_that_are_too_long_are_cut_and_calls_without_a_slot_are_not_noted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("calls");
        let (file, _) = CallFile::open(&path).unwrap();
        let long = "x".repeat(2 * SLOT);
        let notes: Vec<_> = (0..SLOTS).map(|_| file.note("p", Method::Create, &long).unwrap()).collect();
        assert!(file.note("p", Method::Create, "").is_none());
        let killed = directory.path().join("killed");
        fs::copy(&path, &killed).unwrap();
        let (_, found) = CallFile::open(&killed).unwrap();
        assert_eq!(found.len(), SLOTS);
        assert_eq!(found[0].container.len(), TEXT - "pcreate".len());
        drop(notes);
        assert!(file.note("p", Method::Create, "").is_some());
    }

    #[test]
    fn a_damaged_file_has_nothing_to_tell() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("calls");
        for content in [&b"short"[..], &[0xff; SIZE], &[0xff; 2 * SIZE]] {
            fs::write(&path, content).unwrap();
            assert_eq!(CallFile::open(&path).unwrap().1, []);
        }
    }
}
