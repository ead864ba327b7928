//! A container engine of the tests' own: its socket, directories, mounts and network are private.
//!
//! It runs below a shell in namespaces for mounts and networks, so that neither its overlays nor its bridge and its rules for
//! packets are those of the host. The shell ends it, and removes what it has left, as soon as this process is gone in any way. It
//! has a session of its own, so that a signal to all processes of a test, such as that of a terminal or of `timeout`, leaves it.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use cofferdam::engine::EngineSocket;
use cofferdam_core::agent::Agent;
use cofferdam_core::config::{ContainerizerConfig, DockerConfig};
use cofferdam_core::containerizer::LaunchError;
use cofferdam_core::engine::Timeouts;
use cofferdam_core::model::{Command as ContainerCommand, ContainerId, DockerOptions, Request, Termination};
use cofferdam_linux::process::{Process, Stat};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value as Json;
use tokio::task::JoinHandle;

use crate::daemon::TIMEOUT;
use crate::world::{World, id};
use crate::{is_root, virtual_machine};

/// The image of most tests: busybox, without an entry point.
pub const IMAGE: &str = "cofferdam-test/busybox:1";

/// The same, with the entry point `echo entry` and the command `cmd`.
pub const ENTRY: &str = "cofferdam-test/entry:1";

/// The same, with only one of these. That of the engine of all tests has them.
pub const ENTRY_ALONE: &str = "cofferdam-test/entry-alone:1";
pub const COMMAND_ALONE: &str = "cofferdam-test/command-alone:1";

/// What starts, and in the end stops, an engine. Its arguments are a directory, the cgroup of its containers, and further
/// options. A line starts it again after it was killed.
const SCRIPT: &str = r#"
dir=$1 parent=$2
shift 2
# Kills a process that has the directory and this program in its command line.
kill_if_own() {
    case "$(cat "$1/cmdline" 2>/dev/null | tr '\0' ' ')" in
    *"$2"*"$dir/"*) kill -9 "${1#/proc/}" ;;
    esac
}
start() {
    rm -f "$dir/engine.pid" "$dir/exec/containerd/containerd.pid" "$dir/exec/containerd/containerd.sock"
    dockerd --host "unix://$dir/engine.sock" --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/engine.pid" \
        --cgroup-parent "$parent" --bip 10.213.0.1/24 --ip-forward=true --storage-driver overlay2 \
        --exec-opt native.cgroupdriver=cgroupfs "$@" >>"$dir/engine.log" 2>&1 </dev/null &
    engine=$!
    until docker --host "unix://$dir/engine.sock" version >/dev/null 2>&1; do
        kill -0 $engine 2>/dev/null || { (echo failed); return; }
        sleep 0.1
    done
    # Not by the shell itself, which would be killed if nobody reads it any more.
    (echo $engine)
}
ip link set lo up
# What it makes there is not the host's, such as the directory in which it looks for drivers of volumes.
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/docker/plugins "$dir/plugins"
mount --bind "$dir/plugins" /run/docker/plugins
# On an emulated CPU, containerd takes longer to start than the engine waits for one of its own, and the rules for packets, a process
# each, take longer than all the rest.
if [ -n "$emulated" ]; then
    printf 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n' >"$dir/containerd.toml"
    containerd --config "$dir/containerd.toml" --address "$dir/containerd.sock" --root "$dir/containerd" \
        --state "$dir/containerd-state" >"$dir/containerd.log" 2>&1 </dev/null &
    containerd=$!
    # The engine does not wait for that either.
    until [ -S "$dir/containerd.sock" ]; do
        kill -0 $containerd || break
        sleep 0.1
    done
    set -- "$@" --containerd "$dir/containerd.sock" --iptables=false --ip6tables=false --userland-proxy=false
fi
start "$@"
# Ends when the process that holds the other end does, or closes it.
while read _; do
    wait $engine
    # It ends with the engine, and may not have done so yet.
    kill_if_own "/proc/$(cat "$dir/exec/containerd/containerd.pid")" "containerd --config"
    start "$@"
done
kill -CONT $engine
docker --host "unix://$dir/engine.sock" ps -aq | xargs -r docker --host "unix://$dir/engine.sock" rm -f >/dev/null 2>&1
kill $engine
wait $engine
[ -z "$containerd" ] || kill $containerd
# Those of an engine that was killed, if it was not started again.
find /sys/fs/cgroup -path "*$parent*" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u | xargs -r kill -9
for process in /proc/[0-9]*; do
    kill_if_own "$process" /containerd-shim
done
find /sys/fs/cgroup -depth -type d -path "*$parent*" -exec rmdir {} + 2>/dev/null
grep -o " $dir/[^ ]*" /proc/self/mounts | xargs -r umount -l
rm -rf "$dir"
"#;

