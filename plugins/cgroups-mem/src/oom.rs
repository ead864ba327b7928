//! Whether the kernel killed processes because of the container's own memory limit.
//!
//! A kill alone does not show it: the limit of a parent may have been reached, or the host may have run out of memory.
//! Neither is a limitation of this container.

use std::os::fd::OwnedFd;

use cofferdam_plugin_api::cgroup::{CgroupError, CgroupVersion};
use cofferdam_plugin_api::prelude::*;

use crate::limits::mebibytes;

const REASON: &str = "REASON_CONTAINER_LIMITATION_MEMORY";

/// Counters of the kernel.
#[derive(Debug, Clone, Copy)]
struct Counted {
    /// Processes of the container that the OOM killer has killed, for whatever reason.
    kills: u64,
    /// On v1 how often the container reached its own limit, on v2 how often reclaim did not help.
    own: u64,
}

/// A descriptor that becomes readable after an out-of-memory event.
pub fn watch(cgroup: &Cgroup) -> Result<OwnedFd, CgroupError> {
    match cgroup.version() {
        CgroupVersion::V1 => cgroup.watch("memory.oom_control", ""),
        CgroupVersion::V2 => cgroup.watch("memory.events", ""),
    }
}

/// The limitation, if the container's own limit was reached. `notified`: whether the descriptor was readable.
pub fn limitation(cgroup: &Cgroup, notified: bool) -> Result<Option<Limitation>, CgroupError> {
    let kills = count_kills(cgroup)?;
    if kills == 0 && !notified {
        // As after most exits.
        return Ok(None);
    }
    let counted = Counted { kills, own: count_own(cgroup)? };
    if reached(cgroup.version(), counted, notified) {
        return describe(cgroup).map(Some);
    }
    if counted.kills > 0 {
        warn!(
            cgroup = %cgroup.directory().display(),
            kills = counted.kills,
            "out of memory, but not because of the container's own limit"
        );
    }
    Ok(None)
}

fn reached(version: CgroupVersion, counted: Counted, notified: bool) -> bool {
    match version {
        // The event comes before the kill is counted, and also when the limit of a parent is reached.
        CgroupVersion::V1 => counted.own > 0 && (counted.kills > 0 || notified),
        // There is another event when the kill is counted.
        CgroupVersion::V2 => counted.own > 0 && counted.kills > 0,
    }
}

fn count_kills(cgroup: &Cgroup) -> Result<u64, CgroupError> {
    let kills = |cgroup: &Cgroup, file| Ok(of(&cgroup.read_table(file)?, "oom_kill"));
    match cgroup.version() {
        // A kill is counted in the cgroup of the process, which may be below.
        CgroupVersion::V1 => cgroup.sum(|cgroup| kills(cgroup, "memory.oom_control")),
        CgroupVersion::V2 => kills(cgroup, "memory.events"),
    }
}

fn count_own(cgroup: &Cgroup) -> Result<u64, CgroupError> {
    match cgroup.version() {
        CgroupVersion::V1 => {
            // If both limits are equal, the kernel only counts that of memory and swap.
            let swap = cgroup.read_as("memory.memsw.failcnt").unwrap_or(0);
            Ok(cgroup.read_as::<u64>("memory.failcnt")?.saturating_add(swap))
        }
        // `memory.events` includes the cgroups below, and so the limits of nested containers.
        CgroupVersion::V2 => Ok(of(&cgroup.read_table("memory.events.local")?, "oom")),
    }
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
    // An update may have lifted it. On v1 no limit is the largest multiple of the page size.
    let limit = limit.parse().ok().filter(|&limit| limit < 1 << 62);
    let limit = limit.map_or_else(|| "(now lifted)".to_owned(), mebibytes);
    Ok(Limitation {
        reason: REASON.to_owned(),
        message: format!(
            "memory limit of {limit} exceeded: up to {} were in use; now: {}",
            mebibytes(peak),
            statistics(cgroup)?
        ),
        resources: [("mem".to_owned(), Value::Scalar(in_mebibytes(peak)))].into(),
        container: None,
    })
}

/// What `memory.stat` has, in bytes or as numbers of pages and events: without what is 0, and on v1 that of the whole subtree.
fn statistics(cgroup: &Cgroup) -> Result<String, CgroupError> {
    /// Enough for all that matters, which comes first.
    const MAX: usize = 40;
    let text = cgroup.read("memory.stat")?;
    let lines = text.lines().filter_map(|line| line.split_once(' ')).filter(|(_, number)| *number != "0");
    let figures: Vec<String> = match cgroup.version() {
        CgroupVersion::V1 => {
            let total = lines.filter_map(|(name, number)| Some((name.strip_prefix("total_")?, number)));
            total.map(|(name, number)| format!("{name} {number}")).take(MAX).collect()
        }
        CgroupVersion::V2 => lines.map(|(name, number)| format!("{name} {number}")).take(MAX).collect(),
    };
    Ok(if figures.is_empty() { "nothing".to_owned() } else { figures.join(", ") })
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
    fn a_kill_counts_only_for_the_limit_that_caused_it() {
        let v1 = |kills, own, notified| reached(CgroupVersion::V1, Counted { kills, own }, notified);
        assert!(v1(1, 5, false), "asked after the exit");
        assert!(v1(0, 5, true), "asked before the kill was counted");
        assert!(!v1(0, 5, false), "reclaim was enough");
        assert!(!v1(1, 0, true), "the limit of a parent");
        assert!(!v1(1, 0, false), "the host is out of memory");

        let v2 = |kills, own, notified| reached(CgroupVersion::V2, Counted { kills, own }, notified);
        assert!(v2(1, 1, false));
        assert!(!v2(0, 1, true), "another event follows");
        assert!(!v2(1, 0, true), "the limit of a nested container or of a parent");
    }
}
