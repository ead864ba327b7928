//! Programs at a terminal that are stopped, continued, in the background, killed and detached from, as a shell does it with jobs.

use std::fs;
use std::path::Path;
use std::process::Command;

use cofferdam_linux::process::{Process, children_of};
use cofferdam_tests::daemon::TIMEOUT;
use cofferdam_tests::terminal::Terminal;
use cofferdam_tests::world::{World, id};
use cofferdam_tests::{is_root, paths};
use nix::sys::signal::Signal;

use crate::terminals::{Site, spin, wait_for_size};

/// The arguments of `run` without a daemon.
fn own_agent(world: &World, options: &[&str], command: &str) -> Vec<String> {
    let (plugins, rootfs) = (paths::build().display().to_string(), world.rootfs().display().to_string());
    let rest = ["--plugin-dir", &plugins, "--rootfs", &rootfs, "--", command];
    ["run"].iter().chain(options).chain(&rest).map(|word| (*word).to_owned()).collect()
}

/// A shell in a container, at a terminal, without a daemon.
fn own_shell(world: &World) -> Terminal {
    let arguments = own_agent(world, &["-it"], "sh");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut terminal = Terminal::run(&paths::program(), &arguments, &[]);
    terminal.wait_for("# ");
    terminal
}

#[test]
fn a_shell_without_a_daemon_has_a_terminal_with_jobs() {
    if !is_root("a root file system") {
        return;
    }
    let world = World::shipped();
    let mut terminal = own_shell(&world);
    assert!(terminal.is_raw());
    terminal.type_keys("busybox stty size; busybox tty; echo $TERM\r");
    terminal.wait_for("24 80\r\n/dev/pts/0\r\nxterm\r\n");
    terminal.resize(50, 132);
    wait_for_size(&mut terminal, "50 132");
    // Ctrl-C and Ctrl-Z are for the program in the container, and its shell has jobs.
    terminal.wait_for("# ");
    // What writes is the program that gets the signal: a shell that is about to start one does not pass it on.
    terminal.type_keys("sh -c 'echo u\"\"p; exec sleep 1000000'\r");
    terminal.wait_for("\r\nup\r\n");
    terminal.type_keys("\u{3}");
    terminal.wait_for("# ");
    terminal.type_keys("sh -c 'echo wait\"\"ing; exec busybox cat'\r");
    terminal.wait_for("waiting\r\n");
    terminal.type_keys("ready\r");
    // The terminal echoes, and so does the program.
    terminal.wait_for("ready\r\nready\r\n");
    terminal.type_keys("\u{1a}");
    terminal.wait_for("[1]+  Stopped");
    terminal.wait_for("# ");
    terminal.type_keys("fg\r");
    terminal.wait_for("cat");
    // Nobody could attach again: these keys do not detach.
    terminal.type_keys("\u{10}\u{11}more\r");
    terminal.wait_for("more\r\n");
    terminal.wait_for("more\r\n");
    terminal.type_keys("\u{4}");
    terminal.wait_for("# ");
    terminal.type_keys("exit 3\r");
    assert_eq!(terminal.wait().unwrap().code(), Some(3));
    assert!(!terminal.is_raw());
}

#[test]
fn a_client_without_a_daemon_that_is_killed_restores_its_terminal_and_leaves_nothing() {
    if !is_root("a root file system") {
        return;
    }
    let world = World::shipped();
    let mut terminal = own_shell(&world);
    terminal.type_keys("exec sleep 76543210\r");
    terminal.wait_for("76543210\r\n");
    let client = Process::open_any(terminal.pid()).unwrap();
    // Its command line is that of the container's command.
    let mut command = None;
    spin("the command is running", || {
        let found = Command::new("pgrep").args(["-f", "^sleep 76543210$"]).output();
        let pids = String::from_utf8(found.expect("pgrep (package procps)").stdout).expect("text");
        command = pids.lines().next().map(|pid| Process::open_any(pid.parse().expect("a pid")));
        command.is_some()
    });
    let command = command.expect("it was waited for").expect("it is running");
    client.kill().unwrap();
    terminal.wait().unwrap();
    assert!(command.wait(Some(TIMEOUT)).unwrap(), "the keeper kills the container");
    spin("the terminal is as before", || !terminal.is_raw());
    // The next one removes its directories.
    let next = own_agent(&world, &[], "true");
    assert!(Command::new(paths::program()).args(next).status().unwrap().success());
}

/// Shells of users, with jobs. Only the first one resets the terminal when a job stops.
const BASH: [&str; 3] = ["/bin/bash", "--norc", "--noediting"];
const SH: [&str; 2] = ["/bin/sh", "-im"];

