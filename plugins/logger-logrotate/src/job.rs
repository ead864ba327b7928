//! What a companion is to do.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::options::Options;

/// The longest description that is read.
const MAX_LENGTH: u64 = 64 << 10;

/// What a companion is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// User and group that the files belong to; those of the agent if `None`.
    pub(crate) owner: Option<(u32, u32)>,
    /// How the output is rotated.
    pub(crate) options: Options,
}

impl Job {
    /// As a file in memory.
    pub(crate) fn to_file(&self) -> io::Result<OwnedFd> {
        let mut file = File::from(memfd_create("job", MemfdFlags::CLOEXEC)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        file.rewind()?;
        Ok(file.into())
    }

    /// From a file.
    pub(crate) fn read(file: OwnedFd) -> io::Result<Self> {
        let mut text = Vec::new();
        File::from(file).take(MAX_LENGTH).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}
