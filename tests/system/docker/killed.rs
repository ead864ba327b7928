//! What is left of the engine of a test whose processes were killed.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use cofferdam_linux::process::{Process, Stat};
use cofferdam_tests::daemon::TIMEOUT;
use cofferdam_tests::engine::{Engine, IMAGE, cgroups, has_engine};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Set in the process that has the engine.
const INSIDE: &str = "COFFERDAM_KILLED_ENGINE";

/// Before what that process prints.
const STARTED: &str = "started: ";

/// As a terminal does it when its user interrupts a test, but with a signal that nobody can handle.
#[test]
fn nothing_is_left_of_an_engine_after_the_process_group_of_its_test_was_killed() {
    const NAME: &str =
        "docker::killed::nothing_is_left_of_an_engine_after_the_process_group_of_its_test_was_killed";
    if std::env::var_os(INSIDE).is_some() {
        start_and_wait();
        return;
    }
    if !has_engine() {
        return;
    }
    // Its input ends with this process, however that ends.
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(INSIDE, "1")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let started = lines.find_map(|line| Some(line.split_once(STARTED)?.1.to_owned()));
    let started = started.expect("an engine, or the failure of the test that starts it");
    let [socket, engine, container] = started.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{started}");
    };
    let directory = Path::new(socket).parent().unwrap();
    let name = directory.file_name().unwrap();
    let container = Process::open_any(container.parse().unwrap()).unwrap();
    // The shell that removes what is left.
    let shell = Process::open_any(Stat::read(engine.parse().unwrap()).unwrap().parent).unwrap();
    assert!(directory.exists() && !cgroups(name).is_empty() && !container.has_ended().unwrap());

    killpg(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    assert!(shell.wait(Some(TIMEOUT)).unwrap(), "the shell does not end");
    assert!(container.wait(Some(TIMEOUT)).unwrap(), "the container does not end");
    assert!(cgroups(name).is_empty(), "{:?}", cgroups(name));
    assert!(!directory.exists(), "{}", directory.display());
}

/// Starts an engine with a container, and waits for the end of the input.
fn start_and_wait() {
    let engine = Engine::start();
    engine.client(&["run", "--detach", "--name", "left", "--network", "none", IMAGE, "sleep", "1000"]);
    let container = engine.inspect("left")["State"]["Pid"].as_i64().unwrap();
    println!("\n{STARTED}{} {} {container}", engine.socket().display(), engine.pid());
    std::io::stdin().lines().for_each(drop);
}
