//! Launch requests.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::container::decode_container;
use super::error::{DecodeError, Result};
use super::id::{decode_id, decode_nested_id};
use super::resources::decode_resources;
use crate::api::operator::types as wire;
use cofferdam_core::model::{Command, Request, Uri};

/// Decodes `LAUNCH_CONTAINER`.
pub(in crate::api::operator) fn decode_launch(launch: &wire::LaunchContainer) -> Result<Request> {
    let id = decode_id("launch_container.container_id", &launch.container_id)?;
    let resources = decode_resources(&id, &launch.resources, &launch.limits)?;
    let (command, uris) = match &launch.command {
        Some(command) => (decode_command(command)?, decode_uris(&command.uris)),
        None => (Command::default(), Vec::new()),
    };
    let (rootfs, linux) = decode_container(&id, launch.container.as_ref())?;
    let labels = launch.labels.iter().flat_map(|labels| &labels.labels);
    Ok(Request {
        uris,
        rootfs,
        resources,
        labels: labels.map(|label| (label.key.clone(), label.value.clone().unwrap_or_default())).collect(),
        linux,
        ..Request::new(id, command)
    })
}

/// Decodes `LAUNCH_NESTED_CONTAINER`.
pub(in crate::api::operator) fn decode_nested_launch(
    launch: &wire::LaunchNestedContainer,
) -> Result<Request> {
    decode_nested_id("launch_nested_container.container_id", &launch.container_id)?;
    decode_launch(&wire::LaunchContainer {
        container_id: launch.container_id.clone(),
        command: launch.command.clone(),
        container: launch.container.clone(),
        ..wire::LaunchContainer::default()
    })
}

fn decode_command(command: &wire::CommandInfo) -> Result<Command> {
    let mut environment = BTreeMap::new();
    for variable in command.environment.iter().flat_map(|environment| &environment.variables) {
        // As in Mesos, a later variable replaces an earlier one.
        environment.insert(variable.name.clone(), decode_variable(variable)?);
    }
    Ok(Command {
        shell: command.is_shell(),
        value: command.value.clone(),
        arguments: command.arguments.clone(),
        environment,
        secrets: BTreeMap::new(),
        user: command.user.clone(),
        working_directory: command.working_directory.clone().map(PathBuf::from),
    })
}

fn decode_variable(variable: &wire::Variable) -> Result<String> {
    let field = |field: &str| format!("command.environment.{}.{field}", variable.name);
    match variable.kind() {
        wire::VariableKind::Unknown => Err(DecodeError::field(field("type"), "it is `UNKNOWN`")),
        wire::VariableKind::Value if variable.secret.is_none() => {
            variable.value.clone().ok_or_else(|| DecodeError::field(field("value"), "it is missing"))
        }
        _ => Err(DecodeError::Unsupported { field: field("secret"), advice: "; give its `value`" }),
    }
}

