//! Calls of the operator API.

use super::{
    command::CommandInfo,
    container::ContainerInfo,
    event::Subscribe,
    id::ContainerId,
    image::Image,
    network::Labels,
    process_io::{AttachContainerInput, AttachContainerOutput, AttachInfo},
    resource::{Resource, Scalar},
    task::{
        AcknowledgeStatusUpdate, KillTask, LaunchTask, LaunchTaskGroup, MessageExecutor, ShutdownExecutor,
        SubscribeStatusUpdates,
    },
    wire::DurationInfo,
};

envelope! {
    /// A call: `{"type": "WAIT_CONTAINER", "wait_container": {…}}`.
    pub enum Call, CALL in protocol buffers, not implemented [
        "UNKNOWN", "ADD_RESOURCE_PROVIDER_CONFIG", "UPDATE_RESOURCE_PROVIDER_CONFIG",
        "REMOVE_RESOURCE_PROVIDER_CONFIG", "MARK_RESOURCE_PROVIDER_GONE"
    ] {
        /// Launches a container.
        "LAUNCH_CONTAINER" => LaunchContainer(Box<LaunchContainer>) in "launch_container",
        /// Waits for the end of a container.
        "WAIT_CONTAINER" => WaitContainer(WaitContainer) in "wait_container",
        /// Sends a signal to a container.
        "KILL_CONTAINER" => KillContainer(KillContainer) in "kill_container",
        /// Destroys several containers. Extension.
        "KILL_CONTAINERS" => KillContainers(KillContainers) in "kill_containers",
        /// Removes a container that has ended, with its sandbox.
        "REMOVE_CONTAINER" => RemoveContainer(RemoveContainer) in "remove_container",
        /// LAUNCH_CONTAINER for a nested container. Deprecated.
        "LAUNCH_NESTED_CONTAINER" =>
            LaunchNestedContainer(Box<LaunchNestedContainer>) in "launch_nested_container",
        /// WAIT_CONTAINER for a nested container. Deprecated.
        "WAIT_NESTED_CONTAINER" => WaitNestedContainer(WaitContainer) in "wait_nested_container",
        /// KILL_CONTAINER for a nested container. Deprecated.
        "KILL_NESTED_CONTAINER" => KillNestedContainer(KillContainer) in "kill_nested_container",
        /// REMOVE_CONTAINER for a nested container. Deprecated.
        "REMOVE_NESTED_CONTAINER" => RemoveNestedContainer(RemoveContainer) in "remove_nested_container",
        /// Updates the resources of a running container. Extension.
        "UPDATE_CONTAINER" => UpdateContainer(UpdateContainer) in "update_container",
        /// Returns the details of a container. Extension.
        "INSPECT_CONTAINER" => InspectContainer(InspectContainer) in "inspect_container",
        /// Launches a container and waits until it has ended, in one request. Extension.
        "RUN_CONTAINER" => RunContainer(Box<LaunchContainer>) in "run_container",
        /// Launches a nested container that enters its parent, streams its output, and ends it when the client disconnects.
        "LAUNCH_NESTED_CONTAINER_SESSION" =>
            LaunchNestedContainerSession(Box<LaunchNestedContainer>) in "launch_nested_container_session",
        /// Writes to the standard input, or the terminal, of a container.
        "ATTACH_CONTAINER_INPUT" => AttachContainerInput(Box<AttachContainerInput>) in "attach_container_input",
        /// Streams the output of a container.
        "ATTACH_CONTAINER_OUTPUT" => AttachContainerOutput(AttachContainerOutput) in "attach_container_output",
        /// Streams what happens to containers and plugins. Extension.
        "SUBSCRIBE" => Subscribe(Subscribe) in "subscribe" or default,
        /// Lists containers with status and resource usage.
        "GET_CONTAINERS" => GetContainers(GetContainers) in "get_containers" or default,
        /// Lists frameworks, executors and tasks.
        "GET_STATE" => GetState,
        /// Lists tasks.
        "GET_TASKS" => GetTasks,
        /// Lists executors.
        "GET_EXECUTORS" => GetExecutors,
        /// Lists frameworks.
        "GET_FRAMEWORKS" => GetFrameworks,
        /// Lists operations of a master, of which there are none.
        "GET_OPERATIONS" => GetOperations,
        /// Lists resource providers, of which there are none.
        "GET_RESOURCE_PROVIDERS" => GetResourceProviders,
        /// Returns who the agent is, and the resources of its host.
        "GET_AGENT" => GetAgent,
        /// Launches a task. Extension.
        "LAUNCH_TASK" => LaunchTask(Box<LaunchTask>) in "launch_task",
        /// Launches a group of tasks. Extension.
        "LAUNCH_TASK_GROUP" => LaunchTaskGroup(Box<LaunchTaskGroup>) in "launch_task_group",
        /// Asks for the end of a task. Extension.
        "KILL_TASK" => KillTask(Box<KillTask>) in "kill_task",
        /// Asks for the end of an executor and its tasks. Extension.
        "SHUTDOWN_EXECUTOR" => ShutdownExecutor(ShutdownExecutor) in "shutdown_executor",
        /// Sends a message to an executor. Extension.
        "MESSAGE_EXECUTOR" => MessageExecutor(MessageExecutor) in "message_executor",
        /// Streams the status updates of tasks. Extension.
        "SUBSCRIBE_STATUS_UPDATES" =>
            SubscribeStatusUpdates(SubscribeStatusUpdates) in "subscribe_status_updates" or default,
        /// Acknowledges a status update. Extension.
        "ACKNOWLEDGE_STATUS_UPDATE" =>
            AcknowledgeStatusUpdate(AcknowledgeStatusUpdate) in "acknowledge_status_update",
        /// Returns how much is logged.
        "GET_LOGGING_LEVEL" => GetLoggingLevel,
        /// Changes how much is logged, for some time.
        "SET_LOGGING_LEVEL" => SetLoggingLevel(SetLoggingLevel) in "set_logging_level",
        /// Lists the agent's settings.
        "GET_FLAGS" => GetFlags,
        /// Checks whether the agent is healthy.
        "GET_HEALTH" => GetHealth,
        /// Returns the agent's version.
        "GET_VERSION" => GetVersion,
        /// Returns all metrics.
        "GET_METRICS" => GetMetrics(GetMetrics) in "get_metrics",
        /// Lists plugins. Extension.
        "GET_PLUGINS" => GetPlugins,
        /// Lists a directory of the file service.
        "LIST_FILES" => ListFiles(ListFiles) in "list_files",
        /// Reads part of a file of the file service.
        "READ_FILE" => ReadFile(ReadFile) in "read_file",
        /// Removes unused images.
        "PRUNE_IMAGES" => PruneImages(PruneImages) in "prune_images" or default,
    }
}