/// How long a destroy may take, whatever does not answer.
const PROMPT: Duration = Duration::from_secs(60);

/// How long agents wait for what does not answer, if it is their test's purpose that nobody else does.
const STALL: Duration = Duration::from_secs(600);

/// An engine.
pub struct Engine {
    directory: PathBuf,
    shell: Child,
    pid: i32,
}

impl Engine {
    /// Starts one.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with further options.
    pub fn start_with(options: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("cofferdam-engine-").tempdir().unwrap().keep();
        let parent = format!("/{}", directory.file_name().unwrap().to_str().unwrap());
        let emulated = if virtual_machine::is_inside() { "yes" } else { "" };
        let mut shell = Command::new("setsid")
            .env("emulated", emulated)
            .args(["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", SCRIPT, "lab"])
            .arg(&directory)
            .arg(parent)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setsid and unshare of util-linux");
        let pid = started(&mut shell, &directory);
        let engine = Self { directory, shell, pid };
        engine.import(IMAGE, &[]);
        engine.import(ENTRY, &["ENTRYPOINT [\"echo\",\"entry\"]", "CMD [\"cmd\"]"]);
        engine
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("engine.sock")
    }

    fn process(&self) -> Process {
        Process::open_any(self.pid).unwrap()
    }

    /// Its pid, as long as it is not started again.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Kills it. Its containers are left alone.
    pub fn kill(&self) {
        let process = self.process();
        process.kill().unwrap();
        assert!(process.wait(Some(Duration::from_secs(60))).unwrap());
    }

    /// Starts it again after it was killed.
    pub fn start_again(&mut self) {
        self.shell.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        self.pid = started(&mut self.shell, &self.directory);
    }

    /// Stops all of its threads.
    pub async fn stop(&self) {
        self.process().signal(Signal::SIGSTOP as i32).unwrap();
        until("it is stopped", || Stat::read(self.pid).unwrap().state == 'T').await;
    }

