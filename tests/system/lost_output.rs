//! Output of containers that clients can attach to, which their logger does not receive: it is counted, and reported in bytes.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

use std::fs::{self, File};
use std::path::PathBuf;

use cofferdam_core::ledger::nested_directory;
use cofferdam_core::model::Request;
use cofferdam_init::streams::Counts;
use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::world::{World, id, object};
use cofferdam_tests::{assert_contains, is_root, watch};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rustix::io::ioctl_fionread;
use serde_json::json;

/// What containers write; more than a pipe holds, and less than a pipe and the switchboard do.
const LENGTH: u64 = 100_000;

/// A container that a client could attach to, in a root file system.
fn attachable(world: &World, line: String) -> Request {
    let mut request = Request::shell(id("web"), line);
    request.rootfs = Some(world.rootfs());
    request.interactive = true;
    request
}

/// The metric of lost output of a logger.
fn lost(daemon: &Daemon, logger: &str) -> u64 {
    let flat = daemon.get("/metrics/snapshot");
    let value = &flat[format!("cofferdam_logger_lost_bytes_total/{logger}/stdout")];
    value.as_f64().unwrap_or_else(|| panic!("no metric: {flat}")) as u64
}

/// A container whose logger does not read, and which has written everything.
struct Stuck {
    world: World,
    daemon: Daemon,
    /// The pipe of the log.
    pipe: File,
}

impl Stuck {
    fn launch() -> Self {
        let mut world = World::shipped();
        let directory = world.directory().join("logs");
        fs::create_dir(&directory).unwrap();
        let path = directory.join("web.out");
        mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
        // Of both directions: the logger does not wait for somebody who reads.
        let pipe = File::options().read(true).write(true).open(path).unwrap();
        let table = json!({ "directory": directory, "input": "/dev/null" });
        world.config.logger = Some(object("test/logger", "libtest_logger.so", table));
        let daemon = Daemon::start(&world);
        let line = format!("busybox head -c {LENGTH} /dev/zero; exec sleep 1000000");
        daemon.launch(&attachable(&world, line)).unwrap();
        let stuck = Self { world, daemon, pipe };
        let counts = stuck.counts();
        // All of it has left the container.
        let all = || fs::read(&counts).is_ok_and(|bytes| read(&bytes) == LENGTH);
        assert!(watch::until(counts.parent().unwrap(), TIMEOUT, all), "{}", stuck.daemon.log());
        stuck
    }

    /// What the switchboard has counted.
    fn counts(&self) -> PathBuf {
        nested_directory(&self.world.config.runtime_dir, &id("web")).join("attach.counts")
    }

    /// Ends the container, and checks what is lost.
    fn finish(self) {
        let Self { world, daemon, pipe } = self;
        assert_eq!(daemon.destroy(&id("web")).unwrap().exit_status, Some(9));
        let missing = LENGTH - ioctl_fionread(&pipe).unwrap();
        assert!(missing > 0);
        assert_eq!(lost(&daemon, "test/logger"), missing);
        let bytes = format!("bytes={missing}");
        assert_contains(&daemon.log(), &["output of the container is lost", "container=web", &bytes]);
        daemon.remove(&id("web")).unwrap();
        daemon.terminate();
        assert_eq!(world.leftovers(), Vec::<String>::new());
    }
}

/// How much of standard output a switchboard has read.
fn read(counts: &[u8]) -> u64 {
    counts.first_chunk().map_or(0, |counts| Counts::parse(counts).read[0])
}

#[test]
fn what_a_logger_does_not_read_is_counted_when_the_container_ends() {
    if is_root("a root file system") {
        Stuck::launch().finish();
    }
}

#[test]
fn what_a_switchboard_had_when_it_was_killed_is_counted() {
    if !is_root("a root file system") {
        return;
    }
    let stuck = Stuck::launch();
    let switchboard = stuck.world.record(&id("web")).part.switchboard.unwrap();
    let process = Process::open(switchboard.pid, switchboard.start_time).unwrap();
    process.kill().unwrap();
    assert!(process.wait(Some(TIMEOUT)).unwrap());
    stuck.finish();
}
