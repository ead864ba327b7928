//! An executor for tests: the published API, and nothing of the agent's code.
//!
//! What it does with a task is the name of the task:
//!
//! | Name | |
//! |---|---|
//! | `finish` | `TASK_RUNNING`, then `TASK_FINISHED` |
//! | `run` | `TASK_RUNNING`; `TASK_KILLED` when it is killed |
//! | `stubborn` | as `run`, but ignores KILL |
//! | `twice` | `TASK_FINISHED`, then `TASK_FAILED` with another id |
//! | `exit` | `TASK_RUNNING`, then exits with 3 |
//! | `silent` | nothing |
//!
//! `TEST_EXECUTOR=deaf` never subscribes; `stubborn` ignores SHUTDOWN. A line for each event is written to standard output.

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::exit;
use std::thread::sleep;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use serde_json::{Value as Json, json};

struct Executor {
    socket: String,
    token: String,
    framework: Json,
    executor: Json,
    checkpoint: bool,
    recovery_timeout: Duration,
    stubborn: bool,
    /// Tasks of which no update was acknowledged.
    tasks: BTreeMap<String, Json>,
    /// Updates that were not acknowledged.
    updates: Vec<Json>,
}

fn main() {
    let mode = env::var("TEST_EXECUTOR").unwrap_or_default();
    if mode == "deaf" {
        loop {
            sleep(Duration::from_secs(3600));
        }
    }
    let mut executor = Executor {
        socket: variable("MESOS_DOMAIN_SOCKET"),
        token: variable("MESOS_EXECUTOR_AUTHENTICATION_TOKEN"),
        framework: json!({"value": variable("MESOS_FRAMEWORK_ID")}),
        executor: json!({"value": variable("MESOS_EXECUTOR_ID")}),
        checkpoint: variable("MESOS_CHECKPOINT") == "1",
        recovery_timeout: env::var("MESOS_RECOVERY_TIMEOUT").map_or(Duration::ZERO, |text| duration(&text)),
        stubborn: mode == "stubborn",
        tasks: BTreeMap::new(),
        updates: Vec::new(),
    };
    assert_eq!(variable("MESOS_DIRECTORY"), variable("MESOS_SANDBOX"));
    let program = env::current_exe().unwrap_or_default();
    for directory in [Path::new(&executor.socket).parent(), program.parent()] {
        let directory = directory.filter(|directory| directory.starts_with("/mnt/mesos/executor"));
        if directory.is_some_and(|directory| File::create(directory.join("planted")).is_ok()) {
            say("writable");
        }
    }
    let mut lost = Instant::now();
    loop {
        match executor.subscription() {
            Ok(()) => lost = Instant::now(),
            Err(error) => say(&format!("error {error}")),
        }
        if !executor.checkpoint || lost.elapsed() > executor.recovery_timeout {
            say("lost");
            exit(1);
        }
        sleep(Duration::from_millis(50));
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| {
        say(&format!("no {name}"));
        exit(2)
    })
}

/// `15mins`, `5secs`, `1500ms`.
fn duration(text: &str) -> Duration {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number = number.parse().unwrap_or(0);
    match unit {
        "ms" => Duration::from_millis(number),
        "secs" => Duration::from_secs(number),
        _ => Duration::from_secs(number * 60),
    }
}

fn say(line: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn uuid() -> String {
    let mut bytes = [0; 16];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes)).expect("random numbers");
    BASE64.encode(&bytes)
}

impl Executor {
    fn request(&self, body: &Json) -> io::Result<(UnixStream, u16)> {
        let mut stream = UnixStream::connect(&self.socket)?;
        let body = body.to_string();
        let head = format!(
            "POST /api/v1/executor HTTP/1.1\r\nHost: agent\r\nContent-Type: application/json\r\n\
             Accept: application/json\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n",
            self.token,
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        // Byte by byte, as the stream goes on after the head.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            head.push(byte[0]);
        }
        let status = std::str::from_utf8(&head).unwrap_or_default().split(' ').nth(1).unwrap_or_default();
        let status = status.parse().map_err(|_| io::Error::other("no status"))?;
        Ok((stream, status))
    }

