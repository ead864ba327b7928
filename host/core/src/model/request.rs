//! The launch request.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use cofferdam_plugin_model::{
    Command, ContainerClass, ContainerId, ExecutorDetails, IpcMode, Limit, LinuxOptions, NetworkRequest,
    Resources, Rlimit, Secret, Tty, Value, Volume, VolumeSource,
};
use serde::{Deserialize, Serialize};

use super::docker::DockerOptions;

/// Maximum number of volumes with images: each takes one of the descriptors that the first process is passed.
const MAX_VOLUME_IMAGES: usize = 32;

/// A request to launch a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Id of the new container.
    pub id: ContainerId,
    /// Purpose of the container.
    #[serde(default)]
    pub class: ContainerClass,
    /// Command to run.
    #[serde(default)]
    pub command: Command,
    /// Files to fetch into its sandbox before the command runs.
    #[serde(default)]
    pub uris: Vec<Uri>,
    /// Directory on the host to use as the root file system; it is not modified.
    #[serde(default)]
    pub rootfs: Option<PathBuf>,
    /// Name or id of the image that its root file system is assembled from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Whether the registry is asked for its image even if the store has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force_pull_image: bool,
    /// Credentials for the registry of its image, as `docker login` writes them, which are neither recorded nor shown.
    /// Without them, those of the agent are used.
    #[serde(skip)]
    pub image_credentials: Option<String>,
    /// The same for the images of its volumes, by the path of the volume.
    #[serde(skip)]
    pub volume_image_credentials: BTreeMap<PathBuf, String>,
    /// Requested resources and limits.
    #[serde(default)]
    pub resources: Resources,
    /// Free-form labels for plugins and clients.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Options specific to Linux.
    #[serde(default)]
    pub linux: LinuxOptions,
    /// Volumes, in the order in which they are mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Networks to join.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkRequest>,
    /// Resource limits of its processes by name without `RLIMIT_`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rlimits: BTreeMap<String, Rlimit>,
    /// Terminal; `None` for none. Clients can attach to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<Tty>,
    /// Clients can attach, and write to its standard input, which is open until one of them ends it. Otherwise it is empty,
    /// unless there is a terminal.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interactive: bool,
    /// A client attaches as soon as the launch has succeeded: all output is kept for it, for up to ten seconds. Implies
    /// that clients can attach.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attached: bool,
    /// Options of a container of an engine; `None` for one of processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker: Option<DockerOptions>,
    /// Path in the container of a program that runs the entry point and the command of a container of an engine in their
    /// place: the docker executor. Not for clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker_executor: Option<PathBuf>,
    /// Directories of the agent that are mounted read-only if it has a root file system of its own. Not for clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_directories: Vec<HostDirectory>,
    /// Environment variables with values that are neither recorded nor shown, and that nothing replaces. Not for clients.
    #[serde(skip)]
    pub secret_environment: BTreeMap<String, String>,
    /// The executor that runs in the container, for hooks. Not for clients.
    #[serde(skip)]
    pub executor: Option<Box<ExecutorDetails>>,
}

/// A directory of the agent for a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDirectory {
    /// The directory on the host.
    pub source: PathBuf,
    /// Where it is in the container.
    pub target: PathBuf,
}

/// A file to fetch into the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uri {
    /// An absolute path, or a `file`, `http` or `https` URL.
    pub value: String,
    /// Set the executable bits; an archive is then not unpacked.
    #[serde(default)]
    pub executable: bool,
    /// Fetch it by the cache of the agent, which containers of the same user share.
    #[serde(default)]
    pub cache: bool,
    /// Unpack it if it is an archive.
    #[serde(default = "yes")]
    pub extract: bool,
    /// File name in the sandbox; by default the last component of the path.
    #[serde(default)]
    pub output_file: Option<String>,
    /// Expected SHA-256, in hexadecimal.
    #[serde(default)]
    pub sha256: Option<String>,
}

fn yes() -> bool {
    true
}

