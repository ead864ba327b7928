//! Requests that no client should send: each is refused with a status of its own, on a connection that goes on.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use cofferdam::api::operator::types::Call;
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::world::World;
use serde_json::{Value as Json, json};

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/x-protobuf";

/// A client that uses one connection for as long as the agent does not say that it closes it.
struct Client<'a> {
    world: &'a World,
    stream: BufReader<UnixStream>,
    /// Requests that were answered.
    answered: usize,
}

impl<'a> Client<'a> {
    fn new(world: &'a World) -> Self {
        Self { world, stream: connect(world), answered: 0 }
    }

    /// Sends a request, and returns status and body of the response. A stream is not read.
    #[track_caller]
    fn request(&mut self, method: &str, path: &str, lines: &str, body: &[u8]) -> (u16, String) {
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{lines}Content-Length: {}\r\n\r\n", body.len());
        self.raw(&[head.as_bytes(), body].concat(), method == "HEAD")
    }

    #[track_caller]
    fn raw(&mut self, request: &[u8], has_no_body: bool) -> (u16, String) {
        let shown = || String::from_utf8_lossy(&request[..request.len().min(1000)]).into_owned();
        self.stream.get_mut().write_all(request).unwrap_or_else(|error| panic!("{error}: {}", shown()));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read =
                self.stream.read_line(&mut head).unwrap_or_else(|error| panic!("{error}: {}", shown()));
            assert!(read > 0, "the connection was dropped after: {}", shown());
        }
        let head = head.to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a length"))];
        if !has_no_body {
            self.stream.read_exact(&mut body).unwrap_or_else(|error| panic!("{error}: {}", shown()));
        }
        if length.is_none() || head.contains("connection: close") {
            self.stream = connect(self.world);
        }
        self.answered += 1;
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    /// Sends a call as JSON. Whatever it is, the agent has an answer, and an error says why.
    #[track_caller]
    fn call(&mut self, call: &[u8]) -> u16 {
        let (status, text) = self.request("POST", "/api/v1", &content(JSON), call);
        let shown = String::from_utf8_lossy(&call[..call.len().min(1000)]);
        assert!(
            status == 200 || status == 202 || (400..500).contains(&status),
            "{status} {text} for {shown}"
        );
        assert!(status < 400 || !text.trim().is_empty(), "{status} without a reason for {shown}");
        assert!(text.len() < 20_000, "an error of {} bytes for {shown}", text.len());
        status
    }
}

fn connect(world: &World) -> BufReader<UnixStream> {
    let stream = UnixStream::connect(world.socket()).expect("the daemon listens");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    BufReader::new(stream)
}

fn content(kind: &str) -> String {
    format!("Content-Type: {kind}\r\n")
}

