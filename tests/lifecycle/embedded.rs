//! `cofferdam run` without a daemon, which is killed.
//!
//! It runs in a mount namespace with a `/run` and a `/var/lib` of the test's own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use cofferdam_core::agent::instance_of;
use cofferdam_core::config::LauncherKind;
use cofferdam_linux::process::{Process, children_of};
use cofferdam_tests::daemon::TIMEOUT;
use cofferdam_tests::injector::{Actor, Effect, Fault, Injector};
use cofferdam_tests::world::World;
use cofferdam_tests::{is_root, paths};

/// Mounts the test's directories and executes the rest of the command line.
const WITH_DIRECTORIES: &str =
    r#"mount --bind "$1" /run && mount --bind "$2" /var/lib && shift 2 && exec "$@""#;

/// A world and the directories in which `cofferdam run` keeps its state.
struct Home {
    world: World,
    run: PathBuf,
    lib: PathBuf,
}

impl Home {
    fn new(world: World) -> Self {
        let [run, lib] = ["host-run", "host-lib"].map(|name| world.directory().join(name));
        fs::create_dir(&run).unwrap();
        fs::create_dir(&lib).unwrap();
        Self { world, run, lib }
    }

    /// `cofferdam run` with a shell command.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", WITH_DIRECTORIES, "sh"]).args([&self.run, &self.lib]);
        command.arg(paths::program()).args(["run", "--config"]).arg(self.world.write_config());
        if self.world.config.launcher == LauncherKind::Linux {
            command.arg("--rootfs").arg(self.world.rootfs());
        }
        command.args(["--shell", line]).stdin(Stdio::null());
        command
    }

    /// The runtime directories of agents that have not removed theirs.
    fn left(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.run.join("cofferdam-run")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// The cgroups of these agents, with those below.
    fn cgroups(&self, left: &[PathBuf]) -> Vec<PathBuf> {
        let names = left.iter().map(|path| Path::new("/run/cofferdam-run").join(path.file_name().unwrap()));
        let instances: Vec<_> = names.map(|path| instance_of(&path)).collect();
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
        let mut found: Vec<_> = hierarchies
            .chain(["/sys/fs/cgroup".into()])
            .flat_map(|path| instances.iter().map(move |name| path.join("cofferdam-test").join(name)))
            .filter(|path| path.is_dir())
            .collect();
        let mut index = 0;
        while let Some(cgroup) = found.get(index) {
            let children = fs::read_dir(cgroup).into_iter().flatten().flatten().map(|entry| entry.path());
            let children: Vec<_> = children.filter(|path| path.is_dir()).collect();
            found.extend(children);
            index += 1;
        }
        found
    }

    /// Waits until no process is left in the cgroups of agents that were killed. Nobody else kills them.
    fn wait_until_empty(&self, when: &str) {
        let left = self.left();
        loop {
            let procs = |cgroup: PathBuf| fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            let procs: String = self.cgroups(&left).into_iter().map(procs).collect();
            let pids: Vec<i32> = procs.lines().map(|pid| pid.parse().unwrap()).collect();
            if pids.is_empty() {
                return;
            }
            for process in pids.into_iter().filter_map(|pid| Process::open_any(pid).ok()) {
                assert!(process.wait(Some(TIMEOUT)).unwrap(), "{when}: {} is left", process.pid());
            }
        }
    }

    /// Runs another command, which removes what the killed ones have left behind.
    fn assert_swept(&self) {
        let left = self.left();
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        for directory in &left {
            File::open(directory).unwrap().set_modified(long_ago).unwrap();
        }
        let output = self.command("echo done").output().unwrap();
        assert!(output.status.success() && output.stdout == b"done\n", "{output:?}");
        assert_eq!(self.left(), Vec::<PathBuf>::new(), "{output:?}");
        assert_eq!(self.cgroups(&left), Vec::<PathBuf>::new(), "{output:?}");
        let kept = fs::read_dir(self.lib.join("cofferdam-run")).unwrap().flatten();
        assert_eq!(kept.map(|entry| entry.file_name()).collect::<Vec<_>>(), ["plugins"]);
        assert_eq!(self.world.processes(), [0_i32; 0]);
    }
}

fn descendants(pid: i32) -> Vec<Process> {
    let mut found = Vec::new();
    for child in children_of(pid).unwrap() {
        found.extend(descendants(child));
        found.extend(Process::open_any(child));
    }
    found
}

#[test]
fn a_command_ends_when_its_agent_is_killed() {
    if !is_root("`cofferdam run` without a daemon") {
        return;
    }
    for home in [World::shipped(), World::posix()].map(Home::new) {
        // One that ignores SIGTERM, and one that has left the session and lost its parent.
        let line = "trap '' TERM; (setsid sleep 1000 & sleep 1000 &); echo ready; wait; sleep 1000";
        let mut child = home.command(line).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        output.read_line(&mut text).unwrap();
        assert_eq!(text, "ready\n");
        let processes = descendants(i32::try_from(child.id()).unwrap());
        assert!(processes.len() >= 4, "{processes:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        for process in &processes {
            assert!(process.wait(Some(TIMEOUT)).unwrap(), "{process:?} is left");
        }
        home.wait_until_empty("killed while its command runs");
        home.assert_swept();
    }
}

#[test]
fn an_embedded_agent_killed_anywhere_leaves_no_process() {
    if !is_root("`cofferdam run` without a daemon") {
        return;
    }
    let home = Home::new(World::shipped());
    let run = |steps: &[usize]| {
        let mut command = home.command("exit 3");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let (mut child, injector) = Injector::spawn(command).unwrap();
        injector.arm(Fault::Kill, steps);
        let status = child.wait().unwrap();
        (status.code(), injector.disarm())
    };
    // The first one makes what later ones find.
    for _ in 0..2 {
        assert_eq!(run(&[]).0, Some(3));
    }
    // Before the keeper does anything and after the last process has ended, there is nothing to leave.
    let effects = run(&[]).1.effects;
    let is_by_agent = |effect: &Effect| matches!(effect.by, Actor::Agent | Actor::Child);
    let first = 1 + effects.iter().position(|effect| !is_by_agent(effect)).unwrap();
    let last = 1 + effects.iter().rposition(|effect| !is_by_agent(effect)).unwrap();
    for step in first - 5..=last + 5 {
        let hit = run(&[step]).1.hit;
        home.wait_until_empty(&format!("step {step}: {:?}", hit.first().map(ToString::to_string)));
    }
    home.assert_swept();
}
