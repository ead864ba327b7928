//! What an executor gets to know when it is started: its environment, and what is mounted into its container.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::program::NAME;
use super::state::{ExecutorKind, ExecutorState};
use super::token::Token;
use super::{SOCKET, Shared};
use crate::model::{HostDirectory, Request};

/// Where the agent's directories are in a container with a root file system of its own.
const SOCKET_DIRECTORY: &str = "/mnt/mesos/executor/socket";
const PROGRAM_DIRECTORY: &str = "/mnt/mesos/executor/bin";

/// What an executor presents with each call.
const TOKEN: &str = "MESOS_EXECUTOR_AUTHENTICATION_TOKEN";

/// What libraries can parse where the socket has to be used. Nobody but root can listen there and receive tokens.
const NO_ENDPOINT: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1));

/// Executors that lose the agent wait at most this long before they subscribe again.
const SUBSCRIPTION_BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Completes the request for the container of an executor.
pub(super) fn complete(
    shared: &Shared,
    state: &ExecutorState,
    token: &Token,
    mut request: Request,
) -> Request {
    request.id = state.container.clone();
    request.resources = state.allocated();
    let has_root = request.rootfs.is_some() || request.image.is_some() || request.docker.is_some();
    let is_docker = state.executor.kind == ExecutorKind::Docker;
    let inside = |directory: &Path, target: &str| match has_root {
        true => PathBuf::from(target),
        false => directory.to_owned(),
    };
    let socket_directory = &shared.paths.socket_directory;
    let mut host_directories =
        vec![HostDirectory { source: socket_directory.clone(), target: SOCKET_DIRECTORY.into() }];
    let socket = inside(socket_directory, SOCKET_DIRECTORY).join(SOCKET);
    let program = shared.program.as_ref().and_then(|program| program.copied());
    if let (Some(program), true) = (program, state.executor.kind != ExecutorKind::Custom) {
        let source = program.directory().to_owned();
        let path = inside(&source, PROGRAM_DIRECTORY).join(NAME);
        debug_assert_eq!(program.path().file_name(), path.file_name());
        host_directories.push(HostDirectory { source, target: PROGRAM_DIRECTORY.into() });
        match mode(state.executor.kind) {
            Some(mode) => {
                request.command.shell = false;
                request.command.value = Some(path.to_string_lossy().into_owned());
                request.command.arguments = vec![NAME.to_owned(), mode.to_owned()];
            }
            // What it runs is only known with the image.
            None => request.docker_executor = Some(path),
        }
    }
    request.host_directories = host_directories;
    let environment = &mut request.command.environment;
    // The environment of the docker executor is that of its task, who these are not for.
    let of_executors = shared.config.environment_variables.iter().filter(|_| !is_docker);
    for (name, value) in of_executors {
        environment.entry(name.clone()).or_insert_with(|| value.clone());
    }
    // What identifies an executor cannot be replaced by its framework, nor by a parameter of an engine.
    let in_engine = request.docker.is_some();
    let identity = if in_engine { &mut request.secret_environment } else { environment };
    for (name, value) in variables(shared, state, &socket, in_engine) {
        identity.insert(name.to_owned(), value);
    }
    let environment = &mut request.command.environment;
    // Whoever may see the container must not get what is good for the calls of its executor.
    environment.remove(TOKEN);
    request.command.secrets.remove(TOKEN);
    request.secret_environment.insert(TOKEN.to_owned(), token.reveal().to_owned());
    request
}

/// The names of the variables that the agent may set for an executor.
pub(super) fn own_variables(shared: &Shared, state: &ExecutorState) -> BTreeSet<&'static str> {
    let variables = variables(shared, state, Path::new(SOCKET_DIRECTORY), true).into_iter();
    variables.map(|(name, _)| name).chain([TOKEN]).collect()
}

