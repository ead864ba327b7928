//! Frameworks, executors, tasks and their updates, in the shapes of Mesos.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use serde_json::{Map, Value as Json, json};

use super::id::encode_id;
use crate::api::operator::types as wire;
use cofferdam_core::executor::{
    ExecutorPhase, ExecutorState, Executors, Framework, FrameworkId, FrameworkMessage, Source, StatusUpdate,
    Task, TaskState, Update,
};
use cofferdam_core::model::ContainerId;

/// `TaskStatus` of an update.
pub(in crate::api) fn status(update: &Update, executor: &str, agent: &str) -> Json {
    let mut status = update.details.clone();
    status.insert("task_id".into(), json!({"value": update.task.as_str()}));
    status.insert("state".into(), update.state.name().into());
    status.insert("uuid".into(), BASE64.encode(update.id.as_bytes()).into());
    status.insert(
        "source".into(),
        match update.source {
            Source::Executor => "SOURCE_EXECUTOR",
            Source::Agent => "SOURCE_AGENT",
        }
        .into(),
    );
    status.insert("timestamp".into(), json!(update.timestamp));
    status.insert("executor_id".into(), json!({ "value": executor }));
    status.insert("agent_id".into(), json!({ "value": agent }));
    for (name, text) in [("reason", &update.reason), ("message", &update.message)] {
        if let Some(text) = text {
            status.insert(name.into(), text.as_str().into());
        }
    }
    Json::Object(status)
}

/// A message of the stream of status updates.
pub(in crate::api) fn status_update(update: &StatusUpdate, agent: &str) -> wire::UpdateEvent {
    let executor = update.executor.as_str();
    wire::UpdateEvent {
        kind: "STATUS_UPDATE".to_owned(),
        status_update: Some(wire::StatusUpdate {
            framework_id: wire::FrameworkId { value: update.framework.to_string() },
            executor_id: wire::ExecutorId { value: executor.to_owned() },
            container_id: encode_id(&update.container),
            status: status(&update.update, executor, agent),
            latest_state: update.latest.name().to_owned(),
        }),
        ..wire::UpdateEvent::default()
    }
}

/// A message of an executor, for clients.
pub(in crate::api) fn framework_message(message: &FrameworkMessage) -> wire::UpdateEvent {
    wire::UpdateEvent {
        kind: "FRAMEWORK_MESSAGE".to_owned(),
        framework_message: Some(wire::FrameworkMessage {
            framework_id: wire::FrameworkId { value: message.framework.to_string() },
            executor_id: wire::ExecutorId { value: message.executor.to_string() },
            data: wire::Bytes(message.data.clone()),
        }),
        ..wire::UpdateEvent::default()
    }
}

/// `Task`.
fn task(executor: &ExecutorState, task: &Task, agent: &str) -> Json {
    let mut encoded = Map::new();
    for field in ["resources", "limits", "labels", "discovery", "container", "health_check", "kill_policy"] {
        if let Some(value) = task.info.get(field).filter(|value| !value.is_null()) {
            encoded.insert(field.to_owned(), value.clone());
        }
    }
    encoded.entry("resources").or_insert_with(|| json!([]));
    encoded.insert("name".into(), task.name.as_str().into());
    encoded.insert("task_id".into(), json!({"value": task.id.as_str()}));
    encoded.insert("framework_id".into(), json!({"value": executor.framework.id.as_str()}));
    encoded.insert("agent_id".into(), json!({ "value": agent }));
    encoded.insert("state".into(), task.state.name().into());
    // Clients take one without for that of an executor that the agent has generated.
    if !executor.executor.kind.is_of_one_task() {
        encoded.insert("executor_id".into(), json!({"value": executor.executor.id.as_str()}));
    }
    if let Some(last) = task.last() {
        encoded.insert("statuses".into(), json!([status(last, executor.executor.id.as_str(), agent)]));
    }
    if let Some(first) = task.unacknowledged.front() {
        encoded.insert("status_update_state".into(), first.state.name().into());
        encoded.insert("status_update_uuid".into(), BASE64.encode(first.id.as_bytes()).into());
    }
    Json::Object(encoded)
}

/// The tasks of all executors.
pub(in crate::api) fn tasks(executors: &Executors) -> wire::TaskList {
    let mut list = wire::TaskList::default();
    executors.visit(|executor| add_tasks(&mut list, executor, executors.agent_id()));
    list
}

/// The tasks, the executors and the frameworks, as of one time for each executor.
pub(in crate::api) fn all(
    executors: &Executors,
) -> (wire::TaskList, wire::ExecutorList, wire::FrameworkList) {
    let agent = executors.agent_id();
    let (mut tasks, mut list) = (wire::TaskList::default(), wire::ExecutorList::default());
    let mut frameworks = Frameworks::new();
    executors.visit(|executor| {
        add_tasks(&mut tasks, executor, agent);
        add_executor(&mut list, executor, agent);
        add_framework(&mut frameworks, executor);
    });
    (tasks, list, framework_list(frameworks))
}

