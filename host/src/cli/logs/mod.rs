//! `cofferdam logs`: shows the output of containers.

mod files;
mod follow;
mod print;
mod start;
mod times;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use tokio::sync::Notify;

use self::files::Log;
use self::follow::{Follower, Tail};
use self::print::Printer;
use self::start::Selection;
use super::client::Client;
use super::failure::Failure;
use super::inspect::inspect;
use super::output::has_colour;
use super::wait::wait;
use super::{Outcome, block_on, container_id, time};
use crate::api::operator::encode_id;
use crate::api::operator::types::{Call, PluginKind, Response};
use cofferdam_core::model::ContainerId;

/// Shows the output of containers
///
/// With several containers, each line begins with the name of its container, in colour on a terminal unless NO_COLOR
/// is set. Control characters are visible there, but for colours. `--since` and `--timestamps` need a logger that stores times, such as `logrotate`.
///
/// Examples:
///   cofferdam logs web
///   cofferdam logs -f --tail 20 --timestamps web
///   cofferdam logs --since 10m --stream stderr web
///   cofferdam logs -f web db
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The containers
    #[arg(value_parser = container_id, required = true)]
    ids: Vec<ContainerId>,
    #[command(flatten)]
    options: Options,
}

/// What is shown of the output of containers.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Keep showing new output until the containers end
    #[arg(long, short)]
    follow: bool,
    /// Show the last lines only: a number, or `all`
    #[arg(long, short = 'n', value_name = "N", default_value = "all", value_parser = lines)]
    tail: Lines,
    /// Show what was written since a time (2026-11-28T15:35:00Z, in UTC) or for some time (10m)
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    since: Option<SystemTime>,
    /// Begin each line with the time at which it was written, in UTC
    #[arg(long, short)]
    timestamps: bool,
    /// The stream to show
    #[arg(long, value_enum, value_name = "STREAM", default_value_t = Stream::Stdout)]
    stream: Stream,
    /// The same as `--stream stderr`
    #[arg(long, conflicts_with = "stream")]
    stderr: bool,
}

