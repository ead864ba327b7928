//! From a launch as the wire has it to what the agent is asked for, and back.
//!
//! What this agent cannot do is refused by the name of the field, since a container without a volume that
//! was asked for is worse than none.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cofferdam_core::model::{
    Command, ContainerClass, ContainerId, InvalidId, InvalidRequest, Limit, LinuxOptions, Request, Resources,
    Uri, Value, check_resources,
};

use super::types as wire;

/// Why a request cannot become one to the agent. Always the fault of who asks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RefusedRequest {
    /// An id is none.
    #[error("`{field}` is invalid")]
    Id {
        /// Which field.
        field: &'static str,
        /// What is wrong.
        source: InvalidId,
    },
    /// An id must have a parent and has none.
    #[error("`{field}.parent` is missing; use the call without `NESTED` for a top-level container")]
    NoParent {
        /// Which field.
        field: &'static str,
    },
    /// A field asks for what this agent does not do.
    #[error("`{field}` is not supported by this agent{advice}")]
    Unsupported {
        /// Which field.
        field: String,
        /// What to do instead, behind a separator, or nothing.
        advice: &'static str,
    },
    /// A field has a value that means nothing.
    #[error("`{field}` is invalid: {reason}")]
    Field {
        /// Which field.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// Amounts that make no sense.
    #[error(transparent)]
    Amounts(#[from] InvalidRequest),
}

type Result<T> = std::result::Result<T, RefusedRequest>;

/// An id, each of whose values is checked by itself: a dot in one would make it two.
pub(super) fn id(field: &'static str, id: &wire::ContainerId) -> Result<ContainerId> {
    let refuse = |source| RefusedRequest::Id { field, source };
    let mut values: Vec<&str> = Vec::new();
    let mut level = Some(id);
    while let Some(id) = level {
        values.push(&id.value);
        level = id.parent.as_deref();
    }
    let mut values = values.into_iter().rev();
    let root = values.next().unwrap_or_default();
    if root.contains('.') {
        return Err(refuse(InvalidId::Character { value: root.to_owned(), character: '.' }));
    }
    values.try_fold(ContainerId::parse(root).map_err(refuse)?, |id, value| id.child(value)).map_err(refuse)
}

/// [`id`], of a container that must be nested.
pub(super) fn nested_id(field: &'static str, wire: &wire::ContainerId) -> Result<ContainerId> {
    let id = id(field, wire)?;
    if id.is_nested() { Ok(id) } else { Err(RefusedRequest::NoParent { field }) }
}

/// An id as the wire has it.
pub(crate) fn wire_id(id: &ContainerId) -> wire::ContainerId {
    let parent = id.parent().map(|parent| Box::new(wire_id(&parent)));
    wire::ContainerId { value: id.value().to_owned(), parent }
}

/// What the agent is asked for by a launch.
pub(super) fn to_request(launch: &wire::LaunchContainer) -> Result<Request> {
    let id = id("launch_container.container_id", &launch.container_id)?;
    let resources = resources(&id, &launch.resources, &launch.limits)?;
    let (command, uris) = command(launch.command.as_ref())?;
    let (rootfs, linux) = surroundings(&id, launch.container.as_ref())?;
    let labels = launch.labels.iter().flat_map(|labels| &labels.labels);
    Ok(Request {
        class: ContainerClass::default(),
        command,
        uris,
        rootfs,
        resources,
        labels: labels.map(|label| (label.key.clone(), label.value.clone().unwrap_or_default())).collect(),
        linux,
        id,
    })
}

/// What the agent is asked for by the older call for nested containers.
pub(super) fn to_nested_request(launch: &wire::LaunchNestedContainer) -> Result<Request> {
    nested_id("launch_nested_container.container_id", &launch.container_id)?;
    to_request(&wire::LaunchContainer {
        container_id: launch.container_id.clone(),
        command: launch.command.clone(),
        container: launch.container.clone(),
        ..wire::LaunchContainer::default()
    })
}

/// What a container may count on, and where it must stop.
pub(crate) fn resources(
    id: &ContainerId,
    requests: &[wire::Resource],
    limits: &BTreeMap<String, wire::Scalar>,
) -> Result<Resources> {
    let mut resources = Resources::default();
    for resource in requests {
        add(&mut resources, resource)?;
    }
    for (name, limit) in limits {
        let limit = if limit.value == f64::INFINITY { Limit::Unlimited } else { Limit::At(limit.value) };
        resources.limits.insert(name.clone(), limit);
    }
    check_resources(id, &resources)?;
    Ok(resources)
}

fn add(resources: &mut Resources, resource: &wire::Resource) -> Result<()> {
    let name = &resource.name;
    let field = |field: &str| format!("resources.{name}.{field}");
    let unsupported = |what: &str| RefusedRequest::Unsupported { field: field(what), advice: "" };
    let invalid =
        |what: &str, reason: &str| RefusedRequest::Field { field: field(what), reason: reason.to_owned() };

    if name.is_empty() {
        return Err(invalid("name", "it is empty"));
    }
    let reserved = resource.role.as_deref().is_some_and(|role| role != "*")
        || resource.reservation.is_some()
        || !resource.reservations.is_empty();
    let refused = [
        ("reservations", reserved),
        ("disk", resource.disk.is_some()),
        ("revocable", resource.revocable.is_some()),
        ("shared", resource.shared.is_some()),
    ];
    if let Some((what, _)) = refused.into_iter().find(|(_, present)| *present) {
        return Err(unsupported(what));
    }

    let value = match resource.kind {
        wire::ResourceKind::Scalar => {
            let scalar = resource.scalar.as_ref().ok_or_else(|| invalid("scalar", "it is missing"))?;
            Value::Scalar(thousandths(scalar.value).ok_or_else(|| {
                invalid("scalar", "expected a number of 0.001 or more that is not infinite")
            })?)
        }
        wire::ResourceKind::Ranges => {
            let ranges = resource.ranges.as_ref().ok_or_else(|| invalid("ranges", "they are missing"))?;
            let ranges: Vec<(u64, u64)> = ranges.range.iter().map(|range| (range.begin, range.end)).collect();
            if ranges.iter().any(|(begin, end)| begin > end) {
                return Err(invalid("ranges", "one begins behind its end"));
            }
            Value::Ranges(ranges)
        }
        wire::ResourceKind::Set => {
            let set = resource.set.as_ref().ok_or_else(|| invalid("set", "it is missing"))?;
            Value::Set(set.item.clone())
        }
        wire::ResourceKind::Text => return Err(unsupported("text")),
    };

    // The same resource may come in several pieces.
    match (resources.requests.get_mut(name), value) {
        (None, value) => {
            resources.requests.insert(name.clone(), value);
        }
        (Some(Value::Scalar(sum)), Value::Scalar(more)) => *sum += more,
        (Some(Value::Ranges(all)), Value::Ranges(more)) => all.extend(more),
        (Some(Value::Set(all)), Value::Set(more)) => all.extend(more),
        (Some(_), _) => return Err(invalid("type", "another piece of it has another type")),
    }
    match resources.requests.get_mut(name) {
        Some(Value::Ranges(ranges)) => {
            ranges.sort_unstable();
            if ranges.windows(2).any(|pair| pair[1].0 <= pair[0].1) {
                return Err(invalid("ranges", "two of them overlap"));
            }
        }
        Some(Value::Set(items)) => {
            items.sort_unstable();
            if items.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(invalid("set", "an item is in it twice"));
            }
        }
        Some(Value::Scalar(amount)) if name == "gpus" && amount.fract() != 0.0 => {
            return Err(invalid("scalar", "there are no parts of a gpu"));
        }
        _ => {}
    }
    Ok(())
}

