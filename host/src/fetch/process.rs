//! The process that fetches: drops privileges and works through its job.

use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use cofferdam_linux::foreign::{self, OpenError};
use data_encoding::HEXLOWER;
use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};

use super::copy::{Copier, CopyError};
use super::download::{Client, DownloadError};
use super::identity;
use super::item::{Compression, Item, Source, Treatment};
use super::sandbox::{Sandbox, SandboxError};
use super::sandbox_path::SandboxPath;
use super::unpack::{self, UnpackError, Unpacked};
use crate::agent_watch::exit_when_closed;
use crate::http::redact;
use cofferdam_core::config::FetchLimits;
use cofferdam_core::fetcher::{FetchFailure, FetchJob, Reason, escape_control};

/// Permissions of files whose source has none.
const DEFAULT_MODE: u32 = 0o644;
const EXECUTABLE_MODE: u32 = 0o755;

/// Runs `cofferdam fetch`: [`run`] with standard input; a failure is written to standard output.
pub(crate) fn main() -> ExitCode {
    let Err(failure) = run(io::stdin()) else { return ExitCode::SUCCESS };
    // An error means that the agent does not read any more, so there is no recipient for it.
    drop(failure.write(io::stdout().lock()));
    ExitCode::FAILURE
}

/// Carries out the job that is read from `stdin`, after irrevocably changing to the user of the job.
///
/// Exits when `stdin` is closed before the job is done, as it is when the agent dies. Changes user, umask and limits of
/// the process, which must therefore do nothing else.
///
/// # Errors
/// The first file that could not be fetched, or why none was attempted.
pub(super) fn run(stdin: impl Read + Send + 'static) -> Result<(), FetchFailure> {
    let mut stdin = BufReader::new(stdin);
    let job = FetchJob::read(&mut stdin).map_err(|error| start_failure(&error))?;
    identity::assume(job.uid, job.gid).map_err(|error| start_failure(&error))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    exit_when_closed(stdin).map_err(|error| start_failure(&error))?;

    let mut items = Vec::with_capacity(job.uris.len());
    for uri in &job.uris {
        let name = redact(&uri.value);
        let item = Item::parse(uri)
            .map_err(|error| FetchFailure::Invalid { uri: name.clone(), reason: Reason::of(&error) })?;
        items.push((name, item));
    }
    let sandbox = Sandbox::open(&job.sandbox, job.reserved, job.limits.files);
    let sandbox = sandbox.map_err(|error| start_failure(&error))?;
    let copier = Copier::new(job.limits.bytes);
    let mut fetch = Fetch { sandbox, copier, limits: job.limits, client: None };
    for (name, item) in &items {
        let summary = fetch.fetch(item).map_err(|error| file_failure(name, &error))?;
        // The log is optional.
        drop(writeln!(io::stderr(), "{}", escape_control(&format!("fetched `{name}`: {summary}"))));
    }
    Ok(())
}

fn start_failure(error: &dyn std::error::Error) -> FetchFailure {
    FetchFailure::Start { reason: Reason::of(error) }
}

fn file_failure(uri: &str, error: &dyn std::error::Error) -> FetchFailure {
    FetchFailure::File { uri: uri.to_owned(), reason: Reason::of(error) }
}

/// Why a file could not be fetched.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("cannot open it")]
    Open { source: io::Error },
    #[error("it is not a regular file")]
    NotRegular,
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("cannot read the fetched archive")]
    Rewind { source: io::Error },
    #[error("its SHA-256 is `{}`, expected `{}`", HEXLOWER.encode(actual), HEXLOWER.encode(expected))]
    Mismatch { expected: [u8; 32], actual: [u8; 32] },
    #[error("cannot decompress it")]
    Decompress { source: CopyError },
    #[error("cannot unpack it")]
    Unpack { source: UnpackError },
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// State shared by all files of a job.
struct Fetch {
    sandbox: Sandbox,
    copier: Copier,
    limits: FetchLimits,
    /// Created for the first download.
    client: Option<Client>,
}

impl Fetch {
    /// Fetches one file. Returns a summary for the log.
    fn fetch(&mut self, item: &Item) -> Result<String, FileError> {
        match &item.treatment {
            Treatment::Place => self.place(item, None),
            Treatment::PlaceExecutable => self.place(item, Some(EXECUTABLE_MODE)),
            Treatment::Untar(compression) => {
                let archive = self.receive_archive(item)?;
                let Self { sandbox, copier, limits, .. } = self;
                let unpacked = unpack::untar(&archive, *compression, sandbox, copier, limits);
                let Unpacked { members, bytes } = unpacked.map_err(|source| FileError::Unpack { source })?;
                Ok(format!("unpacked {members} members, {bytes} bytes"))
            }
            Treatment::Decompress(compression, name) => {
                self.sandbox.check(name)?;
                let compressed = self.receive_archive(item)?;
                self.decompress(*compression, &compressed, name)
            }
        }
    }

    fn place(&mut self, item: &Item, mode: Option<u32>) -> Result<String, FileError> {
        let mut draft = self.sandbox.draft(&item.name)?;
        let Received { bytes, permissions } = self.receive(item, &mut draft.file)?;
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
            .unpack(&mut contents, compression.decompress(compressed), &mut draft.file)
            .map_err(|source| FileError::Decompress { source })?;
        draft.place(DEFAULT_MODE, None)?;
        Ok(format!("decompressed `{}`, {bytes} bytes", name.as_path().display()))
    }

    /// Receives an archive into a temporary file, so that it is complete and verified before it is parsed.
    fn receive_archive(&mut self, item: &Item) -> Result<File, FileError> {
        let mut file = self.sandbox.temporary_file(&item.name)?;
        self.receive(item, &mut file)?;
        file.rewind().map_err(|source| FileError::Rewind { source })?;
        Ok(file)
    }

    /// Receives a file and verifies its hash.
    fn receive(&mut self, item: &Item, into: &mut File) -> Result<Received, FileError> {
        let mut hash = item.sha256.map(|expected| (expected, Sha256::new()));
        let update_hash = |chunk: &[u8]| {
            if let Some((_, hash)) = &mut hash {
                hash.update(chunk);
            }
        };
        let received = match &item.source {
            Source::Local(path) => {
                let (source, metadata) = open_local(path)?;
                let bytes = self.copier.copy(source, into, update_hash)?;
                Received { bytes, permissions: metadata.mode() }
            }
            Source::Url(url) => {
                let client = self.client.get_or_insert_with(|| Client::new(&self.limits));
                let body = client.get(url)?;
                let bytes = self.copier.copy(body, into, update_hash).map_err(|error| match error {
                    CopyError::Read { source } => FileError::Download(client.body_error(source)),
                    error => FileError::Copy(error),
                })?;
                Received { bytes, permissions: DEFAULT_MODE }
            }
        };
        match hash.map(|(expected, hash)| (expected, hash.finalize().into())) {
            Some((expected, actual)) if expected != actual => Err(FileError::Mismatch { expected, actual }),
            _ => Ok(received),
        }
    }
}

struct Received {
    bytes: u64,
    permissions: u32,
}

/// Opens a file of this machine. A pipe or a device is not opened, which could block or have an effect.
fn open_local(path: &Path) -> Result<(File, Metadata), FileError> {
    let failed = |source| FileError::Open { source };
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let found = found.map_err(|errno| failed(errno.into()))?;
    let file = foreign::open_regular(&found).map_err(|error| match error {
        OpenError::System(source) => failed(source),
        _ => FileError::NotRegular,
    })?;
    let metadata = file.metadata().map_err(failed)?;
    Ok((file, metadata))
}
