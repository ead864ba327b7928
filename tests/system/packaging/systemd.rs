//! A real systemd with its journal, in a virtual machine of its own: the unit of the package and its scripts, what happens to
//! containers when the service is restarted, killed and stopped, and what they write in the journal.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::TIMEOUT;
use cofferdam_tests::journal::Entries;
use serde_json::Value as Json;

use super::output;
use crate::guest::{self, Guest, Hierarchy, TestBinary};
use crate::journald::{bytes, text};

/// Has the path of the unpacked package in the virtual machine.
const PACKAGE: &str = "COFFERDAM_TEST_PACKAGE";

/// What it installs that a service needs, below `/usr`.
const INSTALLED: [&str; 4] =
    ["bin/cofferdam", "lib/cofferdam", "libexec/cofferdam", "lib/systemd/system/cofferdam.service"];

const CONFIG: &str = "etc/cofferdam/agent.toml";

/// What systemd logs when it is about to start a service again (`SD_MESSAGE_UNIT_RESTART_SCHEDULED`).
const RESTART_SCHEDULED: &str = "MESSAGE_ID=5eb03494b6584870a536b337290809b3";

/// Memory and CPUs of a container, for the command and for the kernel.
const LIMITS: [&str; 4] = ["--memory", "64m", "--cpus", "0.5"];
const LIMITS_OF_CGROUP: [(&str, &str); 2] = [("memory.max", "67108864\n"), ("cpu.max", "50000 100000\n")];

/// One boot for all, as it takes longer than most of them. In the virtual machine, this is the test that runs.
#[test]
fn service_and_containers_under_systemd() {
    if guest::inside() {
        return use_service();
    }
    // Not below /tmp, which the virtual machine does not share.
    let build = cofferdam_tests::paths::build();
    let place = tempfile::Builder::new()
        .prefix("package-")
        .tempdir_in(build.parent().expect("the target directory"))
        .expect("a directory");
    unpack(&super::package(place.path()), place.path());
    let inside = ["--exact", "packaging::systemd::service_and_containers_under_systemd"];
    let guest =
        Guest { systemd: true, memory: 2048, limit: Duration::from_secs(3600), ..Guest::new(Hierarchy::V2) };
    let package = place.path().to_str().expect("a path that is text");
    let environment = [("CI", "true"), (PACKAGE, package)];
    let passed = guest.run_test_binaries(&[TestBinary::current(&inside)], &environment).tests_passed();
    assert!(passed.is_none_or(|passed| passed == [1]));
}

/// Unpacks a package, as dpkg would take an emulated CPU a minute, and has containers log to the journal.
fn unpack(package: &Path, directory: &Path) {
    let root = directory.join("root");
    output(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&root));
    output(Command::new("dpkg-deb").arg("--control").arg(package).arg(directory.join("control")));
    fs::remove_file(package).expect("it is ours");
    let config = root.join(CONFIG);
    let mut file = File::options().append(true).open(&config).expect("the configuration");
    file.write_all(b"\n[logger]\nname = \"journald\"\nconfig.fields = { SITE = \"north\" }\n")
        .expect("a file");
}

