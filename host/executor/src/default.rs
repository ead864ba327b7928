//! The default executor: runs groups of tasks, each task in a container nested in that of the executor.
//!
//! The agent launches and destroys the containers. The executor asks for it with its own token, which is good for
//! containers below its own only.

mod calls;
mod machine;

use std::collections::{HashMap, VecDeque};
use std::mem::discriminant;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::process::{Pid, Signal};
use serde_json::value::RawValue;

use self::calls::{Answer, Call, ContainerId};
use self::machine::{Action, End, Index, Machine};
use crate::agent::Address;
use crate::checks::{Kind, Outcome};
use crate::executor::{Executor, Host, random_name};
use crate::message::{Event, Parts, Target, Task, after};
use crate::probe::Probe;
use crate::wait_status::WaitStatus;

/// The pause before a call that failed is made again. It doubles with each failure, up to the longest one.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// How often a launch is tried that the agent says may succeed later.
const MAX_LAUNCHES: u32 = 10;

/// Launches that may be in progress at a time, and as many signals. The agent limits the requests of an executor.
const MAX_CALLS: usize = 64;

/// The state machine with its calls.
pub(crate) struct DefaultExecutor {
    machine: Machine,
    /// The executor's own container.
    own: Option<Box<RawValue>>,
    containers: HashMap<Index, ContainerId>,
    /// The calls of launches that have not been answered.
    launches: HashMap<Index, Vec<u8>>,
    calls: Vec<(Attempt, Call)>,
    /// What is asked for once other calls have been answered.
    waiting: VecDeque<Attempt>,
    retries: Vec<(Instant, Attempt)>,
    connections: Vec<(Index, Kind, Probe)>,
    sessions: Vec<Session>,
}

/// What is asked of the agent, and how often it was before.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    purpose: Purpose,
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Launch(Index),
    Wait(Index),
    Signal(Index, Signal),
}

/// A command that checks a task, in a container below that of the task. Its end is waited for beside its output, as it is
/// removed once the connection of the output is closed.
struct Session {
    index: Index,
    kind: Kind,
    container: ContainerId,
    output: Option<Call>,
    wait: Option<Call>,
}

impl DefaultExecutor {
    pub(crate) fn new(host: &Host) -> Self {
        Self {
            machine: Machine::new(host.shutdown_grace),
            own: None,
            containers: HashMap::new(),
            launches: HashMap::new(),
            calls: Vec::new(),
            waiting: VecDeque::new(),
            retries: Vec::new(),
            connections: Vec::new(),
            sessions: Vec::new(),
        }
    }

    fn act(&mut self, host: &mut Host, now: Instant) {
        while let Some(action) = self.machine.next_action() {
            match action {
                Action::Update(status) => host.update(&status),
                Action::Launch(index, parts) => self.launch(index, &parts, host, now),
                Action::Wait(index) => self.call(Purpose::Wait(index), host, now),
                Action::Terminate(index) => self.call(Purpose::Signal(index, Signal::TERM), host, now),
                Action::Destroy(index) => self.call(Purpose::Signal(index, Signal::KILL), host, now),
                Action::Probe(index, kind, target) => {
                    if let Err(outcome) = self.probe(index, kind, target, host) {
                        self.machine.probed(index, kind, &outcome, now);
                    }
                }
                Action::Abort(index, kind) => {
                    self.connections.retain(|(task, running, _)| (*task, *running) != (index, kind));
                    // The agent ends the container of a session that is closed.
                    self.sessions.retain(|session| (session.index, session.kind) != (index, kind));
                }
            }
        }
    }

    fn launch(&mut self, index: Index, parts: &Parts, host: &mut Host, now: Instant) {
        let own =
            self.own.clone().ok_or_else(|| "the agent has not named the executor's container".to_owned());
        let container = own.map(|own| ContainerId::new(random_name(), own));
        let body = container.and_then(|container| {
            let body = calls::launch(&container, parts).map_err(|error| error.to_string());
            self.containers.insert(index, container);
            body
        });
        match body {
            Ok(body) => {
                self.launches.insert(index, body);
                self.call(Purpose::Launch(index), host, now);
            }
            Err(error) => {
                self.machine.launched(index, Err(format!("Cannot launch the container: {error}")), now)
            }
        }
    }

    fn call(&mut self, purpose: Purpose, host: &Host, now: Instant) {
        self.attempt(Attempt { purpose, failures: 0 }, host, now);
    }

