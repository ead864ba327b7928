//! Hooks for executors and tasks: what they get to know, and what they change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_plugin_model::{
    self as model, Command, ExecutorDetails, FrameworkDetails, Method, TaskDetails,
};
use serde_json::{Map, Value as Json, json};
use tokio::sync::MutexGuard;
use tokio::time::{Instant, timeout_at};

use super::handle::Handle;
use super::ids::TaskId;
use super::state::{Entry, ExecutorKind, ExecutorState, Received, Task, UpdateRefused};
use super::update::{Source, Update};
use super::{Shared, environment};
use crate::error_chain;
use crate::model::Request;

/// How long the updates that have one cause, such as the end of an executor, are decorated, however many there are.
const DECORATION: Duration = Duration::from_secs(10);

/// Fields of a status that hooks may replace.
const LABELS: &str = "labels";
const CONTAINER_STATUS: &str = "container_status";

/// What identifies a container in its status, and stays.
const IDENTITY: [&str; 2] = ["container_id", "executor_pid"];

/// What hooks have changed of the updates of tasks that the agent ends.
pub(super) struct Decorations(BTreeMap<TaskId, Map<String, Json>>);

impl Decorations {
    /// The same entries with what hooks have changed.
    pub(super) fn apply(&self, mut entries: Vec<Entry>) -> Vec<Entry> {
        for entry in &mut entries {
            if let Entry::Update(update) = entry
                && update.source == Source::Agent
                && let Some(details) = self.0.get(&update.task)
            {
                update.details.clone_from(details);
            }
        }
        entries
    }
}

impl Shared {
    /// Completes the request for an executor that is about to be launched by what hooks change of its environment.
    ///
    /// # Errors
    /// Why it cannot be launched. Does not wait for hooks when the executor has to end.
    pub(super) async fn complete_by_hooks(
        &self,
        handle: &Handle,
        mut request: Request,
    ) -> Result<Request, String> {
        let (changes, describes) =
            (self.hooks.has(Method::ExecutorEnvironment), self.hooks.has(Method::PreLaunchDocker));
        if !changes && !describes {
            return Ok(request);
        }
        let executor = executor_details(&handle.state());
        if changes {
            let own = environment::own_variables(self, &handle.state());
            let requested = environment::requested(&request, &own);
            let asked = self.hooks.executor_environment(handle.container(), executor.clone(), requested);
            let changed = tokio::select! {
                biased;
                () = handle.has_to_end() => return Err("the executor was stopped before its launch".into()),
                changed = asked => changed.map_err(|error| error_chain::describe(&error))?,
            };
            environment::replace(&mut request, &own, changed);
        }
        request.executor = Some(Box::new(executor));
        Ok(request)
    }