fn decode_uris(uris: &[wire::Uri]) -> Vec<Uri> {
    let decode = |uri: &wire::Uri| Uri {
        value: uri.value.clone(),
        executable: uri.executable.unwrap_or(false),
        extract: uri.is_extracted(),
        output_file: uri.output_file.clone(),
        sha256: uri.sha256.clone(),
    };
    uris.iter().map(decode).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::api::operator::encode::{encode_id, encode_launch};
    use cofferdam_core::model::Limit;

    fn decode(mut body: Json) -> std::result::Result<Request, String> {
        if body["container_id"].is_null() {
            body["container_id"] = json!({"value": "web"});
        }
        let launch: wire::LaunchContainer = serde_json::from_value(body).unwrap();
        decode_launch(&launch).map_err(|error| cofferdam_core::error_chain::describe(&error))
    }

    fn assert_rejected(body: Json, expected: &str) {
        let text = body.to_string();
        let error = decode(body).expect_err(&text);
        assert!(error.contains(expected), "{text}: {error}");
    }

    #[test]
    fn a_launch_with_all_supported_fields_survives_a_round_trip() {
        let request = decode(json!({
            "container_id": {"value": "web", "parent": {"value": "pod"}},
            "command": {
                "shell": false, "value": "/bin/server", "arguments": ["server", "-v"], "user": "nobody",
                "environment": {"variables": [
                    {"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "B", "value": ""}]},
                "uris": [{"value": "http://h/x.tar.gz", "sha256": "ab"}, {"value": "/bin/tool", "executable": true}],
            },
            "resources": [
                {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.75}},
                {"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": 5, "end": 7}]}},
            ],
            "limits": {"cpus": {"value": "Infinity"}, "mem": {"value": 64}},
            "container": {"type": "MESOS", "hostname": "h", "mesos": {"rootfs": "/srv/root"},
                "linux_info": {"share_pid_namespace": true, "share_cgroups": false}},
            "labels": {"labels": [{"key": "tier", "value": "front"}, {"key": "bare"}]},
        }))
        .unwrap();
        assert_eq!(request.id.as_str(), "pod.web");
        assert_eq!(request.command.environment["A"], "2");
        assert_eq!(request.command.arguments, ["server", "-v"]);
        assert_eq!(request.uris.iter().map(|uri| uri.extract).collect::<Vec<_>>(), [true, false]);
        assert_eq!(request.resources.cpus(), Some(0.75));
        assert_eq!(request.resources.limits["cpus"], Limit::Unlimited);
        assert_eq!(request.rootfs, Some(PathBuf::from("/srv/root")));
        assert_eq!(request.labels["bare"], "");
        assert!(request.linux.share_pid_namespace && !request.linux.share_cgroups);

        assert_eq!(decode_launch(&encode_launch(&request)).unwrap(), request);
    }

    #[test]
    fn a_nested_container_shares_cgroups_by_default() {
        let nested = json!({"container_id": {"value": "a", "parent": {"value": "b"}}});
        assert!(decode(nested).unwrap().linux.share_cgroups);
        assert!(!decode(json!({})).unwrap().linux.share_cgroups);
        assert_rejected(
            json!({"container": {"type": "MESOS", "linux_info": {"share_cgroups": true}}}),
            "no parent to share",
        );
    }

    #[test]
    fn fields_that_are_not_supported_are_rejected_by_name() {
        for (info, field) in [
            (json!({"type": "DOCKER"}), "`container.type`"),
            (json!({"type": "MESOS", "docker": {"image": "x"}}), "`container.docker`"),
            (
                json!({"type": "MESOS", "mesos": {"image": {"type": "DOCKER", "docker": {"name": "x"}}}}),
                "`container.mesos.image`",
            ),
            (
                json!({"type": "MESOS", "volumes": [{"mode": "RW", "container_path": "/a", "host_path": "/b"}]}),
                "`container.volumes`",
            ),
            (json!({"type": "MESOS", "network_infos": [{"name": "net"}]}), "`container.network_infos`"),
            (json!({"type": "MESOS", "rlimit_info": {}}), "`container.rlimit_info`"),
            (json!({"type": "MESOS", "tty_info": {}}), "`container.tty_info`"),
            (json!({"type": "MESOS", "linux_info": {"seccomp": {}}}), "`container.linux_info.seccomp`"),
            (
                json!({"type": "MESOS", "linux_info": {"ipc_mode": "PRIVATE"}}),
                "`container.linux_info.ipc_mode`",
            ),
            (json!({"type": "MESOS", "linux_info": {"shm_size": 1}}), "`container.linux_info.shm_size`"),
            (
                json!({"type": "MESOS", "linux_info": {"effective_capabilities": {}}}),
                "`container.linux_info.effective_capabilities`",
            ),
        ] {
            assert_rejected(json!({"container": info}), &format!("{field} is not supported by this agent"));
        }
        assert_rejected(
            json!({"command": {"environment": {"variables": [{"name": "P", "type": "SECRET", "secret": {}}]}}}),
            "`command.environment.P.secret` is not supported",
        );
        let unset = json!({"command": {"environment": {"variables": [{"name": "P"}]}}});
        assert_rejected(unset, "`command.environment.P.value` is invalid: it is missing");
    }

    #[test]
    fn ambiguous_and_malformed_ids_are_rejected() {
        for id in [
            json!({"value": ""}),
            json!({"value": "a.b"}),
            json!({"value": "a/b"}),
            json!({"value": "x".repeat(243)}),
            json!({"value": "a", "parent": {"value": "b.c"}}),
            json!({"value": "a\n"}),
        ] {
            assert_rejected(json!({"container_id": id}), "`launch_container.container_id` is invalid: ");
        }
        let unicode = decode(json!({"container_id": {"value": "größe-容器-🦀"}})).unwrap();
        assert_eq!(encode_id(&unicode.id).value, "größe-容器-🦀");
    }
}
