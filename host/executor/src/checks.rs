//! When the checks of a task are done, and what their results mean.

use std::time::{Duration, Instant};

use crate::message::{Check, HealthCheck, Service, Target, Task, Timing, after};
use crate::status::{CheckStatus, CommandResult, HttpResult, Status, TcpResult, reason};
use crate::wait_status::WaitStatus;

/// One of the two checks that a task can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Health,
    Check,
}

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Exited(WaitStatus),
    /// An HTTP status.
    Answered(u16),
    Connected(bool),
    /// It could not be done.
    Failed(String),
    /// The agent could not do it for now, so it says nothing of the task. As in Mesos, it has no result.
    NotDone,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Start(Kind, Target),
    /// It takes too long: it is to be stopped, and has no outcome.
    Abort(Kind),
    Report(Report),
}

/// A result that is worth an update.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) reason: &'static str,
    pub(crate) message: Option<String>,
    /// Whether the task is to be killed.
    pub(crate) kills: bool,
}

/// The checks of a task.
#[derive(Debug)]
pub(crate) struct Checks {
    health: Option<Health>,
    check: Option<Checker>,
}

#[derive(Debug)]
struct Health {
    schedule: Schedule,
    spec: HealthCheck,
    grace_until: Option<Instant>,
    has_succeeded: bool,
    failures: u32,
    healthy: Option<bool>,
}

#[derive(Debug)]
struct Checker {
    schedule: Schedule,
    spec: Check,
    status: CheckStatus,
}

impl Checks {
    /// The checks of a task that runs since now.
    pub(crate) fn new(task: &mut Task, now: Instant) -> Self {
        Self {
            health: task.health_check.take().map(|spec| Health {
                schedule: Schedule::new(spec.timing, now),
                grace_until: after(now, spec.grace_period),
                has_succeeded: false,
                failures: 0,
                healthy: None,
                spec,
            }),
            check: task.check.take().map(|spec| Checker {
                schedule: Schedule::new(spec.timing, now),
                status: no_result(&spec.target),
                spec,
            }),
        }
    }

    /// Adds the results so far to a status of the running task.
    pub(crate) fn describe(&self, status: &mut Status) {
        status.healthy = self.health.as_ref().and_then(|health| health.healthy);
        status.check_status = self.check.as_ref().map(|check| check.status);
    }

    /// Stops checking for good. Returns what has to be aborted.
    pub(crate) fn stop(&mut self) -> Vec<Kind> {
        let health = self.health.as_mut().is_some_and(|health| health.schedule.stop());
        let check = self.check.as_mut().is_some_and(|check| check.schedule.stop());
        [(Kind::Health, health), (Kind::Check, check)]
            .into_iter()
            .filter_map(|(kind, is_running)| is_running.then_some(kind))
            .collect()
    }

    /// When something is to be done next.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let health = self.health.as_ref().and_then(|health| health.schedule.deadline());
        let check = self.check.as_ref().and_then(|check| check.schedule.deadline());
        [health, check].into_iter().flatten().min()
    }

    /// What is to be done now.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        if let Some(health) = &mut self.health {
            match health.schedule.expire(now) {
                Some(Due::Start) => steps.push(Step::Start(Kind::Health, health.spec.target.clone())),
                Some(Due::TimedOut(timeout)) => {
                    steps.push(Step::Abort(Kind::Health));
                    steps.extend(health.finished(&timed_out(timeout), now).map(Step::Report));
                }
                None => {}
            }
        }
        if let Some(check) = &mut self.check {
            match check.schedule.expire(now) {
                Some(Due::Start) => steps.push(Step::Start(Kind::Check, check.spec.target.clone())),
                Some(Due::TimedOut(timeout)) => {
                    steps.push(Step::Abort(Kind::Check));
                    steps.extend(check.finished(&timed_out(timeout), now).map(Step::Report));
                }
                None => {}
            }
        }
        steps
    }

    /// A check has ended.
    pub(crate) fn finished(&mut self, kind: Kind, outcome: &Outcome, now: Instant) -> Option<Report> {
        match kind {
            Kind::Health => self.health.as_mut()?.finished(outcome, now),
            Kind::Check => self.check.as_mut()?.finished(outcome, now),
        }
    }
}

fn timed_out(timeout: Duration) -> Outcome {
    Outcome::Failed(format!("timed out after {} s", timeout.as_secs_f64()))
}

