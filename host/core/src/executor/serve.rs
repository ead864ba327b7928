//! What executors ask for: to subscribe, to send updates and messages.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;

use cofferdam_plugin_model::ContainerId;
use serde_json::{Value as Json, json};

use super::change::{Change, FrameworkMessage};
use super::event::{Connection, Event, Events};
use super::handle::{Handle, WriteError};
use super::ids::TaskId;
use super::state::{Entry, ExecutorPhase, ExecutorState, Received, UpdateRefused};
use super::token::Token;
use super::update::{TaskState, Update};
use super::{Executors, Shared, timestamp, uncancelled};
use crate::error_chain;
use crate::model::view::WantedReports;

/// An executor that has presented its token.
#[derive(Clone)]
pub struct Executor {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
}

/// Why a request of an executor failed.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its container has ended.
    #[error("the executor has ended")]
    Ended,
    /// The update is refused.
    #[error(transparent)]
    Refused(#[from] UpdateRefused),
    /// It cannot be recorded.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Executors {
    /// The executor that has a token, while it has not ended.
    #[must_use]
    pub fn authenticate(&self, token: &Token) -> Option<Executor> {
        let handle = self.0.table.read().by_token.get(&token.hash()).cloned()?;
        let ended = handle.state().phase == ExecutorPhase::Terminated;
        (!ended).then(|| Executor { shared: Arc::clone(&self.0), handle })
    }
}

impl Executor {
    /// What is known of it. It does not change while this is kept, so not for long.
    #[must_use]
    pub fn state(&self) -> impl Deref<Target = ExecutorState> {
        self.handle.state()
    }

    /// Whether the launch of its container is complete.
    #[must_use]
    pub fn is_launched(&self) -> bool {
        self.handle.is_launched()
    }

    /// Its container.
    #[must_use]
    pub fn container(&self) -> &ContainerId {
        self.handle.container()
    }

    /// Subscribes it, once the launch of its container is complete: until then, nothing can be asked about the container, and
    /// its launch may fail. `known` are the tasks that it knows and of which no update was acknowledged, `updates` those of
    /// its updates that were not acknowledged. A subscription that it has already ends.
    ///
    /// # Errors
    /// [`ServeError`]; nothing has changed then.
    pub async fn subscribe(
        &self,
        known: BTreeSet<TaskId>,
        updates: Vec<Update>,
    ) -> Result<Events, ServeError> {
        self.handle.launched().await;
        let executor = self.clone();
        uncancelled(async move { executor.subscribe_here(&known, updates).await }).await
    }

    async fn subscribe_here(
        &self,
        known: &BTreeSet<TaskId>,
        updates: Vec<Update>,
    ) -> Result<Events, ServeError> {
        let handle = &self.handle;
        let decorating = self.shared.decorating(handle).await;
        let updates = self.shared.decorate_all(handle, updates).await;
        let killed = handle.state().killed_undelivered(known, timestamp());
        let decorations = self.shared.decorations(handle, &killed).await;
        let _operation = handle.operation().await;
        let (entries, deliveries, kills, waiting) = {
            let mut state = handle.state().clone();
            if state.phase == ExecutorPhase::Terminated {
                return Err(ServeError::Ended);
            }
            let mut entries = Vec::new();
            let mut add = |state: &mut ExecutorState, entry: Entry| {
                state.apply(entry.clone());
                entries.push(entry);
            };
            if !state.subscribed {
                add(&mut state, Entry::Subscribed);
            }
            for update in &updates {
                match state.receive(update) {
                    Ok(Received::New(entry)) => add(&mut state, entry),
                    Ok(received) => self.report(update, &received),
                    // It is acknowledged, so that the executor does not send it for ever.
                    Err(error @ UpdateRefused::UnknownTask { .. }) => {
                        self.shared.counters.count_refused();
                        tracing::warn!(container = %handle.container(), "update ignored: {error}");
                    }
                    // What is not on disk is not acknowledged. The executor subscribes again.
                    Err(error) => return Err(error.into()),
                }
            }
            for entry in state.killed_undelivered(known, timestamp()) {
                add(&mut state, entry);
            }
            let deliveries = state.undelivered(known);
            let kills: Vec<Event> = state
                .live_tasks()
                .into_iter()
                .filter_map(|task| {
                    let policy = task.kill.as_ref()?.policy.clone();
                    Some(Event::Kill { task: task.id.clone(), policy })
                })
                .collect();
            let terminating = state.phase == ExecutorPhase::Terminating;
            (entries, if terminating { Vec::new() } else { deliveries }, kills, terminating)
        };
        handle.write(decorations.apply(entries)).await?;
        drop(decorating);
        let (connection, events) = Connection::new(2 + updates.len() + deliveries.len() + kills.len());
        handle.connect(connection);
        handle.send(Event::Subscribed);
        for Update { task, id, .. } in updates {
            handle.send(Event::Acknowledged { task, id });
        }
        self.shared.deliver(handle, deliveries).await;
        for kill in kills {
            handle.send(kill);
        }
        if waiting {
            handle.send(Event::Shutdown);
        }
        tracing::info!(container = %handle.container(), "executor subscribed");
        Ok(events)
    }

