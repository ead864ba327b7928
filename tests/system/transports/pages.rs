//! The pages of Mesos for files and for the log, over TCP on one connection.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use cofferdam_core::model::Request;
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::world::{TOKEN, World, id};
use serde_json::{Value as Json, json};

use super::{address, world};

/// A client that keeps its connection.
struct Client {
    address: String,
    stream: BufReader<TcpStream>,
}

/// A response: its status, its head and its body.
struct Page {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Client {
    fn new(daemon: &Daemon) -> Self {
        let address = address(daemon);
        let stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self { address, stream: BufReader::new(stream) }
    }

    fn get(&mut self, path: &str) -> Page {
        self.get_with(path, "")
    }

    /// The same with lines in the head.
    fn get_with(&mut self, path: &str, lines: &str) -> Page {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {TOKEN}\r\n{lines}\r\n",
            self.address
        );
        self.stream.get_mut().write_all(request.as_bytes()).unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.stream.read_line(&mut head).unwrap() > 0, "{path}: {head}");
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.expect("a length").parse().unwrap()];
        self.stream.read_exact(&mut body).unwrap();
        Page { status: head.split(' ').nth(1).unwrap().parse().unwrap(), head, body }
    }

    fn json(&mut self, path: &str) -> Json {
        let page = self.get(path);
        assert_eq!(page.status, 200, "{path}: {}", String::from_utf8_lossy(&page.body));
        serde_json::from_slice(&page.body).unwrap()
    }

    fn refused(&mut self, path: &str) -> (u16, String) {
        let page = self.get(path);
        (page.status, String::from_utf8(page.body).unwrap())
    }
}

/// A world with a container whose sandbox has a text of 70,000 characters of two bytes after one byte.
fn started() -> (World, Daemon) {
    let world = world();
    let daemon = Daemon::start(&world);
    let script = r#"printf a > text; i=0; while [ $i -lt 70 ]; do printf '\303\251%.0s' $(seq 1000) >> text; i=$((i+1)); done; ln -s /etc/passwd out"#;
    daemon.launch(&Request::shell(id("web"), script.to_owned())).unwrap();
    assert_eq!(daemon.wait(&id("web")).unwrap().exit_status, Some(0));
    (world, daemon)
}

#[test]
fn files_are_listed_read_and_downloaded() {
    let (world, daemon) = started();
    let mut client = Client::new(&daemon);
    let list = client.json("/files/browse?path=/containers/web");
    let text = list.as_array().unwrap().iter().find(|file| file["path"] == "/containers/web/text").unwrap();
    assert_eq!((&text["size"], &text["nlink"]), (&json!(140_001), &json!(1)));
    assert!(text["mode"].as_str().unwrap().starts_with("-rw-"), "{text}");
    assert!(text["mtime"].as_i64().unwrap() > 1_700_000_000, "{text}");
    assert!(text["uid"].is_string() && text["gid"].is_string());

    // As the web interface does: the size, then one part after the other, by the length of each.
    let read = "/slave(1)/files/read.json?path=/containers/web/text";
    for size in [read.to_owned(), format!("{read}&offset=-1&length=-1")] {
        assert_eq!(client.json(&size), json!({"offset": 140_001, "data": ""}));
    }
    let (mut all, mut parts) = (String::new(), 0);
    while all.len() < 140_001 {
        let part = client.json(&format!("{read}&offset={}", all.len()));
        assert_eq!(part["offset"], all.len());
        all += part["data"].as_str().unwrap();
        parts += 1;
    }
    assert_eq!((all, parts), (format!("a{}", "\u{e9}".repeat(70_000)), 3));
    assert_eq!(client.json(&format!("{read}&offset=0&length=2"))["data"], "a");
    assert_eq!(client.json(&format!("{read}&offset=140001"))["data"], "");

    let file = client.get("/files/download?path=/containers/web/text");
    assert_eq!(file.status, 200);
    for line in
        ["content-type: application/octet-stream", "filename=\"text\"", "x-content-type-options: nosniff"]
    {
        assert!(file.head.contains(line), "{}", file.head);
    }
    assert_eq!(String::from_utf8(file.body).unwrap(), format!("a{}", "\u{e9}".repeat(70_000)));

    let sandbox = daemon.inspect(&id("web")).unwrap().sandbox;
    assert_eq!(client.json("/files/debug")["/containers/web"], sandbox);
    assert!(fs::metadata(sandbox).unwrap().is_dir());
    drop(world);
}

#[test]
fn files_outside_of_sandboxes_are_not_served() {
    let (_world, daemon) = started();
    let mut client = Client::new(&daemon);
    for page in ["browse", "read", "download"] {
        let (status, text) = client.refused(&format!("/files/{page}"));
        assert!(status == 400 && text.contains("`path=…` is missing"), "{page}: {text}");
        for (path, expected) in [
            ("/containers/web/out", 400),
            ("/containers/web/../web/text", 400),
            ("/etc/passwd", 404),
            ("/containers/none", 404),
        ] {
            assert_eq!(
                client.refused(&format!("/files/{page}?path={path}&offset=0")).0,
                expected,
                "{page} {path}"
            );
        }
    }
    for page in ["read", "download"] {
        assert_eq!(client.refused(&format!("/files/{page}?path=/containers/web&offset=0")).0, 400);
    }
    let (status, text) = client.refused("/files/read?path=/containers/web/text&offset=-2");
    assert!(status == 400 && text.contains("`offset=-2` is invalid"), "{text}");
}

