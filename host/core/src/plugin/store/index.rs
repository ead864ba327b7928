//! The index of plugin files that were read before, on disk.
//!
//! ```text
//! cofferdam-plugin-index 2 5f0c9a3e                          format version, CRC-32 of the rest
//! {"boot_id": "…", "files": {"/usr/lib/cofferdam/libx.so": {"stamp": {…}, "sha256": "…", …}}, "manifests": [2048]}
//! {"kind": "isolator", …                                     their manifests, of these lengths in bytes
//! ```
//!
//! The manifests are JSON as well, so within the object above they would be escaped: reading that took longer than all else.
//!
//! The index is used only if it and its directory belong to the user of the agent and only that user can write to them.
//! It is valid until the next reboot, after which device numbers may refer to other devices. It contains only facts
//! about the content of files; compatibility is checked at every start, so other versions of the agent can use the
//! index. An invalid index is treated as empty. It is replaced atomically, by rename. If two agents write it at the
//! same time, entries of one are lost, and those files are read again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cofferdam_linux::boot::BootId;
use rustix::fs::{Mode, OFlags, openat};
use serde::{Deserialize, Serialize};

use super::stamp::{Stamp, Time};
use super::write::replace;
use crate::plugin::preflight::{self, Facts};

const NAME: &str = "index";
const MAGIC: &str = "cofferdam-plugin-index";
const VERSION: u32 = 2;

/// A larger index is not read or written.
const MAX_BYTES: u64 = 4 << 20;

/// Maximum number of entries. The files that were read least recently are dropped.
const MAX_FILES: usize = 512;

/// The entry of one file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Known {
    /// Stamp of the file when it was read.
    pub stamp: Stamp,
    /// When it was read.
    pub read_at: Time,
    pub sha256: String,
    pub facts: Facts,
    /// Stamp of the private copy when it was last verified; `None` if that was not reliable.
    pub copy: Option<Stamp>,
    /// The program that has compared the layout of the file's ABI with its own and found it compatible.
    #[serde(default)]
    pub compatible_with: Option<Stamp>,
}

/// The index of one store.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// By path. A path that is not UTF-8 is not indexed.
    known: BTreeMap<String, Known>,
    /// Entries that are not yet on disk.
    learned: BTreeMap<String, Known>,
}

#[derive(Serialize, Deserialize)]
struct Content {
    boot_id: String,
    files: BTreeMap<String, Known>,
    /// Lengths of their manifests, in this order.
    manifests: Vec<Option<usize>>,
}

impl Index {
    /// Reads the index of a store. It is empty if there is none or it is invalid.
    pub(super) fn read(directory: &Path) -> Self {
        let known = open_private(directory).and_then(|directory| read(&directory));
        let known = known.unwrap_or_else(|reason| {
            tracing::debug!(directory = %directory.display(), "plugin index not used: {reason}");
            BTreeMap::new()
        });
        Self { known, learned: BTreeMap::new() }
    }

    /// The entry of a file, if the file has not changed since it was read.
    pub(super) fn get(&self, path: &Path, stamp: &Stamp, now: Time) -> Option<&Known> {
        let path = path.to_str()?;
        let known = self.learned.get(path).or_else(|| self.known.get(path))?;
        // After the clock was set back, a changed file may have an earlier change time again.
        (known.stamp == *stamp && known.read_at <= now).then_some(known)
    }

    pub(super) fn learn(&mut self, path: &Path, known: Known) {
        if let Some(path) = path.to_str() {
            self.learned.insert(path.to_owned(), known);
        }
    }

    /// Adds to what is known of a file, if it has not changed since.
    pub(super) fn update(&mut self, path: &Path, stamp: &Stamp, change: impl FnOnce(&mut Known)) {
        if let Some(known) = self.get(path, stamp, Time::now()) {
            let mut known = known.clone();
            change(&mut known);
            self.learn(path, known);
        }
    }

