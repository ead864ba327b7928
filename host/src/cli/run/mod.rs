//! `cofferdam run`: runs a command in a container.

mod daemon;
mod embedded;
mod foreign;
mod pull;
mod request;
mod short_form;
mod volume;

use std::path::PathBuf;

use clap::ArgAction;

use super::client::{Client, Launched};
use super::failure::Failure;
use super::foreground::{
    self, DetachKeys, Finish, Input, InputSink, NOT_RUN, OnSignal, Session, Signals, TerminalFlags,
    not_launched, taken,
};
use super::resources::ResourceFlags;
use super::{Outcome, client, output, rm};
use crate::api::operator::encode_id;
use crate::config::{Environment, Isolation};
use cofferdam_core::error_chain;
use cofferdam_core::model::{Request, VolumeSource};
use cofferdam_core::provisioner::Store;

pub(super) use foreign::explain;
pub(super) use short_form::expand;

use daemon::Launch;
use embedded::Embedded;
use pull::PullPolicy;

/// Why there are no networks, and what to do.
const NO_NETWORKS: &str = "a network is a configuration of the plugin `network/cni`: add that to the chain of the agent, or leave \
                           --network and --publish out for the network of the host";

/// How an error begins that says that nothing in the chain makes networks.
const NOT_HANDLED: &str = "requests `networks`, which none";

/// What the names of docker's networks are here.
const NETWORKS: &str = "`bridge` and `none` are networks of docker; here a network is a configuration of the plugin `network/cni`, and \
                        a container without --network has that of the host";

/// Runs a command in a container and shows its output
///
/// Without --socket, no daemon is needed: an agent runs in this process until the command exits, and nothing is
/// left behind. With --socket or COFFERDAM_SOCKET, the daemon launches the container. An image that the store does not have is
/// pulled first; a signal during the pull ends it.
///
/// The exit status is that of the command: 128 plus the number of the signal if it was killed by one, 127 if it
/// was not found, 126 if it cannot be executed, 125 if the container could not be launched. SIGINT, SIGTERM, SIGHUP
/// and SIGQUIT are forwarded to the command; the third SIGINT kills the container.
///
/// The command reads the standard input of this program, from a terminal with -i or -t only. With -t it has a terminal, in which keys such as Ctrl-C are typed
/// for the command; Ctrl-P Ctrl-Q detaches from a container of a daemon, which goes on.
///
/// The first word that is neither an option nor the value of one is an image, and what follows is its command, as with docker:
/// its entry point stays. A command without an image comes after `--`. After --image, CMD replaces the entry point as well.
///
/// Examples:
///   cofferdam run -- echo hello
///   cofferdam run busybox:1.36 ls -l
///   cofferdam run --image busybox:1.36 -- ls
///   cofferdam run -it --rootfs /srv/busybox -- sh
///   cofferdam run --memory 64m --cpus 0.5 --rootfs /srv/busybox -- sh -c 'echo $$'
///   cofferdam run --shell 'echo $HOME; sleep 1'
///   cofferdam run --socket /run/cofferdam/agent.sock -d --name web -- httpd -f
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    disable_help_flag = true,
    override_usage = "cofferdam run [OPTIONS] IMAGE [CMD]...\n       cofferdam run [OPTIONS] [--image IMAGE] -- CMD..."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    wanted: request::Wanted,
    #[command(flatten)]
    resources: ResourceFlags,
    #[command(flatten)]
    terminal: TerminalFlags,
    /// Launch it with the daemon, print its id and exit
    #[arg(long, short)]
    detach: bool,
    /// Remove it from the daemon when it ends
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    /// Print JSON: `{"container_id": {"value": …}}`
    #[arg(long, requires = "detach")]
    json: bool,
    #[command(flatten)]
    agent: AgentFlags,
    /// Print help; `run -h` without a name prints a summary
    #[arg(long, action = ArgAction::HelpLong)]
    help: Option<bool>,
    /// What `run -h` becomes, as that is the option for the host name
    #[arg(long = short_form::SUMMARY, action = ArgAction::HelpShort, hide = true)]
    summary: Option<bool>,
}

/// Settings of the agent in this process.
#[derive(Debug, clap::Args)]
struct AgentFlags {
    /// Configuration file of the agent in this process
    #[arg(long, value_name = "FILE", conflicts_with_all = ["detach", "rm"])]
    config: Option<PathBuf>,
    /// Plugin directory of the agent in this process
    #[arg(long, value_name = "PATH", conflicts_with = "detach")]
    plugin_dir: Option<PathBuf>,
    /// Directory of images of the agent in this process [default: that of `cofferdam image`]
    #[arg(long, value_name = "PATH", conflicts_with = "detach")]
    image_store: Option<PathBuf>,
    /// When the registry is asked for the image; a daemon cannot be told `never` [default: missing]
    #[arg(long, value_enum, value_name = "WHEN")]
    pull: Option<PullPolicy>,
    /// Predefined chain of the agent in this process: which isolators the container has
    #[arg(long, value_name = "NAME", conflicts_with = "detach")]
    isolation: Option<Isolation>,
    /// Log filter of the agent in this process, which logs to standard error
    #[arg(long, value_name = "LEVELS", default_value = "error")]
    log: String,
}