    /// The right to decorate and record updates of an executor, if there are hooks for it. Whoever asks first gets it first,
    /// so updates are recorded in the order in which they came, and only one of them at a time waits for a thread.
    pub(super) async fn decorating<'h>(&self, handle: &'h Handle) -> Option<MutexGuard<'h, ()>> {
        if self.hooks.has(Method::TaskStatus) { Some(handle.decorating().await) } else { None }
    }

    /// Lets hooks decorate an update of a task. Called with [`Self::decorating`], and not within an operation.
    pub(super) async fn decorate(&self, handle: &Handle, mut update: Update) -> Update {
        if self.is_decorated(handle, &update) {
            self.decorate_new(handle, &mut update).await;
        }
        update
    }

    /// As [`Self::decorate`], for updates that an executor sends at once.
    pub(super) async fn decorate_all(&self, handle: &Handle, mut updates: Vec<Update>) -> Vec<Update> {
        let until = Instant::now() + DECORATION;
        for update in &mut updates {
            if self.is_decorated(handle, update) {
                let decorated = timeout_at(until, self.decorate_new(handle, update)).await;
                if decorated.is_err() {
                    report_slow(handle);
                    break;
                }
            }
        }
        updates
    }

    /// What hooks change of the updates with which the agent ends tasks: at most one for each.
    pub(super) async fn decorations(&self, handle: &Handle, entries: &[Entry]) -> Decorations {
        let mut decorations = BTreeMap::new();
        if self.hooks.has(Method::TaskStatus) {
            let until = Instant::now() + DECORATION;
            for entry in entries {
                // An update of the executor was decorated when it came.
                let Entry::Update(update) = entry else { continue };
                if update.source == Source::Executor {
                    continue;
                }
                let mut update = Update::clone(update);
                if timeout_at(until, self.decorate_new(handle, &mut update)).await.is_err() {
                    report_slow(handle);
                    break;
                }
                decorations.insert(update.task, update.details);
            }
        }
        Decorations(decorations)
    }

    /// Entries with what hooks change of the agent's own updates in them. An operation that calls this goes on after a while, whatever
    /// hooks do.
    pub(super) async fn decorated(&self, handle: &Handle, entries: Vec<Entry>) -> Vec<Entry> {
        self.decorations(handle, &entries).await.apply(entries)
    }

    /// Whether hooks are called for an update of an executor: not for one that is refused or known.
    fn is_decorated(&self, handle: &Handle, update: &Update) -> bool {
        self.hooks.has(Method::TaskStatus) && matches!(handle.state().receive(update), Ok(Received::New(_)))
    }

    async fn decorate_new(&self, handle: &Handle, update: &mut Update) {
        let original = update.details.clone();
        self.replace_details(handle, update).await;
        if matches!(handle.state().receive(update), Err(UpdateRefused::TooMany { .. })) {
            tracing::warn!(
                container = %handle.container(),
                task = %update.task,
                "status update not decorated: there is no space for what hooks add"
            );
            update.details = original;
        }
    }

    async fn replace_details(&self, handle: &Handle, update: &mut Update) {
        let status = {
            let state = handle.state();
            status(&state, update)
        };
        let decorated = self.hooks.task_status(handle.container(), status.clone()).await;
        if decorated.labels != status.labels {
            update.details.insert(LABELS.to_owned(), encode_labels(&decorated.labels));
        }
        if decorated.container_status != status.container_status {
            let mut changed = decorated.container_status;
            if let Json::Object(changed) = &mut changed {
                for name in IDENTITY {
                    match status.container_status.get(name) {
                        Some(known) => changed.insert(name.to_owned(), known.clone()),
                        None => changed.remove(name),
                    };
                }
            }
            update.details.insert(CONTAINER_STATUS.to_owned(), changed);
        }
    }

    /// Removes what is left of executors that ended, in the background, when hooks were informed of this one, of which all is
    /// over. They are informed once.
    pub(super) fn remove_after_hooks(self: &Arc<Self>, handle: &Arc<Handle>) {
        if !self.hooks.has(Method::RemoveExecutor) || !handle.report_removal() {
            return self.remove_in_background();
        }
        let executor = executor_details(&handle.state());
        let (shared, handle) = (Arc::clone(self), Arc::clone(handle));
        tokio::spawn(async move {
            shared.hooks.remove_executor(handle.container(), &executor).await;
            shared.remove_in_background();
        });
    }
}

fn report_slow(handle: &Handle) {
    tracing::warn!(
        container = %handle.container(),
        "status updates not decorated: hooks took more than {DECORATION:?} for those before"
    );
}

/// An executor as hooks see it.
fn executor_details(state: &ExecutorState) -> ExecutorDetails {
    let (framework, executor) = (&state.framework, &state.executor);
    let mut tasks: Vec<&Task> = state.tasks.values().collect();
    tasks.sort_by_key(|task| task.sequence);
    ExecutorDetails {
        framework: FrameworkDetails {
            id: framework.id.to_string(),
            name: text(&framework.info, "name").unwrap_or_default(),
            user: text(&framework.info, "user").filter(|user| !user.is_empty()),
            principal: text(&framework.info, "principal"),
            labels: decode_labels(&framework.info[LABELS]),
        },
        id: executor.id.to_string(),
        name: text(&executor.info, "name").unwrap_or_default(),
        kind: match executor.kind {
            ExecutorKind::Command => model::ExecutorKind::Command,
            ExecutorKind::Default => model::ExecutorKind::Default,
            ExecutorKind::Docker => model::ExecutorKind::Docker,
            ExecutorKind::Custom => model::ExecutorKind::Custom,
        },
        labels: decode_labels(&executor.info[LABELS]),
        command: decode_command(&executor.info["command"]),
        resources: executor.resources.clone(),
        tasks: tasks.into_iter().map(task_details).collect(),
    }
}