/// Why a request is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// The command is empty.
    #[error("the command of container `{id}` is empty; set `value` or `arguments`")]
    NoCommand {
        /// The container.
        id: ContainerId,
    },
    /// A string that is passed to the kernel contains a NUL.
    #[error("{what} of container `{id}` contains a NUL character")]
    Nul {
        /// The container.
        id: ContainerId,
        /// Which field.
        what: &'static str,
    },
    /// An environment variable has an invalid name.
    #[error(
        "`{name}` of container `{id}` is not a valid name of an environment variable; it must not be empty or contain `=` or NUL"
    )]
    Variable {
        /// The container.
        id: ContainerId,
        /// The name.
        name: String,
    },
    /// The path of the root file system is relative.
    #[error("the root file system `{path}` of container `{id}` is not an absolute path")]
    RelativeRootfs {
        /// The container.
        id: ContainerId,
        /// The path.
        path: PathBuf,
    },
    /// There are two root file systems.
    #[error("container `{id}` requests both an image and a root file system; request one of them")]
    ImageAndRootfs {
        /// The container.
        id: ContainerId,
    },
    /// There is a command, and arguments for that of an image.
    #[error(
        "container `{id}` has `replaces_cmd`, which is for `arguments` of an image's command; leave `value` out, and `shell` false"
    )]
    ReplacesCmd {
        /// The container.
        id: ContainerId,
    },
    /// A root file system that is not its own would be read-only.
    #[error(
        "container `{id}` requests a read-only root file system, but has none of its own; request an image or a root file system"
    )]
    ReadOnlyHost {
        /// The container.
        id: ContainerId,
    },
    /// The path of the working directory is relative.
    #[error("the working directory `{path}` of container `{id}` is not an absolute path")]
    RelativeWorkingDirectory {
        /// The container.
        id: ContainerId,
        /// The path.
        path: PathBuf,
    },
    /// An amount is not a positive number.
    #[error("container `{id}` requests {amount} of `{resource}`; expected a number above 0")]
    Amount {
        /// The container.
        id: ContainerId,
        /// The resource.
        resource: String,
        /// The amount.
        amount: String,
    },
    /// A limit is below the request for the same resource.
    #[error(
        "container `{id}` requests {request} of `{resource}` with a limit of {limit}; a limit must be at least the request"
    )]
    LimitBelowRequest {
        /// The container.
        id: ContainerId,
        /// The resource.
        resource: String,
        /// The requested amount.
        request: String,
        /// The limit.
        limit: String,
    },
    /// A part of the request has a kind or type that is not known.
    #[error("{what} of container `{id}` is of an unknown kind; upgrade the agent or leave it out")]
    UnknownKind {
        /// The container.
        id: ContainerId,
        /// Which part.
        what: String,
    },
    /// Two volumes have the same place.
    #[error(
        "two volumes of container `{id}` have the path `{path}`; leave one of them out, or change its path"
    )]
    SameVolumePath {
        /// The container.
        id: ContainerId,
        /// The path in the container.
        path: PathBuf,
    },
    /// A debug container has the mounts of its parent.
    #[error(
        "container `{id}` is of class DEBUG and has a volume with an image; it has the mounts of its parent, so leave the volume out"
    )]
    DebugWithImage {
        /// The container.
        id: ContainerId,
    },
    /// There are more volumes with images than a launch can pass on.
    #[error("container `{id}` has {count} volumes with images; the maximum is {MAX_VOLUME_IMAGES}")]
    VolumeImages {
        /// The container.
        id: ContainerId,
        /// How many.
        count: usize,
    },
    /// A debug container has no parent.
    #[error(
        "container `{id}` is of class DEBUG but not nested; a debug container needs a parent whose namespaces it enters"
    )]
    DebugWithoutParent {
        /// The container.
        id: ContainerId,
    },
}

impl Request {
    /// A container that runs a shell command, with defaults for everything else.
    #[must_use]
    pub fn shell(id: ContainerId, line: impl Into<String>) -> Self {
        let command = Command { value: Some(line.into()), ..Command::default() };
        Self::new(id, command)
    }

    /// A container that runs a command, with defaults for everything else.
    #[must_use]
    pub fn new(id: ContainerId, command: Command) -> Self {
        Self {
            id,
            class: ContainerClass::default(),
            command,
            uris: Vec::new(),
            rootfs: None,
            image: None,
            force_pull_image: false,
            image_credentials: None,
            volume_image_credentials: BTreeMap::new(),
            resources: Resources::default(),
            labels: BTreeMap::new(),
            linux: LinuxOptions::default(),
            volumes: Vec::new(),
            networks: Vec::new(),
            rlimits: BTreeMap::new(),
            tty: None,
            interactive: false,
            attached: false,
            docker: None,
            docker_executor: None,
            host_directories: Vec::new(),
            secret_environment: BTreeMap::new(),
            executor: None,
        }
    }

