//! Launch requests.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::container::decode_container;
use super::error::{DecodeError, Result};
use super::id::{decode_id, decode_nested_id};
use super::resources::decode_resources;
use super::secret::decode_secret;
use crate::api::operator::types as wire;
use cofferdam_core::model::{Command, ContainerClass, Request, Secret, Uri};

/// Decodes `LAUNCH_CONTAINER`.
pub(in crate::api) fn decode_launch(launch: &wire::LaunchContainer) -> Result<Request> {
    let id = decode_id("launch_container.container_id", &launch.container_id)?;
    let resources = decode_resources(&id, &launch.resources, &launch.limits)?;
    let (command, uris) = match &launch.command {
        Some(command) => (decode_command(command)?, decode_uris(&command.uris)),
        // That of the image.
        None if is_docker(launch.container.as_ref()) => {
            (Command { shell: false, ..Command::default() }, Vec::new())
        }
        None => (Command::default(), Vec::new()),
    };
    let labels = launch.labels.iter().flat_map(|labels| &labels.labels);
    let attach = launch.attach.clone().unwrap_or_default();
    let request = Request {
        uris,
        resources,
        interactive: attach.stdin.unwrap_or(false),
        attached: attach.output.unwrap_or(false),
        labels: labels.map(|label| (label.key.clone(), label.value.clone().unwrap_or_default())).collect(),
        ..Request::new(id, command)
    };
    let mut request = decode_container(request, launch.container.as_ref())?;
    if launch.command.is_none() && request.image.is_some() {
        // Its own command.
        request.command.shell = false;
    }
    Ok(request)
}

fn is_docker(container: Option<&wire::ContainerInfo>) -> bool {
    container.is_some_and(|info| info.kind == wire::ContainerKind::Docker)
}

/// Decodes `LAUNCH_NESTED_CONTAINER`.
pub(in crate::api) fn decode_nested_launch(launch: &wire::LaunchNestedContainer) -> Result<Request> {
    decode_nested_id("launch_nested_container.container_id", &launch.container_id)?;
    decode_launch(&wire::LaunchContainer {
        container_id: launch.container_id.clone(),
        command: launch.command.clone(),
        container: launch.container.clone(),
        ..wire::LaunchContainer::default()
    })
}

/// Decodes `LAUNCH_NESTED_CONTAINER_SESSION`.
pub(in crate::api) fn decode_session(launch: &wire::LaunchNestedContainer) -> Result<Request> {
    let request = decode_nested_launch(launch)?;
    Ok(Request { class: ContainerClass::Debug, interactive: true, attached: true, ..request })
}

fn decode_command(command: &wire::CommandInfo) -> Result<Command> {
    let (mut environment, mut secrets) = (BTreeMap::new(), BTreeMap::new());
    for variable in command.environment.iter().flat_map(|environment| &environment.variables) {
        let name = &variable.name;
        // As in Mesos, a later variable replaces an earlier one.
        match decode_variable(variable)? {
            Variable::Value(value) => {
                secrets.remove(name);
                environment.insert(name.clone(), value);
            }
            Variable::Secret(secret) => {
                environment.remove(name);
                secrets.insert(name.clone(), secret);
            }
        }
    }
    Ok(Command {
        shell: command.is_shell(),
        value: command.value.clone(),
        arguments: command.arguments.clone(),
        environment,
        secrets,
        user: command.user.clone(),
        working_directory: command.working_directory.clone().map(PathBuf::from),
        replaces_cmd: command.replaces_cmd.unwrap_or(false),
    })
}

/// An environment variable.
enum Variable {
    Value(String),
    Secret(Secret),
}

fn decode_variable(variable: &wire::Variable) -> Result<Variable> {
    let field = |field: &str| format!("command.environment.{}.{field}", variable.name);
    let missing = |name: &str| DecodeError::field(field(name), "it is missing");
    match (variable.kind(), &variable.value, &variable.secret) {
        (wire::VariableKind::Unknown, ..) => Err(DecodeError::field(field("type"), "it is `UNKNOWN`")),
        (wire::VariableKind::Value, Some(value), None) => Ok(Variable::Value(value.clone())),
        (wire::VariableKind::Value, None, None) => Err(missing("value")),
        (wire::VariableKind::Value, _, Some(_)) => {
            Err(DecodeError::field(field("secret"), "it needs `type` `SECRET`"))
        }
        (wire::VariableKind::Secret, Some(_), _) => {
            Err(DecodeError::field(field("value"), "it needs `type` `VALUE`"))
        }
        (wire::VariableKind::Secret, None, None) => Err(missing("secret")),
        (wire::VariableKind::Secret, None, Some(secret)) => {
            Ok(Variable::Secret(decode_secret(&field("secret"), secret)?))
        }
    }
}

