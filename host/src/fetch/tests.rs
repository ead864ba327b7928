//! Fetching with real processes, files, archives and servers.

mod archives;
mod cache;
mod credentials;
mod fuzz;
mod redirects;
mod resume;
mod server;
mod zip;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::future::{Future, pending};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use data_encoding::HEXLOWER;
use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};
use tempfile::TempDir;
use tokio::sync::oneshot;

use cofferdam_core::config::FetchLimits;
use cofferdam_core::fetcher::{
    FetchError, FetchFailure, FetchJob, FetchMessage, FetchRequest, Fetcher, PlaceJob,
};

use super::process::run;
use cofferdam_core::error_chain;
use cofferdam_core::model::Uri;

/// A user without files.
const NOBODY: u32 = 65534;

/// Upper bound of waits, so that a test fails instead of hanging.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Executes the test below. The test harness writes to standard output, so the process reports to descriptor 3. Its pid
/// is written to a file.
const AS_CHILD: &str = "exec 3>&1 >/dev/null; echo $$ > \"$1\"; \
                        exec \"$0\" --ignored --exact fetch::tests::fetcher_process";

#[test]
#[ignore = "started by the other tests"]
fn fetcher_process() {
    // Before privileges are dropped.
    let output = OpenOptions::new().write(true).open("/dev/fd/3").unwrap();
    let status = match run(io::stdin(), output.try_clone().unwrap()) {
        Ok(()) => 0,
        Err(failure) => {
            FetchMessage::Failed(failure).write(output).unwrap();
            1
        }
    };
    std::process::exit(status);
}

/// A fetcher that runs a shell as its process.
fn shell(arguments: Vec<PathBuf>) -> Fetcher {
    Fetcher::new(Some([vec![PathBuf::from("/bin/sh")], arguments].concat()))
}

/// A sandbox and files outside of it.
struct World {
    directory: TempDir,
    uid: u32,
    gid: u32,
}

/// Paths of a container's output.
fn reserved() -> Vec<PathBuf> {
    vec!["stdout".into(), "logs/err".into()]
}

