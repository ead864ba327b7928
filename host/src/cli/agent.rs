//! `cofferdam agent`: the daemon.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::index::Files;
use super::notify::notify;
use super::report::Failure;
use super::{Outcome, process};
use crate::api::{self, Listener};
use crate::config::{Config, Environment, Overrides};
use cofferdam_core::agent::Agent;

/// Starts an agent and serves its API until SIGTERM or SIGINT
///
/// Containers run on when the agent stops, and the next agent takes them over. To end them as well, run
/// `cofferdam kill --all` first.
///
/// Without `--config` it reads /etc/cofferdam/agent.toml (root) or ~/.config/cofferdam/agent.toml (others)
/// if there is one. `cofferdam check --print-defaults` prints every setting with its default.
///
/// Examples:
///   cofferdam agent
///   cofferdam agent --config agent.toml --log debug
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The configuration file
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Flags,
}

/// Settings that the command line can override: each flag is the key of its name.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Flags {
    /// Overrides `runtime_dir`
    #[arg(long, value_name = "PATH")]
    runtime_dir: Option<PathBuf>,
    /// Overrides `work_dir`
    #[arg(long, value_name = "PATH")]
    work_dir: Option<PathBuf>,
    /// Overrides `plugin_dir`
    #[arg(long, value_name = "PATH")]
    plugin_dir: Option<PathBuf>,
    /// Overrides `log`, as in `info,cofferdam::chain=debug`
    #[arg(long, value_name = "LEVELS")]
    log: Option<String>,
}

impl Flags {
    /// With the global `--socket`.
    pub(super) fn overrides(self, socket: Option<PathBuf>) -> Overrides {
        let Self { runtime_dir, work_dir, plugin_dir, log } = self;
        Overrides { runtime_dir, work_dir, socket, plugin_dir, cgroup_root: None, log }
    }
}

/// The configuration of an agent: of the file that was given, of the usual file, or the defaults.
pub(super) fn configuration(
    file: Option<PathBuf>,
    overrides: &Overrides,
    environment: &Environment,
) -> Result<Config, Failure> {
    let file = file.or_else(|| Some(environment.usual_file.clone()).filter(|file| file.exists()));
    Ok(match file {
        Some(file) => Config::load(&file, overrides, environment, &Files)?,
        None => Config::embedded(overrides, environment, &Files)?,
    })
}

/// Starts logging to standard error, as the configuration says.
pub(super) fn start_logging(config: &Config) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&config.log))
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        // Where the log goes may go away, and no launch may fail for that.
        .log_internal_errors(false);
    // Failing means that somebody who embeds us has set one already.
    drop(if config.log_json { builder.json().try_init() } else { builder.try_init() });
}

pub(super) fn run(arguments: Arguments, socket: Option<PathBuf>) -> Outcome {
    let environment = Environment::look();
    let mut config = configuration(arguments.config, &arguments.overrides.overrides(socket), &environment)?;
    start_logging(&config);
    process::prepare(&mut config.agent)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Failure::system("cannot start the agent", source))?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Outcome {
    // Asked for first, so that a signal during a long recovery is not lost.
    let handled = |kind| signal(kind).map_err(|source| Failure::system("cannot handle signals", source));
    let (mut terminate, mut interrupt) =
        (handled(SignalKind::terminate())?, handled(SignalKind::interrupt())?);

    let socket = config.socket.clone();
    let agent = Agent::start(config.agent.clone()).await.map_err(Failure::of)?;
    // Only now: a socket that accepts means an agent that is ready.
    let listener = Listener::bind(&socket)?;
    tracing::info!("listening on {}", listener.path().display());
    tell("READY=1");
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("stopping: SIGTERM"),
            _ = interrupt.recv() => tracing::info!("stopping: SIGINT"),
        }
        tell("STOPPING=1");
    };
    api::serve(agent.clone(), config, listener, stop).await;
    agent.shutdown().await;
    Ok(0)
}

fn tell(state: &str) {
    if let Err(error) = notify(state) {
        tracing::warn!(%error, state, "cannot notify the service manager");
    }
}