/// Installs the package and uses its service, in a virtual machine.
fn use_service() {
    assert_eq!(fs::read_to_string("/proc/1/comm").expect("process 1"), "systemd\n");
    let _diagnosis = Diagnosis;
    install();

    let mut entries = Entries::of_machine("CONTAINER_ID=web");
    let web = Container::launch("web", CONTROLLED);
    output_is_in_the_journal(&mut entries);
    web.assert_runs_with_limits();

    let first = Service::read();
    systemctl(&["restart", "cofferdam"]);
    let second = Service::read();
    assert_ne!(first.main, second.main, "the agent is another process");
    web.assert_runs_with_limits();
    web.control("echo after a restart");
    assert_eq!(next(&mut entries), "after a restart");

    let mut restarts = Entries::of_machine(RESTART_SCHEDULED);
    Process::open_any(second.main).expect("the agent").kill().expect("it is ours");
    assert_eq!(text(&restarts.next().expect("an entry"), "UNIT"), "cofferdam.service");
    // Waits for the end of the start that has been scheduled.
    systemctl(&["start", "cofferdam"]);
    let third = Service::read();
    assert_ne!(second.main, third.main);
    assert_eq!(third.restarts, 1);
    web.assert_runs_with_limits();
    web.control("echo after a kill");
    assert_eq!(next(&mut entries), "after a kill");

    systemctl(&["stop", "cofferdam"]);
    assert_eq!(property("cofferdam", "ActiveState"), "inactive");
    assert_eq!(property("cofferdam", "Result"), "success");
    web.assert_runs_with_limits();
    web.control("echo without an agent");
    assert_eq!(next(&mut entries), "without an agent");
    // Without the service, systemd needs no controllers for it: it configures those of its cgroups again.
    fs::create_dir_all("/run/systemd/system").expect("a directory");
    let other = "[Service]\nType=oneshot\nExecStart=true\nCPUWeight=50\n";
    fs::write("/run/systemd/system/other.service", other).expect("a unit");
    systemctl(&["daemon-reload"]);
    systemctl(&["start", "other"]);
    web.assert_runs_with_limits();

    systemctl(&["start", "cofferdam"]);
    web.control("exit 7");
    let ended = Command::new("cofferdam").args(["wait", "web"]).output().expect("it starts");
    assert_eq!(ended.status.code(), Some(7), "{ended:?}");
    cofferdam(&["rm", "web"]);

    // The removal starts the service, to end them.
    let other = Container::launch("other", "busybox sleep 1000000");
    systemctl(&["stop", "cofferdam"]);
    package_script("prerm", "remove");
    assert!(other.process.has_ended().expect("a pidfd"), "the container is left");
    assert_eq!(property("cofferdam", "ActiveState"), "inactive");
    assert_eq!(property("cofferdam", "UnitFileState"), "disabled");
    assert_nothing_is_left();
}

/// Prints what is in the journal if the test fails.
struct Diagnosis;

impl Drop for Diagnosis {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = Command::new("journalctl").args(["--boot", "--no-pager"]).output();
            let journal = journal.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            println!("{}", journal.unwrap_or_default());
        }
    }
}

