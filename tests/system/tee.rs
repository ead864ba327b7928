//! The logger `tee`: two others receive what containers write, whatever is killed meanwhile, and one that fails does not stop
//! the other.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use cofferdam_core::config::{FailPolicy, PluginConfig};
use cofferdam_core::model::Request;
use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::journal::Journal;
use cofferdam_tests::world::{World, id, object, sandbox_logger};
use cofferdam_tests::{assert_contains, is_root, paths, text, wait_for_text, watch};
use serde_json::{Value as Json, json};

const LIBRARY: &str = "libcofferdam_logger_tee.so";

/// A world with two loggers below this one.
fn world(table: Json, targets: [PluginConfig; 2]) -> World {
    let mut world = World::shipped();
    world.config.logger = Some(object("tee", LIBRARY, table));
    world.config.log_targets = targets.into();
    world
}

fn logrotate(table: Json) -> PluginConfig {
    object("logrotate", "libcofferdam_logger_logrotate.so", table)
}

fn journald(journal: &Journal) -> PluginConfig {
    object("journald", "libcofferdam_logger_journald.so", json!({ "socket": journal.socket() }))
}

/// A container in a root file system that runs a shell line.
fn shell(world: &World, name: &str, line: &str) -> Request {
    let mut request = Request::shell(id(name), line);
    request.rootfs = Some(world.rootfs());
    request
}

fn sandbox(world: &World, name: &str) -> PathBuf {
    world.config.work_dir.join("containers").join(name)
}

/// The directory of a plugin's own files for a container.
fn files(world: &World, plugin: &str, name: &str) -> PathBuf {
    world.config.runtime_dir.join("isolators").join(plugin).join(name)
}

/// The companion that a plugin has for a container, from its own files.
fn companion(world: &World, plugin: &str, name: &str) -> Option<Process> {
    let status = fs::read(files(world, plugin, name).join("status")).ok()?;
    let pid = u64::from_le_bytes(status.get(24..32)?.try_into().ok()?);
    let process = Process::open_any(i32::try_from(pid).ok()?).ok()?;
    process.has_ended().is_ok_and(|ended| !ended).then_some(process)
}

/// Kills a companion and waits until the agent has started another one, which writes its pid.
fn replace_companion(world: &World, daemon: &Daemon, plugin: &str) {
    let killed = companion(world, plugin, "web").unwrap();
    killed.kill().unwrap();
    killed.wait(None).unwrap();
    let is_other =
        || companion(world, plugin, "web").is_some_and(|companion| companion.pid() != killed.pid());
    let replaced = watch::until(&files(world, plugin, "web"), TIMEOUT, is_other);
    assert!(replaced, "no other companion is started:\n{}", daemon.log());
}

