//! The lower bound ("floor"): `floor.c`, compiled on the machine.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use cofferdam_linux::cgroup::{Cgroups, Version};

use crate::Outcome;
use crate::embedded::{CPUS, MEM};
use crate::environment::{CGROUP, Environment, Scratch};
use crate::launch::Subject;

/// Row of the table for an empty chain.
pub const EMPTY: &str = "floor, empty";

/// Row of the table for the shipped chain.
pub const fn shipped(scratch: Scratch) -> &'static str {
    match scratch {
        Scratch::WorkDirectory => "floor, shipped",
        Scratch::Memory => "floor, shipped, scratch in memory",
    }
}

/// The time that the kernel alone takes.
pub struct Floor {
    name: &'static str,
    lanes: Vec<Mutex<Lane>>,
}

/// A process that creates one container after the other.
struct Lane {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// Compiles the program.
pub fn compile(environment: &Environment) -> Outcome<PathBuf> {
    let source = environment.directory().join("floor.c");
    let program = environment.directory().join("floor");
    fs::write(&source, include_str!("floor.c"))?;
    let compiled = Command::new("cc").arg("-O2").arg("-o").arg(&program).arg(&source).output();
    let compiled = compiled.map_err(|error| format!("`cc`: {error} (Debian package gcc)"))?;
    if !compiled.status.success() {
        return Err(format!("cannot compile the floor: {}", String::from_utf8_lossy(&compiled.stderr)).into());
    }
    Ok(program)
}

impl Floor {
    /// As a container of an empty chain: a process of the host in its own cgroup.
    pub fn empty(environment: &Environment, program: &Path, lanes: usize) -> Outcome<Self> {
        Self::start(EMPTY, lanes, |lane| {
            let mut command = Command::new(program);
            tracking(&environment.cgroups, &format!("floor-empty-{lane}"), &mut command)?;
            Ok(command)
        })
    }

    /// As a container of the shipped chain: mount and pid namespaces, an overlay, limits in the same hierarchies.
    pub fn shipped(
        environment: &Environment,
        program: &Path,
        lanes: usize,
        scratch: Scratch,
    ) -> Outcome<Self> {
        let directory = environment.scratch(scratch);
        Self::start(shipped(scratch), lanes, |lane| {
            let mut command = Command::new(program);
            let name = match scratch {
                Scratch::WorkDirectory => format!("floor-shipped-{lane}"),
                Scratch::Memory => format!("floor-memory-{lane}"),
            };
            let scratch = directory.join(&name);
            fs::create_dir_all(&scratch)?;
            command.arg("--root").arg(environment.rootfs()).arg(scratch);
            tracking(&environment.cgroups, &name, &mut command)?;
            limits(&environment.cgroups, &name, &mut command)?;
            Ok(command)
        })
    }

    fn start(name: &'static str, lanes: usize, command: impl Fn(usize) -> Outcome<Command>) -> Outcome<Self> {
        let lanes =
            (0..lanes).map(|lane| Lane::start(command(lane)?).map(Mutex::new)).collect::<Outcome<_>>()?;
        Ok(Self { name, lanes })
    }
}

/// Adds the cgroup that tracks a container: in v2 if it is mounted, otherwise in the freezer.
fn tracking(cgroups: &Cgroups, name: &str, command: &mut Command) -> Outcome<()> {
    let relative = Path::new(CGROUP).join(name);
    let (option, group) = match (cgroups.unified(&relative), cgroups.cgroup("freezer", &relative)) {
        (Some(group), _) => ("--cgroup2", group),
        (None, Some(group)) => ("--cgroup1", group),
        (None, None) => return Err("neither cgroup v2 nor the v1 freezer is mounted".into()),
    };
    fs::create_dir_all(group.path().parent().unwrap_or(group.path()))?;
    command.arg(option).arg(group.path());
    Ok(())
}

/// Adds the cgroups and files that the shipped isolators write.
fn limits(cgroups: &Cgroups, name: &str, command: &mut Command) -> Outcome<()> {
    let relative = Path::new(CGROUP).join(name);
    let mut handed_down = Vec::new();
    for (controller, v1, v2) in knobs() {
        // `cpuacct` is a controller of v1 only.
        let Some(group) = cgroups.cgroup(controller, &relative) else { continue };
        let knobs = match group.version() {
            Version::V1 => {
                fs::create_dir_all(group.path().parent().unwrap_or(group.path()))?;
                command.arg("--cgroup1").arg(group.path());
                v1
            }
            Version::V2 => {
                handed_down.push(controller);
                v2
            }
        };
        for (knob, value) in knobs {
            command.arg("--write").arg(group.path().join(knob)).arg(value);
        }
    }
    Ok(cgroups.delegate(&relative, &handed_down)?)
}

type Knobs = Vec<(&'static str, String)>;

/// By controller: the values for v1 and for v2.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small positive constants")]
fn knobs() -> [(&'static str, Knobs, Knobs); 3] {
    let (quota, shares, weight) = ((CPUS * 100_000.0) as u64, (CPUS * 1024.0) as u64, (CPUS * 100.0) as u64);
    let bytes = MEM as u64 * 1024 * 1024;
    [
        (
            "cpu",
            vec![
                ("cpu.cfs_period_us", "100000".into()),
                ("cpu.cfs_quota_us", quota.to_string()),
                ("cpu.shares", shares.to_string()),
            ],
            vec![("cpu.max", format!("{quota} 100000")), ("cpu.weight", weight.to_string())],
        ),
        ("cpuacct", Vec::new(), Vec::new()),
        (
            "memory",
            vec![
                ("memory.limit_in_bytes", bytes.to_string()),
                ("memory.soft_limit_in_bytes", bytes.to_string()),
            ],
            vec![("memory.max", bytes.to_string()), ("memory.low", bytes.to_string())],
        ),
    ]
}

impl Lane {
    fn start(mut command: Command) -> Outcome<Self> {
        // In its own process group, so that Ctrl-C takes effect between two containers.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the floor has no pipes".into());
        };
        Ok(Self { child, input: Some(input), output: BufReader::new(output) })
    }

    fn once(&mut self) -> Outcome<Duration> {
        let mut line = String::new();
        if let Some(input) = &mut self.input {
            input.write_all(b"+")?;
        }
        self.output.read_line(&mut line)?;
        let nanos = line.trim().parse().map_err(|_| "the floor failed; see its messages above")?;
        Ok(Duration::from_nanos(nanos))
    }
}

impl Subject for Floor {
    fn name(&self) -> &str {
        self.name
    }

    fn once(&self, lane: usize) -> Outcome<Duration> {
        let mut lane = self.lanes[lane].lock().map_err(|_| "a thread panicked")?;
        lane.once()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // It exits at the end of its input.
        drop(self.input.take());
        drop(self.child.wait());
    }
}
