//! What the agent has not acknowledged yet: tasks, and updates in the order in which they are sent.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::status::{Status, TaskState};

/// Tasks and updates that are not acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Updates {
    tasks: Vec<(String, Names)>,
    updates: VecDeque<Update>,
}

/// The required fields of a task beside its id. The agent knows the others, which may be long.
#[derive(Debug, Default, Deserialize)]
struct Names {
    name: Option<Box<RawValue>>,
    agent_id: Option<Box<RawValue>>,
}

#[derive(Debug)]
struct Update {
    uuid: String,
    task_id: String,
    /// The reason of an update that has the result of a check.
    result_of: Option<String>,
    /// In the shape of the API.
    body: Box<RawValue>,
    is_sent: bool,
}

/// A status as it is sent.
#[derive(Serialize)]
struct SentStatus<'s> {
    #[serde(flatten)]
    status: &'s Status,
    source: &'static str,
    uuid: &'s str,
    executor_id: Value<'s>,
    timestamp: f64,
}

#[derive(Serialize)]
struct SentUpdate<'s> {
    status: SentStatus<'s>,
}

#[derive(Serialize)]
struct Value<'s> {
    value: &'s str,
}

/// A task in a subscription.
#[derive(Serialize)]
struct UnacknowledgedTask<'u> {
    task_id: Value<'u>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'u RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_id: Option<&'u RawValue>,
}

/// The body of a subscription.
#[derive(Serialize)]
pub(crate) struct Subscribe<'u> {
    unacknowledged_tasks: Vec<UnacknowledgedTask<'u>>,
    unacknowledged_updates: Vec<&'u RawValue>,
}

/// What an update is sent with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sender<'s> {
    pub(crate) executor_id: &'s str,
    /// Base64 of 16 random bytes.
    pub(crate) uuid: &'s str,
    /// Seconds since 1970.
    pub(crate) timestamp: f64,
}

impl Updates {
    /// A task that the agent has launched.
    pub(crate) fn add_task(&mut self, id: &str, task: &RawValue) {
        let names = serde_json::from_str(task.get()).unwrap_or_default();
        self.tasks.push((id.to_owned(), names));
    }

    /// Queues an update. The result of a check replaces that of an earlier one that has not been sent, so that checks fill
    /// no memory while the agent is away.
    pub(crate) fn push(&mut self, status: &Status, sender: Sender<'_>) -> serde_json::Result<()> {
        let Sender { executor_id, uuid, timestamp } = sender;
        let executor_id = Value { value: executor_id };
        let sent = SentStatus { status, source: "SOURCE_EXECUTOR", uuid, executor_id, timestamp };
        let result_of = match status.state {
            TaskState::Running => status.reason.clone(),
            _ => None,
        };
        if result_of.is_some() {
            self.updates.retain(|earlier| {
                earlier.is_sent || earlier.task_id != status.task_id || earlier.result_of != result_of
            });
        }
        self.updates.push_back(Update {
            uuid: uuid.to_owned(),
            task_id: status.task_id.clone(),
            result_of,
            body: serde_json::value::to_raw_value(&SentUpdate { status: sent })?,
            is_sent: false,
        });
        Ok(())
    }

    /// The next update to send, with its uuid.
    pub(crate) fn next(&self) -> Option<(&str, &RawValue)> {
        let next = self.updates.iter().find(|update| !update.is_sent)?;
        Some((&next.uuid, &next.body))
    }

    /// An update is being sent.
    pub(crate) fn sent(&mut self, uuid: &str) {
        if let Some(update) = self.updates.iter_mut().find(|update| update.uuid == uuid) {
            update.is_sent = true;
        }
    }

    /// An update may not have been stored, and is sent again.
    pub(crate) fn unsent(&mut self, uuid: &str) {
        if let Some(update) = self.updates.iter_mut().find(|update| update.uuid == uuid) {
            update.is_sent = false;
        }
    }

    /// The agent has stored an update, or has refused it for good. It then knows the task.
    pub(crate) fn acknowledged(&mut self, uuid: &str) {
        let Some(index) = self.updates.iter().position(|update| update.uuid == uuid) else { return };
        if let Some(update) = self.updates.remove(index) {
            self.tasks.retain(|(id, _)| *id != update.task_id);
        }
    }