impl Health {
    fn finished(&mut self, outcome: &Outcome, now: Instant) -> Option<Report> {
        if !self.schedule.finish(now) || *outcome == Outcome::NotDone {
            return None;
        }
        let Some(failure) = failure(outcome) else {
            // Only what changes something is reported.
            let is_news = !self.has_succeeded || self.failures > 0;
            self.has_succeeded = true;
            self.failures = 0;
            self.healthy = Some(true);
            return is_news.then_some(Report { reason: reason::HEALTH, message: None, kills: false });
        };
        let in_grace = self.grace_until.is_none_or(|until| now < until);
        if !self.has_succeeded && in_grace {
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        self.healthy = Some(false);
        let kills = self.failures >= self.spec.consecutive_failures;
        let message = Some(format!("Health check {failure}"));
        Some(Report { reason: reason::HEALTH, message, kills })
    }
}

/// Why an outcome is no success.
fn failure(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Exited(status) if status.is_success() => None,
        Outcome::Exited(status) => Some(format!("failed: the command {status}")),
        Outcome::Answered(200..400) => None,
        Outcome::Answered(code) => Some(format!("failed: HTTP status {code}")),
        Outcome::Connected(true) | Outcome::NotDone => None,
        Outcome::Connected(false) => Some("failed: no connection".to_owned()),
        Outcome::Failed(message) => Some(format!("failed: {message}")),
    }
}

impl Checker {
    fn finished(&mut self, outcome: &Outcome, now: Instant) -> Option<Report> {
        if !self.schedule.finish(now) || *outcome == Outcome::NotDone {
            return None;
        }
        let status = match outcome {
            Outcome::Exited(status) => {
                CheckStatus::Command { command: CommandResult { exit_code: Some(status.code()) } }
            }
            Outcome::Answered(code) => CheckStatus::Http { http: HttpResult { status_code: Some(*code) } },
            Outcome::Connected(succeeded) => {
                CheckStatus::Tcp { tcp: TcpResult { succeeded: Some(*succeeded) } }
            }
            Outcome::Failed(_) | Outcome::NotDone => no_result(&self.spec.target),
        };
        if status == self.status {
            return None;
        }
        self.status = status;
        let message = match outcome {
            Outcome::Failed(message) => Some(format!("Check failed: {message}")),
            _ => None,
        };
        Some(Report { reason: reason::CHECK, message, kills: false })
    }
}

fn no_result(target: &Target) -> CheckStatus {
    match target {
        Target::Command { .. } => CheckStatus::Command { command: CommandResult::default() },
        Target::Network(Service::Http { .. }) => CheckStatus::Http { http: HttpResult::default() },
        Target::Network(Service::Tcp { .. }) => CheckStatus::Tcp { tcp: TcpResult::default() },
    }
}

/// When a check is done: a delay, then an interval after each end.
#[derive(Debug)]
struct Schedule {
    timing: Timing,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting(Instant),
    Running { timeout: Option<Instant> },
    Stopped,
}

#[derive(Debug, PartialEq, Eq)]
enum Due {
    Start,
    TimedOut(Duration),
}

impl Schedule {
    fn new(timing: Timing, now: Instant) -> Self {
        Self { timing, state: wait(now, timing.delay) }
    }

    fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting(until) => Some(until),
            State::Running { timeout } => timeout,
            State::Stopped => None,
        }
    }

    fn expire(&mut self, now: Instant) -> Option<Due> {
        match self.state {
            State::Waiting(until) if until <= now => {
                let timeout = self.timing.timeout.and_then(|timeout| after(now, timeout));
                self.state = State::Running { timeout };
                Some(Due::Start)
            }
            State::Running { timeout: Some(timeout) } if timeout <= now => {
                Some(Due::TimedOut(self.timing.timeout.unwrap_or_default()))
            }
            _ => None,
        }
    }

    /// Whether a check was being done.
    fn finish(&mut self, now: Instant) -> bool {
        let was_running = matches!(self.state, State::Running { .. });
        if was_running {
            self.state = wait(now, self.timing.interval);
        }
        was_running
    }

    /// Whether a check was being done.
    fn stop(&mut self) -> bool {
        let state = std::mem::replace(&mut self.state, State::Stopped);
        matches!(state, State::Running { .. })
    }
}

