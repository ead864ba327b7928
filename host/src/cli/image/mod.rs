//! `cofferdam image`: images in the store, with or without an agent.

mod import;
mod limits;
mod ls;
mod prune;
mod pull;

use std::path::PathBuf;

use super::failure::Failure;
use super::{Outcome, client};
use crate::config::Environment;
use cofferdam_core::provisioner::Store;

/// Pulls, imports, lists and removes images
///
/// Images are in a store, which agents and `cofferdam run` launch containers from. No agent is needed; `prune` asks one if
/// --socket or COFFERDAM_SOCKET chooses it, and --image-store does not.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Directory of the store: `image_store` of the agent
    ///
    /// The default is `images` in the default `work_dir`.
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

pub(super) fn run(arguments: Arguments, socket: Option<PathBuf>) -> Outcome {
    let Arguments { image_store, command } = arguments;
    if let (Command::Prune(arguments), Some(_), None) = (&command, &socket, &image_store) {
        return prune::run_by_daemon(arguments, &client(socket));
    }
    let path = match image_store {
        Some(path) => std::path::absolute(&path)
            .map_err(|source| Failure::system(format!("cannot find `{}`", path.display()), source))?,
        None => Environment::detect().image_store(),
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