/// Installs the unpacked package, and enables the service as the operator's guide says.
fn install() {
    // Not in an overlay, as the root file system is, on which root file systems of containers cannot be.
    fs::create_dir_all("/var/lib/cofferdam").expect("a directory");
    output(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=711", "tmpfs", "/var/lib/cofferdam"]));
    let root = package().join("root");
    // Files as large as these are not copied.
    for installed in INSTALLED {
        let (from, to) = (root.join("usr").join(installed), Path::new("/usr").join(installed));
        if from.is_dir() {
            fs::create_dir_all(&to).expect("a directory");
        } else {
            fs::write(&to, "").expect("a file");
        }
        output(Command::new("mount").arg("--bind").arg(from).arg(to));
    }
    let config = Path::new("/").join(CONFIG);
    fs::create_dir_all(config.parent().expect("a directory")).expect("a directory");
    fs::copy(root.join(CONFIG), config).expect("a file");
    package_script("postinst", "configure");
    systemctl(&["enable", "--now", "cofferdam"]);
}

/// The directory of the unpacked package.
fn package() -> PathBuf {
    std::env::var_os(PACKAGE).expect("the path of the package").into()
}

/// Runs a script of the package as dpkg does.
fn package_script(name: &str, argument: &str) {
    output(Command::new(package().join("control").join(name)).arg(argument));
}

fn systemctl(arguments: &[&str]) {
    output(Command::new("systemctl").args(arguments));
}

/// A property of a service, as systemd reports it.
fn property(service: &str, name: &str) -> String {
    let mut show = Command::new("systemctl");
    output(show.args(["show", "--value", "--property", name, service])).trim().to_owned()
}

fn cofferdam(arguments: &[&str]) -> String {
    output(Command::new("cofferdam").args(arguments))
}

/// The service, which is active.
struct Service {
    main: i32,
    restarts: u32,
}

impl Service {
    fn read() -> Self {
        assert_eq!(property("cofferdam", "ActiveState"), "active");
        let number = |name| property("cofferdam", name);
        Self {
            main: number("MainPID").parse().expect("a pid"),
            restarts: number("NRestarts").parse().expect("a number"),
        }
    }
}

/// A shell line that writes to the journal, and does then what is written to a pipe in its sandbox. Opened for both, the pipe keeps
/// what is in it between two writers.
const CONTROLLED: &str = "busybox mkfifo control; exec 3<>control; \
    echo hello; printf 'a\\000\\377=b\\n'; busybox yes x | busybox tr -d '\\n' | busybox head -c 60000; echo; echo problem >&2; \
    while read -r line <&3; do eval \"$line\"; done";

/// Checks what [`CONTROLLED`] writes first.
fn output_is_in_the_journal(entries: &mut Entries) {
    let entries: Vec<Json> = entries.take(5).collect();
    let of = |stream: &str| {
        let found = entries.iter().filter(|entry| text(entry, "STREAM") == stream);
        found.map(|entry| (bytes(entry, "MESSAGE"), &entry["CONTAINER_PARTIAL_MESSAGE"])).collect::<Vec<_>>()
    };
    assert_eq!(of("STDERR"), [(b"problem".to_vec(), &Json::Null)]);
    let partial = Json::from("true");
    let written = [
        (b"hello".to_vec(), &Json::Null),
        (b"a\0\xff=b".to_vec(), &Json::Null),
        (vec![b'x'; 48 << 10], &partial),
        (vec![b'x'; 60_000 - (48 << 10)], &Json::Null),
    ];
    assert_eq!(of("STDOUT"), written);
    for entry in &entries {
        assert_eq!(text(entry, "CONTAINER_NAME"), "web");
        assert_eq!(text(entry, "SYSLOG_IDENTIFIER"), "web");
        assert_eq!(text(entry, "LABEL_APP_TIER"), "front");
        assert_eq!(text(entry, "SITE"), "north");
        let priority = if text(entry, "STREAM") == "STDERR" { "3" } else { "6" };
        assert_eq!(text(entry, "PRIORITY"), priority);
    }
}

fn next(entries: &mut Entries) -> String {
    text(&entries.next().expect("an entry"), "MESSAGE").to_owned()
}

struct Container {
    sandbox: PathBuf,
    process: Process,
    cgroup: PathBuf,
}

impl Container {
    /// Launches a container with limits in a root file system, and waits until it is running.
    fn launch(name: &str, line: &str) -> Self {
        let rootfs = Path::new("/tmp/rootfs");
        fs::create_dir_all(rootfs.join("bin")).expect("a directory");
        for program in ["busybox", "sh"] {
            fs::copy("/bin/busybox", rootfs.join("bin").join(program)).expect("a static program");
        }
        let mut run = Command::new("cofferdam");
        run.args(["run", "-d", "--name", name, "--label", "app.tier=front", "--rootfs"]).arg(rootfs);
        output(run.args(LIMITS).args(["--", "sh", "-c", line]));
        let shown: Json = serde_json::from_str(&cofferdam(&["inspect", "--json", name])).expect("an object");
        let pid = shown["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a pid");
        let process = Process::open_any(pid).expect("it is running");
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it is running");
        let cgroup = cgroups.trim_end().strip_prefix("0::/").expect("cgroups of version 2 only");
        let sandbox = Path::new("/var/lib/cofferdam/containers").join(name);
        Self { sandbox, process, cgroup: Path::new("/sys/fs/cgroup").join(cgroup) }
    }

    /// Has [`CONTROLLED`] do something.
    fn control(&self, line: &str) {
        let mut pipe = File::options().write(true).open(self.sandbox.join("control")).expect("a named pipe");
        writeln!(pipe, "{line}").expect("a reader");
    }

    fn assert_runs_with_limits(&self) {
        assert!(!self.process.has_ended().expect("a pidfd"), "the container has ended");
        for (file, limit) in LIMITS_OF_CGROUP {
            let read = fs::read_to_string(self.cgroup.join(file));
            assert_eq!(read.expect("the controller is enabled"), limit, "{}/{file}", self.cgroup.display());
        }
    }
}

/// Waits until keepers have ended, and checks that no cgroup is left but that of all agents.
fn assert_nothing_is_left() {
    for entry in fs::read_dir("/proc").expect("processes").flatten() {
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let pid = entry.file_name().to_string_lossy().parse();
        if let (true, Ok(pid)) = (name.starts_with("cofferdam"), pid) {
            let ended =
                Process::open_any(pid).map_or(true, |process| process.wait(Some(TIMEOUT)).expect("a pidfd"));
            assert!(ended, "{name} is left");
        }
    }
    let cgroups = fs::read_dir("/sys/fs/cgroup/cofferdam").into_iter().flatten().flatten();
    let left: Vec<PathBuf> = cgroups.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}
