//! Everything that can be found out about a plugin file before any of it runs.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cofferdam_plugin_abi as abi;
use cofferdam_plugin_model::{FEATURES, Kind, Manifest};
use data_encoding::HEXLOWER;
use semver::Version;
use sha2::{Digest, Sha256};

use super::elf::{self, ElfError};
use super::load;

/// Nobody ships a plugin of this size; a file that is larger is something else.
const LARGEST: u64 = 512 << 20;

/// The symbol through which abi_stable finds a library's root module.
const ROOT_SYMBOL: &[u8] = abi_stable::library::ROOT_MODULE_LOADER_NAME.as_bytes();

/// A file that may become a plugin: what it is, and its bytes as they were looked at.
#[derive(Debug)]
pub struct Candidate {
    /// Where it was found, with symbolic links resolved.
    pub path: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
    /// The SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// Its bytes: what is loaded later is a copy of these, whatever happens to the file.
    pub bytes: Vec<u8>,
}

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
    /// It is a directory, a pipe, a device.
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
    /// Somebody else could change it, and with it what the agent runs.
    #[error(
        "plugin file `{path}` can be changed by others: `{culprit}` {how}; a plugin runs with the agent's \
         rights, so the file and its directories must belong to root or the agent's user and be writable by \
         nobody else (try `chmod go-w {culprit}`)",
        path = .path.display(), culprit = .culprit.display()
    )]
    Writable {
        /// The file.
        path: PathBuf,
        /// The file or folder that others can change.
        culprit: PathBuf,
        /// In which way.
        how: String,
    },
    /// It is no shared library for this machine.
    #[error("plugin file `{path}` cannot be loaded: {source}")]
    Elf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ElfError,
    },
    /// It is a shared library, but not one of ours.
    #[error(
        "`{path}` is a shared library but not a Cofferdam plugin: it has no manifest note; export it with \
         `#[cofferdam_plugin_api::isolator]` or `#[cofferdam_plugin_api::logger]`"
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
    /// It would not work here.
    #[error("{kind} `{name}` {version} (`{path}`) cannot be used: {reason}")]
    Unfit {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// Its version.
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
/// [`PreflightError`] says what is wrong with the file.
pub fn inspect_file(path: &Path) -> Result<(Manifest, String), PreflightError> {
    examine(path).map(|candidate| (candidate.manifest, candidate.sha256))
}

/// Every shared library of a folder that is, or claims to be, a plugin, in the order of their names.
///
/// Libraries without a manifest are somebody else's and left out.
///
/// # Errors
/// When the folder cannot be read.
pub fn find(directory: &Path) -> std::io::Result<Vec<(PathBuf, Result<Manifest, PreflightError>)>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "so"));
    paths.sort();
    Ok(paths
        .into_iter()
        .map(|path| {
            let found = read_manifest(&path).map(|(_, manifest, _)| manifest);
            (path, found)
        })
        .filter(|(_, found)| !matches!(found, Err(PreflightError::NotAPlugin { .. })))
        .collect())
}

/// Looks at a plugin file, and takes its bytes.
///
/// # Errors
/// [`PreflightError`] says what is wrong with the file.
pub fn examine(path: &Path) -> Result<Candidate, PreflightError> {
    let (path, manifest, bytes) = read_manifest(path)?;
    let sha256 = HEXLOWER.encode(&Sha256::digest(&bytes));
    Ok(Candidate { path, manifest, sha256, bytes })
}

/// Looks at a plugin file; its hash, which takes longer than all the rest, is not needed to list it.
fn read_manifest(path: &Path) -> Result<(PathBuf, Manifest, Vec<u8>), PreflightError> {
    let read_error = |source| PreflightError::Read { path: path.to_owned(), source };
    let path = path.canonicalize().map_err(read_error)?;
    // A pipe would otherwise be waited for until somebody writes to it.
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
    check_owners(&path)?;
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).map_err(read_error)?;

    let facts = elf::read(&bytes, (abi::NOTE_OWNER, abi::NOTE_TYPE), ROOT_SYMBOL)
        .map_err(|source| PreflightError::Elf { path: path.clone(), source })?;
    let note = facts.note.ok_or_else(|| PreflightError::NotAPlugin { path: path.clone() })?;
    let manifest: Manifest = serde_json::from_slice(note)
        .map_err(|source| PreflightError::Manifest { path: path.clone(), source })?;
    if let Some(reason) = unfit(&manifest, &facts) {
        let Manifest { kind, name, version, .. } = manifest;
        return Err(PreflightError::Unfit { kind, name, version, path, reason });
    }
    Ok((path, manifest, bytes))
}

/// Why a plugin would not work in this agent, if it would not.
fn unfit(manifest: &Manifest, facts: &elf::Facts<'_>) -> Option<String> {
    let ours = Version::parse(abi::API_VERSION).ok()?;
    let api = &manifest.api;
    if api.major != ours.major {
        let advice = if api.major > ours.major { "upgrade the agent" } else { "rebuild it" };
        return Some(format!(
            "it was built for plugin API {api}, this agent speaks {}.0 to {ours}; {advice}",
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
            "it speaks `{}` with `{}` payloads, this agent `{}` with `{}`; rebuild it",
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
            "it needs static thread-local storage, which a library that is loaded late may not get; build \
             it without an allocator of its own"
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

/// Nobody but root and the agent's user may be able to change the file, or swap it for another.
fn check_owners(path: &Path) -> Result<(), PreflightError> {
    let us = nix::unistd::geteuid().as_raw();
    for part in path.ancestors() {
        let metadata = part
            .symlink_metadata()
            .map_err(|source| PreflightError::Read { path: path.to_owned(), source })?;
        let writable =
            |how: String| PreflightError::Writable { path: path.to_owned(), culprit: part.to_owned(), how };
        if metadata.uid() != 0 && metadata.uid() != us {
            return Err(writable(format!("belongs to user {}", metadata.uid())));
        }
        // In a folder with the sticky bit, such as /tmp, nobody can replace what is not theirs.
        let sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
        if metadata.mode() & 0o022 != 0 && !sticky {
            return Err(writable(format!("has mode {:o}", metadata.mode() & 0o7777)));
        }
    }
    Ok(())
}
