//! The agent's end of the connections of an executor.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// How long anything may take before a test fails.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// The token that executors have.
pub(crate) const TOKEN: &str = "a-token";

/// A socket that passes requests on to the test.
pub(crate) struct Peer {
    path: PathBuf,
    requests: Receiver<Request>,
    sender: Sender<Request>,
}

/// A request that waits for its answer.
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) body: Value,
    stream: UnixStream,
}

impl Peer {
    /// Listens at a path.
    pub(crate) fn listen(path: &Path) -> Self {
        let (sender, requests) = channel();
        let peer = Self { path: path.to_owned(), requests, sender };
        peer.listen_again();
        peer
    }

    /// Replaces the socket by a new one.
    pub(crate) fn listen_again(&self) {
        drop(fs::remove_file(&self.path));
        let listener = UnixListener::bind(&self.path).unwrap();
        let sender = self.sender.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), sender) = (stream, sender.clone()) else { return };
                thread::spawn(move || {
                    if let Some(request) = Request::read(stream) {
                        drop(sender.send(request));
                    }
                });
            }
        });
    }

    /// Removes the socket, so that nobody can connect.
    pub(crate) fn stop_listening(&self) {
        fs::remove_file(&self.path).unwrap();
    }

    /// The next request.
    #[track_caller]
    pub(crate) fn request(&self) -> Request {
        self.requests.recv_timeout(TIMEOUT).expect("a request")
    }

    /// Waits for a subscription and accepts it.
    #[track_caller]
    pub(crate) fn accept(&self) -> Subscription {
        let request = self.request();
        assert_eq!(request.kind(), "SUBSCRIBE", "{}", request.body);
        Subscription::accept(request)
    }

    /// Waits for a subscription and accepts it. Updates that arrive before it get no answer, as those that an agent has
    /// received when it ends.
    #[track_caller]
    pub(crate) fn accept_after_lost_updates(&self) -> Subscription {
        loop {
            let request = self.request();
            if request.kind() == "SUBSCRIBE" {
                return Subscription::accept(request);
            }
            assert_eq!(request.kind(), "UPDATE", "{}", request.body);
        }
    }

    /// Waits for an update, stores it and acknowledges it.
    #[track_caller]
    pub(crate) fn update(&self, subscription: &mut Subscription) -> Value {
        let status = self.unacknowledged_update();
        subscription.acknowledge(&status);
        status
    }

    /// Waits for an update and stores it.
    #[track_caller]
    pub(crate) fn unacknowledged_update(&self) -> Value {
        let request = self.request();
        assert_eq!(request.kind(), "UPDATE", "{}", request.body);
        let status = request.body["update"]["status"].clone();
        assert_eq!(status["source"], "SOURCE_EXECUTOR");
        assert_eq!(status["executor_id"]["value"], "e");
        assert_eq!(status["uuid"].as_str().map(str::len), Some(24), "16 bytes in base64");
        assert!(status["timestamp"].as_f64().is_some_and(|seconds| seconds > 1e9));
        request.answer(202, "");
        status
    }

    /// Waits for updates of these states.
    #[track_caller]
    pub(crate) fn states(&self, subscription: &mut Subscription, states: &[&str]) -> Value {
        let mut last = Value::Null;
        for state in states {
            last = self.update(subscription);
            assert_eq!(last["state"], *state, "{last}");
        }
        last
    }
}

impl Request {
    fn read(mut stream: UnixStream) -> Option<Self> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let length = stream.read(&mut buffer).ok().filter(|length| *length > 0)?;
            bytes.extend_from_slice(&buffer[..length]);
            let text = String::from_utf8_lossy(&bytes);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            if body.len() < header("Content-Length:").unwrap().parse().unwrap() {
                continue;
            }
            assert_eq!(header("Authorization:"), Some(format!("Bearer {TOKEN}").as_str()));
            assert_eq!(header("Content-Type:"), Some("application/json"));
            let path = head.split(' ').nth(1).unwrap().to_owned();
            return Some(Self { path, body: serde_json::from_str(body).unwrap(), stream });
        }
    }

    /// The type of the call.
    pub(crate) fn kind(&self) -> &str {
        self.body["type"].as_str().unwrap()
    }

    /// The body of the call.
    pub(crate) fn call(&self) -> &Value {
        &self.body[self.kind().to_lowercase()]
    }

    /// Answers it, and closes the connection.
    pub(crate) fn answer(mut self, status: u16, body: &str) {
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
        // The executor may have stopped waiting.
        drop(self.stream.write_all((head + body).as_bytes()));
    }

    /// Begins a response whose body has no end yet.
    pub(crate) fn begin(mut self) -> UnixStream {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        self.stream.write_all(head.as_bytes()).unwrap();
        self.stream
    }

    /// Waits until the executor has closed the connection.
    pub(crate) fn wait_until_closed(mut self) {
        self.stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        assert_eq!(self.stream.read(&mut [0]).unwrap(), 0);
    }
}

/// A subscription that was accepted.
pub(crate) struct Subscription {
    stream: UnixStream,
    /// The call.
    pub(crate) call: Value,
}

impl Subscription {
    fn accept(request: Request) -> Self {
        assert_eq!(request.path, "/api/v1/executor");
        assert_eq!(request.body["framework_id"]["value"], "f");
        assert_eq!(request.body["executor_id"]["value"], "e");
        let call = request.call().clone();
        let mut subscription = Self { stream: request.begin(), call };
        subscription.send(&json!({"type": "SUBSCRIBED", "subscribed": {
            "executor_info": {"executor_id": {"value": "e"}},
            "framework_info": {"name": "n", "capabilities": [{"type": "TASK_KILLING_STATE"}]},
            "agent_info": {"hostname": "h"},
            "container_id": {"value": "own"},
        }}));
        subscription
    }

    /// Sends an event.
    pub(crate) fn send(&mut self, event: &Value) {
        let record = event.to_string();
        self.send_bytes(format!("{}\n{record}", record.len()).as_bytes());
    }

    /// Sends a chunk with any content.
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        // An executor that has finished is gone.
        drop(self.stream.write_all(&chunk));
    }

    /// Launches a task.
    pub(crate) fn launch(&mut self, task: &Value) {
        self.send(&json!({"type": "LAUNCH", "launch": {"task": task}}));
    }

    /// Kills a task after a grace period.
    pub(crate) fn kill(&mut self, task: &str, grace: Duration) {
        self.send(&json!({"type": "KILL", "kill": {
            "task_id": {"value": task},
            "kill_policy": {"grace_period": {"nanoseconds": grace.as_nanos() as u64}},
        }}));
    }

    /// Acknowledges an update.
    pub(crate) fn acknowledge(&mut self, status: &Value) {
        self.send(&json!({"type": "ACKNOWLEDGED", "acknowledged": {
            "task_id": status["task_id"], "uuid": status["uuid"],
        }}));
    }
}