fn task_details(task: &Task) -> TaskDetails {
    TaskDetails {
        id: task.id.to_string(),
        name: task.name.clone(),
        labels: decode_labels(&task.info[LABELS]),
        command: decode_command(&task.info["command"]),
        resources: task.resources.clone(),
    }
}

/// An update as hooks see it.
fn status(state: &ExecutorState, update: &Update) -> model::TaskStatus {
    model::TaskStatus {
        framework: state.framework.id.to_string(),
        executor: state.executor.id.to_string(),
        task: update.task.to_string(),
        state: update.state.name().to_owned(),
        source: match update.source {
            Source::Executor => "SOURCE_EXECUTOR",
            Source::Agent => "SOURCE_AGENT",
        }
        .to_owned(),
        reason: update.reason.clone(),
        message: update.message.clone(),
        healthy: update.details.get("healthy").and_then(Json::as_bool),
        labels: update.details.get(LABELS).map(decode_labels).unwrap_or_default(),
        container_status: update.details.get(CONTAINER_STATUS).cloned().unwrap_or_default(),
    }
}

fn text(info: &Json, field: &str) -> Option<String> {
    info[field].as_str().map(str::to_owned)
}

/// `Labels` in the API's JSON.
fn decode_labels(labels: &Json) -> BTreeMap<String, String> {
    let label = |label: &Json| Some((text(label, "key")?, text(label, "value").unwrap_or_default()));
    labels[LABELS].as_array().into_iter().flatten().filter_map(label).collect()
}

fn encode_labels(labels: &BTreeMap<String, String>) -> Json {
    let labels: Vec<Json> = labels.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
    json!({ LABELS: labels })
}

/// `CommandInfo` in the API's JSON, without secrets.
fn decode_command(info: &Json) -> Option<Command> {
    let info = info.as_object()?;
    let field = |name: &str| info.get(name).unwrap_or(&Json::Null);
    let arguments = field("arguments").as_array().into_iter().flatten();
    let variables = field("environment")["variables"].as_array().into_iter().flatten();
    // One with a secret has no value.
    let variable = |variable: &Json| Some((text(variable, "name")?, text(variable, "value")?));
    Some(Command {
        shell: field("shell").as_bool().unwrap_or(true),
        value: field("value").as_str().map(str::to_owned),
        arguments: arguments.filter_map(|argument| argument.as_str().map(str::to_owned)).collect(),
        environment: variables.filter_map(variable).collect(),
        user: field("user").as_str().map(str::to_owned),
        ..Command::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_decoded_without_secrets() {
        let labels =
            json!({"labels": [{"key": "a", "value": "1"}, {"key": "bare"}, {"key": "a", "value": "2"}]});
        let decoded = decode_labels(&labels);
        assert_eq!(decoded, BTreeMap::from([("a".into(), "2".into()), ("bare".into(), String::new())]));
        assert_eq!(decode_labels(&encode_labels(&decoded)), decoded);
        assert_eq!(decode_labels(&Json::Null), BTreeMap::new());

        let command = decode_command(&json!({
            "value": "/bin/web", "shell": false, "arguments": ["web", "-v"], "user": "www",
            "environment": {"variables": [
                {"name": "A", "value": "1"},
                {"name": "S", "type": "SECRET", "secret": {"type": "VALUE", "value": {"data": "aGk="}}},
            ]},
        }));
        let command = command.unwrap();
        assert_eq!((command.shell, command.value.as_deref()), (false, Some("/bin/web")));
        assert_eq!((command.arguments.len(), command.user.as_deref()), (2, Some("www")));
        assert_eq!(command.environment, BTreeMap::from([("A".into(), "1".into())]));
        assert_eq!(decode_command(&Json::Null), None);
        assert!(decode_command(&json!({"value": "true"})).unwrap().shell);
    }
}
