//! The loop: waits for the agent, for children and for time, and asks the executor what to do.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::agent::{Agent, Notice};
use crate::executor::{Executor, Host, log};
use crate::memory::release_code;
use crate::message::{Event, after};
use crate::process;
use crate::signals::Signals;

/// How long an agent that is there may take to acknowledge the last updates.
const ACKNOWLEDGEMENT: Duration = Duration::from_secs(60);

/// How long an executor that shuts down may take beyond the agent's grace period, after which the agent destroys its
/// container.
const OVERTIME: Duration = Duration::from_secs(5);

/// How often, and how long each time, the end of killed children is waited for.
const KILL_ATTEMPTS: u32 = 20;
const KILL_INTERVAL: Duration = Duration::from_millis(100);

/// Children that are reaped at a time. A task can leave orphans as fast as they are reaped, and must not keep the executor
/// from anything else.
const MAX_REAPED: usize = 256;

/// A wait that is at least so long is worth giving memory back for.
const IDLE: Duration = Duration::from_secs(1);

/// Runs an executor until it has finished and the agent knows.
pub(crate) fn run(
    executor: &mut impl Executor,
    host: &mut Host,
    agent: &mut Agent,
    signals: &Signals,
) -> io::Result<()> {
    let mut ending = Ending::default();
    let mut has_dead = false;
    loop {
        let now = Instant::now();
        let received = signals.read()?;
        has_dead |= received.child;
        if has_dead {
            has_dead = reap(executor, host, now);
        }
        if received.terminate {
            ending.shut_down(executor, host, now);
        }
        for notice in agent.advance(&mut host.updates, now) {
            match notice {
                Notice::Event(Event::Shutdown) => ending.shut_down(executor, host, now),
                Notice::Event(event) => handle(event, executor, host, now),
                Notice::Lost(lost) => ending.log_loss(&lost),
                Notice::Postponed(lost) => {
                    ending.log_loss(&format_args!("an update was not stored and is sent again: {lost}"));
                }
                Notice::Refused(refused) => log(&format_args!("the agent has refused an update: {refused}")),
            }
        }
        if agent.is_abandoned() {
            ending.abandon(executor, host, now);
        }
        executor.advance(host, now);
        if executor.is_finished() {
            ending.finished.get_or_insert(now);
        }
        let limit = ending.limit(agent, host);
        if limit.is_some_and(|limit| limit <= now) {
            return finish(signals);
        }
        // What has just been queued is sent before anything is waited for.
        let has_updates = host.updates.next().is_some() && agent.is_idle(now);
        let at_once = (has_updates || has_dead).then_some(now);
        let deadlines = [limit, agent.deadline(now), executor.deadline(), at_once];
        wait(executor, agent, signals, deadlines.into_iter().flatten().min())?;
    }
}

/// Reaps children that have ended. Returns whether there may be more.
fn reap(executor: &mut impl Executor, host: &mut Host, now: Instant) -> bool {
    for _ in 0..MAX_REAPED {
        let Some((pid, status)) = process::reap() else { return false };
        executor.reaped(pid, status, host, now);
    }
    true
}

fn handle(event: Event, executor: &mut impl Executor, host: &mut Host, now: Instant) {
    match event {
        Event::Acknowledged { uuid } => host.updates.acknowledged(&uuid),
        Event::Error(message) => log(&format_args!("the agent reports an error: {message}")),
        Event::Unknown(kind) => log(&format_args!("the event {kind} is not known and is ignored")),
        Event::Message | Event::Heartbeat => {}
        event => executor.handle(event, host, now),
    }
}

/// How far the end of the executor is.
#[derive(Debug, Default)]
struct Ending {
    /// Since when there is nothing left to do.
    finished: Option<Instant>,
    /// Since when it shuts down.
    shutdown: Option<Instant>,
    is_abandoned: bool,
    last_loss: Option<String>,
}

impl Ending {
    fn shut_down(&mut self, executor: &mut impl Executor, host: &mut Host, now: Instant) {
        self.shutdown.get_or_insert(now);
        executor.shut_down(host, now);
    }

    fn abandon(&mut self, executor: &mut impl Executor, host: &mut Host, now: Instant) {
        if !self.is_abandoned {
            self.is_abandoned = true;
            log(&"there is no agent for this executor any more; shutting down");
            self.shutdown.get_or_insert(now);
            executor.abandoned(host, now);
        }
    }

    /// Logs a loss unless it is the same as the last one: an executor may wait for its agent for a long time.
    fn log_loss(&mut self, loss: &dyn std::fmt::Display) {
        let text = loss.to_string();
        if self.last_loss.as_ref() != Some(&text) {
            log(&text);
            self.last_loss = Some(text);
        }
    }

    /// When the executor ends at the latest; `None` if that depends on what happens.
    fn limit(&self, agent: &Agent, host: &Host) -> Option<Instant> {
        let shutdown =
            self.shutdown.and_then(|since| after(since, host.shutdown_grace.saturating_add(OVERTIME)));
        let finished = self.finished.and_then(|since| {
            if self.is_abandoned || host.updates.is_empty() {
                return Some(since);
            }
            // While the agent is away, updates are kept for its next process.
            after(agent.subscribed_since()?.max(since), ACKNOWLEDGEMENT)
        });
        [shutdown, finished].into_iter().flatten().min()
    }
}

/// Waits until something can be done.
fn wait(
    executor: &impl Executor,
    agent: &Agent,
    signals: &Signals,
    deadline: Option<Instant>,
) -> io::Result<()> {
    let own = [(signals.as_fd(), PollFlags::IN)];
    let sources = own.into_iter().chain(agent.sources()).chain(executor.sources());
    let mut waits: Vec<_> =
        sources.map(|(descriptor, interest)| PollFd::from_borrowed_fd(descriptor, interest)).collect();
    let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    if timeout.is_none_or(|timeout| timeout >= IDLE) {
        release_code();
    }
    let timeout = timeout.map(timespec);
    match poll(&mut waits, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn timespec(duration: Duration) -> Timespec {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec: seconds, tv_nsec: duration.subsec_nanos().into() }
}

/// Kills what is left of the container's processes that this process is responsible for. The agent destroys the
/// container as a whole, but may be away.
fn finish(signals: &Signals) -> io::Result<()> {
    for _ in 0..KILL_ATTEMPTS {
        while process::reap().is_some() {}
        if !process::kill_children() {
            break;
        }
        let mut wait = [PollFd::new(signals, PollFlags::IN)];
        match poll(&mut wait, Some(&timespec(KILL_INTERVAL))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        signals.read()?;
    }
    Ok(())
}