impl Call {
    /// Whether it waits for the end of a container.
    pub(in crate::api) fn is_wait(&self) -> bool {
        matches!(self, Self::WaitContainer(_) | Self::WaitNestedContainer(_))
    }

    /// Whether its response may last as long as a container runs, or as the client likes.
    pub(in crate::api) fn is_lasting(&self) -> bool {
        self.is_wait()
            || matches!(
                self,
                Self::RunContainer(_)
                    | Self::LaunchNestedContainerSession(_)
                    | Self::AttachContainerOutput(_)
                    | Self::Subscribe(_)
                    | Self::SubscribeStatusUpdates(_)
            )
    }
}

message! {
    /// Launches a container, nested if its id has a parent.
    pub struct LaunchContainer {
        /// Its id.
        required container_id: ContainerId,
        /// Its command; that of its image when absent.
        optional command: CommandInfo,
        /// Resources to reserve.
        repeated resources: Resource,
        /// Limits by resource, `"Infinity"` for unlimited. The default is the reserved amount.
        map limits: Scalar,
        /// Container options.
        optional container: ContainerInfo,
        /// Labels, for plugins and people. Extension.
        optional labels: Labels,
        /// Which standard streams clients can attach to. With a terminal, they can in any case. Extension.
        optional attach: AttachInfo,
    }
}

message! {
    /// Launches a nested container without resources of its own.
    pub struct LaunchNestedContainer {
        /// Its id, which must have a parent.
        required container_id: ContainerId,
        /// Its command; that of its image when absent.
        optional command: CommandInfo,
        /// Container options.
        optional container: ContainerInfo,
    }
}

message! {
    /// Waits for the end of a container.
    pub struct WaitContainer {
        /// Its id.
        required container_id: ContainerId,
    }
}