#[test]
fn a_download_that_nobody_reads_leaves_nothing() {
    let (_world, daemon) = started();
    let mut client = Client::new(&daemon);
    // A connection exists before the agent has accepted it.
    assert_eq!(client.get("/health").status, 200);
    let before = daemon.descriptors().len();
    let request = "GET /files/download?path=/containers/web/text HTTP/1.1\r\nHost: localhost\r\n";
    let other = Client::new(&daemon);
    write!(other.stream.get_ref(), "{request}Authorization: Bearer {TOKEN}\r\n\r\n").unwrap();
    drop(other);
    // It is closed when the agent has seen that the client has gone, for which there is no event here.
    for _ in 0..600 {
        if daemon.descriptors().len() <= before {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(daemon.descriptors().len() <= before);
    assert_eq!(client.get("/health").status, 200);
}

#[test]
fn the_log_says_more_while_its_level_is_raised() {
    let world = world();
    let daemon = Daemon::start(&world);
    let mut client = Client::new(&daemon);
    assert_eq!(client.refused("/logging/toggle"), (200, "0\n".to_owned()));
    assert!(!daemon.log().contains(" TRACE ") && !daemon.log().contains(" DEBUG "));
    assert_eq!(client.get("/logging/toggle?level=2&duration=1hours").status, 200);
    assert_eq!(client.refused("/slave(1)/logging/toggle"), (200, "2\n".to_owned()));
    let level = daemon.call(&json!({"type": "GET_LOGGING_LEVEL"})).unwrap();
    assert_eq!(level, json!({"level": 2}));
    // A connection that ends in the middle of a request is noted for debugging.
    write!(Client::new(&daemon).stream.get_ref(), "GET /health HTTP/1.1\r\nHost").unwrap();
    cofferdam_tests::wait_for_text(&world.directory().join("agent.log"), "connection closed early");
    let reset = json!({"level": 0, "duration": {"nanoseconds": 1}});
    daemon.call(&json!({"type": "SET_LOGGING_LEVEL", "set_logging_level": reset})).unwrap();
    assert_eq!(client.refused("/logging/toggle"), (200, "0\n".to_owned()));
    for query in ["level=1", "duration=1secs", "level=-1&duration=1secs", "level=1&duration=soon"] {
        assert_eq!(client.get(&format!("/logging/toggle?{query}")).status, 400, "{query}");
    }
    let negative = json!({"level": 1, "duration": {"nanoseconds": -1}});
    let error =
        daemon.call(&json!({"type": "SET_LOGGING_LEVEL", "set_logging_level": negative})).unwrap_err();
    assert!(format!("{error:?}").contains("is negative"), "{error:?}");
}

#[test]
fn nothing_is_pending_and_lists_are_empty_at_rest() {
    let world = world();
    let daemon = Daemon::start(&world);
    let mut client = Client::new(&daemon);
    assert_eq!(client.json("/containerizer/debug"), json!({"pending": []}));
    let state = client.json("/slave(1)/state.json");
    for list in ["frameworks", "completed_frameworks"] {
        assert_eq!(state[list], json!([]), "{list}");
    }
    assert_eq!(client.json("/monitor/statistics.json"), json!([]));
    for call in ["GET_OPERATIONS", "GET_RESOURCE_PROVIDERS"] {
        assert_eq!(daemon.call(&json!({ "type": call })).unwrap(), json!({}), "{call}");
    }
    let agent = daemon.call(&json!({"type": "GET_AGENT"})).unwrap()["agent_info"].take();
    assert_eq!((&agent["id"]["value"], &agent["hostname"]), (&state["id"], &state["hostname"]));
    assert_eq!(agent["resources"][0]["name"], "cpus");
}

#[test]
fn metrics_have_the_format_that_is_accepted_and_series_of_containers() {
    let world = world();
    let daemon = Daemon::start(&world);
    daemon.launch(&Request::shell(id("web"), "exec sleep 1000")).unwrap();
    let mut client = Client::new(&daemon);
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5\r\n";
    for (lines, content_type, counter, build, end) in [
        (
            accept,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "# TYPE cofferdam_launches counter",
            "# TYPE cofferdam_build info",
            true,
        ),
        (
            "",
            "text/plain; version=0.0.4; charset=utf-8",
            "# TYPE cofferdam_launches_total counter",
            "# TYPE cofferdam_build_info gauge",
            false,
        ),
    ] {
        let page = client.get_with("/metrics", lines);
        assert_eq!(page.status, 200);
        assert!(page.head.contains(&format!("content-type: {content_type}\r\n")), "{}", page.head);
        let text = String::from_utf8(page.body).unwrap();
        let has = |expected: &str| text.lines().any(|line| line.starts_with(expected));
        for expected in [
            counter,
            build,
            "cofferdam_launches_total{outcome=\"started\"} 1",
            "cofferdam_build_info{version=",
            "cofferdam_containers{phase=\"RUNNING\"} 1",
            "cofferdam_container_cpu_seconds_total{container=\"web\"} ",
            "cofferdam_container_memory_bytes{container=\"web\"} ",
            "process_cpu_seconds_total ",
            "process_resident_memory_bytes ",
        ] {
            assert!(has(expected), "no line begins with `{expected}` in\n{text}");
        }
        assert_eq!(text.ends_with("# EOF\n"), end);
    }
    daemon.destroy(&id("web")).unwrap();
    let page = client.get("/metrics");
    let text = String::from_utf8(page.body).unwrap();
    assert!(!text.contains("container=\"web\""), "{text}");
    daemon.remove(&id("web")).unwrap();
}
