//! Sessions over HTTP as clients of Mesos have them: `LAUNCH_NESTED_CONTAINER_SESSION`, and attached clients beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use cofferdam_core::ledger::nested_directory;
use cofferdam_init::streams::Counts;
use cofferdam_tests::is_root;
use cofferdam_tests::world::id;
use serde_json::{Value as Json, json};

use crate::exchange::Exchange;
use crate::terminals::Site;

/// What a container and its client may be apart, in bytes: the buffers of a pipe, the switchboard, sockets and the agent.
const BUFFERS: usize = 4 << 20;

/// What is written: far more than that.
const LENGTH: usize = 32 << 20;

/// A site with a container `pod` that runs until it is killed.
fn site() -> Site {
    let site = Site::new();
    let run = ["run", "-d", "--name", "pod", "--rootfs", &site.rootfs, "--", "sleep", "1000000"];
    assert!(site.piped(&run, b"").status.success());
    site
}

fn finish(site: Site) {
    assert!(site.piped(&["rm", "--force", "pod"], b"").status.success());
    site.finish();
}

fn nested(name: &str) -> Json {
    json!({"value": name, "parent": {"value": "pod"}})
}

/// Launches a session that runs a shell line, at a terminal if there is a size.
fn launch(site: &Site, name: &str, line: &str, size: Option<(u16, u16)>) -> Exchange {
    let mut body = json!({"container_id": nested(name), "command": {"value": line}});
    if let Some((rows, columns)) = size {
        let tty_info = json!({"window_size": {"rows": rows, "columns": columns}});
        body["container"] = json!({"type": "MESOS", "tty_info": tty_info});
    }
    let call = json!({"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": body});
    Exchange::call(site.socket(), &call)
}

fn stdin(text: &str) -> Json {
    let data = data_encoding::BASE64.encode(text.as_bytes());
    json!({"type": "DATA", "data": {"type": "STDIN", "data": data}})
}

fn tty_info(rows: u16, columns: u16) -> Json {
    let size = json!({"window_size": {"rows": rows, "columns": columns}});
    json!({"type": "CONTROL", "control": {"type": "TTY_INFO", "tty_info": size}})
}

fn heartbeat() -> Json {
    let interval = json!({"interval": {"nanoseconds": 30_000_000_000_u64}});
    json!({"type": "CONTROL", "control": {"type": "HEARTBEAT", "heartbeat": interval}})
}

#[test]
fn a_session_has_a_terminal_whose_size_follows_and_heartbeats_in_both_directions() {
    if !is_root("a root file system") {
        return;
    }
    let site = site();
    let line = "busybox stty size; read word; echo got $word; busybox stty size; read word; exit 3";
    let mut output = launch(&site, "shell", line, Some((30, 100)));
    assert_eq!(output.output_until("\n"), "30 100\r\n");
    let mut input = Exchange::input(site.socket(), &nested("shell"));
    input.process_io(&tty_info(25, 81));
    input.process_io(&heartbeat());
    input.process_io(&stdin("word\r"));
    // The terminal echoes.
    assert_eq!(output.output_until("25 81\r\n"), "word\r\ngot word\r\n25 81\r\n");
    // While nothing is written.
    output.heartbeat();
    input.process_io(&stdin("\r"));
    while output.next().is_some() {}
    // The client has the whole output; whoever knows the id learns how it ended.
    let waited = site.daemon().wait(&id("pod.shell")).unwrap();
    assert_eq!(waited.exit_status, Some(3 << 8));
    input.wait_for("HTTP/1.1 200 OK");
    site.daemon().remove(&id("pod.shell")).unwrap();
    finish(site);
}

#[test]
fn a_client_that_disconnects_ends_its_session_and_nothing_else() {
    if !is_root("a root file system") {
        return;
    }
    let site = site();
    let echo = "echo up; while read word; do echo got $word; done";
    let mut kept = launch(&site, "kept", echo, None);
    let mut closed = launch(&site, "closed", echo, None);
    kept.output_until("up\n");
    closed.output_until("up\n");
    let mut input = Exchange::input(site.socket(), &nested("kept"));
    input.process_io(&stdin("one\n"));
    kept.output_until("got one\n");
    // Clients that are attached beside the one that has launched it.
    let of_kept = json!({"container_id": nested("kept")});
    let attach = json!({"type": "ATTACH_CONTAINER_OUTPUT", "attach_container_output": of_kept});
    let mut second = Exchange::call(site.socket(), &attach);
    second.wait_for("application/recordio");
    input.process_io(&stdin("two\n"));
    kept.output_until("got two\n");
    second.output_until("got two\n");
    drop((input, second));

    let mut events = Exchange::call(site.socket(), &json!({"type": "SUBSCRIBE"}));
    assert_eq!(events.next_record().unwrap()["type"], "SUBSCRIBED");
    drop(closed);
    // It is removed as well, as nobody else knows of it.
    loop {
        let event = events.next_record().expect("more events");
        if event["type"] == "CONTAINER_REMOVED" {
            assert_eq!(event["container"]["container_id"], nested("closed"));
            break;
        }
    }

    let mut input = Exchange::input(site.socket(), &nested("kept"));
    input.process_io(&stdin("three\n"));
    kept.output_until("got three\n");
    assert_eq!(site.daemon().inspect(&id("pod")).unwrap().state, "RUNNING");
    input.process_io(&stdin(""));
    while kept.next().is_some() {}
    assert_eq!(site.daemon().wait(&id("pod.kept")).unwrap().exit_status, Some(0));
    site.daemon().remove(&id("pod.kept")).unwrap();
    finish(site);
}