/// A body that a call accepts, with everything in it that clients may set. It changes nothing: containers, executors and tasks
/// are unknown, and what is to be launched is refused for two reasons, so that a change of one of them launches nothing.
fn body(name: &str) -> Json {
    let id = || json!({ "value": "x", "parent": { "value": "none" } });
    let resources = || {
        json!([
            { "name": "cpus", "type": "SCALAR", "scalar": { "value": 0.1 }, "role": "*" },
            { "name": "ports", "type": "RANGES", "ranges": { "range": [{ "begin": 1, "end": 2 }] } },
            { "name": "sets", "type": "SET", "set": { "item": ["a"] } },
        ])
    };
    let refused = || {
        let mut all = resources();
        all.as_array_mut()
            .expect("a list")
            .push(json!({ "name": "mem", "type": "SCALAR", "scalar": { "value": -1 } }));
        all
    };
    let command = || {
        json!({
            "value": "exit 0", "shell": true, "arguments": ["a"], "user": "no-such-user",
            "uris": [{ "value": "file:///nowhere", "extract": true, "output_file": "f" }],
            "environment": { "variables": [
                { "name": "A", "value": "b", "type": "VALUE" },
                { "name": "S", "type": "SECRET", "secret": { "type": "VALUE", "value": { "data": "c2VjcmV0" } } },
            ] },
        })
    };
    let image = || json!({ "type": "DOCKER", "docker": { "name": "none:1" }, "cached": true });
    let container = || {
        json!({
            "type": "MESOS", "hostname": "web", "mesos": { "image": image() },
            "volumes": [{ "mode": "RO", "container_path": "/data", "host_path": "/nowhere" }, {
                "mode": "RW", "container_path": "data",
                "source": { "type": "SANDBOX_PATH", "sandbox_path": { "type": "SELF", "path": "p" } },
            }],
            "network_infos": [{ "name": "net", "ip_addresses": [{ "ip_address": "10.0.0.1" }],
                "port_mappings": [{ "host_port": 80, "container_port": 80, "protocol": "tcp" }] }],
            "linux_info": { "effective_capabilities": { "capabilities": ["CHOWN"] }, "share_pid_namespace": false,
                "ipc_mode": "PRIVATE", "shm_size": 1 },
            "rlimit_info": { "rlimits": [{ "type": "RLMT_NOFILE", "hard": 10, "soft": 10 }] },
            "tty_info": { "window_size": { "rows": 1, "columns": 1 } },
        })
    };
    let launch = || {
        json!({
            "container_id": id(), "command": command(), "container": container(), "resources": resources(),
            "limits": { "cpus": { "value": 1 }, "mem": { "value": "Infinity" } },
            "labels": { "labels": [{ "key": "a", "value": "b" }] }, "attach": { "stdin": true, "output": true },
        })
    };
    let framework =
        || json!({ "id": { "value": "f" }, "name": "f", "user": "no-such-user", "checkpoint": true });
    let task = || {
        json!({
            "task_id": { "value": "t" }, "name": "t", "agent_id": { "value": "" }, "command": command(),
            "container": container(), "resources": refused(), "kill_policy": { "grace_period": { "nanoseconds": 1 } },
            "max_completion_time": { "nanoseconds": 1 },
            "health_check": { "type": "COMMAND", "command": { "value": "true" }, "delay_seconds": 1.0 },
        })
    };
    let executor = || {
        json!({ "executor_id": { "value": "e" }, "type": "CUSTOM", "framework_id": { "value": "f" },
            "command": command(), "resources": refused() })
    };
    match name {
        "LAUNCH_CONTAINER" | "RUN_CONTAINER" => launch(),
        "LAUNCH_NESTED_CONTAINER" | "LAUNCH_NESTED_CONTAINER_SESSION" => {
            json!({ "container_id": id(), "command": command(), "container": container() })
        }
        "KILL_CONTAINER" | "KILL_NESTED_CONTAINER" => {
            json!({ "container_id": id(), "signal": 15, "force": false })
        }
        "KILL_CONTAINERS" => json!({ "container_ids": [id()] }),
        "UPDATE_CONTAINER" => {
            json!({ "container_id": id(), "resources": resources(), "limits": { "cpus": { "value": 1 } } })
        }
        "GET_CONTAINERS" => json!({ "show_nested": true, "show_standalone": true, "show_status": true,
            "show_statistics": true, "container_ids": [id()] }),
        "GET_METRICS" => json!({ "timeout": { "nanoseconds": 1 } }),
        "SET_LOGGING_LEVEL" => json!({ "level": 0, "duration": { "nanoseconds": 1 } }),
        "LIST_FILES" => json!({ "path": "/containers/none" }),
        "READ_FILE" => json!({ "path": "/containers/none/stdout", "offset": 0, "length": 1 }),
        "PRUNE_IMAGES" => json!({ "excluded_images": [image()], "keep_named": true }),
        "SUBSCRIBE" => json!({ "since": { "nanoseconds": 1 }, "until": { "nanoseconds": 1 } }),
        "LAUNCH_TASK" => {
            json!({ "framework_info": framework(), "executor_info": executor(), "task_info": task() })
        }
        "LAUNCH_TASK_GROUP" => json!({ "framework_info": framework(), "executor_info": executor(),
            "task_group": { "tasks": [task()] } }),
        "KILL_TASK" => json!({ "framework_id": { "value": "f" }, "task_id": { "value": "t" },
            "kill_policy": { "grace_period": { "nanoseconds": 1 } } }),
        "SHUTDOWN_EXECUTOR" => json!({ "framework_id": { "value": "f" }, "executor_id": { "value": "e" } }),
        "MESSAGE_EXECUTOR" => {
            json!({ "framework_id": { "value": "f" }, "executor_id": { "value": "e" }, "data": "aGk=" })
        }
        "SUBSCRIBE_STATUS_UPDATES" => json!({ "framework_id": { "value": "f" } }),
        "ACKNOWLEDGE_STATUS_UPDATE" => {
            json!({ "framework_id": { "value": "f" }, "task_id": { "value": "t" }, "uuid": "AAAA" })
        }
        "ATTACH_CONTAINER_INPUT" => json!({ "type": "CONTAINER_ID", "container_id": id() }),
        // The others have an id, or no body.
        _ => json!({ "container_id": id() }),
    }
}