    /// Records an update of a task, and acknowledges it to the executor. When it returns, the update is on disk.
    ///
    /// # Errors
    /// [`ServeError`]; the executor has to send it again then.
    pub async fn update(&self, update: Update) -> Result<(), ServeError> {
        let executor = self.clone();
        uncancelled(async move { executor.update_here(update).await }).await
    }

    async fn update_here(&self, mut update: Update) -> Result<(), ServeError> {
        let handle = &self.handle;
        let decorating = self.shared.decorating(handle).await;
        if update.state == TaskState::TaskRunning {
            self.describe_container(&mut update).await;
        }
        update = self.shared.decorate(handle, update).await;
        let _operation = handle.operation().await;
        let received = {
            let state = handle.state();
            if state.phase == ExecutorPhase::Terminated {
                return Err(ServeError::Ended);
            }
            state.receive(&update).inspect_err(|_| self.shared.counters.count_refused())?
        };
        match received {
            Received::New(entry) => handle.write(vec![entry]).await?,
            received => self.report(&update, &received),
        }
        drop(decorating);
        handle.send(Event::Acknowledged { task: update.task, id: update.id });
        // That of a single task ends with its task.
        let goes_on = !handle.state().executor.kind.is_of_one_task();
        if goes_on
            && update.state.is_terminal()
            && let Err(error) = self.shared.allocate(handle).await
        {
            // It keeps what it had, until it is needed.
            tracing::debug!(container = %handle.container(), "resources stay: {}", error_chain::describe(&error));
        }
        Ok(())
    }

    fn report(&self, update: &Update, received: &Received) {
        if let Received::AfterEnd(state) = received {
            tracing::warn!(
                container = %self.handle.container(),
                task = %update.task,
                "update {} ignored: the task has ended with {}",
                update.state.name(),
                state.name()
            );
        }
    }

    /// Adds to an update what the agent knows of the container. What identifies it is never the executor's.
    async fn describe_container(&self, update: &mut Update) {
        let id = self.handle.container();
        let reports =
            self.shared.containerizer.reports(std::slice::from_ref(id), WantedReports::STATUS).await;
        let status = reports.into_iter().next().and_then(|report| report.status).unwrap_or_default().status;
        let known = update.details.entry("container_status").or_insert_with(|| json!({}));
        if !known.is_object() {
            *known = json!({});
        }
        let Json::Object(known) = known else { return };
        for (name, value) in status {
            known.entry(name).or_insert(value);
        }
        known.insert("container_id".to_owned(), json!({ "value": id.value() }));
        match self.shared.containerizer.inspect(id).and_then(|found| found.summary.pid) {
            Some(pid) => known.insert("executor_pid".to_owned(), pid.into()),
            None => known.remove("executor_pid"),
        };
    }

    /// Passes a message on to the clients of its framework that are connected.
    pub fn message(&self, data: Vec<u8>) {
        let message = {
            let state = self.handle.state();
            FrameworkMessage {
                framework: state.framework.id.clone(),
                executor: state.executor.id.clone(),
                data,
            }
        };
        // There may be none.
        drop(self.shared.changes.send(Change::Message(Arc::new(message))));
    }
}
