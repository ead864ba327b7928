//! The files of containers: what is seen while they are fetched, and the cache after the end of an agent and without space.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use cofferdam_core::agent::Agent;
use cofferdam_core::config::FetchCacheConfig;
use cofferdam_core::containerizer::LaunchError;
use cofferdam_core::events::{EventKind, Received, Subscription};
use cofferdam_core::model::{ContainerId, Ended, FetchProgress, Request, Uri};
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::disk::{Full, Resource};
use cofferdam_tests::mounts::{Memory, in_own_namespace};
use cofferdam_tests::terminal::Terminal;
use cofferdam_tests::tunnel::Tunnel;
use cofferdam_tests::world::{World, id, with_agent};
use cofferdam_tests::{assert_contains, is_root, paths, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const MIB: usize = 1 << 20;

/// A server whose responses the test sends.
struct Server {
    url: String,
    connections: Receiver<Connection>,
}

/// A request that waits for its response.
struct Connection {
    stream: TcpStream,
    headers: Vec<String>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let url = format!("http://{}/file", listener.local_addr().expect("its address"));
        let (sender, connections) = mpsc::channel();
        // Ends with the test: without a receiver, or with the process.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let lines = BufReader::new(stream.try_clone().expect("a connection of the client")).lines();
                let headers = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
                if sender.send(Connection { stream, headers }).is_err() {
                    return;
                }
            }
        });
        Self { url, connections }
    }

    /// The next request.
    fn request(&self) -> Connection {
        self.connections.recv_timeout(TIMEOUT).expect("a request")
    }

    /// Whether nothing was requested but what the test has seen.
    fn is_idle(&self) -> bool {
        self.connections.try_recv().is_err()
    }
}

impl Connection {
    /// Begins a response with a body of this size.
    fn begin(&mut self, size: usize) {
        let head =
            format!("HTTP/1.1 200 OK\r\nETag: \"1\"\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n");
        self.stream.write_all(head.as_bytes()).expect("a connection of the client");
    }

    fn send(&mut self, size: usize) {
        self.stream.write_all(&vec![b'x'; size]).expect("a connection of the client");
    }

    /// Responds that what the client has is still the same.
    fn unchanged(mut self) {
        assert!(self.headers.iter().any(|line| line.eq_ignore_ascii_case("if-none-match: \"1\"")));
        self.stream
            .write_all(b"HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n")
            .expect("a connection of the client");
    }

    /// Waits until the client has closed the connection.
    fn wait_closed(self) {
        self.stream.set_read_timeout(Some(TIMEOUT)).expect("a connection of the client");
        match BufReader::new(self.stream).lines().next() {
            None => {}
            Some(Err(error)) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
            Some(Ok(line)) => panic!("{line}"),
        }
    }
}

fn file(url: &str, name: &str, cache: bool) -> Uri {
    let (value, output_file) = (url.to_owned(), Some(name.to_owned()));
    Uri { value, executable: false, extract: false, cache, output_file, sha256: None }
}

/// A container that prints the sizes of its files.
fn request(world: &World, name: &str, uris: Vec<Uri>) -> Request {
    let mut request =
        Request::shell(id(name), "cd \"$MESOS_SANDBOX\" && wc -c first second 2>/dev/null; exit 7");
    request.rootfs = Some(world.rootfs());
    request.uris = uris;
    request
}

/// Waits for an event of the fetch of a container.
async fn progress(
    events: &mut Subscription,
    container: &ContainerId,
    is_wanted: impl Fn(&FetchProgress) -> bool,
) -> FetchProgress {
    let wait = async {
        loop {
            if let Received::Event(event) = events.next().await
                && let EventKind::Fetch { container: of, progress } = &event.kind
                && of == container
                && is_wanted(progress)
            {
                return *progress;
            }
        }
    };
    tokio::time::timeout(TIMEOUT, wait).await.expect("progress")
}

/// What the agent shows of a container that is fetching.
fn shown(agent: &Agent, container: &ContainerId) -> Option<FetchProgress> {
    agent.inspect(container).expect("the container").summary.fetch
}

