//! The command line: a verb per file, each translating its flags into one question and the answer into
//! lines.

mod agent;
mod amount;
mod check;
mod client;
mod follow;
mod hint;
mod index;
mod inspect;
mod kill;
mod logs;
mod notify;
mod out;
mod plugin;
mod process;
mod ps;
mod report;
mod rm;
mod run;
mod signal;
mod stats;
mod update;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::client::Client;
use self::report::Failure;
use crate::config::{Environment, default_socket};
use crate::fetch;
use cofferdam_core::model::ContainerId;

/// Runs containers whose isolation is made of plugins.
///
/// `cofferdam run -- CMD` needs nothing else; `cofferdam agent` is the daemon that the other verbs talk to.
#[derive(Debug, Parser)]
#[command(name = "cofferdam", version, max_term_width = 110, disable_help_subcommand = true)]
struct Arguments {
    /// The socket of the agent to talk to
    ///
    /// The default is `agent.sock` in the agent's default `runtime_dir`.
    #[arg(long, global = true, env = "COFFERDAM_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Agent(agent::Arguments),
    Run(Box<run::Arguments>),
    Ps(ps::Arguments),
    Inspect(inspect::Arguments),
    Stats(stats::Arguments),
    Logs(logs::Arguments),
    Kill(kill::Arguments),
    Wait(wait::Arguments),
    Update(update::Arguments),
    Rm(rm::Arguments),
    Check(check::Arguments),
    Plugin(plugin::Arguments),
    /// Fetches the files of a container; the agent runs it
    #[command(hide = true)]
    Fetch,
}

/// Does what the command line says. The status is that of the container for `run` and `wait`.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let socket = arguments.socket;
    report::exit(match arguments.verb {
        // It answers the agent, in a way of its own.
        Verb::Fetch => return fetch::main(),
        Verb::Agent(verb) => agent::run(verb, socket),
        Verb::Run(verb) => run::run(*verb, socket),
        Verb::Ps(verb) => ps::run(&verb, &client(socket)),
        Verb::Inspect(verb) => inspect::run(&verb, &client(socket)),
        Verb::Stats(verb) => stats::run(&verb, &client(socket)),
        Verb::Logs(verb) => logs::run(&verb, &client(socket)),
        Verb::Kill(verb) => kill::run(&verb, &client(socket)),
        Verb::Wait(verb) => wait::run(&verb, &client(socket)),
        Verb::Update(verb) => update::run(&verb, &client(socket)),
        Verb::Rm(verb) => rm::run(&verb, &client(socket)),
        Verb::Check(verb) => check::run(&verb, socket),
        Verb::Plugin(verb) => plugin::run(&verb, &client(socket)),
    })
}

/// What a verb comes to: the exit status of the program, or why there is none.
type Outcome = Result<u8, Failure>;

fn client(socket: Option<PathBuf>) -> Client {
    Client::new(socket.unwrap_or_else(|| default_socket(&Environment::look())))
}

/// Runs one conversation with the agent on this thread.
fn converse<T>(conversation: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    runtime()?.block_on(conversation)
}

/// A runtime on this thread.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|source| Failure::system("cannot start the program", source))
}

/// For `clap`: a container id as it is typed, `pod.web`.
fn container_id(text: &str) -> Result<ContainerId, String> {
    ContainerId::parse(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Arguments::command().debug_assert();
    }

    /// Whoever asks with `--help` is told what each verb, argument and option is for.
    #[test]
    fn nothing_is_without_help() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "`{path}` says nothing of itself");
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                assert!(argument.get_help().is_some(), "`{path}` says nothing of `{}`", argument.get_id());
            }
            command.get_subcommands().for_each(|below| check(below, &path));
        }
        check(&Arguments::command(), "");
    }

    #[test]
    fn what_follows_the_dashes_belongs_to_the_container() {
        let arguments =
            Arguments::try_parse_from(["cofferdam", "run", "--cpus", "0.5", "--", "ls", "--socket", "-d"])
                .unwrap();
        assert_eq!(arguments.socket, None);
        assert!(matches!(arguments.verb, Verb::Run(_)));
        assert!(Arguments::try_parse_from(["cofferdam", "run"]).is_err());
        assert!(Arguments::try_parse_from(["cofferdam", "run", "--shell", "ls", "--", "ls"]).is_err());
        assert!(Arguments::try_parse_from(["cofferdam", "inspect", "a b"]).is_err());
    }
}