    /// Subscribes, and handles events until the stream ends.
    fn subscription(&mut self) -> io::Result<()> {
        let tasks: Vec<&Json> = self.tasks.values().collect();
        let updates: Vec<Json> = self.updates.iter().map(|status| json!({ "status": status })).collect();
        let call = json!({
            "type": "SUBSCRIBE", "framework_id": self.framework, "executor_id": self.executor,
            "subscribe": {"unacknowledged_tasks": tasks, "unacknowledged_updates": updates},
        });
        let (stream, status) = self.request(&call)?;
        if status == 401 {
            say("ended");
            exit(1);
        }
        if status != 200 {
            return Err(io::Error::other(format!("status {status}")));
        }
        let mut records = Records { chunks: Chunks { stream: BufReader::new(stream), left: 0 } };
        while let Some(event) = records.next()? {
            self.handle(&event);
        }
        Ok(())
    }

    fn handle(&mut self, event: &Json) {
        let kind = event["type"].as_str().unwrap_or_default();
        match kind {
            "LAUNCH" => self.launch(&event["launch"]["task"]),
            "LAUNCH_GROUP" => {
                say("LAUNCH_GROUP");
                for task in event["launch_group"]["task_group"]["tasks"].as_array().into_iter().flatten() {
                    self.launch(task);
                }
            }
            "KILL" => {
                let id = event["kill"]["task_id"]["value"].as_str().unwrap_or_default().to_owned();
                say(&format!("KILL {id} {}", event["kill"]["kill_policy"]));
                if !id.starts_with("stubborn") {
                    self.update(&id, "TASK_KILLED");
                }
            }
            "ACKNOWLEDGED" => {
                let acknowledged = &event["acknowledged"];
                self.updates.retain(|status| status["uuid"] != acknowledged["uuid"]);
                self.tasks.remove(acknowledged["task_id"]["value"].as_str().unwrap_or_default());
                say(&format!("ACKNOWLEDGED {}", acknowledged["task_id"]["value"]));
            }
            "SHUTDOWN" => {
                say("SHUTDOWN");
                if !self.stubborn {
                    exit(0);
                }
            }
            "MESSAGE" => {
                say("MESSAGE");
                let call = json!({
                    "type": "MESSAGE", "framework_id": self.framework, "executor_id": self.executor,
                    "message": {"data": event["message"]["data"]},
                });
                let _ = self.request(&call);
            }
            other => say(other),
        }
    }

    fn launch(&mut self, task: &Json) {
        let id = task["task_id"]["value"].as_str().unwrap_or_default().to_owned();
        say(&format!("LAUNCH {id}"));
        self.tasks.insert(id.clone(), task.clone());
        match task["name"].as_str().unwrap_or_default() {
            "finish" => {
                self.update(&id, "TASK_RUNNING");
                self.update(&id, "TASK_FINISHED");
            }
            "twice" => {
                self.update(&id, "TASK_FINISHED");
                self.update(&id, "TASK_FAILED");
            }
            "exit" => {
                self.update(&id, "TASK_RUNNING");
                exit(3);
            }
            "silent" => {}
            _ => self.update(&id, "TASK_RUNNING"),
        }
    }

    /// Sends an update. One that is not accepted is sent with the next subscription.
    fn update(&mut self, task: &str, state: &str) {
        let status = json!({
            "task_id": {"value": task}, "state": state, "uuid": uuid(), "source": "SOURCE_EXECUTOR",
            "data": "aGk=", "message": format!("{task} is {state}"),
        });
        self.updates.push(status.clone());
        let call = json!({
            "type": "UPDATE", "framework_id": self.framework, "executor_id": self.executor,
            "update": {"status": status},
        });
        match self.request(&call) {
            Ok((_, 202)) => {}
            Ok((_, status)) => say(&format!("refused {status}")),
            Err(error) => say(&format!("unsent {error}")),
        }
    }
}

/// RecordIO.
struct Records {
    chunks: Chunks,
}

impl Records {
    fn next(&mut self) -> io::Result<Option<Json>> {
        let mut length = String::new();
        loop {
            let mut byte = [0];
            if self.chunks.read(&mut byte)? == 0 {
                return Ok(None);
            }
            if byte[0] == b'\n' {
                break;
            }
            length.push(char::from(byte[0]));
        }
        let length: usize = length.parse().map_err(|_| io::Error::other("no length"))?;
        let mut record = vec![0; length];
        self.chunks.read_exact(&mut record)?;
        serde_json::from_slice(&record).map(Some).map_err(io::Error::other)
    }
}

/// The chunks of a response.
struct Chunks {
    stream: BufReader<UnixStream>,
    left: usize,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Ok(0);
            }
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            self.left = usize::from_str_radix(line, 16).map_err(io::Error::other)?;
            if self.left == 0 {
                return Ok(0);
            }
        }
        let end = buffer.len().min(self.left);
        let read = self.stream.read(&mut buffer[..end])?;
        self.left -= read;
        Ok(read)
    }
}