    /// The same, for tests without a runtime.
    pub fn stop_now(&self) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(self.stop());
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.process().signal(Signal::SIGCONT as i32).unwrap();
    }

    /// Directory with the sockets of drivers of volumes, or links to them.
    pub fn plugins(&self) -> PathBuf {
        self.directory.join("plugins")
    }

    /// Namespace for networks.
    pub fn network_namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid).into()
    }

    /// Does something in its network. Sockets stay there.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = fs::File::open(self.network_namespace()).unwrap();
        let work = move || {
            // Of this thread alone, which ends, and of those that it starts.
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    /// Runs the engine's client.
    pub fn client(&self, arguments: &[&str]) -> String {
        let output = Command::new("docker")
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()))
            .args(arguments)
            .output()
            .expect("the client of docker.io");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker {arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn inspect(&self, name: &str) -> Json {
        let text = self.client(&["inspect", "--type", "container", name]);
        serde_json::from_str::<Json>(&text).unwrap()[0].take()
    }

    /// Names of all containers that contain a text, which must be of one test: they share the engine.
    pub fn names(&self, part: &str) -> Vec<String> {
        let all = self.client(&["ps", "-a", "--format", "{{.Names}}", "--filter", &format!("name={part}")]);
        all.lines().map(str::to_owned).collect()
    }

    /// Waits until no container has a text in its name, which must be of one test.
    pub fn wait_until_gone(&self, part: &str) {
        // Also what happens before the client is connected.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let mut events = Command::new("docker")
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()))
            .args(["events", "--filter", "type=container", "--filter", "event=destroy"])
            .args(["--since", &since.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the client of docker.io");
        let stdout = events.stdout.as_mut().unwrap();
        let deadline = Instant::now() + TIMEOUT;
        let left = loop {
            let left = self.names(part);
            let time = deadline.saturating_duration_since(Instant::now());
            let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: 0 };
            let removed = || poll(&mut [PollFd::new(&*stdout, PollFlags::IN)], Some(&time)).unwrap() > 0;
            if left.is_empty() || !removed() || stdout.read(&mut [0; 4096]).unwrap() == 0 {
                break left;
            }
        };
        drop(events.kill());
        drop(events.wait());
        assert_eq!(left, [""; 0], "they are not removed");
    }

    /// What is left of containers that are gone, in an engine that nobody else uses.
    pub fn leftovers(&self) -> Vec<String> {
        let format = "{{range .Containers}}{{.Name}}\n{{end}}";
        let endpoints = self.client(&["network", "inspect", "--format", format, "bridge"]);
        let volumes = self.client(&["volume", "ls", "--quiet"]);
        let namespace = format!("--net={}", self.network_namespace().display());
        let rules = Command::new("nsenter").args([&namespace, "iptables-save"]).output().unwrap();
        assert!(rules.status.success(), "iptables-save: {}", String::from_utf8_lossy(&rules.stderr));
        let rules = String::from_utf8(rules.stdout).unwrap();
        let listed = [("endpoint", endpoints.as_str()), ("volume", volumes.as_str())];
        let listed =
            listed.iter().flat_map(|(kind, lines)| lines.lines().map(move |line| format!("{kind} {line}")));
        let rules = rules.lines().filter(|line| line.contains("--dport")).map(|line| format!("rule {line}"));
        let parent = self.directory.file_name().unwrap();
        let cgroups = cgroups(parent).into_iter().flat_map(|cgroup| {
            let children = fs::read_dir(cgroup).into_iter().flatten().flatten();
            children
                .filter(|child| child.path().is_dir())
                .map(|child| format!("cgroup {}", child.path().display()))
        });
        let lines = fs::read_dir("/proc").unwrap().flatten();
        let lines = lines.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
        let own = format!("{}/", self.directory.display());
        let shims = lines.filter(move |line| line.contains("containerd-shim") && line.contains(&own));
        listed.chain(rules).chain(cgroups).chain(shims).collect()
    }

    /// Makes an image of busybox.
    pub fn import(&self, name: &str, changes: &[&str]) {
        let rootfs = self.directory.join("rootfs");
        if !rootfs.exists() {
            fill(&rootfs);
        }
        let tar = self.directory.join("rootfs.tar");
        let packed = Command::new("tar").arg("-C").arg(&rootfs).arg("-cf").arg(&tar).arg(".").status();
        assert!(packed.unwrap().success());
        let mut arguments = vec!["import"];
        for change in changes {
            arguments.extend(["--change", change]);
        }
        self.client(&[&arguments[..], &[tar.to_str().unwrap(), name]].concat());
    }

    /// A world whose agents use this engine before their own processes.
    pub fn world(&self) -> World {
        let mut world = World::shipped();
        world.config.containerizers =
            vec![ContainerizerConfig::Docker(self.config()), ContainerizerConfig::Mesos];
        world
    }

    /// A world whose agents wait for a server, a registry or this engine much longer than a destroy may take, so that a destroy
    /// that waits for one of them is noticed.
    pub fn patient_world(&self) -> World {
        let mut world = self.world();
        world.config.fetch.stall = STALL;
        world.config.containerizers =
            vec![ContainerizerConfig::Docker(patient(self.config())), ContainerizerConfig::Mesos];
        world
    }

    pub fn config(&self) -> DockerConfig {
        let mut config = DockerConfig::new(Arc::new(EngineSocket::new(self.socket())));
        if virtual_machine::is_inside() {
            // Its CPU is emulated, and it starts several processes for a call.
            config.timeouts.call *= 10;
            config.timeouts.launch *= 10;
        }
        config
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        drop(self.shell.wait());
    }
}

/// The cgroups of a name, which is that of an engine's directory, below the roots of all hierarchies.
pub fn cgroups(name: &OsStr) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    let cgroups = hierarchies.chain(["/sys/fs/cgroup".into()]).map(|hierarchy| hierarchy.join(name));
    cgroups.filter(|cgroup| cgroup.is_dir()).collect()
}

/// Waits until an engine has started. Returns its pid.
fn started(shell: &mut Child, directory: &Path) -> i32 {
    let mut line = String::new();
    BufReader::new(shell.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    line.trim().parse().unwrap_or_else(|_| {
        let log = fs::read_to_string(directory.join("engine.log")).unwrap_or_default();
        panic!("the engine does not start (packages docker.io, iptables, iproute2): {line}\n{log}")
    })
}

/// The root file system of an image.
fn fill(rootfs: &Path) {
    for directory in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(rootfs.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("/bin/busybox (package busybox-static)");
    for tool in [
        "sh", "true", "cat", "echo", "ls", "sleep", "id", "kill", "hostname", "nproc", "head", "dd", "trap",
        "ip",
    ] {
        symlink("busybox", rootfs.join("bin").join(tool)).unwrap();
    }
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:1234:1234::/:/bin/sh\n").unwrap();
}

/// The engine of all tests that leave it running. `None` without root.
pub fn engine() -> Option<&'static Engine> {
    // Not dropped: it ends with this process.
    static SHARED: OnceLock<Engine> = OnceLock::new();
    let start = || {
        let engine = Engine::start();
        engine.import(ENTRY_ALONE, &["ENTRYPOINT [\"echo\",\"entry\"]"]);
        engine.import(COMMAND_ALONE, &["CMD [\"echo\",\"cmd\"]"]);
        engine
    };
    has_engine().then(|| SHARED.get_or_init(start))
}

/// Whether an engine can be started here. Otherwise reports that a test is skipped, or fails it if `CI` is set.
pub fn has_engine() -> bool {
    if !is_root("a container engine") {
        return false;
    }
    let installed = Command::new("dockerd").arg("--version").output().is_ok();
    assert!(
        installed || std::env::var_os("CI").is_none(),
        "dockerd is missing: install the package docker.io"
    );
    if !installed {
        eprintln!("SKIPPED a container engine: dockerd is missing (package docker.io)");
    }
    installed
}

/// A command and an image of the shared engine, and what they come to.
pub struct Combination {
    pub image: &'static str,
    /// Whether it is a line of a shell.
    pub shell: bool,
    pub value: Option<&'static str>,
    pub arguments: &'static [&'static str],
    /// The parameter `entrypoint`.
    pub entrypoint: Option<&'static str>,
    /// `None` if there is nothing to run.
    pub output: Option<&'static str>,
}