/// Values that a field may have by mistake.
fn strange() -> Vec<Json> {
    let mut deep = json!("x");
    for _ in 0..100 {
        deep = json!({ "value": "x", "parent": deep });
    }
    vec![
        Json::Null,
        json!(true),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!("NaN"),
        json!(""),
        json!(".."),
        json!("a/b\u{0}\u{1b}[2J\n"),
        json!("\u{202e}ü"),
        json!("x".repeat(300)),
        json!("x".repeat(70_000)),
        json!([]),
        json!([[]]),
        json!([null, 1, "a", {}]),
        json!({}),
        json!({ "value": {} }),
        deep,
    ]
}

/// The paths of all values in a body.
fn paths(value: &Json, path: &str, found: &mut Vec<String>) {
    found.push(path.to_owned());
    match value {
        Json::Object(fields) => {
            fields.iter().for_each(|(name, field)| paths(field, &format!("{path}/{name}"), found));
        }
        Json::Array(items) => {
            items.iter().enumerate().for_each(|(at, item)| paths(item, &format!("{path}/{at}"), found));
        }
        _ => {}
    }
}

/// The same without the value at a path.
fn without(body: &Json, path: &str) -> Option<Json> {
    let (parent, name) = path.rsplit_once('/')?;
    let mut body = body.clone();
    body.pointer_mut(parent)?.as_object_mut()?.remove(name)?;
    Some(body)
}

#[test]
fn whatever_is_wrong_with_a_call_it_is_refused_with_a_reason() {
    let mut world = World::posix();
    world.config.image_store = Some(world.directory().join("images"));
    let daemon = Daemon::start(&world);
    let mut client = Client::new(&world);
    let strange = strange();
    for name in Call::TYPES {
        let (field, body) = (name.to_lowercase(), body(name));
        let call = |body: &Json| json!({ "type": name, &field: body }).to_string().into_bytes();
        client.call(&call(&body));
        client.call(json!({ "type": name }).to_string().as_bytes());
        let mut all = Vec::new();
        paths(&body, "", &mut all);
        // What is deep in these is decoded as in others.
        if ["RUN_CONTAINER", "LAUNCH_NESTED_CONTAINER_SESSION", "LAUNCH_TASK_GROUP"].contains(name) {
            all.retain(|path| path.matches('/').count() < 3);
        }
        for path in &all {
            for value in &strange {
                let mut body = body.clone();
                *body.pointer_mut(path).expect("a path") = value.clone();
                client.call(&call(&body));
            }
            if let Some(body) = without(&body, path) {
                client.call(&call(&body));
            }
        }
    }
    assert!(client.answered > 5000, "{}", client.answered);
    finish(&world, &daemon);
}

#[test]
fn what_is_no_call_is_refused_with_a_reason() {
    let world = World::posix();
    let daemon = Daemon::start(&world);
    let mut client = Client::new(&world);
    let deep = ["[".repeat(100_000), "{\"a\":".repeat(100_000)];
    let twice = r#"{"type": "GET_HEALTH", "type": "WAIT_CONTAINER"}"#;
    for text in [
        "",
        " ",
        "{",
        "[]",
        "null",
        "7",
        "\"GET_HEALTH\"",
        "{}",
        r#"{"type": 7}"#,
        r#"{"type": null}"#,
        r#"{"type": "NONE"}"#,
        r#"{"type": "get_health"}"#,
        r#"{"type": "GET_HEALTH"} x"#,
        &deep[0],
        &deep[1],
    ] {
        assert_eq!(client.call(text.as_bytes()), 400, "{text:.80}");
    }
    assert!(client.call(twice.as_bytes()) < 500);
    for bytes in [&b"\xff\xfe{}"[..], b"{\"type\": \"\xff\"}", b"\0", b"\x1f\x8b\x08"] {
        assert_eq!(client.call(bytes), 400, "{bytes:?}");
    }
    // Types of Mesos that this agent does not have.
    for name in ["ADD_RESOURCE_PROVIDER_CONFIG", "MARK_RESOURCE_PROVIDER_GONE"] {
        let body = json!({ "type": name }).to_string();
        let (status, text) = client.request("POST", "/api/v1", &content(JSON), body.as_bytes());
        assert!(status == 501 && text.contains(name), "{status} {text}");
    }
    // Messages that are none, and that contradict themselves.
    let mut seeds = fastrand::Rng::with_seed(8);
    for length in (0..200).chain([1000, 10_000]) {
        let mut bytes = vec![0; length];
        seeds.fill(&mut bytes);
        let (status, text) = client.request("POST", "/api/v1", &content(PROTOBUF), &bytes);
        assert!((400..500).contains(&status) && !text.is_empty(), "{status} {text} for {bytes:?}");
    }
    let health = br#"{"type": "GET_HEALTH"}"#;
    for (lines, expected) in [
        ("", 400),
        ("Content-Type: text/plain\r\n", 415),
        ("Content-Type: application/xml\r\n", 415),
        ("Content-Type: application/x-protobuf\r\n", 400),
        ("Content-Type: application/recordio\r\n", 400),
        ("Content-Type: \u{fc}\r\n", 415),
        ("Content-Type: application/json\r\nAccept: text/html\r\n", 406),
        ("Content-Type: application/json\r\nAccept: application/json;q=0\r\n", 406),
        ("Content-Type: application/json; charset=utf-8\r\n", 200),
        ("Content-Type: application/json\r\nAccept: */*\r\n", 200),
    ] {
        let (status, text) = client.request("POST", "/api/v1", lines, health);
        assert_eq!(status, expected, "{lines:?}: {text}");
    }
    finish(&world, &daemon);
}

