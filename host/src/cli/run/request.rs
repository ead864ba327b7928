//! The launch request of `cofferdam run`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::short_form;
use super::volume::{VolumeFlags, absolute, absolute_image};
use crate::cli::container_id;
use crate::cli::failure::Failure;
use crate::cli::process_flags::{ProcessFlags, executed, random_name};
use crate::cli::resources::{self, ResourceFlags};
use cofferdam_core::model::{
    Command, ContainerId, IpcMode, NetworkRequest, PortMapping, Request, Resources, Rlimit, SeccompRequest,
    Uri,
};

/// The value of `--network` for the network of the host, as in docker.
const HOST_NETWORK: &str = "host";

/// Names of networks that docker has and that are not there unless somebody has configured them.
const DOCKER_NETWORKS: [&str; 2] = ["bridge", "none"];

/// Flags that describe the container.
#[derive(Debug, clap::Args)]
pub(super) struct Wanted {
    /// Id of the container [default: random]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Nest it in this container
    #[arg(long, value_name = "ID", value_parser = container_id)]
    parent: Option<ContainerId>,
    /// Directory with its root file system, which is not modified
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// Image of its root file system, by name, id or path (`/…` or `./…`); without CMD, the command is that of the image
    #[arg(long, value_name = "IMAGE", conflicts_with = "rootfs")]
    image: Option<String>,
    /// The image of `run IMAGE [CMD…]`
    #[arg(long = short_form::OPTION, value_name = "IMAGE", hide = true)]
    image_word: Option<String>,
    /// Program to run instead of the entry point of the image, with CMD as its arguments; empty for CMD alone
    #[arg(long, value_name = "PROGRAM", conflicts_with = "shell")]
    entrypoint: Option<String>,
    /// Mount the root file system of an image or of --rootfs read-only
    #[arg(long)]
    read_only: bool,
    #[command(flatten)]
    process: ProcessFlags,
    /// Label, for plugins and people
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// File to fetch into the sandbox: `URL[,sha256=HEX][,name=NAME][,executable][,no-extract][,cache]`
    #[arg(long, value_name = "URI", value_parser = uri)]
    uri: Vec<Uri>,
    /// Host name
    #[arg(long, short = 'h', value_name = "NAME")]
    hostname: Option<String>,
    /// Network to connect it to, with addresses of its own, or `host` [default: the host's, or its parent's]
    #[arg(long, alias = "net", value_name = "NAME[,ip=ADDRESS]", value_parser = network)]
    network: Vec<NetworkRequest>,
    /// Port of the host that is mapped into it, in its first network
    #[arg(long, short, value_name = "HOST:CONTAINER[/udp]", value_parser = port)]
    publish: Vec<PortMapping>,
    #[command(flatten)]
    volumes: VolumeFlags,
    /// Limit of resources of its processes, such as `nofile=1024:4096`; -1 for no limit
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = rlimit)]
    ulimit: Vec<(String, Rlimit)>,
    /// IPC namespace and `/dev/shm`: of its own, or those of the host or its parent [default: by the plugins]
    #[arg(long, value_enum, value_name = "MODE")]
    ipc: Option<Ipc>,
    /// Size of a /dev/shm of its own, such as `64m`
    #[arg(long, value_name = "SIZE", value_parser = resources::bytes)]
    shm_size: Option<u64>,
    /// Filter for system calls: `seccomp=unconfined` for none, or `seccomp=PROFILE`
    #[arg(long, value_name = "OPTION", value_parser = seccomp)]
    security_opt: Option<SeccompRequest>,
    /// Share the pid namespace of its parent, or of the host
    #[arg(long)]
    share_pid: bool,
    /// The same, as docker has it
    #[arg(long, value_enum, value_name = "MODE", hide = true, conflicts_with_all = ["share_pid", "parent"])]
    pid: Option<Pid>,
    /// Have an init as process 1, which is the default
    #[arg(long, hide = true, conflicts_with = "no_init")]
    init: bool,
    /// Run the command as process 1 of its pid namespace, instead of an init that reaps orphans
    #[arg(long)]
    no_init: bool,
    /// Do not share the cgroups of its parent
    #[arg(long, requires = "parent")]
    own_cgroups: bool,
    /// Shell command for `/bin/sh -c`, instead of CMD
    #[arg(long, value_name = "LINE", conflicts_with = "command")]
    shell: Option<String>,
    /// The command and its arguments, also instead of those of an image
    #[arg(last = true, value_name = "CMD", required_unless_present_any = ["shell", "image", "image_word", "entrypoint"])]
    command: Vec<String>,
}

