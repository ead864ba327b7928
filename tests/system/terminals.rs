//! `run`, `exec` and `attach` as users type them: at a terminal, and in pipes.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use cofferdam_core::model::ContainerId;
use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::is_root;
use cofferdam_tests::terminal::Terminal;
use cofferdam_tests::world::{World, id};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exchange::{Exchange, framed};

/// A daemon, and what clients need to call it.
pub(super) struct Site {
    world: World,
    daemon: Daemon,
    program: PathBuf,
    socket: PathBuf,
    pub(super) rootfs: String,
}

impl Site {
    pub(super) fn new() -> Self {
        let world = World::shipped();
        let daemon = Daemon::start(&world);
        Self::with(world, daemon)
    }

    /// With a daemon that runs in a world.
    pub(super) fn with(world: World, daemon: Daemon) -> Self {
        let rootfs = world.rootfs().display().to_string();
        let (program, socket) = (cofferdam_tests::paths::program(), world.socket());
        Self { world, daemon, program, socket, rootfs }
    }

    pub(super) fn at_terminal(&self, arguments: &[&str]) -> Terminal {
        Terminal::run(&self.program, arguments, &[("COFFERDAM_SOCKET", &self.socket)])
    }

    pub(super) fn signal_daemon(&self, signal: Signal) {
        kill(Pid::from_raw(self.daemon.pid()), signal).expect("the daemon is running");
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The configuration file of the daemon.
    pub(super) fn config(&self) -> String {
        self.world.write_config().display().to_string()
    }

    pub(super) fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    pub(super) fn runtime_dir(&self) -> PathBuf {
        self.world.config.runtime_dir.clone()
    }

    pub(super) fn work_dir(&self) -> PathBuf {
        self.world.directory().join("work")
    }

    /// Runs a command with input from a pipe.
    pub(super) fn piped(&self, arguments: &[&str], input: &[u8]) -> Output {
        piped(Command::new(&self.program).args(arguments).env("COFFERDAM_SOCKET", &self.socket), input)
    }

    /// Attaches to a container whose command is a shell, has it exit, and removes the container.
    pub(super) fn end_shell(&self, name: &str) {
        let mut terminal = self.at_terminal(&["attach", name]);
        terminal.type_keys("exit 4\r");
        assert_eq!(terminal.wait().expect("it ends").code(), Some(4));
        assert!(self.piped(&["rm", name], b"").status.success());
    }

    /// Stops the daemon and starts another one, while the containers keep running.
    pub(super) fn restart(self) -> Self {
        self.daemon.terminate();
        let daemon = Daemon::start(&self.world);
        Self { daemon, ..self }
    }

    /// Kills the daemon and starts another one, while the containers keep running.
    fn crash(self) -> Self {
        self.daemon.kill();
        let daemon = Daemon::start(&self.world);
        Self { daemon, ..self }
    }

    /// The ids of all containers.
    fn ids(&self) -> Vec<ContainerId> {
        let containers = self.daemon.list().into_iter();
        containers.map(|container| id(&container.container_id.to_string())).collect()
    }

    /// Checks that nothing is left of the containers.
    pub(super) fn finish(self) {
        assert_eq!(self.ids(), []);
        self.daemon.terminate();
        assert_eq!(self.world.leftovers(), Vec::<String>::new());
    }
}

/// Has the shell in a container wait until its terminal has that many rows and columns.
pub(super) fn wait_for_size(terminal: &mut Terminal, size: &str) {
    // The line that is typed is echoed, and must not have what is waited for.
    let line = format!("until busybox stty size | grep -q '{size}'; do :; done; echo re\"\"sized\r");
    terminal.type_keys(&line);
    terminal.wait_for("resized\r\n");
}

/// Waits for what there is no event for.
pub(super) fn spin(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < TIMEOUT, "never: {what}");
        std::thread::yield_now();
    }
}

fn piped(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("it ends");
    // It may not read everything.
    drop(writer.join().expect("no panic"));
    output
}

