//! `docker.parameters`: options of `docker run`, as fields of the Engine API.
//!
//! An option that is not in the table is refused: the API has no place for it, or it would take the container away from the
//! agent.

use serde_json::{Map, Value as Json, json};

use crate::containerizer::invalid::{Problem, problem};

/// What the value of an option is, and so how it is added to its field.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    /// An item of a list.
    Item,
    /// `key=value`, a member of an object.
    Pair,
    /// `key=value` or `key`, an item of a list; a key that is there is replaced.
    Variable,
    Integer,
    Flag,
    /// A number of bytes, with a unit.
    Size,
    /// A time, in nanoseconds.
    Time,
    /// A number of CPUs, in billionths.
    Cpus,
    /// `host[:container[:permissions]]`.
    Device,
    /// `name=soft[:hard]`.
    Ulimit,
    /// `path:rate`.
    Rate,
    /// `[[address:]host port:]container port[/protocol]`.
    Publish,
    /// `port[/protocol]`.
    Port,
    /// `path[:options]`.
    Tmpfs,
    /// A program, without arguments.
    Program,
}

use Kind::{
    Cpus, Device, Flag, Integer, Item, Pair, Port, Program, Publish, Rate, Size, Text, Time, Tmpfs, Ulimit,
    Variable,
};

/// Options, and their fields in the body of `/containers/create`.
const OPTIONS: &[(&str, &str, Kind)] = &[
    ("add-host", "HostConfig.ExtraHosts", Item),
    ("annotation", "HostConfig.Annotations", Pair),
    ("blkio-weight", "HostConfig.BlkioWeight", Integer),
    ("cap-add", "HostConfig.CapAdd", Item),
    ("cap-drop", "HostConfig.CapDrop", Item),
    ("cgroup-parent", "HostConfig.CgroupParent", Text),
    ("cgroupns", "HostConfig.CgroupnsMode", Text),
    ("cpu-period", "HostConfig.CpuPeriod", Integer),
    ("cpu-quota", "HostConfig.CpuQuota", Integer),
    ("cpu-rt-period", "HostConfig.CpuRealtimePeriod", Integer),
    ("cpu-rt-runtime", "HostConfig.CpuRealtimeRuntime", Integer),
    ("cpu-shares", "HostConfig.CpuShares", Integer),
    ("cpus", "HostConfig.NanoCpus", Cpus),
    ("cpuset-cpus", "HostConfig.CpusetCpus", Text),
    ("cpuset-mems", "HostConfig.CpusetMems", Text),
    ("device", "HostConfig.Devices", Device),
    ("device-cgroup-rule", "HostConfig.DeviceCgroupRules", Item),
    ("device-read-bps", "HostConfig.BlkioDeviceReadBps", Rate),
    ("device-read-iops", "HostConfig.BlkioDeviceReadIOps", Rate),
    ("device-write-bps", "HostConfig.BlkioDeviceWriteBps", Rate),
    ("device-write-iops", "HostConfig.BlkioDeviceWriteIOps", Rate),
    ("dns", "HostConfig.Dns", Item),
    ("dns-opt", "HostConfig.DnsOptions", Item),
    ("dns-option", "HostConfig.DnsOptions", Item),
    ("dns-search", "HostConfig.DnsSearch", Item),
    ("domainname", "Domainname", Text),
    ("entrypoint", "Entrypoint", Program),
    ("env", "Env", Variable),
    ("expose", "ExposedPorts", Port),
    ("group-add", "HostConfig.GroupAdd", Item),
    ("health-interval", "Healthcheck.Interval", Time),
    ("health-retries", "Healthcheck.Retries", Integer),
    ("health-start-period", "Healthcheck.StartPeriod", Time),
    ("health-timeout", "Healthcheck.Timeout", Time),
    ("hostname", "Hostname", Text),
    ("init", "HostConfig.Init", Flag),
    ("ipc", "HostConfig.IpcMode", Text),
    ("isolation", "HostConfig.Isolation", Text),
    ("label", "Labels", Pair),
    ("link", "HostConfig.Links", Item),
    ("log-driver", "HostConfig.LogConfig.Type", Text),
    ("log-opt", "HostConfig.LogConfig.Config", Pair),
    ("mac-address", "MacAddress", Text),
    ("memory", "HostConfig.Memory", Size),
    ("memory-reservation", "HostConfig.MemoryReservation", Size),
    ("memory-swap", "HostConfig.MemorySwap", Size),
    ("memory-swappiness", "HostConfig.MemorySwappiness", Integer),
    ("oom-kill-disable", "HostConfig.OomKillDisable", Flag),
    ("oom-score-adj", "HostConfig.OomScoreAdj", Integer),
    ("pid", "HostConfig.PidMode", Text),
    ("pids-limit", "HostConfig.PidsLimit", Integer),
    ("privileged", "HostConfig.Privileged", Flag),
    ("publish", "HostConfig.PortBindings", Publish),
    ("publish-all", "HostConfig.PublishAllPorts", Flag),
    ("read-only", "HostConfig.ReadonlyRootfs", Flag),
    ("runtime", "HostConfig.Runtime", Text),
    ("security-opt", "HostConfig.SecurityOpt", Item),
    ("shm-size", "HostConfig.ShmSize", Size),
    ("stop-signal", "StopSignal", Text),
    ("stop-timeout", "StopTimeout", Integer),
    ("storage-opt", "HostConfig.StorageOpt", Pair),
    ("sysctl", "HostConfig.Sysctls", Pair),
    ("tmpfs", "HostConfig.Tmpfs", Tmpfs),
    ("ulimit", "HostConfig.Ulimits", Ulimit),
    ("user", "User", Text),
    ("userns", "HostConfig.UsernsMode", Text),
    ("uts", "HostConfig.UTSMode", Text),
    ("volume", "HostConfig.Binds", Item),
    ("volume-driver", "HostConfig.VolumeDriver", Text),
    ("volumes-from", "HostConfig.VolumesFrom", Item),
    ("workdir", "WorkingDir", Text),
];

