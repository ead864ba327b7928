//! Responses of the agent.

use super::{
    bytes::Bytes,
    file::FileInfo,
    id::{ContainerId, ExecutorId, FrameworkId},
    image::{FetchProgress, PrunedImages, PullProgress},
    inspect::InspectedContainer,
    plugin::{PluginFailure, PluginInfo},
    process_io::ProcessIo,
    resource::Resource,
    statistics::ResourceStatistics,
    status::ContainerStatus,
    termination::Termination,
    wire::TimeInfo,
};

envelope! {
    /// A response: `{"type": "GET_HEALTH", "get_health": {…}}`.
    ///
    /// Calls without a result (LAUNCH, KILL, REMOVE, UPDATE) are answered with an empty body.
    pub enum Response, RESPONSE in protocol buffers, not implemented ["UNKNOWN"] {
        /// How the container ended.
        "WAIT_CONTAINER" => WaitContainer(Termination) in "wait_container",
        /// How the nested container ended.
        "WAIT_NESTED_CONTAINER" => WaitNestedContainer(Termination) in "wait_nested_container",
        /// Details of one container. Extension.
        "INSPECT_CONTAINER" => InspectContainer(Box<InspectedContainer>) in "inspect_container",
        /// A container that runs; then how it ended. Extension.
        "RUN_CONTAINER" => RunContainer(RunningContainer) in "run_container",
        /// Containers with status and resource usage.
        "GET_CONTAINERS" => GetContainers(Containers) in "get_containers" or default,
        /// Frameworks, executors and tasks.
        "GET_STATE" => GetState(State) in "get_state" or default,
        /// Tasks.
        "GET_TASKS" => GetTasks(TaskList) in "get_tasks" or default,
        /// Executors.
        "GET_EXECUTORS" => GetExecutors(ExecutorList) in "get_executors" or default,
        /// Frameworks.
        "GET_FRAMEWORKS" => GetFrameworks(FrameworkList) in "get_frameworks" or default,
        /// Operations.
        "GET_OPERATIONS" => GetOperations(OperationList) in "get_operations" or default,
        /// Resource providers.
        "GET_RESOURCE_PROVIDERS" => GetResourceProviders(ResourceProviderList) in "get_resource_providers" or default,
        /// The agent.
        "GET_AGENT" => GetAgent(AgentDescription) in "get_agent" or default,
        /// The agent's settings.
        "GET_FLAGS" => GetFlags(Flags) in "get_flags" or default,
        /// Whether the agent is healthy.
        "GET_HEALTH" => GetHealth(Health) in "get_health",
        /// The agent's version.
        "GET_VERSION" => GetVersion(Version) in "get_version",
        /// How much is logged.
        "GET_LOGGING_LEVEL" => GetLoggingLevel(LoggingLevel) in "get_logging_level",
        /// All metrics.
        "GET_METRICS" => GetMetrics(Metrics) in "get_metrics" or default,
        /// Plugins. Extension.
        "GET_PLUGINS" => GetPlugins(Plugins) in "get_plugins" or default,
        /// A directory of the file service.
        "LIST_FILES" => ListFiles(FileList) in "list_files" or default,
        /// Part of a file of the file service.
        "READ_FILE" => ReadFile(FileData) in "read_file",
        /// What was removed. Mesos has no result. Extension.
        "PRUNE_IMAGES" => PruneImages(PrunedImages) in "prune_images",
    }
}

message! {
    /// One of the messages in the response to RUN_CONTAINER.
    pub struct RunningContainer {
        /// In the first message: the container that was launched.
        optional launched: LaunchedContainer,
        /// In the messages after it, if `attach.output` was set: output of the container.
        optional process_io: ProcessIo,
        /// In the last message: how the container ended.
        optional terminated: Termination,
    }
}

