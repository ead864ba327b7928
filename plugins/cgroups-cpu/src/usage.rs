//! From the kernel's figures to those of Mesos.

use std::time::Duration;

use cofferdam_plugin_api::cgroup::{CgroupError, CgroupVersion};
use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::process::from_ticks;

/// Reads time used, and how often the limit stood in the way.
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

/// Adds how many processes and threads there are.
#[expect(clippy::cast_precision_loss, reason = "there are not that many")]
pub fn count(usage: Usage, cpu: &Cgroup) -> Result<Usage, CgroupError> {
    let threads = match cpu.version() {
        CgroupVersion::V1 => "tasks",
        CgroupVersion::V2 => "cgroup.threads",
    };
    let processes = lines(cpu, "cgroup.procs")? as f64;
    Ok(usage.with("processes", processes).with("threads", lines(cpu, threads)? as f64))
}

/// A container's processes may be in control groups below its own: on v2 they are.
fn lines(cgroup: &Cgroup, knob: &str) -> Result<usize, CgroupError> {
    let mut count = cgroup.read(knob)?.lines().count();
    for child in cgroup.children()? {
        match lines(&child, knob) {
            Ok(lines) => count += lines,
            // Gone since.
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}
