//! The keeper: one process beside the agent and outside of all containers, which creates their processes, outlives the
//! agent, and records how they end.
//!
//! ```text
//! agent ── connection ──▶ keeper ── clone3 ──▶ setup process ── fork ──▶ command
//!                           │                        │
//!                           ◀──── registration ──────┘ ends; its children become the keeper's
//!                           │
//!                           ├─▶ I/O switchboards of containers that clients can attach to
//!                           └─▶ statuses file: what a later agent, or one whose keeper was killed, reads
//! ```
//!
//! It has one thread, which never waits for a container: what may take long is done by the setup process. It has no
//! descriptor for any container, so that creating a process does not take longer the more there are.

mod index;
mod table;

use crate::protocol::{
    self, CONNECTION, LISTENER, NoRequest, Reply, Request, STATUSES, Slot, Spawn, State, Switchboard,
};
use crate::setup::{self, Inherited};
use crate::supervise;
use crate::switchboard;
use crate::sys::{
    self, Child, Creation, Descriptors, Errno, Fd, O_WRONLY, Parent, Pid, PollSet, SIGCONT, SIGKILL,
};
use table::{Container, Table};

/// Time between searches for children whose end was not signalled, because another one's was at the same time.
const SWEEP_MILLIS: u64 = 1000;

/// Runs until the agent is gone and no container is left. Returns the exit status.
pub fn run() -> u8 {
    match Keeper::start() {
        Ok(mut keeper) => {
            keeper.serve();
            0
        }
        Err(_) => 1,
    }
}

struct Keeper {
    table: Table,
    /// The agent, if there is one.
    connection: Option<Fd>,
    /// Set by the agent: every process ends with the connection.
    kill_on_disconnect: bool,
    /// Both ends of the pipe on which setup processes register.
    registrations: (Fd, Fd),
    /// Readable when a child has ended.
    exits: Fd,
    /// Score for the out-of-memory killer that children get back, as the keeper is exempt.
    oom_score: Option<i32>,
    /// When to search for children that have ended.
    sweep_at: Option<u64>,
}

impl Keeper {
    fn start() -> Result<Self, Errno> {
        sys::set_name(c"cofferdam-keep");
        // Before it loses access to its own files in `/proc`.
        sys::reset_attributes();
        // A process of the same user, such as one in a container of the posix launcher, must not trace the keeper.
        sys::become_undumpable();
        sys::block_signals();
        sys::reset_dispositions();
        sys::set_umask(0);
        sys::change_directory(c"/")?;
        // A signal to the agent's terminal or process group is none to the keeper.
        let _ = sys::new_session();
        // Processes of containers that lose their parent are reaped here.
        sys::become_subreaper()?;
        Ok(Self {
            table: Table::new(Fd(STATUSES))?,
            connection: Some(Fd(CONNECTION)),
            kill_on_disconnect: false,
            registrations: sys::pipe()?,
            exits: sys::exit_signals()?,
            oom_score: exempt_from_oom_killer(),
            sweep_at: None,
        })
    }

    fn serve(&mut self) {
        while self.connection.is_some() || self.table.live() > 0 {
            let (registrations, _) = self.registrations;
            let accepts = self.connection.is_none() && !self.kill_on_disconnect;
            let listener = accepts.then_some(Fd(LISTENER));
            let mut ready = PollSet::new([Some(registrations), Some(self.exits), self.connection, listener]);
            ready.wait(self.sweep_at.map(|at| at.saturating_sub(sys::milliseconds())));
            // Registrations first: they tell whose the processes are that have ended.
            if ready.is_ready(0) {
                self.register();
            }
            if ready.is_ready(1) {
                self.note_exits();
            }
            if self.sweep_at.is_some_and(|at| sys::milliseconds() >= at) {
                self.sweep();
            }
            if ready.is_ready(2) {
                self.answer();
            }
            if ready.is_ready(3) {
                self.accept();
            }
            if self.connection.is_none() && self.kill_on_disconnect {
                // Again whenever something has happened: a setup process may just have registered another process.
                self.kill_all();
            }
        }
        if self.kill_on_disconnect {
            // A command whose parent was killed, and what it has started, are in no slot.
            supervise::kill_descendants();
        }
    }

    // ── the agent ──────────────────────────────────────────────────────────────────────────────────────────────

    fn accept(&mut self) {
        let Ok(connection) = sys::accept(Fd(LISTENER)) else { return };
        // The socket's directory is the agent's alone; this does not depend on its mode.
        if sys::peer_uid(connection) == Ok(sys::user()) {
            self.connection = Some(connection);
        } else {
            sys::close(connection);
        }
    }

