//! The logger `journald` with a real systemd-journald: what containers write is in the journal, whatever is killed, stopped or
//! restarted meanwhile, or its loss is counted.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use cofferdam_core::config::PluginConfig;
use cofferdam_core::model::Request;
use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::journal::{Entries, Journal};
use cofferdam_tests::world::{World, id, object};
use cofferdam_tests::{assert_contains, is_root, paths, wait_for_text, watch};
use nix::sys::signal::Signal;
use serde_json::{Value as Json, json};

const LIBRARY: &str = "libcofferdam_logger_journald.so";

fn world(journal: &Journal, mut table: Json) -> World {
    table["socket"] = json!(journal.socket());
    let mut world = World::shipped();
    world.config.logger = Some(object("journald", LIBRARY, table));
    world
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

/// The directory of the plugin's own files.
fn plugin_files(world: &World) -> PathBuf {
    world.config.runtime_dir.join("isolators/journald")
}

/// The companion of a container, from the plugin's own files.
fn companion(world: &World, name: &str) -> Option<Process> {
    let status = fs::read(plugin_files(world).join(name).join("status")).ok()?;
    let pid = u64::from_le_bytes(status.get(24..32)?.try_into().ok()?);
    let process = Process::open_any(i32::try_from(pid).ok()?).ok()?;
    process.has_ended().is_ok_and(|ended| !ended).then_some(process)
}

/// Kills the companion of a container and waits until the agent has started another one, which writes its pid.
fn replace_companion(world: &World, daemon: &Daemon, name: &str) {
    let killed = companion(world, name).unwrap();
    killed.kill().unwrap();
    killed.wait(None).unwrap();
    let is_other = || companion(world, name).is_some_and(|companion| companion.pid() != killed.pid());
    let replaced = watch::until(&plugin_files(world).join(name), TIMEOUT, is_other);
    assert!(replaced, "no other companion is started:\n{}", daemon.log());
}

/// The bytes of a field: text, or an array of bytes if it is none.
pub(crate) fn bytes(entry: &Json, field: &str) -> Vec<u8> {
    match &entry[field] {
        Json::String(text) => text.clone().into_bytes(),
        Json::Array(bytes) => {
            bytes.iter().map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap()).collect()
        }
        other => panic!("`{field}` is {other}"),
    }
}

pub(crate) fn text<'e>(entry: &'e Json, field: &str) -> &'e str {
    entry[field].as_str().unwrap_or_default()
}

/// The messages of a stream up to `end`, by their offset. The same one may be there twice.
fn messages(entries: &mut Entries, end: &str) -> BTreeMap<u64, Vec<u8>> {
    let mut messages = BTreeMap::new();
    for entry in entries {
        let message = bytes(&entry, "MESSAGE");
        let is_end = message == end.as_bytes();
        let earlier = messages.insert(text(&entry, "COFFERDAM_OFFSET").parse().unwrap(), message.clone());
        assert!(earlier.is_none_or(|earlier| earlier == message), "{entry}");
        if is_end {
            return messages;
        }
    }
    panic!("the journal ends after {} messages", messages.len());
}

/// A shell line that writes numbered lines until the file `stop` is in the sandbox, and then `end`.
const COUNTING: &str =
    "i=0; while [ ! -e stop ]; do printf '%060d\\n' $i; i=$((i+1)); busybox true; done; echo end";

/// Checks that all lines of [`COUNTING`] are there, with nothing between them.
fn assert_complete(messages: &BTreeMap<u64, Vec<u8>>) {
    let (end, lines) = messages.iter().next_back().zip(Some(messages.len() - 1)).unwrap();
    assert_eq!(end.1, b"end");
    for (number, (offset, message)) in messages.iter().take(lines).enumerate() {
        assert_eq!(*offset, number as u64 * 61);
        assert_eq!(*message, format!("{number:060}").into_bytes());
    }
    assert_eq!(*end.0, lines as u64 * 61);
}

