//! Numbers of processes and threads, and how often there were too many.

use cofferdam_plugin_api::cgroup::{CgroupError, CgroupVersion};
use cofferdam_plugin_api::prelude::*;

/// The statistics, with those of the cgroups below: the container's own, and those of nested containers.
pub fn read(pids: &Cgroup) -> Result<Usage, CgroupError> {
    let processes = pids.sum(|cgroup| Ok(cgroup.procs()?.len() as u64))?;
    // The kernel counts threads.
    let threads: u64 = pids.read_as("pids.current")?;
    let usage = Usage::default()
        .with("processes", processes)
        .with("threads", threads)
        .with("pids_limit_events", refused(pids)?);
    Ok(match pids.read("pids.max")?.parse::<u64>() {
        Ok(limit) => usage.with("pids_limit", limit),
        // `max`
        Err(_) => usage,
    })
}

/// How often a new process or thread was refused.
fn refused(pids: &Cgroup) -> Result<u64, CgroupError> {
    let count = |cgroup: &Cgroup| Ok(cgroup.read_numbers("pids.events", ["max"])?[0].unwrap_or(0));
    // Linux 6.11 counts in the whole subtree on v2; otherwise each cgroup counts what its own processes were refused.
    if pids.version() == CgroupVersion::V2 && pids.has("pids.events.local") {
        return count(pids);
    }
    pids.sum(count)
}
