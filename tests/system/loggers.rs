//! The logger `logrotate` and `cofferdam logs`: what containers write is in the files, whatever is killed meanwhile, and is
//! shown from there.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use cofferdam_core::config::PluginConfig;
use cofferdam_core::model::Request;
use cofferdam_linux::process::{Process, Stat};
use cofferdam_plugin_api::testing::wait_until_readable;
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::world::{World, id, object};
use cofferdam_tests::{assert_contains, is_root, paths, text, wait_for_text, watch};
use nix::sys::signal::Signal;
use serde_json::{Value as Json, json};

const LIBRARY: &str = "libcofferdam_logger_logrotate.so";

fn world(table: Json) -> World {
    let mut world = World::shipped();
    world.config.logger = Some(object("logrotate", LIBRARY, table));
    world
}

/// A container in a root file system that runs a shell line.
fn shell(world: &World, name: &str, line: &str) -> Request {
    let mut request = Request::shell(id(name), line);
    request.rootfs = Some(world.rootfs());
    request
}

/// The same with options of the logger.
fn with_options(request: Request, options: &[(&str, &str)]) -> Request {
    let mut request = request;
    for (name, value) in options {
        request.command.environment.insert(format!("CONTAINER_LOGGER_{name}"), (*value).to_owned());
    }
    request
}