fn finish(world: &World, daemon: Daemon, names: &[&str]) {
    for name in names {
        daemon.remove(&id(name)).expect("it has ended");
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
    for plugin in ["tee", "logrotate", "journald"] {
        let left = fs::read_dir(world.config.runtime_dir.join("isolators").join(plugin));
        assert_eq!(left.into_iter().flatten().count(), 0, "{plugin}");
    }
    daemon.terminate();
}

/// What `cofferdam logs` shows.
fn shown(world: &World, name: &str) -> String {
    let output = Command::new(paths::program())
        .arg("--socket")
        .arg(world.socket())
        .args(["logs", name])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The metric of lost output of a logger.
fn lost(daemon: &Daemon, logger: &str) -> u64 {
    let flat = daemon.get("/metrics/snapshot");
    let value = &flat[format!("cofferdam_logger_lost_bytes_total/{logger}/stdout")];
    value.as_f64().unwrap_or_else(|| panic!("no metric: {flat}")) as u64
}

#[test]
fn files_and_the_journal_have_the_same_whatever_is_killed() {
    if !is_root("a root file system") {
        return;
    }
    let mut journal = Journal::new();
    journal.start();
    let logrotate = logrotate(json!({ "max_stdout_size": "64 KiB", "max_stdout_files": 100 }));
    let mut world = world(json!({}), [logrotate, journald(&journal)]);
    let mut daemon = Daemon::start(&world);
    let names: Vec<String> = daemon.call(&json!({ "type": "GET_PLUGINS" })).unwrap()["plugins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|plugin| plugin["name"].as_str().unwrap().to_owned())
        .collect();
    assert!(names.ends_with(&["logrotate".into(), "journald".into(), "tee".into()]), "{names:?}");
    let line = "i=0; while [ ! -e stop ]; do printf '%060d\\n' $i; i=$((i+1)); busybox true; done; echo end";
    let mut request = shell(&world, "web", line);
    request.command.user = Some("web".into());
    daemon.launch(&request).unwrap();
    let stdout = sandbox(&world, "web").join("stdout");
    wait_for_text(&stdout, "000\n");
    let wait_until_grown = || {
        let size = || fs::metadata(&stdout).map(|metadata| metadata.len()).ok();
        let before = size();
        let grown = || size().is_some_and(|size| Some(size) != before);
        assert!(watch::until(&sandbox(&world, "web"), TIMEOUT, grown));
    };
    for plugin in ["tee", "logrotate", "journald", "tee"] {
        replace_companion(&world, &daemon, plugin);
        wait_until_grown();
    }
    // The agent alone, and another version of the plugin.
    daemon.kill();
    wait_until_grown();
    let other = world.directory().join("other.so");
    let mut library = fs::read(paths::build().join(LIBRARY)).unwrap();
    library.extend(b"another version");
    fs::write(&other, library).unwrap();
    let logger = world.config.logger.take().unwrap();
    world.config.logger = Some(PluginConfig { path: Some(other), ..logger });
    daemon = Daemon::start(&world);
    replace_companion(&world, &daemon, "tee");
    // And while the container ends.
    File::create(sandbox(&world, "web").join("stop")).unwrap();
    if let Some(last) = companion(&world, "tee", "web") {
        last.kill().unwrap();
    }
    daemon.wait(&id("web")).unwrap();

    // What was being passed on when the companion was killed may be there twice.
    let complete = |lines: &mut dyn Iterator<Item = String>| {
        let mut next = 0;
        for line in lines {
            if line == "end" {
                return next;
            }
            let number: u64 = line.parse().unwrap_or_else(|_| panic!("`{line}` after {next}"));
            assert!(number <= next, "{number} after {next}");
            next = next.max(number + 1);
        }
        panic!("the end is missing after {next} lines");
    };
    let in_files = complete(&mut shown(&world, "web").lines().map(ToOwned::to_owned));
    let mut entries = journal.follow("CONTAINER_ID=web");
    let messages = entries.by_ref().map(|entry| entry["MESSAGE"].as_str().unwrap_or_default().to_owned());
    assert_eq!(complete(&mut messages.into_iter()), in_files);
    assert!(!daemon.log().contains("is lost") && !daemon.log().contains("may be lost"), "{}", daemon.log());
    finish(&world, daemon, &["web"]);
}

#[test]
fn a_logger_that_hangs_stops_neither_the_other_one_nor_a_kill() {
    if !is_root("a root file system") {
        return;
    }
    let journal = Journal::new();
    let table = json!({ "stall_timeout": "100ms", "max_buffer_size": "128 KiB" });
    let world = world(table, [sandbox_logger(), journald(&journal)]);
    let daemon = Daemon::start(&world);
    let line = "i=0; while [ $i -lt 100 ]; do busybox seq 0 9999; i=$((i+1)); done; echo end; \
                while true; do busybox sleep 1000; done";
    // The journal is absent, and its logger waits for it: it reads no more when its buffer is full.
    daemon.launch(&shell(&world, "web", line)).unwrap();
    let stdout = sandbox(&world, "web").join("stdout");
    wait_for_text(&stdout, "end\n");
    daemon.destroy(&id("web")).unwrap();
    let numbers: String = (0..10_000).map(|number| format!("{number}\n")).collect();
    assert!(text(&stdout) == numbers.repeat(100) + "end\n", "the other logger has lost output");
    assert_eq!(shown(&world, "web").len(), numbers.len() * 100 + 4);
    wait_for_text(&world.directory().join("agent.log"), "sandbox=0 journald=");
    assert!(lost(&daemon, "tee") > 1 << 20, "{}", lost(&daemon, "tee"));
    assert!(lost(&daemon, "journald") >= 1 << 20, "{}", lost(&daemon, "journald"));
    finish(&world, daemon, &["web"]);
}

#[test]
fn an_optional_logger_that_refuses_a_container_leaves_it_to_the_other_one() {
    if !is_root("a root file system") {
        return;
    }
    let refusing = logrotate(json!({}));
    let optional = PluginConfig { policy: FailPolicy::Optional, ..refusing };
    let mut world = world(json!({}), [optional, sandbox_logger()]);
    let daemon = Daemon::start(&world);
    let mut request = shell(&world, "web", "echo hello");
    request.command.environment.insert("CONTAINER_LOGGER_MAX_STDOUT_SIZE".into(), "large".into());
    daemon.launch(&request).unwrap();
    daemon.wait(&id("web")).unwrap();
    assert_eq!(shown(&world, "web"), "hello\n");
    finish(&world, daemon, &["web"]);

    // A required one fails the launch, and nothing is left.
    world.config.log_targets[0].policy = FailPolicy::Required;
    let daemon = Daemon::start(&world);
    request.id = id("db");
    let error = format!("{:?}", daemon.launch(&request).unwrap_err());
    assert_contains(&error, &["logrotate", "CONTAINER_LOGGER_MAX_STDOUT_SIZE"]);
    drop(daemon.remove(&id("db")));
    assert_eq!(world.leftovers(), Vec::<String>::new());
    daemon.terminate();
}
