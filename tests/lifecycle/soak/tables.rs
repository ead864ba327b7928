//! What the kernel and the disk have.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cofferdam_linux::process::{Process, Stat};
use cofferdam_tests::world::World;

/// Set in the environment of each container.
pub const MARK: &str = "COFFERDAM_SOAK";

/// Name of a process that has set a container up.
const INIT: &str = "cofferdam-init";

/// The files in the directories of the agent.
pub fn files(world: &World) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut directories = vec![world.config.runtime_dir.clone(), world.config.work_dir.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap().flatten() {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                directories.push(path.clone());
            }
            // The keeper of the last agent may be there, until the next agent removes it.
            if !directory.starts_with(world.config.runtime_dir.join("keepers")) {
                found.insert(path);
            }
        }
    }
    found
}

/// The mounts of this thread.
pub fn mounts() -> usize {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap().lines().count()
}

/// Processes of the world, with what tells that they are: containers, agents and keepers.
pub fn processes(world: &World) -> Vec<String> {
    let here = world.directory();
    let mark = mark(world);
    let own_mounts = fs::read_link("/proc/thread-self/ns/mnt").unwrap();
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let (path, pid) = (entry.path(), entry.file_name().into_string().unwrap_or_default());
        if pid == own || pid.parse::<i32>().is_err() {
            continue;
        }
        let link = |name: &str| fs::read_link(path.join(name)).unwrap_or_default();
        let read = |name: &str| fs::read(path.join(name)).unwrap_or_default();
        let has_mark = read("environ").split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes());
        if has_mark || link("ns/mnt") == own_mounts || link("cwd").starts_with(here) {
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            found.push(format!("process {pid} `{command}`"));
        }
    }
    found
}

/// Opens a process, if it is one of a container of this world: its pid may be that of another one meanwhile.
pub fn open(world: &World, pid: i32) -> Option<Process> {
    let process = Process::open_any(pid).ok()?;
    let path = Path::new("/proc").join(pid.to_string());
    let environment = fs::read(path.join("environ")).ok()?;
    let has_mark = environment.split(|byte| *byte == 0).any(|variable| variable == mark(world).as_bytes());
    // With the `posix` launcher, the first process is not the command. It is in the mount namespace of this test.
    let own_mounts = fs::read_link("/proc/thread-self/ns/mnt").ok()?;
    let is_init = || {
        fs::read_link(path.join("ns/mnt")).is_ok_and(|mounts| mounts == own_mounts)
            && Stat::read(pid).is_ok_and(|stat| stat.name == INIT && stat.state != 'Z')
    };
    (has_mark || is_init()).then_some(process)
}

fn mark(world: &World) -> String {
    format!("{MARK}={}", world.directory().display())
}