    fn attempt(&mut self, attempt: Attempt, host: &Host, now: Instant) {
        if self.is_full(attempt.purpose) {
            return self.waiting.push_back(attempt);
        }
        let Some(body) = self.body(attempt.purpose) else { return };
        match Call::open(&host.address, &body) {
            Ok(call) => self.calls.push((attempt, call)),
            Err(_) => self.retry(attempt, now),
        }
    }

    /// Whether enough of the same is asked for already.
    fn is_full(&self, purpose: Purpose) -> bool {
        let kind = discriminant(&purpose);
        let same = self.calls.iter().filter(|(attempt, _)| discriminant(&attempt.purpose) == kind);
        // The agent limits the tasks, so that it can answer when each of them ends.
        !matches!(purpose, Purpose::Wait(_)) && same.count() >= MAX_CALLS
    }

    /// The body of a call; `None` if there is nothing to ask for any more.
    fn body(&self, purpose: Purpose) -> Option<Vec<u8>> {
        let container = |index| self.containers.get(&index);
        match purpose {
            Purpose::Launch(index) => self.launches.get(&index).cloned(),
            Purpose::Wait(index) => calls::wait(container(index)?).ok(),
            Purpose::Signal(index, signal) => calls::kill(container(index)?, signal.as_raw()).ok(),
        }
    }

    fn retry(&mut self, attempt: Attempt, now: Instant) {
        let later = Attempt { failures: attempt.failures.saturating_add(1), ..attempt };
        let pause = FIRST_RETRY.saturating_mul(1 << attempt.failures.min(10)).min(LONGEST_RETRY);
        self.retries.extend(after(now, pause).map(|at| (at, later)));
    }

    fn answered(&mut self, attempt: Attempt, answer: Result<Answer, String>, host: &Host, now: Instant) {
        let answer = match answer {
            Ok(answer) => answer,
            // The agent has stopped. Until it is there again, this is tried in vain.
            Err(_) => return self.retry(attempt, now),
        };
        match (attempt.purpose, answer.status) {
            (Purpose::Launch(_), 503) if attempt.failures < MAX_LAUNCHES => self.retry(attempt, now),
            (Purpose::Launch(index), status) => {
                self.launches.remove(&index);
                // 202 and 409: an earlier call, whose answer was lost, has launched it.
                let launched = matches!(status, 200 | 202 | 409).then_some(());
                self.machine.launched(index, launched.ok_or_else(|| answer.text()), now);
            }
            (Purpose::Wait(_), 500..) => self.retry(attempt, now),
            (Purpose::Wait(index), _) => self.machine.ended(index, &answer.end(), now),
            (Purpose::Signal(..), 200 | 404) => {}
            (Purpose::Signal(..), 500..) => self.retry(attempt, now),
            (Purpose::Signal(..), status) => {
                host.log(&format_args!("the agent did not kill a task: {status} {}", answer.text()));
            }
        }
    }

    fn probe(&mut self, index: Index, kind: Kind, target: Target, host: &Host) -> Result<(), Outcome> {
        match target {
            Target::Network(service) => self.connections.push((index, kind, Probe::open(&service)?)),
            Target::Command { raw, .. } => {
                let session = Session::open(index, kind, self.containers.get(&index), &raw, &host.address);
                self.sessions.push(session?);
            }
        }
        Ok(())
    }
}

impl Session {
    fn open(
        index: Index,
        kind: Kind,
        task: Option<&ContainerId>,
        command: &str,
        address: &Address,
    ) -> Result<Self, Outcome> {
        let task = task.ok_or_else(|| Outcome::Failed("the task has no container".to_owned()))?;
        let container = task.child(format!("check-{}", random_name())).map_err(failed)?;
        let body = calls::session(&container, command).map_err(failed)?;
        let output = Call::open(address, &body).map_err(|_| Outcome::NotDone)?;
        Ok(Self { index, kind, container, output: Some(output), wait: None })
    }

    /// How the command has ended.
    fn advance(&mut self, address: &Address) -> Option<Outcome> {
        self.try_advance(address).unwrap_or_else(Some)
    }

    fn try_advance(&mut self, address: &Address) -> Result<Option<Outcome>, Outcome> {
        if let Some(output) = &mut self.output {
            let answer = output.advance().map_err(|_| Outcome::NotDone)?;
            match &answer {
                Some(Answer { status: 503, .. }) => return Err(Outcome::NotDone),
                Some(answer) if answer.status != 200 => return Err(Outcome::Failed(answer.text())),
                _ => {}
            }
            if self.wait.is_none() && output.status() == Some(200) {
                let body = calls::wait(&self.container).map_err(failed)?;
                self.wait = Some(Call::open(address, &body).map_err(|_| Outcome::NotDone)?);
            }
            if answer.is_some() {
                self.output = None;
            }
        }
        let Some(wait) = &mut self.wait else { return Ok(None) };
        let answer = wait.advance().map_err(|_| Outcome::NotDone)?;
        Ok(answer.map(|answer| match answer {
            Answer { status: 503, .. } => Outcome::NotDone,
            answer => match answer.end() {
                End::Exited(status) => Outcome::Exited(status),
                End::Terminated { message, .. } => {
                    Outcome::Failed(message.unwrap_or_else(|| "the command was killed".to_owned()))
                }
            },
        }))
    }
}

