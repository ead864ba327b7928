//! `docker.parameters`: options of `docker run`, as fields of the Engine API.
//!
//! An option that is not in the table is refused: the API has no place for it, or it would take the container away from the
//! agent.

mod mount;
mod options;
mod ports;

use serde_json::{Map, Value as Json, json};

pub(super) use options::{Since, since};

use Kind::{
    Cpus, Device, Flag, Gpus, HealthCommand, Host, Integer, Item, Mount, NoHealthCheck, Pair, Port, Program,
    Publish, Rate, Size, Text, Time, Tmpfs, Ulimit, Variable, Weight,
};
use options::{Kind, PASSED_ON, REFUSED, SHORT};

use crate::containerizer::invalid::{Problem, problem};

/// Stands for the network of the container in a path.
const NETWORK: &str = "*";

/// Adds an option to the body of `/containers/create`.
pub(super) fn apply(spec: &mut Json, key: &str, value: &str) -> Result<(), Problem> {
    let name = SHORT.iter().find(|(short, _)| *short == key).map_or(key, |(_, long)| long);
    let field = || format!("container.docker.parameters.{key}");
    let Some((_, path, kind)) = PASSED_ON.iter().find(|(option, ..)| *option == name) else {
        let refused = REFUSED.iter().find(|(names, _)| names.contains(&name));
        let reason = refused.map_or_else(
            || {
                let close =
                    PASSED_ON.iter().map(|(option, ..)| *option).find(|option| is_close(option, name));
                let hint = close.map(|option| format!("; did you mean `{option}`?")).unwrap_or_default();
                format!("it is not an option of `docker run` that this agent can pass on{hint}")
            },
            |(_, reason)| (*reason).to_owned(),
        );
        return problem(field(), reason);
    };
    if (name, value) == ("security-opt", "systempaths=unconfined") {
        // The client turns it into these, which are not those of the engine then.
        for path in ["HostConfig.MaskedPaths", "HostConfig.ReadonlyPaths"] {
            *place(spec, path) = json!([]);
        }
        return Ok(());
    }
    let profile = value.strip_prefix("seccomp").filter(|_| name == "security-opt");
    let profile = profile.and_then(|rest| rest.strip_prefix(['=', ':']));
    let is_content = |profile: &str| ["unconfined", "builtin"].contains(&profile) || profile.starts_with('{');
    if profile.is_some_and(|profile| !is_content(profile)) {
        return problem(
            field(),
            "a file with a seccomp profile is one of the client; give its content, or `seccomp=unconfined`",
        );
    }
    // As in Docker, a volume without a source is an anonymous one.
    let path = if name == "volume" && !value.contains(':') { "Volumes" } else { path };
    let added = match (name, path) {
        ("volume", "Volumes") => {
            members(place(spec, path)).insert(value.to_owned(), json!({}));
            Ok(())
        }
        _ => add(place(spec, path), *kind, value),
    };
    added.map_err(|expected| (field(), format!("`{value}` is not {expected}")))?;
    if let Publish = kind {
        // What is published is exposed.
        let published = ports::publish(value).unwrap_or_default();
        let exposed = members(place(spec, "ExposedPorts"));
        exposed.extend(published.into_iter().map(|published| (published.container, json!({}))));
    }
    Ok(())
}