/// Three decimals count, as everywhere in Mesos.
fn thousandths(amount: f64) -> Option<f64> {
    let rounded = (amount * 1000.0).round() / 1000.0;
    (rounded.is_finite() && rounded >= 0.001).then_some(rounded)
}

fn command(command: Option<&wire::CommandInfo>) -> Result<(Command, Vec<Uri>)> {
    let Some(command) = command else { return Ok((Command::default(), Vec::new())) };
    let mut environment = BTreeMap::new();
    for variable in command.environment.iter().flat_map(|environment| &environment.variables) {
        let (name, value) = plain(variable)?;
        environment.insert(name, value);
    }
    let uris = command.uris.iter().map(|uri| Uri {
        value: uri.value.clone(),
        executable: uri.executable.unwrap_or(false),
        extract: uri.is_extracted(),
        output_file: uri.output_file.clone(),
        sha256: uri.sha256.clone(),
    });
    let meant = Command {
        shell: command.is_shell(),
        value: command.value.clone(),
        arguments: command.arguments.clone(),
        environment,
        secrets: BTreeMap::new(),
        user: command.user.clone(),
        working_directory: command.working_directory.clone().map(PathBuf::from),
    };
    Ok((meant, uris.collect()))
}

fn plain(variable: &wire::Variable) -> Result<(String, String)> {
    let name = &variable.name;
    let field = |field: &str| format!("command.environment.{name}.{field}");
    if variable.secret.is_some() || variable.kind == Some(wire::VariableKind::Secret) {
        return Err(RefusedRequest::Unsupported { field: field("secret"), advice: "; give its `value`" });
    }
    match (variable.kind, &variable.value) {
        (Some(wire::VariableKind::Unknown), _) => {
            Err(RefusedRequest::Field { field: field("type"), reason: "it is UNKNOWN".to_owned() })
        }
        (_, None) => Err(RefusedRequest::Field { field: field("value"), reason: "it is missing".to_owned() }),
        (_, Some(value)) => Ok((name.clone(), value.clone())),
    }
}

