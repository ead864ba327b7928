//! What a companion is to do: the plugin's state for a container.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cofferdam_plugin_api::log_companion::{self, STREAMS, Spool, Status};
use cofferdam_plugin_api::prelude::*;

/// The plugin's state for a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Socket of the journal.
    pub(crate) socket: PathBuf,
    /// User and group of the container; those of the agent if `None`.
    pub(crate) owner: Option<(u32, u32)>,
    /// Fields of every entry.
    pub(crate) fields: Vec<(String, String)>,
    /// Of standard output and of standard error.
    pub(crate) priorities: [Priority; 2],
    /// The longest message in bytes.
    pub(crate) max_line: u64,
    /// Bytes of a stream that are kept while the journal does not receive them.
    pub(crate) max_buffer: u64,
    /// What happens to what exceeds them.
    pub(crate) when_full: WhenFull,
}

/// What happens when the journal does not receive what a container writes, and the buffer is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, PluginConfig)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WhenFull {
    /// The container waits when it writes.
    Wait,
    /// What it writes is discarded, and counted.
    Drop,
}

/// Priority of an entry, as in syslog(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, PluginConfig)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Priority {
    Emerg,
    Alert,
    Crit,
    Err,
    Warning,
    Notice,
    Info,
    Debug,
}

impl Priority {
    /// Its number as text.
    pub(crate) const fn number(self) -> &'static str {
        match self {
            Self::Emerg => "0",
            Self::Alert => "1",
            Self::Crit => "2",
            Self::Err => "3",
            Self::Warning => "4",
            Self::Notice => "5",
            Self::Info => "6",
            Self::Debug => "7",
        }
    }
}

impl log_companion::Job for Job {
    const LOST_WITHOUT_ERROR: &'static str = "the journal did not receive them, and no more were kept";

    fn owner(&self) -> Option<(u32, u32)> {
        self.owner
    }

    /// The spools of both streams, and `/dev/null`.
    fn descriptors(&self, directory: &Path) -> Result<Vec<OwnedFd>> {
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for stream in STREAMS {
            let path = spool_of(directory, stream);
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).context(format!("cannot open `{}`", path.display()))?;
            descriptors.push(file.into());
        }
        let null = File::options().write(true).open("/dev/null").context("cannot open `/dev/null`")?;
        descriptors.push(null.into());
        Ok(descriptors)
    }

    fn backlog(&self, directory: &Path, status: &Status) -> [u64; 2] {
        let length = |stream| fs::metadata(spool_of(directory, stream)).map_or(0, |metadata| metadata.len());
        let lengths = STREAMS.map(length);
        [0, 1].map(|stream| {
            let [bytes] = Spool::<1>::backlog(status, number_of(stream), lengths[stream]);
            bytes
        })
    }
}

/// Where the numbers of a stream are in the status.
pub(crate) const fn number_of(stream: usize) -> usize {
    stream * Spool::<1>::NUMBERS
}

fn spool_of(directory: &Path, stream: &str) -> PathBuf {
    directory.join(format!("{stream}.spool"))
}
