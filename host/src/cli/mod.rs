//! The command line, with a file per command: each translates its arguments into calls of the API, and the responses
//! into output.

mod agent;
mod attach;
mod check;
mod client;
mod doctor;
mod events;
mod exec;
mod failure;
mod foreground;
mod format;
mod generate;
mod help;
mod hints;
mod image;
mod index;
mod info;
mod inspect;
mod kill;
mod logs;
mod output;
mod plugin;
mod process;
mod process_flags;
mod progress;
mod ps;
mod pull;
mod registry;
mod resources;
mod rm;
mod run;
mod sd_notify;
mod signal;
mod stats;
mod stop;
mod stop_signals;
mod task;
mod time;
mod top;
mod unknown;
mod update;
mod version;
mod wait;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use self::client::Client;
use self::failure::{Failure, Outcome};
use crate::config::{Environment, default_socket};
use crate::fetch;
use cofferdam_core::model::ContainerId;

/// Runs containers whose isolation is made of plugins.
///
/// `cofferdam run -- CMD` needs no daemon; the other commands talk to the daemon, `cofferdam agent`.
#[derive(Debug, Parser)]
#[command(name = "cofferdam", version, max_term_width = 110, disable_help_subcommand = true)]
struct Arguments {
    /// Socket of the agent
    ///
    /// The default is `agent.sock` in the default `runtime_dir`.
    #[arg(long, global = true, env = "COFFERDAM_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(agent::Arguments),
    Run(Box<run::Arguments>),
    Exec(Box<exec::Arguments>),
    Attach(attach::Arguments),
    #[command(visible_alias = "ls")]
    Ps(ps::Arguments),
    Inspect(inspect::Arguments),
    Stats(stats::Arguments),
    Top(top::Arguments),
    Logs(logs::Arguments),
    Events(events::Arguments),
    Stop(stop::Arguments),
    Kill(kill::Arguments),
    Wait(wait::Arguments),
    Update(update::Arguments),
    Rm(rm::Arguments),
    Check(check::Arguments),
    Doctor(doctor::Arguments),
    Info(info::Arguments),
    Plugin(plugin::Arguments),
    Image(image::Arguments),
    Task(task::Arguments),
    Version(version::Arguments),
    Completions(generate::Completions),
    #[command(hide = true)]
    ManPages(generate::ManPages),
    // As other programs call them.
    #[command(hide = true)]
    Images(image::LsArguments),
    #[command(hide = true)]
    Pull(image::PullArguments),
    #[command(hide = true)]
    Rmi(image::RemoveArguments),
    #[command(external_subcommand)]
    Unknown(Vec<OsString>),
    /// Fetches the files of a container (started by the agent)
    #[command(hide = true)]
    Fetch,
    /// Pulls an image into the store (started by the agent)
    #[command(hide = true)]
    PullForAgent,
    /// Restores the terminal at standard input when standard output is closed (started by this program)
    #[command(hide = true)]
    RestoreTerminal {
        /// Leave the screen of a program that fills it
        #[arg(long)]
        screen: bool,
    },
}

