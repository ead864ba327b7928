//! Maps the statistics of the kernel to those of Mesos.

use cofferdam_plugin_api::cgroup::{CgroupError, CgroupVersion};
use cofferdam_plugin_api::prelude::*;

/// Name in Mesos, and the line of `memory.stat` on v1.
const STAT_V1: [(&str, &str); 8] = [
    ("mem_cache_bytes", "total_cache"),
    ("mem_file_bytes", "total_cache"),
    ("mem_rss_bytes", "total_rss"),
    ("mem_anon_bytes", "total_rss"),
    ("mem_mapped_file_bytes", "total_mapped_file"),
    ("mem_swap_bytes", "total_swap"),
    ("mem_unevictable_bytes", "total_unevictable"),
    // The one that is in force: its own, or a lower one of a cgroup above.
    ("mem_limit_bytes", "hierarchical_memory_limit"),
];

/// Name in Mesos, and the interface file on v1.
const KERNEL_V1: [(&str, &str); 2] = [
    ("mem_kmem_usage_bytes", "memory.kmem.usage_in_bytes"),
    ("mem_kmem_tcp_usage_bytes", "memory.kmem.tcp.usage_in_bytes"),
];

/// Name in Mesos, and the line of `memory.stat` on v2.
const STAT_V2: [(&str, &str); 8] = [
    ("mem_cache_bytes", "file"),
    ("mem_file_bytes", "file"),
    ("mem_rss_bytes", "anon"),
    ("mem_anon_bytes", "anon"),
    ("mem_mapped_file_bytes", "file_mapped"),
    ("mem_unevictable_bytes", "unevictable"),
    ("mem_kmem_usage_bytes", "kernel"),
    ("mem_kmem_tcp_usage_bytes", "sock"),
];

/// Name, and the line of `memory.events` on v2.
const EVENTS_V2: [(&str, &str); 5] = [
    ("mem_low_events", "low"),
    ("mem_high_events", "high"),
    ("mem_max_events", "max"),
    ("mem_oom_events", "oom"),
    ("mem_oom_kill_events", "oom_kill"),
];

/// All statistics that this kernel has.
pub fn read(cgroup: &Cgroup) -> Result<Usage, CgroupError> {
    match cgroup.version() {
        CgroupVersion::V1 => read_v1(cgroup),
        CgroupVersion::V2 => read_v2(cgroup),
    }
}

fn read_v1(cgroup: &Cgroup) -> Result<Usage, CgroupError> {
    let stat = read_stat(cgroup, "memory.stat", STAT_V1)?;
    let total: u64 = cgroup.read_as("memory.usage_in_bytes")?;
    let mut usage = Usage::default().with("mem_total_bytes", total);
    for (name, bytes) in stat {
        if name == "mem_swap_bytes" {
            // The line exists where the kernel accounts for swap, and its counter of both is the sum.
            usage = usage.with("mem_total_memsw_bytes", total.saturating_add(bytes));
        }
        // No limit is the largest multiple of the page size.
        if name != "mem_limit_bytes" || bytes < 1 << 62 {
            usage = usage.with(name, bytes);
        }
    }
    for (name, file) in KERNEL_V1 {
        if let Some(bytes) = if_present(cgroup.read_as::<u64>(file))? {
            usage = usage.with(name, bytes);
        }
    }
    Ok(usage)
}

fn read_v2(cgroup: &Cgroup) -> Result<Usage, CgroupError> {
    let total: u64 = cgroup.read_as("memory.current")?;
    let mut usage = Usage::default().with("mem_total_bytes", total);
    for (name, bytes) in read_stat(cgroup, "memory.stat", STAT_V2)? {
        usage = usage.with(name, bytes);
    }
    // Missing without swap.
    if let Some(swap) = if_present(cgroup.read_as::<u64>("memory.swap.current"))? {
        usage = usage.with("mem_swap_bytes", swap).with("mem_total_memsw_bytes", total.saturating_add(swap));
    }
    match cgroup.read("memory.max")?.parse::<u64>() {
        Ok(limit) => Ok(usage.with("mem_limit_bytes", limit)),
        // `max`
        Err(_) => Ok(usage),
    }
}

/// How often the container and those nested in it reached their limits, on v2.
pub fn events(mut usage: Usage, cgroup: &Cgroup) -> Result<Usage, CgroupError> {
    for (name, count) in read_stat(cgroup, "memory.events", EVENTS_V2)? {
        usage = usage.with(name, count);
    }
    Ok(usage)
}

/// The statistics of a file that this kernel has, by name.
fn read_stat<const N: usize>(
    cgroup: &Cgroup,
    file: &str,
    figures: [(&'static str, &str); N],
) -> Result<impl Iterator<Item = (&'static str, u64)>, CgroupError> {
    let numbers = cgroup.read_numbers(file, figures.map(|(_, line)| line))?;
    let names = figures.map(|(name, _)| name);
    Ok(names.into_iter().zip(numbers).filter_map(|(name, number)| Some((name, number?))))
}

/// `None` if this kernel does not have the file.
fn if_present<T>(read: Result<T, CgroupError>) -> Result<Option<T>, CgroupError> {
    match read {
        Err(error) if error.is_missing() => Ok(None),
        read => read.map(Some),
    }
}
