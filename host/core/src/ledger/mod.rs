//! State that outlives the agent: one record per container, written before the effects that it describes.
//!
//! ```text
//! <runtime_dir>/agent.lock                         held by the agent that owns the directory
//! <runtime_dir>/containers/<id>/record             a header line, then JSON
//! <runtime_dir>/containers/<id>/containers/<id>/…  nested containers
//! <runtime_dir>/removed/<id>                       being deleted; not a container any more
//! <work_dir>/agent.lock                            as above
//! ```
//!
//! A record is written to a temporary file and renamed over the old one, so it is never incomplete. It is not synced
//! to disk: records protect against the end of the agent, and after a crash of the machine, which the boot id shows,
//! no container exists. A record that is damaged nevertheless, by a full disk or another program, is reported, and
//! its container is destroyed by its id.

mod lock;
mod record;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cofferdam_linux::tree;
use cofferdam_plugin_model::ContainerId;
use serde::Serialize;

use crate::model::Record;

pub use lock::Lock;
pub use record::RecordError;

/// Name of the directory for containers, in the runtime directory and in that of every container.
const CONTAINERS: &str = "containers";

/// Name of the directory for containers that are being deleted, in the runtime directory.
const REMOVED: &str = "removed";

/// The records of one agent.
#[derive(Debug)]
pub struct Ledger {
    runtime_dir: PathBuf,
    _lock: Lock,
}

/// A container in the ledger.
#[derive(Debug)]
pub struct Entry {
    /// Id of the container, from the name of its directory.
    pub id: ContainerId,
    /// Its record, or why it cannot be used.
    pub record: Result<Record, RecordError>,
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
        fs::DirBuilder::new().recursive(true).mode(0o711).create(runtime_dir).map_err(directory_error)?;
        let runtime_dir = runtime_dir.canonicalize().map_err(directory_error)?;
        let lock = Lock::take(&runtime_dir)?;
        // Left by an agent that ended during a removal.
        if let Err(error) = remove_tree(&runtime_dir.join(REMOVED)) {
            tracing::warn!("cannot remove `{}`: {error}", runtime_dir.join(REMOVED).display());
        }
        Ok(Self { runtime_dir, _lock: lock })
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

    /// Writes a record. Blocks.
    ///
    /// # Errors
    /// If it cannot be written; the previous record is kept then.
    pub fn write<P: Serialize>(&self, record: &Record<P>) -> Result<(), LedgerError> {
        let directory = self.directory(&record.id);
        let path = directory.join("record");
        self.write_to(&directory, &path, record).map_err(|source| LedgerError::Write {
            id: record.id.clone(),
            path,
            source,
        })
    }

    fn write_to<P: Serialize>(&self, directory: &Path, path: &Path, record: &Record<P>) -> io::Result<()> {
        let bytes = record::encode(record)?;
        let temporary = directory.join("record.new");
        let open =
            || fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary);
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
        self.remove_from(&path, id).map_err(|source| LedgerError::Remove { id: id.clone(), path, source })
    }

    fn remove_from(&self, path: &Path, id: &ContainerId) -> io::Result<()> {
        let removed = self.runtime_dir.join(REMOVED);
        let gone = removed.join(id.as_str());
        // Left by an earlier call.
        remove_tree(&gone)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&removed)?;
        match fs::rename(path, &gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => remove_tree(&gone),
        }
    }

    /// All containers in the ledger, parents before children.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>, LedgerError> {
        let mut entries = Vec::new();
        self.collect(&self.runtime_dir.join(CONTAINERS), None, &mut entries)
            .map_err(|source| LedgerError::Directory { path: self.runtime_dir.clone(), source })?;
        Ok(entries)
    }

    fn collect(
        &self,
        directory: &Path,
        parent: Option<&ContainerId>,
        entries: &mut Vec<Entry>,
    ) -> io::Result<()> {
        let listing = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let mut names = listing.map(|entry| entry.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            let id = name.to_str().and_then(|name| match parent {
                None => ContainerId::parse(name).ok().filter(|id| !id.is_nested()),
                Some(parent) => parent.child(name).ok(),
            });
            let Some(id) = id else {
                tracing::warn!(directory = %directory.join(&name).display(), "ignored: the name is not a container id");
                continue;
            };
            let record = record::read(&directory.join(&name).join("record"), &id);
            entries.push(Entry { id: id.clone(), record });
            self.collect(&directory.join(&name).join(CONTAINERS), Some(&id), entries)?;
        }
        Ok(())
    }
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
    use crate::model::{Phase, Request};
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
            assert_eq!(entry.record.unwrap(), written);
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
        assert!(!removed.exists());
    }

    #[test]
    fn a_second_agent_cannot_open_the_ledger() {
        let directory = tempfile::tempdir().unwrap();
        let first = Ledger::open(directory.path()).unwrap();
        assert!(matches!(Ledger::open(directory.path()), Err(LedgerError::InUse { .. })));
        drop(first);
        Ledger::open(directory.path()).unwrap();
    }
}