/// What is around the command, as far as this agent knows such things.
fn surroundings(
    id: &ContainerId,
    info: Option<&wire::ContainerInfo>,
) -> Result<(Option<PathBuf>, LinuxOptions)> {
    let mut linux = LinuxOptions { share_cgroups: id.is_nested(), ..LinuxOptions::default() };
    let Some(info) = info else { return Ok((None, linux)) };
    let none = wire::LinuxInfo::default();
    let options = info.linux_info.as_ref().unwrap_or(&none);
    let image = info.mesos.as_ref().is_some_and(|mesos| mesos.image.is_some());
    let unknown_ipc = matches!(options.ipc_mode, None | Some(wire::IpcMode::Unknown));
    let refused = [
        ("type", info.kind == wire::ContainerKind::Docker, ": DOCKER needs an engine; use MESOS"),
        ("docker", info.docker.is_some(), ": it needs an engine; use `mesos`"),
        ("mesos.image", image, "; unpack it and give the folder as `mesos.rootfs`"),
        ("volumes", !info.volumes.is_empty(), ""),
        ("network_infos", !info.network_infos.is_empty(), ""),
        ("rlimit_info", info.rlimit_info.is_some(), ""),
        ("tty_info", info.tty_info.is_some(), ""),
        ("linux_info.capability_info", options.capability_info.is_some(), ""),
        ("linux_info.bounding_capabilities", options.bounding_capabilities.is_some(), ""),
        ("linux_info.effective_capabilities", options.effective_capabilities.is_some(), ""),
        ("linux_info.seccomp", options.seccomp.is_some(), ""),
        ("linux_info.ipc_mode", !unknown_ipc, ""),
        ("linux_info.shm_size", options.shm_size.is_some(), ""),
    ];
    if let Some((field, _, advice)) = refused.into_iter().find(|(_, present, _)| *present) {
        return Err(RefusedRequest::Unsupported { field: format!("container.{field}"), advice });
    }
    if !id.is_nested() && options.share_cgroups == Some(true) {
        return Err(RefusedRequest::Field {
            field: "container.linux_info.share_cgroups".to_owned(),
            reason: "a top-level container has no parent to share control groups with".to_owned(),
        });
    }
    linux.hostname.clone_from(&info.hostname);
    linux.share_pid_namespace = options.share_pid_namespace.unwrap_or(false);
    linux.share_cgroups = id.is_nested() && options.shares_cgroups();
    let rootfs = info.mesos.as_ref().and_then(|mesos| mesos.rootfs.as_ref()).map(PathBuf::from);
    Ok((rootfs, linux))
}