#[test]
fn other_methods_unknown_paths_and_wrong_queries_are_refused() {
    let world = World::posix();
    let daemon = Daemon::start(&world);
    let mut client = Client::new(&world);
    for path in ["/api/v1", "/slave(1)/api/v1", "/api/v1/operator"] {
        for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            let (status, _) = client.request(method, path, &content(JSON), b"{}");
            assert_eq!(status, 405, "{method} {path}");
        }
    }
    for path in [
        "/health",
        "/version",
        "/flags",
        "/state",
        "/containers",
        "/monitor/statistics",
        "/files/browse",
        "/files/read",
        "/files/download",
        "/files/debug",
        "/containerizer/debug",
        "/metrics",
        "/metrics/snapshot",
    ] {
        for method in ["POST", "PUT", "DELETE", "PATCH", "BREW"] {
            let (status, _) = client.request(method, path, "", b"");
            assert_eq!(status, 405, "{method} {path}");
        }
    }
    let long = "x".repeat(5000);
    for path in ["/", "/api", "/api/v1/x", "/api/v2", "/%00", "/../etc/passwd", "/files", "/slave(2)/state"] {
        for method in ["GET", "POST"] {
            assert_eq!(client.request(method, path, &content(JSON), b"{}").0, 404, "{method} {path}");
        }
    }
    let queries = [
        format!("/containers?container_id={long}"),
        "/containers?container_id=a/b".to_owned(),
        "/containers?container_id=".to_owned(),
        "/containers?container_id=%ff".to_owned(),
        "/files/browse".to_owned(),
        format!("/files/browse?path=/containers/{long}"),
        "/files/browse?path=/containers/none".to_owned(),
        "/files/browse?path=%00".to_owned(),
        "/files/read?path=/containers/none/stdout&offset=-2".to_owned(),
        "/files/read?path=/containers/none/stdout&offset=x&length=y".to_owned(),
        format!("/files/read?path=/containers/{long}/stdout&offset=0"),
        "/files/read?path=/containers/none/stdout&offset=99999999999999999999".to_owned(),
        format!("/files/download?path=/{long}"),
        "/logging/toggle?level=x&duration=1mins".to_owned(),
        "/logging/toggle?level=1&duration=99999999999999999999weeks".to_owned(),
    ];
    for path in &queries {
        let (status, text) = client.request("GET", path, "", b"");
        let is_list = path.starts_with("/containers") && status == 200;
        assert!(is_list || (400..500).contains(&status), "{status} {text} for {path:.80}");
    }
    // No HTTP, and heads that are too long: whatever the status is, there is one.
    let many = (0..2000).map(|number| format!("X-{number}: y\r\n")).collect::<String>();
    for request in [
        "GARBAGE\r\n\r\n".to_owned(),
        "GET /health HTTP/9.9\r\nHost: a\r\n\r\n".to_owned(),
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(1 << 20)),
        format!("GET /health HTTP/1.1\r\nHost: a\r\n{many}\r\n"),
        "POST /api/v1 HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n".to_owned(),
        "POST /api/v1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_owned(),
    ] {
        let mut fresh = Client::new(&world);
        let (status, _) = fresh.raw(request.as_bytes(), false);
        assert!((400..500).contains(&status) || status == 505, "{status} for {request:.80}");
    }
    finish(&world, &daemon);
}

/// The agent works, nothing was launched, and nothing has panicked.
fn finish(world: &World, daemon: &Daemon) {
    assert!(daemon.health().healthy);
    let log = daemon.log();
    assert!(!log.contains("panicked") && !log.contains(" ERROR "), "{log}");
    assert!(daemon.list().is_empty(), "{:?}", daemon.list());
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
