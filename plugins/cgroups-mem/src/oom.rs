//! Whether it was this container's own limit that made the kernel kill.
//!
//! A kill alone does not prove it: the limit of a container around it may have been reached, or the end of
//! the host's memory. Then the container's own limit was not the reason, and is not given as one.

use std::os::fd::OwnedFd;

use cofferdam_plugin_api::cgroup::{CgroupError, CgroupVersion};
use cofferdam_plugin_api::prelude::*;

use crate::limits::mebibytes;

const REASON: &str = "REASON_CONTAINER_LIMITATION_MEMORY";

/// What the kernel counted.
#[derive(Debug, Clone, Copy)]
struct Counted {
    /// Processes of the container killed for want of memory, for whatever reason.
    kills: u64,
    /// How often the container's own limit stood in the way: always on v1, beyond help on v2.
    own: u64,
}

/// A descriptor that becomes readable when memory ran out.
pub fn watch(cgroup: &Cgroup) -> Result<OwnedFd, CgroupError> {
    match cgroup.version() {
        CgroupVersion::V1 => cgroup.watch("memory.oom_control", ""),
        CgroupVersion::V2 => cgroup.watch("memory.events", ""),
    }
}

/// The limitation, if the container's own limit was reached. `notified` says that the descriptor had news.
pub fn judge(cgroup: &Cgroup, notified: bool) -> Result<Option<Limitation>, CgroupError> {
    let counted = count(cgroup)?;
    if reached(cgroup.version(), counted, notified) {
        return describe(cgroup).map(Some);
    }
    if counted.kills > 0 {
        warn!(
            cgroup = %cgroup.directory().display(),
            kills = counted.kills,
            "the kernel killed for want of memory, but not because of the container's own limit"
        );
    }
    Ok(None)
}

fn reached(version: CgroupVersion, counted: Counted, notified: bool) -> bool {
    match version {
        // News come before the kill is counted, and from limits further out too.
        CgroupVersion::V1 => counted.own > 0 && (counted.kills > 0 || notified),
        // News come again when the kill is counted.
        CgroupVersion::V2 => counted.own > 0 && counted.kills > 0,
    }
}

fn count(cgroup: &Cgroup) -> Result<Counted, CgroupError> {
    match cgroup.version() {
        CgroupVersion::V1 => {
            // With equal limits of memory, and of memory and swap, only the latter counts.
            let swap = cgroup.read_as("memory.memsw.failcnt").unwrap_or(0);
            let own = cgroup.read_as::<u64>("memory.failcnt")?.saturating_add(swap);
            Ok(Counted { kills: kills_v1(cgroup)?, own })
        }
        CgroupVersion::V2 => {
            // Not `memory.events`, which counts what happened in control groups below as well: a nested
            // container at its own limit is not the end of its parent.
            let local = cgroup.read_table("memory.events.local")?;
            let kills = of(&cgroup.read_table("memory.events")?, "oom_kill");
            Ok(Counted { kills, own: of(&local, "oom") })
        }
    }
}

/// v1 counts a kill only where the process was, which may be below.
fn kills_v1(cgroup: &Cgroup) -> Result<u64, CgroupError> {
    let mut kills = of(&cgroup.read_table("memory.oom_control")?, "oom_kill");
    for child in cgroup.children()? {
        match kills_v1(&child) {
            Ok(more) => kills += more,
            // Gone since.
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(kills)
}

fn describe(cgroup: &Cgroup) -> Result<Limitation, CgroupError> {
    let (limit, peak) = match cgroup.version() {
        CgroupVersion::V1 => {
            (cgroup.read("memory.limit_in_bytes")?, cgroup.read_as("memory.max_usage_in_bytes")?)
        }
        CgroupVersion::V2 => {
            // Linux 5.19 has the peak.
            let peak = if cgroup.has("memory.peak") { "memory.peak" } else { "memory.current" };
            (cgroup.read("memory.max")?, cgroup.read_as(peak)?)
        }
    };
    // It may have been lifted since. v1 shows that as the largest number of whole pages.
    let limit = limit.parse().ok().filter(|&limit| limit < 1 << 62);
    let limit = limit.map_or_else(|| "(now lifted)".to_owned(), mebibytes);
    let stat = cgroup.read_table("memory.stat")?;
    let (rss, cache) = match cgroup.version() {
        CgroupVersion::V1 => (of(&stat, "total_rss"), of(&stat, "total_cache")),
        CgroupVersion::V2 => (of(&stat, "anon"), of(&stat, "file")),
    };
    Ok(Limitation {
        reason: REASON.to_owned(),
        message: format!(
            "memory limit of {limit} exceeded: up to {} were in use (now {} of processes, {} of cached files)",
            mebibytes(peak),
            mebibytes(rss),
            mebibytes(cache)
        ),
        resources: [("mem".to_owned(), Value::Scalar(in_mebibytes(peak)))].into(),
        container: None,
    })
}

fn of(table: &std::collections::BTreeMap<String, u64>, name: &str) -> u64 {
    table.get(name).copied().unwrap_or(0)
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
fn in_mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_only_blamed_on_the_limit_that_caused_it() {
        let v1 = |kills, own, notified| reached(CgroupVersion::V1, Counted { kills, own }, notified);
        assert!(v1(1, 5, false), "told after the end");
        assert!(v1(0, 5, true), "told before the kill was counted");
        assert!(!v1(0, 5, false), "reclaiming was enough");
        assert!(!v1(1, 0, true), "the limit of a container around it");
        assert!(!v1(1, 0, false), "the end of the host's memory");

        let v2 = |kills, own, notified| reached(CgroupVersion::V2, Counted { kills, own }, notified);
        assert!(v2(1, 1, false));
        assert!(!v2(0, 1, true), "there will be news of the kill");
        assert!(!v2(1, 0, true), "a nested container's limit, or one further out");
    }
}