#[test]
fn a_shell_at_a_terminal_runs_full_screen_programs() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let mut terminal = site.at_terminal(&["run", "--rm", "-it", "--rootfs", &site.rootfs, "--", "sh"]);
    terminal.wait_for("# ");
    assert!(terminal.is_raw());
    terminal.type_keys("busybox stty size; busybox tty; echo $TERM\r");
    terminal.wait_for("24 80\r\n/dev/pts/0\r\nxterm\r\n");
    terminal.resize(50, 132);
    terminal.wait_for("# ");
    terminal.type_keys("busybox vi file\r");
    // It draws lines without text up to the last row.
    terminal.wait_for("\u{1b}[50;1H");
    terminal.type_keys("itext\u{1b}");
    terminal.wait_for("\u{1b}[1;4H");
    terminal.type_keys(":wq\r");
    terminal.wait_for("# ");
    terminal.type_keys("cat file; exit 7\r");
    terminal.wait_for("\r\ntext\r\n");
    assert_eq!(terminal.wait().unwrap().code(), Some(7));
    assert!(!terminal.is_raw(), "the terminal is as before");
    site.finish();
}

#[test]
fn a_client_that_is_killed_restores_its_terminal_and_the_container_goes_on() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let run = ["run", "--name", "shell", "-it", "--rootfs", &site.rootfs, "--", "sh"];
    let mut terminal = site.at_terminal(&run);
    terminal.wait_for("# ");
    let pid = Pid::from_raw(terminal.pid());
    kill(pid, Signal::SIGKILL).unwrap();
    terminal.wait().unwrap();
    while terminal.is_raw() {
        // The process that restores it has noticed, and is about to.
        std::thread::yield_now();
    }
    let mut terminal = site.at_terminal(&["attach", "shell"]);
    terminal.type_keys("echo $((6 * 7))\r");
    terminal.wait_for("\r\n42\r\n");
    // Ctrl-P Ctrl-Q.
    terminal.type_keys("\u{10}\u{11}");
    terminal.wait_for("detached");
    assert!(terminal.wait().unwrap().success());
    assert!(!terminal.is_raw());
    site.end_shell("shell");
    site.finish();
}

#[test]
fn clients_attach_again_after_an_agent_was_killed() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let cat = ["run", "-d", "-i", "--name", "cat", "--rootfs", &site.rootfs, "--", "cat"];
    assert!(site.piped(&cat, b"").status.success());
    let shell = ["run", "-d", "-it", "--name", "shell", "--rootfs", &site.rootfs, "--", "sh"];
    assert!(site.piped(&shell, b"").status.success());
    let mut client = Command::new(&site.program)
        .args(["attach", "cat"])
        .env("COFFERDAM_SOCKET", &site.socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    client.stdin.as_mut().unwrap().write_all(b"one\n").unwrap();
    let mut line = [0; 4];
    client.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"one\n");
    let mut terminal = site.at_terminal(&["attach", "shell"]);
    terminal.type_keys("echo $((6 * 7))\r");
    terminal.wait_for("\r\n42\r\n");

    // The clients say what has happened, and end.
    let site = site.crash();
    let ended = client.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && error.contains("stopped before the container ended"), "{ended:?}");
    terminal.wait_for("stopped before the container ended");
    assert!(!terminal.wait().unwrap().success());
    assert!(!terminal.is_raw());

    // Neither the input of the container nor its terminal has ended with the agent.
    let mut terminal = site.at_terminal(&["attach", "shell"]);
    terminal.type_keys("echo $((7 * 7))\r");
    terminal.wait_for("\r\n49\r\n");
    terminal.type_keys("exit 4\r");
    assert_eq!(terminal.wait().unwrap().code(), Some(4));
    let rest = site.piped(&["attach", "cat"], b"two\n");
    assert_eq!((rest.status.code(), &*rest.stdout), (Some(0), &b"two\n"[..]), "{rest:?}");
    assert_eq!(site.piped(&["logs", "cat"], b"").stdout, b"one\ntwo\n");
    for name in ["cat", "shell"] {
        assert!(site.piped(&["rm", name], b"").status.success());
    }
    site.finish();
}

#[test]
fn a_client_that_is_attached_and_killed_restores_its_terminal_and_the_container_runs_on() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let run = ["run", "-d", "-it", "--name", "shell", "--rootfs", &site.rootfs, "--", "sh"];
    assert!(site.piped(&run, b"").status.success());
    let mut killed = site.at_terminal(&["attach", "shell"]);
    spin("the client has the terminal", || killed.is_raw());
    kill(Pid::from_raw(killed.pid()), Signal::SIGKILL).unwrap();
    killed.wait().unwrap();
    spin("the terminal is as before", || !killed.is_raw());
    site.end_shell("shell");
    site.finish();
}