    /// The body of a subscription, which sends all.
    pub(crate) fn subscribe(&mut self) -> Subscribe<'_> {
        for update in &mut self.updates {
            update.is_sent = true;
        }
        let tasks = self.tasks.iter().map(|(id, names)| UnacknowledgedTask {
            task_id: Value { value: id },
            name: names.name.as_deref(),
            agent_id: names.agent_id.as_deref(),
        });
        Subscribe {
            unacknowledged_tasks: tasks.collect(),
            unacknowledged_updates: self.updates.iter().map(|update| &*update.body).collect(),
        }
    }

    /// Whether all updates are acknowledged.
    pub(crate) fn is_empty(&self) -> bool {
        self.updates.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn push(updates: &mut Updates, uuid: &str, state: TaskState) {
        let sender = Sender { executor_id: "e", uuid, timestamp: 1.5 };
        updates.push(&Status::new("t", state), sender).unwrap();
    }

    fn uuids(updates: &Updates) -> Vec<&str> {
        updates.updates.iter().map(|update| update.uuid.as_str()).collect()
    }

    #[test]
    fn a_subscription_has_what_is_not_acknowledged() {
        let mut updates = Updates::default();
        let task = r#"{"task_id":{"value":"t"},"name":"n","command":{"value":"is long"}}"#;
        updates.add_task("t", &RawValue::from_string(task.to_owned()).unwrap());
        push(&mut updates, "u", TaskState::Starting);
        let text = serde_json::to_string(&updates.subscribe()).unwrap();
        assert_eq!(
            text,
            r#"{"unacknowledged_tasks":[{"task_id":{"value":"t"},"name":"n"}],"unacknowledged_updates":[{"status":{"#
                .to_owned()
                + r#""task_id":{"value":"t"},"state":"TASK_STARTING","source":"SOURCE_EXECUTOR","uuid":"u","#
                + r#""executor_id":{"value":"e"},"timestamp":1.5}}]}"#
        );
        updates.acknowledged("other");
        assert!(!updates.is_empty());
        updates.acknowledged("u");
        let text = serde_json::to_string(&updates.subscribe()).unwrap();
        assert_eq!(text, r#"{"unacknowledged_tasks":[],"unacknowledged_updates":[]}"#);
    }

    #[test]
    fn results_of_checks_do_not_pile_up() {
        let mut updates = Updates::default();
        for (uuid, state, reason) in [
            ("1", TaskState::Starting, ""),
            ("2", TaskState::Running, ""),
            ("3", TaskState::Running, "health"),
            ("4", TaskState::Running, "check"),
            ("5", TaskState::Running, "health"),
            ("6", TaskState::Killed, "health"),
            ("7", TaskState::Killed, "health"),
        ] {
            let mut status = Status::new("t", state);
            status.reason = Some(reason.to_owned()).filter(|reason| !reason.is_empty());
            updates.push(&status, Sender { executor_id: "e", uuid, timestamp: 1.5 }).unwrap();
        }
        assert_eq!(uuids(&updates), ["1", "2", "4", "5", "6", "7"]);
    }

    proptest! {
        /// No order of sending and acknowledging loses an update or changes the order.
        #[test]
        fn updates_stay_in_order(steps in proptest::collection::vec(0..5_u8, 0..60)) {
            let (mut updates, mut expected, mut count) = (Updates::default(), Vec::new(), 0);
            for step in steps {
                match step {
                    0 => {
                        count += 1;
                        push(&mut updates, &count.to_string(), TaskState::Killing);
                        expected.push(count.to_string());
                    }
                    1 => {
                        if let Some(uuid) = updates.next().map(|(uuid, _)| uuid.to_owned()) {
                            updates.sent(&uuid);
                        }
                    }
                    2 => drop(updates.subscribe()),
                    3 => {
                        if let Some(uuid) = expected.first() {
                            updates.unsent(uuid);
                            prop_assert_eq!(updates.next().map(|(next, _)| next), Some(uuid.as_str()));
                        }
                    }
                    _ if !expected.is_empty() => updates.acknowledged(&expected.remove(0)),
                    _ => {}
                }
                prop_assert_eq!(uuids(&updates), expected.iter().map(String::as_str).collect::<Vec<_>>());
            }
        }
    }
}
