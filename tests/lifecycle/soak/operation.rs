//! Calls of clients: which are made, what they may answer, and what they change.

use std::fmt;

use cofferdam::api::operator::types::Termination;
use cofferdam_core::model::{ContainerId, Request};
use cofferdam_tests::daemon::{CallError, Daemon};
use fastrand::Rng;
use nix::sys::signal::Signal;

use super::model::{Container, Model, Presence, Program};

/// Names of containers in one place.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// Containers are nested this deep.
const DEPTH: usize = 3;

const MEMORY: f64 = 64.0;

/// What a container that is not nested requests.
const CPUS: f64 = 0.5;

/// What a nested container requests.
pub const NESTED_CPUS: f64 = 0.25;

/// A call, or two that belong together.
#[derive(Debug)]
pub enum Operation {
    Launch(Box<Request>, Program),
    /// SIGKILL, without waiting for the end.
    Kill(ContainerId),
    /// SIGKILL, and waiting for the end.
    Destroy(ContainerId),
    /// The end without plugins that do not clean up, and waiting for it.
    Force(ContainerId),
    Terminate(ContainerId),
    Wait(ContainerId),
    Update(ContainerId, f64),
    Remove(ContainerId),
    /// Only what is checked after each step.
    Nothing,
}

use Operation::{Destroy, Force, Kill, Launch, Nothing, Remove, Terminate, Update, Wait};

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Launch(request, program) => write!(f, "launch {} {program:?}", request.id),
            other => write!(f, "{other:?}"),
        }
    }
}

/// What is the case while an operation is performed.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    pub agent_is_killed: bool,
    pub keeper_is_killed: bool,
    pub keeper_is_stopped: bool,
    pub disk_is_full: bool,
    /// Whether the plugin that is exchanged is in the chain.
    pub has_plugin: bool,
}

impl Operation {
    /// An operation on a container of one family: the one of this name, or one nested in it.
    pub fn random(
        rng: &mut Rng,
        model: &Model,
        family: &ContainerId,
        has_plugin: bool,
        request: impl Fn(ContainerId, Program) -> Request,
    ) -> Self {
        let launch = |rng: &mut Rng, id| {
            let program = Program::random(rng);
            Launch(Box::new(request(id, program)), program)
        };
        let within = model.within(family);
        if within.is_empty() {
            return launch(rng, family.clone());
        }
        let id = within[rng.usize(..within.len())].clone();
        let waits_for_plugin =
            !has_plugin && model.within(&id).iter().any(|id| model.is_live(id) && model.0[id].participates);
        // Those that have ended leave their place to new ones.
        if !model.is_live(family) && rng.bool() {
            return Remove(family.clone());
        }
        match rng.u8(..20) {
            0..7 => {
                let parent = if id.values().count() < DEPTH { id } else { family.clone() };
                let name = NAMES[rng.usize(..NAMES.len())];
                let child = ContainerId::parse(&format!("{parent}.{name}")).unwrap();
                if model.0.contains_key(&child) { Nothing } else { launch(rng, child) }
            }
            7..10 if waits_for_plugin => Force(id),
            7..10 => Destroy(id),
            10 => Kill(id),
            11..13 => Terminate(id),
            13 if !waits_for_plugin && model.ends_by_itself(&id) => Wait(id),
            13..16 => Update(family.clone(), [NESTED_CPUS, CPUS, 1.0][rng.usize(..3)]),
            16..19 => Remove(id),
            _ => Nothing,
        }
    }

    /// Makes the call.
    pub fn perform(&self, daemon: &Daemon) -> Result<Option<Termination>, CallError> {
        match self {
            Launch(request, _) => daemon.launch(request)?,
            Kill(id) => daemon.signal(id, Signal::SIGKILL)?,
            Destroy(id) => return daemon.destroy(id).map(Some),
            Force(id) => {
                daemon.force(id)?;
                return daemon.wait(id).map(Some);
            }
            Terminate(id) => daemon.signal(id, Signal::SIGTERM)?,
            Wait(id) => return daemon.wait(id).map(Some),
            Update(id, cpus) => daemon.update(id, &[("cpus", *cpus), ("mem", MEMORY)])?,
            Remove(id) => daemon.remove(id)?,
            Nothing => {}
        }
        Ok(None)
    }