#[test]
fn a_container_whose_switchboard_is_killed_gets_the_signal_of_a_terminal_or_pipe_that_has_gone() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    for (option, signal) in [("-it", Signal::SIGHUP), ("-i", Signal::SIGPIPE)] {
        let run = ["run", "-d", option, "--name", "yes", "--rootfs", &site.rootfs, "--", "busybox", "yes"];
        assert!(site.piped(&run, b"").status.success());
        let switchboard = site.world.record(&id("yes")).part.switchboard.unwrap();
        Process::open(switchboard.pid, switchboard.start_time).unwrap().kill().unwrap();
        assert_eq!(site.daemon.wait(&id("yes")).unwrap().exit_status, Some(signal as i32), "{option}");
        assert!(site.piped(&["rm", "yes"], b"").status.success());
    }
    site.finish();
}

#[test]
fn a_container_that_runs_detached_has_nothing_to_read() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let run = ["run", "-d", "--name", "cat", "--rootfs", &site.rootfs, "--", "cat"];
    assert!(site.piped(&run, b"not for the container").status.success());
    assert_eq!(site.piped(&["wait", "cat"], b"").status.code(), Some(0));
    assert_eq!(site.piped(&["logs", "cat"], b"").stdout, b"");
    assert!(site.piped(&["rm", "cat"], b"").status.success());
    site.finish();
}

#[test]
fn a_command_that_is_executed_in_a_container_ends_with_its_client() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let run = ["run", "-d", "--name", "pod", "--rootfs", &site.rootfs, "--", "sleep", "1000"];
    assert!(site.piped(&run, b"").status.success());
    let mut terminal = site.at_terminal(&["exec", "-it", "pod", "sh"]);
    terminal.wait_for("# ");
    terminal.type_keys("busybox ps\r");
    let processes = terminal.wait_for("busybox ps\r\n") + &terminal.wait_for("# ");
    assert!(processes.contains("sleep 1000"), "{processes}");
    let [_, session] = &site.ids()[..] else { panic!("{:?}", site.ids()) };
    kill(Pid::from_raw(terminal.pid()), Signal::SIGKILL).unwrap();
    terminal.wait().unwrap();
    spin("the terminal is as before", || !terminal.is_raw());
    // It is removed as well, as nobody else knows of it.
    match site.daemon.wait(session) {
        Ok(termination) => assert_eq!(termination.exit_status, Some(9)),
        Err(error) => assert!(error.is_unknown(), "{error:?}"),
    }
    let executed = site.piped(&["exec", "pod", "sh", "-c", "cat; echo problem >&2; exit 9"], b"input");
    assert_eq!(
        (executed.status.code(), &*executed.stdout, &*executed.stderr),
        (Some(9), &b"input"[..], &b"problem\n"[..])
    );
    assert_eq!(site.piped(&["exec", "pod", "no-such-command"], b"").status.code(), Some(127));
    let nothing = Command::new(&site.program)
        .args(["exec", "pod", "cat"])
        .env("COFFERDAM_SOCKET", &site.socket)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!((nothing.status.code(), nothing.stdout.len()), (Some(0), 0));
    assert!(site.piped(&["rm", "--force", "pod"], b"").status.success());
    let gone = site.piped(&["exec", "pod", "true"], b"");
    assert_eq!(gone.status.code(), Some(125), "{}", String::from_utf8_lossy(&gone.stderr));
    site.finish();
}

#[test]
fn standard_input_reaches_a_container_and_its_output_the_next_program() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let data: Vec<u8> = (0..200_000_u32).flat_map(|number| (number % 251).to_le_bytes()).collect();
    let daemon = site.piped(&["run", "--rm", "--rootfs", &site.rootfs, "--", "cat"], &data);
    assert!(daemon.status.success(), "{}", String::from_utf8_lossy(&daemon.stderr));
    assert!(daemon.stdout == data, "{} of {} bytes", daemon.stdout.len(), data.len());
    // Without a daemon, and a command that does not read everything.
    let mut own = Command::new(&site.program);
    own.args(["run", "--plugin-dir"]).arg(cofferdam_tests::paths::build());
    let own = own.args(["--rootfs", &site.rootfs, "--", "head", "-c", "5"]);
    let own = piped(own.env_remove("COFFERDAM_SOCKET"), &data);
    assert_eq!((own.status.code(), &*own.stdout), (Some(0), &data[..5]), "{own:?}");
    site.finish();
}