/// How much a switchboard has read of standard output, as it counts itself.
fn read_by_switchboard(site: &Site, name: &str) -> usize {
    let file = nested_directory(&site.runtime_dir(), &id(name)).join("attach.counts");
    let counts = std::fs::read(file).ok();
    let counts = counts.as_deref().and_then(|counts| counts.first_chunk()).map(Counts::parse);
    counts.map_or(0, |counts| usize::try_from(counts.read[0]).expect("a small number"))
}

#[test]
fn a_client_that_does_not_read_holds_the_session_up_and_not_its_end() {
    if !is_root("a root file system") {
        return;
    }
    let site = site();
    let line = format!("exec busybox dd if=/dev/zero bs=64k count={} 2>/dev/null", LENGTH >> 16);
    let mut slow = launch(&site, "slow", &line, None);
    let mut received = 0;
    while let Some(record) = slow.next() {
        // The container is never further ahead than what is kept on the way.
        let ahead = read_by_switchboard(&site, "pod.slow").saturating_sub(received);
        assert!(ahead <= BUFFERS, "{ahead} bytes are kept for the client");
        received += record.data.and_then(|data| data.data).map_or(0, |data| data.0.len());
    }
    assert_eq!(received, LENGTH);
    site.daemon().remove(&id("pod.slow")).unwrap();

    // One that never reads, and a container that never ends by itself.
    let mut stuck = launch(&site, "stuck", "exec busybox yes", None);
    stuck.wait_for("HTTP/1.1 200 OK");
    assert_eq!(site.daemon().destroy(&id("pod.stuck")).unwrap().exit_status, Some(9));
    site.daemon().remove(&id("pod.stuck")).unwrap();
    drop(stuck);
    finish(site);
}

/// How often the agent answers another request until it is certain that it reads no more of one.
const ANSWERS: usize = 200;

/// Writes input for a container, up to [`LENGTH`] bytes, and ends it. Returns how many it has written so far.
fn write_input(site: &Site, name: &str) -> (Arc<AtomicUsize>, JoinHandle<()>) {
    let mut input = Exchange::input(site.socket(), &nested(name));
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let part = "x".repeat(64 << 10);
    let writer = thread::spawn(move || {
        // Until the container ends.
        while count.load(Ordering::Relaxed) < LENGTH && input.try_process_io(&stdin(&part)).is_ok() {
            count.fetch_add(part.len(), Ordering::Relaxed);
        }
        drop(input.try_process_io(&stdin("")));
        input.wait_for("HTTP/1.1 200 OK");
    });
    (written, writer)
}

/// Waits until a client cannot write any more. Returns how much it has written.
fn wait_until_stopped(site: &Site, written: &AtomicUsize) -> usize {
    let (mut last, mut answers) = (0, 0);
    // The pipe of the container takes the first part.
    while answers < ANSWERS || last == 0 {
        site.daemon().get("/version");
        let now = written.load(Ordering::Relaxed);
        assert!(now <= BUFFERS, "{now} bytes are kept for a container that reads nothing");
        answers = if now == last { answers + 1 } else { 0 };
        last = now;
    }
    last
}

#[test]
fn a_container_that_does_not_read_its_input_stops_the_client_and_not_the_agent() {
    if !is_root("a root file system") {
        return;
    }
    let site = site();
    // One that never reads can be killed meanwhile.
    let mut output = launch(&site, "deaf", "echo up; exec sleep 1000000", None);
    output.output_until("up\n");
    let (written, writer) = write_input(&site, "deaf");
    wait_until_stopped(&site, &written);
    assert_eq!(site.daemon().destroy(&id("pod.deaf")).unwrap().exit_status, Some(9));
    writer.join().expect("it was informed of the end");
    site.daemon().remove(&id("pod.deaf")).unwrap();

    // One that reads later gets everything.
    let line = "echo up; while [ ! -e /read ]; do sleep 0.01; done; exec busybox wc -c";
    let mut output = launch(&site, "late", line, None);
    output.output_until("up\n");
    let (written, writer) = write_input(&site, "late");
    let before = wait_until_stopped(&site, &written);
    assert!(before < LENGTH);
    assert!(site.piped(&["exec", "pod", "touch", "/read"], b"").status.success());
    assert_eq!(output.output_until("\n"), format!("{LENGTH}\n"));
    while output.next().is_some() {}
    writer.join().expect("it has written everything");
    assert_eq!(site.daemon().wait(&id("pod.late")).unwrap().exit_status, Some(0));
    site.daemon().remove(&id("pod.late")).unwrap();
    finish(site);
}
