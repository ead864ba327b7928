//! Space for the ends of containers, reserved when they are launched: how a container ended is recorded even if the disk
//! is full by then.
//!
//! ```text
//! <runtime_dir>/ends    a header, then a slot for each container that is live
//! ```
//!
//! A slot is used only if the record itself cannot be written, and freed when it has been. Its content is the length and
//! the CRC-32 of a JSON text, in little-endian words, and the text.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cofferdam_plugin_model::ContainerId;
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use crate::model::Termination;

/// Size of the header, and of a slot.
const SLOT: usize = 1024;

const HEADER: &[u8] = b"cofferdam-ends 1\n";

/// Length and checksum of a slot's text.
const HEAD: usize = 8;

/// By how many slots the file grows.
const STEP: usize = 16;

/// Longest message that is kept, in bytes.
const MAX_MESSAGE: usize = 256;

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct End {
    pub(super) id: ContainerId,
    /// Distinguishes containers of one id.
    pub(super) created_unix_ms: u64,
    pub(super) termination: Termination,
}

#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// `None` until space was reserved for the first time.
    file: Option<File>,
    /// Number of slots that have space.
    slots: usize,
    /// Containers that may need one.
    live: BTreeSet<ContainerId>,
    /// Slots in use.
    ends: BTreeMap<ContainerId, (usize, End)>,
}

impl Reserve {
    /// Reads what an earlier agent has left. A missing file is created with the first reservation.
    pub(super) fn open(directory: &Path) -> Self {
        let path = directory.join("ends");
        let mut state = State::default();
        match open(&path, false) {
            Ok(file) => state.read(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(
                "cannot use `{}`, so no container can be launched: {error}; remove it",
                path.display()
            ),
        }
        Self { path, state: Mutex::new(state) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reserves space for the end of a container. Does nothing if that was done.
    pub(super) fn add(&self, id: &ContainerId) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.live.contains(id) {
            return Ok(());
        }
        let needed = state.live.len() + state.ends.len() + 1;
        if needed > state.slots || state.file.is_none() {
            state.grow(&self.path, needed.next_multiple_of(STEP))?;
        }
        state.live.insert(id.clone());
        Ok(())
    }

    /// Records an end in reserved space.
    pub(super) fn store(&self, end: End) -> io::Result<()> {
        let mut state = self.state.lock();
        let used: BTreeSet<usize> = state.ends.values().map(|(slot, _)| *slot).collect();
        let free = (1..=state.slots).find(|slot| !used.contains(slot));
        let (Some(file), Some(slot)) = (&state.file, free) else {
            return Err(io::ErrorKind::StorageFull.into());
        };
        file.write_all_at(&encode(&end)?, (slot * SLOT) as u64)?;
        state.live.remove(&end.id);
        state.ends.insert(end.id.clone(), (slot, end));
        Ok(())
    }

    /// The end of a container is recorded elsewhere, or not needed any more.
    pub(super) fn forget(&self, id: &ContainerId) {
        let mut state = self.state.lock();
        state.live.remove(id);
        if let Some((slot, _)) = state.ends.remove(id)
            && let Some(file) = &state.file
            // The space is there.
            && let Err(error) = file.write_all_at(&[0; HEAD], (slot * SLOT) as u64)
        {
            tracing::warn!("cannot write to `{}`: {error}", self.path.display());
        }
    }

    /// The ends that are recorded here.
    pub(super) fn ends(&self) -> Vec<End> {
        self.state.lock().ends.values().map(|(_, end)| end.clone()).collect()
    }

    pub(super) fn contains(&self, id: &ContainerId) -> bool {
        self.state.lock().ends.contains_key(id)
    }
}

impl State {
    fn read(&mut self, file: File) {
        let length = file.metadata().map_or(0, |found| found.len());
        let slots = usize::try_from(length).unwrap_or(0) / SLOT;
        let mut bytes = vec![0; SLOT];
        let mut read = |slot: usize| {
            file.read_exact_at(&mut bytes, (slot * SLOT) as u64).ok().and_then(|()| decode(&bytes))
        };
        self.ends =
            (1..slots).filter_map(|slot| read(slot).map(|end| (end.id.clone(), (slot, end)))).collect();
        self.slots = slots.saturating_sub(1);
        self.file = Some(file);
    }

    fn grow(&mut self, path: &Path, slots: usize) -> io::Result<()> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = open(path, true)?;
                file.write_all_at(HEADER, 0)?;
                file
            }
        };
        // Written at once, as a hole would need space later.
        let size = ((slots + 1) * SLOT) as u64;
        let grown = fallocate(&file, FallocateFlags::empty(), 0, size);
        self.file = Some(file);
        grown?;
        self.slots = slots;
        Ok(())
    }
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// The content of a slot. What does not fit is cut: the status never.
fn encode(end: &End) -> io::Result<Vec<u8>> {
    let mut end = end.clone();
    if let Some(message) = &mut end.termination.message {
        let mut length = message.len().min(MAX_MESSAGE);
        while !message.is_char_boundary(length) {
            length -= 1;
        }
        message.truncate(length);
    }
    let mut text = serde_json::to_vec(&end)?;
    if text.len() > SLOT - HEAD {
        end.termination.limited.clear();
        text = serde_json::to_vec(&end)?;
    }
    if text.len() > SLOT - HEAD {
        end.termination.message = None;
        end.termination.reason = None;
        text = serde_json::to_vec(&end)?;
    }
    let length = u32::try_from(text.len()).ok().filter(|_| text.len() <= SLOT - HEAD);
    let length = length.ok_or(io::ErrorKind::InvalidData)?;
    let mut bytes = [length.to_le_bytes(), crc32fast::hash(&text).to_le_bytes()].concat();
    bytes.extend(text);
    Ok(bytes)
}