/// Options that are refused, and why.
const REFUSED: &[(&[&str], &str)] = &[
    (&["name"], "the agent finds the container by its name; choose another container id"),
    (&["rm", "restart"], "the agent removes the container itself, and reports its exit status once"),
    (&["detach", "d", "attach", "a", "sig-proxy", "detach-keys", "cidfile"], "it is an option of the client"),
    (
        &["interactive", "i", "tty", "t"],
        "attach with `LAUNCH_CONTAINER`'s `attach.stdin`; there is no terminal",
    ),
    (&["env-file", "label-file"], "the agent reads no files of the host for it; give the values"),
    (&["pull", "force-pull"], "set `docker.force_pull_image`"),
    (&["network", "net", "network-alias", "net-alias", "ip", "ip6"], "give it once; see `docker.network`"),
];

/// Single letters of `docker run`.
const SHORT: &[(&str, &str)] = &[
    ("c", "cpu-shares"),
    ("e", "env"),
    ("h", "hostname"),
    ("l", "label"),
    ("m", "memory"),
    ("p", "publish"),
    ("P", "publish-all"),
    ("u", "user"),
    ("v", "volume"),
    ("w", "workdir"),
];

/// Adds an option to the body of `/containers/create`.
pub(super) fn apply(spec: &mut Json, key: &str, value: &str) -> Result<(), Problem> {
    let name = SHORT.iter().find(|(short, _)| *short == key).map_or(key, |(_, long)| long);
    let field = || format!("container.docker.parameters.{key}");
    let Some((_, path, kind)) = OPTIONS.iter().find(|(option, ..)| *option == name) else {
        let refused = REFUSED.iter().find(|(names, _)| names.contains(&name));
        let reason = refused.map_or_else(
            || {
                let close = OPTIONS.iter().map(|(option, ..)| *option).find(|option| is_close(option, name));
                let hint = close.map(|option| format!("; did you mean `{option}`?")).unwrap_or_default();
                format!("it is not an option of `docker run` that this agent can pass on{hint}")
            },
            |(_, reason)| (*reason).to_owned(),
        );
        return problem(field(), reason);
    };
    if name == "security-opt" && value.starts_with("seccomp=") && value != "seccomp=unconfined" {
        return problem(
            field(),
            "a seccomp profile is a file for the client; only `seccomp=unconfined` can be passed on",
        );
    }
    let place = place(spec, path);
    add(place, *kind, value).map_err(|expected| (field(), format!("`{value}` is not {expected}")))
}

/// Whether one is the other with a letter too many, too few or another one.
fn is_close(a: &str, b: &str) -> bool {
    let common = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a.as_bytes()[common..], &b.as_bytes()[common..]);
    [(1, 1), (1, 0), (0, 1)]
        .into_iter()
        .any(|(skip_a, skip_b)| a.len() >= skip_a && b.len() >= skip_b && a[skip_a..] == b[skip_b..])
}

/// The value at a path of member names, created if it is missing.
pub(super) fn place<'s>(spec: &'s mut Json, path: &str) -> &'s mut Json {
    path.split('.').fold(spec, |parent, name| {
        if !parent.is_object() {
            *parent = json!({});
        }
        &mut parent[name]
    })
}

