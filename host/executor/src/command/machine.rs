//! The command executor as a function of what happens: no processes, connections or clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::checks::{Checks, Kind, Outcome, Report, Step};
use crate::kill::{Cause, DEFAULT_GRACE, Kill};
use crate::message::{CommandInfo, Refused, Target, Task, after};
use crate::process::SpawnError;
use crate::status::{Status, TaskState, reason};
use crate::wait_status::WaitStatus;

/// What remains of the grace period for the executor itself when the agent shuts it down.
const RESERVE: Duration = Duration::from_secs(1);

/// What is to be done, in order.
#[derive(Debug)]
pub(super) enum Action {
    Update(Status),
    /// To be answered by [`Machine::started`].
    Start(CommandInfo),
    /// Asks the task to end.
    Terminate,
    /// Kills the task.
    Kill,
    /// To be answered by [`Machine::probed`].
    Probe(Kind, Target),
    Abort(Kind),
}

/// The command executor.
#[derive(Debug)]
pub(super) struct Machine {
    phase: Phase,
    /// Whether the framework handles TASK_KILLING.
    has_task_killing: bool,
    shutdown_grace: Duration,
    /// Whether the task is the program of an image, so that it needs no command.
    is_image: bool,
    actions: VecDeque<Action>,
}

#[derive(Debug)]
enum Phase {
    /// There was no task yet.
    Idle,
    Starting(Box<Task>),
    Running(Box<Running>),
    Ended,
}

#[derive(Debug)]
struct Running {
    id: String,
    checks: Checks,
    kill_grace: Duration,
    /// When it has run for as long as it may, and how long that is.
    completion: Option<(Instant, Duration)>,
    kill: Option<Kill>,
    /// What ends, in messages.
    subject: &'static str,
}

impl Machine {
    pub(super) fn new(shutdown_grace: Duration) -> Self {
        let (phase, actions) = (Phase::Idle, VecDeque::new());
        Self { phase, has_task_killing: false, shutdown_grace, is_image: false, actions }
    }

    /// One whose task is the program of an image.
    pub(super) fn of_image(shutdown_grace: Duration) -> Self {
        Self { is_image: true, ..Self::new(shutdown_grace) }
    }

    pub(super) fn set_task_killing(&mut self, has_task_killing: bool) {
        self.has_task_killing = has_task_killing;
    }

    pub(super) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The agent launches a task.
    pub(super) fn launch(&mut self, task: Result<Task, Refused>, now: Instant) {
        let id = task.as_ref().map_or_else(|refused| &refused.id, |task| &task.id);
        if !matches!(self.phase, Phase::Idle) {
            let name = if self.is_image { "docker" } else { "command" };
            let message = format!("Attempted to run multiple tasks using a \"{name}\" executor");
            let status = Status::new(id, TaskState::Failed).message(message).reason(reason::INVALID);
            return self.update(status);
        }
        self.update(Status::new(id, TaskState::Starting));
        let command = task.and_then(|task| match task.command.clone() {
            Some(command) if command.value.is_some() => Ok((task, command)),
            command if self.is_image => Ok((task, command.unwrap_or_default())),
            _ => Err(Refused {
                message: format!("The command of task `{}` has no value", task.id),
                id: task.id,
            }),
        });
        match command {
            Ok((task, command)) => {
                self.phase = Phase::Starting(Box::new(task));
                self.actions.push_back(Action::Start(command));
            }
            Err(Refused { id, message }) => {
                self.phase = Phase::Ended;
                self.update(Status::new(&id, TaskState::Failed).message(message).reason(reason::INVALID));
            }
        }
        self.expire(now);
    }

    /// The agent launches a task of a group, which this executor cannot.
    pub(super) fn refuse_group(&mut self, id: &str) {
        if matches!(self.phase, Phase::Idle) {
            self.phase = Phase::Ended;
        }
        let message = "The command executor does not run task groups; the default executor does";
        self.update(Status::new(id, TaskState::Failed).message(message).reason(reason::INVALID));
    }