impl World {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let (uid, gid) = match is_root() {
            true => (NOBODY, NOBODY),
            false => (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()),
        };
        let world = Self { directory, uid, gid };
        fs::create_dir(world.sandbox()).unwrap();
        chown(world.sandbox(), Some(uid), Some(gid)).unwrap();
        world
    }

    fn sandbox(&self) -> PathBuf {
        self.directory.path().join("sandbox")
    }

    fn inside(&self, name: &str) -> PathBuf {
        self.sandbox().join(name)
    }

    fn outside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Creates a file outside of the sandbox. Returns its path as a URI.
    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.outside(name), content).unwrap();
        fs::set_permissions(self.outside(name), Permissions::from_mode(0o644)).unwrap();
        self.outside(name).to_str().unwrap().to_owned()
    }

    fn fetcher(&self) -> Fetcher {
        let arguments =
            vec!["-c".into(), AS_CHILD.into(), std::env::current_exe().unwrap(), self.outside("pid")];
        shell(arguments)
    }

    fn request<'a>(&self, uris: &'a [Uri], sandbox: &'a Path, reserved: &'a [PathBuf]) -> FetchRequest<'a> {
        FetchRequest { uris, sandbox, uid: self.uid, gid: self.gid, reserved }
    }

    async fn fetch_by(&self, fetcher: Fetcher, uris: &[Uri]) -> Result<(), FetchError> {
        let (sandbox, reserved) = (self.sandbox(), reserved());
        let fetch = fetcher.fetch(self.request(uris, &sandbox, &reserved), drop, pending::<()>());
        tokio::time::timeout(TIMEOUT, fetch).await.expect("fetching did not finish")
    }

    async fn fetch(&self, uris: &[Uri]) -> Result<(), FetchError> {
        self.fetch_by(self.fetcher(), uris).await
    }

    /// Fetches what cannot be fetched. Returns the error.
    async fn fetch_error(&self, uris: &[Uri]) -> String {
        let error = self.fetch(uris).await.expect_err("the file was fetched");
        assert!(matches!(error, FetchError::Failed(_)), "{error:?}");
        error_chain::describe(&error)
    }

    /// All paths in the sandbox.
    fn contents(&self) -> Vec<String> {
        fn walk(directory: &Path, root: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
                if path.symlink_metadata().unwrap().is_dir() {
                    walk(&path, root, found);
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.sandbox(), &self.sandbox(), &mut found);
        found.sort();
        found
    }

    fn mode(&self, name: &str) -> u32 {
        fs::symlink_metadata(self.inside(name)).unwrap().mode() & 0o7777
    }

    /// The last process that was started.
    fn child(&self) -> OwnedFd {
        open_process(fs::read_to_string(self.outside("pid")).unwrap().trim().parse().unwrap())
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn uri(value: impl Into<String>) -> Uri {
    Uri {
        value: value.into(),
        executable: false,
        extract: true,
        cache: false,
        output_file: None,
        sha256: None,
    }
}

fn named(value: impl Into<String>, name: &str) -> Uri {
    Uri { output_file: Some(name.into()), ..uri(value) }
}

/// Executes a program that must succeed.
fn execute(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

fn open_process(pid: i32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap()
}

/// Waits until a process has ended. Returns false after a timeout.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let timeout = Timespec { tv_sec: TIMEOUT.as_secs().cast_signed(), tv_nsec: 0 };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)).unwrap() == 1
}

/// A member of an archive. Names are not validated.
#[derive(Clone)]
struct Member<'a> {
    name: &'a str,
    kind: EntryType,
    mode: u32,
    link: &'a str,
    content: &'a [u8],
}

impl<'a> Member<'a> {
    fn file(name: &'a str, content: &'a [u8]) -> Self {
        Self { name, kind: EntryType::Regular, mode: 0o644, link: "", content }
    }

    fn of(kind: EntryType, name: &'a str) -> Self {
        Self { kind, mode: 0o755, ..Self::file(name, b"") }
    }

    fn link(kind: EntryType, name: &'a str, link: &'a str) -> Self {
        Self { link, ..Self::of(kind, name) }
    }
}

fn header(member: &Member<'_>) -> Header {
    let mut header = Header::new_gnu();
    let old = header.as_old_mut();
    old.name[..member.name.len()].copy_from_slice(member.name.as_bytes());
    old.linkname[..member.link.len()].copy_from_slice(member.link.as_bytes());
    header.set_entry_type(member.kind);
    header.set_mode(member.mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(member.content.len() as u64);
    header.set_cksum();
    header
}

fn tar(members: &[Member<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for member in members {
        bytes.extend_from_slice(header(member).as_bytes());
        bytes.extend_from_slice(member.content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Serves every connection by `respond`, which gets the requested path. Returns the URL of the root.
fn serve(respond: impl Fn(&str, TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let root = format!("http://{}", listener.local_addr().unwrap());
    serve_on(listener, respond);
    root
}

fn serve_on(listener: TcpListener, respond: impl Fn(&str, TcpStream) + Send + 'static) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let mut request = BufReader::new(stream.try_clone().unwrap());
            let mut first = String::new();
            request.read_line(&mut first).unwrap();
            loop {
                let mut line = String::new();
                request.read_line(&mut line).unwrap();
                if line.trim().is_empty() {
                    break;
                }
            }
            respond(first.split(' ').nth(1).unwrap(), stream);
        }
    });
}

fn respond(mut stream: TcpStream, status: &str, headers: &str, body: &str) {
    let length = body.len();
    let text =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}");
    // The client may have been ended meanwhile.
    drop(stream.write_all(text.as_bytes()));
}

/// Sends the beginning of a response, and nothing more until the client disconnects.
fn stall(mut stream: TcpStream, beginning: &str) {
    stream.write_all(beginning.as_bytes()).unwrap();
    // A reset by the client is an error here.
    drop(stream.read(&mut [0]));
}

/// A server that never completes a response. The receiver gets a message for every connection.
fn serve_incomplete() -> (String, mpsc::Receiver<()>) {
    let (sender, connected) = mpsc::channel();
    let root = serve(move |_, stream| {
        let mut copy = stream.try_clone().unwrap();
        copy.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbeginning").unwrap();
        sender.send(()).unwrap();
        stall(stream, "");
    });
    (root, connected)
}

#[tokio::test]
async fn local_files_are_fetched_in_order_and_belong_to_the_user() {
    let world = World::new();
    let first = world.file("first", "1");
    let second = world.file("second", "2");
    fs::set_permissions(&second, Permissions::from_mode(0o4754)).unwrap();
    chown(&second, Some(world.uid), Some(world.gid)).unwrap();
    fs::set_permissions(&second, Permissions::from_mode(0o4754)).unwrap();
    let executable = Uri { executable: true, ..named(&first, "sub/directory/run.tar.gz") };
    let list = [
        uri(&first),
        uri(format!("file://{second}")),
        named(format!("file://localhost{second}"), "first"),
        executable,
    ];
    world.fetch(&list).await.unwrap();

    assert_eq!(world.contents(), ["first", "second", "sub", "sub/directory", "sub/directory/run.tar.gz"]);
    assert_eq!(fs::read(world.inside("first")).unwrap(), b"2", "a later file replaces an earlier one");
    assert_eq!(world.mode("first"), 0o754, "permissions are kept, except for setuid");
    assert_eq!(world.mode("sub/directory/run.tar.gz"), 0o755);
    assert_eq!(world.mode("sub"), 0o755);
    for name in world.contents() {
        let metadata = fs::symlink_metadata(world.inside(&name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (world.uid, world.gid), "{name}");
    }
}

#[tokio::test]
async fn files_that_only_the_agent_may_read_are_not_fetched() {
    if !is_root() {
        eprintln!("skipped: requires root");
        return;
    }
    let world = World::new();
    let secret = world.file("secret", "s");
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    let error = world.fetch_error(&[uri(&secret)]).await;
    assert_eq!(error, format!("cannot fetch `{secret}`: cannot open it: Permission denied (os error 13)"));

    // Also not through the group or supplementary groups of the agent.
    fs::set_permissions(&secret, Permissions::from_mode(0o040)).unwrap();
    assert!(world.fetch_error(&[uri(&secret)]).await.ends_with("Permission denied (os error 13)"));
    assert_eq!(world.contents(), [""; 0]);
}

#[tokio::test]
async fn only_regular_files_are_fetched() {
    let world = World::new();
    let directory = world.sandbox().to_str().unwrap().to_owned();
    assert!(world.fetch_error(&[uri(&directory)]).await.ends_with("it is not a regular file"));
    let pipe = world.outside("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    fs::set_permissions(&pipe, Permissions::from_mode(0o666)).unwrap();
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    assert!(world.fetch_error(&[uri(pipe.to_str().unwrap())]).await.ends_with("it is not a regular file"));
    assert!(world.fetch_error(&[uri("/dev/null")]).await.ends_with("it is not a regular file"));
    assert!(
        world.fetch_error(&[uri("/no/such/file")]).await.ends_with("No such file or directory (os error 2)")
    );
    assert_eq!(world.contents(), [""; 0]);
}

#[tokio::test]
async fn all_uris_are_validated_before_the_first_is_fetched() {
    let world = World::new();
    let good = world.file("good", "g");
    let error = world.fetch_error(&[uri(&good), uri("hdfs://name/a?key=secret")]).await;
    assert_eq!(
        error,
        "cannot fetch `hdfs://name/a?…`: the scheme `hdfs` is not supported; use an absolute path, or a URL \
         with `file`, `http` or `https`"
    );
    let error = world.fetch_error(&[uri(&good), named(&good, "../out")]).await;
    let uris = [uri(&good), uri("hdfs://name/a")];
    assert!(world.fetch(&uris).await.unwrap_err().is_invalid(), "the request is at fault");
    assert!(error.ends_with("`../out` is not a valid path in the sandbox: it contains `..`"), "{error}");
    assert_eq!(world.contents(), [""; 0]);
}

#[tokio::test]
async fn links_in_the_sandbox_are_not_followed() {
    let world = World::new();
    let good = world.file("good", "g");
    let victim = world.file("victim", "v");
    fs::create_dir(world.outside("elsewhere")).unwrap();
    fs::set_permissions(world.outside("elsewhere"), Permissions::from_mode(0o777)).unwrap();
    symlink(world.outside("elsewhere"), world.inside("link")).unwrap();
    symlink(&victim, world.inside("file")).unwrap();

    let error = world.fetch_error(&[named(&good, "link/x")]).await;
    assert!(error.contains("cannot create the directory `link` in the sandbox"), "{error}");
    assert_eq!(fs::read_dir(world.outside("elsewhere")).unwrap().count(), 0);

    world.fetch(&[named(&good, "file")]).await.unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"v");
    assert!(world.inside("file").symlink_metadata().unwrap().is_file());

    fs::create_dir(world.inside("taken")).unwrap();
    assert!(
        world.fetch_error(&[named(&good, "taken")]).await.contains("cannot create `taken` in the sandbox")
    );
    assert_eq!(world.contents(), ["file", "link", "taken"]);
}

#[tokio::test]
async fn an_archive_is_unpacked_and_not_kept() {
    let world = World::new();
    let archive = tar(&[
        Member { mode: 0o777, ..Member::of(EntryType::Directory, "./") },
        Member { mode: 0o555, ..Member::of(EntryType::Directory, "app/") },
        Member { mode: 0o6755, ..Member::file("app/bin/run", b"#!") },
        Member::file("app/plain", &[b'x'; 1000]),
        Member::link(EntryType::Symlink, "app/current", "/nowhere/at/all"),
        Member::link(EntryType::Link, "same", "./app/plain"),
        Member::file("old/", b""),
    ]);
    let before = fs::metadata(world.sandbox()).unwrap().mode();
    world.fetch(&[uri(world.file("a.tar.gz", gzip(&archive)))]).await.unwrap();

    let expected = ["app", "app/bin", "app/bin/run", "app/current", "app/plain", "old", "same"];
    assert_eq!(world.contents(), expected);
    assert_eq!(
        fs::metadata(world.sandbox()).unwrap().mode(),
        before,
        "the permissions of the sandbox do not change"
    );
    assert_eq!(world.mode("app"), 0o755, "its owner can remove its entries");
    assert_eq!(world.mode("app/bin/run"), 0o755, "setuid and setgid are dropped");
    let plain = fs::metadata(world.inside("app/plain")).unwrap();
    assert_eq!((plain.len(), plain.mtime(), plain.uid()), (1000, 1_000_000_000, world.uid));
    assert_eq!(fs::metadata(world.inside("app")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(plain.ino(), fs::metadata(world.inside("same")).unwrap().ino());
    assert_eq!(fs::read_link(world.inside("app/current")).unwrap(), Path::new("/nowhere/at/all"));

    // Replaces the files, with other archive suffixes.
    let again = tar(&[Member::file("app/plain", b"new"), Member::link(EntryType::Symlink, "same", "app")]);
    world.fetch(&[named(world.file("b", &again), "sub/b.tar")]).await.unwrap();
    assert_eq!(world.contents(), expected);
    assert_eq!(fs::read(world.inside("app/plain")).unwrap(), b"new");
    world.fetch(&[named(world.file("c", gzip(&again)), "c.tgz")]).await.unwrap();

    let kept = Uri { extract: false, ..uri(world.file("a.tar.gz", "not even an archive")) };
    world.fetch(&[kept, uri(world.file("words.gz", gzip(b"words")))]).await.unwrap();
    assert_eq!(fs::read(world.inside("a.tar.gz")).unwrap(), b"not even an archive");
    assert_eq!(fs::read(world.inside("words")).unwrap(), b"words");
    assert!(!world.inside("words.gz").exists());

    let zstd = |bytes: &[u8]| compress_to_vec(bytes, CompressionLevel::Fastest);
    let third = tar(&[Member::file("app/plain", b"third")]);
    world.fetch(&[uri(world.file("a.tar.zst", zstd(&third)))]).await.unwrap();
    assert_eq!(fs::read(world.inside("app/plain")).unwrap(), b"third");
    world.fetch(&[uri(world.file("more.zst", zstd(b"more words")))]).await.unwrap();
    assert_eq!(fs::read(world.inside("more")).unwrap(), b"more words");
    let damaged = world.fetch_error(&[uri(world.file("b.tzst", &zstd(&third)[..20]))]).await;
    assert!(damaged.contains("it is not a complete tar archive"), "{damaged}");
}

#[tokio::test]
async fn nothing_is_placed_where_the_output_of_the_container_is() {
    use EntryType as E;
    let world = World::new();
    for log in reserved() {
        fs::create_dir_all(world.inside(log.parent().unwrap().to_str().unwrap())).unwrap();
        chown(world.inside(log.parent().unwrap().to_str().unwrap()), Some(world.uid), Some(world.gid))
            .unwrap();
        fs::write(world.inside(log.to_str().unwrap()), "output").unwrap();
    }
    let plain = world.file("plain", "malicious");
    for name in ["stdout", "./stdout", "stdout/x", "logs", "logs/err", "logs//./err"] {
        let error = world.fetch_error(&[named(&plain, name)]).await;
        assert!(error.contains("is reserved for the output of the container"), "{name}: {error}");
    }
    let error = world.fetch_error(&[named(world.file("a.gz", gzip(b"x")), "stdout.gz")]).await;
    assert!(error.contains("`stdout` is reserved"), "{error}");
    let file = |name| Member::file(name, b"malicious");
    for members in [
        vec![file("stdout")],
        vec![file("./logs/err")],
        vec![file("stdout/x")],
        vec![file("logs")],
        vec![Member::link(E::Symlink, "stdout", "/etc/passwd")],
        vec![Member::link(E::Symlink, "logs", ".")],
        vec![file("x"), Member::link(E::Link, "stdout", "x")],
        vec![Member::link(E::Link, "x", "stdout"), file("x")],
        vec![Member::link(E::Directory, "stdout", "")],
    ] {
        let error = world.fetch_error(&[uri(world.file("a.tar", tar(&members)))]).await;
        assert!(error.contains("is reserved for the output of the container"), "{error}");
    }
    for log in reserved() {
        assert_eq!(fs::read(world.inside(log.to_str().unwrap())).unwrap(), b"output");
    }
    // Beside it, anything may be placed.
    world.fetch(&[named(&plain, "logs/other"), named(&plain, "stdout2")]).await.unwrap();
}

#[tokio::test]
async fn a_malicious_archive_is_rejected_and_has_no_effect_outside() {
    use EntryType as E;
    let world = World::new();
    fs::create_dir(world.outside("elsewhere")).unwrap();
    fs::set_permissions(world.outside("elsewhere"), Permissions::from_mode(0o777)).unwrap();
    let victim = world.file("elsewhere/victim", "v");
    fs::set_permissions(&victim, Permissions::from_mode(0o666)).unwrap();
    chown(&victim, Some(world.uid), Some(world.gid)).unwrap();
    let elsewhere = world.outside("elsewhere").to_str().unwrap().to_owned();
    let (below, through) = (format!("{elsewhere}/new"), format!("link{elsewhere}/victim"));

    let file = |name| Member::file(name, b"malicious");
    let cases: Vec<(Vec<Member<'_>>, &str)> = vec![
        (vec![file(&below)], "is absolute"),
        (vec![file("../elsewhere/new")], "contains `..`"),
        (vec![file("a/../../elsewhere/new")], "contains `..`"),
        (vec![file("")], "is empty"),
        (
            vec![Member::link(E::Symlink, "link", &elsewhere), file("link/new")],
            "cannot create the directory `link`",
        ),
        (
            vec![Member::link(E::Symlink, "link", "../elsewhere"), file("link/new")],
            "cannot create the directory `link`",
        ),
        (
            vec![Member::link(E::Symlink, "link", &elsewhere), Member::of(E::Directory, "link/")],
            "cannot create the directory `link`",
        ),
        (
            vec![
                Member::link(E::Symlink, "a", "."),
                Member::link(E::Symlink, "a/b", ".."),
                file("a/b/elsewhere/new"),
            ],
            "cannot create the directory `a`",
        ),
        (
            vec![Member::link(E::Symlink, "link", "/"), Member::link(E::Link, "hard", &through)],
            "cannot create `link/",
        ),
        (
            vec![
                Member::link(E::Symlink, "link", &victim),
                Member::link(E::Link, "hard", "link"),
                file("hard"),
            ],
            "`link`, which is not a regular file",
        ),
        (vec![Member::link(E::Link, "hard", &victim)], "is absolute"),
        (vec![Member::link(E::Link, "hard", "../elsewhere/victim")], "contains `..`"),
        (vec![Member::link(E::Link, "hard", "nothing")], "cannot create `nothing`"),
        (vec![file("self"), Member::link(E::Link, "self", "self")], "`self`, which is not a regular file"),
        (vec![Member::link(E::Symlink, "link", "")], "is a link without a target"),
        (vec![Member::of(E::Block, "device")], "member `device` is a device"),
        (vec![Member::of(E::Char, "device")], "member `device` is a device"),
        (vec![Member::of(E::Fifo, "pipe")], "member `pipe` is a named pipe"),
        (vec![Member::of(E::new(b'M'), "more")], "member `more` is of type `M`"),
        (vec![Member::of(E::Directory, "d"), file("d")], "cannot create `d`"),
    ];
    for (number, (members, reason)) in cases.iter().enumerate() {
        let archive = world.file(&format!("{number}.tar"), tar(members));
        let error = world.fetch_error(&[uri(archive)]).await;
        assert!(error.contains(reason), "case {number}: {error}");
        assert_eq!(fs::read(&victim).unwrap(), b"v", "case {number}");
        assert_eq!(fs::metadata(&victim).unwrap().nlink(), 1, "case {number}");
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1, "case {number}");
        assert!(!world.contents().iter().any(|name| name.contains(".fetch-")), "case {number}");
        fs::remove_dir_all(world.sandbox()).unwrap();
        fs::create_dir(world.sandbox()).unwrap();
        chown(world.sandbox(), Some(world.uid), Some(world.gid)).unwrap();
    }

    // A file replaces a link instead of being written to its target.
    let link = tar(&[Member::link(E::Symlink, "link", &victim), file("link")]);
    world.fetch(&[uri(world.file("over.tar", link))]).await.unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"v");
    assert_eq!(fs::read(world.inside("link")).unwrap(), b"malicious");
}

#[tokio::test]
async fn a_damaged_archive_is_rejected() {
    let world = World::new();
    let content: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let archive = tar(&[Member::file("a", &content)]);
    let whole = gzip(&archive);
    let mut flipped = whole.clone();
    let checksum = flipped.len() - 6;
    flipped[checksum] ^= 1;
    let cases = [
        ("short.tar", &archive[..archive.len() / 2]),
        ("short.tar.gz", &whole[..whole.len() / 2]),
        ("tail.tar.gz", &whole[..whole.len() - 4]),
        ("flipped.tar.gz", &flipped),
        ("page.tar", b"<html>".as_slice().repeat(200).leak()),
        ("page.tgz", b"<html>"),
    ];
    for (name, bytes) in cases {
        let error = world.fetch_error(&[uri(world.file(name, bytes))]).await;
        assert!(error.contains("cannot unpack it"), "{name}: {error}");
        assert!(!world.contents().iter().any(|name| name.contains(".fetch-")), "{name}");
    }
    let error = world.fetch_error(&[uri(world.file("short.gz", &whole[..whole.len() / 2]))]).await;
    assert!(error.contains("cannot decompress it"), "{error}");
    assert!(!world.inside("short").exists());
    let error = world.fetch_error(&[uri(world.file("a.tar.lz4", "z"))]).await;
    assert!(error.contains("unpacking `.tar.lz4` is not supported"), "{error}");
}

#[tokio::test]
async fn size_and_number_of_members_are_limited() {
    let world = World::new();
    let limited = |limits| world.fetcher().limited(limits);
    let small = FetchLimits { bytes: 100_000, files: 3, ..FetchLimits::default() };
    let too_large = "the container's files exceed 100000 bytes";

    let half = world.file("half", [0; 60_000]);
    world.fetch_by(limited(small.clone()), &[uri(&half)]).await.unwrap();
    let error =
        world.fetch_by(limited(small.clone()), &[uri(&half), named(&half, "again")]).await.unwrap_err();
    assert!(error_chain::describe(&error).contains(too_large), "{error:?}");
    assert_eq!(world.contents(), ["half"]);

    // A small archive with a large member.
    let bomb = world.file("bomb.tar.gz", gzip(&tar(&[Member::file("bomb", &vec![0; 200_000])])));
    let error = world.fetch_by(limited(small.clone()), &[uri(bomb)]).await.unwrap_err();
    assert!(error_chain::describe(&error).contains(too_large), "{error:?}");

    // A sparse file of four exabytes.
    let mut sparse = header(&Member::of(EntryType::GNUSparse, "hole"));
    let gnu = sparse.as_gnu_mut().unwrap();
    gnu.sparse[0].set_offset(4 << 60);
    gnu.sparse[0].set_length(0);
    gnu.set_real_size(4 << 60);
    sparse.set_cksum();
    let mut archive = sparse.as_bytes().to_vec();
    archive.resize(512 + 1024, 0);
    let error =
        world.fetch_by(limited(small.clone()), &[uri(world.file("sparse.tar", archive))]).await.unwrap_err();
    assert!(error_chain::describe(&error).contains(too_large), "{error:?}");

    let many: Vec<_> = ["a", "b", "c", "d"].map(|name| Member::file(name, b"")).into();
    world.fetch_by(limited(small.clone()), &[uri(world.file("three.tar", tar(&many[..3])))]).await.unwrap();
    let error =
        world.fetch_by(limited(small.clone()), &[uri(world.file("four.tar", tar(&many)))]).await.unwrap_err();
    assert!(error_chain::describe(&error).contains("it has more than 3 members"), "{error:?}");
    assert!(!world.contents().iter().any(|name| name.contains(".fetch-")));
}

#[tokio::test]
async fn a_very_long_name_does_not_exhaust_memory() {
    let world = World::new();
    // A name of 1 GiB in repeated compressed parts. The tar library keeps names in memory.
    let mut name = header(&Member::of(EntryType::GNULongName, "././@LongLink"));
    name.set_size(1 << 30);
    name.set_cksum();
    let mut archive = gzip(name.as_bytes());
    archive.extend(gzip(&vec![b'x'; 16 << 20]).repeat(64));
    let error = world.fetch(&[uri(world.file("a.tar.gz", archive))]).await.unwrap_err();
    let error = error_chain::describe(&error);
    assert!(error.contains("memory allocation") || error.contains("out of memory"), "{error}");
}

#[tokio::test]
async fn files_are_downloaded_and_redirects_are_followed() {
    let world = World::new();
    let root = serve(|path, stream| match path {
        "/first/name.txt?x=/y" => respond(stream, "302 Found", "Location: /second\r\n", ""),
        "/second" => respond(stream, "200 OK", "", "content"),
        "/loop" => respond(stream, "302 Found", "Location: /loop\r\n", ""),
        "/partial" => respond(stream, "206 Partial Content", "", "part"),
        "/short" => stream_short(stream),
        path => respond(stream, "404 Not Found", "", path),
    });
    world.fetch(&[uri(format!("{root}/first/name.txt?x=/y"))]).await.unwrap();
    assert_eq!(world.contents(), ["name.txt"]);
    assert_eq!(fs::read(world.inside("name.txt")).unwrap(), b"content");
    assert_eq!(world.mode("name.txt"), 0o644);

    let url = format!("{root}/missing");
    let error = world.fetch_error(&[uri(&url)]).await;
    let expected = "the server responds with `404 Not Found`, expected `200 OK`";
    assert_eq!(error, format!("cannot fetch `{url}`: {expected}"));
    for (path, reason) in [
        ("loop", "too many redirects"),
        ("partial", "responds with `206 Partial Content`"),
        ("short", "cannot download it"),
    ] {
        let error = world.fetch_error(&[uri(format!("{root}/{path}"))]).await;
        assert!(error.contains(reason), "{path}: {error}");
    }
    let error = world.fetch_error(&[uri("http://user:secret@a b/x?secret")]).await;
    assert_eq!(error, "cannot fetch `http://a b/x?…`: it is not a valid URL");
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let error = world.fetch_error(&[uri(format!("http://{nobody}/x"))]).await;
    assert!(error.contains("Connection refused"), "{error}");
    let error = world.fetch_error(&[uri(format!("{}/x", root.replace("http:", "https:")))]).await;
    assert!(error.contains("cannot download it"), "{error}");
    assert_eq!(world.contents(), ["name.txt"]);
}

fn stream_short(mut stream: TcpStream) {
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort").unwrap();
}

#[tokio::test]
async fn a_stalled_download_times_out() {
    let world = World::new();
    let root = serve(|path, stream| match path {
        "/body" => stall(stream, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbeginning"),
        _ => stall(stream, ""),
    });
    let limits = FetchLimits { stall: Duration::from_millis(200), ..FetchLimits::default() };
    for path in ["body", "headers"] {
        let url = format!("{root}/{path}");
        let error = world.fetch_by(world.fetcher().limited(limits.clone()), &[uri(&url)]).await.unwrap_err();
        let expected = format!("cannot fetch `{url}`: no data from the server for 200ms");
        assert_eq!(error_chain::describe(&error), expected);
    }
    assert_eq!(world.contents(), [""; 0]);
}

#[tokio::test]
async fn a_file_with_another_hash_is_rejected() {
    let world = World::new();
    let hexadecimal = |bytes: &[u8]| HEXLOWER.encode(&Sha256::digest(bytes));
    let archive = tar(&[Member::file("member", b"m")]);
    let (actual, expected) = (hexadecimal(&archive), hexadecimal(b"something else"));
    let path = world.file("a.tar", &archive);
    let with = |uri: Uri, sha256: &str| Uri { sha256: Some(sha256.to_owned()), ..uri };

    for uri in [uri(&path), named(&path, "plain")] {
        let error = world.fetch_error(&[with(uri, &expected)]).await;
        let reason = format!("its SHA-256 is `{actual}`, expected `{expected}`");
        assert_eq!(error, format!("cannot fetch `{path}`: {reason}"));
        assert_eq!(world.contents(), [""; 0]);
    }
    let error = world.fetch_error(&[with(uri(&path), "abc")]).await;
    assert!(error.contains("`abc` is not a SHA-256"), "{error}");

    world
        .fetch(&[with(uri(&path), &actual.to_uppercase()), with(named(&path, "plain"), &actual)])
        .await
        .unwrap();
    assert_eq!(world.contents(), ["member", "plain"]);
}

#[tokio::test]
async fn the_process_is_reaped_when_fetching_is_cancelled() {
    let world = World::new();
    let (root, connected) = serve_incomplete();
    let (stop, stopped) = oneshot::channel::<()>();
    let uris = [uri(format!("{root}/x"))];
    let (fetcher, sandbox) = (world.fetcher(), world.sandbox());
    let reserved = reserved();
    let fetch = fetcher.fetch(world.request(&uris, &sandbox, &reserved), drop, stopped);
    let watch = tokio::task::spawn_blocking(move || {
        connected.recv_timeout(TIMEOUT).unwrap();
        stop.send(()).unwrap();
    });
    let outcome = tokio::time::timeout(TIMEOUT, fetch).await.expect("cancelling did not finish");
    assert!(matches!(outcome, Err(FetchError::Stopped)), "{outcome:?}");
    watch.await.unwrap();
    let pid = fs::read_to_string(world.outside("pid")).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "the process was not reaped");
}

/// The process here ignores its standard input, which would end the real one as well.
#[tokio::test]
async fn dropping_the_future_kills_the_process_and_its_children() {
    let world = World::new();
    let pipe = world.outside("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let script = "/bin/sleep 120 & echo $$ $! > \"$0\"; wait";
    let arguments = vec!["-c".into(), script.into(), pipe.clone()];
    let fetcher = shell(arguments);
    let (uris, sandbox) = ([uri("/x")], world.sandbox());
    let mut pids = tokio::task::spawn_blocking(move || fs::read_to_string(pipe).unwrap());
    let reserved = reserved();
    let fetch = fetcher.fetch(world.request(&uris, &sandbox, &reserved), drop, pending::<()>());
    // Opened before the future is dropped.
    let pidfds = until(fetch, async {
        let pids = (&mut pids).await.unwrap();
        pids.split_whitespace().map(|pid| open_process(pid.parse().unwrap())).collect::<Vec<_>>()
    })
    .await;
    assert_eq!(pidfds.len(), 2);
    assert!(pidfds.iter().all(has_ended));
}

/// Polls `work` until `event` completes.
async fn until<T>(work: impl Future<Output = Result<(), FetchError>>, event: impl Future<Output = T>) -> T {
    tokio::select! {
        outcome = work => panic!("it completed: {outcome:?}"),
        output = event => output,
    }
}

#[test]
fn the_process_exits_when_the_agent_dies() {
    let world = World::new();
    let (root, connected) = serve_incomplete();
    let job = PlaceJob {
        sandbox: world.sandbox(),
        uid: world.uid,
        gid: world.gid,
        uris: vec![uri(format!("{root}/x"))],
        cached: BTreeMap::new(),
        reserved: reserved(),
        limits: FetchLimits::default(),
        credentials: None,
    };
    let job = FetchJob::Place(job);
    let mut child = Command::new("/bin/sh")
        .args(["-c", AS_CHILD])
        .args([std::env::current_exe().unwrap(), world.outside("pid")])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&job.to_line().unwrap()).unwrap();
    connected.recv_timeout(TIMEOUT).unwrap();
    let pidfd = world.child();
    drop(stdin);
    let ended = has_ended(&pidfd);
    if !ended {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    assert!(ended);
    assert_eq!(status.code(), Some(1));
}

#[tokio::test]
async fn the_standard_error_of_a_crashed_process_is_reported() {
    let world = World::new();
    let run = |script: &str| shell(vec!["-c".into(), script.into()]);
    let list = [uri("/x")];
    let error = world.fetch_by(run("echo one >&2; echo two >&2; kill -9 $$"), &list).await.unwrap_err();
    assert!(matches!(&error, FetchError::Died { stderr, .. } if stderr == "one two"), "{error:?}");
    assert!(error.to_string().contains("signal: 9"), "{error}");
    let error = world.fetch_by(run("echo no json; exit 3"), &list).await.unwrap_err();
    assert!(matches!(error, FetchError::Died { .. }), "{error:?}");
    // A process that does not read its job, which is larger than the pipe buffer.
    let many = vec![uri("/x".repeat(1000)); 200];
    assert!(matches!(world.fetch_by(run("exit 1"), &many).await, Err(FetchError::Died { .. })));

    let missing = Fetcher::new(Some(vec!["/no/such/program".into()]));
    let error = world.fetch_by(missing.clone(), &list).await.unwrap_err();
    assert!(matches!(error, FetchError::Spawn { .. }), "{error:?}");
    world.fetch_by(missing, &[]).await.unwrap();
}

#[tokio::test]
async fn an_unusable_sandbox_is_named() {
    let world = World::new();
    let good = [uri(world.file("good", "g"))];
    fs::remove_dir(world.sandbox()).unwrap();
    let error = world.fetch(&good).await.unwrap_err();
    assert!(matches!(&error, FetchError::Failed(FetchFailure::Start { .. })), "{error:?}");
    assert!(
        error_chain::describe(&error).starts_with("cannot start fetching: cannot open the sandbox `"),
        "{error:?}"
    );
    if is_root() {
        fs::create_dir(world.sandbox()).unwrap();
        let error = world.fetch_error(&good).await;
        assert!(error.ends_with("cannot create `good` in the sandbox: Permission denied (os error 13)"));
    }
}
