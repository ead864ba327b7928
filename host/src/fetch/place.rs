//! Places the files of a container in its sandbox.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Seek, Write};
use std::os::unix::fs::MetadataExt;

use rustix::fs::ioctl_ficlone;

use super::copy::{Copier, CopyError};
use super::credentials::Credentials;
use super::download::{Client, DEFAULT_MODE, DownloadError};
use super::failure::{file_failure, invalid, start_failure};
use super::item::{Compression, Item, Source, Treatment};
use super::local::{self, LocalError};
use super::report::Report;
use super::sandbox::{Sandbox, SandboxError};
use super::sandbox_path::SandboxPath;
use super::target::{Mismatch, Target, Verifier};
use super::unpack::{self, UnpackError, Unpacked};
use super::unzip::{UnzipError, unzip};
use crate::http::redact;
use cofferdam_core::config::FetchLimits;
use cofferdam_core::fetcher::{FetchFailure, PlaceJob, escape_control};
use cofferdam_core::model::Uri;

const EXECUTABLE_MODE: u32 = 0o755;

/// Content that the cache has of a file.
pub(super) struct CachedContent {
    pub(super) file: File,
    /// Permissions of the file that it is a copy of.
    pub(super) mode: u32,
}

/// Checks what can be checked of all files before one is fetched. Returns them with the names of their URIs.
pub(super) fn check(job: &PlaceJob) -> Result<Vec<(String, Item)>, FetchFailure> {
    let parse = |uri: &Uri| {
        let name = redact(&uri.value);
        match Item::parse(uri) {
            Ok(item) => Ok((name, item)),
            Err(error) => Err(invalid(&name, &error)),
        }
    };
    job.uris.iter().map(parse).collect()
}

/// Fetches all files, one after the other, but for the content of those that the cache has, by their position.
pub(super) fn place(
    job: PlaceJob,
    mut cached: BTreeMap<usize, CachedContent>,
    credentials: Credentials,
    report: Report,
) -> Result<(), FetchFailure> {
    let items = check(&job)?;
    let sandbox = Sandbox::open(&job.sandbox, job.reserved, job.limits.files);
    let sandbox = sandbox.map_err(|error| start_failure(&error))?;
    let copier = Copier::new(job.limits.bytes);
    let mut fetch = Fetch { sandbox, copier, limits: job.limits, credentials, client: None, report };
    for (index, (name, item)) in items.into_iter().enumerate() {
        let cached = cached.remove(&index);
        let how = if cached.is_some() { "fetched from the cache" } else { "fetched" };
        let summary =
            fetch.fetch(&item, cached).map_err(|error| file_failure(&name, &error, error.is_of_content()))?;
        // The log is optional.
        drop(writeln!(io::stderr(), "{}", escape_control(&format!("{how} `{name}`: {summary}"))));
        fetch.report.fetched();
    }
    Ok(())
}

/// Why a file could not be fetched.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("cannot read the fetched archive")]
    Rewind { source: io::Error },
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    #[error("cannot decompress it")]
    Decompress { source: CopyError },
    #[error("cannot unpack it")]
    Unpack { source: UnpackError },
    #[error("cannot unpack it")]
    Unzip { source: UnzipError },
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

impl FileError {
    /// Whether the content of the file is at fault, which may be damaged. What cannot be written, or exceeds a limit, is not.
    fn is_of_content(&self) -> bool {
        match self {
            Self::Mismatch(_) => true,
            Self::Decompress { source } => matches!(source, CopyError::Read { .. }),
            Self::Unpack { source } => source.is_of_content(),
            Self::Unzip { source } => source.is_of_content(),
            _ => false,
        }
    }
}

/// State shared by all files of a job.
struct Fetch {
    sandbox: Sandbox,
    copier: Copier,
    limits: FetchLimits,
    credentials: Credentials,
    /// Created for the first download.
    client: Option<Client>,
    report: Report,
}

impl Fetch {
    /// Fetches one file. Returns a summary for the log.
    fn fetch(&mut self, item: &Item, cached: Option<CachedContent>) -> Result<String, FileError> {
        match &item.treatment {
            Treatment::Place => self.place(item, cached, None),
            Treatment::PlaceExecutable => self.place(item, cached, Some(EXECUTABLE_MODE)),
            Treatment::Untar(compression) => {
                let archive = self.receive_archive(item, cached)?;
                let Self { sandbox, copier, limits, .. } = self;
                let unpacked = unpack::untar(&archive, *compression, sandbox, copier, limits);
                let Unpacked { members, bytes } = unpacked.map_err(|source| FileError::Unpack { source })?;
                Ok(format!("unpacked {members} members, {bytes} bytes"))
            }
            Treatment::Unzip => {
                let archive = self.receive_archive(item, cached)?;
                let Self { sandbox, copier, limits, .. } = self;
                let unpacked = unzip(&archive, sandbox, copier, limits);
                let Unpacked { members, bytes } = unpacked.map_err(|source| FileError::Unzip { source })?;
                Ok(format!("unpacked {members} members, {bytes} bytes"))
            }
            Treatment::Decompress(compression, name) => {
                self.sandbox.check(name)?;
                let compressed = self.receive_archive(item, cached)?;
                self.decompress(*compression, &compressed, name)
            }
        }
    }

