//! What the agent answers.

use super::{
    bytes::Bytes,
    file::FileInfo,
    id::{ContainerId, ExecutorId, FrameworkId},
    inspect::{InspectedContainer, PluginFailure, PluginInfo},
    statistics::ResourceStatistics,
    status::{ContainerStatus, Reason, TaskResourceLimitation, TaskState},
    wire::TimeInfo,
};

envelope! {
    /// An answer: `{"type": "GET_HEALTH", "get_health": {…}}`.
    ///
    /// Calls that only do something (LAUNCH, KILL, REMOVE, UPDATE, PRUNE) are answered by the status alone.
    pub enum Response, not implemented [
        "UNKNOWN", "GET_LOGGING_LEVEL", "GET_FRAMEWORKS", "GET_EXECUTORS", "GET_OPERATIONS", "GET_TASKS",
        "GET_AGENT", "GET_RESOURCE_PROVIDERS"
    ] {
        /// How the container ended.
        "WAIT_CONTAINER" => WaitContainer(Termination) in "wait_container",
        /// How the nested container ended.
        "WAIT_NESTED_CONTAINER" => WaitNestedContainer(Termination) in "wait_nested_container",
        /// Everything about one container. Ours.
        "INSPECT_CONTAINER" => InspectContainer(Box<InspectedContainer>) in "inspect_container",
        /// Containers with status and use.
        "GET_CONTAINERS" => GetContainers(Containers) in "get_containers" or default,
        /// Frameworks, executors and tasks.
        "GET_STATE" => GetState(State) in "get_state" or default,
        /// The settings in force.
        "GET_FLAGS" => GetFlags(Flags) in "get_flags" or default,
        /// Whether the agent is well.
        "GET_HEALTH" => GetHealth(Health) in "get_health",
        /// Which agent this is.
        "GET_VERSION" => GetVersion(Version) in "get_version",
        /// All metrics.
        "GET_METRICS" => GetMetrics(Metrics) in "get_metrics" or default,
        /// Plugins and how they fare. Ours.
        "GET_PLUGINS" => GetPlugins(Plugins) in "get_plugins" or default,
        /// A directory of the file service.
        "LIST_FILES" => ListFiles(FileList) in "list_files" or default,
        /// A piece of a file of the file service.
        "READ_FILE" => ReadFile(FileData) in "read_file",
    }
}

message! {
    /// How a container ended. All fields are absent when nothing is known but that it did.
    pub struct Termination {
        /// The raw status of `wait(2)`: 256 for exit 1, 9 for SIGKILL.
        optional exit_status: i32,
        /// How it stands, when the agent and not the program ended it.
        optional state: TaskState,
        /// Why the agent ended it.
        optional reason: Reason,
        /// Which resources it exceeded.
        optional limitation: TaskResourceLimitation,
        /// What there is to say in words.
        optional message: String,
    }
}

message! {
    /// Containers.
    pub struct Containers {
        /// One each.
        repeated containers: Container,
    }
}

message! {
    /// One container in a list.
    pub struct Container {
        /// Its framework. Never set by this agent.
        optional framework_id: FrameworkId,
        /// Its executor. Never set by this agent.
        optional executor_id: ExecutorId,
        /// The name of its executor. Never set by this agent.
        optional executor_name: String,
        /// Its name.
        required container_id: ContainerId,
        /// How it stands; absent if that could not be found out.
        optional container_status: ContainerStatus,
        /// What it uses; absent if that could not be found out.
        optional resource_statistics: ResourceStatistics,
        /// Where it is in its life, as the phases are called (`RUNNING`). Ours.
        optional state: String,
        /// What it runs, in one line. Ours.
        optional command: String,
        /// When its launch was accepted. Ours.
        optional launched: TimeInfo,
        /// How it ended, if it has. Ours.
        optional termination: Termination,
        /// What keeps it from being cleaned up, one sentence per plugin. Ours.
        repeated stuck: String,
        /// Plugins that could not tell their part, and why. Ours.
        repeated failures: PluginFailure,
    }
}

message! {
    /// What runs on behalf of frameworks. This agent serves none, so that all lists are empty.
    pub struct State {
        /// Tasks.
        optional get_tasks: TaskList,
        /// Executors.
        optional get_executors: ExecutorList,
        /// Frameworks.
        optional get_frameworks: FrameworkList,
        /// The containers there are, as GET_CONTAINERS lists them with everything shown. Ours.
        optional get_containers: Containers,
    }
}

message! {
    /// Tasks by how far they are, as written.
    pub struct TaskList {
        repeated pending_tasks: serde_json::Value,
        repeated queued_tasks: serde_json::Value,
        repeated launched_tasks: serde_json::Value,
        repeated terminated_tasks: serde_json::Value,
        repeated completed_tasks: serde_json::Value,
    }
}

message! {
    /// Executors, as written.
    pub struct ExecutorList {
        repeated executors: serde_json::Value,
        repeated completed_executors: serde_json::Value,
    }
}

message! {
    /// Frameworks, as written.
    pub struct FrameworkList {
        repeated frameworks: serde_json::Value,
        repeated completed_frameworks: serde_json::Value,
    }
}

message! {
    /// Settings.
    pub struct Flags {
        /// One each, sorted by name.
        repeated flags: Flag,
    }
}

message! {
    /// One setting.
    pub struct Flag {
        /// Its name.
        required name: String,
        /// Its value, as an operator would write it.
        optional value: String,
    }
}