message! {
    /// Sends a signal to a container.
    pub struct KillContainer {
        /// Its id.
        required container_id: ContainerId,
        /// Number of the signal; see [`KillContainer::signal`].
        optional signal: i32,
        /// Destroys the container without waiting for plugins that do not clean up. Extension.
        optional force: bool,
    }
}

message! {
    /// Destroys several containers, at the same time.
    pub struct KillContainers {
        /// Their ids. Those that are unknown or have ended are ignored.
        repeated container_ids: ContainerId,
    }
}

message! {
    /// Removes a container that has ended.
    pub struct RemoveContainer {
        /// Its id.
        required container_id: ContainerId,
    }
}

message! {
    /// Replaces the resources and limits of a running container.
    pub struct UpdateContainer {
        /// Its id.
        required container_id: ContainerId,
        /// Resources to reserve.
        repeated resources: Resource,
        /// Limits, as in [`LaunchContainer::limits`].
        map limits: Scalar,
    }
}

message! {
    /// Returns the details of a container.
    pub struct InspectContainer {
        /// Its id.
        required container_id: ContainerId,
    }
}

message! {
    /// Lists containers.
    pub struct GetContainers {
        /// Whether nested containers are listed; false when absent.
        optional show_nested: bool,
        /// Whether standalone containers are listed, which are all top-level containers of this agent; false when
        /// absent.
        optional show_standalone: bool,
        /// Whether plugins are asked for `container_status`; true when absent. Extension.
        optional show_status: bool,
        /// Whether plugins are asked for `resource_statistics`; true when absent. Extension.
        optional show_statistics: bool,
        /// The containers that are listed, of those selected above; all of them when empty. Extension.
        repeated container_ids: ContainerId,
    }
}

message! {
    /// Returns all metrics.
    pub struct GetMetrics {
        /// When to answer with the metrics collected so far; when all are collected if absent.
        optional timeout: DurationInfo,
    }
}

message! {
    /// Changes how much is logged.
    pub struct SetLoggingLevel {
        /// 0 as configured, 1 with messages for debugging, 2 and more with all messages.
        required level: u32,
        /// For how long.
        required duration: DurationInfo,
    }
}

message! {
    /// Lists a directory.
    pub struct ListFiles {
        /// Virtual path of the directory.
        required path: String,
    }
}

message! {
    /// Reads part of a file.
    pub struct ReadFile {
        /// Virtual path of the file.
        required path: String,
        /// Offset of the first byte.
        #[serde(deserialize_with = "super::wire::integer")]
        required offset: u64,
        /// Maximum number of bytes: to the end when absent, only the size of the file when 0.
        #[serde(deserialize_with = "super::wire::optional_integer")]
        optional length: u64,
    }
}

message! {
    /// Removes unused images.
    pub struct PruneImages {
        /// Images to keep, in addition to those that the agent is configured to keep.
        repeated excluded_images: Image,
        /// Keep all images that have a name, and remove only what belongs to none. Extension.
        optional keep_named: bool,
    }
}