/// The end in a slot; `None` if it is free or was not written completely.
fn decode(slot: &[u8]) -> Option<End> {
    let (head, text) = slot.split_first_chunk::<HEAD>()?;
    let [a, b, c, d, checksum @ ..] = *head;
    let text = text.get(..usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?)?;
    if text.is_empty() || crc32fast::hash(text) != u32::from_le_bytes(checksum) {
        return None;
    }
    serde_json::from_slice(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Reason;

    fn end(id: &str, message: &str) -> End {
        let termination = Termination {
            status: Some(42 << 8),
            reason: Some(Reason::Killed),
            message: Some(message.to_owned()),
            ..Termination::default()
        };
        End { id: ContainerId::parse(id).unwrap(), created_unix_ms: 7, termination }
    }

    #[test]
    fn ends_are_found_by_the_next_agent_until_they_are_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(directory.path());
        let ends = [end("a", "x"), end("b", "y")];
        for end in &ends {
            reserve.add(&end.id).unwrap();
            reserve.store(end.clone()).unwrap();
        }
        let next = Reserve::open(directory.path());
        assert_eq!(next.ends(), ends);
        next.forget(&ends[0].id);
        assert!(!next.contains(&ends[0].id));
        assert_eq!(Reserve::open(directory.path()).ends(), ends[1..]);
    }

    #[test]
    fn every_live_container_has_space() {
        let directory = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(directory.path());
        let ids: Vec<_> = (0..100).map(|number| ContainerId::parse(&format!("c{number}")).unwrap()).collect();
        for id in &ids {
            reserve.add(id).unwrap();
            reserve.add(id).unwrap();
        }
        for id in &ids {
            reserve.store(End { id: id.clone(), ..end("a", "") }).unwrap();
        }
        assert_eq!(Reserve::open(directory.path()).ends().len(), 100);
    }

    #[test]
    fn the_status_of_the_longest_id_with_the_longest_message_fits() {
        let id = "x".repeat(242);
        let long = end(&id, &"\u{1}é".repeat(10_000));
        let found = decode(&encode(&long).unwrap()).unwrap();
        assert_eq!((found.id, found.termination.status), (long.id, long.termination.status));
    }

    #[test]
    fn damaged_slots_are_free() {
        let mut bytes = encode(&end("a", "x")).unwrap();
        assert!(decode(&bytes).is_some());
        bytes[12] ^= 1;
        assert!(decode(&bytes).is_none());
        assert!(decode(&[0; SLOT]).is_none() && decode(&[0xff; SLOT]).is_none() && decode(&[]).is_none());
    }

    #[test]
    fn something_else_in_its_place_refuses_reservations() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("ends")).unwrap();
        let reserve = Reserve::open(directory.path());
        assert!(reserve.add(&end("a", "").id).is_err());
    }

    #[test]
    fn any_reserved_space_is_read_or_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(directory.path());
        for name in ["a", "b", "c"] {
            reserve.add(&ContainerId::parse(name).unwrap()).unwrap();
            reserve.store(end(name, "killed")).unwrap();
        }
        // Without the slots that are not used.
        let mut sample = std::fs::read(reserve.path()).unwrap();
        sample.truncate(5 * SLOT);
        cofferdam_fuzz::fuzz_bytes(&[sample], &["{", "\"", "cofferdam-ends 1\n"], |content| {
            std::fs::write(directory.path().join("ends"), content).unwrap();
            let reserve = Reserve::open(directory.path());
            let found = reserve.ends();
            assert!(found.len() <= content.len() / SLOT, "{found:?}");
            // What is there is kept, and there is space for more.
            let new = ContainerId::parse("new").unwrap();
            if reserve.add(&new).is_ok() {
                reserve.store(end("new", "")).unwrap();
                let ids: Vec<_> =
                    Reserve::open(directory.path()).ends().into_iter().map(|end| end.id).collect();
                assert!(ids.contains(&new) && found.iter().all(|end| ids.contains(&end.id)), "{ids:?}");
                reserve.forget(&new);
            }
        });
    }
}
