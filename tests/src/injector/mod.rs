//! Makes an agent fail, or die, at whichever of its outside effects a test names.
//!
//! ```text
//! agent, its children, init                       the injector's thread
//! ─────────────────────────                       ─────────────────────
//! mkdir, write, clone3, mount, … ── waits ──────▶ is it an effect? the how-manieth?
//!                                ◀── is made ──── not this one
//!                                ◀── fails ────── this one, or
//!                                ◀── SIGKILL ──── this one
//! ```
//!
//! The agent is the real one and knows nothing of this: a seccomp filter that it inherits asks us before each
//! call that may change the world. What counts as a step is in `effect.rs`. A container's command inherits the
//! filter, too, and its calls are never counted.

mod effect;
mod kernel;

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use cofferdam_linux::process::Process;
use rustix::event::{PollFd, PollFlags, poll};

pub use effect::{Actor, Effect};

/// What happens at the chosen step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call is not made, and fails with an error that suits it.
    Fail,
    /// The agent is killed before the call is made.
    Kill,
    /// The call is not made before [`Injector::release`].
    Hold,
}

/// Watches over an agent and what comes of it.
#[derive(Debug)]
pub struct Injector {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// A call is held, or no more will be.
    changed: Condvar,
}

/// What an agent did while its injector was armed.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// Every effect that was asked for, in order, the struck ones included.
    pub effects: Vec<Effect>,
    /// Those that were struck.
    pub struck: Vec<Effect>,
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
    /// The steps to strike, from 1.
    steps: Vec<usize>,
    seen: Seen,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("armed", &self.armed.is_some()).finish_non_exhaustive()
    }
}

impl Injector {
    /// Starts an agent under an injector that is not armed.
    ///
    /// # Errors
    /// When the program does not start, or the kernel has no filters that ask.
    pub fn spawn(mut command: Command) -> io::Result<(Child, Self)> {
        let socket = kernel::make_ask(&mut command, &effect::calls())?;
        // The exec is asked about already, and `spawn` waits for it: so the answers come from another thread.
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let answers = thread::Builder::new().name("injector".into()).spawn(move || {
            // Nothing comes when the spawn has failed.
            if let Ok(listener) = kernel::listener(&socket) {
                let listener = Arc::new(listener);
                lock(&theirs.state).listener = Some(Arc::clone(&listener));
                attend(&listener, &theirs);
            }
        })?;
        let child = command.spawn();
        // Its copy of the socket's other end must go, or a spawn that failed would leave the thread waiting.
        drop(command);
        drop(answers);
        let child = child?;
        let pid = i32::try_from(child.id()).expect("a pid");
        lock(&shared.state).agent = Some(Process::open_any(pid).map_err(io::Error::other)?);
        Ok((child, Self { shared }))
    }

    /// From now on counts effects, and strikes those at `steps`, counted from 1.
    pub fn arm(&self, fault: Fault, steps: &[usize]) {
        lock(&self.shared.state).armed =
            Some(Armed { fault, steps: steps.to_owned(), seen: Seen::default() });
    }

    /// Strikes no more, and tells what was seen.
    pub fn disarm(&self) -> Seen {
        let armed = lock(&self.shared.state).armed.take();
        self.shared.changed.notify_all();
        armed.map(|armed| armed.seen).unwrap_or_default()
    }

    /// Waits until a call is held. False if none can be any more, because the injector was disarmed.
    pub fn wait_held(&self) -> bool {
        let nothing = |state: &mut State| state.held.is_empty() && state.armed.is_some();
        let state = self.shared.changed.wait_while(lock(&self.shared.state), nothing);
        !state.unwrap_or_else(PoisonError::into_inner).held.is_empty()
    }

    /// Lets the calls that are held be made.
    pub fn release(&self) {
        let mut state = lock(&self.shared.state);
        let Some(listener) = state.listener.clone() else { return };
        for id in state.held.drain(..) {
            kernel::answer(&listener, id, None).expect("a call that waits takes an answer");
        }
    }
}

/// Answers until nobody is left to ask.
fn attend(listener: &OwnedFd, shared: &Shared) {
    loop {
        let mut waits = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut waits, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => panic!("cannot wait for an agent's calls: {error}"),
            Ok(_) if waits[0].revents().contains(PollFlags::IN) => {}
            Ok(_) => return,
        }
        let asked = match kernel::next(listener) {
            Ok(Some(asked)) => asked,
            Ok(None) => continue,
            Err(error) => panic!("cannot read an agent's call: {error}"),
        };
        match judge(&asked, &mut lock(&shared.state)) {
            Verdict::PendingInit => shared.changed.notify_all(),
            Verdict::Made => kernel::answer(listener, asked.id, None).expect("it takes an answer"),
            Verdict::Fails(errno) => {
                kernel::answer(listener, asked.id, Some(errno)).expect("it takes an answer")
            }
        }
    }
}

/// What becomes of a call.
enum Verdict {
    Made,
    Fails(i32),
    /// It is noted, and answered later.
    PendingInit,
}

/// Decides on a call.
fn judge(asked: &kernel::Asked, state: &mut State) -> Verdict {
    let State { armed: Some(armed), agent: Some(agent), held, .. } = state else { return Verdict::Made };
    let Some(effect) = effect::effect(asked, agent.pid()) else { return Verdict::Made };
    armed.seen.effects.push(effect.clone());
    if !armed.steps.contains(&armed.seen.effects.len()) {
        return Verdict::Made;
    }
    let errno = effect.errno;
    armed.seen.struck.push(effect.clone());
    match armed.fault {
        Fault::Fail => Verdict::Fails(errno),
        Fault::Kill => {
            let is_agents = effect.by == Actor::Agent;
            agent.kill().expect("an agent of ours can be killed");
            // It must not come to its last call; others than the agent go on as they would have.
            if is_agents { Verdict::Fails(errno) } else { Verdict::Made }
        }
        Fault::Hold => {
            held.push(asked.id);
            Verdict::PendingInit
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
