//! Frameworks, executors and tasks.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};

use super::error::{DecodeError, Result};
use super::launch::decode_launch;
use super::resources::decode_resources;
use crate::api::operator::types as wire;
use crate::api::protobuf;
use crate::api::protobuf::schema::{Message, task as schema};
use cofferdam_core::config::ExecutorConfig;
use cofferdam_core::executor::{
    ExecutorDescription, ExecutorId, ExecutorKind, Framework, FrameworkId, InvalidName, LaunchTasks, Source,
    Task, TaskId, TaskState, Update, UpdateId,
};
use cofferdam_core::model::{ContainerId, Request, Resources};

/// What an executor of the agent may use itself, in addition to its task: as in Mesos, 0.1 CPUs and 32 MiB.
const OVERHEAD: [(&str, f64); 2] = [("cpus", 0.1), ("mem", 32.0)];

/// How large a status may be, as JSON.
pub(in crate::api) const MAX_STATUS: usize = 64 << 10;

/// What the agent is configured to do for executors.
pub(in crate::api) struct Settings<'a> {
    pub(in crate::api) executors: &'a ExecutorConfig,
    pub(in crate::api) agent_id: &'a str,
    pub(in crate::api) default_container: Option<wire::ContainerInfo>,
    pub(in crate::api) agent_image: Option<AgentImage<'a>>,
}

/// The image of the container that the agent is in.
#[derive(Clone, Copy)]
pub(in crate::api) struct AgentImage<'a> {
    pub(in crate::api) image: &'a str,
    /// Where sandboxes are in containers of an engine.
    pub(in crate::api) sandbox_directory: &'a Path,
}

impl AgentImage<'_> {
    /// A container of the image that runs a command as one of the agent's processes would, if these did not end with the agent's
    /// container: with its program in place of the entry point, which is the agent's, as its user, in the sandbox, and in the
    /// network of the host.
    fn container(
        self,
        command: &wire::CommandInfo,
        user: Option<&str>,
    ) -> Result<(wire::ContainerInfo, wire::CommandInfo)> {
        let mut own = command.clone();
        let mut parameters = Vec::new();
        let mut add =
            |key: &str, value: String| parameters.push(wire::Parameter { key: key.to_owned(), value });
        if !own.is_shell() {
            let missing = || DecodeError::field("command.value", "it is missing");
            add("entrypoint", own.value.take().ok_or_else(missing)?);
            // The engine sets `argv[0]`.
            own.arguments = own.arguments.split_off(own.arguments.len().min(1));
        }
        if let Some(user) = user {
            add("user", user.to_owned());
        }
        own.working_directory.get_or_insert_with(|| self.sandbox_directory.to_string_lossy().into_owned());
        let docker =
            wire::DockerInfo { image: self.image.to_owned(), parameters, ..wire::DockerInfo::default() };
        let kind = wire::ContainerKind::Docker;
        Ok((wire::ContainerInfo { kind, docker: Some(docker), ..wire::ContainerInfo::default() }, own))
    }
}

impl Settings<'_> {
    /// The image for an executor or a task, if neither it nor the setting has a container.
    fn agent_image(&self, container: Option<&wire::ContainerInfo>) -> Option<AgentImage<'_>> {
        self.agent_image.filter(|_| container.is_none() && self.default_container.is_none())
    }
}

/// Decodes the setting `default_container_info`.
pub(in crate::api) fn default_container(info: Option<&Json>) -> Result<Option<wire::ContainerInfo>> {
    info.map(|info| typed("default_container_info", info)).transpose()
}

/// Decodes `LAUNCH_TASK`.
pub(in crate::api) fn decode_task(call: &wire::LaunchTask, settings: &Settings<'_>) -> Result<LaunchTasks> {
    let (framework, user) = decode_framework(&call.framework_info, settings)?;
    let task: wire::TaskInfo = typed("task_info", &call.task_info)?;
    let decoded = decode_task_info("task_info", &call.task_info, &task, settings)?;
    let executor = match (call.task_info.get("executor").filter(|info| !info.is_null()), &call.executor_info)
    {
        (Some(_), Some(_)) => {
            return Err(DecodeError::field(
                "executor_info",
                "the task has an `executor` already; leave one of them out",
            ));
        }
        (Some(info), None) => Some(("task_info.executor", info)),
        (None, Some(info)) => Some(("executor_info", info)),
        (None, None) => None,
    };
    let (executor, request) = match executor {
        None => task_executor(&framework, &task, user, settings)?,
        Some((field, info)) => {
            if task.command.is_some() {
                let reason = "the task has an executor; leave `command` out, or the executor";
                return Err(DecodeError::field("task_info.command", reason));
            }
            let (executor, request) = decode_executor(field, info, &framework, user, settings)?;
            if executor.kind == ExecutorKind::Default {
                let reason = "`DEFAULT` takes groups; use LAUNCH_TASK_GROUP";
                return Err(DecodeError::field(format!("{field}.type"), reason));
            }
            (executor, request)
        }
    };
    Ok(LaunchTasks { framework, executor, request, tasks: vec![decoded], group: false })
}

