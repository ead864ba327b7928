//! What container loggers with a [companion](mod@crate::companion) per container have in common: the pipes of a container, the
//! process that reads them, and what happens when it is killed.
//!
//! ```text
//! plugin ── prepare, recover, cleanup ──▶ LogCompanions ── starts, watches, starts again
//!                                                              │
//! container ══ pipes ══════════════════════════════▶ LogCompanion::enter ──▶ a log
//! ```
//!
//! - The plugin calls [`LogCompanions::start`] in `prepare`, [`LogCompanions::recover`] in `recover` and
//!   [`LogCompanions::clean_up`] in `cleanup`. What a companion is to do is a [`Job`], which is also the plugin's state.
//! - The function of the plugin's [`companion!`](crate::companion!) begins with [`LogCompanion::enter`]. It reads the pipes
//!   until they end, counts in the [`Status`] what it loses, and calls [`Status::finish`].
//!
//! Nothing in a pipe is lost when a companion is killed: the container's end of it is open for reading as well, the plugin
//! keeps another one, and starts the next companion on the same pipes. So a companion should move bytes from the pipe within
//! the kernel (splice), or it loses those that it has taken and not yet passed on. A [`Spool`] is for those that are not
//! written to a file in the end.

mod calls;
pub mod pipes;
mod privileges;
mod spool;
mod status;
mod supervisor;

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Result;

pub use privileges::drop_privileges;
pub use spool::{Spool, Taken};
pub use status::{NUMBERS, Report, Status};
pub use supervisor::LogCompanions;

/// Names of the streams, in the order in which they are everywhere here.
pub const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// The longest description of a job, in bytes of JSON.
const MAX_JOB: u64 = 1 << 20;

/// What the companion of a container is to do. The plugin stores it as its state for the container.
pub trait Job: Clone + Serialize + DeserializeOwned + Send + 'static {
    /// Why a companion loses output without an error, for the agent's log: what [`Status::set_error`] does not say.
    const LOST_WITHOUT_ERROR: &'static str = "what its log companion passes output on to did not take it";

    /// User and group that the pipes belong to; those of the agent if `None`.
    fn owner(&self) -> Option<(u32, u32)>;

    /// Descriptors that the companion gets besides the pipes, at most 50. `directory` is that of the plugin's own files
    /// for the container.
    ///
    /// # Errors
    /// The companion is not started: the launch fails, or it is tried again later.
    fn descriptors(&self, directory: &Path) -> Result<Vec<OwnedFd>>;

    /// Bytes of standard output and of standard error that the companion has taken from the pipes and not passed on. Called
    /// when it has ended without [`Status::finish`]; they are lost.
    fn backlog(&self, directory: &Path, status: &Status) -> [u64; 2] {
        let _ = (directory, status);
        [0, 0]
    }

    /// What is to be said in the agent's log of the lost bytes of a stream (0 or 1), besides how many they are and why. Nothing if
    /// it is empty.
    fn describe_loss(&self, directory: &Path, status: &Status, stream: usize) -> String {
        let _ = (directory, status, stream);
        String::new()
    }
}

/// A companion, in its own process.
#[derive(Debug)]
pub struct LogCompanion<J> {
    /// What it is to do.
    pub job: J,
    /// Where it reports to the plugin.
    pub status: Status,
    /// The pipes with standard output and standard error; reading does not block.
    pub pipes: [OwnedFd; 2],
    /// What [`Job::descriptors`] returned.
    pub descriptors: Vec<OwnedFd>,
}

impl<J: Job> LogCompanion<J> {
    /// Becomes the companion of a container, with the descriptors that the process was given.
    ///
    /// # Errors
    /// If the container has a companion already, or the job cannot be read.
    pub fn enter(descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput));
        let (job, status, pipes) = (next()?, next()?, [next()?, next()?]);
        let status = Status::new(status.into());
        status.take_over()?;
        Ok(Self { job: read_job(job)?, status, pipes, descriptors: descriptors.collect() })
    }
}

/// A job as a file in memory.
fn job_file(job: &impl Serialize) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("job", MemfdFlags::CLOEXEC)?);
    let text = serde_json::to_vec(job)?;
    if text.len() as u64 > MAX_JOB {
        let message = format!("what it is to do takes {} bytes; the limit is {MAX_JOB}", text.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    file.write_all(&text)?;
    file.rewind()?;
    Ok(file.into())
}

fn read_job<J: DeserializeOwned>(file: OwnedFd) -> io::Result<J> {
    let mut text = Vec::new();
    File::from(file).take(MAX_JOB).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}