impl AgentFlags {
    /// Refuses what would have no effect on a daemon.
    fn refuse_with_daemon(&self) -> Result<(), Failure> {
        let Self { config, plugin_dir, image_store, pull: _, isolation, log: _ } = self;
        let given = [
            ("--config", config.is_some()),
            ("--plugin-dir", plugin_dir.is_some()),
            ("--image-store", image_store.is_some()),
            ("--isolation", isolation.is_some()),
        ];
        match given.into_iter().find(|(_, is_given)| *is_given) {
            Some((flag, _)) => Err(Failure::message(format!(
                "{flag} is a setting of an agent in this process, but a daemon is chosen with --socket or \
                 COFFERDAM_SOCKET; remove one of them, or change the configuration of the daemon"
            ))),
            None => Ok(()),
        }
    }
}

/// A policy as a daemon knows it.
fn is_pull_forced(policy: Option<PullPolicy>) -> Result<bool, Failure> {
    match policy {
        None | Some(PullPolicy::Missing) => Ok(false),
        Some(PullPolicy::Always) => Ok(true),
        Some(PullPolicy::Never) => Err(Failure::message(
            "a daemon pulls an image that its store does not have, so `--pull never` is not possible; check with `cofferdam \
             image ls --image-store DIR` before, or leave `--pull` out",
        )),
    }
}

pub(super) fn run(arguments: Arguments, socket: Option<PathBuf>) -> Outcome {
    let not_run = |failure: Failure| failure.with_status(NOT_RUN);
    let is_in_store = |image: &str| match (arguments.detach || socket.is_some(), &arguments.agent.image_store)
    {
        // That of the daemon may be anywhere.
        (true, _) => false,
        (false, Some(path)) => Store::at(path).find(image).is_ok(),
        (false, None) => Store::at(Environment::detect().image_store()).find(image).is_ok(),
    };
    let is_on_network_of_docker = arguments.wanted.is_on_network_of_docker();
    let mut request = arguments.wanted.request(&arguments.resources, is_in_store).map_err(not_run)?;
    let terminal = arguments.terminal;
    let explained = move |failure: Failure| match failure.status() == NOT_RUN {
        true if is_on_network_of_docker => failure.with_hint(NETWORKS),
        true if error_chain::describe(failure.error()).contains(NOT_HANDLED) => {
            failure.with_hint(NO_NETWORKS)
        }
        _ => failure,
    };
    terminal.apply(&mut request);
    if arguments.detach || socket.is_some() {
        let is_forced = is_pull_forced(arguments.agent.pull).map_err(not_run)?;
        request.force_pull_image = is_forced;
        for volume in &mut request.volumes {
            if let VolumeSource::Image { force_pull, .. } = &mut volume.source {
                *force_pull = is_forced;
            }
        }
    }
    let runtime = super::runtime().map_err(not_run)?;
    if arguments.detach {
        let launched = runtime.block_on(detached(&client(socket), &request, arguments.json));
        return launched.map_err(not_run).map_err(explained);
    }
    request.attached = true;
    let reads = terminal.reads_input().map_err(not_run)?;
    request.interactive |= reads;
    let outcome = match socket {
        Some(_) => {
            arguments.agent.refuse_with_daemon().map_err(not_run)?;
            runtime.block_on(through_daemon(
                client(socket),
                request,
                reads,
                terminal.detach_keys,
                arguments.rm,
            ))
        }
        None => {
            let embedded = Embedded::new(arguments.agent).map_err(not_run)?;
            runtime.block_on(embedded.run(request, reads))
        }
    };
    outcome.map_err(explained)
}

async fn detached(client: &Client, request: &Request, json: bool) -> Outcome {
    let launched = match request.image.is_some() || request.volume_images() > 0 {
        // A signal ends this program, as nothing is shown.
        false => client.launch(request).await.map_err(not_launched)?,
        true => {
            let mut signals = Signals::new()?;
            match daemon::launch(client, request, &mut signals, client.launch(request)).await? {
                Launch::Done(launched) => launched,
                Launch::Signalled(status) => return Ok(status),
            }
        }
    };
    match launched {
        Launched::Now => {}
        Launched::Already => return Err(taken(&request.id)),
    }
    if json {
        output::json(&serde_json::json!({"container_id": encode_id(&request.id)}))?;
    } else {
        output::line(request.id.as_str())?;
    }
    Ok(0)
}

async fn through_daemon(
    client: Client,
    request: Request,
    reads: bool,
    detach_keys: DetachKeys,
    remove: bool,
) -> Outcome {
    // First, so that a signal during the launch is forwarded after it.
    let mut signals = Signals::new().map_err(|failure| failure.with_status(NOT_RUN))?;
    let id = request.id.clone();
    let running = match daemon::launch(&client, &request, &mut signals, client.run(&request)).await? {
        Launch::Done(running) => running.ok_or_else(|| taken(&id))?,
        Launch::Signalled(status) => return Ok(status),
    };
    let input = match request.interactive || request.tty.is_some() {
        true => {
            let sink = InputSink::Daemon(client.input(encode_id(&id)).await?);
            Some(Input::new(sink, request.tty.is_some(), reads, Some(detach_keys))?)
        }
        false => None,
    };
    let session = Session::run(client.clone(), id.clone(), running);
    // As when a terminal is closed at which others are attached.
    let hangup = if request.tty.is_some() { OnSignal::LeaveOnHangup } else { OnSignal::Forward };
    let finish = foreground::run(session, input, &mut signals, hangup).await?;
    let has_ended = matches!(finish, Finish::Ended(_));
    let status = finish.exit(id.as_str())?;
    if remove && has_ended {
        rm::remove(&client, &id).await?;
    }
    Ok(status)
}
