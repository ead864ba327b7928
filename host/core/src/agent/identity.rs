//! What identifies an agent: to those that outlive it, and to other agents on the machine.

use std::fs;
use std::io;
use std::path::Path;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::error::StartError;
use crate::regular_file;

/// How long an id may be.
const MAX_ID: u64 = 256;

/// What identifies the agent to others that outlive it, such as a container engine: a number in its work directory.
pub(super) fn agent_id(work_dir: &Path) -> Result<String, StartError> {
    let path = work_dir.join("agent_id");
    let failed = |source| StartError::AgentId { path: path.clone(), source };
    let content = regular_file::read(&path, MAX_ID).map_err(failed)?.unwrap_or_default();
    let is_id = |id: &str| id.bytes().all(|byte| byte.is_ascii_graphic());
    let id = str::from_utf8(&content).ok().map(str::trim).filter(|id| is_id(id));
    let no_id = || io::Error::new(io::ErrorKind::InvalidData, "it has no word of printable ASCII characters");
    match id.ok_or_else(no_id).map_err(failed)? {
        // One that was written in part has never been used.
        "" => {}
        id => return Ok(id.to_owned()),
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(failed)?;
    regular_file::replace(&path, id.as_bytes()).map_err(failed)?;
    Ok(id.trim().to_owned())
}

/// Name of the cgroup that separates the agents on one machine: an agent is identified by its runtime directory.
#[must_use]
pub fn instance_of(runtime_dir: &Path) -> String {
    let runtime_dir = runtime_dir.canonicalize().unwrap_or_else(|_| runtime_dir.to_owned());
    let digest = Sha256::digest(runtime_dir.as_os_str().as_encoded_bytes());
    HEXLOWER.encode(&digest[..4])
}