/// A shell of the user.
fn shell(site: &Site, command: &[&str]) -> Terminal {
    let environment = [("COFFERDAM_SOCKET", site.socket()), ("PS1", Path::new("host> "))];
    let mut shell = Terminal::run(Path::new(command[0]), &command[1..], &environment);
    shell.wait_for("host> ");
    shell
}

/// The job of a shell.
fn job(shell: &Terminal) -> Process {
    let mut job = None;
    spin("the job is running", || {
        job = children_of(shell.pid()).expect("a shell").first().map(|pid| Process::open_any(*pid));
        job.is_some()
    });
    job.expect("it was waited for").expect("it is running")
}

/// Waits until a job is stopped, with all of its threads: one that is still to be stopped may be about to stop all of them by a
/// signal of its own, which would follow the one that continues the job.
fn wait_for_stop(job: &Process) {
    let is_stopped = || {
        let threads = fs::read_dir(format!("/proc/{}/task", job.pid())).expect("it has not ended");
        let stats = threads.flatten().map(|thread| fs::read_to_string(thread.path().join("stat")));
        // After the name, which is in parentheses. A thread may have ended.
        stats.flatten().all(|stat| stat.rsplit_once(") ").expect("a state").1.starts_with('T'))
    };
    spin("the job is stopped", is_stopped);
}

#[test]
fn a_client_that_is_stopped_gives_its_terminal_back_until_it_is_continued() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let program = paths::program().display().to_string();
    let run = format!("{program} run --rm --name shell -it --rootfs {} -- sh", site.rootfs);
    // Nothing runs at SIGSTOP, so that the terminal is up to the shell.
    let all: [(&[&str], &[Signal]); 2] =
        [(&BASH, &[Signal::SIGSTOP, Signal::SIGTSTP]), (&SH, &[Signal::SIGTSTP])];
    for (command, signals) in all {
        let mut terminal = shell(&site, command);
        terminal.type_keys(&format!("{run}\r"));
        terminal.wait_for(" # ");
        assert!(terminal.is_raw());
        let mut rows = 30;
        for signal in signals {
            let job = job(&terminal);
            job.signal(*signal as i32).unwrap();
            terminal.wait_for("Stopped");
            terminal.wait_for("host> ");
            assert!(!terminal.is_raw(), "the shell has its own mode");
            terminal.type_keys("echo $((6 * 7))\r");
            terminal.wait_for("\r\n42\r\n");
            terminal.wait_for("host> ");
            // In the background, it is stopped again.
            terminal.type_keys("bg; echo $((7 * 7))\r");
            terminal.wait_for("\r\n49\r\n");
            wait_for_stop(&job);
            assert!(!terminal.is_raw());
            rows += 1;
            terminal.resize(rows, 90);
            terminal.type_keys("fg\r");
            spin("the client has the terminal again", || terminal.is_raw());
            wait_for_size(&mut terminal, &format!("{rows} 90"));
            terminal.wait_for(" # ");
        }
        terminal.type_keys("exit 5\r");
        terminal.wait_for("host> ");
        assert!(!terminal.is_raw());
        terminal.type_keys("echo status=$?; exit\r");
        terminal.wait_for("\r\nstatus=5\r\n");
        terminal.wait().unwrap();
    }
    site.finish();
}

/// As with podman, and unlike docker, whose client starts the container, and tries to change the terminal again and again.
#[test]
fn a_client_that_is_started_in_the_background_is_stopped_until_it_is_in_the_foreground() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let program = paths::program().display().to_string();
    let pod = ["run", "-d", "--name", "pod", "--rootfs", &site.rootfs, "--", "sleep", "1000000"];
    assert!(site.piped(&pod, b"").status.success());
    let commands = [
        format!("{program} run --rm --name shell -it --rootfs {} -- sh", site.rootfs),
        format!("{program} exec -it pod sh"),
        format!("{program} attach pod-2"),
    ];
    for command in [&BASH[..], &SH] {
        let shared = ["run", "-d", "-it", "--name", "pod-2", "--rootfs", &site.rootfs, "--", "sh"];
        assert!(site.piped(&shared, b"").status.success());
        let mut terminal = shell(&site, command);
        for command in &commands {
            terminal.type_keys(&format!("{command} &\r"));
            terminal.wait_for("host> ");
            let job = job(&terminal);
            wait_for_stop(&job);
            assert_eq!(site.daemon().list().len(), 2, "nothing is launched yet: {command}");
            terminal.type_keys("echo $((6 * 7)); jobs\r");
            terminal.wait_for("\r\n42\r\n");
            terminal.wait_for("Stopped");
            terminal.wait_for("host> ");
            terminal.type_keys("bg; echo $((7 * 7))\r");
            terminal.wait_for("\r\n49\r\n");
            wait_for_stop(&job);
            assert!(!terminal.is_raw());
            terminal.type_keys("fg\r");
            spin("the client has the terminal", || terminal.is_raw());
            terminal.type_keys("echo $((8 * 8))\r");
            terminal.wait_for("\r\n64\r\n");
            terminal.type_keys("exit 3\r");
            terminal.wait_for("host> ");
            assert!(!terminal.is_raw());
            terminal.type_keys("echo status=$?\r");
            terminal.wait_for("\r\nstatus=3\r\n");
            terminal.wait_for("host> ");
        }
        terminal.type_keys("exit\r");
        terminal.wait().unwrap();
        assert!(site.piped(&["rm", "pod-2"], b"").status.success());
    }
    assert!(site.piped(&["rm", "--force", "pod"], b"").status.success());
    site.finish();
}

