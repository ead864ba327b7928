//! Makes an agent fail, kills it, its keeper, or both, or stops its keeper, at a chosen one of its effects.
//!
//! ```text
//! agent, its children, init                       the injector's thread
//! ─────────────────────────                       ─────────────────────
//! mkdir, write, clone3, mount, … ── waits ──────▶ is it an effect? which number?
//!                                ◀── continues ── another one
//!                                ◀── fails ────── the chosen one, or
//!                                ◀── SIGKILL ──── the chosen one
//! ```
//!
//! The agent is the real program, without any test hook: a seccomp filter that it inherits notifies the injector before
//! each call that may have an effect. Which calls count as a step is in `effect.rs`. A container's command inherits the
//! filter too, and its calls are never counted.

mod effect;
mod kernel;

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use cofferdam_linux::process::Process;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};

use crate::daemon::{TIMEOUT, keepers};
pub use effect::{Actor, Effect};

/// What happens at the chosen step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call is not made, and fails with an error that it can have.
    Fail,
    /// The agent is killed before the call is made.
    Kill,
    /// The keeper is killed before the call is made.
    KillKeeper,
    /// The agent and the keeper are killed before the call is made.
    KillBoth,
    /// The keeper is stopped before the call is made.
    StopKeeper,
    /// The call is not made before [`Injector::release`].
    Hold,
}

/// Injects faults into an agent and its descendants.
#[derive(Debug)]
pub struct Injector {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// A call is held, or the injector was disarmed.
    changed: Condvar,
}

/// Effects of an agent while its injector was armed.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// All effects in order, including those with a fault.
    pub effects: Vec<Effect>,
    /// Effects with a fault.
    pub hit: Vec<Effect>,
}

#[derive(Default)]
struct State {
    armed: Option<Armed>,
    agent: Option<Process>,
    listener: Option<Arc<OwnedFd>>,
    /// Calls that are held.
    held: Vec<u64>,
}

struct Armed {
    fault: Fault,
    /// The numbers of the steps at which to inject, from 1.
    steps: Vec<usize>,
    seen: Seen,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("armed", &self.armed.is_some()).finish_non_exhaustive()
    }
}

impl Injector {
    /// Starts an agent with an injector that is not armed.
    ///
    /// # Errors
    /// If the program does not start, or the kernel has no seccomp user notification.
    pub fn spawn(mut command: Command) -> io::Result<(Child, Self)> {
        let socket = kernel::install(&mut command, &effect::calls())?;
        // `spawn` waits for the exec, which already is a notification: so another thread responds.
        let shared = Arc::new(Shared::default());
        let thread_shared = Arc::clone(&shared);
        let answers = thread::Builder::new().name("injector".into()).spawn(move || {
            // Fails if the spawn has failed.
            if let Ok(listener) = kernel::listener(&socket) {
                let listener = Arc::new(listener);
                lock(&thread_shared.state).listener = Some(Arc::clone(&listener));
                serve(&listener, &thread_shared);
            }
        })?;
        let child = command.spawn();
        // Closes its copy of the socket's other end, or the thread would wait for ever after a failed spawn.
        drop(command);
        drop(answers);
        let child = child?;
        let pid = i32::try_from(child.id()).expect("a pid");
        lock(&shared.state).agent = Some(Process::open_any(pid).map_err(io::Error::other)?);
        Ok((child, Self { shared }))
    }

    /// Starts counting effects, and injects `fault` at `steps`, counted from 1.
    pub fn arm(&self, fault: Fault, steps: &[usize]) {
        lock(&self.shared.state).armed =
            Some(Armed { fault, steps: steps.to_owned(), seen: Seen::default() });
    }

    /// Stops injecting, and returns the effects.
    pub fn disarm(&self) -> Seen {
        let armed = lock(&self.shared.state).armed.take();
        self.shared.changed.notify_all();
        armed.map(|armed| armed.seen).unwrap_or_default()
    }

    /// Waits until a call is held. False if the injector was disarmed.
    pub fn wait_held(&self) -> bool {
        let nothing = |state: &mut State| state.held.is_empty() && state.armed.is_some();
        let state = self.shared.changed.wait_while(lock(&self.shared.state), nothing);
        !state.unwrap_or_else(PoisonError::into_inner).held.is_empty()
    }

    /// Continues the calls that are held.
    pub fn release(&self) {
        let mut state = lock(&self.shared.state);
        let Some(listener) = state.listener.clone() else { return };
        for id in state.held.drain(..) {
            kernel::respond(&listener, id, None).expect("a waiting call takes a response");
        }
    }
}

/// Responds until all processes with the filter have ended.
fn serve(listener: &OwnedFd, shared: &Shared) {
    loop {
        let mut waits = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut waits, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => panic!("cannot wait for an agent's calls: {error}"),
            Ok(_) if waits[0].revents().contains(PollFlags::IN) => {}
            Ok(_) => return,
        }
        let call = match kernel::next(listener) {
            Ok(Some(call)) => call,
            Ok(None) => continue,
            Err(error) => panic!("cannot read an agent's call: {error}"),
        };
        match decide(&call, &mut lock(&shared.state)) {
            Verdict::Hold => shared.changed.notify_all(),
            Verdict::Continue => {
                kernel::respond(listener, call.id, None).expect("a waiting call takes a response")
            }
            Verdict::Fail(errno) => {
                kernel::respond(listener, call.id, Some(errno)).expect("a waiting call takes a response")
            }
        }
    }
}

/// What happens to a call.
enum Verdict {
    Continue,
    Fail(i32),
    /// The response is sent later.
    Hold,
}

/// Decides what happens to a call.
fn decide(call: &kernel::PendingCall, state: &mut State) -> Verdict {
    let State { armed: Some(armed), agent: Some(agent), held, .. } = state else { return Verdict::Continue };
    let Some(effect) = effect::effect(call, agent.pid()) else { return Verdict::Continue };
    armed.seen.effects.push(effect.clone());
    if !armed.steps.contains(&armed.seen.effects.len()) {
        return Verdict::Continue;
    }
    let errno = effect.errno;
    armed.seen.hit.push(effect.clone());
    match armed.fault {
        Fault::Fail => Verdict::Fail(errno),
        Fault::Kill => {
            let by_agent = effect.by == Actor::Agent;
            agent.kill().expect("a child can be killed");
            // The agent must not make its last call; calls of other processes continue.
            if by_agent { Verdict::Fail(errno) } else { Verdict::Continue }
        }
        Fault::KillKeeper => {
            kill_keeper(agent);
            // As above.
            if effect.by == Actor::Keeper { Verdict::Fail(errno) } else { Verdict::Continue }
        }
        Fault::KillBoth => {
            kill_keeper(agent);
            agent.kill().expect("a child can be killed");
            let by_killed = matches!(effect.by, Actor::Agent | Actor::Keeper);
            if by_killed { Verdict::Fail(errno) } else { Verdict::Continue }
        }
        Fault::StopKeeper => {
            for keeper in keepers(agent.pid()) {
                keeper.signal(Signal::SIGSTOP as i32).expect("a child of the agent can be signalled");
            }
            Verdict::Continue
        }
        Fault::Hold => {
            held.push(call.id);
            Verdict::Hold
        }
    }
}

/// Kills the keeper that an agent has started, if it is running, and waits until it has ended: until then, it may accept
/// requests that it does not complete.
fn kill_keeper(agent: &Process) {
    for keeper in keepers(agent.pid()) {
        keeper.kill().expect("a child of the agent can be killed");
        assert!(keeper.wait(Some(TIMEOUT)).expect("a process can be waited for"), "the keeper has not ended");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
