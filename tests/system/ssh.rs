//! Containers at a terminal that is on another machine: through an SSH server and its client, in a network namespace of their own.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use cofferdam_linux::process::{Process, children_of};
use cofferdam_tests::daemon::TIMEOUT;
use cofferdam_tests::is_root;
use cofferdam_tests::paths;
use cofferdam_tests::terminal::Terminal;
use cofferdam_tests::world::id;
use tempfile::TempDir;

use crate::terminals::{Site, spin, wait_for_size};

/// An SSH server in namespaces of its own, which lets in whoever has a key of this test.
struct Server {
    process: Child,
    directory: TempDir,
}

impl Server {
    fn start() -> Self {
        let directory = TempDir::new().expect("a directory");
        let path = |name: &str| directory.path().join(name).display().to_string();
        for key in ["host", "user"] {
            let mut keygen = Command::new("dropbearkey");
            keygen.args(["-t", "ed25519", "-f", &path(key)]).stderr(Stdio::null());
            let made = keygen.output().expect("dropbearkey (package dropbear-bin)");
            assert!(made.status.success(), "{made:?}");
            let text = String::from_utf8(made.stdout).expect("text");
            let public = text.lines().find(|line| line.starts_with("ssh-ed25519 ")).expect("a public key");
            fs::create_dir_all(path(".ssh")).expect("a directory");
            // At last, the key of the user.
            fs::write(path(".ssh/authorized_keys"), format!("{public}\n")).expect("a file");
        }
        for private in ["", ".ssh"] {
            fs::set_permissions(path(private), Permissions::from_mode(0o700)).expect("its mode is set");
        }
        // The server finds these keys in the home directory of root, which is another one in its mount namespace only.
        let home = directory.path().display();
        fs::write(path("passwd"), format!("root:x:0:0:root:{home}:/bin/sh\n")).expect("a file");
        let script = "ip link set lo up && mount --bind \"$0/passwd\" /etc/passwd && \
                      exec dropbear -F -E -s -r \"$0/host\" -p 127.0.0.1:22 -P \"$0/pid\"";
        let log = fs::File::create(path("log")).expect("a file");
        let process = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "sh", "-c", script])
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("unshare (package util-linux)");
        let mut server = Self { process, directory };
        server.wait_until_it_listens();
        server
    }

    fn wait_until_it_listens(&mut self) {
        let begin = Instant::now();
        // The address, the port and the state of a socket that listens.
        let listens = "0100007F:0016 00000000:0000 0A";
        let sockets = format!("/proc/{}/net/tcp", self.process.id());
        // Before `unshare`, the namespace is that of the machine.
        let own = fs::read_link("/proc/self/ns/net").expect("a namespace");
        let namespace = format!("/proc/{}/ns/net", self.process.id());
        let is_elsewhere = || fs::read_link(&namespace).is_ok_and(|namespace| namespace != own);
        while !(is_elsewhere() && fs::read_to_string(&sockets).is_ok_and(|text| text.contains(listens))) {
            let ended = self.process.try_wait().expect("its state");
            let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert!(ended.is_none() && begin.elapsed() < TIMEOUT, "no SSH server: {ended:?}\n{}", log());
            std::thread::yield_now();
        }
    }

    /// Runs a command of the shell on the other machine, at a terminal here.
    fn at_terminal(&self, line: &str) -> Terminal {
        let namespace = format!("--net=/proc/{}/ns/net", self.process.id());
        let key = self.directory.path().join("user").display().to_string();
        let client = ["dbclient", "-y", "-y", "-i", &key, "-t", "root@127.0.0.1", line];
        Terminal::run(Path::new("nsenter"), &[&[namespace.as_str(), "--"][..], &client].concat(), &[])
    }

    /// Waits until no connection is left, and no program that was run over one.
    fn wait_until_idle(&self) {
        let server = i32::try_from(self.process.id()).expect("a pid");
        spin("nothing is left of connections", || {
            children_of(server).expect("the server is running").is_empty()
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill().and_then(|()| self.process.wait()));
    }
}

/// A command of this program, with the daemon of a site.
fn line(site: &Site, command: &str) -> String {
    format!("COFFERDAM_SOCKET={} exec {} {command}", site.socket().display(), paths::program().display())
}