/// Gives what options say about the network of the container the name of that. In one that users have created, links are part of it.
pub(super) fn name_network(spec: &mut Json, network: &str, of_users: bool) {
    let links = spec["HostConfig"]["Links"].clone();
    if of_users && links.is_array() {
        *place(spec, "NetworkingConfig.EndpointsConfig.*.Links") = links;
    }
    if let Some(endpoints) = spec["NetworkingConfig"]["EndpointsConfig"].as_object_mut()
        && let Some(endpoint) = endpoints.remove(NETWORK)
    {
        endpoints.insert(network.to_owned(), endpoint);
    }
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
        Host => items(place).push(host(value).ok_or("a host such as `name:192.0.2.1`")?.into()),
        Device => items(place).push(device(value).ok_or("a device such as `/dev/fuse:/dev/fuse:rwm`")?),
        Ulimit => items(place).push(ulimit(value).ok_or("a limit such as `nofile=1024:2048`")?),
        Rate => {
            let (path, rate) = value.rsplit_once(':').ok_or("a device and a rate such as `/dev/sda:1mb`")?;
            let rate = size(rate).ok_or("a device and a rate such as `/dev/sda:1mb`")?;
            items(place).push(json!({ "Path": path, "Rate": rate }));
        }
        Weight => {
            let expected = "a device and a weight such as `/dev/sda:200`";
            let (path, weight) = value.rsplit_once(':').ok_or(expected)?;
            let weight = weight.parse::<u16>().map_err(|_| expected)?;
            items(place).push(json!({ "Path": path, "Weight": weight }));
        }
        Publish => {
            let published = ports::publish(value).ok_or("a port such as `8080:80/tcp`")?;
            for ports::Published { container, address, host } in published {
                let bindings = members(place).entry(container).or_insert_with(|| json!([]));
                items(bindings).push(json!({ "HostIp": address, "HostPort": host }));
            }
        }
        Port => {
            let exposed = ports::expose(value).ok_or("a port such as `80/tcp`")?;
            members(place).extend(exposed.into_iter().map(|port| (port, json!({}))));
        }
        Mount => items(place)
            .push(mount::mount(value).ok_or("a mount such as `type=bind,source=/a,target=/b,readonly`")?),
        Gpus => items(place).push(mount::gpus(value).ok_or("`all`, a number, or `device=0`")?),
        HealthCommand => *place = json!(["CMD-SHELL", value]),
        NoHealthCheck => match value {
            "" | "true" | "1" => *place = json!(["NONE"]),
            "false" | "0" => {}
            _ => return Err("`true` or `false`"),
        },
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

/// `name:address`. Newer clients take `name=address` as well, and brackets around the address.
fn host(text: &str) -> Option<String> {
    let (name, address) = text.split_once('=').or_else(|| text.split_once(':'))?;
    let address = address.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(address);
    (!name.is_empty() && !address.is_empty()).then(|| format!("{name}:{address}"))
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
    fn options_with_a_place_of_their_own_get_there() {
        let mut spec = applied(&[
            ("health-cmd", "test -e /ok"),
            ("mount", "type=tmpfs,target=/run"),
            ("gpus", "all"),
            ("blkio-weight-device", "/dev/sda:200"),
            ("volume", "/anonymous"),
            ("v", "/srv:/data:ro"),
            ("ip", "10.1.0.9"),
            ("ip6", "fd00::9"),
            ("network-alias", "db"),
            ("net-alias", "sql"),
            ("publish", "8000-8001:80-81"),
            ("expose", "90-91/udp"),
            ("security-opt", "seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}"),
            ("security-opt", "seccomp=builtin"),
            ("security-opt", "systempaths=unconfined"),
            ("add-host", "one:192.0.2.1"),
            ("add-host", "two=[2001:db8::1]"),
            ("link", "server:db"),
            ("health-start-interval", "2s"),
            ("dns-opt", "ndots:3"),
        ])
        .unwrap();
        name_network(&mut spec, "backbone", true);
        let host = &spec["HostConfig"];
        assert_eq!(spec["Healthcheck"]["Test"], json!(["CMD-SHELL", "test -e /ok"]));
        assert_eq!(host["Mounts"], json!([{ "Type": "tmpfs", "Target": "/run" }]));
        assert_eq!(host["DeviceRequests"][0]["Count"], -1);
        assert_eq!(host["BlkioWeightDevice"], json!([{ "Path": "/dev/sda", "Weight": 200 }]));
        assert_eq!(spec["Volumes"], json!({ "/anonymous": {} }));
        assert_eq!(host["Binds"], json!(["/srv:/data:ro"]));
        let endpoint = &spec["NetworkingConfig"]["EndpointsConfig"]["backbone"];
        assert_eq!(endpoint["IPAMConfig"], json!({ "IPv4Address": "10.1.0.9", "IPv6Address": "fd00::9" }));
        assert_eq!(endpoint["Aliases"], json!(["db", "sql"]));
        assert_eq!(host["PortBindings"]["81/tcp"][0]["HostPort"], "8001");
        let exposed: Vec<_> = spec["ExposedPorts"].as_object().unwrap().keys().collect();
        assert_eq!(exposed, ["80/tcp", "81/tcp", "90/udp", "91/udp"]);
        assert_eq!(endpoint["Links"], json!(["server:db"]));
        assert_eq!(host["ExtraHosts"], json!(["one:192.0.2.1", "two:2001:db8::1"]));
        assert_eq!((&host["MaskedPaths"], &host["ReadonlyPaths"]), (&json!([]), &json!([])));
        assert_eq!(
            (&host["SecurityOpt"][1], &host["SecurityOpt"][2]),
            (&json!("seccomp=builtin"), &Json::Null)
        );
        assert_eq!(host["DnsOptions"], json!(["ndots:3"]));
        assert_eq!(spec["Healthcheck"]["StartInterval"], 2_000_000_000_i64);
        assert!(host["SecurityOpt"][0].as_str().unwrap().starts_with("seccomp={"));
        assert_eq!(applied(&[("no-healthcheck", "")]).unwrap()["Healthcheck"]["Test"], json!(["NONE"]));
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
            ("security-opt", "seccomp=/etc/profile.json", "give its content, or `seccomp=unconfined`"),
            ("security-opt", "seccomp:/etc/profile.json", "give its content, or `seccomp=unconfined`"),
            ("add-host", "name", "is not a host"),
            ("use-api-socket", "true", "credentials"),
            ("mount", "source=/a", "is not a mount"),
            ("blkio-weight-device", "/dev/sda", "is not a device and a weight"),
            ("gpus", "many", "is not `all`"),
            ("cpu-count", "1", "for containers of Windows"),
        ] {
            let (field, reason) = applied(&[(key, value)]).unwrap_err();
            assert_eq!(field, format!("container.docker.parameters.{key}"));
            assert!(reason.contains(expected), "{key}: {reason}");
        }
    }
}