fn add_tasks(list: &mut wire::TaskList, executor: &ExecutorState, agent: &str) {
    let mut tasks: Vec<&Task> = executor.tasks.values().collect();
    tasks.sort_by_key(|task| task.sequence);
    for found in tasks {
        let encoded = task(executor, found, agent);
        let is_queued = found.state == TaskState::TaskStaging && executor.phase == ExecutorPhase::Registering;
        match found {
            found if found.is_completed() => list.completed_tasks.push(encoded),
            found if found.state.is_terminal() => list.terminated_tasks.push(encoded),
            _ if is_queued => list.queued_tasks.push(encoded),
            _ => list.launched_tasks.push(encoded),
        }
    }
}

/// All executors.
pub(in crate::api) fn executors(executors: &Executors) -> wire::ExecutorList {
    let mut list = wire::ExecutorList::default();
    executors.visit(|executor| add_executor(&mut list, executor, executors.agent_id()));
    list
}

fn add_executor(list: &mut wire::ExecutorList, executor: &ExecutorState, agent: &str) {
    let encoded = json!({
        "executor_info": executor.executor.info,
        "agent_id": {"value": agent},
        // Extensions.
        "container_id": encode_id(&executor.container),
        "state": executor.phase,
    });
    match executor.phase {
        ExecutorPhase::Terminated => list.completed_executors.push(encoded),
        _ => list.executors.push(encoded),
    }
}

/// The last description of each framework, and whether one of its executors has not ended.
type Frameworks = BTreeMap<FrameworkId, (Json, bool)>;

/// All frameworks.
pub(in crate::api) fn frameworks(executors: &Executors) -> wire::FrameworkList {
    let mut frameworks = Frameworks::new();
    executors.visit(|executor| add_framework(&mut frameworks, executor));
    framework_list(frameworks)
}

fn add_framework(frameworks: &mut Frameworks, executor: &ExecutorState) {
    let Framework { id, info, .. } = &executor.framework;
    let (known, is_live) = frameworks.entry(id.clone()).or_default();
    *is_live |= executor.phase != ExecutorPhase::Terminated;
    // Most executors have the one that is known.
    if known != info {
        known.clone_from(info);
    }
}

fn framework_list(frameworks: Frameworks) -> wire::FrameworkList {
    let mut list = wire::FrameworkList::default();
    for (info, is_live) in frameworks.into_values() {
        let encoded = json!({ "framework_info": info });
        if is_live {
            list.frameworks.push(encoded);
        } else {
            list.completed_frameworks.push(encoded);
        }
    }
    list
}

/// The frameworks of `GET /state`, with their executors and tasks: those with executors that have not ended, and others.
/// `directory` is the sandbox of a container.
pub(in crate::api) fn state_frameworks(
    executors: &Executors,
    directory: impl Fn(&ContainerId) -> Option<String>,
) -> (Vec<Json>, Vec<Json>) {
    let agent = executors.agent_id();
    let mut frameworks: BTreeMap<FrameworkId, (Json, Vec<Json>, Vec<Json>)> = BTreeMap::new();
    executors.visit(|executor| {
        let Framework { id, info, .. } = &executor.framework;
        let (framework, live, completed) = frameworks.entry(id.clone()).or_default();
        *framework = json!({"id": id.as_str(), "name": info["name"], "user": info["user"], "checkpoint": executor.framework.checkpoint});
        match executor.phase {
            ExecutorPhase::Terminated => completed,
            _ => live,
        }
        .push(state_executor(executor, agent, directory(&executor.container)));
    });
    let mut lists = (Vec::new(), Vec::new());
    for (mut framework, live, completed) in frameworks.into_values() {
        let list = if live.is_empty() { &mut lists.1 } else { &mut lists.0 };
        framework["executors"] = live.into();
        framework["completed_executors"] = completed.into();
        list.push(framework);
    }
    lists
}

fn state_executor(executor: &ExecutorState, agent: &str, directory: Option<String>) -> Json {
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    let info = &executor.executor.info;
    let mut lists = [("queued_tasks", vec![]), ("tasks", vec![]), ("completed_tasks", vec![])];
    let mut tasks: Vec<&Task> = executor.tasks.values().collect();
    tasks.sort_by_key(|task| task.sequence);
    for task in tasks {
        let is_queued = task.state == TaskState::TaskStaging && executor.phase == ExecutorPhase::Registering;
        let list = match task {
            task if task.state.is_terminal() => 2,
            _ => usize::from(!is_queued),
        };
        lists[list].1.push(json!({
            "id": task.id.as_str(),
            "name": task.name,
            "framework_id": executor.framework.id.as_str(),
            "executor_id": executor.executor.id.as_str(),
            "slave_id": agent,
            "state": task.state.name(),
            "statuses": task.last().map(state_status).into_iter().collect::<Vec<_>>(),
        }));
    }
    let mut encoded = json!({
        "id": executor.executor.id.as_str(),
        "name": text(&info["name"]),
        "source": text(&info["source"]),
        "container": executor.container.as_str(),
        "directory": directory.unwrap_or_default(),
    });
    for (name, list) in lists {
        encoded[name] = list.into();
    }
    encoded
}

/// `TaskStatus`, in the form of `GET /state`. Its `container_status` has what isolators report, such as addresses.
fn state_status(update: &Update) -> Json {
    let mut status = json!({"state": update.state.name(), "timestamp": update.timestamp});
    for field in ["container_status", "healthy", "labels"] {
        if let Some(value) = update.details.get(field) {
            status[field] = value.clone();
        }
    }
    status
}
