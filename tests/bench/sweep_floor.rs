//! The least that usage of many containers takes: the files that the shipped isolators read, read by one thread.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_linux::cgroup::{Cgroups, Version};

use crate::Outcome;

/// Controller, and its interface files on v1 and v2.
const FILES: [(&str, &[&str], &[&str]); 3] = [
    ("cpu", &["cpu.stat", "cpu.cfs_quota_us"], &["cpu.stat", "cpu.max"]),
    ("cpuacct", &["cpuacct.stat"], &[]),
    (
        "memory",
        &[
            "memory.stat",
            "memory.usage_in_bytes",
            "memory.kmem.usage_in_bytes",
            "memory.kmem.tcp.usage_in_bytes",
        ],
        &["memory.stat", "memory.current", "memory.swap.current", "memory.max", "memory.events"],
    ),
];

/// The files of some containers.
pub struct SweepFloor(Vec<PathBuf>);

impl SweepFloor {
    /// Of containers by their first processes.
    pub fn new(pids: &[i32]) -> Outcome<Self> {
        let machine = Cgroups::detect()?;
        let mut paths = Vec::new();
        for &pid in pids {
            let own = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
            for (controller, v1, v2) in FILES {
                let Some((hierarchy, version)) = machine.hierarchy(controller) else { continue };
                let files = if version == Version::V1 { v1 } else { v2 };
                let directory = hierarchy.mount.join(relative(&own, controller, version)?);
                paths.extend(files.iter().map(|file| directory.join(file)).filter(|path| path.exists()));
            }
            // Two isolators read its processes.
            for _ in 0..2 {
                paths.push(format!("/proc/{pid}/stat").into());
                paths.push(format!("/proc/{pid}/task/{pid}/children").into());
            }
        }
        Ok(Self(paths))
    }

    /// How many files of a container are read.
    pub fn files(&self, containers: usize) -> usize {
        self.0.len() / containers.max(1)
    }

    /// Reads all. Returns the CPU time in milliseconds.
    pub fn read(&self) -> Outcome<f64> {
        let mut buffer = vec![0; 1 << 16];
        let before = cpu_time("/proc/self/task")?;
        for path in &self.0 {
            std::hint::black_box(File::open(path)?.read(&mut buffer)?);
        }
        let spent = cpu_time("/proc/self/task")?.saturating_sub(before);
        Ok(spent.as_secs_f64() * 1e3)
    }
}

/// CPU time of the threads that a process has now: the first number of their `schedstat`, in nanoseconds.
pub fn cpu_time(tasks: &str) -> Outcome<Duration> {
    let mut sum = Duration::ZERO;
    for task in fs::read_dir(tasks)? {
        // It may have ended.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        let nanos = text.split(' ').next().ok_or("an empty `schedstat`")?;
        sum += Duration::from_nanos(nanos.parse()?);
    }
    Ok(sum)
}

/// Path of a process's cgroup in a hierarchy, from `/proc/PID/cgroup`: `4:memory:/web` or `0::/web`.
pub fn relative<'a>(own: &'a str, controller: &str, version: Version) -> Outcome<&'a Path> {
    let found = own.lines().find_map(|line| {
        let (number, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let is_it = match version {
            Version::V1 => controllers.split(',').any(|name| name == controller),
            Version::V2 => number == "0",
        };
        is_it.then_some(path)
    });
    let path = found.ok_or_else(|| format!("a container is in no cgroup of `{controller}`"))?;
    Ok(Path::new(path.trim_start_matches('/')))
}
