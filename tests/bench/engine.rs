//! Peers: OCI runtimes, as they are installed.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::Outcome;
use crate::launch::Subject;
use crate::ours::{CPUS, MEM};
use crate::scene::Scene;

/// An OCI runtime with a bundle.
pub struct Engine {
    name: String,
    program: &'static str,
    bundle: PathBuf,
    state: PathBuf,
    next: AtomicU64,
}

/// What is in the bundle besides the root file system and the limits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bundle {
    /// What a container of the shipped chain has: the same namespaces, the same kinds of mounts.
    Alike,
    /// What the runtime itself proposes.
    Stock,
}

impl Engine {
    /// None, said loudly, if it is not installed or does not work here.
    pub fn find(scene: &Scene, program: &'static str, kind: Bundle) -> Outcome<Option<Self>> {
        match Command::new(program).arg("--version").stdout(Stdio::null()).status() {
            Ok(status) if status.success() => {}
            _ => {
                eprintln!("bench: SKIPPED {program}: not installed (Debian package {program})");
                return Ok(None);
            }
        }
        let (word, label) = match kind {
            Bundle::Alike => ("alike", format!("{program} run")),
            Bundle::Stock => ("stock", format!("{program} run, its own spec")),
        };
        let bundle = scene.directory().join(format!("{program}-{word}"));
        fs::create_dir(&bundle)?;
        let made = Command::new(program).arg("spec").current_dir(&bundle).output()?;
        if !made.status.success() {
            return Err(format!("`{program} spec`: {}", String::from_utf8_lossy(&made.stderr)).into());
        }
        let path = bundle.join("config.json");
        let mut spec: Json = serde_json::from_slice(&fs::read(&path)?)?;
        adapt(&mut spec, scene, kind);
        fs::write(&path, serde_json::to_vec(&spec)?)?;
        let state = scene.directory().join(format!("{program}-{word}-state"));
        let engine = Self { name: label, program, bundle, state, next: AtomicU64::new(0) };
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
fn adapt(spec: &mut Json, scene: &Scene, kind: Bundle) {
    spec["process"]["args"] = json!(["/bin/busybox", "true"]);
    spec["process"]["terminal"] = json!(false);
    spec["root"] = json!({ "path": scene.rootfs(), "readonly": false });
    spec["linux"]["resources"]["cpu"] =
        json!({ "shares": (CPUS * 1024.0) as i64, "quota": (CPUS * 100_000.0) as i64, "period": 100_000 });
    let bytes = MEM as i64 * 1024 * 1024;
    spec["linux"]["resources"]["memory"] = json!({ "limit": bytes, "reservation": bytes });
    // Where raising a limit takes a capability that not every root has.
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

impl Subject for Engine {
    fn name(&self) -> &str {
        &self.name
    }

    fn once(&self, _: usize) -> Outcome<Duration> {
        let id = format!("bench-{}", self.next.fetch_add(1, Ordering::Relaxed));
        // Named per run by the container, so that two at a time do not share a control group.
        let mut command = Command::new(self.program);
        command.arg("--root").arg(&self.state).arg("run").arg("--bundle").arg(&self.bundle).arg(&id);
        // Of a process group of its own, so that Ctrl-C reaches it through us, between two containers.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let started = Instant::now();
        let output = command.output()?;
        let took = started.elapsed();
        if output.status.success() {
            return Ok(took);
        }
        drop(
            Command::new(self.program)
                .arg("--root")
                .arg(&self.state)
                .args(["delete", "--force", &id])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status(),
        );
        Err(format!("{}: {}", self.name, String::from_utf8_lossy(&output.stderr).trim()).into())
    }
}
