//! OCI runtimes, for comparison.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use serde_json::{Value as Json, json};

use cofferdam_linux::cgroup::Layout;

use crate::Outcome;
use crate::embedded::{CPUS, MEM};
use crate::environment::Environment;
use crate::launch::Subject;
use crate::mount_namespace::MountNamespace;

/// The mount namespace in which all runtimes are started: without the v2 hierarchy on a host that also has v1, as crun
/// refuses such a host if v2 has controllers, even unused ones. Elsewhere they need none.
pub fn namespace(environment: &Environment) -> Outcome<Option<MountNamespace>> {
    let unified = environment.cgroups.unified.as_ref().map(|unified| unified.mount.clone());
    let hidden = unified.filter(|_| environment.cgroups.layout() == Layout::Hybrid);
    let without = |hidden: PathBuf| MountNamespace::new(move || Ok(umount2(&hidden, MntFlags::MNT_DETACH)?));
    hidden.map(without).transpose()
}

/// An OCI runtime with a bundle.
pub struct Engine<'a> {
    name: String,
    kind: Bundle,
    program: &'static str,
    bundle: PathBuf,
    state: PathBuf,
    namespace: Option<&'a MountNamespace>,
    next: AtomicU64,
}

/// The parts of the bundle besides the root file system and the limits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bundle {
    /// As a container of the shipped chain: the same namespaces, the same kinds of mounts.
    Alike,
    /// The runtime's own default.
    Stock,
}

impl Bundle {
    /// The row of the table.
    pub fn label(self, program: &str) -> String {
        match self {
            Self::Alike => format!("{program} run"),
            Self::Stock => format!("{program} run, its own spec"),
        }
    }
}

impl<'a> Engine<'a> {
    /// `None`, with a message, if it is not installed or does not work on this machine.
    pub fn find(
        environment: &Environment,
        namespace: Option<&'a MountNamespace>,
        program: &'static str,
        kind: Bundle,
    ) -> Outcome<Option<Self>> {
        match Command::new(program).arg("--version").stdout(Stdio::null()).status() {
            Ok(status) if status.success() => {}
            _ => {
                eprintln!("bench: SKIPPED {program}: not installed (Debian package {program})");
                return Ok(None);
            }
        }
        let word = match kind {
            Bundle::Alike => "alike",
            Bundle::Stock => "stock",
        };
        let bundle = environment.directory().join(format!("{program}-{word}"));
        fs::create_dir(&bundle)?;
        let spec = Command::new(program).arg("spec").current_dir(&bundle).output()?;
        if !spec.status.success() {
            return Err(format!("`{program} spec`: {}", String::from_utf8_lossy(&spec.stderr)).into());
        }
        let path = bundle.join("config.json");
        let mut spec: Json = serde_json::from_slice(&fs::read(&path)?)?;
        adapt(&mut spec, environment, kind);
        fs::write(&path, serde_json::to_vec(&spec)?)?;
        let state = environment.state().join(format!("{program}-{word}"));
        let engine = Self {
            name: kind.label(program),
            kind,
            program,
            bundle,
            state,
            namespace,
            next: AtomicU64::new(0),
        };
        match engine.once(0) {
            Ok(_) => Ok(Some(engine)),
            Err(error) => {
                eprintln!("bench: SKIPPED {}: {error}", engine.name);
                Ok(None)
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "small constants")]
fn adapt(spec: &mut Json, environment: &Environment, kind: Bundle) {
    spec["process"]["args"] = json!(["/bin/busybox", "true"]);
    spec["process"]["terminal"] = json!(false);
    spec["root"] = json!({ "path": environment.rootfs(), "readonly": false });
    spec["linux"]["resources"]["cpu"] =
        json!({ "shares": (CPUS * 1024.0) as i64, "quota": (CPUS * 100_000.0) as i64, "period": 100_000 });
    let bytes = MEM as i64 * 1024 * 1024;
    spec["linux"]["resources"]["memory"] = json!({ "limit": bytes, "reservation": bytes });
    // Raising a limit needs a capability that root does not always have.
    if let Some(process) = spec["process"].as_object_mut() {
        process.remove("rlimits");
    }
    if kind == Bundle::Stock {
        return;
    }
    spec["linux"]["namespaces"] = json!([{ "type": "pid" }, { "type": "mount" }]);
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("hostname");
    }
    if let Some(top) = spec.as_object_mut() {
        top.remove("hostname");
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["type"] != "mqueue");
        for mount in mounts.iter_mut().filter(|mount| mount["type"] == "cgroup") {
            *mount = json!({
                "destination": "/sys/fs/cgroup", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "noexec", "nodev", "mode=755"],
            });
        }
    }
}

impl Engine<'_> {
    fn run(&self) -> Outcome<Duration> {
        let id = format!("bench-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let mut command = self.command();
        command.arg("run").arg("--bundle").arg(&self.bundle).arg(&id);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let started = Instant::now();
        let output = command.output()?;
        let took = started.elapsed();
        if output.status.success() {
            return Ok(took);
        }
        let mut delete = self.command();
        delete.args(["delete", "--force", &id]).stdout(Stdio::null()).stderr(Stdio::null());
        drop(delete.status());
        Err(format!("{}: {}", self.name, String::from_utf8_lossy(&output.stderr).trim()).into())
    }

    /// In its own process group, so that Ctrl-C takes effect between two containers.
    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command.process_group(0).arg("--root").arg(&self.state);
        command
    }
}

impl Subject for Engine<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn once(&self, _: usize) -> Outcome<Duration> {
        match self.namespace {
            Some(namespace) => namespace.run(|| self.run()),
            None => self.run(),
        }
    }

    fn is_runtime(&self) -> bool {
        self.kind == Bundle::Alike
    }
}
