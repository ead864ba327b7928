//! What the kernel counts of this process, by the names of the Prometheus client libraries.

use std::fmt;
use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::number::count;

/// Units of times in `/proc`, per second: a constant of the kernel's interface.
const TICKS: f64 = 100.0;

/// Size of a page on x86-64.
const PAGE: u64 = 4096;

/// What the kernel counts of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct ProcessCounters {
    cpu_seconds: f64,
    /// Seconds since the Unix epoch.
    start_time: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    threads: u64,
    open_descriptors: u64,
    max_descriptors: u64,
}

impl ProcessCounters {
    /// Those of this process. What cannot be read is 0.
    pub(super) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let descriptors = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let open_descriptors = u64::try_from(descriptors).unwrap_or_default();
        let max_descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
        let boot = boot_time(&fs::read_to_string("/proc/stat").unwrap_or_default());
        Self { open_descriptors, max_descriptors, ..Self::parse(&stat, boot).unwrap_or_default() }
    }

    /// Reads a line of `/proc/PID/stat`, on a machine that was started at a time.
    fn parse(stat: &str, boot_time: f64) -> Option<Self> {
        // The name of the program may contain spaces and parentheses. After it, the third field is the first.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_seconds: count(field(14)? + field(15)?) / TICKS,
            threads: field(20)?,
            start_time: boot_time + count(field(22)?) / TICKS,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)?.saturating_mul(PAGE),
            ..Self::default()
        })
    }
}

/// The time of the start of the machine, from `/proc/stat`.
fn boot_time(stat: &str) -> f64 {
    let time = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
    time.map_or(0.0, count)
}

impl Collector for ProcessCounters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        ConstCounter::new(self.cpu_seconds).encode(encoder.encode_descriptor(
            "process_cpu",
            "CPU time of the agent",
            Some(&Unit::Seconds),
            MetricType::Counter,
        )?)?;
        let bytes = Some(&Unit::Bytes);
        for (name, help, unit, value) in [
            (
                "process_start_time",
                "Start of the agent, since the Unix epoch",
                Some(&Unit::Seconds),
                self.start_time,
            ),
            ("process_resident_memory", "Resident memory of the agent", bytes, count(self.resident_bytes)),
            ("process_virtual_memory", "Virtual memory of the agent", bytes, count(self.virtual_bytes)),
            ("process_threads", "Threads of the agent", None, count(self.threads)),
            ("process_open_fds", "Open descriptors of the agent", None, count(self.open_descriptors)),
            ("process_max_fds", "Limit of open descriptors of the agent", None, count(self.max_descriptors)),
        ] {
            ConstGauge::new(value).encode(encoder.encode_descriptor(
                name,
                help,
                unit,
                MetricType::Gauge,
            )?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_is_read() {
        let line = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 1000 4096000 20 18446744073709551615";
        let counters = ProcessCounters::parse(line, 100.0).unwrap();
        assert_eq!((counters.cpu_seconds, counters.threads), (3.0, 9));
        assert_eq!((counters.start_time, counters.virtual_bytes), (110.0, 4_096_000));
        assert_eq!(counters.resident_bytes, 20 * PAGE);
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\n"), 1_700_000_000.0);
    }

    #[test]
    fn this_process_has_memory_threads_and_descriptors() {
        let counters = ProcessCounters::read();
        assert!(
            counters.resident_bytes > 0 && counters.threads > 0 && counters.start_time > 1.0e9,
            "{counters:?}"
        );
        assert!(counters.open_descriptors > 2 && counters.max_descriptors >= counters.open_descriptors);
    }
}
