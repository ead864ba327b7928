//! Kills all processes of a cgroup, even while they fork.

use std::thread;
use std::time::{Duration, Instant};

use super::{Cgroup, CgroupError, Version};
use crate::process::{Process, ProcessError};

/// How long a freeze may take before it is taken for stuck, which happens under memory pressure.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long killed processes may take to end before it is looked for what keeps them from it: at first, and at most.
const RELEASE_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Why the processes of a cgroup could not be killed.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// A file of the cgroup could not be read or written.
    #[error("cannot kill the processes of a cgroup")]
    Cgroup(#[from] CgroupError),
    /// A process could not be opened or signalled.
    #[error("cannot kill a process of cgroup {}", path.display())]
    Process {
        /// The cgroup.
        path: std::path::PathBuf,
        /// The reason.
        source: ProcessError,
    },
    /// Processes are still running after SIGKILL.
    #[error("processes {pids:?} of cgroup {} are still running after SIGKILL", path.display())]
    Stuck {
        /// The cgroup.
        path: std::path::PathBuf,
        /// Their pids.
        pids: Vec<i32>,
    },
}

impl Cgroup {
    /// Kills every process in the cgroup and below it. Returns when none is left, or fails after `timeout`.
    ///
    /// A v1 cgroup must be in the hierarchy of the freezer. A cgroup that does not exist has no processes.
    pub fn kill_all(&self, timeout: Duration) -> Result<(), KillError> {
        self.kill_all_with(timeout, |_| {})
    }

    /// As [`Cgroup::kill_all`]. `release` is called, again and again, with processes that were killed and do not end, such
    /// as those that are frozen by a freezer of v1: it removes what keeps them from it.
    pub fn kill_all_with(&self, timeout: Duration, mut release: impl FnMut(&[i32])) -> Result<(), KillError> {
        let deadline = Instant::now() + timeout;
        let killed = match self.version {
            Version::V2 => self.kill_v2(deadline, &mut release),
            Version::V1 => self.kill_frozen(deadline),
        };
        match killed {
            Err(KillError::Cgroup(error)) if error.is_missing() && !self.exists() => Ok(()),
            other => other,
        }
    }

    fn kill_v2(&self, deadline: Instant, release: &mut dyn FnMut(&[i32])) -> Result<(), KillError> {
        match self.write("cgroup.kill", 1) {
            // Kernels before 5.14.
            Err(error) if error.is_missing() && self.exists() => return self.kill_frozen(deadline),
            other => other?,
        }
        let mut events = self.events()?;
        let mut pause = RELEASE_PAUSE.0;
        while !events.wait_empty(deadline.min(Instant::now() + pause))? {
            if Instant::now() >= deadline {
                return Err(self.stuck()?);
            }
            release(&self.all_procs()?);
            self.write("cgroup.kill", 1)?;
            pause = (pause * 2).min(RELEASE_PAUSE.1);
        }
        Ok(())
    }

