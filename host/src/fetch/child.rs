//! The process that fetches: a user among others, with a list to work through.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use data_encoding::HEXLOWER;
use flate2::read::MultiGzDecoder;
use rustix::fs::Mode;
use sha2::{Digest, Sha256};

use super::copy::{Copier, CopyError};
use super::identity;
use super::item::{Item, Source, Treatment, shown};
use super::name::Name;
use super::sandbox::{Sandbox, SandboxError};
use super::unpack::{self, UnpackError, Unpacked};
use super::web::{Web, WebError};
use cofferdam_core::fetcher::{FetchFailure, FetchJob, Limits, Reason, printable};

/// Permissions of what comes from where there are none.
const PLAIN: u32 = 0o644;
const EXECUTABLE: u32 = 0o755;

/// All that `cofferdam fetch` does: [`run`] on the standard input, the failure to the standard output.
pub(crate) fn main() -> ExitCode {
    let Err(failure) = run(io::stdin()) else { return ExitCode::SUCCESS };
    // Without an agent there is nobody to tell.
    drop(failure.tell(io::stdout().lock()));
    ExitCode::FAILURE
}

/// Does the job that `stdin` holds, for good with the rights of the user it names.
///
/// The input stays open while somebody waits for the outcome: this ends the process when it ends before the
/// job is done, as it does when the agent dies. It also changes user, umask and limits of the process, so it is
/// for a process that does nothing else.
///
/// # Errors
/// The first file that could not be brought in, or why none was tried.
pub(super) fn run(stdin: impl Read + Send + 'static) -> Result<(), FetchFailure> {
    let mut stdin = BufReader::new(stdin);
    let job = FetchJob::read(&mut stdin).map_err(|error| begin(&error))?;
    identity::assume(job.uid, job.gid).map_err(|error| begin(&error))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    end_with(stdin).map_err(|error| begin(&error))?;

    let mut items = Vec::with_capacity(job.uris.len());
    for uri in &job.uris {
        let uri_shown = shown(&uri.value);
        let item = Item::understand(uri).map_err(|error| file(&uri_shown, &error))?;
        items.push((uri_shown, item));
    }
    let sandbox = Sandbox::open(&job.sandbox).map_err(|error| begin(&error))?;
    let mut visit = Visit { sandbox, copier: Copier::new(job.limits.bytes), limits: job.limits, web: None };
    for (uri, item) in &items {
        let line = visit.bring_in(item).map_err(|error| file(uri, &error))?;
        // Whoever does not listen still wants the file.
        drop(writeln!(io::stderr(), "{}", printable(&format!("brought in `{uri}`: {line}"))));
    }
    Ok(())
}

fn begin(error: &dyn std::error::Error) -> FetchFailure {
    FetchFailure::Begin { reason: Reason::of(error) }
}

fn file(uri: &str, error: &dyn std::error::Error) -> FetchFailure {
    FetchFailure::File { uri: uri.to_owned(), reason: Reason::of(error) }
}

/// Ends the process when `input` ends.
fn end_with(mut input: impl Read + Send + 'static) -> io::Result<()> {
    let wait = move || {
        // Nothing more comes, so this returns at its end only.
        drop(io::copy(&mut input, &mut io::sink()));
        std::process::exit(1);
    };
    thread::Builder::new().name("agent".into()).spawn(wait).map(drop)
}

