//! What identifies an agent: to those that outlive it, and to other agents on the machine.

use std::fs;
use std::path::Path;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::error::StartError;

/// What identifies the agent to others that outlive it, such as a container engine: a number in its work directory.
pub(super) fn agent_id(work_dir: &Path) -> Result<String, StartError> {
    let path = work_dir.join("agent_id");
    let failed = |source| StartError::AgentId { path: path.clone(), source };
    match fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        // One that was written in part has never been used.
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(failed)?;
    let new = path.with_extension("new");
    fs::write(&new, &id).and_then(|()| fs::rename(&new, &path)).map_err(failed)?;
    Ok(id.trim().to_owned())
}

/// Name of the cgroup that separates the agents on one machine: an agent is identified by its runtime directory.
#[must_use]
pub fn instance_of(runtime_dir: &Path) -> String {
    let runtime_dir = runtime_dir.canonicalize().unwrap_or_else(|_| runtime_dir.to_owned());
    let digest = Sha256::digest(runtime_dir.as_os_str().as_encoded_bytes());
    HEXLOWER.encode(&digest[..4])
}
