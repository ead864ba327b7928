//! The launch request of `cofferdam run`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::short_form;
use super::volume::{VolumeFlags, absolute, absolute_image};
use crate::cli::container_id;
use crate::cli::failure::Failure;
use crate::cli::process_flags::{ProcessFlags, executed, random_name};
use crate::cli::resources::ResourceFlags;
use cofferdam_core::model::{Command, ContainerId, NetworkRequest, PortMapping, Request, Resources, Uri};

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
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Network to connect it to, with addresses of its own [default: the host's, or its parent's]
    #[arg(long, value_name = "NAME[,ip=ADDRESS]", value_parser = network)]
    network: Vec<NetworkRequest>,
    /// Port of the host that is mapped into it, in its first network
    #[arg(long, short, value_name = "HOST:CONTAINER[/udp]", value_parser = port, requires = "network")]
    publish: Vec<PortMapping>,
    #[command(flatten)]
    volumes: VolumeFlags,
    /// Share the pid namespace of its parent, or of the host
    #[arg(long)]
    share_pid: bool,
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

impl Wanted {
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
        request.networks = self.network;
        if let Some(first) = request.networks.first_mut() {
            first.port_mappings = self.publish;
        }
        request.linux.hostname = self.hostname;
        request.linux.share_pid_namespace = self.share_pid;
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