/// Whose IPC namespace a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Ipc {
    /// Its own
    Private,
    /// That of the host or of its parent
    Host,
}

/// Whose pid namespace a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Pid {
    /// That of the host
    Host,
}

impl Wanted {
    /// Whether it is to be connected to a network that docker has.
    pub(super) fn is_on_network_of_docker(&self) -> bool {
        let mut names = self.network.iter().filter_map(|network| network.name.as_deref());
        names.any(|name| DOCKER_NETWORKS.contains(&name))
    }

    /// The launch request.
    ///
    /// `is_in_store` tells whether a store has an image, for a word that may be something else.
    pub(super) fn request(
        self,
        resources: &ResourceFlags,
        is_in_store: impl Fn(&str) -> bool,
    ) -> Result<Request, Failure> {
        if let Some(word) = &self.image_word {
            let given = [
                ("--image", self.image.is_some()),
                ("--rootfs", self.rootfs.is_some()),
                ("--shell", self.shell.is_some()),
            ];
            if let Some((flag, _)) = given.into_iter().find(|(_, is_given)| *is_given) {
                return Err(Failure::message(format!(
                    "`{word}` is taken for an image, but {flag} is given; a command comes after `--`, as in `-- {word}`"
                )));
            }
            short_form::check(word, || is_in_store(word)).map_err(Failure::message)?;
        }
        let name = self.name.clone().unwrap_or_else(|| random_name("run"));
        let id = match (&self.parent, name.rsplit_once('.')) {
            (Some(parent), _) => parent.child(&name).map_err(Failure::of)?,
            (None, None) => ContainerId::parse(&name).map_err(Failure::of)?,
            (None, Some((parent, own))) => {
                return Err(Failure::message(format!(
                    "`{name}` is not a valid name; to nest the container, use `--parent {parent} --name {own}`"
                )));
            }
        };
        let keeps_entrypoint = self.image_word.is_some();
        let image = self.image.as_deref().map(absolute_image).transpose()?.or(self.image_word);
        if self.entrypoint.is_some() && image.is_none() {
            return Err(Failure::message(
                "--entrypoint replaces that of an image, but there is none; add --image",
            ));
        }
        let own = || Command { shell: false, ..Command::default() };
        let command = match (self.shell, self.entrypoint.as_deref()) {
            (Some(line), _) => Command { shell: true, value: Some(line), ..Command::default() },
            (None, Some("")) => executed(self.command),
            (None, Some(program)) => {
                executed(std::iter::once(program.to_owned()).chain(self.command).collect())
            }
            (None, None) if image.is_some() && self.command.is_empty() => own(),
            (None, None) if keeps_entrypoint => {
                Command { arguments: self.command, replaces_cmd: true, ..own() }
            }
            (None, None) => executed(self.command),
        };
        let command = self.process.apply(command);
        let mut request = Request::new(id, command);
        request.uris = self.uri;
        request.rootfs = self.rootfs.map(|rootfs| absolute(&rootfs)).transpose()?;
        request.image = image;
        request.resources = resources.apply(Resources::default())?;
        request.labels = self.label.into_iter().collect::<BTreeMap<_, _>>();
        request.volumes = self.volumes.volumes()?;
        request.networks = networks(self.network, self.publish, self.parent.is_some())?;
        request.rlimits = self.ulimit.into_iter().collect();
        request.linux.hostname = self.hostname;
        request.linux.shm_size = self.shm_size;
        request.linux.ipc_mode = match (self.ipc, self.shm_size) {
            (Some(Ipc::Host), Some(_)) => {
                return Err(Failure::message(
                    "--shm-size is for a /dev/shm of its own, which it does not have with `--ipc host`; leave one of them out",
                ));
            }
            (Some(Ipc::Host), None) => Some(IpcMode::ShareParent),
            (Some(Ipc::Private), _) | (None, Some(_)) => Some(IpcMode::Private),
            (None, None) => None,
        };
        request.linux.seccomp = self.security_opt;
        request.linux.share_pid_namespace = self.share_pid || self.pid == Some(Pid::Host);
        request.linux.without_init = self.no_init;
        request.linux.read_only_root = self.read_only;
        request.linux.share_cgroups = self.parent.is_some() && !self.own_cgroups;
        request.check().map_err(Failure::of)?;
        Ok(request)
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        Err("the key of the label is missing".to_owned())
    } else {
        Ok((key.to_owned(), value.to_owned()))
    }
}

