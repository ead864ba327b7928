//! `cofferdam agent`: runs the daemon.

use std::path::PathBuf;

use super::failure::{Failure, Outcome};
use super::index::Files;
use super::process;
use super::sd_notify::sd_notify;
use super::stop_signals::StopSignals;
use crate::api::{self, Listener, Listeners, LoopbackListener};
use crate::config::{Config, Environment, Isolation, Overrides};
use crate::telemetry::{Verbosity, start_logging};
use cofferdam_core::agent::Agent;

/// Starts an agent and serves its API until SIGTERM or SIGINT
///
/// Containers keep running when the agent stops, and the next agent recovers them. To end them as well, run
/// `cofferdam kill --all` first.
///
/// The default configuration file is /etc/cofferdam/agent.toml for root and ~/.config/cofferdam/agent.toml for
/// other users. It may be missing. `cofferdam check --print-defaults` prints all settings with their defaults.
///
/// Examples:
///   cofferdam agent
///   cofferdam agent --config agent.toml --log debug
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Configuration file
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: OverrideFlags,
}

/// Flags that override the setting of the same name.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct OverrideFlags {
    /// Override `runtime_dir`
    #[arg(long, value_name = "PATH")]
    runtime_dir: Option<PathBuf>,
    /// Override `work_dir`
    #[arg(long, value_name = "PATH")]
    work_dir: Option<PathBuf>,
    /// Override `plugin_dir`
    #[arg(long, value_name = "PATH")]
    plugin_dir: Option<PathBuf>,
    /// Override `isolation`, the predefined chain
    #[arg(long, value_name = "NAME")]
    isolation: Option<Isolation>,
    /// Override `log`, as in `info,cofferdam_core::chain=debug`
    #[arg(long, value_name = "LEVELS")]
    log: Option<String>,
}

impl OverrideFlags {
    /// Adds the global `--socket`.
    pub(super) fn with_socket(self, socket: Option<PathBuf>) -> Overrides {
        let Self { runtime_dir, work_dir, plugin_dir, isolation, log } = self;
        Overrides { runtime_dir, work_dir, socket, plugin_dir, cgroup_root: None, isolation, log }
    }
}

/// Loads `file`, or the default configuration file, or the defaults.
pub(super) fn load_config(
    file: Option<PathBuf>,
    overrides: &Overrides,
    environment: &Environment,
) -> Result<Config, Failure> {
    let file = file.or_else(|| Some(environment.config_file.clone()).filter(|file| file.exists()));
    Ok(match file {
        Some(file) => Config::load(&file, overrides, environment, &Files::Read)?,
        None => Config::embedded(overrides, environment, &Files::Read)?,
    })
}

pub(super) fn run(arguments: Arguments, socket: Option<PathBuf>) -> Outcome {
    let environment = Environment::detect();
    let mut config = load_config(arguments.config, &arguments.overrides.with_socket(socket), &environment)?;
    api::check_settings(&config).map_err(Failure::of)?;
    let verbosity = start_logging(&config.log, config.log_json);
    process::set_umask();
    process::prepare(&mut config.agent, &environment)?;
    // Before there are threads, and so that a signal during a long recovery is not lost.
    let signals = StopSignals::block().map_err(|source| Failure::system("cannot handle signals", source))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Failure::system("cannot start the tokio runtime", source))?;
    let outcome = runtime.block_on(serve(config, verbosity, signals));
    // Does not wait for blocking tasks, which may never return after a panic.
    runtime.shutdown_background();
    outcome
}

async fn serve(mut config: Config, verbosity: Verbosity, signals: StopSignals) -> Outcome {
    let socket = config.socket.clone();
    // Before the start, as executors get to know the address, and so that nobody else listens there.
    let loopback = config.tcp.as_ref().map(LoopbackListener::bind).transpose().map_err(Failure::of)?;
    config.agent.executors.endpoint = loopback.as_ref().map(LoopbackListener::address);
    if config.tcp.as_ref().is_some_and(|tcp| tcp.address.port() == 0) {
        tracing::warn!(
            "`api.listen` has port 0: executors that use TCP will not find the next agent, and end then"
        );
    } else if let Some(loopback) = loopback.as_ref().filter(|loopback| loopback.is_open_to_users()) {
        tracing::warn!(
            "any user can listen on {} while no agent does, and get the tokens of clients and executors; to prevent that, raise \
             the sysctl `net.ipv4.ip_unprivileged_port_start` above the port, or use a lower one",
            loopback.address()
        );
    }
    let agent = Agent::start(config.agent.clone()).await.map_err(Failure::of)?;
    // After the start, so that the socket accepts connections only if the agent is ready.
    let operator = Listener::bind(&socket, config.socket_access)?;
    let executors = Listener::bind_for_containers(&agent.executors().socket())?;
    tracing::info!("listening on {}", operator.path().display());
    if let Some(loopback) = &loopback {
        tracing::info!("listening on {}", loopback.address());
    }
    let listeners = Listeners { operator, executors: Some(executors), loopback };
    notify_service_manager("READY=1");
    let stop = async {
        match signals.first().await {
            Ok(name) => tracing::info!("received {name}, stopping"),
            Err(error) => tracing::error!(%error, "cannot wait for signals, stopping"),
        }
        notify_service_manager("STOPPING=1");
    };
    tokio::select! {
        () = api::serve(agent.clone(), config, verbosity, listeners, stop) => {}
        // The service manager restarts the agent, which then recovers the containers.
        error = agent.failed() => return Err(Failure::message(error)),
    }
    agent.shutdown().await;
    Ok(0)
}

fn notify_service_manager(state: &str) {
    if let Err(error) = sd_notify(state) {
        tracing::warn!(%error, state, "cannot notify the service manager");
    }
}
