//! Maps the statistics of the kernel to those of Mesos.

use std::time::Duration;

use cofferdam_plugin_api::cgroup::{CgroupError, CgroupVersion};
use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::process::from_ticks;

/// CPU time, and how often the container was throttled.
#[expect(clippy::cast_precision_loss, reason = "counts of periods")]
pub fn read(cpu: &Cgroup, accounting: Option<&Cgroup>) -> Result<Usage, CgroupError> {
    let stat = cpu.read_table("cpu.stat")?;
    let time = |name: &str, unit: fn(u64) -> Duration| stat.get(name).map(|&value| unit(value));
    let (user, system, throttled) = match cpu.version() {
        CgroupVersion::V2 => (
            time("user_usec", Duration::from_micros),
            time("system_usec", Duration::from_micros),
            time("throttled_usec", Duration::from_micros),
        ),
        CgroupVersion::V1 => {
            let spent = accounting.map(|cgroup| cgroup.read_table("cpuacct.stat")).transpose()?;
            let spent = |name| Some(from_ticks(*spent.as_ref()?.get(name)?));
            (spent("user"), spent("system"), time("throttled_time", Duration::from_nanos))
        }
    };
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    let count = |name: &str| stat.get(name).map(|&count| count as f64);
    let figures = [
        ("cpus_user_time_secs", seconds(user)),
        ("cpus_system_time_secs", seconds(system)),
        ("cpus_nr_periods", count("nr_periods")),
        ("cpus_nr_throttled", count("nr_throttled")),
        ("cpus_throttled_time_secs", seconds(throttled)),
    ];
    Ok(figures.into_iter().fold(Usage::default(), |usage, (name, value)| match value {
        Some(value) => usage.with(name, value),
        None => usage,
    }))
}

/// Adds the numbers of processes and threads.
#[expect(clippy::cast_precision_loss, reason = "there are not that many")]
pub fn count(usage: Usage, cpu: &Cgroup) -> Result<Usage, CgroupError> {
    let threads = match cpu.version() {
        CgroupVersion::V1 => "tasks",
        CgroupVersion::V2 => "cgroup.threads",
    };
    let processes = cpu.sum(|cgroup| Ok(cgroup.procs()?.len() as u64))?;
    let threads = cpu.sum(|cgroup| Ok(cgroup.read(threads)?.lines().count() as u64))?;
    Ok(usage.with("processes", processes as f64).with("threads", threads as f64))
}