fn network(text: &str) -> Result<NetworkRequest, String> {
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default();
    if name.is_empty() {
        return Err("the name of the network is missing".to_owned());
    }
    let address = |part: &str| match part.split_once('=') {
        Some(("ip", address)) if !address.is_empty() => Ok(address.to_owned()),
        _ => Err(format!("`{part}` is not an option; expected `ip=…`")),
    };
    let addresses = parts.map(address).collect::<Result<_, _>>()?;
    Ok(NetworkRequest { name: Some(name.to_owned()), addresses, ..NetworkRequest::default() })
}

/// The networks of a request. That of the host has no name.
fn networks(
    mut wanted: Vec<NetworkRequest>,
    ports: Vec<PortMapping>,
    is_nested: bool,
) -> Result<Vec<NetworkRequest>, Failure> {
    let is_host = |network: &NetworkRequest| network.name.as_deref() == Some(HOST_NETWORK);
    if wanted.iter().any(is_host) {
        if wanted.len() > 1 || wanted.iter().any(|network| !network.addresses.is_empty()) {
            return Err(Failure::message(
                "`--network host` is the network of the host, which has its own addresses, and excludes other networks; leave \
                 one of them out",
            ));
        }
        if !ports.is_empty() {
            return Err(Failure::message(
                "--publish maps ports into a network of the container's own; with `--network host`, its ports are those of the \
                 host; leave --publish out",
            ));
        }
        // Without a request, a nested container has the network of its parent.
        return Ok(if is_nested { vec![NetworkRequest::default()] } else { Vec::new() });
    }
    match wanted.first_mut() {
        Some(first) => first.port_mappings = ports,
        None if ports.is_empty() => {}
        None => {
            return Err(Failure::message(
                "--publish maps ports into a network of the container's own, which `--network NAME` gives to it; without, its ports \
                 are those of the host: leave --publish out",
            ));
        }
    }
    Ok(wanted)
}

fn rlimit(text: &str) -> Result<(String, Rlimit), String> {
    let invalid = || format!("`{text}` is not a limit such as `nofile=1024:4096`");
    let (name, limits) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(invalid)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    // The largest number is that of setrlimit(2) for no limit.
    let number = |text: &str| if text == "-1" { Some(u64::MAX) } else { text.parse().ok() };
    let (soft, hard) = number(soft).zip(number(hard)).ok_or_else(invalid)?;
    if soft > hard {
        return Err(format!("the soft limit of `{text}` is above the hard one"));
    }
    let rlimit = match (soft, hard) {
        (u64::MAX, u64::MAX) => Rlimit { soft: None, hard: None },
        limits => Rlimit { soft: Some(limits.0), hard: Some(limits.1) },
    };
    Ok((name.to_ascii_uppercase(), rlimit))
}

fn seccomp(text: &str) -> Result<SeccompRequest, String> {
    match text.split_once(['=', ':']) {
        Some(("seccomp", "unconfined")) => Ok(SeccompRequest { profile: None, unconfined: true }),
        Some(("seccomp", profile)) if !profile.is_empty() => {
            Ok(SeccompRequest { profile: Some(profile.to_owned()), unconfined: false })
        }
        _ => Err(format!(
            "`{text}` is not supported; expected `seccomp=unconfined` or `seccomp=PROFILE`. `no-new-privileges` is the plugin \
             `linux/nnp` of the agent's configuration"
        )),
    }
}

fn port(text: &str) -> Result<PortMapping, String> {
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, protocol @ ("tcp" | "udp"))) => (ports, Some(protocol.to_owned())),
        Some((_, other)) => return Err(format!("`{other}` is not a protocol; expected `tcp` or `udp`")),
        None => (text, None),
    };
    let number = |text: &str| text.parse::<u16>().ok().filter(|&number| number > 0);
    match ports.split_once(':').map(|(host, container)| (number(host), number(container))) {
        Some((Some(host_port), Some(container_port))) => {
            Ok(PortMapping { host_port, container_port, protocol })
        }
        _ => Err("expected two ports from 1 to 65535, such as `8080:80`".to_owned()),
    }
}