#[test]
fn the_progress_of_a_fetch_is_seen_while_it_lasts() {
    if !is_root("containers") {
        return;
    }
    let mut world = World::shipped();
    // The test may be slow while the server has nothing to send.
    world.config.fetch.stall = TIMEOUT;
    let server = Server::start();
    with_agent(&world, async |agent| {
        let uris = vec![file(&server.url, "first", false), file(&server.url, "second", false)];
        let request = request(&world, "fetch-progress", uris);
        let id = request.id.clone();
        let mut events = agent.events().subscribe(None);
        let launching = tokio::spawn({
            let agent = agent.clone();
            async move { agent.launch(request).await }
        });
        let mut connection = server.request();
        connection.begin(4 * MIB);
        connection.send(2 * MIB);
        // There is an event for each tenth; the fifth one is complete with the last byte only.
        let has_most = |seen: &FetchProgress| (4..=5).contains(&(seen.received * 10 / (4 * MIB as u64)));
        let seen = progress(&mut events, &id, has_most).await;
        let facts = |seen: FetchProgress| (seen.files, seen.fetched_files, seen.bytes, has_most(&seen));
        assert_eq!(facts(seen), (2, 0, 4 * MIB as u64, true));
        // The server has sent no more, so this is still so.
        assert_eq!(shown(&agent, &id).map(facts), Some((2, 0, 4 * MIB as u64, true)));
        connection.send(2 * MIB);

        let mut connection = server.request();
        connection.begin(10);
        let seen = progress(&mut events, &id, |seen| seen.fetched_files == 1).await;
        assert_eq!((seen.files, seen.received), (2, 0));
        assert_eq!(shown(&agent, &id).map(|seen| seen.fetched_files), Some(1));
        connection.send(10);
        launching.await.unwrap().unwrap();
        assert_eq!(shown(&agent, &id), None);
        assert_eq!(agent.wait(&id).await.unwrap().ended(), Some(Ended::Exited(7)));
        let output = agent.inspect(&id).unwrap().logs.stdout.unwrap();
        assert_contains(&text(&output), &["4194304 first", "10 second"]);
        assert!(agent.remove(&id).await.unwrap());
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn clients_see_the_progress_of_a_fetch() {
    if !is_root("containers") {
        return;
    }
    let world = World::shipped();
    let server = Server::start();
    let daemon = Daemon::start(&world);
    let cofferdam = |arguments: &[&str]| {
        let mut command = Command::new(paths::program());
        command.arg("--socket").arg(world.socket()).args(arguments).stdin(Stdio::null());
        command
    };
    let rootfs = world.rootfs();
    let uri = format!("{},name=first,no-extract,cache", server.url);
    let arguments =
        ["run", "--name", "fetch-seen", "--rootfs", rootfs.to_str().unwrap(), "--uri", &uri, "--", "true"];
    let mut run =
        cofferdam(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program");
    let mut connection = server.request();
    connection.begin(4 * MIB);
    connection.send(3 * MIB);
    // The command tells how far it is.
    let mut lines = BufReader::new(run.stderr.take().unwrap()).lines().map_while(Result::ok);
    let line = lines.find(|line| line.contains("of 4.0 MiB")).expect("progress");
    assert!(line.starts_with("fetching files: 0 of 1 files, "), "{line}");
    let container = daemon.list().into_iter().find(|container| container.container_id.value == "fetch-seen");
    let fetch = container.unwrap().fetch.unwrap();
    assert_eq!((fetch.files, fetch.fetched_files, fetch.bytes), (1, 0, Some(4 * MIB as u64)));
    let ps = cofferdam(&["ps"]).output().unwrap();
    assert_contains(&String::from_utf8_lossy(&ps.stdout), &["FETCHING (0 of 1 files)"]);
    let inspect = cofferdam(&["inspect", "fetch-seen"]).output().unwrap();
    assert_contains(
        &String::from_utf8_lossy(&inspect.stdout),
        &["0 of 1 files, ", " of 4.0 MiB of the next one"],
    );
    connection.send(MIB);
    drop(lines.collect::<Vec<_>>());
    assert!(run.wait().unwrap().success());
    // The same by a server that says that it is still the same.
    let mut again = cofferdam(&["run", "--rootfs", rootfs.to_str().unwrap(), "--uri", &uri, "--", "true"]);
    let mut again = again.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program");
    server.request().unchanged();
    assert!(again.wait().unwrap().success());
    let metrics = daemon.get("/metrics/snapshot");
    assert_eq!(metrics["containerizer/fetcher/task_fetches_succeeded"], 2.0);
    assert_eq!(metrics["containerizer/fetcher/cache_size_used_bytes"], 4_194_304.0);
    for container in daemon.list() {
        daemon.remove(&id(&container.container_id.value)).unwrap();
    }
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn files_are_fetched_through_the_proxy_of_the_environment() {
    if !is_root("containers") {
        return;
    }
    let world = World::shipped();
    let server = Server::start();
    let address = server.url.trim_start_matches("http://").trim_end_matches("/file").parse().unwrap();
    let proxy = Tunnel::proxy(address);
    let rootfs = world.rootfs().display().to_string();
    let mut command = Command::new(paths::program());
    command.args(["run", "--rootfs", &rootfs, "--plugin-dir"]).arg(paths::build());
    // A name that only the proxy knows.
    command.args(["--uri", "http://files.test:8080/file,name=first,no-extract", "--"]);
    command.args(["sh", "-c", "wc -c <first"]).stdin(Stdio::null()).stdout(Stdio::piped());
    for name in ["COFFERDAM_SOCKET", "NO_PROXY", "no_proxy", "ALL_PROXY", "HTTPS_PROXY", "http_proxy"] {
        command.env_remove(name);
    }
    let run = command.env("HTTP_PROXY", format!("http://{}", proxy.address)).spawn().expect("the program");
    let mut connection = server.request();
    connection.begin(5);
    connection.send(5);
    drop(connection);
    let output = run.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text_of(&output.stdout)), (Some(0), "5"));
    assert_eq!(proxy.asked(), ["CONNECT files.test:8080 HTTP/1.1"]);
}

fn text_of(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text").trim()
}

#[test]
fn a_fetch_has_a_bar_on_a_terminal() {
    if !is_root("containers") {
        return;
    }
    let world = World::shipped();
    let server = Server::start();
    let daemon = Daemon::start(&world);
    let (rootfs, uri) =
        (world.rootfs().display().to_string(), format!("{},name=first,no-extract", server.url));
    let arguments = ["run", "--rm", "--rootfs", &rootfs, "--uri", &uri, "--", "echo", "hello"];
    let mut terminal = Terminal::run(&paths::program(), &arguments, &[("COFFERDAM_SOCKET", &world.socket())]);
    let mut connection = server.request();
    connection.begin(4 * MIB);
    connection.send(3 * MIB);
    terminal.wait_for("fetching file 1 of 1: ");
    terminal.wait_for(" of 4.00 MiB");
    connection.send(MIB);
    // It is removed, so that the output is not beside it.
    terminal.wait_for("hello\r\n");
    assert!(terminal.wait().unwrap().success());
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn launches_share_a_download_and_end_on_their_own() {
    if !is_root("containers") {
        return;
    }
    let mut world = World::shipped();
    let directory = world.config.work_dir.join("cache");
    world.config.fetch_cache = Some(FetchCacheConfig { directory, size: 64 * MIB as u64 });
    world.config.fetch.stall = TIMEOUT;
    let server = Server::start();
    with_agent(&world, async |agent| {
        let mut events = agent.events().subscribe(None);
        let launch = |name: &str| {
            let request = request(&world, name, vec![file(&server.url, "first", true)]);
            let agent = agent.clone();
            tokio::spawn(async move { agent.launch(request).await })
        };
        let (stopped, kept) = (id("fetch-stopped"), id("fetch-kept"));
        let is_large = |seen: &FetchProgress| seen.bytes == 2 * MIB as u64;
        let cancelled = launch("fetch-stopped");
        let mut connection = server.request();
        connection.begin(2 * MIB);
        connection.send(MIB);
        progress(&mut events, &stopped, is_large).await;
        let launching = launch("fetch-kept");
        progress(&mut events, &kept, is_large).await;
        // The one that has begun the download ends.
        agent.destroy(&stopped).await;
        let error = cancelled.await.unwrap().unwrap_err();
        assert!(matches!(error, LaunchError::Cancelled { .. }), "{error}");
        connection.send(MIB);
        launching.await.unwrap().unwrap();
        assert!(server.is_idle(), "one download");
        assert_eq!(agent.wait(&kept).await.unwrap().ended(), Some(Ended::Exited(7)));
        let output = agent.inspect(&kept).unwrap().logs.stdout.unwrap();
        assert_contains(&text(&output), &["2097152 first"]);
        assert!(agent.remove(&kept).await.unwrap());
        let stats = agent.fetch_stats();
        assert_eq!((stats.misses, stats.cache_files, stats.succeeded, stats.failed), (1, 1, 1, 0));

        // With the last one that waits, the download ends.
        let cancelled = launch("fetch-stopped");
        let mut connection = server.request();
        connection.begin(3 * MIB);
        progress(&mut events, &stopped, |seen| seen.bytes == 3 * MIB as u64).await;
        agent.destroy(&stopped).await;
        assert!(cancelled.await.unwrap().is_err());
        connection.wait_closed();
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn an_agent_that_is_killed_leaves_a_cache_that_works() {
    if !is_root("containers") {
        return;
    }
    let world = World::shipped();
    let server = Server::start();
    let cache = world.config.work_dir.join("fetch-cache");
    let names = |directory: &str| fs::read_dir(cache.join(directory)).unwrap().count();
    let daemon = Daemon::start(&world);
    let launch = |daemon: &Daemon, name: &str, serve: &dyn Fn()| {
        thread::scope(|scope| {
            let launching =
                scope.spawn(|| daemon.launch(&request(&world, name, vec![file(&server.url, "first", true)])));
            serve();
            launching.join().unwrap()
        })
    };
    let complete = || {
        let mut connection = server.request();
        connection.begin(MIB);
        connection.send(MIB);
    };
    launch(&daemon, "one", &complete).unwrap();
    assert_eq!(daemon.wait(&id("one")).unwrap().exit_status, Some(7 << 8));
    daemon.remove(&id("one")).unwrap();

    // During the download of another file.
    let other = Server::start();
    let connection = thread::scope(|scope| {
        let launching =
            scope.spawn(|| daemon.launch(&request(&world, "two", vec![file(&other.url, "first", true)])));
        let mut connection = other.request();
        connection.begin(MIB);
        connection.send(MIB / 2);
        kill(Pid::from_raw(daemon.pid()), Signal::SIGKILL).unwrap();
        assert!(launching.join().unwrap().is_err());
        connection
    });
    daemon.kill();
    // The process that has received it ends as well.
    connection.wait_closed();

    let daemon = Daemon::start(&world);
    assert_eq!((names("entries"), names("content"), names("drafts")), (1, 1, 0), "{}", daemon.log());
    // The launch that was interrupted.
    daemon.wait(&id("two")).unwrap();
    daemon.remove(&id("two")).unwrap();
    launch(&daemon, "three", &|| server.request().unchanged()).unwrap();
    assert_eq!(daemon.wait(&id("three")).unwrap().exit_status, Some(7 << 8));
    let output = daemon.inspect(&id("three")).unwrap().stdout.unwrap();
    assert_contains(&text(Path::new(&output)), &["1048576 first"]);
    daemon.remove(&id("three")).unwrap();
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_file_is_fetched_without_a_cache_that_is_full() {
    if !is_root("a full directory") {
        return;
    }
    in_own_namespace(|| {
        let mut world = World::shipped();
        let directory = world.directory().join("full");
        let memory = Memory::mount(&directory, "size=1m");
        let full = Full::make(&directory, Resource::Blocks);
        world.config.fetch_cache =
            Some(FetchCacheConfig { directory: directory.join("cache"), size: 64 * MIB as u64 });
        let server = Server::start();
        with_agent(&world, async |agent| {
            let mut full = Some(full);
            for name in ["full", "free"] {
                let request = request(&world, name, vec![file(&server.url, "first", true)]);
                let id = request.id.clone();
                let launching = tokio::spawn({
                    let agent = agent.clone();
                    async move { agent.launch(request).await }
                });
                let mut connection = server.request();
                connection.begin(MIB / 2);
                // It may end before it has all of it.
                drop(connection.stream.write_all(&vec![b'x'; MIB / 2]));
                if name == "full" {
                    let mut connection = server.request();
                    connection.begin(MIB / 2);
                    connection.send(MIB / 2);
                }
                launching.await.unwrap().unwrap();
                drop(full.take());
                agent.wait(&id).await.unwrap();
                let output = agent.inspect(&id).unwrap().logs.stdout.unwrap();
                assert_contains(&text(&output), &["524288 first"]);
                assert!(agent.remove(&id).await.unwrap());
            }
            let stats = agent.fetch_stats();
            assert_eq!((stats.bypasses, stats.misses, stats.cache_used), (1, 1, MIB as u64 / 2));
        });
        drop(memory);
        assert_eq!(world.leftovers(), [""; 0]);
    });
}