/// Runs the program. Returns its exit status, standard output and standard error.
fn cofferdam(world: &World, arguments: &[&str]) -> (i32, String, String) {
    let output = command(world, arguments).output().expect("the program runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().expect("an exit status"), text(output.stdout), text(output.stderr))
}

fn command(world: &World, arguments: &[&str]) -> Command {
    let mut command = Command::new(paths::program());
    command.arg("--socket").arg(world.socket()).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn shown(world: &World, arguments: &[&str]) -> String {
    let (status, stdout, stderr) = cofferdam(world, arguments);
    assert_eq!((status, stderr.as_str()), (0, ""), "{arguments:?}: {stdout}");
    stdout
}

fn sandbox(world: &World, name: &str) -> PathBuf {
    world.config.work_dir.join("containers").join(name)
}

/// The companion of a container, from the plugin's own files.
fn companion(world: &World, name: &str) -> Option<Process> {
    let status = fs::read(pipes(world).join(name).join("status")).ok()?;
    let pid = u64::from_le_bytes(status.get(24..32)?.try_into().ok()?);
    let process = Process::open_any(i32::try_from(pid).ok()?).ok()?;
    process.has_ended().is_ok_and(|ended| !ended).then_some(process)
}

/// The directory of the plugin's own files.
fn pipes(world: &World) -> PathBuf {
    world.config.runtime_dir.join("isolators/logrotate")
}

/// Waits until the agent has started another companion, which writes its pid.
fn wait_until_replaced(world: &World, daemon: &Daemon, name: &str, pid: i32) {
    let is_other = || companion(world, name).is_some_and(|companion| companion.pid() != pid);
    let replaced = watch::until(&pipes(world).join(name), TIMEOUT, is_other);
    assert!(replaced, "no other companion is started:\n{}", daemon.log());
}

fn finish(world: &World, daemon: Daemon, names: &[&str]) {
    for name in names {
        daemon.remove(&id(name)).expect("it has ended");
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
    assert_eq!(fs::read_dir(pipes(world)).into_iter().flatten().count(), 0);
    daemon.terminate();
}

/// A shell line that writes numbered lines, about one per millisecond, until the file `stop` is in the sandbox, and then how
/// many there were.
fn counting(line_length: usize) -> String {
    format!(
        "i=0; while [ ! -e stop ]; do printf '%0{line_length}d\\n' $i; i=$((i+1)); busybox true; done; echo end $i"
    )
}

/// Checks that all lines of [`counting`] are there, once and in order.
fn assert_complete(text: &str) {
    let mut count = 0;
    for line in text.lines() {
        if let Some(end) = line.strip_prefix("end ") {
            assert_eq!(end.parse(), Ok(count));
            return;
        }
        assert_eq!(line.parse(), Ok(count), "{line}");
        count += 1;
    }
    panic!("the end is missing after {count} lines");
}

#[test]
fn output_is_rotated_compressed_and_shown() {
    if !is_root("a root file system") {
        return;
    }
    let world = world(json!({ "max_stderr_size": "1 MiB", "compress": true }));
    let daemon = Daemon::start(&world);
    let line = "i=0; while [ $i -lt 3000 ]; do printf '%099d\\n' $i; i=$((i+1)); done; echo problem >&2";
    let mut request = shell(&world, "web", line);
    request.command.user = Some("web".into());
    daemon
        .launch(&with_options(request, &[("MAX_STDOUT_SIZE", "64KiB"), ("MAX_STDOUT_FILES", "9")]))
        .unwrap();
    daemon.wait(&id("web")).unwrap();

    let lines: Vec<String> = (0..3000).map(|number| format!("{number:099}\n")).collect();
    assert_eq!(cofferdam(&world, &["logs", "web"]), (0, lines.concat(), "problem\n".to_owned()));
    assert_eq!(shown(&world, &["logs", "--stream", "stdout", "web"]), lines.concat());
    assert_eq!(shown(&world, &["logs", "--stream", "stderr", "web"]), "problem\n");
    assert_eq!(shown(&world, &["logs", "--stderr", "web"]), "problem\n");
    for count in [0, 1, 700, 2999, 5000] {
        let tail = shown(&world, &["logs", "--stream", "stdout", "--tail", &count.to_string(), "web"]);
        assert_eq!(tail, lines[lines.len().saturating_sub(count)..].concat(), "{count}");
    }
    let recent = cofferdam(&world, &["logs", "--since", "1h", "-n", "2", "web"]);
    assert_eq!(recent, (0, lines[2998..].concat(), "problem\n".to_owned()));
    assert_eq!(shown(&world, &["logs", "--since", "2500-01-01T00:00:00Z", "web"]), "");
    let timed = shown(&world, &["logs", "-t", "--stream", "stdout", "--tail", "1000", "web"]);
    let mut last = String::new();
    for (timed, line) in timed.split_inclusive('\n').zip(&lines[2000..]) {
        let (time, rest) = timed.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.len() == 24 && time >= last.as_str(), "{timed}");
        assert_eq!(rest, line);
        last = time.to_owned();
    }

    let sandbox = sandbox(&world, "web");
    let compressed = fs::read_dir(&sandbox).unwrap().map(|entry| entry.unwrap().path());
    let compressed: Vec<PathBuf> =
        compressed.filter(|path| path.extension() == Some("gz".as_ref())).collect();
    assert!(compressed.len() >= 3, "{compressed:?}");
    for path in compressed.iter().chain(&[sandbox.join("stdout"), sandbox.join("stdout.times")]) {
        assert_eq!(fs::metadata(path).unwrap().uid(), 1234, "{}", path.display());
    }
    finish(&world, daemon, &["web"]);
}

#[test]
fn a_wrong_option_fails_the_launch_and_a_logger_without_times_is_named() {
    if !is_root("a root file system") {
        return;
    }
    let world = world(json!({ "times": false }));
    let daemon = Daemon::start(&world);
    let request = with_options(shell(&world, "web", "true"), &[("MAX_STDOUT_SIZE", "large")]);
    let error = format!("{:?}", daemon.launch(&request).unwrap_err());
    assert_contains(&error, &["logrotate", "`CONTAINER_LOGGER_MAX_STDOUT_SIZE` is `large`", "such as"]);
    drop(daemon.remove(&id("web")));

    daemon.launch(&shell(&world, "db", "echo hello")).unwrap();
    daemon.wait(&id("db")).unwrap();
    assert_eq!(shown(&world, &["logs", "db"]), "hello\n");
    for option in [&["--timestamps"][..], &["--since", "1h"]] {
        let (status, _, stderr) = cofferdam(&world, &[&["logs"], option, &["db"]].concat());
        assert_eq!(status, 1);
        assert_contains(&stderr, &["container `db`", option[0], "such as `logrotate`"]);
    }
    finish(&world, daemon, &["db"]);
}

#[test]
fn nothing_is_lost_when_companion_and_agent_are_killed_and_the_plugin_is_replaced() {
    if !is_root("a root file system") {
        return;
    }
    let mut world = world(json!({ "max_stdout_size": "64 KiB", "max_stdout_files": 100 }));
    let mut daemon = Daemon::start(&world);
    let sandbox = sandbox(&world, "web");
    let wait_until_grown = || {
        let path = sandbox.join("stdout");
        let size = || fs::metadata(&path).map(|metadata| metadata.len()).ok();
        let before = size();
        // It may be rotated meanwhile.
        assert!(watch::until(&sandbox, TIMEOUT, || size().is_some_and(|size| Some(size) != before)));
    };
    daemon.launch(&shell(&world, "web", &counting(60))).unwrap();
    wait_for_text(&sandbox.join("stdout"), "000\n");
    for _ in 0..3 {
        let killed = companion(&world, "web").unwrap();
        killed.kill().unwrap();
        killed.wait(None).unwrap();
        wait_until_replaced(&world, &daemon, "web", killed.pid());
        wait_until_grown();
    }
    assert_contains(&daemon.log(), &["its log companion was killed; another one continues"]);

    // The agent alone: the companion goes on without it.
    daemon.kill();
    wait_until_grown();
    daemon = Daemon::start(&world);
    let before = companion(&world, "web").unwrap();

    // Both, and another version of the plugin.
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
    wait_until_replaced(&world, &daemon, "web", before.pid());
    wait_until_grown();
    // And while the container ends.
    File::create(sandbox.join("stop")).unwrap();
    if let Some(last) = companion(&world, "web") {
        last.kill().unwrap();
    }
    daemon.wait(&id("web")).unwrap();
    let output = shown(&world, &["logs", "web"]);
    assert_complete(&output);
    assert!(!daemon.log().contains("is lost") && !daemon.log().contains("may be lost"), "{}", daemon.log());
    finish(&world, daemon, &["web"]);
}

#[test]
fn a_companion_that_hangs_does_not_prevent_the_end_of_its_container() {
    if !is_root("a root file system") {
        return;
    }
    let world = world(json!({}));
    let daemon = Daemon::start(&world);
    daemon.launch(&shell(&world, "web", "echo up; while true; do busybox seq 0 9999; done")).unwrap();
    wait_for_text(&sandbox(&world, "web").join("stdout"), "up");
    let companion = companion(&world, "web").unwrap();
    companion.signal(Signal::SIGSTOP as i32).unwrap();
    // There is no event for it. What is in the pipe from then on stays there.
    while Stat::read(companion.pid()).unwrap().state != 'T' {
        std::thread::yield_now();
    }
    let pipe =
        File::options().read(true).custom_flags(libc::O_NONBLOCK).open(pipes(&world).join("web/stdout"));
    wait_until_readable(pipe.unwrap().as_fd());
    daemon.destroy(&id("web")).unwrap();
    wait_for_text(&world.directory().join("agent.log"), "output of the container is lost");
    assert_contains(&daemon.log(), &["does not write what is left, and is killed"]);
    assert_contains(&daemon.log(), &["container=web", "stream=stdout", "bytes="]);
    assert!(companion.has_ended().unwrap());
    // It was reaped.
    assert!(Stat::read(companion.pid()).is_err() && !daemon.children().contains(&companion.pid()));
    finish(&world, daemon, &["web"]);
}

#[test]
fn several_containers_are_followed_across_rotations_with_their_names() {
    if !is_root("a root file system") {
        return;
    }
    let world = world(json!({ "max_stdout_size": "4 KiB", "max_stdout_files": 100, "compress": true }));
    let daemon = Daemon::start(&world);
    for name in ["web", "pod-db"] {
        daemon.launch(&shell(&world, name, &counting(40))).unwrap();
        wait_for_text(&sandbox(&world, name).join("stdout"), "000\n");
    }
    let mut follower = command(&world, &["logs", "-f", "web", "pod-db"]).spawn().unwrap();
    let mut output = BufReader::new(follower.stdout.take().unwrap());
    let mut seen = String::new();
    for _ in 0..2000 {
        output.read_line(&mut seen).unwrap();
    }
    for name in ["web", "pod-db"] {
        File::create(sandbox(&world, name).join("stop")).unwrap();
    }
    output.read_to_string(&mut seen).unwrap();
    let mut errors = String::new();
    follower.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!((follower.wait().unwrap().code(), errors.as_str()), (Some(0), ""));
    for prefix in ["web    | ", "pod-db | "] {
        let lines = seen.lines().filter_map(|line| line.strip_prefix(prefix));
        assert_complete(&lines.collect::<Vec<_>>().join("\n"));
    }
    assert!(!seen.contains('\x1b'), "there is no terminal");
    for name in ["web", "pod-db"] {
        daemon.wait(&id(name)).unwrap();
    }
    finish(&world, daemon, &["web", "pod-db"]);
}

#[test]
fn attached_containers_and_commands_in_containers_are_logged() {
    if !is_root("a root file system") {
        return;
    }
    let world = world(json!({}));
    let daemon = Daemon::start(&world);
    let rootfs = world.rootfs();
    let run =
        ["run", "--name", "web", "--rootfs", rootfs.to_str().unwrap(), "--shell", "echo one; echo two >&2"];
    let (status, stdout, stderr) = cofferdam(&world, &run);
    assert_eq!((status, stdout.as_str(), stderr.as_str()), (0, "one\n", "two\n"));
    assert_eq!(cofferdam(&world, &["logs", "web"]), (0, "one\n".to_owned(), "two\n".to_owned()));
    assert_eq!(shown(&world, &["logs", "--stream", "stderr", "web"]), "two\n");

    daemon.launch(&shell(&world, "pod", "echo up; busybox sleep 1000")).unwrap();
    wait_for_text(&sandbox(&world, "pod").join("stdout"), "up");
    assert_eq!(shown(&world, &["exec", "pod", "--", "echo", "hello"]), "hello\n");
    let nested = shell(&world, "pod.web", "echo nested");
    daemon.launch(&nested).unwrap();
    daemon.wait(&id("pod.web")).unwrap();
    assert_eq!(shown(&world, &["logs", "pod.web"]), "nested\n");
    daemon.destroy(&id("pod")).unwrap();
    drop(daemon.remove(&id("pod.web")));
    finish(&world, daemon, &["web", "pod"]);
}

#[test]
fn output_without_a_logger_is_discarded_and_that_is_said() {
    if !is_root("the linux launcher") {
        return;
    }
    let world = World::new();
    let daemon = Daemon::start(&world);
    daemon.launch(&Request::shell(id("web"), "echo hello")).unwrap();
    assert_eq!(daemon.wait(&id("web")).unwrap().exit_status, Some(0));
    let (status, stdout, stderr) = cofferdam(&world, &["logs", "web"]);
    assert_eq!((status, &*stdout), (1, ""));
    assert_contains(&stderr, &["is discarded, as no logger is configured", "add a table `[logger]`"]);
    daemon.remove(&id("web")).unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
    daemon.terminate();
}

#[test]
fn programs_open_their_output_again_by_name() {
    if !is_root("a root file system") {
        return;
    }
    let world = world(json!({}));
    let daemon = Daemon::start(&world);
    let mut request = shell(&world, "web", "echo out > /dev/stdout; echo err > /dev/stderr");
    request.command.user = Some("web".into());
    daemon.launch(&request).unwrap();
    daemon.wait(&id("web")).unwrap();
    let read = |name: &str| text(&sandbox(&world, "web").join(name));
    assert_eq!((read("stdout"), read("stderr")), ("out\n".into(), "err\n".into()));
    finish(&world, daemon, &["web"]);
}