    /// Writes the new entries, together with those that other agents have written in the meantime. Drops entries of
    /// files that have changed or no longer exist.
    pub(super) fn save(&mut self, directory: &Path) -> io::Result<()> {
        if self.learned.is_empty() {
            return Ok(());
        }
        let open = open_private(directory)?;
        let mut files = read(&open).unwrap_or_default();
        files.append(&mut self.learned);
        files.retain(|path, known| {
            fs::metadata(path).is_ok_and(|metadata| Stamp::of(&metadata) == known.stamp)
        });
        while files.len() > MAX_FILES {
            let oldest = files.iter().min_by_key(|(_, known)| known.read_at).map(|(path, _)| path.clone());
            oldest.map(|path| files.remove(&path));
        }
        let manifests = files.values().map(|known| known.facts.manifest.as_ref().map(String::len)).collect();
        let content = Content { boot_id: BootId::current()?.as_str().to_owned(), files, manifests };
        let bytes = encode(&content)?;
        self.known = content.files;
        drop(open);
        replace(directory, NAME, &bytes, 0o600)
    }
}

fn encode(content: &Content) -> io::Result<Vec<u8>> {
    let mut body = serde_json::to_vec(content)?;
    body.push(b'\n');
    let manifests = content.files.values().filter_map(|known| known.facts.manifest.as_ref());
    manifests.for_each(|manifest| body.extend(manifest.as_bytes()));
    if body.len() as u64 >= MAX_BYTES - 64 {
        return Err(io::Error::other("the index would be too large"));
    }
    let mut bytes = format!("{MAGIC} {VERSION} {:08x}\n", crc32fast::hash(&body)).into_bytes();
    bytes.extend(body);
    Ok(bytes)
}

/// Opens the directory of a store, if only the user of this process can modify it.
fn open_private(directory: &Path) -> io::Result<File> {
    let others = |what: &Path, how: &str| io::Error::other(format!("`{}` {how}", what.display()));
    if let Some((culprit, how)) = preflight::changeable_by_others(&directory.canonicalize()?)? {
        return Err(others(&culprit, &how));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = File::from(rustix::fs::open(directory, flags, Mode::empty())?);
    match is_private(&opened.metadata()?) {
        true => Ok(opened),
        false => Err(others(directory, "belongs to another user or can be changed by others")),
    }
}

fn is_private(metadata: &fs::Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0
}

fn read(directory: &File) -> io::Result<BTreeMap<String, Known>> {
    let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(directory, NAME, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() || !is_private(&metadata) || metadata.len() > MAX_BYTES {
        return Err(invalid("it is not a regular file, is too large, or can be changed by others"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;

    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(|| invalid("it is truncated"))?;
    let (head, body) = (&bytes[..end], &bytes[end + 1..]);
    if *head != *format!("{MAGIC} {VERSION} {:08x}", crc32fast::hash(body)).as_bytes() {
        return Err(invalid("its version or checksum is wrong"));
    }
    let end = body.iter().position(|&byte| byte == b'\n').ok_or_else(|| invalid("it is truncated"))?;
    let (content, mut manifests) = (&body[..end], &body[end + 1..]);
    let Content { boot_id, mut files, manifests: lengths } = serde_json::from_slice(content)?;
    if boot_id != BootId::current()?.as_str() {
        return Err(invalid("it was written before a reboot"));
    }
    // Without its manifest, a file would be taken for no plugin.
    if lengths.len() != files.len() {
        return Err(invalid("it has not one manifest for each file"));
    }
    for (known, length) in files.values_mut().zip(lengths) {
        let Some(length) = length else { continue };
        let (manifest, rest) =
            manifests.split_at_checked(length).ok_or_else(|| invalid("it is truncated"))?;
        let manifest = str::from_utf8(manifest).map_err(|_| invalid("a manifest is not UTF-8"))?;
        known.facts.manifest = Some(manifest.to_owned());
        manifests = rest;
    }
    Ok(files)
}