    /// Whether it is for an executor: only these need directories of the agent.
    #[must_use]
    pub fn is_executor(&self) -> bool {
        !self.host_directories.is_empty()
    }

    /// The parts of the request that take effect only if a plugin handles them, as named in a plugin's
    /// [`handles`](cofferdam_plugin_model::Manifest::handles).
    #[must_use]
    pub fn parts(&self) -> BTreeSet<&'static str> {
        let linux = &self.linux;
        let capabilities = linux.effective_capabilities.is_some() || linux.bounding_capabilities.is_some();
        let flags = [
            ("capabilities", capabilities),
            ("command.replaces_cmd", self.command.replaces_cmd),
            ("hostname", linux.hostname.is_some()),
            ("image", self.image.is_some()),
            ("ipc_mode", linux.ipc_mode.is_some()),
            ("networks", !self.networks.is_empty()),
            ("rlimits", !self.rlimits.is_empty()),
            ("seccomp", linux.seccomp.is_some()),
            ("secrets", !self.command.secrets.is_empty()),
            ("shm_size", linux.shm_size.is_some()),
        ];
        let requested = flags.into_iter().filter(|(_, requested)| *requested).map(|(part, _)| part);
        requested.chain(self.volumes.iter().map(|volume| volume.source.part())).collect()
    }

    /// How many of its volumes are images.
    #[must_use]
    pub fn volume_images(&self) -> usize {
        self.volumes.iter().filter(|volume| matches!(volume.source, VolumeSource::Image { .. })).count()
    }

    /// Takes the values of secrets out of the request, so that it can be recorded and shown.
    #[must_use]
    pub fn without_secrets(&self) -> Self {
        let mut request = self.clone();
        request.secret_environment.clear();
        // Only hooks of the launch get to know it.
        request.executor = None;
        request.image_credentials = None;
        request.volume_image_credentials.clear();
        let volumes = request.volumes.iter_mut().filter_map(|volume| match &mut volume.source {
            VolumeSource::Secret { secret } => Some(secret),
            _ => None,
        });
        for secret in request.command.secrets.values_mut().chain(volumes) {
            if let Secret::Value(value) = secret {
                value.clear();
            }
        }
        request
    }

    /// Checks the request by itself, without access to files or plugins.
    ///
    /// # Errors
    /// The first invalid field.
    pub fn check(&self) -> Result<(), InvalidRequest> {
        let id = || self.id.clone();
        let command = &self.command;
        let empty = if command.shell {
            command.value.is_none()
        } else {
            command.value.is_none() && command.arguments.is_empty()
        };
        // An image may have a command; what is missing without one is up to the engine or the plugin that knows it.
        let has_image = self.image.is_some() || (self.docker.is_some() && !command.shell);
        if empty && !has_image {
            return Err(InvalidRequest::NoCommand { id: id() });
        }
        let texts = [
            ("the command", command.value.iter().chain(&command.arguments).collect::<Vec<_>>()),
            ("the environment", command.environment.values().collect()),
            ("the host name", self.linux.hostname.iter().collect()),
            ("a secret", self.command.secrets.values().filter_map(secret_value).collect()),
        ];
        let directory = command.working_directory.as_ref();
        if directory.is_some_and(|path| path.as_os_str().as_encoded_bytes().contains(&0)) {
            return Err(InvalidRequest::Nul { id: id(), what: "the working directory" });
        }
        for (what, texts) in texts {
            if texts.iter().any(|text| text.contains('\0')) {
                return Err(InvalidRequest::Nul { id: id(), what });
            }
        }
        if let Some(name) = command
            .environment
            .keys()
            .chain(command.secrets.keys())
            .find(|n| n.is_empty() || n.contains(['=', '\0']))
        {
            return Err(InvalidRequest::Variable { id: id(), name: name.clone() });
        }
        if self.rootfs.is_some() && self.image.is_some() {
            return Err(InvalidRequest::ImageAndRootfs { id: id() });
        }
        if command.replaces_cmd && (command.shell || command.value.is_some()) {
            return Err(InvalidRequest::ReplacesCmd { id: id() });
        }
        if self.linux.read_only_root && self.rootfs.is_none() && self.image.is_none() {
            return Err(InvalidRequest::ReadOnlyHost { id: id() });
        }
        if let Some(path) = self.rootfs.as_ref().filter(|path| !path.is_absolute()) {
            return Err(InvalidRequest::RelativeRootfs { id: id(), path: path.clone() });
        }
        if let Some(path) = command.working_directory.as_ref().filter(|path| !path.is_absolute()) {
            return Err(InvalidRequest::RelativeWorkingDirectory { id: id(), path: path.clone() });
        }
        if self.class == ContainerClass::Debug && !self.id.is_nested() {
            return Err(InvalidRequest::DebugWithoutParent { id: id() });
        }
        match self.volume_images() {
            0 => {}
            _ if self.class == ContainerClass::Debug => {
                return Err(InvalidRequest::DebugWithImage { id: id() });
            }
            count if count > MAX_VOLUME_IMAGES => {
                return Err(InvalidRequest::VolumeImages { id: id(), count });
            }
            _ => {}
        }
        self.check_kinds()?;
        let mut paths = BTreeSet::new();
        for Volume { container_path: path, .. } in &self.volumes {
            // By components, so that `/data/` and `/data/.` are `/data`.
            if !paths.insert(path.components().collect::<PathBuf>()) {
                return Err(InvalidRequest::SameVolumePath { id: id(), path: path.clone() });
            }
        }
        check_resources(&self.id, &self.resources)
    }

    /// Checks that nothing is of a kind that only a newer version knows.
    fn check_kinds(&self) -> Result<(), InvalidRequest> {
        let unknown = |what| Err(InvalidRequest::UnknownKind { id: self.id.clone(), what });
        for volume in &self.volumes {
            let secret = matches!(volume.source, VolumeSource::Secret { secret: Secret::Unknown });
            if secret || volume.source == VolumeSource::Unknown {
                return unknown(format!("the volume `{}`", volume.container_path.display()));
            }
        }
        for (name, secret) in &self.command.secrets {
            if *secret == Secret::Unknown {
                return unknown(format!("the secret for the environment variable `{name}`"));
            }
        }
        match self.linux.ipc_mode {
            Some(IpcMode::Unknown) => unknown("the IPC mode".to_owned()),
            _ => Ok(()),
        }
    }
}

