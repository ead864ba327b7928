//! The process that pulls.

use std::io::{self, BufRead, BufReader, Write};
use std::process::ExitCode;

use cofferdam_core::error_chain::describe;
use cofferdam_core::fetcher::escape_control;
use cofferdam_core::provisioner::document::Platform;
use cofferdam_core::provisioner::{ImageName, Store};
use parking_lot::Mutex;

use super::summary::Summary;
use super::{Job, JobSource, Message};
use crate::agent_watch::exit_when_closed;
use crate::image::Limits;
use crate::image::import::{LocalRequest, import_local};
use crate::image::pull::{PullRequest, pull};

/// Characters of a reason, so that it fits into a line that the agent reads.
const MAX_REASON: usize = 4000;

/// Runs `cofferdam pull-for-agent`: carries out the job on standard input, and reports on standard output. Exits when
/// standard input is closed before the job is done, as it is when the agent dies.
pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            send(&failed);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Message> {
    let failed = |error: &dyn std::error::Error| failure(error, false);
    let mut stdin = BufReader::new(io::stdin());
    let mut line = Vec::new();
    stdin.read_until(b'\n', &mut line).map_err(|error| failed(&error))?;
    let job: Job = serde_json::from_slice(&line).map_err(|error| failed(&error))?;
    exit_when_closed(stdin).map_err(|error| failed(&error))?;
    let summary = Mutex::new(Summary::default());
    let report = |progress| {
        let mut summary = summary.lock();
        if let Some(line) = summary.note(&progress) {
            // For the log of the agent.
            drop(writeln!(io::stderr(), "{}", escape_control(&line)));
        }
        // While it is locked, so that the reports are in order.
        if let Some(progress) = summary.take_change() {
            send(&Message::Progress(progress));
        }
    };
    let Job { store, source, registry, credentials, own_credentials } = job;
    let store = Store::at(store);
    match source {
        JobSource::Registry(name) => {
            let request = PullRequest {
                name: name.parse::<ImageName>().map_err(|error| failure(&error, true))?,
                platform: Platform::host(),
                limits: Limits::default(),
                registry,
                credentials,
                own_credentials,
            };
            let pulled = pull(&store, &request, &report);
            pulled.map(drop).map_err(|error| failure(&error, error.is_of_request()))
        }
        // The agent has found that it has to be imported.
        JobSource::Local { path, permitted } => {
            let request = LocalRequest { path, permitted: Some(permitted), is_forced: true };
            let imported = import_local(&store, &request, &report);
            imported.map(drop).map_err(|error| failure(&error, error.is_of_request()))
        }
    }
}

fn failure(error: &dyn std::error::Error, is_invalid: bool) -> Message {
    let reason = escape_control(&describe(error)).chars().take(MAX_REASON).collect();
    Message::Failed { reason, is_invalid }
}

/// An error means that the agent does not read any more, and that this process ends.
fn send(message: &Message) {
    if let Ok(mut line) = serde_json::to_vec(message) {
        line.push(b'\n');
        let mut stdout = io::stdout().lock();
        drop(stdout.write_all(&line).and_then(|()| stdout.flush()));
    }
}
