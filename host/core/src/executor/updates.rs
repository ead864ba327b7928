//! The status updates that clients receive: of each task the first one that is not acknowledged, sent again after a while.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_plugin_model::ContainerId;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::Instant;

use super::Shared;
use super::change::{Change, FrameworkMessage};
use super::handle::Handle;
use super::ids::{ExecutorId, FrameworkId, TaskId};
use super::update::{TaskState, Update, UpdateId};

/// How long an update waits before it is sent again: at first, and at most.
const RESEND: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// Changes that may wait for a client; if there are more, it looks at all executors.
pub(super) const WAITING: usize = 1024;

/// A status update for clients.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusUpdate {
    /// The framework of the task.
    pub framework: FrameworkId,
    /// Its executor.
    pub executor: ExecutorId,
    /// The container of the executor.
    pub container: ContainerId,
    /// The update.
    pub update: Update,
    /// The last known state of the task, of which the update may not have been sent yet.
    pub latest: TaskState,
}

/// What a client receives.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// A status update.
    Update(Box<StatusUpdate>),
    /// A message.
    Message(Arc<FrameworkMessage>),
}

/// The updates and messages for one client.
pub struct StatusUpdates {
    shared: Arc<Shared>,
    framework: Option<FrameworkId>,
    changes: broadcast::Receiver<Change>,
    ready: VecDeque<Notice>,
    sent: HashMap<(ContainerId, TaskId), Sent>,
    /// Whether all executors have to be looked at.
    stale: bool,
}

/// An update that was sent, and when it is sent again.
struct Sent {
    id: UpdateId,
    again: Instant,
    pause: Duration,
}

impl StatusUpdates {
    pub(super) fn new(shared: Arc<Shared>, framework: Option<FrameworkId>) -> Self {
        let changes = shared.changes.subscribe();
        Self { shared, framework, changes, ready: VecDeque::new(), sent: HashMap::new(), stale: true }
    }

    /// The next update or message. Cancel safe.
    pub async fn next(&mut self) -> Notice {
        loop {
            if std::mem::take(&mut self.stale) {
                self.inspect_all();
            }
            if let Some(notice) = self.ready.pop_front() {
                return notice;
            }
            let again = self.sent.values().map(|sent| sent.again).min();
            tokio::select! {
                change = self.changes.recv() => match change {
                    Ok(Change::Updates(container)) => self.inspect_container(&container),
                    Ok(Change::Message(message)) => {
                        if self.framework.as_ref().is_none_or(|framework| *framework == message.framework) {
                            self.ready.push_back(Notice::Message(message));
                        }
                    }
                    Err(RecvError::Lagged(_)) => self.stale = true,
                    // The sender is part of `shared`.
                    Err(RecvError::Closed) => std::future::pending().await,
                },
                () = sleep_until(again) => self.stale = true,
            }
        }
    }

    fn inspect_all(&mut self) {
        let handles: Vec<Arc<Handle>> = self.shared.handles();
        self.sent.retain(|(container, _), _| handles.iter().any(|handle| handle.container() == container));
        for handle in handles {
            self.inspect(&handle);
        }
    }

    fn inspect_container(&mut self, container: &ContainerId) {
        match self.shared.handle(container) {
            Some(handle) => self.inspect(&handle),
            None => self.sent.retain(|(of, _), _| of != container),
        }
    }

    fn inspect(&mut self, handle: &Handle) {
        let state = handle.state();
        if self.framework.as_ref().is_some_and(|framework| *framework != state.framework.id) {
            return;
        }
        let now = Instant::now();
        let mut tasks: Vec<_> = state.tasks.values().collect();
        tasks.sort_by_key(|task| task.sequence);
        for task in tasks {
            let key = (state.container.clone(), task.id.clone());
            let Some(update) = task.unacknowledged.front() else {
                self.sent.remove(&key);
                continue;
            };
            let pause = match self.sent.get(&key) {
                Some(sent) if sent.id == update.id && now < sent.again => continue,
                Some(sent) if sent.id == update.id => (sent.pause * 2).min(RESEND.1),
                _ => RESEND.0,
            };
            self.sent.insert(key, Sent { id: update.id, again: now + pause, pause });
            self.ready.push_back(Notice::Update(Box::new(StatusUpdate {
                framework: state.framework.id.clone(),
                executor: state.executor.id.clone(),
                container: state.container.clone(),
                update: update.clone(),
                latest: task.state,
            })));
        }
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
