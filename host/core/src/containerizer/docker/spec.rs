//! The body of `/containers/create`, from a request.
//!
//! Everything that can be checked without the engine is checked here, before anything of the container exists.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use cofferdam_plugin_model::ContainerClass;
use serde_json::{Map, Value as Json, json};

use super::parameters::{self, Since};
use crate::containerizer::invalid::{InvalidContainerInfo, Problem, problem};
use crate::engine::Image;
use crate::model::{
    ContainerId, DockerNetwork, DockerOptions, Limit, LinuxOptions, PortMapping, Request, Resources, Value,
    Volume, VolumeSource,
};

/// The least memory that a container gets, and its least share and quota of CPUs.
const MIN_MEMORY: u64 = 32 << 20;
const MIN_SHARES: i64 = 2;
const MIN_QUOTA: i64 = 1000;

/// The period of CPU quotas, in microseconds.
const PERIOD: f64 = 100_000.0;

/// As a limit of memory, and of memory and swap together, none: the engine refuses -1, or does not pass it on. The latter is the
/// largest one that the kernel knows. On cgroup v2, the limit of swap is the difference, so the two must not be the same.
pub(super) const UNLIMITED_MEMORY: i64 = 1 << 62;
pub(super) const UNLIMITED_MEMORY_AND_SWAP: i64 = i64::MAX & !4095;

/// Prefix of the names of containers.
pub(super) const PREFIX: &str = "mesos-";

/// Suffix of the names of containers of custom executors.
pub(super) const EXECUTOR_SUFFIX: &str = ".executor";

/// Label with the agent that a container belongs to.
pub(super) const AGENT_LABEL: &str = "org.cofferdam.agent";

/// Label with the id of a container.
pub(super) const CONTAINER_LABEL: &str = "org.cofferdam.container";

/// Label that distinguishes the launches of one id.
pub(super) const LAUNCH_LABEL: &str = "org.cofferdam.launch";

/// Environment variables that the agent sets.
pub(super) const OWN_VARIABLES: [&str; 2] = ["MESOS_SANDBOX", "MESOS_CONTAINER_NAME"];

/// What the engine is asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spec {
    /// The image, as it is pulled.
    pub(super) image: String,
    pub(super) force_pull: bool,
    pub(super) platform: Option<String>,
    /// The network that must exist, if it is not one of every engine.
    pub(super) network: Option<String>,
    /// The parameter that needs the newest engine, if not every one has what it needs.
    pub(super) needs: Option<(String, &'static Since)>,
    /// Directories below the sandbox that are mounted, and created if they are missing.
    pub(super) directories: Vec<PathBuf>,
    /// The program that runs what the container would run.
    executor: Option<PathBuf>,
    /// The body, without what only a launch knows.
    body: Json,
}

/// What only a launch knows.
pub(super) struct Launch<'l> {
    pub(super) agent: &'l str,
    pub(super) number: u64,
    /// Environment variables of the logger. Those of the request take precedence.
    pub(super) environment: BTreeMap<String, String>,
    /// Environment variables of hooks, which take precedence over those of the request.
    pub(super) hooked: BTreeMap<String, String>,
    /// Environment variables that nothing replaces.
    pub(super) fixed: BTreeMap<String, String>,
    /// The image.
    pub(super) image: &'l Image,
}

/// The name of a container.
pub(super) fn name(id: &ContainerId) -> String {
    format!("{PREFIX}{id}")
}

/// The name of a container that runs an executor of a framework.
pub(super) fn executor_name(id: &ContainerId) -> String {
    format!("{PREFIX}{id}{EXECUTOR_SUFFIX}")
}

/// The name of the container of a request.
pub(super) fn name_of(request: &Request) -> String {
    if is_custom_executor(request) { executor_name(&request.id) } else { name(&request.id) }
}

/// Whether the container is that of an executor alone. With one of the agent's own, it is that of the task.
fn is_custom_executor(request: &Request) -> bool {
    request.is_executor() && request.docker_executor.is_none()
}

impl Spec {
    /// What a request asks for. The sandbox of the host is mounted at `sandbox_directory`.
    pub(super) fn of(
        request: &Request,
        sandbox: &Path,
        sandbox_directory: &Path,
    ) -> Result<Self, InvalidContainerInfo> {
        let options = request.docker.clone().unwrap_or_default();
        Builder { request, options: &options, sandbox, sandbox_directory }
            .build()
            .map_err(|(field, reason)| InvalidContainerInfo { id: request.id.clone(), field, reason })
    }