/// Adds a value to a field. Returns what was expected if it is not that.
fn add(place: &mut Json, kind: Kind, value: &str) -> Result<(), &'static str> {
    match kind {
        Text => *place = value.into(),
        Item => items(place).push(value.into()),
        Program => *place = if value.is_empty() { json!([""]) } else { json!([value]) },
        Integer => {
            *place = value.parse::<i64>().map_err(|_| "a whole number")?.into();
        }
        Flag => {
            *place = match value {
                "" | "true" | "1" => true.into(),
                "false" | "0" => false.into(),
                _ => return Err("`true` or `false`"),
            }
        }
        Size => *place = size(value).ok_or("a size such as `64m`")?.into(),
        Time => *place = nanoseconds(value).ok_or("a time such as `10s`")?.into(),
        Cpus => {
            let cpus: f64 = value.parse().map_err(|_| "a number of CPUs")?;
            if !(cpus > 0.0 && cpus < 1e6) {
                return Err("a number of CPUs");
            }
            #[expect(clippy::cast_possible_truncation, reason = "it is in range")]
            let billionths = (cpus * 1e9).round() as i64;
            *place = billionths.into();
        }
        Pair => {
            // A label without a value has an empty one.
            let (key, value) = value.split_once('=').unwrap_or((value, ""));
            members(place).insert(key.to_owned(), value.into());
        }
        Variable => {
            let (name, _) = value.split_once('=').ok_or("a variable with its value, as `NAME=value`")?;
            let prefix = format!("{name}=");
            let variables = items(place);
            variables.retain(|variable| !variable.as_str().is_some_and(|it| it.starts_with(&prefix)));
            variables.push(value.into());
        }
        Device => items(place).push(device(value).ok_or("a device such as `/dev/fuse:/dev/fuse:rwm`")?),
        Ulimit => items(place).push(ulimit(value).ok_or("a limit such as `nofile=1024:2048`")?),
        Rate => {
            let (path, rate) = value.rsplit_once(':').ok_or("a device and a rate such as `/dev/sda:1mb`")?;
            let rate = size(rate).ok_or("a device and a rate such as `/dev/sda:1mb`")?;
            items(place).push(json!({ "Path": path, "Rate": rate }));
        }
        Publish => {
            let expected = "a port such as `8080:80/tcp`";
            let (address, host, container) = publish(value).ok_or(expected)?;
            let bindings = members(place).entry(container).or_insert_with(|| json!([]));
            items(bindings).push(json!({ "HostIp": address, "HostPort": host }));
        }
        Port => {
            members(place).insert(port(value).ok_or("a port such as `80/tcp`")?, json!({}));
        }
        Tmpfs => {
            let (path, options) = value.split_once(':').unwrap_or((value, ""));
            members(place).insert(path.to_owned(), options.into());
        }
    }
    Ok(())
}

fn items(place: &mut Json) -> &mut Vec<Json> {
    if !place.is_array() {
        *place = json!([]);
    }
    place.as_array_mut().expect("it is one, as of the line above")
}

fn members(place: &mut Json) -> &mut Map<String, Json> {
    if !place.is_object() {
        *place = json!({});
    }
    place.as_object_mut().expect("it is one, as of the line above")
}

/// A number of bytes, as Docker writes it: units are powers of 1024. -1 stands for no limit.
fn size(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let text = text.to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().trim_end_matches("ib").trim_end_matches('b');
    let shift = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == unit)?;
    let bytes = number.parse::<f64>().ok()? * 1024_f64.powi(i32::try_from(shift).ok()?);
    #[expect(clippy::cast_possible_truncation, reason = "it is in range")]
    (bytes < 9e18).then_some(bytes as i64)
}

fn nanoseconds(text: &str) -> Option<i64> {
    cofferdam_plugin_model::units::duration(text)?.as_nanos().try_into().ok()
}

fn device(text: &str) -> Option<Json> {
    let parts: Vec<&str> = text.split(':').collect();
    let is_mode = |text: &str| !text.is_empty() && text.chars().all(|c| "rwm".contains(c));
    let (host, container, mode) = match parts.as_slice() {
        [host] => (*host, *host, "rwm"),
        [host, mode] if is_mode(mode) => (*host, *host, *mode),
        [host, container] => (*host, *container, "rwm"),
        [host, container, mode] if is_mode(mode) => (*host, *container, *mode),
        _ => return None,
    };
    (host.starts_with('/') && container.starts_with('/'))
        .then(|| json!({ "PathOnHost": host, "PathInContainer": container, "CgroupPermissions": mode }))
}

fn ulimit(text: &str) -> Option<Json> {
    let (name, limits) = text.split_once('=')?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let (soft, hard) = (soft.parse::<i64>().ok()?, hard.parse::<i64>().ok()?);
    Some(json!({ "Name": name, "Soft": soft, "Hard": hard }))
}

/// A port with its protocol.
fn port(text: &str) -> Option<String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number = number.parse::<u16>().ok().filter(|number| *number > 0)?;
    ["tcp", "udp", "sctp"].contains(&protocol).then(|| format!("{number}/{protocol}"))
}

