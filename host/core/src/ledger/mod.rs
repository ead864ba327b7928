//! State that outlives the agent: one record per container, written before the effects that it describes.
//!
//! ```text
//! <runtime_dir>/agent.lock                         held by the agent that owns the directory
//! <runtime_dir>/containers/<id>/record             a header line, then JSON
//! <runtime_dir>/containers/<id>/containers/<id>/…  nested containers
//! <runtime_dir>/removed/<id>                       being deleted; not a container any more
//! <runtime_dir>/ends                               space reserved for the ends of containers, see `reserve.rs`
//! <work_dir>/agent.lock                            as above
//! ```
//!
//! A record is written to a temporary file and renamed over the old one, so it is never incomplete. It is not synced
//! to disk: records protect against the end of the agent, and after a crash of the machine, which the boot id shows,
//! no container exists. A record that is damaged nevertheless, by a full disk or another program, is reported, and
//! its container is destroyed by its id. What another version of the agent has written, or another program, is left alone.
//!
//! Nothing is needed to remove a record, and the end of a container is recorded in reserved space if there is no other.

mod lock;
mod record;
mod reserve;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cofferdam_linux::tree;
use cofferdam_plugin_model::ContainerId;
use serde::Serialize;

use crate::directory::create_searchable;
use crate::model::{Phase, Record};
use crate::parallel;

pub(crate) use lock::Lock;
pub use record::{RecordError, StoredRecord};
use reserve::{End, Reserve};

/// Name of the directory for containers, in the runtime directory and in that of every container.
const CONTAINERS: &str = "containers";

/// Name of the directory for containers that are being deleted, in the runtime directory.
const REMOVED: &str = "removed";

/// The records of one agent.
#[derive(Debug)]
pub struct Ledger {
    runtime_dir: PathBuf,
    reserve: Reserve,
    /// Declared before the other lock, thus released before it: whoever has waited for that one finds both free.
    work_lock: Option<Lock>,
    _lock: Lock,
}

/// Where the end of a container was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// In its record.
    Record,
    /// In reserved space, as there is no other. The record is to be written when there is.
    Reserve,
}

/// A container in the ledger.
#[derive(Debug)]
pub struct Entry {
    /// Id of the container, from the name of its directory.
    pub id: ContainerId,
    /// Its record, or why it cannot be used.
    pub record: Result<StoredRecord, RecordError>,
}