    /// The complete body.
    pub(super) fn body(&self, id: &ContainerId, launch: &Launch<'_>) -> Result<Json, InvalidContainerInfo> {
        let mut body = self.body.clone();
        let labels = parameters::place(&mut body, "Labels");
        for (label, value) in [
            (AGENT_LABEL, launch.agent.to_owned()),
            (CONTAINER_LABEL, id.to_string()),
            (LAUNCH_LABEL, launch.number.to_string()),
        ] {
            labels[label] = value.into();
        }
        if let Some(variables) = body["Env"].as_array_mut() {
            add_variables(variables, launch);
        }
        if let Some(executor) = &self.executor {
            run_by(executor, &mut body, launch.image).map_err(|(field, reason)| InvalidContainerInfo {
                id: id.clone(),
                field,
                reason,
            })?;
        }
        Ok(body)
    }
}

/// Adds the variables of hooks and those that nothing replaces, in place of those of the request, and those of the logger that
/// are not set.
fn add_variables(variables: &mut Vec<Json>, launch: &Launch<'_>) {
    let hooked = launch.hooked.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let mut added: BTreeMap<&str, &str> = hooked.collect();
    added.extend(launch.fixed.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    variables.retain(|variable| !variable_name(variable).is_some_and(|name| added.contains_key(name)));
    for (name, value) in &launch.environment {
        if !variables.iter().any(|variable| variable_name(variable) == Some(name)) {
            added.entry(name).or_insert(value);
        }
    }
    variables.extend(added.into_iter().map(|(name, value)| Json::from(format!("{name}={value}"))));
}

/// The name of a variable of the body.
fn variable_name(variable: &Json) -> Option<&str> {
    Some(variable.as_str()?.split_once('=')?.0)
}

/// Has a program run what the container would run, and end it with the signal that it would be stopped with.
fn run_by(executor: &Path, body: &mut Json, image: &Image) -> Result<(), Problem> {
    // The name may be that of another image by now, with another entry point.
    body["Image"] = json!(image.id);
    // That of an image would be run with the environment of the executor. Tasks have checks of their own.
    body["Healthcheck"] = json!({ "Test": ["NONE"] });
    let image = &image.config;
    let words = |field: &str| -> Vec<String> {
        let words = body[field].as_array().into_iter().flatten();
        words.filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let (mut argv, mut command) = (words("Entrypoint"), words("Cmd"));
    if argv.is_empty() {
        argv.clone_from(&image.entrypoint);
        if command.is_empty() {
            command.clone_from(&image.cmd);
        }
    }
    // How the entry point of an image is replaced by none.
    if argv == [""] {
        argv.clear();
    }
    argv.append(&mut command);
    if argv.is_empty() {
        let reason = "it is missing, and the image has neither an entry point nor a command";
        return problem("command.value", reason);
    }
    let signal = match body["StopSignal"].as_str() {
        Some(signal) => signal.to_owned(),
        None => image.stop_signal.clone(),
    };
    let mut arguments = vec!["docker".to_owned()];
    if !signal.is_empty() {
        arguments.extend(["--stop-signal".to_owned(), signal]);
    }
    arguments.push("--".to_owned());
    arguments.append(&mut argv);
    body["Entrypoint"] = json!([executor]);
    body["Cmd"] = json!(arguments);
    // Whoever else stops the container asks the executor.
    body["StopSignal"] = "SIGTERM".into();
    Ok(())
}

/// Words that replace those of the image; `None` if they do not.
type Words = Option<Vec<String>>;

struct Builder<'b> {
    request: &'b Request,
    options: &'b DockerOptions,
    sandbox: &'b Path,
    sandbox_directory: &'b Path,
}

impl Builder<'_> {
    fn build(&self) -> Result<Spec, Problem> {
        let Self { request, options, .. } = self;
        self.check_id()?;
        self.check_unsupported()?;
        if options.image.is_empty() {
            return problem("container.docker.image", "it is empty");
        }
        let (entrypoint, command) = self.command()?;
        let (network_mode, network) = self.network()?;
        let Volumes { binds, mounts, driver, directories } = self.volumes()?;
        let ports = self.ports(&network_mode)?;
        let mut host = self.resources();
        host.extend(object(json!({
            "Privileged": options.privileged,
            "Binds": binds,
            "Mounts": mounts,
            "NetworkMode": &network_mode,
            // What it writes goes to the container logger.
            "LogConfig": { "Type": "none" },
        })));
        if let Some(driver) = driver {
            host.insert("VolumeDriver".into(), driver.into());
        }
        let bindings = ports.iter().map(|(container, host)| {
            (container.clone(), json!([{ "HostIp": "", "HostPort": host.to_string() }]))
        });
        host.insert("PortBindings".into(), Json::Object(bindings.collect()));
        let exposed = ports.keys().map(|container| (container.clone(), json!({}))).collect();
        let mut body = json!({
            "Image": options.image,
            "Env": self.environment(),
            "ExposedPorts": Json::Object(exposed),
            "OpenStdin": request.interactive,
            "StdinOnce": request.interactive,
            "AttachStdout": true,
            "AttachStderr": true,
            "AttachStdin": request.interactive,
            "HostConfig": host,
        });
        if let Some(entrypoint) = entrypoint {
            body["Entrypoint"] = json!(entrypoint);
        }
        if let Some(command) = command {
            body["Cmd"] = json!(command);
        }
        if let Some(hostname) = &request.linux.hostname {
            body["Hostname"] = json!(hostname);
        }
        if let Some(directory) = &request.command.working_directory {
            body["WorkingDir"] = json!(directory);
        }
        let mut platform = None;
        let mut network_seen = false;
        for parameter in &options.parameters {
            match parameter.key.as_str() {
                // The first one replaces `docker.network`.
                "net" | "network" if !network_seen => network_seen = true,
                "platform" => platform = Some(parameter.value.clone()),
                key => parameters::apply(&mut body, key, &parameter.value)?,
            }
        }
        let needs =
            options.parameters.iter().filter_map(|it| Some((it.key.clone(), parameters::since(&it.key)?)));
        let needs = needs.max_by_key(|(_, since)| since.api);
        parameters::name_network(&mut body, &network_mode, network.is_some());
        self.check_labels(&body)?;
        let has_check = !body["Healthcheck"].is_null() && body["Healthcheck"]["Test"] != json!(["NONE"]);
        if request.docker_executor.is_some() && has_check {
            let reason = "the engine would run a health check with the environment of the executor; use `health_check` of the task";
            return problem("container.docker.parameters", reason);
        }
        Ok(Spec {
            image: options.image.clone(),
            force_pull: options.force_pull_image,
            platform,
            network,
            needs,
            directories,
            executor: request.docker_executor.clone(),
            body,
        })
    }

    fn check_id(&self) -> Result<(), Problem> {
        let id = &self.request.id;
        if id.is_nested() {
            return problem(
                "container.type",
                "`DOCKER` containers cannot be nested; launch it without a parent",
            );
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !id.as_str().chars().all(is_plain) {
            let reason = "it is part of the name of the container in the engine, which can only have letters, digits, \
                          `-`, `_` and `.`";
            return problem("container_id", reason);
        }
        Ok(())
    }

    /// What the engine has no place for.
    fn check_unsupported(&self) -> Result<(), Problem> {
        let Self { request, .. } = self;
        let linux = LinuxOptions { hostname: None, ..request.linux.clone() };
        let fields = [
            ("container.mesos", request.rootfs.is_some(), "the root file system is that of the image"),
            ("container.linux_info", linux != LinuxOptions::default(), "use `docker.parameters`"),
            ("container.rlimit_info", !request.rlimits.is_empty(), "use the parameter `ulimit`"),
            ("container.tty_info", request.tty.is_some(), "`DOCKER` containers have no terminal"),
            (
                "command.environment",
                !request.command.secrets.is_empty(),
                "the engine would show the values of secrets",
            ),
            (
                "class",
                request.class != ContainerClass::Default,
                "`DOCKER` containers cannot be debug containers",
            ),
        ];
        match fields.into_iter().find(|(_, is_set, _)| *is_set) {
            Some((field, _, reason)) => problem(field, reason),
            None => Ok(()),
        }
    }

    /// Entry point and command, where they replace those of the image.
    fn command(&self) -> Result<(Words, Words), Problem> {
        let command = &self.request.command;
        if command.shell {
            return match &command.value {
                Some(value) => Ok((Some(vec!["/bin/sh".into()]), Some(vec!["-c".into(), value.clone()]))),
                None => problem(
                    "command.value",
                    "it is missing; set `shell` to false for the command of the image",
                ),
            };
        }
        let words: Vec<String> = command.value.iter().chain(&command.arguments).cloned().collect();
        Ok((None, (!words.is_empty()).then_some(words)))
    }

    fn environment(&self) -> Vec<String> {
        let mut variables = self.request.command.environment.clone();
        let [sandbox, container_name] = OWN_VARIABLES;
        variables.insert(sandbox.into(), self.sandbox_directory.display().to_string());
        variables.insert(container_name.into(), name_of(self.request));
        if is_custom_executor(self.request) {
            variables.insert("MESOS_DIRECTORY".into(), self.sandbox_directory.display().to_string());
        }
        variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// The mode of the network, and its name if it is not one that every engine has.
    fn network(&self) -> Result<(String, Option<String>), Problem> {
        let Self { request, options, .. } = self;
        for (index, network) in request.networks.iter().enumerate() {
            let field = |name: &str| format!("container.network_infos[{index}].{name}");
            if !network.port_mappings.is_empty() {
                return problem(field("port_mappings"), "use `docker.port_mappings`");
            }
            if !network.addresses.is_empty() {
                return problem(field("ip_addresses"), "the engine chooses the address");
            }
        }
        let parameter = options.parameters.iter().find(|it| matches!(it.key.as_str(), "net" | "network"));
        let mode = match (parameter, options.network) {
            (Some(parameter), _) if parameter.value.is_empty() => {
                return problem("container.docker.parameters.network", "it is empty");
            }
            (Some(parameter), _) => parameter.value.clone(),
            (None, DockerNetwork::Host) => "host".into(),
            (None, DockerNetwork::Bridge) => "bridge".into(),
            (None, DockerNetwork::None) => "none".into(),
            (None, DockerNetwork::User) => match request.networks.as_slice() {
                [network] => match network.name.as_ref().filter(|name| !name.is_empty()) {
                    Some(name) => name.clone(),
                    None => return problem("container.network_infos[0].name", "it is missing"),
                },
                networks => {
                    let reason = format!(
                        "`docker.network` is `USER`, which needs exactly one, not {}",
                        networks.len()
                    );
                    return problem("container.network_infos", reason);
                }
            },
        };
        if options.network != DockerNetwork::User && !request.networks.is_empty() {
            return problem("container.network_infos", "it needs `docker.network` `USER`");
        }
        if mode == "host" && request.linux.hostname.is_some() {
            return problem("container.hostname", "a container in the network of the host has its host name");
        }
        let is_known =
            ["host", "bridge", "none", "default"].contains(&mode.as_str()) || mode.starts_with("container:");
        let network = (!is_known).then(|| mode.clone());
        Ok((mode, network))
    }

    /// Ports of the host, by those of the container.
    fn ports(&self, network_mode: &str) -> Result<BTreeMap<String, u16>, Problem> {
        const FIELD: &str = "container.docker.port_mappings";
        let mappings = &self.options.port_mappings;
        if mappings.is_empty() {
            return Ok(BTreeMap::new());
        }
        if matches!(network_mode, "host" | "none") {
            return problem(FIELD, format!("a container with network `{network_mode}` has no ports to map"));
        }
        let Some(Value::Ranges(offered)) = self.request.resources.requests.get("ports") else {
            return problem(FIELD, "no `ports` are among the resources of the container");
        };
        let mut ports = BTreeMap::new();
        for PortMapping { host_port, container_port, protocol } in mappings {
            let is_offered = |(begin, end): &(u64, u64)| (*begin..=*end).contains(&u64::from(*host_port));
            if !offered.iter().any(is_offered) {
                return problem(
                    FIELD,
                    format!("port {host_port} is not among the `ports` of the container's resources"),
                );
            }
            let protocol = protocol.as_deref().unwrap_or("tcp").to_lowercase();
            let container = format!("{container_port}/{protocol}");
            if ports.insert(container.clone(), *host_port).is_some() {
                return problem(FIELD, format!("port {container} of the container is mapped twice"));
            }
        }
        Ok(ports)
    }

    fn volumes(&self) -> Result<Volumes, Problem> {
        let Self { request, options, sandbox, sandbox_directory } = self;
        let mut volumes = Volumes { driver: options.volume_driver.clone(), ..Volumes::default() };
        for (index, volume) in request.volumes.iter().enumerate() {
            let field = format!("container.volumes[{index}]");
            let target = sandbox_directory.join(checked(&field, &volume.container_path)?);
            let source = self.volume_source(&field, volume, &mut volumes)?;
            let propagation = propagation(&field, &volume.source)?;
            if source.starts_with(sandbox) {
                volumes.mounts.push(mount(&source, &target, volume.read_only, propagation));
                continue;
            }
            let mut flags = vec![if volume.read_only { "ro" } else { "rw" }];
            flags.extend(propagation);
            volumes.binds.push(format!("{}:{}:{}", source.display(), target.display(), flags.join(",")));
        }
        for directory in &request.host_directories {
            let source = plain("work_dir", &directory.source)?;
            volumes.mounts.push(mount(source, &directory.target, true, None));
        }
        let sandbox = plain("work_dir", sandbox)?;
        volumes.mounts.push(mount(sandbox, sandbox_directory, false, None));
        Ok(volumes)
    }

    /// What is mounted: a path of the host, or the name of a volume of a driver. Notes which directories of the sandbox have to
    /// be created for it, and which driver the container has.
    fn volume_source(&self, field: &str, volume: &Volume, volumes: &mut Volumes) -> Result<PathBuf, Problem> {
        let relative_target = volume.container_path.is_relative();
        match &volume.source {
            VolumeSource::HostPath { path, .. } => {
                let path = checked(field, path)?;
                if path.is_absolute() {
                    Ok(path.to_owned())
                } else if relative_target {
                    problem(field, "both of its paths are relative; one must be absolute")
                } else if self.options.volume_driver.is_some() {
                    Ok(path.to_owned())
                } else {
                    volumes.directories.push(path.to_owned());
                    Ok(self.sandbox.join(path))
                }
            }
            VolumeSource::SandboxPath { parent: false, path } => {
                let path = checked(field, path)?;
                if path.is_absolute() || relative_target {
                    let reason = "the path in the sandbox must be relative, and the other one absolute";
                    return problem(field, reason);
                }
                volumes.directories.push(path.to_owned());
                Ok(self.sandbox.join(path))
            }
            VolumeSource::DockerVolume { driver, name, options } => {
                if !options.is_empty() {
                    return problem(
                        field,
                        "driver options are not supported; create the volume in the engine",
                    );
                }
                let other = volumes.driver.get_or_insert_with(|| driver.clone());
                if other != driver {
                    let reason =
                        format!("a container can have one volume driver, not both `{other}` and `{driver}`");
                    return problem(field, reason);
                }
                let name = checked(field, Path::new(name))?;
                if name.components().count() != 1 || name.is_absolute() {
                    return problem(field, "the name of the volume is a path");
                }
                Ok(name.to_owned())
            }
            _ => problem(field, "this kind of volume is not supported for `DOCKER` containers"),
        }
    }

    fn resources(&self) -> Map<String, Json> {
        let resources = &self.request.resources;
        let mut limits = limits(resources);
        // What has no limit has none in a new container either.
        limits.retain(|_, value| !matches!(value.as_i64(), Some(-1 | UNLIMITED_MEMORY)));
        let total = total_memory();
        let request = resources.mem_bytes().unwrap_or(0);
        let is_burstable = match resources.limits.get("mem") {
            Some(Limit::Unlimited) => true,
            Some(_) => resources.mem_limit_bytes().flatten().is_some_and(|limit| limit > request),
            None => false,
        };
        if is_burstable && total > 0 {
            let used = i64::try_from(request.saturating_mul(1000) / total).unwrap_or(1000);
            limits.insert("OomScoreAdj".into(), (1000 - used.min(1000)).into());
        }
        limits
    }

    fn check_labels(&self, body: &Json) -> Result<(), Problem> {
        let own = [AGENT_LABEL, CONTAINER_LABEL, LAUNCH_LABEL];
        match own.into_iter().find(|label| !body["Labels"][*label].is_null()) {
            Some(label) => problem(
                "container.docker.parameters.label",
                format!("the label `{label}` is set by the agent"),
            ),
            None => Ok(()),
        }
    }
}

#[derive(Default)]
struct Volumes {
    binds: Vec<String>,
    /// What is in the sandbox. Unlike the others, the engine creates none that is missing: that of a launch that was given up
    /// must not come back.
    mounts: Vec<Json>,
    driver: Option<String>,
    directories: Vec<PathBuf>,
}

/// Checks that a path is one that the engine takes as it is, also as part of a line.
fn checked<'p>(field: &str, path: &'p Path) -> Result<&'p Path, Problem> {
    if path.to_str().is_some_and(|text| text.contains(':')) {
        return refused(field, path, "has a `:`, which the engine takes for a separator");
    }
    plain(field, path)
}

