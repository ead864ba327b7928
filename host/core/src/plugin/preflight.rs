//! Checks of a plugin file before any of its code runs.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{Read, Seek};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cofferdam_plugin_abi as abi;
use cofferdam_plugin_model::{FEATURES, Kind, Manifest};
use data_encoding::HEXLOWER;
use object::read::{ReadCache, ReadCacheOps, ReadRef};
use semver::Version;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::elf::{self, ElfError};
use super::load;
use crate::parallel;

/// Largest accepted file, in bytes: a bound for what is read into memory.
const LARGEST: u64 = 512 << 20;

/// The symbol through which abi_stable finds a library's root module.
const ROOT_SYMBOL: &[u8] = abi_stable::library::ROOT_MODULE_LOADER_NAME.as_bytes();

/// An open plugin file, which only the agent's user and root can modify.
#[derive(Debug)]
pub(super) struct PluginFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
}

/// Properties of a plugin file that depend on its content only, not on this agent or host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// The text of its manifest note, if it has one. The index keeps it apart.
    #[serde(skip)]
    pub(super) manifest: Option<String>,
    glibc_minor: u32,
    static_tls: bool,
    names_symbol: bool,
}

/// The plugin files of a directory, each with its manifest or the reason why it cannot be used.
pub(super) type Found = Vec<(PathBuf, Result<Manifest, PreflightError>)>;

/// Why a file cannot be a plugin of this agent.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// It cannot be read.
    #[error("cannot read plugin file `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a regular file, but a directory, pipe or device, for example.
    #[error("plugin `{path}` is not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// It is too large to be a plugin.
    #[error("plugin file `{path}` has {size} bytes; more than {LARGEST} is not loaded")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// Users other than root and the agent's user can modify it, and so could run code with the agent's privileges.
    #[error(
        "plugin file `{path}` can be changed by others: `{culprit}` {how}; a plugin runs with the agent's \
         rights, so the file and its directories must belong to root or the agent's user and be writable by \
         nobody else (try `chmod go-w {culprit}`)",
        path = .path.display(), culprit = .culprit.display()
    )]
    Writable {
        /// The file.
        path: PathBuf,
        /// The file or directory that others can change.
        culprit: PathBuf,
        /// Why they can: its owner or mode.
        how: String,
    },
    /// It is not a shared library for this machine.
    #[error("plugin file `{path}` cannot be loaded: {source}")]
    Elf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ElfError,
    },
    /// It is a shared library without a manifest.
    #[error(
        "`{path}` is a shared library but not a Cofferdam plugin: it has no manifest note; export it with \
         `#[cofferdam_plugin_api::isolator]`, `#[cofferdam_plugin_api::logger]` or `#[cofferdam_plugin_api::hook]`"
    )]
    NotAPlugin {
        /// The file.
        path: PathBuf,
    },
    /// Its manifest is broken.
    #[error("the manifest of plugin file `{path}` cannot be read")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// It is not compatible with this agent or host.
    #[error("{kind} `{name}` {version} (`{path}`) cannot be used: {reason}")]
    Unfit {
        /// Kind of the plugin.
        kind: Kind,
        /// Name of the plugin.
        name: String,
        /// Version of the plugin.
        version: Version,
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
}

/// Reads a plugin's manifest and hash without running any of its code.
///
/// # Errors
/// [`PreflightError`].
pub fn inspect_file(path: &Path) -> Result<(Manifest, String), PreflightError> {
    let file = PluginFile::open(path)?;
    let bytes = file.read()?;
    let manifest = Facts::of(&file.path, &*bytes)?.usable_manifest(&file.path)?;
    Ok((manifest, HEXLOWER.encode(&Sha256::digest(&bytes))))
}

/// Reads a plugin's manifest without running any of its code, and little else of its file.
///
/// # Errors
/// [`PreflightError`].
pub fn read_manifest(path: &Path) -> Result<Manifest, PreflightError> {
    let file = PluginFile::open(path)?;
    file.facts()?.usable_manifest(&file.path)
}