fn finish(world: &World, daemon: Daemon, names: &[&str]) {
    for name in names {
        daemon.remove(&id(name)).expect("it has ended");
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
    assert_eq!(fs::read_dir(plugin_files(world)).into_iter().flatten().count(), 0);
    daemon.terminate();
}

#[test]
fn output_is_in_the_journal_with_the_container_its_labels_and_priorities() {
    if !is_root("a root file system") {
        return;
    }
    let mut journal = Journal::new();
    journal.start();
    let table =
        json!({ "fields": { "SITE": "north" }, "max_line_size": "1 MiB", "max_buffer_size": "4 MiB" });
    let world = world(&journal, table);
    let daemon = Daemon::start(&world);
    // The longest one does not fit into a datagram.
    let line = "echo hello; printf 'a\\000\\377=b\\n'; echo; busybox yes x | busybox tr -d '\\n' | busybox head -c 600000; \
                echo; echo problem >&2; printf last";
    let mut request = shell(&world, "web", line);
    request.command.user = Some("web".into());
    request.labels = [("app.tier".to_owned(), "front\nend".to_owned())].into();
    daemon.launch(&request).unwrap();
    daemon.wait(&id("web")).unwrap();

    let entries: Vec<Json> = journal.follow("CONTAINER_ID=web").take(6).collect();
    let of = |stream: &str| {
        let found = entries.iter().filter(|entry| text(entry, "STREAM") == stream);
        found.map(|entry| bytes(entry, "MESSAGE")).collect::<Vec<_>>()
    };
    assert_eq!(of("STDERR"), [b"problem"]);
    let out = of("STDOUT");
    assert_eq!(out[..3], [&b"hello"[..], b"a\0\xff=b", b""]);
    assert!(out[3] == vec![b'x'; 600_000] && out[4] == b"last");
    for entry in &entries {
        assert_eq!(text(entry, "CONTAINER_NAME"), "web");
        assert_eq!(text(entry, "SYSLOG_IDENTIFIER"), "web");
        assert_eq!(text(entry, "SITE"), "north");
        assert_eq!(bytes(entry, "LABEL_APP_TIER"), b"front\nend");
        let priority = if text(entry, "STREAM") == "STDERR" { "3" } else { "6" };
        assert_eq!(text(entry, "PRIORITY"), priority);
        assert_eq!(entry["CONTAINER_PARTIAL_MESSAGE"], Json::Null);
    }
    finish(&world, daemon, &["web"]);
}

#[test]
fn nothing_is_lost_when_companion_and_agent_are_killed_the_journal_restarts_and_the_plugin_is_replaced() {
    if !is_root("a root file system") {
        return;
    }
    let mut journal = Journal::new();
    let mut world = world(&journal, json!({}));
    let mut daemon = Daemon::start(&world);
    daemon.launch(&shell(&world, "web", COUNTING)).unwrap();
    // There is none at first.
    replace_companion(&world, &daemon, "web");
    journal.start();
    let mut entries = journal.follow("CONTAINER_ID=web");
    // The next one that has not been there yet: what has been written in between has arrived.
    let mut last = None;
    let mut wait_for_new = || {
        let offsets = entries.by_ref().map(|entry| text(&entry, "COFFERDAM_OFFSET").parse::<u64>().unwrap());
        let new = offsets.into_iter().find(|offset| last.is_none_or(|last| *offset > last));
        last = Some(new.expect("the journal is followed"));
    };
    wait_for_new();
    replace_companion(&world, &daemon, "web");
    wait_for_new();

    // The journal alone. What it has not read yet stays in the socket.
    journal.stop();
    replace_companion(&world, &daemon, "web");
    journal.start();
    wait_for_new();

    // The agent and the companion, while the journal does not read; and another version of the plugin.
    journal.signal(Signal::SIGSTOP);
    let before = companion(&world, "web").unwrap();
    daemon.kill();
    before.kill().unwrap();
    before.wait(None).unwrap();
    let other = world.directory().join("other.so");
    let mut library = fs::read(paths::build().join(LIBRARY)).unwrap();
    library.extend(b"another version");
    fs::write(&other, library).unwrap();
    let logger = world.config.logger.take().unwrap();
    world.config.logger = Some(PluginConfig { path: Some(other), ..logger });
    daemon = Daemon::start(&world);
    assert_contains(&daemon.log(), &["its log companion had been killed; another one continues"]);
    journal.signal(Signal::SIGCONT);
    wait_for_new();

    // And while the container ends.
    File::create(sandbox(&world, "web").join("stop")).unwrap();
    if let Some(last) = companion(&world, "web") {
        last.kill().unwrap();
    }
    daemon.wait(&id("web")).unwrap();
    drop(entries);
    assert_complete(&messages(&mut journal.follow("CONTAINER_ID=web"), "end"));
    assert!(!daemon.log().contains("is lost") && !daemon.log().contains("may be lost"), "{}", daemon.log());
    assert_eq!(lost(&daemon, "stdout"), 0);
    finish(&world, daemon, &["web"]);
}

/// The metric of lost output.
fn lost(daemon: &Daemon, stream: &str) -> u64 {
    let flat = daemon.get("/metrics/snapshot");
    let value = &flat[format!("cofferdam_logger_lost_bytes_total/journald/{stream}")];
    value.as_f64().unwrap_or_else(|| panic!("no metric: {flat}")) as u64
}

#[test]
fn a_journal_that_does_not_read_delays_no_kill_and_what_is_lost_is_counted() {
    if !is_root("a root file system") {
        return;
    }
    let mut journal = Journal::new();
    journal.start();
    journal.signal(Signal::SIGSTOP);
    let world = world(&journal, json!({ "max_buffer_size": "128 KiB" }));
    let daemon = Daemon::start(&world);
    // It waits when nothing more is kept.
    daemon.launch(&shell(&world, "web", "while true; do busybox seq 0 9999; done")).unwrap();
    let files = plugin_files(&world).join("web");
    let is_full = || {
        // What is in the socket has been sent.
        let status = fs::read(files.join("status")).unwrap_or_default();
        let sent = status.get(48..56).map_or(0, |sent| u64::from_le_bytes(sent.try_into().unwrap()));
        let length = fs::metadata(files.join("stdout.spool")).map_or(0, |metadata| metadata.len());
        length.saturating_sub(sent) >= 128 << 10
    };
    assert!(watch::until(&files, TIMEOUT, is_full));
    daemon.destroy(&id("web")).unwrap();
    let log = world.directory().join("agent.log");
    wait_for_text(&log, "output of the container is lost");
    assert_contains(&daemon.log(), &["container=web", "stream=stdout", "is killed", "bytes="]);
    let bytes = lost_in_log(&log);
    assert!(bytes >= 128 << 10, "{bytes}");
    assert_eq!(lost(&daemon, "stdout"), bytes);
    // What was not lost is there.
    journal.signal(Signal::SIGCONT);
    let first = journal.follow("CONTAINER_ID=web").next().unwrap();
    assert_eq!((text(&first, "MESSAGE"), text(&first, "COFFERDAM_OFFSET")), ("0", "0"));
    finish(&world, daemon, &["web"]);
}

/// How many bytes the agent's log says are lost.
fn lost_in_log(log: &Path) -> u64 {
    let log = fs::read_to_string(log).unwrap();
    let line = log.lines().find(|line| line.contains("output of the container is lost")).unwrap();
    let bytes = line.split("bytes=").nth(1).unwrap();
    bytes.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

#[test]
fn a_container_that_is_not_to_wait_goes_on_and_the_journal_is_told_what_is_missing() {
    if !is_root("a root file system") {
        return;
    }
    let mut journal = Journal::new();
    journal.start();
    journal.signal(Signal::SIGSTOP);
    let world = world(&journal, json!({ "max_buffer_size": "128 KiB", "when_full": "drop" }));
    let daemon = Daemon::start(&world);
    let line = "i=0; while [ $i -lt 200 ]; do busybox seq 0 9999; i=$((i+1)); done; busybox touch done; \
                while [ ! -e stop ]; do busybox sleep 0.01; done; echo end";
    daemon.launch(&shell(&world, "web", line)).unwrap();
    let directory = sandbox(&world, "web");
    assert!(watch::until(&directory, TIMEOUT, || directory.join("done").exists()));
    let companion = companion(&world, "web").unwrap();
    journal.signal(Signal::SIGCONT);
    let mut entries = journal.follow("CONTAINER_ID=web");
    let told = entries.find(|entry| entry["COFFERDAM_LOST_BYTES"] != Json::Null).unwrap();
    assert_eq!(text(&told, "PRIORITY"), "4");
    File::create(directory.join("stop")).unwrap();
    daemon.wait(&id("web")).unwrap();
    let rest: Vec<Json> = entries.by_ref().take_while(|entry| text(entry, "MESSAGE") != "end").collect();
    let told = [told].into_iter().chain(rest);
    let told: u64 = told.filter_map(|entry| text(&entry, "COFFERDAM_LOST_BYTES").parse::<u64>().ok()).sum();
    assert_eq!(lost(&daemon, "stdout"), told);
    assert!(told > 1 << 20, "{told}");
    assert!(companion.has_ended().unwrap());
    finish(&world, daemon, &["web"]);
}
