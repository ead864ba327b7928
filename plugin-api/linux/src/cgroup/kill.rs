//! Kills all processes of a cgroup, even while they fork.

use std::thread;
use std::time::{Duration, Instant};

use super::{Cgroup, CgroupError, MAX_CGROUPS, Version};
use crate::process::{Process, ProcessError};

/// How long a freeze may take before it is taken for stuck, which happens under memory pressure.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long killed processes may take to end before it is looked for what keeps them from it: at first, and at most.
const RELEASE_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How many cgroups below one are thawed one by one.
const MAX_THAWED: usize = 1 << 8;

/// How many killed processes are waited for at once.
const MAX_AWAITED: usize = 64;

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
            Version::V1 => self.kill_frozen(deadline, &mut release),
        };
        match killed {
            Err(KillError::Cgroup(error)) if error.is_missing() && !self.exists() => Ok(()),
            other => other,
        }
    }

    fn kill_v2(&self, deadline: Instant, release: &mut dyn FnMut(&[i32])) -> Result<(), KillError> {
        match self.write("cgroup.kill", 1) {
            // Kernels before 5.14.
            Err(error) if error.is_missing() && self.exists() => return self.kill_frozen(deadline, release),
            other => other?,
        }
        let mut events = self.events()?;
        let mut pause = RELEASE_PAUSE.0;
        while !events.wait_empty(deadline.min(Instant::now() + pause))? {
            if Instant::now() >= deadline {
                return Err(self.stuck()?);
            }
            match self.all_procs() {
                // Those in its first cgroups may have to be released before others can end.
                Err(CgroupError::TooMany { .. }) => release(&self.procs()?),
                pids => release(&pids?),
            }
            self.write("cgroup.kill", 1)?;
            pause = (pause * 2).min(RELEASE_PAUSE.1);
        }
        Ok(())
    }

    /// Freezes, kills, thaws: a frozen process cannot fork after the list of pids was read. However long one round takes,
    /// because of the number of cgroups below, it is complete.
    fn kill_frozen(&self, deadline: Instant, release: &mut dyn FnMut(&[i32])) -> Result<(), KillError> {
        loop {
            if self.has_no_procs()? {
                return Ok(());
            }
            self.freeze()?;
            let frozen = self.wait_frozen(deadline.min(Instant::now() + FREEZE_TIMEOUT))?;
            // If the freeze is stuck: kill what is listed, then thaw, in this order (MESOS-1758), and start again.
            let pids = self.procs_in_first(if frozen { u64::MAX } else { MAX_CGROUPS });
            let killed = pids.map_err(KillError::from).and_then(|pids| {
                if !frozen {
                    release(&pids);
                }
                self.kill_each(pids)
            });
            self.thaw()?;
            let killed = killed?;
            if frozen {
                self.wait_ended(&killed, deadline)?;
            }
            if Instant::now() >= deadline {
                return if self.has_no_procs()? { Ok(()) } else { Err(self.stuck()?) };
            }
        }
    }

    fn has_no_procs(&self) -> Result<bool, CgroupError> {
        match self.all_procs() {
            Err(CgroupError::TooMany { .. }) => Ok(false),
            procs => Ok(procs?.is_empty()),
        }
    }

    /// Waits for killed processes. In v1, those that do not end because of a cgroup below that is still frozen are moved
    /// here, where nothing is.
    fn wait_ended(&self, killed: &[Process], deadline: Instant) -> Result<(), KillError> {
        for process in killed {
            let left = deadline.saturating_duration_since(Instant::now());
            let pause = left.min(RELEASE_PAUSE.0);
            if process.wait(Some(pause)).unwrap_or(true) {
                continue;
            }
            if self.version == Version::V1 {
                match self.adopt(process.pid()) {
                    // It has ended.
                    Err(CgroupError::Write { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {}
                    adopted => adopted?,
                }
            }
            if !process.wait(Some(left)).unwrap_or(true) {
                break;
            }
        }
        Ok(())
    }

    /// All current processes in the first `limit` cgroups of those at and below it.
    fn procs_in_first(&self, limit: u64) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        let walked = self.walk(limit, |cgroup| {
            pids.extend(cgroup.procs()?);
            Ok(())
        });
        match walked {
            Err(CgroupError::TooMany { .. }) | Ok(()) => Ok(pids),
            Err(error) => Err(error),
        }
    }

    /// Sends SIGKILL to processes. If one cannot be killed, the others are. Returns some of them, to wait for.
    fn kill_each(&self, pids: Vec<i32>) -> Result<Vec<Process>, KillError> {
        let mut killed = Vec::new();
        let mut failed = None;
        for pid in pids {
            let process = match Process::open_any(pid) {
                Err(ProcessError::Gone { .. }) => continue,
                opened => opened,
            };
            match process.and_then(|process| process.kill().map(|()| process)) {
                // Each takes a descriptor.
                Ok(process) if killed.len() < MAX_AWAITED => killed.push(process),
                Ok(_) => {}
                Err(source) => failed = Some(KillError::Process { path: self.path.clone(), source }),
            }
        }
        failed.map_or(Ok(killed), Err)
    }

    /// Freezes all processes in the cgroup and below it. They cannot observe it.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        match self.version {
            Version::V1 => self.write("freezer.state", "FROZEN"),
            Version::V2 => self.write("cgroup.freeze", 1),
        }
    }

    /// Thaws the processes, also those that were frozen in a v1 cgroup below it, as a container may do itself. Only the first
    /// 256 of these: what that takes is in proportion to the depth of each.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        const STATE: &str = "freezer.state";
        const THAWED: &str = "THAWED";
        match self.version {
            Version::V1 => {
                self.write(STATE, THAWED)?;
                let mut left = MAX_THAWED;
                let thawed = self.walk(MAX_CGROUPS, |cgroup| {
                    if left > 0 && cgroup.read("freezer.self_freezing")? != "0" {
                        left -= 1;
                        cgroup.write(STATE, THAWED)?;
                    }
                    Ok(())
                });
                match thawed {
                    // As with more of them that were frozen.
                    Err(CgroupError::TooMany { .. }) => Ok(()),
                    thawed => thawed,
                }
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
        let pids = self.all_procs().or_else(|_| self.procs())?;
        Ok(KillError::Stuck { path: self.path.clone(), pids })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

    use super::super::{Cgroup, Cgroups, Version};
    use crate::process::Process;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// A new cgroup with one below it. Its processes are killed and it is removed at the end of a test, however it ends.
    struct Own(Cgroup);

    impl std::ops::Deref for Own {
        type Target = Cgroup;

        fn deref(&self) -> &Cgroup {
            &self.0
        }
    }

    impl Drop for Own {
        fn drop(&mut self) {
            let killed = self.kill_all(TIMEOUT);
            let removed = self.remove(TIMEOUT);
            if !std::thread::panicking() {
                killed.unwrap();
                removed.unwrap();
                assert!(!self.exists());
            }
        }
    }

    /// One in each available hierarchy.
    fn cgroups(name: &str) -> Vec<Own> {
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
        let found: Vec<_> = kinds.into_iter().flatten().map(Own).collect();
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

    /// The kernel finds names of cgroups by a hash, which those of each pair here share. A walk that continued behind one of
    /// them would begin there again, or leave the other one out.
    #[test]
    fn names_that_share_a_hash_hide_no_process() {
        for cgroup in cgroups("hash") {
            let below = cgroup.child("below");
            let names = ["al", "ba", "xba", "xal", "deep"];
            names.iter().for_each(|name| below.child(name).create().unwrap());
            // So deep that the outer ones are closed meanwhile.
            let mut inner = below.child("deep");
            for _ in 0..40 {
                inner = inner.child("d");
                inner.create().unwrap();
            }
            let mut walked = Vec::new();
            let found = below.walk(1000, |cgroup| {
                walked.push(cgroup.path().to_owned());
                Ok(())
            });
            found.unwrap();
            let mut once = walked.clone();
            once.sort();
            once.dedup();
            assert_eq!((walked.len(), once.len()), (46, 46), "{walked:?}");
            let mut children: Vec<_> = names.iter().map(|name| forker(&below.child(name))).collect();
            cgroup.kill_frozen(Instant::now() + TIMEOUT, &mut |_| {}).unwrap();
            assert_eq!(cgroup.all_procs().unwrap(), [0; 0]);
            for child in &mut children {
                child.wait().unwrap();
            }
        }
    }

    /// Whether processes that enter it are frozen. What it reports of its state may be that of the last processes in it: on
    /// v2 an empty cgroup can stay `frozen`, without an effect, if those below it were not when it was thawed.
    fn is_to_be_frozen(cgroup: &Cgroup) -> bool {
        let knob = if cgroup.version() == Version::V2 { "cgroup.freeze" } else { "freezer.self_freezing" };
        cgroup.read(knob).unwrap() != "0"
    }

    /// Kernels before 5.14 need this on v2 too.
    #[test]
    fn forking_processes_are_killed_by_freezing_first() {
        for cgroup in cgroups("frozen") {
            let mut children = [forker(&cgroup), forker(&cgroup.child("below"))];
            cgroup.kill_frozen(Instant::now() + TIMEOUT, &mut |_| {}).unwrap();
            assert_eq!(cgroup.all_procs().unwrap(), [0; 0]);
            assert!(!is_to_be_frozen(&cgroup));
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
                        true => cgroup.kill_frozen(Instant::now() + TIMEOUT, &mut |_| {}).unwrap(),
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

    /// Creates cgroups in one another below this one. Returns the innermost.
    fn nest(cgroup: &Cgroup, depth: usize, name: &str) -> OwnedFd {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut innermost = openat(CWD, cgroup.path(), flags, Mode::empty()).unwrap();
        for _ in 0..depth {
            mkdirat(&innermost, name, Mode::RWXU).unwrap();
            innermost = openat(&innermost, name, flags, Mode::empty()).unwrap();
        }
        innermost
    }

    fn write_in(directory: &OwnedFd, knob: &str, value: &str) {
        let file = openat(directory, knob, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        rustix::io::write(&file, value.as_bytes()).unwrap();
    }

    /// Root in a container can create cgroups below its own, deeper than the longest path, and freeze them.
    #[test]
    fn processes_in_cgroups_of_any_depth_are_found_and_killed() {
        for freezes in [false, true] {
            for cgroup in cgroups(&format!("deep-{freezes}")) {
                let mut child = forker(&cgroup);
                let innermost = nest(&cgroup, 60, &"d".repeat(100));
                write_in(&innermost, "cgroup.procs", &child.id().to_string());
                if cgroup.version() == Version::V1 {
                    write_in(&innermost, "freezer.state", "FROZEN");
                }
                assert!(cgroup.all_procs().unwrap().contains(&i32::try_from(child.id()).unwrap()));
                match freezes {
                    false => cgroup.kill_all(TIMEOUT).unwrap(),
                    true => cgroup.kill_frozen(Instant::now() + TIMEOUT, &mut |_| {}).unwrap(),
                }
                assert_eq!(cgroup.all_procs().unwrap(), [0; 0]);
                child.wait().unwrap();
            }
        }
    }

    /// More frozen cgroups than are thawed one by one, with the process in the innermost.
    #[test]
    fn a_process_below_many_frozen_cgroups_is_killed() {
        for cgroup in cgroups("many-frozen") {
            let mut child = forker(&cgroup);
            for index in 0..2 * super::MAX_THAWED {
                let below = cgroup.child(format!("b{index}"));
                below.create().unwrap();
                below.freeze().unwrap();
            }
            let innermost = nest(&cgroup.child("b0"), 30, "below");
            write_in(&innermost, "cgroup.procs", &child.id().to_string());
            cgroup.kill_frozen(Instant::now() + TIMEOUT, &mut |_| {}).unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn a_walk_needs_few_descriptors_and_finds_all_cgroups() {
        for cgroup in cgroups("walk") {
            for index in 0..300 {
                cgroup.child(format!("b{index}")).create().unwrap();
            }
            nest(&cgroup.child("b7"), 100, "deep");
            let open = || std::fs::read_dir("/proc/thread-self/fd").unwrap().count();
            let (before, mut most, mut found) = (open(), 0, 0);
            cgroup
                .walk(1000, |below| {
                    assert!(below.has("cgroup.procs"), "{}", below.path().display());
                    most = most.max(open());
                    found += 1;
                    Ok(())
                })
                .unwrap();
            assert_eq!(found, 1 + 1 + 300 + 100);
            // Tests in other threads open some as well.
            assert!(most < before + 80, "{before} {most}");
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