    /// Answers one request.
    fn answer(&mut self) {
        let Some(connection) = self.connection else { return };
        let mut message = [0; protocol::REQUEST_LENGTH + 1];
        let (length, descriptors) = match sys::receive(connection, &mut message) {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(Errno::MSGSIZE) => return self.reply(connection, Reply::error(Errno::BADMSG.0), None),
            Ok((0, _)) | Err(_) => return self.disconnect(connection),
            Ok(received) => received,
        };
        let request = Request::parse(message.get(..length).unwrap_or_default());
        let reply = match request {
            Err(NoRequest::Malformed) => Reply::error(Errno::BADMSG.0),
            Err(NoRequest::Unknown) => Reply::error(Errno::NOSYS.0),
            Ok(Request::Hello { kill_on_disconnect, .. }) => {
                self.kill_on_disconnect = kill_on_disconnect;
                let pid = sys::current_pid().number();
                Reply { version: protocol::VERSION, pid, ..Reply::default() }
            }
            Ok(Request::Spawn(spawn)) => match self.spawn(&spawn, &descriptors) {
                Ok((slot, child)) => {
                    drop(descriptors);
                    let reply = Reply { slot, pid: child.pid.number(), ..Reply::default() };
                    self.reply(connection, reply, Some(child.pidfd));
                    return sys::close(child.pidfd);
                }
                Err(errno) => Reply::error(errno.0),
            },
            Ok(Request::Collect(slot)) => match self.check(slot) {
                Some(Container { state, status, command, reaper, setup, .. }) => {
                    let has_ended = matches!(state, State::Exited | State::Ended);
                    let pid = if has_ended { reaper } else { command };
                    Reply { slot, state, status, pid, setup, ..Reply::default() }
                }
                None => Reply::error(Errno::SRCH.0),
            },
            Ok(Request::Forget(slot)) => match self.check(slot) {
                Some(container) => {
                    self.table.update(slot, Container { forgotten: true, ..container });
                    Reply::default()
                }
                None => Reply::error(Errno::SRCH.0),
            },
            Ok(Request::Count) => Reply { status: self.table.live() as i32, ..Reply::default() },
            Ok(Request::Switchboard(request)) => match create_switchboard(request, &descriptors) {
                Ok(child) => {
                    drop(descriptors);
                    let reply = Reply { pid: child.pid.number(), ..Reply::default() };
                    self.reply(connection, reply, Some(child.pidfd));
                    return sys::close(child.pidfd);
                }
                Err(errno) => Reply::error(errno.0),
            },
        };
        self.reply(connection, reply, None);
    }

    fn reply(&mut self, connection: Fd, reply: Reply, descriptor: Option<Fd>) {
        if sys::send(connection, &reply.encode(), descriptor).is_err() {
            self.disconnect(connection);
        }
    }

    /// An agent that was killed while it ended a container may have stopped its setup process, which ends by itself if it has
    /// no plan, and may not be on record.
    fn disconnect(&mut self, connection: Fd) {
        sys::close(connection);
        self.connection = None;
        self.table.for_each(|container| {
            if container.setup > 0 {
                sys::send_signal(Pid::new(container.setup), SIGCONT);
            }
        });
    }

    fn kill_all(&self) {
        self.table.for_each(|container| {
            let processes = [container.setup, container.command, container.reaper];
            processes.into_iter().filter(|pid| *pid > 0).for_each(|pid| {
                sys::send_signal(Pid::new(pid), SIGKILL);
            });
        });
    }

    /// Creates the setup process of a container.
    fn spawn(&mut self, spawn: &Spawn, descriptors: &Descriptors) -> Result<(Slot, Child), Errno> {
        let received = descriptors.as_slice();
        if received.len() != spawn.descriptor_count() {
            return Err(Errno::BADMSG);
        }
        // A pid namespace is created below the keeper's only, where no process of a container sees it.
        if spawn.create & spawn.enter & sys::PID_NAMESPACE != 0 {
            return Err(Errno::INVAL);
        }
        let slot = self.table.take()?;
        match sys::create_process(Parent::Caller, None) {
            Ok(Creation::Child) => {
                let (_, registrations) = self.registrations;
                sys::exit(setup::run(&Inherited {
                    spawn,
                    descriptors: received,
                    registrations,
                    oom_score: self.oom_score,
                }))
            }
            Ok(Creation::Parent(child)) => {
                let setup = child.pid.number();
                let generation = slot.generation;
                let container =
                    Container { state: State::Starting, generation, setup, ..Container::default() };
                self.table.update(slot, container);
                Ok((slot, child))
            }
            Err(errno) => {
                self.table.give_back(slot);
                Err(errno)
            }
        }
    }