    fn place(
        &mut self,
        item: &Item,
        cached: Option<CachedContent>,
        mode: Option<u32>,
    ) -> Result<String, FileError> {
        let mut draft = self.sandbox.draft(&item.name)?;
        let Received { bytes, permissions } = match cached {
            Some(cached) => self.copy_cached(item, cached, &mut draft.file)?,
            None => self.receive(item, &mut draft.file)?,
        };
        draft.place(mode.unwrap_or(permissions), None)?;
        Ok(format!("`{}`, {bytes} bytes", item.name.as_path().display()))
    }

    fn decompress(
        &mut self,
        compression: Compression,
        compressed: &File,
        name: &SandboxPath,
    ) -> Result<String, FileError> {
        let mut draft = self.sandbox.draft(name)?;
        let size = compressed.metadata().map_err(|source| FileError::Rewind { source })?.len();
        let mut contents = self.copier.contents(size, self.limits.ratio);
        let bytes = self
            .copier
            .unpack(&mut contents, compression.decompress(BufReader::new(compressed)), &mut draft.file)
            .map_err(|source| FileError::Decompress { source })?;
        draft.place(DEFAULT_MODE, None)?;
        Ok(format!("decompressed `{}`, {bytes} bytes", name.as_path().display()))
    }

    /// An archive that is complete and verified before it is parsed: in a temporary file, or in the cache.
    fn receive_archive(&mut self, item: &Item, cached: Option<CachedContent>) -> Result<File, FileError> {
        let mut file = match cached {
            Some(CachedContent { file, .. }) => {
                self.verify_cached(item, &file)?;
                file
            }
            None => {
                let mut file = self.sandbox.temporary_file(&item.name)?;
                self.receive(item, &mut file)?;
                file
            }
        };
        file.rewind().map_err(|source| FileError::Rewind { source })?;
        Ok(file)
    }

    /// Receives a file and verifies its hash.
    fn receive(&mut self, item: &Item, into: &mut File) -> Result<Received, FileError> {
        let mut target = Target::new(into, item.sha256, &mut self.report);
        let permissions = match &item.source {
            Source::Local(path) => {
                let (source, metadata) = local::open(path)?;
                target.begin(Some(metadata.len()));
                self.copier.copy(source, &mut target)?;
                metadata.mode()
            }
            Source::Url(url) => {
                let client =
                    self.client.get_or_insert_with(|| Client::new(&self.limits, self.credentials.clone()));
                client.download(url, None, &mut self.copier, &mut target)?;
                DEFAULT_MODE
            }
        };
        let bytes = target.received();
        target.verify()?;
        Ok(Received { bytes, permissions })
    }

    /// Copies content of the cache, and verifies its hash. The copy shares the blocks of the file system if that is possible.
    fn copy_cached(
        &mut self,
        item: &Item,
        cached: CachedContent,
        into: &mut File,
    ) -> Result<Received, FileError> {
        let CachedContent { file, mode } = cached;
        if ioctl_ficlone(&*into, &file).is_ok() {
            let bytes = self.verify_cached(item, &file)?;
            return Ok(Received { bytes, permissions: mode });
        }
        let size = file.metadata().map_err(|source| FileError::Rewind { source })?.len();
        let mut target = Target::new(into, item.sha256, &mut self.report);
        target.begin(Some(size));
        let bytes = self.copier.copy(&file, &mut target)?;
        target.verify()?;
        Ok(Received { bytes, permissions: mode })
    }

    /// Counts content of the cache that is not copied, and verifies its hash. Returns its size.
    fn verify_cached(&mut self, item: &Item, file: &File) -> Result<u64, FileError> {
        let size = file.metadata().map_err(|source| FileError::Rewind { source })?.len();
        if item.sha256.is_none() {
            self.copier.claim(size).map_err(CopyError::from)?;
            return Ok(size);
        }
        let mut verifier = Verifier::new(item.sha256);
        let bytes = self.copier.copy(file, &mut verifier)?;
        verifier.verify()?;
        Ok(bytes)
    }
}

struct Received {
    bytes: u64,
    permissions: u32,
}