fn decode_uris(uris: &[wire::Uri]) -> Vec<Uri> {
    let decode = |uri: &wire::Uri| Uri {
        value: uri.value.clone(),
        executable: uri.executable.unwrap_or(false),
        extract: uri.is_extracted(),
        cache: uri.cache.unwrap_or(false),
        output_file: uri.output_file.clone(),
        sha256: uri.sha256.clone(),
    };
    uris.iter().map(decode).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

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
                    {"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "B", "value": ""},
                    {"name": "TOKEN", "type": "SECRET",
                     "secret": {"type": "VALUE", "value": {"data": "aHVudGVyMg=="}}}]},
                "uris": [{"value": "http://h/x.tar.gz", "sha256": "ab"},
                    {"value": "/bin/tool", "executable": true, "cache": true}],
            },
            "resources": [
                {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.75}},
                {"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": 5, "end": 7}]}},
            ],
            "limits": {"cpus": {"value": "Infinity"}, "mem": {"value": 64}},
            "container": {"type": "MESOS", "hostname": "h", "mesos": {"rootfs": "/srv/root"},
                "volumes": [
                    {"mode": "RO", "container_path": "/data", "host_path": "/srv/data"},
                    {"mode": "RW", "container_path": "tmp",
                     "source": {"type": "SANDBOX_PATH", "sandbox_path": {"type": "PARENT", "path": "shared"}}},
                    {"mode": "RW", "container_path": "dev", "source": {"type": "HOST_PATH",
                     "host_path": {"path": "/srv", "mount_propagation": {"mode": "HOST_TO_CONTAINER"}}}},
                    {"mode": "RW", "container_path": "db", "source": {"type": "DOCKER_VOLUME", "docker_volume":
                     {"driver": "nfs", "name": "db", "driver_options": {"parameter": [{"key": "a", "value": "b"}]}}}},
                    {"mode": "RO", "container_path": "key", "source": {"type": "SECRET",
                     "secret": {"type": "REFERENCE", "reference": {"name": "tls", "key": "key"}}}},
                    {"mode": "RO", "container_path": "/usr/lib/jvm", "image":
                     {"type": "DOCKER", "docker": {"name": "jdk:21"}, "cached": false}},
                ],
                "network_infos": [{"name": "net", "ip_addresses": [{"ip_address": "10.0.0.9"}],
                    "port_mappings": [{"host_port": 8080, "container_port": 80, "protocol": "tcp"}],
                    "labels": {"labels": [{"key": "zone", "value": "a"}]}}],
                "rlimit_info": {"rlimits": [
                    {"type": "RLMT_NOFILE", "soft": 10, "hard": 20}, {"type": "RLMT_CORE"}]},
                "tty_info": {"window_size": {"rows": 24, "columns": 80}},
                "linux_info": {"share_pid_namespace": true, "share_cgroups": false, "ipc_mode": "PRIVATE",
                    "shm_size": 64, "seccomp": {"profile_name": "strict.json"},
                    "effective_capabilities": {"capabilities": ["NET_RAW", "CHECKPOINT_RESTORE"]},
                    "bounding_capabilities": {}}},
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
        assert_eq!(request.command.secrets["TOKEN"], Secret::Value("hunter2".into()));
        assert_eq!((request.volumes.len(), request.networks.len()), (6, 1));
        assert_eq!(request.rlimits["NOFILE"].soft, Some(10));
        assert_eq!(request.rlimits["CORE"].hard, None);
        assert_eq!(request.linux.shm_size, Some(64 << 20));
        assert_eq!(request.linux.bounding_capabilities, Some(BTreeSet::new()));
        assert_eq!(request.linux.effective_capabilities.as_ref().unwrap().len(), 2);
        assert_eq!(request.tty.unwrap().columns, 80);

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
    fn an_image_is_launched_with_its_own_command_unless_there_is_one() {
        let image =
            json!({"type": "MESOS", "mesos": {"image": {"type": "DOCKER", "docker": {"name": "web:1"}}}});
        let request = decode(json!({ "container": image })).unwrap();
        assert_eq!((request.image.as_deref(), request.command.shell), (Some("web:1"), false));
        assert_eq!(request.check(), Ok(()));
        let again = decode_launch(&encode_launch(&request)).unwrap();
        assert_eq!(again, request);
        let mut forced = image.clone();
        forced["mesos"]["image"]["cached"] = json!(false);
        // `e30=` is `{}`.
        forced["mesos"]["image"]["docker"]["config"] = json!({"type": "VALUE", "value": {"data": "e30="}});
        let request = decode(json!({ "container": forced })).unwrap();
        assert_eq!((request.force_pull_image, request.image_credentials.as_deref()), (true, Some("{}")));
        let shown = encode_launch(&request);
        assert!(!serde_json::to_string(&shown).unwrap().contains("config"), "{shown:?}");
        assert_eq!(decode_launch(&shown).unwrap(), request.without_secrets());
        let mut volume = forced["mesos"].clone();
        volume["mode"] = json!("RO");
        volume["container_path"] = json!("/data");
        let volumes = json!({"type": "MESOS", "volumes": [volume]});
        let request = decode(json!({ "container": volumes, "command": {"value": "ls"} })).unwrap();
        assert_eq!(request.volume_image_credentials[Path::new("/data")], "{}");
        let shown = encode_launch(&request);
        assert!(!serde_json::to_string(&shown).unwrap().contains("config"), "{shown:?}");
        assert_eq!(decode_launch(&shown).unwrap(), request.without_secrets());
        let request = decode(json!({ "container": image, "command": {"value": "ls"} })).unwrap();
        assert!(request.command.shell);
        let both = json!({"type": "MESOS", "mesos": {"rootfs": "/r", "image": {"type": "DOCKER", "docker": {"name": "x"}}}});
        let request = decode(json!({ "container": both, "command": {"value": "ls"} })).unwrap();
        assert!(request.check().is_err());
    }

    #[test]
    fn fields_that_are_not_supported_are_rejected_by_name() {
        for (info, field) in [
            (json!({"type": "MESOS", "docker": {"image": "x"}}), "`container.docker`"),
            (
                json!({"type": "MESOS", "mesos": {"image": {"type": "APPC", "docker": {"name": "x"}}}}),
                "`container.mesos.image.type`",
            ),
            (
                json!({"type": "MESOS", "mesos": {"image": {"type": "DOCKER", "docker": {"name": "x",
                    "config": {"type": "REFERENCE", "reference": {"name": "login"}}}}}}),
                "`container.mesos.image.docker.config.reference`",
            ),
            (
                json!({"type": "MESOS", "volumes": [{"mode": "RW", "container_path": "/a",
                    "image": {"type": "APPC", "docker": {"name": "x"}}}]}),
                "`container.volumes[0].image.type`",
            ),
            (
                json!({"type": "MESOS", "network_infos": [{"groups": ["g"]}]}),
                "`container.network_infos[0].groups`",
            ),
        ] {
            assert_rejected(json!({"container": info}), &format!("{field} is not supported by this agent"));
        }
    }

    #[test]
    fn invalid_values_are_rejected_by_name() {
        for (info, field) in [
            (json!({"volumes": [{"mode": "RW", "container_path": "/a"}]}), "`container.volumes[0]`"),
            (
                json!({"volumes": [{"mode": "RW", "container_path": "/a", "source": {"type": "SECRET"}}]}),
                "`container.volumes[0].source.secret`",
            ),
            (
                json!({"rlimit_info": {"rlimits": [{"type": "RLMT_CPU", "soft": 1}]}}),
                "`container.rlimit_info.rlimits[0]`",
            ),
            (
                json!({"rlimit_info": {"rlimits": [{"type": "RLMT_CPU", "soft": 2, "hard": 1}]}}),
                "`container.rlimit_info.rlimits[0]`",
            ),
            (
                json!({"network_infos": [{"port_mappings": [{"host_port": 70000, "container_port": 1}]}]}),
                "`container.network_infos[0].port_mappings`",
            ),
            (
                json!({"tty_info": {"window_size": {"rows": 1, "columns": 65536}}}),
                "`container.tty_info.window_size`",
            ),
            (json!({"linux_info": {"shm_size": 1}}), "`container.linux_info.shm_size`"),
            (
                json!({"linux_info": {"seccomp": {"profile_name": "a", "unconfined": true}}}),
                "`container.linux_info.seccomp`",
            ),
            (
                json!({"linux_info": {"capability_info": {}, "effective_capabilities": {}}}),
                "`container.linux_info.capability_info`",
            ),
        ] {
            let mut info = info;
            info["type"] = json!("MESOS");
            assert_rejected(json!({"container": info}), &format!("{field} is invalid"));
        }
        let secret = json!({"command": {"environment": {"variables": [{"name": "P", "type": "SECRET", "secret": {}}]}}});
        assert_rejected(secret, "`command.environment.P.secret.type` is invalid: it is missing");
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