message! {
    /// A container that was launched.
    pub struct LaunchedContainer {
        /// The file on the agent's host that contains its standard output, if any.
        optional stdout: String,
        /// The file on the agent's host that contains its standard error, if any.
        optional stderr: String,
        /// Which file `stdout` is, as `device:inode`, if the agent opened it. If another file is at the path, the
        /// container has put it there.
        optional stdout_file: String,
        /// The same for `stderr`.
        optional stderr_file: String,
    }
}

message! {
    /// A list of containers.
    pub struct Containers {
        repeated containers: Container,
    }
}

message! {
    /// One container in a list.
    pub struct Container {
        /// Its framework, if it is that of an executor.
        optional framework_id: FrameworkId,
        /// Its executor.
        optional executor_id: ExecutorId,
        /// Name of its executor.
        optional executor_name: String,
        /// Its id.
        required container_id: ContainerId,
        /// Its status.
        optional container_status: ContainerStatus,
        /// Its resource usage; absent if it is not running or usage was not asked for.
        optional resource_statistics: ResourceStatistics,
        /// Its phase, such as `RUNNING`. Extension.
        optional state: String,
        /// Its command, in one line. Extension.
        optional command: String,
        /// When its launch was accepted. Extension.
        optional launched: TimeInfo,
        /// How it ended, if it has. Extension.
        optional termination: Termination,
        /// What prevents its cleanup, one sentence per step or plugin. Extension.
        repeated cleanup_errors: String,
        /// How far the pull of its image is, while it waits for that. Extension.
        optional pull: PullProgress,
        /// How far the fetch of its files is, while it waits for that. Extension.
        optional fetch: FetchProgress,
        /// Plugin calls for status or usage that failed. Extension.
        repeated failures: PluginFailure,
    }
}

message! {
    /// What runs on behalf of frameworks, and all containers.
    pub struct State {
        /// Tasks.
        optional get_tasks: TaskList,
        /// Executors.
        optional get_executors: ExecutorList,
        /// Frameworks.
        optional get_frameworks: FrameworkList,
        /// All containers, as in GET_CONTAINERS. Extension.
        optional get_containers: Containers,
    }
}

message! {
    /// Tasks by state, verbatim.
    pub struct TaskList {
        repeated pending_tasks: serde_json::Value,
        repeated queued_tasks: serde_json::Value,
        repeated launched_tasks: serde_json::Value,
        repeated terminated_tasks: serde_json::Value,
        repeated completed_tasks: serde_json::Value,
    }
}

message! {
    /// Executors, verbatim.
    pub struct ExecutorList {
        repeated executors: serde_json::Value,
        repeated completed_executors: serde_json::Value,
    }
}

message! {
    /// Frameworks, verbatim.
    pub struct FrameworkList {
        repeated frameworks: serde_json::Value,
        repeated completed_frameworks: serde_json::Value,
    }
}

message! {
    /// Operations of a master: none.
    pub struct OperationList {
        repeated operations: serde_json::Value,
    }
}

message! {
    /// Resource providers: none.
    pub struct ResourceProviderList {
        repeated resource_providers: serde_json::Value,
    }
}

message! {
    /// Who the agent is, and the resources of its host.
    pub struct AgentDescription {
        optional agent_info: AgentInfo,
    }
}

message! {
    /// An agent.
    pub struct AgentInfo {
        /// Name of the host.
        required hostname: String,
        /// What the host has, whoever uses it.
        repeated resources: Resource,
        /// What its executors know it by. It stays the same as long as the work directory exists.
        optional id: AgentId,
    }
}

message! {
    /// Id of an agent.
    pub struct AgentId {
        required value: String,
    }
}

message! {
    /// The agent's settings.
    pub struct Flags {
        /// Settings, sorted by name.
        repeated flags: Flag,
    }
}

message! {
    /// One setting.
    pub struct Flag {
        /// Its name.
        required name: String,
        /// Its value, formatted as in a configuration file.
        optional value: String,
    }
}

