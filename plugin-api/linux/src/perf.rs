//! Counts of the kernel's performance events for the processes of a cgroup, see perf_event_open(2).

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Highest number of a CPU that is read from the kernel's list.
const MAX_CPU: u32 = 1 << 16;

const HARDWARE: u32 = 0;
const SOFTWARE: u32 = 1;
const CACHE: u32 = 3;

/// `PERF_FORMAT_TOTAL_TIME_ENABLED` and `PERF_FORMAT_TOTAL_TIME_RUNNING`.
const WITH_TIMES: u64 = 0b11;

/// `PERF_FLAG_PID_CGROUP`.
const OF_CGROUP: libc::c_ulong = 1 << 2;
/// `PERF_FLAG_FD_CLOEXEC`.
const CLOEXEC: libc::c_ulong = 1 << 3;

/// `struct perf_event_attr`, in its first version.
#[derive(Debug, Default, Clone, Copy)]
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    config1: u64,
}

/// An event with a name of perf(1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    name: &'static str,
    kind: u32,
    config: u64,
}

const fn event(name: &'static str, kind: u32, config: u64) -> Event {
    Event { name, kind, config }
}

/// Of a cache: its number, the operation (0 for loads, 1 for stores, 2 for prefetches), and whether misses are counted.
const fn cache(name: &'static str, cache: u64, operation: u64, misses: bool) -> Event {
    event(name, CACHE, cache | operation << 8 | (misses as u64) << 16)
}

/// All events that have a name. The names are those of perf(1), in lower case.
const EVENTS: [Event; 51] = [
    event("cycles", HARDWARE, 0),
    event("instructions", HARDWARE, 1),
    event("cache-references", HARDWARE, 2),
    event("cache-misses", HARDWARE, 3),
    event("branches", HARDWARE, 4),
    event("branch-misses", HARDWARE, 5),
    event("bus-cycles", HARDWARE, 6),
    event("stalled-cycles-frontend", HARDWARE, 7),
    event("stalled-cycles-backend", HARDWARE, 8),
    event("ref-cycles", HARDWARE, 9),
    event("cpu-clock", SOFTWARE, 0),
    event("task-clock", SOFTWARE, 1),
    event("page-faults", SOFTWARE, 2),
    event("context-switches", SOFTWARE, 3),
    event("cpu-migrations", SOFTWARE, 4),
    event("minor-faults", SOFTWARE, 5),
    event("major-faults", SOFTWARE, 6),
    event("alignment-faults", SOFTWARE, 7),
    event("emulation-faults", SOFTWARE, 8),
    cache("l1-dcache-loads", 0, 0, false),
    cache("l1-dcache-load-misses", 0, 0, true),
    cache("l1-dcache-stores", 0, 1, false),
    cache("l1-dcache-store-misses", 0, 1, true),
    cache("l1-dcache-prefetches", 0, 2, false),
    cache("l1-dcache-prefetch-misses", 0, 2, true),
    cache("l1-icache-loads", 1, 0, false),
    cache("l1-icache-load-misses", 1, 0, true),
    cache("l1-icache-prefetches", 1, 2, false),
    cache("l1-icache-prefetch-misses", 1, 2, true),
    cache("llc-loads", 2, 0, false),
    cache("llc-load-misses", 2, 0, true),
    cache("llc-stores", 2, 1, false),
    cache("llc-store-misses", 2, 1, true),
    cache("llc-prefetches", 2, 2, false),
    cache("llc-prefetch-misses", 2, 2, true),
    cache("dtlb-loads", 3, 0, false),
    cache("dtlb-load-misses", 3, 0, true),
    cache("dtlb-stores", 3, 1, false),
    cache("dtlb-store-misses", 3, 1, true),
    cache("dtlb-prefetches", 3, 2, false),
    cache("dtlb-prefetch-misses", 3, 2, true),
    cache("itlb-loads", 4, 0, false),
    cache("itlb-load-misses", 4, 0, true),
    cache("branch-loads", 5, 0, false),
    cache("branch-load-misses", 5, 0, true),
    cache("node-loads", 6, 0, false),
    cache("node-load-misses", 6, 0, true),
    cache("node-stores", 6, 1, false),
    cache("node-store-misses", 6, 1, true),
    cache("node-prefetches", 6, 2, false),
    cache("node-prefetch-misses", 6, 2, true),
];

/// Other names of events.
const ALIASES: [(&str, &str); 7] = [
    ("cpu-cycles", "cycles"),
    ("branch-instructions", "branches"),
    ("idle-cycles-frontend", "stalled-cycles-frontend"),
    ("idle-cycles-backend", "stalled-cycles-backend"),
    ("faults", "page-faults"),
    ("cs", "context-switches"),
    ("migrations", "cpu-migrations"),
];