impl KillContainer {
    /// The signal to send. The default is SIGKILL.
    pub fn signal(&self) -> i32 {
        const SIGKILL: i32 = 9;
        self.signal.unwrap_or(SIGKILL)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use serde_json::{Value, json};

    use super::{super::envelope::EnvelopeError, *};

    fn read(wire: &Value) -> Result<Call, EnvelopeError> {
        Call::from_json(wire.to_string().as_bytes())
    }

    #[test]
    fn a_launch_survives_a_round_trip() {
        let wire = json!({
            "type": "LAUNCH_CONTAINER",
            "launch_container": {
                "container_id": {"value": "web", "parent": {"value": "pod"}},
                "command": {"value": "sleep 1000", "shell": true},
                "resources": [{"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.5}}],
                "limits": {"cpus": {"value": "Infinity"}},
                "container": {"type": "MESOS", "linux_info": {"share_cgroups": false}},
            },
        });
        let call = read(&wire).unwrap();
        let Call::LaunchContainer(launch) = &call else { panic!("{call:?}") };
        assert_eq!(launch.container_id.to_string(), "pod.web");
        assert_eq!(launch.limits["cpus"].value, f64::INFINITY);
        assert_eq!(serde_json::to_value(&call).unwrap(), wire);
    }

    #[test]
    fn every_type_survives_a_round_trip() {
        for name in Call::TYPES {
            let field = name.to_lowercase();
            let body = json!({
                "container_id": {"value": "a"}, "path": "/a", "offset": "3", "framework_info": {}, "task_info": {},
                "task_group": {}, "task_id": {"value": "a"}, "framework_id": {"value": "a"},
                "executor_id": {"value": "a"}, "data": "", "uuid": "",
                "level": 1, "duration": {"nanoseconds": 1},
            });
            let call = read(&json!({"type": name, field: body})).unwrap();
            assert_eq!(call.type_name(), *name);
            assert_eq!(read(&serde_json::to_value(&call).unwrap()).unwrap(), call);
        }
    }

    #[test]
    fn unknown_fields_and_bodies_of_other_types_are_ignored() {
        let call = read(&json!({
            "since": 3,
            "launch_container": "not even an object",
            "type": "KILL_CONTAINER",
            "kill_container": {"container_id": {"value": "web", "colour": "red"}, "grace": {}},
        }))
        .unwrap();
        let Call::KillContainer(kill) = call else { panic!("{call:?}") };
        assert_eq!((kill.container_id.value.as_str(), kill.signal()), ("web", 9));
    }

    #[test]
    fn an_optional_body_may_be_absent() {
        assert_eq!(
            read(&json!({"type": "GET_CONTAINERS", "get_containers": null})).unwrap(),
            Call::GetContainers(GetContainers::default()),
        );
        assert_eq!(read(&json!({"type": "GET_HEALTH"})).unwrap(), Call::GetHealth);
    }

    #[test]
    fn a_missing_body_is_named() {
        for wire in [
            json!({"type": "LAUNCH_CONTAINER"}),
            json!({"type": "LAUNCH_CONTAINER", "launch_container": null}),
        ] {
            let error = read(&wire).unwrap_err().to_string();
            assert_eq!(error, "`LAUNCH_CONTAINER` requires the field `launch_container`, which is missing");
        }
    }

    #[test]
    fn an_unknown_type_is_an_error_that_lists_the_known_ones() {
        let error = read(&json!({"type": "LAUNCH"})).unwrap_err();
        assert!(matches!(error, EnvelopeError::UnknownType { .. }));
        let text = error.to_string();
        assert!(text.starts_with("`LAUNCH` is not a known type"), "{text}");
        for name in Call::TYPES {
            assert!(text.contains(&format!("`{name}`")), "{name} is not in: {text}");
        }
    }

    #[test]
    fn a_mesos_type_that_is_not_implemented_is_distinguished() {
        let error = read(&json!({"type": "MARK_RESOURCE_PROVIDER_GONE"})).unwrap_err();
        assert!(
            matches!(&error, EnvelopeError::NotImplemented { name, .. } if name == "MARK_RESOURCE_PROVIDER_GONE"),
            "{error}"
        );
    }

    #[test]
    fn the_type_must_be_present_and_a_string() {
        assert!(matches!(read(&json!({})), Err(EnvelopeError::NoType { .. })));
        assert!(matches!(read(&json!({"type": null})), Err(EnvelopeError::NoType { .. })));
        for wire in [json!({"type": 7}), json!(["GET_HEALTH"]), json!("GET_HEALTH")] {
            assert!(matches!(read(&wire), Err(EnvelopeError::Malformed { .. })), "{wire}");
        }
        for text in ["", "{", r#"{"type": "GET_HEALTH"} x"#] {
            assert!(
                matches!(Call::from_json(text.as_bytes()), Err(EnvelopeError::Malformed { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn an_error_in_the_body_has_a_position() {
        let text = "{\"type\": \"WAIT_CONTAINER\",\n \"wait_container\": {\"container_id\": {}}}";
        let error = Call::from_json(text.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "cannot parse `wait_container`");
        assert_eq!(error.source().unwrap().to_string(), "missing field `value` at line 2 column 38");
    }

    #[test]
    fn very_deep_nesting_is_an_error() {
        let id = r#"{"value":"a","parent":"#.repeat(100_000) + r#"{"value":"a"}"# + &"}".repeat(100_000);
        let text = format!(r#"{{"type":"WAIT_CONTAINER","wait_container":{{"container_id":{id}}}}}"#);
        let error = Call::from_json(text.as_bytes()).unwrap_err();
        assert!(error.source().unwrap().to_string().contains("recursion"), "{error:?}");
    }
}
