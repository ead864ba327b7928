//! What each container should be, from the calls that were made and what was done to its processes.

use std::collections::{BTreeMap, BTreeSet};

use cofferdam::api::operator::types::Termination;
use cofferdam_core::model::ContainerId;
use fastrand::Rng;

/// What a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Runs until it is killed.
    Sleeps,
    /// The same, with processes of its own, some of them in other sessions.
    Forks,
    /// Exits with 42 when it gets SIGTERM.
    Traps,
    /// Exits at once.
    Exits(i32),
    /// Exits in a while.
    Later(i32),
    /// Cannot be executed.
    Missing,
}

impl Program {
    pub fn random(rng: &mut Rng) -> Self {
        match rng.u8(..16) {
            0..4 => Self::Sleeps,
            4..7 => Self::Forks,
            7..10 => Self::Traps,
            10..12 => Self::Exits(rng.i32(0..4)),
            12..15 => Self::Later(rng.i32(0..4)),
            _ => Self::Missing,
        }
    }

    /// Its shell command.
    pub fn line(self) -> String {
        match self {
            Self::Sleeps => "exec sleep 100000".into(),
            Self::Forks => "sleep 100000 & (sleep 100000 & sleep 100000) & exec sleep 100000".into(),
            Self::Traps => "trap 'exit 42' TERM; while :; do sleep 0.1; done".into(),
            Self::Exits(status) => format!("exit {status}"),
            Self::Later(status) => format!("sleep 0.{}; exit {status}", status + 1),
            Self::Missing => "/no/such/program".into(),
        }
    }

    pub fn ends_by_itself(self) -> bool {
        matches!(self, Self::Exits(_) | Self::Later(_))
    }
}

/// Whether a container is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Certain,
    /// The agent was killed before it had answered the launch.
    LaunchInterrupted,
    /// The agent was killed before it had answered the removal.
    RemovalInterrupted,
}

/// What a container should be.
#[derive(Debug, Clone)]
pub struct Container {
    pub program: Program,
    pub presence: Presence,
    /// How it has ended, once the agent has said so.
    pub ended: Option<Termination>,
    /// Whether it may have ended, or be about to.
    pub may_end: bool,
    /// The exit statuses that it can have.
    pub statuses: BTreeSet<i32>,
    /// Whether its exit status may be unknown.
    pub may_be_unknown: bool,
    /// Its process, once the agent has said so.
    pub pid: Option<i32>,
    /// Amounts of CPUs that its record may have.
    pub cpus: Vec<f64>,
    /// Whether the plugin that is exchanged takes part in it.
    pub participates: bool,
}

impl Container {
    pub fn new(program: Program, cpus: f64, participates: bool) -> Self {
        let status = match program {
            Program::Exits(status) | Program::Later(status) => Some(status << 8),
            _ => None,
        };
        Self {
            program,
            presence: Presence::Certain,
            ended: None,
            may_end: program.ends_by_itself(),
            statuses: status.into_iter().collect(),
            may_be_unknown: false,
            pid: None,
            cpus: vec![cpus],
            participates,
        }
    }

    fn is_live(&self) -> bool {
        self.ended.is_none()
    }

    /// Something was done that may end it, with one of these statuses if it does.
    fn may_end_with(&mut self, statuses: &[i32]) {
        if self.is_live() {
            self.may_end = true;
            self.statuses.extend(statuses);
        }
    }
}

/// All containers.
#[derive(Debug, Default)]
pub struct Model(pub BTreeMap<ContainerId, Container>);

/// Whether a container is another one, or nested in it.
pub fn is_within(id: &ContainerId, ancestor: &ContainerId) -> bool {
    let mut next = Some(id.clone());
    while let Some(id) = next {
        if id == *ancestor {
            return true;
        }
        next = id.parent();
    }
    false
}

impl Model {
    pub fn within(&self, id: &ContainerId) -> Vec<ContainerId> {
        self.0.keys().filter(|other| is_within(other, id)).cloned().collect()
    }

    /// Whether a container has ended, or will without being killed.
    pub fn ends_by_itself(&self, id: &ContainerId) -> bool {
        self.0.get(id).is_some_and(|container| !container.is_live() || container.program.ends_by_itself())
    }

    pub fn is_live(&self, id: &ContainerId) -> bool {
        self.0.get(id).is_some_and(Container::is_live)
    }

    /// Whether a container, or one that it is nested in, may have ended.
    pub fn may_end(&self, id: &ContainerId) -> bool {
        let may_end =
            |container: &Container| container.may_end || container.presence == Presence::LaunchInterrupted;
        self.0.iter().any(|(other, container)| is_within(id, other) && may_end(container))
    }

    /// A container was killed, or one that it is nested in.
    pub fn killed(&mut self, id: &ContainerId) {
        for (_, container) in self.0.iter_mut().filter(|(other, _)| is_within(other, id)) {
            container.may_end_with(&[libc::SIGKILL]);
        }
    }

    /// SIGTERM was sent to a container. Those nested in it end with it.
    pub fn terminated(&mut self, id: &ContainerId) {
        self.killed_within(id);
        if let Some(container) = self.0.get_mut(id) {
            // Before it has set its trap, it is killed by the signal.
            let trapped = (container.program == Program::Traps).then_some(42 << 8);
            let statuses: Vec<i32> = trapped.into_iter().chain([libc::SIGTERM]).collect();
            container.may_end_with(&statuses);
        }
    }

    /// A container may end, and with it those nested in it.
    pub fn killed_within(&mut self, id: &ContainerId) {
        for (_, container) in self.0.iter_mut().filter(|(other, _)| *other != id && is_within(other, id)) {
            container.may_end_with(&[libc::SIGKILL]);
        }
    }

    /// The keeper was killed, which knows how containers end.
    pub fn lost_keeper(&mut self) {
        self.0.values_mut().filter(|container| container.is_live()).for_each(|container| {
            container.may_be_unknown = true;
        });
    }

    /// The agent has said how a container ended.
    pub fn ended(&mut self, id: &ContainerId, termination: &Termination) -> Result<(), String> {
        let may_end = self.may_end(id);
        let Some(container) = self.0.get_mut(id) else { return Err(format!("`{id}` is not known")) };
        if let Some(before) = &container.ended {
            let (is, was) = (summary(termination), summary(before));
            return if is == was {
                Ok(())
            } else {
                Err(format!("`{id}` has ended by {was}, and now by {is}"))
            };
        }
        if !may_end {
            return Err(format!("nothing ended `{id}`: {termination:?}"));
        }
        let never_ran = container.presence == Presence::LaunchInterrupted;
        match termination.exit_status {
            Some(status) if !container.statuses.contains(&status) => {
                return Err(format!("`{id}` cannot have ended by {status}: {container:?}"));
            }
            None if !container.may_be_unknown && !never_ran => {
                return Err(format!("the status of `{id}` is not unknown: {termination:?}"));
            }
            None if termination.message.is_none() => {
                return Err(format!("nothing says why the status of `{id}` is unknown: {termination:?}"));
            }
            _ => {}
        }
        container.ended = Some(termination.clone());
        container.may_end = true;
        // Those nested in it ended before.
        container.presence = Presence::Certain;
        Ok(())
    }
}

/// What must never change. Long messages are cut where the disk was full.
fn summary(termination: &Termination) -> String {
    format!("{:?}, {:?}, {:?}", termination.exit_status, termination.state, termination.reason)
}

impl Model {
    /// A container was launched in one that may end.
    pub fn inherits_end(&mut self, id: &ContainerId) {
        if id.parent().is_some_and(|parent| self.may_end(&parent)) {
            self.killed(id);
        }
    }
}