/// Why the ledger could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A directory cannot be created or opened.
    #[error("cannot use directory `{path}`")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Another agent uses the directory.
    #[error(
        "directory `{path}` belongs to another running agent; give this one its own with `--runtime-dir` \
         and `--work-dir`"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A record cannot be written.
    #[error("cannot write the record of container `{id}` to `{path}`")]
    Write {
        /// The container.
        id: ContainerId,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// No space can be reserved for the end of a container.
    #[error("cannot reserve space in `{path}` for the end of container `{id}`")]
    Reserve {
        /// The container.
        id: ContainerId,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A record was not written because a thread of the agent panicked.
    #[error("the record of container `{id}` was not written: {reason}")]
    Interrupted {
        /// The container.
        id: ContainerId,
        /// What happened.
        reason: String,
    },
    /// A record cannot be removed.
    #[error("cannot remove the record of container `{id}` at `{path}`")]
    Remove {
        /// The container.
        id: ContainerId,
        /// The directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl Ledger {
    /// Opens the ledger of a runtime directory, which is created if missing, and locks it.
    ///
    /// # Errors
    /// [`LedgerError::InUse`] if another agent has locked it.
    pub fn open(runtime_dir: &Path) -> Result<Self, LedgerError> {
        let directory_error = |source| LedgerError::Directory { path: runtime_dir.to_owned(), source };
        create_searchable(runtime_dir).map_err(directory_error)?;
        let runtime_dir = runtime_dir.canonicalize().map_err(directory_error)?;
        let lock = Lock::take(&runtime_dir)?;
        // It stays, as there may be no space for it when it is needed.
        let removed = runtime_dir.join(REMOVED);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&removed).map_err(directory_error)?;
        for name in names(&removed).map_err(directory_error)? {
            // Left by an agent that ended during a removal.
            if let Err(error) = remove_tree(&removed.join(&name)) {
                tracing::warn!("cannot remove `{}`: {error}", removed.join(&name).display());
            }
        }
        let reserve = Reserve::open(&runtime_dir);
        Ok(Self { runtime_dir, reserve, work_lock: None, _lock: lock })
    }

    /// Locks the work directory too, for as long as the ledger exists.
    ///
    /// # Errors
    /// [`LedgerError::InUse`] if another agent has locked it.
    pub fn lock_work_dir(mut self, work_dir: &Path) -> Result<Self, LedgerError> {
        if work_dir != self.runtime_dir {
            self.work_lock = Some(Lock::take(work_dir)?);
        }
        Ok(self)
    }

    /// The runtime directory, canonicalised.
    #[must_use]
    pub fn runtime_dir(&self) -> &Path {
        &self.runtime_dir
    }

    /// The directory of a container.
    #[must_use]
    pub fn directory(&self, id: &ContainerId) -> PathBuf {
        nested_directory(&self.runtime_dir, id)
    }

    /// Writes a record. Blocks. The first one of a container also reserves space for its end.
    ///
    /// # Errors
    /// If it cannot be written, or no space be reserved; the previous record is kept then.
    pub fn write<P: Serialize>(&self, record: &Record<P>) -> Result<(), LedgerError> {
        if record.phase.is_live() {
            self.reserve(&record.id)?;
        }
        let directory = self.directory(&record.id);
        let path = directory.join("record");
        self.write_to(&directory, &path, record).map_err(|source| LedgerError::Write {
            id: record.id.clone(),
            path,
            source,
        })?;
        if !record.phase.is_live() {
            self.reserve.forget(&record.id);
        }
        Ok(())
    }

    /// Reserves space for the end of a container.
    ///
    /// # Errors
    /// If there is none.
    pub fn reserve(&self, id: &ContainerId) -> Result<(), LedgerError> {
        let failed =
            |source| LedgerError::Reserve { id: id.clone(), path: self.reserve.path().to_owned(), source };
        self.reserve.add(id).map_err(failed)
    }

    /// Writes the record of a container that has ended, or its end to reserved space if that fails. Blocks.
    ///
    /// # Errors
    /// If both fail.
    pub fn write_end<P: Serialize>(&self, record: &Record<P>) -> Result<Recorded, LedgerError> {
        let Err(error) = self.write(record) else { return Ok(Recorded::Record) };
        let Some(termination) = record.termination.clone() else { return Err(error) };
        let end = End { id: record.id.clone(), created_unix_ms: record.created_unix_ms, termination };
        match self.reserve.store(end) {
            Ok(()) => Ok(Recorded::Reserve),
            Err(_) => Err(error),
        }
    }

    /// Whether the end of a container is recorded in reserved space.
    #[must_use]
    pub fn is_reserve_used(&self, id: &ContainerId) -> bool {
        self.reserve.contains(id)
    }

    fn write_to<P: Serialize>(&self, directory: &Path, path: &Path, record: &Record<P>) -> io::Result<()> {
        let bytes = record::encode(record)?;
        let temporary = directory.join("record.new");
        let open = || {
            // Neither through a link nor waiting for the reader of a named pipe.
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            let mut options = fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600).custom_flags(flags).open(&temporary)
        };
        let mut file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
                open()?
            }
            other => other?,
        };
        file.write_all(&bytes)?;
        fs::rename(&temporary, path)
    }

    /// Removes a container and all that are nested in it, atomically with regard to `entries`. It need not exist.
    ///
    /// # Errors
    /// If files are left; call this again then.
    pub fn remove(&self, id: &ContainerId) -> Result<(), LedgerError> {
        let path = self.directory(id);
        self.remove_from(&path, id).map_err(|source| LedgerError::Remove { id: id.clone(), path, source })?;
        self.reserve.forget(id);
        Ok(())
    }

    fn remove_from(&self, path: &Path, id: &ContainerId) -> io::Result<()> {
        let removed = self.runtime_dir.join(REMOVED);
        let gone = removed.join(id.as_str());
        // Left by an earlier call.
        remove_tree(&gone)?;
        match fs::rename(path, &gone) {
            Ok(()) => {
                // Most have nothing else, and then no descriptor is needed.
                drop(fs::remove_file(gone.join("record")));
                remove_tree(&gone)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.exists() => Ok(()),
            // Without the directory, or without space in it: not atomic, but what is full must get empty.
            Err(_) => remove_tree(path),
        }
    }

    /// All containers in the ledger, parents before children.
    ///
    /// # Errors
    /// If the directory of all containers cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>, LedgerError> {
        let mut found = Vec::new();
        Self::collect(&self.runtime_dir.join(CONTAINERS), None, &mut found)
            .map_err(|source| LedgerError::Directory { path: self.runtime_dir.clone(), source })?;
        let mut entries =
            parallel::map(&found, |(id, path)| Entry { id: id.clone(), record: record::read(path, id) });
        self.apply_ends(&mut entries);
        Ok(entries)
    }

    /// Completes records by ends that are in reserved space.
    fn apply_ends(&self, entries: &mut [Entry]) {
        for end in self.reserve.ends() {
            let found = entries.iter_mut().find(|entry| entry.id == end.id);
            let record = found.and_then(|entry| entry.record.as_mut().ok());
            match record.filter(|record| record.created_unix_ms == end.created_unix_ms) {
                Some(record) if record.phase.is_live() => {
                    record.phase = Phase::Ended;
                    record.process = None;
                    record.termination = Some(end.termination);
                }
                // Of a container that is gone, or whose record was written after all.
                _ => self.reserve.forget(&end.id),
            }
        }
    }

    /// The containers that have a directory, with the paths of their records.
    fn collect(
        directory: &Path,
        parent: Option<&ContainerId>,
        found: &mut Vec<(ContainerId, PathBuf)>,
    ) -> io::Result<()> {
        for name in names(directory)? {
            let path = directory.join(&name);
            // Created by the file system, and no id. What else is no id is worth a message.
            if name == "lost+found" {
                continue;
            }
            if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
                tracing::warn!("ignored `{}`: it is not a directory", path.display());
                continue;
            }
            let id = name.to_str().and_then(|name| match parent {
                None => ContainerId::parse(name).ok().filter(|id| !id.is_nested()),
                Some(parent) => parent.child(name).ok(),
            });
            let Some(id) = id else {
                tracing::warn!("ignored `{}`: the name is not a container id", path.display());
                continue;
            };
            found.push((id.clone(), path.join("record")));
            // At most as deep as ids.
            if let Err(error) = Self::collect(&path.join(CONTAINERS), Some(&id), found) {
                let path = path.join(CONTAINERS);
                tracing::error!("ignored `{}`, which may have containers: {error}", path.display());
            }
        }
        Ok(())
    }
}