/// All images with all commands.
pub fn combinations() -> Vec<Combination> {
    /// `shell`, `value`, `arguments`, and the parameter `entrypoint`.
    type Command = (bool, Option<&'static str>, &'static [&'static str], Option<&'static str>);
    let commands: [Command; 7] = [
        (false, None, &[], None),
        (false, Some("echo"), &[], None),
        (false, None, &["echo", "a"], None),
        (false, Some("echo"), &["a"], None),
        (true, Some("echo line"), &[], None),
        (false, None, &["x"], Some("echo")),
        (false, None, &[], Some("echo")),
    ];
    let of_entry = [Some("entry echo\n"), Some("entry echo a\n"), Some("entry echo a\n")];
    let of_none = [Some("\n"), Some("a\n"), Some("a\n")];
    let images = [
        (IMAGE, None, of_none),
        (ENTRY, Some("entry cmd\n"), of_entry),
        (ENTRY_ALONE, Some("entry\n"), of_entry),
        (COMMAND_ALONE, Some("cmd\n"), of_none),
    ];
    let mut all = Vec::new();
    for (image, of_image, of_words) in images {
        // A line, and an entry point that is given, replace both of those of the image.
        let replaced = [Some("line\n"), Some("x\n"), Some("\n")];
        let outputs = [of_image].into_iter().chain(of_words).chain(replaced);
        for ((shell, value, arguments, entrypoint), output) in commands.into_iter().zip(outputs) {
            all.push(Combination { image, shell, value, arguments, entrypoint, output });
        }
    }
    all
}

/// A container of the engine that runs a line of a shell.
pub fn shell(name: &str, line: &str) -> Request {
    let docker = DockerOptions { image: IMAGE.into(), ..DockerOptions::default() };
    Request { docker: Some(docker), ..Request::shell(id(name), line) }
}

/// A container of the engine that runs these words in place of the command of an image.
pub fn words(name: &str, image: &str, words: &[&str]) -> Request {
    let arguments = words.iter().map(|word| (*word).to_owned()).collect();
    let command = ContainerCommand { shell: false, arguments, ..ContainerCommand::default() };
    let docker = DockerOptions { image: image.into(), ..DockerOptions::default() };
    Request { docker: Some(docker), ..Request::new(id(name), command) }
}

/// A configuration with the longest timeouts of [`Engine::patient_world`].
pub fn patient(config: DockerConfig) -> DockerConfig {
    DockerConfig { timeouts: Timeouts { call: STALL, launch: STALL, pull_stall: STALL }, ..config }
}

/// Destroys a container, which must not take long.
pub async fn destroy(agent: &Agent, id: &ContainerId) -> Option<Termination> {
    let destroyed = tokio::time::timeout(PROMPT, agent.destroy(id)).await;
    destroyed.unwrap_or_else(|_| panic!("`{id}` is not destroyed after {PROMPT:?}"))
}

/// The error of a launch whose container was, or is being, destroyed: it must not take long either.
pub async fn cancelled(launching: JoinHandle<Result<i32, LaunchError>>) -> LaunchError {
    let launched = tokio::time::timeout(PROMPT, launching).await;
    launched
        .expect("the launch ends with its container")
        .expect("it does not panic")
        .expect_err("it is cancelled")
}

/// Waits until something is so that an agent has an event for.
pub async fn until_event(agent: &Agent, what: &str, mut is_so: impl FnMut() -> bool) {
    let mut events = agent.events().subscribe(None);
    let wait = async {
        while !is_so() {
            events.next().await;
        }
    };
    tokio::time::timeout(TIMEOUT, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Waits until something is so, for what the kernel and the engine have no event for.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..600 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: not within half a minute");
}