/// The plugin files of a directory, by name.
///
/// Libraries without a manifest are omitted.
///
/// # Errors
/// If the directory cannot be read.
pub fn find(directory: &Path) -> std::io::Result<Found> {
    find_by(directory, read_manifest)
}

/// As [`find`], with another way to get the manifest of a file.
pub(super) fn find_by(
    directory: &Path,
    inspect: impl Fn(&Path) -> Result<Manifest, PreflightError> + Sync,
) -> std::io::Result<Found> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "so"));
    paths.sort();
    let found = parallel::map(&paths, |path| inspect(path));
    Ok(paths
        .into_iter()
        .zip(found)
        .filter(|(_, found)| !matches!(found, Err(PreflightError::NotAPlugin { .. })))
        .collect())
}

impl PluginFile {
    /// Opens a file, and checks its type, size, owners and modes.
    pub(super) fn open(path: &Path) -> Result<Self, PreflightError> {
        let read_error = |source| PreflightError::Read { path: path.to_owned(), source };
        let path = path.canonicalize().map_err(read_error)?;
        // Without O_NONBLOCK, opening a pipe would block until it has a writer.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&path)
            .map_err(read_error)?;
        let metadata = file.metadata().map_err(read_error)?;
        if !metadata.is_file() {
            return Err(PreflightError::NotAFile { path });
        }
        if metadata.len() > LARGEST {
            return Err(PreflightError::TooLarge { path, size: metadata.len() });
        }
        match changeable_by_others(&path).map_err(read_error)? {
            Some((culprit, how)) => Err(PreflightError::Writable { path, culprit, how }),
            None => Ok(Self { path, file, metadata }),
        }
    }

    /// The file, with symbolic links resolved.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Metadata of the file at the time it was opened.
    pub(super) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Reads the whole content.
    pub(super) fn read(&self) -> Result<Vec<u8>, PreflightError> {
        let read_error = |source| PreflightError::Read { path: self.path.clone(), source };
        let mut file = &self.file;
        file.rewind().map_err(read_error)?;
        let mut bytes = Vec::with_capacity(usize::try_from(self.metadata.len()).unwrap_or(0) + 1);
        file.take(LARGEST).read_to_end(&mut bytes).map_err(read_error)?;
        Ok(bytes)
    }

    /// Reads what [`Facts`] depend on, a few kilobytes. In total it is not more than the file has, even if its tables
    /// overlap.
    fn facts(&self) -> Result<Facts, PreflightError> {
        let bounded = Bounded { file: &self.file, position: 0, left: self.metadata.len() };
        Facts::of(&self.path, &ReadCache::new(bounded))
    }
}

/// A file of which a limited number of bytes can be read.
struct Bounded<'f> {
    file: &'f File,
    position: u64,
    left: u64,
}

impl ReadCacheOps for Bounded<'_> {
    fn len(&mut self) -> Result<u64, ()> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(drop)
    }

    fn seek(&mut self, position: u64) -> Result<u64, ()> {
        self.position = position;
        Ok(position)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ()> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..most], self.position).map_err(drop)?;
        self.position += count as u64;
        self.left -= count as u64;
        Ok(count)
    }

    fn read_exact(&mut self, mut buffer: &mut [u8]) -> Result<(), ()> {
        while !buffer.is_empty() {
            match self.read(buffer)? {
                0 => return Err(()),
                count => buffer = &mut buffer[count..],
            }
        }
        Ok(())
    }
}

