//! Options of `docker run` and `podman run` that this program does not have: what to type or to configure instead.

use std::ffi::OsString;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::short_form::position_of_run;
use crate::cli::failure::Failure;
use crate::cli::unknown::USAGE;

const ALWAYS_SHOWN: &str =
    "what the command writes is shown; `run -d` does not show it, and `cofferdam attach` attaches later";
const CAPABILITIES: &str = "the capabilities of containers are configured for the plugin `linux/capabilities`; in a request of the API, \
                            `effective_capabilities` selects some of them";
const CGROUP: &str = "the cgroup is chosen by the agent (`cgroup_root` of its configuration)";
const DEVICES: &str =
    "the devices of containers are configured for the plugins `linux/devices` and `cgroups/devices`";
const DNS: &str = "names are resolved as configured for the network of the plugin `network/cni` (`dns`)";
const GROUPS: &str = "a process has the groups that its user has in the container's `/etc/group`";
const HEALTH: &str = "checks of health are part of tasks (`cofferdam task run`)";
const ID_FILE: &str = "`run -d` prints the id; `--name` chooses it";
const IO: &str = "block I/O is counted by the plugin `cgroups/blkio`, and not limited";
const LOG: &str = "the logger of containers is configured for the agent (`[logger]`)";
const MEMORY: &str = "`--memory` reserves memory and `--memory-limit` limits it; swap follows the configuration of the plugin `cgroups/mem`";
const NETWORK: &str = "`--network NAME,ip=ADDRESS` chooses addresses; all else is configured for the network of the plugin `network/cni`";
const PRIVILEGES: &str = "privileges are those that the agent's plugins leave: `--isolation mesos` (without a daemon; in its configuration \
                          otherwise) leaves root those of the host, for containers that are trusted";
const PORTS: &str = "ports are published one by one: `--network NAME --publish HOST:CONTAINER`";
const PULL: &str = "the platform and the signatures of images are a matter of the store: `cofferdam image pull --platform …`";
const SHARES: &str = "`--cpus` is the share of the CPUs in a contest, and `--cpu-limit` the quota";
const STOP: &str = "the signal is that of the image, and `cofferdam stop --time` says how long it waits";
const USERS: &str = "containers have the users of the host";

/// What to type for an option, in the order of their names.
const ELSEWHERE: &[(&str, &str)] = &[
    ("--add-host", DNS),
    ("--annotation", "labels are for plugins as well: `--label KEY=VALUE`"),
    ("--attach", ALWAYS_SHOWN),
    ("--blkio-weight", IO),
    ("--blkio-weight-device", IO),
    ("--cap-add", CAPABILITIES),
    ("--cap-drop", CAPABILITIES),
    ("--cgroup-parent", CGROUP),
    ("--cgroupns", "the plugin `namespaces/cgroup` gives a container a cgroup namespace of its own"),
    ("--cidfile", ID_FILE),
    ("--cpu-period", SHARES),
    ("--cpu-quota", SHARES),
    ("--cpu-rt-period", SHARES),
    ("--cpu-rt-runtime", SHARES),
    ("--cpu-shares", SHARES),
    ("--cpuset-cpus", "CPUs are assigned by the plugin `cgroups/cpuset`"),
    ("--cpuset-mems", "memory nodes are assigned by the plugin `cgroups/cpuset`"),
    ("--device", DEVICES),
    ("--device-cgroup-rule", DEVICES),
    ("--device-read-bps", IO),
    ("--device-read-iops", IO),
    ("--device-write-bps", IO),
    ("--device-write-iops", IO),
    ("--disable-content-trust", PULL),
    ("--dns", DNS),
    ("--dns-option", DNS),
    ("--dns-search", DNS),
    ("--domainname", "`--hostname NAME` sets the host name only"),
    ("--expose", PORTS),
    ("--gpus", DEVICES),
    ("--group-add", GROUPS),
    ("--health-cmd", HEALTH),
    ("--health-interval", HEALTH),
    ("--health-retries", HEALTH),
    ("--health-start-interval", HEALTH),
    ("--health-start-period", HEALTH),
    ("--health-timeout", HEALTH),
    ("--ip", NETWORK),
    ("--ip6", NETWORK),
    ("--label-file", "labels are given one by one: `--label KEY=VALUE`"),
    ("--link", NETWORK),
    ("--link-local-ip", NETWORK),
    ("--log-driver", LOG),
    ("--log-opt", LOG),
    ("--mac-address", NETWORK),
    ("--memory-reservation", MEMORY),
    ("--memory-swap", MEMORY),
    ("--memory-swappiness", MEMORY),
    ("--network-alias", NETWORK),
    ("--no-healthcheck", HEALTH),
    (
        "--oom-kill-disable",
        "a container that exceeds its memory limit is killed; `--memory-limit none` lifts the limit",
    ),
    ("--oom-score-adj", "all containers have the OOM score that the agent gives them"),
    ("--pids-limit", "the number of processes is limited by the configuration of the plugin `cgroups/pids`"),
    ("--platform", PULL),
    ("--pod", "a container is nested in another one: `--parent ID`"),
    ("--privileged", PRIVILEGES),
    ("--publish-all", PORTS),
    ("--quiet", "progress is shown on a terminal only; `2>/dev/null` hides it"),
    ("--replace", "`cofferdam rm --force NAME` removes the container that has the name"),
    (
        "--restart",
        "a container runs once: leave the repetition to what calls `run`, such as a unit of systemd",
    ),
    ("--runtime", "containers are made by the agent itself and its plugins, without an OCI runtime"),
    ("--sig-proxy", "signals are forwarded to the command; after `attach`, they end `attach` only"),
    ("--stop-signal", STOP),
    ("--stop-timeout", STOP),
    ("--storage-opt", "the space of containers is limited by the plugins `disk/xfs` and `disk/du`"),
    ("--sysctl", "settings of the kernel cannot be changed for a container"),
    ("--systemd", "the command is what runs: without services, unless it starts them"),
    (
        "--tmpfs",
        "what a container writes into its root file system ends with it; `--volume` mounts directories of the host",
    ),
    ("--use-api-socket", "the API of the agent is not passed on to containers"),
    ("--userns", USERS),
    (
        "--uts",
        "the plugin `namespaces/uts` gives a container a host name of its own; `--hostname NAME` chooses it",
    ),
    ("--volumes-from", "volumes are given one by one: `--volume`, `--mount`"),
    ("-P", PORTS),
    ("-a", ALWAYS_SHOWN),
    ("-c", SHARES),
    ("-q", "progress is shown on a terminal only; `2>/dev/null` hides it"),
];

