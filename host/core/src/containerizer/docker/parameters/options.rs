//! The options of `docker run`: those that are passed on, and those that are refused.
//!
//! `docs/docker-parameters.md` has the same tables; a test compares them.

/// What the value of an option is, and so how it is added to its field.
#[derive(Clone, Copy)]
pub(super) enum Kind {
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
    /// `name:address` or `name=address`.
    Host,
    /// `host[:container[:permissions]]`.
    Device,
    /// `name=soft[:hard]`.
    Ulimit,
    /// `path:rate`.
    Rate,
    /// `path:weight`.
    Weight,
    /// `[[address:]host ports:]container ports[/protocol]`.
    Publish,
    /// `ports[/protocol]`.
    Port,
    /// Fields with commas in between.
    Mount,
    /// `all`, a number, or fields with commas in between.
    Gpus,
    /// A line of a shell, or its absence.
    HealthCommand,
    NoHealthCheck,
    /// `path[:options]`.
    Tmpfs,
    /// A program, without arguments.
    Program,
}

use Kind::{
    Cpus, Device, Flag, Gpus, HealthCommand, Host, Integer, Item, Mount, NoHealthCheck, Pair, Port, Program,
    Publish, Rate, Size, Text, Time, Tmpfs, Ulimit, Variable, Weight,
};