/// Parses the command line and runs the command. Returns the exit status of the program.
#[must_use]
pub fn run() -> ExitCode {
    let mut program = Arguments::command();
    let words = run::expand(&program, std::env::args_os().collect());
    let matches = match program.try_get_matches_from_mut(&words) {
        Ok(matches) => matches,
        Err(error) => {
            return match run::explain(&program, &words, &error) {
                Some(failure) => failure::exit(Err(failure), asks_for_json()),
                None => usage_error(help::wrapped(error, words)),
            };
        }
    };
    let as_json = wants_json(&matches);
    let arguments = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => return usage_error(error),
    };
    let socket = arguments.socket;
    let outcome = match arguments.command {
        // Reports failures to the agent, not to people.
        Command::Fetch => return fetch::main(),
        Command::PullForAgent => return crate::image::pull_for_agent(),
        Command::RestoreTerminal { screen } => return foreground::restore(screen),
        Command::Agent(arguments) => agent::run(arguments, socket),
        Command::Run(arguments) => run::run(*arguments, socket),
        Command::Exec(arguments) => exec::run(*arguments, &client(socket)),
        Command::Attach(arguments) => attach::run(arguments, &client(socket)),
        Command::Ps(arguments) => ps::run(&arguments, &client(socket)),
        Command::Inspect(arguments) => inspect::run(&arguments, &client(socket)),
        Command::Stats(arguments) => stats::run(&arguments, &client(socket)),
        Command::Top(arguments) => top::run(&arguments, &client(socket)),
        Command::Logs(arguments) => logs::run(&arguments, &client(socket)),
        Command::Events(arguments) => events::run(&arguments, &client(socket)),
        Command::Stop(arguments) => stop::run(&arguments, &client(socket)),
        Command::Kill(arguments) => kill::run(&arguments, &client(socket)),
        Command::Wait(arguments) => wait::run(&arguments, &client(socket)),
        Command::Update(arguments) => update::run(&arguments, &client(socket)),
        Command::Rm(arguments) => rm::run(&arguments, &client(socket)),
        Command::Check(arguments) => check::run(&arguments, socket),
        Command::Doctor(arguments) => doctor::run(&arguments, socket),
        Command::Info(arguments) => info::run(&arguments, &client(socket)),
        Command::Plugin(arguments) => plugin::run(&arguments, &client(socket)),
        Command::Image(arguments) => image::run(arguments, socket),
        Command::Images(arguments) => image::run(image::Arguments::ls(arguments), socket),
        Command::Pull(arguments) => image::run(image::Arguments::pull(arguments), socket),
        Command::Rmi(arguments) => image::run(image::Arguments::rm(arguments), socket),
        Command::Task(arguments) => task::run(arguments, &client(socket)),
        Command::Version(arguments) => version::run(&arguments, &client(socket)),
        Command::Completions(arguments) => generate::completions(&arguments),
        Command::ManPages(arguments) => generate::man_pages(&arguments),
        Command::Unknown(words) => Err(unknown::run(&words)),
    };
    failure::exit(outcome, as_json)
}

/// Whether the command that was given prints JSON.
fn wants_json(matches: &ArgMatches) -> bool {
    let is_set = matches.try_get_one::<bool>("json").ok().flatten() == Some(&true);
    is_set || matches.subcommand().is_some_and(|(_, matches)| wants_json(matches))
}

/// Whether JSON is asked for on a command line that is not valid.
fn asks_for_json() -> bool {
    let own = std::env::args_os().take_while(|argument| argument != "--");
    own.skip(1).any(|argument| argument == "--json")
}

/// Prints what is wrong with the command line, or the help that was asked for.
fn usage_error(error: clap::Error) -> ExitCode {
    let as_json = error.use_stderr() && asks_for_json();
    // That help is missing a command is no message.
    if !as_json || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    let text = error.to_string();
    let message = text.trim().trim_start_matches("error: ");
    failure::exit(Err(Failure::message(message).with_status(unknown::USAGE)), true)
}

fn client(socket: Option<PathBuf>) -> Client {
    Client::new(socket.unwrap_or_else(|| default_socket(&Environment::detect())))
}

/// Runs a future on this thread.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    runtime()?.block_on(future)
}

/// A tokio runtime on this thread.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|source| Failure::system("cannot start the tokio runtime", source))
}

/// Parses a container id such as `pod.web`.
fn container_id(text: &str) -> Result<ContainerId, String> {
    ContainerId::parse(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_and_argument_has_help() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "`{path}` has no help");
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                assert!(argument.get_help().is_some(), "`{}` of `{path}` has no help", argument.get_id());
            }
            command.get_subcommands().for_each(|subcommand| check(subcommand, &path));
        }
        check(&Arguments::command(), "");
    }

    #[test]
    fn arguments_after_the_dashes_belong_to_the_container() {
        let arguments =
            Arguments::try_parse_from(["cofferdam", "run", "--cpus", "0.5", "--", "ls", "--socket", "-d"])
                .unwrap();
        assert_eq!(arguments.socket, None);
        assert!(matches!(arguments.command, Command::Run(_)));
        assert!(Arguments::try_parse_from(["cofferdam", "run"]).is_err());
        assert!(Arguments::try_parse_from(["cofferdam", "run", "--shell", "ls", "--", "ls"]).is_err());
        assert!(Arguments::try_parse_from(["cofferdam", "inspect", "a b"]).is_err());
    }
}