message! {
    /// Whether the agent is well.
    pub struct Health {
        /// An agent that can answer is.
        required healthy: bool,
    }
}

message! {
    /// Which agent this is.
    pub struct Version {
        /// Its version.
        required version_info: VersionInfo,
    }
}

message! {
    /// A version and where it was built. The body of `GET /version` as well.
    pub struct VersionInfo {
        /// `major.minor.patch`.
        required version: String,
        /// When it was built: `2026-01-31 12:00:00`, UTC.
        optional build_date: String,
        /// When it was built: seconds since the Unix epoch.
        optional build_time: f64,
        /// Who built it.
        optional build_user: String,
        /// The commit it was built from.
        optional git_sha: String,
        /// The branch it was built from.
        optional git_branch: String,
        /// The tag it was built from.
        optional git_tag: String,
    }
}

message! {
    /// Metrics.
    pub struct Metrics {
        /// One each.
        repeated metrics: Metric,
    }
}

message! {
    /// One metric.
    pub struct Metric {
        /// Its name, in parts separated by slashes.
        required name: String,
        /// Its value; absent if it could not be had in time.
        optional value: f64,
    }
}

message! {
    /// Plugins.
    pub struct Plugins {
        /// One each, in the order of the chain.
        repeated plugins: PluginInfo,
    }
}

message! {
    /// A directory.
    pub struct FileList {
        /// Its entries, sorted by path.
        repeated file_infos: FileInfo,
    }
}

message! {
    /// A piece of a file.
    pub struct FileData {
        /// The size of the whole file in bytes.
        required size: u64,
        /// The piece: empty at or beyond the end, and possibly shorter than asked for.
        required data: Bytes,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::resource::Resource, *};

    fn survives(wire: Value) -> Response {
        let response = Response::from_json(wire.to_string().as_bytes()).unwrap();
        assert_eq!(serde_json::to_value(&response).unwrap(), wire);
        response
    }

    #[test]
    fn the_end_of_a_container_that_used_too_much() {
        let response = Response::WaitContainer(Termination {
            exit_status: Some(9),
            state: Some(TaskState::TaskFailed),
            reason: Some(Reason::ReasonContainerLimitationMemory),
            limitation: Some(TaskResourceLimitation { resources: vec![Resource::scalar("mem", 64.0)] }),
            message: Some("memory limit exceeded".into()),
        });
        let wire = json!({
            "type": "WAIT_CONTAINER",
            "wait_container": {
                "exit_status": 9,
                "state": "TASK_FAILED",
                "reason": "REASON_CONTAINER_LIMITATION_MEMORY",
                "limitation": {"resources": [{"name": "mem", "type": "SCALAR", "scalar": {"value": 64.0}}]},
                "message": "memory limit exceeded",
            },
        });
        assert_eq!(serde_json::to_value(&response).unwrap(), wire);
        assert_eq!(survives(wire), response);
    }

    #[test]
    fn an_end_of_which_nothing_is_known_is_an_empty_body() {
        survives(json!({"type": "WAIT_NESTED_CONTAINER", "wait_nested_container": {}}));
    }

    #[test]
    fn containers_as_mesos_lists_them() {
        let response = survives(json!({
            "type": "GET_CONTAINERS",
            "get_containers": {"containers": [{
                "container_id": {"value": "f0f97041"},
                "container_status": {"network_infos": [{"ip_addresses": [{"ip_address": "192.168.1.20"}]}]},
                "executor_id": {"value": "default"},
                "executor_name": "",
                "framework_id": {"value": "cbe3c0f1-0000"},
                "resource_statistics": {"mem_limit_bytes": 2048, "timestamp": 0.0},
            }]},
        }));
        let Response::GetContainers(list) = response else { panic!("{response:?}") };
        assert_eq!(list.containers[0].resource_statistics.as_ref().unwrap().mem_limit_bytes, Some(2048));
    }

    #[test]
    fn files_and_their_bytes() {
        survives(json!({
            "type": "LIST_FILES",
            "list_files": {"file_infos": [{
                "gid": "root", "mode": 33188, "mtime": {"nanoseconds": 1_470_820_172_000_000_000i64},
                "nlink": 1, "path": "one/two", "size": 3, "uid": "root",
            }]},
        }));
        let response = survives(json!({"type": "READ_FILE", "read_file": {"data": "b2R5", "size": 4}}));
        let Response::ReadFile(file) = response else { panic!("{response:?}") };
        assert_eq!((file.size, file.data.0.as_slice()), (4, b"ody".as_slice()));
    }

    #[test]
    fn the_agent_about_itself() {
        survives(json!({"type": "GET_HEALTH", "get_health": {"healthy": true}}));
        survives(json!({"type": "GET_VERSION", "get_version": {"version_info": {
            "version": "1.11.0", "build_time": 1_455_559_228.0, "git_sha": "9d5889b5"}}}));
        survives(
            json!({"type": "GET_FLAGS", "get_flags": {"flags": [{"name": "isolation", "value": "cgroups/cpu"}]}}),
        );
        survives(
            json!({"type": "GET_METRICS", "get_metrics": {"metrics": [{"name": "slave/uptime_secs", "value": 1.5}]}}),
        );
        survives(
            json!({"type": "GET_STATE", "get_state": {"get_tasks": {}, "get_executors": {}, "get_frameworks": {}}}),
        );
    }
}