/// Address and port of the host, empty if any will do, and port of the container.
fn publish(text: &str) -> Option<(String, String, String)> {
    let (rest, container) = match text.rsplit_once(':') {
        Some((rest, container)) => (Some(rest), container),
        None => (None, text),
    };
    let container = port(container)?;
    let (address, host) = match rest.map(|rest| rest.rsplit_once(':').unwrap_or(("", rest))) {
        Some((address, host)) => (address.trim_matches(['[', ']']), host),
        None => ("", ""),
    };
    let is_port = host.is_empty() || host.parse::<u16>().is_ok();
    is_port.then(|| (address.to_owned(), host.to_owned(), container))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(options: &[(&str, &str)]) -> Result<Json, Problem> {
        let mut spec = json!({ "Env": ["A=1", "B=2"], "HostConfig": { "Memory": 1 } });
        options.iter().try_for_each(|(key, value)| apply(&mut spec, key, value))?;
        Ok(spec)
    }

    #[test]
    fn options_become_fields_and_later_ones_win() {
        let spec = applied(&[
            ("memory", "64m"),
            ("m", "1.5g"),
            ("label", "tier=web"),
            ("l", "bare"),
            ("e", "A=3"),
            ("cap-add", "NET_ADMIN"),
            ("cap-add", "SYS_PTRACE"),
            ("device", "/dev/fuse:r"),
            ("ulimit", "nofile=10:20"),
            ("publish", "127.0.0.1:8080:80"),
            ("publish", "53/udp"),
            ("device-write-bps", "/dev/sda:1mb"),
            ("tmpfs", "/run:size=1m"),
            ("cpus", "0.25"),
            ("read-only", "true"),
            ("health-interval", "10s"),
            ("log-opt", "max-size=1m"),
        ])
        .unwrap();
        let host = &spec["HostConfig"];
        assert_eq!(host["Memory"], 1536 << 20);
        assert_eq!(spec["Labels"], json!({ "tier": "web", "bare": "" }));
        assert_eq!(spec["Env"], json!(["B=2", "A=3"]));
        assert_eq!(host["CapAdd"], json!(["NET_ADMIN", "SYS_PTRACE"]));
        assert_eq!(host["Devices"][0]["PathInContainer"], "/dev/fuse");
        assert_eq!(host["Devices"][0]["CgroupPermissions"], "r");
        assert_eq!(host["Ulimits"][0], json!({ "Name": "nofile", "Soft": 10, "Hard": 20 }));
        assert_eq!(host["PortBindings"]["80/tcp"][0], json!({ "HostIp": "127.0.0.1", "HostPort": "8080" }));
        assert_eq!(host["PortBindings"]["53/udp"][0], json!({ "HostIp": "", "HostPort": "" }));
        assert_eq!(host["BlkioDeviceWriteBps"][0], json!({ "Path": "/dev/sda", "Rate": 1 << 20 }));
        assert_eq!(host["Tmpfs"]["/run"], "size=1m");
        assert_eq!(host["NanoCpus"], 250_000_000);
        assert_eq!(host["ReadonlyRootfs"], true);
        assert_eq!(spec["Healthcheck"]["Interval"], 10_000_000_000_i64);
        assert_eq!(host["LogConfig"]["Config"]["max-size"], "1m");
    }

    #[test]
    fn what_cannot_be_passed_on_is_refused_with_the_reason() {
        for (key, value, expected) in [
            ("name", "x", "finds the container by its name"),
            ("rm", "true", "removes the container itself"),
            ("memry", "1m", "did you mean `memory`?"),
            ("frobnicate", "", "is not an option of `docker run`"),
            ("memory", "much", "is not a size"),
            ("env", "HOME", "NAME=value"),
            ("device", "fuse", "is not a device"),
            ("ulimit", "nofile", "is not a limit"),
            ("publish", "0", "is not a port"),
            ("security-opt", "seccomp=/etc/profile.json", "only `seccomp=unconfined`"),
        ] {
            let (field, reason) = applied(&[(key, value)]).unwrap_err();
            assert_eq!(field, format!("container.docker.parameters.{key}"));
            assert!(reason.contains(expected), "{key}: {reason}");
        }
    }

    #[test]
    fn every_option_is_named_once_and_none_is_refused_as_well() {
        for (index, (name, path, _)) in OPTIONS.iter().enumerate() {
            assert!(OPTIONS[..index].iter().all(|(other, ..)| other < name), "{name} is not in order");
            assert!(!REFUSED.iter().any(|(names, _)| names.contains(name)), "{name}");
            assert!(!path.is_empty());
        }
        assert!(SHORT.iter().all(|(_, long)| OPTIONS.iter().any(|(name, ..)| name == long)));
    }
}