/// Kills the client, as if the connection had broken.
fn kill(terminal: &mut Terminal) {
    Process::open_any(terminal.pid()).expect("it is running").kill().expect("it is killed");
    terminal.wait().expect("it has ended");
}

#[test]
fn a_shell_over_ssh_is_as_one_at_a_terminal_here() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let server = Server::start();
    let run = format!("run --name shell -it --rootfs {} -- sh", site.rootfs);
    let mut terminal = server.at_terminal(&line(&site, &run));
    terminal.wait_for("# ");
    terminal.type_keys("busybox stty size; busybox tty; echo $TERM\r");
    terminal.wait_for("24 80\r\n/dev/pts/0\r\nxterm\r\n");
    terminal.resize(50, 132);
    wait_for_size(&mut terminal, "50 132");
    terminal.wait_for("# ");
    terminal.type_keys("busybox vi file\r");
    // It draws lines without text up to the last row.
    terminal.wait_for("\u{1b}[50;1H");
    terminal.type_keys("itext\u{1b}");
    terminal.wait_for("\u{1b}[1;4H");
    terminal.type_keys(":wq\r");
    terminal.wait_for("# ");
    terminal.type_keys("cat file\r");
    terminal.wait_for("\r\ntext\r\n");
    terminal.wait_for("# ");
    // The program says when it is in the foreground.
    terminal.type_keys("sh -c 'echo u\"\"p; exec sleep 1000000'\r");
    terminal.wait_for("\r\nup\r\n");
    terminal.type_keys("\u{3}");
    terminal.wait_for("# ");
    // Ctrl-P Ctrl-Q.
    terminal.type_keys("\u{10}\u{11}");
    terminal.wait_for("detached");
    assert!(terminal.wait().unwrap().success());
    assert!(!terminal.is_raw());
    let mut terminal = server.at_terminal(&line(&site, "attach shell"));
    terminal.type_keys("cat file; exit 7\r");
    terminal.wait_for("\r\ntext\r\n");
    assert_eq!(terminal.wait().unwrap().code(), Some(7));
    server.wait_until_idle();
    assert!(site.piped(&["rm", "shell"], b"").status.success());
    site.finish();
}

#[test]
fn a_connection_that_breaks_ends_what_belongs_to_it_only() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let server = Server::start();
    // A container of the daemon goes on.
    let run = format!("run --name shell -it --rootfs {} -- sh", site.rootfs);
    let mut terminal = server.at_terminal(&line(&site, &run));
    terminal.wait_for("# ");
    kill(&mut terminal);
    server.wait_until_idle();
    assert_eq!(site.daemon().inspect(&id("shell")).unwrap().state, "RUNNING");
    // A command in it ends, and nothing is left of it.
    let mut terminal = server.at_terminal(&line(&site, "exec -it shell sh"));
    terminal.wait_for("# ");
    assert_eq!(site.daemon().list().len(), 2);
    kill(&mut terminal);
    server.wait_until_idle();
    spin("it is removed", || site.daemon().list().len() == 1);
    let mut terminal = server.at_terminal(&line(&site, "attach shell"));
    terminal.type_keys("exit 4\r");
    assert_eq!(terminal.wait().unwrap().code(), Some(4));
    assert!(site.piped(&["rm", "shell"], b"").status.success());

    // Without a daemon, the container ends with its client.
    let (program, plugins) = (paths::program(), paths::build());
    let (program, plugins) = (program.display(), plugins.display());
    let run = format!("exec {program} run -it --plugin-dir {plugins} --rootfs {} -- sh", site.rootfs);
    let mut terminal = server.at_terminal(&run);
    terminal.wait_for("# ");
    // One that no other process has.
    let seconds = format!("9{:07}", std::process::id());
    terminal.type_keys(&format!("exec sleep {seconds}\r"));
    terminal.wait_for(&format!("{seconds}\r\n"));
    kill(&mut terminal);
    server.wait_until_idle();
    let left = Command::new("pgrep").args(["-f", &format!("^sleep {seconds}$")]).output();
    let left = left.expect("pgrep (package procps)");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
    site.finish();
}