impl Event {
    /// The event of that name, in any case and with `-` or `_`; `None` if there is none.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase().replace('_', "-");
        let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
        let name = alias.map_or(name.as_str(), |(_, name)| name);
        EVENTS.iter().find(|event| event.name == name).copied()
    }

    /// The names of all events.
    pub fn names() -> impl Iterator<Item = &'static str> {
        EVENTS.iter().map(|event| event.name)
    }

    /// Its name, such as `page-faults`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Whether it is a time, which the kernel counts in nanoseconds.
    #[must_use]
    pub fn is_time(self) -> bool {
        self.kind == SOFTWARE && self.config < 2
    }

    /// Checks that this machine can count it.
    ///
    /// # Errors
    /// The error of perf_event_open(2): `ENOENT`, `EOPNOTSUPP` or `EINVAL` if the machine or the kernel does not have it, `EACCES`
    /// or `EPERM` if this process may not, `ENOSYS` if the kernel counts no events.
    pub fn probe(self) -> io::Result<()> {
        self.open(0, -1, 0).map(drop)
    }

    /// Begins to count it for the processes of a cgroup, and of those below it, while they are on a CPU. `cgroup` is its open
    /// directory.
    ///
    /// # Errors
    /// The error of perf_event_open(2): `ENODEV` if the CPU is offline.
    pub fn count(self, cgroup: impl AsFd, cpu: u32) -> io::Result<Counter> {
        let cpu = i32::try_from(cpu).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.open(cgroup.as_fd().as_raw_fd(), cpu, OF_CGROUP).map(Counter)
    }

    fn open(self, of: i32, cpu: i32, flags: libc::c_ulong) -> io::Result<OwnedFd> {
        let attributes = Attributes {
            kind: self.kind,
            size: const { size_of::<Attributes>() as u32 },
            config: self.config,
            read_format: WITH_TIMES,
            ..Attributes::default()
        };
        // SAFETY: the attributes have the size that they say, and the kernel does not keep them.
        let opened = unsafe {
            libc::syscall(libc::SYS_perf_event_open, &raw const attributes, of, cpu, -1, flags | CLOEXEC)
        };
        match i32::try_from(opened) {
            // SAFETY: the kernel has just opened it for us.
            Ok(descriptor @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// An event that is being counted for a cgroup on one CPU.
#[derive(Debug)]
pub struct Counter(OwnedFd);

impl Counter {
    /// The count so far. If the machine has counted for a part of the time only, as there are more events than counters, the count
    /// is what it would be for all of it. `None` if it was not counted at all.
    ///
    /// # Errors
    /// The error of read(2).
    pub fn read(&self) -> io::Result<Option<u64>> {
        let mut words = [[0; 8]; 3];
        if rustix::io::read(&self.0, words.as_flattened_mut())? != words.as_flattened().len() {
            // The event could not be put on the CPU.
            return Ok(None);
        }
        let [count, enabled, running] = words.map(u64::from_ne_bytes);
        Ok(scaled(count, enabled, running))
    }
}

fn scaled(count: u64, enabled: u64, running: u64) -> Option<u64> {
    match running {
        // No process of the cgroup was on this CPU.
        0 if enabled == 0 => Some(count),
        0 => None,
        _ if running >= enabled => Some(count),
        _ => {
            let scaled = u128::from(count) * u128::from(enabled) / u128::from(running);
            Some(u64::try_from(scaled).unwrap_or(u64::MAX))
        }
    }
}

/// The numbers of the CPUs that are online.
///
/// # Errors
/// If the kernel's list cannot be read.
pub fn online_cpus() -> io::Result<Vec<u32>> {
    parse_list(fs::read_to_string("/sys/devices/system/cpu/online")?.trim_end())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Parses a list such as `0-3,5`.
fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last > MAX_CPU {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_names_of_perf_and_of_mesos() {
        for (name, expected) in [
            ("page-faults", "page-faults"),
            ("Page_Faults", "page-faults"),
            ("faults", "page-faults"),
            ("L1-dcache-loads", "l1-dcache-loads"),
            ("cpu-cycles", "cycles"),
        ] {
            assert_eq!(Event::find(name).unwrap().name(), expected);
        }
        assert!(Event::find("page faults").is_none() && Event::find("").is_none());
        let mut names: Vec<_> = Event::names().collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), EVENTS.len());
        assert!(Event::find("task-clock").unwrap().is_time() && !Event::find("cycles").unwrap().is_time());
        assert_eq!(Event::find("node-prefetch-misses").unwrap().config, 0x1_02_06);
    }

    #[test]
    fn counts_are_scaled_to_the_whole_time() {
        assert_eq!(scaled(10, 100, 100), Some(10));
        assert_eq!(scaled(10, 100, 25), Some(40));
        assert_eq!(scaled(u64::MAX, u64::MAX, 1), Some(u64::MAX));
        assert_eq!(scaled(0, 0, 0), Some(0));
        assert_eq!(scaled(0, 100, 0), None);
    }

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(parse_list("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_list("7"), Some(vec![7]));
        for wrong in ["", "1-", "a", "0-99999999"] {
            assert_eq!(parse_list(wrong), None, "{wrong}");
        }
        assert!(!online_cpus().unwrap().is_empty());
    }
}
