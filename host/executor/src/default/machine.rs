//! The default executor as a function of what happens: no connections or clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::checks::{Checks, Kind, Outcome, Report, Step};
use crate::kill::{Cause, DEFAULT_GRACE, Kill};
use crate::message::{Parts, Refused, Target, Task, after};
use crate::status::{Status, TaskState, reason};
use crate::wait_status::WaitStatus;

/// What remains of the grace period for the executor itself when the agent shuts it down.
const RESERVE: Duration = Duration::from_secs(1);

/// The number of a task, in the order in which they were launched.
pub(super) type Index = usize;

/// What is to be done, in order.
#[derive(Debug)]
pub(super) enum Action {
    Update(Status),
    /// Launches the container of a task. To be answered by [`Machine::launched`].
    Launch(Index, Parts),
    /// Waits for the container of a task. To be answered by [`Machine::ended`].
    Wait(Index),
    /// Asks a task to end.
    Terminate(Index),
    /// Destroys the container of a task.
    Destroy(Index),
    /// To be answered by [`Machine::probed`].
    Probe(Index, Kind, Target),
    Abort(Index, Kind),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// By itself.
    Exited(WaitStatus),
    /// By the agent: it exceeded a limit, was killed, or was lost.
    Terminated { is_failure: bool, reason: Option<String>, message: Option<String> },
}

/// The default executor.
#[derive(Debug)]
pub(super) struct Machine {
    /// All tasks in the order of their launch; the index of one is its name.
    tasks: Vec<Member>,
    groups: usize,
    has_task_killing: bool,
    is_shutting_down: bool,
    shutdown_grace: Duration,
    actions: VecDeque<Action>,
}

#[derive(Debug)]
struct Member {
    id: String,
    group: usize,
    phase: Phase,
    kill_grace: Duration,
    kill: Option<Kill>,
}

#[derive(Debug)]
enum Phase {
    /// The agent has been asked to launch its container.
    Launching(Box<Task>),
    Running {
        checks: Box<Checks>,
        /// When it has run for as long as it may, and how long that is.
        completion: Option<(Instant, Duration)>,
    },
    Ended,
}

impl Machine {
    pub(super) fn new(shutdown_grace: Duration) -> Self {
        Self {
            tasks: Vec::new(),
            groups: 0,
            has_task_killing: false,
            is_shutting_down: false,
            shutdown_grace,
            actions: VecDeque::new(),
        }
    }

    pub(super) fn set_task_killing(&mut self, has_task_killing: bool) {
        self.has_task_killing = has_task_killing;
    }

    pub(super) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The agent launches the tasks of a group: all of them, or none.
    pub(super) fn launch_group(&mut self, tasks: Vec<Result<Task, Refused>>) {
        for task in &tasks {
            let id = task.as_ref().map_or_else(|refused| &refused.id, |task| &task.id);
            self.actions.push_back(Action::Update(Status::new(id, TaskState::Starting)));
        }
        let refusal =
            tasks.iter().find_map(|task| task.as_ref().err()).map(|refused| refused.message.clone());
        let group = self.groups;
        self.groups += 1;
        for task in tasks {
            let (id, message) = match (task, &refusal) {
                (Ok(mut task), None) if !self.is_shutting_down => {
                    let parts = std::mem::take(&mut task.parts);
                    self.actions.push_back(Action::Launch(self.tasks.len(), parts));
                    self.tasks.push(Member {
                        id: task.id.clone(),
                        group,
                        kill_grace: task.kill_grace.unwrap_or(DEFAULT_GRACE),
                        phase: Phase::Launching(Box::new(task)),
                        kill: None,
                    });
                    continue;
                }
                (Err(refused), _) => (refused.id, refused.message),
                (Ok(task), Some(message)) => {
                    (task.id, format!("Another task of the group was refused: {message}"))
                }
                (Ok(task), None) => (task.id, "The executor is shutting down".to_owned()),
            };
            let status = Status::new(&id, TaskState::Failed).message(message).reason(reason::INVALID);
            self.actions.push_back(Action::Update(status));
        }
    }