/// A request as the wire has it: what `to_request` makes it from. The class is not part of it.
#[must_use]
pub fn from_request(request: &Request) -> wire::LaunchContainer {
    let command = &request.command;
    let variables = command.environment.iter().map(|(name, value)| wire::Variable {
        name: name.clone(),
        value: Some(value.clone()),
        ..wire::Variable::default()
    });
    let uris = request.uris.iter().map(|uri| wire::Uri {
        value: uri.value.clone(),
        executable: Some(uri.executable),
        extract: Some(uri.extract),
        cache: None,
        output_file: uri.output_file.clone(),
        sha256: uri.sha256.clone(),
    });
    let labels = request
        .labels
        .iter()
        .map(|(key, value)| wire::Label { key: key.clone(), value: Some(value.clone()) });
    let environment = wire::Environment { variables: variables.collect() };
    let labels = wire::Labels { labels: labels.collect() };
    wire::LaunchContainer {
        container_id: wire_id(&request.id),
        command: Some(wire::CommandInfo {
            uris: uris.collect(),
            environment: (!environment.variables.is_empty()).then_some(environment),
            shell: Some(command.shell),
            value: command.value.clone(),
            arguments: command.arguments.clone(),
            user: command.user.clone(),
            working_directory: command
                .working_directory
                .as_ref()
                .map(|directory| directory.to_string_lossy().into_owned()),
        }),
        resources: wire_resources(&request.resources),
        limits: wire_limits(&request.resources),
        container: Some(wire::ContainerInfo {
            kind: wire::ContainerKind::Mesos,
            hostname: request.linux.hostname.clone(),
            mesos: request.rootfs.as_ref().map(|rootfs| wire::MesosInfo {
                image: None,
                rootfs: Some(rootfs.to_string_lossy().into_owned()),
            }),
            linux_info: Some(wire::LinuxInfo {
                share_pid_namespace: Some(request.linux.share_pid_namespace),
                share_cgroups: request.id.is_nested().then_some(request.linux.share_cgroups),
                ..wire::LinuxInfo::default()
            }),
            ..wire::ContainerInfo::default()
        }),
        labels: (!labels.labels.is_empty()).then_some(labels),
    }
}

/// Amounts as the wire has them.
pub(crate) fn wire_resources(resources: &Resources) -> Vec<wire::Resource> {
    resources.requests.iter().filter_map(|(name, value)| wire_resource(name, value)).collect()
}

/// One amount as the wire has it. `None` if it cannot be expressed there.
pub(crate) fn wire_resource(name: &str, value: &Value) -> Option<wire::Resource> {
    let name = name.to_owned();
    Some(match value {
        Value::Scalar(amount) if !amount.is_finite() => return None,
        Value::Scalar(amount) => wire::Resource::scalar(name, *amount),
        Value::Ranges(ranges) => wire::Resource {
            name,
            kind: wire::ResourceKind::Ranges,
            ranges: Some(wire::Ranges {
                range: ranges.iter().map(|&(begin, end)| wire::Range { begin, end }).collect(),
            }),
            ..wire::Resource::default()
        },
        Value::Set(item) => wire::Resource {
            name,
            kind: wire::ResourceKind::Set,
            set: Some(wire::Set { item: item.clone() }),
            ..wire::Resource::default()
        },
        _ => return None,
    })
}

