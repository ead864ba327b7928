//! Containers that put something else in the place of their output, and what those do who read it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cofferdam_core::model::{Request, Uri};
use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::world::{World, id, object};
use cofferdam_tests::{is_root, paths, wait_for_text, watch};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

const SECRET: &str = "only for root";

/// What a container writes.
const LINE: &str = "a line of the container with some more text in it";

/// What a container can put in the place of its output. `$1` is the secret file.
const REPLACEMENTS: [&str; 5] = ["ln -s $1", "ln -s /dev/zero", "mkfifo", "ln $1", "ln -s ../../../secret"];

fn world() -> World {
    with_secret(World::shipped())
}

fn with_secret(world: World) -> World {
    fs::write(world.directory().join("secret"), SECRET).unwrap();
    world
}

/// One for each launcher.
fn worlds() -> [World; 2] {
    [world(), with_secret(World::posix())]
}

fn cofferdam(world: &World, arguments: &[&str]) -> Command {
    let mut command = Command::new(paths::program());
    command.arg("--socket").arg(world.socket()).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn replaced(world: &World, how: &str) -> String {
    let how = how.replace("$1", &world.directory().join("secret").display().to_string());
    format!("rm stdout && {how} stdout")
}

/// Reads both streams to their ends. Returns the exit status, standard output and standard error.
fn end(child: Child) -> (Option<i32>, String, String) {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn logs_shows_only_what_the_container_has_written() {
    if !is_root("a root-only file") {
        return;
    }
    worlds().iter().for_each(logs_of_replaced_output);
}

fn logs_of_replaced_output(world: &World) {
    let daemon = Daemon::start(world);
    for how in REPLACEMENTS {
        let line = format!("{} ; echo done > done; sleep 1000", replaced(world, how));
        daemon.launch(&Request::shell(id("web"), &line)).unwrap();
        let sandbox = world.config.work_dir.join("containers/web");
        watch::until(&sandbox, TIMEOUT, || sandbox.join("done").exists());
        for arguments in [&["logs", "web"][..], &["logs", "-f", "web"]] {
            // It ends with an error, at once: the container is still running.
            let (status, stdout, stderr) = end(cofferdam(world, arguments).spawn().unwrap());
            assert!(!stdout.contains(SECRET), "{how}, {arguments:?}: {stdout}");
            assert!(stdout.len() < 4096, "{how}, {arguments:?}");
            if arguments.len() == 3 {
                assert_eq!(status, Some(1), "{how}: {stderr}");
                assert!(stderr.contains("stdout"), "{how}: {stderr}");
            }
        }
        daemon.destroy(&id("web")).unwrap();
        daemon.remove(&id("web")).unwrap();
    }
    daemon.terminate();
}

#[test]
fn logs_of_rotated_files_shows_only_what_the_container_has_written() {
    if !is_root("a root-only file") {
        return;
    }
    let mut world = world();
    let table = json!({ "max_stdout_size": "4 KiB", "max_stdout_files": 3 });
    world.config.logger = Some(object("logrotate", "libcofferdam_logger_logrotate.so", table));
    let daemon = Daemon::start(&world);
    for how in REPLACEMENTS {
        for name in ["stdout", "stdout.1", "stdout.2.gz", "stdout.new", "stdout.times", "stdout.1.times"] {
            let replace = replaced(&world, how).replace("rm stdout", "rm -f stdout");
            let replace = replace.replace("stdout", name);
            let fill = format!("i=0; while [ $i -lt 60 ]; do echo {LINE}; i=$((i+1)); done");
            let line = format!("{fill}; {replace}; {fill}; {replace}; echo done > done; sleep 1000");
            daemon.launch(&Request::shell(id("web"), &line)).unwrap();
            let sandbox = world.config.work_dir.join("containers/web");
            watch::until(&sandbox, TIMEOUT, || sandbox.join("done").exists());
            for arguments in [
                &["logs", "web"][..],
                &["logs", "-t", "--tail", "9", "web"],
                &["logs", "--since", "1h", "web"],
            ] {
                let (status, stdout, stderr) = end(cofferdam(&world, arguments).spawn().unwrap());
                assert!(!stdout.contains(SECRET), "{how}, {name}, {arguments:?}: {stdout}");
                assert!(stdout.len() < 1 << 15, "{how}, {name}, {arguments:?}: {stderr}");
                // Otherwise it says what the container has replaced.
                let is_refused = status == Some(1) && stderr.contains("/stdout");
                let is_shown = status == Some(0) && (arguments.len() > 2 || stdout.contains(LINE));
                assert!(is_refused || is_shown, "{how}, {name}, {arguments:?}: {stdout}{stderr}");
            }
            daemon.destroy(&id("web")).unwrap();
            if name != "stdout" {
                let kept = sandbox.join("stdout");
                assert!(kept.symlink_metadata().unwrap().is_file(), "{how}, {name}");
                assert!(fs::read_to_string(kept).unwrap().contains(LINE), "{how}, {name}");
            }
            let (_, stdout, _) = end(cofferdam(&world, &["logs", "-f", "web"]).spawn().unwrap());
            assert!(!stdout.contains(SECRET) && stdout.len() < 1 << 15, "{how}, {name}");
            daemon.remove(&id("web")).unwrap();
        }
    }
    assert_eq!(fs::read_to_string(world.directory().join("secret")).unwrap(), SECRET);
    daemon.terminate();
}

#[test]
fn an_attached_run_shows_only_what_the_container_has_written_and_gets_signals() {
    if !is_root("a root-only file") {
        return;
    }
    worlds().iter().for_each(run_with_replaced_output);
}

fn run_with_replaced_output(world: &World) {
    let daemon = Daemon::start(world);
    for how in REPLACEMENTS {
        let line = format!("echo first; while [ ! -e go ]; do :; done; {} && exit 7", replaced(world, how));
        let run = cofferdam(world, &["run", "--name", "web", "--shell", &line]).spawn();
        let mut run = run.unwrap();
        // It has the file open by now.
        let mut stdout = BufReader::new(run.stdout.take().unwrap());
        let mut first = String::new();
        stdout.read_line(&mut first).unwrap();
        assert_eq!(first, "first\n");
        fs::write(world.config.work_dir.join("containers/web/go"), "").unwrap();
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        let (status, _, stderr) = end(run);
        assert_eq!((status, rest.as_str()), (Some(7), ""), "{how}: {stderr}");
        daemon.remove(&id("web")).unwrap();
    }
    daemon.terminate();
}

#[test]
fn a_run_whose_output_nobody_reads_can_be_interrupted() {
    if !is_root("a container of root") {
        return;
    }
    let world = world();
    let daemon = Daemon::start(&world);
    // It is a pipe, whose other end is not read.
    let mut run = cofferdam(&world, &["run", "--name", "web", "--", "yes"]).spawn().unwrap();
    let containers = world.config.work_dir.join("containers");
    fs::create_dir_all(&containers).unwrap();
    assert!(watch::until(&containers, TIMEOUT, || containers.join("web").exists()));
    // The first one is forwarded to the command; when that has ended, the rest of the output cannot be written.
    let pid = run.id().cast_signed();
    let process = Process::open_any(pid).unwrap();
    for _ in 0..100 {
        kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
        if process.wait(Some(Duration::from_millis(100))).unwrap() {
            break;
        }
    }
    assert_eq!(run.wait().unwrap().code(), Some(128 + 2));
    daemon.wait(&id("web")).unwrap();
    daemon.terminate();
}

/// Root in a container can take all inotify instances that root may have. In a user namespace of its own, a command has none.
#[test]
fn output_is_followed_without_inotify() {
    if !is_root("a user namespace") {
        return;
    }
    let world = World::posix();
    let daemon = Daemon::start(&world);
    let line = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done";
    daemon.launch(&Request::shell(id("web"), line)).unwrap();
    let none = "echo 0 > /proc/sys/user/max_inotify_instances && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c", none]).arg(paths::program());
    command.arg("--socket").arg(world.socket()).args(["logs", "-f", "web"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut follower = command.spawn().unwrap();
    let mut stdout = BufReader::new(follower.stdout.take().unwrap());
    let mut output = String::new();
    // For longer than it does without inotify anyway.
    while output.lines().count() < 50 {
        assert!(stdout.read_line(&mut output).unwrap() > 0, "{:?}", end(follower));
    }
    daemon.destroy(&id("web")).unwrap();
    stdout.read_to_string(&mut output).unwrap();
    assert_eq!(end(follower), (Some(0), String::new(), String::new()));
    assert_eq!(output, cofferdam_tests::text(&world.config.work_dir.join("containers/web/stdout")));
    daemon.remove(&id("web")).unwrap();
    daemon.terminate();
}

#[test]
fn a_fetched_file_does_not_replace_the_output() {
    if !is_root("a root file system") {
        return;
    }
    let world = world();
    let daemon = Daemon::start(&world);
    let secret = world.directory().join("secret");
    let mut request = Request::shell(id("web"), "echo own");
    let uri = |name: &str| Uri {
        value: secret.display().to_string(),
        executable: false,
        extract: false,
        cache: false,
        output_file: Some(name.into()),
        sha256: None,
    };
    for name in ["stdout", "stderr", "./stdout", "stdout/x"] {
        request.uris = vec![uri(name)];
        let error = daemon.launch(&request).unwrap_err();
        assert!(format!("{error:?}").contains("is reserved for the output"), "{name}: {error:?}");
    }
    request.uris = vec![uri("other")];
    daemon.launch(&request).unwrap();
    daemon.wait(&id("web")).unwrap();
    wait_for_text(&world.config.work_dir.join("containers/web/stdout"), "own");
    assert!(Path::new(&world.config.work_dir.join("containers/web/other")).exists());
    daemon.terminate();
}