/// Decodes `LAUNCH_TASK_GROUP`.
pub(in crate::api) fn decode_task_group(
    call: &wire::LaunchTaskGroup,
    settings: &Settings<'_>,
) -> Result<LaunchTasks> {
    let (framework, user) = decode_framework(&call.framework_info, settings)?;
    let mut tasks: Vec<Task> = Vec::new();
    for (index, info) in call.task_group.tasks.iter().enumerate() {
        let field = format!("task_group.tasks[{index}]");
        let task: wire::TaskInfo = typed(&field, info)?;
        if task.executor.is_some() {
            return Err(DecodeError::field(
                format!("{field}.executor"),
                "the group has one executor; use `executor_info`",
            ));
        }
        let task = decode_task_info(&field, info, &task, settings)?;
        if tasks.iter().any(|other| other.id == task.id) {
            return Err(DecodeError::field(
                format!("{field}.task_id"),
                "another task of the group has the same id",
            ));
        }
        tasks.push(task);
    }
    let Some(first) = tasks.first() else {
        return Err(DecodeError::field("task_group.tasks", "it is empty"));
    };
    let generated = json!({
        "type": "DEFAULT",
        "executor_id": {"value": first.id.as_str()},
        "name": "Default Executor",
        "resources": overhead(),
    });
    let info = call.executor_info.as_ref().unwrap_or(&generated);
    let (executor, request) = decode_executor("executor_info", info, &framework, user, settings)?;
    if executor.kind == ExecutorKind::Default {
        for (index, info) in call.task_group.tasks.iter().enumerate() {
            if info.get("command").is_none_or(Json::is_null) {
                let field = format!("task_group.tasks[{index}].command");
                return Err(DecodeError::field(field, "it is missing"));
            }
            if info.pointer("/container/type").is_some_and(|kind| kind == "DOCKER") {
                let field = format!("task_group.tasks[{index}].container.type `DOCKER`");
                let advice = " for tasks of a group; use `MESOS` with an image";
                return Err(DecodeError::Unsupported { field, advice });
            }
        }
    }
    Ok(LaunchTasks { framework, executor, request, tasks, group: true })
}

/// Decodes a framework. Returns the user of its executors as well.
fn decode_framework(info: &Json, settings: &Settings<'_>) -> Result<(Framework, Option<String>)> {
    let framework: wire::FrameworkInfo = typed("framework_info", info)?;
    check_form("framework_info", &schema::FRAMEWORK_INFO, info)?;
    let missing = || DecodeError::field("framework_info.id", "it is missing");
    let id = decode_framework_id("framework_info.id", framework.id.as_ref().ok_or_else(missing)?)?;
    let partition_aware =
        framework.capabilities.iter().any(|capability| capability.kind == "PARTITION_AWARE");
    let user = Some(framework.user).filter(|user| settings.executors.switch_user && !user.is_empty());
    let checkpoint = framework.checkpoint.unwrap_or(false);
    Ok((Framework { id, info: info.clone(), checkpoint, partition_aware }, user))
}

/// Decodes what every task has, whatever runs it.
fn decode_task_info(
    field: &str,
    info: &Json,
    task: &wire::TaskInfo,
    settings: &Settings<'_>,
) -> Result<Task> {
    let id = named(format!("{field}.task_id"), TaskId::new(task.task_id.value.clone()))?;
    check_form(field, &schema::TASK_INFO, info)?;
    let resources = decode_resources(&placeholder()?, &task.resources, &task.limits)
        .map_err(|error| within(field, error))?;
    let mut info = info.clone();
    if let Json::Object(info) = &mut info {
        // There is one agent only.
        info.insert("agent_id".to_owned(), json!({"value": settings.agent_id}));
    }
    Ok(Task::new(id, task.name.clone(), info, resources))
}