/// Checks that a path is one that the engine takes as it is.
fn plain<'p>(field: &str, path: &'p Path) -> Result<&'p Path, Problem> {
    match path.to_str() {
        None => refused(field, path, "is not UTF-8"),
        Some("") => refused(field, path, "is empty"),
        Some(text) if text.contains('\0') => refused(field, path, "contains a NUL character"),
        Some(_) if path.components().any(|part| part == Component::ParentDir) => {
            refused(field, path, "contains `..`")
        }
        Some(_) => Ok(path),
    }
}

fn refused<T>(field: &str, path: &Path, reason: &str) -> Result<T, Problem> {
    problem(field, format!("the path `{}` {reason}", path.display().to_string().escape_debug()))
}

fn mount(source: &Path, target: &Path, read_only: bool, propagation: Option<&str>) -> Json {
    let mut mount = json!({ "Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only });
    if let Some(propagation) = propagation {
        mount["BindOptions"] = json!({ "Propagation": propagation });
    }
    mount
}

/// The flag of the propagation of mounts that a volume has, if it has one.
fn propagation(field: &str, source: &VolumeSource) -> Result<Option<&'static str>, Problem> {
    let VolumeSource::HostPath { propagation: Some(propagation), .. } = source else { return Ok(None) };
    match propagation.as_str() {
        "private" => Ok(Some("rprivate")),
        "slave" => Ok(Some("rslave")),
        "shared" => Ok(Some("rshared")),
        other => problem(field, format!("mount propagation `{other}` is unknown")),
    }
}

/// Limits of CPU and memory, as fields of `HostConfig` and of the body of `/containers/NAME/update`. No limit is -1 for CPUs, and
/// [`UNLIMITED_MEMORY`].
pub(super) fn limits(resources: &Resources) -> Map<String, Json> {
    let mut limits = Map::new();
    if let Some(cpus) = resources.cpus() {
        limits.insert("CpuShares".into(), rounded(cpus * 1024.0).max(MIN_SHARES).into());
    }
    let quota = match resources.limits.get("cpus") {
        Some(Limit::At(cpus)) => rounded(cpus * PERIOD).max(MIN_QUOTA),
        _ => -1,
    };
    limits.insert("CpuQuota".into(), quota.into());
    if quota > 0 {
        limits.insert("CpuPeriod".into(), rounded(PERIOD).into());
    }
    let at_least = |bytes: u64| i64::try_from(bytes.max(MIN_MEMORY)).unwrap_or(i64::MAX);
    match resources.mem_limit_bytes() {
        Some(Some(bytes)) => {
            limits.insert("Memory".into(), at_least(bytes).into());
        }
        Some(None) => {
            limits.insert("Memory".into(), UNLIMITED_MEMORY.into());
        }
        None => {}
    }
    if let (Some(request), true) = (resources.mem_bytes(), resources.limits.contains_key("mem")) {
        limits.insert("MemoryReservation".into(), at_least(request).into());
    }
    limits
}

#[expect(clippy::cast_possible_truncation, reason = "float casts saturate")]
fn rounded(number: f64) -> i64 {
    number.round() as i64
}

/// Memory of the host in bytes.
pub(super) fn total_memory() -> u64 {
    let host = rustix::system::sysinfo();
    host.totalram.saturating_mul(u64::from(host.mem_unit))
}

fn object(value: Json) -> Map<String, Json> {
    match value {
        Json::Object(members) => members,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests;