    /// Freezes, kills, thaws: a frozen process cannot fork after the list of pids was read.
    fn kill_frozen(&self, deadline: Instant) -> Result<(), KillError> {
        loop {
            if self.all_procs()?.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.stuck()?);
            }
            self.freeze()?;
            let frozen = self.wait_frozen(deadline.min(Instant::now() + FREEZE_TIMEOUT))?;
            // If the freeze is stuck: kill what is listed, then thaw, in this order (MESOS-1758), and start again.
            let killed = self.kill_listed();
            self.thaw()?;
            let killed = killed?;
            if frozen {
                for process in killed {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if !process.wait(Some(left)).unwrap_or(true) {
                        break;
                    }
                }
            }
        }
    }

    /// Sends SIGKILL to all current processes.
    fn kill_listed(&self) -> Result<Vec<Process>, KillError> {
        let mut killed = Vec::new();
        for pid in self.all_procs()? {
            let process = match Process::open_any(pid) {
                Err(ProcessError::Gone { .. }) => continue,
                opened => opened,
            };
            let process = process.and_then(|process| process.kill().map(|()| process));
            let failed = |source| KillError::Process { path: self.path.clone(), source };
            killed.push(process.map_err(failed)?);
        }
        Ok(killed)
    }

    /// Freezes all processes in the cgroup and below it. They cannot observe it.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        match self.version {
            Version::V1 => self.write("freezer.state", "FROZEN"),
            Version::V2 => self.write("cgroup.freeze", 1),
        }
    }

    /// Thaws the processes, also those that were frozen in a v1 cgroup below it, as a container may do itself.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        match self.version {
            Version::V1 => {
                self.subtree()?.iter().try_for_each(|cgroup| match cgroup.write("freezer.state", "THAWED") {
                    Err(error) if error.is_missing() && cgroup.path != self.path => Ok(()),
                    other => other,
                })
            }
            Version::V2 => self.write("cgroup.freeze", 0),
        }
    }

    /// Whether all processes are frozen.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        match self.version {
            Version::V1 => Ok(self.read("freezer.state")? == "FROZEN"),
            Version::V2 => Ok(self.read_table("cgroup.events")?.get("frozen") == Some(&1)),
        }
    }

    fn wait_frozen(&self, deadline: Instant) -> Result<bool, CgroupError> {
        let mut pause = Duration::from_micros(50);
        while !self.is_frozen()? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            // The v1 freezer has no notification, and reading the state makes it progress.
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        Ok(true)
    }

    fn stuck(&self) -> Result<KillError, CgroupError> {
        Ok(KillError::Stuck { path: self.path.clone(), pids: self.all_procs()? })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::super::{Cgroup, Cgroups, Version};
    use crate::process::Process;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// A new cgroup in each available hierarchy, to be removed by the test.
    fn cgroups(name: &str) -> Vec<Cgroup> {
        if !rustix::process::geteuid().is_root() {
            assert!(
                std::env::var_os("CI").is_none(),
                "this test needs root; with CI set it must not be skipped"
            );
            eprintln!("\n*** SKIPPED: killing cgroups needs root and was NOT tested ***\n");
            return Vec::new();
        }
        let detected = Cgroups::detect().unwrap();
        let path = format!("cofferdam-kill-{name}-{}", std::process::id());
        let kinds = [detected.unified(&path), detected.cgroup("freezer", &path)];
        let found: Vec<_> = kinds.into_iter().flatten().collect();
        assert!(!found.is_empty());
        found.iter().for_each(|cgroup| cgroup.child("below").create().unwrap());
        found
    }

    /// A process that forks in a loop as soon as it is in the cgroup.
    fn forker(cgroup: &Cgroup) -> Child {
        let script = "read go; ( sleep 1000 & ); while :; do ( : ); done";
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        cgroup.adopt(i32::try_from(child.id()).unwrap()).unwrap();
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        child
    }

    #[test]
    fn forking_processes_are_all_killed_in_a_subtree() {
        for cgroup in cgroups("all") {
            let mut children = [forker(&cgroup), forker(&cgroup.child("below"))];
            cgroup.kill_all(TIMEOUT).unwrap();
            assert_eq!(cgroup.all_procs().unwrap(), [0; 0]);
            for child in &mut children {
                child.wait().unwrap();
            }
            cgroup.remove(TIMEOUT).unwrap();
            assert!(!cgroup.exists());
            cgroup.kill_all(TIMEOUT).unwrap();
        }
    }

    /// Kernels before 5.14 need this on v2 too.
    #[test]
    fn forking_processes_are_killed_by_freezing_first() {
        for cgroup in cgroups("frozen") {
            let mut children = [forker(&cgroup), forker(&cgroup.child("below"))];
            cgroup.kill_frozen(Instant::now() + TIMEOUT).unwrap();
            assert_eq!(cgroup.all_procs().unwrap(), [0; 0]);
            assert!(!cgroup.is_frozen().unwrap());
            for child in &mut children {
                child.wait().unwrap();
            }
            cgroup.remove(TIMEOUT).unwrap();
        }
    }

    #[test]
    fn a_frozen_cgroup_is_killed() {
        for cgroup in cgroups("already-frozen") {
            let mut child = forker(&cgroup);
            cgroup.freeze().unwrap();
            assert!(cgroup.wait_frozen(Instant::now() + TIMEOUT).unwrap());
            cgroup.kill_all(TIMEOUT).unwrap();
            child.wait().unwrap();
            cgroup.remove(TIMEOUT).unwrap();
        }
    }

    /// As root in a container does that has a cgroup of its own in the hierarchy.
    #[test]
    fn a_cgroup_below_that_was_frozen_by_itself_is_killed() {
        for cgroup in cgroups("frozen-below") {
            let mut children = [forker(&cgroup), forker(&cgroup.child("below"))];
            cgroup.child("below").freeze().unwrap();
            assert!(cgroup.child("below").wait_frozen(Instant::now() + TIMEOUT).unwrap());
            cgroup.kill_all(TIMEOUT).unwrap();
            for child in &mut children {
                child.wait().unwrap();
            }
            cgroup.remove(TIMEOUT).unwrap();
        }
    }

    /// Root in a container that can write to its cgroup can make one below it threaded, whose processes cannot be listed.
    #[test]
    fn a_threaded_cgroup_below_is_killed() {
        for freezes in [false, true] {
            for cgroup in cgroups(&format!("threaded-{freezes}")) {
                if cgroup.version() == Version::V2 {
                    let below = cgroup.child("below");
                    below.write("cgroup.type", "threaded").unwrap();
                    let mut child = forker(&cgroup);
                    below.adopt(i32::try_from(child.id()).unwrap()).unwrap();
                    assert!(cgroup.all_procs().unwrap().contains(&i32::try_from(child.id()).unwrap()));
                    match freezes {
                        false => cgroup.kill_all(TIMEOUT).unwrap(),
                        true => cgroup.kill_frozen(Instant::now() + TIMEOUT).unwrap(),
                    }
                    assert_eq!(cgroup.all_procs().unwrap(), [0; 0]);
                    child.wait().unwrap();
                }
                cgroup.remove(TIMEOUT).unwrap();
            }
        }
    }

    #[test]
    fn processes_that_another_freezer_keeps_from_ending_are_released() {
        let [cgroup, freezer] = &cgroups("other-freezer")[..] else { return };
        let mut child = forker(cgroup);
        let pid = i32::try_from(child.id()).unwrap();
        freezer.adopt(pid).unwrap();
        freezer.freeze().unwrap();
        assert!(freezer.wait_frozen(Instant::now() + TIMEOUT).unwrap());
        let error = cgroup.kill_all(Duration::from_millis(300)).unwrap_err();
        assert!(error.to_string().contains(&pid.to_string()), "{error}");
        cgroup
            .kill_all_with(TIMEOUT, |pids| {
                // A child that it had forked before may not have ended yet either.
                assert!(pids.contains(&pid), "{pids:?}");
                freezer.thaw().unwrap();
            })
            .unwrap();
        child.wait().unwrap();
        for cgroup in [cgroup, freezer] {
            cgroup.remove(TIMEOUT).unwrap();
        }
    }

    /// Root in a container can create cgroups below its own, deeper than the longest path.
    #[test]
    fn cgroups_of_any_depth_are_removed() {
        use rustix::fs::{Mode, OFlags, mkdirat, openat};
        for cgroup in cgroups("deep") {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let mut innermost = cgroup.directory().unwrap();
            for _ in 0..60 {
                let name = "d".repeat(100);
                mkdirat(&innermost, &*name, Mode::RWXU).unwrap();
                innermost = openat(&innermost, &*name, flags, Mode::empty()).unwrap();
            }
            drop(innermost);
            cgroup.remove(TIMEOUT).unwrap();
            assert!(!cgroup.exists());
        }
    }

    #[test]
    fn an_event_reports_an_empty_cgroup() {
        for cgroup in cgroups("event") {
            if cgroup.version() == Version::V2 {
                let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
                let pid = i32::try_from(child.id()).unwrap();
                cgroup.child("below").adopt(pid).unwrap();
                let mut events = cgroup.events().unwrap();
                assert!(events.populated().unwrap());
                assert!(!events.wait_empty(Instant::now() + Duration::from_millis(5)).unwrap());
                Process::open_any(pid).unwrap().kill().unwrap();
                assert!(events.wait_empty(Instant::now() + TIMEOUT).unwrap());
                child.wait().unwrap();
                cgroup.remove(TIMEOUT).unwrap();
                assert!(!events.populated().unwrap());
            }
            cgroup.remove(TIMEOUT).unwrap();
        }
    }
}
