//! Maps the statistics of the kernel to those of Mesos.

use std::time::Duration;

use cofferdam_plugin_api::cgroup::{CgroupError, CgroupVersion};
use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::process::from_ticks;

use crate::share::PERIOD;

/// CPU time, the limit, and how often the container was throttled.
pub fn read(cpu: &Cgroup, accounting: Option<&Cgroup>) -> Result<Usage, CgroupError> {
    let (periods, times) = match cpu.version() {
        CgroupVersion::V2 => {
            let names = ["nr_periods", "nr_throttled", "user_usec", "system_usec", "throttled_usec"];
            let [periods, throttled, times @ ..] = cpu.read_numbers("cpu.stat", names)?;
            ([periods, throttled], times.map(|time| time.map(Duration::from_micros)))
        }
        CgroupVersion::V1 => {
            let names = ["nr_periods", "nr_throttled", "throttled_time"];
            let [periods, throttled, throttled_time] = cpu.read_numbers("cpu.stat", names)?;
            let spent = accounting.map(|cgroup| cgroup.read_numbers("cpuacct.stat", ["user", "system"]));
            let [user, system] = spent.transpose()?.unwrap_or_default().map(|time| time.map(from_ticks));
            ([periods, throttled], [user, system, throttled_time.map(Duration::from_nanos)])
        }
    };
    let mut usage = Usage::default();
    let names = ["cpus_user_time_secs", "cpus_system_time_secs", "cpus_throttled_time_secs"];
    for (name, time) in names.into_iter().zip(times) {
        if let Some(time) = time {
            usage = usage.with(name, time.as_secs_f64());
        }
    }
    for (name, count) in ["cpus_nr_periods", "cpus_nr_throttled"].into_iter().zip(periods) {
        if let Some(count) = count {
            usage = usage.with(name, count);
        }
    }
    Ok(usage)
}

/// The limit in CPUs that is in force; `None` for none.
#[expect(clippy::cast_precision_loss, reason = "microseconds of some periods")]
pub fn limit(cpu: &Cgroup) -> Result<Option<f64>, CgroupError> {
    let file = match cpu.version() {
        CgroupVersion::V1 => "cpu.cfs_quota_us",
        CgroupVersion::V2 => "cpu.max",
    };
    let text = match cpu.read(file) {
        // A kernel without bandwidth control.
        Err(error) if error.is_missing() => return Ok(None),
        quota => quota?,
    };
    let (quota, period) = match text.split_once(' ') {
        Some((quota, period)) => (quota, period.parse().unwrap_or(PERIOD)),
        // The one that this plugin sets.
        None => (text.as_str(), PERIOD),
    };
    // `-1` or `max` is none.
    Ok(quota.parse::<u64>().ok().map(|quota| quota as f64 / period as f64))
}

/// Adds the numbers of processes and threads.
pub fn count(usage: Usage, cpu: &Cgroup) -> Result<Usage, CgroupError> {
    let threads = match cpu.version() {
        CgroupVersion::V1 => "tasks",
        CgroupVersion::V2 => "cgroup.threads",
    };
    let processes = cpu.sum(|cgroup| Ok(cgroup.procs()?.len() as u64))?;
    let threads = cpu.sum(|cgroup| Ok(cgroup.read(threads)?.lines().count() as u64))?;
    Ok(usage.with("processes", processes).with("threads", threads))
}