/// The executor that the agent generates for a single task, and its container: that of the task.
fn task_executor(
    framework: &Framework,
    task: &wire::TaskInfo,
    framework_user: Option<String>,
    settings: &Settings<'_>,
) -> Result<(ExecutorDescription, Request)> {
    let user_of = |command: &wire::CommandInfo| {
        command.user.clone().filter(|_| settings.executors.switch_user).or_else(|| framework_user.clone())
    };
    let in_agent_image = match (settings.agent_image(task.container.as_ref()), &task.command) {
        (Some(image), Some(command)) => {
            let container = image.container(command, user_of(command).as_deref());
            Some(container.map_err(|error| within("task_info", error))?)
        }
        _ => None,
    };
    let (container, command) = match &in_agent_image {
        Some((container, command)) => (Some(container), Some(command)),
        None => (task.container.as_ref(), task.command.as_ref()),
    };
    let is_docker = is_docker(container.or(settings.default_container.as_ref()));
    let of_image = wire::CommandInfo { shell: Some(false), ..wire::CommandInfo::default() };
    let command = match command {
        Some(command) => command,
        None if is_docker => &of_image,
        None => {
            return Err(DecodeError::field(
                "task_info.command",
                "it is missing; a task needs a command or an executor",
            ));
        }
    };
    let is_empty = command.value.is_none() && (command.is_shell() || command.arguments.is_empty());
    let is_empty = is_empty && (in_agent_image.is_none() || command.is_shell());
    if is_empty && (command.is_shell() || !is_docker) {
        return Err(DecodeError::field("task_info.command.value", "it is missing"));
    }
    let is_secret = |variable: &wire::Variable| variable.kind() == wire::VariableKind::Secret;
    if command.environment.iter().flat_map(|environment| &environment.variables).any(is_secret) {
        let field = "task_info.command.environment with `type` `SECRET`".to_owned();
        return Err(DecodeError::Unsupported { field, advice: "; use an executor of your own" });
    }
    let mut own = command.clone();
    own.user = user_of(command);
    // The task gets its environment from the executor.
    let request = container_request("task_info", Some(&own), container, settings)?;
    request.check()?;
    if request.tty.is_some() {
        let field = "task_info.container.tty_info".to_owned();
        return Err(DecodeError::Unsupported { field, advice: " for tasks" });
    }
    let mut request = request;
    if !is_docker {
        request.command.environment.clear();
        request.command.working_directory = None;
    }
    let id = named("task_info.task_id".to_owned(), ExecutorId::new(task.task_id.value.clone()))?;
    let line = task.command.as_ref().and_then(|command| command.value.as_deref()).unwrap_or_default();
    let info = json!({
        "executor_id": {"value": id.as_str()},
        "framework_id": {"value": framework.id.as_str()},
        "name": format!("Command Executor (Task: {id}) (Command: {line})"),
        "source": id.as_str(),
        "resources": overhead(),
    });
    let executor = ExecutorDescription {
        id,
        kind: if is_docker { ExecutorKind::Docker } else { ExecutorKind::Command },
        info,
        resources: OVERHEAD.iter().fold(Resources::default(), |sum, (name, amount)| sum.with(name, *amount)),
        shutdown_grace_ms: millis(settings.executors.shutdown_grace_period),
    };
    Ok((executor, request))
}