    /// Checks the answer, and changes the model by it.
    pub fn conclude(
        self,
        answer: Result<Option<Termination>, CallError>,
        now: Circumstances,
        model: &mut Model,
    ) -> Result<(), String> {
        let unexpected = format!("{self}: unexpected: {answer:?}, {now:?}");
        let status = match &answer {
            Ok(_) => 200,
            Err(CallError::Status(status, _)) => *status,
            Err(CallError::Disconnected(_)) => 0,
        };
        if status == 0 && !now.agent_is_killed {
            return Err(unexpected);
        }
        let is_refused_for_space = now.disk_is_full && unexpected.contains("No space left");
        let is_allowed = match self {
            Launch(request, program) => {
                let id = request.id.clone();
                let container = || {
                    Container::new(program, if id.is_nested() { NESTED_CPUS } else { CPUS }, now.has_plugin)
                };
                match status {
                    0 => {
                        let presence = Presence::LaunchInterrupted;
                        model.0.insert(id.clone(), Container { presence, ..container() });
                        model.inherits_end(&id);
                        true
                    }
                    200 if program != Program::Missing => {
                        model.0.insert(id.clone(), container());
                        model.inherits_end(&id);
                        true
                    }
                    400 if program == Program::Missing => true,
                    // The parent has ended, or ends meanwhile.
                    400..=599 if id.parent().is_some_and(|parent| model.may_end(&parent)) => true,
                    500 => is_refused_for_space || now.keeper_is_killed,
                    _ => false,
                }
            }
            Kill(id) | Destroy(id) | Force(id) => {
                let could_have_ended = model.may_end(&id);
                if status == 0 || status == 200 {
                    model.killed(&id);
                }
                if let Ok(Some(termination)) = answer {
                    model.ended(&id, &termination)?;
                }
                matches!(status, 0 | 200) || status == 404 && could_have_ended
            }
            Terminate(id) => {
                let could_have_ended = model.may_end(&id);
                model.terminated(&id);
                // It is known, but has no process any more, or not yet.
                matches!(status, 0 | 200) || matches!(status, 404 | 500) && could_have_ended
            }
            Wait(id) => {
                if let Ok(Some(termination)) = answer {
                    model.ended(&id, &termination)?;
                }
                matches!(status, 0 | 200)
            }
            Update(id, cpus) => {
                let could_have_ended = model.may_end(&id);
                if let Some(container) = model.0.get_mut(&id) {
                    match status {
                        200 => container.cpus = vec![cpus],
                        // Neither before nor after it is it recorded that it was not made.
                        0 | 500 => container.cpus.push(cpus),
                        _ => {}
                    }
                }
                matches!(status, 0 | 200)
                    || matches!(status, 404 | 409 | 500) && could_have_ended
                    || status == 500 && is_refused_for_space
            }
            Remove(id) => {
                let within = model.within(&id);
                let may_have_ended = within.iter().all(|id| model.may_end(id));
                let may_be_live = within.iter().any(|id| model.is_live(id));
                let cleanup_may_be_missed = within.iter().any(|id| model.0[id].participates);
                for id in within {
                    match status {
                        200 => drop(model.0.remove(&id)),
                        0 if may_have_ended => {
                            model.0.get_mut(&id).unwrap().presence = Presence::RemovalInterrupted;
                        }
                        _ => {}
                    }
                }
                match status {
                    0 => true,
                    200 => may_have_ended,
                    409 => may_be_live || cleanup_may_be_missed && !now.has_plugin,
                    _ => false,
                }
            }
            Nothing => true,
        };
        if is_allowed { Ok(()) } else { Err(unexpected) }
    }
}