    /// The container in a slot, after a check for the end of its processes.
    fn check(&mut self, slot: Slot) -> Option<Container> {
        self.register();
        let container = self.table.container(slot)?;
        for pid in [container.setup, container.command, container.reaper] {
            if pid != 0 {
                self.note_exit(Pid::new(pid));
            }
        }
        self.table.container(slot)
    }

    // ── the containers ─────────────────────────────────────────────────────────────────────────────────────────

    /// Takes what setup processes have registered: which processes they leave behind.
    fn register(&mut self) {
        let (registrations, _) = self.registrations;
        while PollSet::is_readable(registrations) {
            let mut message = [0; setup::REGISTRATION_LENGTH];
            if sys::read(registrations, &mut message) != Ok(message.len()) {
                return;
            }
            let [setup, command, reaper] = setup::parse_registration(message);
            let owner = self.table.of_process(Pid::new(setup));
            let Some((slot, mut container)) = owner.filter(|(_, owner)| owner.setup == setup) else {
                continue;
            };
            if command == setup {
                // It stays as the parent of the command, and stands for it.
                container.state = State::Running;
                container.setup = 0;
            } else if self.table.of_process(Pid::new(command)).is_some()
                || sys::peek(Pid::new(command)).is_err()
            {
                // It was killed and reaped, and its pid may be that of another process by now.
                continue;
            }
            self.table.update(slot, Container { command, reaper, ..container });
        }
    }

    /// Takes note of the child whose end was signalled. The kernel signals one of several that end at once.
    fn note_exits(&mut self) {
        while let Some(pid) = sys::next_exit_signal(self.exits) {
            self.note_exit(pid);
        }
        self.sweep_at.get_or_insert_with(|| sys::milliseconds() + SWEEP_MILLIS);
    }

    /// Takes note of all children that have ended.
    fn sweep(&mut self) {
        self.sweep_at = None;
        while let Some(ended) = sys::next_exited() {
            self.note_exit(ended.pid);
        }
    }

    /// Records the end of a child, if it has ended, and then reaps it.
    fn note_exit(&mut self, pid: Pid) {
        let Ok(Some(status)) = sys::peek(pid) else { return };
        let mut owner = self.table.of_process(pid);
        if owner.is_none_or(|(_, container)| container.state == State::Starting) {
            // A setup process that has ended may have registered just before.
            self.register();
            owner = self.table.of_process(pid);
        }
        // Otherwise an orphan of a container, or of a setup process that was killed.
        let Some((slot, mut container)) = owner else { return sys::wait_for(pid) };
        let ended = pid.number();
        let mut kill = [0; 2];
        if container.setup == ended {
            container.setup = 0;
            container.state = match container.state {
                _ if status != 0 => State::NotStarted,
                State::Starting => State::Running,
                other => other,
            };
            if container.state == State::NotStarted {
                // The command did not run, or nobody was told that it does.
                kill = [container.command, container.reaper];
            }
        } else if container.command == ended {
            container.command = 0;
            if container.state != State::NotStarted {
                container.state = State::Exited;
                container.status = status;
            }
            // Process 1 takes the rest of its pid namespace with it.
            kill[0] = container.reaper;
        } else {
            container.reaper = 0;
        }
        if container.state == State::Exited && !container.has_processes() {
            container.state = State::Ended;
        }
        kill.into_iter().filter(|pid| *pid > 0).for_each(|pid| sys::send_signal(Pid::new(pid), SIGKILL));
        self.table.update(slot, container);
        sys::wait_for(pid);
    }
}

/// Creates the I/O switchboard of a container. Like the keeper, it is exempt from the out-of-memory killer: its memory is
/// bounded, and the container's output is lost without it.
fn create_switchboard(request: Switchboard, descriptors: &Descriptors) -> Result<Child, Errno> {
    let received = descriptors.as_slice();
    if received.len() != request.descriptor_count() {
        return Err(Errno::BADMSG);
    }
    match sys::create_process(Parent::Caller, None)? {
        Creation::Child => sys::exit(switchboard::run(request, received)),
        Creation::Parent(child) => Ok(child),
    }
}

/// Protects this process from the out-of-memory killer, where that is permitted. Returns the score for its children, if
/// they have to set it: 0, whatever that of the agent is.
fn exempt_from_oom_killer() -> Option<i32> {
    let file = sys::open(c"/proc/self/oom_score_adj", O_WRONLY).ok()?;
    let exempt = sys::write(file, b"-1000").is_ok();
    if !exempt {
        // Fails if the agent's score is higher and may not be lowered; then it is also that of containers.
        let _ = sys::write(file, b"0");
    }
    sys::close(file);
    exempt.then_some(0)
}
