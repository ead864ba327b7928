//! The agent as operators run it: a process `cofferdam agent --config …`, called over its socket.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use cofferdam::api::operator::types::{
    self as wire, Call, Container, InspectedContainer, Response, Scalar, Termination,
};
use cofferdam_core::model::{ContainerId, Request};
use cofferdam_linux::process::{Process, Stat, children_of};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value as Json;

use crate::injector::Injector;
use crate::paths;
use crate::sockets::is_unnamed_socket;
use crate::world::World;

/// How long anything may take before the test fails: emulated machines beside builds are slow.
pub const TIMEOUT: Duration = Duration::from_secs(180);

/// Name of the process of a keeper.
const KEEPER: &str = "cofferdam-keep";

/// An agent in its own process. On drop it is killed, and its containers are not.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

/// Why a call failed.
#[derive(Debug)]
pub enum CallError {
    /// The agent returned an error status.
    Status(u16, String),
    /// The connection failed or was closed.
    Disconnected(io::Error),
}

impl CallError {
    /// Whether the container is unknown.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Status(404, _))
    }

    /// Whether the connection failed or was closed.
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::Disconnected(_))
    }
}

impl Daemon {
    /// Starts an agent in a world, and waits until it is ready.
    ///
    /// # Panics
    /// With the agent's log, if it ends instead.
    pub fn start(world: &World) -> Self {
        let (daemon, ready) = Self::prepare(world, |mut command| command.spawn());
        daemon.wait_until(&ready);
        daemon
    }

    /// Starts an agent that may have only so many descriptors, and waits until it is ready.
    ///
    /// # Panics
    /// With the agent's log, if it ends instead.
    pub fn start_with_descriptors(world: &World, limit: u64) -> Self {
        Self::start_after(world, &format!("ulimit -n {limit}"))
    }

    /// Starts an agent with what a command of a shell passes on, such as a umask, and waits until it is ready.
    ///
    /// # Panics
    /// With the agent's log, if it ends instead.
    pub fn start_after(world: &World, line: &str) -> Self {
        let (daemon, ready) = Self::prepare(world, |command| {
            // A closure between fork and exec would need `unsafe`.
            let mut shell = Command::new("/bin/sh");
            shell.arg("-c").arg(format!("{line}; exec \"$0\" \"$@\""));
            shell.arg(command.get_program()).args(command.get_args());
            for (name, value) in command.get_envs() {
                shell.env(name, value.unwrap_or_default());
            }
            shell.stdin(Stdio::null()).stdout(Stdio::null());
            shell.stderr(File::options().append(true).open(world.directory().join("agent.log"))?);
            shell.spawn()
        });
        daemon.wait_until(&ready);
        daemon
    }

    /// Starts an agent in a world, and waits until it is ready or has ended. Returns whether it is ready.
    pub fn try_start(world: &World) -> (Self, bool) {
        let (daemon, ready) = Self::prepare(world, |mut command| command.spawn());
        let serves = daemon.serves(&ready);
        (daemon, serves)
    }

    /// Starts an agent with a fault injector, and waits until it is ready.
    ///
    /// # Panics
    /// With the agent's log, if it ends instead.
    pub fn start_with_injector(world: &World) -> (Self, Injector) {
        let mut injector = None;
        let (daemon, ready) = Self::prepare(world, |command| {
            let (child, started) = Injector::spawn(command)?;
            injector = Some(started);
            Ok(child)
        });
        daemon.wait_until(&ready);
        (daemon, injector.expect("it was just created"))
    }

    /// Starts an agent with a fault injector that `arm` arms at once. Returns whether the agent became ready.
    pub fn try_start_armed(world: &World, arm: impl FnOnce(&Injector)) -> (Self, Injector, bool) {
        let mut injector = None;
        let (daemon, ready) = Self::prepare(world, |command| {
            let (child, started) = Injector::spawn(command)?;
            arm(&started);
            injector = Some(started);
            Ok(child)
        });
        let serves = daemon.serves(&ready);
        (daemon, injector.expect("it was just created"), serves)
    }

    /// Starts an agent by another command that has the same effect, such as a client of a container engine, and waits until it
    /// is ready or has ended. Returns whether it is ready. `spawn` is given the agent's command.
    pub fn try_start_by(world: &World, spawn: impl FnOnce(Command) -> io::Result<Child>) -> (Self, bool) {
        let (daemon, ready) = Self::prepare(world, spawn);
        let serves = daemon.serves(&ready);
        (daemon, serves)
    }

