//! Requests and replies of hooks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{Command, NetworkRequest, PortMapping, Resources, Volume};

/// An executor and its tasks. The request of `remove_executor`, and part of others.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecutorDetails {
    /// Its framework.
    pub framework: FrameworkDetails,
    /// Its id, `ExecutorID` in Mesos.
    pub id: String,
    /// Its name; empty if it has none.
    pub name: String,
    /// Who runs the tasks.
    pub kind: ExecutorKind,
    /// Labels of its `ExecutorInfo`; the last one of a key counts.
    pub labels: BTreeMap<String, String>,
    /// Its command, without secrets; `None` for an executor that the agent generates.
    pub command: Option<Command>,
    /// What it uses itself, without its tasks.
    pub resources: Resources,
    /// Its tasks in the order of their launch; those that were completed long ago are missing.
    pub tasks: Vec<TaskDetails>,
}

/// A framework: on whose behalf tasks are run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FrameworkDetails {
    /// Its id.
    pub id: String,
    /// Its name; empty if it has none.
    pub name: String,
    /// User that its executors run as, if it names one.
    pub user: Option<String>,
    /// Who it is to the master or the client, if it names one.
    pub principal: Option<String>,
    /// Labels of its `FrameworkInfo`; the last one of a key counts.
    pub labels: BTreeMap<String, String>,
}

/// What runs the tasks of an executor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ExecutorKind {
    /// The executor that the agent generates for a single task.
    #[default]
    Command,
    /// The executor that the agent generates for groups of tasks.
    Default,
    /// The executor that the agent generates for a single task in a container of an engine.
    Docker,
    /// A program of the framework.
    Custom,
    /// Unknown to this version.
    #[serde(other)]
    Unknown,
}

/// A task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskDetails {
    /// Its id.
    pub id: String,
    /// Its name; empty if it has none.
    pub name: String,
    /// Labels of its `TaskInfo`; the last one of a key counts.
    pub labels: BTreeMap<String, String>,
    /// Its command, without secrets; `None` if that is up to the executor.
    pub command: Option<Command>,
    /// Its resources and limits.
    pub resources: Resources,
}

/// Request of `executor_environment`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecutorEnvironment {
    /// The executor that is about to be launched, with its first tasks.
    pub executor: ExecutorDetails,
    /// The environment that its command requests, as the hooks before this one have left it. What the agent sets, such as
    /// `MESOS_EXECUTOR_ID`, is not part of it.
    pub environment: BTreeMap<String, String>,
}

/// Reply of `executor_environment`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExecutorEnvironmentReply {
    /// The whole environment that replaces the one of the request; unchanged if `None`. Variables that the agent sets cannot
    /// be set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<BTreeMap<String, String>>,
}

/// Request of `pre_launch_docker`: a container that an engine is about to make. Its sandbox exists; nothing was fetched or
/// pulled yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DockerLaunch {
    /// Name of the container in the engine.
    pub name: String,
    /// Its image.
    pub image: String,
    /// Whether `docker.privileged` is requested. Parameters can request it as well.
    pub privileged: bool,
    /// Network mode: `host`, `bridge`, `none`, or `user` for the first of [`DockerLaunch::networks`]. Parameters can request
    /// another one.
    pub network: String,
    /// Ports to map from the host.
    pub port_mappings: Vec<PortMapping>,
    /// Parameters of the engine's client, in order: `label=tier=web` is the key `label` with the value `tier=web`.
    pub parameters: Vec<DockerParameter>,
    /// Its command, without the values of secrets.
    pub command: Command,
    /// Requested resources and limits.
    pub resources: Resources,
    /// Labels of the request.
    pub labels: BTreeMap<String, String>,
    /// Volumes of the request, in order.
    pub volumes: Vec<Volume>,
    /// Networks of the request, in order.
    pub networks: Vec<NetworkRequest>,
    /// Path of the sandbox as the container will see it.
    pub sandbox_path: PathBuf,
    /// The executor that runs in the container, or whose task does; `None` for a container that a client launches by itself.
    pub executor: Option<ExecutorDetails>,
}

