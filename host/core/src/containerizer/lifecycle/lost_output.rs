//! Output that the logger of a container has not received.

use std::path::Path;
use std::time::Duration;

use cofferdam_linux::process::Process;

use crate::chain::Chain;
use crate::model::{ContainerId, ProcessId};
use crate::switchboard::take_lost_output;

/// How long a switchboard may take to end that was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Kills the switchboard of a container that has ended: its log does not.
pub fn end_switchboard(ProcessId { pid, start_time }: ProcessId) {
    if let Ok(process) = Process::open(pid, start_time) {
        drop(process.kill());
        drop(process.wait(Some(KILL_TIMEOUT)));
    }
}

/// Reports how much the logger has not received of the output of a container whose switchboard, in the directory of its record,
/// has ended, and counts it.
pub fn report_lost_output(chain: &Chain, id: &ContainerId, directory: &Path) {
    let lost = match take_lost_output(directory) {
        Ok(lost) => lost,
        Err(error) => {
            tracing::error!(container = %id, "cannot tell how much of its output is lost: {error}");
            return;
        }
    };
    for lost in lost {
        let why = lost.why.map_or_else(
            || "its log had not received it when the I/O switchboard was killed".to_owned(),
            |error| {
                format!("its log could not be written to, or had not received the end of it: the last error was {error}")
            },
        );
        tracing::error!(
            container = %id,
            stream = lost.stream,
            bytes = lost.bytes,
            "output of the container is lost: {why}"
        );
        if let Some(logger) = chain.logger() {
            logger.count_lost_output(lost.stream, lost.bytes);
        }
    }
}
