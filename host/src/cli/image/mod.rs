//! `cofferdam image`: images in the store, with or without an agent.

mod import;
mod limits;
mod ls;
mod prune;
mod pull;

use std::path::PathBuf;

use super::client::Client;
use super::failure::Failure;
use super::{Outcome, block_on, client};
use crate::api::operator::types::{Call, Response};
use crate::config::Environment;
use cofferdam_core::provisioner::Store;

pub(super) use ls::Arguments as LsArguments;
pub(super) use prune::RemoveArguments;
pub(super) use pull::Arguments as PullArguments;

/// Pulls, imports, lists and removes images
///
/// Images are in a store, which agents and `cofferdam run` launch containers from. No agent is needed. With --socket or
/// COFFERDAM_SOCKET, and without --image-store, the store is that of the daemon, which is asked for its directory.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Directory of the store: `image_store` of the agent
    ///
    /// The default is that of the daemon of --socket or COFFERDAM_SOCKET, otherwise `images` in the default `work_dir`.
    #[arg(long, global = true, value_name = "PATH")]
    image_store: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Pull(pull::Arguments),
    Import(import::Arguments),
    Ls(ls::Arguments),
    Inspect(ls::InspectArguments),
    Rm(prune::RemoveArguments),
    Prune(prune::Arguments),
}

impl Arguments {
    /// Those of `image ls`, for the store that is the default.
    pub(super) const fn ls(arguments: LsArguments) -> Self {
        Self { image_store: None, command: Command::Ls(arguments) }
    }

    /// The same for `image pull`.
    pub(super) const fn pull(arguments: PullArguments) -> Self {
        Self { image_store: None, command: Command::Pull(arguments) }
    }

    /// The same for `image rm`.
    pub(super) const fn rm(arguments: RemoveArguments) -> Self {
        Self { image_store: None, command: Command::Rm(arguments) }
    }
}

pub(super) fn run(arguments: Arguments, socket: Option<PathBuf>) -> Outcome {
    let Arguments { image_store, command } = arguments;
    if let (Command::Prune(arguments), Some(_), None) = (&command, &socket, &image_store) {
        return prune::run_by_daemon(arguments, &client(socket));
    }
    let path = match (image_store, socket) {
        (Some(path), _) => std::path::absolute(&path)
            .map_err(|source| Failure::system(format!("cannot find `{}`", path.display()), source))?,
        (None, Some(socket)) => store_of_daemon(&client(Some(socket)))?,
        (None, None) => Environment::detect().image_store(),
    };
    let store = Store::at(path);
    match command {
        Command::Pull(arguments) => pull::run(arguments, &store),
        Command::Import(arguments) => import::run(arguments, &store),
        Command::Ls(arguments) => ls::run(&arguments, &store),
        Command::Inspect(arguments) => ls::inspect(&arguments, &store),
        Command::Rm(arguments) => prune::remove(&arguments, &store),
        Command::Prune(arguments) => prune::run(&arguments, &store),
    }
}

/// The directory that a daemon has its images in.
fn store_of_daemon(client: &Client) -> Result<PathBuf, Failure> {
    let flags = block_on(async {
        let flags = client.ask(&Call::GetFlags, |response| match response {
            Response::GetFlags(list) => Some(list.flags),
            _ => None,
        });
        Ok(flags.await?)
    })?;
    let setting = flags.into_iter().find(|flag| flag.name == "image_store");
    setting.and_then(|flag| flag.value).map(PathBuf::from).ok_or_else(|| {
        Failure::message("the daemon does not say where its images are; choose its store with --image-store")
    })
}

/// Refuses users who cannot unpack images.
fn require_root() -> Result<(), Failure> {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => Err(Failure::message(
            "only root can unpack images, as their files belong to several users".to_owned(),
        )),
    }
}

/// The name as people write it.
fn familiar(name: &str) -> String {
    name.parse::<cofferdam_core::provisioner::ImageName>()
        .map_or_else(|_| name.to_owned(), |name| name.familiar())
}