/// A parameter of a container of an engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DockerParameter {
    /// Its key, without hyphens.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// Reply of `pre_launch_docker`. Two hooks that set a variable to different values fail the launch. The agent neither shows
/// nor records the values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DockerLaunchReply {
    /// Environment variables of the executor. They replace those of the request, not those that the agent sets. A container
    /// that a client launches by itself, and one that an executor runs in, gets both sets; those of the task take
    /// precedence.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub executor_environment: BTreeMap<String, String>,
    /// Environment variables of the task, likewise.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub task_environment: BTreeMap<String, String>,
}

/// Request of `post_fetch`. The sandbox comes as a descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PostFetch {
    /// Numeric user of the container's command, to whom the files belong.
    pub uid: u32,
    /// Numeric group of the container's command.
    pub gid: u32,
    /// Labels of the request.
    pub labels: BTreeMap<String, String>,
    /// Whether the container is one of an engine, whose image is present now.
    pub docker: bool,
}

/// Request of `task_status`: a status update that nobody has received yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskStatus {
    /// Id of the framework.
    pub framework: String,
    /// Id of the executor.
    pub executor: String,
    /// Id of the task.
    pub task: String,
    /// The state, by its name in Mesos: `TASK_RUNNING`.
    pub state: String,
    /// Who reports it, by its name in Mesos: `SOURCE_EXECUTOR`, `SOURCE_AGENT`.
    pub source: String,
    /// Why, by its name in Mesos: `REASON_EXECUTOR_TERMINATED`; `None` if there is no reason.
    pub reason: Option<String>,
    /// Explanation for people.
    pub message: Option<String>,
    /// Whether the task is healthy; `None` if that is not known.
    pub healthy: Option<bool>,
    /// Labels of the status, as the hooks before this one have left them; the last one of a key counts.
    pub labels: BTreeMap<String, String>,
    /// `ContainerStatus` of Mesos, in its JSON, as the hooks before this one have left it; null if there is none.
    pub container_status: Json,
}

/// Reply of `task_status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskStatusReply {
    /// The labels that replace those of the status; unchanged if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// The `ContainerStatus` that replaces that of the status, an object; unchanged if `None`. What identifies the container
    /// stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_status: Option<Json>,
}

#[cfg(test)]
mod tests {
    use serde::Serialize;
    use serde::de::DeserializeOwned;
    use serde_json::json;

    use super::*;

    /// As another version would decode a payload that has a key more.
    fn with_more<T: Serialize + DeserializeOwned>(payload: &T) -> Result<T, serde_json::Error> {
        let mut more = serde_json::to_value(payload)?;
        more["of_a_later_version"] = json!(1);
        serde_json::from_value(more)
    }

    #[test]
    fn requests_grow_and_unknown_keys_of_replies_are_refused() {
        let launch = DockerLaunch { name: "mesos-web".into(), ..DockerLaunch::default() };
        assert_eq!(with_more(&launch).unwrap(), launch);
        with_more(&ExecutorEnvironment::default()).unwrap();
        with_more(&ExecutorDetails::default()).unwrap();
        with_more(&PostFetch::default()).unwrap();
        with_more(&TaskStatus::default()).unwrap();
        for error in [
            with_more(&DockerLaunchReply::default()).unwrap_err(),
            with_more(&ExecutorEnvironmentReply::default()).unwrap_err(),
            with_more(&TaskStatusReply::default()).unwrap_err(),
        ] {
            assert!(error.to_string().contains("of_a_later_version"), "{error}");
        }
    }

    #[test]
    fn payloads_of_an_earlier_version_are_decoded_with_defaults() {
        let launch: DockerLaunch = serde_json::from_value(json!({ "image": "busybox" })).unwrap();
        assert_eq!((launch.image.as_str(), launch.executor), ("busybox", None));
        let later = json!({ "id": "e", "kind": "of_a_later_version" });
        let executor: ExecutorDetails = serde_json::from_value(later).unwrap();
        assert_eq!((executor.id.as_str(), executor.kind), ("e", ExecutorKind::Unknown));
        assert_eq!(serde_json::from_str::<DockerLaunchReply>("{}").unwrap(), DockerLaunchReply::default());
    }
}