/// Why a file could not be brought in.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("cannot open it")]
    Open { source: io::Error },
    #[error("it is not a regular file")]
    NotRegular,
    #[error(transparent)]
    Web(#[from] WebError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("cannot read back what was fetched")]
    ReadBack { source: io::Error },
    #[error("its SHA-256 is `{}`, but `{}` is wanted", HEXLOWER.encode(found), HEXLOWER.encode(wanted))]
    Mismatch { wanted: [u8; 32], found: [u8; 32] },
    #[error("cannot decompress it")]
    Decompress { source: CopyError },
    #[error("cannot unpack it")]
    Unpack { source: UnpackError },
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// What is needed while the list is worked through.
struct Visit {
    sandbox: Sandbox,
    copier: Copier,
    limits: Limits,
    web: Option<Web>,
}

impl Visit {
    /// Brings in one file; returns what became of it.
    fn bring_in(&mut self, item: &Item) -> Result<String, FileError> {
        match &item.treatment {
            Treatment::Place => self.place(item, None),
            Treatment::PlaceExecutable => self.place(item, Some(EXECUTABLE)),
            Treatment::Untar(gzip) => {
                let archive = self.receive_archive(item)?;
                let Self { sandbox, copier, limits, .. } = self;
                let unpacked = unpack::untar(&archive, *gzip, sandbox, copier, limits.members);
                let Unpacked { members, bytes } = unpacked.map_err(|source| FileError::Unpack { source })?;
                Ok(format!("unpacked {members} members of {bytes} bytes"))
            }
            Treatment::Gunzip(name) => {
                let compressed = self.receive_archive(item)?;
                self.gunzip(&compressed, name)
            }
        }
    }

    fn place(&mut self, item: &Item, mode: Option<u32>) -> Result<String, FileError> {
        let mut draft = self.sandbox.draft(&item.name)?;
        let Received { bytes, permissions } = self.receive(item, &mut draft.file)?;
        draft.place(mode.unwrap_or(permissions), None)?;
        Ok(format!("`{}` of {bytes} bytes", item.name.path().display()))
    }

    fn gunzip(&mut self, compressed: &File, name: &Name) -> Result<String, FileError> {
        let mut draft = self.sandbox.draft(name)?;
        let bytes = self
            .copier
            .copy(MultiGzDecoder::new(compressed), &mut draft.file, |_| {})
            .map_err(|source| FileError::Decompress { source })?;
        draft.place(PLAIN, None)?;
        Ok(format!("decompressed `{}` of {bytes} bytes", name.path().display()))
    }

    /// Receives a file that will not stay. It is complete and checked before anything of it is looked at.
    fn receive_archive(&mut self, item: &Item) -> Result<File, FileError> {
        let mut scratch = self.sandbox.scratch(&item.name)?;
        self.receive(item, &mut scratch)?;
        scratch.rewind().map_err(|source| FileError::ReadBack { source })?;
        Ok(scratch)
    }

    /// Receives a file and checks it.
    fn receive(&mut self, item: &Item, into: &mut File) -> Result<Received, FileError> {
        let mut hash = item.sha256.map(|wanted| (wanted, Sha256::new()));
        let see = |piece: &[u8]| {
            if let Some((_, hash)) = &mut hash {
                hash.update(piece);
            }
        };
        let received = match &item.source {
            Source::Local(path) => {
                let (source, metadata) = open_local(path)?;
                let bytes = self.copier.copy(source, into, see)?;
                Received { bytes, permissions: metadata.mode() }
            }
            Source::Web(url) => {
                let web = self.web.get_or_insert_with(|| Web::new(self.limits.stall));
                let bytes = self.copier.copy(web.get(url)?, into, see).map_err(|error| match error {
                    CopyError::Read { source } => FileError::Web(web.broke_off(source)),
                    error => FileError::Copy(error),
                })?;
                Received { bytes, permissions: PLAIN }
            }
        };
        match hash.map(|(wanted, hash)| (wanted, hash.finalize().into())) {
            Some((wanted, found)) if wanted != found => Err(FileError::Mismatch { wanted, found }),
            _ => Ok(received),
        }
    }
}

/// What is known of a file that was received.
struct Received {
    bytes: u64,
    permissions: u32,
}

/// Opens a file of this machine, without waiting for somebody at the other end of what is none.
fn open_local(path: &Path) -> Result<(File, Metadata), FileError> {
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = open.map_err(|source| FileError::Open { source })?;
    let metadata = file.metadata().map_err(|source| FileError::Open { source })?;
    if !metadata.is_file() {
        return Err(FileError::NotRegular);
    }
    Ok((file, metadata))
}
