//! A container as everyone but its task holds it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cofferdam_linux::process::{Process, ProcessError, children_of};
use tokio::sync::{MutexGuard as Turn, watch};

use super::KillError;
use crate::chain::Case;
use crate::container::{ContainerId, Phase, Termination};
use crate::ledger::{Cause, Ledger, LedgerError, Record};
use crate::view::Summary;

/// A container as everyone but its task holds it: something to look at, and a place for wishes.
pub(crate) struct Cell {
    id: ContainerId,
    record: Mutex<Arc<Record>>,
    /// Changes follow each other.
    changing: Mutex<()>,
    /// What keeps it from being cleaned up.
    stuck: Mutex<Vec<String>>,
    process: Mutex<Option<Arc<Process>>>,
    /// The first wish that it end; later ones change nothing.
    wish: watch::Sender<Option<Cause>>,
    ended: watch::Sender<Option<Termination>>,
    /// Calls to plugins about one container follow each other.
    turn: tokio::sync::Mutex<()>,
}

impl Cell {
    pub(super) fn new(record: Record) -> Self {
        let ended = if record.phase.is_live() { None } else { record.termination.clone() };
        Self {
            id: record.id.clone(),
            record: Mutex::new(Arc::new(record)),
            changing: Mutex::default(),
            stuck: Mutex::default(),
            process: Mutex::default(),
            wish: watch::Sender::new(None),
            ended: watch::Sender::new(ended),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    pub(super) fn id(&self) -> &ContainerId {
        &self.id
    }

    /// What is known of it now.
    pub(super) fn record(&self) -> Arc<Record> {
        Arc::clone(&lock(&self.record))
    }

    pub(super) fn phase(&self) -> Phase {
        lock(&self.record).phase
    }

    /// It as the chain has to know it.
    pub(super) fn case(&self) -> Case {
        let record = self.record();
        Case {
            id: record.id.clone(),
            subject: cofferdam_plugin_model::Subject {
                pid: record.process.map(|born| born.pid),
                sandbox: record.sandbox.clone(),
                scratch: record.scratch.clone(),
                cgroups: record.cgroups.clone(),
                state: serde_json::Value::Null,
            },
            parties: record.parties.clone(),
        }
    }

    /// Waits for a turn to talk to plugins about it.
    pub(super) async fn turn(&self) -> Turn<'_, ()> {
        self.turn.lock().await
    }

    /// Changes what is known of it, in memory only: for what a restart would find out by itself.
    pub(super) fn note(&self, change: impl FnOnce(&mut Record)) {
        let _changing = lock(&self.changing);
        change(Arc::make_mut(&mut lock(&self.record)));
    }

    /// Changes what is known of it, on disk and then in memory. Blocks.
    pub(super) fn amend(&self, ledger: &Ledger, change: impl FnOnce(&mut Record)) -> Result<(), LedgerError> {
        // Held while writing, so that records reach the disk in the order in which they were made. Who only wants to
        // look does not wait for the disk.
        let _changing = lock(&self.changing);
        let mut changed = Record::clone(&self.record());
        change(&mut changed);
        ledger.write(&changed)?;
        *lock(&self.record) = Arc::new(changed);
        Ok(())
    }

    /// Wishes that it end. The first wish counts.
    pub(super) fn end(&self, cause: Cause) {
        self.wish.send_if_modified(|wish| {
            let first = wish.is_none();
            if first {
                *wish = Some(cause);
            }
            first
        });
    }

    /// The wish that it end, if there is one.
    pub(super) fn wish(&self) -> Option<Cause> {
        self.wish.borrow().clone()
    }

    /// Waits until somebody wishes that it end.
    pub(super) async fn wished(&self) -> Cause {
        let mut wish = self.wish.subscribe();
        loop {
            if let Some(cause) = wish.borrow_and_update().clone() {
                return cause;
            }
            if wish.changed().await.is_err() {
                // Its sender is `self`, so this cannot be; nobody wishes anything any more then.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until it has ended and been cleaned up.
    pub(super) async fn ended(&self) -> Option<Termination> {
        let mut ended = self.ended.subscribe();
        ended.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Tells everyone that it has ended.
    pub(super) fn announce(&self, termination: Termination) {
        self.ended.send_replace(Some(termination));
    }

    /// Its first process, while the agent holds on to it.
    pub(super) fn process(&self) -> Option<Arc<Process>> {
        lock(&self.process).clone()
    }

    pub(super) fn set_process(&self, process: Option<Arc<Process>>) {
        *lock(&self.process) = process;
    }

    /// Says what keeps it from being cleaned up.
    pub(super) fn set_stuck(&self, stuck: Vec<String>) {
        *lock(&self.stuck) = stuck;
    }

    /// Sends a signal to its command. The first process is ours and passes on what it can catch; what it
    /// cannot catch goes to the command itself.
    pub(super) fn signal(&self, signal: i32) -> Result<(), KillError> {
        let refused = |source| KillError::Refused { id: self.id.clone(), signal, source };
        let Some(process) = self.process() else {
            return Err(KillError::NoProcess { id: self.id.clone() });
        };
        if matches!(signal, libc::SIGSTOP | libc::SIGCONT) {
            let find = |source| KillError::Find { id: self.id.clone(), source };
            for child in children_of(process.pid()).map_err(find)? {
                match Process::open_any(child).and_then(|child| child.signal(signal)) {
                    Err(ProcessError::Gone { .. }) => {}
                    other => other.map_err(refused)?,
                }
            }
            return Ok(());
        }
        process.signal(signal).map_err(refused)
    }

    pub(super) fn summary(&self) -> Summary {
        let record = self.record();
        Summary {
            id: record.id.clone(),
            class: record.request.class,
            phase: record.phase,
            pid: record.process.filter(|_| record.phase.is_live()).map(|born| born.pid),
            command: command_line(&record),
            created_unix_ms: record.created_unix_ms,
            termination: record.termination.clone(),
            resources: record.resources.clone(),
            stuck: lock(&self.stuck).clone(),
        }
    }
}

/// A command in one line, for people.
fn command_line(record: &Record) -> String {
    let command = &record.request.command;
    match (&command.value, command.shell || command.arguments.is_empty()) {
        (Some(value), true) => value.clone(),
        _ => command.arguments.join(" "),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