fn failed(error: serde_json::Error) -> Outcome {
    Outcome::Failed(error.to_string())
}

impl Executor for DefaultExecutor {
    fn handle(&mut self, event: Event, host: &mut Host, now: Instant) {
        match event {
            Event::Subscribed(subscribed) => {
                self.machine.set_task_killing(subscribed.has_task_killing());
                self.own = subscribed.container_id.or(self.own.take());
                self.calls.clear();
                self.waiting.clear();
                self.retries.clear();
                self.machine.resubscribed();
                for index in self.launches.keys().copied().collect::<Vec<_>>() {
                    self.call(Purpose::Launch(index), host, now);
                }
            }
            Event::LaunchGroup(tasks) => {
                let mut group = Vec::with_capacity(tasks.len());
                for raw in tasks {
                    match Task::parse(&raw) {
                        Ok(task) => {
                            let id = task.as_ref().map_or_else(|refused| &refused.id, |task| &task.id);
                            host.add_task(id, &raw);
                            group.push(task);
                        }
                        Err(error) => host.log(&error),
                    }
                }
                self.machine.launch_group(group);
            }
            Event::Launch(raw) => match Task::parse(&raw) {
                // A single task is a group of one.
                Ok(task) => {
                    host.add_task(task.as_ref().map_or_else(|refused| &refused.id, |task| &task.id), &raw);
                    self.machine.launch_group(vec![task]);
                }
                Err(error) => host.log(&error),
            },
            Event::Kill { task_id, grace } => {
                let is_running = self.machine.kill(&task_id, grace, now);
                host.log_if_not_running(is_running, &task_id);
            }
            _ => {}
        }
        self.act(host, now);
    }

    fn shut_down(&mut self, host: &mut Host, now: Instant) {
        self.machine.shut_down(now);
        self.act(host, now);
    }

    fn abandoned(&mut self, _host: &mut Host, _now: Instant) {
        // The containers are the agent's: it destroys them with that of the executor when it is there again.
        self.machine.abandon();
        self.calls.clear();
        self.waiting.clear();
        self.retries.clear();
        self.connections.clear();
        self.sessions.clear();
    }

    fn reaped(&mut self, _pid: Pid, _status: WaitStatus, _host: &mut Host, _now: Instant) {
        // It starts no processes; this was an orphan.
    }

    fn advance(&mut self, host: &mut Host, now: Instant) {
        let mut answers = Vec::new();
        self.calls.retain_mut(|(attempt, call)| match call.advance().transpose() {
            None => true,
            Some(answer) => {
                answers.push((*attempt, answer));
                false
            }
        });
        for (attempt, answer) in answers {
            self.answered(attempt, answer, host, now);
        }
        for (_, attempt) in self.retries.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            self.attempt(attempt, host, now);
        }
        for attempt in std::mem::take(&mut self.waiting) {
            self.attempt(attempt, host, now);
        }
        let mut finished = Vec::new();
        self.connections.retain_mut(|(index, kind, probe)| match probe.advance() {
            None => true,
            Some(outcome) => {
                finished.push((*index, *kind, outcome));
                false
            }
        });
        self.sessions.retain_mut(|session| match session.advance(&host.address) {
            None => true,
            Some(outcome) => {
                finished.push((session.index, session.kind, outcome));
                false
            }
        });
        for (index, kind, outcome) in finished {
            self.machine.probed(index, kind, &outcome, now);
        }
        self.machine.expire(now);
        self.act(host, now);
    }

    fn sources(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let calls = self.calls.iter().map(|(_, call)| call);
        let sessions = self.sessions.iter().flat_map(|session| session.output.iter().chain(&session.wait));
        let connections = self.connections.iter().map(|(_, _, probe)| probe.source());
        calls.chain(sessions).map(Call::source).chain(connections).collect()
    }

    fn deadline(&self) -> Option<Instant> {
        let retry = self.retries.iter().map(|(at, _)| *at).min();
        [retry, self.machine.deadline()].into_iter().flatten().min()
    }

    fn is_finished(&self) -> bool {
        self.machine.is_finished()
    }
}
