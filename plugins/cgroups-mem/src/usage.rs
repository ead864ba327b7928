//! Maps the statistics of the kernel to those of Mesos.

use cofferdam_plugin_api::cgroup::{CgroupError, CgroupVersion};
use cofferdam_plugin_api::prelude::*;

/// Name in Mesos, and the interface file on v1.
const FILES_V1: [(&str, &str); 4] = [
    ("mem_total_bytes", "memory.usage_in_bytes"),
    ("mem_total_memsw_bytes", "memory.memsw.usage_in_bytes"),
    ("mem_kmem_usage_bytes", "memory.kmem.usage_in_bytes"),
    ("mem_kmem_tcp_usage_bytes", "memory.kmem.tcp.usage_in_bytes"),
];

/// Name in Mesos, and the line of `memory.stat` on v1.
const STAT_V1: [(&str, &str); 7] = [
    ("mem_cache_bytes", "total_cache"),
    ("mem_file_bytes", "total_cache"),
    ("mem_rss_bytes", "total_rss"),
    ("mem_anon_bytes", "total_rss"),
    ("mem_mapped_file_bytes", "total_mapped_file"),
    ("mem_swap_bytes", "total_swap"),
    ("mem_unevictable_bytes", "total_unevictable"),
];

/// Name in Mesos, and the interface file on v2.
const FILES_V2: [(&str, &str); 2] =
    [("mem_total_bytes", "memory.current"), ("mem_swap_bytes", "memory.swap.current")];

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

/// The statistics in `memory.stat`.
#[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
fn read_stat<const N: usize>(cgroup: &Cgroup, figures: [(&str, &str); N]) -> Result<Usage, CgroupError> {
    let numbers = cgroup.read_numbers("memory.stat", figures.map(|(_, line)| line))?;
    let known = figures.into_iter().zip(numbers).filter_map(|((name, _), bytes)| Some((name, bytes?)));
    Ok(known.fold(Usage::default(), |usage, (name, bytes)| usage.with(name, bytes as f64)))
}

/// All statistics that this kernel has.
#[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
pub fn read(cgroup: &Cgroup) -> Result<Usage, CgroupError> {
    let (files, mut usage) = match cgroup.version() {
        CgroupVersion::V1 => (&FILES_V1[..], read_stat(cgroup, STAT_V1)?),
        CgroupVersion::V2 => (&FILES_V2[..], read_stat(cgroup, STAT_V2)?),
    };
    for (name, file) in files {
        match cgroup.read_as::<u64>(file) {
            Ok(bytes) => usage = usage.with(name, bytes as f64),
            // For example without swap accounting.
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(usage)
}