    /// The container of a task was launched, or not.
    pub(super) fn launched(&mut self, index: Index, launched: Result<(), String>, now: Instant) {
        let Some(member) = self.tasks.get_mut(index) else { return };
        let mut task = match std::mem::replace(&mut member.phase, Phase::Ended) {
            Phase::Launching(task) => task,
            other => {
                member.phase = other;
                return;
            }
        };
        if let Err(message) = launched {
            let state = if member.kill.is_some() { TaskState::Killed } else { TaskState::Failed };
            let status = Status::new(&member.id, state).message(message).reason(reason::LAUNCH_FAILED);
            self.actions.push_back(Action::Update(status));
            return self.end_group(index, now);
        }
        member.phase = Phase::Running {
            completion: task.max_completion_time.and_then(|limit| Some((after(now, limit)?, limit))),
            checks: Box::new(Checks::new(&mut task, now)),
        };
        // A kill while it was being launched has not reached a process.
        match member.kill.as_ref().map(Kill::is_forced) {
            None => self.actions.push_back(Action::Update(member.status())),
            Some(is_forced) => {
                member.stop();
                self.actions.push_back(match is_forced {
                    true => Action::Destroy(index),
                    false => Action::Terminate(index),
                });
            }
        }
        self.actions.push_back(Action::Wait(index));
        self.expire(now);
    }

    /// The container of a task has ended.
    pub(super) fn ended(&mut self, index: Index, end: &End, now: Instant) {
        let Some(member) = self.tasks.get_mut(index) else { return };
        if matches!(member.phase, Phase::Ended) {
            return;
        }
        self.actions.extend(member.stop().into_iter().map(|kind| Action::Abort(index, kind)));
        member.phase = Phase::Ended;
        let status = member.terminal(end);
        let ends_group = status.state != TaskState::Finished;
        self.actions.push_back(Action::Update(status));
        if ends_group {
            self.end_group(index, now);
        }
    }

    /// The agent kills a task. Returns whether it is running.
    pub(super) fn kill(&mut self, id: &str, grace: Option<Duration>, now: Instant) -> bool {
        let is_live = |member: &Member| member.id == id && !matches!(member.phase, Phase::Ended);
        let Some(index) = self.tasks.iter().position(is_live) else { return false };
        let grace = grace.unwrap_or(self.tasks[index].kill_grace);
        self.begin_kill(index, Cause::Requested, grace, None, now);
        self.expire(now);
        true
    }

    /// The executor has to end.
    pub(super) fn shut_down(&mut self, now: Instant) {
        self.is_shutting_down = true;
        let grace = self.shutdown_grace.saturating_sub(RESERVE);
        for index in 0..self.tasks.len() {
            self.begin_kill(index, Cause::Requested, grace, None, now);
        }
        self.expire(now);
    }

    /// The agent is gone for good, and with it the way to the containers.
    pub(super) fn abandon(&mut self) {
        self.is_shutting_down = true;
        for member in &mut self.tasks {
            member.phase = Phase::Ended;
        }
        self.actions.clear();
    }

    /// The agent is there again: what it was asked for is asked again.
    pub(super) fn resubscribed(&mut self) {
        for (index, member) in self.tasks.iter().enumerate() {
            match member.phase {
                Phase::Running { .. } => self.actions.push_back(Action::Wait(index)),
                Phase::Launching(_) | Phase::Ended => {}
            }
            match &member.kill {
                Some(kill) if kill.is_forced() => self.actions.push_back(Action::Destroy(index)),
                Some(_) if matches!(member.phase, Phase::Running { .. }) => {
                    self.actions.push_back(Action::Terminate(index));
                }
                _ => {}
            }
        }
    }

    /// A check has ended.
    pub(super) fn probed(&mut self, index: Index, kind: Kind, outcome: &Outcome, now: Instant) {
        let Some(Member { phase: Phase::Running { checks, .. }, .. }) = self.tasks.get_mut(index) else {
            return;
        };
        if let Some(report) = checks.finished(kind, outcome, now) {
            self.report(index, report, now);
            self.expire(now);
        }
    }

    /// To be called at [`Machine::deadline`].
    pub(super) fn expire(&mut self, now: Instant) {
        for index in 0..self.tasks.len() {
            self.expire_task(index, now);
        }
    }

