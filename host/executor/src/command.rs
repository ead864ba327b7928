//! The command executor: runs one task as its child, in the container that it is in. The docker executor is the same with the
//! program of an image in place of the task's command.

mod machine;

use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::process::Pid;

use self::machine::{Action, Machine};
use crate::checks::{Kind, Outcome};
use crate::entry::Entry;
use crate::executor::{Executor, Host};
use crate::message::{CommandInfo, Event, Target, Task};
use crate::probe::Probe;
use crate::process;
use crate::wait_status::WaitStatus;

/// The state machine with its processes and connections.
#[derive(Debug)]
pub(crate) struct CommandExecutor {
    machine: Machine,
    task: Option<Running>,
    probes: Vec<Running<Kind>>,
    connections: Vec<(Kind, Probe)>,
    /// What the task was started with, which checks inherit.
    command: CommandInfo,
    /// What is run in place of the command of the task.
    entry: Option<Entry>,
}

/// A child that has not been reaped.
#[derive(Debug)]
struct Running<K = ()> {
    pid: Pid,
    kind: K,
}

impl CommandExecutor {
    pub(crate) fn new(host: &Host) -> Self {
        Self {
            machine: Machine::new(host.shutdown_grace),
            task: None,
            probes: Vec::new(),
            connections: Vec::new(),
            command: CommandInfo::default(),
            entry: None,
        }
    }

    /// The docker executor.
    pub(crate) fn of_image(host: &Host, entry: Entry) -> Self {
        let machine = Machine::of_image(host.shutdown_grace);
        Self { machine, entry: Some(entry), ..Self::new(host) }
    }

    fn act(&mut self, host: &mut Host, now: Instant) {
        while let Some(action) = self.machine.next_action() {
            match action {
                Action::Update(status) => host.update(&status),
                Action::Start(command) => {
                    let environment = [host.environment.as_slice()];
                    // The engine has set what the task says, and the options of its container on top of that.
                    let command = if self.entry.is_some() { CommandInfo::default() } else { command };
                    let started = match &self.entry {
                        Some(entry) => process::spawn_entry(&entry.argv, &command, environment),
                        None => process::spawn(&command, environment),
                    };
                    self.command = command;
                    self.task = started.as_ref().ok().map(|pid| Running { pid: *pid, kind: () });
                    self.machine.started(started.map(|_| ()), now);
                }
                Action::Terminate => self.terminate(),
                Action::Kill => {
                    self.task.iter().for_each(|task| process::kill_group(task.pid));
                    process::kill_children();
                }
                Action::Probe(kind, target) => {
                    if let Err(outcome) = self.probe(kind, target, host) {
                        self.machine.probed(kind, &outcome, now);
                    }
                }
                Action::Abort(kind) => self.abort(kind),
            }
        }
    }

    fn terminate(&self) {
        let Some(task) = &self.task else { return };
        match &self.entry {
            // As with `docker stop`, the others are up to the first process.
            Some(entry) => process::signal(task.pid, entry.stop_signal),
            None => process::terminate(task.pid),
        }
    }

    fn probe(&mut self, kind: Kind, target: Target, host: &Host) -> Result<(), Outcome> {
        match target {
            Target::Command { command, .. } => {
                let variables = self.command.variables();
                let task: Vec<_> = variables.map(|(name, value)| (name.into(), value.into())).collect();
                let command = command.or_directory(self.command.working_directory.as_ref());
                let started = process::spawn(&command, [host.environment.as_slice(), &task]);
                let pid = started.map_err(|error| Outcome::Failed(error.to_string()))?;
                self.probes.push(Running { pid, kind });
            }
            Target::Network(service) => self.connections.push((kind, Probe::open(&service)?)),
        }
        Ok(())
    }

    fn abort(&mut self, kind: Kind) {
        self.connections.retain(|(running, _)| *running != kind);
        for probe in self.probes.extract_if(.., |probe| probe.kind == kind) {
            // It is reaped later, and no longer known then.
            process::kill_group(probe.pid);
        }
    }
}

impl Executor for CommandExecutor {
    fn handle(&mut self, event: Event, host: &mut Host, now: Instant) {
        match event {
            Event::Subscribed(subscribed) => self.machine.set_task_killing(subscribed.has_task_killing()),
            Event::Launch(raw) => match Task::parse(&raw) {
                Ok(task) => {
                    host.add_task(task.as_ref().map_or_else(|refused| &refused.id, |task| &task.id), &raw);
                    self.machine.launch(task, now);
                }
                Err(error) => host.log(&error),
            },
            Event::LaunchGroup(tasks) => {
                for raw in tasks {
                    match Task::parse(&raw) {
                        Ok(task) => {
                            let id = task.map_or_else(|refused| refused.id, |task| task.id);
                            host.add_task(&id, &raw);
                            self.machine.refuse_group(&id);
                        }
                        Err(error) => host.log(&error),
                    }
                }
            }
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

    fn abandoned(&mut self, host: &mut Host, now: Instant) {
        self.shut_down(host, now);
    }

    fn reaped(&mut self, pid: Pid, status: WaitStatus, host: &mut Host, now: Instant) {
        if self.task.as_ref().is_some_and(|task| task.pid == pid) {
            self.task = None;
            self.machine.exited(status);
        } else if let Some(index) = self.probes.iter().position(|probe| probe.pid == pid) {
            let probe = self.probes.swap_remove(index);
            self.machine.probed(probe.kind, &Outcome::Exited(status), now);
        } else if self.machine.is_forced() {
            // An orphan, whose own children are orphans now.
            process::kill_children();
        }
        self.act(host, now);
    }

    fn advance(&mut self, host: &mut Host, now: Instant) {
        let mut finished = Vec::new();
        self.connections.retain_mut(|(kind, probe)| match probe.advance() {
            None => true,
            Some(outcome) => {
                finished.push((*kind, outcome));
                false
            }
        });
        for (kind, outcome) in finished {
            self.machine.probed(kind, &outcome, now);
        }
        self.machine.expire(now);
        self.act(host, now);
    }

    fn sources(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        self.connections.iter().map(|(_, probe)| probe.source()).collect()
    }

    fn deadline(&self) -> Option<Instant> {
        self.machine.deadline()
    }

    fn is_finished(&self) -> bool {
        self.machine.is_finished()
    }
}