    /// The process of the task was started, or not.
    pub(super) fn started(&mut self, started: Result<(), SpawnError>, now: Instant) {
        let mut task = match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Starting(task) => task,
            other => {
                self.phase = other;
                return;
            }
        };
        if let Err(error) = started {
            let status = Status::new(&task.id, TaskState::Failed).message(error.to_string());
            return self.update(status.reason(reason::COMMAND_FAILED));
        }
        let running = Running {
            checks: Checks::new(&mut task, now),
            kill_grace: task.kill_grace.unwrap_or(DEFAULT_GRACE),
            completion: task.max_completion_time.and_then(|limit| Some((after(now, limit)?, limit))),
            kill: None,
            subject: if self.is_image { "Container" } else { "Command" },
            id: task.id,
        };
        self.actions.push_back(Action::Update(running.status()));
        self.phase = Phase::Running(Box::new(running));
        self.expire(now);
    }

    /// The process of the task has ended.
    pub(super) fn exited(&mut self, status: WaitStatus) {
        let Phase::Running(running) = &mut self.phase else { return };
        self.actions.extend(running.checks.stop().into_iter().map(Action::Abort));
        self.actions.push_back(Action::Update(running.terminal(status)));
        self.phase = Phase::Ended;
    }

    /// The agent kills a task. Returns whether it is running.
    pub(super) fn kill(&mut self, id: &str, grace: Option<Duration>, now: Instant) -> bool {
        match &self.phase {
            Phase::Running(running) if running.id == id => {
                let grace = grace.unwrap_or(running.kill_grace);
                self.begin_kill(Cause::Requested, grace, None, now);
                true
            }
            _ => false,
        }
    }

    /// The executor has to end.
    pub(super) fn shut_down(&mut self, now: Instant) {
        match self.phase {
            Phase::Running(_) => {
                let grace = self.shutdown_grace.saturating_sub(RESERVE);
                self.begin_kill(Cause::Requested, grace, None, now);
            }
            Phase::Idle => self.phase = Phase::Ended,
            Phase::Starting(_) | Phase::Ended => {}
        }
    }

    /// A check has ended.
    pub(super) fn probed(&mut self, kind: Kind, outcome: &Outcome, now: Instant) {
        let Phase::Running(running) = &mut self.phase else { return };
        if let Some(report) = running.checks.finished(kind, outcome, now) {
            self.report(report, now);
        }
    }

    /// To be called at [`Machine::deadline`].
    pub(super) fn expire(&mut self, now: Instant) {
        let Phase::Running(running) = &mut self.phase else { return };
        for step in running.checks.expire(now) {
            match step {
                Step::Start(kind, target) => self.actions.push_back(Action::Probe(kind, target)),
                Step::Abort(kind) => self.actions.push_back(Action::Abort(kind)),
                Step::Report(report) => self.report(report, now),
            }
        }
        let Phase::Running(running) = &mut self.phase else { return };
        if let Some((_, limit)) = running.completion.take_if(|(at, _)| *at <= now) {
            let (grace, message) = (running.kill_grace, format!("Ran for {} s", limit.as_secs_f64()));
            self.begin_kill(Cause::CompletionTime, grace, Some(message), now);
        }
        let Phase::Running(running) = &mut self.phase else { return };
        if running.kill.as_mut().is_some_and(|kill| kill.expire(now)) {
            self.actions.push_back(Action::Kill);
        }
    }

    /// When something is to be done next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let Phase::Running(running) = &self.phase else { return None };
        let completion = running.completion.as_ref().map(|(at, _)| *at);
        let kill = running.kill.as_ref().and_then(Kill::deadline);
        [running.checks.deadline(), completion, kill].into_iter().flatten().min()
    }

    /// Whether the task is being killed by force.
    pub(super) fn is_forced(&self) -> bool {
        matches!(&self.phase, Phase::Running(running) if running.kill.as_ref().is_some_and(Kill::is_forced))
    }

    /// Whether there is nothing left to do but to have updates acknowledged.
    pub(super) fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Ended) && self.actions.is_empty()
    }

    fn update(&mut self, status: Status) {
        self.actions.push_back(Action::Update(status));
    }

    fn report(&mut self, report: Report, now: Instant) {
        let Phase::Running(running) = &self.phase else { return };
        let mut status = running.status().reason(report.reason);
        status.message.clone_from(&report.message);
        let grace = running.kill_grace;
        self.update(status);
        if report.kills {
            self.begin_kill(Cause::Unhealthy, grace, report.message, now);
        }
    }

    fn begin_kill(&mut self, cause: Cause, grace: Duration, message: Option<String>, now: Instant) {
        let Phase::Running(running) = &mut self.phase else { return };
        if let Some(kill) = &mut running.kill {
            kill.adjust(grace);
            return self.expire(now);
        }
        running.kill = Some(Kill::new(cause, grace, now));
        running.completion = None;
        self.actions.extend(running.checks.stop().into_iter().map(Action::Abort));
        if self.has_task_killing {
            let mut status = Status::new(&running.id, TaskState::Killing);
            status.healthy = (cause == Cause::Unhealthy).then_some(false);
            status.message = message;
            self.actions.push_back(Action::Update(status));
        }
        self.actions.push_back(Action::Terminate);
        self.expire(now);
    }
}