/// The names in a directory, sorted. It need not exist.
fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    let listing = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = listing.map(|entry| entry.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Removes a directory and its content. It need not exist.
fn remove_tree(path: &Path) -> io::Result<()> {
    tree::remove(path).map_err(io::Error::other)
}

/// The directory of a container below `base`; those of nested containers are inside their parents'.
#[must_use]
pub fn nested_directory(base: &Path, id: &ContainerId) -> PathBuf {
    id.values().fold(base.to_owned(), |mut path, value| {
        path.push(CONTAINERS);
        path.push(value);
        path
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Request, Termination};
    use serde_json::Value as Json;

    fn record(id: &str) -> Record {
        let request = Request::shell(ContainerId::parse(id).unwrap(), "true");
        Record::new("test", request, "boot".into(), Json::Null)
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        let written = ["alone", "pod", "pod.web"].map(record);
        for record in &written {
            ledger.write(record).unwrap();
        }
        let entries = ledger.entries().unwrap();
        let ids: Vec<_> = entries.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!(ids, ["alone", "pod", "pod.web"]);
        for (entry, written) in entries.into_iter().zip(written) {
            let decoded = entry.record.unwrap().try_map_part(|part| serde_json::from_str(part.get()));
            assert_eq!(decoded.unwrap(), written);
        }
        ledger.remove(&ContainerId::parse("pod").unwrap()).unwrap();
        ledger.remove(&ContainerId::parse("pod").unwrap()).unwrap();
        assert_eq!(ledger.entries().unwrap().len(), 1);
    }

    #[test]
    fn truncated_and_changed_records_are_detected() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        let mut whole = record("web");
        whole.phase = Phase::Running;
        ledger.write(&whole).unwrap();
        let path = ledger.directory(&whole.id).join("record");
        let bytes = fs::read(&path).unwrap();
        for len in 0..bytes.len() {
            fs::write(&path, &bytes[..len]).unwrap();
            assert!(
                ledger.entries().unwrap()[0].record.is_err(),
                "{len} of {} bytes were accepted",
                bytes.len()
            );
        }
        let mut flipped = bytes.clone();
        let last = flipped.len() - 3;
        flipped[last] ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert!(matches!(ledger.entries().unwrap()[0].record, Err(RecordError::Checksum { .. })));
    }

    #[test]
    fn an_interrupted_removal_is_completed_and_not_listed() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        let id = ContainerId::parse("web").unwrap();
        ledger.write(&record("web")).unwrap();
        let removed = directory.path().join(REMOVED);
        fs::create_dir_all(&removed).unwrap();
        fs::rename(ledger.directory(&id), removed.join("web")).unwrap();
        assert!(ledger.entries().unwrap().is_empty());
        ledger.write(&record("web")).unwrap();
        ledger.remove(&id).unwrap();
        assert!(ledger.entries().unwrap().is_empty() && fs::read_dir(&removed).unwrap().next().is_none());

        fs::create_dir(removed.join("web")).unwrap();
        drop(ledger);
        Ledger::open(directory.path()).unwrap();
        assert!(fs::read_dir(&removed).unwrap().next().is_none());
    }

    #[test]
    fn an_end_in_reserved_space_completes_the_record_that_it_is_about() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        let termination = Termination { status: Some(42 << 8), ..Termination::default() };
        let mut written = ["same", "other", "gone"].map(record);
        for record in &written {
            ledger.write(record).unwrap();
            let created_unix_ms = record.created_unix_ms;
            ledger
                .reserve
                .store(End { id: record.id.clone(), created_unix_ms, termination: termination.clone() })
                .unwrap();
        }
        // A new container of the same id.
        written[1].created_unix_ms += 1;
        fs::remove_dir_all(ledger.directory(&written[1].id)).unwrap();
        ledger.write(&written[1]).unwrap();
        fs::remove_dir_all(ledger.directory(&written[2].id)).unwrap();
        drop(ledger);

        let ledger = Ledger::open(directory.path()).unwrap();
        let entries = ledger.entries().unwrap();
        let [other, same] = &entries[..] else { panic!("{entries:?}") };
        let (other, same) = (other.record.as_ref().unwrap(), same.record.as_ref().unwrap());
        assert_eq!((other.phase, &other.termination), (Phase::Starting, &None));
        assert_eq!((same.phase, &same.termination), (Phase::Ended, &Some(termination)));
        assert!(ledger.is_reserve_used(&same.id) && !ledger.is_reserve_used(&other.id));
        ledger.write(same).unwrap();
        assert!(!ledger.is_reserve_used(&same.id));
        assert!(ledger.reserve.ends().is_empty());
    }

    #[test]
    fn any_record_is_read_or_refused() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        let (web, ended) = (record("web"), record("web"));
        let termination = Some(Termination { status: Some(1), ..Termination::default() });
        let samples = [web, Record { termination, phase: Phase::Ended, ..ended }];
        let id = samples[0].id.clone();
        ledger.write(&samples[0]).unwrap();
        let path = ledger.directory(&id).join("record");
        let check = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            let entries = ledger.entries().unwrap();
            let [entry] = &entries[..] else { panic!("{entries:?}") };
            assert_eq!(entry.id, id);
            if let Ok(record) = &entry.record {
                assert_eq!(record.id, id, "the record of another container");
            }
        };
        let files: Vec<_> = samples.iter().map(|record| record::encode(record).unwrap()).collect();
        cofferdam_fuzz::fuzz_bytes(&files, &["cofferdam-record 2 ", "\n", "ffffffff"], check);
        let values = samples.map(|record| serde_json::to_value(record).unwrap());
        cofferdam_fuzz::fuzz_json(&values, |body| check(&record::with_head(body.to_string().as_bytes())));
    }

    #[test]
    fn what_is_no_record_is_named_and_the_rest_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        ledger.write(&record("web")).unwrap();
        let containers = directory.path().join(CONTAINERS);
        fs::create_dir(containers.join("lost+found")).unwrap();
        fs::write(containers.join("file"), "").unwrap();
        std::os::unix::fs::symlink("web", containers.join("link")).unwrap();
        fs::create_dir(containers.join("no id")).unwrap();
        for name in ["pipe", "directory", "linked", "nested"] {
            fs::create_dir(containers.join(name)).unwrap();
        }
        let pipe = containers.join("pipe/record");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(containers.join("directory/record")).unwrap();
        std::os::unix::fs::symlink("../web/record", containers.join("linked/record")).unwrap();
        fs::write(containers.join("nested").join(CONTAINERS), "").unwrap();
        let entries = ledger.entries().unwrap();
        let found: Vec<_> = entries.iter().map(|entry| (entry.id.as_str(), &entry.record)).collect();
        assert!(
            matches!(
                found[..],
                [
                    ("directory", Err(RecordError::NotARecord { .. })),
                    ("linked", Err(RecordError::NotARecord { .. })),
                    ("nested", Err(RecordError::Read { .. })),
                    ("pipe", Err(RecordError::NotARecord { .. })),
                    ("web", Ok(_)),
                ]
            ),
            "{found:?}"
        );
    }

    #[test]
    fn a_second_agent_cannot_open_the_ledger() {
        let directory = tempfile::tempdir().unwrap();
        let first = Ledger::open(directory.path()).unwrap();
        assert!(matches!(Ledger::open(directory.path()), Err(LedgerError::InUse { .. })));
        drop(first);
        Ledger::open(directory.path()).unwrap();
    }

    #[test]
    fn a_second_agent_cannot_use_the_work_directory_until_the_ledger_is_closed() {
        let [one, other, work_dir] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let open = |runtime_dir: &Path| Ledger::open(runtime_dir).unwrap().lock_work_dir(work_dir.path());
        let first = open(one.path()).unwrap();
        let Err(LedgerError::InUse { path }) = open(other.path()) else { panic!("it is in use") };
        assert_eq!(path, work_dir.path());
        drop(first);
        open(other.path()).unwrap();
        let same = Ledger::open(one.path()).unwrap();
        let runtime_dir = same.runtime_dir().to_owned();
        same.lock_work_dir(&runtime_dir).unwrap();
    }
}