impl Arguments {
    /// For one container.
    pub(super) fn of(id: ContainerId, options: Options) -> Self {
        Self { ids: vec![id], options }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Stream {
    /// Standard output
    Stdout,
    /// Standard error
    Stderr,
}

/// How many lines to show; all if `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lines(Option<usize>);

fn lines(text: &str) -> Result<Lines, String> {
    match text {
        "all" => Ok(Lines(None)),
        number => match number.parse() {
            Ok(number) => Ok(Lines(Some(number))),
            Err(_) => Err("expected a number of lines, or `all`".to_owned()),
        },
    }
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    let selection = Selection { lines: arguments.options.tail.0, since: arguments.options.since };
    block_on(async {
        let mut tails = Vec::new();
        for id in &arguments.ids {
            let log = find(arguments, client, id).await?;
            let path = log.path.clone();
            let failed =
                |source| Failure::system(format!("cannot show the output of container `{id}`"), source);
            let tail = Tail::open(log, selection).map_err(failed)?;
            if tail.is_missing() && !arguments.options.follow {
                let path = path.display();
                return Err(Failure::message(format!(
                    "the output of container `{id}` is not there: `{path}`"
                )));
            }
            tails.push((id, tail));
        }
        let printers = printers(arguments);
        if arguments.options.follow {
            return follow(client, tails.into_iter().zip(printers).collect()).await;
        }
        for ((_, mut tail), mut printer) in tails.into_iter().zip(printers) {
            tail.copy_known(&mut printer)?;
        }
        Ok(0)
    })
}

/// Where the output of a container is.
async fn find(arguments: &Arguments, client: &Client, id: &ContainerId) -> Result<Log, Failure> {
    let inspected = inspect(client, id).await?;
    let (name, path, file) = match arguments.options.stream {
        Stream::Stdout if !arguments.options.stderr => {
            ("standard output", inspected.stdout, inspected.stdout_file)
        }
        _ => ("standard error", inspected.stderr, inspected.stderr_file),
    };
    let Some(path) = path else {
        return Err(no_file(client, id, name).await);
    };
    let has_times = inspected.log_times.unwrap_or_default();
    let needs_times =
        [("--timestamps", arguments.options.timestamps), ("--since", arguments.options.since.is_some())];
    if let Some((option, _)) = needs_times.iter().find(|(_, is_set)| *is_set && !has_times) {
        return Err(Failure::message(format!(
            "the times of the output of container `{id}` are not stored, which `{option}` needs; configure a logger that \
             stores them, such as `logrotate`, and launch the container again"
        )));
    }
    let file = file.and_then(|file| file.try_into().ok());
    // The container cannot create files elsewhere.
    let owner = inspected.uid.filter(|_| file.is_none() && path.starts_with(&inspected.sandbox));
    Ok(Log { path: path.into(), file, owner, has_times })
}

/// The failure for output that is in no file: it names the logger, or says that there is none.
async fn no_file(client: &Client, id: &ContainerId, name: &str) -> Failure {
    let plugins = client.ask(&Call::GetPlugins, |response| match response {
        Response::GetPlugins(list) => Some(list.plugins),
        _ => None,
    });
    let Ok(plugins) = plugins.await else {
        return Failure::message(format!("the {name} of container `{id}` is not written to a file"));
    };
    let loggers = plugins.into_iter().filter(|plugin| plugin.kind == PluginKind::Logger);
    let loggers: Vec<String> = loggers.map(|logger| logger.name).collect();
    let journald = loggers.iter().find(|logger| *logger == "journald");
    Failure::message(match journald.or(loggers.last()).map(String::as_str) {
        None => format!(
            "the {name} of container `{id}` is discarded, as no logger is configured; add a table `[logger]` with \
             `name = \"sandbox\"` to the agent's configuration, restart the agent, and launch the container again"
        ),
        Some("journald") => format!(
            "the {name} of container `{id}` is in the journal: `journalctl CONTAINER_ID={id}` shows it"
        ),
        Some(logger) => format!(
            "the logger `{logger}` has written the {name} of container `{id}` to no file; its documentation says where \
             it is"
        ),
    })
}

/// What shows the output of each container.
fn printers(arguments: &Arguments) -> Vec<Printer<io::Stdout>> {
    let ids: Vec<String> = arguments.ids.iter().map(ToString::to_string).collect();
    let is_terminal = io::stdout().is_terminal();
    let names = print::names(&ids, has_colour(&io::stdout())).into_iter();
    let names = names.map(|name| (ids.len() > 1).then_some(name));
    names.map(|name| Printer::new(io::stdout(), name, arguments.options.timestamps, is_terminal)).collect()
}

/// Follows the output of containers until all of them have ended. Reads the files directly, as the agent is on the same
/// machine.
async fn follow(client: &Client, logs: Vec<((&ContainerId, Tail), Printer<io::Stdout>)>) -> Outcome {
    let failed = Arc::new((AtomicBool::new(false), Notify::new()));
    let mut followers = Vec::new();
    for ((id, tail), printer) in logs {
        let failed = Arc::clone(&failed);
        let on_error = move |_: &io::Error| {
            failed.0.store(true, Ordering::Release);
            failed.1.notify_one();
        };
        let follower = Follower::start(tail, printer, on_error).map_err(|source| {
            Failure::system(format!("cannot follow the output of container `{id}`"), source)
        })?;
        followers.push((id, follower));
    }
    for (id, follower) in followers {
        if !failed.0.load(Ordering::Acquire) {
            let wire_id = encode_id(id);
            tokio::select! {
                termination = wait(client, &wire_id) => { termination?; }
                () = failed.1.notified() => {}
            }
        }
        // Returns the error, if it is that of this container.
        follower.finish()?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_lines_is_a_number_or_all() {
        assert_eq!((lines("all"), lines("0")), (Ok(Lines(None)), Ok(Lines(Some(0)))));
        assert!(lines("-1").is_err() && lines("some").is_err());
    }
}
