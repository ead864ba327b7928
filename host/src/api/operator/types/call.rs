//! What can be asked of the agent.

use super::{
    command::CommandInfo,
    container::{ContainerInfo, Image},
    id::ContainerId,
    network::Labels,
    resource::{Resource, Scalar},
    wire::DurationInfo,
};

envelope! {
    /// A request: `{"type": "WAIT_CONTAINER", "wait_container": {…}}`.
    pub enum Call, not implemented [
        "UNKNOWN", "GET_LOGGING_LEVEL", "SET_LOGGING_LEVEL", "GET_FRAMEWORKS", "GET_EXECUTORS",
        "GET_OPERATIONS", "GET_TASKS", "GET_AGENT", "GET_RESOURCE_PROVIDERS",
        "LAUNCH_NESTED_CONTAINER_SESSION", "ATTACH_CONTAINER_INPUT", "ATTACH_CONTAINER_OUTPUT",
        "ADD_RESOURCE_PROVIDER_CONFIG", "UPDATE_RESOURCE_PROVIDER_CONFIG", "REMOVE_RESOURCE_PROVIDER_CONFIG",
        "MARK_RESOURCE_PROVIDER_GONE"
    ] {
        /// Starts a container.
        "LAUNCH_CONTAINER" => LaunchContainer(Box<LaunchContainer>) in "launch_container",
        /// Waits for the end of a container.
        "WAIT_CONTAINER" => WaitContainer(WaitContainer) in "wait_container",
        /// Sends a signal to a container.
        "KILL_CONTAINER" => KillContainer(KillContainer) in "kill_container",
        /// Removes what a terminated container has left behind.
        "REMOVE_CONTAINER" => RemoveContainer(RemoveContainer) in "remove_container",
        /// Starts a container in another one. Retired in favour of LAUNCH_CONTAINER.
        "LAUNCH_NESTED_CONTAINER" =>
            LaunchNestedContainer(Box<LaunchNestedContainer>) in "launch_nested_container",
        /// WAIT_CONTAINER, with a parent required. Retired.
        "WAIT_NESTED_CONTAINER" => WaitNestedContainer(WaitContainer) in "wait_nested_container",
        /// KILL_CONTAINER, with a parent required. Retired.
        "KILL_NESTED_CONTAINER" => KillNestedContainer(KillContainer) in "kill_nested_container",
        /// REMOVE_CONTAINER, with a parent required. Retired.
        "REMOVE_NESTED_CONTAINER" => RemoveNestedContainer(RemoveContainer) in "remove_nested_container",
        /// Changes what a running container may use. Ours.
        "UPDATE_CONTAINER" => UpdateContainer(UpdateContainer) in "update_container",
        /// Tells everything about one container. Ours.
        "INSPECT_CONTAINER" => InspectContainer(InspectContainer) in "inspect_container",
        /// Lists containers with status and use.
        "GET_CONTAINERS" => GetContainers(GetContainers) in "get_containers" or default,
        /// Lists what the agent knows of frameworks, executors and tasks.
        "GET_STATE" => GetState,
        /// Lists the settings in force.
        "GET_FLAGS" => GetFlags,
        /// Asks whether the agent is well.
        "GET_HEALTH" => GetHealth,
        /// Asks which agent this is.
        "GET_VERSION" => GetVersion,
        /// Takes a snapshot of all metrics.
        "GET_METRICS" => GetMetrics(GetMetrics) in "get_metrics",
        /// Lists plugins and how they fare. Ours.
        "GET_PLUGINS" => GetPlugins,
        /// Lists a directory of the file service.
        "LIST_FILES" => ListFiles(ListFiles) in "list_files",
        /// Reads from a file of the file service.
        "READ_FILE" => ReadFile(ReadFile) in "read_file",
        /// Removes images no container uses.
        "PRUNE_IMAGES" => PruneImages(PruneImages) in "prune_images" or default,
    }
}

message! {
    /// A container to be started: nested if its id has a parent.
    pub struct LaunchContainer {
        /// Its name.
        required container_id: ContainerId,
        /// Its program; that of its image when absent.
        optional command: CommandInfo,
        /// What it may count on.
        repeated resources: Resource,
        /// What it may use at most, by the name of the resource; `"Infinity"` for no limit. A resource that is
        /// not named is limited to what it may count on.
        map limits: Scalar,
        /// Its surroundings.
        optional container: ContainerInfo,
        /// Free text for plugins and people. Ours.
        optional labels: Labels,
    }
}

message! {
    /// A container to be started in another one, with no resources of its own.
    pub struct LaunchNestedContainer {
        /// Its name, which must have a parent.
        required container_id: ContainerId,
        /// Its program; that of its image when absent.
        optional command: CommandInfo,
        /// Its surroundings.
        optional container: ContainerInfo,
    }
}