    fn expire_task(&mut self, index: Index, now: Instant) {
        if let Phase::Running { checks, .. } = &mut self.tasks[index].phase {
            for step in checks.expire(now) {
                match step {
                    Step::Start(kind, target) => self.actions.push_back(Action::Probe(index, kind, target)),
                    Step::Abort(kind) => self.actions.push_back(Action::Abort(index, kind)),
                    Step::Report(report) => self.report(index, report, now),
                }
            }
        }
        let member = &mut self.tasks[index];
        if let Phase::Running { completion, .. } = &mut member.phase
            && let Some((_, limit)) = completion.take_if(|(at, _)| *at <= now)
        {
            let (grace, message) = (member.kill_grace, format!("Ran for {} s", limit.as_secs_f64()));
            self.begin_kill(index, Cause::CompletionTime, grace, Some(message), now);
        }
        let member = &mut self.tasks[index];
        if !matches!(member.phase, Phase::Ended) && member.kill.as_mut().is_some_and(|kill| kill.expire(now))
        {
            self.actions.push_back(Action::Destroy(index));
        }
    }

    /// When something is to be done next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.tasks.iter().filter_map(Member::deadline).min()
    }

    /// Whether there is nothing left to do but to have updates acknowledged.
    pub(super) fn is_finished(&self) -> bool {
        let is_over = self.is_shutting_down || self.groups > 0;
        is_over
            && self.actions.is_empty()
            && self.tasks.iter().all(|member| matches!(member.phase, Phase::Ended))
    }

    /// One task of a group has not finished as it should: the others are killed.
    fn end_group(&mut self, index: Index, now: Instant) {
        let Member { group, id, .. } = &self.tasks[index];
        let (group, message) = (*group, format!("Task `{id}` of the group has ended"));
        for other in 0..self.tasks.len() {
            if self.tasks[other].group == group && self.tasks[other].kill.is_none() {
                let grace = self.tasks[other].kill_grace;
                self.begin_kill(other, Cause::Requested, grace, Some(message.clone()), now);
            }
        }
        self.expire(now);
    }

    fn report(&mut self, index: Index, report: Report, now: Instant) {
        let member = &self.tasks[index];
        let mut status = member.status().reason(report.reason);
        status.message.clone_from(&report.message);
        let grace = member.kill_grace;
        self.actions.push_back(Action::Update(status));
        if report.kills {
            self.begin_kill(index, Cause::Unhealthy, grace, report.message, now);
        }
    }

    fn begin_kill(
        &mut self,
        index: Index,
        cause: Cause,
        grace: Duration,
        message: Option<String>,
        now: Instant,
    ) {
        let member = &mut self.tasks[index];
        if matches!(member.phase, Phase::Ended) {
            return;
        }
        if let Some(kill) = &mut member.kill {
            return kill.adjust(grace);
        }
        member.kill = Some(Kill::new(cause, grace, now));
        self.actions.extend(member.stop().into_iter().map(|kind| Action::Abort(index, kind)));
        if self.has_task_killing {
            let mut status = Status::new(&member.id, TaskState::Killing);
            status.healthy = (cause == Cause::Unhealthy).then_some(false);
            status.message = message;
            self.actions.push_back(Action::Update(status));
        }
        // A task that is being launched has no process yet; it is asked once it has.
        if matches!(member.phase, Phase::Running { .. }) {
            self.actions.push_back(Action::Terminate(index));
        }
    }
}