#[test]
fn in_the_background_a_client_that_reads_nothing_goes_on() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let program = paths::program().display().to_string();
    for options in ["", "-t", "-t --no-stdin"] {
        let mut terminal = shell(&site, &BASH);
        let run = format!("{program} run --rm {options} --rootfs {} -- echo up", site.rootfs);
        terminal.type_keys(&format!("{run} & wait $!; echo status=$?; exit\r"));
        terminal.wait_for("\r\nup\r");
        terminal.wait_for("status=0\r\n");
        terminal.wait().unwrap();
    }
    site.finish();
}

#[test]
fn without_a_terminal_in_the_container_ctrl_z_stops_the_client_only() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let program = paths::program().display().to_string();
    let mut terminal = shell(&site, &BASH);
    let run = format!("{program} run --rm --name cat -i --rootfs {} -- cat", site.rootfs);
    terminal.type_keys(&format!("{run}\r"));
    terminal.wait_for("-- cat\r\n");
    terminal.type_keys("one\r");
    // The terminal echoes, and so does the program.
    terminal.wait_for("one\r\none\r\n");
    terminal.type_keys("\u{1a}");
    terminal.wait_for("Stopped");
    terminal.wait_for("host> ");
    assert_eq!(site.daemon().inspect(&id("cat")).unwrap().state, "RUNNING");
    terminal.type_keys("fg\r");
    terminal.wait_for("-- cat\r\n");
    terminal.type_keys("two\r");
    terminal.wait_for("two\r\ntwo\r\n");
    terminal.type_keys("\u{4}");
    terminal.wait_for("host> ");
    terminal.type_keys("echo status=$?; exit\r");
    terminal.wait_for("\r\nstatus=0\r\n");
    terminal.wait().unwrap();
    site.finish();
}

#[test]
fn a_terminal_that_is_closed_is_no_end_of_input_for_the_container() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let program = paths::program().display().to_string();
    // Only the first process of a session gets a signal when its terminal is closed. This one has another program read it.
    let run = format!("trap '' HUP; {program} run --name shell -it --rootfs {} -- sh; exit 0", site.rootfs);
    let mut terminal =
        Terminal::run(Path::new("/bin/sh"), &["-c", &run], &[("COFFERDAM_SOCKET", site.socket())]);
    terminal.wait_for(" # ");
    assert!(terminal.hang_up().unwrap().success());
    assert_eq!(site.daemon().inspect(&id("shell")).unwrap().state, "RUNNING");
    let mut terminal = site.at_terminal(&["attach", "shell"]);
    terminal.type_keys("echo $((6 * 7))\r");
    terminal.wait_for("\r\n42\r\n");
    terminal.type_keys("exit 4\r");
    assert_eq!(terminal.wait().unwrap().code(), Some(4));
    assert!(site.piped(&["rm", "shell"], b"").status.success());
    site.finish();
}

#[test]
fn keys_detach_from_a_container_which_several_terminals_share() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let run =
        ["run", "--name", "shell", "-it", "--detach-keys", "ctrl-a,d", "--rootfs", &site.rootfs, "--", "sh"];
    let mut first = site.at_terminal(&run);
    first.wait_for("# ");
    let mut second = site.at_terminal(&["attach", "shell"]);
    second.type_keys("echo $((6 * 7))\r");
    for terminal in [&mut first, &mut second] {
        terminal.wait_for("\r\n42\r\n");
    }
    // The keys of others are for the container.
    first.type_keys("\u{10}\u{11}");
    first.type_keys("\u{15}echo $((7 * 7))\r");
    for terminal in [&mut first, &mut second] {
        terminal.wait_for("\r\n49\r\n");
    }
    // Also if they are not typed at once.
    first.type_keys("\u{1}");
    first.type_keys("d");
    first.wait_for("detached; `cofferdam attach shell` attaches again");
    assert!(first.wait().unwrap().success());
    assert!(!first.is_raw());
    second.type_keys("exit 4\r");
    assert_eq!(second.wait().unwrap().code(), Some(4));
    assert!(site.piped(&["rm", "shell"], b"").status.success());
    site.finish();
}