/// The failure for an option of `run` that other programs have, with what to type instead.
pub(in crate::cli) fn explain(program: &Command, words: &[OsString], error: &clap::Error) -> Option<Failure> {
    position_of_run(program, words)?;
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else { return None };
    let name = word.split('=').next()?;
    let (option, advice) = ELSEWHERE.iter().find(|(option, _)| *option == name)?;
    Some(Failure::message(format!("there is no option `{option}`\n{advice}")).with_status(USAGE))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Arguments;
    use crate::cli::run::expand;

    /// All of `docker run` 28, but for those of Windows.
    const DOCKER: &str = "\
        add-host annotation attach blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent cgroupns cidfile cpu-period \
        cpu-quota cpu-rt-period cpu-rt-runtime cpu-shares cpus cpuset-cpus cpuset-mems detach detach-keys device \
        device-cgroup-rule device-read-bps device-read-iops device-write-bps device-write-iops disable-content-trust dns \
        dns-option dns-search domainname entrypoint env env-file expose gpus group-add health-cmd health-interval \
        health-retries health-start-interval health-start-period health-timeout help hostname init interactive ip ip6 ipc \
        isolation label label-file link link-local-ip log-driver log-opt mac-address memory memory-reservation memory-swap \
        memory-swappiness mount name network network-alias no-healthcheck oom-kill-disable oom-score-adj pid pids-limit \
        platform privileged publish publish-all pull quiet read-only restart rm runtime security-opt shm-size sig-proxy \
        stop-signal stop-timeout storage-opt sysctl tmpfs tty ulimit use-api-socket user userns uts volume volume-driver \
        volumes-from workdir";

    const SHORT: &str = "acdehilmpPqtuvw";

    /// The error of a command line, and its explanation.
    fn refused(arguments: &[&str]) -> Option<(clap::Error, Option<Failure>)> {
        let program = Arguments::command();
        let words =
            ["c", "run"].iter().chain(arguments).chain(&["web:1", "ls"]).map(OsString::from).collect();
        let words = expand(&program, words);
        let error = program.clone().try_get_matches_from(&words).err()?;
        let explained = explain(&program, &words, &error);
        Some((error, explained))
    }

    fn explained(arguments: &[&str]) -> Option<String> {
        Some(refused(arguments)?.1?.error().to_string())
    }

    #[test]
    fn every_option_of_docker_is_known_or_explained() {
        let program = Arguments::command();
        let run = program.find_subcommand("run").unwrap();
        let own = |option: &str| {
            run.get_arguments().any(|argument| {
                argument.get_long().is_some_and(|long| option == format!("--{long}"))
                    || argument.get_short().is_some_and(|short| option == format!("-{short}"))
            })
        };
        let long = DOCKER.split_whitespace().map(|name| format!("--{name}"));
        for option in long.chain(SHORT.chars().map(|short| format!("-{short}"))) {
            assert!(own(&option) != explained(&[&option]).is_some(), "{option}");
        }
        for (option, _) in ELSEWHERE {
            assert!(!own(option), "{option}");
        }
        assert!(ELSEWHERE.is_sorted());
    }

    #[test]
    fn the_option_is_explained_and_not_its_value() {
        for arguments in
            [&["--cap-add", "NET_ADMIN"][..], &["--cap-add=NET_ADMIN"], &["-it", "--cap-add", "X"]]
        {
            let failure = explained(arguments).unwrap();
            assert!(failure.starts_with("there is no option `--cap-add`\n"), "{failure}");
            assert!(failure.contains("`linux/capabilities`"), "{failure}");
        }
        let (error, explained) = refused(&["--frob"]).unwrap();
        assert!(error.kind() == ErrorKind::UnknownArgument && explained.is_none());
        // Of the command in the container.
        assert!(refused(&["web:1", "ls", "--privileged"]).is_none());
    }

    #[test]
    fn the_letter_of_help_is_that_of_the_host_name_if_a_name_follows() {
        assert!(refused(&["-h", "web"]).is_none());
        let program = Arguments::command();
        for words in [&["c", "run", "-h"][..], &["c", "run", "--help"], &["c", "run", "-it", "-h"]] {
            let words = expand(&program, words.iter().map(OsString::from).collect());
            let error = program.clone().try_get_matches_from(words).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DisplayHelp);
        }
    }
}
