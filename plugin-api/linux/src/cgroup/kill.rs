//! How all processes of a cgroup are killed for certain, while they may be forking.

use std::thread;
use std::time::{Duration, Instant};

use super::{Cgroup, CgroupError, Version};
use crate::process::{Process, ProcessError};

/// How long a freeze may take before it is believed to be stuck, which happens under memory pressure.
const FREEZE_PATIENCE: Duration = Duration::from_secs(2);

/// Processes that could not be killed.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// A knob refused.
    #[error("cannot kill the processes of a cgroup")]
    Cgroup(#[from] CgroupError),
    /// A process refused.
    #[error("cannot kill a process of cgroup {}", path.display())]
    Process {
        /// The cgroup.
        path: std::path::PathBuf,
        /// What was the matter.
        source: ProcessError,
    },
    /// They were sent SIGKILL, and are still there.
    #[error("processes {pids:?} of cgroup {} outlive SIGKILL", path.display())]
    Stuck {
        /// The cgroup.
        path: std::path::PathBuf,
        /// They.
        pids: Vec<i32>,
    },
}

impl Cgroup {
    /// Kills every process in it and below it. Returns when none is left, or after `patience`.
    ///
    /// A v1 cgroup has to be one of the freezer's hierarchy. A cgroup that does not exist holds nothing.
    pub fn kill_all(&self, patience: Duration) -> Result<(), KillError> {
        let deadline = Instant::now() + patience;
        let killed = match self.version {
            Version::V2 => self.kill_v2(deadline),
            Version::V1 => self.kill_frozen(deadline),
        };
        match killed {
            Err(KillError::Cgroup(error)) if error.is_missing() && !self.exists() => Ok(()),
            other => other,
        }
    }

    fn kill_v2(&self, deadline: Instant) -> Result<(), KillError> {
        match self.write("cgroup.kill", 1) {
            // Kernels before 5.14.
            Err(error) if error.is_missing() && self.exists() => return self.kill_frozen(deadline),
            other => other?,
        }
        if self.events()?.wait_empty(deadline)? { Ok(()) } else { Err(self.stuck()?) }
    }

    /// Freezes, kills, thaws: between freezing and thawing nobody can fork away from the list of those to kill.
    fn kill_frozen(&self, deadline: Instant) -> Result<(), KillError> {
        loop {
            if self.all_procs()?.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.stuck()?);
            }
            self.freeze()?;
            let frozen = self.wait_frozen(deadline.min(Instant::now() + FREEZE_PATIENCE))?;
            // A stuck freeze is killed as far as it is and thawed, in this order (MESOS-1758), and begun again.
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

    /// Sends SIGKILL to all that are there now.
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

    /// Stops all processes in it and below it, in a way that they cannot notice.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        match self.version {
            Version::V1 => self.write("freezer.state", "FROZEN"),
            Version::V2 => self.write("cgroup.freeze", 1),
        }
    }

    /// Lets them go on.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        match self.version {
            Version::V1 => self.write("freezer.state", "THAWED"),
            Version::V2 => self.write("cgroup.freeze", 0),
        }
    }

    /// Whether all have stopped.
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
            // The v1 freezer announces nothing; reading the state is what moves it on.
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

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A new cgroup of each kind there is, to be removed by the test.
    fn cgroups(name: &str) -> Vec<Cgroup> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "these tests need root, and CI must run them");
            eprintln!("\n*** SKIPPED: killing cgroups needs root, and was NOT tested ***\n");
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

    /// A process that forks without end, once it is in the cgroup.
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
            cgroup.kill_all(PATIENCE).unwrap();
            assert_eq!(cgroup.all_procs().unwrap(), [0; 0]);
            for child in &mut children {
                child.wait().unwrap();
            }
            cgroup.remove(PATIENCE).unwrap();
            assert!(!cgroup.exists());
            cgroup.kill_all(PATIENCE).unwrap();
        }
    }

    /// What kernels before 5.14 need on v2, too.
    #[test]
    fn freezing_first_kills_as_well() {
        for cgroup in cgroups("frozen") {
            let mut children = [forker(&cgroup), forker(&cgroup.child("below"))];
            cgroup.kill_frozen(Instant::now() + PATIENCE).unwrap();
            assert_eq!(cgroup.all_procs().unwrap(), [0; 0]);
            assert!(!cgroup.is_frozen().unwrap());
            for child in &mut children {
                child.wait().unwrap();
            }
            cgroup.remove(PATIENCE).unwrap();
        }
    }

    #[test]
    fn a_paused_cgroup_is_killed() {
        for cgroup in cgroups("paused") {
            let mut child = forker(&cgroup);
            cgroup.freeze().unwrap();
            assert!(cgroup.wait_frozen(Instant::now() + PATIENCE).unwrap());
            cgroup.kill_all(PATIENCE).unwrap();
            child.wait().unwrap();
            cgroup.remove(PATIENCE).unwrap();
        }
    }

    #[test]
    fn emptiness_is_an_event() {
        for cgroup in cgroups("event") {
            if cgroup.version() == Version::V2 {
                let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
                let pid = i32::try_from(child.id()).unwrap();
                cgroup.child("below").adopt(pid).unwrap();
                let mut events = cgroup.events().unwrap();
                assert!(events.populated().unwrap());
                assert!(!events.wait_empty(Instant::now() + Duration::from_millis(5)).unwrap());
                Process::open_any(pid).unwrap().kill().unwrap();
                assert!(events.wait_empty(Instant::now() + PATIENCE).unwrap());
                child.wait().unwrap();
                cgroup.remove(PATIENCE).unwrap();
                assert!(!events.populated().unwrap());
            }
            cgroup.remove(PATIENCE).unwrap();
        }
    }
}