impl Facts {
    /// Parses the content of a file.
    pub(super) fn of<'data>(path: &Path, content: impl ReadRef<'data>) -> Result<Self, PreflightError> {
        let facts = elf::read(content, (abi::NOTE_OWNER, abi::NOTE_TYPE), ROOT_SYMBOL)
            .map_err(|source| PreflightError::Elf { path: path.to_owned(), source })?;
        Ok(Self {
            // If the manifest is not UTF-8, parsing it as JSON reports the error.
            manifest: facts.note.map(|note| String::from_utf8_lossy(note).into_owned()),
            glibc_minor: facts.glibc_minor,
            static_tls: facts.static_tls,
            names_symbol: facts.names_symbol,
        })
    }

    /// The manifest, if the plugin is compatible with this agent and host.
    pub(super) fn usable_manifest(&self, path: &Path) -> Result<Manifest, PreflightError> {
        let note =
            self.manifest.as_ref().ok_or_else(|| PreflightError::NotAPlugin { path: path.to_owned() })?;
        let manifest: Manifest = serde_json::from_str(note)
            .map_err(|source| PreflightError::Manifest { path: path.to_owned(), source })?;
        match unfit(&manifest, self) {
            None => Ok(manifest),
            Some(reason) => {
                let Manifest { kind, name, version, .. } = manifest;
                Err(PreflightError::Unfit { kind, name, version, path: path.to_owned(), reason })
            }
        }
    }
}

/// Why a plugin is not compatible with this agent or host; `None` if it is.
fn unfit(manifest: &Manifest, facts: &Facts) -> Option<String> {
    let ours = Version::parse(abi::API_VERSION).ok()?;
    let api = &manifest.api;
    if api.major != ours.major {
        let advice = if api.major > ours.major { "upgrade the agent" } else { "rebuild it" };
        return Some(format!(
            "it was built for plugin API {api}, this agent supports {}.0 to {ours}; {advice}",
            ours.major
        ));
    }
    if manifest.kind == Kind::Unknown {
        return Some(format!("it is of a kind that plugin API {ours} does not know; upgrade the agent"));
    }
    let unknown = manifest.features.iter().find(|feature| !FEATURES.contains(&feature.as_str()));
    if let Some(feature) = unknown {
        return Some(format!(
            "it needs the feature `{feature}`, which this agent does not support; upgrade the agent"
        ));
    }
    if manifest.abi != abi::ABI_NAME || manifest.encoding != abi::ENCODING {
        return Some(format!(
            "it uses the ABI `{}` with `{}` payloads, this agent uses `{}` with `{}`; rebuild it",
            manifest.abi,
            manifest.encoding,
            abi::ABI_NAME,
            abi::ENCODING
        ));
    }
    if manifest.panic != "unwind" {
        return Some(
            "it was built with `panic = \"abort\"`, so its first panic would end the agent; build it with \
             `panic = \"unwind\"`"
                .into(),
        );
    }
    if !facts.names_symbol {
        return Some("it has a manifest but exports no plugin; build it as a `cdylib`".into());
    }
    if facts.static_tls {
        return Some(
            "it requires static thread-local storage, which may not be available to a library that is loaded \
             at run time; build it without an allocator of its own"
                .into(),
        );
    }
    let host = load::glibc_minor();
    if facts.glibc_minor > host {
        return Some(format!(
            "it needs glibc 2.{}, this host has 2.{host}; build it on an older system",
            facts.glibc_minor
        ));
    }
    None
}

/// The component of a path that users other than root and the user of this process can modify, and why. In a directory
/// with the sticky bit, such as `/tmp`, users can replace only their own files.
pub(super) fn changeable_by_others(path: &Path) -> std::io::Result<Option<(PathBuf, String)>> {
    let us = nix::unistd::geteuid().as_raw();
    for part in path.ancestors() {
        let metadata = part.symlink_metadata()?;
        if metadata.uid() != 0 && metadata.uid() != us {
            return Ok(Some((part.to_owned(), format!("belongs to user {}", metadata.uid()))));
        }
        let sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
        if metadata.mode() & 0o022 != 0 && !sticky {
            return Ok(Some((part.to_owned(), format!("has mode {:o}", metadata.mode() & 0o7777))));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn tables_that_overlap_are_not_read_beyond_the_size_of_their_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plugin.so");
        fs::write(&path, [7; 100]).unwrap();
        let file = File::open(&path).unwrap();
        let content = ReadCache::new(Bounded { file: &file, position: 0, left: 100 });
        assert_eq!((&content).read_bytes_at(0, 60), Ok(&[7; 60][..]));
        assert_eq!((&content).read_bytes_at(0, 60), Ok(&[7; 60][..]), "it is kept");
        assert_eq!((&content).read_bytes_at(1, 60), Err(()));
    }
}