/// Decodes an executor that its framework describes.
fn decode_executor(
    field: &str,
    info: &Json,
    framework: &Framework,
    framework_user: Option<String>,
    settings: &Settings<'_>,
) -> Result<(ExecutorDescription, Request)> {
    let executor: wire::ExecutorInfo = typed(field, info)?;
    let id = named(format!("{field}.executor_id"), ExecutorId::new(executor.executor_id.value.clone()))?;
    let kind = match executor.kind.as_deref() {
        None | Some("CUSTOM") => ExecutorKind::Custom,
        Some("DEFAULT") => ExecutorKind::Default,
        Some(other) => {
            let reason = format!("`{other}` is not known; expected `DEFAULT` or `CUSTOM`");
            return Err(DecodeError::field(format!("{field}.type"), reason));
        }
    };
    let mut command = match (kind, executor.command) {
        (ExecutorKind::Custom, Some(command)) => command,
        (ExecutorKind::Custom, None) => {
            return Err(DecodeError::field(
                format!("{field}.command"),
                "it is missing; a custom executor needs one",
            ));
        }
        (_, Some(_)) => {
            let reason = "an executor of type `DEFAULT` has no command";
            return Err(DecodeError::field(format!("{field}.command"), reason));
        }
        // The agent sets it.
        (_, None) => wire::CommandInfo { value: Some("true".to_owned()), ..wire::CommandInfo::default() },
    };
    command.user = command.user.filter(|_| settings.executors.switch_user).or(framework_user);
    let mut container = executor.container.clone();
    if let (Some(image), ExecutorKind::Custom) = (settings.agent_image(container.as_ref()), kind) {
        let (own, in_it) =
            image.container(&command, command.user.as_deref()).map_err(|error| within(field, error))?;
        (container, command) = (Some(own), in_it);
    }
    let request = container_request(field, Some(&command), container.as_ref(), settings)?;
    if kind == ExecutorKind::Default && request.docker.is_some() {
        let field = match executor.container {
            Some(_) => format!("{field}.container.type `DOCKER`"),
            None => "`type` `DOCKER` in the setting `default_container_info`".to_owned(),
        };
        let advice =
            " for executors of type `DEFAULT`, as nothing can be nested in it; use `executor_info.container`";
        return Err(DecodeError::Unsupported { field, advice });
    }
    if request.tty.is_some() {
        let field = format!("{field}.container.tty_info");
        return Err(DecodeError::Unsupported { field, advice: " for executors" });
    }
    let resources =
        decode_resources(&placeholder()?, &executor.resources, &std::collections::BTreeMap::new())
            .map_err(|error| within(field, error))?;
    let grace = match &executor.shutdown_grace_period {
        None => millis(settings.executors.shutdown_grace_period),
        Some(grace) => u64::try_from(grace.nanoseconds)
            .map_err(|_| DecodeError::field(format!("{field}.shutdown_grace_period"), "it is negative"))?
            .div_ceil(1_000_000),
    };
    check_form(field, &schema::EXECUTOR_INFO, info)?;
    let mut info = info.clone();
    if let Json::Object(info) = &mut info {
        info.insert("framework_id".to_owned(), json!({"value": framework.id.as_str()}));
    }
    Ok((ExecutorDescription { id, kind, info, resources, shutdown_grace_ms: grace }, request))
}

/// The container of an executor or a task; its id is set by the agent.
pub(in crate::api) fn container_request(
    field: &str,
    command: Option<&wire::CommandInfo>,
    container: Option<&wire::ContainerInfo>,
    settings: &Settings<'_>,
) -> Result<Request> {
    let container = container.or(settings.default_container.as_ref());
    let image = container.and_then(|container| container.mesos.as_ref()?.image.as_ref()?.docker.as_ref());
    if image.is_some_and(|docker| docker.config.is_some()) {
        // What describes a task is recorded, and shown to executors and clients.
        return Err(DecodeError::Unsupported {
            field: format!("{field}.container.mesos.image.docker.config"),
            advice: " for tasks and executors; name a file in `credentials` of `[registry]`",
        });
    }
    let launch = wire::LaunchContainer {
        container_id: wire::ContainerId { value: "executor".to_owned(), parent: None },
        command: command.cloned(),
        container: container.cloned(),
        ..wire::LaunchContainer::default()
    };
    decode_launch(&launch).map_err(|error| within(field, error))
}

fn is_docker(container: Option<&wire::ContainerInfo>) -> bool {
    container.is_some_and(|info| info.kind == wire::ContainerKind::Docker)
}

fn overhead() -> Json {
    let resources = OVERHEAD.map(|(name, value)| wire::Resource::scalar(name, value));
    json!(resources)
}

