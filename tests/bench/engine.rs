//! OCI runtimes, for comparison.

use std::env;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use serde_json::{Value as Json, json};

use cofferdam_linux::cgroup::Layout;

use crate::Outcome;
use crate::commands::SLEEP;
use crate::embedded::{CPUS, MEM};
use crate::environment::Environment;
use crate::launch::Subject;
use crate::mount_namespace::MountNamespace;

/// The program of a runtime.
pub struct Program {
    pub path: PathBuf,
    /// Its name and version, such as `crun 1.8.1`. No other program of the run has the same label.
    pub label: String,
}

/// The programs with these names or paths; without any, those of crun and runc that are installed.
pub fn programs(wanted: &[PathBuf]) -> Outcome<Vec<Program>> {
    let mut found: Vec<Program> = Vec::new();
    for name in wanted {
        let path = locate(name).ok_or_else(|| format!("there is no program `{}`", name.display()))?;
        if found.iter().all(|other| other.path != path) {
            found.push(Program { label: name_and_version(&path)?, path });
        }
    }
    if wanted.is_empty() {
        for name in ["crun", "runc"] {
            match locate(Path::new(name)) {
                Some(path) => found.push(Program { label: name_and_version(&path)?, path }),
                None => eprintln!("bench: SKIPPED {name}: not installed (Debian package {name})"),
            }
        }
    }
    let labels: Vec<String> = found.iter().map(|program| program.label.clone()).collect();
    for program in &mut found {
        if labels.iter().filter(|label| **label == program.label).count() > 1 {
            program.label += &format!(" ({})", program.path.display());
        }
    }
    Ok(found)
}

/// The path of a program that is named as in a shell.
pub fn locate(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return Some(name.to_owned()).filter(|path| path.is_absolute() && path.is_file());
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// From the first line of what it prints for `--version`, such as `crun version 1.8.1`.
pub fn name_and_version(program: &Path) -> Outcome<String> {
    let fail = |why: String| format!("`{} --version`: {why}", program.display());
    let output = Command::new(program).arg("--version").output().map_err(|error| fail(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words = text.lines().next().unwrap_or_default().split_whitespace();
    let words: Vec<&str> =
        words.filter(|word| !word.trim_end_matches(':').eq_ignore_ascii_case("version")).collect();
    match words.as_slice() {
        _ if !output.status.success() => Err(fail(output.status.to_string()).into()),
        [] => Err(fail("it prints nothing".into()).into()),
        [version] => Ok(format!("{} {version}", program.file_name().unwrap_or_default().display())),
        words => Ok(words.join(" ")),
    }
}

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
    program: &'a Path,
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
    pub fn label(self, program: &Program) -> String {
        match self {
            Self::Alike => format!("{} run", program.label),
            Self::Stock => format!("{} run, its own spec", program.label),
        }
    }
}

impl<'a> Engine<'a> {
    /// `None`, with a message, if it does not work on this machine.
    pub fn new(
        environment: &Environment,
        namespace: Option<&'a MountNamespace>,
        program: &'a Program,
        kind: Bundle,
    ) -> Outcome<Option<Self>> {
        let name = kind.label(program);
        let engine = Self::prepare(environment, namespace, program, kind, name, &["/bin/busybox", "true"])?;
        match engine.once(0) {
            Ok(_) => Ok(Some(engine)),
            Err(error) => {
                eprintln!("bench: SKIPPED {}: {error}", engine.name);
                Ok(None)
            }
        }
    }

    /// Writes the bundle, with a command.
    fn prepare(
        environment: &Environment,
        namespace: Option<&'a MountNamespace>,
        program: &'a Program,
        kind: Bundle,
        name: String,
        command: &[&str],
    ) -> Outcome<Self> {
        let bundle = environment.directory().join(name.replace('/', "-"));
        let state = environment.state().join(name.replace('/', "-"));
        let program = program.path.as_path();
        // That of an earlier benchmark is the same.
        fs::create_dir_all(&bundle)?;
        drop(fs::remove_file(bundle.join("config.json")));
        let spec = Command::new(program).arg("spec").current_dir(&bundle).output()?;
        if !spec.status.success() {
            let why = String::from_utf8_lossy(&spec.stderr);
            return Err(format!("`{} spec`: {why}", program.display()).into());
        }
        let path = bundle.join("config.json");
        let mut spec: Json = serde_json::from_slice(&fs::read(&path)?)?;
        adapt(&mut spec, environment, kind);
        spec["process"]["args"] = json!(command);
        fs::write(&path, serde_json::to_vec(&spec)?)?;
        Ok(Self { name, kind, program, bundle, state, namespace, next: AtomicU64::new(0) })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "small constants")]
fn adapt(spec: &mut Json, environment: &Environment, kind: Bundle) {
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

/// A container of an OCI runtime, in which commands are executed.
pub struct Executed<'a>(Engine<'a>);

impl<'a> Executed<'a> {
    const ID: &'static str = "bench-exec";

    /// The row of the table.
    pub fn label(program: &Program) -> String {
        format!("{} exec", program.label)
    }

    /// Starts the container. `None`, with a message, if it does not work on this machine.
    pub fn start(
        environment: &Environment,
        namespace: Option<&'a MountNamespace>,
        program: &'a Program,
    ) -> Outcome<Option<Self>> {
        let (kind, name) = (Bundle::Alike, Self::label(program));
        let engine = Engine::prepare(environment, namespace, program, kind, name, &SLEEP)?;
        let executed = Self(engine);
        let mut run = executed.0.command();
        run.args(["run", "--detach", "--bundle"]).arg(&executed.0.bundle).arg(Self::ID);
        match executed.0.enter(|| executed.0.timed(run)).and_then(|_| executed.once(0)) {
            Ok(_) => Ok(Some(executed)),
            Err(error) => {
                eprintln!("bench: SKIPPED {error}");
                Ok(None)
            }
        }
    }
}

impl Subject for Executed<'_> {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn once(&self, _: usize) -> Outcome<Duration> {
        let mut exec = self.0.command();
        exec.args(["exec", Self::ID, "/bin/busybox", "true"]);
        self.0.enter(|| self.0.timed(exec))
    }

    fn is_runtime(&self) -> bool {
        true
    }
}

