//! The agent as operators run it: a process of its own, `cofferdam agent --config …`, asked over its socket.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use cofferdam::api::operator::types::{
    self as wire, Call, Container, InspectedContainer, Response, Scalar, Termination,
};
use cofferdam_core::model::{ContainerId, Request};
use cofferdam_linux::process::Process;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::injector::Injector;
use crate::paths;
use crate::sockets::is_unnamed_socket;
use crate::world::World;

/// How long anything may take before the test fails.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// An agent in a process of its own. It is killed when this goes; its containers are not.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

/// An answer other than the one hoped for.
#[derive(Debug)]
pub enum Refusal {
    /// The agent says no.
    Status(u16, String),
    /// It does not say anything any more.
    Broken(io::Error),
}

impl Refusal {
    /// Whether nobody knows what was asked about.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Status(404, _))
    }

    /// Whether the conversation broke off.
    pub fn is_broken(&self) -> bool {
        matches!(self, Self::Broken(_))
    }
}

impl Daemon {
    /// Starts an agent in a world, and waits until it serves.
    ///
    /// # Panics
    /// With the agent's log, when it ends instead.
    pub fn start(world: &World) -> Self {
        let (daemon, ready) = Self::prepare(world, |mut command| command.spawn());
        daemon.wait_until(&ready);
        daemon
    }

    /// Starts an agent in a world, and waits until it serves or has ended. Whether it serves.
    pub fn try_start(world: &World) -> (Self, bool) {
        let (daemon, ready) = Self::prepare(world, |mut command| command.spawn());
        let serves = daemon.serves(&ready);
        (daemon, serves)
    }

    /// Starts an agent under an injector, and waits until it serves.
    ///
    /// # Panics
    /// With the agent's log, when it ends instead.
    pub fn start_watched(world: &World) -> (Self, Injector) {
        let mut injector = None;
        let (daemon, ready) = Self::prepare(world, |command| {
            let (child, watching) = Injector::spawn(command)?;
            injector = Some(watching);
            Ok(child)
        });
        daemon.wait_until(&ready);
        (daemon, injector.expect("it was made a moment ago"))
    }