fn secret_value(secret: &Secret) -> Option<&String> {
    match secret {
        Secret::Value(value) => Some(value),
        _ => None,
    }
}

/// Checks the amounts and limits of a launch or an update.
///
/// # Errors
/// The first invalid amount.
pub fn check_resources(id: &ContainerId, resources: &Resources) -> Result<(), InvalidRequest> {
    let amounts = resources.requests.iter().filter_map(|(name, value)| match value {
        Value::Scalar(amount) => Some((name, *amount)),
        _ => None,
    });
    let limits = resources.limits.iter().filter_map(|(name, limit)| match limit {
        Limit::At(amount) => Some((name, *amount)),
        _ => None,
    });
    for (resource, amount) in amounts.chain(limits) {
        if !amount.is_finite() || amount <= 0.0 {
            return Err(InvalidRequest::Amount {
                id: id.clone(),
                resource: resource.clone(),
                amount: amount.to_string(),
            });
        }
    }
    for (resource, limit) in &resources.limits {
        if let (Limit::At(limit), Some(request)) = (limit, resources.scalar(resource))
            && *limit < request
        {
            return Err(InvalidRequest::LimitBelowRequest {
                id: id.clone(),
                resource: resource.clone(),
                request: request.to_string(),
                limit: limit.to_string(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ContainerId {
        ContainerId::parse(text).unwrap()
    }

    #[test]
    fn an_invalid_request_is_refused_with_the_reason() {
        let good = Request::shell(id("web"), "true");
        assert_eq!(good.check(), Ok(()));

        let empty = Request::new(id("web"), Command::default());
        assert_eq!(empty.check(), Err(InvalidRequest::NoCommand { id: id("web") }));

        let mut nul = good.clone();
        nul.command.arguments.push("a\0b".into());
        assert!(matches!(nul.check(), Err(InvalidRequest::Nul { what: "the command", .. })));

        let mut variable = good.clone();
        variable.command.environment.insert("A=B".into(), String::new());
        assert!(matches!(variable.check(), Err(InvalidRequest::Variable { .. })));

        let mut negative = good.clone();
        negative.resources = Resources::default().with("cpus", -1.0);
        assert!(matches!(negative.check(), Err(InvalidRequest::Amount { .. })));

        let mut low = good.clone();
        low.resources = Resources::default().with("mem", 64.0).with_limit("mem", Limit::At(32.0));
        assert!(matches!(low.check(), Err(InvalidRequest::LimitBelowRequest { .. })));

        let mut directory = good.clone();
        directory.command.working_directory = Some("data".into());
        assert!(matches!(directory.check(), Err(InvalidRequest::RelativeWorkingDirectory { .. })));
        directory.command.working_directory = Some("/da\0ta".into());
        assert!(matches!(directory.check(), Err(InvalidRequest::Nul { what: "the working directory", .. })));

        let mut images = good.clone();
        images.volumes = (0..=MAX_VOLUME_IMAGES)
            .map(|number| Volume {
                container_path: format!("/{number}").into(),
                read_only: true,
                source: VolumeSource::Image { image: "web".into(), force_pull: false, root: None },
            })
            .collect();
        assert!(matches!(images.check(), Err(InvalidRequest::VolumeImages { count: 33, .. })));
        images.volumes.pop();
        assert_eq!((images.check(), images.volume_images()), (Ok(()), 32));
        (images.id, images.class) = (id("web.probe"), ContainerClass::Debug);
        assert!(matches!(images.check(), Err(InvalidRequest::DebugWithImage { .. })));

        let mut debug = good;
        debug.class = ContainerClass::Debug;
        assert!(matches!(debug.check(), Err(InvalidRequest::DebugWithoutParent { .. })));
    }

    #[test]
    fn what_plugins_have_to_handle_is_named() {
        let mut request = Request::shell(id("web"), "true");
        assert_eq!(request.parts(), BTreeSet::new());
        let volume = |source| Volume { container_path: "/data".into(), read_only: false, source };
        request.volumes.push(volume(VolumeSource::Device { path: "/dev/sdb".into() }));
        request.volumes.push(volume(VolumeSource::SandboxPath { parent: false, path: "data".into() }));
        request.rlimits.insert("NOFILE".into(), Rlimit::default());
        request.linux.bounding_capabilities = Some(BTreeSet::new());
        assert_eq!(
            request.parts(),
            BTreeSet::from(["capabilities", "rlimits", "volumes.device", "volumes.sandbox_path"])
        );
        assert!(request.parts().iter().all(|part| cofferdam_plugin_model::REQUEST_PARTS.contains(part)));

        let same = |path: &str| {
            let mut request = request.clone();
            let source = VolumeSource::SandboxPath { parent: false, path: "b".into() };
            request.volumes = vec![
                Volume { container_path: "/x".into(), ..volume(source.clone()) },
                Volume { container_path: path.into(), ..volume(source) },
            ];
            matches!(request.check(), Err(InvalidRequest::SameVolumePath { .. }))
        };
        assert_eq!(
            ["/x", "/x/", "/x/.", "//x", "/x/y", "x"].map(same),
            [true, true, true, true, false, false]
        );
        request.volumes.push(volume(VolumeSource::Unknown));
        assert!(matches!(request.check(), Err(InvalidRequest::UnknownKind { .. })));
    }

    #[test]
    fn a_request_on_record_has_no_secret_values() {
        let mut request = Request::shell(id("web"), "true");
        request.command.secrets.insert("TOKEN".into(), Secret::Value("hunter2".into()));
        let source = VolumeSource::Secret { secret: Secret::Value("hunter2".into()) };
        request.volumes.push(Volume { container_path: "key".into(), read_only: true, source });
        let recorded = serde_json::to_string(&request.without_secrets()).unwrap();
        assert!(!recorded.contains("hunter2"), "{recorded}");
        assert_eq!(request.without_secrets().parts(), request.parts());
    }
}