/// Decodes the status that an executor sends with an update.
pub(in crate::api) fn decode_status(field: &str, status: &Json, now: f64) -> Result<Update> {
    let Json::Object(fields) = status else { return Err(DecodeError::field(field, "expected an object")) };
    if status.to_string().len() > MAX_STATUS {
        return Err(DecodeError::field(field, format!("it is larger than {MAX_STATUS} bytes")));
    }
    check_form(field, &schema::TASK_STATUS, status)?;
    let mut fields: Map<String, Json> = fields.clone();
    fields.retain(|_, value| !value.is_null());
    let mut take = |name: &str| fields.remove(name);
    let at = |name: &str| format!("{field}.{name}");
    let missing = |name: &str| DecodeError::field(at(name), "it is missing");
    let id: wire::TaskId = typed(&at("task_id"), &take("task_id").ok_or_else(|| missing("task_id"))?)?;
    let task = named(at("task_id"), TaskId::new(id.value))?;
    let state: TaskState = typed(&at("state"), &take("state").ok_or_else(|| missing("state"))?)?;
    if state == TaskState::TaskStaging {
        return Err(DecodeError::field(
            at("state"),
            "`TASK_STAGING` is not a state that an executor can report",
        ));
    }
    let uuid: wire::Bytes = typed(&at("uuid"), &take("uuid").ok_or_else(|| missing("uuid"))?)?;
    let id = decode_update_id(&at("uuid"), &uuid)?;
    // One that is newer than what this agent knows is a number, and has no name.
    let reason = take("reason")
        .filter(|reason| !reason.is_number())
        .map(|reason| typed::<String>(&at("reason"), &reason))
        .transpose()?;
    let message = take("message").map(|message| typed::<String>(&at("message"), &message)).transpose()?;
    let timestamp =
        take("timestamp").map(|timestamp| typed::<f64>(&at("timestamp"), &timestamp)).transpose()?;
    // The agent knows them.
    for known in ["executor_id", "agent_id", "source"] {
        take(known);
    }
    Ok(Update {
        task,
        state,
        id,
        source: Source::Executor,
        timestamp: timestamp.unwrap_or(now),
        reason,
        message,
        details: fields,
    })
}

pub(in crate::api) fn decode_update_id(field: &str, uuid: &wire::Bytes) -> Result<UpdateId> {
    UpdateId::from_bytes(&uuid.0)
        .ok_or_else(|| DecodeError::field(field, format!("it has {} bytes; expected 16", uuid.0.len())))
}

pub(in crate::api) fn decode_framework_id(field: &str, id: &wire::FrameworkId) -> Result<FrameworkId> {
    named(field.to_owned(), FrameworkId::new(id.value.clone()))
}

pub(in crate::api) fn decode_executor_id(field: &str, id: &wire::ExecutorId) -> Result<ExecutorId> {
    named(field.to_owned(), ExecutorId::new(id.value.clone()))
}

pub(in crate::api) fn decode_task_id(field: &str, id: &wire::TaskId) -> Result<TaskId> {
    named(field.to_owned(), TaskId::new(id.value.clone()))
}

/// Decodes a part of a message that is passed on as it was sent.
pub(in crate::api) fn typed<T: DeserializeOwned>(field: &str, value: &Json) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { field.to_owned() } else { format!("{field}.{path}") };
        DecodeError::field(field, error.into_inner().to_string())
    })
}

/// Decodes the kill policy of a call, which is passed on as it was sent.
pub(in crate::api) fn decode_kill_policy(field: &str, policy: Option<&Json>) -> Result<()> {
    policy.map_or(Ok(()), |policy| check_form(field, &schema::KILL_POLICY, policy))
}

/// Checks that what is passed on as it was sent has the published form, so that clients of any encoding can get it.
fn check_form(field: &str, schema: &'static Message, value: &Json) -> Result<()> {
    protobuf::check(schema, value).map_err(|error| {
        let path = error.path();
        let field = if path.is_empty() { field.to_owned() } else { format!("{field}.{path}") };
        DecodeError::field(field, error.reason())
    })
}

fn named<T>(field: String, name: std::result::Result<T, InvalidName>) -> Result<T> {
    name.map_err(|error| DecodeError::field(field, error.to_string()))
}

/// Puts the name of a message before that of its field.
fn within(message: &str, error: DecodeError) -> DecodeError {
    match error {
        DecodeError::Unsupported { field, advice } => {
            DecodeError::Unsupported { field: format!("{message}.{field}"), advice }
        }
        DecodeError::Field { field, reason } => {
            DecodeError::Field { field: format!("{message}.{field}"), reason }
        }
        DecodeError::Resources(error) => {
            DecodeError::field(format!("{message}.resources"), error.to_string())
        }
        error => error,
    }
}

fn placeholder() -> Result<ContainerId> {
    ContainerId::parse("executor").map_err(|source| DecodeError::Id { field: "container_id", source })
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