    /// Starts an agent under an injector that is armed at once with `arm`. Answers whether it came to serve.
    pub fn start_doomed(world: &World, arm: impl FnOnce(&Injector)) -> (Self, Injector, bool) {
        let mut injector = None;
        let (daemon, ready) = Self::prepare(world, |command| {
            let (child, watching) = Injector::spawn(command)?;
            arm(&watching);
            injector = Some(watching);
            Ok(child)
        });
        let serves = daemon.serves(&ready);
        (daemon, injector.expect("it was made a moment ago"), serves)
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
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log_file);
        let child = spawn(command).expect("the agent's program starts");
        (Self { child, socket: world.socket(), log }, ready)
    }

    fn wait_until(&self, ready: &UnixDatagram) {
        assert!(self.serves(ready), "the agent ended instead of serving:\n{}", self.log());
    }

    /// Waits until it says that it serves, or ends.
    fn serves(&self, ready: &UnixDatagram) -> bool {
        let process = self.process();
        let mut waits = [PollFd::new(ready, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
        let timeout = Timespec { tv_sec: TIMEOUT.as_secs() as i64, tv_nsec: 0 };
        let found = poll(&mut waits, Some(&timeout)).expect("both can be waited for");
        assert!(found > 0, "the agent neither serves nor ends:\n{}", self.log());
        waits[0].revents().contains(PollFlags::IN)
    }

    /// Its process.
    pub fn process(&self) -> Process {
        Process::open_any(self.pid()).expect("a child of ours that was not reaped")
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// What it has open, but for the sockets of its API, which come and go with those who ask.
    ///
    /// # Panics
    /// When it is gone.
    pub fn descriptors(&self) -> Vec<PathBuf> {
        let listing = fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("a process that is there");
        let links = listing.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        let is_api = |link: &PathBuf| {
            link.to_string_lossy().starts_with("socket:") && !is_unnamed_socket(self.pid(), link)
        };
        links.filter(|link| !is_api(link)).collect()
    }

    /// What it and its predecessors in this world have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it SIGKILL and waits until it is gone.
    pub fn kill(self) {
        self.end(Signal::SIGKILL);
    }

    /// Asks it to stop, and waits until it has.
    pub fn terminate(self) -> ExitStatus {
        self.end(Signal::SIGTERM)
    }

    fn end(mut self, signal: Signal) -> ExitStatus {
        self.process().signal(signal as i32).expect("a child of ours takes signals");
        self.gone()
    }

    /// Waits until it is gone.
    pub fn gone(&mut self) -> ExitStatus {
        let ended = self.process().wait(Some(TIMEOUT)).expect("a process can be waited for");
        assert!(ended, "the agent does not end:\n{}", self.log());
        self.child.wait().expect("a child of ours")
    }

    /// Launches a container.
    ///
    /// # Errors
    /// Why not.
    pub fn launch(&self, request: &Request) -> Result<(), Refusal> {
        let call = Call::LaunchContainer(Box::new(cofferdam::api::operator::encode_launch(request)));
        self.send(&call).map(drop)
    }

    /// Waits for the end of a container.
    ///
    /// # Errors
    /// Why not.
    pub fn wait(&self, id: &ContainerId) -> Result<Termination, Refusal> {
        match self.ask(&Call::WaitContainer(wire::WaitContainer { container_id: wire_id(id) }))? {
            Response::WaitContainer(termination) => Ok(termination),
            other => panic!("an answer to another question: {other:?}"),
        }
    }

    /// Sends a signal to a container; SIGKILL ends it.
    ///
    /// # Errors
    /// Why not.
    pub fn signal(&self, id: &ContainerId, signal: Signal) -> Result<(), Refusal> {
        let signal = Some(signal as i32);
        let call = wire::KillContainer { container_id: wire_id(id), signal };
        self.send(&Call::KillContainer(call)).map(drop)
    }

    /// Ends a container and waits until it has.
    ///
    /// # Errors
    /// Why not.
    pub fn destroy(&self, id: &ContainerId) -> Result<Termination, Refusal> {
        self.signal(id, Signal::SIGKILL)?;
        self.wait(id)
    }

    /// Forgets a container that has ended.
    ///
    /// # Errors
    /// Why not.
    pub fn remove(&self, id: &ContainerId) -> Result<(), Refusal> {
        let call = wire::RemoveContainer { container_id: wire_id(id) };
        self.send(&Call::RemoveContainer(call)).map(drop)
    }

    /// Changes what a container may use, by the names of resources.
    ///
    /// # Errors
    /// Why not.
    pub fn update(&self, id: &ContainerId, resources: &[(&str, f64)]) -> Result<(), Refusal> {
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

    /// Everything about a container; `None` for one that nobody knows.
    ///
    /// # Panics
    /// When the agent says anything else.
    pub fn inspect(&self, id: &ContainerId) -> Option<InspectedContainer> {
        let call = Call::InspectContainer(wire::InspectContainer { container_id: wire_id(id) });
        match self.ask(&call) {
            Ok(Response::InspectContainer(inspected)) => Some(*inspected),
            Err(refusal) if refusal.is_unknown() => None,
            other => panic!("cannot inspect `{id}`: {other:?}\n{}", self.log()),
        }
    }

    /// All containers.
    ///
    /// # Panics
    /// When the agent does not list them.
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

    fn ask(&self, call: &Call) -> Result<Response, Refusal> {
        let body = self.send(call)?;
        Ok(Response::from_json(&body).expect("an answer that can be read"))
    }

    fn send(&self, call: &Call) -> Result<Vec<u8>, Refusal> {
        let body = serde_json::to_vec(call).expect("a call has no maps with odd keys");
        let (status, body) = exchange(&self.socket, &body).map_err(Refusal::Broken)?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        Err(Refusal::Status(status, String::from_utf8_lossy(&body).into_owned()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Gone already, or about to be; there is nobody to tell.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn wire_id(id: &ContainerId) -> wire::ContainerId {
    let parent = id.parent().map(|parent| Box::new(wire_id(&parent)));
    wire::ContainerId { value: id.value().to_owned(), parent }
}

/// One request on a connection of its own: the status and the body of what comes back.
fn exchange(socket: &Path, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let head = format!(
        "POST /api/v1 HTTP/1.1\r\nHost: agent\r\nConnection: close\r\nAccept: application/json\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let head = end.and_then(|end| std::str::from_utf8(&answer[..end]).ok());
    let status = head.and_then(|head| head.split(' ').nth(1)?.parse().ok());
    match (status, end) {
        (Some(status), Some(end)) => Ok((status, answer.split_off(end + 4))),
        // Cut off, as by its death.
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