fn wait(now: Instant, duration: Duration) -> State {
    after(now, duration).map_or(State::Stopped, State::Waiting)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;
    use crate::status::TaskState;

    const SECOND: Duration = Duration::from_secs(1);

    fn task(checks: &str) -> Task {
        let text = format!(r#"{{"task_id":{{"value":"t"}},{checks}}}"#);
        Task::parse(&RawValue::from_string(text).unwrap()).unwrap().unwrap()
    }

    fn healthy(checks: &Checks) -> Option<bool> {
        let mut status = Status::new("t", TaskState::Running);
        checks.describe(&mut status);
        status.healthy
    }

    /// A health check each second, whose outcomes are given.
    fn run(start: Instant, checks: &mut Checks, outcomes: &[bool]) -> Vec<Option<bool>> {
        let mut reports = Vec::new();
        for outcome in outcomes {
            let now = checks.deadline().unwrap();
            assert!(now >= start);
            assert!(matches!(checks.expire(now)[..], [Step::Start(Kind::Health, _)]));
            let report = checks.finished(Kind::Health, &Outcome::Connected(*outcome), now);
            reports.push(report.map(|report| report.kills));
        }
        reports
    }

    const HEALTH: &str = r#""health_check":{"type":"TCP","tcp":{"port":1},"delay_seconds":1,"interval_seconds":1,
        "consecutive_failures":2,"grace_period_seconds":2.5}"#;

    #[test]
    fn failures_in_the_grace_period_do_not_count() {
        let now = Instant::now();
        let mut checks = Checks::new(&mut task(HEALTH), now);
        assert_eq!(healthy(&checks), None);
        let reports = run(now, &mut checks, &[false, false, false, false]);
        assert_eq!(reports, [None, None, Some(false), Some(true)]);
        assert_eq!(healthy(&checks), Some(false));
    }

    #[test]
    fn the_grace_period_ends_with_the_first_success() {
        let now = Instant::now();
        let mut checks = Checks::new(&mut task(HEALTH), now);
        let reports = run(now, &mut checks, &[true, false, true, true, false, false]);
        assert_eq!(reports, [Some(false), Some(false), Some(false), None, Some(false), Some(true)]);
    }

    #[test]
    fn a_check_that_takes_too_long_is_aborted_and_has_failed() {
        let now = Instant::now();
        let mut checks = Checks::new(
            &mut task(
                r#""check":{"type":"HTTP","http":{"port":1},"delay_seconds":0,"interval_seconds":5,"timeout_seconds":2}"#,
            ),
            now,
        );
        assert!(matches!(checks.expire(now)[..], [Step::Start(Kind::Check, _)]));
        let report = checks.finished(Kind::Check, &Outcome::Answered(200), now);
        assert_eq!(report.unwrap().reason, reason::CHECK);
        let next = now + 5 * SECOND;
        assert!(matches!(checks.expire(next)[..], [Step::Start(..)]));
        let steps = checks.expire(next + 2 * SECOND);
        let [Step::Abort(Kind::Check), Step::Report(report)] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!(report.message.as_deref(), Some("Check failed: timed out after 2 s"));
        let late = checks.finished(Kind::Check, &Outcome::Answered(500), next + 3 * SECOND);
        assert_eq!(late, None, "it was aborted");
        assert_eq!(checks.deadline(), Some(next + 7 * SECOND));
    }

    #[test]
    fn a_result_is_reported_when_it_changes() {
        let now = Instant::now();
        let text = r#""check":{"type":"COMMAND","command":{"command":{"value":"x"}},"delay_seconds":0,"interval_seconds":0}"#;
        let mut checks = Checks::new(&mut task(text), now);
        let results: Vec<bool> = [0, 0, 1 << 8, 9, 9]
            .into_iter()
            .map(|raw| {
                checks.expire(now);
                checks.finished(Kind::Check, &Outcome::Exited(WaitStatus(raw)), now).is_some()
            })
            .collect();
        assert_eq!(results, [true, false, true, true, false]);
        assert_eq!(checks.stop(), []);
        assert_eq!(checks.deadline(), None);
    }

    proptest! {
        /// A task is killed exactly when as many checks in a row have failed outside of the grace period.
        #[test]
        fn a_task_is_killed_after_failures_in_a_row(outcomes in proptest::collection::vec(any::<bool>(), 0..40)) {
            let now = Instant::now();
            let mut checks = Checks::new(&mut task(HEALTH), now);
            let reports = run(now, &mut checks, &outcomes);
            let (mut failures, mut succeeded) = (0, false);
            for (index, (outcome, report)) in outcomes.iter().zip(reports).enumerate() {
                let in_grace = !succeeded && index < 2;
                failures = if *outcome { 0 } else if in_grace { failures } else { failures + 1 };
                succeeded |= outcome;
                prop_assert_eq!(report == Some(true), failures >= 2);
            }
        }
    }
}