message! {
    /// Whether the agent is healthy.
    pub struct Health {
        /// True whenever the agent can answer.
        required healthy: bool,
        /// The keepers. Extension, only in the body of `GET /health`.
        optional keepers: Keepers,
        /// Why clients that connect from now on do not reach the agent. Extension, only in the body of `GET /health`.
        optional socket: String,
    }
}

message! {
    /// The processes that create those of containers. Extension.
    pub struct Keepers {
        /// Pid of the keeper of new containers; missing if it was killed and has not been replaced yet.
        optional pid: i32,
        /// Number of keepers that serve only containers of earlier agents.
        required older: u64,
        /// How many keepers were killed, or did not answer, since the agent started.
        required lost: u64,
    }
}

message! {
    /// The agent's version.
    pub struct Version {
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
    /// How much is logged.
    pub struct LoggingLevel {
        /// As in SET_LOGGING_LEVEL.
        required level: u32,
    }
}

message! {
    /// All metrics.
    pub struct Metrics {
        repeated metrics: Metric,
    }
}

message! {
    /// One metric.
    pub struct Metric {
        /// Its name; labels follow, separated by slashes.
        required name: String,
        /// Its value; absent if it could not be collected in time.
        optional value: f64,
    }
}

message! {
    /// All plugins.
    pub struct Plugins {
        /// In chain order, the logger last.
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
    /// Part of a file.
    pub struct FileData {
        /// Size of the whole file in bytes.
        required size: u64,
        /// The content: empty at or beyond the end, possibly shorter than requested.
        required data: Bytes,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::{
            resource::Resource,
            termination::{Reason, TaskResourceLimitation, TaskState},
        },
        *,
    };

    fn assert_round_trip(wire: Value) -> Response {
        let response = Response::from_json(wire.to_string().as_bytes()).unwrap();
        assert_eq!(serde_json::to_value(&response).unwrap(), wire);
        response
    }

    #[test]
    fn a_termination_by_a_limit_survives_a_round_trip() {
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
        assert_eq!(assert_round_trip(wire), response);
    }

    #[test]
    fn an_unknown_termination_is_an_empty_body() {
        assert_round_trip(json!({"type": "WAIT_NESTED_CONTAINER", "wait_nested_container": {}}));
    }

    #[test]
    fn a_list_as_mesos_sends_it_survives_a_round_trip() {
        let response = assert_round_trip(json!({
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
    fn files_survive_a_round_trip() {
        assert_round_trip(json!({
            "type": "LIST_FILES",
            "list_files": {"file_infos": [{
                "gid": "root", "mode": 33188, "mtime": {"nanoseconds": 1_470_820_172_000_000_000i64},
                "nlink": 1, "path": "one/two", "size": 3, "uid": "root",
            }]},
        }));
        let response =
            assert_round_trip(json!({"type": "READ_FILE", "read_file": {"data": "b2R5", "size": 4}}));
        let Response::ReadFile(file) = response else { panic!("{response:?}") };
        assert_eq!((file.size, file.data.0.as_slice()), (4, b"ody".as_slice()));
    }

    #[test]
    fn descriptions_of_the_agent_survive_a_round_trip() {
        assert_round_trip(json!({"type": "GET_HEALTH", "get_health": {"healthy": true}}));
        assert_round_trip(json!({"type": "GET_VERSION", "get_version": {"version_info": {
            "version": "1.11.0", "build_time": 1_455_559_228.0, "git_sha": "9d5889b5"}}}));
        assert_round_trip(
            json!({"type": "GET_FLAGS", "get_flags": {"flags": [{"name": "isolation", "value": "cgroups/cpu"}]}}),
        );
        assert_round_trip(
            json!({"type": "GET_METRICS", "get_metrics": {"metrics": [{"name": "slave/uptime_secs", "value": 1.5}]}}),
        );
        assert_round_trip(
            json!({"type": "GET_STATE", "get_state": {"get_tasks": {}, "get_executors": {}, "get_frameworks": {}}}),
        );
    }
}