    fn prepare(world: &World, spawn: impl FnOnce(Command) -> io::Result<Child>) -> (Self, UnixDatagram) {
        let config = world.write_config();
        let notify = world.directory().join("notify.sock");
        drop(fs::remove_file(&notify));
        let ready = UnixDatagram::bind(&notify).expect("a socket");
        let log = world.directory().join("agent.log");
        let log_file = File::options().append(true).create(true).open(&log).expect("a log");
        let mut command = Command::new(paths::build().join("cofferdam"));
        command.arg("agent").arg("--config").arg(config).env("NOTIFY_SOCKET", &notify);
        // Registries of tests are on loopback.
        command.env("NO_PROXY", "*");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log_file);
        let child = spawn(command).expect("the agent's program starts");
        (Self { child, socket: world.socket(), log }, ready)
    }

    fn wait_until(&self, ready: &UnixDatagram) {
        assert!(self.serves(ready), "the agent ended before it was ready:\n{}", self.log());
    }

    /// Waits until it reports that it is ready, or ends.
    fn serves(&self, ready: &UnixDatagram) -> bool {
        let process = self.process();
        let mut waits = [PollFd::new(ready, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
        let timeout = Timespec { tv_sec: TIMEOUT.as_secs() as i64, tv_nsec: 0 };
        let found = poll(&mut waits, Some(&timeout)).expect("both can be polled");
        assert!(found > 0, "the agent is neither ready nor ends:\n{}", self.log());
        waits[0].revents().contains(PollFlags::IN)
    }

    /// Its process.
    pub fn process(&self) -> Process {
        Process::open_any(self.pid()).expect("a child that was not reaped")
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// Pids of its children, without its keeper.
    ///
    /// # Panics
    /// If they cannot be listed.
    pub fn children(&self) -> Vec<i32> {
        let mut children = children_of(self.pid()).expect("children");
        children.retain(|pid| Stat::read(*pid).is_ok_and(|stat| stat.name != KEEPER));
        children
    }

    /// The keeper that it has started.
    ///
    /// # Panics
    /// If there is not exactly one.
    pub fn keeper(&self) -> Process {
        match <[Process; 1]>::try_from(keepers(self.pid())) {
            Ok([keeper]) => keeper,
            Err(keepers) => panic!("not one keeper: {keepers:?}\n{}", self.log()),
        }
    }

    /// The body of `GET /health`.
    ///
    /// # Panics
    /// If the call fails.
    pub fn health(&self) -> wire::Health {
        let request = "GET /health HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n";
        let (status, body) = exchange(&self.socket, request.as_bytes()).expect("a response");
        assert_eq!(status, 200);
        serde_json::from_slice(&body).expect("a valid body")
    }

    /// Its open descriptors, except for the sockets of its API, which depend on the clients, and for the links to the
    /// namespaces of each thread, which depend on how many threads its work has needed.
    ///
    /// # Panics
    /// If it has ended.
    pub fn descriptors(&self) -> Vec<PathBuf> {
        let listing = fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("a running process");
        let links = listing.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        let is_api = |link: &PathBuf| {
            link.to_string_lossy().starts_with("socket:") && !is_unnamed_socket(self.pid(), link)
        };
        let mut namespaces = HashSet::new();
        let mut is_of_thread = |link: &PathBuf| {
            let directory = link.parent().filter(|directory| directory.ends_with("ns"));
            directory.and_then(Path::parent).is_some_and(|thread| {
                thread.parent() == Some(Path::new(&format!("/proc/{}/task", self.pid())))
                    && thread.exists()
                    && namespaces.insert(link.clone())
            })
        };
        links.filter(|link| !is_api(link) && !is_of_thread(link)).collect()
    }

    /// Leaves it only so many descriptors.
    ///
    /// # Panics
    /// If it has ended.
    pub fn limit_descriptors(&self, free: u64) {
        limit_descriptors(&self.process(), free);
    }

    /// The log of this agent and of earlier ones in this world.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends SIGKILL and waits until it has ended.
    pub fn kill(self) {
        self.end(Signal::SIGKILL);
    }

    /// Sends SIGTERM and waits until it has ended.
    pub fn terminate(self) -> ExitStatus {
        self.end(Signal::SIGTERM)
    }

    fn end(mut self, signal: Signal) -> ExitStatus {
        self.process().signal(signal as i32).expect("a child that was not reaped");
        self.wait_ended()
    }

    /// Waits until it has ended.
    pub fn wait_ended(&mut self) -> ExitStatus {
        let ended = self.process().wait(Some(TIMEOUT)).expect("a process can be polled");
        assert!(ended, "the agent does not end:\n{}", self.log());
        self.child.wait().expect("a child")
    }

    /// Launches a container.
    ///
    /// # Errors
    /// If the call fails.
    pub fn launch(&self, request: &Request) -> Result<(), CallError> {
        let call = Call::LaunchContainer(Box::new(cofferdam::api::operator::encode_launch(request)));
        self.send(&call).map(drop)
    }

    /// Waits for the end of a container.
    ///
    /// # Errors
    /// If the call fails.
    pub fn wait(&self, id: &ContainerId) -> Result<Termination, CallError> {
        match self.ask(&Call::WaitContainer(wire::WaitContainer { container_id: wire_id(id) }))? {
            Response::WaitContainer(termination) => Ok(termination),
            other => panic!("an unexpected response: {other:?}"),
        }
    }

    /// Sends a signal to a container; SIGKILL ends it.
    ///
    /// # Errors
    /// If the call fails.
    pub fn signal(&self, id: &ContainerId, signal: Signal) -> Result<(), CallError> {
        let signal = Some(signal as i32);
        let call = wire::KillContainer { container_id: wire_id(id), signal, force: None };
        self.send(&Call::KillContainer(call)).map(drop)
    }

    /// Ends a container without waiting for plugins that do not clean up.
    ///
    /// # Errors
    /// If the call fails.
    pub fn force(&self, id: &ContainerId) -> Result<(), CallError> {
        let call = wire::KillContainer { container_id: wire_id(id), signal: None, force: Some(true) };
        self.send(&Call::KillContainer(call)).map(drop)
    }

    /// Ends a container and waits until it has.
    ///
    /// # Errors
    /// If the call fails.
    pub fn destroy(&self, id: &ContainerId) -> Result<Termination, CallError> {
        self.signal(id, Signal::SIGKILL)?;
        self.wait(id)
    }

    /// Removes a container that has ended.
    ///
    /// # Errors
    /// If the call fails.
    pub fn remove(&self, id: &ContainerId) -> Result<(), CallError> {
        let call = wire::RemoveContainer { container_id: wire_id(id) };
        self.send(&Call::RemoveContainer(call)).map(drop)
    }

    /// Updates the resources of a container.
    ///
    /// # Errors
    /// If the call fails.
    pub fn update(&self, id: &ContainerId, resources: &[(&str, f64)]) -> Result<(), CallError> {
        let resource = |&(name, value): &(&str, f64)| wire::Resource {
            name: name.to_owned(),
            kind: wire::ResourceKind::Scalar,
            scalar: Some(Scalar { value }),
            ..wire::Resource::default()
        };
        let call = wire::UpdateContainer {
            container_id: wire_id(id),
            resources: resources.iter().map(resource).collect(),
            ..wire::UpdateContainer::default()
        };
        self.send(&Call::UpdateContainer(call)).map(drop)
    }

    /// Inspects a container; `None` if it is unknown.
    ///
    /// # Panics
    /// If the call fails otherwise.
    pub fn inspect(&self, id: &ContainerId) -> Option<InspectedContainer> {
        let call = Call::InspectContainer(wire::InspectContainer { container_id: wire_id(id) });
        match self.ask(&call) {
            Ok(Response::InspectContainer(inspected)) => Some(*inspected),
            Err(error) if error.is_unknown() => None,
            other => panic!("cannot inspect `{id}`: {other:?}\n{}", self.log()),
        }
    }

    /// All containers.
    ///
    /// # Panics
    /// If the call fails.
    pub fn list(&self) -> Vec<Container> {
        let all = wire::GetContainers {
            show_nested: Some(true),
            show_standalone: Some(true),
            ..wire::GetContainers::default()
        };
        match self.ask(&Call::GetContainers(all)) {
            Ok(Response::GetContainers(containers)) => containers.containers,
            other => panic!("no list: {other:?}\n{}", self.log()),
        }
    }

    /// Makes a call in JSON, and returns the body of its response.
    ///
    /// # Errors
    /// If the call fails.
    ///
    /// # Panics
    /// If the response is not JSON.
    pub fn call(&self, call: &Json) -> Result<Json, CallError> {
        let (status, body) =
            post(&self.socket, call.to_string().as_bytes()).map_err(CallError::Disconnected)?;
        if !(200..300).contains(&status) {
            return Err(CallError::Status(status, String::from_utf8_lossy(&body).into_owned()));
        }
        if body.is_empty() {
            return Ok(Json::Null);
        }
        let mut response: Json = serde_json::from_slice(&body).expect("a JSON body");
        let field = response["type"].as_str().unwrap_or_default().to_lowercase();
        Ok(response[field].take())
    }

    /// The JSON that a GET endpoint returns.
    ///
    /// # Panics
    /// If the call fails.
    pub fn get(&self, path: &str) -> Json {
        let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
        let (status, body) = exchange(&self.socket, request.as_bytes()).expect("a response");
        assert_eq!(status, 200, "{path}");
        serde_json::from_slice(&body).expect("a JSON body")
    }

    /// Subscribes to the status updates of tasks.
    ///
    /// # Panics
    /// If that fails.
    pub fn updates(&self) -> Updates {
        self.try_updates().unwrap_or_else(|| panic!("no stream of updates\n{}", self.log()))
    }

    /// Subscribes to the status updates of tasks; `None` if the agent ends.
    pub fn try_updates(&self) -> Option<Updates> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(TIMEOUT)).ok()?;
        let body = r#"{"type": "SUBSCRIBE_STATUS_UPDATES"}"#;
        let head = format!(
            "POST /api/v1 HTTP/1.1\r\nHost: agent\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        if !line.contains(" 200 ") {
            return None;
        }
        while !line.trim().is_empty() {
            line.clear();
            stream.read_line(&mut line).ok()?;
        }
        let mut updates = Updates { stream, received: Vec::new() };
        (updates.next()?["type"] == "SUBSCRIBED").then_some(updates)
    }

    fn ask(&self, call: &Call) -> Result<Response, CallError> {
        let body = self.send(call)?;
        Ok(Response::from_json(&body).expect("a valid response"))
    }

    fn send(&self, call: &Call) -> Result<Vec<u8>, CallError> {
        let body = serde_json::to_vec(call).expect("a call can be encoded");
        let (status, body) = post(&self.socket, &body).map_err(CallError::Disconnected)?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        Err(CallError::Status(status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// A stream of status updates.
#[derive(Debug)]
pub struct Updates {
    stream: BufReader<UnixStream>,
    received: Vec<u8>,
}

/// The messages that are no heartbeats. Panics if none arrives in time, or it is not a message.
impl Iterator for Updates {
    type Item = Json;

    fn next(&mut self) -> Option<Json> {
        loop {
            if let Some(record) = take_record(&mut self.received).expect("records") {
                let message: Json = serde_json::from_slice(&record).expect("a message");
                if message["type"] != "HEARTBEAT" {
                    return Some(message);
                }
                continue;
            }
            let mut length = String::new();
            // The end of a chunk, or the length of the next one.
            if self.stream.read_line(&mut length).unwrap_or(0) == 0 {
                return None;
            }
            let length = length.trim();
            if length.is_empty() {
                continue;
            }
            let length = usize::from_str_radix(length, 16).expect("the length of a chunk");
            let mut chunk = vec![0; length];
            if length == 0 || self.stream.read_exact(&mut chunk).is_err() {
                return None;
            }
            self.received.extend(chunk);
        }
    }
}

/// Takes a RecordIO record off the front.
fn take_record(received: &mut Vec<u8>) -> Result<Option<Vec<u8>>, std::num::ParseIntError> {
    let Some(digits) = received.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let length: usize = String::from_utf8_lossy(&received[..digits]).parse()?;
    let end = digits + 1 + length;
    if received.len() < end {
        return Ok(None);
    }
    let record = received[digits + 1..end].to_vec();
    received.drain(..end);
    Ok(Some(record))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails if it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn wire_id(id: &ContainerId) -> wire::ContainerId {
    let parent = id.parent().map(|parent| Box::new(wire_id(&parent)));
    wire::ContainerId { value: id.value().to_owned(), parent }
}

/// The keepers that an agent has started and that have not ended.
pub(crate) fn keepers(agent: i32) -> Vec<Process> {
    let mut children = children_of(agent).unwrap_or_default();
    children.retain(|pid| Stat::read(*pid).is_ok_and(|stat| stat.name == KEEPER && stat.state != 'Z'));
    children.into_iter().filter_map(|pid| Process::open_any(pid).ok()).collect()
}

/// Makes a call on a new connection. Returns the status and the body of the response.
fn post(socket: &Path, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    let head = format!(
        "POST /api/v1 HTTP/1.1\r\nHost: agent\r\nConnection: close\r\nAccept: application/json\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    exchange(socket, &[head.as_bytes(), body].concat())
}

/// Sends one request on a new connection. Returns the status and the body of the response.
fn exchange(socket: &Path, request: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let head = end.and_then(|end| std::str::from_utf8(&answer[..end]).ok());
    let status = head.and_then(|head| head.split(' ').nth(1)?.parse().ok());
    match (status, end) {
        (Some(status), Some(end)) => Ok((status, answer.split_off(end + 4))),
        // Truncated, as when the agent is killed.
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Lets a process open only so many further descriptors.
///
/// # Panics
/// If it has ended.
pub fn limit_descriptors(process: &Process, free: u64) {
    let used = fs::read_dir(format!("/proc/{}/fd", process.pid())).expect("a running process").flatten();
    let used: HashSet<u64> = used.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let mut unused = (0..).filter(|number| !used.contains(number));
    set_descriptor_limit(
        process,
        unused.nth(usize::try_from(free).expect("a small number")).expect("a number"),
    );
}

/// Lets a process have so many descriptors.
///
/// # Panics
/// If it has ended.
pub fn set_descriptor_limit(process: &Process, limit: u64) {
    let pid = rustix::process::Pid::from_raw(process.pid());
    let maximum = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let limit = rustix::process::Rlimit { current: Some(limit), maximum };
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).expect("a running process");
}