impl Member {
    /// Stops checks and the limit of its time. Returns what has to be aborted.
    fn stop(&mut self) -> Vec<Kind> {
        match &mut self.phase {
            Phase::Running { checks, completion } => {
                *completion = None;
                checks.stop()
            }
            Phase::Launching(_) | Phase::Ended => Vec::new(),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let kill = self.kill.as_ref().and_then(Kill::deadline);
        match &self.phase {
            Phase::Launching(_) => kill,
            Phase::Running { checks, completion } => {
                let completion = completion.as_ref().map(|(at, _)| *at);
                [kill, checks.deadline(), completion].into_iter().flatten().min()
            }
            Phase::Ended => None,
        }
    }

    /// The status while it runs.
    fn status(&self) -> Status {
        let mut status = Status::new(&self.id, TaskState::Running);
        if let Phase::Running { checks, .. } = &self.phase {
            checks.describe(&mut status);
        }
        status
    }

    /// The last status.
    fn terminal(&self, end: &End) -> Status {
        let mut status = Status::new(&self.id, TaskState::Failed);
        match end {
            End::Exited(exit) => {
                status.message = Some(format!("Command {exit}"));
                if exit.is_success() {
                    status.state = TaskState::Finished;
                } else {
                    status.reason = Some(reason::COMMAND_FAILED.to_owned());
                }
            }
            End::Terminated { is_failure, reason, message } => {
                if !is_failure {
                    status.state = TaskState::Killed;
                }
                status.reason.clone_from(reason);
                status.message.clone_from(message);
            }
        }
        // What the agent reports itself, such as an exceeded limit, stays.
        let is_limitation = matches!(end, End::Terminated { is_failure: true, .. });
        match self.kill.as_ref().map(|kill| kill.cause) {
            _ if is_limitation => {}
            Some(Cause::CompletionTime) => {
                status.state = TaskState::Failed;
                status.reason = Some(reason::MAX_COMPLETION_TIME.to_owned());
            }
            Some(cause) => {
                status.state = TaskState::Killed;
                status.reason = None;
                status.healthy = (cause == Cause::Unhealthy).then_some(false);
            }
            None => {}
        }
        status
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

    fn actions(machine: &mut Machine) -> Vec<String> {
        std::iter::from_fn(|| machine.next_action())
            .map(|action| match action {
                Action::Update(status) => format!("{} {:?}", status.task_id, status.state),
                Action::Launch(index, _) => format!("launch {index}"),
                Action::Wait(index) => format!("wait {index}"),
                Action::Terminate(index) => format!("terminate {index}"),
                Action::Destroy(index) => format!("destroy {index}"),
                Action::Probe(index, kind, _) => format!("probe {index} {kind:?}"),
                Action::Abort(index, kind) => format!("abort {index} {kind:?}"),
            })
            .collect()
    }

    /// A group of two tasks that run.
    fn running(now: Instant) -> Machine {
        let mut machine = Machine::new(5 * SECOND);
        machine.launch_group(vec![task("a", ""), task("b", "")]);
        machine.launched(0, Ok(()), now);
        machine.launched(1, Ok(()), now);
        let expected = [
            "a Starting",
            "b Starting",
            "launch 0",
            "launch 1",
            "a Running",
            "wait 0",
            "b Running",
            "wait 1",
        ];
        assert_eq!(actions(&mut machine), expected);
        machine
    }

    const EXIT_0: End = End::Exited(WaitStatus(0));
    const EXIT_1: End = End::Exited(WaitStatus(256));
    const KILLED: End = End::Terminated { is_failure: false, reason: None, message: None };

    #[test]
    fn a_task_that_finishes_leaves_the_others_alone() {
        let now = Instant::now();
        let mut machine = running(now);
        machine.ended(0, &EXIT_0, now);
        assert_eq!(actions(&mut machine), ["a Finished"]);
        assert!(!machine.is_finished());
        machine.ended(1, &EXIT_0, now);
        assert_eq!(actions(&mut machine), ["b Finished"]);
        assert!(machine.is_finished());
    }

    #[test]
    fn a_task_that_fails_ends_its_group_and_no_other() {
        let now = Instant::now();
        let mut machine = running(now);
        machine.launch_group(vec![task("c", "")]);
        machine.launched(2, Ok(()), now);
        actions(&mut machine);
        machine.ended(0, &EXIT_1, now);
        assert_eq!(actions(&mut machine), ["a Failed", "terminate 1"]);
        machine.expire(now + 3 * SECOND);
        assert_eq!(actions(&mut machine), ["destroy 1"]);
        machine.ended(1, &KILLED, now);
        assert_eq!(actions(&mut machine), ["b Killed"]);
        assert!(!machine.is_finished());
        machine.ended(2, &EXIT_0, now);
        assert_eq!(actions(&mut machine), ["c Finished"]);
    }

    #[test]
    fn a_container_that_cannot_be_launched_ends_its_group() {
        let now = Instant::now();
        let mut machine = Machine::new(5 * SECOND);
        machine.set_task_killing(true);
        machine.launch_group(vec![task("a", ""), task("b", "")]);
        actions(&mut machine);
        machine.launched(0, Err("no".to_owned()), now);
        assert_eq!(actions(&mut machine), ["a Failed", "b Killing"]);
        machine.launched(1, Ok(()), now);
        assert_eq!(actions(&mut machine), ["terminate 1", "wait 1"]);
    }

    #[test]
    fn a_task_whose_grace_period_is_over_when_it_starts_is_destroyed() {
        let now = Instant::now();
        let mut machine = Machine::new(5 * SECOND);
        machine.launch_group(vec![task("a", "")]);
        assert!(machine.kill("a", Some(SECOND), now));
        actions(&mut machine);
        machine.expire(now + SECOND);
        // The agent may not know the container yet.
        assert_eq!(actions(&mut machine), ["destroy 0"]);
        machine.launched(0, Ok(()), now + SECOND);
        assert_eq!(actions(&mut machine), ["destroy 0", "wait 0"]);
    }

    #[test]
    fn a_group_with_a_task_that_is_refused_is_not_launched() {
        let mut machine = Machine::new(5 * SECOND);
        machine.launch_group(vec![task("a", ""), task("b", r#","check":{"type":"X"}"#)]);
        assert_eq!(actions(&mut machine), ["a Starting", "b Starting", "a Failed", "b Failed"]);
        assert!(machine.is_finished());
    }

    #[test]
    fn a_limit_that_was_exceeded_is_reported_even_of_a_killed_task() {
        let now = Instant::now();
        let mut machine = running(now);
        assert!(machine.kill("a", None, now));
        actions(&mut machine);
        let reason = Some("REASON_CONTAINER_LIMITATION_MEMORY".to_owned());
        machine.ended(0, &End::Terminated { is_failure: true, reason: reason.clone(), message: None }, now);
        let Some(Action::Update(status)) = machine.next_action() else { panic!() };
        assert_eq!((status.state, status.reason), (TaskState::Failed, reason));
    }

    #[test]
    fn an_agent_that_comes_back_is_asked_again() {
        let now = Instant::now();
        let mut machine = running(now);
        machine.kill("a", Some(Duration::ZERO), now);
        actions(&mut machine);
        machine.resubscribed();
        assert_eq!(actions(&mut machine), ["wait 0", "destroy 0", "wait 1"]);
        machine.kill("b", None, now);
        actions(&mut machine);
        machine.resubscribed();
        assert_eq!(actions(&mut machine), ["wait 0", "destroy 0", "wait 1", "terminate 1"]);
        machine.abandon();
        assert!(machine.is_finished());
    }

    proptest! {
        /// Whatever happens in which order: each task gets one terminal state, and nothing after it.
        #[test]
        fn each_task_has_one_terminal_state(steps in proptest::collection::vec((0..8_u8, 0..3_usize), 0..60)) {
            let mut now = Instant::now();
            let mut machine = Machine::new(5 * SECOND);
            let health = r#","health_check":{"type":"TCP","tcp":{"port":1}}"#;
            machine.launch_group(vec![task("0", health), task("1", ""), task("2", health)]);
            let mut ended = [false; 3];
            for (step, index) in steps {
                match step {
                    0 => machine.launched(index, Ok(()), now),
                    1 => machine.launched(index, Err(String::new()), now),
                    2 => machine.ended(index, &EXIT_0, now),
                    3 => machine.ended(index, &EXIT_1, now),
                    4 => drop(machine.kill(&index.to_string(), None, now)),
                    5 => machine.probed(index, Kind::Health, &Outcome::Connected(false), now),
                    6 => machine.resubscribed(),
                    _ => now += 4 * SECOND,
                }
                machine.expire(now);
                prop_assert!(machine.deadline().is_none_or(|deadline| deadline > now));
                while let Some(action) = machine.next_action() {
                    if let Action::Update(status) = action {
                        let index: usize = status.task_id.parse().unwrap();
                        prop_assert!(!ended[index], "{status:?} after the end");
                        ended[index] =
                            matches!(status.state, TaskState::Finished | TaskState::Failed | TaskState::Killed);
                    }
                }
            }
            prop_assert_eq!(machine.is_finished(), ended == [true; 3]);
        }
    }
}
