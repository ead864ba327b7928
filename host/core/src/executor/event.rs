//! What the agent tells an executor, in order.

use serde_json::Value as Json;
use tokio::sync::mpsc;

use super::ids::TaskId;
use super::update::UpdateId;

/// Events that may wait for an executor to read, in addition to those of its tasks when it subscribes.
const WAITING: usize = 1024;

/// An event for an executor.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It has subscribed.
    Subscribed,
    /// It is to launch a task: `TaskInfo`, in the API's JSON.
    Launch(Json),
    /// It is to launch a group of tasks.
    LaunchGroup(Vec<Json>),
    /// It is to end a task.
    Kill {
        /// The task.
        task: TaskId,
        /// `KillPolicy`, in the API's JSON.
        policy: Option<Json>,
    },
    /// An update is on disk.
    Acknowledged {
        /// The task.
        task: TaskId,
        /// The update.
        id: UpdateId,
    },
    /// A message of its framework.
    Message(Vec<u8>),
    /// It is to end its tasks, and then itself.
    Shutdown,
    /// Its subscription ends because of an error.
    Error(String),
}

/// The events for a subscribed executor. They end when it is replaced by a new subscription, when the executor does not
/// read them, and when its container has ended.
#[derive(Debug)]
pub struct Events(mpsc::Receiver<Event>);

impl Events {
    /// The next event.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

/// Where events for an executor are sent.
#[derive(Debug)]
pub(super) struct Connection(mpsc::Sender<Event>);

impl Connection {
    /// A connection on which `first` events can wait at once.
    pub(super) fn new(first: usize) -> (Self, Events) {
        let (sender, receiver) = mpsc::channel(first + WAITING);
        (Self(sender), Events(receiver))
    }

    pub(super) fn is_open(&self) -> bool {
        !self.0.is_closed()
    }

    /// Sends an event. Returns false if the executor has gone, or does not read.
    pub(super) fn send(&self, event: Event) -> bool {
        self.0.try_send(event).is_ok()
    }
}
