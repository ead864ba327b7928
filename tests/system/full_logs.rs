//! Loggers on a disk that is full: what is missing in a file is counted to the byte or reported to the container, which goes on.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

use std::fs::File;

use cofferdam_core::config::PluginConfig;
use cofferdam_core::model::Request;
use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::disk::Full;
use cofferdam_tests::journal::Journal;
use cofferdam_tests::mounts::{Memory, in_own_namespace};
use cofferdam_tests::world::{World, id, object, sandbox_logger};
use cofferdam_tests::{assert_contains, is_root, text, wait_for_text};
use serde_json::json;

/// What a container writes to a full disk; more than a pipe and a page hold.
const LENGTH: u64 = 300_000;

/// All that a container writes.
const TOTAL: u64 = LENGTH + "up\nend\n".len() as u64;

/// The metric of lost output of a logger.
fn lost(daemon: &Daemon, logger: &str) -> u64 {
    let flat = daemon.get("/metrics/snapshot");
    let value = &flat[format!("cofferdam_logger_lost_bytes_total/{logger}/stdout")];
    value.as_f64().unwrap_or_else(|| panic!("no metric: {flat}")) as u64
}

/// A container that writes `up`, and [`LENGTH`] bytes and `end` when there is a file `go` in its sandbox. It exits with 3 if it
/// could write all of it, and else with 4.
fn request(world: &World) -> Request {
    let line = format!(
        "echo up; while [ ! -e go ]; do sleep 0.01; done; \
         status=3; busybox head -c {LENGTH} /dev/zero || status=4; echo end || status=4; exit $status"
    );
    let mut request = Request::shell(id("web"), line);
    request.rootfs = Some(world.rootfs());
    request
}

/// Has the container write while its disk is full. Returns how much its log has then.
fn write(world: &World, daemon: &Daemon, request: &Request, exit_status: i32) -> u64 {
    daemon.launch(request).unwrap_or_else(|error| panic!("{error:?}\n{}", daemon.log()));
    let sandbox = world.config.work_dir.join("containers/web");
    let log = sandbox.join("stdout");
    wait_for_text(&log, "up\n");
    let full = Full::shrink(&world.config.work_dir);
    // A file without content needs no block.
    File::create(sandbox.join("go")).unwrap();
    assert_eq!(daemon.wait(&request.id).unwrap().exit_status, Some(exit_status << 8), "{}", daemon.log());
    drop(full);
    let written = text(&log);
    assert!(written.starts_with("up\n") && !written.contains("end"), "{} bytes", written.len());
    written.len() as u64
}

/// Runs a test with a work directory that can be made full.
fn on_small_disk(logger: PluginConfig, test: impl FnOnce(&World, &Daemon) + Send) {
    on_small_disk_with(logger, Vec::new(), test);
}

/// As [`on_small_disk`], with loggers that this one passes output on to.
fn on_small_disk_with(
    logger: PluginConfig,
    targets: Vec<PluginConfig>,
    test: impl FnOnce(&World, &Daemon) + Send,
) {
    in_own_namespace(|| {
        let mut world = World::shipped();
        world.config.logger = Some(logger);
        world.config.log_targets = targets;
        let _memory = Memory::mount(&world.config.work_dir, "size=1g");
        let daemon = Daemon::start(&world);
        test(&world, &daemon);
        daemon.remove(&id("web")).unwrap();
        assert!(daemon.terminate().success());
        // Not the mount of this test.
        let left: Vec<_> =
            world.leftovers().into_iter().filter(|left| !left.starts_with("mount: ")).collect();
        assert_eq!(left, Vec::<String>::new());
    });
}

/// Checks that what is missing is in the metric, and in the agent's log.
fn assert_counted(daemon: &Daemon, logger: &str, written: u64) {
    let missing = TOTAL - written;
    assert_eq!(lost(daemon, logger), missing);
    let bytes = format!("bytes={missing}");
    let expected = ["output of the container is lost", "container=web", &bytes, "No space left on device"];
    assert_contains(&daemon.log(), &expected);
}

#[test]
fn a_container_that_writes_to_its_log_itself_gets_the_error() {
    if !is_root("a full disk") {
        return;
    }
    on_small_disk(sandbox_logger(), |world, daemon| {
        assert!(write(world, daemon, &request(world), 4) < TOTAL);
        assert!(!daemon.log().contains("is lost"), "{}", daemon.log());
    });
}

#[test]
fn a_switchboard_counts_what_a_full_disk_does_not_take() {
    if !is_root("a full disk") {
        return;
    }
    on_small_disk(sandbox_logger(), |world, daemon| {
        let request = Request { interactive: true, ..request(world) };
        let written = write(world, daemon, &request, 3);
        assert_counted(daemon, "sandbox", written);
    });
}

#[test]
fn the_companion_of_logrotate_counts_what_a_full_disk_does_not_take() {
    if !is_root("a full disk") {
        return;
    }
    // Times would take space of their own.
    let logger = object("logrotate", "libcofferdam_logger_logrotate.so", json!({ "times": false }));
    on_small_disk(logger, |world, daemon| {
        let written = write(world, daemon, &request(world), 3);
        assert_counted(daemon, "logrotate", written);
    });
}

#[test]
fn a_logger_of_tee_on_a_full_disk_loses_what_is_counted_and_the_other_one_nothing() {
    if !is_root("a full disk") {
        return;
    }
    let mut journal = Journal::new();
    journal.start();
    let journald =
        object("journald", "libcofferdam_logger_journald.so", json!({ "socket": journal.socket() }));
    let tee = object("tee", "libcofferdam_logger_tee.so", json!({}));
    on_small_disk_with(tee, vec![sandbox_logger(), journald], |world, daemon| {
        let written = write(world, daemon, &request(world), 3);
        assert_counted(daemon, "tee", written);
        let missing = TOTAL - written;
        assert_contains(&daemon.log(), &[&format!("sandbox={missing} journald=0")]);
        assert_eq!(lost(daemon, "journald"), 0);
        daemon.remove(&id("web")).unwrap();

        // Nor is a kill delayed, while the disk is full and the container writes.
        let line = "echo up; while [ ! -e go ]; do sleep 0.01; done; exec busybox yes";
        let mut request = Request::shell(id("web"), line);
        request.rootfs = Some(world.rootfs());
        daemon.launch(&request).unwrap();
        let sandbox = world.config.work_dir.join("containers/web");
        wait_for_text(&sandbox.join("stdout"), "up\n");
        let full = Full::shrink(&world.config.work_dir);
        File::create(sandbox.join("go")).unwrap();
        // What is lost is counted every few seconds.
        while lost(daemon, "tee") == missing {
            std::thread::yield_now();
        }
        assert_eq!(daemon.destroy(&request.id).unwrap().exit_status, Some(9));
        drop(full);
    });
}
