//! `cofferdam logs`: shows the output of containers.

mod files;
mod follow;
mod merge;
mod print;
mod start;
mod times;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use tokio::sync::Notify;

use self::files::Log;
use self::follow::{Follower, Tail};
use self::merge::Source;
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
/// What a container wrote to its standard output is written to that of this program, and its standard error likewise; one
/// stream alone is written to standard output. They are in the order in which they were written if the logger stores times, as
/// `logrotate` does; otherwise, of what is there already, one follows the other. `--since` and `--timestamps` need times.
///
/// With several containers, each line begins with the name of its container, in colour on a terminal unless NO_COLOR
/// is set. Control characters are visible there, but for colours.
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
    /// Show the last lines of each stream only: a number, or `all`
    #[arg(long, short = 'n', value_name = "N", default_value = "all", value_parser = lines)]
    tail: Lines,
    /// Show what was written since a time (2026-11-28T15:35:00Z, in UTC) or for some time (10m)
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    since: Option<SystemTime>,
    /// Begin each line with the time at which it was written, in UTC
    #[arg(long, short)]
    timestamps: bool,
    /// The streams to show
    #[arg(long, value_enum, value_name = "STREAM", default_value_t = Stream::All)]
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
    /// Both
    All,
    /// Standard output
    Stdout,
    /// Standard error
    Stderr,
}

/// Where a stream is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sink {
    Output,
    Errors,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Output => io::stdout().write(bytes),
            Self::Errors => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Output => io::stdout().flush(),
            Self::Errors => io::stderr().flush(),
        }
    }
}

impl Sink {
    fn is_terminal(self) -> bool {
        match self {
            Self::Output => io::stdout().is_terminal(),
            Self::Errors => io::stderr().is_terminal(),
        }
    }

    fn has_colour(self) -> bool {
        match self {
            Self::Output => has_colour(&io::stdout()),
            Self::Errors => has_colour(&io::stderr()),
        }
    }
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
    let follows = arguments.options.follow;
    block_on(async {
        let mut containers = Vec::new();
        for (index, id) in arguments.ids.iter().enumerate() {
            let mut sources = Vec::new();
            for (sink, log) in find(arguments, client, id).await? {
                let path = log.path.clone();
                let failed =
                    |source| Failure::system(format!("cannot show the output of container `{id}`"), source);
                let tail = Tail::open(log, selection).map_err(failed)?;
                if tail.is_missing() && !follows {
                    let path = path.display();
                    return Err(Failure::message(format!(
                        "the output of container `{id}` is not there: `{path}`"
                    )));
                }
                sources.push(Source::new(tail, printer(arguments, index, sink)));
            }
            containers.push((id, sources));
        }
        for (_, sources) in &mut containers {
            note_order(sources);
            merge::show_known(sources)?;
            if !follows {
                sources.iter_mut().try_for_each(|source| source.printer.finish())?;
            }
        }
        if follows { follow(client, containers).await } else { Ok(0) }
    })
}

/// Says that the streams are not in order, to who sees both of them on a terminal.
fn note_order(sources: &[Source<Sink>]) {
    let is_unordered = sources.len() > 1
        && sources.iter().all(|source| source.tail.has_known() && !source.tail.has_times())
        && Sink::Output.is_terminal()
        && Sink::Errors.is_terminal();
    if is_unordered {
        // Standard error may be closed.
        drop(writeln!(
            io::stderr(),
            "cofferdam: the standard error of the container is shown behind its standard output, as its logger stores no times"
        ));
    }
}

/// Where the output of a container is, and where it is shown.
async fn find(arguments: &Arguments, client: &Client, id: &ContainerId) -> Result<Vec<(Sink, Log)>, Failure> {
    let inspected = inspect(client, id).await?;
    let stream = if arguments.options.stderr { Stream::Stderr } else { arguments.options.stream };
    let (output, errors) =
        ((inspected.stdout, inspected.stdout_file), (inspected.stderr, inspected.stderr_file));
    let (name, streams) = match stream {
        Stream::All => ("output", vec![(Sink::Output, output), (Sink::Errors, errors)]),
        Stream::Stdout => ("standard output", vec![(Sink::Output, output)]),
        Stream::Stderr => ("standard error", vec![(Sink::Output, errors)]),
    };
    let has_times = inspected.log_times.unwrap_or_default();
    let mut logs: Vec<(Sink, Log)> = Vec::new();
    for (sink, (path, file)) in streams {
        let Some(path) = path.map(PathBuf::from) else { continue };
        // A logger may write both to one file.
        if logs.iter().any(|(_, log)| log.path == path) {
            continue;
        }
        let file = file.and_then(|file| file.try_into().ok());
        // The container cannot create files elsewhere.
        let owner = inspected.uid.filter(|_| file.is_none() && path.starts_with(&inspected.sandbox));
        logs.push((sink, Log { path, file, owner, has_times }));
    }
    if logs.is_empty() {
        return Err(no_file(client, id, name).await);
    }
    let needs_times =
        [("--timestamps", arguments.options.timestamps), ("--since", arguments.options.since.is_some())];
    if let Some((option, _)) = needs_times.iter().find(|(_, is_set)| *is_set && !has_times) {
        return Err(Failure::message(format!(
            "the times of the output of container `{id}` are not stored, which `{option}` needs; configure a logger that \
             stores them, such as `logrotate`, and launch the container again"
        )));
    }
    Ok(logs)
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

/// What shows a stream of a container.
fn printer(arguments: &Arguments, index: usize, sink: Sink) -> Printer<Sink> {
    let ids: Vec<String> = arguments.ids.iter().map(ToString::to_string).collect();
    let name = match ids.len() {
        0 | 1 => None,
        _ => print::names(&ids, sink.has_colour()).into_iter().nth(index),
    };
    Printer::new(sink, name, arguments.options.timestamps, sink.is_terminal())
}

/// Follows the output of containers until all of them have ended. Reads the files directly, as the agent is on the same
/// machine.
async fn follow(client: &Client, containers: Vec<(&ContainerId, Vec<Source<Sink>>)>) -> Outcome {
    let failed = Arc::new((AtomicBool::new(false), Notify::new()));
    let mut followers = Vec::new();
    for (id, source) in containers.into_iter().flat_map(|(id, all)| all.into_iter().map(move |one| (id, one)))
    {
        let failed = Arc::clone(&failed);
        let on_error = move |_: &io::Error| {
            failed.0.store(true, Ordering::Release);
            failed.1.notify_one();
        };
        let Source { tail, printer, .. } = source;
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