fn uri(text: &str) -> Result<Uri, String> {
    let mut parts = text.split(',');
    let value = parts.next().unwrap_or_default().to_owned();
    let mut uri =
        Uri { value, executable: false, extract: true, cache: false, output_file: None, sha256: None };
    for part in parts {
        match part.split_once('=') {
            Some(("sha256", hash)) => uri.sha256 = Some(hash.to_owned()),
            Some(("name", name)) => uri.output_file = Some(name.to_owned()),
            None if part == "executable" => (uri.executable, uri.extract) = (true, false),
            None if part == "no-extract" => uri.extract = false,
            None if part == "cache" => uri.cache = true,
            _ => {
                return Err(format!(
                    "`{part}` is not an option; expected `sha256=…`, `name=…`, `executable`, `no-extract` or `cache`"
                ));
            }
        }
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(disable_help_flag = true)]
    struct Line {
        #[command(flatten)]
        wanted: Wanted,
        #[command(flatten)]
        resources: ResourceFlags,
    }

    fn request(arguments: &[&str]) -> Result<Request, String> {
        let line =
            Line::try_parse_from(std::iter::once(&"run").chain(arguments)).map_err(|e| e.to_string())?;
        line.wanted.request(&line.resources, |_| false).map_err(|failure| failure.error().to_string())
    }

    #[test]
    fn flags_are_converted_to_a_request() {
        let request = request(&[
            "--parent",
            "pod",
            "--name",
            "web",
            "-e",
            "A=1=2",
            "-e",
            "NOBODY_HAS_THIS",
            "--label",
            "tier=front",
            "--memory",
            "64m",
            "--memory-limit",
            "none",
            "--cpus",
            "0.5",
            "--hostname",
            "h",
            "--network",
            "net,ip=10.0.0.9,ip=fd00::9",
            "--network",
            "other",
            "-p",
            "8080:80",
            "-p",
            "53:5353/udp",
            "--uri",
            "http://h/x,sha256=ab,name=y,executable,cache",
            "--user",
            "nobody",
            "--",
            "ls",
            "-l",
        ])
        .unwrap();
        assert_eq!(request.id.as_str(), "pod.web");
        assert_eq!(request.command.value.as_deref(), Some("ls"));
        assert_eq!(request.command.arguments, ["ls", "-l"]);
        assert_eq!(request.command.environment, BTreeMap::from([("A".to_owned(), "1=2".to_owned())]));
        assert_eq!(request.resources.mem_bytes(), Some(64 << 20));
        assert_eq!(request.resources.mem_limit_bytes(), Some(None));
        assert_eq!(request.uris[0].sha256.as_deref(), Some("ab"));
        assert!(request.uris[0].executable && request.uris[0].cache && request.linux.share_cgroups);
        let [net, other] = &request.networks[..] else { panic!("{:?}", request.networks) };
        assert_eq!((net.name.as_deref(), other.name.as_deref()), (Some("net"), Some("other")));
        assert_eq!(net.addresses, ["10.0.0.9", "fd00::9"]);
        let udp = Some("udp".to_owned());
        assert_eq!(
            net.port_mappings,
            [
                PortMapping { host_port: 8080, container_port: 80, protocol: None },
                PortMapping { host_port: 53, container_port: 5353, protocol: udp },
            ]
        );
    }

    #[test]
    fn a_shell_command_has_no_arguments_and_names_are_random() {
        let [one, other] = [(); 2].map(|()| request(&["--shell", "echo $HOME"]).unwrap());
        assert!(one.command.shell && one.command.arguments.is_empty());
        assert_ne!(one.id, other.id);
    }

    #[test]
    fn an_image_has_a_command_of_its_own() {
        let own = request(&["--image", "busybox"]).unwrap();
        assert_eq!((own.image.as_deref(), own.command.value), (Some("busybox"), None));
        assert!(own.command.arguments.is_empty() && !own.command.shell);
        let other = request(&["--image", "busybox", "--", "ls", "-l"]).unwrap();
        assert_eq!((other.command.value.as_deref(), other.command.arguments.len()), (Some("ls"), 2));
        assert!(request(&["--image", "busybox", "--rootfs", "/", "--", "ls"]).is_err());
        assert!(request(&["--network", "n"]).is_err());
    }

    #[test]
    fn the_command_of_the_short_form_replaces_that_of_the_image_and_not_its_entry_point() {
        let of = |arguments: &[&str]| request(arguments).unwrap().command;
        let short = of(&["--image-word=busybox:1", "--", "ls", "-l"]);
        assert_eq!((short.value, short.replaces_cmd), (None, true));
        assert_eq!(short.arguments, ["ls", "-l"]);
        assert_eq!(of(&["--image-word=busybox:1", "--"]), of(&["--image", "busybox:1"]));
        let other = of(&["--image-word=busybox:1", "--entrypoint", "/bin/ls", "--", "-l"]);
        assert_eq!(
            (other.value.as_deref(), other.arguments),
            (Some("/bin/ls"), vec!["/bin/ls".into(), "-l".into()])
        );
        let none = of(&["--image", "busybox:1", "--entrypoint", "", "--", "ls"]);
        assert_eq!((none.value.as_deref(), none.arguments), (Some("ls"), vec!["ls".into()]));
        assert!(request(&["--entrypoint", "x", "--", "ls"]).unwrap_err().contains("add --image"));
        assert!(request(&["--image-word=/bin/ls", "--"]).unwrap_err().contains("is a path"));
        for given in [&["--image", "web:1"][..], &["--rootfs", "/r"], &["--shell", "x"]] {
            let error = request(&[given, &["--image-word=ls", "--"]].concat()).unwrap_err();
            assert!(error.contains(given[0]) && error.contains("`-- ls`"), "{error}");
        }
        let read_only = request(&["--image", "busybox:1", "--read-only"]).unwrap();
        assert!(read_only.linux.read_only_root);
        assert!(request(&["--read-only", "--", "ls"]).unwrap_err().contains("of its own"));
    }

    #[test]
    fn options_of_docker_mean_the_same() {
        let of = |arguments: &[&str]| request(&[arguments, &["--", "a"]].concat());
        let given = of(&[
            "-h",
            "web",
            "-m",
            "64m",
            "--ulimit",
            "nofile=1024:4096",
            "--ulimit",
            "core=-1",
            "--shm-size",
            "64m",
            "--security-opt",
            "seccomp=unconfined",
            "--pid",
            "host",
            "--init",
            "--net",
            "host",
        ])
        .unwrap();
        let linux = &given.linux;
        assert_eq!((linux.hostname.as_deref(), given.resources.mem_bytes()), (Some("web"), Some(64 << 20)));
        assert_eq!(given.rlimits["NOFILE"], Rlimit { soft: Some(1024), hard: Some(4096) });
        assert_eq!(given.rlimits["CORE"], Rlimit { soft: None, hard: None });
        assert_eq!((linux.ipc_mode, linux.shm_size), (Some(IpcMode::Private), Some(64 << 20)));
        assert!(linux.seccomp.as_ref().unwrap().unconfined && linux.share_pid_namespace);
        assert!(!linux.without_init && given.networks.is_empty());
        assert_eq!(of(&["--ipc", "host"]).unwrap().linux.ipc_mode, Some(IpcMode::ShareParent));
        // A nested container has that of its parent otherwise.
        let nested = of(&["--parent", "pod", "--network", "host"]).unwrap();
        assert_eq!(nested.networks, [NetworkRequest::default()]);
        for (arguments, expected) in [
            (&["--network", "host", "-p", "80:80"][..], "leave --publish out"),
            (&["--network", "host", "--network", "web"], "excludes other networks"),
            (&["--network", "host,ip=10.0.0.1"], "has its own addresses"),
            (&["--ipc", "host", "--shm-size", "1m"], "leave one of them out"),
            (&["--ulimit", "nofile"], "`nofile=1024:4096`"),
            (&["--ulimit", "nofile=2:1"], "above the hard one"),
            (&["--ulimit", "=1"], "is not a limit"),
            (&["--ulimit", "nofile=x"], "is not a limit"),
            (&["--security-opt", "no-new-privileges"], "`linux/nnp`"),
            (&["--pid", "container:web"], "[possible values: host]"),
            (&["--init", "--no-init"], "cannot be used with"),
        ] {
            let error = of(arguments).unwrap_err();
            assert!(error.contains(expected), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn invalid_flags_are_rejected() {
        assert!(request(&["--uri", "x,colour=red", "--", "a"]).unwrap_err().contains("`colour=red`"));
        assert!(request(&["-e", "=x", "--", "a"]).is_err());
        for ports in ["80", "0:80", "80:65536", "80:80/sctp", "a:b"] {
            assert!(request(&["--network", "n", "-p", ports, "--", "a"]).is_err(), "{ports}");
        }
        assert!(request(&["-p", "80:80", "--", "a"]).unwrap_err().contains("--network"));
        assert!(request(&["--network", "n,mac=x", "--", "a"]).unwrap_err().contains("`mac=x`"));
        assert!(request(&["--network", ",ip=10.0.0.1", "--", "a"]).is_err());
        assert!(
            request(&["--memory", "64m", "--memory-limit", "32m", "--", "a"])
                .unwrap_err()
                .contains("at least")
        );
        assert!(request(&["--name", "a.b", "--", "a"]).unwrap_err().contains("`--parent a --name b`"));
        assert!(request(&["--name", "größe 1", "--", "a"]).is_err());
        assert!(request(&["--own-cgroups", "--", "a"]).is_err());
    }
}