impl Drop for Executed<'_> {
    fn drop(&mut self) {
        // Fails if it was not created.
        drop(self.0.enter(|| self.0.delete(Self::ID)));
    }
}

impl Engine<'_> {
    fn run(&self) -> Outcome<Duration> {
        let id = format!("bench-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let mut command = self.command();
        command.arg("run").arg("--bundle").arg(&self.bundle).arg(&id);
        self.timed(command).inspect_err(|_| drop(self.delete(&id)))
    }

    /// Runs a command of the runtime to its end. Its standard error is a file, as a container that goes on has it as well.
    fn timed(&self, mut command: Command) -> Outcome<Duration> {
        let mut errors = tempfile::tempfile()?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.try_clone()?);
        let started = Instant::now();
        let status = command.status()?;
        let took = started.elapsed();
        if status.success() {
            return Ok(took);
        }
        let mut why = String::new();
        errors.seek(SeekFrom::Start(0))?;
        errors.read_to_string(&mut why)?;
        Err(format!("{}: {status}: {}", self.name, why.trim()).into())
    }

    fn delete(&self, id: &str) -> Outcome<()> {
        let mut delete = self.command();
        delete.args(["delete", "--force", id]).stdout(Stdio::null()).stderr(Stdio::null());
        delete.status()?;
        Ok(())
    }

    /// Does something in the mount namespace of all runtimes.
    fn enter<T: Send>(&self, work: impl FnOnce() -> Outcome<T> + Send) -> Outcome<T> {
        match self.namespace {
            Some(namespace) => namespace.run(work),
            None => work(),
        }
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
        self.enter(|| self.run())
    }

    fn is_runtime(&self) -> bool {
        self.kind == Bundle::Alike
    }
}