/// Options, and their fields in the body of `/containers/create`. `*` stands for the network of the container.
pub(super) const PASSED_ON: &[(&str, &str, Kind)] = &[
    ("add-host", "HostConfig.ExtraHosts", Host),
    ("annotation", "HostConfig.Annotations", Pair),
    ("blkio-weight", "HostConfig.BlkioWeight", Integer),
    ("blkio-weight-device", "HostConfig.BlkioWeightDevice", Weight),
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
    ("dns-option", "HostConfig.DnsOptions", Item),
    ("dns-search", "HostConfig.DnsSearch", Item),
    ("domainname", "Domainname", Text),
    ("entrypoint", "Entrypoint", Program),
    ("env", "Env", Variable),
    ("expose", "ExposedPorts", Port),
    ("gpus", "HostConfig.DeviceRequests", Gpus),
    ("group-add", "HostConfig.GroupAdd", Item),
    ("health-cmd", "Healthcheck.Test", HealthCommand),
    ("health-interval", "Healthcheck.Interval", Time),
    ("health-retries", "Healthcheck.Retries", Integer),
    ("health-start-interval", "Healthcheck.StartInterval", Time),
    ("health-start-period", "Healthcheck.StartPeriod", Time),
    ("health-timeout", "Healthcheck.Timeout", Time),
    ("hostname", "Hostname", Text),
    ("init", "HostConfig.Init", Flag),
    ("ip", "NetworkingConfig.EndpointsConfig.*.IPAMConfig.IPv4Address", Text),
    ("ip6", "NetworkingConfig.EndpointsConfig.*.IPAMConfig.IPv6Address", Text),
    ("ipc", "HostConfig.IpcMode", Text),
    ("isolation", "HostConfig.Isolation", Text),
    ("label", "Labels", Pair),
    ("link", "HostConfig.Links", Item),
    ("link-local-ip", "NetworkingConfig.EndpointsConfig.*.IPAMConfig.LinkLocalIPs", Item),
    ("log-driver", "HostConfig.LogConfig.Type", Text),
    ("log-opt", "HostConfig.LogConfig.Config", Pair),
    ("mac-address", "MacAddress", Text),
    ("memory", "HostConfig.Memory", Size),
    ("memory-reservation", "HostConfig.MemoryReservation", Size),
    ("memory-swap", "HostConfig.MemorySwap", Size),
    ("memory-swappiness", "HostConfig.MemorySwappiness", Integer),
    ("mount", "HostConfig.Mounts", Mount),
    ("network-alias", "NetworkingConfig.EndpointsConfig.*.Aliases", Item),
    ("no-healthcheck", "Healthcheck.Test", NoHealthCheck),
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

/// Options that are no fields of the body alone, and where they are. The body's builder takes care of them.
#[cfg(test)]
const ELSEWHERE: &[(&str, &str)] = &[
    ("network", "`HostConfig.NetworkMode`, in place of `docker.network`"),
    ("platform", "the query `platform`"),
];

/// Options that are refused: why, and what to do.
pub(super) const REFUSED: &[(&[&str], &str)] = &[
    (&["name"], "the agent finds the container by its name; choose another container id"),
    (&["rm"], "the agent removes the container itself; leave it out, and see `docker.remove_delay`"),
    (&["restart"], "the agent reports one end of each container; leave it out, and launch another one then"),
    (&["detach", "d"], "the agent never waits with a launch for the end; leave it out"),
    (
        &["attach", "a", "detach-keys", "sig-proxy"],
        "there is no client at the container's streams; leave it out, and attach over the agent's API",
    ),
    (&["cidfile"], "no client writes a file; leave it out: the name of the container is `mesos-` and its id"),
    (
        &["interactive", "i"],
        "there is no client to read input from; set `attach.stdin` of `LAUNCH_CONTAINER`",
    ),
    (&["tty", "t"], "containers of an engine have no terminal here; leave it out, or use type `MESOS`"),
    (&["env-file"], "the agent reads no files of the host for it; give each variable with `env`"),
    (&["label-file"], "the agent reads no files of the host for it; give each label with `label`"),
    (&["pull", "force-pull"], "the agent pulls the image; set `docker.force_pull_image` instead"),
    (&["network", "net"], "the container has one network here; give it once, or use `docker.network`"),
    (&["kernel-memory"], "current kernels have no such limit; use `memory`, which includes it"),
    (&["cpu-count", "cpu-percent"], "it is for containers of Windows; use `cpus`"),
    (&["io-maxbandwidth"], "it is for containers of Windows; use `device-read-bps` and `device-write-bps`"),
    (&["io-maxiops"], "it is for containers of Windows; use `device-read-iops` and `device-write-iops`"),
    (
        &["disable-content-trust"],
        "only the client verifies signatures; leave it out, and name the image by its digest",
    ),
    (
        &["use-api-socket"],
        "it gives the client's credentials to the container; use a volume if it may control the engine",
    ),
    (&["quiet", "q"], "no client shows the progress of the pull; leave it out"),
    (&["help"], "it is for people at a terminal; leave it out"),
];

/// Other names of options.
pub(super) const SHORT: &[(&str, &str)] = &[
    ("c", "cpu-shares"),
    ("dns-opt", "dns-option"),
    ("e", "env"),
    ("h", "hostname"),
    ("l", "label"),
    ("m", "memory"),
    ("net-alias", "network-alias"),
    ("p", "publish"),
    ("P", "publish-all"),
    ("u", "user"),
    ("v", "volume"),
    ("w", "workdir"),
];

/// What the engine must have for an option.
#[derive(Debug, PartialEq)]
pub(in super::super) struct Since {
    /// The first version of the API with its field, which others ignore without a word.
    pub(in super::super) api: (u32, u32),
    /// The first engine with this version.
    pub(in super::super) engine: &'static str,
}

/// Options that not every supported version of the API has.
const SINCE: &[(&str, Since)] = &[
    ("annotation", Since { api: (1, 43), engine: "Docker 24.0" }),
    ("cgroupns", Since { api: (1, 41), engine: "Docker 20.10" }),
    ("health-start-interval", Since { api: (1, 44), engine: "Docker 25.0" }),
    ("platform", Since { api: (1, 41), engine: "Docker 20.10" }),
];

/// What the engine must have for an option, unless every one has it.
pub(in super::super) fn since(name: &str) -> Option<&'static Since> {
    SINCE.iter().find(|(option, _)| *option == name).map(|(_, since)| since)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::*;

    /// The options that the help of a client lists. No engine is asked: it hides those that are not for that.
    fn options_of(client: &Path) -> BTreeSet<String> {
        let help = Command::new(client)
            .args(["run", "--help"])
            .env("DOCKER_HOST", "unix:///nonexistent/engine.sock")
            .output()
            .expect("the client starts");
        assert!(help.status.success(), "{help:?}");
        let help = String::from_utf8(help.stdout).expect("text");
        let option = |line: &str| {
            let (before, rest) = line.split_once("--")?;
            // What is not at the beginning of a line is a part of a description.
            let is_short = |text: &str| text.len() == 3 && text.starts_with('-') && text.ends_with(',');
            let before = before.trim();
            (before.is_empty() || is_short(before)).then_some(())?;
            Some(rest.split(' ').next()?.to_owned())
        };
        help.lines().filter_map(option).collect()
    }

    fn clients() -> Vec<PathBuf> {
        let directories = std::env::var_os("PATH").unwrap_or_default();
        let found =
            std::env::split_paths(&directories).filter_map(|it| it.join("docker").canonicalize().ok());
        found.collect::<BTreeSet<_>>().into_iter().collect()
    }

    #[test]
    fn every_option_of_the_installed_clients_is_passed_on_or_refused() {
        let clients = clients();
        if clients.is_empty() {
            assert!(std::env::var_os("CI").is_none(), "the client is missing: install the package docker.io");
            return eprintln!("SKIPPED options of a client: there is none (package docker.io)");
        }
        for client in clients {
            let options = options_of(&client);
            assert!(options.len() > 90, "{}: {options:?}", client.display());
            let is_known = |name: &&String| {
                PASSED_ON.iter().any(|(option, ..)| option == name)
                    || ELSEWHERE.iter().any(|(option, _)| option == name)
                    || REFUSED.iter().any(|(options, _)| options.contains(&name.as_str()))
            };
            let unknown: Vec<_> = options.iter().filter(|name| !is_known(name)).collect();
            assert!(unknown.is_empty(), "{} has others: {unknown:?}", client.display());
        }
    }

    #[test]
    fn every_option_is_named_once_and_a_refusal_tells_why_and_what_to_do() {
        for (index, (name, path, _)) in PASSED_ON.iter().enumerate() {
            assert!(PASSED_ON[..index].iter().all(|(other, ..)| other < name), "{name} is not in order");
            assert!(!REFUSED.iter().any(|(names, _)| names.contains(name)), "{name}");
            assert!(!path.is_empty());
        }
        let is_passed_on = |name: &str| PASSED_ON.iter().any(|(option, ..)| *option == name);
        assert!(SHORT.iter().all(|(short, long)| is_passed_on(long) && !is_passed_on(short)));
        let is_elsewhere = |name: &str| ELSEWHERE.iter().any(|(option, _)| *option == name);
        assert!(SINCE.iter().all(|(name, _)| is_passed_on(name) || is_elsewhere(name)));
        for (names, reason) in REFUSED {
            assert!(reason.split("; ").count() == 2, "{names:?}: {reason}");
        }
    }

    /// The tables of the page.
    fn tables() -> String {
        let mut passed_on: Vec<(&str, String)> =
            PASSED_ON.iter().map(|(name, path, _)| (*name, format!("`{path}`"))).collect();
        passed_on.extend(ELSEWHERE.iter().map(|(name, place)| (*name, (*place).to_owned())));
        passed_on.sort();
        let mut lines = vec!["| Option | Field | Since |".to_owned(), "|---|---|---|".to_owned()];
        lines.extend(passed_on.into_iter().map(|(name, place)| {
            let other = SHORT.iter().filter(|(_, long)| *long == name).map(|(short, _)| *short);
            let names: Vec<_> = [name].into_iter().chain(other).map(|name| format!("`{name}`")).collect();
            let since = since(name).map(|since| {
                let (major, minor) = since.api;
                format!("{major}.{minor}, {} ", since.engine)
            });
            format!("| {} | {place} | {}|", names.join(", "), since.unwrap_or_default())
        }));
        lines.extend(["", "| Option | Why it is refused, and what to do |", "|---|---|"].map(str::to_owned));
        lines.extend(REFUSED.iter().map(|(names, reason)| {
            let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
            let mut reason = (*reason).to_owned();
            reason[..1].make_ascii_uppercase();
            format!("| {} | {reason} |", names.join(", "))
        }));
        lines.join("\n") + "\n"
    }

    #[test]
    fn the_page_has_the_same_tables() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/docker-parameters.md");
        let shown = std::fs::read_to_string(&page).expect("the page");
        let start = shown.find("| Option |").expect("a table");
        let expected = tables();
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&page, shown[..start].to_owned() + &expected).expect("the page is written");
            return;
        }
        assert_eq!(shown[start..], expected, "{} has others; BLESS=1 updates them", page.display());
    }
}