/// The environment that a complete request has of its framework and of the configuration. `own` are the names of variables
/// that the agent sets.
pub(super) fn requested(request: &Request, own: &BTreeSet<&'static str>) -> BTreeMap<String, String> {
    let environment = request.command.environment.iter().filter(|(name, _)| !own.contains(name.as_str()));
    environment.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Replaces [`requested`]. What the agent has set stays.
pub(super) fn replace(
    request: &mut Request,
    own: &BTreeSet<&'static str>,
    mut environment: BTreeMap<String, String>,
) {
    for &name in own {
        if environment.remove(name).is_some() {
            tracing::warn!(container = %request.id, "`{name}` is set by the agent, and not by hooks");
        }
    }
    request.command.environment.retain(|name, _| own.contains(name.as_str()));
    request.command.environment.extend(environment);
}

/// The argument of the program for an executor that the agent generates and starts as the command of its container.
fn mode(kind: ExecutorKind) -> Option<&'static str> {
    match kind {
        ExecutorKind::Command => Some("command"),
        ExecutorKind::Default => Some("default"),
        ExecutorKind::Docker | ExecutorKind::Custom => None,
    }
}

fn variables(
    shared: &Shared,
    state: &ExecutorState,
    socket: &Path,
    in_engine: bool,
) -> Vec<(&'static str, String)> {
    let flag = |value: bool| if value { "1" } else { "0" }.to_owned();
    let checkpoint = state.framework.checkpoint;
    let endpoint = shared.config.endpoint.unwrap_or(NO_ENDPOINT);
    let mut variables = vec![
        ("LIBPROCESS_PORT", "0".to_owned()),
        ("MESOS_FRAMEWORK_ID", state.framework.id.to_string()),
        ("MESOS_EXECUTOR_ID", state.executor.id.to_string()),
        ("MESOS_SLAVE_ID", shared.agent_id.clone()),
        ("MESOS_SLAVE_PID", format!("slave(1)@{endpoint}")),
        ("MESOS_AGENT_ENDPOINT", endpoint.to_string()),
        ("MESOS_CHECKPOINT", flag(checkpoint)),
        ("MESOS_HTTP_COMMAND_EXECUTOR", flag(true)),
        ("MESOS_DOMAIN_SOCKET", socket.to_string_lossy().into_owned()),
        (
            "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD",
            duration(Duration::from_millis(state.executor.shutdown_grace_ms)),
        ),
    ];
    // In a container of an engine, an image may have set them.
    if checkpoint || in_engine {
        variables.push(("MESOS_RECOVERY_TIMEOUT", duration(shared.config.recovery_timeout)));
        variables.push(("MESOS_SUBSCRIPTION_BACKOFF_MAX", duration(SUBSCRIPTION_BACKOFF_MAX)));
    }
    variables
}

/// A duration as Mesos writes it: `15mins`, `1.5secs`.
fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        _ if millis.is_multiple_of(60_000) && millis > 0 => format!("{}mins", millis / 60_000),
        _ if millis.is_multiple_of(1000) => format!("{}secs", millis / 1000),
        _ => format!("{millis}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_replaced_but_for_what_the_agent_sets() {
        let mut request = Request::shell(crate::model::ContainerId::parse("e").unwrap(), "true");
        let variables = |text: &str| -> BTreeMap<String, String> {
            text.split(' ')
                .filter_map(|pair| pair.split_once('='))
                .map(|(a, b)| (a.into(), b.into()))
                .collect()
        };
        request.command.environment = variables("A=1 B=2 MESOS_EXECUTOR_ID=e");
        let own = BTreeSet::from(["MESOS_EXECUTOR_ID", TOKEN]);
        assert_eq!(requested(&request, &own), variables("A=1 B=2"));
        let forged = variables("B=3 C=4 MESOS_EXECUTOR_ID=other MESOS_EXECUTOR_AUTHENTICATION_TOKEN=x");
        replace(&mut request, &own, forged);
        assert_eq!(request.command.environment, variables("B=3 C=4 MESOS_EXECUTOR_ID=e"));
    }

    #[test]
    fn durations_are_written_as_in_mesos() {
        let texts = [0, 5000, 900_000, 1500].map(|millis| duration(Duration::from_millis(millis)));
        assert_eq!(texts, ["0secs", "5secs", "15mins", "1500ms"]);
    }
}