message! {
    /// A container to be waited for.
    pub struct WaitContainer {
        /// Its name.
        required container_id: ContainerId,
    }
}

message! {
    /// A container to be sent a signal.
    pub struct KillContainer {
        /// Its name.
        required container_id: ContainerId,
        /// The number of the signal; see [`KillContainer::signal`].
        optional signal: i32,
    }
}

message! {
    /// A container whose remains are to be removed.
    pub struct RemoveContainer {
        /// Its name.
        required container_id: ContainerId,
    }
}

message! {
    /// New resources for a running container, replacing all it has.
    pub struct UpdateContainer {
        /// Its name.
        required container_id: ContainerId,
        /// What it may count on from now on.
        repeated resources: Resource,
        /// What it may use at most from now on, as in [`LaunchContainer::limits`].
        map limits: Scalar,
    }
}

message! {
    /// A container to be told about.
    pub struct InspectContainer {
        /// Its name.
        required container_id: ContainerId,
    }
}

message! {
    /// Which containers are to be listed besides those of executors.
    pub struct GetContainers {
        /// Whether nested ones are; not when absent.
        optional show_nested: bool,
        /// Whether standalone ones are, as all top-level ones of this agent; not when absent.
        optional show_standalone: bool,
    }
}

message! {
    /// How long to collect metrics.
    pub struct GetMetrics {
        /// After which time the answer holds what there is by then; as long as it takes when absent.
        optional timeout: DurationInfo,
    }
}

message! {
    /// A directory to be listed.
    pub struct ListFiles {
        /// Its virtual path.
        required path: String,
    }
}

message! {
    /// A piece of a file to be read.
    pub struct ReadFile {
        /// The virtual path of the file.
        required path: String,
        /// The byte to begin with.
        #[serde(deserialize_with = "super::wire::integer")]
        required offset: u64,
        /// How many bytes to read at most: to the end when absent, none (only the size) when 0.
        #[serde(deserialize_with = "super::wire::optional_integer")]
        optional length: u64,
    }
}

message! {
    /// Images to be spared.
    pub struct PruneImages {
        /// The images.
        repeated excluded_images: Image,
    }
}

impl KillContainer {
    /// The signal to send: SIGKILL unless another one is named.
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
    fn a_launch_as_a_client_sends_it() {
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
    fn every_type_there_is_can_be_read_back() {
        for word in Call::TYPES {
            let field = word.to_lowercase();
            let body = json!({"container_id": {"value": "a"}, "path": "/a", "offset": "3"});
            let call = read(&json!({"type": word, field: body})).unwrap();
            assert_eq!(call.type_name(), *word);
            assert_eq!(read(&serde_json::to_value(&call).unwrap()).unwrap(), call);
        }
    }

    #[test]
    fn fields_nobody_knows_and_bodies_of_others_are_skipped() {
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
    fn bodies_that_may_be_absent_are_empty_then() {
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
            assert_eq!(error, "`LAUNCH_CONTAINER` needs the field `launch_container`, which is missing");
        }
    }

    #[test]
    fn an_unknown_type_is_named_beside_those_there_are() {
        let error = read(&json!({"type": "LAUNCH"})).unwrap_err();
        assert!(matches!(error, EnvelopeError::UnknownType { .. }));
        let text = error.to_string();
        assert!(text.starts_with("`LAUNCH` is not a known type"), "{text}");
        for word in Call::TYPES {
            assert!(text.contains(&format!("`{word}`")), "{word} is not in: {text}");
        }
    }

    #[test]
    fn a_type_of_mesos_that_is_not_served_is_told_apart() {
        let error = read(&json!({"type": "GET_TASKS"})).unwrap_err();
        assert!(
            matches!(&error, EnvelopeError::NotImplemented { name, .. } if name == "GET_TASKS"),
            "{error}"
        );
    }

    #[test]
    fn a_type_must_be_there_and_be_a_word() {
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
    fn a_wrong_body_says_what_and_where() {
        let text = "{\"type\": \"WAIT_CONTAINER\",\n \"wait_container\": {\"container_id\": {}}}";
        let error = Call::from_json(text.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "cannot read `wait_container`");
        assert_eq!(error.source().unwrap().to_string(), "missing field `value` at line 2 column 38");
    }

    #[test]
    fn bottomless_nesting_is_an_error_and_not_a_crash() {
        let id = r#"{"value":"a","parent":"#.repeat(100_000) + r#"{"value":"a"}"# + &"}".repeat(100_000);
        let text = format!(r#"{{"type":"WAIT_CONTAINER","wait_container":{{"container_id":{id}}}}}"#);
        let error = Call::from_json(text.as_bytes()).unwrap_err();
        assert!(error.source().unwrap().to_string().contains("recursion"), "{error:?}");
    }
}
