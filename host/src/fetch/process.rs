//! The process that fetches: drops privileges and carries out its job.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::Mode;

use super::credentials::Credentials;
use super::failure::start_failure;
use super::identity;
use super::place::{CachedContent, check, place};
use super::report::Report;
use super::store::store;
use crate::agent_watch::exit_when_closed;
use cofferdam_core::fetcher::{CachedFile, FetchFailure, FetchJob, FetchMessage};

/// Runs `cofferdam fetch`: [`run`] with standard input and output.
pub(crate) fn main() -> ExitCode {
    let Err(failure) = run(io::stdin(), io::stdout()) else { return ExitCode::SUCCESS };
    // An error means that the agent does not read any more, so there is no recipient for it.
    drop(FetchMessage::Failed(failure).write(io::stdout()));
    ExitCode::FAILURE
}

/// Carries out the job that is read from `stdin`, after irrevocably changing to the user of the job. What happens is reported
/// to `output`, except for a failure.
///
/// Exits when `stdin` is closed before the job is done, as it is when the agent dies. Changes user, umask and limits of
/// the process, which must therefore do nothing else.
///
/// # Errors
/// The first file that could not be fetched, or why none was attempted.
pub(super) fn run(
    stdin: impl Read + Send + 'static,
    output: impl Write + 'static,
) -> Result<(), FetchFailure> {
    let mut stdin = BufReader::new(stdin);
    match FetchJob::read(&mut stdin).map_err(|error| start_failure(&error))? {
        FetchJob::Place(job) => {
            let mut cached = Vec::new();
            for (index, CachedFile { path, mode }) in &job.cached {
                let file = open_in_cache(path, File::options().read(true))?;
                cached.push((*index, CachedContent { file, mode: *mode }));
            }
            let credentials =
                read_credentials(job.credentials.as_deref(), job.uris.iter().map(|uri| &*uri.value))?;
            become_user(job.uid, job.gid, stdin)?;
            let report = Report::new(output, job.uris.len());
            place(job, cached.into_iter().collect(), credentials, report)
        }
        FetchJob::Check(job) => {
            become_user(job.uid, job.gid, stdin)?;
            check(&job).map(drop)
        }
        FetchJob::Store(job) => {
            let into = open_in_cache(&job.into, File::options().write(true))?;
            let credentials = read_credentials(job.credentials.as_deref(), [&*job.source].into_iter())?;
            become_user(job.uid, job.gid, stdin)?;
            store(&job, into, credentials, Report::new(output, 1))
        }
    }
}

/// Why a file of the cache cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot open `{}` of the cache", path.display())]
struct CacheFileError {
    path: PathBuf,
    source: io::Error,
}

/// Opens a file of the cache, whose directory nobody but the agent can change.
fn open_in_cache(path: &Path, options: &mut std::fs::OpenOptions) -> Result<File, FetchFailure> {
    let opened = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    opened.map_err(|source| start_failure(&CacheFileError { path: path.to_owned(), source }))
}

/// Reads the credentials for servers, if there may be one.
fn read_credentials<'a>(
    file: Option<&Path>,
    mut uris: impl Iterator<Item = &'a str>,
) -> Result<Credentials, FetchFailure> {
    let file = file.filter(|_| uris.any(|uri| !uri.starts_with('/')));
    Credentials::read(file).map_err(|error| start_failure(&error))
}

fn become_user(uid: u32, gid: u32, stdin: impl Read + Send + 'static) -> Result<(), FetchFailure> {
    identity::assume(uid, gid).map_err(|error| start_failure(&error))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    exit_when_closed(stdin).map_err(|error| start_failure(&error))
}
