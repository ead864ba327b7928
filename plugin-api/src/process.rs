//! Processes of a container, for isolators that account without control groups.

use std::fs;
use std::io::{self, ErrorKind};
use std::time::Duration;

use cofferdam_linux::generated;

/// A process at one time, from `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its pid in the agent's pid namespace.
    pub pid: i32,
    /// Pid of its parent.
    pub parent: i32,
    /// CPU time in user mode, with that of the children it has waited for.
    pub user: Duration,
    /// CPU time in kernel mode, with that of the children it has waited for.
    pub system: Duration,
    /// Resident set size in bytes. Pages shared with other processes count in full.
    pub resident: u64,
}

impl Process {
    /// Reads the process `pid`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none.
    pub fn read(pid: i32) -> io::Result<Self> {
        Self::read_with_threads(pid).map(|(process, _)| process)
    }

    /// And the number of its threads.
    fn read_with_threads(pid: i32) -> io::Result<(Self, u64)> {
        // The error of a process that ends between open and read.
        const ESRCH: i32 = 3;
        let text = generated::read_whole(format!("/proc/{pid}/stat")).map_err(|error| {
            if error.raw_os_error() == Some(ESRCH) { ErrorKind::NotFound.into() } else { error }
        })?;
        // A process may give itself a name that is not UTF-8.
        let text = String::from_utf8_lossy(&text);
        Self::parse(pid, &text).ok_or_else(|| {
            io::Error::new(ErrorKind::InvalidData, format!("`/proc/{pid}/stat` holds `{}`", text.trim_end()))
        })
    }

    /// See proc_pid_stat(5). The name may contain spaces and parentheses, so fields are counted from its end.
    fn parse(pid: i32, text: &str) -> Option<(Self, u64)> {
        let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
        // The first one here is number 3 of the manual.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = |own: usize, children: usize| Some(from_ticks(field(own)? + field(children)?));
        let process = Self {
            pid,
            parent: fields.get(4 - 3)?.parse().ok()?,
            user: ticks(14, 16)?,
            system: ticks(15, 17)?,
            resident: field(24)? * rustix::param::page_size() as u64,
        };
        Some((process, field(20)?))
    }
}

/// Converts clock ticks, the unit of time in `cpuacct.stat`.
#[must_use]
pub fn from_ticks(ticks: u64) -> Duration {
    let hertz = rustix::param::clock_ticks_per_second().max(1);
    let part = Duration::from_nanos((ticks % hertz) * 1_000_000_000 / hertz);
    Duration::from_secs(ticks / hertz) + part
}

/// The process `root` and all of its descendants. Those that end meanwhile are left out, and so are those that are no
/// descendants any more because their parent has ended.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no process `root`.
pub fn tree(root: i32) -> io::Result<Vec<Process>> {
    let mut found = vec![Process::read_with_threads(root)?];
    let mut next = 0;
    while let Some(&(Process { pid, .. }, threads)) = found.get(next) {
        next += 1;
        match children(pid, threads) {
            Ok(children) => {
                found.extend(children.into_iter().filter_map(|pid| Process::read_with_threads(pid).ok()));
            }
            Err(error) if error.kind() == ErrorKind::NotFound && Process::read(pid).is_err() => {}
            // A kernel without CONFIG_PROC_CHILDREN.
            Err(error) if error.kind() == ErrorKind::NotFound => return descendants(root, all()?),
            Err(error) => return Err(error),
        }
    }
    Ok(found.into_iter().map(|(process, _)| process).collect())
}

/// The children of all threads of a process.
fn children(pid: i32, threads: u64) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    if threads == 1 {
        let text = generated::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        found.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        return Ok(found);
    }
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = generated::read_to_string(thread?.path().join("children"))?;
        found.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    Ok(found)
}

fn all() -> io::Result<Vec<Process>> {
    let number = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    Ok(fs::read_dir("/proc")?.filter_map(number).filter_map(|pid| Process::read(pid).ok()).collect())
}

/// `root` and its descendants among `all`.
fn descendants(root: i32, mut all: Vec<Process>) -> io::Result<Vec<Process>> {
    let mut found: Vec<Process> = all.extract_if(.., |process| process.pid == root).collect();
    if found.is_empty() {
        return Err(ErrorKind::NotFound.into());
    }
    let mut next = 0;
    while let Some(&Process { pid, .. }) = found.get(next) {
        next += 1;
        found.extend(all.extract_if(.., |process| process.parent == pid));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_shift_the_fields() {
        let text = "7 (a) 1 (b) S 3 7 7 0 -1 4194560 1 2 3 4 100 200 50 25 20 0 1 0 99 4096 2 18446 1\n";
        let (process, threads) = Process::parse(7, text).unwrap();
        assert_eq!(threads, 1);
        assert_eq!(process.parent, 3);
        assert_eq!(process.user, from_ticks(150));
        assert_eq!(process.system, from_ticks(225));
        assert_eq!(process.resident, 2 * rustix::param::page_size() as u64);
    }

    #[test]
    fn ticks_are_parts_of_a_second() {
        let hertz = rustix::param::clock_ticks_per_second();
        assert_eq!(from_ticks(hertz * 3), Duration::from_secs(3));
        assert_eq!(from_ticks(hertz / 2), Duration::from_millis(500));
        assert!(from_ticks(u64::MAX) > Duration::from_secs(1 << 40));
    }

    #[test]
    fn descendants_are_found_in_any_order() {
        let process =
            |pid, parent| Process { pid, parent, user: Duration::ZERO, system: Duration::ZERO, resident: 0 };
        let all = vec![process(9, 5), process(5, 3), process(4, 1), process(3, 1), process(6, 4)];
        let mut pids: Vec<i32> = descendants(3, all).unwrap().iter().map(|process| process.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [3, 5, 9]);
        assert_eq!(descendants(77, vec![process(3, 1)]).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn both_ways_of_looking_agree_on_our_own_descendants() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let by_children = tree(me).unwrap();
        let by_parents = descendants(me, all().unwrap()).unwrap();
        for found in [&by_children, &by_parents] {
            assert!(found.iter().any(|process| process.pid == pid && process.parent == me), "{found:?}");
            assert_eq!(found[0].pid, me);
            assert!(found[0].resident > 0);
        }
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(Process::read(pid).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