impl Running {
    /// The status while it runs.
    fn status(&self) -> Status {
        let mut status = Status::new(&self.id, TaskState::Running);
        self.checks.describe(&mut status);
        status
    }

    /// The last status.
    fn terminal(&self, exit: WaitStatus) -> Status {
        let message = format!("{} {exit}", self.subject);
        let status = |state| Status::new(&self.id, state).message(message.clone());
        match self.kill.as_ref().map(|kill| kill.cause) {
            Some(Cause::CompletionTime) => status(TaskState::Failed).reason(reason::MAX_COMPLETION_TIME),
            Some(Cause::Unhealthy) => Status { healthy: Some(false), ..status(TaskState::Killed) },
            Some(Cause::Requested) => status(TaskState::Killed),
            None if exit.is_success() => status(TaskState::Finished),
            None => status(TaskState::Failed).reason(reason::COMMAND_FAILED),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn task(id: &str, more: &str) -> Result<Task, Refused> {
        let text = format!(r#"{{"task_id":{{"value":"{id}"}},"command":{{"value":"x"}}{more}}}"#);
        Task::parse(&RawValue::from_string(text).unwrap()).unwrap()
    }

    fn machine() -> Machine {
        let mut machine = Machine::new(5 * SECOND);
        machine.set_task_killing(true);
        machine
    }

    /// Starts a task.
    fn running(more: &str, now: Instant) -> Machine {
        let mut machine = machine();
        machine.launch(task("t", more), now);
        machine.started(Ok(()), now);
        assert_eq!(actions(&mut machine), ["TASK_STARTING", "start", "TASK_RUNNING"]);
        machine
    }

    fn actions(machine: &mut Machine) -> Vec<String> {
        std::iter::from_fn(|| machine.next_action())
            .map(|action| match action {
                Action::Update(status) => {
                    serde_json::to_value(status.state).unwrap().as_str().unwrap().to_owned()
                }
                Action::Start(_) => "start".to_owned(),
                Action::Terminate => "terminate".to_owned(),
                Action::Kill => "kill".to_owned(),
                Action::Probe(kind, _) => format!("probe {kind:?}"),
                Action::Abort(kind) => format!("abort {kind:?}"),
            })
            .collect()
    }

    fn last_status(machine: &mut Machine) -> Status {
        let statuses = std::iter::from_fn(|| machine.next_action()).filter_map(|action| match action {
            Action::Update(status) => Some(status),
            _ => None,
        });
        statuses.last().unwrap()
    }

    #[test]
    fn a_task_ends_as_its_command() {
        let now = Instant::now();
        for (raw, state, message) in [
            (0, TaskState::Finished, "Command exited with status 0"),
            (256, TaskState::Failed, "Command exited with status 1"),
            (9, TaskState::Failed, "Command terminated with signal Killed"),
        ] {
            let mut machine = running("", now);
            machine.exited(WaitStatus(raw));
            let status = last_status(&mut machine);
            assert_eq!((status.state, status.message.as_deref()), (state, Some(message)));
            assert!(machine.is_finished());
        }
    }

    #[test]
    fn a_second_task_has_failed_and_the_first_is_not_affected() {
        let now = Instant::now();
        let mut machine = running("", now);
        machine.launch(task("second", ""), now);
        let status = last_status(&mut machine);
        assert_eq!((status.task_id.as_str(), status.state), ("second", TaskState::Failed));
        assert!(!machine.is_finished());
        assert!(machine.kill("t", None, now));
        assert!(!machine.kill("second", None, now));
    }

    #[test]
    fn a_kill_asks_and_then_forces() {
        let now = Instant::now();
        let mut machine = running(r#","kill_policy":{"grace_period":{"nanoseconds":2000000000}}"#, now);
        assert!(machine.kill("t", None, now));
        assert_eq!(actions(&mut machine), ["TASK_KILLING", "terminate"]);
        assert_eq!(machine.deadline(), Some(now + 2 * SECOND));
        assert!(machine.kill("t", Some(SECOND), now));
        assert_eq!(machine.deadline(), Some(now + SECOND));
        machine.expire(now + SECOND);
        assert_eq!(actions(&mut machine), ["kill"]);
        assert!(machine.is_forced());
        machine.exited(WaitStatus(9));
        assert_eq!(last_status(&mut machine).state, TaskState::Killed);
    }

    #[test]
    fn a_kill_without_grace_forces_at_once() {
        let now = Instant::now();
        let mut machine = running("", now);
        machine.set_task_killing(false);
        assert!(machine.kill("t", Some(Duration::ZERO), now));
        assert_eq!(actions(&mut machine), ["terminate", "kill"]);
        // A task that was killed and exits with 0 was killed.
        machine.exited(WaitStatus(0));
        assert_eq!(last_status(&mut machine).state, TaskState::Killed);
    }

    #[test]
    fn a_task_that_runs_too_long_has_failed() {
        let now = Instant::now();
        let mut machine = running(r#","max_completion_time":{"nanoseconds":7000000000}"#, now);
        assert_eq!(machine.deadline(), Some(now + 7 * SECOND));
        machine.expire(now + 7 * SECOND);
        assert_eq!(actions(&mut machine), ["TASK_KILLING", "terminate"]);
        machine.exited(WaitStatus(15));
        let status = last_status(&mut machine);
        assert_eq!(status.state, TaskState::Failed);
        assert_eq!(status.reason.as_deref(), Some(reason::MAX_COMPLETION_TIME));
    }

    #[test]
    fn an_unhealthy_task_is_killed() {
        let now = Instant::now();
        let health = r#","health_check":{"type":"TCP","tcp":{"port":1},"delay_seconds":0,"grace_period_seconds":0,
            "consecutive_failures":1}"#;
        let mut machine = machine();
        machine.launch(task("t", health), now);
        machine.started(Ok(()), now);
        assert_eq!(actions(&mut machine), ["TASK_STARTING", "start", "TASK_RUNNING", "probe Health"]);
        machine.probed(Kind::Health, &Outcome::Connected(false), now);
        assert_eq!(actions(&mut machine), ["TASK_RUNNING", "TASK_KILLING", "terminate"]);
        machine.exited(WaitStatus(15));
        let status = last_status(&mut machine);
        assert_eq!((status.state, status.healthy), (TaskState::Killed, Some(false)));
    }

    #[test]
    fn what_cannot_be_started_has_failed() {
        let now = Instant::now();
        let mut machine = machine();
        machine.launch(task("t", ""), now);
        machine.started(Err(SpawnError::NoValue), now);
        assert_eq!(actions(&mut machine), ["TASK_STARTING", "start", "TASK_FAILED"]);
        assert!(machine.is_finished());
        let mut machine = Machine::new(SECOND);
        let text = r#"{"task_id":{"value":"t"},"command":{}}"#.to_owned();
        machine.launch(Task::parse(&RawValue::from_string(text).unwrap()).unwrap(), now);
        assert_eq!(actions(&mut machine), ["TASK_STARTING", "TASK_FAILED"]);
    }

    #[test]
    fn the_program_of_an_image_needs_no_command() {
        let now = Instant::now();
        let mut machine = Machine::of_image(SECOND);
        let text = r#"{"task_id":{"value":"t"},"container":{"type":"DOCKER"}}"#.to_owned();
        machine.launch(Task::parse(&RawValue::from_string(text).unwrap()).unwrap(), now);
        machine.started(Ok(()), now);
        assert_eq!(actions(&mut machine), ["TASK_STARTING", "start", "TASK_RUNNING"]);
        machine.launch(task("second", ""), now);
        assert!(last_status(&mut machine).message.unwrap().contains("\"docker\" executor"));
        machine.exited(WaitStatus(256));
        let status = last_status(&mut machine);
        assert_eq!(status.message.as_deref(), Some("Container exited with status 1"));
    }

    #[test]
    fn an_executor_without_task_shuts_down_at_once() {
        let mut machine = machine();
        machine.shut_down(Instant::now());
        assert!(machine.is_finished());
    }

    /// Something that happens to a running task.
    #[derive(Debug, Clone)]
    enum Happening {
        Kill(Option<u64>),
        ShutDown,
        Probed(bool),
        Later(u64),
        Launch,
        Exit(i32),
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            proptest::option::of(0..20_u64).prop_map(Happening::Kill),
            Just(Happening::ShutDown),
            any::<bool>().prop_map(Happening::Probed),
            (0..20_u64).prop_map(Happening::Later),
            Just(Happening::Launch),
            prop_oneof![Just(0), Just(256), Just(9)].prop_map(Happening::Exit),
        ]
    }

    proptest! {
        /// Whatever happens in which order: a task gets one terminal state, after which there are no updates of it, and
        /// it is asked to end before it is forced to.
        #[test]
        fn there_is_one_terminal_state(happenings in proptest::collection::vec(happening(), 0..40)) {
            let mut now = Instant::now();
            let health = r#","health_check":{"type":"TCP","tcp":{"port":1}},"max_completion_time":{"nanoseconds":30000000000}"#;
            let mut machine = running(health, now);
            let mut seen = Vec::new();
            for happening in happenings {
                match happening {
                    Happening::Kill(grace) => {
                        machine.kill("t", grace.map(Duration::from_secs), now);
                    }
                    Happening::ShutDown => machine.shut_down(now),
                    Happening::Probed(success) => machine.probed(Kind::Health, &Outcome::Connected(success), now),
                    Happening::Later(seconds) => {
                        now += Duration::from_secs(seconds);
                        machine.expire(now);
                    }
                    Happening::Launch => machine.launch(task("second", ""), now),
                    Happening::Exit(raw) => machine.exited(WaitStatus(raw)),
                }
                if let Some(deadline) = machine.deadline() {
                    prop_assert!(deadline > now, "a deadline that has passed would make the loop spin");
                }
                while let Some(action) = machine.next_action() {
                    match action {
                        Action::Update(status) if status.task_id == "t" => seen.push(format!("{:?}", status.state)),
                        Action::Update(status) => prop_assert_eq!(status.state, TaskState::Failed),
                        Action::Start(_) => prop_assert!(false, "a second start"),
                        Action::Terminate => seen.push("terminate".to_owned()),
                        Action::Kill => seen.push("kill".to_owned()),
                        Action::Probe(..) | Action::Abort(_) => {}
                    }
                }
            }
            let position = |name: &str| seen.iter().position(|entry| entry == name);
            let terminal = seen.iter().filter(|entry| matches!(entry.as_str(), "Finished" | "Failed" | "Killed")).count();
            prop_assert_eq!(terminal, usize::from(machine.is_finished()));
            if terminal == 1 {
                prop_assert!(matches!(seen.last().map(String::as_str), Some("Finished" | "Failed" | "Killed")));
            }
            prop_assert!(seen.iter().filter(|entry| *entry == "terminate").count() <= 1);
            if let Some(kill) = position("kill") {
                prop_assert!(position("terminate").is_some_and(|terminate| terminate < kill));
            }
        }
    }
}
