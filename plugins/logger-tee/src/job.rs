//! What a companion is to do: the plugin's state for a container.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cofferdam_plugin_api::foreign::{self, Resolve};
use cofferdam_plugin_api::log_companion::{self, STREAMS, Spool, Status};
use cofferdam_plugin_api::model::LogPlace;
use cofferdam_plugin_api::prelude::*;
use rustix::fs::OFlags;

/// How many loggers there are.
pub(crate) const TARGETS: usize = 2;

/// The spool of a stream, which both loggers read.
pub(crate) type StreamSpool<'a> = Spool<'a, TARGETS>;

/// Where the number of lost bytes of the first target and stream is in the status.
const LOST: usize = 2 * StreamSpool::NUMBERS;

/// Where the numbers of a stream's spool are in the status.
pub(crate) const fn number_of(stream: usize) -> usize {
    stream * StreamSpool::NUMBERS
}

/// Where the number of bytes of a stream that a target has not received is in the status.
pub(crate) const fn lost_of(target: usize, stream: usize) -> usize {
    LOST + target * 2 + stream
}

/// Where the number of bytes of a stream that no target has received is in the status.
pub(crate) const fn discarded_of(stream: usize) -> usize {
    lost_of(TARGETS, 0) + stream
}

/// The plugin's state for a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// User and group of the container; those of the agent if `None`.
    pub(crate) owner: Option<(u32, u32)>,
    /// Bytes of a stream that are kept for a logger that does not read.
    pub(crate) max_buffer: u64,
    /// How long a logger may read nothing before the other one goes on without it.
    pub(crate) stall_millis: u64,
    /// The loggers.
    pub(crate) targets: [Target; TARGETS],
}

/// A logger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    /// Its name.
    pub(crate) logger: String,
    /// Where it wants standard output and standard error.
    pub(crate) streams: [Place; 2],
}

/// Where a logger wants a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Place {
    /// Nowhere.
    Nowhere,
    /// A pipe in a directory of the logger, which nobody else can change.
    Pipe { path: PathBuf },
    /// A file, at a path that the container may be able to change: only this file is written to.
    File { path: PathBuf, device: u64, inode: u64 },
}

impl Place {
    /// What the agent says of a logger. A file that does not exist is created for `owner`.
    pub(crate) fn create(place: Option<LogPlace>, owner: Option<(u32, u32)>) -> Result<Self> {
        let Some(LogPlace { path, pipe }) = place else { return Ok(Self::Nowhere) };
        let failed = format!("cannot open `{}`", path.display());
        if pipe {
            let place = Self::Pipe { path };
            place.open().context(failed)?;
            return Ok(place);
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::new(format!("`{}` is not the path of a file", path.display())));
        };
        let found = find(parent).and_then(|directory| {
            foreign::create_file(&directory, Path::new(name), owner).context("cannot create it")
        });
        let metadata = File::from(found.context(&failed)?).metadata().context(failed)?;
        Ok(Self::File { path, device: metadata.dev(), inode: metadata.ino() })
    }

    pub(crate) const fn is_pipe(&self) -> bool {
        matches!(self, Self::Pipe { .. })
    }

    /// Opens it for writing without waiting. A pipe is open for reading as well: so it can be written to while nobody reads it.
    pub(crate) fn open(&self) -> Result<OwnedFd> {
        match self {
            Self::Nowhere => Ok(File::options().write(true).open("/dev/null")?.into()),
            Self::Pipe { path } => {
                let found = find(path)?;
                let metadata = File::from(found.try_clone()?).metadata()?;
                if !metadata.file_type().is_fifo() {
                    return Err(Error::new(format!("`{}` is not a pipe", path.display())));
                }
                Ok(foreign::reopen(&found, OFlags::RDWR | OFlags::NONBLOCK)?)
            }
            Self::File { path, device, inode } => {
                let found = find(path)?;
                foreign::check_regular(&found)?;
                let metadata = File::from(found.try_clone()?).metadata()?;
                if (metadata.dev(), metadata.ino()) != (*device, *inode) {
                    return Err(Error::new(format!("`{}` is another file", path.display())));
                }
                Ok(foreign::reopen(&found, OFlags::WRONLY | OFlags::APPEND)?)
            }
        }
    }
}

/// Finds what is at an absolute path, without following links.
fn find(path: &Path) -> Result<OwnedFd> {
    let below = path.strip_prefix("/").unwrap_or(path);
    Ok(foreign::find(foreign::directory(Path::new("/"))?, below, Resolve::WithoutLinks)?)
}

impl log_companion::Job for Job {
    const LOST_WITHOUT_ERROR: &'static str = "the logger did not read";

    fn owner(&self) -> Option<(u32, u32)> {
        self.owner
    }

    /// The spools of both streams, `/dev/null`, and what each logger wants of both streams. What cannot be opened is a
    /// descriptor that cannot be written to: only that logger loses what it would have received.
    fn descriptors(&self, directory: &Path) -> Result<Vec<OwnedFd>> {
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for stream in STREAMS {
            let path = spool_of(directory, stream);
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).context(format!("cannot open `{}`", path.display()))?;
            descriptors.push(file.into());
        }
        let null = || File::options().write(true).open("/dev/null").context("cannot open `/dev/null`");
        descriptors.push(null()?.into());
        for Target { logger, streams } in &self.targets {
            for place in streams {
                descriptors.push(match place.open() {
                    Ok(opened) => opened,
                    Err(error) => {
                        let error = error.causes().join(": ");
                        error!(
                            logger,
                            "the output of the logger cannot be opened, and it receives none: {error}"
                        );
                        File::open("/dev/null").context("cannot open `/dev/null`")?.into()
                    }
                });
            }
        }
        Ok(descriptors)
    }

    fn backlog(&self, directory: &Path, status: &Status) -> [u64; 2] {
        [0, 1].map(|stream| backlog(directory, status, stream).into_iter().sum())
    }

    fn describe_loss(&self, directory: &Path, status: &Status, stream: usize) -> String {
        let finished = status.read().is_ok_and(|report| report.finished);
        let backlog = if finished { [0; TARGETS] } else { backlog(directory, status, stream) };
        let numbers = status.numbers().unwrap_or_default();
        let parts = self.targets.iter().enumerate().map(|(index, target)| {
            let bytes = numbers[lost_of(index, stream)].saturating_add(backlog[index]);
            format!("{}={bytes}", target.logger)
        });
        parts.collect::<Vec<_>>().join(" ")
    }
}

/// What each target has not received of what is in the spool.
fn backlog(directory: &Path, status: &Status, stream: usize) -> [u64; TARGETS] {
    let length = fs::metadata(spool_of(directory, STREAMS[stream])).map_or(0, |metadata| metadata.len());
    StreamSpool::backlog(status, number_of(stream), length)
}

fn spool_of(directory: &Path, stream: &str) -> PathBuf {
    directory.join(format!("{stream}.spool"))
}
