//! How much of the output of a container was lost, from the file that its switchboard leaves behind.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use cofferdam_init::streams::Counts;

/// Name of the file in the directory of a container's record.
const COUNTS: &str = "attach.counts";

/// Bytes that are lost of one stream.
#[derive(Debug)]
pub(crate) struct Lost {
    /// `stdout` or `stderr`; `stdout` for a terminal.
    pub(crate) stream: &'static str,
    /// How many.
    pub(crate) bytes: u64,
    /// Why the log could not be written to, at least once; `None` if nobody read it, or the switchboard was killed.
    pub(crate) why: Option<io::Error>,
}

/// Creates the file, with its space.
pub(super) fn create(directory: &Path) -> io::Result<OwnedFd> {
    let mut options = File::options();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(directory.join(COUNTS))?;
    file.write_all(&Counts::default().encode())?;
    Ok(file.into())
}

/// What a container's log has not received, whose switchboard has ended. Each loss is returned once only: the file is removed.
pub(crate) fn take_lost_output(directory: &Path) -> io::Result<Vec<Lost>> {
    let path = directory.join(COUNTS);
    let mut bytes = [0; Counts::LENGTH];
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?.read_exact(&mut bytes)?,
    }
    fs::remove_file(&path)?;
    let counts = Counts::parse(&bytes);
    let lost = ["stdout", "stderr"].into_iter().zip(counts.missing()).zip(counts.errno);
    let lost = lost.map(|((stream, bytes), errno)| {
        let errno = i32::try_from(errno).ok().filter(|errno| *errno != 0);
        Lost { stream, bytes, why: errno.map(io::Error::from_raw_os_error) }
    });
    Ok(lost.filter(|lost| lost.bytes > 0).collect())
}