#[test]
fn clients_of_mesos_attach_with_records() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let run = ["run", "-d", "-i", "--name", "cat", "--rootfs", &site.rootfs, "--", "cat"];
    assert!(site.piped(&run, b"").status.success());
    let plain = ["run", "-d", "--name", "plain", "--rootfs", &site.rootfs, "--", "sleep", "1000"];
    assert!(site.piped(&plain, b"").status.success());

    let output = |id: &str| {
        let mut output = Exchange::begin(site.socket(), "application/json");
        let body = format!(r#"{{"container_id":{{"value":"{id}"}}}}"#);
        output.send(&format!(r#"{{"type":"ATTACH_CONTAINER_OUTPUT","attach_container_output":{body}}}"#));
        output.end();
        output
    };
    let container = |id: &str| {
        let of = format!(r#"{{"type":"CONTAINER_ID","container_id":{{"value":"{id}"}}}}"#);
        format!(r#"{{"type":"ATTACH_CONTAINER_INPUT","attach_container_input":{of}}}"#)
    };
    let process_io = |io: &str| {
        let io = format!(r#"{{"type":"PROCESS_IO","process_io":{io}}}"#);
        format!(r#"{{"type":"ATTACH_CONTAINER_INPUT","attach_container_input":{io}}}"#)
    };
    let data =
        |data: &str| process_io(&format!(r#"{{"type":"DATA","data":{{"type":"STDIN","data":"{data}"}}}}"#));

    let mut attached = output("cat");
    attached.wait_for("application/recordio");
    let mut input = Exchange::begin(site.socket(), "application/recordio");
    input.record(&container("cat"));
    input.record(&data("aGVsbG8K"));
    attached.wait_for(r#"{"type":"DATA","data":{"type":"STDOUT","data":"aGVsbG8K"}}"#);
    let heartbeat = r#"{"type":"CONTROL","control":{"type":"HEARTBEAT","heartbeat":{}}}"#;
    input.record(&process_io(heartbeat));
    let size = r#"{"window_size":{"rows":24,"columns":80}}"#;
    input.record(&process_io(&format!(
        r#"{{"type":"CONTROL","control":{{"type":"TTY_INFO","tty_info":{size}}}}}"#
    )));
    // A client that disconnects ends nothing.
    drop(input);
    let mut input = Exchange::begin(site.socket(), "application/recordio");
    input.record(&container("cat"));
    input.record(&data("d29ybGQK"));
    attached.wait_for("d29ybGQK");
    // Empty data is the end of input: `cat` ends, and with it the stream.
    input.record(&data(""));
    attached.wait_for("\r\n0\r\n\r\n");
    assert_eq!(site.daemon.wait(&id("cat")).unwrap().exit_status, Some(0));
    input.wait_for("HTTP/1.1 200 OK");

    for (container, status) in [("plain", "409"), ("cat", "409"), ("unknown", "404")] {
        output(container).wait_for(&format!("HTTP/1.1 {status}"));
    }
    let refused = |content_type, records: &[&str], status| {
        let mut input = Exchange::begin(site.socket(), content_type);
        for record in records {
            input.send(record);
        }
        input.wait_for(&format!("HTTP/1.1 {status}"));
    };
    refused("application/recordio", &["x\n"], "400");
    refused("application/recordio", &[&framed(&data("aGVsbG8K"))], "400");
    refused("application/recordio", &[&framed(r#"{"type":"GET_HEALTH"}"#)], "400");
    refused("application/recordio", &[&framed(&container("plain"))], "409");
    refused("application/recordio", &["99999999\n", &"x".repeat(2 << 20)], "413");

    for container in ["cat", "plain"] {
        assert!(site.piped(&["rm", "--force", container], b"").status.success());
    }
    site.finish();
}