/// Limits as the wire has them.
pub(crate) fn wire_limits(resources: &Resources) -> BTreeMap<String, wire::Scalar> {
    let limits = resources.limits.iter();
    limits
        .filter_map(|(name, limit)| {
            let value = match limit {
                Limit::At(amount) => *amount,
                Limit::Unlimited => f64::INFINITY,
                _ => return None,
            };
            Some((name.clone(), wire::Scalar { value }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn read(mut body: Json) -> std::result::Result<Request, String> {
        if body["container_id"].is_null() {
            body["container_id"] = json!({"value": "web"});
        }
        let launch: wire::LaunchContainer = serde_json::from_value(body).unwrap();
        to_request(&launch).map_err(|error| {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            format!("{error}{}", source.unwrap_or_default())
        })
    }

    fn refused(body: Json, expected: &str) {
        let text = body.to_string();
        let error = read(body).expect_err(&text);
        assert!(error.contains(expected), "{text}: {error}");
    }

    #[test]
    fn a_launch_says_everything_the_agent_is_asked_for() {
        let request = read(json!({
            "container_id": {"value": "web", "parent": {"value": "pod"}},
            "command": {
                "shell": false, "value": "/bin/server", "arguments": ["server", "-v"], "user": "nobody",
                "environment": {"variables": [
                    {"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "B", "value": ""}]},
                "uris": [{"value": "http://h/x.tar.gz", "sha256": "ab"}, {"value": "/bin/tool", "executable": true}],
            },
            "resources": [
                {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.25}},
                {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.5}},
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

        // What is shown of a request can be launched again.
        assert_eq!(to_request(&from_request(&request)).unwrap(), request);
    }

    #[test]
    fn a_nested_container_shares_control_groups_unless_it_says_otherwise() {
        let nested = json!({"container_id": {"value": "a", "parent": {"value": "b"}}});
        assert!(read(nested).unwrap().linux.share_cgroups);
        assert!(!read(json!({})).unwrap().linux.share_cgroups);
        refused(
            json!({"container": {"type": "MESOS", "linux_info": {"share_cgroups": true}}}),
            "no parent to share",
        );
    }

    #[test]
    fn what_is_not_done_is_refused_by_its_name() {
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
            refused(json!({"container": info}), &format!("{field} is not supported by this agent"));
        }
        refused(
            json!({"command": {"environment": {"variables": [{"name": "P", "type": "SECRET", "secret": {}}]}}}),
            "`command.environment.P.secret` is not supported",
        );
        let unset = json!({"command": {"environment": {"variables": [{"name": "P"}]}}});
        refused(unset, "`command.environment.P.value` is invalid: it is missing");
    }

    #[test]
    fn ids_that_would_mean_something_else_are_refused() {
        for id in [
            json!({"value": ""}),
            json!({"value": "a.b"}),
            json!({"value": "a/b"}),
            json!({"value": "x".repeat(243)}),
            json!({"value": "a", "parent": {"value": "b.c"}}),
            json!({"value": "a\n"}),
        ] {
            refused(json!({"container_id": id}), "`launch_container.container_id` is invalid: ");
        }
        let unicode = read(json!({"container_id": {"value": "größe-容器-🦀"}})).unwrap();
        assert_eq!(wire_id(&unicode.id).value, "größe-容器-🦀");
    }

    #[test]
    fn amounts_that_make_no_sense_are_refused() {
        let scalar = |name: &str, value: Json| json!({"resources": [{"name": name, "type": "SCALAR", "scalar": {"value": value}}]});
        for value in [json!(-1), json!(0), json!(0.0001), json!("Infinity"), json!("-Infinity")] {
            refused(scalar("cpus", value), "`resources.cpus.scalar` is invalid");
        }
        assert_eq!(read(scalar("mem", json!(1e15))).unwrap().resources.scalar("mem"), Some(1e15));
        refused(scalar("gpus", json!(1.5)), "no parts of a gpu");
        refused(json!({"limits": {"mem": {"value": -3}}}), "requests -3 of `mem`");
        refused(
            json!({"resources": [{"name": "mem", "type": "SCALAR", "scalar": {"value": 64}}],
                   "limits": {"mem": {"value": 32}}}),
            "a limit must be at least the request",
        );
        let ranges = |ranges: Json| json!({"resources": [{"name": "ports", "type": "RANGES", "ranges": {"range": ranges}}]});
        refused(ranges(json!([{"begin": 9, "end": 8}])), "begins behind its end");
        refused(ranges(json!([{"begin": 5, "end": 9}, {"begin": 1, "end": 5}])), "overlap");
        for (key, value) in [
            ("role", json!("web")),
            ("reservations", json!([{}])),
            ("revocable", json!({})),
            ("shared", json!({})),
        ] {
            let mut body = scalar("cpus", json!(1));
            body["resources"][0][key] = value;
            refused(body, "is not supported by this agent");
        }
    }
}
